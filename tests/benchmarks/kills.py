"""Is a run of several ranks exact after any of them was killed?  Twenty times, at random moments.

    python tests/benchmarks/kills.py                            two ranks, under ten minutes on two cores
    python tests/benchmarks/kills.py --kills 3 --ranks 3 --seed 7

A run of a few steps, which saves its state after each of them, is first left alone; its length is what moments are
drawn from. Then runs like it are begun, one for each kill: at its moment one rank, drawn too, gets SIGKILL. Counted are
the seconds until no process of the run is left, the launcher and the workers that prepare batches included. All files
must then be whole, and the run, resumed (begun again, where nothing of it was there yet), must end with the same bits
in its weights, its state and its losses as the one left alone, and no half-written file beside them.

Exits with 1 when a run took more than a minute to end, left a damaged file or came to another end. Needs mpi4py with
an MPI, and Linux: processes are found in /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = map(str, (HERE.parent, HERE.parents[1]))  # the ranks, the package

from ranks import RUN_NAME, mpirun, pid_of, pids_of  # noqa: E402

from minicenternet.errors import InputError  # noqa: E402
from minicenternet.nn.weights import load_weights  # noqa: E402
from minicenternet.run_folder import read_metrics  # noqa: E402

OPTIONS = (
    *("--data", "shapes", "--shapes", "96", "--val-shapes", "6", "--size", "32", "--batch-size", "12", "--epochs", "2"),
    *("--workers", "1", "--device", "cpu", "--keep-every", "1", "--save-every", "1e-9"),  # minutes: after each step
)
COMMAND = ("-m", "minicenternet", "train")
PATH = os.pathsep.join(map(str, (HERE.parent, HERE.parents[1])))
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATH, "MINICENTERNET_THREADS": "1"}
LIMIT = 60.0  # seconds in which all processes must have ended
COMPARED = ("step", "loss", "heatmap", "size", "offset", "ap", "ap50", "learning_rate")  # of metrics.csv: no times
WEIGHTS = ("last", "best", "state")


class Kill(NamedTuple):
    """What one kill did. moment: seconds after the start; saved: where the run was; faults: what was wrong."""

    moment: float
    saved: str
    rank: int
    seconds: float
    faults: list[str]


def start(ranks: int, folder: Path) -> subprocess.Popen:
    """Begin the run in the folder, or go on with the one that is there."""
    there = (folder / "config.json").exists()
    options = ("--resume", str(folder)) if there else (*OPTIONS, "--output", str(folder))
    environment = {**ENVIRONMENT, RUN_NAME: str(folder)}
    return mpirun(ranks, *COMMAND, *options, environment=environment)


def finish(ranks: int, folder: Path) -> list[str]:
    """Train to the end and return what was wrong."""
    process = start(ranks, folder)
    complaints = process.communicate(timeout=600)[1]
    return [f"going on ended with {process.returncode}: {complaints.strip()}"] if process.returncode else []


def kill(ranks: int, folder: Path, rank: int, moment: float) -> tuple[float, list[str]] | None:
    """Kill a rank at its moment and return the seconds until all have ended and what was wrong, or None if too late."""
    process = start(ranks, folder)
    time.sleep(moment)
    try:
        os.kill(pid_of(rank, str(folder)), signal.SIGKILL)
    except (AssertionError, OSError):
        process.communicate(timeout=600)
        return None
    killed = time.monotonic()
    while pids_of(str(folder)) and time.monotonic() - killed < LIMIT:
        process.poll()
        time.sleep(0.02)
    seconds, left = time.monotonic() - killed, pids_of(str(folder))
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    return seconds, [f"{len(left)} processes went on for {LIMIT:g} s"] if left else []


def damaged(folder: Path) -> list[str]:
    """Return what is wrong with the files of a run that was killed: those there are must be whole."""
    faults = []
    for path in folder.rglob("*.safetensors"):
        try:
            load_weights(path)
        except InputError as error:
            faults.append(str(error))
    try:
        read_metrics(folder)
    except InputError as error:
        faults.append(str(error))
    return faults


def saved_at(folder: Path) -> str:
    """Return where the run that is in the folder would go on."""
    path = folder / "state.safetensors"
    if not path.exists():
        return "nothing"
    counters = json.loads(load_weights(path)[1]["counters"])
    return f"epoch {counters['epoch'] + 1}, batch {counters['batch'] + 1}"


def differences(folder: Path, alone: Path) -> Iterator[str]:
    """Yield what is not the same, to the bit, in two runs that have ended, and what is left half written."""
    for name in WEIGHTS:
        ours, theirs = (load_weights(path / f"{name}.safetensors")[0] for path in (folder, alone))
        if ours.keys() != theirs.keys():
            yield f"{name}.safetensors has other arrays: {sorted(ours.keys() ^ theirs.keys())}"
        elif other := [key for key in ours if ours[key].tobytes() != theirs[key].tobytes()]:
            yield f"{name}.safetensors differs in {len(other)} arrays, such as {other[0]}"
    ours, theirs = ([[row[name] for name in COMPARED] for row in read_metrics(path)] for path in (folder, alone))
    if ours != theirs:
        yield "metrics.csv differs"
    yield from (f"{path} is left" for path in folder.rglob(".*.tmp"))


def kills(count: int, ranks: int, seed: int, folder: Path) -> Iterator[Kill]:
    """Do so many kills of runs in the folder, and yield each as soon as its run has come to its end."""
    rng, begin = random.Random(seed), time.monotonic()
    alone = folder / "alone"
    if faults := finish(ranks, alone):
        raise SystemExit(f"the run that was left alone failed: {faults[0]}")
    length, number = time.monotonic() - begin, 0
    while count:
        number += 1
        moment, rank, killed = rng.uniform(0, length), rng.randrange(ranks), folder / f"run-{number}"
        ended = kill(ranks, killed, rank, moment)
        if ended is None:  # before the rank had begun or after it had ended: once more
            continue
        faults, saved = ended[1] + damaged(killed), saved_at(killed)
        faults += finish(ranks, killed) or differences(killed, alone)
        yield Kill(moment, saved, rank, ended[0], faults)
        count -= 1


def row(number: int, one: Kill) -> str:
    """Return a line of the table, and one for each fault."""
    verdict = "equal" if not one.faults else "NOT as they should be"
    line = f"{number:>4}{one.moment:>12.2f} s   {one.saved:<18}{one.rank:>4}{one.seconds:>15.2f} s   {verdict}"
    return "\n".join([line, *(f"      {fault}" for fault in one.faults)])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of moments and ranks")
    options = parser.parse_args(arguments)
    done: list[Kill] = []
    print("kill        after   where it was       rank   all ended after   resumed bits", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for one in kills(options.kills, options.ranks, options.seed, Path(folder)):
            done.append(one)
            print(row(len(done), one), flush=True)
    bad = sum(bool(one.faults) for one in done)
    worst = max(one.seconds for one in done)
    print(f"\n{len(done)} kills, {bad} with faults; all ended after {worst:.2f} s at most")
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except pytest.skip.Exception as missing:
        sys.exit(str(missing))
