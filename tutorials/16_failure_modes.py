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
# # 16 · Failure modes
#
# - **Goal** Take the detector apart: how often do two centres share a cell, and what do suppression, peak test, offset
#   and prior each contribute? And how much of all that is only the seed?
# - **You need** 10, 11, 12, 13.
# - **Minutes** 50 to read and work / runs in about 15 s
# - **Equations** E1, E5, E8, E9, E10
# - **What you should see** Random centres collide as the birthday problem predicts, within four standard errors;
#   without the peak test at least ten times as many second boxes; without offsets less than half the AP75.

# %%
import json
import math
import os
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np

from minicenternet import CenterNet
from minicenternet.autograd import Tensor
from minicenternet.course import TUTORIALS
from minicenternet.data import Shapes, open_dataset
from minicenternet.data.transforms import apply_to_boxes, letterbox
from minicenternet.draw import COLOURS, show
from minicenternet.metrics import average_precision
from minicenternet.metrics.average_precision import box_iou
from minicenternet.nn.init import prior_bias
from minicenternet.ops import gather_points
from minicenternet.optim import Adam, learning_rate
from minicenternet.points.decode import decode
from minicenternet.points.losses import detection_loss, expected_first_loss, l1_loss
from minicenternet.points.targets import Targets, encode

FAST = os.environ.get("MINICENTERNET_FAST") == "1"

# %% [markdown]
# ## Two centres in one cell
#
# A cell of the heatmap holds one object of a class. Where two boxes of a class have their centres in one cell, the
# detector can find one of them at most, however well it is trained.
#
# **Write** the count: the boxes that share (class, cell) with an earlier one. Three in a cell are *two* lost, though
# they are three pairs.


# %% tags=["exercise"]
def count_lost(boxes, labels, stride):
    """How many of boxes (N, 4) in input pixels, with labels (N,), share class and cell with an earlier one."""
    ### BEGIN SOLUTION hint: cells = floor(centre / stride); N less the number of distinct (label, x, y)
    cells = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).astype(int)
    return len(boxes) - len({(label, x, y) for label, (x, y) in zip(labels.tolist(), cells.tolist(), strict=True)})
    ### END SOLUTION


# %% tags=["check"]
def count_by_loops(boxes, labels, stride):
    """The oracle: each box against every earlier one."""
    lost = 0
    for i in range(len(boxes)):
        for j in range(i):
            cell_i, cell_j = (
                [math.floor((boxes[k][axis] + boxes[k][axis + 2]) / 2 / stride) for axis in (0, 1)] for k in (i, j)
            )
            if labels[i] == labels[j] and cell_i == cell_j:
                lost += 1
                break
    return lost


around = np.array([[10.0, 10, 30, 30], [11, 9, 31, 31], [5, 5, 35, 35], [13, 12, 33, 33]])  # centres 20 20, 21 20, ..
zeros = np.zeros(4, int)
for boxes, labels, stride, want, why in [
    (around[:1], zeros[:1], 4, 0, "a single box"),
    (around[:2], zeros[:2], 4, 1, "centres (20, 20) and (21, 20) are both in cell (5, 5)"),
    (around[:3], zeros[:3], 4, 2, "three in one cell: two are lost, not three"),
    (around[:2], np.array([0, 1]), 4, 0, "another class has a map of its own"),
    (around[[0, 3]], zeros[:2], 4, 1, "(23, 22) is in cell (5, 5), too: floor, do not round"),
    (around[[0, 3]], zeros[:2], 2, 0, "at stride 2 they part"),
    (around[[0, 1]] + [0, 0, 0, 40], zeros[:2], 4, 1, "the centre is that of the whole box"),
    (np.array([[0.0, 0, 8, 8], [0, 40, 8, 48]]), zeros[:2], 4, 0, "one column, another row"),
]:
    got = count_lost(boxes, labels, stride)
    assert got == want, f"{why}: {want} lost, you count {got} of {boxes.tolist()}"
rng = np.random.default_rng(0)
for _ in range(5):
    corner, sides, labels = rng.uniform(0, 60, (40, 2)), rng.uniform(2, 40, (40, 2)), rng.integers(0, 3, 40)
    boxes = np.concatenate([corner, corner + sides], axis=1)
    want, got = count_by_loops(boxes, labels, 8), count_lost(boxes, labels, 8)
    assert got == want, f"40 random boxes at stride 8: {want} lost, you count {got}"

