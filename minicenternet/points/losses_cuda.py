"""The losses on a GPU: launches the kernels of losses.cu."""

from __future__ import annotations

from ..backend import c_type, contiguous, get_xp, kernel, neighbours

FILE = "points/losses.cu"
THREADS, POINT_THREADS = 256, 1024  # as in the kernels
BLOCKS = 1056  # at most, for the sum: eight for each of an H200's processors; the bits depend on the shape alone


def focal_loss(logits, heatmap, alpha, beta):
    """Return (loss, backward) like focal_loss.raw: float32, float16 or bfloat16 logits; heatmap and loss float32."""
    xp, T, count = get_xp(logits, heatmap), c_type(logits.dtype), logits.size
    logits, heatmap = contiguous(logits), contiguous(heatmap)
    K, paper = neighbours(logits.shape[-1], logits.dtype), "true" if (alpha, beta) == (2, 4) else "false"
    blocks = min(BLOCKS, -(-count // (THREADS * K)))
    sums = xp.empty((blocks, 2), "float32")
    loss, objects = xp.empty((), "float32"), xp.empty((), "float32")
    kernel(FILE, f"focal_loss_forward<{T}, {K}, {paper}>")(blocks, THREADS, logits, heatmap, sums, count, alpha, beta)
    kernel(FILE, "focal_loss_total")(1, THREADS, sums, loss, objects, blocks)

    def backward(dloss):
        dlogits = xp.empty(logits.shape, logits.dtype)
        kernel(FILE, f"focal_loss_backward<{T}, {K}, {paper}>").each(
            count // K, logits, heatmap, objects, dloss, dlogits, count, alpha, beta
        )
        return dlogits, None

    return loss, backward


def l1_loss(prediction, target, mask, denominator):
    """Return (loss, backward) like l1_loss.raw: float32, float16 or bfloat16 prediction; all else float32."""
    xp, T, (*_, D) = get_xp(prediction, target, mask), c_type(prediction.dtype), prediction.shape
    prediction = xp.ascontiguousarray(prediction)
    target, mask = (xp.ascontiguousarray(array, dtype="float32") for array in (target, mask))
    loss, divisor = xp.empty((), "float32"), xp.empty((), "float32")
    kernel(FILE, f"l1_loss_forward<{T}>")(
        1, POINT_THREADS, prediction, target, mask, loss, divisor, mask.size, D, denominator == "released"
    )

    def backward(dloss):
        dprediction = xp.empty(prediction.shape, prediction.dtype)
        kernel(FILE, f"l1_loss_backward<{T}>").each(
            prediction.size, prediction, target, mask, divisor, dloss, dprediction, prediction.size, D
        )
        return dprediction, None, None

    return loss, backward
