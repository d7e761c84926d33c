"""Average precision by hand, figure for figure that of pycocotools.

Sort the detections by score. Going down the list, each takes the object that it overlaps best, if one is left for it: a
true positive; else it is a false positive. After each detection,

    precision = true positives / detections so far        recall = true positives / objects

AP is the mean of the precision at the recalls 0, 0.01, ..., 1 (the best precision at that recall or a higher one), over
the IoUs 0.50, 0.55, ..., 0.95 and the classes. AR is the recall at the end of the list, averaged in the same way.

    box_iou              how well two boxes overlap
    match                who takes whom, in one image and one class
    precision_recall     the curve
    interpolate          the curve at evenly spaced recalls
    average_precision    all of it for a data set, as a Result

An object is *ignored* when it is a crowd region, difficult, or outside the range of areas in question: to find it earns
nothing, to miss it costs nothing. So is a detection that takes an ignored object, or that takes none and is itself
outside the range.

Shapes: D detections, G objects, A ranges of areas, T IoU thresholds, M limits on detections, N points of a curve,
C classes. Boxes are x1 y1 x2 y2 in pixels. All arithmetic is float64.
Source: the COCO detection challenge (Lin et al. 2014, cocodataset.org/#detection-eval).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from ..errors import InputError

IOU_THRESHOLDS = np.linspace(0.50, 0.95, 10)
IOU_50, IOU_75 = 0, 5  # where 0.50 and 0.75 are among them
AREA_RANGES = np.array([(0, 1e5**2), (0, 32**2), (32**2, 96**2), (96**2, 1e5**2)])  # square pixels, ends included
ALL, SMALL, MEDIUM, LARGE = range(4)

# one record for each object or detection: the number of its image, then what the image holds of it, under the same name
OBJECT = np.dtype(
    [("image", int), ("boxes", float, 4), ("labels", int), ("crowd", bool), ("difficult", bool), ("area", float)]
)
DETECTION = np.dtype([("image", int), ("boxes", float, 4), ("scores", float), ("labels", int)])


def box_iou(a: np.ndarray, b: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of every box of a with every box of b; boxes that only touch have 0.

    a: (N, 4), b: (M, 4), x1 y1 x2 y2. Returns (N, M) float64.
    crowd: (M,) bool; where it is set, the intersection is divided by the area of a's box alone, so that a box anywhere
    inside a crowd region overlaps it fully.
    """
    a = np.asarray(a, float).reshape(-1, 1, 4)
    b = np.asarray(b, float).reshape(1, -1, 4)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])  # (N, M, 2)
    intersection = np.where((sides > 0).all(axis=-1), sides.prod(axis=-1), 0.0)
    area_a, area_b = (a[..., 2:] - a[..., :2]).prod(axis=-1), (b[..., 2:] - b[..., :2]).prod(axis=-1)
    union = area_a + area_b - intersection
    if crowd is not None:
        union = np.where(crowd, area_a, union)
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


def match(
    iou: np.ndarray, crowd: np.ndarray, ignored: np.ndarray, thresholds: np.ndarray = IOU_THRESHOLDS
) -> np.ndarray:
    """Greedy matching in one image and one class: each detection, best first, takes the free object it overlaps most.

    iou: (D, G), detections in order of falling score. crowd: (G,) bool. thresholds: (T,).
    ignored: (..., G) bool; leading axes, for example one row for each range of areas, are matched independently.
    Returns (..., T, D) int64: the index of the object taken at each threshold, -1 where there is none.

    An object is taken once, a crowd region by any number. Ignored objects come last: one is taken only where no other
    reaches the threshold. Of equal overlaps the last object wins, as in pycocotools.
    """
    num_detections, num_objects = iou.shape
    shape = (*ignored.shape[:-1], len(thresholds))
    counted = np.broadcast_to(~ignored[..., None, :], (*shape, num_objects))
    free = np.ones((*shape, num_objects), bool)
    taken = np.full((*shape, num_detections), -1)
    near = iou[:, None, :] >= thresholds[:, None]  # (D, T, G)
    for d in np.flatnonzero(near.any(axis=(1, 2))):
        choice = free & near[d]  # (..., T, G)
        if not choice.any():
            continue
        preferred = choice & counted
        choice = np.where(preferred.any(axis=-1, keepdims=True), preferred, choice)
        overlap = np.where(choice, iou[d], -1)
        best = num_objects - 1 - overlap[..., ::-1].argmax(axis=-1)  # (..., T), the last of the largest
        taken[..., d] = np.where(choice.any(axis=-1), best, -1)
        free &= crowd | (taken[..., d, None] != np.arange(num_objects))
    return taken


