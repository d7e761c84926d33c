"""Several processes, called ranks, that train one network together, each on its share of every batch.

    mpirun -n 8 minicenternet train ...      (or srun, under Slurm: whatever starts MPI programs)

    world = join()                           the ranks that were started together; one alone without a launcher
    world.sum(array)                         on every rank the sum of what each of them gave
    GradientSum(world, parameters)           sums gradients, bucket by bucket, while the backward pass still runs
    with ending_together(world): ...         an error on one rank names it and ends them all

Every rank has all of the weights and takes the same steps: what it adds to a step is the gradient of its own images.
MPI (mpi4py) starts the ranks and carries what lies on CPUs, NCCL carries what lies on GPUs, of which each rank has one.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .backend import Array, cupy_module, get_xp
from .errors import InputError
from .threads import thread_count

if TYPE_CHECKING:
    from .autograd import Tensor
    from .nn.module import Parameter

BUCKET = 4 << 20  # bytes of gradients that are sent together: enough for the wire to be busy, and for an early start
LAUNCHED = ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE")  # one of these is set by what starts MPI programs


class World:
    """One rank alone: what it asks of all ranks is its own."""

    rank, size, local_rank = 0, 1, 0

    @property
    def name(self) -> str:
        """What this rank is called in messages."""
        return f"rank {self.rank} of {self.size} ({socket.gethostname()})"

    def sum(self, array: Array) -> Array:
        """Return the sum of all ranks' arrays, of one shape and dtype: the same bits on each rank."""
        return array

    def collect(self, array: Array) -> Array:
        """Return all ranks' arrays, of one shape and dtype, stacked in the order of the ranks: (size, ...)."""
        return array[None]

    def gather(self, data: bytes) -> list[bytes]:
        """Return what each rank gave, in the order of the ranks; on other ranks than 0 an empty list."""
        return [data]

    def share(self, text: str) -> str:
        """Return rank 0's text on every rank."""
        return text

    def apart(self) -> World:
        """Return the same ranks with a wire of their own, for another thread.  All ranks must ask together."""
        return self

    def abort(self) -> None:
        """End all ranks at once; of one alone there is nobody else to end."""

    def __deepcopy__(self, memo) -> World:
        """Return this very world: a copied network's ranks are the same."""
        return self


class Ranks(World):
    """The ranks that an MPI launcher started together; a communicator of mpi4py carries what they say."""

    def __init__(self, communicator):
        from mpi4py import MPI

        self.communicator, self.in_place = communicator, MPI.IN_PLACE
        self.rank, self.size = communicator.rank, communicator.size
        on_this_machine = communicator.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = on_this_machine.rank, on_this_machine.size

    @cached_property
    def nccl(self) -> Nccl:
        """The wire between the ranks' GPUs; all ranks must ask for it together the first time."""
        return Nccl(self)

    def sum(self, array):
        if get_xp(array) is not np:
            return self.nccl.sum(array)
        total = np.array(array, order="C")
        self.communicator.Allreduce(self.in_place, total)
        return total

    def collect(self, array):
        if get_xp(array) is not np:
            return self.nccl.collect(array)
        stacked = np.empty((self.size, *array.shape), array.dtype)
        self.communicator.Allgather(np.ascontiguousarray(array), stacked)
        return stacked

    def gather(self, data):
        lengths = self.collect(np.array(len(data)))
        whole = np.empty(lengths.sum() if self.rank == 0 else 0, np.uint8)
        self.communicator.Gatherv(np.frombuffer(data, np.uint8), (whole, lengths))
        ends = np.cumsum(lengths)
        return [whole[end - n : end].tobytes() for end, n in zip(ends, lengths, strict=True)] if self.rank == 0 else []

    def share(self, text):
        data = np.frombuffer(text.encode(), np.uint8)
        length = int(self.collect(np.array(len(data)))[0])
        data = data.copy() if self.rank == 0 else np.empty(length, np.uint8)
        self.communicator.Bcast(data)
        return data.tobytes().decode()

    def apart(self):
        return Ranks(self.communicator.Dup())

    def abort(self):
        self.communicator.Abort(1)


class Nccl:
    """NCCL between the current GPUs of all ranks: the GPU does what it is told in its turn, and nobody waits for it.

    Raises InputError where CuPy finds no NCCL.
    """

    def __init__(self, world: World):
        self.cupy, self.size = cupy_module(), world.size
        self.library = self.cupy.cuda.nccl
        if not getattr(self.library, "available", True):
            raise InputError(
                "several GPUs need NCCL, which CuPy does not find: python -m pip install nvidia-nccl-cu12 (or -cu13, "
                "like CuPy's wheel)"
            )
        identity = json.loads(world.share(json.dumps(self.library.get_unique_id() if world.rank == 0 else None)))
        self.communicator = self.library.NcclCommunicator(world.size, tuple(identity), world.rank)

    def sum(self, array: Array) -> Array:
        """Return the sum of all ranks' arrays."""
        total, stream = self.cupy.array(array, order="C"), self.cupy.cuda.get_current_stream()
        where, kind = total.data.ptr, self._kind(total)
        self.communicator.allReduce(where, where, total.size, kind, self.library.NCCL_SUM, stream.ptr)
        return total

    def collect(self, array: Array) -> Array:
        """Return all ranks' arrays, stacked."""
        array, stream = self.cupy.ascontiguousarray(array), self.cupy.cuda.get_current_stream()
        stacked = self.cupy.empty((self.size, *array.shape), array.dtype)
        self.communicator.allGather(array.data.ptr, stacked.data.ptr, array.size, self._kind(array), stream.ptr)
        return stacked

    def _kind(self, array: Array) -> int:
        return getattr(self.library, f"NCCL_{array.dtype.name.upper()}")


