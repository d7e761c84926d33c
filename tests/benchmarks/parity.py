"""Does our training do what the released training does?  200 steps beside PyTorch, on the same photographs.

    python tests/benchmarks/parity.py DATA                            DATA: a COCO-format .json file, or a folder
    python tests/benchmarks/parity.py DATA --backbone resdcn18 --size 64 --batch-size 4
    python tests/benchmarks/parity.py DATA --dtype float64            rounding apart: is there a mistake?
    python tests/benchmarks/parity.py DATA --json FILE                the losses of every step

Both sides begin with the same weights, those of a network that was fitted to the photographs for a while, so that there
is an AP to compare, and see the same batches: augmented as released, as our loader makes them. Our side is a `Run`, as
`minicenternet train` does it, with the released recipe: Adam, 1.25e-4 for a batch of 32 and in proportion for another,
a tenth of it after 90/140 and 120/140 of all epochs. The other side is tests/torch_twin_training.py. AP is measured on
the photographs trained on, of which a fitted network finds some.

One difference is meant: the released loss clamps probabilities to 1e-4, so that it stands still, without a gradient,
where a centre's is lower, and ours does not. Steps in which that happened are listed, with by how much the losses then
differ, and do not count; a network that was fitted to few photographs is sure enough of itself to be so wrong at times.

Exits with 1 when a loss of any other step differs by more than a thousandth, or AP by more than 0.002.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the twins

from minicenternet.config import TrainConfig  # noqa: E402
from minicenternet.evaluate import evaluate  # noqa: E402
from minicenternet.optim import Adam  # noqa: E402
from minicenternet.train import Run  # noqa: E402

LOSSES = ("loss", "heatmap", "size", "offset")
OF_LOSSES, OF_AP = 1e-3, 2e-3  # how far the two sides may be apart: relative, absolute
SHOWN = (1, 2, 5, 10, 20, 50, 100, 150, 200)


@dataclass(frozen=True)
class Plan:
    """What is trained: on the data, `steps` steps with batches of `batch_size`, after `fitted` steps to begin with."""

    data: str
    backbone: str = "small"
    size: int = 128
    batch_size: int = 8
    steps: int = 200
    fitted: int = 600
    dtype: str = "float32"
    seed: int = 0

    @property
    def learning_rate(self) -> float:
        """The released rate for this batch size."""
        return 1.25e-4 * self.batch_size / 32

    def run(self, folder: Path, **options) -> Run:
        """Return a training run on the CPU with these options, whose validation images are those it trains on."""
        config = TrainConfig(
            data=self.data,
            val=self.data,
            backbone=self.backbone,
            size=self.size,
            batch_size=self.batch_size,
            warm_up=0,
            denominator="released",
            workers=0,
            device="cpu",
            seed=self.seed,
            output=str(folder),
            **options,
        )
        return Run(config, say=lambda text: None)


def batches_of(run: Run, steps: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the first batches of a run."""
    epochs = (run.loader.epoch(epoch) for epoch in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(epochs), steps)


def fit(plan: Plan, folder: Path) -> tuple[Path, int]:
    """Return the file of a network that was fitted to the unchanged photographs, and the steps in an epoch."""
    run = plan.run(folder / "fitting", epochs=plan.fitted + 1, schedule="constant", learning_rate=1e-3, augment=False)
    for batch in batches_of(run, plan.fitted):
        run.step(batch)
    run.model.save(folder / "fitted.safetensors")
    return folder / "fitted.safetensors", len(run.loader)


