"""CenterNet: backbone, neck and heads -> a dict of maps; how it is saved, loaded and used."""

from __future__ import annotations

import copy
import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np

from .autograd import Tensor
from .backbones import BACKBONES
from .backend import Array, beside, get_xp
from .device import choose
from .distributed import World
from .errors import InputError
from .nn.folding import fold
from .nn.layers import BatchNorm2d, Sequential, together
from .nn.module import Module
from .nn.summary import Summary, summarise, training_peak
from .nn.weights import load_weights, save_weights
from .ops.precisions import check_tensor_cores, storage
from .predict import Detections, ImageLike, predict
from .tasks import TASKS

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, of pixels in 0..1
# Of the images with which `summary` measures memory; by then, scratch is at its largest.
MEASURED_PIXELS = 4 * 512 * 512
PRETRAINED = Path(__file__).parent / "pretrained"
CLASSIFIERS = ("fc.", "base.fc.")  # of networks trained on ImageNet; no detector computes with it


class CenterNet(Module):
    """A detector of objects as points: images (B, H, W, 3) -> {"hm": (B, H/4, W/4, C), "wh": (.., 2), "reg": (.., 2)}.

    backbone: a name in `minicenternet.backbones.BACKBONES`.  class_names: one name per label.  input_size (height,
    width): the network input in pixels.  pixel_mean, pixel_std (of three channels, of pixels in 0..1), channel_order
    ("RGB" or "BGR"): how images are normalised; part of the weights' metadata.  seed: of the initial weights.
    checkpointing: train in less memory, see `CenterNet.checkpointing`.
    Raises InputError for unknown names, unfit sizes and statistics.
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
        checkpointing: bool = False,
    ):
        if backbone not in BACKBONES:
            near = difflib.get_close_matches(backbone, BACKBONES, n=1)
            hint = f". Did you mean {near[0]}?" if near else ""
            raise InputError(f"unknown backbone {backbone!r}; there are {', '.join(BACKBONES)}{hint}")
        if task not in TASKS:
            raise InputError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
        if isinstance(class_names, str) or not class_names or len(set(class_names)) != len(class_names):
            raise InputError(f"class_names must be a list of distinct names, at least one, got {class_names!r}")
        self.backbone_name, self.task_name = backbone, task
        self.class_names = tuple(class_names)
        self.input_size = tuple(input_size)
        _check_pixels(pixel_mean, pixel_std, channel_order)
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.channel_order = channel_order
        self.folded, self.precision = False, "float32"
        rng = np.random.default_rng(seed)
        self.backbone = BACKBONES[backbone](rng)
        self.heads = self.backbone.heads(self.task.heads(len(self.class_names)), rng)
        self.checkpointing = checkpointing
        self._check_size(*self.input_size)

    @property
    def checkpointing(self) -> bool:
        """Whether each stage of the backbone is computed again in the backward pass instead of kept: same gradients."""
        return self.backbone.checkpointing

    @checkpointing.setter
    def checkpointing(self, checkpointing: bool) -> None:
        for _, module in self.backbone.named_modules():
            module.checkpointing = checkpointing

    @property
    def task(self) -> ModuleType:
        """The module in `minicenternet.tasks` that encodes, decodes and measures the loss."""
        return TASKS[self.task_name]

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the backbone's children and the heads side by side: the released files have no prefix for either."""
        yield from self.backbone.children()
        yield from self.heads.items()

    def forward(self, images: Tensor) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return the maps. In training, a backbone of several stacks gives a list of them, the last stack's last."""
        if images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"CenterNet needs images (B, H, W, 3), got {images.shape}")
        self._check_size(*images.shape[1:3])
        features = self.backbone(images)
        if isinstance(features, Tensor):
            return dict(zip(self.heads, together(features, list(self.heads.values())), strict=True))
        stacks = range(len(features)) if self.training else [len(features) - 1]
        maps = [{name: head[i](features[i]) for name, head in self.heads.items()} for i in stacks]
        return maps if self.training else maps[0]

    def _check_size(self, height: int, width: int) -> None:
        stride = self.backbone.stride
        if height < stride or width < stride or height % stride or width % stride:
            raise InputError(
                f"{self.backbone_name} needs an input whose sides are multiples of {stride}, got {height} x {width};"
                f" the next is {-(-height // stride) * stride} x {-(-width // stride) * stride}"
            )

    def fold(self) -> CenterNet:
        """Return a copy for inference, its batch norms folded into the convolutions before them: same maps, sooner.

        The copy is in evaluation mode and records no gradients; to train or save it raises InputError, for which this
        network stays as it was. From its first use on it also keeps its weights as the convolutions want them, on a GPU
        once more, on the CPU about three to five times as large: 257 MB for resnet18, beside 60 MB of weights.
        """
        model = copy.deepcopy(self)
        model.checkpointing = False  # who reads what is seen on the tape
        weight, side = self.parameters()[0].data, self.backbone.stride
        fold(model, get_xp(weight).zeros((1, side, side, 3), weight.dtype))
        model.folded = True
        return model

    def train(self, training: bool = True) -> CenterNet:
        """Set training mode, or evaluation mode; return the network.  Raises InputError for training when folded."""
        if training:
            self._check_unfolded("trained")
        return super().train(training)

    def to(self, device: str) -> CenterNet:
        """Move the network to a device, auto, cpu, cuda or cuda:N (see device.choose), in place, and return it.

        It then takes images there: `predict` and `evaluate` bring their own.  Raises InputError as device.choose does.
        """
        return super().to(choose(device)[0])

    def synchronise(self, world: World | None) -> None:
        """Have every batch norm, while training, take its statistics over the batches of all ranks."""
        for _, module in self.named_modules():
            if isinstance(module, BatchNorm2d):
                module.world = world

    def set_precision(self, precision: str) -> CenterNet:
        """Have every convolution multiply, and store its output, in a precision; return the network.

        float32 everywhere; on a GPU of compute capability 8.0 or above also tf32, bf16 (needs ml_dtypes) and fp16: see
        ops.conv2d_cuda.  Parameters, batch norm's statistics and losses stay float32.  Raises InputError for another
        one, and where the network's device does not have it.
        """
        storage(precision)
        on_cpu = get_xp(self.parameters()[0].data) is np
        if on_cpu and precision != "float32":
            raise InputError(f"precision {precision} needs a GPU, and the network is on the CPU; use float32")
        if not on_cpu:
            check_tensor_cores(precision)
        for _, module in self.named_modules():
            if hasattr(module, "precision"):
                module.precision = precision
        return self

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy arrays in, see Module.load_state_dict.  Raises InputError when folded, or when they do not fit."""
        self._check_unfolded("given other weights")
        super().load_state_dict(state)

    def _check_unfolded(self, what: str) -> None:
        if self.folded:
            raise InputError(
                f"a folded network cannot be {what}: its batch norms are gone; use the network that fold() was called"
                " on, or CenterNet.load its file again"
            )

    def summary(self, batch: int = 1) -> Summary:
        """Print and return the table of layers: output shape, parameters, multiply-adds, activation memory.

        Below it, the peak memory of a training step with `batch` images: see nn.summary.training_peak.
        """
        height, width = self.input_size
        dtype = self.parameters()[0].dtype
        table = summarise(self, np.zeros((1, height, width, 3), dtype), batch)
        if not self.folded:
            table = replace(table, peak_bytes=self.training_peak(batch))
        print(table)
        return table

    def training_peak(self, batch: int) -> int:
        """Return the bytes that a training step with Adam takes on the CPU: see nn.summary.training_peak."""
        height, width = self.input_size
        dtype = self.parameters()[0].dtype

        def loss(images: int) -> Tensor:
            targets = self.task.encode(np.zeros((0, 4)), np.zeros(0, int), len(self.class_names), height, width)
            batch_of_targets = {name: np.stack([array] * images) for name, array in targets.items()}
            return self.task.loss(self(Tensor(np.zeros((images, height, width, 3), dtype))), batch_of_targets)[0]

        return training_peak(self, loss, batch, max(2, MEASURED_PIXELS // (height * width)))

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
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

    def load_matching(self, arrays: Mapping[str, Array], other_classes: bool = False) -> LoadReport:
        """Copy in the arrays of a related network: an ImageNet backbone, or a detector of other classes.

        Parts (first names of the keys) that the arrays lack as a whole, and head layers of another shape, keep their
        initial values; `fc` is ignored; a DLA trunk may come without its prefix "base.". The report names all of it.
        other_classes: the arrays are of other classes, though perhaps as many: the heatmap's last layer keeps its
        initial values in any case.

        Raises InputError, and changes nothing, for arrays that are unexpected, or of another shape outside the heads,
        and for a part that is there in pieces: these are of another network. Raises it for arrays that hold NaN or
        infinity, and for a folded network, too.
        """
        self._check_unfolded("given other weights")
        own = self.state_dict()
        given = {f"base.{key}" if f"base.{key}" in own else key: array for key, array in arrays.items()}
        anew = self._heatmap_layers() if other_classes else ()
        misshapen = [
            key for key in own if key in given and (given[key].shape != own[key].shape or key.startswith(anew))
        ]
        loaded = [key for key in own if key in given and key not in misshapen]
        parts = {key.split(".")[0] for key in own if key in given}
        lacking = [key for key in own if key not in given and not key.startswith(CLASSIFIERS)]
        missing = [key for key in lacking if not key.endswith("num_batches_tracked")]  # old files have none
        report = LoadReport(loaded, missing, misshapen, [key for key in given if key not in own])
        wrong = {
            "lacks": [key for key in missing if key.split(".")[0] in parts],
            "has unknown": [key for key in report.unused if not key.startswith(CLASSIFIERS)],
            "has of another shape": [key for key in misshapen if key.split(".")[0] not in self.heads],
        }
        if any(wrong.values()) or not loaded:
            reasons = [f"the file {verb} {_some(keys)}" for verb, keys in wrong.items() if keys]
            raise InputError(
                f"the weights are not those of {self.backbone_name}: {'; '.join(reasons) or 'no name is known'}. "
                "Name the network that they are of, or use other weights"
            )
        bad = [key for key in loaded if not np.isfinite(given[key]).all()]
        if bad:
            raise InputError(
                f"the weights hold NaN or infinity in {_some(bad)}: their training had failed, or the file is damaged. "
                "Use an earlier checkpoint"
            )
        for key in loaded:
            own[key][...] = beside(own[key], given[key])
        return report

    def _heatmap_layers(self) -> tuple[str, ...]:
        """How the keys of the heatmap's last layer begin, of each stack: its channels are the classes."""
        head = self.heads["hm"]
        if isinstance(head, Sequential):
            return (f"hm.{len(head) - 1}.",)
        return tuple(f"hm.{i}.{len(stack) - 1}." for i, (_, stack) in enumerate(head.children()))

    def save(self, path: str | os.PathLike, metrics: Mapping[str, float] | None = None) -> None:
        """Write weights and metadata (all that `load` needs, and the metrics given) to a .safetensors file."""
        self._check_unfolded("saved")
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
                "expected a file written by CenterNet.save or by training; minicenternet convert makes one of others"
            ) from error
        model.load_state_dict(arrays)
        return model.eval()

    @classmethod
    def pretrained(cls, name: str = "shapes") -> CenterNet:
        """Return a network that comes with the package, in evaluation mode: `pretrained/NAME.md` is its card.

        Raises InputError for another name.
        """
        path = PRETRAINED / f"{name}.safetensors"
        if not path.is_file():
            there = ", ".join(file.stem for file in sorted(PRETRAINED.glob("*.safetensors")))
            raise InputError(f"no weights called {name!r} come with the package; there are: {there}")
        return cls.load(path)


