import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from metrics.scenes import boxes, crowded, found, objects, scenes, xyxy

from minicenternet.errors import InputError
from minicenternet.metrics import (
    Result,
    average_precision,
    box_iou,
    coco_evaluate,
    interpolate,
    match,
    precision_recall,
)

BOX = (0, 0, 40, 40)
FAR = (200, 200, 240, 240)


def loop_iou(a, b, crowd):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area_a if crowd else area_a + area_b - width * height)


class TestBoxIoU:
    def test_by_hand(self):
        iou = box_iou([(0, 0, 4, 4)], [(0, 0, 4, 4), (2, 0, 6, 4), (0, 0, 2, 2), (5, 5, 9, 9)])
        np.testing.assert_allclose(iou, [[1, 8 / 24, 4 / 16, 0]], rtol=1e-15)

    def test_boxes_that_touch_do_not_overlap(self):
        assert box_iou([(0, 0, 4, 4)], [(4, 0, 8, 4)]) == 0

    def test_boxes_of_no_area_overlap_nothing_not_even_themselves(self):
        assert box_iou([(3, 3, 3, 3)], [(3, 3, 3, 3)]) == 0
        assert box_iou([(3, 3, 3, 3)], [(0, 0, 9, 9)], crowd=np.array([True])) == 0

    def test_a_box_inside_a_crowd_region_overlaps_it_fully(self):
        iou = box_iou([(2, 2, 4, 4), (8, 0, 12, 10)], [(0, 0, 10, 10)], crowd=np.array([True]))
        np.testing.assert_allclose(iou, [[1.0], [0.5]], rtol=1e-15)

    @pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (2, 0)])
    def test_no_boxes(self, n, m):
        assert box_iou(np.zeros((n, 4)), np.zeros((m, 4)), np.zeros(m, bool)).shape == (n, m)

    @given(st.lists(boxes, max_size=4), st.lists(st.tuples(boxes, st.booleans()), max_size=4))
    @settings(deadline=None, max_examples=50)
    def test_a_loop_says_the_same(self, a, pairs):
        b, crowd = [box for box, _ in pairs], [flag for _, flag in pairs]
        expected = [[loop_iou(p, q, flag) for q, flag in pairs] for p in a]
        np.testing.assert_array_equal(box_iou(a, b, np.array(crowd, bool)), np.reshape(expected, (len(a), len(b))))


def loop_match(iou, crowd, ignored, threshold):
    """The protocol told as a story: each detection goes to the counted objects first, then to the ignored ones."""
    free = set(range(len(crowd)))
    taken = []
    for overlaps in iou:
        choice = -1
        for group in (False, True):
            reachable = [g for g in free if ignored[g] == group and overlaps[g] >= threshold]
            if reachable and choice < 0:
                choice = max(reachable, key=lambda g: (overlaps[g], g))
        if choice >= 0 and not crowd[choice]:
            free.remove(choice)
        taken.append(choice)
    return taken


def match_once(iou, crowd=None, ignored=None, threshold=0.5):
    iou = np.array(iou, float)
    crowd = np.zeros(iou.shape[1], bool) if crowd is None else np.array(crowd)
    ignored = crowd if ignored is None else np.array(ignored)
    return match(iou, crowd, ignored, np.array([threshold]))[0].tolist()


