"""The demo: train the small network on shapes, measure it on unseen ones, draw what it sees, say what to try next."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from .config import TrainConfig
from .data import Shapes
from .draw import draw_boxes, draw_grid, draw_heatmap
from .errors import InputError
from .evaluate import Evaluation, evaluate
from .files import replacing
from .model import CenterNet
from .predict import explain
from .train import Run

RECIPE = TrainConfig(
    data="shapes",
    backbone="small",
    shapes=3200,
    epochs=4,
    batch_size=32,  # so that threads seldom wait for each other
    learning_rate=8e-3,
    augment=False,
    evaluate_every=4,
)
SHOWN_IMAGES = 6
SHOWN_SCORE = 0.3
GOOD_TO_EXPLAIN = 5  # objects: enough to see, few enough to follow


def demo(
    output: str | os.PathLike, seed: int = 0, recipe: TrainConfig = RECIPE, say: Callable[[str], None] = print
) -> Evaluation:
    """Train by the recipe, evaluate the best weights on the validation images and leave pictures in `output`.

    A run of the same recipe and seed that is already there is gone on with, or, if finished, only shown.
    Raises InputError when something else is there, and Interrupted as train.Run.
    """
    folder, start = Path(output), time.monotonic()
    config = replace(recipe, output=str(folder), seed=seed)
    run = Run(replace(config, resume=str(folder)) if _is_there(config) else config, say)
    unseen = run.val_data
    say(
        f"the {config.backbone} network learns from {len(run.train_data)} drawings of "
        f"{', '.join(unseen.class_names)}, in {config.epochs} epochs (Ctrl-C stops; the same command goes on)"
    )
    run.train()
    model = CenterNet.load(folder / "best.safetensors")
    evaluation = evaluate(model.fold(), unseen, referee=True)
    say(f"\non {len(unseen)} images that it never saw:\n\n{evaluation.text()}")
    evaluation.save(folder / "evaluation")
    draw_pictures(model, unseen, folder)
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    say(_ending(folder, f"{minutes}:{seconds:02d}"))
    return evaluation


def _is_there(config: TrainConfig) -> bool:
    """Whether this very run is in its folder.  Raises InputError when another one is."""
    path = Path(config.output) / "config.json"
    if not path.is_file():
        return False
    if TrainConfig.load(path) != config.absolute():
        raise InputError(
            f"{config.output} holds a run with other options; name another folder by --output, or delete this one"
        )
    return True


def draw_pictures(model: CenterNet, dataset: Shapes, folder: Path) -> None:
    """Write demo.png, what was found in some images beside its heatmaps; and example.png with its explanation.png."""
    pictures, titles = [], []
    for i in range(min(SHOWN_IMAGES, len(dataset))):
        sample = dataset[i]
        seen = explain(model, sample)
        found = seen.detections.above(SHOWN_SCORE)
        pictures += [
            draw_boxes(seen.image, found.boxes, found.labels, found.scores, found.class_names, text_size=0.036),
            draw_heatmap(seen.image, seen.heatmap),
        ]
        titles += [f"{len(found)} found, {len(sample.annotation.boxes)} there", "heatmap of centres"]
    draw_grid(pictures, titles, folder / "demo.png")
    distance = [abs(len(dataset.annotation(i).boxes) - GOOD_TO_EXPLAIN) for i in range(len(dataset))]
    sample = dataset[distance.index(min(distance))]
    with replacing(folder / "example.png") as temporary:
        Image.fromarray(sample.image).save(temporary, format="PNG")
    explain(model, sample).draw(folder / "explanation.png", SHOWN_SCORE)


def _ending(folder: Path, took: str) -> str:
    weights = folder / "best.safetensors"
    return f"""
done in {took}. Look at

  {folder / "demo.png"}            objects found in unseen images, and the heatmaps that say where
  {folder / "explanation.png"}     how one heatmap becomes boxes, step by step
  {folder / "curves.png"}          losses and AP, epoch by epoch
  {folder / "evaluation"}          all figures, the best and the worst images

and try

  minicenternet explain {folder / "example.png"} --weights {weights}
  minicenternet predict {folder / "example.png"} --weights {weights} --flip
  minicenternet train --data YOUR_INSTANCES.json --images YOUR_PHOTOS --size 256
"""
