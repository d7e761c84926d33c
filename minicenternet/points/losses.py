"""How wrong the maps are: a focal loss over the whole heatmap, L1 losses of offset and size at the objects' cells.

    total = heatmap loss + 0.1 * size loss + 1 * offset loss,   each divided by the number of objects N

Gradients flow to the predictions only; targets are constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..autograd import Tensor, differentiable
from ..backend import Array, get_xp
from ..errors import InputError
from ..memory import empty
from ..ops import gather_points
from ..ops.pointwise import in_blocks, worth_blocks
from ..strips import BLOCK
from ..threads import parallel_for
from . import losses_cuda
from .targets import Targets


@differentiable
def focal_loss(logits, heatmap, alpha=2, beta=4):
    """E4, paper (1): penalty-reduced pixel-wise logistic loss over N objects, p = sigmoid(logits).

        -1/N * sum  (1-p)^alpha * log p                   where Y = 1
                    (1-Y)^beta * p^alpha * log(1-p)       elsewhere

    logits, heatmap Y: (B, H, W, C) float32 or float64; returns a scalar. N counts the cells where Y = 1, at least 1.
    A peak's line is the other one for -logits, of weight 1.  Raises InputError when the shapes differ.
    """
    if logits.shape != heatmap.shape:
        raise InputError(f"focal_loss needs logits and heatmap of one shape, got {logits.shape} and {heatmap.shape}")
    if get_xp(logits, heatmap) is not np:
        return losses_cuda.focal_loss(logits, heatmap, alpha, beta)
    if worth_blocks(logits, heatmap):
        total, peaks, slope = _focal_sum_in_blocks(logits, heatmap, alpha, beta)
    else:
        total, peaks, slope = _focal_sum(logits, heatmap, alpha, beta)
    N = max(float(peaks), 1.0)

    def backward(dloss):
        scale = dloss / N
        return in_blocks(lambda slope: scale * slope, slope), None

    return (total / N).astype(logits.dtype), backward


def _focal_sum(logits: Array, heatmap: Array, alpha: float, beta: float) -> tuple[Array, int, Array]:
    """Return the sum of the focal loss's terms, the number of peaks, and the slope of each term along its logit."""
    at_peak = (heatmap == 1).astype(logits.dtype)
    sign = 1 - 2 * at_peak
    weight = np.maximum(((1 - heatmap) ** 2) ** (beta / 2), at_peak)  # squares are fast, and so are their squares
    x = sign * logits  # should be low everywhere
    size = np.abs(x)
    e = np.exp(-size)  # in (0, 1]: neither overflows nor loses a small p, whatever the logits
    u = 1 + e
    softplus = (x + size) / 2 + np.log(u) + (e - (u - 1)) / u  # -log(1-p); the last term is what 1 + e rounded off
    p = np.maximum(e, x >= 0) / u
    weight *= p**alpha
    slope = sign * weight * (p + alpha * (1 - p) * softplus)
    return (weight * softplus).sum(), np.count_nonzero(at_peak), slope


def _focal_sum_in_blocks(logits: Array, heatmap: Array, alpha: float, beta: float) -> tuple[Array, Array, Array]:
    """Return what _focal_sum does, from sums over blocks that stay in cache, added up in a fixed order."""
    slope = empty(logits.shape, logits.dtype)
    starts = range(0, logits.size, BLOCK)
    totals, peaks = np.empty((2, len(starts)))
    flat_logits, flat_heatmap, flat_slope = (array.reshape(-1) for array in (logits, heatmap, slope))

    def block(i: int) -> None:
        part = slice(starts[i], starts[i] + BLOCK)
        totals[i], peaks[i], flat_slope[part] = _focal_sum(flat_logits[part], flat_heatmap[part], alpha, beta)

    parallel_for(block, range(len(starts)))
    return totals.sum(), peaks.sum(), slope


@differentiable
def l1_loss(prediction, target, mask, denominator="paper"):
    """E5, E6, paper (2) and (3): sum of |prediction - target| over the objects, divided by their number N.

    prediction, target: (B, M, D) in cells, offsets or sizes.  mask: (B, M), 1 for an object, 0 for an empty slot.
    denominator="paper", the default, divides by N, at least 1. "released" divides, as the released code does, by the
    mask summed over all coordinates, D*N + 1e-4: half the loss for D = 2.  Returns a scalar; the gradient is +-1/N, and
    0 where prediction and target are equal. On a GPU a prediction may have 16 bits; the loss is float32.
    Raises InputError when shapes do not fit or for another denominator.
    """
    if prediction.shape != target.shape or mask.shape != prediction.shape[:-1]:
        raise InputError(
            "l1_loss needs prediction and target (B, M, D) and mask (B, M), "
            f"got {prediction.shape}, {target.shape} and {mask.shape}"
        )
    if denominator not in ("paper", "released"):
        raise InputError(f"l1_loss has no denominator {denominator!r}; choose 'paper' or 'released'")
    if get_xp(prediction, target, mask) is not np:
        return losses_cuda.l1_loss(prediction, target, mask, denominator)
    error, mask = prediction - target, mask[..., None].astype(prediction.dtype)
    if denominator == "paper":
        divisor = np.maximum(mask.sum(), 1)
    else:
        divisor = mask.sum() * prediction.shape[-1] + 1e-4
    loss = (np.abs(error) * mask).sum() / divisor

    def backward(dloss):
        return dloss / divisor * (np.sign(error) * mask), None, None

    return loss, backward


