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
# # 13 · Average precision by hand
#
# - **Goal** Build the one number by which detectors are compared, COCO's AP, from two boxes upwards, and know what it
#   sees and what it does not.
# - **You need** 10. Helpful: 12.
# - **Minutes** 55 to read and work / runs in about 6 s
# - **Equations** none of E1 to E10
# - **What you should see** Your AP, AP50, AP75 and the AP by size equal those of pycocotools to 1e-6 on scenes with
#   crowds, ignored objects, tied scores and empty images.

# %%
import os
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from minicenternet.data import Shapes, open_dataset
from minicenternet.draw import COLOURS, show
from minicenternet.errors import InputError
from minicenternet.metrics import average_precision, box_iou, coco_evaluate
from minicenternet.metrics.average_precision import match as package_match

FAST = os.environ.get("MINICENTERNET_FAST") == "1"

# %% [markdown]
# ## A scene small enough to count on fingers
#
# Three images, one class. Five objects are there. A detector answered with eight boxes, each with a score. Boxes are
# $x_1\ y_1\ x_2\ y_2$ in pixels, as everywhere in this course.

# %%
TRUTH = [
    np.array([[10, 10, 50, 50], [60, 20, 90, 60]], float),
    np.array([[20, 30, 80, 70]], float),
    np.array([[30, 10, 70, 90], [3, 60, 28, 90]], float),
]
FOUND = [  # best first in each image
    (np.array([[12, 11, 51, 52], [9, 15, 45, 55], [61, 30, 92, 70]], float), np.array([0.95, 0.80, 0.60])),
    (np.array([[30, 30, 90, 72], [2, 4, 26, 24]], float), np.array([0.90, 0.65])),
    (np.array([[31, 12, 69, 88], [72, 60, 96, 86], [14, 70, 40, 97]], float), np.array([0.70, 0.50, 0.40])),
]

# %% [markdown]
# ## Intersection over union
#
# How well does a found box fit an object? The question needs an answer that does not depend on the unit of length:
#
# $$\mathrm{IoU}(A, B) = \frac{|A \cap B|}{|A \cup B|}, \qquad |A \cup B| = |A| + |B| - |A \cap B|.$$
#
# **Predict.** A square is found at the right size, but moved sideways by a third of its side. What is the IoU? And
# what is it when it is moved along both axes by a third?
#
# **Write.** The overlap of two intervals is $\min(\text{ends}) - \max(\text{starts})$. It can be negative.


# %% tags=["exercise"]
def iou(a, b):
    """IoU of two boxes, each (4,) x1 y1 x2 y2: a float from 0 to 1. Boxes that only touch have 0."""
    ### BEGIN SOLUTION hint: width and height of the overlap, each cut at 0; then the union from the three areas
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)
    ### END SOLUTION


# %% tags=["check"]
unit = (0, 0, 3, 3)
assert abs(iou(unit, unit) - 1) < 1e-12, "a box overlaps itself with IoU 1; is the overlap taken off the sum of areas?"
assert abs(iou(unit, (1, 0, 4, 3)) - 0.5) < 1e-12, (
    f"moved by a third: 6 of 12 square pixels are shared, IoU 1/2; yours {iou(unit, (1, 0, 4, 3)):.4f}. "
    "Widths are x2 - x1, with no +1"
)
assert abs(iou(unit, (1, 1, 4, 4)) - 4 / 14) < 1e-12, "moved along both axes: 4 of 14 square pixels, IoU 2/7"
assert iou(unit, (3, 0, 6, 3)) == 0, "boxes that only touch share no area"
assert iou(unit, (5, 5, 8, 8)) == 0, (
    f"far apart along both axes is IoU 0, yours {iou(unit, (5, 5, 8, 8)):.3f}: "
    "two negative sides have a positive product"
)
assert abs(iou((10, 20, 40, 80), (20, 30, 30, 40)) - 100 / 1800) < 1e-12, (
    "a 10 x 10 box inside one of 30 x 60: 100 / 1800; are boxes taken as corners, not as x, y, width, height?"
)

# %% [markdown]
# A third of the side costs half of the IoU, and along both axes nearly three quarters. IoU is strict. It is stricter
# still with small objects: a square of side $s$, moved by $d$ pixels, keeps $(s - d) / (s + d)$.
#
# **Predict.** A detector errs by 4 pixels to the side, whatever the object. Which of the squares in the next picture
# count as found at IoU 0.5? And at 0.75?

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained", width_ratios=(1, 1.6))
for box, colour, line, name in (((0, 0, 3, 3), COLOURS[0], "-", "object"), ((1, 1, 4, 4), COLOURS[1], "--", "found")):
    left.add_patch(Rectangle(box[:2], 3, 3, fill=False, edgecolor=colour, linestyle=line, linewidth=2, label=name))
