# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Decoding
#
# - **Goal** Turn three maps back into boxes on the photograph: peaks, the best K, boxes, the way back to the image's
#   own pixels. Greedy NMS for comparison.
# - **You need** 07, 09.
# - **Minutes** 55 to read and work / runs in about 6 s
# - **Equations** E8, E9
# - **What you should see** Encoded boxes come back to within 0.001 pixels, unless two objects share a cell. Without
#   the peak test there are over 5 detections for each object, with it about 1.1 (below 1.2), of maps
#   with our noise.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from minicenternet.data.shapes import Shapes
from minicenternet.data.transforms import apply_to_boxes, invert, letterbox, warp
from minicenternet.draw import COLOURS, show
from minicenternet.points import decode
from minicenternet.points.targets import encode

FAST = os.environ.get("MINICENTERNET_FAST") == "1"
R = 4

# %% [markdown]
# ## What a network answers
#
# Decoding needs maps, not a network. We make them: the targets of notebook 07 with a different height for each
# object, noise of 0.5 on the logits, and sizes and offsets that are right to a few hundredths. In one thing they are
# much like a trained network's: cells *beside* a centre answer with nearly the same box.
#
# The image has 320 by 200 pixels. The network's input has 256 by 256, so the image is scaled by 0.8 and put in the
# middle, black above and below. The map has 64 by 64 cells.


# %%
def imitate(boxes, labels, rng):
    """What a trained network might answer to boxes (N, 4): heatmap, offset, size, each (1, 64, 64, ...)."""
    heatmap, exact = np.zeros((64, 64, 5)), encode(boxes, labels, 5, 64, 64)
    for k, confidence in enumerate(rng.uniform(0.6, 0.95, len(boxes))):
        blob = encode(boxes[k : k + 1], labels[k : k + 1], 5, 64, 64).heatmap
        heatmap = np.maximum(heatmap, confidence * blob)
    floor = np.clip(heatmap, 0.01, None)
    logits = np.log(floor / (1 - floor)) + 0.5 * rng.normal(size=heatmap.shape)
    rows, columns = np.indices((64, 64))
    cell_y, cell_x = np.divmod(exact.index[: len(boxes)], 64)
    nearest = ((rows[..., None] - cell_y) ** 2 + (columns[..., None] - cell_x) ** 2).argmin(axis=-1)  # (64, 64)
    offset = exact.offset[nearest] + 0.03 * rng.normal(size=(64, 64, 2))
    size = exact.size[nearest] * (1 + 0.03 * rng.normal(size=(64, 64, 2)))
    return (1 / (1 + np.exp(-logits)))[None], offset[None], size[None]


shapes = Shapes(60, size=(200, 320), seed=5, objects=(3, 7), scale=(0.15, 0.6))
matrix = letterbox(320, 200, 256, 256)
sample = shapes[53]
boxes, labels = apply_to_boxes(matrix, sample.annotation.boxes), sample.annotation.labels
heatmap, offset, size = imitate(boxes, labels, np.random.default_rng(0))
print(f"{len(boxes)} objects; matrix\n{matrix}")

# %% [markdown]
# **Predict.** Call every cell above 0.3 a detection. How many detections will there be for each object?

# %%
above = np.count_nonzero(heatmap > 0.3)
print(f"{above} cells above 0.3 for {len(boxes)} objects")
assert above > 5 * len(boxes)

# %% [markdown]
# ## E8 · Peaks
#
# A cell of a class is a peak if none of its 8 neighbours is larger (paper §4.1). In vectors: take the maximum of each
# 3 by 3 window, and keep the cells that equal it.
#
# $$\hat Y_{yxc} \;\ge\; \hat Y_{y+i,\,x+j,\,c} \qquad \text{for all } i, j \in \{-1, 0, 1\} \qquad \text{(E8)}$$
#
# At the border a window has fewer cells. Classes do not see each other: a person's peak does not suppress the dog
# beside it.
#
# **Write.** Return the heatmap with 0 wherever there is no peak.


