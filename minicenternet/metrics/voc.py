"""Average precision by the protocol of PASCAL VOC, at one IoU, 0.5.

Each detection, best first, looks at the one object of its class that it overlaps most, whether taken or not: above the
IoU it is a true positive if it is the first there, and a false positive (a duplicate) if not. Difficult objects and
crowd regions are ignored: any number of detections may find one, without gain or penalty.
Source: Everingham et al. 2010, and the development kits of VOC2007 (11 points) and VOC2010 and later (all points).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..errors import InputError
from .average_precision import box_iou, by_image, flatten, interpolate, precision_recall


def voc_average_precision(
    ground_truth: Sequence,
    detections: Sequence,
    num_classes: int,
    *,
    iou: float = 0.5,
    points: Literal["11", "all"] = "11",
    plus_one: bool = True,
) -> tuple[np.ndarray, float]:
    """AP of each class, (num_classes,) float64, nan for a class without objects, and the mean of the others or -1.

    ground_truth, detections: as in average_precision.
    iou: an overlap must be greater than this. points: "11", the mean of the precision at the recalls 0, 0.1, ..., 1
    (VOC2007), or "all", the area under the curve (VOC2010 and later).
    plus_one: take x2 and y2 for the last pixel inside a box, as VOC's files do, so that a width is x2 - x1 + 1. Where
    x2 and y2 are the box's far edges, False measures the same overlap.
    Raises InputError for another value of points, and as average_precision does.
    """
    if points not in ("11", "all"):
        raise InputError(f'points is {points!r}, expected "11" (VOC2007) or "all" (VOC2010 and later).')
    objects, found = flatten(ground_truth, detections, num_classes)
    if plus_one:
        objects["boxes"][:, 2:] += 1
        found["boxes"][:, 2:] += 1
    per_class = np.full(num_classes, np.nan)
    for label in np.unique(objects["labels"][~_ignored(objects)]):
        precision, recall = _curve_of_class(objects[objects["labels"] == label], found[found["labels"] == label], iou)
        if points == "11":
            per_class[label] = interpolate(precision, recall, points=11).mean()
        else:
            per_class[label] = area_under_curve(precision, recall)
    return per_class, -1.0 if np.isnan(per_class).all() else float(np.nanmean(per_class))


def area_under_curve(precision: np.ndarray, recall: np.ndarray) -> float:
    """The area under the curve, (N,) and (N,), each precision being replaced by the best at that recall or beyond."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best * np.diff(recall, prepend=0)).sum())


def _curve_of_class(objects: np.ndarray, found: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall, (D,), of one class; objects and found are its records, as flatten returns them."""
    target = np.full(len(found), -1)  # the object that a detection overlaps most, where it does so enough
    for g, d in by_image(objects, found):
        overlap = box_iou(found["boxes"][d], objects["boxes"][g])  # (D, G)
        target[d] = np.where(overlap.max(axis=1) > iou, g.start + overlap.argmax(axis=1), -1)
    is_match = target >= 0
    is_first = np.zeros(len(found), bool)
    is_first[np.unique(target, return_index=True)[1]] = True  # all that find one object are in one image, best first
    is_ignored = is_match & _ignored(objects)[target]
    return precision_recall(found["scores"], is_match & is_first, is_ignored, np.count_nonzero(~_ignored(objects)))


def _ignored(objects: np.ndarray) -> np.ndarray:
    return objects["crowd"] | objects["difficult"]
