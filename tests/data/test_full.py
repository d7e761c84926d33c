"""VOC and COCO made ready: small archives in the published layout, from a bad server and from disk; a real sample."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from minicenternet import cli, files
from minicenternet.data import Coco, Voc, full, open_dataset
from minicenternet.data.archives import File
from minicenternet.data.prepare import prepare
from minicenternet.errors import InputError
from minicenternet.files import LOCK

XML = """<annotation><size><width>40</width><height>30</height></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>{x}</xmin><ymin>2</ymin><xmax>20</xmax><ymax>12</ymax></bndbox></object>
<object><name>person</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>30</ymax></bndbox></object></annotation>"""


def photograph(number: int) -> bytes:
    stream, pixels = io.BytesIO(), np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def voc_files(year: int, splits: dict[str, list[str]]) -> dict[str, bytes]:
    files = {f"VOCdevkit/VOC{year}/SegmentationClass/unwanted.png": b"?"}
    for split, names in splits.items():
        files[f"VOCdevkit/VOC{year}/ImageSets/Main/{split}.txt"] = "".join(f"{name}\n" for name in names).encode()
        files[f"VOCdevkit/VOC{year}/ImageSets/Main/dog_{split}.txt"] = b"a list of one class\n"
        for name in names:
            files[f"VOCdevkit/VOC{year}/JPEGImages/{name}.jpg"] = photograph(int(name.replace("_", "")))
            files[f"VOCdevkit/VOC{year}/Annotations/{name}.xml"] = XML.format(x=int(name[-1]) + 1).encode()
    return files


def coco_files(split: str, ids: list[int]) -> dict[str, bytes]:
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 40, "height": 30, "license": 4} for i in ids]
    boxes = [
        {"id": 10 * i + k, "image_id": i, "category_id": 17 + k, "bbox": [1, 2, 10, 20.5], "area": 101.25,
         "iscrowd": int(i == ids[0]), "segmentation": [[1, 2, 3, 4, 5, 6]]}
        for i in ids for k in range(2) if i % 3 or not k
    ]  # fmt: skip
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    content = {"info": {"year": 2017}, "images": images, "annotations": boxes, "categories": categories}
    return {f"{split}2017/{i:012d}.jpg": photograph(i) for i in ids} | {
        f"annotations/instances_{split}2017.json": json.dumps(content).encode(),
        f"annotations/captions_{split}2017.json": b"unwanted",
    }


def tarred(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def published(file: File, content: bytes) -> File:
    return File(file.name, len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def voc(server, monkeypatch):
    """The server of small VOC archives, which are those that are expected."""
    trainval, test, later = (file for year in (2007, 2012) for file in full.VOC_ARCHIVES[year])
    contents = {
        trainval: tarred(voc_files(2007, {"trainval": ["000005", "000007"], "train": ["000005"], "val": ["000007"]})),
        test: tarred(voc_files(2007, {"test": ["000001", "000002"]})),
        later: tarred(
            voc_files(
                2012,
                {"trainval": ["2008_000002", "2008_000003"], "train": ["2008_000002"], "val": ["2008_000003"]},
            )
        ),
    }
    archives = {
        year: tuple(published(file, contents[file]) for file in files) for year, files in full.VOC_ARCHIVES.items()
    }
    monkeypatch.setattr(full, "VOC_ARCHIVES", archives)
    monkeypatch.setattr(full, "VOC_URLS", (f"{server.url}/gone", f"{server.url}/VOC"))
    monkeypatch.setattr(full, "VOC_MIRROR", f"{server.url}/mirror")
    server.files = {f"/VOC/{file.name}": content for file, content in contents.items()}
    return server


@pytest.fixture
def coco(server, monkeypatch):
    train, val = coco_files("train", [1, 2, 3, 4, 5, 6, 7, 8]), coco_files("val", [9, 10, 11])
    annotations = {name: content for name, content in (train | val).items() if name.startswith("annotations")}
    contents = [
        zipped(annotations),
        *(zipped({name: content for name, content in files.items() if "2017/" in name}) for files in (val, train)),
    ]
    archives = tuple(published(file, content) for file, content in zip(full.COCO_ARCHIVES, contents, strict=True))
    monkeypatch.setattr(full, "COCO_ARCHIVES", archives)
    monkeypatch.setattr(full, "COCO_URLS", (f"{server.url}/bucket", f"{server.url}/coco"))
    of = full.coco
    monkeypatch.setattr(full, "coco", lambda: dataclasses.replace(of(), bytes_unpacked=1_000_000))
    server.files = {f"/coco/{file.name}": content for file, content in zip(archives, contents, strict=True)}
    return server


def make(name: str, folder: Path, source=None, **options) -> list[str]:
    said: list[str] = []
    prepare(name, folder, None if source is None else str(source), said.append, **options)
    return said


def tree(folder: Path) -> dict[str, bytes]:
    """All files but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def on_disk(server, folder: Path) -> Path:
    folder.mkdir()
    for name, content in server.files.items():
        (folder / PurePosixPath(name).name).write_bytes(content)
    return folder


