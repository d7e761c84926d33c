import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from minicenternet.data import Coco, Shapes, Voc, open_dataset
from minicenternet.data.annotation import Problems
from minicenternet.data.coco import _parse
from minicenternet.errors import InputError


def content(**changes):
    """A small COCO file: two images, the second without objects; category ids with a gap, in falling order."""
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.jpg", "width": 20, "height": 20},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 20], "area": 150.5, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0.5, 0, 39.5, 30], "iscrowd": 1},
        ],
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    """Writes a COCO file and its images; returns the file's path."""

    def write(text, name="annotations.json", images=("a.jpg", "b.jpg")):
        for image, size in zip(images, ((40, 30), (20, 20)), strict=False):
            Image.new("RGB", size, "red").save(tmp_path / image)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
        return path

    return write


def test_records_become_annotations(write):
    dataset = Coco(write(content()))
    assert dataset.class_names == ("cat", "dog") and dataset.category_ids == (2, 9)
    first, empty = dataset[0], dataset[1]
    annotation = first.annotation
    assert (annotation.image_id, annotation.file_name, annotation.width, annotation.height) == (7, "a.jpg", 40, 30)
    np.testing.assert_array_equal(annotation.boxes, np.float32([[1, 2, 11, 22], [0.5, 0, 40, 30]]))
    assert annotation.labels.tolist() == [1, 0] and annotation.crowd.tolist() == [False, True]
    assert annotation.area.tolist() == [150.5, 39.5 * 30]  # the file's where it has one, else the box's
    assert first.image.shape == (30, 40, 3) and first.image[0, 0, 0] > 200
    assert len(dataset) == 2 and empty.annotation.image_id == 3 and empty.annotation.boxes.shape == (0, 4)


