"""Train every variant of the errata clinic and of the ablations, on shapes at 128 px, and write down what came of it.

    python tutorials/measure_variants.py                              # all that is not yet measured
    python tutorials/measure_variants.py --only sound smooth_l1       # some of it
    python tutorials/measure_variants.py --output my/folder           # measure again on your machine

A variant is the sound recipe with one function exchanged: the target, a loss, the decoder. All see the same images in
the same order and begin with the same weights, which depend on the seed alone. One JSON record for each variant and
seed goes to tutorials/measured; what is there already is not done again, so that a run may be stopped at any moment.
Notebooks 11 and 16 read these records. All of it took 12 minutes of one core (MINICENTERNET_THREADS=1 and
OPENBLAS_NUM_THREADS=1 keep it to one).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

import minicenternet
from minicenternet import CenterNet
from minicenternet.autograd import Tensor, differentiable, no_grad
from minicenternet.data import Sample, Shapes
from minicenternet.files import replacing
from minicenternet.metrics import average_precision
from minicenternet.metrics.average_precision import box_iou, match
from minicenternet.nn.init import prior_bias
from minicenternet.ops import abs, clip, gather_points, log, sigmoid
from minicenternet.optim import Adam, learning_rate
from minicenternet.points.decode import Decoded, decode, nms, top_k
from minicenternet.points.losses import focal_loss, l1_loss
from minicenternet.points.targets import encode, gaussian_radius
from minicenternet.threads import one_blas_thread

SIZE, STRIDE = 128, 4  # pixels, pixels per cell
CELLS = SIZE // STRIDE
BATCH, STEPS, RATE = 8, 100, 8e-3
SCENES = {  # of one class, which is learned soon
    "size": SIZE,
    "classes": ("square",),
    "scale": (0.15, 0.45),
}
TRAIN, TEST = Shapes(1600, seed=1, **SCENES), Shapes(200, seed=2, **SCENES)
CLASSES = len(TRAIN.class_names)
SHOWN = 0.3  # the score from which on a detection is shown to somebody
MEASURED = Path(__file__).parent / "measured"


# ---- targets ---------------------------------------------------------------------------------------------------------


def draw_heatmap(
    boxes: np.ndarray,
    labels: np.ndarray,
    *,
    cell: Callable = np.floor,
    spread: Callable = lambda sigma: 2 * sigma**2,
    overlap: Callable = np.maximum,
    radius: Callable = gaussian_radius,
) -> np.ndarray:
    """Draw Y of E2 (H, W, C) for boxes (N, 4) in pixels, on the whole map, so that each part of it can be exchanged."""
    heatmap = np.zeros((CELLS, CELLS, CLASSES), np.float32)
    y, x = np.mgrid[:CELLS, :CELLS]
    for (x1, y1, x2, y2), label in zip(np.float64(boxes) / STRIDE, labels, strict=True):
        r = int(radius(np.ceil(y2 - y1), np.ceil(x2 - x1)))
        dx, dy = x - cell((x1 + x2) / 2), y - cell((y1 + y2) / 2)
        blob = np.exp(-(dx**2 + dy**2) / spread((2 * r + 1) / 6)) * (np.maximum(np.abs(dx), np.abs(dy)) <= r)
        heatmap[:, :, label] = overlap(heatmap[:, :, label], blob)
    return heatmap


def smaller_of_two(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where two Gaussians overlap, the smaller; elsewhere the one that is there."""
    return np.where((one > 0) & (other > 0), np.minimum(one, other), np.maximum(one, other))


# ---- losses ----------------------------------------------------------------------------------------------------------


@differentiable
def log_sigmoid(x):
    """Return log(1 / (1 + e^-x)), finite for every x."""
    y = np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))

    def backward(dy):
        return (dy * -np.expm1(y),)  # 1 - sigmoid(x)

    return y, backward


def focal_with_predicted_beta(logits: Tensor, heatmap: np.ndarray) -> Tensor:
    """E4 with (1 - Ŷ)^4 where (1 - Y)^4 belongs."""
    peak, p = (heatmap == 1).astype(np.float32), sigmoid(logits)
    at_peaks = peak * (1 - p) ** 2 * log_sigmoid(logits)
    elsewhere = (1 - peak) * (1 - p) ** 4 * p**2 * log_sigmoid(-logits)
    return -(at_peaks + elsewhere).sum() / max(peak.sum(), 1)