# %% [markdown]
# ### Birthdays
#
# Throw $N$ centres of one class at random into $M$ cells: the birthday problem with $M$ days. The expected number of
# distinct cells is $M (1 - (1 - 1/M)^N)$, so the expected number of lost boxes is
#
# $$N - M \left(1 - (1 - 1/M)^N\right) \approx \frac{N (N - 1)}{2 M}.$$
#
# **Predict.** 20 objects of a class in 512 by 512 pixels, $R = 4$: how many are lost per image? At $R = 16$?

# %%
rng, N = np.random.default_rng(1), 20
scenes = rng.uniform(0, 512, (1000, N, 2))
strides = [4, 8, 16, 32]
counted, expected = [], []
for stride in strides:
    M = (512 // stride) ** 2
    expected.append(N - M * (1 - (1 - 1 / M) ** N))
    counted.append(np.mean([count_lost(np.concatenate([c, c], axis=1), np.zeros(N, int), stride) for c in scenes]))
    print(f"R = {stride:2d}: {counted[-1]:.4f} lost of {N}; expected {expected[-1]:.4f}")
spread = np.sqrt(expected[-1] / len(scenes))
assert abs(counted[-1] - expected[-1]) < 4 * spread
assert abs(N * (N - 1) / 2 / 128**2 - expected[0]) < 0.1 * expected[0]

# %% [markdown]
# A finer map helps with the square of the stride. That is one reason for $R = 4$ where classifiers have 32.
#
# ### Real scenes
#
# Real objects are not thrown at random: they stand in rows, in crowds, in one another. The paper counts 614 colliding
# pairs among 860,001 objects of COCO's training set, fewer than 0.1 %. If the environment variable
# `MINICENTERNET_COCO` names a folder with photographs of COCO, they are counted here. If not, crowded drawings stand
# in.

# %%
INPUT = 512


def boxes_at_input(annotation):
    """Boxes of an image's objects in pixels of the network's input, and their labels; crowd regions left out."""
    matrix = letterbox(annotation.width, annotation.height, INPUT, INPUT)
    return apply_to_boxes(matrix, annotation.boxes[~annotation.crowd]), annotation.labels[~annotation.crowd]


crowded = Shapes(
    40 if FAST else 150, 256, seed=3, classes=("circle", "square"), objects=(15, 25), scale=(0.04, 0.25),
    occlusion=1.0, crowding=0.7,
)  # fmt: skip
sources = {"crowded drawings": crowded}
folder = os.environ.get("MINICENTERNET_COCO")
if folder:
    sources["COCO"] = open_dataset(folder, split="val")
else:
    print("MINICENTERNET_COCO names no folder: crowded drawings stand in for photographs")
shares = {}
for name, dataset in sources.items():
    scenes = [boxes_at_input(dataset.annotation(i)) for i in range(len(dataset))]
    total = sum(len(boxes) for boxes, _ in scenes)
    shares[name] = [sum(count_lost(*scene, stride) for scene in scenes) / total for stride in strides]
    print(f"{name}: {total} objects in {len(scenes)} images")
    for stride, share in zip(strides, shares[name], strict=True):
        print(f"    R = {stride:2d}: {100 * share:.2f} % lost")
    assert np.all(np.diff(shares[name]) >= 0), "a coarser map merges cells, so that it never loses fewer"

# %%
lost_of = [count_lost(*boxes_at_input(crowded.annotation(i)), 8) for i in range(len(crowded))]
worst = int(np.argmax(lost_of))
boxes, labels = boxes_at_input(crowded.annotation(worst))
cells = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2 / 8).astype(int)
keys = np.concatenate([labels[:, None], cells], axis=1)
_, group, count = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
collides = count[group.ravel()] > 1
figure, axes = plt.subplots(1, 2, figsize=(8, 3.7), layout="constrained", width_ratios=(1, 1.1))
axes[0].imshow(crowded[worst].image, extent=(0, INPUT, INPUT, 0), alpha=0.55)
for (x1, y1, x2, y2), hit in zip(boxes, collides, strict=True):
    axes[0].plot((x1 + x2) / 2, (y1 + y2) / 2, "o" if hit else ".", color=COLOURS[1] if hit else COLOURS[6], mfc="none")
    if hit:
        axes[0].add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=COLOURS[1], linewidth=1.2))
