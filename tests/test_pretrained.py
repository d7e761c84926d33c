"""The weights that come with the package: small, and as good on images that they never saw as their card says."""

from __future__ import annotations

import pytest

from minicenternet import CenterNet
from minicenternet.data import Shapes, open_dataset
from minicenternet.errors import InputError
from minicenternet.evaluate import evaluate
from minicenternet.model import PRETRAINED

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
