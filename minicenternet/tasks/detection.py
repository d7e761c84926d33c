"""Object detection: a heatmap of centres per class ("hm"), box sizes ("wh") and sub-cell offsets ("reg"), stride 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..autograd import Tensor
from ..backend import Array
from ..points.decode import Decoded
from ..points.decode import decode as decode_maps
from ..points.losses import detection_loss
from ..points.targets import Targets
from ..points.targets import encode as encode_targets
from ..points.targets_cuda import encode as encode_targets_on_gpu

STRIDE = 4  # input pixels per cell of the maps, R in the paper


def heads(num_classes: int) -> dict[str, int]:
    """Return the channels of each output map."""
    return {"hm": num_classes, "wh": 2, "reg": 2}


def encode(
    boxes: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    height: int,
    width: int,
    *,
    min_overlap: float = 0.7,
    form: str = "released",
) -> dict[str, np.ndarray]:
    """Return the target arrays of one network input of (height, width) pixels: see points.targets.encode."""
    return encode_targets(
        boxes,
        labels,
        num_classes,
        height // STRIDE,
        width // STRIDE,
        STRIDE,
        min_overlap=min_overlap,
        form=form,
    )._asdict()


def encode_batch(
    boxes: Array,
    labels: Array,
    num_classes: int,
    height: int,
    width: int,
    *,
    min_overlap: float = 0.7,
    form: str = "released",
) -> dict[str, Array]:
    """Return what `encode` does for all images of a batch, on a GPU: see points.targets_cuda.encode."""
    return encode_targets_on_gpu(
        boxes,
        labels,
        num_classes,
        height // STRIDE,
        width // STRIDE,
        STRIDE,
        min_overlap=min_overlap,
        form=form,
    )._asdict()


def loss(
    outputs: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    targets: Mapping[str, np.ndarray],
    *,
    denominator: str = "paper",
    shares: Mapping[str, np.ndarray] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (total, named parts) of a batch: see points.losses.detection_loss.

    Of the maps of several stacks, a list, each loss is the mean over the stacks (released code).
    """
    targets = Targets(**{name: targets[name] for name in Targets._fields})
    if isinstance(outputs, Mapping):
        return detection_loss(outputs, targets, denominator=denominator, shares=shares)
    losses = [detection_loss(maps, targets, denominator=denominator, shares=shares) for maps in outputs]
    parts = {name: _mean([parts[name] for _, parts in losses]) for name in losses[0][1]}
    return _mean([total for total, _ in losses]), parts


def _mean(values: Sequence[Tensor]) -> Tensor:
    return sum(values[1:], start=values[0]) / len(values)


def decode(outputs: Mapping[str, Tensor], k: int = 100) -> Decoded:
    """Return the best k boxes of each image, in pixels of the network input: see points.decode.decode."""
    maps = (outputs[name].data for name in ("hm", "reg", "wh"))
    return decode_maps(*maps, k, STRIDE, logits=True)
