"""How a run reports: one line that renews itself in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

MB = 2**20
QUIET_SECONDS = 30.0  # between plain lines when not in a terminal


def memory_mb() -> float:
    """Return this process's peak memory in MB; NaN where the system does not tell."""
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Progress:
    """Epoch, speed, time left, losses, learning rate and memory of a training run.

    gpu_memory: None, or what returns the bytes on a GPU that are in use and that are held, those in use included.
    shown: whether anything is printed; of several ranks only one speaks.
    """

    def __init__(
        self,
        steps: int,
        epochs: int,
        batch_size: int,
        gpu_memory: Callable[[], tuple[int, int]] | None = None,
        shown: bool = True,
    ):
        self.steps, self.epochs, self.batch_size, self.gpu_memory = steps, epochs, batch_size, gpu_memory
        self.shown, self.in_terminal = shown, shown and sys.stderr.isatty()
        self.seconds, self.done = 0.0, 0  # of the steps done since the program started
        self.images_per_second = self.memory_mb = float("nan")

    def __enter__(self) -> Progress:
        self.bar = tqdm(disable=not self.in_terminal, bar_format="{desc}", dynamic_ncols=True, leave=False)
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def epoch(self, epoch: int, batch: int) -> None:
        """An epoch begins, or goes on at a batch."""
        self.current, self.batch = epoch, batch
        self.last_step = time.monotonic()
        self.last_line = self.last_step

    def step(self, losses: dict[str, float], learning_rate: float) -> None:
        """A step was done."""
        now = time.monotonic()
        self.seconds, self.done, self.batch = self.seconds + now - self.last_step, self.done + 1, self.batch + 1
        self.last_step = now
        self.images_per_second = self.done * self.batch_size / self.seconds
        self.memory_mb = memory_mb()
        if self.in_terminal or self.shown and now - self.last_line > QUIET_SECONDS:
            self._show(self._line(losses, learning_rate))
            self.last_line = now

    def note(self, text: str) -> None:
        """Something other than a step is going on."""
        if self.in_terminal:
            self._show(f"epoch {self.current + 1}/{self.epochs}  {text} ...")

    def end_epoch(self, row: dict[str, float]) -> None:
        """Print the row of a finished epoch."""
        if not self.shown:
            return
        measured = f"  AP {row['ap']:.3f}  AP50 {row['ap50']:.3f}" if row["ap"] >= 0 else ""
        losses = "  ".join(f"{name} {row[name]:.3f}" for name in ("loss", "heatmap", "size", "offset") if name in row)
        text = (
            f"epoch {row['epoch']}/{self.epochs}  {losses}{measured}  lr {row['learning_rate']:.1e}"
            f"  {row['images_per_second']:.0f} images/s  {row['memory_mb']:.0f} MB{self._on_gpu()}"
        )
        if row["epoch"] < self.epochs and self.done:
            text += f"  {self._left((self.epochs - row['epoch']) * self.steps)} left"
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def _line(self, losses: dict[str, float], learning_rate: float) -> str:
        left = self._left((self.epochs - self.current) * self.steps - self.batch)
        parts = " ".join(f"{name} {value:.3g}" for name, value in losses.items())
        return (  # within 100 columns, the end of which is the least needed
            f"epoch {self.current + 1}/{self.epochs} step {self.batch}/{self.steps}  {left} left  {parts}"
            f"  {self.images_per_second:.0f} images/s  lr {learning_rate:.1e}  {self.memory_mb:.0f} MB" + self._on_gpu()
        )

    def _on_gpu(self) -> str:
        if self.gpu_memory is None:
            return ""
        used, held = self.gpu_memory()
        return f", GPU {used / MB:.0f} of {held / MB:.0f} MB"

    def _left(self, steps: int) -> str:
        """How long so many steps will take, without what comes between them: minutes and seconds."""
        minutes, seconds = divmod(int(steps * self.seconds / self.done), 60)
        return f"{minutes}:{seconds:02d}"

    def _show(self, line: str) -> None:
        if self.in_terminal:
            self.bar.set_description_str(line)
        else:
            print(line, flush=True)
