import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics.scenes import crowded, found, objects, scenes

from minicenternet.errors import InputError
from minicenternet.metrics import voc_average_precision

A, B, C = (0, 0, 9, 9), (100, 100, 109, 109), (200, 200, 209, 209)


def mean_ap(truth, detections, **options):
    return voc_average_precision(truth, detections, 1, **options)[1]


def loop_voc(truth, detections, label, threshold, points, one):
    """AP of one class, step by step from the protocol's description."""
    ranking = sorted(
        (-float(score), i, n)
        for i, image in enumerate(detections)
        for n, score in enumerate(image.scores)
        if image.labels[n] == label
    )
    ignored, seen, positives = {}, set(), 0
    for i, image in enumerate(truth):
        for g in range(len(image.boxes)):
            if image.labels[g] == label:
                ignored[i, g] = image.difficult[g] or image.crowd[g]
                positives += not ignored[i, g]
    if positives == 0:
        return np.nan
    true = false = 0
    curve = []
    for _, i, n in ranking:
        box = [float(value) for value in detections[i].boxes[n]]
        best, choice = 0, None
        for j, g in ignored:
            if i != j:
                continue
            other = [float(value) for value in truth[i].boxes[g]]
            width = min(box[2], other[2]) - max(box[0], other[0]) + one
            height = min(box[3], other[3]) - max(box[1], other[1]) + one
            if width > 0 and height > 0:
                areas = [(b[2] - b[0] + one) * (b[3] - b[1] + one) for b in (box, other)]
                overlap = width * height / (areas[0] + areas[1] - width * height)
                if overlap > best:
                    best, choice = overlap, (i, g)
        if best > threshold and ignored[choice]:
            continue
        if best > threshold and choice not in seen:
            seen.add(choice)
            true += 1
        else:
            false += 1
        curve.append((true / positives, true / (true + false)))
    if points == "11":
        return np.mean([max([p for r, p in curve if r >= t], default=0) for t in np.arange(0, 1.1, 0.1)])
    area = before = 0
    for k, (recall, _) in enumerate(curve):
        area += (recall - before) * max(p for _, p in curve[k:])
        before = recall
    return area


def test_by_hand():
    # best first: hit, miss, hit; three objects. Precision 1 up to recall 1/3, then 2/3 up to 2/3
    truth = [objects([A, B]), objects([C])]
    detections = [found([A, C], [0.9, 0.8]), found([C], [0.7])]
    assert mean_ap(truth, detections) == pytest.approx((4 * 1 + 3 * 2 / 3) / 11, abs=1e-12)
    assert mean_ap(truth, detections, points="all") == pytest.approx((1 + 2 / 3) / 3, abs=1e-12)


def test_the_best_precision_at_a_recall_or_beyond():
    truth, detections = [objects([A, B])], [found([C, A, B], [0.9, 0.8, 0.7])]  # a miss, then two hits
    assert mean_ap(truth, detections) == pytest.approx(2 / 3, abs=1e-12)
    assert mean_ap(truth, detections, points="all") == pytest.approx(2 / 3, abs=1e-12)


def test_a_duplicate_is_false():
    detections = [found([A, A, B], [0.9, 0.8, 0.7])]
    assert mean_ap([objects([A, B])], detections, points="all") == pytest.approx((1 + 2 / 3) / 2, abs=1e-12)


def test_a_duplicate_does_not_go_on_to_the_next_best_object():
    near = (1, 0, 10, 9)  # overlaps A by 9/11
    detections = [found([A, A], [0.9, 0.8])]
    assert mean_ap([objects([A, near])], detections, points="all") == 0.5


def test_a_difficult_object_is_found_any_number_of_times_without_penalty():
    truth = [objects([A, B], difficult=[False, True])]
    assert mean_ap(truth, [found([B, B, B, A], [0.9, 0.8, 0.7, 0.6])]) == 1
    assert mean_ap(truth, [found([A], [0.6])]) == 1


def test_the_overlap_must_be_greater():
    half = (0, 0, 9, 4)  # 10 by 5 pixels of 10 by 10
    assert mean_ap([objects([A])], [found([half], [0.9])]) == 0
    assert mean_ap([objects([A])], [found([half], [0.9])], iou=0.49) == 1


def test_plus_one_pixel():
    truth, detections = [objects([(0, 0, 3, 3)])], [found([(1, 0, 4, 3)], [0.9])]  # 12/20 in whole pixels, else 6/12
    assert mean_ap(truth, detections) == 1
    assert mean_ap(truth, detections, plus_one=False) == 0


def test_far_edges_without_the_pixel_are_last_pixels_with_it():
    truth, detections = crowded(images=10, per_image=20, seed=0)
    for image in truth + detections:
        image.boxes = image.boxes.round()
    far_edges = voc_average_precision(truth, detections, 3, plus_one=False)
    for image in truth + detections:
        image.boxes = image.boxes - np.float32([0, 0, 1, 1])
    last_pixels = voc_average_precision(truth, detections, 3, plus_one=True)
    np.testing.assert_array_equal(far_edges[0], last_pixels[0])
    assert far_edges[1] == last_pixels[1]


def test_what_cannot_be_measured():
    truth = [objects([A, B], [0, 2], difficult=[False, True])]
    per_class, mean = voc_average_precision(truth, [found([A, B], [0.9, 0.8], [0, 1])], 3)
    np.testing.assert_array_equal(per_class, [1, np.nan, np.nan])
    assert mean == 1
    assert mean_ap([objects()], [found([A], [0.5])]) == -1
    assert mean_ap([], []) == -1
    assert mean_ap([objects([A])], [found()]) == 0


@given(scenes(), st.sampled_from((0.3, 0.5)), st.sampled_from(("11", "all")), st.booleans())
@settings(deadline=None, max_examples=150)
def test_a_loop_says_the_same(scene, iou, points, plus_one):
    per_class, mean = voc_average_precision(*scene, 3, iou=iou, points=points, plus_one=plus_one)
    expected = [loop_voc(*scene, label, iou, points, int(plus_one)) for label in range(3)]
    np.testing.assert_allclose(per_class, expected, rtol=0, atol=1e-12)
    measured = [value for value in expected if not np.isnan(value)]
    assert mean == pytest.approx(np.mean(measured) if measured else -1, abs=1e-12)


def test_bad_input():
    with pytest.raises(InputError, match='points is 11, expected "11"'):
        voc_average_precision([objects()], [found()], 1, points=11)
    with pytest.raises(InputError, match="2 images of ground truth but 1 of detections"):
        voc_average_precision([objects()] * 2, [found()], 1)