class TestMatch:
    def test_each_detection_takes_the_free_object_it_overlaps_most(self):
        assert match_once([[0.6, 0.9], [0.6, 0.8], [0.6, 0.7]]) == [1, 0, -1]

    def test_the_better_score_comes_first_even_with_the_smaller_overlap(self):
        assert match_once([[0.6], [0.9]]) == [0, -1]

    def test_an_overlap_equal_to_the_threshold_is_enough(self):
        assert match_once([[0.5]]) == [0]
        assert match_once([[np.nextafter(0.5, 0)]]) == [-1]

    def test_of_equal_overlaps_the_last_object_wins(self):
        assert match_once([[0.7, 0.7], [0.7, 0.7]]) == [1, 0]

    def test_a_crowd_region_is_taken_by_many(self):
        assert match_once([[0.9], [0.8], [0.7]], crowd=[True]) == [0, 0, 0]

    def test_an_ignored_object_is_taken_once(self):
        assert match_once([[0.9], [0.8]], ignored=[True]) == [0, -1]

    def test_an_ignored_object_comes_last_however_large_the_overlap(self):
        assert match_once([[0.95, 0.6], [0.95, 0.6]], ignored=[True, False]) == [1, 0]

    def test_each_threshold_is_matched_on_its_own(self):
        taken = match(np.array([[0.65], [0.95]]), np.zeros(1, bool), np.zeros(1, bool))
        assert taken.shape == (10, 2)
        assert taken[:, 0].tolist() == [0] * 4 + [-1] * 6
        assert taken[:, 1].tolist() == [-1] * 4 + [0] * 6

    @given(st.data(), st.integers(0, 5), st.integers(1, 4))
    @settings(deadline=None, max_examples=150)
    def test_a_loop_says_the_same(self, data, num_detections, num_objects):
        values = st.sampled_from((0.0, 0.5, 0.6, 0.75, 0.9, 1.0))
        iou = data.draw(arrays(float, (num_detections, num_objects), elements=values))
        crowd = data.draw(arrays(bool, num_objects))
        ignored = crowd | data.draw(arrays(bool, (3, num_objects)))  # three ranges of areas
        thresholds = np.array([0.5, 0.75])
        taken = match(iou, crowd, ignored, thresholds)
        expected = [[loop_match(iou, crowd, row, t) for t in thresholds] for row in ignored]
        np.testing.assert_array_equal(taken, np.reshape(expected, (3, 2, num_detections)))


class TestCurve:
    def test_by_hand(self):
        # in order of score: false, true, ignored, true, false; four objects
        scores = np.array([0.5, 0.9, 0.8, 0.7, 0.6])
        is_match = np.array([False, False, True, True, True])
        is_ignored = np.array([False, False, False, True, False])
        precision, recall = precision_recall(scores, is_match, is_ignored, 4)
        np.testing.assert_allclose(precision, [0, 1 / 2, 1 / 2, 2 / 3, 2 / 4], rtol=1e-15)
        np.testing.assert_allclose(recall, [0, 1 / 4, 1 / 4, 2 / 4, 2 / 4], rtol=1e-15)
        np.testing.assert_allclose(interpolate(precision, recall, 5), [2 / 3, 2 / 3, 2 / 3, 0, 0], rtol=1e-15)

    def test_equal_scores_keep_their_order(self):
        many = 1000  # short arrays are sorted stably by any method
        scores, is_match = np.arange(many) % 2 / 2, np.arange(many) % 3 == 0
        precision, _ = precision_recall(scores, is_match, np.zeros(many, bool), many)
        expected = np.cumsum([*is_match[scores == 0.5], *is_match[scores == 0]]) / np.arange(1, many + 1)
        np.testing.assert_allclose(precision, expected, rtol=1e-15)

    def test_no_detections(self):
        nothing = np.zeros((2, 0), bool)
        precision, recall = precision_recall(np.zeros(0), nothing, nothing, 3)
        assert precision.shape == recall.shape == (2, 0)
        np.testing.assert_array_equal(interpolate(precision, recall, 11), np.zeros((2, 11)))

    @given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12), st.sampled_from((11, 101)))
    @settings(deadline=None, max_examples=50)
    def test_interpolation_is_the_best_precision_from_that_recall_on(self, rows, points):
        is_match, is_ignored = np.array(rows, bool).reshape(-1, 2).T
        positives = max(np.count_nonzero(is_match), 1)
        precision, recall = precision_recall(np.zeros(len(rows)), is_match, is_ignored, positives)
        expected = [max([p for p, r in zip(precision, recall, strict=True) if r >= wanted], default=0)
                    for wanted in np.linspace(0, 1, points)]  # fmt: skip
        np.testing.assert_array_equal(interpolate(precision, recall, points), expected)


