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
# # 00 · Ten lines to a detection
#
# - **Goal**: detect objects in an image, see the maps they were read from, and read them off yourself.
# - **You need**: Python and a little NumPy. Nothing about neural networks.
# - **Minutes**: 45 to read and work / runs in about 8 s.
# - **Equations**: none of E1 to E10 is derived here. E8 (peaks) and E9 (boxes) appear, and are derived in notebook 10.
# - **What you should see**: six shapes found in an image of six, each with a box that overlaps the true one by more
#   than 0.6; the same boxes from your own code, to a thousandth of a pixel; and how precision and recall trade
#   places.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from minicenternet import CenterNet
from minicenternet.autograd import Tensor, no_grad
from minicenternet.data import Shapes
from minicenternet.draw import COLOURS, draw_boxes, draw_heatmap, show
from minicenternet.predict import explain

FAST = os.environ.get("MINICENTERNET_FAST") == "1"

# %% [markdown]
# ## 1. Ten lines
#
# A *detector* takes an image and says what is in it and where: a class, a box around it, and how sure it is. The
# package brings a small one, trained on generated images of five shapes. Here it looks at an image that it has never
# seen.

# %%
model = CenterNet.pretrained()
sample = Shapes(100, size=128, seed=2024)[35]  # image 35 of a series that was not trained on

detections = model.predict(sample).above(0.4)
print(detections)

show(detections.draw(), alt="Six coloured shapes on a textured ground, each in a box with its class and its score.")

# %% [markdown]
# With the three imports that they need, these are fewer than ten lines. The rest of the course takes them apart. By
# the end you will have written every part of them: the network, its training, and the code that finds the boxes.
#
# ## 2. What goes in, what comes out
#
# The image is an array of 128 × 128 pixels and 3 colours. **Predict** what the network returns. A list of boxes? How
# long would that list be, when nobody knows how many objects there are?

# %%
image = sample.image  # (H, W, 3) uint8
x = (image / 255 - model.pixel_mean) / model.pixel_std  # colours around 0, as the network was trained
with no_grad():
    maps = model(Tensor(x[None].astype(np.float32)))  # a batch of one
for name, tensor in maps.items():
    print(f"{name:4} {tensor.shape}")

# %% [markdown]
# No list. The network returns three *maps* of 32 × 32 **cells**; a cell stands for 4 × 4 pixels.
#
# - `hm`, the heatmap, has one layer per class. It says: how likely is it that the *centre* of a circle (a square, ...)
#   lies in this cell?
# - `wh`: if there is a centre here, how wide and how high is its object, in cells?
# - `reg`: if there is a centre here, where in the cell is it? Cells are coarse; this puts back the fraction.
#
# That is the idea of the paper: **an object is a point**, its centre, and everything else is read off at that point.
# The number of objects is the number of peaks in the heatmap.
#
# The heatmap comes as a *logit*, any number at all; the sigmoid $1/(1 + e^{-z})$ makes a probability of it.

# %%
heatmap = 1 / (1 + np.exp(-maps["hm"].data[0].astype(np.float64)))  # (32, 32, 5)
size, offset = maps["wh"].data[0], maps["reg"].data[0]  # (32, 32, 2) each, x first
seen = explain(model, sample)
assert np.allclose(heatmap, seen.heatmap, atol=1e-6), "the package's heatmap is the same"

figure, panels = plt.subplots(1, 5, figsize=(8, 2.3), layout="constrained")
for axes, name, layer in zip(panels, model.class_names, np.moveaxis(heatmap, -1, 0), strict=True):
    shown = axes.imshow(layer, cmap="cividis", vmin=0, vmax=1)
    axes.set_title(f"{name}: up to {layer.max():.2f}", fontsize=9)
    axes.set(xticks=[0, 16, 31], yticks=[0, 16, 31])
    axes.tick_params(labelsize=7)
panels[0].set_ylabel("row (cells)", fontsize=8)
panels[2].set_xlabel("column (cells)", fontsize=8)
figure.colorbar(shown, ax=panels, label="probability", shrink=0.8)
show(figure, alt="Five small heatmaps, one per class, dark but for a bright spot at each object of that class.")

# %% [markdown]
# Now the three steps side by side: the image, the heatmap over it, and the boxes.

