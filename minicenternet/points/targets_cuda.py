"""The targets of a whole batch on a GPU: launches the kernel of targets.cu."""

from __future__ import annotations

from ..backend import Array, get_xp, kernel, neighbours
from ..errors import InputError
from .targets import MAX_OBJECTS, Targets

FILE = "points/targets.cu"
THREADS = 128  # of a block, and cells that it draws at once, unless there are too many classes for
TILE_BYTES = 40 << 10  # of shared memory, which leave room for several blocks on a processor
BLOCKS = 512  # wanted: each works out all objects of an image, and should have several tiles to draw
OBJECT_BYTES = 16  # sizeof(Object) in the kernel


def encode(
    boxes: Array,
    labels: Array,
    num_classes: int,
    height: int,
    width: int,
    stride: int = 4,
    max_objects: int = MAX_OBJECTS,
    min_overlap: float = 0.7,
    form: str = "released",
) -> Targets:
    """Return the Targets of a batch, each field with a batch axis, like targets.encode image by image.

    boxes: (B, M, 4) float32 and labels: (B, M) int64 on the GPU, -1 in empty slots.  Values are not looked at: a label
    out of range is an empty slot, and NaN in a box counts as 0.
    Raises InputError for wrong shapes or another form.
    """
    if boxes.ndim != 3 or boxes.shape[2] != 4 or labels.shape != boxes.shape[:2]:
        raise InputError(f"encode needs boxes (B, M, 4) and labels (B, M), got {boxes.shape} and {labels.shape}")
    if form not in ("released", "corrected"):
        raise InputError(f"gaussian_radius has no form {form!r}; choose 'released' or 'corrected'")
    xp, (batch, slots) = get_xp(boxes, labels), labels.shape
    targets = Targets(
        heatmap=xp.empty((batch, height, width, num_classes), "float32"),
        index=xp.empty((batch, max_objects), "int64"),
        offset=xp.empty((batch, max_objects, 2), "float32"),
        size=xp.empty((batch, max_objects, 2), "float32"),
        mask=xp.empty((batch, max_objects), "float32"),
    )
    tile = max(1, min(THREADS, TILE_BYTES // (4 * num_classes)))
    parts = min(-(-height * width // tile), -(-BLOCKS // max(1, batch)))
    kernel(FILE, f"targets_encode<{neighbours(num_classes, targets.heatmap.dtype)}>")(
        (parts, batch), THREADS, boxes, labels, *targets, slots, max_objects, height, width, num_classes, tile,
        stride, min_overlap, form == "released", shared=OBJECT_BYTES * slots + 4 * tile * num_classes
    )  # fmt: skip
    return targets