left.add_patch(Rectangle((1, 1), 2, 2, color="0.85", zorder=0))
left.text(2, 2, "4 shared", ha="center", va="center")
left.set(xlim=(-0.4, 4.4), ylim=(5.6, -0.4), aspect="equal", title="4 / (9 + 9 - 4) = 0.29", xlabel="x (pixels)")
left.set_ylabel("y (pixels)")
left.legend(loc="lower center", ncols=2, frameon=False)
shift = np.linspace(0, 10, 101)
for side, line, colour in zip((8, 16, 32, 96), (":", "-.", "--", "-"), COLOURS, strict=False):
    values = [iou((0, 0, side, side), (d, 0, side + d, side)) for d in shift]
    right.plot(shift, values, linestyle=line, color=colour, label=f"side {side} pixels")
for threshold in (0.5, 0.75):
    right.axhline(threshold, color="0.6", linewidth=0.8)
right.axvline(4, color="0.6", linewidth=0.8)
right.set(xlabel="moved to the side by (pixels)", ylabel="IoU", xlim=(0, 10), ylim=(0, 1.02))
right.set_title("the same error costs small objects more")
right.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0.0, 0.0))
show(
    figure,
    alt="Left: two squares that share four of fourteen unit squares. Right: IoU against a sideways shift for squares "
    "of 8, 16, 32 and 96 pixels; the smaller the square, the steeper the fall.",
)

# %% [markdown]
# For whole images we want all pairs at once. The same arithmetic with broadcasting gives a matrix, one row for each
# detection and one column for each object. It must agree with your scalar function, and with the package's.


