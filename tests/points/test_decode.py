"""Decoding against loops and full sorts, and back again from encoded boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minicenternet.errors import InputError
from minicenternet.ops import sigmoid
from minicenternet.points import decode as module
from minicenternet.points.decode import best_peaks, decode, nms, peaks, soft_nms, top_k
from minicenternet.points.targets import encode

# Few different values, so that plateaus and ties are the rule.
MAPS = hnp.arrays(
    np.float32, st.tuples(*(st.integers(1, n) for n in (2, 6, 6, 3))), elements=st.sampled_from([0, 0.25, 0.5, 1])
)


def iou(a, b) -> float:
    sides = [max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0) for i in (0, 1)]
    common = float(sides[0] * sides[1])
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common) if common else 0.0


def crowd(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes that overlap a lot, scores of which some are equal, labels."""
    corners = rng.uniform(0, 20, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 15, (count, 2))], axis=1).astype(np.float32)
    return boxes, (rng.integers(1, 20, count) / 20).astype(np.float32), rng.integers(0, 2, count)


# ---- peaks


@given(MAPS)
@settings(deadline=None, max_examples=100)
def test_peaks_equal_loops(heatmap):
    """E8: a cell stays where no neighbour of its class is larger, plateaus whole, borders without neighbours."""
    batch, height, width, classes = heatmap.shape
    expected = np.zeros_like(heatmap)
    for b, y, x, c in np.ndindex(batch, height, width, classes):
        around = heatmap[b, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2, c]
        expected[b, y, x, c] = heatmap[b, y, x, c] if (heatmap[b, y, x, c] >= around).all() else 0
    before = heatmap.copy()
    np.testing.assert_array_equal(peaks(heatmap), expected)
    np.testing.assert_array_equal(heatmap, before)


def test_plateau_stays_whole():
    heatmap = np.zeros((1, 5, 5, 1), np.float32)
    heatmap[0, 2, 1:4] = 0.7
    assert peaks(heatmap)[0, :, :, 0].nonzero()[1].tolist() == [1, 2, 3]


def test_peaks_of_one_image_are_refused():
    with pytest.raises(InputError, match=r"peaks needs a heatmap \(B, H, W, C\), got \(4, 4, 2\)"):
        peaks(np.zeros((4, 4, 2), np.float32))


# ---- the best k


def assert_is_full_sort(heatmap: np.ndarray, k: int) -> None:
    batch, height, width, classes = heatmap.shape
    order = np.argsort(-heatmap.reshape(batch, -1), axis=1, kind="stable")[:, :k]
    y, x, label = np.unravel_index(order, (height, width, classes))
    best = top_k(heatmap, k)
    np.testing.assert_array_equal(best.scores, np.take_along_axis(heatmap.reshape(batch, -1), order, axis=1))
    for found, expected in ((best.labels, label), (best.y, y), (best.x, x)):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.int64


@given(MAPS, st.integers(1, 120))
@settings(deadline=None, max_examples=150)
def test_top_k_is_the_head_of_a_full_sort(heatmap, k):
    """E8: ties in a fixed order, and everything when there are fewer than k."""
    assert_is_full_sort(heatmap, k)


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (1, 16, 24, 20), (1, 12, 9, 1)])
def test_top_k_of_real_heatmaps(shape):
    heatmap = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    assert_is_full_sort(heatmap, 100)
    assert_is_full_sort(peaks(heatmap), 100)
    assert_is_full_sort(np.zeros(shape, np.float32), 100)


def test_top_k_refuses():
    with pytest.raises(InputError, match="k=0"):
        top_k(np.zeros((1, 4, 4, 1), np.float32), 0)
    with pytest.raises(InputError, match=r"\(4, 4, 1\)"):
        top_k(np.zeros((4, 4, 1), np.float32))
    heatmap = np.random.default_rng(0).uniform(size=(1, 20, 20, 4)).astype(np.float32)
    heatmap[0, 3, 3, 2] = math.nan
    with pytest.raises(InputError, match="holds NaN"):
        top_k(peaks(heatmap), 5)


# ---- the best peaks, found above a threshold


def probability(logits: np.ndarray) -> np.ndarray:
    return sigmoid.raw(logits)[0]


