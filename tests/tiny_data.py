"""A data set of small images, and examples made of it, for tests with worker processes: they import this module."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field

import numpy as np

from minicenternet.data.annotation import Annotation, Sample
from minicenternet.errors import InputError


@dataclass
class TinyData:
    """Image i is 4 x 6 pixels of value i (modulo 256); `trouble` says what befalls whoever reads an image."""

    length: int
    trouble: dict[int, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ("thing",)
    category_ids: tuple[int, ...] = (1,)

    def __len__(self):
        return self.length

    def annotation(self, i):
        nothing = np.zeros(0, bool)
        boxes, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        return Annotation(i, f"photo{i}.jpg", 6, 4, boxes, labels, nothing, nothing, np.zeros(0, np.float32))

    def __getitem__(self, i):
        trouble = self.trouble.get(i)
        if trouble == "bad image":
            raise InputError("it is cut short")
        if trouble == "mistake":
            raise KeyError("no such thing")
        if multiprocessing.parent_process() is not None:  # in a worker
            if trouble == "exit":
                os._exit(3)
            if trouble == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        return Sample(np.full((4, 6, 3), i % 256, np.uint8), self.annotation(i))


def example(sample, rng):
    """The image, a random number, and an integer."""
    value = int(sample.image[0, 0, 0])
    return {"image": sample.image.astype(np.float32), "noise": rng.random(5), "square": np.int32(value**2)}


def example_of_changing_shape(sample, rng):
    return {"image": np.zeros((3 + int(sample.image[0, 0, 0]) // 5, 2), np.float32)}


def example_that_takes_for_ever(sample, rng):
    """In a worker; the loader makes one itself first, to see what it is like."""
    if multiprocessing.parent_process() is not None:
        time.sleep(600)
    return example(sample, rng)


def threads_of_blas(sample, rng):
    """How many threads BLAS may use where examples are made."""
    from threadpoolctl import threadpool_info

    return {"threads": np.int64(max(library["num_threads"] for library in threadpool_info()))}
