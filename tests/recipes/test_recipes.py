"""Recipes: constants as released, figures as published, the command line that wins, the weights to begin with."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pth_files import checkpoint

from minicenternet import CenterNet, cli, recipes, train
from minicenternet.config import TrainConfig
from minicenternet.data.transforms import Augmentation
from minicenternet.errors import InputError
from minicenternet.nn.summary import summarise
from minicenternet.recipes import TRUNKS, begin, find

# The released trainings again: network, input, batch, rate, epochs, drops, GPUs, hours, plain AP, with flip, at scales.
RELEASED = """
coco-resdcn18      resdcn18      512  114  5e-4     140  90,120   4   28  28.1  30.0  33.2
coco-resdcn101     resdcn101     512   96  3.75e-4  140  90,120   8   65  34.6  36.2  39.3
coco-dla34-1x      dla34         512  128  5e-4     140  90,120   8   57  36.3  38.2  40.7
coco-dla34-2x      dla34         512  128  5e-4     230  180,210  8   92  37.4  39.2  41.7
coco-hourglass104  hourglass104  512   24  2.5e-4    50  40       5  109  40.3  42.2  45.1
voc-resdcn18-384   resdcn18      384   32  1.25e-4   70  45,60    1    3  -     72.6  -
voc-resdcn18-512   resdcn18      512   32  1.25e-4   70  45,60    1    5  -     75.7  -
voc-resdcn101-384  resdcn101     384   32  1.25e-4   70  45,60    2    7  -     77.1  -
voc-resdcn101-512  resdcn101     512   32  1.25e-4   70  45,60    4    7  -     78.7  -
voc-dla34-384      dla34         384   32  1.25e-4   70  45,60    1   15  -     79.3  -
voc-dla34-512      dla34         512   32  1.25e-4   70  45,60    2   15  -     80.7  -
"""
OURS = """
coco-resnet18      resnet18      512  114  5e-4     140  90,120
coco-resnet101     resnet101     512   96  3.75e-4  140  90,120
coco-resdcn18-70   resdcn18      512  114  5e-4      70  60
coco-dla34-70      dla34         512  128  5e-4      70  60
coco-evening       resdcn18      384   64  2.5e-4    24  20
voc-resnet18-384   resnet18      384   32  1.25e-4   70  45,60
voc-resnet18-512   resnet18      512   32  1.25e-4   70  45,60
voc-resnet101-384  resnet101     384   32  1.25e-4   70  45,60
voc-resnet101-512  resnet101     512   32  1.25e-4   70  45,60
"""
ROWS = {row.split()[0]: row.split()[1:] for row in (RELEASED + OURS).splitlines() if row}
COUNTS = {  # published, of 80 classes at 512 pixels: 10^6 parameters, 10^9 multiply-adds; layers of a head
    "resdcn18": (14.437, 13.31, 64), "resdcn101": (49.673, 45.58, 64), "resnet18": (15.820, 22.72, 64),
    "resnet101": (53.435, 55.60, 64), "dla34": (20.189, 33.10, 256), "hourglass104": (191.284, 292.7, 256),
}  # fmt: skip


def number(text: str) -> float | None:
    return None if text == "-" else float(text)


@pytest.mark.parametrize("name", ROWS)
def test_the_constants(name):
    recipe, (network, size, batch, rate, epochs, drops, *rest) = find(name), ROWS[name]
    config = recipe.config
    assert (config.backbone, config.size, config.batch_size) == (network, int(size), int(batch))
    assert (config.learning_rate, config.epochs) == (float(rate), int(epochs))
    assert config.drops == tuple(map(int, drops.split(","))) and config.schedule == "step"
    gpus, hours, *scores = map(number, rest or ["-"] * 5)
    assert (recipe.released["gpus"], recipe.released["hours"]) == (gpus, hours)
    assert list(recipe.published.values()) == scores
    assert (config.optimiser, config.weight_decay, config.clip_norm, config.average) == ("adam", 0, 0, 0)
    assert (config.warm_up, config.denominator, config.radius_form, config.min_overlap) == (
        0,
        "released",
        "released",
        0.7,
    )
    assert config.augment and config.augmentation == Augmentation() and config.recipe == name
    assert config.precision == ("bf16" if name == "coco-evening" else "float32") and config.resume is config.weights
    assert recipe.dataset == name.split("-")[0] and recipe.trunk.removeprefix("resnet") in network
    assert recipe.steps == {"coco": 118287, "voc": 16551}[recipe.dataset] // int(batch) * int(epochs)


def test_there_is_a_row_for_every_recipe():
    assert set(recipes.recipes()) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_counts_are_the_published_ones(name):
    recipe, (millions, giga, width) = find(name), COUNTS[ROWS[name][0]]
    fewer = 60 if recipe.dataset == "voc" else 0  # classes, each a filter of the heatmap's last layer
    assert recipe.parameters / 1e6 + fewer * (width + 1) / 1e6 == pytest.approx(millions, abs=6e-4)
    at_512 = recipe.multiply_adds * (512 / recipe.config.size) ** 2 + fewer * width * 128**2
    unused = 0.067108864 if recipe.config.backbone == "dla34" else 0  # projections that the released code drops
    assert at_512 / 1e9 + unused == pytest.approx(giga, abs=6e-2 if giga > 200 else 6e-3)


@pytest.mark.parametrize("name", ["coco-resdcn18", "voc-dla34-512"])
def test_counts_are_the_network_s(name):
    recipe = find(name)
    classes = [str(i) for i in range(recipes.CLASSES[recipe.dataset])]
    model = CenterNet(recipe.config.backbone, class_names=classes, input_size=(64, 64))
    summary = summarise(model, np.zeros((1, 64, 64, 3), np.float32))
    assert summary.parameters == recipe.parameters
    assert summary.multiply_adds * recipe.config.size**2 == recipe.multiply_adds * 64**2


def test_a_table_and_details(capsys):
    assert cli.main(["recipes"]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert max(map(len, lines)) <= 120 and len([line for line in lines if line.startswith(("coco-", "voc-"))]) == 20
    assert lines[1].split()[:6] == ["coco-dla34-1x", "dla34", "512", "128", "140", "90"]
    assert "36.3 / 38.2 / 40.7   20.2 M    66.1   57 h on 8" in lines[1]
    assert lines[-1].endswith("minicenternet recipes NAME --measure")
    assert cli.main(["recipes", "coco-hourglass104", "voc-resdcn18-384"]) == 0
    said = capsys.readouterr().out
    for words in (
        "ExtremeNet",
        "38.9 / 40.6 / 43.0",
        "learning_rate 0.00025,",
        "drops 45 60,",
        "resnet18-5c106cde.pth",
    ):
        assert words in said
    assert max(map(len, said.splitlines())) <= 120
    assert said.endswith("minicenternet recipes coco-hourglass104 voc-resdcn18-384 --measure\n")


def test_an_unknown_recipe_gives_the_nearest(capsys):
    for command in (
        ["recipes", "coco-dla-1x"],
        ["train", "--recipe", "coco-dla-1x"],
        ["train", "--recipe=coco-dla-1x"],
    ):
        assert cli.main(command) == 2
        assert "no recipe 'coco-dla-1x'; did you mean 'coco-dla34-1x'?" in capsys.readouterr().err
    with pytest.raises(InputError, match="no recipe 'xyz'; there are coco-dla34-1x, "):
        find("xyz")


# ---- train --recipe --------------------------------------------------------------------------------------------------


def parsed(*words: str) -> TrainConfig:
    return cli._parse("train", cli.VERBS["train"], list(words))


def test_the_command_line_wins():
    config = parsed("--recipe", "coco-dla34-1x", "--data", "DIR")
    assert config == TrainConfig(**(vars(find("coco-dla34-1x").config) | {"data": "DIR"}))
    config = parsed("--epochs", "3", "--drops", "2", "--recipe=coco-dla34-1x", "--flip", "0", "--no-augment")
    assert (config.epochs, config.drops, config.augment, config.augmentation.flip) == (3, (2,), False, 0)
    assert (config.batch_size, config.recipe, config.augmentation.contrast) == (128, "coco-dla34-1x", 0.4)
    config = parsed("--recipe", "voc-dla34-384", "--schedule", "cosine", "--drops")
    assert (config.schedule, config.drops, config.backbone) == ("cosine", (), "dla34")
    assert parsed() == TrainConfig()


@pytest.fixture
def data(tmp_path):
    """A data set in COCO's form: two images with a box each."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (tmp_path / "data" / f"{split}2017").mkdir(parents=True)
        for i in (1, 2):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / f"data/{split}2017/{i}.png")
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 50, "height": 40} for i in (1, 2)],
            "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20]} for i in (1, 2)],
            "categories": [{"id": 1, "name": "dog"}],
        }
        (tmp_path / "data/annotations").mkdir(exist_ok=True)
        (tmp_path / f"data/annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return tmp_path / "data"


def test_a_run_by_a_recipe(data, tmp_path, capsys, monkeypatch):
    begun: list[train.Run] = []
    monkeypatch.setattr(train.Run, "train", lambda run: begun.append(run) or {"ap": -1})
    run = tmp_path / "run"
    command = ["train", "--recipe", "coco-resdcn18", "--data", str(data), "--backbone", "small", "--size", "64"]
    command += ["--epochs", "1", "--workers", "0", "--device", "cpu", "--weights", "random", "--output", str(run)]
    assert cli.main(command) == 0, capsys.readouterr().err
    saved = json.loads((run / "config.json").read_text())
    assert saved["recipe"] == "coco-resdcn18" and saved["weights"] is None
    assert (saved["backbone"], saved["epochs"], saved["learning_rate"], saved["drops"]) == ("small", 1, 5e-4, [90, 120])
    assert TrainConfig.load(run / "config.json").recipe == "coco-resdcn18"
    assert begun[0]._learning_rate(0) == 5e-4  # no warm-up
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(run), "--device", "cpu"]) == 0
    assert begun[1].config == begun[0].config
    assert cli.main(["train", "--resume", str(run), "--recipe", "coco-dla34-1x"]) == 2
    assert "--recipe is coco-dla34-1x, but" in capsys.readouterr().err