def detection_loss(
    outputs: Mapping[str, Tensor],
    targets: Targets,
    size_weight: float = 0.1,
    offset_weight: float = 1.0,
    denominator: str = "paper",
    shares: Mapping[str, float | Array] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """E7, paper (4): heatmap loss + size_weight * size loss + offset_weight * offset loss.

    outputs: "hm" (B, H, W, C) logits, "wh" (B, H, W, 2) sizes and "reg" (B, H, W, 2) offsets, both in cells.
    targets: with a batch axis in front of each field, arrays on the outputs' device.  denominator: see l1_loss.
    shares: of a batch that several ranks have parts of, what to multiply each part's loss by, see `shares_of`.
    Returns the total, a scalar, and its unweighted parts "heatmap", "size" and "offset".
    The paper regresses sizes in input pixels; here they are in cells, with the same weight, as in the released code.
    """
    parts = {
        "heatmap": focal_loss(outputs["hm"], targets.heatmap),
        "size": l1_loss(gather_points(outputs["wh"], targets.index), targets.size, targets.mask, denominator),
        "offset": l1_loss(gather_points(outputs["reg"], targets.index), targets.offset, targets.mask, denominator),
    }
    if shares:
        parts = {name: loss * shares[name] for name, loss in parts.items()}
    return parts["heatmap"] + size_weight * parts["size"] + offset_weight * parts["offset"], parts


def shares_of(counts: Array, all_counts: Array, denominator: str = "paper") -> dict[str, Array]:
    """Return by what to multiply each loss of one rank's part of a batch, so that the ranks' sum is the batch's loss.

    counts, all_counts: (2,) floats, the peaks of the heatmap and the objects, of this rank's part and of the batch.
    A loss is divided by the number in its own part; what it should be divided by is the batch's.
    """
    xp = get_xp(counts, all_counts)
    divisors = [xp.maximum(numbers, 1) for numbers in (counts, all_counts)]
    if denominator == "released":
        regression = [2 * numbers[1] + 1e-4 for numbers in (counts, all_counts)]
    else:
        regression = [numbers[1] for numbers in divisors]
    of_regression = regression[0] / regression[1]
    return {"heatmap": divisors[0][0] / divisors[1][0], "size": of_regression, "offset": of_regression}


def expected_first_loss(heatmap: Array, prior: float = 0.1, alpha: float = 2, beta: float = 4) -> float:
    """Return the focal loss of a network that answers `prior` everywhere, as it should before the first step.

    heatmap: (B, H, W, C) targets.  With prior=0.5: the loss of a network whose prior bias was forgotten.
    """
    at_peak = heatmap == 1
    peaks = int(at_peak.sum())
    elsewhere = float((~at_peak * (1 - heatmap) ** beta).sum(dtype="float64"))
    total = peaks * (1 - prior) ** alpha * math.log(prior) + elsewhere * prior**alpha * math.log(1 - prior)
    return -total / max(peaks, 1)


CLAMPED_LOSS = -((1 - 1e-4) ** 2) * math.log(1e-4)  # 9.2085: the focal loss when every p is held at 1e-4


def explain_loss(
    heatmap_losses: Sequence[float], size_losses: Sequence[float], at_prior: float, at_half: float
) -> str | None:
    """Return one line on what a well-known value of the heatmap loss means, or None when it is not one of them.

    heatmap_losses, size_losses: of every step so far, at least one, oldest first (unweighted parts of detection_loss).
    at_prior, at_half: expected_first_loss of the first step's heatmap for the prior and for 0.5.
    Only the first step is compared with those two, within a quarter; the other signs must hold for three steps.
    """
    first, latest, latest_size = heatmap_losses[0], heatmap_losses[-3:], size_losses[-3:]
    if len(heatmap_losses) == 1 and math.isclose(first, at_prior, rel_tol=0.25):
        return f"first heatmap loss {first:.4g}: healthy, as {at_prior:.4g} is what the prior gives"
    if len(heatmap_losses) == 1 and math.isclose(first, at_half, rel_tol=0.25):
        return (
            f"first heatmap loss {first:.4g}: every probability is near 0.5, so the prior bias is missing "
            f"({at_prior:.4g} would be healthy); set the bias of the last heatmap layer to -2.19"
        )
    if len(latest) == 3 and all(abs(loss - CLAMPED_LOSS) < 1e-3 for loss in latest):
        return (
            f"heatmap loss stuck at {CLAMPED_LOSS:.4f}: every probability is at the clamp 1e-4, where the gradient is "
            "dead; give the loss logits that were never clipped, or start again with a lower learning rate"
        )
    if len(latest) == 3 and max(latest) < 0.01 and max(latest_size) == 0:
        return (
            "heatmap loss near 0 and size loss 0: no object reaches the loss; check that boxes are x1 y1 x2 y2 in "
            "pixels of the network's input, that centres are rounded down to cells, that labels are not filtered out"
        )
    return None
