"""Which device is computed on, and why; and what to do when its memory is too small.

auto      the GPU where one can be used, else the CPU
cpu       NumPy
cuda      CuPy, on the current GPU
cuda:1    CuPy, on the second GPU
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import doctor
from .backend import gpu_count, gpu_memory, is_out_of_gpu_memory, try_gpu
from .errors import InputError
from .graph import Captured

GB = 1e9


def choose(wanted: str) -> tuple[str, str]:
    """Return the device that `wanted` (auto, cpu, cuda, cuda:N) stands for, "cpu" or "cuda:N", and why, in one line.

    Raises InputError for another value, for a GPU that is not there, and, with what to type, where CuPy cannot be used.
    """
    asked = re.fullmatch(r"cuda(?::(\d+))?", wanted)
    if wanted not in ("auto", "cpu") and not asked:
        raise InputError(
            f"device is {wanted!r}; expected auto, cpu, cuda or, of several GPUs, cuda:0, cuda:1 and so on"
        )
    if wanted == "cpu":
        return "cpu", "device cpu: as asked"
    number = int(asked[1]) if asked and asked[1] else 0
    try:
        count = gpu_count()
        if number < count:
            return f"cuda:{number}", f"device cuda:{number}: {try_gpu(number)}"
    except Exception:  # whatever CuPy raises, or that it is absent; the doctor finds out which
        _, reason, _, advice, command = doctor.gpu(doctor.find_driver(), doctor.cupy_wheels(), number)
        reason = " ".join(part for part in (f"{reason}.", advice, command) if part)
        if wanted == "auto":
            return "cpu", f"device cpu: {reason}"
        raise InputError(f"device {wanted} cannot be used: {reason}") from None
    raise InputError(
        f"device is {wanted}, but there {'is 1 GPU' if count == 1 else f'are {count} GPUs'}, from cuda:0 on"
    )


def check_graph(wanted: bool, device: str) -> None:
    """Raise InputError where a CUDA graph is wanted on the CPU."""
    if wanted and device == "cpu":
        raise InputError(
            "graph is of GPUs, and this runs on the CPU; leave --graph out, or give --device cuda where there is one"
        )


@contextmanager
def memory_explained(
    batch_size: int, fitting: Callable[[float], str], captured: Captured | None = None
) -> Iterator[None]:
    """Inside, a GPU that runs out of memory is an InputError: what was asked, held and free, and what should fit.

    fitting(bytes): in words, the batch size that should fit into so many, and how that was estimated.  captured: what
    holds memory of its own, which is in no other count.
    """
    try:
        yield
    except MemoryError as error:
        if not is_out_of_gpu_memory(error):
            raise
        held, free, total = gpu_memory()
        held += captured.memory()[1] if captured is not None else 0
        asked = re.search(r"allocating ([\d,]+) bytes", str(error))
        what = f"{int(asked[1].replace(',', '')) / GB:.2f} GB more were asked for" if asked else str(error)
        raise InputError(
            f"the GPU's memory is too small for a batch of {batch_size}: {what}, {held / GB:.2f} GB were held and "
            f"{free / GB:.2f} of {total / GB:.1f} GB free. {fitting(held + free)}"
        ) from error
