"""Released networks: their table, how one is fetched, and their conversion."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pth_files as pth
import pytest

from minicenternet import CenterNet, released
from minicenternet.backbones import BACKBONES
from minicenternet.download import sha256
from minicenternet.errors import InputError
from minicenternet.nn.weights import load_weights, save_weights
from minicenternet.released import RELEASED, TRAINING_DATA, Released, convert, get

# ---- tables ----------------------------------------------------------------------------------------------------------


def test_every_released_file_is_of_a_network_and_data_that_are_known():
    for name, file in RELEASED.items():
        assert file.network in BACKBONES and file.dataset in TRAINING_DATA and file.size % 128 == 0
        assert re.fullmatch(r"[\w-]{33}", file.drive) and file.drive in file.url
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert ("coco" if file.dataset == "coco" else "pascal") in name
    assert len({file.drive for file in RELEASED.values()}) == len(RELEASED)


def test_classes_and_statistics(shared_data):
    content = json.loads((shared_data / "coco-eval-fixtures/instances_val2014_100.json").read_text())
    names = [category["name"] for category in sorted(content["categories"], key=lambda category: category["id"])]
    assert list(TRAINING_DATA["coco"].class_names) == names and len(names) == 80
    assert TRAINING_DATA["voc"].class_names[::19] == ("aeroplane", "tvmonitor")
    assert TRAINING_DATA["coco"].pixel_mean[0] < TRAINING_DATA["coco"].pixel_mean[2]  # blue is the darkest
    assert TRAINING_DATA["voc"].pixel_mean == (0.485, 0.456, 0.406)


def test_the_table_says_what_is_known_and_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ctdet_coco_hg.safetensors").touch()
    text = released.table(Path("."))
    for name, file in RELEASED.items():
        assert re.search(rf"^[* ] {name} +{file.network} +{file.dataset} +{file.size} +{file.score}$", text, re.M)
        assert file.sha256 is None or file.sha256 in text
    assert re.findall(r"^\* (\w+)", text, re.M) == ["ctdet_coco_hg"]
    for word in ("MIT", "MODEL_ZOO.md", "Second-hand", "sizes", "huggingface.co", "could be tried"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100


# ---- get -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released_file() -> bytes:
    """A checkpoint of the small network for VOC, as the released code would write it."""
    model = CenterNet("small", class_names=TRAINING_DATA["voc"].class_names, input_size=(64, 64), seed=3)
    return pth.checkpoint(model.state_dict(), zipped=False)


@pytest.fixture
def listed(tmp_path, monkeypatch, released_file):
    """The table with "ctdet_small" and its checksum in it, and its file on disk."""
    path = tmp_path / "here.pth"
    path.write_bytes(released_file)
    monkeypatch.setitem(RELEASED, "ctdet_small", Released("small", "voc", 384, "1.0", "x" * 33, sha256(path)))
    return path


def assert_is_ours(path) -> None:
    model = CenterNet.load(path)
    assert model.class_names == TRAINING_DATA["voc"].class_names
    assert (model.input_size, model.channel_order) == ((384, 384), "BGR")
    expected = CenterNet("small", class_names=model.class_names, input_size=(64, 64), seed=3).state_dict()
    assert all(np.array_equal(array, expected[key]) for key, array in model.state_dict().items())


def test_a_network_is_downloaded_checked_and_converted_once(server, listed, tmp_path, monkeypatch):
    server.files["/net.pth"], server.drops = listed.read_bytes(), [1000]
    monkeypatch.setattr(Released, "url", f"{server.url}/net.pth")
    said: list[str] = []
    for _ in range(2):
        assert get("ctdet_small", tmp_path / "weights", say=said.append) == tmp_path / "weights/ctdet_small.safetensors"
    assert_is_ours(tmp_path / "weights/ctdet_small.safetensors")
    assert [start for _, start in server.answers] == [0, 1000]
    assert "MIT" in said[0] and "arrays were loaded" in said[1] and "is there already" in said[2]


def test_a_local_file_will_do(listed, tmp_path):
    assert_is_ours(get("ctdet_small", tmp_path / "weights", listed))
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["ctdet_small.safetensors"]


def test_a_corrupt_file_is_refused(server, listed, tmp_path):
    good = listed.read_bytes()
    bad = server.files["/net.pth"] = good[:-1] + bytes([good[-1] ^ 1])
    (tmp_path / "local.pth").write_bytes(bad)
    for source in (f"{server.url}/net.pth", tmp_path / "local.pth"):
        with pytest.raises(InputError, match=r"is not ctdet_small: its SHA-256 is \w{64}, expected \w{64}"):
            get("ctdet_small", tmp_path / "weights", source)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["ctdet_small.pth"]


def test_an_unknown_checksum_is_said(listed, tmp_path, monkeypatch):
    monkeypatch.setitem(RELEASED, "ctdet_small", RELEASED["ctdet_small"]._replace(sha256=None))
    said: list[str] = []
    assert_is_ours(get("ctdet_small", tmp_path, listed, said.append))
    assert sha256(listed) in said[0] and "nothing is checked" in said[0]


def test_names_and_files_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="called 'ctdet_coco_dla2x'; did you mean ctdet_coco_dla_2x?"):
        get("ctdet_coco_dla2x", tmp_path)
    with pytest.raises(InputError, match="called 'xyzzy'; there are ctdet_coco_resdcn18, "):
        get("xyzzy", tmp_path)
    with pytest.raises(InputError, match=r"no file .*nowhere\.pth"):
        get("ctdet_coco_hg", tmp_path, tmp_path / "nowhere.pth")


# ---- convert ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
def test_a_converted_file_says_what_it_is(tmp_path, zipped):
    model = CenterNet("small", class_names=TRAINING_DATA["coco"].class_names, seed=7)
    arrays = {key: array for key, array in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    arrays["base.fc.weight"] = np.zeros((10, 4, 1, 1), np.float32)
    (tmp_path / "net.pth").write_bytes(pth.checkpoint(arrays, zipped=zipped))
    report = convert(tmp_path / "net.pth", tmp_path / "net.safetensors", network="small", dataset="coco", size=128)
    assert str(report) == f"{len(arrays) - 1} arrays were loaded; base.fc.weight of the file are not used"
    loaded = CenterNet.load(tmp_path / "net.safetensors")
    assert all(np.array_equal(array, model.state_dict()[key]) for key, array in loaded.state_dict().items())
    metadata = load_weights(tmp_path / "net.safetensors")[1]
    wanted = {
        "backbone": "small",
        "task": "detection",
        "class_names": list(TRAINING_DATA["coco"].class_names),
        "input_size": [128, 128],
        "channel_order": "BGR",
        "pixel_mean": [0.40789654, 0.44719302, 0.47026115],
        "pixel_std": [0.28863828, 0.27408164, 0.27809835],
    }
    assert wanted.items() <= {key: json.loads(text) for key, text in metadata.items()}.items()


def test_what_cannot_be_converted(tmp_path, released_file):
    path, target = tmp_path / "net.pth", tmp_path / "net.safetensors"
    path.write_bytes(released_file)
    for options, message in [
        (
            {"network": "resnet18", "dataset": "voc"},
            r"net\.pth: the weights are not those of resnet18: .*stem.0.weight, stem.1.weight, stem.1.bias and 81 more",
        ),
        (
            {"network": "small", "dataset": "coco"},
            "no small with the 80 classes of coco: .*hm.2.weight, hm.2.bias begin",
        ),
        (
            {"network": "resnet19", "dataset": "coco"},
            "unknown backbone 'resnet19'; there are small, .*Did you mean resnet18",
        ),
        ({"network": "small", "dataset": "kitti"}, "unknown data set 'kitti'; there are coco, voc"),
        ({"network": "small", "dataset": "voc", "size": 100}, "multiples of 16"),
    ]:
        with pytest.raises(InputError, match=message):
            convert(path, target, **options)
    with pytest.raises(InputError, match=r"cannot save weights as net\.txt"):
        convert(path, tmp_path / "net.txt", network="small", dataset="voc")
    whole = CenterNet("small", class_names=TRAINING_DATA["voc"].class_names).state_dict()
    save_weights(tmp_path / "part.npz", {key: array for key, array in whole.items() if not key.startswith("wh.")})
    with pytest.raises(InputError, match="wh begin anew, for the file has none"):
        convert(tmp_path / "part.npz", target, network="small", dataset="voc")
    assert not target.exists()
