"""Data sets made ready: from a server that misbehaves, from folders and archives, honest and hostile ones."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minicenternet import cli
from minicenternet.data import open_dataset, prepare
from minicenternet.data.archives import File
from minicenternet.data.full import COCO_ANNOTATIONS
from minicenternet.data.prepare import Photo
from minicenternet.errors import InputError
from minicenternet.files import LOCK

NAMES = ("train2017/000000000003.jpg", "train2017/000000000007.jpg", "val2017/000000000005.jpg")


def photograph(number: int) -> bytes:
    stream, pixels = io.BytesIO(), np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def published() -> dict[str, bytes]:
    """What a publisher has: three photographs of the sample and one more, and two annotation files."""
    files = {name: photograph(i) for i, name in enumerate((*NAMES, "val2017/000000000009.jpg"))}
    for split in ("train", "val"):
        ids = [int(Path(name).stem) for name in files if name.startswith(split)]
        images = [
            {"id": i, "file_name": f"{i:012d}.jpg", "width": 40, "height": 30, "license": 4 if i != 9 else 3,
             "flickr_url": f"http://example.org/{i}"}
            for i in ids
        ]  # fmt: skip
        boxes = [
            {"id": 10 * i + k, "image_id": i, "category_id": 18, "bbox": [1, 2, 10, 20.5], "area": 101.25, "iscrowd": 0,
             "segmentation": [[1, 2, 3, 4, 5, 6]]}
            for i in ids
            for k in (1, 2)
        ]  # fmt: skip
        content = {"images": images, "annotations": boxes, "categories": [{"id": 18, "name": "dog"}]}
        files[f"annotations/instances_{split}2017.json"] = json.dumps(content).encode()
    return files


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    """The publisher's files; the sample is three photographs of them."""
    files = published()
    rows = [Photo(name, 4, 2, len(files[name]), hashlib.sha256(files[name]).hexdigest()) for name in NAMES]
    monkeypatch.setattr(prepare, "photos", lambda split: [row for row in rows if row.name.startswith(split)])
    return files


@pytest.fixture
def host(server, files, monkeypatch):
    """The publisher's server."""
    archive = zipped({name: content for name, content in files.items() if name.startswith("annotations")})
    server.files = {f"/{name}": content for name, content in files.items() if name.startswith(("train", "val"))}
    server.files["/" + COCO_ANNOTATIONS.name] = archive
    monkeypatch.setattr(
        prepare, "COCO_ANNOTATIONS", File(COCO_ANNOTATIONS.name, len(archive), hashlib.sha256(archive).hexdigest())
    )
    return server


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(files: dict[str, bytes], links: dict[str, str] = {}) -> bytes:  # noqa: B006, never written to
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return stream.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def make(folder: Path, source=None) -> list[str]:
    said: list[str] = []
    prepare.prepare("coco-sample", folder, None if source is None else str(source), said.append)
    return said


