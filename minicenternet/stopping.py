"""How a run is asked to stop: by Ctrl-C, or by SIGTERM, as a cluster does before it takes a node away."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SAME_SIGNAL_SECONDS = 1.0  # in which a signal may come twice: from the launcher of several ranks, and to all of a job


class Interrupted(Exception):
    """A run was asked to stop by the signal of this number; its state is saved."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = int(number)


@contextmanager
def listening_for_signals() -> Iterator[Callable[[], int]]:
    """Yield what tells the number of a Ctrl-C or SIGTERM that came inside, or 0; a second one, later, stops at once."""
    asked = []  # number and moment of the first

    def note(number, frame):
        if not asked:
            asked[:] = number, time.monotonic()
            print("\nstopping as soon as the state can be saved; once more stops at once", file=sys.stderr, flush=True)
        elif time.monotonic() - asked[1] > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield lambda: asked[0] if asked else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