# %%
figure, panels = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
pictures = {
    "the image": image,
    "the heatmap over it": draw_heatmap(image, heatmap),
    "the boxes": draw_boxes(image, detections.boxes, detections.labels, class_names=model.class_names, text_size=0.04),
}
for axes, (title, picture) in zip(panels, pictures.items(), strict=True):
    axes.imshow(picture)
    axes.set_title(title)
    axes.set_axis_off()
show(
    figure,
    alt="Three panels: the image with six shapes; the same in grey under the heatmap, with a bright spot at the middle "
    "of each shape; and with a box around each shape.",
)

# %% [markdown]
# ## 3. Find the peaks
#
# ### Exercise 1: peaks
#
# A cell is a peak if none of its 8 neighbours, **in its own class**, is higher, and if it reaches the threshold.
# Cells at the border have fewer neighbours.
#
# **Predict** how many peaks there are at threshold 0.4, and roughly how many without any threshold.


# %% tags=["exercise"]
def peaks(heatmap, threshold):
    """Return the (row, column, class) of all peaks of a heatmap (H, W, C) that reach the threshold, best first."""
    ### BEGIN SOLUTION hint: heatmap[r-1:r+2, c-1:c+2, k].max(), but a slice must not begin at -1
    found = []
    for row, column, label in np.argwhere(heatmap >= threshold).tolist():
        around = heatmap[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2, label]
        if heatmap[row, column, label] == around.max():
            found.append((row, column, label))
    return sorted(found, key=lambda peak: -heatmap[peak])
    ### END SOLUTION


# %% tags=["check"]
small = np.zeros((5, 6, 2))
small[2, 2, 0], small[2, 3, 0], small[1, 3, 0] = 0.6, 0.5, 0.55  # one peak: its neighbours are lower
small[2, 3, 1] = 0.9  # another class, beside it
small[0, 5, 0] = 0.7  # in a corner
small[4, 0, 1] = 0.3  # too low
found = [tuple(map(int, peak)) for peak in peaks(small, 0.4)]
assert (0, 5, 0) in found, "the peak in the corner, row 0 and column 5, is missing: does a slice begin at -1?"
assert (2, 2, 0) in found, "(2, 2, 0) is a peak in its class; its higher neighbour belongs to another class"
assert (1, 3, 0) not in found, "(1, 3, 0) is no peak: (2, 2, 0) is higher, diagonally beside it"
assert (4, 0, 1) not in found, "(4, 0, 1) is below the threshold"
assert sorted(found) == [(0, 5, 0), (2, 2, 0), (2, 3, 1)], f"expected three peaks, got {found}"
assert found == [(2, 3, 1), (0, 5, 0), (2, 2, 0)], f"best first: by falling probability, got {found}"

# %%
tops = peaks(heatmap, 0.4)
for row, column, label in tops:
    print(f"row {row:2}, column {column:2}: {model.class_names[label]:9} {heatmap[row, column, label]:.3f}")
print(f"without a threshold: {len(peaks(heatmap, 0))} peaks")
assert [label for _, _, label in tops] == detections.labels.tolist()

# %% [markdown]
# Without a threshold there are many: in every patch of background some cell is the highest. They have low
# probabilities, and the threshold is what tells them from objects. How to choose it is the question of section 5.
#
# ## 4. From a peak to a box
#
# ### Exercise 2: the box
#
# At a peak, read the offset $(\delta x, \delta y)$ and the size $(w, h)$, both in cells, $x$ before $y$. The centre is
# $(\text{column} + \delta x,\ \text{row} + \delta y)$. The box reaches half a size to each side. One cell is 4 pixels.
#
# **Predict**: the peak is in row 10, column 20; the offset is (0.5, 0.25), the size (6, 4). Where is the box, in
# pixels?


# %% tags=["exercise"]
def box_at(row, column, offset, size):
    """Return the box (x1, y1, x2, y2), in pixels, of the peak in this cell; offset and size are maps (H, W, 2)."""
    ### BEGIN SOLUTION hint: x goes with the column; 4 * (centre - size / 2), 4 * (centre + size / 2)
    x, y = column + offset[row, column, 0], row + offset[row, column, 1]
    width, height = size[row, column]
    return 4 * (x - width / 2), 4 * (y - height / 2), 4 * (x + width / 2), 4 * (y + height / 2)
    ### END SOLUTION


