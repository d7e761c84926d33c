"""The weights that come with the package: small, and as good on images that they never saw as their card says."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from minicenternet import CenterNet
from minicenternet.data import Shapes, open_dataset
from minicenternet.errors import InputError
from minicenternet.evaluate import evaluate
from minicenternet.model import PRETRAINED
from minicenternet.nn.weights import load_weights

SHAPES = PRETRAINED / "shapes.safetensors"


def test_it_detects():
    model = CenterNet.pretrained("shapes")
    assert model.class_names == Shapes(1).class_names and not model.training
    unseen = open_dataset("shapes", split="val", size=model.input_size, length=40, seed=1)  # training had seed 0
    evaluation = evaluate(model.fold(), unseen)
    assert evaluation.result.ap50 > 0.88 and evaluation.result.ap > 0.55


def test_it_is_small():
    assert SHAPES.stat().st_size < 1_000_000


def test_another_name():
    with pytest.raises(InputError, match="no weights called 'coco' come with the package; there are: shapes"):
        CenterNet.pretrained("coco")


def test_the_card_says_what_the_file_says():
    card = SHAPES.with_suffix(".md").read_text(encoding="utf-8")
    arrays, metadata = load_weights(SHAPES)
    metrics = json.loads(metadata["metrics"])
    assert f"| 0 | {metrics['ap']:.3f} | {metrics['ap50']:.3f} |" in card
    assert f"{sum(array.size for array in arrays.values()):,} numbers" in card
    assert ", ".join(json.loads(metadata["class_names"])) in card


def test_the_card_adds_up():
    """Its means and spreads are those of its rows, its steps those of its command, its size the file's."""
    card = SHAPES.with_suffix(".md").read_text(encoding="utf-8")
    rows = np.array(re.findall(r"^\| (\d) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", card, re.MULTILINE), float)
    assert rows[:, 0].tolist() == [0, 1, 2]
    means, spreads = rows[:, 1:].mean(0), rows[:, 1:].std(0, ddof=1)
    figures = " | ".join(f"{mean:.3f} ± {spread:.3f}" for mean, spread in zip(means, spreads, strict=True))
    assert f"| mean ± standard deviation | {figures} |" in card
    images, epochs, batch, seed = (
        int(re.search(rf"minicenternet train .*--{option} (\d+)", card)[1])
        for option in ("shapes", "epochs", "batch-size", "seed")
    )
    assert f"| steps | {images * epochs // batch} of {batch} images ({epochs} epochs)" in card
    assert f"| data | `Shapes`, generated: {images} images of 128 × 128 pixels, seed {seed};" in card
    assert f"| seed | {seed};" in card and f", {SHAPES.stat().st_size / 1000:.0f} kB |" in card
