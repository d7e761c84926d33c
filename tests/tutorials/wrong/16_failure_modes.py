"""Answers to the exercises of notebook 16 that its checks must refuse: exercise -> what is wrong -> the body."""

WRONG = {
    "count_lost": {
        "classes forgotten": """
cells = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).astype(int)
return len(boxes) - len({(x, y) for x, y in cells.tolist()})
""",
        "pairs, not boxes": """
cells = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).astype(int)
keys = [(label, x, y) for label, (x, y) in zip(labels.tolist(), cells.tolist(), strict=True)]
return sum(keys[i] == keys[j] for i in range(len(keys)) for j in range(i))
""",
        "every box that shares its cell": """
cells = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).astype(int)
keys = [(label, x, y) for label, (x, y) in zip(labels.tolist(), cells.tolist(), strict=True)]
return sum(keys.count(key) > 1 for key in keys)
""",
        "rounded, not floored": """
cells = np.round((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).astype(int)
return len(boxes) - len({(label, x, y) for label, (x, y) in zip(labels.tolist(), cells.tolist(), strict=True)})
""",
        "the corner for the centre": """
cells = np.floor(boxes[:, :2] / stride).astype(int)
return len(boxes) - len({(label, x, y) for label, (x, y) in zip(labels.tolist(), cells.tolist(), strict=True)})
""",
        "x alone": """
cells = np.floor((boxes[:, 0] + boxes[:, 2]) / 2 / stride).astype(int)
return len(boxes) - len(set(zip(labels.tolist(), cells.tolist(), strict=True)))
""",
        "the stride forgotten": """
cells = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2).astype(int)
return len(boxes) - len({(label, x, y) for label, (x, y) in zip(labels.tolist(), cells.tolist(), strict=True)})
""",
    },
    "paired_noise": {
        "before minus after": """
d = np.asarray(before, float) - np.asarray(after, float)
return d.mean() / (d.std(ddof=1) / math.sqrt(len(d)))
""",
        "divided by n, not n - 1": """
d = np.asarray(after, float) - np.asarray(before, float)
return d.mean() / (d.std() / math.sqrt(len(d)))
""",
        "in deviations of one difference": """
d = np.asarray(after, float) - np.asarray(before, float)
return d.mean() / d.std(ddof=1)
""",
        "not paired": """
a, b = np.asarray(before, float), np.asarray(after, float)
return (b.mean() - a.mean()) / math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
""",
        "the size of the differences": """
d = np.abs(np.asarray(after, float) - np.asarray(before, float))
return d.mean() / (d.std(ddof=1) / math.sqrt(len(d)))
""",
    },
    "second_boxes": {
        "every false detection": """
overlap, taken, second = box_iou(boxes, objects), set(), 0
for d in np.argsort(-scores, kind="stable"):
    free = [g for g in range(len(objects)) if labels[d] == object_labels[g] and overlap[d, g] >= iou and g not in taken]
    if free:
        taken.add(max(free, key=lambda g: overlap[d, g]))
    else:
        second += 1
return second
""",
        "classes forgotten": """
overlap, taken, second = box_iou(boxes, objects), set(), 0
for d in np.argsort(-scores, kind="stable"):
    reach = [g for g in range(len(objects)) if overlap[d, g] >= iou]
    free = [g for g in reach if g not in taken]
    if free:
        taken.add(max(free, key=lambda g: overlap[d, g]))
    elif reach:
        second += 1
return second
""",
        "only the best object is looked at": """
overlap, taken, second = box_iou(boxes, objects), set(), 0
for d in np.argsort(-scores, kind="stable"):
    best = int(overlap[d].argmax())
    if labels[d] != object_labels[best] or overlap[d, best] < iou:
        continue
    if best in taken:
        second += 1
    taken.add(best)
return second
""",
        "an object is never taken": """
overlap, second = box_iou(boxes, objects), 0
for d in range(len(boxes)):
    reach = [g for g in range(len(objects)) if labels[d] == object_labels[g] and overlap[d, g] >= iou]
    second += len(reach) > 1
return second
""",
        "the first free object, not the nearest": """
overlap, taken, second = box_iou(boxes, objects), set(), 0
for d in np.argsort(-scores, kind="stable"):
    reach = [g for g in range(len(objects)) if labels[d] == object_labels[g] and overlap[d, g] >= iou]
    free = [g for g in reach if g not in taken]
    if free:
        taken.add(free[0])
    elif reach:
        second += 1
return second
""",
        "any overlap counts": """
overlap, taken, second = box_iou(boxes, objects), set(), 0
for d in np.argsort(-scores, kind="stable"):
    reach = [g for g in range(len(objects)) if labels[d] == object_labels[g] and overlap[d, g] > 0]
    free = [g for g in reach if g not in taken]
    if free:
        taken.add(max(free, key=lambda g: overlap[d, g]))
    elif reach:
        second += 1
return second
""",
    },
    "iou_of_shift": {
        "the union counts the common part twice": """
common = max(size - abs(shift[0]), 0) * max(size - abs(shift[1]), 0)
return common / (2 * size**2)
""",
        "divided by one box": """
common = max(size - abs(shift[0]), 0) * max(size - abs(shift[1]), 0)
return common / size**2
""",
        "to the left makes it larger": """
common = max(size - shift[0], 0) * max(size - shift[1], 0)
return common / (2 * size**2 - common)
""",
        "beyond each other they overlap again": """
common = (size - abs(shift[0])) * (size - abs(shift[1]))
return common / (2 * size**2 - common)
""",
        "the shift's length in both directions": """
step = math.hypot(*shift)
common = max(size - step, 0) ** 2
return common / (2 * size**2 - common)
""",
    },
    "seeds_needed": {
        "one standard error": """
return max(2, math.ceil(2 * (deviation / effect) ** 2))
""",
        "rounded down": """
return max(2, math.floor(2 * (2 * deviation / effect) ** 2))
""",
        "no square": """
return max(2, math.ceil(2 * (2 * deviation / abs(effect))))
""",
        "one seed is enough": """
return math.ceil(2 * (2 * deviation / effect) ** 2)
""",
        "a single mean, not a difference": """
return max(2, math.ceil((2 * deviation / effect) ** 2))
""",
        "effect over deviation": """
return max(2, math.ceil(2 * (2 * effect / deviation) ** 2))
""",
    },
}