axes[0].set(xlabel="x (input pixels)", ylabel="y (input pixels)", title="collisions at R = 8")
for (name, share), line, colour in zip(shares.items(), ("-", "--"), COLOURS, strict=False):
    axes[1].plot(strides, [100 * x if x else np.nan for x in share], line, marker="o", color=colour, label=name)
axes[1].plot(
    strides, 100 * np.array(expected) / N, ":", marker="s", color=COLOURS[2], label=f"{N} at random, one class"
)
axes[1].set_xscale("log", base=2)
axes[1].set_xticks(strides, strides)
axes[1].set_yscale("log")
axes[1].yaxis.set_major_formatter("{x:g}")
axes[1].set(xlabel="output stride R (pixels)", ylabel="objects lost (%)")
axes[1].grid(color="0.9")
axes[1].legend(fontsize=8)
show(
    figure,
    alt="A crowded scene with the boxes that share a centre cell marked, and the share of objects lost by stride.",
)

# %% [markdown]
# ### What a collision does to the losses
#
# The heatmap has one peak for both. Their slots point at the same cell, and the L1 loss asks that cell for two sizes.
#
# **Predict.** One wants width 10, the other 20. Which width has the least loss?

# %%
pair = np.array([[40.0, 40, 80, 80], [20, 20, 100, 100]])  # one centre, widths of 10 and 20 cells
targets = encode(pair, np.zeros(2, int), 1, 32, 32)
print(
    f"cells with Y = 1: {(targets.heatmap == 1).sum()}; objects: {int(targets.mask.sum())}, cells {targets.index[:2]}"
)
losses = {}
for width in (8, 10, 12, 15, 18, 20, 22):
    answer = gather_points(Tensor(np.full((1, 32, 32, 2), width, np.float32)), targets.index[None])
    losses[width] = l1_loss(answer, targets.size[None], targets.mask[None]).item()
    print(f"answer {width:2d}: size loss {losses[width]:.1f}")
assert (targets.heatmap == 1).sum() == 1 and targets.index[0] == targets.index[1]
assert losses[10] == losses[15] == losses[20] < min(losses[8], losses[22])

# %% [markdown]
# All widths from 10 to 20 are equally good: L1 is content with any median. One of the two boxes is lost, and the other
# may come out at neither size.
#
# ## The records
#
# The ablations below were trained by `tutorials/measure_variants.py`, as those of notebook 11: squares at 128 pixels,
# the small network, several seeds. The sound networks were also decoded in several ways. These comparisons are within
# each network, so what differs between seeds does not blur them.

# %%
records = {}
for path in sorted((TUTORIALS / "measured").glob("*.json")):
    record = json.loads(path.read_text(encoding="utf-8"))
    records.setdefault(record["variant"], []).append(record)
settings = records["sound"][0]["settings"]
print({name: len(records[name]) for name in ("sound", "no_offset", "no_prior")}, settings)


def figures(name, figure="ap", decoder="sound"):
    """One number for each seed of a variant."""
    return np.array([record["results"][decoder][figure] for record in records[name]])


assert all(len(records[name]) >= 3 for name in ("sound", "no_offset", "no_prior")), "three seeds, or nothing is claimed"

# %% [markdown]
# Two numbers for each network, with and without something: look at the *differences* $d_i$, and measure their mean in
# its own noise,
#
# $$t = \frac{\bar d}{s_d / \sqrt n}, \qquad s_d^2 = \frac{\sum_i (d_i - \bar d)^2}{n - 1}.$$
#
# **Write** it.


# %% tags=["exercise"]
def paired_noise(before, after):
    """Return t of the differences after - before, of the same networks in the same order."""
    ### BEGIN SOLUTION hint: d = after - before; its mean over its standard deviation (n - 1) over the root of n
    d = np.asarray(after, float) - np.asarray(before, float)
    return d.mean() / (d.std(ddof=1) / math.sqrt(len(d)))
    ### END SOLUTION


# %% tags=["check"]
got = paired_noise([1.0, 5.0, 9.0], [2.0, 7.0, 12.0])  # differences 1, 2, 3: mean 2, deviation 1
assert abs(got - 2 * math.sqrt(3)) < 1e-9, f"differences 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.4641; yours {got:.4f}"
got = paired_noise([2.0, 7.0, 12.0], [1.0, 5.0, 9.0])
assert got < 0, f"where everything falls, t is negative: after - before; yours {got:.4f}"
got = paired_noise([0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 2.0, -2.0])
assert abs(got) < 1e-9, f"differences that cancel: t = 0; yours {got:.4f}"

