"""Answers to the exercises of notebook 10 that its checks must refuse: exercise -> what is wrong -> the body."""

WRONG = {
    "peaks": {
        "4 neighbours": """
_, height, width, _ = heatmap.shape
padded = np.pad(heatmap, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
steps = ((0, 1), (1, 0), (1, 1), (1, 2), (2, 1))
windows = [padded[:, i : i + height, j : j + width] for i, j in steps]
return np.where(heatmap == np.max(windows, axis=0), heatmap, 0)
""",
        "larger than all neighbours, not equal": """
_, height, width, _ = heatmap.shape
padded = np.pad(heatmap, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
windows = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3) if (i, j) != (1, 1)]
return np.where(heatmap > np.max(windows, axis=0), heatmap, 0)
""",
        "around the border": """
windows = [np.roll(heatmap, (i, j), axis=(1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
return np.where(heatmap == np.max(windows, axis=0), heatmap, 0)
""",
        "across classes": """
_, height, width, _ = heatmap.shape
padded = np.pad(heatmap, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
windows = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
return np.where(heatmap == np.max(windows, axis=0).max(axis=-1, keepdims=True), heatmap, 0)
""",
        "the maximum itself, pooled": """
_, height, width, _ = heatmap.shape
padded = np.pad(heatmap, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
return np.max([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)
""",
        "whether, not how much": """
_, height, width, _ = heatmap.shape
padded = np.pad(heatmap, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
windows = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
return (heatmap == np.max(windows, axis=0)).astype(float)
""",
    },
    "top_k": {
        "the flat index read as (C, H, W)": """
batch, height, width, classes = heatmap.shape
flat = heatmap.reshape(batch, -1)
index = np.argsort(-flat, axis=1, kind="stable")[:, :k]
labels, cell = index // (height * width), index % (height * width)
return np.take_along_axis(flat, index, axis=1), labels, cell // width, cell % width
""",
        "the smallest": """
batch, _, width, classes = heatmap.shape
flat = heatmap.reshape(batch, -1)
index = np.argsort(flat, axis=1, kind="stable")[:, :k]
cell, labels = index // classes, index % classes
return np.take_along_axis(flat, index, axis=1), labels, cell // width, cell % width
""",
        "best last": """
batch, _, width, classes = heatmap.shape
flat = heatmap.reshape(batch, -1)
index = np.argsort(-flat, axis=1, kind="stable")[:, :k][:, ::-1]
cell, labels = index // classes, index % classes
return np.take_along_axis(flat, index, axis=1), labels, cell // width, cell % width
""",
        "equal scores in the opposite order": """
batch, _, width, classes = heatmap.shape
flat = heatmap.reshape(batch, -1)
index = np.argsort(flat, axis=1, kind="stable")[:, ::-1][:, :k]
cell, labels = index // classes, index % classes
return np.take_along_axis(flat, index, axis=1), labels, cell // width, cell % width
""",
        "x and y exchanged": """
batch, _, width, classes = heatmap.shape
flat = heatmap.reshape(batch, -1)
index = np.argsort(-flat, axis=1, kind="stable")[:, :k]
cell, labels = index // classes, index % classes
return np.take_along_axis(flat, index, axis=1), labels, cell % width, cell // width
""",
        "one class for each cell": """
batch, _, width, classes = heatmap.shape
best, label = heatmap.max(axis=-1).reshape(batch, -1), heatmap.argmax(axis=-1).reshape(batch, -1)
cell = np.argsort(-best, axis=1, kind="stable")[:, :k]
labels = np.take_along_axis(label, cell, axis=1)
return np.take_along_axis(best, cell, axis=1), labels, cell // width, cell % width
""",
    },
    "boxes_at": {
        "y2 = y + dy - h / 2": """
image = np.arange(len(y))[:, None]
cx, cy = np.moveaxis(np.stack([x, y], axis=-1) + offset[image, y, x], -1, 0)
w, h = np.moveaxis(size[image, y, x], -1, 0)
return np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy - h / 2], axis=-1) * stride
""",
        "no offset": """
image = np.arange(len(y))[:, None]
centre, half = np.stack([x, y], axis=-1), size[image, y, x] / 2
return np.concatenate([centre - half, centre + half], axis=-1) * stride
""",
        "whole sizes to both sides": """
image = np.arange(len(y))[:, None]
centre, size = np.stack([x, y], axis=-1) + offset[image, y, x], size[image, y, x]
return np.concatenate([centre - size, centre + size], axis=-1) * stride
""",
        "sizes taken as pixels": """
image = np.arange(len(y))[:, None]
centre = (np.stack([x, y], axis=-1) + offset[image, y, x]) * stride
half = size[image, y, x] / 2
return np.concatenate([centre - half, centre + half], axis=-1)
""",
        "left in cells": """
image = np.arange(len(y))[:, None]
centre = np.stack([x, y], axis=-1) + offset[image, y, x]
half = size[image, y, x] / 2
return np.concatenate([centre - half, centre + half], axis=-1)
""",
        "height before width": """
image = np.arange(len(y))[:, None]
centre = np.stack([x, y], axis=-1) + offset[image, y, x]
half = size[image, y, x][..., ::-1] / 2
return np.concatenate([centre - half, centre + half], axis=-1) * stride
""",
        "offset in pixels": """
image = np.arange(len(y))[:, None]
centre = np.stack([x, y], axis=-1) * stride + offset[image, y, x]
half = size[image, y, x] / 2 * stride
return np.concatenate([centre - half, centre + half], axis=-1)
""",
        "the maps of the first image for all": """
centre = np.stack([x, y], axis=-1) + offset[0, y, x]
half = size[0, y, x] / 2
return np.concatenate([centre - half, centre + half], axis=-1) * stride
""",
        "always a stride of 4": """
image = np.arange(len(y))[:, None]
centre = np.stack([x, y], axis=-1) + offset[image, y, x]
half = size[image, y, x] / 2
return np.concatenate([centre - half, centre + half], axis=-1) * 4
""",
    },
    "to_image": {
        "forwards": """
first = boxes[:, :2] @ matrix[:, :2].T + matrix[:, 2]
second = boxes[:, 2:] @ matrix[:, :2].T + matrix[:, 2]
return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)
""",
        "no shift": """
inverse = np.linalg.inv(matrix[:, :2])
first, second = boxes[:, :2] @ inverse.T, boxes[:, 2:] @ inverse.T
return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)
""",
        "the shift after the scale": """
inverse, shift = np.linalg.inv(matrix[:, :2]), matrix[:, 2]
first, second = boxes[:, :2] @ inverse.T - shift, boxes[:, 2:] @ inverse.T - shift
return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)
""",
        "no scale": """
shift = matrix[:, 2]
first, second = boxes[:, :2] - shift, boxes[:, 2:] - shift
return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)
""",
        "mirrored, x1 above x2": """
inverse, shift = np.linalg.inv(matrix[:, :2]), matrix[:, 2]
return np.concatenate([(boxes[:, :2] - shift) @ inverse.T, (boxes[:, 2:] - shift) @ inverse.T], axis=1)
""",
    },
    "nms": {
        "a box that was dropped still drops others": """
order = np.argsort(-scores, kind="stable")
kept = []
for rank, i in enumerate(order):
    if not np.any(overlap(boxes[i], boxes[order[:rank]]) > iou):
        kept.append(int(i))
return np.array(kept, dtype=np.int64)
""",
        "in the order given": """
remaining, kept = np.arange(len(scores)), []
while len(remaining):
    best, rest = remaining[0], remaining[1:]
    kept.append(int(best))
    remaining = rest[overlap(boxes[best], boxes[rest]) <= iou]
return np.array(kept, dtype=np.int64)
""",
        "worst first": """
remaining, kept = np.argsort(scores, kind="stable"), []
while len(remaining):
    best, rest = remaining[0], remaining[1:]
    kept.append(int(best))
    remaining = rest[overlap(boxes[best], boxes[rest]) <= iou]
return np.array(kept, dtype=np.int64)
""",
        "keeps what overlaps": """
remaining, kept = np.argsort(-scores, kind="stable"), []
while len(remaining):
    best, rest = remaining[0], remaining[1:]
    kept.append(int(best))
    remaining = rest[overlap(boxes[best], boxes[rest]) > iou]
return np.array(kept, dtype=np.int64)
""",
        "always at 0.5": """
remaining, kept = np.argsort(-scores, kind="stable"), []
while len(remaining):
    best, rest = remaining[0], remaining[1:]
    kept.append(int(best))
    remaining = rest[overlap(boxes[best], boxes[rest]) <= 0.5]
return np.array(kept, dtype=np.int64)
""",
        "the common part over the smaller box": """
remaining, kept = np.argsort(-scores, kind="stable"), []
areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
while len(remaining):
    best, rest = remaining[0], remaining[1:]
    kept.append(int(best))
    sides = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2])
    common = np.maximum(sides, 0).prod(axis=1)
    remaining = rest[common / np.minimum(areas[best], areas[rest]) <= iou + 0.2]
return np.array(kept, dtype=np.int64)
""",
        "only the best": """
return np.argsort(-scores, kind="stable")[:1]
""",
    },
}
