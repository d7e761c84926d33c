"""The focal loss on a GPU: launches the kernels of losses.cu."""

from __future__ import annotations

from ..backend import c_type, get_xp, kernel

FILE = "points/losses.cu"
THREADS = 256  # THREADS in the kernels
BLOCKS = 1024  # at most, for the sum; the bits depend on the shape alone


def focal_loss(logits, heatmap, alpha, beta):
    """Return (loss, backward) like focal_loss.raw: float32, float16 or bfloat16 logits; heatmap and loss float32."""
    xp, T, count = get_xp(logits, heatmap), c_type(logits.dtype), logits.size
    logits, heatmap = xp.ascontiguousarray(logits), xp.ascontiguousarray(heatmap)
    blocks = min(BLOCKS, -(-count // THREADS))
    sums = xp.zeros((blocks, 2), "float32")
    loss, objects = xp.empty((2, 1), "float32")
    kernel(FILE, f"focal_loss_forward<{T}>")(blocks, THREADS, logits, heatmap, sums, count, alpha, beta)
    kernel(FILE, "focal_loss_total")(1, THREADS, sums, loss, objects, blocks)

    def backward(dloss):
        dlogits = xp.empty(logits.shape, logits.dtype)
        kernel(FILE, f"focal_loss_backward<{T}>").each(
            count, logits, heatmap, objects, dloss, dlogits, count, alpha, beta
        )
        return dlogits, None

    return loss.reshape(()), backward