class TestAveragePrecision:
    def test_perfect_detections(self):
        truth = [objects([BOX, FAR], [0, 1]), objects([BOX], [1])]
        detections = [found([FAR, BOX], [0.3, 0.6], [1, 0]), found([BOX], [0.1], [1])]
        result = average_precision(truth, detections, 2)
        assert result.stats().tolist() == [1, 1, 1, -1, 1, -1, 1, 1, 1, -1, 1, -1]
        assert result.per_class.tolist() == result.per_class_ap50.tolist() == [1, 1]
        np.testing.assert_array_equal(result.precision, np.ones((2, 101)))

    def test_by_hand(self):
        # best first: a duplicate-free hit of IoU 1, a miss, a hit of IoU 0.8 (40 by 40 against 40 by 50)
        truth = [objects([BOX, FAR])]
        detections = [found([(0, 0, 40, 50), (100, 0, 140, 40), FAR], [0.5, 0.7, 0.9])]
        result = average_precision(truth, detections, 1)
        both, one = (51 * 1 + 50 * 2 / 3) / 101, 51 / 101  # recalls up to 0.5, and beyond
        assert result.ap50 == pytest.approx(both, abs=1e-12)
        assert result.ap75 == pytest.approx(both, abs=1e-12)
        assert result.ap == pytest.approx((7 * both + 3 * one) / 10, abs=1e-12)  # 0.50 to 0.80, then 0.85 to 0.95
        assert result.ar_100 == pytest.approx((7 * 1 + 3 * 0.5) / 10, abs=1e-12)
        assert result.ar_1 == pytest.approx(0.5, abs=1e-12)

    def test_detections_in_images_without_objects_are_false(self):
        truth = [objects([BOX]), objects()]
        empty = average_precision(truth, [found([BOX], [0.5]), found()], 1)
        wrong = average_precision(truth, [found([BOX], [0.5]), found([BOX], [0.9])], 1)
        assert empty.ap == 1
        assert wrong.ap == pytest.approx(0.5, abs=1e-12)

    def test_a_duplicate_is_false(self):
        truth = [objects([BOX, FAR])]
        result = average_precision(truth, [found([BOX, BOX, FAR], [0.9, 0.8, 0.7])], 1)
        assert result.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)

    @pytest.mark.parametrize("kind", ["crowd", "difficult"])
    def test_to_find_or_to_miss_an_ignored_object_costs_nothing(self, kind):
        truth = [objects([BOX, FAR], **{kind: [False, True]})]
        assert average_precision(truth, [found([FAR, BOX], [0.9, 0.5])], 1).ap == 1
        assert average_precision(truth, [found([BOX], [0.5])], 1).ap == 1

    def test_a_crowd_region_excuses_many_detections_and_a_difficult_object_one(self):
        detections = [found([FAR, FAR, BOX], [0.9, 0.8, 0.5])]
        assert average_precision([objects([BOX, FAR], crowd=[False, True])], detections, 1).ap == 1
        assert average_precision([objects([BOX, FAR], difficult=[False, True])], detections, 1).ap == 0.5

    def test_the_range_of_areas_goes_by_the_annotated_area(self):
        result = average_precision([objects([BOX], area=[100])], [found([BOX], [0.5])], 1)
        assert (result.ap_small, result.ap_medium, result.ap_large) == (1, -1, -1)

    def test_areas_on_the_border_of_two_ranges_belong_to_both(self):
        result = average_precision([objects([(0, 0, 32, 32)])], [found([(0, 0, 32, 32)], [0.5])], 1)
        assert (result.ap_small, result.ap_medium, result.ap_large) == (1, 1, -1)

    def test_an_unmatched_detection_outside_the_range_is_ignored(self):
        truth = [objects([(0, 0, 20, 20), (100, 100, 300, 300)])]
        detections = [found([(400, 400, 600, 600), (0, 0, 20, 20)], [0.9, 0.5])]  # a large miss, a small hit
        result = average_precision(truth, detections, 1)
        assert result.ap_small == 1
        assert result.ap_large == 0
        assert result.ap50 == pytest.approx(51 * 0.5 / 101, abs=1e-12)

    def test_no_more_than_the_last_limit_counts(self):
        misses = [xyxy(50 + i, 300, 20, 20) for i in range(100)]
        scores = [*np.linspace(0.9, 0.5, 100), 0.1]
        assert average_precision([objects([BOX])], [found([*misses, BOX], scores)], 1).ap == 0
        looser = average_precision([objects([BOX])], [found([*misses, BOX], scores)], 1, max_detections=(1, 10, 101))
        assert looser.ap == pytest.approx(1 / 101, abs=1e-12)

    def test_the_limit_is_for_each_class_on_its_own(self):
        misses = [xyxy(50 + i, 300, 20, 20) for i in range(100)]
        detections = [found([*misses, BOX], [*np.linspace(0.9, 0.5, 100), 0.1], [0] * 100 + [1])]
        assert average_precision([objects([BOX], [1])], detections, 2).ap == 1

    def test_a_class_without_objects_does_not_count(self):
        truth = [objects([BOX, FAR], [0, 2], crowd=[False, True])]
        result = average_precision(truth, [found([BOX, FAR, FAR], [0.3, 0.9, 0.8], [0, 1, 2])], 3)
        assert result.ap == 1
        np.testing.assert_array_equal(result.per_class, [1, np.nan, np.nan])
        assert np.isnan(result.precision[1:]).all()

    @pytest.mark.parametrize("images", [0, 1, 3])
    def test_nothing_to_find(self, images):
        assert average_precision([objects()] * images, [found([BOX], [0.5])] * images, 2).stats().tolist() == [-1] * 12

    def test_nothing_found(self):
        result = average_precision([objects([BOX])], [found()], 1)
        assert result.stats().tolist() == [0, 0, 0, -1, 0, -1, 0, 0, 0, -1, 0, -1]

    def test_the_order_of_detections_does_not_matter_where_no_scores_tie(self):
        truth, detections = crowded(images=10, per_image=40, seed=3, decimals=6)
        rng = np.random.default_rng(0)
        shuffled = []
        for image in detections:
            order = rng.permutation(len(image.scores))
            shuffled.append(found(image.boxes[order], image.scores[order], image.labels[order]))
        result = average_precision(truth, detections, 3)
        assert 0 < result.ap < 1
        np.testing.assert_array_equal(average_precision(truth, shuffled, 3).stats(), result.stats())