# %% tags=["exercise", "derives-E8"]
def peaks(heatmap):
    """E8: heatmap (B, H, W, C) -> the same with 0 wherever one of the 8 neighbours is larger."""
    ### BEGIN SOLUTION hint: pad H and W by -inf, the maximum of nine shifted views, then np.where(heatmap == maximum)
    _, height, width, _ = heatmap.shape
    padded = np.pad(heatmap, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.where(heatmap == np.max(windows, axis=0), heatmap, 0)
    ### END SOLUTION


# %% tags=["check"]
def is_peak(heatmap, b, y, x, c):
    """The oracle: look at each neighbour that exists."""
    for i in range(max(y - 1, 0), min(y + 2, heatmap.shape[1])):
        for j in range(max(x - 1, 0), min(x + 2, heatmap.shape[2])):
            if heatmap[b, i, j, c] > heatmap[b, y, x, c]:
                return False
    return True


diagonal = np.zeros((1, 4, 4, 1))
diagonal[0, 1, 1], diagonal[0, 2, 2] = 0.9, 0.8
assert peaks(diagonal)[0, 2, 2, 0] == 0, (
    "0.8 has 0.9 as its diagonal neighbour, so it is no peak: there are 8 neighbours"
)
edges = np.zeros((1, 4, 4, 1))
edges[0, 1, 0], edges[0, 1, 3] = 0.5, 0.9
assert peaks(edges)[0, 1, 0, 0] == 0.5, "0.5 at the left border is a peak: the right border is no neighbour of it"
classes = np.zeros((1, 4, 4, 2))
classes[0, 1, 1] = 0.5, 0.9
assert peaks(classes)[0, 1, 1, 0] == 0.5, "two classes may have a peak in one cell: windows do not reach across classes"
rng = np.random.default_rng(1)
for levels in (1000, 4):  # with four levels there are many equal neighbours
    random = rng.integers(1, levels + 1, (2, 6, 7, 3)) / levels
    got = peaks(random)
    assert got.shape == random.shape, f"peaks keeps the shape {random.shape}, yours is {got.shape}"
    for cell in np.ndindex(*random.shape):
        expected = random[cell] if is_peak(random, *cell) else 0
        assert got[cell] == expected, (
            f"cell {cell}: expected {expected:.3f}, got {got[cell]:.3f}; equal neighbours are both peaks, "
            "and a peak keeps its value"
        )

# %% [markdown]
# ### The best K
#
# There is no threshold in the paper: it keeps the $K = 100$ best peaks over *all* classes, and the evaluation sorts
# out the rest.
#
# **Write.** Flat index and back: in $(H, W, C)$ the class runs fastest. Equal scores come in the order of the flat
# index, so that the answer is always the same; a stable sort of the negated scores does that.


# %% tags=["exercise"]
def top_k(heatmap, k):
    """heatmap (B, H, W, C) -> scores, labels, y, x of the k largest numbers of each image, best first, each (B, k)."""
    ### BEGIN SOLUTION hint: reshape to (B, H*W*C), argsort of minus that with kind='stable', then // and %
    batch, _, width, classes = heatmap.shape
    flat = heatmap.reshape(batch, -1)
    index = np.argsort(-flat, axis=1, kind="stable")[:, :k]
    cell, labels = index // classes, index % classes
    return np.take_along_axis(flat, index, axis=1), labels, cell // width, cell % width
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(2)
for levels in (10_000, 5):
    random = rng.integers(1, levels + 1, (2, 5, 6, 3)) / levels
    scores, found_labels, y, x = top_k(random, 20)
    for b in range(2):
        ordered = sorted((-random[b, i, j, c], i, j, c) for i, j, c in np.ndindex(5, 6, 3))[:20]
        expected_scores = [-row[0] for row in ordered]
        assert scores[b].tolist() == expected_scores, (
            f"image {b}: expected scores {np.round(expected_scores[:4], 3)} ..., got {np.round(scores[b][:4], 3)} ...: "
            "the largest of all classes together, best first"
        )
        places = list(zip(y[b].tolist(), x[b].tolist(), found_labels[b].tolist(), strict=True))
        for rank, (place, (_, *expected)) in enumerate(zip(places, ordered, strict=True)):
            assert place == tuple(expected), (
                f"image {b}, rank {rank}: (y, x, label) is {tuple(expected)}, yours {place}. In (H, W, C) the class "
                "runs fastest, then x; of equal scores the lowest flat index comes first"
            )

# %% [markdown]
# ## E9 · Boxes
#
# At a peak $(\hat x, \hat y)$ the maps hold the offset $(\delta x, \delta y) = \hat O_{\hat y \hat x}$ and the size
# $(w, h) = \hat S_{\hat y \hat x}$, in cells. The box is, in pixels of the network's input (paper §4.1),
#
# $$\left(\hat x + \delta x - \tfrac{w}{2},\;\; \hat y + \delta y - \tfrac{h}{2},\;\;
# \hat x + \delta x + \tfrac{w}{2},\;\; \hat y + \delta y + \tfrac{h}{2}\right) \cdot R \qquad \text{(E9)}$$
#
# **Predict.** A peak at $\hat x = 10$, $\hat y = 6$ with the offset (0.5, 0.25) and the size 8 by 3 cells. Where is
# the box, in pixels?


# %% tags=["exercise", "derives-E9"]
def boxes_at(y, x, offset, size, stride=R):
    """E9: y, x (B, K), offset and size (B, H, W, 2) -> boxes (B, K, 4), x1 y1 x2 y2 in pixels of the input."""
    ### BEGIN SOLUTION hint: read both maps at [image, y, x]; centre minus half the size, centre plus half the size
    image = np.arange(len(y))[:, None]
    centre = np.stack([x, y], axis=-1) + offset[image, y, x]
    half = size[image, y, x] / 2
    return np.concatenate([centre - half, centre + half], axis=-1) * stride
    ### END SOLUTION


# %% tags=["check"]
offset_map, size_map = np.full((1, 12, 16, 2), 9.0), np.full((1, 12, 16, 2), 99.0)
offset_map[0, 6, 10], size_map[0, 6, 10] = (0.5, 0.25), (8, 3)
got = boxes_at(np.array([[6]]), np.array([[10]]), offset_map, size_map)
assert got.shape == (1, 1, 4), f"one peak in one image gives (1, 1, 4), yours has {got.shape}"
x1, y1, x2, y2 = got[0, 0]
assert x2 > x1 and y2 > y1, f"the box {got[0, 0]} has no area: x2 and y2 are the centre PLUS half of the size"
assert np.allclose(got, [[[26, 19, 58, 31]]]), (
    f"centre (10.5, 6.25), half size (4, 1.5), times 4: expected 26 19 58 31, got {got[0, 0]}. "
    "Both maps are read at [y, x] and hold x first; the offset is added before the multiplication"
)
rng = np.random.default_rng(3)
offset_map, size_map = rng.random((2, 12, 16, 2)), rng.uniform(1, 5, (2, 12, 16, 2))
y, x = rng.integers(0, 12, (2, 3)), rng.integers(0, 16, (2, 3))
got = boxes_at(y, x, offset_map, size_map, stride=8)
for b, k in np.ndindex(2, 3):
    (dx, dy), (w, h) = offset_map[b, y[b, k], x[b, k]], size_map[b, y[b, k], x[b, k]]
    cx, cy = x[b, k] + dx, y[b, k] + dy
    expected = 8 * np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    assert np.allclose(got[b, k], expected), f"image {b}, peak {k}, stride 8: expected {expected}, got {got[b, k]}"

# %% [markdown]
# **Picture.** Before and after: every cell above 0.3 draws its box; then only the peaks do.


# %%
def decode_all(heatmap, offset, size, k=100):
    """Boxes (B, k, 4), scores and labels, of the best k numbers of a heatmap."""
    scores, labels, y, x = top_k(heatmap, k)
    return boxes_at(y, x, offset, size), scores, labels


figure, axes = plt.subplots(1, 3, figsize=(8, 2.3), layout="constrained", sharey=True)
photograph = warp(sample.image, matrix, (256, 256))
axes[0].imshow(photograph, extent=(0, 256, 256, 0))
axes[0].imshow(heatmap[0].max(axis=-1), cmap="cividis", extent=(0, 256, 256, 0), alpha=0.65, vmin=0, vmax=1)
axes[0].set(title="largest Ŷ over classes", xlabel="x (pixels)", ylabel="y (pixels)")
for axis, (name, map_) in zip(
    axes[1:], {"all above 0.3": heatmap, "peaks above 0.3": peaks(heatmap)}.items(), strict=True
):
    found, scores, found_labels = decode_all(map_, offset, size, k=400)
    kept = scores[0] > 0.3
    axis.imshow(photograph, extent=(0, 256, 256, 0))
    for (x1, y1, x2, y2), label in zip(found[0, kept], found_labels[0, kept], strict=True):
        for colour, line in (("black", 2), (COLOURS[label], 1)):
            axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=line))
    axis.set(title=f"{name}: {kept.sum()} boxes", xlabel="x (pixels)", xlim=(0, 256), ylim=(212, 44))
