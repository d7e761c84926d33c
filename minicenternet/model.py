"""CenterNet: backbone, neck and heads -> a dict of maps; how it is saved, loaded and used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from .autograd import Tensor
from .backbones import BACKBONES
from .errors import InputError
from .nn.module import Module
from .nn.summary import Summary, summarise
from .nn.weights import load_weights, save_weights
from .predict import Detections, predict
from .tasks import TASKS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, of pixels in 0..1


class CenterNet(Module):
    """A detector of objects as points: images (B, H, W, 3) -> {"hm": (B, H/4, W/4, C), "wh": (.., 2), "reg": (.., 2)}.

    backbone: a name in `minicenternet.backbones.BACKBONES`.  class_names: one name per label.  input_size (height,
    width): the network input in pixels.  pixel_mean, pixel_std, channel_order: how images are normalised; part of the
    weights' metadata.  seed: of the initial weights.  Raises InputError for unknown names and unfit sizes.
    Source: Zhou et al. 2019, §3 to §5.
    """

    def __init__(
        self,
        backbone: str = "small",
        *,
        class_names: Sequence[str],
        task: str = "detection",
        input_size: tuple[int, int] = (512, 512),
        pixel_mean: Sequence[float] = IMAGENET_MEAN,
        pixel_std: Sequence[float] = IMAGENET_STD,
        channel_order: str = "RGB",
        seed: int = 0,
    ):
        if backbone not in BACKBONES:
            raise InputError(f"unknown backbone {backbone!r}; there are {', '.join(BACKBONES)}")
        if task not in TASKS:
            raise InputError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
        if not class_names or len(set(class_names)) != len(class_names):
            raise InputError(f"class_names must be distinct and at least one, got {list(class_names)}")
        self.backbone_name, self.task_name = backbone, task
        self.class_names = tuple(class_names)
        self.input_size = tuple(input_size)
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.channel_order = channel_order
        rng = np.random.default_rng(seed)
        self.backbone = BACKBONES[backbone](rng)
        self.heads = self.backbone.heads(self.task.heads(len(self.class_names)), rng)
        self._check_size(*self.input_size)

    @property
    def task(self):
        """The module in `minicenternet.tasks` that encodes, decodes and measures the loss."""
        return TASKS[self.task_name]

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the backbone's children and the heads side by side: the released files have no prefix for either."""
        yield from self.backbone.children()
        yield from self.heads.items()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"CenterNet needs images (B, H, W, 3), got {images.shape}")
        self._check_size(*images.shape[1:3])
        features = self.backbone(images)
        return {name: head(features) for name, head in self.heads.items()}

    def _check_size(self, height: int, width: int) -> None:
        stride = self.backbone.stride
        if height < stride or width < stride or height % stride or width % stride:
            raise InputError(
                f"{self.backbone_name} needs an input whose sides are multiples of {stride}, got {height} x {width};"
                f" the next is {-(-height // stride) * stride} x {-(-width // stride) * stride}"
            )

    def summary(self, batch: int = 1) -> Summary:
        """Print and return the table of layers: output shape, parameters, multiply-adds, activation memory."""
        images = np.zeros((1, *self.input_size, 3), self.parameters()[0].dtype)
        table = summarise(self, images, batch)
        print(table)
        return table

    def predict(
        self,
        images,
        *,
        min_score: float = 0.1,
        k: int = 100,
        resolution: Literal["fixed", "keep"] = "fixed",
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        nms: Literal["soft", "hard"] | None = None,
        batch_size: int = 8,
    ) -> Detections | list[Detections]:
        """Return the Detections of one image (path, array, PIL image), or a list for several: see predict.predict."""
        return predict(
            self,
            images,
            min_score=min_score,
            k=k,
            resolution=resolution,
            flip=flip,
            scales=scales,
            nms=nms,
            batch_size=batch_size,
        )

    def save(self, path: str | os.PathLike, metrics: Mapping[str, float] | None = None) -> None:
        """Write weights and metadata (all that `load` needs, and the metrics given) to a .safetensors file."""
        save_weights(path, self.state_dict(), self.metadata(metrics))

    def metadata(self, metrics: Mapping[str, float] | None = None) -> dict[str, str]:
        """Return what a weights file says about itself: text to text, each value JSON."""
        values = {
            "format": "minicenternet 1",
            "backbone": self.backbone_name,
            "task": self.task_name,
            "class_names": self.class_names,
            "input_size": self.input_size,
            "pixel_mean": self.pixel_mean,
            "pixel_std": self.pixel_std,
            "channel_order": self.channel_order,
            "metrics": dict(metrics or {}),
        }
        return {key: json.dumps(value) for key, value in values.items()}

    @classmethod
    def load(cls, path: str | os.PathLike) -> CenterNet:
        """Return the network of a .safetensors file that `save` wrote, in evaluation mode.

        Raises InputError when the file is missing, damaged or not of this kind.
        """
        arrays, metadata = load_weights(path)
        try:
            values = {key: json.loads(text) for key, text in metadata.items()}
            model = cls(
                values["backbone"],
                class_names=values["class_names"],
                task=values["task"],
                input_size=tuple(values["input_size"]),
                pixel_mean=values["pixel_mean"],
                pixel_std=values["pixel_std"],
                channel_order=values["channel_order"],
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(
                f"{path} holds arrays but not what network they are ({error!r}); "
                "expected a file written by CenterNet.save or by training"
            ) from error
        model.load_state_dict(arrays)
        return model.eval()