# %%
def iou_matrix(a, b):
    """Every box of a (D, 4) with every box of b (G, 4) -> (D, G)."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])  # (D, G, 2)
    overlap = np.maximum(sides, 0).prod(axis=2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1)
    return overlap / (area_a[:, None] + area_b - overlap)


rng = np.random.default_rng(0)
corner = rng.uniform(0, 60, (2, 40, 2))
a, b = np.concatenate([corner, corner + rng.uniform(1, 40, (2, 40, 2))], axis=2)
assert np.abs(iou_matrix(a, b) - [[iou(x, y) for y in b] for x in a]).max() < 1e-12
assert np.abs(iou_matrix(a, b) - box_iou(a, b)).max() < 1e-12
print("scalar, matrix and package agree on", a.shape[0] * b.shape[0], "pairs")
print("image 0 of the scene (rows: detections, columns: objects)")
print(iou_matrix(FOUND[0][0], TRUTH[0]).round(2))

# %% [markdown]
# ## Who found whom
#
# IoU says how well each pair fits. A score must also say which detection *is credited* with which object, or five
# boxes on one dog would count five times. COCO's rule is greedy. Go down the list, best score first. Each detection
# takes, of the objects that are still free, the one that it overlaps most, if that overlap reaches the threshold. A
# detection that takes one is a **true positive**. Any other is a **false positive**. An object left over is **missed**.
#
# **Predict.** In image 0 the second detection overlaps the first object well, but the first detection took it. What
# is the second detection?
#
# **Write.** `overlap` is $(D, G)$, its rows in order of falling score.


# %% tags=["exercise"]
def match(overlap, threshold):
    """Greedy matching: overlap (D, G), best detection first -> (D,) the object that each takes, -1 where none."""
    ### BEGIN SOLUTION hint: keep a bool of free objects; of the free ones that reach the threshold take the largest
    taken = np.full(len(overlap), -1)
    free = np.ones(overlap.shape[1], bool)
    for d, row in enumerate(overlap):
        candidates = np.flatnonzero(free & (row >= threshold))
        if len(candidates):
            taken[d] = candidates[row[candidates].argmax()]
            free[taken[d]] = False
    return taken
    ### END SOLUTION


# %% tags=["check"]
duplicate = np.array([[0.9], [0.8]])
assert list(match(duplicate, 0.5)) == [0, -1], (
    f"two boxes on one object: the better one takes it, the other is a false positive, [0, -1]; "
    f"yours {list(match(duplicate, 0.5))}. Is an object free only once?"
)
second_best = np.array([[0.9, 0.6], [0.8, 0.7]])
assert list(match(second_best, 0.5)) == [0, 1], (
    "when its favourite is taken, a detection takes the best that is left: [0, 1], "
    f"yours {list(match(second_best, 0.5))}"
)
best = np.array([[0.6, 0.9]])
assert list(match(best, 0.5)) == [1], "of two objects above the threshold a detection takes the one it overlaps most"
by_score = np.array([[0.6], [0.9]])
assert list(match(by_score, 0.5)) == [0, -1], (
    "the list is in order of score: the first detection takes the object though the second fits better"
)
assert list(match(np.array([[0.5]]), 0.5)) == [0], "an overlap equal to the threshold is enough"
assert len(match(np.zeros((2, 0)), 0.5)) == 2, "an image without objects: every detection gets -1"
rng = np.random.default_rng(1)
for _ in range(50):
    overlap = rng.random((6, 4)) * (rng.random((6, 4)) < 0.6)
    nobody = np.zeros(4, bool)
    assert list(match(overlap, 0.5)) == list(package_match(overlap, nobody, nobody, np.array([0.5]))[0]), (
        f"the package matches this matrix otherwise:\n{overlap.round(2)}"
    )

# %%
taken = [match(iou_matrix(boxes, truth), 0.5) for (boxes, _), truth in zip(FOUND, TRUTH, strict=True)]
figure, panels = plt.subplots(1, 3, figsize=(8, 3.5), layout="constrained")
for i, (panel, (boxes, scores), truth) in enumerate(zip(panels, FOUND, TRUTH, strict=True)):
    for x1, y1, x2, y2 in truth:
        panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor="0.88", edgecolor="black", linewidth=1.5))
    for box, score, g in zip(boxes, scores, taken[i], strict=True):
        x1, y1, x2, y2 = box
        colour, line = (COLOURS[0], "-") if g >= 0 else (COLOURS[1], "--")
        panel.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=line, linewidth=2)
        )
        corner, side = ((x2 - 1, y2 - 1), ("right", "bottom")) if g >= 0 else ((x1 + 1, y1 + 1), ("left", "top"))
        text = panel.text(*corner, f"{score:.2f}", color=colour, ha=side[0], va=side[1], fontsize=9, weight="bold")
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])
        if g >= 0:
            ends = np.array([(box[:2] + box[2:]) / 2, (truth[g, :2] + truth[g, 2:]) / 2])
            panel.plot(*ends.T, "o-", color=colour, markersize=4)
    for x1, y1, *_ in truth[np.setdiff1d(np.arange(len(truth)), taken[i])]:
        panel.text(x1 + 1, y1 + 1, "missed", va="top", fontsize=9)
    panel.set(xlim=(0, 100), ylim=(100, 0), aspect="equal", title=f"image {i}", xlabel="x (pixels)")
panels[0].set_ylabel("y (pixels)")
handles = [
    Rectangle((0, 0), 1, 1, facecolor="0.88", edgecolor="black", label="object"),
    Rectangle((0, 0), 1, 1, fill=False, edgecolor=COLOURS[0], linewidth=2, label="true positive, joined to its object"),
    Rectangle((0, 0), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2, linestyle="--", label="false positive"),
]
figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
show(
    figure,
    alt="The three images of the scene: objects in grey, true positives joined to their objects, false positives "
    "dashed; one duplicate, two boxes on nothing.",
)

# %% [markdown]
# The 0.80 of image 0 is a duplicate: it fits, but the object was gone. Without this rule a detector could paint ten
# boxes on each object and be praised ten times. CenterNet's peak test (E8) is there to avoid just these.
#
# ## Precision and recall
#
# Put the detections of **all** images into one list, best score first. After each of them
#
# $$\text{precision} = \frac{\text{true positives so far}}{\text{detections so far}}, \qquad
# \text{recall} = \frac{\text{true positives so far}}{\text{objects}}.$$
#
# Recall can only rise along the list. Precision goes up and down.
#
# **Write.** Equal scores keep the order in which they came: a stable sort.


# %% tags=["exercise"]
def precision_recall(scores, hit, positives):
    """After each of N detections, best first: scores (N,), hit (N,) bool -> precision (N,), recall (N,)."""
    ### BEGIN SOLUTION hint: argsort of -scores, kind="stable"; cumsum of hits; divide by 1..N and by positives
    hit = hit[np.argsort(-scores, kind="stable")]
    true = np.cumsum(hit)
    return true / np.arange(1, len(hit) + 1), true / positives
    ### END SOLUTION


# %% tags=["check"]
scores, hit = np.array([0.2, 0.9, 0.5, 0.7]), np.array([True, True, False, True])
precision, recall = precision_recall(scores, hit, 5)
assert np.allclose(recall, [0.2, 0.4, 0.4, 0.6]), (
    f"in order of score the hits are yes yes no yes, of 5 objects: recall 0.2 0.4 0.4 0.6, yours {recall}. "
    "Is the list sorted, best first, and divided by the number of objects?"
)
assert np.allclose(precision, [1, 1, 2 / 3, 3 / 4]), (
    f"precision divides by the detections so far: 1, 1, 2/3, 3/4; yours {precision}"
)
tied = precision_recall(np.full(40, 0.5), np.arange(40) < 10, 20)[0]
assert abs(tied[9] - 1) < 1e-12 and abs(tied[19] - 0.5) < 1e-12, (
    "equal scores keep their order: the first ten of this list are right; sort with kind='stable'"
)
rng = np.random.default_rng(2)
scores, hit = rng.permutation(30) / 30, rng.random(30) < 0.5
for n, (p, r) in enumerate(zip(*precision_recall(scores, hit, 40), strict=True), start=1):
    best_n = set(np.argsort(-scores)[:n].tolist())
    right = sum(bool(hit[i]) for i in best_n)
    assert abs(p - right / n) < 1e-12 and abs(r - right / 40) < 1e-12, f"after {n} detections {right} are right of 40"

# %%
scores = np.concatenate([scores for _, scores in FOUND])
hit = np.concatenate(taken) >= 0
precision, recall = precision_recall(scores, hit, positives=5)
print("score  hit  precision  recall")
for s, h, p, r in zip(np.sort(scores)[::-1], hit[np.argsort(-scores, kind="stable")], precision, recall, strict=True):
    print(f"{s:5.2f}  {'yes' if h else 'no ':3}  {p:9.3f}  {r:6.2f}")

# %% [markdown]
# ## From a curve to a number
#
# The area under this curve is the *average precision*. Its saw teeth are accidents of the order within a few
# detections, so they are filled first: the precision at recall $r$ becomes the best one at recall $r$ **or beyond**.
# Then COCO reads the curve at 101 recalls and takes the mean:
#
# $$\mathrm{AP} = \frac{1}{101} \sum_{r \in \{0, 0.01, \dots, 1\}} \
# \max_{n:\ \text{recall}_n \ge r} \text{precision}_n,$$
#
# where a recall that is never reached gives 0.
#
# **Predict.** The detector of the scene finds four of five objects. What is the most that its AP could be?
#
# **Write.**


# %% tags=["exercise"]
def interpolate(precision, recall, points=101):
    """The best precision at each of evenly spaced recalls 0 to 1, or beyond it; 0 where never reached -> (points,)."""
    ### BEGIN SOLUTION hint: for each wanted r, the largest precision where recall >= r, or 0 when there is none
    curve = np.zeros(points)
    for k, wanted in enumerate(np.linspace(0, 1, points)):
        reached = recall >= wanted
        if reached.any():
            curve[k] = precision[reached].max()
    return curve
    ### END SOLUTION


# %% tags=["check"]
teeth = interpolate(np.array([1, 0.5, 2 / 3, 0.5]), np.array([0.25, 0.25, 0.5, 0.5]))
assert np.allclose(teeth[:26], 1), "recalls up to 0.25, the end included, are reached at precision 1"
assert np.allclose(teeth[26:51], 2 / 3), (
    f"between recall 0.25 and 0.5 the best precision at that recall or beyond is 2/3, yours {teeth[30]:.3f}: "
    "nothing is interpolated in a straight line"
)
assert np.allclose(teeth[51:], 0), f"recall beyond 0.5 is never reached: precision 0 there, yours {teeth[60]:.3f}"
filled = interpolate(np.array([0.0, 0.5, 2 / 3, 3 / 4]), np.array([0, 0.25, 0.5, 0.75]))
assert np.allclose(filled[:76], 0.75), "a first false positive is forgiven: 0.75 is reached at a higher recall"
assert interpolate(np.zeros(0), np.zeros(0)).tolist() == [0] * 101, "no detections at all: 0 everywhere, no error"
assert interpolate(np.ones(1), np.ones(1), points=11).shape == (11,), "points says how many recalls are looked at"

# %%
figure, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
wanted, curve = np.linspace(0, 1, 101), interpolate(precision, recall)
axis.fill_between(wanted, curve, step="pre", color="0.9")
axis.plot(wanted, curve, ".", color=COLOURS[0], markersize=4, label="read at 101 recalls, the teeth filled")
axis.plot(recall, precision, "o--", color=COLOURS[1], label="after each detection")
order = np.argsort(-scores, kind="stable")
for s, h, p, r in zip(scores[order], hit[order], precision, recall, strict=True):
    axis.annotate(f"{s:.2f}", (r, p), xytext=(7, 2 if h else -10), textcoords="offset points", fontsize=9)
axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.08))
axis.set_title(f"the scene at IoU 0.5: AP {curve.mean():.3f}, the grey area")
axis.legend(frameon=False, loc="lower left")
show(
    figure,
    alt="Precision against recall for the eight detections, labelled by score, a saw-tooth; over it the filled "
    "staircase read at 101 recalls, which ends at recall 0.8.",
)
exact = (np.maximum.accumulate(precision[::-1])[::-1] * np.diff(recall, prepend=0)).sum()
eleven = interpolate(precision, recall, points=11).mean()
print(f"101 points {curve.mean():.4f}   11 points {eleven:.4f}   exact area {exact:.4f}")
assert curve.mean() <= 81 / 101 + 1e-12  # four of five: 81 of the 101 recalls can be reached

# %% [markdown]
# PASCAL VOC read the curve at 11 recalls until 2009 and takes the exact area since. The three numbers differ in the
# second digit here, since five objects make a coarse staircase. They are **not** to be compared with each other.
#
# ## Ten IoUs
#
# All of this was at IoU 0.5. A box that is half off counts there as much as a perfect one. COCO repeats it at
# 0.50, 0.55, ..., 0.95 and takes the mean: this is what "AP" means without further words. AP50 and AP75 are single
# ones of the ten.
#
# **Predict.** Which two of the four hits are lost first as the threshold rises? (Look at the matches drawn above.)

# %%
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def scene_ap(threshold, found=None):
    """AP of the scene at one threshold, by the four functions above."""
    found = FOUND if found is None else found
    taken = [match(iou_matrix(boxes, truth), threshold) for (boxes, _), truth in zip(found, TRUTH, strict=True)]
    scores = np.concatenate([scores for _, scores in found])
    return interpolate(*precision_recall(scores, np.concatenate(taken) >= 0, positives=5)).mean()


per_threshold = np.array([scene_ap(threshold) for threshold in THRESHOLDS])
assert (np.diff(per_threshold) <= 1e-12).all(), "a stricter threshold cannot help here"
figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
axis.bar(
    THRESHOLDS,
    per_threshold,
    width=0.035,
    color=[COLOURS[1] if t in THRESHOLDS[[0, 5]] else COLOURS[0] for t in THRESHOLDS],
)
for t, value in zip(THRESHOLDS, per_threshold, strict=True):
    axis.text(t, value + 0.015, f"{value:.2f}", ha="center", fontsize=9)
axis.axhline(per_threshold.mean(), color="black", linestyle="--", linewidth=1)
axis.text(0.982, per_threshold.mean() + 0.02, f"mean: AP {per_threshold.mean():.3f}", ha="right", fontsize=9)
axis.set(xlabel="IoU threshold", ylabel="AP at this threshold", xticks=THRESHOLDS, ylim=(0, 0.9), xlim=(0.47, 0.985))
axis.set_title("AP50 and AP75 in the second colour; AP is the mean of all ten")
show(
    figure,
    alt="Bars of the scene's AP at ten IoU thresholds, falling from 0.5 to 0.95, with AP50 and AP75 in another colour "
    "and a dashed line at their mean.",
)

# %% [markdown]
# ## What AP does not see
#
# **Predict** what happens to the AP of the scene in three cases. First, a tidy-minded colleague deletes all
# detections with a score below 0.65. Second, somebody adds 90 junk boxes at score 0.001 to each image. Third, all
# scores are halved.

# %%
rng = np.random.default_rng(3)
corner = rng.uniform(0, 80, (3, 90, 2))
junk = np.concatenate([corner, corner + rng.uniform(2, 6, (3, 90, 2))], axis=2)
cases = {
    "as it is": FOUND,
    "scores below 0.65 deleted": [(boxes[scores >= 0.65], scores[scores >= 0.65]) for boxes, scores in FOUND],
    "270 junk boxes at 0.001": [
        (np.concatenate([boxes, more]), np.concatenate([scores, np.full(90, 0.001)]))
        for (boxes, scores), more in zip(FOUND, junk, strict=True)
    ],
    "all scores halved": [(boxes, scores / 2) for boxes, scores in FOUND],
}
values = {name: np.mean([scene_ap(threshold, found) for threshold in THRESHOLDS]) for name, found in cases.items()}
for name, value in values.items():
    print(f"{name:26} AP {value:.4f}")
assert values["scores below 0.65 deleted"] < values["as it is"]
assert values["270 junk boxes at 0.001"] == values["all scores halved"] == values["as it is"]

# %% [markdown]
# Deleting detections can only lose recall. Junk at the end of the list costs nothing. And only the *order* of scores
# counts, not their values. So AP says how good a detector *could* be with the best choice of a threshold for each
# use. It does not say whether 0.3 is that threshold. Never cut the list before measuring; always cut it for people.
#
# ## Crowds and ignored objects
#
# COCO has two kinds of objects that are neither to be found nor to be avoided. A **crowd region** is one box around
# many objects that nobody wanted to outline one by one. And when AP is measured for small objects alone, all others
# are **ignored**. The rule for both is the same: *to find it earns nothing, to miss it costs nothing*. A detection
# that takes an ignored object disappears from the list. In detail:
#
# - a counted object is preferred: an ignored one is taken only if no free counted one reaches the threshold;
# - a crowd region is never used up: any number of detections may take it;
# - the overlap with a crowd region is divided by the **detection's** area, not by the union, since one person in a
#   crowd covers little of it;
# - of equal overlaps the last object wins (an accident of pycocotools, but it decides ties).
#
# **Predict.** A detection overlaps a free object by 0.6 and a crowd region by 0.95. Which one does it take?


# %% tags=["exercise"]
def match_ignoring(overlap, threshold, crowd, ignored):
    """Like match, with crowd (G,) and ignored (G,) bool; ignored holds for every crowd region, too -> (D,)."""
    ### BEGIN SOLUTION hint: candidates = free and near; keep the counted ones if there are any; the last of the largest
    taken = np.full(len(overlap), -1)
    free = np.ones(overlap.shape[1], bool)
    for d, row in enumerate(overlap):
        candidates = free & (row >= threshold)
        if (candidates & ~ignored).any():
            candidates &= ~ignored
        candidates = np.flatnonzero(candidates)
        if len(candidates):
            best = row[candidates].max()
            taken[d] = candidates[row[candidates] == best][-1]
            free[taken[d]] = crowd[taken[d]]
    return taken
    ### END SOLUTION


# %% tags=["check"]
no, yes = np.array([False, False]), np.array([False, True])
assert list(match_ignoring(np.array([[0.6, 0.95]]), 0.5, yes, yes)) == [0], (
    "a counted object that reaches the threshold is preferred, however much the crowd region overlaps"
)
assert list(match_ignoring(np.array([[0.3, 0.95]] * 3), 0.5, yes, yes)) == [1, 1, 1], (
    "any number of detections may take a crowd region"
)
assert list(match_ignoring(np.array([[0.3, 0.95]] * 3), 0.5, no, yes)) == [1, -1, -1], (
    "an ignored object that is no crowd is taken once, like any other"
)
assert list(match_ignoring(np.array([[0.9, 0.3], [0.8, 0.7]]), 0.5, no, yes)) == [0, 1], (
    "when the counted object is gone, the ignored one that reaches the threshold is taken"
)
assert list(match_ignoring(np.array([[0.7, 0.7]]), 0.5, no, no)) == [1], "of equal overlaps the last object wins"
rng = np.random.default_rng(4)
for _ in range(100):
    overlap = (rng.random((7, 5)) * (rng.random((7, 5)) < 0.7)).round(1)
    crowd = rng.random(5) < 0.3
    ignored = crowd | (rng.random(5) < 0.3)
    expected = package_match(overlap, crowd, ignored, np.array([0.45]))[0]
    assert list(match_ignoring(overlap, 0.45, crowd, ignored)) == list(expected), (
        f"the package takes {list(expected)}, you {list(match_ignoring(overlap, 0.45, crowd, ignored))} of\n{overlap}\n"
        f"crowd {crowd}, ignored {ignored}"
    )

# %% [markdown]
# ## The whole of it
#
# Now all parts fit together: for each class, the lists of all images; for each threshold, a curve; the mean of
# everything. One more rule of COCO: at most the 100 best detections of a class and image count. A class without
# objects is left out of the mean.


# %%
def overlap_with(found, truth, crowd):
    """IoU, and for crowd regions the intersection over the detection's own area: (D, G)."""
    plain = iou_matrix(found, truth)
    area_d, area_g = (found[:, 2:] - found[:, :2]).prod(axis=1)[:, None], (truth[:, 2:] - truth[:, :2]).prod(axis=1)
    shared = plain * (area_d + area_g) / (1 + plain)  # from IoU = shared / (area_d + area_g - shared)
    return np.where(crowd, shared / area_d, plain)


