"""Feeds damaged and hostile .pth files to the reader for as long as one likes:  python tests/fuzz_pth.py --seconds 600

Each must give arrays or an InputError within seconds and within bounded memory, and nothing may be run: Python itself
reports (sys.addaudithook) whatever is executed, compiled, connected to or opened. An input that breaks a rule, or the
last one before a crash, is left in the folder that is printed.
"""

from __future__ import annotations

import argparse
import faulthandler
import pickletools
import random
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pth_files as pth

from minicenternet.errors import InputError
from minicenternet.nn.pth import load_pth

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.mkdir", "os.rename", "subprocess.")
FORBIDDEN += ("exec", "compile", "import", "socket.", "pickle.find_class", "ctypes.", "shutil.", "code.")
SECONDS, OBJECTS = 10.0, 64 * 2**20  # the longest time for one input; bytes of memory beyond twice its size

ROW = np.arange(6, dtype="<f4")
ARRAYS = {"conv.weight": ROW.reshape(1, 2, 3, 1), "half": ROW.astype("<f2"), "count": np.array(3, "<i8")}
NUMBERS = (-1, 0, 1, 5, 6, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, -(2**63), 2**64, 10**30)
NAMES = (
    ("os", "system"), ("builtins", "eval"), ("torch", "FloatStorage"), ("torch", "LongStorage"),
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor"), ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_parameter"), ("torch.nn.parameter", "Parameter"), ("torch", "BFloat16Storage"),
)  # fmt: skip
OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


def piece(rng: random.Random) -> bytes:
    """An instruction, or a few that belong together."""
    kind = rng.randrange(10)
    if kind == 0:
        return pth.number(rng.choice(NUMBERS))
    if kind == 1:
        return pth.name(*rng.choice(NAMES))
    if kind == 2:
        return pth.text(rng.choice(["0", "1", "storage", "state_dict", "module.a", "../x", "cpu", ""]))
    if kind == 3:
        return pth.storage(rng.choice("01"), rng.choice(["Float", "Half", "Long"]), rng.choice(NUMBERS))
    if kind == 4:
        size = [rng.choice(NUMBERS) for _ in range(rng.randrange(4))]
        return pth.tensor(pth.storage("0", "Float", 6), size, [rng.choice(NUMBERS) for _ in size], rng.choice(NUMBERS))
    if kind == 5:
        return rng.choice(OPCODES) + rng.randbytes(rng.randrange(5))
    if kind == 6:
        return rng.choice([b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"\x94", b"r\xff\xff\xff\xff"])
    return rng.choice([b"(", b"t", b"}", b"]", b")", b"u", b"s", b"a", b"e", b"R", b"Q", b"b", b"\x85", b"\x86", b"N"])


def program(rng: random.Random) -> bytes:
    """Instructions at random, now and then one of them thousands of times."""
    pieces = [piece(rng) for _ in range(rng.randrange(1, 60))]
    if rng.random() < 0.05:
        pieces.insert(rng.randrange(len(pieces)), piece(rng) * rng.choice([1000, 20_000]))
    return b"".join(pieces)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, put in, cut out, doubled, or the end cut off."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        start = rng.randrange(len(content) + 1)
        stop = start + rng.choice([0, 0, 1, 1, 4, 8, 40])
        change = rng.randrange(5)
        if change == 0:
            content[start:stop] = rng.randbytes(stop - start)
        elif change == 1:
            content[start:stop] = piece(rng)
        elif change == 2:
            content[start:stop] = content[start:stop] * rng.choice([0, 2, 100])
        elif change == 3:
            content[start : start + 8] = (rng.choice(NUMBERS) % 2**64).to_bytes(8, "little")
        else:
            del content[rng.randrange(len(content) + 1) :]
    return bytes(content)


def make(rng: random.Random, seeds: list[bytes]) -> bytes:
    """One input."""
    choice = rng.random()
    if choice < 0.4:
        return mutated(rng.choice(seeds), rng)
    content = program(rng) if choice < 0.7 else mutated(pth.ordered_dict(pth.of_arrays(ARRAYS)[0]), rng)
    storages = {"0": ROW.tobytes(), "1": ROW.astype("<f2").tobytes(), "2": np.array(3, "<i8").tobytes()}
    if rng.random() < 0.5:
        return pth.zip_file(content, storages)
    return pth.legacy_file(content, storages, {"0": 6, "1": 6, "2": 1})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faulthandler.enable()
    rng = random.Random(options.seed)
    seeds = [pth.checkpoint(ARRAYS, zipped=zipped) for zipped in (False, True)]
    path = Path(tempfile.mkdtemp(prefix="fuzz-pth-")) / "input.pth"
    print(f"the input under way is kept as {path}", flush=True)

    events: list[str] = []
    watching = False

    def watch(event: str, arguments: tuple) -> None:
        if watching and (event.startswith(FORBIDDEN) or event == "open" and str(arguments[0]) != str(path)):
            events.append(f"{event} {arguments}"[:200])

    for seed in seeds:  # whatever is imported on the way is imported now
        path.write_bytes(seed)
        load_pth(path)
    sys.addaudithook(watch)
    tracemalloc.start()
    outcomes, slowest, highest = Counter(), 0.0, 0
    start = time.monotonic()
    while time.monotonic() - start < options.seconds:
        content = make(rng, seeds)
        path.write_bytes(content)
        faulthandler.dump_traceback_later(60, exit=True)
        tracemalloc.reset_peak()
        before, began, watching = tracemalloc.get_traced_memory()[0], time.monotonic(), True
        try:
            arrays = load_pth(path)
            outcomes["arrays"] += 1
            assert sum(array.nbytes for array in arrays.values()) <= 50 * len(content)
            del arrays
        except InputError as error:
            outcomes["refused" if "asks for" in str(error) else "damaged"] += 1
            assert str(error).isprintable()
        watching = False
        seconds, memory = time.monotonic() - began, tracemalloc.get_traced_memory()[1] - before
        faulthandler.cancel_dump_traceback_later()
        slowest, highest = max(slowest, seconds), max(highest, memory - 2 * len(content))
        assert not events, events
        assert seconds < SECONDS, f"{seconds:.1f} s"
        assert memory < 2 * len(content) + OBJECTS, f"{memory} bytes for {len(content)}"
    total = sum(outcomes.values())
    shares = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    print(f"{total} inputs in {options.seconds:.0f} s: {shares}")
    print(f"slowest {slowest:.2f} s; memory at most twice the file's size and {max(highest, 0) / 2**20:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