show(
    figure,
    alt="A heatmap over shapes; the boxes of all cells above 0.3, many for each shape; of the peaks, eight for seven.",
)

# %% [markdown]
# ## Back to the photograph
#
# The boxes are in pixels of the input. The image was scaled and moved by a matrix $(A \mid t)$: $u = A p + t$. The
# way back is
#
# $$p = A^{-1}(u - t).$$
#
# In training the image may also have been mirrored. Then the left edge of the box becomes the right edge, and
# $x_1 > x_2$ until you put them in order.
#
# **Predict.** Which mistake gives boxes that look right in the middle of the image and are off at its border: a
# forgotten $t$, or a forgotten scale?


# %% tags=["exercise"]
def to_image(boxes, matrix):
    """Boxes (N, 4) in pixels of the network's input -> in pixels of the image; matrix (2, 3) took image to input."""
    ### BEGIN SOLUTION hint: invert the (2, 2) part and apply it to both corners minus the last column; then min and max
    inverse, shift = np.linalg.inv(matrix[:, :2]), matrix[:, 2]
    first = (boxes[:, :2] - shift) @ inverse.T
    second = (boxes[:, 2:] - shift) @ inverse.T
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)
    ### END SOLUTION


# %% tags=["check"]
true = np.array([[10.0, 20, 60, 90], [200, 120, 310, 190]])
letterboxed = np.column_stack([0.8 * true[:, 0], 0.8 * true[:, 1] + 48, 0.8 * true[:, 2], 0.8 * true[:, 3] + 48])
got = to_image(letterboxed, np.array([[0.8, 0, 0], [0, 0.8, 48.0]]))
assert np.allclose(got, true), (
    f"u = 0.8 p + (0, 48): expected\n{true}\ngot\n{got}\nUndo the shift first, then the scale: p = (u - t) / 0.8"
)
mirrored = np.column_stack([400 - true[:, 2], true[:, 1] - 7, 400 - true[:, 0], true[:, 3] - 7])
got = to_image(mirrored, np.array([[-1.0, 0, 400], [0, 1, -7]]))
assert np.allclose(got, true), f"mirrored, u = (400 - x, y - 7): expected\n{true}\ngot\n{got}\nx1 must stay below x2"

