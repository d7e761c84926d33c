import os
import pickle

import numpy as np
import pytest

from minicenternet.data.annotation import ImageFiles, Problems, leaves_folder, missing_files
from minicenternet.errors import InputError


@pytest.fixture
def files(tmp_path):
    """Three images, whose four boxes come in no order; the second image has none."""
    return ImageFiles(
        folder=tmp_path,
        class_names=["cat", "dog"],
        category_ids=[3, 7],
        image_ids=[10, 20, 30],
        file_names=["a.jpg", "b.jpg", "c.jpg"],
        sizes=np.array([[64, 48], [32, 32], [100, 50]]),
        box_image=np.array([2, 0, 2, 0]),
        box_ids=np.array([101, 102, 103, 104]),
        boxes=np.array([[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 9, 9], [2, 2, 4, 4.0]]),
        labels=np.array([1, 0, 0, 1]),
        crowd=np.array([0, 0, 1, 0]),
        difficult=np.array([0, 1, 0, 0]),
        area=np.array([4.0, 3.5, 81, 4]),
        dropped=0,
    )


def test_each_image_gets_its_own_boxes_in_the_order_of_the_file(files):
    first, empty, last = (files.annotation(i) for i in range(3))
    assert (first.image_id, first.file_name, first.width, first.height) == (10, "a.jpg", 64, 48)
    np.testing.assert_array_equal(first.boxes, [[5, 6, 7, 8], [2, 2, 4, 4]])
    np.testing.assert_array_equal(first.labels, [0, 1])
    np.testing.assert_array_equal(first.difficult, [True, False])
    np.testing.assert_array_equal(first.area, [3.5, 4])
    np.testing.assert_array_equal(last.boxes, [[1, 2, 3, 4], [0, 0, 9, 9]])
    np.testing.assert_array_equal(last.crowd, [False, True])
    assert empty.boxes.shape == (0, 4) and empty.labels.shape == (0,)
    assert len(files) == 3 and files.class_names == ("cat", "dog") and files.category_ids == (3, 7)


def test_dtypes_are_those_of_the_table(files):
    annotation = files.annotation(0)
    assert annotation.boxes.dtype == annotation.area.dtype == np.float32
    assert annotation.labels.dtype == np.int64
    assert annotation.crowd.dtype == annotation.difficult.dtype == bool
    assert type(annotation.width) is int


def test_indexing_is_that_of_a_sequence(files):
    np.testing.assert_array_equal(files.annotation(-1).boxes, files.annotation(2).boxes)
    for beyond in (3, -4):
        with pytest.raises(IndexError):
            files.annotation(beyond)


def test_a_copy_sent_to_another_process_is_equal(files):
    copy = pickle.loads(pickle.dumps(files))
    np.testing.assert_array_equal(copy.annotation(2).boxes, files.annotation(2).boxes)
    assert copy.class_names == files.class_names


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/a.jpg", "b/../../a.jpg", "..\\a.jpg", "C:\\a.jpg", "C:a.jpg", "\\a.jpg"]
)
def test_names_that_leave_the_folder(name):
    assert leaves_folder(name)


@pytest.mark.parametrize("name", ["a.jpg", "b/a.jpg", "a..b.jpg", "...jpg", "12:30.jpg"])
def test_names_that_stay_in_the_folder(name):
    assert not leaves_folder(name)


def test_missing_files_names_those_that_are_not_there(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / name).touch()
    names = ["a.jpg", "sub/b.jpg", "b.jpg", "sub/a.jpg", "other/a.jpg"]
    assert missing_files(tmp_path, names) == [name for name in names if not os.path.exists(tmp_path / name)]


def test_problems_counts_all_and_keeps_the_first_examples():
    problems = Problems()
    for k in range(25):
        problems.add("impossible box", f"box {k}")
    assert problems.counts == {"impossible box": 25}
    assert problems.examples["impossible box"] == [f"box {k}" for k in range(Problems.EXAMPLES)]


def test_problems_refuses_what_cannot_be_trained_on_and_says_what_to_do():
    problems = Problems(refuse=True)
    problems.add("box of no area", "annotation 3", tolerated=True)
    with pytest.raises(InputError, match="annotation 4 is odd.*Correct the box.*minicenternet data check"):
        problems.add("impossible box", "annotation 4 is odd")
