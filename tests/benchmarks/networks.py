"""How fast, and in how much memory, do the released networks look at one image, beside PyTorch?

    python tests/benchmarks/networks.py            512 x 512 pixels, about two minutes on two cores
    python tests/benchmarks/networks.py --quick    256 x 256, under a minute
    python tests/benchmarks/networks.py --json FILE

Measured as cpu.py does, in processes of its kind that take turns; PyTorch samples for its deformable convolutions by
`grid_sample`, tap by tap. Offsets are random, a pixel or so. Then: how long a checkpoint takes to load.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import cpu

NETWORKS = {"resdcn18": 1.0, "dla34": 3.0}  # and the most seconds that an image may take on two cores
LOADED, LOAD_SECONDS = "dla34", 0.5  # 20 million parameters


def measure(plan: cpu.Plan, peers: Sequence[cpu.Side], threads: int, say: Callable[[str], None]) -> dict:
    """Return all that was measured, as JSON has it; say: is told each table as soon as it is known."""
    peers = cpu.with_faster_waiting(replace(plan, size=plan.size // 2), peers, threads) if peers else []
    sides = [cpu.OURS, *peers]
    found = {"plan": asdict(plan), "threads": threads, "seconds": {}, "memory": {}}
    jobs = {name: replace(plan, backbone=name).network(1) for name in NETWORKS}
    with ExitStack() as stack:
        children = [stack.enter_context(cpu.Child(side, threads)) for side in sides]
        found["versions"] = {child.name: child.about for child in children}
        for child in children:
            say(f"{child.name}: {', '.join(child.about.values())}")
        for name, options in jobs.items():
            found["seconds"][name] = cpu.take_turns(children, "infer", options, plan)
    names = [side.name for side in peers]
    say(speed_table(found["seconds"], names, plan.size))
    for name, options in jobs.items():
        found["memory"][name] = {}
        for side in sides:
            with cpu.Child(side, threads) as child:
                found["memory"][name][side.name] = child.ask("inference_memory", options)
    say(memory_table(found["memory"], names))
    with cpu.Child(cpu.OURS, threads) as child:
        found["loading"] = child.ask("loading", {"backbone": LOADED, "runs": plan.repetitions})
    say(loading_table(found["loading"]))
    return found


def speed_table(seconds: dict[str, dict[str, list[float]]], peers: Sequence[str], size: int) -> str:
    """Return the seconds for one image on each side; the aims are for 512 x 512 pixels."""
    rows = [("", cpu.OURS.name, *peers, "ratio", "aim", "")]
    for name, times in seconds.items():
        medians = {side: statistics.median(values) for side, values in times.items()}
        peer = cpu.best(times, peers)
        ratio = "" if peer is None else f"{peer / medians[cpu.OURS.name]:.2f}"
        reached = "reached" if medians[cpu.OURS.name] < NETWORKS[name] else "not reached"
        aim = (f"< {NETWORKS[name]:g} s", reached) if size == 512 else ("", "")
        rows.append((name, *(f"{medians[side]:.3f} s" for side in (cpu.OURS.name, *peers)), ratio, *aim))
    return cpu.aligned(f"Inference, one image of {size} x {size}; ratio to PyTorch's better layout", rows)


def memory_table(memory: dict[str, dict[str, dict[str, int]]], peers: Sequence[str]) -> str:
    """Return what an inference adds to the memory of a process that holds the network, and the whole at its peak."""
    names = [cpu.OURS.name, *peers]
    rows = [("", *names, "ratio", "aim", "")]
    for network, found in memory.items():
        for title, start in (("added", "before"), ("whole process", None)):
            used = [found[name]["peak"] - (found[name][start] if start else 0) for name in names]
            ratio = used[0] / min(used[1:]) if peers else None
            cells = cpu.verdict(ratio, 1.0, most=True)
            rows.append((f"{network}, {title}", *(f"{value / cpu.MB:.0f} MB" for value in used), *cells))
    return cpu.aligned("Peak memory, inference", rows)


def loading_table(seconds: dict[str, list[float]]) -> str:
    """Return the time in which a checkpoint is read, the first and the median, by the kind of file."""
    rows = [("", "first", "median", "aim", "")]
    for kind, times in seconds.items():
        verdict = "reached" if max(times[0], statistics.median(times)) < LOAD_SECONDS else "not reached"
        rows.append((kind, f"{times[0]:.3f} s", f"{statistics.median(times):.3f} s", f"< {LOAD_SECONDS:g} s", verdict))
    return cpu.aligned(f"Loading {LOADED}, 20 million parameters", rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller images and fewer turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured to a file")
    options = parser.parse_args(arguments)
    peers = cpu.PEERS if importlib.util.find_spec("torch") else ()
    about = cpu.about()
    print(f"{about['date']}, {about['cpu']}, {cpu.cpus()} threads, Python {about['python']}")
    if not peers:
        print("PyTorch is not installed: nothing to compare with")
    plan = cpu.QUICK if options.quick else cpu.Plan()
    found = about | measure(plan, peers, cpu.cpus(), lambda text: print(text, flush=True))
    if options.json:
        cpu.save(found, options.json)


if __name__ == "__main__":
    main()