def focal_of_clamped(logits: Tensor, heatmap: np.ndarray) -> Tensor:
    """E4 of probabilities held between 1e-4 and 1 - 1e-4, as the released code computes it."""
    peak, p = (heatmap == 1).astype(np.float32), clip(sigmoid(logits), 1e-4, 1 - 1e-4)
    at_peaks = peak * (1 - p) ** 2 * log(p)
    elsewhere = (1 - peak) * (1 - heatmap) ** 4 * p**2 * log(1 - p)
    return -(at_peaks + elsewhere).sum() / max(peak.sum(), 1)


def smooth_l1_loss(prediction: Tensor, target: np.ndarray, mask: np.ndarray) -> Tensor:
    """E5 and E6 with e²/2 in place of |e| up to an error e of 1, and |e| - 1/2 beyond."""
    error = abs(prediction - target)
    near = clip(error, 0, 1)
    return (near * (error - near / 2) * mask[..., None]).sum() / max(mask.sum(), 1)


def l1_over_slots(prediction: Tensor, target: np.ndarray, mask: np.ndarray) -> Tensor:
    """E5 and E6 averaged over all slots and coordinates, empty slots too, as the released losses for KITTI are."""
    return (abs(prediction - target) * mask[..., None]).mean()


# ---- variants --------------------------------------------------------------------------------------------------------


class Variant(NamedTuple):
    """What a training run is made of; a variant names only what it does otherwise.

    heatmap(boxes, labels) -> Y.  heatmap_loss(logits, Y).  box_loss(prediction, target, mask), of offsets and sizes.
    size_unit: how many of the units that sizes are learned in make a cell.  slots: of the objects of an image.
    """

    heatmap: Callable = draw_heatmap
    heatmap_loss: Callable = focal_loss
    box_loss: Callable = l1_loss
    offset_weight: float = 1.0
    size_unit: float = 1.0
    slots: int = 50
    prior: float = 0.1


VARIANTS = {
    "sound": Variant(),
    # slips that circulate
    "two_sigma": Variant(heatmap=partial(draw_heatmap, spread=lambda sigma: 2 * sigma)),
    "not_floored": Variant(heatmap=partial(draw_heatmap, cell=lambda centre: centre)),
    "minimum": Variant(heatmap=partial(draw_heatmap, overlap=smaller_of_two)),
    "minimum_of_map": Variant(heatmap=partial(draw_heatmap, overlap=np.minimum)),
    "predicted_beta": Variant(heatmap_loss=focal_with_predicted_beta),
    "smooth_l1": Variant(box_loss=smooth_l1_loss),
    # where the released code differs from the paper
    "released_denominator": Variant(box_loss=partial(l1_loss, denominator="released")),
    "corrected_radius": Variant(heatmap=partial(draw_heatmap, radius=partial(gaussian_radius, form="corrected"))),
    "corrected_radius_0.3": Variant(
        heatmap=partial(draw_heatmap, radius=partial(gaussian_radius, min_overlap=0.3, form="corrected"))
    ),
    "size_in_pixels": Variant(size_unit=STRIDE),
    "clamped": Variant(heatmap_loss=focal_of_clamped),
    "over_slots": Variant(box_loss=l1_over_slots),
    # ablations
    "no_offset": Variant(offset_weight=0.0),
    "no_prior": Variant(prior=0.5),
}
SEEDS = {"sound": range(6)}  # three for all others


# ---- one run ---------------------------------------------------------------------------------------------------------


def network(variant: Variant, seed: int) -> CenterNet:
    """Return the small network; its first probabilities are the variant's prior, but for its random weights."""
    model = CenterNet("small", class_names=TRAIN.class_names, input_size=(SIZE, SIZE), seed=seed)
    model.heads["hm"][2].bias.data[:] = prior_bias(variant.prior)
    return model