def test_one_image_and_no_objects_at_all(write):
    dataset = Coco(write(content(images=content()["images"][:1], annotations=[])))
    assert len(dataset) == 1 and dataset[0].annotation.labels.shape == (0,)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(1, 3),
            *[st.floats(-50, 1000, width=32)] * 2,
            *[st.floats(0.5, 1000, width=32)] * 2,
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_what_is_written_is_read(objects):
    record = {
        "images": [{"id": f"i{k}", "file_name": f"{k}.png", "width": 5, "height": 5} for k in range(3)],
        "categories": [{"id": k, "name": f"class {k}"} for k in (1, 2, 3)],
        "annotations": [
            {"image_id": f"i{image}", "category_id": category, "bbox": [x, y, w, h], "iscrowd": int(crowd)}
            for image, category, x, y, w, h, crowd in objects
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        for k in range(3):
            (Path(folder) / f"{k}.png").touch()
        (Path(folder) / "a.json").write_text(json.dumps(record))
        dataset = Coco(Path(folder) / "a.json")
    for k in range(3):
        own = [row for row in objects if row[0] == k]
        annotation = dataset.annotation(k)
        assert annotation.image_id == f"i{k}"
        assert annotation.labels.tolist() == [row[1] - 1 for row in own]
        assert annotation.crowd.tolist() == [row[6] for row in own]
        expected = np.array([[x, y, x + w, y + h] for _, _, x, y, w, h, _ in own], np.float32).reshape(-1, 4)
        np.testing.assert_array_equal(annotation.boxes, expected)
        np.testing.assert_allclose(annotation.area, [w * h for *_, w, h, _ in own], rtol=1e-6)


JSON = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text(alphabet='"[]{},:1 segmntaio\\'),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["segmentation", "id", 'a"segmentation', "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@example(value={"segmentation": [[], None]}, indent=None, polygons=[])
@example(value={'a"segmentation': [], "b": 'a "segmentation": [1]'}, indent=None, polygons=[])
@given(
    value=JSON,
    indent=st.sampled_from([None, 1]),
    polygons=st.lists(st.lists(st.floats(-1e30, 1e30), max_size=4), max_size=2),
)
def test_leaving_the_outlines_out_changes_nothing_else(tmp_path_factory, value, indent, polygons):
    def without_outlines(value):
        if isinstance(value, dict):
            return {key: without_outlines(item) for key, item in value.items() if key != "segmentation"}
        return [without_outlines(item) for item in value] if isinstance(value, list) else value

    outlines = [{"segmentation": polygons, "id": 1}, {"id": 2, "segmentation": polygons}]
    path = tmp_path_factory.getbasetemp() / "outlines.json"
    path.write_text(json.dumps([value, *outlines], indent=indent))
    assert without_outlines(_parse(path)) == without_outlines([value, *outlines])
    path.write_text(json.dumps(outlines, indent=indent))
    assert all(record["segmentation"] == 0 for record in _parse(path))


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_photographs_agree_with_pycocotools(shared_data, split, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    path = shared_data / "coco-open" / "annotations" / f"instances_{split}2017.json"
    dataset, reference = Coco(path), coco.COCO(path)
    assert dataset.folder == shared_data / "coco-open" / f"{split}2017"
    assert list(dataset.category_ids) == reference.getCatIds() and len(dataset) == len(reference.imgs)
    for i in range(len(dataset)):
        annotation = dataset.annotation(i)
        records = reference.loadAnns(reference.getAnnIds(imgIds=[annotation.image_id]))
        boxes = np.array([record["bbox"] for record in records]).reshape(-1, 4)
        np.testing.assert_allclose(annotation.boxes[:, :2], boxes[:, :2], rtol=1e-6)
        np.testing.assert_allclose(annotation.boxes[:, 2:] - annotation.boxes[:, :2], boxes[:, 2:], atol=1e-4)
        assert [dataset.category_ids[label] for label in annotation.labels] == [r["category_id"] for r in records]
        assert annotation.crowd.tolist() == [bool(record["iscrowd"]) for record in records]
        np.testing.assert_allclose(annotation.area, [record["area"] for record in records], rtol=1e-6)
    assert dataset[0].image.shape == (dataset.annotation(0).height, dataset.annotation(0).width, 3)


def test_a_copy_sent_to_another_process_is_equal(write):
    dataset = Coco(write(content()))
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy[0].annotation.boxes, dataset[0].annotation.boxes)


def test_an_image_of_another_size_than_annotated_is_refused(write, tmp_path):
    dataset = Coco(write(content()))
    Image.new("RGB", (39, 30)).save(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="39 x 30 pixels, but its annotation says 40 x 30"):
        dataset[0]


def test_boxes_of_no_area_are_left_out_and_counted(write):
    annotations = content()["annotations"]
    annotations += [{"image_id": 7, "category_id": 2, "bbox": box} for box in ([3, 3, 0, 5], [3, 3, 5, 0])]
    dataset = Coco(write(content(annotations=annotations)))
    assert dataset.dropped == 2 and len(dataset.annotation(0).boxes) == 2


def changed(part, **fields):
    """The small COCO file with some fields of its last annotation, image or category changed."""
    record = content()
    record[part][-1].update(fields)
    return record


NAN = float("nan")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "annotations.json is not JSON"),
        ('{"images": [],}', "is not JSON.*line 1"),
        ("[" * 100000, "is not JSON"),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}], "holds a list.*detections"),
        ({"shapes": [], "version": 1}, "no list called images or annotations or categories.*'shapes', 'version'"),
        ({"images": [], "annotations": {}, "categories": []}, "no list called annotations"),
        (content(images=[]), "lists no images"),
        (content(categories=[]), "lists no categories"),
        (changed("annotations", image_id=999), "annotation 2 is of image 999, which is not listed"),
        (changed("annotations", category_id=4), "annotation 2 is of category 4, which is not listed"),
        (changed("annotations", bbox=[1, NAN, 3, 4]), r"annotation 2 has bbox \[1, nan, 3, 4\]"),
        (changed("annotations", bbox=[1, 2, float("inf"), 4]), "annotation 2 has bbox .*inf"),
        (changed("annotations", bbox=[1, 2, -3, 4]), r"annotation 2 has bbox \[1, 2, -3, 4\]"),
        (changed("annotations", bbox=[1, 2, 1e300, 4]), "annotation 2 has bbox .*1e\\+300"),
        (changed("annotations", area=-1), "annotation 2 has bbox .* and area -1"),
        (changed("annotations", area=NAN), "annotation 2 has bbox .* and area nan"),
        (changed("annotations", bbox=[1, 2, 3]), "annotation .*'id': 2.*expected 4, got 3"),
        (changed("annotations", bbox=[1, 2, 3, "x"]), "annotation .*'id': 2.*could not convert"),
        (changed("annotations", bbox=None), "annotation .*'id': 2"),
        (content(annotations=[{"id": 5, "image_id": 7, "category_id": 2}]), "annotation .*has no 'bbox'"),
        (content(annotations=["box"]), "annotation box"),
        (changed("annotations", id=1), "annotation 1 has the id of an earlier annotation"),
        (changed("images", id=7), "two images have id 7, the second is 'b.jpg'"),
        (changed("images", width=0), r"image 3 \(b.jpg\) has size 0 x 20"),
        (changed("images", width=10**12), r"image 3 \(b.jpg\) has size 1000000000000 x 20"),
        (changed("images", width=None), r"image 3 \(b.jpg\) has size None x 20"),
        (content(images=[{"id": 1}]), "image {'id': 1} lacks"),
        (changed("images", file_name="../b.jpg"), "image 3 has file_name '../b.jpg'.*without '..'"),
        (changed("images", file_name="/etc/b.jpg"), "image 3 has file_name '/etc/b.jpg'"),
        (changed("images", file_name=5), "image 3 has file_name 5"),
        (changed("images", file_name="c.jpg"), "there is no .*c.jpg"),
        (changed("images", file_name=f"{300 * 'c'}.jpg"), "there is no .*ccc.jpg"),  # longer than a name may be
        (changed("categories", id=9), "categories 'dog' and 'cat' both have id 9"),
        (changed("categories", name="dog"), "two categories are called 'dog'"),
        (changed("categories", name=" "), "category .*'id': 2.*no name"),
        (changed("annotations", iscrowd="no"), "annotation .*'id': 2.*'no'"),
        (changed("categories", id="2"), "category .*'id': '2'.*no whole-number id"),
    ],
)
def test_mistakes_are_refused_naming_file_and_record(write, text, message):
    path = write(text)
    with pytest.raises(InputError, match=message) as error:
        Coco(path)
    assert "annotations.json" in str(error.value)