# ---- what is published -----------------------------------------------------------------------------------------------


def test_the_list_of_archives():
    every = [*full.VOC_ARCHIVES[2007], *full.VOC_ARCHIVES[2012], *full.COCO_ARCHIVES]
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in every) and len(set(every)) == 6
    assert round(sum(file.size for file in every[:3]) / 1e9, 2) == 2.91
    assert round(sum(file.size for file in every[3:]) / 1e9, 2) == 20.41


def test_it_says_first_what_it_is(tmp_path):
    text = full.voc().describe(tmp_path / "not" / "yet")
    for words in ("VOC 2007 + 2012, 20 classes", "Flickr", "VOCtest_06-Nov-2007.tar", "0.46 GB", "2.91 GB in the end",
                  "4.91 GB before", "to get        2.91 GB", "thor.robots.ox.ac.uk", "SHA-256 7d8cd951"):  # fmt: skip
        assert words in text
    assert "CC BY 4.0" in full.coco().describe(tmp_path) and "to get        20.41 GB" in full.coco().describe(tmp_path)
    assert max(map(len, text.splitlines())) <= 120 and not (tmp_path / "not").exists()


# ---- VOC -------------------------------------------------------------------------------------------------------------


def test_voc_is_merged(voc, tmp_path):
    said = make("voc", tmp_path / "voc")
    assert said[0].startswith("voc: PASCAL VOC") and "4 images with 8 objects to train on, 2 with 4" in said[-1]
    train, val = (open_dataset(tmp_path / "voc", split=split) for split in ("train", "val"))
    assert sorted(train.image_ids) == [5, 7, 2008000002, 2008000003] and sorted(val.image_ids) == [1, 2]
    parts = [Voc(tmp_path / f"voc/VOCdevkit/VOC{year}", "trainval") for year in (2007, 2012)]
    theirs = {int(part.image_ids[i].replace("_", "")): part[i] for part in parts for i in range(2)}
    for i, number in enumerate(train.image_ids):
        ours, other = train[i], theirs[number]
        assert (ours.image == other.image).all() and train.class_names == parts[0].class_names
        for key in ("boxes", "labels", "difficult", "area", "crowd"):
            np.testing.assert_array_equal(getattr(ours.annotation, key), getattr(other.annotation, key))
    assert train.difficult.tolist() == [False, True] * 4
    found = tree(tmp_path / "voc")
    assert not any("unwanted" in name or "dog_" in name or name.endswith(".tar") for name in found)
    asked = [name for name, _ in voc.answers]
    assert len(asked) == 3 and make("voc", tmp_path / "voc")[-1] == said[-1]  # nothing is fetched again
    assert len(voc.answers) == 3 and tree(tmp_path / "voc") == found


@pytest.mark.parametrize(
    "years, train, val", [((2007,), [5, 7], [1, 2]), ((2012,), [2008000002], [2008000003]), ((2012, 2007), 4, 2)]
)
def test_years(voc, tmp_path, years, train, val):
    make("voc", tmp_path, years=years)
    for split, wanted in (("train", train), ("val", val)):
        ids = sorted(open_dataset(tmp_path, split=split).image_ids)
        assert (len(ids) if isinstance(wanted, int) else ids) == wanted
    make("voc", tmp_path)  # the other year comes along
    assert len(open_dataset(tmp_path)) == 4 and len(voc.answers) == 3


def test_years_that_there_are_not(tmp_path):
    for years, words in (((2008,), "2008"), ((), "empty")):
        with pytest.raises(InputError, match=f"--years is {words}, expected 2007, 2012 or both"):
            full.voc(years)
    with pytest.raises(InputError, match="--years is 2007, but coco has no years"):
        make("coco", tmp_path, years=[2007])
    with pytest.raises(InputError, match="--years is empty, expected"):
        make("voc", tmp_path, years=[])