def make_batch(variant: Variant, samples: list[Sample]) -> SimpleNamespace:
    """Stack images (B, H, W, 3) float32 and targets, sizes in the variant's units."""
    targets = [
        encode(s.annotation.boxes, s.annotation.labels, CLASSES, CELLS, CELLS, STRIDE, variant.slots) for s in samples
    ]
    return SimpleNamespace(
        images=normalised([s.image for s in samples]),
        heatmap=np.stack([variant.heatmap(s.annotation.boxes, s.annotation.labels) for s in samples]),
        index=np.stack([t.index for t in targets]),
        offset=np.stack([t.offset for t in targets]),
        size=np.stack([t.size for t in targets]) * np.float32(variant.size_unit),
        mask=np.stack([t.mask for t in targets]),
    )


def normalised(images: list[np.ndarray]) -> np.ndarray:
    """Return images (B, H, W, 3) uint8 as float32 of mean about 0 and deviation about 1."""
    return (np.stack(images).astype(np.float32) / 255 - np.float32(0.5)) * 4


def losses(variant: Variant, maps: dict[str, Tensor], batch: SimpleNamespace) -> dict[str, Tensor]:
    """Return the total of E7 and its parts."""
    heatmap = variant.heatmap_loss(maps["hm"], batch.heatmap)
    offset = variant.box_loss(gather_points(maps["reg"], batch.index), batch.offset, batch.mask)
    size = variant.box_loss(gather_points(maps["wh"], batch.index), batch.size, batch.mask)
    total = heatmap + 0.1 * size + variant.offset_weight * offset
    return {"total": total, "heatmap": heatmap, "size": size, "offset": offset}


@cache
def sample(dataset: Shapes, i: int) -> Sample:
    """Return image i, drawn once for all runs."""
    return dataset[i]


def batches(seed: int, steps: int) -> Iterator[list[Sample]]:
    """Yield the samples of each step: the training images in an order that depends on the seed alone."""
    rng, order = np.random.default_rng(seed), np.zeros(0, int)
    for _ in range(steps):
        if len(order) < BATCH:
            order = rng.permutation(len(TRAIN))
        yield [sample(TRAIN, i) for i in order[:BATCH]]
        order = order[BATCH:]