def test_mistakes_are_collected_when_asked_for(write):
    record = changed("annotations", bbox=[1, 2, -3, 4])
    record["annotations"].append({"id": 3, "image_id": 8, "category_id": 2, "bbox": [1, 1, 2, 2]})
    record["annotations"].append({"id": 4, "image_id": 3, "category_id": 2, "bbox": [1, 1, 2, 2]})
    record["images"][1]["height"] = -1
    problems = Problems()
    dataset = Coco(write(record), problems=problems)
    assert problems.counts == {"malformed record": 1, "impossible box": 1, "unknown image": 1}
    assert len(dataset) == 1 and len(dataset.annotation(0).boxes) == 1


def test_difficult_objects_are_marked(write):
    record = content()
    record["annotations"][1]["difficult"] = 1
    assert Coco(write(record)).difficult.tolist() == [False, True]


def test_missing_annotation_file(tmp_path):
    with pytest.raises(InputError, match="no annotation file at .*none.json"):
        Coco(tmp_path / "none.json")


def test_utf8_names_and_byte_order_mark(write):
    categories = [{"id": 9, "name": "犬"}, {"id": 2, "name": "été"}]
    dataset = Coco(write("\ufeff" + json.dumps(content(categories=categories), ensure_ascii=False)))
    assert dataset.class_names == ("été", "犬")


def test_image_folder_is_found_as_documented(write, tmp_path):
    path = write(content(), "annotations/instances_train2017.json")
    for folder in (".", "annotations", "annotations/images", "train2017"):  # from the last place looked at to the first
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in ("a.jpg", "b.jpg"):
            Image.new("RGB", (40, 30)).save(tmp_path / folder / name)
        assert Coco(path).folder.resolve() == (tmp_path / folder).resolve()


def test_missing_image_folder_says_where_it_looked(write, tmp_path):
    path = write(content(), "annotations/instances_train2017.json", images=())
    with pytest.raises(
        InputError, match="none of its images, such as a.jpg, is in .*train2017, .*images, .*annotations"
    ):
        Coco(path)
    with pytest.raises(InputError, match="no image folder at .*nowhere"):
        Coco(path, tmp_path / "nowhere")


@pytest.fixture
def layout(tmp_path):
    """COCO's layout with a training and a validation split."""
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / f"{split}2017" / f"{split}.jpg")
        images = [{"id": 7, "file_name": f"{split}.jpg", "width": 40, "height": 30}]
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content(images=images)))
    return tmp_path


def test_open_dataset_finds_the_splits_beside_each_other(layout):
    train = layout / "annotations" / "instances_train2017.json"
    val = layout / "annotations" / "instances_val2017.json"
    for source in (layout, train, str(train)):
        assert open_dataset(source).annotation(0).file_name == "train.jpg"
        assert open_dataset(source, split="val").annotation(0).file_name == "val.jpg"
    assert open_dataset(val, split="val").annotation(0).file_name == "val.jpg"
    assert open_dataset(train, split="val", image_folder=layout / "train2017").folder == layout / "val2017"
    val.unlink()
    assert open_dataset(train, split="val") is None and open_dataset(layout, split="val") is None
    for source in (train, layout):
        with pytest.raises(InputError, match="instances_test"):
            open_dataset(source, split="test")