# %% tags=["check"]
example_offset, example_size = np.zeros((32, 32, 2)), np.zeros((32, 32, 2))
example_offset[10, 20], example_size[10, 20] = (0.5, 0.25), (6, 4)
x1, y1, x2, y2 = box_at(10, 20, example_offset, example_size)
assert x2 > x1 and y2 > y1, (
    f"the box has no area: x from {x1} to {x2}, y from {y1} to {y2}; one corner is minus, one plus"
)
assert (x2 - x1, y2 - y1) == (24, 16), (
    f"6 × 4 cells are 24 × 16 pixels, your box has {x2 - x1} × {y2 - y1}: width first? times 4? half to each side?"
)
x, y = float(x1 + x2) / 2, float(y1 + y2) / 2
assert (x, y) == (82, 41), (
    f"the centre is 4 · (20.5, 10.25) = (82, 41), yours ({x}, {y}): x is the column; offset added?"
)

# %%
boxes = np.array([box_at(row, column, offset, size) for row, column, _ in tops])
print(f"largest difference from the package's boxes: {np.abs(boxes - detections.boxes).max():.1e} pixels")
assert np.abs(boxes - detections.boxes).max() < 1e-3

# %% [markdown]
# Your dozen lines and the package's decoder agree. No anchors, no list of candidates, no suppression of overlaps:
# peaks, and two look-ups for each.
#
# ## 5. Is it right?
#
# The shapes were generated, so the true boxes are known. Two boxes are compared by their *intersection over union*:
#
# $$ \text{IoU}(a, b) = \frac{\text{area in both}}{\text{area in either}} . $$
#
# 1 means equal, 0 means apart.
#
# ### Exercise 3: IoU
#
# **Predict** the IoU of two equal squares, one shifted by half its side. It is not 1/2.


# %% tags=["exercise"]
def iou(a, b):
    """Return the intersection over union of two boxes (x1, y1, x2, y2)."""
    ### BEGIN SOLUTION hint: the intersection's width is min of the x2 minus max of the x1, and at least 0
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / either
    ### END SOLUTION


# %% tags=["check"]
assert iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1, "a box and itself: 1"
assert iou((0, 0, 4, 4), (6, 0, 9, 4)) == 0, "boxes side by side: 0; can your intersection's width be negative?"
assert iou((0, 0, 4, 4), (6, 6, 9, 9)) == 0, "boxes apart in x AND y: 0; two negative lengths have a positive product"
assert np.isclose(iou((0, 0, 4, 4), (2, 0, 6, 4)), 1 / 3), "shifted by half: 8 in both, 24 in either, so 1/3"
rng = np.random.default_rng(0)
pixel_y, pixel_x = np.mgrid[:20, :20]
for _ in range(50):
    (ax, bx), (ay, by) = rng.integers(0, 12, (2, 2)).tolist()
    (aw, bw), (ah, bh) = rng.integers(1, 9, (2, 2)).tolist()
    in_a = (pixel_x >= ax) & (pixel_x < ax + aw) & (pixel_y >= ay) & (pixel_y < ay + ah)
    in_b = (pixel_x >= bx) & (pixel_x < bx + bw) & (pixel_y >= by) & (pixel_y < by + bh)
    expected = (in_a & in_b).sum() / (in_a | in_b).sum()  # by counting pixels
    a, b = (ax, ay, ax + aw, ay + ah), (bx, by, bx + bw, by + bh)
    assert np.isclose(iou(a, b), expected), (
        f"{a} and {b}: counting pixels gives {expected:.4f}, you give {iou(a, b):.4f}"
    )

# %%
truth = sample.annotation


def best_overlap(box, label, detections):
    """Return the largest IoU of a true box with the detections of its class; 0 where there is none."""
    same = detections.boxes[detections.labels == label]
    return max((iou(box, other) for other in same), default=0.0)


overlaps = [best_overlap(box, label, detections) for box, label in zip(truth.boxes, truth.labels, strict=True)]
for label, overlap in zip(truth.labels, overlaps, strict=True):
    print(f"{model.class_names[label]:9} overlaps its detection by {overlap:.2f}")
assert min(overlaps) > 0.6 and len(detections) == len(truth.boxes), "all of them are found, and nothing else"

# %% [markdown]
# One image is an anecdote, and this one was chosen because all goes well in it. Let us take the first ones of the
# series as they come. A true object counts as *found* if a detection of its class overlaps it by at least 0.5. A
# detection counts as *right* if it so overlaps an object. (This lets two detections claim one object; notebook 13
# does it properly.)
#
# - **Recall**: the share of the objects that are found.
# - **Precision**: the share of the detections that are right.
#
# **Predict** how each changes when the threshold rises from 0.1 to 0.8.