# %%
COMPARISONS = 18  # printed below: three decoders by four figures, two by three; taken as if independent
n = len(records["sound"])
rng = np.random.default_rng(0)
imagined = rng.normal(size=(20_000, COMPARISONS, n))
by_chance = np.abs(imagined.mean(axis=2) / (imagined.std(axis=2, ddof=1) / math.sqrt(n))).max(axis=1)
THRESHOLD = float(np.quantile(by_chance, 0.95))
print(
    f"the largest |t| of {COMPARISONS} comparisons of {n} networks exceeds {THRESHOLD:.1f} by chance in one of twenty"
)


def compare(decoder, figure):
    before, after = figures("sound", figure), figures("sound", figure, decoder)
    same = np.array_equal(before, after)
    t = 0.0 if same else paired_noise(before, after)
    verdict = "OUTSIDE the noise" if abs(t) > THRESHOLD else "not seen"
    print(f"{decoder:>22} {figure:<22} {before.mean():.3f} -> {after.mean():.3f}   t = {t:7.1f}: {verdict}")
    return bool(abs(t) > THRESHOLD)


# %% [markdown]
# ## Second boxes
#
# CenterNet needs no suppression of overlapping boxes, the paper says: the $3 \times 3$ peak test (E8) leaves one cell
# per object. To see that, count second boxes.
#
# **Write** it, for the detections of one image. Go down from the best score. A detection takes the free object of its
# class that it overlaps most, if by at least `iou`. One that reaches `iou` with objects of its class, none of which is
# free, is a second box.


# %% tags=["exercise"]
def second_boxes(boxes, labels, scores, objects, object_labels, iou=0.5):
    """How many detections overlap only objects that better detections have taken."""
    ### BEGIN SOLUTION hint: taken = set(); for each detection by falling score: the objects in reach, those still free
    overlap, taken, second = box_iou(boxes, objects), set(), 0
    for d in np.argsort(-scores, kind="stable"):
        reach = [g for g in range(len(objects)) if labels[d] == object_labels[g] and overlap[d, g] >= iou]
        free = [g for g in reach if g not in taken]
        if free:
            taken.add(max(free, key=lambda g: overlap[d, g]))
        elif reach:
            second += 1
    return second
    ### END SOLUTION


# %% tags=["check"]
there = np.array([[0.0, 0, 10, 10], [4, 0, 14, 10]])  # they overlap by 6/14
square = np.array([[0.0, 0, 10, 10]])
for boxes, labels, scores, objects, object_labels, want, why in [
    (square, [0], [0.9], there[:1], [0], 0, "one box, one object"),
    (square.repeat(3, 0), [0, 0, 0], [0.9, 0.8, 0.7], there[:1], [0], 2, "three boxes on one object: two too many"),
    (square.repeat(2, 0), [0, 1], [0.9, 0.8], there[:1], [0], 0, "a box of another class is false, but not a second"),
    (square + 50, [0], [0.9], there[:1], [0], 0, "a box on nothing is false, but not a second"),
    (there, [0, 0], [0.9, 0.8], there, [0, 0], 0, "two objects side by side, one box each"),
    (np.array([[2.5, 0, 12.5, 10], [0, 0, 10, 10]]), [0, 0], [0.9, 0.8], there, [0, 0], 0,
     "the first reaches both and takes the right one, which it overlaps most; the second takes the left one"),
    (np.array([[0.0, 0, 10, 10], [1.9, 0, 11.9, 10]]), [0, 0], [0.9, 0.8], there, [0, 0], 0,
     "the second overlaps the left one most, which is taken, but reaches the right one, too"),
    (np.array([[1.0, 0, 11, 10], [0, 0, 10, 10]]), [0, 0], [0.2, 0.9], there[:1], [0], 1,
     "by falling score: the second of the list is the best"),
    (np.array([[3.0, 0, 13, 10], [4, 0, 14, 10]]), [0, 0], [0.9, 0.8], there, [0, 0], 1,
     "the first takes what it overlaps most, the right one; the other box reaches that one alone"),
]:  # fmt: skip
    got = second_boxes(boxes, np.array(labels), np.array(scores), objects, np.array(object_labels))
    assert got == want, f"{why}: expected {want}, you count {got}"