def test_open_dataset_knows_no_validation_split_beside_a_file_of_another_name(write):
    for name in ("carnival.json", "valves.json"):
        assert open_dataset(write(content(), name), split="val") is None
    for name in ("val.json", "cats_val2017.json", "validation-1.json"):
        assert open_dataset(write(content(), name), split="val") is not None


def test_open_dataset_refuses_what_is_no_data_set(tmp_path, layout):
    (layout / "annotations" / "instances_train2014.json").write_text("{}")
    with pytest.raises(InputError, match="instances_train2014.json, instances_train2017.json: name the file"):
        open_dataset(layout)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "notes.txt").touch()
    for name, found in (("photos", "a folder that holds a.jpg"), ("notes.txt", "a file"), ("shapse", "nothing")):
        with pytest.raises(
            InputError, match=f"no data set at .*{name}: there is {found}. Expected the word shapes, a COCO"
        ):
            open_dataset(tmp_path / name)


def test_every_data_set_has_the_same_members():
    for kind in (Coco, Voc, Shapes):
        assert all(hasattr(kind, member) for member in ("__len__", "__getitem__", "annotation"))


def test_a_list_of_test_images_is_taken_where_it_is_asked_for(write, tmp_path):
    listed = {key: value for key, value in content().items() if key != "annotations"}
    path = write(listed, "annotations/image_info_test-dev2017.json", images=())
    (tmp_path / "test2017").mkdir()
    for name, size in (("a.jpg", (40, 30)), ("b.jpg", (20, 20))):
        Image.new("RGB", size).save(tmp_path / "test2017" / name)
    for dataset in (
        Coco(path, unannotated=True),
        open_dataset(path, unannotated=True),
        open_dataset(tmp_path, split="test-dev", unannotated=True),
    ):
        assert not dataset.annotated and dataset.folder == tmp_path / "test2017" and len(dataset) == 2
        assert dataset[0].image.shape == (30, 40, 3) and len(dataset.annotation(0).boxes) == 0
        assert dataset.class_names == ("cat", "dog")
    for refused in (lambda: Coco(path), lambda: open_dataset(path)):
        with pytest.raises(InputError, match="no list called annotations.*`minicenternet evaluate` can detect on them"):
            refused()
    with pytest.raises(InputError, match=r"holds no instances_test-dev\*.json"):
        open_dataset(tmp_path, split="test-dev")
    with pytest.raises(InputError, match="no list called annotations"):  # there, but of no use: a mistake
        Coco(write({**listed, "annotations": None}), unannotated=True)
    assert Coco(write(content()), unannotated=True).annotated


GOOD = {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2.5, 10, 20], "area": 150.5, "iscrowd": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": [1, 2, 3]},
        {"bbox": None},
        {"bbox": [1, 2, float("nan"), 4]},
        {"bbox": [1, 2, -3, 4]},
        {"bbox": [1e15, 0, 1, 1]},
        {"area": -1},
        {"area": float("inf")},
        {"image_id": 8},
        {"image_id": []},
        {"category_id": 3},
        {"id": 1},
    ],
)
def test_one_bad_annotation_among_good_ones_changes_none_of_these(write, change):
    good = [GOOD | {"id": number, "bbox": [number, 0, 5, 5]} for number in (1, 3)]
    bad = GOOD | {"id": 2} | change
    expected = Coco(write(content(annotations=good)))
    problems = Problems()
    dataset = Coco(write(content(annotations=[good[0], bad, good[1]])), problems=problems)
    assert sum(problems.counts.values()) == 1
    for name in ("boxes", "labels", "crowd", "area", "box_ids", "first_box"):
        ours, theirs = getattr(dataset, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "change",
    [
        {"area": None},
        {"bbox": ["1", "2.5", "10", "20"]},
        {"iscrowd": None},
        {"iscrowd": "0", "difficult": "0"},
        {"iscrowd": "0", "area": None},
    ],
)
def test_annotations_that_are_read_one_by_one_are_read_alike(write, change):
    """With any of these in the file; the record of the other is as written in COCO."""
    several = [GOOD, {**GOOD, "id": 2, "area": 200, "iscrowd": 0}]
    as_usual = Coco(write(content(annotations=several)))
    several[1] = several[1] | change
    dataset = Coco(write(content(annotations=several)))
    for name in ("boxes", "labels", "crowd", "difficult", "area", "box_ids"):
        ours, theirs = getattr(dataset, name), getattr(as_usual, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