def curves_by_hand(ground_truth, detections, num_classes, area_range=(0, 1e10)):
    """Interpolated precision (C, 10, 101); nan for a class without counted objects."""
    curves = np.full((num_classes, len(THRESHOLDS), 101), np.nan)
    low, high = area_range
    for label in range(num_classes):
        scores, images, positives = [np.zeros(0)], [], 0
        for truth, found in zip(ground_truth, detections, strict=True):
            g, d = truth.labels == label, np.flatnonzero(found.labels == label)
            d = d[np.argsort(-found.scores[d], kind="stable")][:100]
            boxes, area = found.boxes[d].astype(float), truth.area[g].astype(float)
            ignored = truth.crowd[g] | (area < low) | (area > high)
            own_area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
            overlap = overlap_with(boxes, truth.boxes[g].astype(float), truth.crowd[g])
            images.append((overlap, truth.crowd[g], ignored, (own_area < low) | (own_area > high)))
            scores.append(found.scores[d].astype(float))
            positives += np.count_nonzero(~ignored)
        if positives == 0:
            continue
        for t, threshold in enumerate(THRESHOLDS):
            hits, counted = [np.zeros(0, bool)], [np.zeros(0, bool)]
            for overlap, crowd, ignored, outside in images:
                taken = match_ignoring(overlap, threshold, crowd, ignored)
                is_hit = taken >= 0
                disappears = outside.copy()  # a detection that takes nothing and is outside the range itself
                disappears[is_hit] = ignored[taken[is_hit]]
                hits.append(is_hit)
                counted.append(~disappears)
            keep = np.concatenate(counted)
            curve = precision_recall(np.concatenate(scores)[keep], np.concatenate(hits)[keep], positives)
            curves[label, t] = interpolate(*curve)
    return curves


