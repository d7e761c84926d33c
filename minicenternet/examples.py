"""Training examples: what the loader's workers make of a Sample, and how a batch becomes images and targets.

    TrainingExample            on a CPU, the workers do all: view, warp, colours, normalisation, targets
    Unprepared, Preparation    on a GPU, they decode and choose view and colours; the GPU does the rest, for a whole
                               batch in three launches, and a fifth of the bytes are uploaded

Views and colours come from the same rng, so that a seed shows a network the same on both. What the GPU makes differs in
rounding only: the warp not at all, images by 2e-6 of their largest value, the heatmap by 1e-6, all else not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .backend import Array, to_gpu
from .data.annotation import Sample, Unread
from .data.transforms import Augmentation, choose, from_output, image_for, prepare, warp
from .ops.prepare_images_cuda import prepare_batch
from .points.targets import MAX_OBJECTS
from .tasks import TASKS

ROOM = 2  # the GPU is sent images of up to so many times the pixels of the network input; of a larger one, the input


@dataclass(frozen=True, kw_only=True)
class TrainingExample:
    """Turns a Sample into the arrays of one training example; picklable, so that worker processes can do it."""

    task: str
    num_classes: int
    size: tuple[int, int]
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    channel_order: str
    augmentation: Augmentation | None
    min_overlap: float = 0.7
    radius_form: str = "released"

    def __call__(self, sample: Sample | Unread, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return "image" (h, w, 3) float32 and the task's targets."""
        prepared = prepare(
            sample,
            size=self.size,
            mean=self.pixel_mean,
            std=self.pixel_std,
            channel_order=self.channel_order,
            augmentation=self.augmentation,
            rng=rng,
        )
        targets = TASKS[self.task].encode(
            prepared.boxes,
            prepared.labels,
            self.num_classes,
            *self.size,
            min_overlap=self.min_overlap,
            form=self.radius_form,
        )
        return {"image": prepared.image, **targets}


@dataclass(frozen=True, kw_only=True)
class Unprepared:
    """Turns a Sample into what `Preparation` makes the same example of on a GPU; picklable as well."""

    size: tuple[int, int]
    augmentation: Augmentation | None

    def __call__(self, sample: Sample | Unread, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return "pixels" uint8, of an image of "height_width"; how to see and colour it; "boxes" and "labels".

        from_output (2, 3) and colours (6,): as in ops.prepare_images_cuda.  boxes (M, 4), labels (M,): in pixels of the
        input, -1 in empty slots; more than M objects have no place among the targets.
        """
        chosen = choose(sample.annotation, size=self.size, augmentation=self.augmentation, rng=rng)
        image, matrix = image_for(sample, chosen.matrix)
        to_image, pixels = from_output(matrix), np.zeros(ROOM * self.size[0] * self.size[1] * 3, np.uint8)
        if image.size > pixels.size:
            image, to_image = warp(image, matrix, self.size), np.eye(2, 3)
        pixels[: image.size] = image.reshape(-1)
        boxes, labels = np.zeros((MAX_OBJECTS, 4), np.float32), np.full(MAX_OBJECTS, -1, np.int64)
        count = min(len(chosen.boxes), MAX_OBJECTS)
        boxes[:count], labels[:count] = chosen.boxes[:count], chosen.labels[:count]
        return {
            "pixels": pixels,
            "height_width": np.int32(image.shape[:2]),
            "from_output": to_image,
            "colours": np.float32([*chosen.colours[:3], *chosen.colours.shift]),
            "boxes": boxes,
            "labels": labels,
        }


class Preparation:
    """Makes images and targets of a batch of what `Unprepared` returns, all on the current GPU; waits for nothing.

    example: says how, and is what the CPU would do.
    """

    def __init__(self, example: TrainingExample):
        self.example = example
        self.normalisation = to_gpu(np.float32([example.pixel_mean, example.pixel_std]))

    def __call__(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Return "image" (B, h, w, 3) float32 and the task's targets."""
        example = self.example
        image = prepare_batch(
            batch["pixels"],
            batch["height_width"],
            batch["from_output"],
            batch["colours"],
            self.normalisation,
            size=example.size,
            channel_order=example.channel_order,
        )
        targets = TASKS[example.task].encode_batch(
            batch["boxes"],
            batch["labels"],
            example.num_classes,
            *example.size,
            min_overlap=example.min_overlap,
            form=example.radius_form,
        )
        return {"image": image, **targets}
