import pickle
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minicenternet.data import Voc, open_dataset
from minicenternet.data.annotation import Problems
from minicenternet.data.voc import CLASSES
from minicenternet.errors import InputError


def annotation(objects, size=(50, 40)):
    """A VOC annotation of objects (name, xmin, ymin, xmax, ymax, difficult)."""
    boxes = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><part><name>head</name></part><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2, difficult in objects
    )
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{boxes}</annotation>"


def make(year, images, splits=None, ending="jpg"):
    """Write a year folder: images {NAME: XML text}, splits {split: [NAME, ...]}."""
    for folder in ("Annotations", "JPEGImages"):
        (year / folder).mkdir(parents=True, exist_ok=True)
    for name, text in images.items():
        (year / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
        Image.new("RGB", (50, 40)).save(year / "JPEGImages" / f"{name}.{ending}")
    if splits is not None:
        (year / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        for split, names in splits.items():
            (year / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return year


CAT = annotation([("cat", 1, 1, 1, 1, 0), ("dog", 5, 6, 20, 30, 1)])


@pytest.fixture
def devkit(tmp_path):
    make(tmp_path / "VOC2007", {"000001": CAT, "shared": CAT}, {"train": ["000001", "shared"], "test": ["000001"]})
    later = annotation([("cow", 2, 2, 3, 3, 0)])
    make(tmp_path / "VOC2012", {"2012_1": later, "2012_2": later, "shared": later}, {"train": ["2012_1", "shared"]})
    return tmp_path


def test_pixels_are_counted_from_one_and_corners_are_inside(devkit):
    sample = Voc(devkit / "VOC2007")[0]
    np.testing.assert_array_equal(sample.annotation.boxes, [[0, 0, 1, 1], [4, 5, 20, 30]])
    assert sample.annotation.labels.tolist() == [CLASSES.index("cat"), CLASSES.index("dog")]
    assert sample.annotation.difficult.tolist() == [False, True] and not sample.annotation.crowd.any()
    assert sample.annotation.area.tolist() == [1, 16 * 25]
    assert sample.annotation.image_id == "000001" and sample.image.shape == (40, 50, 3)


def test_years_are_merged_and_the_later_wins(devkit):
    dataset = Voc(devkit)
    names = [dataset.annotation(i).file_name for i in range(len(dataset))]
    assert names == [
        f"VOC{year}/JPEGImages/{name}.jpg" for year, name in ((2007, "000001"), (2012, "shared"), (2012, "2012_1"))
    ]
    assert [len(dataset.annotation(i).labels) for i in range(3)] == [2, 1, 1]
    assert len(Voc(devkit, "test")) == 1  # a year without the split is passed over
    assert dataset[1].image.shape == (40, 50, 3) and dataset[0].annotation.difficult[1]


def test_vocs_classes_keep_their_usual_order(devkit):
    dataset = Voc(devkit)
    assert dataset.class_names == CLASSES and len(CLASSES) == 20 and dataset.category_ids == tuple(range(1, 21))
    assert CLASSES[0] == "aeroplane" and CLASSES[14] == "person" and CLASSES[18] == "train"


def test_own_classes_are_sorted_and_the_same_in_all_splits(tmp_path):
    images = {"a": annotation([("fox", 1, 1, 9, 9, 0)]), "b": annotation([("cat", 1, 1, 9, 9, 0)])}
    make(tmp_path, images, {"train": ["a"], "val": ["b"]})
    for split, label in (("train", 1), ("val", 0)):
        dataset = Voc(tmp_path, split)
        assert dataset.class_names == ("cat", "fox") and dataset.category_ids == (1, 2)
        assert dataset.annotation(0).labels.tolist() == [label]
    assert Voc(tmp_path, "val", classes=["fox", "bat", "cat"]).annotation(0).labels.tolist() == [2]


def test_without_image_sets_every_annotation_is_taken(tmp_path):
    make(tmp_path, {"b": CAT, "a": CAT})
    assert [Voc(tmp_path).annotation(i).image_id for i in range(2)] == ["a", "b"]


def test_images_of_other_endings_are_found(tmp_path):
    make(tmp_path, {"my photo 1": CAT}, {"train": ["my photo 1"]}, ending="PNG")
    assert Voc(tmp_path)[0].annotation.file_name == "JPEGImages/my photo 1.PNG"


def test_what_is_no_image_beside_an_image_is_not_taken_for_it(tmp_path):
    make(tmp_path, {"a": CAT, "b": CAT, "c": CAT})
    for name in ("a.txt", "a.json", "b.XML"):  # after .jpg by name
        (tmp_path / "JPEGImages" / name).write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "JPEGImages" / "c.jpg").rename(tmp_path / "JPEGImages" / "c.jpe")  # an ending that few images have
    dataset = Voc(tmp_path)
    assert [Path(dataset.annotation(i).file_name).name for i in range(3)] == ["a.jpg", "b.jpg", "c.jpe"]


def test_a_flag_may_be_empty(tmp_path):
    make(tmp_path, {"a": annotation([("cat", 1, 1, 5, 5, ""), ("cat", 1, 1, 6, 6, " "), ("cat", 1, 1, 7, 7, " 1 ")])})
    assert Voc(tmp_path).annotation(0).difficult.tolist() == [False, False, True]


def test_images_without_objects_stay(tmp_path):
    dataset = Voc(make(tmp_path, {"a": annotation([])}))
    assert len(dataset) == 1 and dataset[0].annotation.boxes.shape == (0, 4)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.sampled_from(CLASSES), *[st.integers(1, 400)] * 4, st.integers(0, 1)), max_size=10))