# ---- the weights that it begins with ---------------------------------------------------------------------------------


@pytest.fixture
def trunk(server, monkeypatch):
    """A trunk of ResNet-18 on the server, of which the recipe says where it is and how its SHA-256 begins."""
    state = CenterNet("resnet18", class_names=["a"], input_size=(64, 64), seed=9).state_dict()
    content = checkpoint({key: array for key, array in state.items() if key.split(".")[0] in TORCHVISION}, zipped=True)
    name = f"/resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    server.files[name] = content
    monkeypatch.setitem(TRUNKS, "resnet18", TRUNKS["resnet18"]._replace(url=server.url + name))
    return server


TORCHVISION = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


def test_the_trunk_is_fetched_once(trunk, tmp_path):
    said: list[str] = []
    config = begin(find("coco-resdcn18").config, tmp_path, said.append)
    assert begin(find("voc-resdcn18-384").config, tmp_path, said.append).weights == config.weights
    assert len(trunk.answers) == len(said) == 1 and "ResNet-18 of ImageNet" in said[0]
    (path,) = tmp_path.iterdir()
    assert config.weights == str(path) and config.backbone == "resdcn18"
    path.write_bytes(b"?")
    with pytest.raises(InputError, match=r"is not the published one: its SHA-256 begins with \w{8}, expected \w{8}"):
        begin(find("coco-resdcn18").config, tmp_path)


def test_weights_of_one_s_own(tmp_path):
    config = find("coco-hourglass104").config
    with pytest.raises(
        InputError, match="begins with ExtremeNet's .*--weights FILE, or begin without by --weights random"
    ):
        begin(config, tmp_path)
    mine = TrainConfig(**(vars(config) | {"weights": "mine.pth"}))
    assert begin(mine) is mine
    assert begin(TrainConfig(**(vars(config) | {"weights": "random"}))).weights is None
    plain, resumed = TrainConfig(weights="random"), TrainConfig(resume="run", recipe="coco-evening")
    assert begin(plain) is plain and begin(resumed) is resumed


def test_a_trunk_that_is_gone(trunk, tmp_path):
    trunk.files.clear()
    with pytest.raises(InputError, match="404.*Name a file of such weights by --weights FILE, or begin without"):
        begin(find("coco-resdcn18").config, tmp_path, lambda line: None)