# %% [markdown]
# The records hold the same count for all detections with a score of at least 0.3, divided by the number of objects,
# and the precision of these detections.
#
# **Predict.** Switch the peak test off and take the 100 highest cells: how many second boxes per object, and what
# happens to AP? Switch suppression on as well?

# %%
seen = {}
for decoder in ("nms", "without_peak_test", "without_peak_test_nms"):
    for figure in ("ap", "ap50", "precision", "duplicates_per_object"):
        seen[decoder, figure] = compare(decoder, figure)
    print()
sound_second, raw_second = (
    figures("sound", "duplicates_per_object", decoder).mean() for decoder in ("sound", "without_peak_test")
)
print(f"second boxes per object: {sound_second:.3f} with the peak test, {raw_second:.2f} without")
assert seen["without_peak_test", "duplicates_per_object"] and raw_second > 10 * sound_second

# %%
bars = {
    "sound": "peak test",
    "nms": "peak test, NMS",
    "without_peak_test": "neither",
    "without_peak_test_nms": "NMS",
}
figure, axes = plt.subplots(1, 3, figsize=(8, 3), layout="constrained", sharey=True)
for axis, (name, title) in zip(
    axes,
    {"ap": "AP", "precision": "precision", "duplicates_per_object": "second boxes per object"}.items(),
    strict=True,
):
    for row, (decoder, hatch) in enumerate(zip(bars, ("", "//", "..", "xx"), strict=True)):
        values = figures("sound", name, decoder)
        axis.barh(row, values.mean(), color=COLOURS[5], hatch=hatch, edgecolor="white")
        axis.plot(values, np.full(n, row), "k|", markersize=9)
    axis.set_xlabel(title + (" (score ≥ 0.3)" if name == "precision" else ""))
axes[0].set_yticks(range(4), bars.values())
axes[0].invert_yaxis()
show(
    figure,
    alt="AP, precision and second boxes for decoding with peak test, with suppression, with both and with neither.",
)

# %% [markdown]
# ## Without the offset
#
# A cell is $R = 4$ pixels wide, so that a centre read off the cell alone is up to 4 pixels off in x and in y, always
# upwards and to the left. How much that hurts depends on the size of the box.
#
# **Write** the IoU of a box of width and height `size` with itself, moved by `shift` $= (u, v)$.


# %% tags=["exercise"]
def iou_of_shift(size, shift):
    """IoU of a square of side `size` with the same square moved by shift = (u, v), of either sign."""
    ### BEGIN SOLUTION hint: the common part is (size - |u|) (size - |v|), or 0; the union is 2 size² less that
    common = max(size - abs(shift[0]), 0) * max(size - abs(shift[1]), 0)
    return common / (2 * size**2 - common)
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(2)
for size, shift in [(10.0, (0.0, 0.0)), (10.0, (5.0, 0.0)), (4.0, (5.0, 6.0)), *zip(
    rng.uniform(4, 40, 8), rng.uniform(-6, 6, (8, 2)), strict=True
)]:  # fmt: skip
    box = np.array([[0.0, 0.0, size, size]])
    want = box_iou(box, box + np.tile(shift, 2))[0, 0]
    got = iou_of_shift(size, shift)
    assert abs(got - want) < 1e-9, (
        f"side {size:.2f}, moved by {np.round(shift, 2)}: IoU {want:.4f}, yours {got:.4f}. The union counts the common "
        "part once; moving left is as far as moving right; two squares that do not touch have no common part"
    )

# %%
rng = np.random.default_rng(3)
sides = np.linspace(8, 64, 29)
within = rng.uniform(0, 4, (400 if FAST else 2000, 2))  # where in its cell a centre lies, in pixels
curves = {
    "cell's corner (offset 0)": [[iou_of_shift(side, u) for u in within] for side in sides],
    "cell's middle (offset 1/2)": [[iou_of_shift(side, u - 2) for u in within] for side in sides],
}
figure, axes = plt.subplots(1, 2, figsize=(8, 3.1), layout="constrained")
for (name, ious), line, colour in zip(curves.items(), ("-", "--"), COLOURS, strict=False):
    axes[0].plot(sides, np.mean(ious, axis=1), line, color=colour, label=name)
    axes[1].plot(sides, 100 * np.mean(np.array(ious) >= 0.75, axis=1), line, color=colour)