def test_what_is_written_is_read(objects):
    objects = [(name, x, y, x + w - 1, y + h - 1, hard) for name, x, y, w, h, hard in objects]
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), {"a": annotation(objects)})
        record = Voc(folder).annotation(0)
    assert [CLASSES[label] for label in record.labels] == [row[0] for row in objects]
    assert record.difficult.tolist() == [bool(row[5]) for row in objects]
    width_height = record.boxes[:, 2:] - record.boxes[:, :2]
    for (_, x1, y1, x2, y2, _), box, size in zip(objects, record.boxes, width_height, strict=True):
        assert box.tolist() == [x1 - 1, y1 - 1, x2, y2] and size.tolist() == [x2 - x1 + 1, y2 - y1 + 1]


@pytest.mark.parametrize("source", ["VOCdevkit", "VOCdevkit/VOC2012"])
def test_real_photographs(shared_data, source):
    folder = shared_data / "voc-sample" / source
    train, val, both = (Voc(folder, split) for split in ("train", "val", "trainval"))
    assert (len(train), len(val), len(both)) == (30, 20, 50)
    assert train.class_names == val.class_names == CLASSES
    for i in range(len(both)):
        record = both.annotation(i)
        root = ET.parse(shared_data / f"voc-sample/VOCdevkit/VOC2012/Annotations/{record.image_id}.xml").getroot()
        assert (root.find("filename").text, record.width) == (
            Path(record.file_name).name,
            int(root.find("size")[0].text),
        )
        names = [element.text for element in root.findall("object/name")]
        assert [CLASSES[label] for label in record.labels] == names
        hard = [element.text == "1" for element in root.findall("object/difficult")]
        assert record.difficult.tolist() == hard
        edges = {
            side: [float(box.find(side).text) for box in root.findall("object/bndbox")] for side in ("xmin", "ymax")
        }
        np.testing.assert_allclose(record.boxes[:, 0] + 1, edges["xmin"])
        np.testing.assert_allclose(record.boxes[:, 3], edges["ymax"])
        assert (record.boxes[:, 2:] <= (record.width, record.height)).all()
    assert both[3].image.dtype == np.uint8


def test_a_copy_sent_to_another_process_is_equal(devkit):
    copy = pickle.loads(pickle.dumps(Voc(devkit)))
    np.testing.assert_array_equal(copy[0].annotation.boxes, Voc(devkit)[0].annotation.boxes)


def test_a_folder_that_is_not_voc(tmp_path):
    with pytest.raises(InputError, match="is not VOC: expected Annotations and JPEGImages"):
        Voc(tmp_path)
    with pytest.raises(InputError, match="is not VOC"):
        Voc(tmp_path / "gone")


def test_a_missing_split_names_those_there_are(devkit):
    lists = devkit / "VOC2007" / "ImageSets" / "Main"
    (lists / "train_val.txt").touch()  # the images with and without trains, which is not a split
    with pytest.raises(InputError, match=r"has no split 'trainval'; it has test, train\."):
        Voc(devkit, "trainval")


def test_an_empty_split_is_refused(tmp_path):
    make(tmp_path, {"a": CAT}, {"train": []})
    with pytest.raises(InputError, match="split 'train' .* lists no images"):
        Voc(tmp_path)