# %% [markdown]
# A wrong scale is right at one fixed point and worse away from it. A forgotten $t$ is wrong by the same amount
# everywhere. So look at boxes near all four borders.
#
# ## The round trip
#
# The strongest test of an encoder and a decoder is each other. Encode boxes of the image, spread offset and size over
# maps, decode, go back to the image.
#
# **Predict.** Will all boxes come back? When not?

# %%
crowded = Shapes(20 if FAST else 60, size=(200, 320), seed=6, objects=(6, 10), scale=(0.05, 0.3), crowding=0.9)
compared, collided, largest = 0, 0, 0.0
for i in range(len(crowded)):
    annotation = crowded.annotation(i)
    input_boxes = apply_to_boxes(matrix, annotation.boxes)
    exact = encode(input_boxes, annotation.labels, 5, 64, 64)
    count = len(input_boxes)
    index = exact.index[:count]
    maps = np.zeros((2, 64 * 64, 2))
    maps[0, index], maps[1, index] = exact.offset[:count], exact.size[:count]
    offset_map, size_map = maps.reshape(2, 1, 64, 64, 2)
    found, scores, found_labels = decode_all(peaks(exact.heatmap[None]), offset_map, size_map)
    back = to_image(found[0, scores[0] == 1], matrix)
    back_labels = found_labels[0, scores[0] == 1]
    slots = list(zip(index.tolist(), annotation.labels.tolist(), strict=True))
    shared_cells = {cell for cell in index.tolist() if index.tolist().count(cell) > 1}
    assert len(back) == len(set(slots)), f"image {i}: one peak of 1 for each distinct cell and class"
    for box, label, cell in zip(annotation.boxes, annotation.labels, index.tolist(), strict=True):
        if cell in shared_cells:  # its offset and size were overwritten, or it has no peak of its own
            collided += 1
            continue
        error = np.abs(back[back_labels == label] - box).max(axis=1).min()
        compared, largest = compared + 1, max(largest, error)
