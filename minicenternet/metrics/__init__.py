"""How good are the detections?

    average_precision.py   COCO's AP and AR by hand
    coco.py                the same through pycocotools, and COCO's JSON records
    voc.py                 AP by the protocol of PASCAL VOC, 11 points or all

All take one ground truth (boxes, labels, crowd, difficult, area) and one set of detections (boxes, scores, labels) for
each image, in the same order, and the number of classes.
"""

from .average_precision import Result, average_precision, box_iou, interpolate, match, precision_recall
from .coco import coco_evaluate, to_coco_ground_truth, to_coco_results
from .voc import voc_average_precision

__all__ = [
    "Result",
    "average_precision",
    "box_iou",
    "coco_evaluate",
    "interpolate",
    "match",
    "precision_recall",
    "to_coco_ground_truth",
    "to_coco_results",
    "voc_average_precision",
]