def train(variant: Variant, seed: int, steps: int = STEPS) -> tuple[CenterNet, dict[str, list[float]]]:
    """Train the small network with Adam; return it and the losses of every step."""
    model = network(variant, seed)
    optimiser = Adam(model.named_parameters(), RATE)
    history: dict[str, list[float]] = {"total": [], "heatmap": [], "size": [], "offset": []}
    for step, samples in enumerate(batches(seed, steps)):
        batch = make_batch(variant, samples)
        optimiser.lr = learning_rate(step, base=RATE, total_steps=steps, schedule="cosine", warm_up=steps // 10)
        with one_blas_thread():
            parts = losses(variant, model(Tensor(batch.images)), batch)
            model.zero_grad()
            parts["total"].backward()
            optimiser.step()
        for name, values in history.items():
            values.append(parts[name].item())
    return model, history


# ---- decoders, and what is measured with each ------------------------------------------------------------------------


def without_peak_test(heatmap: np.ndarray, offset: np.ndarray, size: np.ndarray) -> Decoded:
    """E9 at the 100 highest cells, peaks or not."""
    scores, labels, y, x = top_k(heatmap, 100)
    image = np.arange(len(heatmap))[:, None]
    centre, half = np.stack([x, y], axis=-1) + offset[image, y, x], size[image, y, x] / 2
    return Decoded(np.concatenate([centre - half, centre + half], axis=-1) * STRIDE, scores, labels)


def without_height(heatmap: np.ndarray, offset: np.ndarray, size: np.ndarray) -> Decoded:
    """E9 with y2 = ŷ + δy - h/2, as y1 is."""
    found = decode(heatmap, offset, size)
    found.boxes[..., 3] = found.boxes[..., 1]
    return found


def suppressed(found: Decoded) -> list[Decoded]:
    """Greedy suppression of boxes that overlap a better one of their class by more than 0.5, image by image."""
    kept = [nms(boxes, scores, labels) for boxes, scores, labels in zip(*found, strict=True)]
    return [Decoded(*(part[i][keep] for part in found)) for i, keep in enumerate(kept)]


DECODERS = {
    "sound": decode,
    "without_height": without_height,
    "offset_0": lambda heatmap, offset, size: decode(heatmap, 0 * offset, size),
    "offset_half": lambda heatmap, offset, size: decode(heatmap, 0 * offset + 0.5, size),
    "nms": lambda heatmap, offset, size: suppressed(decode(heatmap, offset, size)),
    "without_peak_test": without_peak_test,
    "without_peak_test_nms": lambda heatmap, offset, size: suppressed(without_peak_test(heatmap, offset, size)),
}
DECODED_BY = {"sound": list(DECODERS), "no_offset": ["offset_0", "offset_half"]}  # the sound decoder for all others


def maps_of(
    model: CenterNet, samples: list[Sample], size_unit: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities (B, H, W, C), offsets and sizes in cells (B, H, W, 2) for samples, in evaluation mode."""
    model.eval()
    parts = []
    with no_grad(), one_blas_thread():
        for start in range(0, len(samples), BATCH):
            maps = model(Tensor(normalised([s.image for s in samples[start : start + BATCH]])))
            parts.append((sigmoid(maps["hm"]).data, maps["reg"].data, maps["wh"].data / np.float32(size_unit)))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def measure(found: Decoded | list[Decoded], samples: list[Sample]) -> dict[str, float]:
    """Return AP and, of the detections shown, how many are right and how many are second boxes of an object."""
    images = found if isinstance(found, list) else [Decoded(*parts) for parts in zip(*found, strict=True)]
    truth = [s.annotation for s in samples]
    result = average_precision(truth, images, CLASSES)
    shown = right = second = 0
    for detections, annotation in zip(images, truth, strict=True):
        for label in range(CLASSES):
            boxes = detections.boxes[(detections.labels == label) & (detections.scores >= SHOWN)]
            objects = annotation.boxes[annotation.labels == label]
            shown += len(boxes)
            if len(boxes) and len(objects):
                iou, none = box_iou(boxes, objects), np.zeros(len(objects), bool)
                taken = match(iou, none, none, np.array([0.5]))[0] >= 0
                right += int(taken.sum())
                second += int(((iou.max(axis=1) >= 0.5) & ~taken).sum())
    objects = sum(len(annotation.boxes) for annotation in truth)
    return {
        "ap": result.ap,
        "ap50": result.ap50,
        "ap75": result.ap75,
        "precision": right / max(shown, 1),
        "recall": right / objects,
        "duplicates_per_object": second / objects,
    }


def record(name: str, seed: int, steps: int = STEPS) -> dict:
    """Train one variant with one seed and return all that is written down about it."""
    variant, start, cpu = VARIANTS[name], time.perf_counter(), time.process_time()
    model, history = train(variant, seed, steps)
    samples = [sample(TEST, i) for i in range(len(TEST))]
    maps = maps_of(model, samples, variant.size_unit)
    decoders = DECODED_BY.get(name, ["sound"])
    return {
        "variant": name,
        "seed": seed,
        "results": {decoder: measure(DECODERS[decoder](*maps), samples) for decoder in decoders},
        "highest_probability": float(maps[0].max()),
        "losses": {part: [float(f"{value:.6g}") for value in values] for part, values in history.items()},
        "settings": {
            "size": SIZE, "batch": BATCH, "steps": steps, "learning_rate": RATE,
            "training_images": len(TRAIN), "test_images": len(TEST), "shown_from": SHOWN,
        },  # fmt: skip
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "date": date.today().isoformat(),
        "cpu": processor(),
        "versions": {
            "python": platform.python_version(), "numpy": np.__version__, "minicenternet": minicenternet.__version__,
        },  # fmt: skip
    }  # fmt: skip


def processor() -> str:
    """Return what the machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="these variants alone")
    parser.add_argument("--output", type=Path, default=MEASURED, help="folder of the records")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    runs = [(seed, name) for name in arguments.only for seed in SEEDS.get(name, range(3))]
    for seed, name in sorted(runs, key=lambda run: run[0]):  # seed by seed, so that a stopped run can be read
        path = arguments.output / f"{name}-{seed}.json"
        if path.exists():
            continue
        done = record(name, seed)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(done) + "\n")
        figures = done["results"][next(iter(done["results"]))]
        print(f"{name} seed {seed}: AP {figures['ap']:.3f}, AP50 {figures['ap50']:.3f}, {done['seconds']:.0f} s")


if __name__ == "__main__":
    main()