print(f"{compared} boxes came back, the worst off by {largest:.2e} pixels; {collided} share their cell with another")
assert largest < 1e-3

# %% [markdown]
# All of them, to float32, except those that share a cell. Two of one class in one cell are one peak. Two of different
# classes in one cell have two peaks, but one offset and one size between them. The paper counts collisions of one
# class on COCO: fewer than 0.1 % of the objects (§5.1). Notebook 16 counts them here.
#
# ## Is NMS needed?
#
# Detectors with anchors find each object many times and remove the surplus by greedy non-maximum suppression: take
# the best box, drop all that overlap it by more than 0.5 IoU, take the best of the rest, and so on.
#
# **Write** it for one class. `overlap` is given.


# %%
def overlap(box, others):
    """The IoU of one box (4,) with each of others (N, 4)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.maximum(sides, 0).prod(axis=1)
    return common / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - common)


# %% tags=["exercise"]
def nms(boxes, scores, iou=0.5):
    """Boxes (N, 4), scores (N,) -> the indices that greedy NMS keeps, best first."""
    ### BEGIN SOLUTION hint: a list of remaining indices, best first; keep the first, drop what overlaps it, repeat
    remaining, kept = np.argsort(-scores, kind="stable"), []
    while len(remaining):
        best, rest = remaining[0], remaining[1:]
        kept.append(int(best))
        remaining = rest[overlap(boxes[best], boxes[rest]) <= iou]
    return np.array(kept, dtype=np.int64)
    ### END SOLUTION


# %% tags=["check"]
row = np.array([[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10], [40, 40, 50, 50]])  # neighbours have an IoU of 7/13
got = nms(row, np.array([0.9, 0.8, 0.7, 0.6])).tolist()
assert got == [0, 2, 3], (
    f"the second box overlaps the first by 0.54 and goes; the third overlaps only the second, which is gone, "
    f"so it stays: expected [0, 2, 3], got {got}"
)
got = nms(row, np.array([0.1, 0.8, 0.7, 0.9])).tolist()
assert got == [3, 1], f"with the scores 0.1, 0.8, 0.7, 0.9 expected [3, 1], best first, got {got}"
assert nms(row, np.array([0.9, 0.8, 0.7, 0.6]), iou=0.6).tolist() == [0, 1, 2, 3], "at an iou of 0.6 all four stay"
inside = np.array([[0.0, 0, 10, 10], [2, 2, 5, 5]])
assert nms(inside, np.array([0.9, 0.8])).tolist() == [0, 1], (
    "a small box inside a large one has an IoU of 0.09 and stays"
)
assert len(nms(np.zeros((0, 4)), np.zeros(0))) == 0, "no boxes, nothing kept"

# %% [markdown]
# ### Detections for each object
#
# **Predict.** For each way, over many images: how many detections above 0.3 for each object, and which part of them
# is the first to hit its object (precision)?


# %%
def without_peaks(heatmap, offset, size):
    return decode_all(heatmap, offset, size, k=2000)


def with_peaks(heatmap, offset, size):
    return decode_all(peaks(heatmap), offset, size)


def count_hits(found, found_labels, boxes, labels):
    """How many objects are hit, by a detection of their class with an IoU of at least 0.5."""
    return sum(
        bool(np.any(overlap(box, found[found_labels == label]) >= 0.5))
        for box, label in zip(boxes, labels, strict=True)
    )


rng = np.random.default_rng(4)
ways = {
    "all cells": (without_peaks, False),
    "all + NMS": (without_peaks, True),
    "peaks": (with_peaks, False),
    "peaks + NMS": (with_peaks, True),
}
counts = {name: np.zeros(3) for name in ways}  # detections, objects hit, objects
for i in range(8 if FAST else len(shapes)):
    annotation = shapes.annotation(i)
    true, true_labels = apply_to_boxes(matrix, annotation.boxes), annotation.labels
    maps = imitate(true, true_labels, rng)
    for name, (way, suppress) in ways.items():
        found, scores, found_labels = (array[0] for array in way(*maps))
        found, scores, found_labels = (array[scores > 0.3] for array in (found, scores, found_labels))
        if suppress:
            kept = decode.nms(found, scores, found_labels, iou=0.5)
            found, found_labels = found[kept], found_labels[kept]
        counts[name] += len(found), count_hits(found, found_labels, true, true_labels), len(true)
print("            detections for each object   precision   recall")
for name, (detections, hits, objects) in counts.items():
    print(f"{name:>12}   {detections / objects:25.2f}   {hits / detections:9.2f}   {hits / objects:6.2f}")
per_object = {name: detections / objects for name, (detections, _, objects) in counts.items()}
assert per_object["all cells"] > 5 and per_object["peaks"] < 1.2 and per_object["peaks + NMS"] < 1.05

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
names, hatches = list(counts), ("", "//", "", "//")
colours = (COLOURS[1], COLOURS[1], COLOURS[0], COLOURS[0])
for axis, (title, values) in zip(
    axes,
    {
        "detections for each object": list(per_object.values()),
        "precision at 0.3": [c[1] / c[0] for c in counts.values()],
    }.items(),
    strict=True,
):
    bars = axis.bar(names, values, color=colours, hatch=hatches, edgecolor="white")
    axis.bar_label(bars, [f"{value:.2f}" for value in values])
    axis.set(title=title, ylabel=title.split()[0], ylim=(0, 1.15 * max(values)))
    axis.tick_params(axis="x", labelsize=8)
axes[0].axhline(1, color="black", linewidth=0.8, linestyle=":")
show(
    figure,
    alt="Bars: many detections for each object from all cells, about one with NMS or with peaks; and their precision.",
)

# %% [markdown]
# The 3 by 3 test does on the heatmap most of what NMS does on the boxes, without computing one overlap. It looks at 8
# neighbours and no further: noise can make two bumps on the broad blob of a large object, a few cells apart, and each
# is a detection. There NMS after the peaks still finds something to do. How often depends on the noise, which is ours
# here; notebook 16 counts on a trained network. The paper saw 39.2 AP rise to 39.7 with NMS for one network, and no
# change for the other (§5.1), and left it out.
#
# They also fail differently. Here are two squares of one class, nearly on top of each other.

# %%
pair = np.array([[60.0, 60, 140, 140], [76, 64, 156, 144]])
close = encode(pair, np.array([0, 0]), 1, 64, 64)
found, scores, _ = decode_all(
    peaks(close.heatmap[None].astype(np.float64)), *(np.zeros((1, 64, 64, 2)) for _ in range(2))
)
peaks_found = int((scores[0] == 1).sum())
kept = nms(pair, np.array([0.9, 0.8]))
print(
    f"IoU {overlap(pair[0], pair[1:])[0]:.3f}: {peaks_found} peaks; NMS at 0.5 keeps {len(kept)} of two perfect boxes"
)
assert peaks_found == 2 and len(kept) == 1

# %% [markdown]
# NMS throws away a true object because its box overlaps another. Peaks need centres two cells apart, whatever the
# boxes do.
#
# ## The same in the package
#
# `best_peaks` gives `top_k(peaks(heatmap), k)` to the last bit, but looks at the neighbours of few cells only. We
# check all, with ties.

# %%
rng = np.random.default_rng(5)
for levels in (10**6, 6):
    random = rng.integers(1, levels + 1, (2, 20, 24, 3)) / levels
    assert np.array_equal(decode.peaks(random), peaks(random))
    for theirs in (decode.top_k(peaks(random), 50), decode.best_peaks(random, 50)):
        for got, mine in zip(theirs, top_k(peaks(random), 50), strict=True):
            assert np.array_equal(got, mine)
    offset_map, size_map = rng.random((2, 20, 24, 2)), rng.uniform(1, 9, (2, 20, 24, 2))
    theirs = decode.decode(random, offset_map, size_map, k=50)
    for got, mine in zip(theirs, decode_all(peaks(random), offset_map, size_map, 50), strict=True):
        assert np.allclose(got, mine, rtol=1e-6, atol=1e-6)
    many = theirs.boxes[0].astype(np.float64)
    assert np.array_equal(decode.nms(many, theirs.scores[0], iou=0.3), nms(many, theirs.scores[0], iou=0.3))
inputs = np.array([[10.0, 50, 90, 170], [100, 60, 250, 200]])
assert np.allclose(apply_to_boxes(invert(matrix), inputs), to_image(inputs, matrix), rtol=1e-6)
print("peaks, top_k, boxes, NMS and the way back agree with the package")

# %% [markdown]
# ## Break it
#
# Someone made the heatmap smaller for a phone: the probabilities are stored in 8 bits, `round(255 * p)`. All scores
# move by less than 0.002. Yet users complain of several boxes on large objects, all with exactly the same score. In
# float16 it happens less, but it happens. The network is a confident one: its logits are large.

# %%
big_box = np.array([[8.0, 8, 248, 248]])
blob = encode(big_box, np.array([0]), 1, 64, 64).heatmap.astype(np.float64)[None]
logits = 4 * np.log((0.02 + 0.93 * blob) / (0.98 - 0.93 * blob))  # smooth, with a single top
answer = 1 / (1 + np.exp(-logits))
versions = {
    "64 bits": answer,
    "16 bits": answer.astype(np.float16).astype(np.float64),
    "8 bits": np.round(255 * answer) / 255,
}
figure, axes = plt.subplots(1, 3, figsize=(8, 3.2), layout="constrained", sharey=True)
number_of_peaks = {}
for axis, (name, map_) in zip(axes, versions.items(), strict=True):
    found = np.argwhere(peaks(map_)[0, :, :, 0] > 0.3)
    number_of_peaks[name] = len(found)
    drawn = axis.imshow(map_[0, :, :, 0], cmap="cividis", vmin=0.98, vmax=1)
    axis.plot(found[:, 1], found[:, 0], "s", color="none", markeredgecolor=COLOURS[1], markeredgewidth=2, markersize=9)
    axis.set(title=f"{name}: {len(found)} above 0.3", xlabel="x (cells)", xlim=(25.5, 38.5), ylim=(38.5, 25.5))
    print(f"{name:>8}: {len(found):2} peaks above 0.3, scores {sorted({float(map_[0, y, x, 0]) for y, x in found})}")
axes[0].set_ylabel("y (cells)")
figure.colorbar(drawn, ax=axes[2], label="probability", shrink=0.8)
show(
    figure,
    alt="The top of one blob, enlarged: one peak in 64 bits, several in 16 bits and more in 8, marked by squares.",
)
assert number_of_peaks["64 bits"] == 1 < number_of_peaks["16 bits"] < number_of_peaks["8 bits"]

# %% [markdown]
# Where do the extra boxes come from, and what would you change?
#
# <details><summary>Answer</summary>
#
# Rounding makes the top of the blob flat. The test is $\ge$, so *equal* neighbours are all peaks: a plateau. With $>$
# it would be worse, for a plateau would have no peak at all, and the object would be lost. So look for the peaks
# before anything is rounded or saturates: the logits of this blob have a single peak even in 16 bits. In float32 the
# sigmoid is the same trap from a logit of about 17, where every probability is 1. NMS on the few peaks cures the
# symptom.
#
# There are two more traps for the cure. Our `peaks` writes 0 where there is no peak, and a *logit* of 0 is a
# probability of 0.5. And the flattest plateau of all is the background: where every probability is 0, every cell is a
# "peak", of score 0, and `top_k` returns 100 detections from an empty map. They do no harm as long as somebody looks
# at the score.
#
# </details>

# %%
assert np.all(decode_all(peaks(np.zeros((1, 16, 16, 2))), np.zeros((1, 16, 16, 2)), np.zeros((1, 16, 16, 2)))[1] == 0)
on_logits = np.count_nonzero(peaks(logits.astype(np.float16)) > 1)  # a logit of 1: p = 0.73
print(f"peaks of the logits, in 16 bits: {on_logits}")
assert on_logits == 1

# %% [markdown]
# ## Summary
#
# - A peak is a cell that none of its 8 neighbours exceeds (E8). The best 100 over all classes are kept, without a
#   threshold.
# - E9 adds the offset, takes half the size to both sides, and multiplies by $R$; the inverse affine leads back to the
#   photograph.
# - Encode and decode undo each other to float32, but for objects that share a cell.
# - The peak test replaces NMS: about one detection for each object instead of many, and close neighbours survive.
# - Equal neighbours are all peaks. Rounding makes them equal.
#
# ## In the package
#
# - `minicenternet.points.decode.peaks` and `minicenternet.points.decode.top_k` hold E8;
#   `minicenternet.points.decode.best_peaks` is both, faster.
# - `minicenternet.points.decode.decode` holds E9.
# - `minicenternet.points.decode.nms` and `minicenternet.points.decode.soft_nms` are there for several scales and for
#   comparison.
# - `minicenternet.data.transforms.invert` and `minicenternet.data.transforms.apply_to_boxes` lead back to the image.
