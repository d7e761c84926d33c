"""Transforms: geometry against the released formulas, pixels against a definition, colours step by step."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minicenternet.data.annotation import Annotation, Sample, Unread
from minicenternet.data.transforms import (
    Augmentation,
    apply_to_boxes,
    apply_to_points,
    compose,
    image_for,
    invert,
    jitter_colour,
    keep_resolution,
    letterbox,
    normalise,
    prepare,
    random_colours,
    random_crop,
    random_shift_scale,
    warp,
    warp_reference,
)
from minicenternet.errors import InputError

sides = st.integers(1, 2000)
seeds = st.integers(0, 2**32 - 1)
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}
NEUTRAL = {"brightness": 0, "contrast": 0, "saturation": 0, "lighting": 0}


def sample_of(image, boxes=(), labels=None, crowd=None, difficult=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    annotation = Annotation(
        image_id=1,
        file_name="photo.jpg",
        width=image.shape[1],
        height=image.shape[0],
        boxes=boxes,
        labels=np.arange(count) if labels is None else np.array(labels),
        crowd=np.zeros(count, bool) if crowd is None else np.array(crowd),
        difficult=np.zeros(count, bool) if difficult is None else np.array(difficult),
        area=np.ones(count, np.float32),
    )
    return Sample(image, annotation)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def any_matrix(seed):
    """An enlargement by 0.2 to 4 with a little shear, perhaps mirrored."""
    rng = np.random.default_rng(seed)
    linear = np.diag(rng.uniform(0.2, 4, 2) * rng.choice([-1, 1], 2)) + rng.uniform(-0.1, 0.1, (2, 2))
    return np.column_stack([linear, rng.uniform(-50, 50, 2)])


# ---- matrices


@given(seeds)
@settings(deadline=None, max_examples=50)
def test_the_inverse_undoes_a_matrix(seed):
    matrix = any_matrix(seed)
    points = np.random.default_rng(seed).uniform(-500, 500, (20, 2))
    np.testing.assert_allclose(apply_to_points(invert(matrix), apply_to_points(matrix, points)), points, atol=1e-8)
    np.testing.assert_allclose(compose(invert(matrix), matrix), [[1, 0, 0], [0, 1, 0]], atol=1e-9)


@given(seeds)
@settings(deadline=None, max_examples=50)
def test_compose_applies_the_first_then_the_second(seed):
    first, second = any_matrix(seed), any_matrix(seed + 1)
    points = np.random.default_rng(seed).uniform(-500, 500, (20, 2))
    expected = apply_to_points(second, apply_to_points(first, points))
    np.testing.assert_allclose(apply_to_points(compose(second, first), points), expected, atol=1e-8)


@given(seeds)
@settings(deadline=None, max_examples=50)
def test_a_box_goes_to_the_upright_box_around_its_corners(seed):
    matrix = any_matrix(seed)
    x1, y1, x2, y2 = box = np.sort(np.random.default_rng(seed).uniform(0, 100, (2, 2)), axis=0).ravel()
    corners = [matrix @ (x, y, 1) for x in (x1, x2) for y in (y1, y2)]
    expected = [*np.min(corners, axis=0), *np.max(corners, axis=0)]
    np.testing.assert_allclose(apply_to_boxes(matrix, box[None])[0], expected, rtol=1e-5, atol=1e-4)


def test_no_boxes_stay_no_boxes():
    assert apply_to_boxes(np.eye(2, 3), np.zeros((0, 4), np.float32)).shape == (0, 4)


# ---- views


@given(sides, sides, st.integers(1, 40).map(lambda n: 32 * n))
@settings(deadline=None, max_examples=50)
def test_letterbox_into_a_square_is_the_released_map(width, height, side):
    k = side / max(width, height)
    x, y = apply_to_points(letterbox(width, height, side, side), np.array([3.0, 7.0]))
    assert x == pytest.approx((3 - width / 2) * k + side / 2)
    assert y == pytest.approx((7 - height / 2) * k + side / 2)


@given(sides, sides, sides, sides)
@settings(deadline=None, max_examples=50)
def test_letterbox_shows_the_whole_image_and_fills_one_side(width, height, out_width, out_height):
    whole = apply_to_boxes(letterbox(width, height, out_width, out_height), np.array([[0, 0, width, height]]))[0]
    x1, y1, x2, y2 = whole
    slack = 1e-3 * max(out_width, out_height)
    assert min(x1, y1, out_width - x2, out_height - y2) > -slack
    assert min(x1, y1) == pytest.approx(0, abs=slack)
    assert x1 == pytest.approx(out_width - x2, abs=slack) and y1 == pytest.approx(out_height - y2, abs=slack)


@pytest.mark.parametrize("side, pad, expected", [(512, 31, 544), (511, 31, 512), (1, 31, 32), (500, 127, 512)])
def test_keep_resolution_pads_to_the_next_multiple_above(side, pad, expected):
    matrix, size = keep_resolution(side, 640, pad)
    assert size == ((640 | pad) + 1, expected)
    np.testing.assert_array_equal(matrix[:, :2], np.eye(2))
    np.testing.assert_array_equal(matrix[:, 2], [expected / 2 - side // 2, size[0] / 2 - 320])


@pytest.mark.parametrize("size, border", [(640, 128), (257, 128), (256, 64), (129, 64), (128, 32), (65, 32), (3, 1)])
def test_random_crops_are_drawn_as_released(size, border):
    """Scale: one of eight, equally often. Centre: any whole pixel `border` or more from the edge. Half are mirrored."""
    rng = np.random.default_rng(0)
    matrices = np.array([random_crop(rng, size, size, size, size) for _ in range(4000)])
    scales = 1 / matrices[:, 1, 1]
    values, counts = np.unique(scales.round(6), return_counts=True)
    np.testing.assert_allclose(values, np.arange(6, 14) / 10)
    assert np.all(np.abs(counts - 500) < 5 * np.sqrt(500))

    centres = np.array([apply_to_points(invert(matrix), np.array([size / 2, size / 2])) for matrix in matrices])
    np.testing.assert_allclose(centres, centres.round(), atol=1e-6)
    centres = centres.round().astype(int)
    assert centres.min() >= border and centres.max() < size - border
    count = size - 2 * border
    assert np.all(np.abs(centres.mean(axis=0) - (size - 1) / 2) < 5 * count / np.sqrt(12 * 4000))
    assert np.all(np.abs(centres.std(axis=0) - np.sqrt((count**2 - 1) / 12)) < 0.05 * count)
    assert abs(np.mean(matrices[:, 0, 0] < 0) - 0.5) < 5 * 0.5 / np.sqrt(4000)


def test_random_shift_and_scale_are_drawn_as_released():
    rng = np.random.default_rng(0)
    matrices = np.array([random_shift_scale(rng, 640, 480, 512, 512) for _ in range(4000)])
    scales = 512 / 640 / matrices[:, 1, 1]
    normal = np.random.default_rng(1).normal(size=100_000)
    assert scales.min() == pytest.approx(0.6) and scales.max() == pytest.approx(1.4)
    assert scales.std() == pytest.approx(np.clip(1 + 0.4 * normal, 0.6, 1.4).std(), rel=0.05)
    centres = np.array([apply_to_points(invert(matrix), np.array([256.0, 256.0])) for matrix in matrices])
    shifts = (centres - [320, 240]) / 640
    np.testing.assert_allclose(np.abs(shifts).max(axis=0), 0.2)
    np.testing.assert_allclose(shifts.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(shifts.std(axis=0), np.clip(0.1 * normal, -0.2, 0.2).std(), rtol=0.05)
    assert abs(np.mean(matrices[:, 0, 0] < 0) - 0.5) < 5 * 0.5 / np.sqrt(4000)


@given(seeds, st.integers(2, 700), st.integers(2, 700))
@settings(deadline=None, max_examples=50)
def test_a_mirrored_view_is_the_view_of_the_mirrored_image(seed, width, height):
    """x <- w - 1 - x for pixels and the centre (released code), then the same affine; twice is no mirroring at all."""
    plain = random_crop(np.random.default_rng(seed), width, height, 512, 512, flip=0)
    mirrored = random_crop(np.random.default_rng(seed), width, height, 512, 512, flip=1)
    mirror = np.array([[-1, 0, width - 1], [0, 1, 0]])
    zoom = plain[0, 0]
    centre = apply_to_points(invert(plain), np.array([256.0, 256.0]))
    released = plain.copy()
    released[0, 2] = 256 - zoom * (width - 1 - centre[0])
    np.testing.assert_allclose(mirrored, compose(released, mirror), atol=1e-6)
    np.testing.assert_allclose(compose(compose(released, mirror), mirror), released, atol=1e-6)


# ---- pixels


@given(seeds)
@settings(deadline=None, max_examples=40)
def test_warp_is_its_definition_but_for_the_border(seed):
    matrix, image = any_matrix(seed), noise(23, 31, seed)
    matrix[:, 2] = np.array([20, 15]) - matrix[:, :2] @ [15, 11]  # the image's middle goes to the output's
    size = (30, 40)
    columns, rows = np.meshgrid(np.arange(40), np.arange(30))
    x, y = np.moveaxis(apply_to_points(invert(matrix), np.stack([columns, rows], axis=-1)), -1, 0)
    deep_inside = (x > 0) & (x < 30) & (y > 0) & (y < 22)
    far_outside = (x < -1) | (x > 31) | (y < -1) | (y > 23)
    warped = warp(image, matrix, size)
    assert warped.shape == (30, 40, 3) and warped.dtype == np.uint8
    np.testing.assert_allclose(warped[deep_inside], warp_reference(image, matrix, size)[deep_inside], atol=1)
    assert not warped[far_outside].any()


def test_the_definition_of_warp_by_hand():
    image = np.array([[[10], [20]], [[50], [80]]])
    shifted = np.array([[1, 0, 0.25], [0, 1, 0.5]])
    # A quarter to the right, a half down: outside is 0.
    upper = np.array([0.75 * 10, 0.25 * 10 + 0.75 * 20, 0.25 * 20])
    lower = np.array([0.75 * 50, 0.25 * 50 + 0.75 * 80, 0.25 * 80])
    expected = [upper / 2, (upper + lower) / 2, lower / 2]
    np.testing.assert_allclose(warp_reference(image, shifted, (3, 3))[..., 0], expected)


@pytest.mark.parametrize("seed", range(5))
def test_pixels_of_a_ramp_land_where_points_do(seed):
    """In a picture that shows its own x and y, every output pixel shows the place it came from."""
    rng = np.random.default_rng(seed)
    angle, zoom = rng.uniform(-0.2, 0.2), 60 * rng.uniform(0.8, 1.2)
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.column_stack([linear, [200, 200] - linear @ [3.5, 3.5]])
    columns, rows = np.meshgrid(np.arange(400), np.arange(400))
    place = apply_to_points(invert(matrix), np.stack([columns, rows], axis=-1))
    inside = np.all((place > 0) & (place < 7), axis=-1)
    y, x = np.indices((8, 8))
    image = np.stack([x, y, 0 * x], axis=-1)
    np.testing.assert_allclose(warp_reference(image, matrix, (400, 400))[inside][:, :2], place[inside], atol=1e-9)
    # In 8 bits a level is 1/36 of a pixel and half a one is lost by rounding down; the mean of many pixels tells.
    measured = (warp((36 * image).astype(np.uint8), matrix, (400, 400))[inside][:, :2] + 0.5) / 36
    np.testing.assert_allclose(measured.mean(axis=0), place[inside].mean(axis=0), atol=1e-4)


def test_warp_by_the_unit_matrix_changes_nothing():
    image = noise(17, 13)
    np.testing.assert_array_equal(warp(image, np.eye(2, 3), (17, 13)), image)


@given(seeds, st.booleans())
@settings(deadline=None, max_examples=40)
def test_boxes_follow_painted_pixels(seed, mirrored):
    """A white rectangle over pixel columns x1 to x2 - 1, warped: its half-grey edge against the transformed box."""
    rng = np.random.default_rng(seed)
    x1, y1 = rng.integers(8, 30, 2)
    x2, y2 = (x1, y1) + rng.integers(6, 25, 2)
    image = np.zeros((64, 64, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    matrix = random_crop(rng, 64, 64, 192, 192, flip=float(mirrored))
    zoom = matrix[1, 1]
    matrix[:, 2] += 400 - 96  # nothing is cut off
    white = warp(image, matrix, (800, 800))[..., 0] / 255
    # Along a line through the middle the grey values add up to the width, and their mean place is the middle.
    box = apply_to_boxes(matrix, np.array([[x1, y1, x2, y2]]))[0].astype(float)
    row, column = int(box[1::2].mean()), int(box[::2].mean())
    offset = (zoom - 1) / 2  # of an unmirrored box from its pixels, as the module says
    for line, start, end, expected in [
        (white[row], box[0], box[2], -(zoom + 1) / 2 if mirrored else offset),
        (white[:, column], box[1], box[3], offset),
    ]:
        place = np.arange(800) + 0.5
        assert line.sum() == pytest.approx(end - start, abs=0.2)  # every level is rounded down
        assert (start + end) / 2 - (line * place).sum() / line.sum() == pytest.approx(expected, abs=0.15)


# ---- colour


def jitter_step_by_step(image, rng, strengths, lighting):
    """The released recipe as it is told: one blend after the other, on B, G, R data."""
    bgr = image[..., ::-1].astype(np.float64)
    grey = bgr @ [0.114, 0.587, 0.299]
    mean = grey.mean()
    for step in rng.permutation(["brightness", "contrast", "saturation"]):
        factor = 1 + rng.uniform(-strengths[step], strengths[step])
        other = {"brightness": 0, "contrast": mean, "saturation": grey[..., None]}[step]
        bgr = factor * bgr + (1 - factor) * other
    vectors = [
        (-0.58752847, -0.69563484, 0.41340352),
        (-0.5832747, 0.00994535, -0.81221408),
        (-0.56089297, 0.71832671, 0.41158938),
    ]
    values = (0.2141788, 0.01817699, 0.00341571)
    alpha = rng.normal(size=3) * lighting
    for channel in range(3):
        bgr[..., channel] += sum(vectors[channel][i] * values[i] * alpha[i] for i in range(3))
    return bgr[..., ::-1]


@pytest.mark.parametrize("seed", range(8))
def test_colour_jitter_is_the_released_recipe(seed):
    image = np.random.default_rng(99).random((9, 7, 3), np.float32)
    strengths = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.2}
    expected = jitter_step_by_step(image, np.random.default_rng(seed), strengths, 0.1)
    jittered = jitter_colour(image, random_colours(np.random.default_rng(seed), **strengths, lighting=0.1))
    assert jittered.dtype == np.float32
    np.testing.assert_allclose(jittered, expected, atol=2e-6)


def test_each_colour_strength_acts_alone():
    image = np.random.default_rng(0).random((6, 5, 3), np.float32)
    grey = image @ [0.299, 0.587, 0.114]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        np.testing.assert_array_equal(jitter_colour(image, random_colours(rng, **NEUTRAL)), image)
        brighter = jitter_colour(image, random_colours(rng, **NEUTRAL | {"brightness": 0.4}))
        factor = brighter[0, 0, 0] / image[0, 0, 0]
        assert 0.6 <= factor <= 1.4
        np.testing.assert_allclose(brighter, factor * image, rtol=1e-5)
        contrasted = jitter_colour(image, random_colours(rng, **NEUTRAL | {"contrast": 0.4}))
        np.testing.assert_allclose((contrasted @ [0.299, 0.587, 0.114]).mean(), grey.mean(), rtol=1e-5)
        saturated = jitter_colour(image, random_colours(rng, **NEUTRAL | {"saturation": 0.4}))
        np.testing.assert_allclose(saturated @ [0.299, 0.587, 0.114], grey, rtol=1e-5)


def test_colours_are_not_clipped():
    image = np.ones((2, 2, 3), np.float32)
    assert max(jitter_colour(image, random_colours(np.random.default_rng(seed))).max() for seed in range(5)) > 1


def test_normalise_channel_by_channel():
    image = np.random.default_rng(0).random((4, 5, 3), np.float32)
    expected = (image - np.float32([0.1, 0.2, 0.3])) / np.float32([0.5, 0.25, 0.125])
    np.testing.assert_allclose(normalise(image, (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)), expected, rtol=1e-6)


# ---- prepare


def test_prepare_letterboxes_pixels_and_boxes():
    image = np.full((100, 200, 3), 255, np.uint8)
    prepared = prepare(sample_of(image, [[0, 0, 200, 100], [10, 20, 30, 40]], [4, 7]), size=(64, 64), **PLAIN)
    assert prepared.image.shape == (64, 64, 3) and prepared.image.dtype == np.float32
    np.testing.assert_allclose(prepared.boxes, [[0, 16, 64, 48], [3.2, 22.4, 9.6, 28.8]], atol=1e-5)
    assert prepared.boxes.dtype == np.float32
    np.testing.assert_array_equal(prepared.labels, [4, 7])
    np.testing.assert_array_equal(prepared.matrix, letterbox(200, 100, 64, 64))
    np.testing.assert_allclose(prepared.image[18:46], 1)
    assert not prepared.image[:14].any() and not prepared.image[50:].any()


def test_channel_order_statistics_and_black_padding():
    image = np.zeros((32, 32, 3), np.uint8)
    image[...] = 51, 102, 204
    options = {"size": (32, 64), "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 0.125)}
    rgb = prepare(sample_of(image), **options).image
    bgr = prepare(sample_of(image), **options, channel_order="BGR").image
    np.testing.assert_allclose(rgb[16, 32], [(0.2 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, (0.8 - 0.3) / 0.125], rtol=1e-5)
    np.testing.assert_allclose(bgr[16, 32], [(0.8 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, (0.2 - 0.3) / 0.125], rtol=1e-5)
    np.testing.assert_allclose(rgb[16, 0], [-0.1 / 0.5, -0.2 / 0.25, -0.3 / 0.125], rtol=1e-5)
    assert rgb.flags.c_contiguous and bgr.flags.c_contiguous


def test_objects_cut_off_are_dropped_with_their_labels():
    boxes = [[-50, -50, -1, -1], [-5, 10, 5, 20], [40, 40, 40, 50], [60, 60, 70, 70], [64, 0, 80, 64], [30, 9, 20, 8]]
    prepared = prepare(sample_of(noise(64, 64), boxes, range(6)), size=(64, 64), **PLAIN)
    np.testing.assert_array_equal(prepared.labels, [1, 3, 5])
    np.testing.assert_allclose(prepared.boxes, [[0, 10, 5, 20], [60, 60, 64, 64], [20, 8, 30, 9]])


@given(seeds, st.integers(1, 200), st.integers(1, 200), st.booleans())
@settings(deadline=None, max_examples=30)
def test_random_views_keep_boxes_inside_and_consistent_with_the_matrix(seed, width, height, crop):
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.uniform(0, 1, (10, 2, 2)), axis=1).reshape(10, 4) * [width, height, width, height]
    augmentation = Augmentation(random_crop=crop)
    prepared = prepare(
        sample_of(noise(height, width), boxes), size=(96, 128), **PLAIN, augmentation=augmentation, rng=rng
    )
    assert prepared.boxes.min(initial=0) >= 0
    assert np.all(prepared.boxes <= [128, 96, 128, 96])
    assert len(prepared.boxes) == len(prepared.labels)
    expected = apply_to_boxes(prepared.matrix, boxes[prepared.labels]).clip(0, [128, 96, 128, 96])
    np.testing.assert_allclose(prepared.boxes, expected, atol=1e-3)
    assert np.isfinite(prepared.image).all()


def test_crowd_and_difficult_objects_are_kept_unless_dropped():
    boxes = [[0, 0, 10, 10]] * 4
    sample = sample_of(noise(32, 32), boxes, range(4), [0, 1, 0, 1], [0, 0, 1, 1])
    sample = Sample(
        sample.image, replace(sample.annotation, crowd=np.bool_([0, 1, 0, 1]), difficult=np.bool_([0, 0, 1, 1]))
    )
    for options, expected in [
        ({}, [0, 1, 2, 3]),
        ({"crowd": "drop"}, [0, 2]),
        ({"difficult": "drop"}, [0, 1]),
        ({"crowd": "drop", "difficult": "drop"}, [0]),
    ]:
        np.testing.assert_array_equal(prepare(sample, size=(32, 32), **PLAIN, **options).labels, expected)


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("flip", [0, 1])
def test_the_probability_of_a_mirror_image_can_be_chosen(crop, flip):
    for seed in range(5):
        augmentation, rng = Augmentation(random_crop=crop, flip=flip), np.random.default_rng(seed)
        prepared = prepare(sample_of(noise(9, 9)), size=(9, 9), **PLAIN, augmentation=augmentation, rng=rng)
        assert (prepared.matrix[0, 0] < 0) == bool(flip)


def test_no_augmentation_is_the_letterbox():
    sample = sample_of(noise(50, 70), [[5, 5, 20, 30]])
    plain = prepare(sample, size=(64, 64), **PLAIN)
    none = prepare(sample, size=(64, 64), **PLAIN, augmentation=Augmentation.none(), rng=np.random.default_rng(3))
    np.testing.assert_allclose(none.matrix, plain.matrix)
    np.testing.assert_allclose(none.boxes, plain.boxes)
    np.testing.assert_allclose(none.image, plain.image, atol=1 / 255)


def test_the_same_seed_gives_the_same_input():
    sample = sample_of(noise(50, 70), [[5, 5, 20, 30]])
    first, again, other = (
        prepare(sample, size=(64, 64), **PLAIN, augmentation=Augmentation(), rng=np.random.default_rng(seed))
        for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize(
    "image, options, message",
    [
        (np.zeros((8, 8), np.uint8), {}, r"photo.jpg.*\(H, W, 3\) uint8 RGB, not \(8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), {}, "float32"),
        (np.zeros((8, 8, 3), np.uint8), {"channel_order": "GBR"}, "channel_order is 'GBR'.*'RGB' or 'BGR'"),
        (np.zeros((8, 8, 3), np.uint8), {"crowd": "ignore"}, "crowd is 'ignore'.*'keep' or 'drop'"),
        (np.zeros((8, 8, 3), np.uint8), {"augmentation": Augmentation()}, "augmentation needs rng"),
    ],
)
def test_bad_input_is_refused(image, options, message):
    with pytest.raises(InputError, match=message):
        prepare(sample_of(image), size=(8, 8), **PLAIN, **options)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"shift": -0.1}, "shift is -0.1, expected 0 or more"),
        ({"lighting": float("nan")}, "lighting is nan, expected 0 or more"),
        ({"contrast": float("inf")}, "contrast is inf"),
        ({"scale": 1}, "scale is 1, expected 0 to less than 1"),
        ({"flip": 1.5}, "flip is 1.5, expected a probability"),
    ],
)
def test_changes_out_of_range_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**values)


# ---- images on the disk, decoded no larger than they are seen


WAVE = 96.0  # pixels from crest to crest, of an image 640 x 427


@pytest.fixture
def waves(tmp_path):
    """A function that gives an image with slow waves along x in red and along y in green, on the disk and read."""
    x, y = np.arange(640)[None, :], np.arange(427)[:, None]
    image = np.full((427, 640, 3), 128, np.uint8)
    image[..., 0] = np.round(128 + 100 * np.sin(2 * np.pi * x / WAVE))
    image[..., 1] = np.round(128 + 100 * np.sin(2 * np.pi * y / WAVE))
    Image.fromarray(image).save(tmp_path / "photo.jpg", quality=100, subsampling=0)
    sample = sample_of(image, [[10, 20, 300, 400], [600, 0, 640, 427]])
    return Unread(tmp_path / "photo.jpg", sample.annotation)


def where(values, wavelength):
    """How far along the crests lie, in output pixels: the phase of the wave of this length in the values, (N,)."""
    angle = 2 * np.pi * np.arange(len(values)) / wavelength
    columns = np.stack([np.sin(angle), np.cos(angle), np.ones(len(values))], axis=1)
    sine, cosine, _ = np.linalg.lstsq(columns, values, rcond=None)[0]
    return -np.arctan2(cosine, sine) * wavelength / (2 * np.pi)


@pytest.mark.parametrize("times", [1, 2, 4, 8])
def test_a_reduced_image_is_seen_in_the_same_place(waves, times):
    side = int(640 * 0.9 / times)
    matrix = letterbox(640, 427, side, side)
    image, of_reduced = image_for(waves, matrix)
    assert image.shape == (-(-427 // times), 640 // times, 3)
    points = np.random.default_rng(0).uniform(0, 400, (20, 2))
    reduced = (points - (times - 1) / 2) / times  # the same points, counted in pixels of the reduced image
    np.testing.assert_allclose(apply_to_points(of_reduced, reduced), apply_to_points(matrix, points), atol=1e-9)
    # And so it is in the pixels themselves.
    zoom, middle = matrix[0, 0], side // 2
    seen, expected = warp(image, of_reduced, (side, side)), warp(waves.image, matrix, (side, side))
    inside = slice(int(matrix[1, 2]) + 2, int(matrix[1, 2] + 427 * zoom) - 2)
    for values in (lambda pixels: pixels[middle, 2:-2, 0], lambda pixels: pixels[inside, middle, 1]):
        shift = where(values(seen), zoom * WAVE) - where(values(expected), zoom * WAVE)
        assert abs(shift) < 0.02  # of 0.25 and more with a centre half a pixel off


@pytest.mark.parametrize("seed", range(4))
def test_a_sample_on_the_disk_is_prepared_like_one_in_memory(waves, seed):
    in_memory = Sample(waves.image, waves.annotation)
    options = {"size": (128, 96), **PLAIN, "augmentation": Augmentation()}
    ours, expected = (prepare(s, **options, rng=np.random.default_rng(seed)) for s in (waves, in_memory))
    np.testing.assert_array_equal(ours.matrix, expected.matrix)
    np.testing.assert_array_equal(ours.boxes, expected.boxes)
    np.testing.assert_array_equal(ours.labels, expected.labels)
    # A reduced image may reach a pixel further; waves of 12 pixels of it are a little flatter, as its pixels are means.
    inside = warp(np.full((427, 640, 3), 255, np.uint8), ours.matrix, (128, 96))[..., 0] > 0
    np.testing.assert_allclose(ours.image[inside].mean(axis=0), expected.image[inside].mean(axis=0), rtol=0.01)
    np.testing.assert_allclose(ours.image[inside].std(axis=0), expected.image[inside].std(axis=0), rtol=0.05)