@pytest.mark.skipif(files.fcntl is None, reason="no locks on this system")
def test_a_folder_that_another_process_prepares(tmp_path):
    held = files.lock(tmp_path)
    command = [sys.executable, "-m", "minicenternet", "data", "prepare", "voc", str(tmp_path), "--source", "nowhere"]
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 2 and second.stdout.startswith("voc: PASCAL VOC 2007 + 2012")
    assert second.stderr.startswith(f"error: {tmp_path} is being written by process {os.getpid()} on ")
    del held


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("do not lose me")
    for folder in (tmp_path / "file", tmp_path / "file" / "deep" / "er"):
        with pytest.raises(InputError, match=f"{tmp_path / 'file'} is a file, and {folder} is to be a folder"):
            make("coco", folder)
    assert (tmp_path / "file").read_text() == "do not lose me"


def test_a_server_that_misbehaves(voc, tmp_path):
    voc.drops, voc.errors = [500, 0, 3000], [404, 503]
    make("voc", tmp_path)
    assert len(open_dataset(tmp_path)) == 4 and ("/VOC/voc2007/VOCtrainval_06-Nov-2007.tar", 500) in voc.answers


@pytest.mark.parametrize("lie", [-100, 1000])
def test_a_server_that_lies_about_lengths(voc, tmp_path, lie):
    voc.lie = lie
    if lie < 0:
        with pytest.raises(InputError, match=r"came with \d+ bytes, expected \d+: it was deleted"):
            make("voc", tmp_path)
        assert tree(tmp_path) == {}
        voc.lie = 0
    make("voc", tmp_path)
    assert len(open_dataset(tmp_path)) == 4


def test_a_corrupt_archive_is_taken_from_the_mirror_or_refused(voc, tmp_path):
    name = "/VOC/voc2007/VOCtest_06-Nov-2007.tar"
    good = voc.files[name]
    voc.files[name] = good[:5000] + b"?" + good[5001:]
    with pytest.raises(InputError, match=r"came with SHA-256 \w{64}, expected \w{64}"):
        make("voc", tmp_path)
    voc.files["/mirror/VOCtest_06-Nov-2007.tar"] = good
    del voc.answers[:]
    make("voc", tmp_path)
    assert [path for path, _ in voc.answers] == [name, name, "/mirror/VOCtest_06-Nov-2007.tar",
                                                 "/VOC/voc2012/VOCtrainval_11-May-2012.tar"]  # fmt: skip
    assert len(open_dataset(tmp_path, split="val")) == 2


@pytest.mark.parametrize("step", ["fetch", "unpack", "replacing", "_merge_voc"])
def test_every_step_can_be_interrupted(voc, tmp_path, monkeypatch, capsys, step):
    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2 or step == "_merge_voc":
            raise KeyboardInterrupt
        return original(*arguments)

    calls, original = [], getattr(full, step)
    command = ["data", "prepare", "voc", str(tmp_path)]
    monkeypatch.setattr(full, step, interrupted)
    assert cli.main(command) == 130 and "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(full, step, original)
    assert cli.main(command) == 0 and "4 images with 8 objects to train on" in capsys.readouterr().out
    assert len(voc.answers) == 3  # none was fetched twice


