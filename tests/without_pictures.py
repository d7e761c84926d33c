"""Runs without pictures and reports, which take longer than all the rest of a tiny run.

leave_out(set_attribute)                the fixture of the name of this module does so for a test
python -m without_pictures train ...    the command line, in a process of its own
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from minicenternet import cli, draw, train
from minicenternet.evaluate import Evaluation


def leave_out(set_attribute: Callable[[object, str, object], None]) -> None:
    """Put functions that do nothing in the place of those that draw what a run shows."""
    places = [(train, "write_report"), (Evaluation, "draw")]
    places += [(draw, name) for name in ("draw_targets", "draw_grid", "draw_heatmap", "draw_curves")]
    for owner, name in places:
        set_attribute(owner, name, lambda *_, **__: None)


if __name__ == "__main__":
    leave_out(setattr)
    sys.exit(cli.main())
