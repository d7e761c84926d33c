"""Compile CUDA C++ for a real GPU without having one: NVRTC, and what ptxas says about registers and spills.

Needs CuPy (for its binding to NVRTC), NVRTC's library and the CUDA headers: `pip install cupy-cuda13x[ctk]`, or the
wheels nvidia-cuda-nvrtc and nvidia-cuda-runtime beside CuPy. No driver and no GPU.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cupy.cuda import nvrtc


class Usage(NamedTuple):
    """What one kernel takes of a multiprocessor, in registers per thread and bytes."""

    registers: int
    spilled: int  # bytes stored to and loaded from local memory because registers ran out
    shared: int  # static


_USAGE = re.compile(
    r"Compiling entry function '(?P<name>[^']+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def header_folders() -> list[str]:
    """Return the folders with cuda_fp16.h that the nvidia wheels bring."""
    package = importlib.util.find_spec("nvidia")
    roots = package.submodule_search_locations if package else []
    return [str(header.parent) for root in roots for header in sorted(Path(root).glob("*/include/cuda_fp16.h"))]


def compile_for(source: str, expressions: Sequence[str], architecture: str) -> dict[str, Usage]:
    """Return each kernel's usage by its expression.  Raises SyntaxError with NVRTC's log when it does not compile."""
    program = nvrtc.createProgram(source, "kernel.cu", (), ())
    try:
        for expression in expressions:
            nvrtc.addNameExpression(program, expression)
        options = ["-std=c++17", f"-arch={architecture}", "-ftz=true", "--device-as-default-execution-space"]  # CuPy's
        options += ["--ptxas-options=-v", *(f"-I{folder}" for folder in header_folders())]
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            raise SyntaxError(f"{error}\n{nvrtc.getProgramLog(program)}") from None
        usages = {}
        for found in _USAGE.finditer(nvrtc.getProgramLog(program)):
            shared = re.search(r"(\d+) bytes smem", found["rest"])
            spilled = int(found["stores"]) + int(found["loads"])
            usages[found["name"]] = Usage(int(found["registers"]), spilled, int(shared[1]) if shared else 0)
        return {expression: usages[nvrtc.getLoweredName(program, expression)] for expression in expressions}
    finally:
        nvrtc.destroyProgram(program)
