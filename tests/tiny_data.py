"""A data set of small images, and examples made of it, for tests with worker processes: they import this module."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from minicenternet.data.annotation import Annotation, DataSet, Sample
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


@dataclass
class Numbers(TinyData):
    """Tiny data with an array of an odd number of bytes, one of none, and one that is not contiguous."""

    bytes_: np.ndarray = field(default_factory=lambda: np.arange(101, dtype=np.uint8))
    nothing: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    columns: np.ndarray = field(default_factory=lambda: np.arange(60.0).reshape(6, 10)[:, ::3])

    def __getitem__(self, i):
        sample = super().__getitem__(i)
        value = int(self.bytes_[100 - i]) + int(self.columns[i % 6, 1]) + len(self.nothing)
        return replace(sample, image=np.full_like(sample.image, value))


@dataclass
class Boxed(TinyData):
    """Tiny data with boxes."""

    boxes: np.ndarray = field(default_factory=lambda: np.ones((9, 4), np.float32))

    def annotation(self, i):
        return replace(super().annotation(i), boxes=self.boxes)


def writes(sample, rng):
    """An example that writes to its annotation, which is a mistake."""
    sample.annotation.boxes[:] = 0
    return {"image": sample.image}


@dataclass
class WithoutPixels:
    """The annotations of a data set, with an image of one pixel each: for what its records alone take."""

    dataset: DataSet

    @property
    def class_names(self):
        return self.dataset.class_names

    @property
    def category_ids(self):
        return self.dataset.category_ids

    def __len__(self):
        return len(self.dataset)

    def annotation(self, i):
        return self.dataset.annotation(i)

    def __getitem__(self, i):
        return Sample(np.zeros((1, 1, 3), np.uint8), self.annotation(i))


def box_count(sample, rng):
    """The number of boxes, and a sum for which every number of the annotation is read."""
    a = sample.annotation
    return {"boxes": np.int64(len(a.boxes)), "sum": np.float64(a.boxes.sum() + a.labels.sum() + a.area.sum())}


def pss(pid):
    """Bytes of memory that a process holds, its share of what it shares with others (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
