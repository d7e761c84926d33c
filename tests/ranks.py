"""Ranks for tests: threads of this process in place of processes, or real ones, started by mpiexec."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minicenternet.distributed import Nccl, World

TESTS = Path(__file__).parent
RUN_NAME = "RUN_OF_TEST"  # variable that names a run to all of its processes


class ThreadRank(World):
    """One of several ranks that are threads: what each gives is laid on a table, and read when all have given."""

    def __init__(self, rank: int, size: int, table: dict | None = None):
        self.rank, self.size = rank, size
        self.table = {"barrier": threading.Barrier(size, timeout=60)} if table is None else table
        self.asked, self.wire = 0, None

    @classmethod
    def several(cls, size: int) -> list[ThreadRank]:
        first = cls(0, size)
        return [first, *(cls(rank, size, first.table) for rank in range(1, size))]

    def _exchange(self, value) -> list:
        self.asked += 1
        self.table[self.asked, self.rank] = value
        self.table["barrier"].wait()
        return [self.table[self.asked, rank] for rank in range(self.size)]

    def _nccl(self) -> Nccl:
        self.wire = self.wire or Nccl(self)
        return self.wire

    def sum(self, array):
        if hasattr(array, "__cuda_array_interface__"):
            return self._nccl().sum(array)
        return np.sum(self._exchange(np.array(array)), axis=0, dtype=array.dtype)

    def collect(self, array):
        if hasattr(array, "__cuda_array_interface__"):
            return self._nccl().collect(array)
        return np.stack(self._exchange(np.array(array)))

    def gather(self, data):
        return self._exchange(data) if self.rank == 0 else self._exchange(data)[:0]

    def share(self, text):
        return self._exchange(text)[0]

    def apart(self):
        tables = self._exchange({"barrier": threading.Barrier(self.size, timeout=60)})
        return ThreadRank(self.rank, self.size, tables[0])


def in_ranks(size: int, function: Callable[[World], object]) -> list:
    """Return what function(world) returns in each of `size` ranks, which are threads; raises the first error."""
    results, errors = [None] * size, []

    def run(world: ThreadRank) -> None:
        try:
            results[world.rank] = function(world)
        except BaseException as error:
            errors.append(error)
            world.table["barrier"].abort()

    threads = [threading.Thread(target=run, args=[world]) for world in ThreadRank.several(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
    return results


def mpirun(size: int, *arguments: str, environment: dict[str, str], timeout: float = 120) -> subprocess.Popen:
    """Start python with these arguments in `size` ranks of real MPI.  Skips the test where there is none."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    beside = Path(sys.executable).parent / "mpiexec"  # where `pip install mpich` puts it
    launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
    if launcher is None:
        pytest.skip("no mpiexec: python -m pip install mpich")
    return subprocess.Popen(
        [launcher, "-n", str(size), sys.executable, *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def pids_of(name: str, *variables: str) -> list[int]:
    """The living processes of the run that was started with this name, of those with such variables (Linux).

    The launcher is one, and so are the ranks and their workers.
    """
    wanted = {f"{RUN_NAME}={name}".encode(), *(variable.encode() for variable in variables)}
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                found.append(int(entry.name))
        except OSError:  # it has just ended, or is somebody else's
            continue
    return found


def pid_of(rank: int, name: str) -> int:
    """The process of a rank of a run; its data workers have the same variables, but it was there before them."""
    pids = pids_of(name, f"PMI_RANK={rank}")
    assert pids, f"rank {rank} is not running"
    return min(pids, key=lambda pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]))
