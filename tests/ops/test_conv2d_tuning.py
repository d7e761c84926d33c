"""What the tuner of the convolution times, takes and writes."""

import json

import pytest
from on_gpu import RTX

from minicenternet.ops import conv2d_choice, conv2d_tuning
from minicenternet.ops.geometry import Geometry

LAYERS = [
    ((2, 9, 9, 8), (64, 8, 3, 3), Geometry.of(1, 1, 1, 1)),
    ((2, 9, 9, 8), (8, 1, 3, 3), Geometry.of(1, 1, 1, 8)),
]


def test_tuning_takes_the_fastest_of_all_candidates(cupy, monkeypatch, tmp_path):
    """With a timer that calls nothing, and likes im2col, which no graph can hold."""
    asked, said = [], []

    def timer(call):
        choice = call.keywords["choice"]
        asked.append(choice)
        return {"im2col": 0.001, "naive": 0.002}.get(choice.rung, 0.003 + (choice.tile[:1] == (64,)))

    path = tmp_path / "table.json"
    found = conv2d_tuning.tune(LAYERS, ["float32", "fp16"], path, timer, said.append)
    assert {choice.rung for choice in asked} == set(conv2d_choice.RUNGS)
    for rung, tiles in conv2d_choice.TILES.items():
        assert {choice.tile for choice in asked if choice.rung == rung} == {
            tile for kind in tiles.values() for some in kind.values() for tile in some
        }
    assert found["choices"]["float32 dweight medium"] == ("tiled", (32, 128, 16, 4, 8))
    assert found["choices"]["fp16 correlate small"] == ("tensor_cores", (128, 32, 16, 32, 32, 4))
    assert found["choices"]["float32 correlate grouped"] == found["choices"]["fp16 dweight grouped"] == ("naive", ())
    assert len(said) == len(LAYERS) * 2 * 3
    assert said[0].startswith(
        "float32 correlate small, (2, 9, 9, 8) by (64, 8, 3, 3), ms: im2col 1.000, tiled 64 64 16 4 4 "
    )
    assert said[-1] == "fp16 dweight grouped, (2, 9, 9, 8) by (8, 1, 3, 3), ms: naive 2.000"
    unmeasured = "tf32 correlate large"
    assert found["choices"][unmeasured] == conv2d_choice.table()["choices"][unmeasured]
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["measured_on"] == found["measured_on"]
    assert written["choices"]["float32 dweight medium"] == ["tiled", [32, 128, 16, 4, 8]]
    assert list(written["choices"]) == list(conv2d_choice.table()["choices"])


def test_tuning_that_is_killed_has_written_what_it_found(cupy, tmp_path):
    def timer(call):
        if call.keywords["precision"] == "tf32":
            raise KeyboardInterrupt
        return 3 - call.keywords["choice"].tile[0] / 64 if call.keywords["choice"].tile else 1

    with pytest.raises(KeyboardInterrupt):
        conv2d_tuning.tune(LAYERS[:1], ["float32", "tf32"], tmp_path / "table.json", timer, lambda text: None)
    choices = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))["choices"]
    assert choices["float32 correlate small"][1] in ([128, 32, 16, 4, 4], [128, 128, 16, 8, 8])
    assert choices["tf32 correlate small"] == conv2d_choice.table()["choices"]["tf32 correlate small"]
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


def test_tuning_runs_what_it_times(cupy):
    calls = []
    conv2d_tuning.tune(LAYERS[1:], ["float32"], timer=lambda call: calls.append(call()) or len(calls), say=str)
    candidates = 5  # naive, im2col and three tiles
    shapes = [call.shape for call in calls]
    assert shapes == [(2, 9, 9, 8)] * 2 * candidates + [(8, 1, 3, 3)] * candidates


def test_tuning_leaves_out_what_does_not_fit(another_gpu):
    another_gpu("89", RTX)
    asked = []
    conv2d_tuning.tune(LAYERS[:1], ["tf32"], timer=lambda call: asked.append(call.keywords["choice"]) or 1.0)
    tiles = {choice.tile for choice in asked if choice.rung == "tensor_cores"}
    assert tiles and not any(tile[:2] == (128, 128) for tile in tiles)