axes[0].axhline(0.75, color="black", linewidth=0.7, linestyle=":")
axes[0].set(xlabel="side of the box (pixels)", ylabel="mean IoU, size known exactly")
axes[1].set(xlabel="side of the box (pixels)", ylabel="boxes with IoU ≥ 0.75 (%)")
axes[0].legend(fontsize=8)
show(figure, alt="Mean IoU, and share of boxes above an IoU of 0.75, by box size, if centres come from the cell alone.")

# %% [markdown]
# That is the best case: only the offset is missing. **Predict** AP50 and AP75 of the sound networks with offsets
# of 0. And with one half: everybody in the middle of the cell?

# %%
for decoder in ("offset_0", "offset_half"):
    for figure in ("ap", "ap50", "ap75"):
        seen[decoder, figure] = compare(decoder, figure)
    print()
with_offset, without = figures("sound", "ap75"), figures("sound", "ap75", "offset_0")
assert not any(seen["offset_half", figure] for figure in ("ap", "ap50", "ap75"))
assert seen["offset_0", "ap75"] and without.mean() < 0.5 * with_offset.mean()
print("trained without the offset loss:")
for decoder in ("offset_0", "offset_half"):
    values = {figure: figures("no_offset", figure, decoder) for figure in ("ap", "ap50", "ap75")}
    print(f"    {decoder:>11}: " + ", ".join(f"{k} {v.mean():.3f} ± {v.std(ddof=1):.3f}" for k, v in values.items()))

# %% [markdown]
# A constant of one half costs nothing to learn and takes away the bias towards the upper left. What remains is what
# the offset head has to earn. In trainings as short as these, that is not outside the noise at this threshold.
#
# ## Without the prior
#
# E10 starts the heatmap at $\pi = 0.1$. Without it, $\hat Y$ begins near one half, and the first loss is many times as
# large.

# %%
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
for name, line, colour in (("sound", "-", COLOURS[0]), ("no_prior", "--", COLOURS[1])):
    for i, record in enumerate(records[name]):
        label = name.replace("_", " ") if i == 0 else None
        axis.loglog(np.arange(1, 1 + settings["steps"]), record["losses"]["heatmap"], line, color=colour, label=label)
axis.set(xlabel="step", ylabel="heatmap loss")
axis.xaxis.set_major_formatter("{x:g}")
axis.yaxis.set_major_formatter("{x:g}")
axis.legend()
show(
    figure,
    alt="Heatmap loss of every seed: without the prior it begins some twenty-five times as high and then comes down.",
)
first = {name: np.mean([record["losses"]["heatmap"][0] for record in records[name]]) for name in ("sound", "no_prior")}
print(f"first heatmap loss: {first['sound']:.2f} with the prior, {first['no_prior']:.1f} without")
without = figures("no_prior")
sound = figures("sound")[: len(without)]  # the same seeds: the same images and, but for the prior, the same weights
t = paired_noise(sound, without)
by_chance = rng.normal(size=(20_000, len(without)))
by_chance = np.abs(by_chance.mean(axis=1) / (by_chance.std(axis=1, ddof=1) / math.sqrt(len(without))))
limit = float(np.quantile(by_chance, 0.95))  # one comparison, of fewer seeds
print(
    f"AP {sound.mean():.3f} ± {sound.std(ddof=1):.3f} with, {without.mean():.3f} ± {without.std(ddof=1):.3f} without, "
    f"seed by seed {' '.join(f'{d:+.3f}' for d in without - sound)}, t = {t:.1f} (by chance below {limit:.1f}): "
    f"{'OUTSIDE the noise' if abs(t) > limit else 'not seen'}"
)
assert first["no_prior"] > 10 * first["sound"]

# %% [markdown]
# Here is the beginning again, trained now, with the same images and weights as in the records. The first values must
# be the same; so must be what you computed in notebook 08.

# %%
TRAIN = Shapes(settings["training_images"], 128, seed=1, classes=("square",), scale=(0.15, 0.45))
BATCH, STEPS = settings["batch"], 3 if FAST else 30


