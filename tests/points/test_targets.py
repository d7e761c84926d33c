"""Targets against loops straight from the formulas, and the radius against the overlap of boxes pushed around."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicenternet.errors import InputError
from minicenternet.points.targets import encode, gaussian, gaussian_radius, splat

SIDES = st.floats(0.5, 200)


def iou(a, b) -> float:
    (aw, ah), (bw, bh) = ((x2 - x1, y2 - y1) for x1, y1, x2, y2 in (a, b))
    common_width, common_height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    common = max(common_width, 0) * max(common_height, 0)
    return common / (aw * ah + bw * bh - common)


def worst_iou(height: float, width: float, r: float) -> float:
    """The least overlap of a box with itself when its two corners are off by r along each axis, inwards or outwards."""
    box = (0.0, 0.0, width, height)
    moved = (r, r, width + r, height + r)
    shrunk = (r, r, max(width - r, r), max(height - r, r))
    grown = (-r, -r, width + r, height + r)
    return min(iou(box, other) for other in (moved, shrunk, grown))


def splat_by_loops(heatmap: np.ndarray, x: int, y: int, radius: int) -> None:
    sigma = (2 * radius + 1) / 6
    for row in range(heatmap.shape[0]):
        for column in range(heatmap.shape[1]):
            if abs(row - y) <= radius and abs(column - x) <= radius:
                value = math.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * sigma**2))
                heatmap[row, column] = max(heatmap[row, column], value)


def random_objects(rng: np.random.Generator, count: int, classes: int, height: float, width: float):
    """Boxes that may reach a little beyond an image of height x width pixels, and labels."""
    inside, other = (
        rng.uniform(0, 1, (count, 2)) * (width, height),
        rng.uniform(-0.1, 1.1, (count, 2)) * (width, height),
    )
    boxes = np.concatenate([np.minimum(inside, other), np.maximum(inside, other)], axis=1).astype(np.float32)
    return boxes, rng.integers(0, classes, count)


# ---- the radius


@pytest.mark.parametrize(
    ("height", "width", "released", "corrected", "loose"),
    [
        (10, 10, 2.733, 0.817, 2.26),
        (32, 32, 8.75, 2.61, None),
        (50, 50, 13.67, 4.08, 11.3),
        (100, 100, 27.33, 8.17, 22.6),
        (10, 40, 4.51, 1.26, None),
    ],
)
def test_radius_of_known_boxes(height, width, released, corrected, loose):
    """E3: the figures that circulate for both forms, and for the corrected one at an overlap of 0.3."""
    assert gaussian_radius(height, width) == pytest.approx(released, abs=6e-3)
    assert gaussian_radius(width, height, form="corrected") == pytest.approx(corrected, abs=6e-3)
    if loose is not None:
        assert gaussian_radius(height, width, 0.3, "corrected") == pytest.approx(loose, abs=6e-2)


@given(SIDES, SIDES, st.floats(0.05, 0.98))
@settings(deadline=None, max_examples=100)
def test_corrected_radius_is_the_largest_shift_that_keeps_the_overlap(height, width, min_overlap):
    low, high = 0.0, height + width
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if worst_iou(height, width, middle) >= min_overlap else (low, middle)
    assert gaussian_radius(height, width, min_overlap, form="corrected") == pytest.approx(low, rel=1e-6)


@given(SIDES, SIDES, st.floats(0.05, 0.98))
@settings(deadline=None, max_examples=100)
def test_released_radius_is_the_larger_root_times_a(height, width, min_overlap):
    """(-b + root) / 2 is the larger root, times a; the roots come from numpy."""
    o, around, area = min_overlap, height + width, height * width
    moved = max(np.roots([1, -around, area * (1 - o) / (1 + o)]).real)
    shrunk = 4 * max(np.roots([4, -2 * around, area * (1 - o)]).real)
    grown = 4 * o * max(np.roots([4 * o, 2 * o * around, area * (o - 1)]).real)
    assert gaussian_radius(height, width, o) == pytest.approx(min(moved, shrunk, grown), rel=1e-5)


@pytest.mark.parametrize("arguments", [(0, 5), (5, -1), (math.nan, 5), (5, 5, 0.0), (5, 5, 1.1)])
def test_radius_of_nothing_is_refused(arguments):
    with pytest.raises(InputError, match="expected sizes above 0"):
        gaussian_radius(*arguments)


def test_unknown_form_is_refused():
    with pytest.raises(InputError, match="'fixed'; choose 'released' or 'corrected'"):
        gaussian_radius(5, 5, form="fixed")


# ---- the Gaussian


@pytest.mark.parametrize(("radius", "distance"), [(0, 0), (1, 1), (4, 3), (7, 7)])
def test_slip_denominator_two_sigma(radius, distance):
    """E2: the exponent is -d^2 / (2 sigma^2), not / (2 sigma); they agree only where sigma = 1."""
    sigma = (2 * radius + 1) / 6
    blob = gaussian(radius)
    assert blob[radius, radius + distance] == pytest.approx(math.exp(-(distance**2) / (2 * sigma**2)), rel=1e-6)
    assert blob[radius - distance, radius + distance] == pytest.approx(math.exp(-(distance**2) / sigma**2), rel=1e-6)


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 31])
def test_gaussian_is_one_in_the_middle_only(radius):
    blob = gaussian(radius)
    assert blob.shape == (2 * radius + 1, 2 * radius + 1) and blob.dtype == np.float32
    assert blob[radius, radius] == 1 and (blob == 1).sum() == 1 and blob.min() > 0


def test_gaussian_is_shared_so_it_cannot_be_written_to():
    assert gaussian(3) is gaussian(3)
    with pytest.raises(ValueError, match="read-only"):
        gaussian(3)[0, 0] = 0


@pytest.mark.parametrize("radius", [-1, 2.5])
def test_radius_that_is_no_count_is_refused(radius):
    with pytest.raises(InputError, match="expected an integer, 0 or more"):
        gaussian(radius)


# ---- splat


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(-8, 20), st.integers(-8, 20), st.integers(0, 6)), max_size=6),
)
@settings(deadline=None, max_examples=100)
def test_splat_is_the_maximum_of_all_gaussians(height, width, objects):
    """E2: at borders and beyond them, whatever the order."""
    heatmap, expected = np.zeros((height, width), np.float32), np.zeros((height, width))
    for x, y, radius in objects:
        splat(heatmap, x, y, radius)
        splat_by_loops(expected, x, y, radius)
    np.testing.assert_allclose(heatmap, expected, rtol=1e-6)


def test_splat_writes_to_one_class_of_a_map():
    heatmap = np.zeros((6, 7, 3), np.float32)
    splat(heatmap[:, :, 1], 2, 4, 1)
    assert heatmap[4, 2].tolist() == [0, 1, 0]
    assert not heatmap[:, :, [0, 2]].any()


# ---- encode


@pytest.mark.parametrize("form", ["released", "corrected"])
@pytest.mark.parametrize("stride", [4, 2])
def test_encode_equals_loops(form, stride):
    """E1: every field, for 30 boxes of which some reach beyond the image."""
    rng = np.random.default_rng(0)
    height, width, classes = 17, 23, 3
    boxes, labels = random_objects(rng, 30, classes, height * stride, width * stride)
    targets = encode(boxes, labels, classes, height, width, stride, max_objects=40, min_overlap=0.5, form=form)

    heatmap = np.zeros((height, width, classes))
    for slot, (box, label) in enumerate(zip(boxes.astype(float), labels, strict=True)):
        x1, x2 = (min(max(v / stride, 0), width) for v in box[[0, 2]])
        y1, y2 = (min(max(v / stride, 0), height) for v in box[[1, 3]])
        x, y = math.floor((x1 + x2) / 2), math.floor((y1 + y2) / 2)
        radius = math.floor(gaussian_radius(math.ceil(y2 - y1), math.ceil(x2 - x1), 0.5, form))
        splat_by_loops(heatmap[:, :, label], x, y, radius)
        assert targets.index[slot] == y * width + x
        np.testing.assert_allclose(targets.offset[slot], ((x1 + x2) / 2 - x, (y1 + y2) / 2 - y), atol=1e-6)
        np.testing.assert_allclose(targets.size[slot], (x2 - x1, y2 - y1), rtol=1e-6)
    np.testing.assert_allclose(targets.heatmap, heatmap, rtol=1e-6)
    assert targets.mask.tolist() == [1] * 30 + [0] * 10
    assert not (targets.index[30:].any() or targets.offset[30:].any() or targets.size[30:].any())


def test_shapes_and_dtypes():
    targets = encode(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 5, 8, 9)
    assert {name: (array.shape, array.dtype.name) for name, array in targets._asdict().items()} == {
        "heatmap": ((8, 9, 5), "float32"),
        "index": ((128,), "int64"),
        "offset": ((128, 2), "float32"),
        "size": ((128, 2), "float32"),
        "mask": ((128,), "float32"),
    }
    assert not any(array.any() for array in targets)


def test_no_objects_may_be_an_empty_list():
    assert not encode([], [], 3, 4, 4).mask.any()


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_slip_centre_not_floored(seed):
    """E1: exactly one cell is 1 for each distinct centre of a class; a centre between cells would leave none."""
    rng = np.random.default_rng(seed)
    boxes, labels = random_objects(rng, 8, 2, 64, 64)
    targets = encode(boxes, labels, 2, 16, 16)
    kept = targets.mask == 1
    assert kept.sum() == 8
    ones = {(int(y) * 16 + int(x), int(label)) for y, x, label in zip(*np.nonzero(targets.heatmap == 1), strict=True)}
    assert ones == set(zip(targets.index[kept].tolist(), labels.tolist(), strict=True))
    assert (targets.offset >= 0).all() and (targets.offset <= 1).all()


def test_slip_overlap_by_minimum():
    """E2: two objects of one class whose Gaussians overlap both keep their 1, and no cell gets less than either."""
    boxes = np.array([[8, 8, 40, 40], [16, 8, 48, 40]], np.float32)
    both = encode(boxes, np.array([0, 0]), 1, 16, 16).heatmap[:, :, 0]
    alone = [encode(boxes[i : i + 1], np.array([0]), 1, 16, 16).heatmap[:, :, 0] for i in (0, 1)]
    assert (alone[0] * alone[1]).any()
    assert (both == 1).sum() == 2 and both[6, 6] == both[6, 8] == 1
    np.testing.assert_array_equal(both, np.maximum(*alone))


def test_box_over_the_border_is_clipped_first():
    targets = encode(np.array([[-100, 4, 8, 12]], np.float32), np.array([0]), 1, 8, 8)
    assert targets.size[0].tolist() == [2, 2] and targets.index[0] == 2 * 8 + 1 and targets.offset[0].tolist() == [0, 0]


def test_boxes_without_area_take_no_slot():
    boxes = np.array(
        [[0, 0, 8, 8], [40, 0, 60, 8], [4, 4, 4, 9], [9, 4, 5, 8], [8, 8, 16, 16], [0, 8, 8, 16]], np.float32
    )
    targets = encode(boxes, np.arange(6), 6, 8, 8, max_objects=2)
    assert targets.mask.tolist() == [1, 1]
    assert targets.index.tolist() == [1 * 8 + 1, 3 * 8 + 3]
    assert (targets.heatmap == 1).any(axis=(0, 1)).tolist() == [True, False, False, False, True, False]


def test_sliver_at_the_far_border_stays_in_the_map():
    sliver = np.array([[np.nextafter(32.0, 0), 0, 32, 8]])
    targets = encode(sliver, np.array([0]), 1, 8, 8)
    assert targets.index[0] == 1 * 8 + 7 and targets.heatmap[1, 7, 0] == 1


def test_caller_keeps_its_boxes():
    boxes = np.array([[-5, -5, 99, 99]], np.float32)
    encode(boxes, np.array([0]), 1, 8, 8)
    assert boxes.tolist() == [[-5, -5, 99, 99]]


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([[0, 0, 4, math.nan]], [0], r"box 0 is \[0.0, 0.0, 4.0, nan\]; expected finite numbers"),
        ([[0, 0, 4, 4], [0, 0, math.inf, 4]], [0, 0], "box 1 is"),
        ([[0, 0, 4, 4]], [2], "label 0 is 2; expected 0 to 1"),
        ([[0, 0, 4, 4]], [-1], "label 0 is -1; expected 0 to 1"),
        ([[0, 0, 4, 4]], [0.0], "integer labels, got float64"),
        ([[0, 0, 4]], [0], r"boxes \(N, 4\) and labels \(N,\), got \(1, 3\) and \(1,\)"),
        ([0, 0, 4, 4], [0], r"got \(4,\)"),
        ([[0, 0, 4, 4]], [0, 1], r"got \(1, 4\) and \(2,\)"),
        ([], [1], r"got \(0,\) and \(1,\)"),
    ],
)
def test_bad_objects_are_refused(boxes, labels, message):
    with pytest.raises(InputError, match=message):
        encode(np.array(boxes), np.array(labels), 2, 8, 8)
