"""How good is a network on a data set: AP by COCO's or VOC's protocol, what it cost, and where it fails.

A data set of any size can be shared out among ranks, and what was detected is kept in a folder, so that an evaluation
that was killed goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from .backend import to_cpu
from .data.annotation import Annotation, DataSet
from .distributed import World
from .errors import InputError
from .files import replacing
from .metrics import (
    Result,
    average_precision,
    box_iou,
    coco_evaluate,
    match,
    to_coco_results,
    voc_average_precision,
)
from .metrics.coco import installed_referees
from .parts import KeptParts, Part
from .predict import Detections, Predictor

if TYPE_CHECKING:
    from .model import CenterNet

SHOWN_SCORE = 0.3  # detections below it are left out of pictures and of the counts beside them
SHOWN_IOU = 0.5
TOLERANCE = 1e-6  # by which a referee's figures may differ from ours
KEEP_SECONDS = 30.0  # of detecting, after which what was detected is kept


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures of a network on a data set, and all its detections.

    dataset; detections: one for each of its images, without the image; result: AP and AR by COCO's protocol, or None
    where the data set has no annotations; referees: the same by each referee that was asked for and is installed, by
    its name; voc: (per class, mean) AP by VOC's protocol for "11" points and "all", or None where not asked for;
    seconds: time in each stage, of all ranks together; options: how the network was used.
    """

    dataset: DataSet
    detections: list[Detections]
    result: Result | None
    referees: Mapping[str, Result]
    voc: Mapping[str, tuple[np.ndarray, float]] | None
    seconds: Mapping[str, float]
    options: Mapping[str, object]

    def difference(self, referee: str) -> float:
        """The largest difference between our twelve figures and a referee's."""
        return float(np.abs(self.result.stats() - self.referees[referee].stats()).max())

    def text(self) -> str:
        """The tables: COCO's figures and each class, VOC's if asked for, the referees' verdicts, seconds per stage."""
        parts = []
        if self.result:
            parts.append(self.result.table(self.dataset.class_names))
        else:
            parts.append("the data set has no annotations, so AP cannot be measured here: only detections were made")
        if self.voc:
            parts.append(self._voc_table())
        for name in self.referees:
            agrees = "agrees" if self.difference(name) < TOLERANCE else "DISAGREES"
            parts.append(f"{name} {agrees}: the largest difference is {self.difference(name):.1e}")
        if self.options["referee"] and self.result and not self.referees:
            parts.append("pycocotools is not installed, so there was no referee: python -m pip install pycocotools")
        images = len(self.detections)
        stages = ", ".join(f"{stage} {1000 * seconds / images:.1f}" for stage, seconds in self.seconds.items())
        total = 1000 * sum(self.seconds.values()) / images
        parts.append(f"{images} image{'' if images == 1 else 's'}, milliseconds for each: {stages}, in all {total:.1f}")
        return "\n\n".join(parts)

    __str__ = text

    def _voc_table(self) -> str:
        (eleven, mean_eleven), (every, mean_every) = self.voc["11"], self.voc["all"]
        names = self.dataset.class_names
        width = max(map(len, (*names, "VOC, IoU 0.50")))
        rows = [("mean", mean_eleven, mean_every)]
        rows += [(names[c], eleven[c], every[c]) for c in np.argsort(-eleven, kind="stable")]
        lines = [f"{'VOC, IoU 0.50':<{width}}{'11 points':>11}{'all points':>12}"]
        for name, *values in rows:
            cells = ["-" if np.isnan(value) or value == -1 else f"{value:.3f}" for value in values]
            lines.append(f"{name:<{width}}{cells[0]:>11}{cells[1]:>12}")
        return "\n".join(lines)

    def metrics(self) -> dict:
        """All figures in plain types, ready for json.dump; None where there is nothing to measure."""
        names, metrics = self.dataset.class_names, {"images": len(self.detections)}
        if self.result:
            metrics |= {f.name: v for f, v in zip(fields(Result), _plain(self.result.stats()), strict=False)}
            for key in ("per_class", "per_class_ap50"):
                metrics[key] = dict(zip(names, _plain(getattr(self.result, key)), strict=True))
        metrics |= {f"difference_from_{name}": self.difference(name) for name in self.referees}
        for points, (per_class, mean) in (self.voc or {}).items():
            metrics[f"voc_{points}"] = _plain([mean])[0]
            metrics[f"voc_{points}_per_class"] = dict(zip(names, _plain(per_class), strict=True))
        return {**metrics, "seconds": dict(self.seconds), "options": dict(self.options)}

    def save(self, folder: str | os.PathLike, pictures: int = 8) -> None:
        """Write detections.json (COCO's results format), metrics.json, table.txt and three pictures to a folder.

        The pictures are precision_recall.png, and best.png and worst.png of so many images each: ground truth beside
        detections. Without ground truth there are none.
        Raises InputError when the folder cannot be written to or an image cannot be read.
        """
        from .draw import draw_precision_recall  # matplotlib is imported only by those who draw

        folder = Path(folder)
        image_ids = [self.dataset.annotation(i).image_id for i in range(len(self.dataset))]
        rounded = self.options["rounded"]
        records = to_coco_results(self.detections, image_ids, self.dataset.category_ids, rounded=rounded)
        for name, text in (
            ("detections.json", json.dumps(records)),
            ("metrics.json", json.dumps(self.metrics(), indent=2) + "\n"),
            ("table.txt", self.text() + "\n"),
        ):
            with replacing(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        if not self.result:
            return
        draw_precision_recall(self.result, self.dataset.class_names, folder / "precision_recall.png")
        best_first = self.best_first()
        self.draw(folder / "best.png", best_first[:pictures])
        self.draw(folder / "worst.png", best_first[::-1][:pictures])

    def best_first(self) -> list[int]:
        """Return the images by index, those with the fewest mistakes first."""
        counts = [count_mistakes(self.dataset.annotation(i), found) for i, found in enumerate(self.detections)]
        return sorted(range(len(counts)), key=lambda i: counts[i].rank, reverse=True)

    def draw(self, path: str | os.PathLike | None = None, images: Sequence[int] = range(8)) -> np.ndarray:
        """Return a page of images, given by index, with ground truth left and detections right; (H, W, 3) uint8."""
        from .draw import draw_grid

        pairs = [self.beside(i) for i in images[: len(self.detections)]]
        return draw_grid([picture for picture, _ in pairs], [title for _, title in pairs], path, columns=2)

    def beside(self, i: int) -> tuple[np.ndarray, str]:
        """Return image i with ground truth beside itself with detections, (H, W, 3) uint8, and a title that counts."""
        from .draw import draw_boxes

        names = self.dataset.class_names
        sample, found = self.dataset[i], self.detections[i].above(SHOWN_SCORE)
        truth = sample.annotation
        count = count_mistakes(truth, found)
        left = draw_boxes(sample.image, truth.boxes, truth.labels, None, names, text_size=0.04)
        right = draw_boxes(sample.image, found.boxes, found.labels, found.scores, names, text_size=0.04)
        objects = count.found + count.missed
        return np.concatenate([left, np.full_like(left[:, :6], 255), right], axis=1), (
            f"{truth.file_name}: {objects} object{'' if objects == 1 else 's'} (left), "
            f"{count.found} found, {count.missed} missed, {count.false} false (right)"
        )


@dataclass(frozen=True)
class Mistakes:
    """What became of one image's objects, counting detections with a score of at least 0.3 and matches from IoU 0.5."""

    found: int
    missed: int
    false: int

    @property
    def rank(self) -> tuple[float, int]:
        """The higher the better: first the share of what is right, then the more objects found or fewer mistakes."""
        mistakes = self.missed + self.false
        share = 2 * self.found / max(2 * self.found + mistakes, 1)  # the F1 score
        return (1.0 if mistakes == 0 else share), self.found - mistakes


def count_mistakes(truth: Annotation, found: Detections) -> Mistakes:
    """Return how many objects of an image were found and missed, and how many detections are false.

    Crowd regions and difficult objects count in no way, nor does what is detected there.
    """
    found = found.above(SHOWN_SCORE)
    ignored = truth.crowd | truth.difficult
    right = false = 0
    for label in np.union1d(found.labels, truth.labels):
        here, there = found.labels == label, truth.labels == label
        iou = box_iou(found.boxes[here], truth.boxes[there], truth.crowd[there])
        taken = match(iou, truth.crowd[there], ignored[there], np.array([SHOWN_IOU]))[0]
        right += np.count_nonzero(~ignored[there][taken[taken >= 0]])
        false += np.count_nonzero(taken < 0)
    return Mistakes(right, int(np.count_nonzero(~ignored)) - right, false)


def evaluate(
    model: CenterNet,
    dataset: DataSet,
    *,
    protocol: Literal["coco", "voc"] = "coco",
    referee: bool = False,
    k: int = 100,
    resolution: Literal["fixed", "keep"] = "fixed",
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    nms: Literal["soft", "hard"] | None = None,
    rounded: bool = False,
    batch_size: int = 8,
    graph: bool = False,
    progress: Callable[[int, int], None] | None = None,
    world: World | None = None,
    keep: str | os.PathLike | None = None,
) -> Evaluation | None:
    """Detect on every image of a data set, those without objects included, and measure AP.

    protocol: "voc" measures AP as VOC does as well.  referee: have pycocotools, and faster-coco-eval, measure the same
    detections, where installed.  rounded: measure coordinates and scores to two decimals, as the released code writes
    them; this ties many scores.  progress: called after each image with (images done, images in all).  world: of
    several ranks that call together each detects on its share of the images, and the first returns the Evaluation, the
    others None.  keep: a folder, which all ranks can read and write; what is detected is kept there, and images of
    which it has detections already are not looked at again, whatever the number of ranks was.
    All others are Predictor's.
    Raises InputError when the network has other classes than the data set, for an image that cannot be read, and where
    `keep` holds detections of another network, data set or way of using it.
    """
    if protocol not in ("coco", "voc"):
        raise InputError(f"protocol is {protocol!r}, expected 'coco' or 'voc'.")
    if not len(dataset):
        raise InputError("the data set has no images, so there is nothing to evaluate.")
    label_of = _same_classes(model.class_names, dataset.class_names)
    options = {
        "k": k,
        "resolution": resolution,
        "flip": flip,
        "scales": tuple(scales),
        "nms": nms,
        "rounded": rounded,
    }
    predictor = Predictor(
        model,
        min_score=0,
        k=k,
        resolution=resolution,
        flip=flip,
        scales=tuple(scales),
        nms=nms,
        batch_size=batch_size,
        graph=graph,
    )
    world, kept, parts = world or World(), None, []
    if keep is not None:
        used = {name: value for name, value in options.items() if name != "rounded"}
        kept = KeptParts(keep, {**_identity(model, dataset), **used}, world)
        parts = kept.parts(dataset.class_names)
    known = json.loads(world.share(json.dumps([i for part in parts for i in part.images])))
    missing = sorted(set(range(len(dataset))) - set(known))
    own = _detect(predictor, dataset, missing[world.rank :: world.size], label_of, kept, len(missing), progress)
    gathered = world.gather(own.pack())
    if world.rank > 0:
        return None
    parts += [Part.unpack(data, dataset.class_names) for data in gathered]
    found = {i: one for part in parts for i, one in zip(part.images, part.detections, strict=True)}
    detections = [found[i] for i in range(len(dataset))]
    seconds = sum((part.seconds for part in parts), Counter())
    options |= {"protocol": protocol, "referee": referee}
    if not getattr(dataset, "annotated", True):
        return Evaluation(dataset, detections, None, {}, None, seconds, options)
    truth = [dataset.annotation(i) for i in range(len(dataset))]
    measured = (truth, list(map(_rounded, detections)) if rounded else detections, len(dataset.class_names))
    voc = None
    if protocol == "voc":  # our boxes end at the far edge of their last pixel, VOC's own on the pixel
        voc = {points: voc_average_precision(*measured, points=points, plus_one=False) for points in ("11", "all")}
    referees = installed_referees() if referee else []
    return Evaluation(
        dataset,
        detections,
        average_precision(*measured),
        {name: coco_evaluate(*measured, rounded=rounded, referee=name) for name in referees},
        voc,
        seconds,
        options,
    )


def _detect(
    predictor: Predictor,
    dataset: DataSet,
    images: Sequence[int],
    label_of: np.ndarray,
    kept: KeptParts | None,
    missing: int,
    progress: Callable[[int, int], None] | None,
) -> Part:
    """Return the detections on the images, by index, of which `kept` gets all, a part at a time.

    missing: images that all ranks together look at, for the progress.
    """
    whole, part, last = Part(), Part(), time.monotonic()
    for i, found in zip(images, predictor.stream(dataset[i] for i in images), strict=True):
        part.images.append(i)
        part.detections.append(
            replace(found, labels=label_of[found.labels], class_names=tuple(dataset.class_names), image=None)
        )
        whole.images.append(i)
        whole.detections.append(part.detections[-1])
        if progress:
            progress(len(dataset) - missing + len(whole.images), len(dataset))
        if kept and (len(whole.images) == len(images) or time.monotonic() - last >= KEEP_SECONDS):
            part.seconds = predictor.seconds - whole.seconds
            kept.add(part)
            whole.seconds += part.seconds
            part, last = Part(), time.monotonic()
    whole.seconds = predictor.seconds
    return whole


def _identity(model: CenterNet, dataset: DataSet) -> dict[str, object]:
    """Return what tells the detections of a network on a data set from others: digests of weights and of annotations.

    Names alone would not do: shapes of every seed have the same.
    """
    weights, images = hashlib.sha256(), hashlib.sha256()
    for key, array in model.state_dict().items():
        weights.update(key.encode() + np.ascontiguousarray(to_cpu(array)).tobytes())
    for i in range(len(dataset)):
        one = dataset.annotation(i)
        images.update(repr((one.image_id, one.file_name, one.width, one.height)).encode() + one.boxes.tobytes())
    return {
        "weights": weights.hexdigest(),
        "precision": model.precision,
        "images": images.hexdigest(),
        "classes": list(dataset.class_names),
        "input_size": list(model.input_size),
        "pixels": [list(model.pixel_mean), list(model.pixel_std), model.channel_order],
    }


def _rounded(found: Detections) -> Detections:
    """Detections as to_coco_results(rounded=True) writes them: x, y, width, height and score to two decimals."""
    boxes = found.boxes.astype(float)
    corner, size = boxes[:, :2].round(2), (boxes[:, 2:] - boxes[:, :2]).round(2)
    scores = found.scores.astype(float).round(2)
    return replace(found, boxes=np.concatenate([corner, corner + size], axis=1), scores=scores)


def _same_classes(of_model: Sequence[str], of_dataset: Sequence[str]) -> np.ndarray:
    """The data set's label of each of the model's, (C,) int64: the two may order the same names differently."""
    only_model = [name for name in of_model if name not in of_dataset]
    only_dataset = [name for name in of_dataset if name not in of_model]
    if only_model or only_dataset:
        raise InputError(
            f"the network was trained on other classes than this data set has. Only the network ({len(of_model)} in "
            f"all): {_list(only_model)}. Only the data set ({len(of_dataset)} in all): {_list(only_dataset)}. "
            "Give weights trained on these classes, or a data set with the network's class names."
        )
    return np.array([list(of_dataset).index(name) for name in of_model], np.int64)


def _list(names: Sequence[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "none") + more


def _plain(values: Sequence[float]) -> list[float | None]:
    return [None if np.isnan(value) or value == -1 else float(value) for value in values]