def beginning(prior):
    """The heatmap losses of the first steps of seed 0, and the first one expected."""
    model = CenterNet("small", class_names=("square",), input_size=(128, 128), seed=0)
    model.heads["hm"][2].bias.data[:] = prior_bias(prior)
    optimiser = Adam(model.named_parameters(), settings["learning_rate"])
    order, history = np.random.default_rng(0).permutation(len(TRAIN)), []
    for step in range(STEPS):
        samples = [TRAIN[i] for i in order[step * BATCH : (step + 1) * BATCH]]
        images = (np.stack([s.image for s in samples]).astype(np.float32) / 255 - np.float32(0.5)) * 4
        encoded = [encode(s.annotation.boxes, s.annotation.labels, 1, 32, 32) for s in samples]
        targets = Targets(*(np.stack(field) for field in zip(*encoded, strict=True)))
        optimiser.lr = learning_rate(
            step,
            base=settings["learning_rate"],
            total_steps=settings["steps"],
            schedule="cosine",
            warm_up=settings["steps"] // 10,
        )
        total, parts = detection_loss(model(Tensor(images)), targets)
        model.zero_grad()
        total.backward()
        optimiser.step()
        history.append(parts["heatmap"].item())
        if step == 0:
            expected = expected_first_loss(targets.heatmap, prior)
    return history, expected


for name, prior in (("sound", 0.1), ("no_prior", 0.5)):
    history, expected = beginning(prior)
    (record,) = (record for record in records[name] if record["seed"] == 0)
    recorded = record["losses"]["heatmap"][:STEPS]
    print(f"{name:>9}: expected {expected:6.2f}; here {np.round(history[:3], 3)}, recorded {np.round(recorded[:3], 3)}")
    assert abs(history[0] / expected - 1) < 0.25
    assert np.allclose(history[:3], recorded[:3], rtol=0.02)

# %% [markdown]
# ## How much is the seed?
#
# All of these numbers come with a spread. With $n$ seeds each and a deviation $s$ per run, the difference of two means
# has a noise of $s\sqrt{2/n}$. To see an effect $\Delta$ at two such units takes
#
# $$n \ge 2 \left(\frac{2 s}{\Delta}\right)^2.$$
#
# **Write** it, rounded up, and at least 2, as one run has no spread.


# %% tags=["exercise"]
def seeds_needed(effect, deviation):
    """How many seeds of each variant show an effect of this size at two standard errors of the difference."""
    ### BEGIN SOLUTION hint: math.ceil of 2 (2 deviation / effect)², at least 2; an effect may be negative
    return max(2, math.ceil(2 * (2 * deviation / effect) ** 2))
    ### END SOLUTION


# %% tags=["check"]
for effect, deviation, want in [(0.02, 0.01, 2), (0.01, 0.01, 8), (-0.01, 0.01, 8), (0.005, 0.01, 32), (0.5, 0.01, 2)]:
    got = seeds_needed(effect, deviation)
    assert got == want, f"an effect of {effect} and a deviation of {deviation} want {want} seeds each, you say {got}"
assert seeds_needed(0.009, 0.01) == 10, (
    f"2 (0.02 / 0.009)² = 9.88, rounded up is 10; you say {seeds_needed(0.009, 0.01)}"
)

# %%
values = figures("sound")
deviation = values.std(ddof=1)
print(f"AP of {n} seeds: {np.round(values, 3)}, mean {values.mean():.3f}, deviation {deviation:.3f}")
effects = [0.005, 0.01, 0.02, 0.05, 0.1]
needed = [seeds_needed(effect, deviation) for effect in effects]
for effect, seeds in zip(effects, needed, strict=True):
    print(f"an effect of {effect:.3f} AP takes {seeds} seeds of each")
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained", width_ratios=(1.4, 1))
for row, figure_name in enumerate(("ap", "ap50", "ap75")):
    seeds = figures("sound", figure_name)
    axes[0].plot(seeds, np.full(n, row), "o", mfc="none", color=COLOURS[row])
    axes[0].plot([seeds.mean()], [row], "|", color="black", markersize=22)
axes[0].set_yticks(range(3), ["AP", "AP50", "AP75"])
axes[0].set(xlabel="each seed (circle), mean (bar)", ylim=(-0.6, 2.6), xlim=(0, 1))
axes[1].loglog(effects, needed, "o-", color=COLOURS[0])
axes[1].set(xlabel="effect (AP)", ylabel="seeds of each")
axes[1].xaxis.set_major_formatter("{x:g}")
axes[1].xaxis.set_minor_formatter("")
axes[1].yaxis.set_major_formatter("{x:g}")
axes[1].yaxis.set_minor_formatter("")
show(
    figure,
    alt="AP, AP50 and AP75 of each seed of the sound recipe, and how many seeds an effect of a given size takes.",
)