def assert_equal_to_pycocotools(truth, detections, num_classes):
    pytest.importorskip("pycocotools")
    ours = average_precision(truth, detections, num_classes)
    theirs = coco_evaluate(truth, detections, num_classes)
    np.testing.assert_allclose(ours.stats(), theirs.stats(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.per_class, theirs.per_class, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.per_class_ap50, theirs.per_class_ap50, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.per_class_by_size, theirs.per_class_by_size, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.precision, theirs.precision, rtol=0, atol=1e-12)


SMALL, LARGE = (0, 0, 20, 20), (50, 50, 200, 200)
ADVERSARIAL = {
    "all scores tie": ([objects([BOX, FAR]), objects([BOX])],
                       [found([FAR, SMALL, BOX], [0.5] * 3), found([SMALL, BOX, BOX], [0.5] * 3)]),
    "overlaps tie": ([objects([BOX, BOX, BOX], crowd=[0, 0, 1])], [found([BOX, BOX, BOX, BOX], [0.9, 0.8, 0.7, 0.6])]),
    "overlap on the threshold": ([objects([BOX])], [found([(0, 0, 40, 80)], [0.5])]),
    "only crowd regions": ([objects([BOX, FAR], crowd=[1, 1])], [found([BOX, BOX, SMALL], [0.9, 0.8, 0.7])]),
    "crowd over an object": ([objects([BOX, (0, 0, 90, 90)], crowd=[0, 1])],
                             [found([SMALL, BOX, BOX, SMALL], [0.9, 0.8, 0.7, 0.6])]),
    "only difficult": ([objects([BOX, FAR], difficult=[1, 1])], [found([BOX, BOX, SMALL], [0.9, 0.8, 0.7])]),
    "difficult beside an object": ([objects([BOX, (0, 0, 40, 44)], difficult=[1, 0])],
                                   [found([BOX, BOX, BOX], [0.9, 0.8, 0.7])]),
    "nothing found": ([objects([BOX]), objects([FAR])], [found(), found()]),
    "nothing to find": ([objects(), objects()], [found([BOX], [0.5]), found([FAR], [0.6])]),
    "nothing at all": ([objects()], [found()]),
    "no images": ([], []),
    "an image without objects": ([objects([BOX]), objects()], [found([BOX], [0.5]), found([BOX], [0.9])]),
    "no area": ([objects([(5, 5, 5, 5), BOX, (0, 0, 40, 0)])],
                [found([(5, 5, 5, 5), BOX, (0, 0, 40, 0), (3, 3, 3, 90)], [0.9, 0.8, 0.7, 0.6])]),
    "corners exchanged": ([objects([BOX])], [found([(40, 40, 0, 0), (40, 0, 0, 40), BOX], [0.9, 0.8, 0.7])]),
    "duplicates": ([objects([BOX, LARGE])], [found([BOX] * 5 + [LARGE] * 5, [0.9, 0.9, 0.8, 0.8, 0.8] * 2)]),
    "areas beyond the boxes": ([objects([SMALL, LARGE, BOX], area=[9217, 1024, 1e11])],
                               [found([LARGE, SMALL, FAR, BOX], [0.9, 0.8, 0.8, 0.5])]),
    "classes mixed up": ([objects([BOX, FAR], [0, 2])], [found([BOX, FAR, BOX], [0.9, 0.8, 0.7], [2, 0, 0])]),
}  # fmt: skip


class TestAgainstPycocotools:
    @pytest.mark.parametrize("name", ADVERSARIAL)
    def test_adversarial(self, name):
        assert_equal_to_pycocotools(*ADVERSARIAL[name], 3)

    @given(scenes())
    @settings(deadline=None, max_examples=150)
    def test_random_scenes(self, scene):
        assert_equal_to_pycocotools(*scene, 3)

    @pytest.mark.parametrize("decimals", [0, 1, 2, 6])
    def test_more_detections_than_are_counted_and_rounded_scores(self, decimals):
        assert_equal_to_pycocotools(*crowded(images=4, per_image=350, seed=decimals, decimals=decimals), 3)

    def test_one_class(self):
        truth, detections = crowded(images=30, per_image=20, seed=0)
        for image in truth + detections:
            image.labels[:] = 0
        assert_equal_to_pycocotools(truth, detections, 1)


@pytest.fixture(scope="module")
def published(shared_data):
    """COCO's example: ground truth and detections of 100 images in the order of their ids; published figures."""
    folder = shared_data / "coco-eval-fixtures"
    annotations = json.loads((folder / "instances_val2014_100.json").read_text())
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    expected = json.loads((folder / "expected_stats.json").read_text())["bbox"]
    labels = {category: label for label, category in enumerate(sorted(c["id"] for c in annotations["categories"]))}

    def per_image(records, *names):
        for image_id in sorted(image["id"] for image in annotations["images"]):
            rows = [record for record in records if record["image_id"] == image_id]
            boxes = [xyxy(*row["bbox"]) for row in rows]
            yield boxes, [labels[row["category_id"]] for row in rows], *([row[name] for row in rows] for name in names)

    truth = [
        objects(boxes, labels, crowd, area=area)
        for boxes, labels, crowd, area in per_image(annotations["annotations"], "iscrowd", "area")
    ]
    detections = [found(boxes, scores, labels) for boxes, labels, scores in per_image(results, "score")]
    return truth, detections, len(labels), expected


class TestPublishedFigures:
    def test_equal(self, published):
        truth, detections, num_classes, expected = published
        np.testing.assert_allclose(average_precision(truth, detections, num_classes).stats(), expected, atol=1e-6)

    def test_pycocotools_agrees(self, published):
        truth, detections, num_classes, expected = published
        assert_equal_to_pycocotools(truth, detections, num_classes)


RESULT = Result(
    *(i / 100 for i in range(12)),
    per_class=np.array([0.25, np.nan, 0.5]),
    per_class_ap50=np.array([0.5, np.nan, 0.75]),
    per_class_by_size=np.zeros((3, 3)),
    precision=np.zeros((3, 101)),
)


class TestResult:
    def test_stats_are_in_the_order_of_pycocotools(self):
        assert RESULT.stats().tolist() == [i / 100 for i in range(12)]
        assert (RESULT.ap_small, RESULT.ar_1, RESULT.ar_large) == (0.03, 0.06, 0.11)

    def test_table(self):
        assert RESULT.table(["cat", "dog", "tortoise"]).splitlines() == [
            "                AP     AP50     AP75    small   medium    large",
            "precision    0.000    0.010    0.020    0.030    0.040    0.050",
            "              AR 1    AR 10   AR 100    small   medium    large",
            "recall       0.060    0.070    0.080    0.090    0.100    0.110",
            "",
            "class           AP     AP50",
            "tortoise     0.500    0.750",
            "cat          0.250    0.500",
            "dog              -        -",
        ]
        assert str(RESULT) == "\n".join(RESULT.table(["cat", "dog", "tortoise"]).splitlines()[:4])

    def test_the_table_shows_what_could_not_be_measured(self):
        lines = str(average_precision([objects([BOX])], [found([BOX], [0.5])], 1)).splitlines()
        assert lines[1].split() == ["precision", "1.000", "1.000", "1.000", "-", "1.000", "-"]


class TestBadInput:
    def test_images_missing(self):
        with pytest.raises(InputError, match="2 images of ground truth but 1 of detections"):
            average_precision([objects(), objects()], [found()], 1)

    @pytest.mark.parametrize("label", [-1, 2])
    def test_unknown_label(self, label):
        with pytest.raises(InputError, match=f"image 1: {label} among the labels is not a class from 0 to 1"):
            average_precision([objects()] * 2, [found(), found([BOX], [0.5], [label])], 2)
        with pytest.raises(InputError, match=f"image 1: {label} among the labels is not a class from 0 to 1"):
            average_precision([objects(), objects([BOX], [label])], [found()] * 2, 2)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_not_finite(self, bad):
        with pytest.raises(InputError, match=f"image 0: {bad} among the scores is not finite"):
            average_precision([objects([BOX])], [found([BOX], [bad])], 1)
        with pytest.raises(InputError, match="image 0: .* among the boxes is not finite"):
            average_precision([objects([BOX])], [found([(0, 0, bad, 1)], [0.5])], 1)
        with pytest.raises(InputError, match="image 0: .* among the area is not finite"):
            average_precision([objects([BOX], area=[bad])], [found()], 1)

    def test_lengths_differ(self):
        with pytest.raises(InputError, match=r"image 0: scores have the shape \(1,\), expected \(2,\)"):
            average_precision([objects([BOX])], [found([BOX, BOX], [0.5])], 1)
        with pytest.raises(InputError, match=r"image 0: boxes have the shape \(1, 3\), expected \(1, 4\)"):
            truth = objects([BOX])
            truth.boxes = truth.boxes[:, :3]
            average_precision([truth], [found()], 1)
