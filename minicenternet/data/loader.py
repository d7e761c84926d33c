"""Batches of examples, prepared ahead by worker processes; their contents do not depend on how many there are.

    order of an epoch    default_rng(SeedSequence((seed, epoch, number of images))).permutation
    rng of an example    default_rng(SeedSequence((seed, epoch, index of the image)))

The batches of all epochs form one sequence. Of W workers each prepares every W-th batch and writes it into one of its
slots of shared memory; a pipe to each worker carries the requests and, in the same order, the replies. A pipe ends when
the process at its other end does, so that nobody waits for a dead worker, and no worker outlives the program.

By hand rather than by grain (0.2.18), whose batches change with the number of workers, which needs Python 3.11, ten
more packages and a quarter of a second to import, and complains of leaked shared memory when the program ends.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from threadpoolctl import threadpool_limits

from ..errors import InputError
from .annotation import DataSet, Sample, Unread

WAITING_SECONDS = 0.5  # between two calls of `waiting`

Example = Callable[[Sample | Unread, np.random.Generator], dict[str, np.ndarray]]


class Loader:
    """Stacked examples of a data set, epoch by epoch.

    example(sample, rng) makes a dict of arrays from a Sample (an Unread one, where the data set has such), with the
    same keys, shapes and dtypes for every sample. A batch is a dict of these arrays, stacked, and "dataset_index" (B,)
    int64: the images in it. With workers, the data set and `example` are pickled; what arrays there are in them lie in
    memory that the workers share, and cannot be written to by these.

        workers         processes, started at the first batch and kept until `close`; 0 prepares in this process
        shuffle         a new order in every epoch
        drop_last       leave out an epoch's last batch where it is smaller than the others
        prefetch        batches that each worker prepares ahead, those of the next epoch included
        on_bad_image    "raise", or "skip": the next good image of the data set takes its place, with one warning
        rank, ranks     of several programs that share each batch, which one this is: it prepares every ranks-th image
        waiting         called now and then while workers are waited for; what it raises ends the wait

    `skipped` lists what was wrong with each image skipped. Raises InputError for an image that cannot be prepared,
    naming it, for examples of unequal shapes and for a worker that died; RuntimeError, with a traceback, where the data
    set or `example` raises anything but InputError.
    """

    def __init__(
        self,
        dataset: DataSet,
        example: Example,
        batch_size: int,
        *,
        seed: int = 0,
        workers: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        prefetch: int = 2,
        on_bad_image: str = "raise",
        rank: int = 0,
        ranks: int = 1,
        waiting: Callable[[], None] = lambda: None,
    ):
        for name, value, least in [("batch_size", batch_size, 1), ("workers", workers, 0), ("prefetch", prefetch, 1)]:
            if value < least:
                raise InputError(f"{name} is {value}; it must be {least} or more")
        if on_bad_image not in ("raise", "skip"):
            raise InputError(f"on_bad_image is {on_bad_image!r}; it must be 'raise' or 'skip'")
        if len(dataset) == 0:
            raise InputError("the data set has no images; check its path and its split")
        if drop_last and batch_size > len(dataset):
            raise InputError(
                f"the data set has {len(dataset)} images, fewer than one batch of {batch_size}, and incomplete batches "
                "are dropped (drop_last); make the batch smaller"
            )
        if not 0 <= rank < ranks or batch_size % ranks:
            raise InputError(f"rank {rank} of {ranks} cannot take its equal share of a batch of {batch_size} images")
        self.workers, self.prefetch, self.waiting = workers, prefetch, waiting
        self.skipped: list[str] = []
        skip = on_bad_image == "skip"
        self.batches = _Batches(dataset, example, batch_size, seed, shuffle, drop_last, skip, rank, ranks)
        self._pool: _Pool | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.batches)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The batches of one epoch, from `start_batch` on; the loop over them may be left at any time."""
        if not 0 <= start_batch <= len(self):
            raise InputError(f"start_batch is {start_batch}; it must be 0 to {len(self)}, the batches in an epoch")
        for batch in range(start_batch, len(self)):
            buffer, outcome = self._prepare(epoch, batch)
            if isinstance(outcome, Exception):
                raise outcome
            for message in outcome:
                if message not in self.skipped:
                    self.skipped.append(message)
                    warnings.warn(f"skipped: {message}", stacklevel=2)
            rows = len(self.batches.indices(epoch, batch))
            yield {key: array[:rows] for key, array in self.batches.arrays(buffer).items()}

    def _prepare(self, epoch: int, batch: int) -> tuple[np.ndarray, list[str] | Exception]:
        if not self.workers:
            buffer = np.empty(self.batches.nbytes, np.uint8)
            return buffer, self.batches.fill(buffer, epoch, batch)
        if self._pool is None:
            self._pool = _Pool(self.batches, self.workers, self.prefetch, self.waiting)
        try:
            return self._pool.get(epoch, batch)
        except BaseException:  # of Ctrl-C too: it may come between a request and its reply
            self.close()
            raise

    def close(self) -> None:
        """End the workers and free their memory; a further epoch would start new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class _Batches:
    """What is in every batch: all that a worker needs to know, and nothing that depends on the workers.

    A batch lies in one buffer of `nbytes` bytes, which `arrays` views as the arrays of `layout`.
    """

    def __init__(self, dataset, example: Example, batch_size, seed, shuffle, drop_last, skip_bad_images, rank, ranks):
        self.dataset, self.example, self.batch_size, self.seed = dataset, example, batch_size, seed
        self.shuffle, self.drop_last, self.skip_bad_images = shuffle, drop_last, skip_bad_images
        self.rank, self.ranks, self.rows = rank, ranks, batch_size // ranks
        self.read = getattr(dataset, "unread", dataset.__getitem__)
        first = self._example(0, 0, [])
        self.layout = _shapes(first)
        if any(dtype.hasobject for dtype, _ in self.layout.values()):
            raise InputError(f"an example is a dict of arrays of numbers, not {first}")
        self.nbytes = sum(_padded(self.rows * array.nbytes) for array in map(np.asarray, first.values()))

    def __len__(self) -> int:
        return (len(self.dataset) + (0 if self.drop_last else self.batch_size - 1)) // self.batch_size

    def indices(self, epoch: int, batch: int) -> np.ndarray:
        """The images of a batch, or of this rank's share of it."""
        order = _order(len(self.dataset), self.seed, epoch) if self.shuffle else np.arange(len(self.dataset))
        return order[batch * self.batch_size : (batch + 1) * self.batch_size][self.rank :: self.ranks]

    def arrays(self, buffer: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of a batch, (rows, ...) each, as views of its buffer."""
        arrays, start = {}, 0
        for key, (dtype, shape) in self.layout.items():
            arrays[key] = np.ndarray((self.rows, *shape), dtype, buffer, start)
            start += _padded(arrays[key].nbytes)
        return arrays

    def fill(self, buffer: np.ndarray, epoch: int, batch: int) -> list[str]:
        """Write a batch into its buffer; returns what was wrong with the images that were skipped."""
        arrays, skipped = self.arrays(buffer), []
        for row, index in enumerate(self.indices(epoch, batch)):
            example = self._example(epoch, int(index), skipped)
            if (shapes := _shapes(example)) != self.layout:
                name = self.dataset.annotation(int(example["dataset_index"])).file_name
                raise InputError(
                    f"the example of {name} has {_described(shapes)}, unlike the first one, which has "
                    f"{_described(self.layout)}; examples must have the same shapes to be stacked"
                )
            write_row(arrays, row, example)
        return skipped

    def _example(self, epoch: int, index: int, skipped: list[str]) -> dict[str, np.ndarray]:
        """The example of image `index`, or of the first good image after it."""
        for step in range(len(self.dataset)):
            candidate = (index + step) % len(self.dataset)
            rng = np.random.default_rng(np.random.SeedSequence((self.seed, epoch, candidate)))
            try:
                return {**self.example(self.read(candidate), rng), "dataset_index": np.int64(candidate)}
            except Exception as error:
                name = self.dataset.annotation(candidate).file_name
                if not isinstance(error, InputError):
                    problem = f"{type(error).__name__}: {error}"
                    raise RuntimeError(f"image {candidate} ({name}) cannot be prepared: {problem}") from error
                message = f"image {candidate} ({name}) cannot be prepared: {error}"
                if not self.skip_bad_images:
                    raise InputError(message) from error
                skipped.append(message)
        raise InputError(f"none of the {len(self.dataset)} images can be prepared; the last: {message}")


def write_row(arrays: dict[str, np.ndarray], row: int, example: dict[str, np.ndarray]) -> None:
    """Copy an example into its row of a batch."""
    for key, array in arrays.items():
        array[row] = example[key]


@lru_cache(maxsize=4)
def _order(length: int, seed: int, epoch: int) -> np.ndarray:
    # Without the length this would be the rng of image 0, since SeedSequence takes (a, b) for (a, b, 0).
    return np.random.default_rng(np.random.SeedSequence((seed, epoch, length))).permutation(length)


def _shapes(example: dict[str, np.ndarray]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    return {key: (np.asarray(value).dtype, np.shape(value)) for key, value in example.items()}


def _described(shapes: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> str:
    return ", ".join(f"{key} {shape} {dtype}" for key, (dtype, shape) in shapes.items())


def _padded(nbytes: int) -> int:
    return -(-nbytes // 64) * 64  # arrays begin at cache lines


class _Pool:
    """The workers, their pipes and their shared memory."""

    def __init__(self, batches: _Batches, workers: int, prefetch: int, waiting: Callable[[], None]):
        self.batches, self.slots, self.waiting = batches, workers * prefetch, waiting
        self.asked: deque[tuple[int, int]] = deque()  # (epoch, batch) of each reply to come
        self.count_asked = self.count_received = 0
        self.next = (0, 0)  # to be asked for
        self.processes: list[multiprocessing.process.BaseProcess] = []
        self.pipes: list[Connection] = []
        arrays: list[pickle.PickleBuffer] = []  # the data set's own, and those of `example`
        pickled = pickle.dumps(batches, protocol=5, buffer_callback=arrays.append)
        self.memory, places = _shared_memory(self.slots * batches.nbytes, [array.raw() for array in arrays])
        # Also at garbage collection and when the program ends.
        self.close = weakref.finalize(self, _finish, self.processes, self.pipes, self.memory)
        context = multiprocessing.get_context("spawn")  # a forked copy of a program with threads can deadlock
        with _interrupts_held():
            for number in range(workers):
                pipe, far_end = context.Pipe()
                arguments = (far_end, self.memory, pickled, places)
                process = context.Process(target=_work, args=arguments, name=f"data worker {number}", daemon=True)
                process.start()
                far_end.close()  # the worker's is now the only one, and ends with it
                self.processes.append(process)
                self.pipes.append(pipe)

    def get(self, epoch: int, batch: int) -> tuple[np.ndarray, list[str] | Exception]:
        """A copy of the batch's buffer and what the worker replied; then its slot gets something new to do."""
        if not self.asked or self.asked[0] != (epoch, batch):
            while self.asked:  # prepared ahead for a loop that was left
                self._receive()
            self.next = (epoch, batch)
        self._ask_ahead()
        slot = self.count_received % self.slots
        outcome = self._receive()
        buffer = _slot(self.memory, slot, self.batches.nbytes).copy()
        self._ask_ahead()
        return buffer, outcome

    def _ask_ahead(self) -> None:
        while len(self.asked) < self.slots:
            worker = self.count_asked % len(self.processes)
            try:
                self.pipes[worker].send((self.count_asked % self.slots, *self.next))
            except OSError:
                raise self._death_of(worker) from None
            self.count_asked += 1
            self.asked.append(self.next)
            epoch, batch = self.next
            self.next = (epoch, batch + 1) if batch + 1 < len(self.batches) else (epoch + 1, 0)

    def _receive(self) -> list[str] | Exception:
        worker = self.count_received % len(self.processes)
        try:
            while not self.pipes[worker].poll(WAITING_SECONDS):
                self.waiting()
            outcome = self.pipes[worker].recv()
        except (EOFError, OSError):
            raise self._death_of(worker) from None
        self.count_received += 1
        self.asked.popleft()
        return outcome

    def _death_of(self, worker: int) -> InputError:
        process = self.processes[worker]
        process.join(timeout=5)
        code = process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        return InputError(
            f"{process.name} of {len(self.processes)} ended unexpectedly ({how}). SIGKILL and SIGBUS mostly mean that "
            "memory ran out: use fewer workers or a smaller batch. With workers=0 the error shows where it happens; a "
            'script that starts workers needs the line  if __name__ == "__main__":'
        )


def _work(pipe: Connection, memory: SharedMemory, pickled: bytes, places: list[slice]) -> None:
    """A worker's life: fill the slots asked for until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; Windows cannot hold it back
    batches: _Batches = pickle.loads(pickled, buffers=[memory.buf[place].toreadonly() for place in places])
    with threadpool_limits(1):  # the workers are the parallelism
        try:
            while True:
                slot, epoch, batch = pipe.recv()
                try:
                    outcome = batches.fill(_slot(memory, slot, batches.nbytes), epoch, batch)
                except InputError as error:
                    outcome = error
                except Exception as error:
                    outcome = RuntimeError(f"{error}\n\nIn the worker:\n{traceback.format_exc()}")
                pipe.send(outcome)
        except (EOFError, OSError):  # the parent has gone
            pass


def _slot(memory: SharedMemory, slot: int, nbytes: int) -> np.ndarray:
    return np.frombuffer(memory.buf, np.uint8, nbytes, slot * nbytes)


def _shared_memory(nbytes: int, arrays: list[memoryview]) -> tuple[SharedMemory, list[slice]]:
    """Memory with room for slots of `nbytes` in all and, behind them, a copy of each array; and where these lie."""
    ends = list(accumulate((_padded(array.nbytes) for array in arrays), initial=nbytes))
    # Linux grants more than there is, and kills whoever touches it.
    if os.path.isdir("/dev/shm") and ends[-1] > (free := shutil.disk_usage("/dev/shm").free):
        raise InputError(
            f"the batches prepared ahead need {ends[-1] / 1e6:.0f} MB of shared memory and /dev/shm has "
            f"{free / 1e6:.0f} MB free; use fewer workers or a smaller batch, or enlarge it (docker run --shm-size=8g)"
        )
    memory = SharedMemory(create=True, size=ends[-1])
    places = [slice(start, start + array.nbytes) for start, array in zip(ends, arrays, strict=False)]
    for place, array in zip(places, arrays, strict=True):
        memory.buf[place] = array
    return memory, places


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block ends, and is blocked in processes started in it, which inherit that."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _finish(processes: list, pipes: list[Connection], memory: SharedMemory) -> None:
    for process in processes:
        process.terminate()  # a worker owns nothing that wants tidying
    for process in processes:
        process.join()
    for pipe in pipes:
        pipe.close()
    memory.close()
    memory.unlink()
