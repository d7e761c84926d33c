"""The measurement behind a prediction: what is multiplied by what, the batch that fits.  No time is asserted."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from minicenternet import CenterNet, cli
from minicenternet.errors import InputError
from minicenternet.recipes import find, measure, recipes
from minicenternet.recipes.measure import Measurement

RECIPE = find("voc-resdcn18-384")


@pytest.fixture
def small(monkeypatch):
    """Makes a recipe's network the small one, and steps few."""
    monkeypatch.setattr(measure, "STEPS", 3)
    monkeypatch.setattr(measure, "CPU_SIZE", 32)

    def small(recipe):
        return recipe._replace(options=recipe.options | {"backbone": "small"})

    return small


def test_proportions():
    measured = Measurement("cpu", "float32", 128, 2, seconds=0.5, bytes=3_000_000, bytes_more=2_000_000)
    assert measured.ratio(RECIPE) == 16 * 9  # 32 images of 384 pixels beside 2 of 128
    steps = 16_551 // 32 * 70
    assert measured.hours(RECIPE) == pytest.approx(steps * 0.5 * 144 / 3600)
    assert measured.memory(RECIPE) == 3_000_000 + 143 * 2_000_000
    same = measured._replace(size=384, batch=32)
    assert same.memory(RECIPE) == 3_000_000 and same.hours(RECIPE) == pytest.approx(steps * 0.5 / 3600)
    assert measure.cells(RECIPE, measured)[-3:] == ("36,190", ">0.3 GB", "724")
    assert measure.cells(RECIPE, measured._replace(device="cuda:0"))[-2] == "0.3 GB"


def test_steps_on_the_cpu(small, monkeypatch):
    times = itertools.accumulate(itertools.cycle([0, 2, 0, 9, 0, 4, 0, 5, 0, 3]))  # before and after each of five steps
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(measure, "training_peak", lambda model, loss, batch, most: 1000 + 10 * batch)
    recipe = small(RECIPE)
    said: list[str] = []
    found = measure.measure(
        [recipe, recipe._replace(name="again"), small(find("coco-evening"))], "cpu", say=said.append
    )
    assert list(found) == ["voc-resdcn18-384", "again", "coco-evening"] and len(said) == 2
    first = found["voc-resdcn18-384"]
    assert found["again"] is first and first[:4] == ("cpu", "float32", 32, 2)
    assert first.seconds == 4  # the median of those after the warm-up
    assert first.bytes == 1020 and first.bytes_more > 0
    assert measure.measure([recipe], "cpu", size=64, batch_size=1, say=said.append)[recipe.name][2:4] == (64, 1)


def test_twenty_steps_are_timed_after_two_to_warm_up(monkeypatch):
    taken = [1000, 1000, *range(1, 21)]
    times = itertools.accumulate(itertools.chain.from_iterable((0, seconds) for seconds in taken))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(measure, "training_peak", lambda *_, **__: 1000)
    recipe = RECIPE._replace(options=RECIPE.options | {"backbone": "small"})
    found = measure.measure([recipe], "cpu", size=32, say=lambda line: None)[recipe.name]
    assert found.seconds == 10.5 and next(times, None) is None  # the median of 1 to 20, and no step more


def test_memory_grows_as_predicted(small):
    """Two images of 64 pixels tell what eight take at least."""
    recipe = small(RECIPE)
    recipe = recipe._replace(options=recipe.options | {"size": 64, "batch_size": 8})
    found = measure.measure([recipe], "cpu", size=64, say=lambda line: None)[recipe.name]
    model = CenterNet("small", class_names=[f"class {i}" for i in range(20)], input_size=(64, 64))
    assert 0.5 < found.memory(recipe) / model.training_peak(8) <= 1


def test_the_smallest_images(small):
    """Of which a single one leaves batch normalisation nothing to take a variance of."""
    recipe = small(RECIPE)
    stride = CenterNet("small", class_names=["a"]).backbone.stride
    found = measure.measure([recipe], "cpu", size=stride, say=lambda line: None)[recipe.name]
    assert found.bytes_more > 0
    with pytest.raises(InputError, match="one image of .* leaves batch normalisation one value per channel"):
        measure.measure([recipe], "cpu", size=stride, batch_size=1, say=lambda line: None)


class OutOfMemory(MemoryError):
    __module__ = "cupy.cuda.memory"


@pytest.mark.parametrize("fits", [8, 1, 0])
def test_the_batch_is_halved_until_it_fits(monkeypatch, fits):
    def measured(recipe, device, precision, size, batch):
        tried.append((device, precision, size, batch))
        if batch > fits:
            raise OutOfMemory
        return Measurement(device, precision, size, batch, 1, 1, 1)

    tried: list[tuple] = []
    monkeypatch.setattr(measure, "choose", lambda device: ("cuda:0", "because"))
    monkeypatch.setattr(measure, "_measure", measured)
    evening = find("coco-evening")
    if not fits:
        with pytest.raises(InputError, match="not even one image of 384 pixels fits on cuda:0"):
            measure.measure([evening], say=lambda line: None)
    else:
        assert measure.measure([evening], say=lambda line: None)[evening.name].batch == fits
    assert tried == [("cuda:0", "bf16", 384, batch) for batch in (64, 32, 16, 8, 4, 2, 1) if batch >= fits]


def test_a_cpu_without_memory(monkeypatch):
    def none(*_):
        raise MemoryError("none left")

    monkeypatch.setattr(measure, "_measure", none)
    with pytest.raises(MemoryError, match="none left"):
        measure.measure([RECIPE], "cpu", say=lambda line: None)


def test_the_command(small, monkeypatch, capsys):
    recipe = small(RECIPE)
    monkeypatch.setitem(recipes(), RECIPE.name, recipe)
    assert cli.main(["recipes", RECIPE.name, "--measure", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "voc-resdcn18-384  cpu     float32" in said and "Extrapolated" in said and "36,190" in said
    assert cli.main(["recipes", RECIPE.name, "--measure", "--size", "0"]) == 2
    assert "--size is 0, expected more than 0" in capsys.readouterr().err


def test_steps_on_a_gpu(small, cupy, monkeypatch):
    pool = SimpleNamespace(free_all_blocks=lambda: None, total_bytes=lambda: 123_456_789)
    monkeypatch.setattr(cupy, "get_default_memory_pool", lambda: pool)
    monkeypatch.setattr(measure, "STEPS", 1)
    monkeypatch.setattr(measure, "WARM_UP", 0)
    recipe = small(RECIPE)
    recipe = recipe._replace(options=recipe.options | {"size": 32, "batch_size": 2})
    found = measure.measure([recipe], "cuda", say=lambda line: None)[recipe.name]
    assert found[:4] == ("cuda:0", "float32", 32, 2) and found.seconds > 0
    assert found.bytes == 123_456_789 > found.bytes_more > 0