def mean_or_minus_one(values):
    return float(np.nanmean(values)) if np.isfinite(values).any() else -1.0


def by_hand(ground_truth, detections, num_classes):
    """AP, AP50, AP75, and AP of small, medium and large objects; -1 where there is nothing to measure."""
    curves = curves_by_hand(ground_truth, detections, num_classes)
    sizes = ((0, 32**2), (32**2, 96**2), (96**2, 1e10))
    by_size = [mean_or_minus_one(curves_by_hand(ground_truth, detections, num_classes, size)) for size in sizes]
    return np.array(
        [mean_or_minus_one(curves), mean_or_minus_one(curves[:, 0]), mean_or_minus_one(curves[:, 5]), *by_size]
    )


# %% [markdown]
# ## The referee
#
# [pycocotools](https://github.com/cocodataset/cocoapi) is what every published COCO number comes from. Five scenes
# are planted to differ where implementations usually do. If pycocotools is not installed, the package's own
# `average_precision` stands in for it (its tests compare the two).

# %%
rng = np.random.default_rng(5)


def scene(images=6, objects=5, classes=3, crowd=0.0, digits=3, empty=0.0, largest=120):
    """Random objects, and detections of them that are moved, missing, doubled or made up."""
    ground_truth, detections = [], []
    for _ in range(images):
        n = 0 if rng.random() < empty else objects
        corner, side = rng.uniform(0, 200, (n, 2)), rng.uniform(8, largest, (n, 2))
        boxes, labels = np.concatenate([corner, corner + side], axis=1), rng.integers(0, classes, n)
        is_crowd = rng.random(n) < crowd
        ground_truth.append(
            SimpleNamespace(
                boxes=boxes, labels=labels, crowd=is_crowd, difficult=np.zeros(n, bool), area=side.prod(axis=1)
            )
        )
        source = rng.integers(0, n, 2 * n) if n else np.zeros(0, int)
        moved = boxes[source] + rng.normal(0, 4, (len(source), 4)) * (rng.random((len(source), 1)) < 0.8)
        made_up = rng.uniform(0, 100, (3, 2))
        moved = np.concatenate([moved, np.concatenate([made_up, made_up + rng.uniform(5, 90, (3, 2))], axis=1)])
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        if rng.random() < empty:
            moved = moved[:0]
        found_labels = np.concatenate([labels[source], rng.integers(0, classes, 3)])[: len(moved)]
        scores = rng.random(len(moved)).round(digits)
        detections.append(SimpleNamespace(boxes=moved, scores=scores, labels=found_labels))
    return ground_truth, detections, classes


