"""TensorBoard, an extra beside metrics.csv: the same numbers, as curves in a browser while a run goes on.

    minicenternet train --tensorboard ...        tensorboard --logdir runs

Written by tensorboardX, which needs neither TensorFlow nor PyTorch.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path

from .errors import InputError


def check_installed() -> None:
    """Raise InputError when what writes for TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise InputError(
            '--tensorboard needs tensorboardX: python -m pip install "minicenternet[tensorboard]", or leave it out: '
            "metrics.csv and curves.png hold the same numbers"
        )


class Board:
    """The curves of one run, in FOLDER/tensorboard.

    steps: how many are done; what an earlier start of the run wrote of later ones is hidden, as they are done again.
    """

    def __init__(self, folder: Path, steps: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=steps + 1)

    def write(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Add a point to the curve of each value, but for those that were not measured (NaN)."""
        for name, value in values.items():
            if not math.isnan(value):
                self.writer.add_scalar(f"{group}/{name}", value, step)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_) -> None:
        self.writer.close()
