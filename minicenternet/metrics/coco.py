"""The referees: the same figures from pycocotools and faster-coco-eval, and the records of COCO's JSON files."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .average_precision import ALL, IOU_50, LARGE, MEDIUM, SMALL, Result, flatten

IGNORED_AREA = 1e11  # square pixels, beyond the largest range


class Referee(NamedTuple):
    """A package that measures as pycocotools does: the modules and the name of its evaluation, what pip calls it."""

    files: str
    evaluation: str
    class_name: str
    requirement: str


REFEREES = {
    "pycocotools": Referee("pycocotools.coco", "pycocotools.cocoeval", "COCOeval", "pycocotools>=2.0.8"),
    "faster-coco-eval": Referee("faster_coco_eval", "faster_coco_eval", "COCOeval_faster", "faster-coco-eval>=1.8"),
}


def installed_referees() -> list[str]:
    """Return those of REFEREES that are installed."""
    packages = {name: referee.files.split(".")[0] for name, referee in REFEREES.items()}
    return [name for name, package in packages.items() if importlib.util.find_spec(package) is not None]


def coco_evaluate(
    ground_truth: Sequence,
    detections: Sequence,
    num_classes: int,
    *,
    rounded: bool = False,
    referee: str = "pycocotools",
) -> Result:
    """AP and AR of a data set as pycocotools computes them, or faster-coco-eval, which does so in C++.

    Arguments, result and errors are those of average_precision.
    rounded: score the detections as to_coco_results(rounded=True) writes them.  referee: one of REFEREES.
    Raises InputError when the referee is not installed.
    """
    package = REFEREES[referee]
    try:
        COCO = importlib.import_module(package.files).COCO
        COCOeval = getattr(importlib.import_module(package.evaluation), package.class_name)
    except ImportError as error:
        raise InputError(
            f"{referee} is not installed, so the referee's AP cannot be had; "
            f"run: python -m pip install '{package.requirement}'"
        ) from error
    flatten(ground_truth, detections, num_classes)  # for its checks
    image_ids, category_ids = range(1, len(ground_truth) + 1), range(1, num_classes + 1)
    annotation_file = to_coco_ground_truth(ground_truth, image_ids, category_ids)
    for annotation in annotation_file["annotations"]:
        if annotation["ignore"]:  # COCOeval reads iscrowd in its place, but ignores what no range of areas holds
            annotation["area"] = IGNORED_AREA
    results = to_coco_results(detections, image_ids, category_ids, rounded=rounded)
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotation_file
        truth.createIndex()
        if results:
            found = truth.loadRes(results)
        else:  # loadRes refuses an empty list
            found = COCO()
            found.dataset = {"annotations": []}
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    curves = evaluation.eval["precision"][..., -1].transpose(2, 3, 0, 1)  # (C, A, T, 101)
    curves = np.where(curves < 0, np.nan, curves)
    return Result(
        *evaluation.stats[:12].tolist(),  # faster-coco-eval adds figures of its own
        per_class=curves[:, ALL].mean(axis=(1, 2)),
        per_class_ap50=curves[:, ALL, IOU_50].mean(axis=1),
        per_class_by_size=curves[:, [SMALL, MEDIUM, LARGE]].mean(axis=(2, 3)),
        precision=curves[:, ALL, IOU_50],
    )


def to_coco_ground_truth(ground_truth: Sequence, image_ids: Sequence, category_ids: Sequence[int]) -> dict:
    """As much of a COCO annotation file as an evaluation reads, in plain Python types, ready for json.dump.

    ground_truth: as in average_precision; image_ids: one for each image; category_ids: one for each label.
    A difficult object that is not a crowd region gets "ignore": 1.
    """
    image_ids, category_ids = _plain(image_ids), _plain(category_ids)
    annotations = [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
            "ignore": int(difficult and not crowd),
        }
        for image_id, image in zip(image_ids, ground_truth, strict=True)
        for box, label, area, crowd, difficult in zip(
            _xywh(image.boxes), image.labels, _floats(image.area), image.crowd, image.difficult, strict=True
        )
    ]
    for i, annotation in enumerate(annotations, start=1):  # from 1: to COCOeval, 0 means unmatched
        annotation["id"] = i
    return {
        "images": [{"id": image_id} for image_id in image_ids],
        "categories": [{"id": category_id} for category_id in category_ids],
        "annotations": annotations,
    }


def to_coco_results(
    detections: Sequence, image_ids: Sequence, category_ids: Sequence[int], *, rounded: bool = False
) -> list[dict]:
    """A COCO results file in plain Python types, ready for json.dump: one record for each detection.

    detections: as in average_precision; image_ids: one for each image; category_ids: one for each label.
    rounded: coordinates and scores to two decimals, as the released code writes them. This ties many scores.
    """
    image_ids, category_ids = _plain(image_ids), _plain(category_ids)
    results = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for image_id, image in zip(image_ids, detections, strict=True)
        for box, label, score in zip(_xywh(image.boxes), image.labels, _floats(image.scores), strict=True)
    ]
    if rounded:
        for result in results:
            result["bbox"] = [round(value, 2) for value in result["bbox"]]
            result["score"] = round(result["score"], 2)
    return results


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    boxes = np.asarray(boxes, float).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def _plain(ids: Sequence) -> list[int | str]:
    """The ids as Python's own numbers and words, each of the kind it was."""
    return [number.item() if isinstance(number, np.generic) else number for number in ids]


def _floats(values: np.ndarray) -> list[float]:
    return np.asarray(values, float).tolist()