class LoadReport(NamedTuple):
    """What `CenterNet.load_matching` did, in keys of the state_dict."""

    loaded: list[str]
    missing: list[str]  # as they were, since the file has none
    misshapen: list[str]  # as they were, since the file's are of other classes
    unused: list[str]  # in the file, but not in the network

    def __str__(self) -> str:
        """One sentence."""
        parts = [f"{len(self.loaded)} arrays were loaded"]
        if self.missing:
            lacking = dict.fromkeys(key.split(".")[0] for key in self.missing)
            parts.append(f"{', '.join(lacking)} begin anew, for the file has none")
        if self.misshapen:
            parts.append(f"{', '.join(self.misshapen)} begin anew, for the file's are of other classes")
        if self.unused:
            parts.append(f"{', '.join(self.unused)} of the file are not used")
        return "; ".join(parts)


def _check_pixels(mean: Sequence[float], std: Sequence[float], channel_order: str) -> None:
    for name, values in (("pixel_mean", mean), ("pixel_std", std)):
        numbers = np.asarray(values)
        fits = numbers.shape == (3,) and numbers.dtype.kind in "iuf" and np.isfinite(numbers).all()
        if not fits or (name == "pixel_std" and numbers.min() <= 0):
            above = " above 0" if name == "pixel_std" else ""
            raise InputError(f"{name} is {values!r}; expected three numbers{above}, one for each channel")
    if channel_order not in ("RGB", "BGR"):
        raise InputError(f"channel_order is {channel_order!r}; it must be 'RGB' or 'BGR'")


def _some(keys: Sequence[str], named: int = 3) -> str:
    more = f" and {len(keys) - named} more" if len(keys) > named else ""
    return ", ".join(keys[:named]) + more