def measure(plan: Plan, folder: Path, say: Callable[[str], None] = print) -> dict:
    """Return the losses of each step on both sides, how far apart the weights end, and both AP."""
    from torch_twin_training import ReleasedStep, released_twin

    weights, per_epoch = fit(plan, folder)
    epochs = math.ceil(plan.steps / per_epoch)
    drops = tuple(max(1, epochs * after // 140) for after in (90, 120))
    run = plan.run(
        folder / "run",
        epochs=epochs,
        schedule="step",
        drops=drops,
        learning_rate=plan.learning_rate,
        weights=str(weights),
    )
    if plan.dtype == "float64":
        run.model.astype(np.float64)
        run.optimiser = Adam(run.model.named_parameters(), plan.learning_rate)
    theirs = ReleasedStep(released_twin(run.model), plan.learning_rate, per_epoch, drops)
    before = evaluate(run.model.fold(), run.train_data).result.ap
    say(f"{plan.backbone}, {plan.size} pixels, {plan.dtype}: learning rate {plan.learning_rate:g}, / 10 after epochs")
    say(f"{drops[0]} and {drops[1]} of {epochs}, {per_epoch} steps each; AP {before:.4f} to begin with\n")
    say(f"{'step':>5}" + "".join(f"{name:>12}{'differs':>9}" for name in LOSSES))
    losses, clamped = {side: {name: [] for name in LOSSES} for side in ("ours", "theirs")}, []
    for step, batch in enumerate(batches_of(run, plan.steps), 1):
        batch = {key: x.astype(plan.dtype) if x.dtype.kind == "f" else x for key, x in batch.items()}
        for side, take in (("ours", run.step), ("theirs", theirs)):
            for name, value in take(batch).items():
                losses[side][name].append(value)
        clamped += [step] * (theirs.clamped > 0)
        if step in SHOWN or step == plan.steps:
            cells = (f"{losses['ours'][name][-1]:12.5f}{furthest(losses, name, clamped):9.1e}" for name in LOSSES)
            say(f"{step:>5}" + "".join(cells))
    ours = run.model.state_dict()
    twin = {key: value.numpy() for key, value in theirs.twin.state_dict().items() if key in ours}
    found = {
        "plan": asdict(plan),
        "losses": losses,
        "furthest": {name: furthest(losses, name, clamped) for name in LOSSES},
        "clamped": {step: apart(losses, "heatmap")[step - 1] for step in clamped},
        "weights_differ": max(relative(ours[key], twin[key]) for key in twin),
        "ap_before": before,
        "ap_ours": evaluate(run.model.fold(), run.train_data).result.ap,
    }
    run.model.load_state_dict({**ours, **twin})
    found["ap_theirs"] = evaluate(run.model.fold(), run.train_data).result.ap
    say("")
    for step, difference in found["clamped"].items():
        say(f"step {step}: a centre's probability was below the clamp, where heatmap losses differ by {difference:.1e}")
    say(f"weights and statistics differ by {found['weights_differ']:.1e} of each array's largest at most")
    say(f"AP on the photographs trained on: ours {found['ap_ours']:.4f}, PyTorch's {found['ap_theirs']:.4f}")
    return found


def apart(losses: Mapping[str, Mapping[str, Sequence[float]]], name: str) -> list[float]:
    """Return the relative difference of a loss in each step."""
    ours, theirs = (np.array(losses[side][name]) for side in ("ours", "theirs"))
    return (np.abs(ours - theirs) / np.abs(theirs)).tolist()


def furthest(losses: Mapping[str, Mapping[str, Sequence[float]]], name: str, clamped: Sequence[int]) -> float:
    """Return the largest relative difference of a loss, of all steps but those, counted from 1, in `clamped`."""
    return max((x for step, x in enumerate(apart(losses, name), 1) if step not in clamped), default=0.0)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-3))


def agrees(found: Mapping) -> bool:
    """Whether both sides are as close as they have to be."""
    return max(found["furthest"].values()) <= OF_LOSSES and abs(found["ap_ours"] - found["ap_theirs"]) <= OF_AP


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    for name, value in asdict(Plan("")).items():
        if name != "data":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured to a file")
    options = vars(parser.parse_args(arguments))
    file = options.pop("json")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Plan(**options), Path(folder), lambda text: print(text, flush=True))
    if file:
        file.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print("they agree" if agrees(found) else "THEY DO NOT AGREE")
    return 0 if agrees(found) else 1


if __name__ == "__main__":
    sys.exit(main())