def join() -> World:
    """Return the ranks that were started together with this one; those of one machine share its threads.

    Raises InputError when mpi4py is not installed, and for an MPI that cannot do what is needed.
    """
    if not any(name in os.environ for name in LAUNCHED):
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
        if tasks != "1":
            warnings.warn(
                f"srun started {tasks} processes that do not know of each other: each trains a network of its own. For "
                "one of all, give srun --mpi=pmix, or another kind that srun --mpi=list names",
                stacklevel=2,
            )
        return World()
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise InputError(
            'several ranks were started, for which mpi4py is needed: python -m pip install "minicenternet[distributed]"'
        ) from error
    if MPI.COMM_WORLD.size == 1:
        return World()
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise InputError(
            "this MPI does not let several threads talk at once (MPI_THREAD_MULTIPLE), as summing gradients during the "
            "backward pass needs; install another one, such as: python -m pip install mpich"
        )
    world = Ranks(MPI.COMM_WORLD)
    os.environ.setdefault("MINICENTERNET_THREADS", str(max(1, thread_count() // world.local_size)))
    thread_count.cache_clear()
    return world


@contextmanager
def ending_together(world: World) -> Iterator[None]:
    """Inside, an error on one rank is told with the rank's name, and ends all of them: none waits for the dead.

    Of one rank alone, errors go where they would have gone.
    """
    try:
        yield
    except Exception as error:
        if world.size == 1:
            raise
        told = str(error) if isinstance(error, InputError) else traceback.format_exc()
        print(f"\n{world.name}: {told}", file=sys.stderr, flush=True)
        world.abort()


class GradientSum:
    """Sums the gradients of all ranks in buckets, each as soon as the backward pass has made all that belongs to it.

        loss.backward(ready=gradients.note)
        gradients.finish()

    Parameters are put into buckets from the last to the first, the order in which backward gets to them, and a thread
    (on a GPU: a stream) of their own sends the buckets in that order: the same on every rank.
    """

    def __init__(self, world: World, parameters: Iterable[Parameter], bucket_bytes: int = BUCKET):
        self.world, self.buckets, parameters = world.apart(), [], list(parameters)
        self.bucket_of: dict[int, _Bucket] = {}
        for parameter in reversed(parameters):
            if not self.buckets or self.buckets[-1].nbytes >= bucket_bytes:
                self.buckets.append(_Bucket())
            self.buckets[-1].add(parameter)
            self.bucket_of[id(parameter)] = self.buckets[-1]
        on_gpu = get_xp(*(parameter.data for parameter in parameters)) is not np
        self.sender = _StreamSender() if on_gpu else ThreadPoolExecutor(1, thread_name_prefix="gradients")
        self.next = 0  # bucket to be sent

    def note(self, leaf: Tensor) -> None:
        """Send what can be sent now that this leaf's gradient is complete."""
        bucket = self.bucket_of.get(id(leaf))
        if bucket:
            bucket.missing -= 1
            while self.next < len(self.buckets) and not self.buckets[self.next].missing:
                self._send()

    def _send(self) -> None:
        bucket = self.buckets[self.next]
        bucket.sum = self.sender.submit(self.world.sum, bucket.gradients())
        self.next += 1

    def finish(self) -> None:
        """Wait until every parameter's `grad` is the sum over all ranks; zeros where no rank had one."""
        while self.next < len(self.buckets):  # some of whose parameters no gradient reached here
            self._send()
        for bucket in self.buckets:
            bucket.spread()
        self.next = 0


class _StreamSender:
    """Sends from a stream of its own, beside the one that goes on computing; in the form of an executor."""

    def __init__(self):
        self.stream = cupy_module().cuda.Stream(non_blocking=True)

    def submit(self, send: Callable[[Array], Array], gradients: Array) -> _Sent:
        """Return what will be send(gradients), which are ready when the current stream gets here."""
        cuda = cupy_module().cuda
        ready, sent = cuda.Event(), cuda.Event()
        ready.record(cuda.get_current_stream())
        self.stream.wait_event(ready)
        with self.stream:
            total = send(gradients)
        sent.record(self.stream)
        return _Sent(total, gradients, sent)


class _Sent(NamedTuple):
    """A sum under way on a GPU; its own numbers are kept until then."""

    total: Array
    gradients: Array
    event: object

    def result(self) -> Array:
        """Return the sum; the current stream waits for it, the host does not."""
        cupy_module().cuda.get_current_stream().wait_event(self.event)
        return self.total


class _Bucket:
    """Parameters whose gradients are sent as one array."""

    def __init__(self):
        self.parameters: list[Parameter] = []
        self.nbytes = self.missing = 0  # missing: how many gradients are still to come
        self.sum: Future[np.ndarray] | _Sent

    def add(self, parameter: Parameter) -> None:
        self.parameters.append(parameter)
        self.nbytes += parameter.data.nbytes
        self.missing += 1

    def gradients(self) -> Array:
        """Return the gradients side by side, zeros for those that are None."""
        xp = get_xp(*(one.data for one in self.parameters))
        return xp.concatenate(
            [xp.zeros(one.size, one.dtype) if one.grad is None else one.grad.reshape(-1) for one in self.parameters]
        )

    def spread(self) -> None:
        """Give each parameter its part of the sum."""
        total, start = self.sum.result(), 0
        for one in self.parameters:
            one.grad = total[start : start + one.size].reshape(one.shape)
            start += one.size
        self.missing = len(self.parameters)