BOMB = '<!DOCTYPE annotation [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "a.xml: no element found"),
        ("<annotation><object>", "a.xml: no element found"),
        ("not xml", "a.xml: syntax error"),
        (BOMB, "a.xml: it declares a DOCTYPE"),
        ("<annotation></annotation>", "a.xml has no <size>"),
        (annotation([], size=(10**12, 5)), "a.xml has no <size> with a positive"),
        (annotation([("cat", 1, 1, 1e200, 5, 0)]), "xmax 1e\\+200"),
        (annotation([], size=(0, 5)), "a.xml has no <size> with a positive"),
        ("<annotation><size><width>x</width><height>5</height></size></annotation>", "a.xml has no <size>"),
        (annotation([("cat", 1, 1, "x", 5, 0)]), "a.xml: object 1 lacks"),
        (annotation([("cat", 1, 1, 5, 5, "maybe")]), r"a.xml: object 1 \(cat\) has <difficult> 'maybe', not 0 or 1"),
        (annotation([(" ", 1, 1, 5, 5, 0)]), "a.xml: object 1 lacks a <name>"),
        ('<?xml version="1.0" encoding="klingon"?>' + CAT, "a.xml: unknown encoding: klingon"),
        (annotation([]).replace("</annotation>", "<object/></annotation>"), "a.xml: object 1 lacks"),
        (annotation([("cat", 1, 1, 5, 5, 0), ("dog", 1, "nan", 5, 5, 0)]), r"a.xml: object 2 \(dog\) has .*ymin nan"),
        (annotation([("cat", 1, 1, "inf", 5, 0)]), "xmax inf"),
        (annotation([("cat", 30, 20, 10, 9, 0)]), "object 1 .*xmin 30, .* xmax 10.*add xmin to the width"),
        (annotation([("cat", 30, 20, 25, 9, 0)]), "object 1 .*xmax 25, ymax 9 in an image of 50 x 40.*Correct the box"),
    ],
)
def test_mistakes_are_refused_naming_file_and_object(tmp_path, text, message):
    make(tmp_path, {"a": text})
    with pytest.raises(InputError, match=message):
        Voc(tmp_path)


def test_a_class_outside_the_given_ones_is_refused(tmp_path):
    make(tmp_path, {"a": CAT})
    with pytest.raises(InputError, match=r"a.xml: object 2 \(dog\) is none of cat, cow"):
        Voc(tmp_path, classes=["cat", "cow"])


def test_names_that_lead_nowhere_or_out_of_the_folder_are_refused(tmp_path):
    make(tmp_path, {"a": CAT}, {"train": ["a", "b"], "val": ["../a"]})
    with pytest.raises(InputError, match="there is no .*b.xml"):
        Voc(tmp_path)
    with pytest.raises(InputError, match="val.txt lists '../a'"):
        Voc(tmp_path, "val")
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a")
    with pytest.raises(InputError, match="there is no .*a.jpg"):
        Voc(tmp_path)


def test_boxes_of_no_area_are_left_out_and_counted(tmp_path):
    make(tmp_path, {"a": annotation([("cat", 5, 5, 4, 9, 0), ("cat", 5, 5, 5, 9, 0)])})
    dataset = Voc(tmp_path)
    assert dataset.dropped == 1 and dataset.annotation(0).boxes.tolist() == [[4, 4, 5, 9]]


def test_mistakes_are_collected_when_asked_for(tmp_path):
    bad = annotation([("cat", 1, "x", 5, 5, 0), ("cat", 30, 20, 10, 9, 0), ("cat", 1, 1, 5, 5, 0)])
    make(tmp_path, {"a": "broken", "b": bad}, {"train": ["a", "b", "c", "b"]})
    problems = Problems()
    dataset = Voc(tmp_path, problems=problems)
    assert problems.counts == {
        "image listed twice": 1,
        "unreadable XML": 1,
        "malformed record": 1,
        "missing annotation": 1,
        "probably x y width height": 1,
    }
    assert [dataset.annotation(i).image_id for i in range(len(dataset))] == ["b"]
    assert dataset.box_ids.tolist() == [3]


def test_open_dataset(devkit, tmp_path):
    assert len(open_dataset(devkit)) == 3 and len(open_dataset(devkit, split="test")) == 1
    assert open_dataset(devkit, split="val") is None
    with pytest.raises(InputError, match="no split 'trainval'"):
        open_dataset(devkit, split="trainval")
    with pytest.raises(InputError, match="leave the image folder out"):
        open_dataset(devkit, image_folder=tmp_path)
    alone = make(tmp_path / "own", {"a": CAT})
    assert len(open_dataset(alone)) == 1 and open_dataset(alone, split="val") is None
