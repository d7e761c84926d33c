"""Parts of an evaluation, as bytes and as files."""

import json
from collections import Counter

import numpy as np
import pytest
from ranks import in_ranks

from minicenternet.distributed import World
from minicenternet.errors import InputError
from minicenternet.parts import KeptParts, Part, delete_parts
from minicenternet.predict import Detections

NAMES = ("a", "b", "c")


def part_of(images, seed=0):
    """A part in which image i has i % 3 detections."""
    rng, detections = np.random.default_rng(seed), []
    for i in images:
        boxes, scores = rng.normal(size=(i % 3, 4)).astype(np.float32), rng.random(i % 3, np.float32)
        detections.append(Detections(boxes, scores, rng.integers(0, 3, i % 3), NAMES, file_name=f"ö {i}.png"))
    return Part(list(images), detections, Counter(load=0.5, network=len(images)))


def assert_same(a: Part, b: Part):
    assert a.images == b.images and a.seconds == b.seconds and len(a.detections) == len(b.detections)
    for one, other in zip(a.detections, b.detections, strict=True):
        for name in ("boxes", "scores", "labels"):
            mine, its = getattr(one, name), getattr(other, name)
            assert mine.dtype == its.dtype
            np.testing.assert_array_equal(mine, its)
        assert (one.class_names, one.file_name) == (other.class_names, other.file_name)


@pytest.mark.parametrize("images", [[], [3], [0, 1, 2], [5, 2, 9, 30]])
def test_bytes_and_back(images):
    part = part_of(images)
    assert_same(Part.unpack(part.pack(), NAMES), part)


def test_files_and_back(tmp_path):
    parts = [part_of([0, 2, 4]), part_of([1, 3], seed=1)]
    of = {"k": 100, "scales": (0.5, 1.0)}
    for part in parts:  # of two ranks, say
        KeptParts(tmp_path / "kept", of, World()).add(part)
    for part, again in zip(parts, KeptParts(tmp_path / "kept", of, World()).parts(NAMES), strict=True):
        assert_same(again, part)
    delete_parts(tmp_path / "kept")
    assert not list(tmp_path.iterdir())


def test_parts_of_something_else_are_refused(tmp_path):
    KeptParts(tmp_path, {"k": 100, "flip": False, "nms": None}, World()).add(part_of([1]))
    with pytest.raises(InputError, match="keeps detections of another evaluation.*: k, flip differ. Finish that one"):
        KeptParts(tmp_path, {"k": 99, "flip": True, "nms": None}, World())
    (tmp_path / "of.json").write_text("[")
    with pytest.raises(InputError, match="of.json is damaged"):
        KeptParts(tmp_path, {"k": 100, "flip": False, "nms": None}, World())


def test_a_damaged_part_is_named(tmp_path):
    kept = KeptParts(tmp_path, {}, World())
    kept.add(part_of([5, 6]))
    whole = (tmp_path / "00000005.npz").read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"x" + whole[1:]):
        (tmp_path / "00000005.npz").write_bytes(damaged)
        with pytest.raises(InputError, match="00000005.npz is damaged"):
            kept.parts(NAMES)


def test_what_others_put_there_stays(tmp_path):
    KeptParts(tmp_path, {}, World()).add(part_of([1]))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".00000002.npz.7.tmp").write_text("of a writer that was killed")
    delete_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert json.dumps(KeptParts(tmp_path, {}, World()).parts(NAMES)) == "[]"


def test_the_first_rank_checks_and_reads(tmp_path):
    def of_rank(world):
        kept = KeptParts(tmp_path, {}, world)
        world.share("")  # that the folder is there
        kept.add(part_of([world.rank]))
        world.share("")
        return len(kept.parts(NAMES))

    assert in_ranks(3, of_rank) == [3, 0, 0]
