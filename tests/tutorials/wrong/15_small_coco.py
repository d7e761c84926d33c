"""Answers to the exercises of notebook 15 that its checks must refuse: exercise -> what is wrong -> the body."""

EXAMPLE = """
view = prepare(
    sample, size=(SIZE, SIZE), mean=MEAN, std=STD, augmentation=augmentation, rng=rng, crowd="drop"
)
return view.image, detection.encode(view.boxes, view.labels, num_classes, SIZE, SIZE)
"""

WRONG = {
    "example": {
        "crowd regions are objects": EXAMPLE.replace('crowd="drop"', 'crowd="keep"'),
        "the boxes of the photograph": EXAMPLE.replace(
            "view.boxes", "sample.annotation.boxes[~sample.annotation.crowd]"
        ),
        "not normalised": EXAMPLE.replace("mean=MEAN, std=STD", "mean=(0, 0, 0), std=(1, 1, 1)"),
        "never augmented": EXAMPLE.replace("augmentation=augmentation, rng=rng", "augmentation=None"),
        "boxes already in cells": EXAMPLE.replace("view.boxes", "view.boxes / R"),
        "all of one class": EXAMPLE.replace("view.labels", "0 * view.labels"),
    },
    "nearest_map": {
        "values at the centres alone": """
dense = np.zeros((height, width, 2), np.float32)
for value, cell, there in zip(values, index, mask, strict=True):
    if there:
        dense[cell // width, cell % width] = value
return dense
""",
        "empty slots count": """
if not mask.any():
    return np.zeros((height, width, 2), np.float32)
y, x = np.divmod(index, width)
rows, columns = np.indices((height, width))
return values[((rows[..., None] - y) ** 2 + (columns[..., None] - x) ** 2).argmin(axis=-1)]
""",
        "x and y exchanged": """
there = mask > 0
if not there.any():
    return np.zeros((height, width, 2), np.float32)
x, y = np.divmod(index[there], width)
rows, columns = np.indices((height, width))
return values[there][((rows[..., None] - y) ** 2 + (columns[..., None] - x) ** 2).argmin(axis=-1)]
""",
        "the farthest": """
there = mask > 0
if not there.any():
    return np.zeros((height, width, 2), np.float32)
y, x = np.divmod(index[there], width)
rows, columns = np.indices((height, width))
return values[there][((rows[..., None] - y) ** 2 + (columns[..., None] - x) ** 2).argmax(axis=-1)]
""",
        "nearest along x alone": """
there = mask > 0
if not there.any():
    return np.zeros((height, width, 2), np.float32)
rows, columns = np.indices((height, width))
return values[there][np.abs(columns[..., None] - index[there] % width).argmin(axis=-1)]
""",
    },
    "swap": {
        "the maps are changed in place": """
maps.update({name: truth[name] for name in names})
return maps
""",
        "the other heads": """
return {name: value if name in names else truth[name] for name, value in maps.items()}
""",
        "all or nothing": """
return dict(truth) if names else dict(maps)
""",
        "only what was named": """
return {name: truth[name] for name in names}
""",
    },
    "mistakes": {
        "an object is found any number of times": """
overlap = box_iou(boxes, truth)
best = overlap.max(axis=1, initial=0)
found = int((overlap.max(axis=0, initial=0) >= 0.5).sum())
return {
    "right": int((best >= 0.5).sum()),
    "duplicate": 0,
    "loose": int(((best >= 0.1) & (best < 0.5)).sum()),
    "background": int((best < 0.1).sum()),
    "missed": len(truth) - found,
}
""",
        "no duplicates, all loose": """
counts = dict.fromkeys(("right", "duplicate", "loose", "background"), 0)
free = np.ones(len(truth), bool)
for row in box_iou(boxes, truth):
    best_free = np.where(free, row, -1)
    if len(row) and best_free.max() >= 0.5:
        free[best_free.argmax()] = False
        counts["right"] += 1
    elif len(row) and row.max() >= 0.1:
        counts["loose"] += 1
    else:
        counts["background"] += 1
return {**counts, "missed": int(free.sum())}
""",
        "only the favourite object": """
counts = dict.fromkeys(("right", "duplicate", "loose", "background"), 0)
free = np.ones(len(truth), bool)
for row in box_iou(boxes, truth):
    if len(row) and row.max() >= 0.5 and free[row.argmax()]:
        free[row.argmax()] = False
        counts["right"] += 1
    elif len(row) and row.max() >= 0.5:
        counts["duplicate"] += 1
    elif len(row) and row.max() >= 0.1:
        counts["loose"] += 1
    else:
        counts["background"] += 1
return {**counts, "missed": int(free.sum())}
""",
        "missed are all objects without the best": """
counts = dict.fromkeys(("right", "duplicate", "loose", "background"), 0)
free = np.ones(len(truth), bool)
for row in box_iou(boxes, truth):
    best_free = np.where(free, row, -1)
    if len(row) and best_free.max() >= 0.5:
        free[best_free.argmax()] = False
        counts["right"] += 1
    elif len(row) and row.max() >= 0.5:
        counts["duplicate"] += 1
    elif len(row) and row.max() >= 0.1:
        counts["loose"] += 1
    else:
        counts["background"] += 1
return {**counts, "missed": len(truth) - len(boxes)}
""",
    },
}
