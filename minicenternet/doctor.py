"""What this machine has, what minicenternet uses of it, and what to type where something is missing."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from threadpoolctl import threadpool_info

from . import __version__
from .backend import try_gpu
from .errors import InputError
from .threads import thread_count

REQUIRED = ("numpy", "pillow", "matplotlib", "safetensors", "tqdm", "tyro", "threadpoolctl")
WHEEL_OF_CUDA = {12: "cupy-cuda12x", 13: "cupy-cuda13x"}  # CuPy's package for each major version of CUDA
GB = 1e9


class Finding(NamedTuple):
    """One entry of the report.  "note": it works, but could be better; "problem": minicenternet cannot work so."""

    what: str
    value: str
    verdict: Literal["ok", "note", "problem"] = "ok"
    advice: str = ""
    command: str = ""  # to type, word for word


class Driver(NamedTuple):
    """An NVIDIA driver: the newest CUDA version it runs, as (12, 4), and its first GPU, "" where it shows none."""

    cuda: tuple[int, int]
    gpu: str


def examine(folder: str | os.PathLike = ".") -> list[Finding]:
    """Return all findings, in the order to read them; folder: where runs will be kept."""
    return [
        Finding("minicenternet", f"{__version__}, in {Path(__file__).parent}"),
        Finding("Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        *packages(),
        blas(),
        threads(),
        gpu(find_driver(), cupy_wheels()),
        memory(free_memory()),
        shared_memory(),
        disk(Path(folder)),
        writing(Path(folder)),
    ]


def report(findings: Sequence[Finding]) -> str:
    """Return the findings as text of at most 100 columns, with the verdict in the last line."""
    lines, margin = [], " " * 24
    for what, value, verdict, advice, command in findings:
        lines.append(f"{verdict:<8} {what:<14} {value}")
        lines += textwrap.wrap(advice, 98, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
        if command:
            lines.append(f"{margin}    {command}")
    problems = sum(finding.verdict == "problem" for finding in findings)
    solve = f"{problems} problem{'s' * (problems > 1)} to solve before minicenternet can be used here"
    return "\n".join([*lines, "", "minicenternet can be used here" if usable(findings) else solve])


def usable(findings: Sequence[Finding]) -> bool:
    """Whether nothing was found that keeps minicenternet from working."""
    return all(finding.verdict != "problem" for finding in findings)


def packages() -> list[Finding]:
    """Versions of the libraries: those that must be there and the one that may."""
    found = [Finding(name, version(name)) if _installed(name) else _missing(name) for name in REQUIRED]
    if _installed("pycocotools"):
        return [*found, Finding("pycocotools", version("pycocotools"))]
    advice = "`minicenternet evaluate` compares its AP with pycocotools' where that is installed:"
    return [*found, Finding("pycocotools", "not installed", "note", advice, "pip install pycocotools")]


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _missing(name: str) -> Finding:
    return Finding(name, "not installed", "problem", "minicenternet needs it:", f"pip install {name}")


def blas() -> Finding:
    """The library behind NumPy's matrix product, and for which processor it picked its code."""
    library = next((library for library in threadpool_info() if library["user_api"] == "blas"), None)
    if library is None:
        name = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
        advice = "its threads cannot be counted or limited; that costs some speed where it starts several of its own"
        return Finding("BLAS", name, "note", advice)
    core = library.get("architecture", "")
    value = f"{library['internal_api']} {library['version']}{f', code for {core}' if core else ''}"
    held_to = os.environ.get("OPENBLAS_CORETYPE")
    if library["internal_api"] == "openblas" and held_to:
        own = _own_core()
        if own not in ("", core):
            advice = (
                f"the environment variable OPENBLAS_CORETYPE={held_to} makes NumPy use instructions for {core}; by "
                f"itself it would use those for {own}, which can be twice as fast. Without the variable:"
            )
            return Finding("BLAS", value, "note", advice, "unset OPENBLAS_CORETYPE")
    return Finding("BLAS", value)