# %%
thresholds = np.arange(0.1, 0.85, 0.05)
series = Shapes(24 if FAST else 100, size=128, seed=2024)
hits, objects, right, reported = np.zeros((4, len(thresholds)))
everything = model.predict((series[i] for i in range(len(series))), min_score=0.1)
for i, all_of_image in enumerate(everything):
    annotation = series.annotation(i)
    for j, threshold in enumerate(thresholds):
        kept = all_of_image.above(threshold)
        found = [best_overlap(b, k, kept) >= 0.5 for b, k in zip(annotation.boxes, annotation.labels, strict=True)]
        good = [
            any(iou(box, b) >= 0.5 for b in annotation.boxes[annotation.labels == label])
            for box, label in zip(kept.boxes, kept.labels, strict=True)
        ]
        hits[j] += sum(found)
        objects[j] += len(found)
        right[j] += sum(good)
        reported[j] += len(good)
recall, precision = hits / objects, right / reported
for threshold, r, p in list(zip(thresholds, recall, precision, strict=True))[::3]:
    print(f"threshold {threshold:.2f}: recall {r:.2f}, precision {p:.2f}")
print(f"{objects[0]:.0f} objects in {len(series)} images")
assert recall[0] > 0.75 and precision[-1] > 0.9, "the network is better than this on shapes that it has not seen"
assert recall[0] - recall[-1] > 0.2 and precision[-1] - precision[0] > 0.2, "one falls, the other rises"

# %%
figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
axes.plot(thresholds, recall, "-", color=COLOURS[0], linewidth=2, label="recall: objects that are found")
axes.plot(thresholds, precision, "--", color=COLOURS[1], linewidth=2, label="precision: detections that are right")
axes.set(xlabel="threshold on the score", ylabel="share", ylim=(0, 1.02))
axes.legend(loc="lower center")
axes.grid(color="0.9")
show(
    figure,
    alt="Against the threshold, recall falls and precision rises; the two lines cross between 0.3 and 0.5.",
)

# %% [markdown]
# There is no best threshold. Who counts shapes wants both lines high; who must not miss one takes a low threshold and
# looks at more false alarms. To compare *networks*, one number over all thresholds is needed: that is average
# precision, the subject of notebook 13.
#
# ## 6. The map of the course
#
# The arrows are the way of the data. The numbers are the notebooks in which you write that part yourself.

# %%
STATIONS = {  # name: (x, y, what stands in the box)
    "image": (0.0, 2, "image"),
    "network": (1.6, 2, "network\n03 convolution\n04 batch norm\n05 upsampling\n06 the whole"),
    "maps": (3.3, 2, "maps\nheatmap\nsize, offset"),
    "boxes": (5.0, 2, "boxes\n10 decoding"),
    "ap": (6.6, 2, "how good?\n13 average\nprecision"),
    "truth": (0.0, 0.2, "true boxes\n14 data"),
    "targets": (1.6, 0.2, "targets\n07 splatting"),
    "loss": (3.3, 0.2, "loss\n08 focal\n09 offset, size"),
    "gradient": (5.0, 0.2, "gradients\n01 autograd\n02 checks"),
    "training": (6.6, 0.2, "training\n12 shapes\n15 photographs"),
}
WAYS = [("image", "network"), ("network", "maps"), ("maps", "boxes"), ("boxes", "ap"), ("truth", "targets")]
WAYS += [("targets", "loss"), ("maps", "loss"), ("loss", "gradient"), ("gradient", "training")]
figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
frame = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": "0.3"}
texts = {
    name: axes.text(x, y, text, ha="center", va="center", fontsize=8.5, bbox=frame)
    for name, (x, y, text) in STATIONS.items()
}
for start, end in WAYS:
    ends = {"patchA": texts[start].get_bbox_patch(), "patchB": texts[end].get_bbox_patch(), "shrinkA": 2, "shrinkB": 2}
    arrow = {"arrowstyle": "-|>", "color": "0.45", **ends}
    axes.annotate("", STATIONS[end][:2], STATIONS[start][:2], arrowprops=arrow)
axes.set(xlim=(-0.6, 7.3), ylim=(-0.5, 2.7))
axes.set_axis_off()
show(
    figure,
    alt="Upper row: image, network (03 to 06), maps, boxes (10), how good (13). Lower row: true boxes (14), targets "
    "(07), loss (08, 09), gradients (01, 02), training (12, 15). Maps also lead to the loss.",
)