scenes = {
    "plain": scene(),
    "crowd regions": scene(crowd=0.4),
    "ignored by size": scene(largest=60),
    "tied scores": scene(digits=1),
    "empty images, and no class 3": (*scene(empty=0.5)[:2], 4),
}


def referee(*arguments):
    """The same six figures by pycocotools, where it is installed."""
    try:
        return coco_evaluate(*arguments).stats()[:6], "pycocotools"
    except InputError:
        return average_precision(*arguments).stats()[:6], "the package (pycocotools is not installed)"


print(f"{'':30}     AP   AP50   AP75  small medium  large   difference")
for name, arguments in scenes.items():
    ours, (theirs, who) = by_hand(*arguments), referee(*arguments)
    print(f"{name:30}" + "".join(f"{value:7.3f}" for value in ours) + f"   {np.abs(ours - theirs).max():.0e}")
    assert np.abs(ours - theirs).max() < 1e-6, f"{name}: by hand {ours}, {who} {theirs}"
    assert np.abs(ours - average_precision(*arguments).stats()[:6]).max() < 1e-6
print(f"the referee was {who}; all differences are below 1e-6")

# %% [markdown]
# ## On photographs
#
# If the environment variable `MINICENTERNET_COCO` names a folder with photographs of COCO, as
# `minicenternet data prepare coco-sample DIR` writes it, the rest of this notebook measures on these. Otherwise it
# says so, and draws shapes.
#
# There is no network here. The "detector" is the ground truth itself with an error: every edge of every box is moved by
# a normal error of $\sigma$ pixels.
#
# **Predict.** At $\sigma = 4$ pixels, which falls further: AP50 or AP75? The AP of small or of large objects?