def test_a_stop_in_the_middle_of_unpacking(voc, tmp_path, monkeypatch):
    from minicenternet.data import archives

    def interrupted(member, target):
        if target.name == "000007.xml":
            raise KeyboardInterrupt
        write(member, target)

    write = archives._write
    monkeypatch.setattr(archives, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make("voc", tmp_path)
    assert (tmp_path / "VOCdevkit/VOC2007/JPEGImages/000005.jpg").is_file()
    monkeypatch.setattr(archives, "_write", write)
    make("voc", tmp_path)
    assert len(open_dataset(tmp_path)) == 4 and len(voc.answers) == 3


def test_what_was_deleted_is_unpacked_again(voc, tmp_path):
    make("voc", tmp_path)
    (tmp_path / "VOCdevkit/VOC2007/JPEGImages/000005.jpg").unlink()
    with pytest.raises(InputError, match="(?s)there is no .*000005.jpg.*the same command gets the archives again"):
        make("voc", tmp_path)
    make("voc", tmp_path)
    assert len(open_dataset(tmp_path)) == 4
    (tmp_path / "unpacked.json").write_text("[")
    with pytest.raises(InputError, match="unpacked.json is damaged"):
        make("voc", tmp_path)


def test_a_full_disk_is_no_reason_to_get_everything_again(voc, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: full_disk() if str(b).endswith("train.json") else replace(a, b))
    with pytest.raises(InputError, match="cannot write .*instances_train.json: No space left"):
        make("voc", tmp_path)
    monkeypatch.setattr(os, "replace", replace)
    make("voc", tmp_path)
    assert len(voc.answers) == 3


def test_archives_that_are_there(voc, tmp_path):
    source = on_disk(voc, tmp_path / "source")
    before = tree(source)
    make("voc", tmp_path / "voc", source)
    assert len(open_dataset(tmp_path / "voc")) == 4 and tree(source) == before and voc.answers == []
    inside = on_disk(voc, tmp_path / "inside")
    make("voc", inside, inside)  # archives of the user's own stay
    assert before.items() <= tree(inside).items()
    (source / "VOCtest_06-Nov-2007.tar").write_bytes(b"short")
    with pytest.raises(InputError, match=r"VOCtest.* is not the published one: 5 bytes, expected \d+"):
        make("voc", tmp_path / "other", source)
    (source / "VOCtest_06-Nov-2007.tar").unlink()
    with pytest.raises(InputError, match="holds no VOCtest_06-Nov-2007.tar; name the folder of the archives"):
        make("voc", tmp_path / "other", source)


@pytest.mark.parametrize("flat", [True, False])
def test_a_mirror(voc, tmp_path, flat):
    if flat:
        voc.files = {f"/VOC/{PurePosixPath(name).name}": content for name, content in voc.files.items()}
    make("voc", tmp_path, f"{voc.url}/VOC/")
    assert len(open_dataset(tmp_path)) == 4


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(full.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 4_000_000_000}))
    with pytest.raises(InputError, match=r"has 4.00 GB free, and 4.91 GB more are needed"):
        make("voc", tmp_path, "http://127.0.0.1:9")  # nobody answers there, and nobody is asked


# ---- COCO ------------------------------------------------------------------------------------------------------------


def test_coco(coco, tmp_path, monkeypatch):
    from minicenternet.data import prepare as module

    monkeypatch.setattr(module, "coco", full.coco)
    said = make("coco", tmp_path)
    assert "8 images with 14 objects to train on, 3 with 5" in said[-1]
    train, val = (open_dataset(tmp_path, split=split) for split in ("train", "val"))
    assert (
        train.class_names == ("cat", "dog")
        and list(val.image_ids) == [9, 10, 11]
        and train[0].image.shape == (30, 40, 3)
    )
    assert set(name.split("/")[0] for name in tree(tmp_path)) == {
        "annotations",
        "train2017",
        "val2017",
        "unpacked.json",
    }
    assert not any("captions" in name for name in tree(tmp_path))
    assert cli.main(["data", "prepare", "coco", str(tmp_path), "--subset", "2", "--classes", "dog", "--seed", "3"]) == 0
    assert isinstance(open_dataset(tmp_path / "subsets/2-dog-seed3", split="val"), Coco)
    assert len(coco.answers) == 3


# ---- real files ------------------------------------------------------------------------------------------------------


def test_the_real_voc_sample(shared_data, tmp_path, monkeypatch):
    sample = shared_data / "voc-sample" / "VOCdevkit"
    if not (sample / "VOC2012").is_dir():
        pytest.skip("no sample of VOC 2012")
    with tarfile.open(tmp_path / "VOCtrainval_11-May-2012.tar", "w") as archive:
        archive.add(sample, "VOCdevkit")
    content = (tmp_path / "VOCtrainval_11-May-2012.tar").read_bytes()
    monkeypatch.setitem(full.VOC_ARCHIVES, 2012, (published(full.VOC_ARCHIVES[2012][0], content),))
    splits = {split: Voc(sample / "VOC2012", split) for split in ("train", "val")}
    make("voc", tmp_path / "voc", tmp_path, years=[2012], count=5)
    for split, theirs in splits.items():
        ours = open_dataset(tmp_path / "voc", split=split)
        assert len(ours) == len(theirs)
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.difficult, theirs.difficult)
        small = open_dataset(tmp_path / "voc/subsets/5-seed0", split=split)
        assert len(small) == min(5, len(theirs)) and small[0].image.ndim == 3


def test_years_of_the_command_line(voc, tmp_path):
    assert cli.main(["data", "prepare", "voc", str(tmp_path), "--years", "2007"]) == 0
    assert sorted(open_dataset(tmp_path).image_ids) == [5, 7] and len(voc.answers) == 2