def _own_core() -> str:
    """The core that OpenBLAS picks by itself, "" where that cannot be found out."""
    program = (
        "import json, numpy, threadpoolctl; "
        "print(json.dumps([library.get('architecture', '') for library in threadpoolctl.threadpool_info()]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    return next(iter(json.loads(answer.stdout)), "") if answer.returncode == 0 else ""


def threads() -> Finding:
    """How many threads the ops use, and why so many."""
    try:
        count = thread_count()
    except InputError as error:
        return Finding("threads", os.environ["MINICENTERNET_THREADS"], "problem", str(error))
    cores = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    if "MINICENTERNET_THREADS" in os.environ:
        reason = "set by MINICENTERNET_THREADS"
    elif count < allowed:
        reason = f"this container's share of {cores} CPUs"
    elif allowed < cores:
        reason = f"the CPUs this process may use, of {cores}"
    else:
        reason = "one for each CPU"
    advice = ""
    if "OMP_NUM_THREADS" in os.environ or "OPENBLAS_NUM_THREADS" in os.environ:
        advice = "OMP_NUM_THREADS and OPENBLAS_NUM_THREADS do not change this; MINICENTERNET_THREADS=N does"
    return Finding("threads", f"{count}, {reason}", "note" if advice else "ok", advice)


def find_driver() -> Driver | None:
    """Ask the NVIDIA driver, if there is one, for its CUDA version and its first GPU."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    number, device, name = ctypes.c_int(0), ctypes.c_int(0), ctypes.create_string_buffer(100)
    cuda.cuDriverGetVersion(ctypes.byref(number))
    found = cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), 0) == 0
    if found:
        cuda.cuDeviceGetName(name, len(name), device)
    return Driver((number.value // 1000, number.value % 1000 // 10), name.value.decode())


def cupy_wheels() -> list[str]:
    """Names of the installed packages that each bring a cupy."""
    names = {distribution.metadata["Name"] or "" for distribution in distributions()}
    return sorted(name for name in names if re.fullmatch(r"cupy(-cuda.*|-rocm.*)?", name))


def gpu(driver: Driver | None, wheels: Sequence[str], number: int = 0) -> Finding:
    """Whether a GPU can be used: its driver and the CuPy installed must fit together, and it must not be taken."""
    if driver is None:
        spare = f"; {', '.join(wheels)} is installed but of no use here" if wheels else ""
        return Finding("GPU", f"no NVIDIA driver: everything runs on the CPU{spare}")
    value = f"{driver.gpu or 'no GPU'}, driver for CUDA {driver.cuda[0]}.{driver.cuda[1]}"
    if not driver.gpu:
        return Finding("GPU", value, "note", "the driver shows no GPU; see nvidia-smi, and CUDA_VISIBLE_DEVICES if set")
    if driver.cuda[0] < min(WHEEL_OF_CUDA):
        return Finding("GPU", value, "note", f"CuPy needs a driver for CUDA {min(WHEEL_OF_CUDA)} or newer")
    wanted = WHEEL_OF_CUDA[min(driver.cuda[0], max(WHEEL_OF_CUDA))]
    install = f'pip install "{wanted}[ctk]"'  # ctk: with the parts of CUDA that it needs
    if not wheels:
        return Finding("GPU", value, "note", "CuPy is not installed; to use this GPU:", install)
    value += f", {', '.join(wheels)}"
    install = f"pip uninstall -y {' '.join(wheels)} && {install}"
    if len(wheels) > 1:
        return Finding("GPU", value, "note", "several CuPy packages overwrite each other; keep one:", install)
    if any(wheels[0] == wheel for major, wheel in WHEEL_OF_CUDA.items() if major > driver.cuda[0]):
        return Finding("GPU", value, "note", "this CuPy is too new for the driver; the one that fits:", install)
    try:
        try_gpu(number)
    except Exception as error:  # whatever CuPy raises: a missing library, an old GPU, no memory left
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if re.search("out of memory|busy", reason, re.IGNORECASE):
            advice = f"GPU {number} is taken ({reason}): see nvidia-smi by whom, or choose another one of several"
            return Finding("GPU", value, "note", advice)
        return Finding("GPU", value, "note", f"CuPy does not work ({reason}); with all that it needs:", install)
    return Finding("GPU", value)


def free_memory() -> float | None:
    """Bytes that this process can still take, a container's limit included; None where the system does not tell."""
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    free = [1024 * int(available[1])] if available else []
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            free.append(int(Path(folder, limit).read_text()) - int(Path(folder, used).read_text()))
        except (OSError, ValueError):  # no such control group; or "max", no limit
            continue
    return min(free, default=None)


def memory(free: float | None) -> Finding:
    """Whether the free memory will do."""
    if free is None:
        return Finding("memory", "not known on this system")
    value = f"{free / GB:.1f} GB free"
    if free < 0.5 * GB:
        return Finding("memory", value, "problem", "even the demo needs 0.5 GB; close other programs")
    if free < 4 * GB:
        advice = "enough for the small network; resnet18 at 512 pixels needs about 1 GB for each image of a batch"
        return Finding("memory", value, "note", advice)
    return Finding("memory", value)


def shared_memory() -> Finding:
    """Room for the batches that worker processes hand over."""
    if not os.path.isdir("/dev/shm"):
        return Finding("shared memory", "as much as there is memory")
    free = shutil.disk_usage("/dev/shm").free
    value = f"{free / GB:.2f} GB free in /dev/shm"
    if free < 0.25 * GB:
        advice = "little for the batches of large images: docker run --shm-size=2g, or train with --workers 0"
        return Finding("shared memory", value, "note", advice)
    return Finding("shared memory", value)


def disk(folder: Path) -> Finding:
    """Room for runs: each keeps three copies of the weights and the optimiser's state."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("disk", str(folder), "problem", f"{error.strerror}: name a folder that is there")
    value = f"{free / GB:.1f} GB free in {folder.resolve()}"
    if free < 0.05 * GB:
        return Finding("disk", value, "problem", "a run of the demo needs 50 MB; free some space")
    if free < GB:
        return Finding("disk", value, "note", "enough for the demo; a run of resnet101 takes 1 GB")
    return Finding("disk", value)


def writing(folder: Path) -> Finding:
    """Whether files can be made in the folder."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            return Finding("writing", "allowed there")
    except OSError as error:
        return Finding("writing", f"{error.strerror}", "problem", "work in another folder, or name one by --output")