# %%
folder = os.environ.get("MINICENTERNET_COCO")
if folder:
    data = open_dataset(folder, split="val")
    print(f"{len(data)} photographs in {folder}")
else:
    data = Shapes(42, size=256, scale=(0.05, 0.6))
    print("MINICENTERNET_COCO names no folder: 42 drawings of shapes stand in for photographs")
truth = [data.annotation(i) for i in range(len(data))]
print(sum(len(t.boxes) for t in truth), "objects,", sum(int(t.crowd.sum()) for t in truth), "of them crowd regions")


def nearly_right(sigma, seed):
    """The objects of `truth` as detections, each edge off by a normal error of sigma pixels."""
    rng = np.random.default_rng(seed)
    found = []
    for t in truth:
        boxes = t.boxes[~t.crowd] + rng.normal(0, sigma, (np.count_nonzero(~t.crowd), 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.1)
        found.append(SimpleNamespace(boxes=boxes, scores=rng.random(len(boxes)), labels=t.labels[~t.crowd]))
    return found


sigmas, seeds = np.array([0, 1, 2, 4, 8, 16]), range(2 if FAST else 5)
stats = np.array(
    [
        [average_precision(truth, nearly_right(s, seed), len(data.class_names)).stats()[:6] for seed in seeds]
        for s in sigmas
    ]
)  # (sigmas, seeds, 6)
names = ("AP", "AP50", "AP75", "small", "medium", "large")
print("sigma  " + "".join(f"{name:>16}" for name in names) + f"    mean and spread over {len(seeds)} seeds")
for s, row in zip(sigmas, stats, strict=True):
    print(
        f"{s:5}  "
        + "".join(f"{m:10.3f} ±{d:.3f}" for m, d in zip(row.mean(axis=0), np.ptp(row, axis=0) / 2, strict=True))
    )
assert np.allclose(stats[0, :, :3], 1), "without an error AP is 1"
at_4 = stats[3].mean(axis=0)
assert at_4[2] < at_4[1] and at_4[3] < at_4[5], "AP75 below AP50, small objects below large ones"

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5), sharey=True, layout="constrained")
for axis, columns in ((left, (1, 0, 2)), (right, (5, 4, 3))):
    for k, (column, line) in enumerate(zip(columns, ("-", "--", ":"), strict=True)):
        middle, low, high = (
            stats[..., column].mean(axis=1),
            stats[..., column].min(axis=1),
            stats[..., column].max(axis=1),
        )
        axis.plot(sigmas, middle, linestyle=line, marker="o", color=COLOURS[k], label=names[column])
        axis.fill_between(sigmas, low, high, color=COLOURS[k], alpha=0.2, linewidth=0)
    axis.set(xlabel="error of each edge, sigma (pixels)", xticks=sigmas, ylim=(0, 1.04))
    axis.legend(frameon=False)