def tree(folder: Path) -> dict[str, bytes]:
    """All files but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def assert_is_the_sample(folder: Path, files: dict[str, bytes]) -> None:
    found = tree(folder)
    assert {name: found.pop(name) for name in NAMES} == {name: files[name] for name in NAMES}
    assert set(found) == {
        "ATTRIBUTION.txt", "annotations/instances_train2017.json", "annotations/instances_val2017.json"
    }  # fmt: skip
    train, val = (open_dataset(folder, split=split) for split in ("train", "val"))
    assert (list(train.image_ids), list(val.image_ids), train.category_ids) == ([3, 7], [5], (18,))
    assert train[1].annotation.boxes.tolist() == [[1, 2, 11, 22.5]] * 2 and train[1].annotation.area[0] == 101.25
    lines = found["ATTRIBUTION.txt"].decode().splitlines()[-3:]
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert all("CC BY 2.0" in line and "http://example.org/" in line for line in lines)


# ---- the sample itself -----------------------------------------------------------------------------------------------


def test_the_list_of_photographs():
    rows = [photo for split in prepare.SPLITS for photo in prepare.photos(split)]
    assert (len(prepare.photos("train")), len(prepare.photos("val")), len({photo.name for photo in rows})) == (
        31,
        42,
        73,
    )
    for photo in rows:
        assert re.fullmatch(r"(train|val)2017/\d{12}\.jpg", photo.name) and re.fullmatch("[0-9a-f]{64}", photo.sha256)
        assert photo.licence in prepare.LICENCES and photo.objects >= 0 and 10_000 < photo.size < 1_000_000


def test_sizes_numbers_and_licences_are_said():
    text = prepare.describe_coco_sample()
    for words in ("73 photographs", "31 to train on, 42 to validate", "590 objects", "10.6 MB", "252.9 MB",
                  "49 CC BY 2.0, 23 CC BY-SA 2.0, 1 no known copyright restrictions", "CC BY 4.0",
                  "http://images.cocodataset.org"):  # fmt: skip
        assert words in text
    assert max(map(len, text.splitlines())) <= 140


def test_the_sample_from_real_files(shared_data, tmp_path):
    source = shared_data / "coco-open"
    said = make(tmp_path / "sample", source)
    assert "is ready: 73 photographs, 590 objects" in said[-1]
    for split in prepare.SPLITS:
        ours, theirs = (
            open_dataset(folder, split=split) for folder in (tmp_path / "sample", shared_data / "coco-open")
        )
        assert ours.class_names == theirs.class_names and sorted(ours.image_ids) == sorted(theirs.image_ids)
        order = [theirs.image_ids.index(number) for number in ours.image_ids]
        for i, j in enumerate(order):
            a, b = ours.annotation(i), theirs.annotation(j)
            rows, others = (sorted(zip(x.boxes.tolist(), x.labels, x.crowd, x.area, strict=True)) for x in (a, b))
            assert rows == others


# ---- from a server ---------------------------------------------------------------------------------------------------


def test_it_says_first_and_fetches_once(host, files, tmp_path):
    def say(text: str) -> None:
        said.append((text, len(host.answers)))

    said: list[tuple[str, int]] = []
    prepare.prepare("coco-sample", tmp_path / "new" / "sample", host.url, say)
    assert said[0][1] == 0 and "licences" in said[0][0] and "3 photographs" in said[1][0]
    assert_is_the_sample(tmp_path / "new" / "sample", files)
    assert [name for name, _ in host.answers] == ["/" + COCO_ANNOTATIONS.name, *(f"/{name}" for name in NAMES)]
    make(tmp_path / "new" / "sample", host.url)
    assert len(host.answers) == 4
    assert_is_the_sample(tmp_path / "new" / "sample", files)


def test_the_publisher_is_the_default(host, files, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "COCO_URL", host.url)
    make(tmp_path)
    assert_is_the_sample(tmp_path, files)


def test_broken_connections_are_gone_on_with(host, files, tmp_path):
    host.drops, host.errors = [200, 0, 10_000, 300, 5], [503]
    make(tmp_path, host.url)
    assert_is_the_sample(tmp_path, files)
    assert [start for _, start in host.answers[:3]] == [0, 200, 200]
    assert ("/" + NAMES[0], 300) in host.answers and ("/" + NAMES[0], 305) in host.answers


@pytest.mark.parametrize("lie", [-100, 1000])
def test_lies_about_lengths_do_no_harm(host, files, tmp_path, lie):
    host.lie = lie
    if lie < 0:  # the end of every file is missing
        with pytest.raises(InputError, match=r"came with \d+ bytes, expected \d+: it was deleted. Try again later"):
            make(tmp_path, host.url)
        assert tree(tmp_path) == {}
        host.lie = 0
    make(tmp_path, host.url)
    assert_is_the_sample(tmp_path, files)


def test_a_corrupt_photograph_is_fetched_again_then_refused(host, files, tmp_path):
    good, name = files[NAMES[1]], "/" + NAMES[1]
    host.files[name] = good[:-5] + b"12345"
    with pytest.raises(InputError, match=rf"{NAMES[1]} came with SHA-256 \w{{64}}, expected \w{{64}}: .* not kept"):
        make(tmp_path, host.url)
    assert [path for path, _ in host.answers].count(name) == 2
    assert NAMES[0] in tree(tmp_path) and NAMES[1] not in tree(tmp_path)
    host.files[name] = good
    del host.answers[:]
    make(tmp_path, host.url)  # goes on: neither the first photograph nor the archive is fetched again
    assert [path for path, _ in host.answers] == [name, "/" + NAMES[2]]
    assert_is_the_sample(tmp_path, files)


def test_a_photograph_that_does_not_end(host, tmp_path):
    host.files["/" + NAMES[0]] += b"x"
    with pytest.raises(InputError, match=r"larger than \d+ bytes, the most that was expected; name a folder"):
        make(tmp_path, host.url)


def test_what_is_damaged_in_the_folder_is_mended(host, files, tmp_path):
    make(tmp_path, host.url)
    (tmp_path / NAMES[2]).write_bytes(b"?" + files[NAMES[2]][1:])
    (tmp_path / "annotations/instances_val2017.json").write_text('{"images": [')
    del host.answers[:]
    make(tmp_path, host.url)
    assert [path for path, _ in host.answers] == ["/" + COCO_ANNOTATIONS.name, "/" + NAMES[2]]
    assert_is_the_sample(tmp_path, files)


def test_whole_photographs_need_no_server(files, tmp_path):
    make(tmp_path, write(tmp_path.with_name("source"), files))
    make(tmp_path, "http://127.0.0.1:9")  # nobody answers there, and nobody is asked
    assert_is_the_sample(tmp_path, files)


def test_an_interruption_is_gone_on_with(host, files, tmp_path, monkeypatch, capsys):
    def interrupted(files, photo, folder):
        if photo.name == NAMES[1]:
            raise KeyboardInterrupt
        of_photo(files, photo, folder)

    of_photo = prepare._photo
    command = ["data", "prepare", "coco-sample", str(tmp_path), "--source", host.url]
    monkeypatch.setattr(prepare, "_photo", interrupted)
    assert cli.main(command) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    monkeypatch.setattr(prepare, "_photo", of_photo)
    assert cli.main(command) == 0
    assert "is ready: 3 photographs, 6 objects" in capsys.readouterr().out
    assert [path for path, _ in host.answers].count("/" + NAMES[0]) == 1
    assert_is_the_sample(tmp_path, files)


# ---- from what is there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "zip", "tar.gz", "zip within a folder", "url of a zip"])
def test_folders_and_archives(files, tmp_path, form, server):
    source, within = tmp_path / "source", {f"data/coco/{name}": content for name, content in files.items()}
    if form == "folder":
        write(source, files)
    elif form == "tar.gz":
        source.write_bytes(tarred(files))
    else:
        source.write_bytes(zipped(within if "within" in form else files))
    if form.startswith("url"):
        server.files["/pack/coco.zip"] = source.read_bytes()
        source = f"{server.url}/pack/coco.zip"
    make(tmp_path / "sample", source)
    assert_is_the_sample(tmp_path / "sample", files)


@pytest.mark.parametrize("form", [zipped, tarred])
def test_a_hostile_archive_writes_nothing_elsewhere(files, tmp_path, form):
    evil = {"../evil.txt": b"1", "/tmp/../evil.txt": b"1", "a/../../evil.txt": b"1", "C:\\evil.txt": b"1"}
    evil |= {f"../../{name}": content for name, content in files.items()}  # taken, but to their own places
    (tmp_path / "source").write_bytes(form(evil))
    before = {path for path in tmp_path.parent.rglob("*") if tmp_path / "here" not in path.parents}
    make(tmp_path / "here" / "sample", tmp_path / "source")
    after = {path for path in tmp_path.parent.rglob("*") if tmp_path / "here" not in path.parents}
    assert after == before | {tmp_path / "here"}
    assert_is_the_sample(tmp_path / "here" / "sample", files)


def test_links_are_not_followed(files, tmp_path):
    (tmp_path / "secret").write_bytes(files.pop(NAMES[0]))
    (tmp_path / "source").write_bytes(tarred(files, {NAMES[0]: str(tmp_path / "secret")}))
    with pytest.raises(InputError, match=f"has no {NAMES[0]}"):
        make(tmp_path / "sample", tmp_path / "source")
    (tmp_path / "other" / "elsewhere").mkdir(parents=True)
    os.symlink(tmp_path / "other" / "elsewhere", tmp_path / "other" / "val2017")
    with pytest.raises(InputError, match="val2017 is a link to elsewhere"):
        make(tmp_path / "other", tmp_path / "source")
    assert list((tmp_path / "other" / "elsewhere").iterdir()) == []


def without_image(files):
    del files[NAMES[2]]


def without_annotations(files):
    del files["annotations/instances_val2017.json"]


def changed(**values):
    def change(files):
        name = "annotations/instances_train2017.json"
        content = json.loads(files[name])
        content["images"][0] |= values
        files[name] = json.dumps(content).encode()

    return change


def with_an_object_less(files):
    name = "annotations/instances_train2017.json"
    content = json.loads(files[name])
    del content["annotations"][-1]
    files[name] = json.dumps(content).encode()


def with_records_that_are_none(files):
    name = "annotations/instances_train2017.json"
    files[name] = json.dumps(json.loads(files[name]) | {"annotations": [5]}).encode()


def with_a_bomb(files):
    files[NAMES[0]] = bytes(10_000_000)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (without_image, f"has no {NAMES[2]}; expected it there, as in the published layout"),
        (without_annotations, "has no annotations/instances_val2017.json"),
        (changed(license=3), "instances_train2017.json .* image 3 has licence 3, expected 4"),
        (changed(id=4), "it lacks the image 3"),
        (with_an_object_less, "image 7 has 1 objects, expected 2"),
        (with_records_that_are_none, "a record of an image or annotation is malformed"),
        (with_a_bomb, r"000000000003.jpg in .* is larger than \d+ bytes: it is another file"),
    ],
)
def test_sources_that_will_not_do(files, tmp_path, spoil, message):
    spoil(files)
    (tmp_path / "source").write_bytes(zipped(files))
    with pytest.raises(InputError, match=message):
        make(tmp_path / "sample", tmp_path / "source")
    assert not [name for name in tree(tmp_path / "sample") if name.endswith((".whole", ".tmp"))]


def test_what_is_no_source(files, tmp_path):
    with pytest.raises(InputError, match=r"nowhere is nothing; expected a folder, a \.zip or a \.tar"):
        make(tmp_path / "sample", tmp_path / "nowhere")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="is a file that is neither; expected a folder"):
        make(tmp_path / "sample", tmp_path / "text")
    whole = bytearray(zipped(files))
    whole[200:2000] = bytes(1800)
    (tmp_path / "damaged").write_bytes(whole)
    with pytest.raises(InputError, match="is damaged"):
        make(tmp_path / "sample", tmp_path / "damaged")
    (tmp_path / "cut").write_bytes(tarred(files)[:-500])
    with pytest.raises(InputError, match="is damaged"):
        make(tmp_path / "sample", tmp_path / "cut")
    with pytest.raises(InputError, match="no data set called 'kitti' can be prepared; there are coco-sample, voc"):
        prepare.prepare("kitti", tmp_path)
    with pytest.raises(InputError, match="--years is 2007, but coco-sample has no years"):
        prepare.prepare("coco-sample", tmp_path, years=[2007])


@pytest.mark.parametrize("given", [{"subset": 0}, {"subset": -3}, {"seed": -1}])
def test_subsets_without_sense_are_refused_before_anything_is_fetched(given, tmp_path, capsys):
    ((option, value),) = given.items()
    assert cli.main(["data", "prepare", "voc", str(tmp_path / "voc"), f"--{option}", str(value)]) == 2
    said = capsys.readouterr()
    assert f"--{option} is {value}, expected" in said.err and said.out == ""
    assert not (tmp_path / "voc").exists()
