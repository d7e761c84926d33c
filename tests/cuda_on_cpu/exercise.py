"""Run kernels on small, odd shapes, each against the CPU, in the three thread orders, and in all types that they store.

    python -m cuda_on_cpu.exercise [NAME ...] [--replace OLD NEW]

is what test_sanitizers.py does in child processes, whose libraries are compiled with a sanitizer. `--replace` plants a
fault: OLD becomes NEW in the sources that have it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

from cuda_on_cpu import build, stand_in

sys.modules["cupy"] = stand_in  # before the package looks for it
os.environ["MINICENTERNET_CUDA_CONV"] = "naive"  # the other rungs have sanitizer runs of their own, beside their tests

import kernels  # noqa: E402

EXERCISES = {function.__name__: function for function in kernels.EXERCISES}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(EXERCISES))
    parser.add_argument("--replace", nargs=2)
    given = parser.parse_args()
    if given.replace:
        compile_whole = build.build
        build.build = lambda source, expressions: compile_whole(source.replace(*given.replace), expressions)
        # Of each file only what float32 needs: the other types are the same text, with the same fault.
        stand_in.INSTANTIATIONS = {
            file: [name for name in names if "__half" not in name and "__nv_bfloat16" not in name]
            for file, names in stand_in.INSTANTIATIONS.items()
        }
    for order in build.ORDERS:
        os.environ["CUDA_ON_CPU_ORDER"] = order
        for name in given.names:
            # In which order threads run is nothing to how a number is stored: one order will do for the other types.
            one_type = given.replace or order != build.ORDERS[0]
            for dtype in kernels.FLOAT32 if one_type else kernels.EXERCISES[EXERCISES[name]]:
                if dtype != "bfloat16" or importlib.util.find_spec("ml_dtypes"):
                    EXERCISES[name](stand_in, dtype)


if __name__ == "__main__":
    main()
