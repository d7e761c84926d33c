"""The folder of a run: who writes which file, and which checkpoints are kept.

config.json   command.txt   versions.json   what was asked, and with which libraries
metrics.csv                                 one row per epoch: losses, AP, speed
last.safetensors   best.safetensors         weights with metadata, for predict and evaluate (best: by AP)
state.safetensors                           weights, optimiser and counters, for an exact resume
checkpoints/epoch-0010/                     state.safetensors and last.safetensors, as they were after that epoch
detections.npz   filmstrip/epoch-0010.png   for the report: what the best weights found; one image's heatmap
targets.png   heatmaps.png   detections.png   what the network is asked, what it answers, and what that means
curves.png   report.html                    how it went
.lock                                       which process writes to the folder, or did last

A checkpoint is a second name (a hard link) of files that are only ever replaced, so it costs no time, and no room until
they are.  Everything is written whole, then renamed: `kill -9` leaves the files of before.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import __version__
from .config import TrainConfig
from .doctor import cupy_wheels
from .errors import InputError
from .files import LOCK, legible, lock, replacing

CHECKPOINT = "epoch-[0-9]*"  # the names of checkpoints, by which they are found
NEEDED = {"epoch", "loss", "ap", "ap50", "images_per_second"}  # columns of metrics.csv that every version wrote


def make_folder(config: TrainConfig) -> Path:
    """Return the run folder, made and empty.  Raises InputError when it holds something or cannot be made."""
    if not config.output:
        return _next_free(Path(config.data).resolve().stem)  # that of "." is empty
    folder = Path(config.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise _cannot_make(folder, error) from error
    if LOCK in names:
        lock(folder)  # a run that is going on is worth a message of its own
    # What a run leaves that was killed while it wrote the first of its files does not count.
    if any(name != LOCK and not fnmatch(name, ".config.json.*.tmp") for name in names):
        go_on = f", or go on with it by --resume {folder}" if "config.json" in names else ""
        raise InputError(f"the run folder {folder} is not empty; name another --output{go_on}")
    return folder


def _next_free(name: str) -> Path:
    """Make and return the first of runs/NAME-1, runs/NAME-2 and so on that is not there, whoever else is about to."""
    for number in itertools.count(1):
        folder = Path(f"runs/{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except OSError as error:
            if not folder.exists():
                raise _cannot_make(folder, error) from error


def _cannot_make(folder: Path, error: OSError) -> InputError:
    return InputError(f"cannot make the run folder {folder}: {error.strerror}; name another --output")


def write_beginning(folder: Path, config: TrainConfig) -> None:
    """Write down what was asked, and with which libraries."""
    config.absolute().save(folder / "config.json")
    _write(folder / "command.txt", shlex.join(sys.argv) + "\n")
    _write(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")


def remove_unfinished(folder: Path) -> None:
    """Remove the files that were being written when the run was killed."""
    for unfinished in folder.rglob(".*.tmp"):
        unfinished.unlink()


def versions() -> dict[str, str]:
    """Return the versions of everything that a result can depend on."""
    found = {"minicenternet": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in ("numpy", "pillow", "matplotlib", "safetensors", "pycocotools"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found | {name: version(name) for name in cupy_wheels()}


def versions_of(folder: Path) -> dict[str, str]:
    """Return the versions that a run was begun with.  Raises InputError when the file that lists them is damaged."""
    path = folder / "versions.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); nothing but a report reads it: delete it") from error


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a run's metrics.csv, all values as numbers; of a run without one epoch, none."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); put back the file that the run wrote") from error
    if rows and not NEEDED <= rows[0].keys():
        lacking = ", ".join(sorted(NEEDED - rows[0].keys()))
        raise InputError(f"{path} is damaged (it has no {lacking}); put back the file that the run wrote")
    return rows


def _number(text: str) -> float:
    """Return the number; an integer as one, so that it is written again as it was."""
    number = float(text)
    return int(text) if text.isdigit() else number


def write_metrics(folder: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write metrics.csv; columns that older rows lack are nan there."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[-1]), restval="nan")
    writer.writeheader()
    writer.writerows(rows)
    _write(folder / "metrics.csv", text.getvalue())


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(legible(text), encoding="utf-8")


# --- checkpoints -----------------------------------------------------------------------------------------------------


def run_of(path: Path) -> Path:
    """Return the folder of the run that `path` is, or is a checkpoint of."""
    return path.parent.parent if path.parent.name == "checkpoints" and fnmatch(path.name, CHECKPOINT) else path


def options_of(path: Path) -> TrainConfig:
    """Return the options that go on with the run that `path` is, or is a checkpoint of: its own.

    Raises InputError when it is no run.
    """
    return replace(TrainConfig.load(run_of(path) / "config.json").absolute(), resume=str(path))


def checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints, the oldest first: those made again after going back are the newer ones."""
    found = [path for path in (folder / "checkpoints").glob(CHECKPOINT) if (path / "state.safetensors").exists()]
    return sorted(found, key=lambda path: (_written(path / "state.safetensors"), path.name))


def last_written(folder: Path) -> float:
    """Return when the newest checkpoint was written, or the run begun, in seconds as time.time() counts them."""
    newest = [path / "state.safetensors" for path in checkpoints(folder)[-1:]]
    return max(_written(path) for path in (folder / "config.json", *newest))


def keep_checkpoint(folder: Path, epoch: int, batch: int, *, newest: int, always: int) -> Path:
    """Keep the state as it is now as a checkpoint after so many epochs and batches; remove those not to be kept.

    Kept are the `newest`, and the weights and states of all epochs divisible by `always`, unless that is 0.  Between
    two epochs (batch 0) last.safetensors is of this moment and is kept as well.
    """
    checkpoint = folder / "checkpoints" / (f"epoch-{epoch:04d}" + (f"-batch-{batch:06d}" if batch else ""))
    for name in ("state.safetensors",) if batch else ("last.safetensors", "state.safetensors"):
        _second_name(folder / name, checkpoint / name)
    for old in checkpoints(folder)[:-newest]:
        if not (always and old.name.count("-") == 1 and int(old.name.removeprefix("epoch-")) % always == 0):
            shutil.rmtree(old)
    return checkpoint


def _second_name(path: Path, other: Path) -> None:
    """Make `other` a hard link to a file, or a copy where the disk has none."""
    with replacing(other) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copy2(path, temporary)


def _written(path: Path) -> float:
    return path.stat().st_mtime
