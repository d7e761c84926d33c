"""The demo, on a recipe of seconds: what it leaves behind, and the same figures for the same seed."""

from __future__ import annotations

import signal
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from minicenternet import demo as demo_module
from minicenternet.data import Shapes
from minicenternet.demo import GOOD_TO_EXPLAIN, RECIPE, demo
from minicenternet.errors import InputError
from minicenternet.evaluate import Evaluation
from minicenternet.train import Interrupted, Run

TINY = replace(RECIPE, shapes=12, val_shapes=5, size=32, epochs=2, batch_size=4, workers=0)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A finished demo: its folder, its evaluation and all it said."""
    folder, lines = tmp_path_factory.mktemp("demo") / "run", []
    return folder, demo(folder, recipe=TINY, say=lines.append), "\n".join(lines)


def test_it_leaves_pictures_and_says_where(shown):
    folder, _, said = shown
    for name in ("demo.png", "explanation.png", "curves.png", "example.png"):
        assert str(folder / name) in said
        with Image.open(folder / name) as picture:
            assert np.ptp(np.asarray(picture)) > 100
    assert (folder / "evaluation/metrics.json").is_file() and str(folder / "evaluation") in said
    assert "AP50" in said and "on 5 images that it never saw" in said and "minicenternet explain" in said


def test_it_is_measured_on_images_that_training_did_not_see(shown):
    _, evaluation, _ = shown
    train = Shapes(TINY.shapes, TINY.size, seed=0)
    seen = {train[i].image.tobytes() for i in range(len(train))}
    unseen = evaluation.dataset
    assert len(evaluation.detections) == len(unseen) == TINY.val_shapes
    assert not seen & {unseen[i].image.tobytes() for i in range(len(unseen))}


def test_the_image_explained_has_objects(shown):
    folder, evaluation, _ = shown
    counts = [len(evaluation.dataset.annotation(i).boxes) for i in range(TINY.val_shapes)]
    with Image.open(folder / "example.png") as picture:
        pixels = np.asarray(picture)
    [shown_image] = [i for i in range(len(counts)) if np.array_equal(evaluation.dataset[i].image, pixels)]
    assert abs(counts[shown_image] - GOOD_TO_EXPLAIN) == min(abs(count - GOOD_TO_EXPLAIN) for count in counts)


def test_the_same_seed_gives_the_same_figures_also_after_a_stop(shown, tmp_path, monkeypatch):
    _, evaluation, _ = shown
    step, steps = Run.step, []

    def stop(self, batch):
        steps.append(batch)
        if len(steps) == 4:
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C does
        return step(self, batch)

    for pictures in (
        (demo_module, "draw_pictures"),
        (Evaluation, "save"),
        (Run, "_draw_progress"),
    ):  # they take seconds
        monkeypatch.setattr(*pictures, lambda *_: None)
    monkeypatch.setattr(Run, "step", stop)
    with pytest.raises(Interrupted):
        demo(tmp_path / "run", recipe=TINY, say=lambda line: None)
    assert len(steps) == 4
    again = demo(tmp_path / "run", recipe=TINY, say=lambda line: None)
    assert len(steps) == 2 * (TINY.shapes // TINY.batch_size)
    assert np.array_equal(again.result.stats(), evaluation.result.stats())
    for ours, theirs in zip(again.detections, evaluation.detections, strict=True):
        assert np.array_equal(ours.boxes, theirs.boxes) and np.array_equal(ours.scores, theirs.scores)


def test_a_folder_of_another_run_is_refused(shown):
    folder, _, _ = shown
    with pytest.raises(InputError, match="holds a run with other options"):
        demo(folder, seed=1, recipe=TINY, say=lambda line: None)


def test_the_recipe_is_for_shapes_and_measures_on_200():
    assert (RECIPE.data, RECIPE.backbone, RECIPE.val_shapes) == ("shapes", "small", 200)
    assert RECIPE.output is RECIPE.resume is RECIPE.weights is None
