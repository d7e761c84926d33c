"""The options of each command: one frozen dataclass per verb; the command line is made from these by tyro."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .data.transforms import Augmentation
from .errors import InputError
from .files import replacing


@dataclass(frozen=True)
class TrainConfig:
    """Train a detector; everything about the run is kept in its folder."""

    data: str = "shapes"
    """shapes, a COCO-format .json file, or a folder in VOC or COCO layout."""
    images: str | None = None
    """Folder of the images of a .json file, where it is not found beside it."""
    val: str | None = None
    """Validation data; by default what belongs to --data (shapes: unseen ones; VOC: the val split; COCO: the sibling
    instances_val*.json), else the training images themselves."""
    output: str | None = None
    """Run folder; by default the next free runs/NAME-N."""
    resume: str | None = None
    """Run folder to go on with, exactly where it stopped; all other options are taken from that run."""

    backbone: str = "small"
    """small, resnet18, resnet34, resnet50, resnet101 or resnet152."""
    weights: str | None = None
    """Begin with these weights (.safetensors of the same backbone and classes) instead of random ones."""
    size: int | None = None
    """Side of the square network input in pixels; by default 128 for shapes and 512 for photographs."""

    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 16
    """Images per step."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """Adam, or SGD with momentum 0.9."""
    learning_rate: float = 1e-3
    """Learning rate at its highest."""
    weight_decay: float = 0.0
    """L2 penalty: weight_decay times the weight is added to each gradient."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the learning rate falls: along half a cosine, by 10 after each epoch in --drops, or not at all."""
    drops: tuple[int, ...] = ()
    """Epochs after which the step schedule divides the learning rate by 10 (released COCO recipe: 90 120)."""
    warm_up: int = 100
    """Steps over which the learning rate rises from 0."""
    clip_norm: float = 0.0
    """Largest joint norm of all gradients; 0 does not limit it."""
    average: float = 0.0
    """Decay of the exponential moving average of the weights, used for AP and the saved weights; 0 for none."""
    augment: bool = True
    """Random crops, flips and colours; --no-augment shows each image whole."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Strength of each random change."""

    shapes: int = 4000
    """Training images that --data shapes makes."""
    val_shapes: int = 200
    """Validation images that --data shapes makes."""
    evaluate_every: int = 1
    """Epochs between measurements of AP on the validation images; the last epoch is always measured."""
    save_every: float = 5.0
    """Minutes between saved states within an epoch; the end of an epoch is always saved."""
    workers: int | None = None
    """Processes that prepare batches; 0 prepares them in this one; by default one per spare core, at most 8."""
    skip_bad_images: bool = False
    """Replace an image that cannot be read by the next one, name it once, and go on."""
    seed: int = 0
    """Of everything random: the same seed gives the same weights, whatever the number of workers."""

    def save(self, path: Path) -> None:
        """Write the configuration as JSON."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Return the configuration that `save` wrote.  Raises InputError when there is none or it is damaged."""
        try:
            values = json.loads(path.read_text())
            return cls(
                **{
                    **values,
                    "drops": tuple(values["drops"]),
                    "augmentation": Augmentation(**values["augmentation"]),
                }
            )
        except FileNotFoundError as error:
            raise InputError(f"{path.parent} is no run folder: it has no {path.name}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is damaged or from another version ({error}); start a new run") from error

    @property
    def num_workers(self) -> int:
        """The number of worker processes that `workers` stands for."""
        return min(8, max(1, (os.cpu_count() or 2) - 1)) if self.workers is None else self.workers
