"""Answers to the exercises of notebook 13 that its checks must refuse: exercise -> what is wrong -> the body."""

WRONG = {
    "iou": {
        "negative sides are not cut off": """
width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
overlap = width * height
return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)
""",
        "the overlap counted twice in the union": """
width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]))
""",
        "a pixel more on each side": """
width = max(min(a[2], b[2]) - max(a[0], b[0]) + 1, 0)
height = max(min(a[3], b[3]) - max(a[1], b[1]) + 1, 0)
overlap = width * height
return overlap / ((a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - overlap)
""",
        "boxes taken as x, y, width, height": """
width = max(min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]), 0)
height = max(min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]), 0)
overlap = width * height
return overlap / (a[2] * a[3] + b[2] * b[3] - overlap)
""",
        "divided by the smaller area": """
width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
""",
    },
    "match": {
        "an object can be taken twice": """
return np.array([row.argmax() if len(row) and row.max() >= threshold else -1 for row in overlap])
""",
        "only the favourite is looked at": """
taken, free = np.full(len(overlap), -1), np.ones(overlap.shape[1], bool)
for d, row in enumerate(overlap):
    if len(row) and row.max() >= threshold and free[row.argmax()]:
        taken[d] = row.argmax()
        free[taken[d]] = False
return taken
""",
        "the first object above the threshold": """
taken, free = np.full(len(overlap), -1), np.ones(overlap.shape[1], bool)
for d, row in enumerate(overlap):
    candidates = np.flatnonzero(free & (row >= threshold))
    if len(candidates):
        taken[d] = candidates[0]
        free[taken[d]] = False
return taken
""",
        "objects choose": """
taken = np.full(len(overlap), -1)
for g in range(overlap.shape[1]):
    d = overlap[:, g].argmax()
    if overlap[d, g] >= threshold and taken[d] < 0:
        taken[d] = g
return taken
""",
        "more than the threshold": """
taken, free = np.full(len(overlap), -1), np.ones(overlap.shape[1], bool)
for d, row in enumerate(overlap):
    candidates = np.flatnonzero(free & (row > threshold))
    if len(candidates):
        taken[d] = candidates[row[candidates].argmax()]
        free[taken[d]] = False
return taken
""",
    },
    "precision_recall": {
        "not sorted": """
true = np.cumsum(hit)
return true / np.arange(1, len(hit) + 1), true / positives
""",
        "worst first": """
true = np.cumsum(hit[np.argsort(scores, kind="stable")])
return true / np.arange(1, len(hit) + 1), true / positives
""",
        "recall of the detections": """
true = np.cumsum(hit[np.argsort(-scores, kind="stable")])
return true / np.arange(1, len(hit) + 1), true / len(hit)
""",
        "precision of all detections": """
true = np.cumsum(hit[np.argsort(-scores, kind="stable")])
return true / len(hit), true / positives
""",
        "ties reversed": """
true = np.cumsum(hit[np.argsort(scores, kind="stable")[::-1]])
return true / np.arange(1, len(hit) + 1), true / positives
""",
    },
    "interpolate": {
        "teeth not filled": """
curve = np.zeros(points)
for k, wanted in enumerate(np.linspace(0, 1, points)):
    reached = np.flatnonzero(recall >= wanted)
    if len(reached):
        curve[k] = precision[reached[0]]
return curve
""",
        "straight lines": """
if len(recall) == 0:
    return np.zeros(points)
return np.interp(np.linspace(0, 1, points), recall, precision, right=0)
""",
        "the end carried on": """
best = np.maximum.accumulate(precision[::-1])[::-1]
if len(best) == 0:
    return np.zeros(points)
return best[np.minimum(np.searchsorted(recall, np.linspace(0, 1, points)), len(best) - 1)]
""",
        "beyond, not at": """
curve = np.zeros(points)
for k, wanted in enumerate(np.linspace(0, 1, points)):
    reached = recall > wanted
    if reached.any():
        curve[k] = precision[reached].max()
return curve
""",
        "the best up to this recall": """
curve = np.zeros(points)
for k, wanted in enumerate(np.linspace(0, 1, points)):
    reached = recall <= wanted
    if reached.any():
        curve[k] = precision[reached].max()
return curve
""",
    },
    "match_ignoring": {
        "ignored objects are not taken at all": """
taken, free = np.full(len(overlap), -1), np.ones(overlap.shape[1], bool)
for d, row in enumerate(overlap):
    candidates = np.flatnonzero(free & (row >= threshold) & ~ignored)
    if len(candidates):
        taken[d] = candidates[row[candidates] == row[candidates].max()][-1]
        free[taken[d]] = False
return taken
""",
        "no preference": """
taken, free = np.full(len(overlap), -1), np.ones(overlap.shape[1], bool)
for d, row in enumerate(overlap):
    candidates = np.flatnonzero(free & (row >= threshold))
    if len(candidates):
        taken[d] = candidates[row[candidates] == row[candidates].max()][-1]
        free[taken[d]] = crowd[taken[d]]
return taken
""",
        "a crowd region is used up": """
taken, free = np.full(len(overlap), -1), np.ones(overlap.shape[1], bool)
for d, row in enumerate(overlap):
    candidates = free & (row >= threshold)
    if (candidates & ~ignored).any():
        candidates &= ~ignored
    candidates = np.flatnonzero(candidates)
    if len(candidates):
        taken[d] = candidates[row[candidates] == row[candidates].max()][-1]
        free[taken[d]] = False
return taken
""",
        "ignored objects are never used up": """
taken, free = np.full(len(overlap), -1), np.ones(overlap.shape[1], bool)
for d, row in enumerate(overlap):
    candidates = free & (row >= threshold)
    if (candidates & ~ignored).any():
        candidates &= ~ignored
    candidates = np.flatnonzero(candidates)
    if len(candidates):
        taken[d] = candidates[row[candidates] == row[candidates].max()][-1]
        free[taken[d]] = ignored[taken[d]]
return taken
""",
        "of equal overlaps the first": """
taken, free = np.full(len(overlap), -1), np.ones(overlap.shape[1], bool)
for d, row in enumerate(overlap):
    candidates = free & (row >= threshold)
    if (candidates & ~ignored).any():
        candidates &= ~ignored
    candidates = np.flatnonzero(candidates)
    if len(candidates):
        taken[d] = candidates[row[candidates].argmax()]
        free[taken[d]] = crowd[taken[d]]
return taken
""",
    },
}