def assert_is_the_definition(heatmap: np.ndarray, k: int, **score) -> None:
    expected = top_k(peaks(score.get("score", np.asarray)(heatmap)), k)
    for found, wanted in zip(best_peaks(heatmap, k, **score), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype


@given(MAPS, st.integers(1, 4))
@settings(deadline=None, max_examples=150)
def test_best_peaks_are_the_definition(heatmap, k):
    """Plateaus, ties, borders, fewer peaks than k: small maps with a small k, so that thresholds are tried."""
    assert_is_the_definition(heatmap, k)
    assert_is_the_definition(heatmap - 0.5, k)
    assert_is_the_definition(100 * (heatmap - 0.5), k, score=probability)


SHAPES = [(1, 1, 1, 1), (0, 5, 5, 2), (2, 1, 40, 3), (2, 40, 1, 3), (3, 33, 31, 7), (1, 64, 64, 20)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_best_peaks_of_logits(shape, dtype):
    """Noise, logits so large that float32 knows no probability between them and 1, few levels, and smooth blobs."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(shape).astype(dtype)
    smooth = noise.copy()
    for _ in range(6):
        smooth = (smooth + np.roll(smooth, 1, 1) + np.roll(smooth, 1, 2)) / 3
    for logits in (noise, 4 * noise + 17, 4 * noise - 100, np.round(noise), 10 * smooth):
        for k in (1, 7, 100):
            assert_is_the_definition(logits, k, score=probability)
            assert_is_the_definition(probability(logits), k)


def test_best_peaks_where_rounding_keeps_no_order():
    """A hundred peaks so close to each other that a score's last digits decide which are the best."""
    heatmap = np.zeros((1, 40, 40, 1))
    heatmap[0, ::4, ::4, 0] = 0.5 + 1e-9 * np.random.default_rng(0).permutation(100).reshape(10, 10)
    assert_is_the_definition(heatmap, 5, score=lambda numbers: numbers * (1 + 2e-7 * np.sin(1e9 * numbers)))


def test_best_peaks_on_three_threads(use_threads):
    heatmap = np.random.default_rng(0).uniform(size=(5, 32, 32, 20)).astype(np.float32)
    use_threads(3)
    assert_is_the_definition(heatmap, 20)


def test_best_peaks_at_the_borders():
    """The last cell of a row is followed by the first of the next one, but is no neighbour of it."""
    heatmap = np.random.default_rng(0).uniform(0, 0.01, (1, 64, 64, 20)).astype(np.float32)
    heatmap[0, ::4, 0, ::10], heatmap[0, 3::4, -1, ::10], heatmap[0, 1::4, -1, ::10] = 0.5, 0.6, 0.7
    heatmap[0, 0, 1:-1, 5], heatmap[0, -1, 1:-1, 5] = np.random.default_rng(1).uniform(0.4, 0.8, (2, 62))
    assert_is_the_definition(heatmap, 130)


def test_best_peaks_of_a_view():
    """Every other row and column of a larger map, whose cells do not lie side by side."""
    heatmap = np.random.default_rng(0).uniform(size=(2, 64, 80, 5)).astype(np.float32)[:, ::2, ::2]
    assert_is_the_definition(heatmap, 20)
    maps = np.random.default_rng(1).uniform(size=(2, 32, 80, 2)).astype(np.float32)[:, :, ::2]
    for found, expected in zip(
        decode(heatmap, maps, maps), decode(heatmap.copy(), maps.copy(), maps.copy()), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_a_threshold_is_what_finds_them(monkeypatch):
    """Where peaks abound the definition is not needed; where they do not it is."""

    def not_needed(*_):
        raise AssertionError("the definition was asked")

    noise = np.random.default_rng(0).standard_normal((2, 40, 40, 30)).astype(np.float32)
    blobs = np.random.default_rng(1).uniform(0, 0.01, (1, 64, 64, 20)).astype(np.float32)
    blobs[0, 8:60:4, 8:60:4, ::5] = 0.5
    blobs[0, 9:60:4, 8:60:4, ::5] = 0.3
    monkeypatch.setattr(module, "peaks", not_needed)
    best_peaks(noise, 50, probability)
    best_peaks(blobs, 50)
    with pytest.raises(AssertionError, match="the definition was asked"):
        best_peaks(np.zeros((1, 64, 64, 20), np.float32), 50)


def test_best_peaks_refuse_nan():
    heatmap = np.random.default_rng(0).uniform(size=(2, 20, 20, 30)).astype(np.float32)
    heatmap[1, 3, 3, 2] = math.nan
    with pytest.raises(InputError, match="holds NaN"):
        best_peaks(heatmap, 5)


# ---- boxes


def test_decode_equals_loops():
    """E9: each box from its cell, its offset and its size, for two images and a stride of 3."""
    rng = np.random.default_rng(0)
    heatmap, offset, size = (rng.uniform(size=(2, 8, 9, n)).astype(np.float32) for n in (4, 2, 2))
    decoded = decode(heatmap, offset, 10 * size, k=7, stride=3)
    best = top_k(peaks(heatmap), 7)
    for b in range(2):
        for i, (y, x) in enumerate(zip(best.y[b], best.x[b], strict=True)):
            (dx, dy), (w, h) = offset[b, y, x].astype(float), 10 * size[b, y, x].astype(float)
            box = [x + dx - w / 2, y + dy - h / 2, x + dx + w / 2, y + dy + h / 2]
            np.testing.assert_allclose(decoded.boxes[b, i], 3 * np.array(box), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(decoded.scores, best.scores)
    np.testing.assert_array_equal(decoded.labels, best.labels)
    assert decoded.boxes.dtype == decoded.scores.dtype == np.float32 and decoded.boxes.shape == (2, 7, 4)


def test_best_comes_first():
    heatmap = np.random.default_rng(1).uniform(size=(3, 10, 10, 2)).astype(np.float32)
    maps = np.zeros((3, 10, 10, 2), np.float32)
    assert (np.diff(decode(heatmap, maps, maps, k=30).scores) <= 0).all()


def test_decode_refuses_maps_that_do_not_fit():
    heatmap, maps = np.zeros((1, 4, 4, 3), np.float32), np.zeros((1, 4, 4, 2), np.float32)
    with pytest.raises(InputError, match=r"got \(1, 4, 4, 3\), \(1, 4, 4, 2\) and \(1, 4, 4, 3\)"):
        decode(heatmap, maps, heatmap)
    with pytest.raises(InputError, match=r"got \(1, 4, 4, 3\), \(4, 4, 2\)"):
        decode(heatmap, maps[0], maps)


# ---- there and back


def round_trip(boxes: np.ndarray, labels: np.ndarray, classes: int, height: int, width: int, stride: int = 4):
    """Encode one image, spread offset and size over maps, decode; return what comes back, best first."""
    targets = encode(boxes, labels, classes, height, width, stride, max_objects=max(1, len(boxes)))
    offset, size = np.zeros((2, 1, height * width, 2), np.float32)
    kept = targets.mask == 1
    offset[0, targets.index[kept]], size[0, targets.index[kept]] = targets.offset[kept], targets.size[kept]
    maps = (offset.reshape(1, height, width, 2), size.reshape(1, height, width, 2))
    return decode(targets.heatmap[None], *maps, k=max(1, len(boxes)), stride=stride)


def apart(boxes: np.ndarray, stride: int) -> np.ndarray:
    """The indices of boxes whose centres have a cell to themselves, the first one of each cell."""
    cells = ((boxes[:, :2].astype(float) + boxes[:, 2:]) / 2 // stride).astype(int)
    return np.sort(np.unique(cells, axis=0, return_index=True)[1])


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.sampled_from([2, 4, 8]))
@settings(deadline=None, max_examples=60)
def test_encoded_boxes_come_back(seed, count, stride):
    """E1, E9: exact to 1e-5 pixels, or to the float32 next to it where those lie further apart."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(8, 65, 2)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * (width * stride, height * stride)
    boxes = corners.reshape(count, 4).astype(np.float32)
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    boxes = boxes[apart(boxes, stride)]
    labels = rng.integers(0, 3, len(boxes))
    decoded = round_trip(boxes, labels, 3, height, width, stride)
    found = np.column_stack([decoded.labels[0], decoded.boxes[0]])
    for label, box in zip(labels, boxes, strict=True):
        error = np.abs(found[found[:, 0] == label, 1:] - box.astype(float))
        assert (error <= np.maximum(1e-5, np.spacing(box))).all(axis=1).any()
    assert (decoded.scores[0][: len(boxes)] == 1).all()


def test_slip_box_without_area():
    """E9: y2 is y + dy + h/2; with a minus there, too, the box would have no area and not come back."""
    boxes = np.array([[3.3, 10.1, 30.7, 20.2], [40, 41, 50, 63]], np.float32)
    decoded = round_trip(boxes, np.array([0, 1]), 2, 16, 16)
    assert ((decoded.boxes[0, :, 2:] - decoded.boxes[0, :, :2]) > 9).all()
    np.testing.assert_allclose(decoded.boxes[0][np.argsort(decoded.labels[0])], boxes, atol=1e-5)


# ---- suppression


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_nms_equals_loops(seed, threshold):
    boxes, scores, labels = crowd(np.random.default_rng(seed), 40)
    kept = []
    for i in sorted(range(40), key=lambda i: (-scores[i], i)):
        if all(labels[i] != labels[j] or iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    assert nms(boxes, scores, labels, threshold).tolist() == kept
    assert 0 < len(kept) < 40


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_soft_nms_equals_loops(seed, plus_one):
    boxes, scores, labels = crowd(np.random.default_rng(seed), 30)
    more = np.array([0, 0, plus_one, plus_one])  # a box's last pixel is inside it
    left, kept = {i: float(score) for i, score in enumerate(scores)}, []
    while left:
        best = max(left, key=lambda i: (left[i], -i))
        score = left.pop(best)
        if score < 0.05:
            break
        kept.append((best, score))
        for i in left:
            if labels[i] == labels[best]:
                left[i] *= math.exp(-(iou(boxes[i] + more, boxes[best] + more) ** 2) / 0.3)
    indices, new = soft_nms(boxes, scores, labels, sigma=0.3, floor=0.05, plus_one=plus_one)
    assert indices.tolist() == [i for i, _ in kept] and 0 < len(kept) < 30
    np.testing.assert_allclose(new, [score for _, score in kept], rtol=1e-5)
    assert (np.diff(new) <= 0).all() and new.dtype == np.float32


def test_suppression_of_one_class_and_of_others():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10]], np.float32)
    scores = np.array([0.8, 0.9, 0.1], np.float32)
    assert nms(boxes, scores).tolist() == [1, 2]
    assert nms(boxes, scores, np.array([0, 1, 0])).tolist() == [1, 0, 2]
    assert nms(boxes, scores, iou=0.95).tolist() == [1, 0, 2]
    indices, new = soft_nms(boxes, scores)
    assert indices.tolist() == [1, 0, 2]
    np.testing.assert_allclose(new, [0.9, 0.8 * math.exp(-(0.9**2) / 0.5), 0.1], rtol=1e-6)
    assert soft_nms(boxes, scores, np.array([0, 1, 0]))[1].tolist() == pytest.approx([0.9, 0.8, 0.1])
    _, new = soft_nms(boxes, scores, plus_one=True)  # pixels 0 to 10 and 0 to 9: 11 x 11 and 11 x 10
    np.testing.assert_allclose(new[1], 0.8 * math.exp(-((10 / 11) ** 2) / 0.5), rtol=1e-6)
    assert scores.tolist() == pytest.approx([0.8, 0.9, 0.1])


def test_nms_keeps_an_overlap_of_just_the_threshold():
    boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1]], np.float32)
    assert nms(boxes, np.array([0.9, 0.8], np.float32), iou=0.5).tolist() == [0, 1]


def test_suppression_of_nothing_and_of_boxes_without_area():
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    assert nms(*none).shape == (0,) and nms(*none).dtype == np.int64
    assert [array.shape for array in soft_nms(*none)] == [(0,), (0,)]
    points = np.zeros((2, 4), np.float32)
    assert nms(points, np.array([0.5, 0.6], np.float32)).tolist() == [1, 0]
    assert soft_nms(points, np.array([0.0005, 0.6], np.float32))[0].tolist() == [1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.float64])
def test_suppression_of_boxes_and_scores_of_any_numbers(dtype):
    """Differences would wrap around in unsigned integers, and areas overflow in float16."""
    boxes = np.array([[0, 0, 10, 10], [200, 200, 210, 210], [201, 200, 211, 210]])
    scores = np.array([0, 4, 5])
    kept = nms(boxes.astype(dtype), scores.astype(dtype))
    assert kept.tolist() == nms(boxes.astype(np.float32), scores.astype(np.float32)).tolist() == [2, 0]
    found, expected = (soft_nms(boxes.astype(t), scores.astype(t) + 1) for t in (dtype, np.float32))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    large = np.array([[0, 0, 500, 500], [10, 10, 500, 500]], np.float16)
    assert nms(large, np.array([0.9, 0.8])).tolist() == [0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_a_heatmap_of_integers_is_refused(dtype):
    heatmap = np.zeros((1, 4, 4, 2), dtype)
    for find in (top_k, best_peaks):
        with pytest.raises(InputError, match=f"a heatmap has floating-point numbers, got {np.dtype(dtype)}"):
            find(heatmap, 3)


def test_a_map_without_cells_has_no_objects():
    maps = (np.zeros((2, 0, 4, channels), np.float32) for channels in (3, 2, 2))
    assert [array.shape for array in decode(*maps, k=5)] == [(2, 0, 4), (2, 0), (2, 0)]
