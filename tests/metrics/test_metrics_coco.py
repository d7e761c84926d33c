import json
import sys

import numpy as np
import pytest
from metrics.scenes import crowded, found, objects

from minicenternet.errors import InputError
from minicenternet.metrics import average_precision, coco_evaluate, to_coco_ground_truth, to_coco_results

TRUTH = [
    objects([(10, 20, 40, 60)], [1]),
    objects(),
    objects([(0, 0, 8, 8), (1, 2, 3, 5)], [0, 1], crowd=[True, False], difficult=[True, True], area=[50, 4.5]),
]
FOUND = [found([(10, 20, 41.234, 60)], [0.98765], [1]), found(), found([(0, 0, 8, 8)], [0.5], [0])]


def test_ground_truth_as_json():
    file = to_coco_ground_truth(TRUTH, [7, 8, 9], [3, 90])
    assert file == json.loads(json.dumps(file))
    assert file["images"] == [{"id": 7}, {"id": 8}, {"id": 9}]
    assert file["categories"] == [{"id": 3}, {"id": 90}]
    fields = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore")
    assert [tuple(annotation[field] for field in fields) for annotation in file["annotations"]] == [
        (1, 7, 90, [10, 20, 30, 40], 1200, 0, 0),
        (2, 9, 3, [0, 0, 8, 8], 50, 1, 0),
        (3, 9, 90, [1, 2, 2, 3], 4.5, 0, 1),
    ]


def test_results_as_json():
    results = to_coco_results(FOUND, np.array([7, 8, 9]), (3, 90))
    assert results == json.loads(json.dumps(results))
    assert [(r["image_id"], r["category_id"]) for r in results] == [(7, 90), (9, 3)]
    np.testing.assert_allclose(results[0]["bbox"], [10, 20, 31.234, 40], rtol=1e-6)
    assert results[0]["score"] == pytest.approx(0.98765, rel=1e-6)


def test_results_rounded_as_the_released_code_does():
    results = to_coco_results(FOUND, ["a", "b", "c"], [3, 90], rounded=True)
    assert results[0] == {"image_id": "a", "category_id": 90, "bbox": [10.0, 20.0, 31.23, 40.0], "score": 0.99}


def test_ids_keep_their_kind():
    ids = [7, "b", np.int64(9)]
    assert [record["image_id"] for record in to_coco_results(FOUND, ids, np.array([3, 90]))] == [7, 9]
    assert [record["id"] for record in to_coco_ground_truth(TRUTH, ids, [3, 90])["images"]] == [7, "b", 9]


def test_an_id_missing():
    with pytest.raises(ValueError, match="zip"):
        to_coco_results(FOUND, [7, 8], [3, 90])


def test_rounded_is_the_ap_of_rounded_detections():
    pytest.importorskip("pycocotools")
    truth, detections = crowded(images=5, per_image=40, seed=1, decimals=6)
    rounded = []
    for image in detections:
        size = (image.boxes[:, 2:].astype(float) - image.boxes[:, :2]).round(2)
        corner = image.boxes[:, :2].astype(float).round(2)
        rounded.append(found(np.concatenate([corner, corner + size], axis=1), image.scores.round(2), image.labels))
    expected = average_precision(truth, rounded, 3).stats()
    np.testing.assert_allclose(coco_evaluate(truth, detections, 3, rounded=True).stats(), expected, atol=1e-6)
    assert not np.allclose(coco_evaluate(truth, detections, 3).stats(), expected, rtol=0, atol=1e-6)


def test_difficult_is_ignored_though_pycocotools_does_not_know_it():
    pytest.importorskip("pycocotools")
    truth = [objects([(0, 0, 40, 40), (100, 100, 140, 140)], difficult=[False, True])]
    assert coco_evaluate(truth, [found([(0, 0, 40, 40)], [0.5])], 1).ap == pytest.approx(1, abs=1e-12)


def test_silence(capsys):
    pytest.importorskip("pycocotools")
    coco_evaluate(TRUTH, FOUND, 2)
    assert capsys.readouterr() == ("", "")


def test_pycocotools_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(InputError, match="python -m pip install 'pycocotools"):
        coco_evaluate(TRUTH, FOUND, 2)


def test_bad_input():
    pytest.importorskip("pycocotools")
    with pytest.raises(InputError, match="1 among the labels is not a class from 0 to 0"):
        coco_evaluate(TRUTH, FOUND, 1)


@pytest.mark.parametrize("seed", range(3))
def test_the_faster_referee_measures_the_same(seed, capsys):
    pytest.importorskip("pycocotools")
    pytest.importorskip("faster_coco_eval")
    truth, detections = crowded(images=8, per_image=120, seed=seed)
    ours, slow = average_precision(truth, detections, 3), coco_evaluate(truth, detections, 3)
    fast = coco_evaluate(truth, detections, 3, referee="faster-coco-eval")
    for other in (ours, slow):
        np.testing.assert_allclose(fast.stats(), other.stats(), rtol=0, atol=1e-6)
        for name in ("per_class", "per_class_ap50", "precision"):
            np.testing.assert_allclose(getattr(fast, name), getattr(other, name), rtol=0, atol=1e-6)
    nothing = coco_evaluate(truth, [found()] * 8, 3, referee="faster-coco-eval")
    np.testing.assert_array_equal(nothing.stats(), coco_evaluate(truth, [found()] * 8, 3).stats())
    assert capsys.readouterr() == ("", "")


def test_the_faster_referee_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(InputError, match="faster-coco-eval is not installed.*pip install 'faster-coco-eval"):
        coco_evaluate(TRUTH, FOUND, 2, referee="faster-coco-eval")