# %% [markdown]
# ## Break it
#
# A data set of picture frames, one in another. The maps that are decoded here are *perfect*: they are the targets
# themselves. Yet recall stops at one half. The usual advice for lost objects is a larger input.

# %%
rng = np.random.default_rng(5)
recalls = {}
for scale in (1, 2, 4):  # inputs of 128, 256 and 512 pixels
    side, truth, found = 32 * scale, [], []
    for _ in range(20):
        centre, half = rng.uniform(52, 76, 2), rng.uniform(30, 50, 2)
        outer = np.concatenate([centre - half, centre + half])
        inner = np.concatenate([centre - 0.6 * half, centre + 0.6 * half])
        frames = scale * np.stack([outer, inner])
        targets = encode(frames, np.zeros(2, int), 1, side, side)
        offset, size = np.zeros((2, 1, side, side, 2), np.float32)
        y, x = np.divmod(targets.index[:2], side)
        offset[0, y, x], size[0, y, x] = targets.offset[:2], targets.size[:2]
        decoded = decode(targets.heatmap[None], offset, size, k=10)
        found.append(SimpleNamespace(boxes=decoded.boxes[0], scores=decoded.scores[0], labels=decoded.labels[0]))
        none = np.zeros(2, bool)
        area = (frames[:, 2:] - frames[:, :2]).prod(axis=1)
        truth.append(SimpleNamespace(boxes=frames, labels=np.zeros(2, int), crowd=none, difficult=none, area=area))
    recalls[scale] = average_precision(truth, found, 1).ar_100
    print(f"input of {128 * scale} pixels: recall {recalls[scale]:.3f}")
assert all(abs(recall - 0.5) < 0.02 for recall in recalls.values())
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for x1, y1, x2, y2 in frames:
    axes[0].add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=COLOURS[0], linewidth=2))
best = found[-1].boxes[0]
axes[0].add_patch(
    plt.Rectangle(best[:2], *(best[2:] - best[:2]), fill=False, edgecolor=COLOURS[1], linestyle="--", linewidth=2)
)
axes[0].set(xlim=(0, 512), ylim=(512, 0), xlabel="x (pixels)", ylabel="y (pixels)", aspect="equal")
axes[0].set_title("frames (solid), found (dashed)", fontsize=10)
drawn = axes[1].imshow(targets.heatmap[:, :, 0], cmap="cividis", vmin=0, vmax=1)
axes[1].set(xlabel="x (cells)", ylabel="y (cells)")
axes[1].set_title("heatmap", fontsize=10)
figure.colorbar(drawn, ax=axes[1], label="Y")
show(figure, alt="Two frames, one inside the other, of which only one is found, and the heatmap with a single peak.")

# %% [markdown]
# Why does a larger input not help here, when it helped with the crowd? What would?
#
# <details><summary>Answer</summary>
#
# The two frames have the *same* centre. A finer map parts centres that are near each other; it cannot part equal ones.
# A point says where an object is, not how large it is, and here size is the only difference. It helps to make them
# different classes, say outer and inner frame, since each class has a map of its own. Or take another point for the
# object, such as a corner.
#
# </details>

# %% [markdown]
# ## Summary
#
# - Two centres in one cell of one class: one is lost. It is rare at $R = 4$; for centres at random it grows
#   with the square of the stride.
# - The peak test does the work of suppression. Without it there are several second boxes to each object; with it,
#   suppression changes no AP that these seeds could show.
# - The offset is worth little at an IoU of 0.5 and much at 0.75, the more the smaller the box.
# - A missing prior shows in the first loss, before anything else.
# - An effect that is smaller than the seed's spread takes many seeds: with the square of spread over effect.
#
# ## In the package
#
# - `minicenternet.data.check.check` counts the collisions of a data set, as `count_lost` does.
# - `minicenternet.points.decode.peaks` is the peak test, `minicenternet.points.decode.nms` the suppression.
# - `minicenternet.points.losses.l1_loss` and `minicenternet.ops.gather_points` read offset and size at the cells.
# - `minicenternet.nn.init.prior_bias` is the prior.