left.set(ylabel="average precision", title="by threshold")
right.set_title("AP by size of the object")
show(
    figure,
    alt="AP against the error of the edges in pixels. Left: AP and AP75 fall together, AP50 later. Right: small "
    "objects fall before medium ones, and medium ones before large ones. Bands show the spread over seeds.",
)

# %% [markdown]
# AP50 forgives most of an error of 4 pixels, AP75 little of it, and small objects pay most. A low AP with a good AP50
# says: *the objects are found, the boxes are loose.* Notebook 11 shows this signature for a network without its offset
# head.
#
# ## Break it
#
# A detector is **perfect**: it returns the ground truth with score 1. Its detections are saved to a file, one record
# each, and read again by the evaluation. The AP should be 1.

# %%
category_ids = data.category_ids if folder else (1, 2, 4, 7, 8)


def save_records(detections):
    return [
        {"image": i, "category_id": int(label) + 1, "box": box, "score": 1.0}
        for i, found in enumerate(detections)
        for box, label in zip(found.boxes, found.labels, strict=True)
    ]


def load_records(records):
    label_of = {category: label for label, category in enumerate(category_ids)}
    found = []
    for i in range(len(truth)):
        own = [record for record in records if record["image"] == i and record["category_id"] in label_of]
        found.append(
            SimpleNamespace(
                boxes=np.array([record["box"] for record in own]).reshape(-1, 4),
                labels=np.array([label_of[record["category_id"]] for record in own], int),
                scores=np.array([record["score"] for record in own]),
            )
        )
    return found


result = average_precision(truth, load_records(save_records(nearly_right(0, 0))), len(data.class_names))
print(f"AP {result.ap:.3f}")
for label in np.flatnonzero(~np.isnan(result.per_class))[:16]:
    print(f"  {data.class_names[label]:15} {result.per_class[label]:.3f}")
assert 0 < result.ap < 0.9

# %% [markdown]
# Some classes are perfect, all later ones are at 0. No box is wrong by a pixel.
#
# **Find the cause** before you open the answer. Look at which classes are right, and at `category_ids`.
#
# <details><summary>The cause</summary>
#
# `save_records` writes `label + 1`. The file's category ids are not 1 to C: COCO's 80 classes have ids from 1 to 90
# with gaps (there is no 12). Up to the first gap both agree, so "person" looks perfect and the mistake is easy to miss.
# After it every detection counts for a class further on, or for none. The ids must come from the file:
# `category_ids[label]`. A network's labels are positions in the *sorted* list of ids, nothing else.
#
# </details>

# %%
records = save_records(nearly_right(0, 0))
labels = np.concatenate([found.labels for found in nearly_right(0, 0)])
for record, label in zip(records, labels, strict=True):
    record["category_id"] = category_ids[label]
assert average_precision(truth, load_records(records), len(data.class_names)).ap == 1
print("with the file's own ids: AP 1.000")

# %% [markdown]
# ## Summary
#
# - IoU divides shared by joint area. It is strict, and strictest with small objects.
# - Greedy matching credits each object once. Duplicates are false positives.
# - AP is the mean of the filled precision at 101 recalls, ten IoU thresholds and all classes.
# - Crowds and ignored objects earn nothing and cost nothing; that is where implementations differ.
# - AP sees the order of the scores alone. It rewards long lists and says nothing about a threshold.
#
# ## In the package
#
# - `minicenternet.metrics.average_precision.box_iou`, `minicenternet.metrics.average_precision.match`,
#   `minicenternet.metrics.average_precision.precision_recall` and
#   `minicenternet.metrics.average_precision.interpolate` are the four steps, for all thresholds at once.
# - `minicenternet.metrics.average_precision.average_precision` is the whole of it, figure for figure pycocotools'.
# - `minicenternet.metrics.coco.coco_evaluate` asks pycocotools itself.
#   `minicenternet.metrics.voc.voc_average_precision` is VOC's AP, at 11 points or by area.
# - `minicenternet evaluate` prints the table and compares it with pycocotools where that is installed.