def precision_recall(
    scores: np.ndarray, is_match: np.ndarray, is_ignored: np.ndarray, positives: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall after each detection, in order of falling score; equal scores keep their order.

    scores: (N,). is_match, is_ignored: (..., N) bool. positives: the number of objects to find, at least 1.
    Returns two (..., N) float64. An ignored detection repeats the values before it, 0 at the start.
    """
    order = np.argsort(-scores, kind="stable")
    is_match, is_ignored = is_match[..., order], is_ignored[..., order]
    true = np.cumsum(is_match & ~is_ignored, axis=-1, dtype=float)
    false = np.cumsum(~is_match & ~is_ignored, axis=-1, dtype=float)
    return true / np.maximum(true + false, 1), true / positives


def interpolate(precision: np.ndarray, recall: np.ndarray, points: int = 101) -> np.ndarray:
    """The best precision at each of evenly spaced recalls 0 to 1, or at any recall beyond; 0 where it is never reached.

    precision, recall: (..., N) as precision_recall returns them. Returns (..., points) float64.
    """
    best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]  # at this recall or a higher one
    best = np.concatenate([best, np.zeros((*best.shape[:-1], 1))], axis=-1)
    wanted = np.linspace(0, 1, points)
    curve = np.empty((*recall.shape[:-1], points))
    for row in np.ndindex(recall.shape[:-1]):
        curve[row] = best[row][np.searchsorted(recall[row], wanted)]
    return curve


@dataclass(frozen=True, eq=False)
class Result:
    """What COCO reports, each between 0 and 1, or -1 where there is nothing to measure.

    ap is the mean over the IoUs 0.50 to 0.95, ap50 and ap75 are at one IoU; small objects have up to 32² square pixels,
    medium ones up to 96², large ones more. ar_1, ar_10, ar_100 are recalls with at most so many detections per image
    and class (by default: they follow max_detections); all others use the last of these limits.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    per_class: np.ndarray = field(repr=False)  # (C,) AP; nan for a class without objects
    per_class_ap50: np.ndarray = field(repr=False)  # (C,) AP50; nan for a class without objects
    per_class_by_size: np.ndarray = field(repr=False)  # (C, 3) AP of small, medium, large objects; nan where none are
    precision: np.ndarray = field(repr=False)  # (C, 101) at IoU 0.50, at the recalls 0, 0.01, ..., 1; nan as above

    def stats(self) -> np.ndarray:
        """The twelve figures, (12,) float64, in the order of pycocotools' COCOeval.stats."""
        return np.array([getattr(self, figure.name) for figure in fields(self)[:12]])

    def table(self, class_names: Sequence[str] = ()) -> str:
        """The twelve figures as aligned text and, when class names are given, a line for each class, best AP first."""
        figures = ["-" if value == -1 else f"{value:.3f}" for value in self.stats()]
        rows = [
            ("", "AP", "AP50", "AP75", "small", "medium", "large"),
            ("precision", *figures[:6]),
            ("", "AR 1", "AR 10", "AR 100", "small", "medium", "large"),
            ("recall", *figures[6:]),
        ]
        if class_names:
            rows += [("",), ("class", "AP", "AP50")]
            for c in np.argsort(-self.per_class, kind="stable"):  # nan comes last
                values = self.per_class[c], self.per_class_ap50[c]
                rows.append((class_names[c], *("-" if np.isnan(value) else f"{value:.3f}" for value in values)))
        width = max(len(row[0]) for row in rows)
        lines = (f"{row[0]:<{width}}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    __str__ = table


def average_precision(
    ground_truth: Sequence,
    detections: Sequence,
    num_classes: int,
    *,
    max_detections: tuple[int, int, int] = (1, 10, 100),
) -> Result:
    """AP and AR of a data set by COCO's protocol, equal to pycocotools.

    ground_truth: for each image boxes (G, 4), labels (G,), crowd (G,), difficult (G,), area (G,), as in an Annotation.
    detections: for each image, in the same order, boxes (D, 4), scores (D,) and labels (D,), in any order.
    Images without objects count: what is detected there is false.
    max_detections: the limits on detections per image and class, rising.
    Equal scores in different images rank in the order of the images (pycocotools sorts these by id).
    Raises InputError when the two differ in length or arrays in shape, for a label outside 0 to num_classes - 1, and
    for a number that is not finite.
    """
    objects, found = flatten(ground_truth, detections, num_classes)
    curves = np.full((num_classes, len(AREA_RANGES), len(IOU_THRESHOLDS), 101), np.nan)  # (C, A, T, 101)
    recalls = np.full((num_classes, len(AREA_RANGES), len(IOU_THRESHOLDS), len(max_detections)), np.nan)  # (C, A, T, M)
    for label in np.unique(objects["labels"]):
        curves[label], recalls[label] = _evaluate_class(
            objects[objects["labels"] == label], found[found["labels"] == label], max_detections
        )
    return Result(
        ap=_mean(curves[:, ALL]),
        ap50=_mean(curves[:, ALL, IOU_50]),
        ap75=_mean(curves[:, ALL, IOU_75]),
        ap_small=_mean(curves[:, SMALL]),
        ap_medium=_mean(curves[:, MEDIUM]),
        ap_large=_mean(curves[:, LARGE]),
        ar_1=_mean(recalls[:, ALL, :, 0]),
        ar_10=_mean(recalls[:, ALL, :, 1]),
        ar_100=_mean(recalls[:, ALL, :, 2]),
        ar_small=_mean(recalls[:, SMALL, :, 2]),
        ar_medium=_mean(recalls[:, MEDIUM, :, 2]),
        ar_large=_mean(recalls[:, LARGE, :, 2]),
        per_class=curves[:, ALL].mean(axis=(1, 2)),
        per_class_ap50=curves[:, ALL, IOU_50].mean(axis=1),
        per_class_by_size=curves[:, [SMALL, MEDIUM, LARGE]].mean(axis=(2, 3)),
        precision=curves[:, ALL, IOU_50],
    )


def flatten(ground_truth: Sequence, detections: Sequence, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The objects and the detections of all images as two record arrays of OBJECT and DETECTION.

    Both go image by image, the detections of an image in order of falling score. Arguments and errors are those of
    average_precision.
    """
    if len(ground_truth) != len(detections):
        raise InputError(
            f"{len(ground_truth)} images of ground truth but {len(detections)} of detections; "
            "give one entry for each image, in the same order (an empty one where nothing was detected)."
        )
    objects, found = _records(ground_truth, OBJECT), _records(detections, DETECTION)
    for rows, number in ((objects, "area"), (found, "scores")):
        for name in ("boxes", number):
            _check(rows, name, np.isfinite(rows[name]), "finite; look for a diverged network or a damaged file")
        good = (rows["labels"] >= 0) & (rows["labels"] < num_classes)
        _check(rows, "labels", good, f"a class from 0 to {num_classes - 1}; do data and network have the same classes?")
    return objects, found[np.lexsort((-found["scores"], found["image"]))]


def _records(images: Sequence, dtype: np.dtype) -> np.ndarray:
    counts = [len(image.boxes) for image in images]
    ends = np.cumsum(counts)
    rows = np.empty(sum(counts), dtype)
    rows["image"] = np.repeat(np.arange(len(images)), counts)
    for name in dtype.names[1:]:
        for i, image in enumerate(images):
            values = np.asarray(getattr(image, name))
            shape = (counts[i], *dtype[name].shape)
            if values.shape != shape and (counts[i] or values.size):
                raise InputError(f"image {i}: {name} have the shape {values.shape}, expected {shape}.")
            rows[name][ends[i] - counts[i] : ends[i]] = values.reshape(shape)
    return rows


def _check(rows: np.ndarray, name: str, good: np.ndarray, expected: str) -> None:
    """Raise InputError that shows the first value for which good, (N,) or (N, 4), does not hold."""
    bad = np.argwhere(~good)
    if len(bad):
        row = rows[bad[0, 0]]
        raise InputError(f"image {row['image']}: {row[name]} among the {name} is not {expected}")


def by_image(objects: np.ndarray, found: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Where the objects and the detections of each image lie that has both; records as flatten returns them."""
    for image in np.intersect1d(objects["image"], found["image"]):
        yield tuple(slice(*np.searchsorted(rows["image"], (image, image + 1))) for rows in (objects, found))


def _evaluate_class(
    objects: np.ndarray, found: np.ndarray, max_detections: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (A, T, 101) and final recall (A, T, M) of one class; nan for a range of areas without objects.

    objects, found: the records of the class, as flatten returns them.
    """
    rank = np.arange(len(found)) - np.searchsorted(found["image"], found["image"])  # within the image
    found, rank = found[rank < max_detections[-1]], rank[rank < max_detections[-1]]
    width, height = (found["boxes"][:, 2:] - found["boxes"][:, :2]).T
    ignored = objects["crowd"] | objects["difficult"] | _outside_ranges(objects["area"])  # (A, G)
    is_match = np.zeros((len(AREA_RANGES), len(IOU_THRESHOLDS), len(found)), bool)  # (A, T, D)
    is_ignored = np.empty_like(is_match)
    is_ignored[:] = _outside_ranges(width * height)[:, None]
    for g, d in by_image(objects, found):
        crowd = objects["crowd"][g]
        taken = match(box_iou(found["boxes"][d], objects["boxes"][g], crowd), crowd, ignored[:, g])
        is_match[..., d] = taken >= 0
        took_ignored = np.take_along_axis(ignored[:, None, g], taken, axis=-1)  # without meaning where taken is -1
        is_ignored[..., d] = np.where(taken >= 0, took_ignored, is_ignored[..., d])

    curves = np.full((len(AREA_RANGES), len(IOU_THRESHOLDS), 101), np.nan)
    recalls = np.full((len(AREA_RANGES), len(IOU_THRESHOLDS), len(max_detections)), np.nan)
    for a, positives in enumerate(np.count_nonzero(~ignored, axis=1)):
        if positives > 0:
            curves[a] = interpolate(*precision_recall(found["scores"], is_match[a], is_ignored[a], positives))
            hits = is_match[a] & ~is_ignored[a]
            for m, limit in enumerate(max_detections):
                recalls[a, :, m] = np.count_nonzero(hits[:, rank < limit], axis=1) / positives
    return curves, recalls


def _outside_ranges(area: np.ndarray) -> np.ndarray:
    """Which areas, (N,), lie outside each range, (A, N)."""
    return (area < AREA_RANGES[:, :1]) | (area > AREA_RANGES[:, 1:])


def _mean(values: np.ndarray) -> float:
    """The mean of what could be measured (not nan); -1 where nothing could."""
    measured = values[~np.isnan(values)]
    return float(measured.mean()) if measured.size else -1.0