# %% [markdown]
# | notebook | the question | needs |
# |---|---|---|
# | 01 Autograd | how does a program know its derivatives? | |
# | 02 Gradient checks | and how do we know that they are right? | 01 |
# | 03 Convolution | what does a layer compute, and how fast can it be? | 01, 02 |
# | 04 Batch normalisation | why can a network be deep? | 00, 01, 02 |
# | 05 Upsampling | how do maps become finer again? | 03 |
# | 06 The network | which layers, how large, how do they start? | 03, 04, 05 |
# | 07 Splatting targets | what should the heatmap look like? | 00 |
# | 08 Focal loss | how are a few peaks learnt among thousands of cells? | 02, 07 |
# | 09 Offset and size | how are numbers learnt at a few cells only? | 02, 07 |
# | 10 Decoding | from maps to boxes, and what can go wrong | 00, 07 |
# | 11 Errata clinic | mistakes that circulate, and what each does | 07 to 10 |
# | 12 Train on shapes | all of it together, to the network used above | 06 to 10 |
# | 13 Average precision | one number for a detector | 00 |
# | 14 Data and augmentation | files, boxes, and how to make more of few images | 07 |
# | 15 A small COCO | real photographs | 12, 13, 14 |
# | 16 Failure modes | where the idea ends | 10, 12 |
# | 17 CUDA kernels | the same, on a GPU | 03 |
# | 18 Tensor cores | the fastest convolution | 17 |
#
# ## Break it
#
# The same image, enlarged to three times its sides. `resolution="keep"` hands it to the network pixel by pixel,
# instead of shrinking it to 128 × 128. Every shape is as clear as before.

# %%
enlarged = np.asarray(Image.fromarray(image).resize((384, 384), Image.Resampling.BICUBIC))
large = model.predict(enlarged, resolution="keep").above(0.4)
found = [best_overlap(3 * box, label, large) >= 0.5 for box, label in zip(truth.boxes, truth.labels, strict=True)]
print(f"{len(large)} detections; {sum(found)} of the {len(found)} objects are found")
sides = {
    "true boxes": 3 * (truth.boxes[:, 2:] - truth.boxes[:, :2]),
    "detections": large.boxes[:, 2:] - large.boxes[:, :2],
}
for name, side in sides.items():
    print(f"{name}: longest side of each from {side.max(1).min():.0f} to {side.max(1).max():.0f} pixels")
assert sum(found) < len(found) and len(large) > len(truth.boxes)

figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
axes.imshow(draw_boxes(enlarged, large.boxes, large.labels, large.scores, model.class_names))
axes.set_axis_off()
show(figure, alt="The same six shapes, larger; most boxes lie over parts of them, with the wrong class.")

# %% [markdown]
# Nothing in the image is worse than before, and the network fails. Why? Two of the printed lines are the clue.
#
# <details><summary>Answer</summary>
#
# The network has learnt what a centre looks like *at the sizes it was trained on*: boxes of about 13 to 58 pixels, 0.1
# to 0.45 of 128. Here they are three times as large. Look at the boxes in the picture: they have the sizes of the
# training, and lie on parts, a curve of the ring, a patch of the circle, that look as a whole small shape used to look.
# `resolution="fixed"`, the default, shrinks the image to the training size, and all is well again, as the next cell
# shows. A network is only as general as its data.
#
# </details>

# %%
shrunk = model.predict(enlarged).above(0.4)
found = [best_overlap(3 * box, label, shrunk) >= 0.5 for box, label in zip(truth.boxes, truth.labels, strict=True)]
print(f"at fixed resolution: {len(shrunk)} detections; {sum(found)} of the {len(found)} objects are found")
assert all(found)

# %% [markdown]
# ## Summary
#
# - The network turns an image into maps: a heatmap of centres per class, sizes, and offsets.
# - An object is a peak of the heatmap; its box is read off at the peak.
# - A score is not a truth: a threshold trades recall for precision.
# - It works at the sizes it was trained on.
#
# ## In the package
#
# - `minicenternet.model.CenterNet.pretrained`, `minicenternet.model.CenterNet.predict`
# - `minicenternet.predict.explain`: the maps of one image
# - `minicenternet.points.decode.peaks` (E8), `minicenternet.points.decode.decode` (E9)
# - `minicenternet.data.shapes.Shapes`: the generated images
