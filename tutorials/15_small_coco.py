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
# # 15 · A small COCO
#
# - **Goal** Train on real photographs with next to nothing, a few dozen of them and a few minutes on a CPU. Then find
#   out, head by head, what the network has learnt and what it lacks.
# - **You need** 10, 12, 13, 14.
# - **Minutes** 60 to read and work / runs in about 100 s
# - **Equations** none of E1 to E10
# - **What you should see** On four images seen over and over AP50 passes 0.8. On images that it never saw, of the three
#   heads the offset costs least, for every seed. With all three maps true AP50 is the share of objects that have a cell
#   of their own, to 0.02.

# %%
import copy
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from minicenternet import CenterNet, Detections
from minicenternet.autograd import Tensor, no_grad
from minicenternet.data import Sample, Shapes, open_dataset
from minicenternet.data.transforms import Augmentation, apply_to_boxes, invert, letterbox, prepare
from minicenternet.draw import COLOURS, show
from minicenternet.evaluate import count_mistakes
from minicenternet.metrics import average_precision
from minicenternet.metrics.average_precision import box_iou
from minicenternet.optim import Adam
from minicenternet.points.decode import decode
from minicenternet.tasks import detection

FAST = os.environ.get("MINICENTERNET_FAST") == "1"
SIZE, R = 128, detection.STRIDE  # side of the input in pixels; pixels to a cell
CELLS = SIZE // R

# %% [markdown]
# ## A few dozen photographs
#
# `minicenternet data prepare coco-sample DIR` gets 31 photographs of COCO to train on and 42 to hold out, all under
# open licences. Name the folder in the environment variable `MINICENTERNET_COCO`. Without it the notebook says so and
# draws 31 and 42 images of shapes instead.
#
# COCO has 118,287 photographs to train on. Nobody learns 80 classes from 31. That is the point: with so little, it is
# plain to see what was learnt by heart and what was understood.

# %%
folder = os.environ.get("MINICENTERNET_COCO")
if folder:
    train_data, val_data = (open_dataset(folder, split=split) for split in ("train", "val"))
    print(f"photographs from {folder}")
else:
    train_data, val_data = (
        Shapes(length, size=(240, 320), seed=seed, scale=(0.08, 0.6)) for length, seed in ((31, 0), (42, 1))
    )
    print("MINICENTERNET_COCO names no folder: drawings of shapes stand in for photographs")
for name, data in (("to train on", train_data), ("held out", val_data)):
    labels = np.concatenate([data.annotation(i).labels for i in range(len(data))])
    times = np.bincount(labels, minlength=len(data.class_names))
    print(
        f"{name:12} {len(data)} images, {len(labels)} objects, {np.count_nonzero(times)} classes, "
        f"{np.count_nonzero(times == 1)} of them with a single object"
    )

# %% [markdown]
# ## From a photograph to an example
#
# An example is what one image brings to a batch: the input and the five target arrays of notebooks 07 and 09. Two
# things are easily got wrong here. The boxes that are encoded must be those of the *input*, after crop and flip. And
# crowd regions are no objects: a network should not be asked for a centre in the middle of a crowd.
#
# **Write.** `prepare` does views, colours and boxes, `detection.encode` makes the targets.

# %%
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as the package takes for granted


# %% tags=["exercise"]
def example(sample, num_classes, augmentation=None, rng=None):
    """(image (SIZE, SIZE, 3) float32, normalised, targets dict) of a sample; crowd regions are dropped."""
    ### BEGIN SOLUTION hint: prepare(sample, size=(SIZE, SIZE), ..., crowd="drop"), then encode its boxes and labels
    view = prepare(sample, size=(SIZE, SIZE), mean=MEAN, std=STD, augmentation=augmentation, rng=rng, crowd="drop")
    return view.image, detection.encode(view.boxes, view.labels, num_classes, SIZE, SIZE)
    ### END SOLUTION


# %% tags=["check"]
grey = np.full((240, 320, 3), 128, np.uint8)
two = replace(
    Shapes(1).annotation(0),
    file_name="two.png",
    width=320,
    height=240,
    boxes=np.float32([[100, 60, 180, 140], [0, 0, 320, 240]]),
    labels=np.array([2, 0]),
    crowd=np.array([False, True]),
    difficult=np.zeros(2, bool),
    area=np.float32([6400, 76800]),
)
image, made = example(Sample(grey, two), 3)
assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.float32, f"an input of {SIZE} pixels, yours {image.shape}"
assert abs(image[64, 64, 0] - (128 / 255 - MEAN[0]) / STD[0]) < 1e-3, "pixels are normalised by MEAN and STD"
assert made["mask"].sum() == 1, f"one object and one crowd region make one target, yours {made['mask'].sum():.0f}"
assert made["heatmap"].shape == (CELLS, CELLS, 3), f"a map of {CELLS} x {CELLS} cells and 3 classes"
assert np.allclose(made["size"][0], 80 * 0.4 / R), (
    f"80 pixels of 320 are 32 of {SIZE}, so 8 cells; yours {made['size'][0]}: encode the boxes of the view"
)
assert made["index"][0] == 14 * CELLS + 14, (
    "the centre (140, 100) goes to (56, 56) in the letterboxed input, which is cell (14, 14); "
    f"yours ({made['index'][0] % CELLS}, {made['index'][0] // CELLS})"
)
assert made["heatmap"][14, 14].tolist() == [0, 0, 1], "its heatmap has a 1 there, in the map of class 2 alone"
shifted = Augmentation(random_crop=False, shift=0, scale=0, flip=1)
mirrored = example(Sample(grey, two), 3, shifted, np.random.default_rng(0))[1]
assert mirrored["index"][0] % CELLS == CELLS - 14, "augmentation and rng go to prepare: this view is mirrored"

# %% [markdown]
# ## Overfit first
#
# Before anything is learnt, something must be learnt by heart. A network that cannot fit four images has a bug, or too
# little of something. This takes a minute and answers more questions than a night of training.
#
# **Predict.** All classes of the data set, four images, the same four in every step. Which of the three losses will be
# last to fall?


# %%
def batch_of(samples, num_classes, augmentation=None, rng=None):
    images, targets = zip(*[example(sample, num_classes, augmentation, rng) for sample in samples], strict=True)
    return np.stack(images), {key: np.stack([target[key] for target in targets]) for key in targets[0]}


def fit(samples, class_names, steps, seed=0, batch_size=8, augmentation=None, peak=4e-3):
    """Train the small network; returns it and the losses of each step, (steps, 3): heatmap, size, offset."""
    model = CenterNet("small", class_names=class_names, input_size=(SIZE, SIZE), seed=seed).train()
    optimiser, rng, rows = Adam(model.named_parameters(), lr=peak), np.random.default_rng(seed), []
    fixed = batch_of(samples, len(class_names)) if augmentation is None else None
    for step in range(steps):
        warm, cosine = min(1, (step + 1) / 20), 0.5 + 0.5 * math.cos(math.pi * step / steps)
        optimiser.lr = peak * warm * cosine
        chosen = rng.permutation(len(samples))[:batch_size]
        if fixed is None:
            images, targets = batch_of([samples[i] for i in chosen], len(class_names), augmentation, rng)
        else:
            images, targets = fixed[0][chosen], {key: value[chosen] for key, value in fixed[1].items()}
        total, parts = detection.loss(model(Tensor(images)), targets)
        total.backward()
        optimiser.step()
        model.zero_grad()
        rows.append([float(parts[name].data) for name in ("heatmap", "size", "offset")])
    return model.eval(), np.array(rows)


def maps_of(model, samples, batch_size=8):
    """The three maps of every sample, unaugmented: dict of hm (probabilities), wh, reg."""
    images = np.stack([example(sample, len(model.class_names))[0] for sample in samples])
    parts = []
    with no_grad():
        for start in range(0, len(images), batch_size):
            maps = {name: value.data for name, value in model(Tensor(images[start : start + batch_size])).items()}
            parts.append({**maps, "hm": 1 / (1 + np.exp(-maps["hm"]))})
    return {name: np.concatenate([part[name] for part in parts]) for name in ("hm", "wh", "reg")}


def detections_of(maps, samples, k=100):
    """Decode, and take the boxes from the input back to each image."""
    found = decode(maps["hm"], maps["reg"], maps["wh"], k=k)
    results = []
    for boxes, scores, labels, sample in zip(*found, samples, strict=True):
        height, width = sample.image.shape[:2]
        back = invert(letterbox(width, height, SIZE, SIZE))
        results.append(SimpleNamespace(boxes=apply_to_boxes(back, boxes), scores=scores, labels=labels))
    return results


def measure(maps, samples):
    """AP and AP50."""
    num_classes = maps["hm"].shape[-1]
    result = average_precision([s.annotation for s in samples], detections_of(maps, samples), num_classes)
    return np.array([result.ap, result.ap50])


counts = [np.count_nonzero(~train_data.annotation(i).crowd) for i in range(len(train_data))]
few = [train_data[i] for i in range(len(train_data)) if 2 <= counts[i] <= 6][:4]
overfitted, losses = fit(few, train_data.class_names, steps=60 if FAST else 150, batch_size=4, peak=8e-3)
seen = maps_of(overfitted, few)
ap, ap50 = measure(seen, few)
held_out = [val_data[i] for i in range(len(val_data))]
ap_new, ap50_new = measure(maps_of(overfitted, held_out), held_out)
print(f"the four images it saw   AP {ap:.3f}   AP50 {ap50:.3f}")
print(f"{len(held_out)} images held out       AP {ap_new:.3f}   AP50 {ap50_new:.3f}")
assert ap50 > 0.8, "four images should be learnt by heart"
assert ap50_new < 0.2, "what is learnt by heart does not carry over to other images"

# %%
figure = plt.figure(figsize=(8, 5.2), layout="constrained")
grid = figure.add_gridspec(2, 3, height_ratios=(1, 1.1))
axis = figure.add_subplot(grid[0, :])
for k, (name, line) in enumerate(zip(("heatmap", "size", "offset"), ("-", "--", ":"), strict=True)):
    axis.plot(losses[:, k] / losses[0, k], linestyle=line, color=COLOURS[k], label=name)
axis.set(xlabel="step", ylabel="loss / first loss", yscale="log", xlim=(0, len(losses) - 1))
axis.set_title("four images, over and over")
axis.legend(frameon=False, ncols=3)


def draw_found(axis, sample, found, min_score=0.3):
    """Objects in white, detections dashed, over the image."""
    height, width = sample.image.shape[:2]
    axis.imshow(sample.image, extent=(0, width, height, 0))
    kept = found.boxes[found.scores >= min_score]
    for boxes, colour, line, thickness in (
        (sample.annotation.boxes, "black", "-", 3.2),
        (sample.annotation.boxes, "white", "-", 1.6),
        (kept, COLOURS[1], "--", 1.8),
    ):
        for x1, y1, x2, y2 in boxes:
            style = {"edgecolor": colour, "linestyle": line, "linewidth": thickness, "fill": False}
            axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


for k, (sample, found) in enumerate(zip(few[:3], detections_of(seen, few)[:3], strict=True)):
    axis = figure.add_subplot(grid[1, k])
    draw_found(axis, sample, found)
    axis.set_title(
        f"seen: {np.count_nonzero(found.scores >= 0.3)} found of {len(sample.annotation.boxes)}", fontsize=10
    )
show(
    figure,
    alt="Above: the losses of heatmap, size and offset on four images, each divided by its first value, falling "
    "far. Below: three of these images, the detections dashed on top of the objects' boxes.",
)

# %% [markdown]
# It learns four images by heart, with all their classes. On images that it never saw it is worth almost nothing. Both
# are as they should be: nothing is broken, and four images teach nobody what a chair is.
#
# ## Learn one thing
#
# A heatmap for each class asks too much of 31 images: most classes of the photographs have only a few objects. So we
# ask less. **Every object is of one class, "object"**. Where are things, and how large are they? And we do not
# augment: a few hundred steps are too few for views that never come twice. (Try it: `fit` takes an `augmentation`.)
#
# We train several times with different seeds, or we could not tell an effect from luck.


# %%
class OneClass:
    """A data set whose objects are all of one class."""

    class_names = ("object",)

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        sample = self.data[i]
        return replace(sample, annotation=replace(sample.annotation, labels=np.zeros_like(sample.annotation.labels)))


train = [sample for sample in map(OneClass(train_data).__getitem__, range(len(train_data)))]
held_out = [sample for sample in map(OneClass(val_data).__getitem__, range(len(val_data)))]
seeds = range(2 if FAST else 3)
models = [fit(train, ("object",), 5 if FAST else 200, seed=seed)[0] for seed in seeds]
predicted = {
    "trained on": [maps_of(model, train) for model in models],
    "held out": [maps_of(model, held_out) for model in models],
}
samples_of = {"trained on": train, "held out": held_out}
for name, maps in predicted.items():
    values = np.array([measure(m, samples_of[name]) for m in maps])
    middle, spread = values.mean(axis=0), np.ptp(values, axis=0) / 2
    print(
        f"{name:12} AP {middle[0]:.3f} ± {spread[0]:.3f}   AP50 {middle[1]:.3f} ± {spread[1]:.3f}   {len(seeds)} seeds"
    )

# %% [markdown]
# ## The oracle ladder
#
# One number does not say what to do next. Should we work on the centres, the sizes or the offsets? The trick is to
# **cheat, one head at a time**: replace a predicted map by the true one and measure again. What the AP gains is what
# that head costs us. (The paper does this in its supplement; it is the cheapest analysis there is.)
#
# The true heatmap is $Y$ itself. The true size is known at the centres only, but the network may have put its peak a
# cell beside. So the true size map must have a value *everywhere*: each cell takes that of the object whose cell is
# nearest.
#
# **Write** this map for one image. `values` (M, 2), `index` (M,) and `mask` (M,) are target arrays: slots with mask 0
# are empty, and `index` is $y \cdot W + x$.


# %% tags=["exercise"]
def nearest_map(values, index, mask, height, width):
    """(height, width, 2): in each cell the value of the nearest object (Euclid); zeros when there are no objects."""
    ### BEGIN SOLUTION hint: drop empty slots; squared distances (height, width, M) by broadcasting; argmin over M
    there = mask > 0
    if not there.any():
        return np.zeros((height, width, 2), np.float32)
    y, x = np.divmod(index[there], width)
    rows, columns = np.indices((height, width))
    distance = (rows[..., None] - y) ** 2 + (columns[..., None] - x) ** 2
    return values[there][distance.argmin(axis=-1)]
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(0)
values = rng.uniform(1, 9, (5, 2)).astype(np.float32)
index, mask = np.array([3 * 12 + 2, 7 * 12 + 10, 1 * 12 + 9, 0, 0]), np.array([1, 1, 1, 0, 0])
dense = nearest_map(values, index, mask, 9, 12)
assert np.shape(dense) == (9, 12, 2), f"one pair in every cell: (9, 12, 2), yours {np.shape(dense)}"
for slot, (y, x) in enumerate(((3, 2), (7, 10), (1, 9))):
    assert np.allclose(dense[y, x], values[slot]), (
        f"cell (x {x}, y {y}) is the centre of object {slot} and has its value; index is y * width + x"
    )
assert not np.allclose(dense[0, 0], values[3]), "slots with mask 0 are empty, though their index says cell 0"
for y in range(9):
    for x in range(12):
        steps = [(y - b) ** 2 + (x - a) ** 2 for b, a in ((3, 2), (7, 10), (1, 9))]
        if sorted(steps)[0] < sorted(steps)[1]:
            nearest = steps.index(min(steps))
            assert np.allclose(dense[y, x], values[nearest]), f"the object nearest to cell (x {x}, y {y}) is {nearest}"
assert not np.asarray(nearest_map(values, index, np.zeros(5), 9, 12)).any(), "an image without objects: zeros"

# %% [markdown]
# **Write** the swap: true maps for the named heads, predicted ones for the others. The predicted maps must stay as they
# are, since the next rung needs them.


# %% tags=["exercise"]
def swap(maps, truth, names):
    """A new dict of maps: those in `names` from truth, the others from maps; both dicts are left as they are."""
    ### BEGIN SOLUTION hint: a new dict, {name: truth or maps, name by name}
    return {name: truth[name] if name in names else value for name, value in maps.items()}
    ### END SOLUTION


# %% tags=["check"]
mine, true = {"hm": 1, "wh": 2, "reg": 3}, {"hm": 10, "wh": 20, "reg": 30}
swapped = swap(mine, true, ("wh",))
assert swapped == {"hm": 1, "wh": 20, "reg": 3}, f"only the size comes from the truth here; yours {swapped}"
assert mine == {"hm": 1, "wh": 2, "reg": 3} and true == {"hm": 10, "wh": 20, "reg": 30}, "the inputs were changed"
assert swap(mine, true, ("hm", "reg")) == {"hm": 10, "wh": 2, "reg": 30}, "several heads at once"
assert swap(mine, true, ()) == mine, "no names: nothing is swapped"


# %%
def true_maps(samples):
    """What a perfect network would answer: dict of hm, wh, reg."""
    targets = [example(sample, 1)[1] for sample in samples]
    dense = {
        name: np.stack([nearest_map(t[key], t["index"], t["mask"], CELLS, CELLS) for t in targets])
        for name, key in (("wh", "size"), ("reg", "offset"))
    }
    return {"hm": np.stack([t["heatmap"] for t in targets]), **dense}


truth = {name: true_maps(samples) for name, samples in samples_of.items()}
sample, maps = held_out[0], truth["held out"]
figure, panels = plt.subplots(1, 4, figsize=(8, 2.5), layout="constrained")
view = example(sample, 1)[0] * STD + MEAN
panels[0].imshow(view.clip(0, 1))
for panel, values, title in zip(
    panels,
    (None, maps["hm"][0, ..., 0], maps["wh"][0, ..., 0], maps["reg"][0, ..., 0]),
    ("input", "true heatmap", "true width (cells)", "true offset in x"),
    strict=True,
):
    if values is not None:
        figure.colorbar(panel.imshow(values, cmap="cividis"), ax=panel, shrink=0.7)
    panel.set_title(title, fontsize=10)
    panel.set(xticks=[], yticks=[])
show(
    figure,
    alt="A held-out image and its three true maps: Gaussians at the centres, and widths and offsets that are constant "
    "in the region nearest to each object.",
)

# %% [markdown]
# **Predict**, before the next cell runs. All three maps are true: is the AP 1? Then one predicted map is put back.
# Which one costs most, heatmap, size or offset? Is it the same one for the images trained on and for those held out?

# %%
RUNGS = {
    "as predicted": (),
    "true heatmap": ("hm",),
    "true size": ("wh",),
    "true offset": ("reg",),
    "all true but heatmap": ("wh", "reg"),
    "all true but size": ("hm", "reg"),
    "all true but offset": ("hm", "wh"),
    "all three true": ("hm", "wh", "reg"),
}
ladder = {
    name: np.array([[measure(swap(m, truth[name], heads), samples_of[name]) for m in maps] for heads in RUNGS.values()])
    for name, maps in predicted.items()
}  # (rungs, seeds, 2: AP and AP50)
print(f"{'AP, mean and spread over seeds':32}{'trained on':>16}{'held out':>16}")
for k, rung in enumerate(RUNGS):
    cells = [f"{ladder[name][k, :, 0].mean():.3f} ± {np.ptp(ladder[name][k, :, 0]) / 2:.3f}" for name in ladder]
    print(f"  {rung:30}" + "".join(f"{cell:>16}" for cell in cells))
but_heatmap, but_size, but_offset, ceiling = ladder["held out"][-4:, :, 0]
assert but_offset.min() > max(but_heatmap.max(), but_size.max()), "of the three heads, the offset should cost least"
assert ceiling.min() > but_offset.max(), "every predicted map should cost something"

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3.9), sharey=True, layout="constrained")
places = np.arange(len(RUNGS))
for panel, (name, values) in zip(panels, ladder.items(), strict=True):
    for k, (metric, hatch) in enumerate((("AP", ""), ("AP50", "//"))):
        middle = values[..., k].mean(axis=1)
        low, high = middle - values[..., k].min(axis=1), values[..., k].max(axis=1) - middle
        panel.barh(places + 0.4 * k - 0.2, middle, 0.4, color=COLOURS[k], hatch=hatch, label=metric, xerr=(low, high))
    panel.set(xlim=(0, 1.05), xlabel="average precision", title=name)
panels[0].set_yticks(places, RUNGS)
panels[0].invert_yaxis()
panels[1].legend(frameon=False, loc="upper right")
show(
    figure,
    alt="The oracle ladder: bars of AP and AP50 as each true map replaces the predicted one, for images trained on and "
    "held out; on held-out images the rungs with the true heatmap stand out.",
)

# %% [markdown]
# Read it from the bottom. **All three true** is the ceiling of the *encoding*: perfect maps, decoded. No training can
# pass it. The next cell shows what it lacks: where two objects share a cell, one of them is lost.
#
# The three rungs above it put back one predicted map each. The fall from the ceiling is the price of that head. The
# offset is the cheapest of the three. Now compare the columns. A head that is cheap on the images trained on and dear
# on those held out was learnt by heart. A head that is dear on both was not learnt at all, and wants more steps.
#
# The rungs at the top can mislead. True sizes do not help a box that is in the wrong place, nor true places a box of
# the wrong size. Errors multiply, so that a single oracle may gain little though its head costs much. That is why the
# ladder is read from both ends.

# %%
shared = sum(
    int(np.count_nonzero(t["mask"]) - len(np.unique(t["index"][t["mask"] > 0])))
    for t in (example(sample, 1)[1] for sample in held_out)
)
objects = sum(np.count_nonzero(~sample.annotation.crowd) for sample in held_out)
ceiling = ladder["held out"][-1, 0]
print(f"{shared} of {objects} held-out objects share their cell with another")
print(f"ceiling of the encoding: AP {ceiling[0]:.3f}, AP50 {ceiling[1]:.3f}")
assert np.ptp(ladder["held out"][-1], axis=0).max() < 1e-12, "the ceiling does not depend on the network"
assert abs(ceiling[1] - (1 - shared / objects)) < 0.02, (
    "what the ceiling lacks are the objects without a cell of their own"
)

# %% [markdown]
# ## What kind of mistake
#
# The ladder says which head. Counting says which mistake. At a score of 0.3 each detection is one of four things, and
# each object is found or missed. Best score first:
#
# - **right**: it reaches IoU 0.5 with an object that nobody took yet (it takes the best such);
# - **duplicate**: it reaches IoU 0.5 only with objects that are taken;
# - **loose**: its best IoU with any object is at least 0.1, but below 0.5;
# - **background**: all other cases.
#
# **Write** it for one image of one class, without crowds.


# %% tags=["exercise"]
def mistakes(truth, boxes):
    """Counts of one image: dict of right, duplicate, loose, background, missed; boxes (D, 4) are best first."""
    ### BEGIN SOLUTION hint: box_iou(boxes, truth); go down the rows; a bool array says which objects are free
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
    return {**counts, "missed": int(free.sum())}
    ### END SOLUTION


# %% tags=["check"]
objects = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]], float)
found = np.array([[0, 0, 10, 9], [0, 1, 10, 10], [20, 6, 30, 16], [80, 0, 90, 10], [0, 0, 10, 10]], float)
counted = mistakes(objects, found)
expected = {"right": 1, "duplicate": 2, "loose": 1, "background": 1, "missed": 2}
for key, number in expected.items():
    assert counted.get(key) == number, f"{key}: {number} expected in the planted scene, yours {counted.get(key)}"
close = np.array([[0, 0, 10, 10], [2, 0, 12, 10]], float)
assert mistakes(close, np.array([[1, 0, 11, 10], [1, 0, 11, 10]], float))["right"] == 2, (
    "a second detection takes the second object when the first is gone"
)
assert mistakes(np.zeros((0, 4)), found)["background"] == 5, "no objects: everything found is background"
assert mistakes(objects, np.zeros((0, 4)))["missed"] == 3, "nothing found: every object is missed"
rng = np.random.default_rng(1)
for _ in range(20):
    corner = rng.uniform(0, 40, (9, 2))
    many = np.concatenate([corner, corner + rng.uniform(4, 20, (9, 2))], axis=1)
    there = replace(two, boxes=many[:4], labels=np.zeros(4, int), crowd=np.zeros(4, bool), difficult=np.zeros(4, bool))
    near = many[rng.integers(0, 9, 7)] + rng.normal(0, 1, (7, 4))
    ours = mistakes(many[:4], near)
    package = count_mistakes(there, Detections(near, np.linspace(0.9, 0.5, 7), np.zeros(7, int), ("object",)))
    assert (ours["right"], ours["missed"]) == (package.found, package.missed), (
        f"the package counts {package.found} found and {package.missed} missed, you {ours}"
    )
    assert ours["duplicate"] + ours["loose"] + ours["background"] == package.false, "the other detections are false"

# %%
kinds = ("right", "missed", "background", "loose", "duplicate")
totals = {}
for name, maps in predicted.items():
    per_seed = []
    for m in maps:
        counts_of = []
        for sample, found in zip(samples_of[name], detections_of(m, samples_of[name]), strict=True):
            counts_of.append(
                mistakes(sample.annotation.boxes[~sample.annotation.crowd], found.boxes[found.scores >= 0.3])
            )
        per_seed.append([sum(c[kind] for c in counts_of) for kind in kinds])
    totals[name] = np.array(per_seed)
figure, panels = plt.subplots(1, 2, figsize=(8, 2.9), layout="constrained")
for panel, (name, values) in zip(panels, totals.items(), strict=True):
    middle = values.mean(axis=0)
    panel.bar(
        kinds,
        middle,
        color=[COLOURS[0]] + 4 * [COLOURS[1]],
        yerr=(middle - values.min(axis=0), values.max(axis=0) - middle),
    )
    panel.set(title=f"{name}: {len(samples_of[name])} images", ylabel="count at score 0.3")
    panel.tick_params(axis="x", rotation=20)
show(
    figure,
    alt="Counts of right detections, missed objects, detections of background, loose boxes and duplicates, for images "
    "trained on and held out, with the spread over seeds.",
)
for name, values in totals.items():
    print(f"{name:12}", "  ".join(f"{kind} {v:.0f}" for kind, v in zip(kinds, values.mean(axis=0), strict=True)))

# %% [markdown]
# ## Best and worst
#
# Numbers end here. Look at images. They are ranked by the share of what is right,
# $F_1 = 2\,\text{right} / (2\,\text{right} + \text{missed} + \text{false})$.

# %%
found = detections_of(predicted["held out"][0], held_out)
scores = []
for sample, f in zip(held_out, found, strict=True):
    c = mistakes(sample.annotation.boxes[~sample.annotation.crowd], f.boxes[f.scores >= 0.3])
    wrong = c["missed"] + c["duplicate"] + c["loose"] + c["background"]
    scores.append((2 * c["right"] / (2 * c["right"] + wrong) if c["right"] + wrong else 1.0, c["right"] - wrong))
order = sorted((i for i in range(len(held_out)) if len(held_out[i].annotation.boxes)), key=lambda i: scores[i])
figure, panels = plt.subplots(2, 3, figsize=(8, 5), layout="constrained")
for panel, i in zip(panels.ravel(), [*order[::-1][:3], *order[:3]], strict=True):
    draw_found(panel, held_out[i], found[i])
    panel.set_title(f"F1 {scores[i][0]:.2f}", fontsize=10)
panels[0, 0].set_ylabel("best")
panels[1, 0].set_ylabel("worst")
show(
    figure,
    alt="The three best and the three worst held-out images, objects in white, detections dashed; the title of each is "
    "its F1.",
)

# %% [markdown]
# ## Break it
#
# A colleague measures the same network again, on the images it was fitted to, with three batch sizes. A batch size is
# about memory and speed. It should not change a single score.

# %%
suspect = copy.deepcopy(overfitted).train()
print("batch size     AP   best score of each image")
different = []
for batch_size in (1, 2, 4):
    maps = maps_of(copy.deepcopy(suspect), few, batch_size=batch_size)
    different.append(maps["hm"])
    best = "  ".join(f"{score:.3f}" for score in maps["hm"].max(axis=(1, 2, 3)))
    print(f"{batch_size:10}  {measure(maps, few)[0]:.3f}   {best}")
assert np.abs(different[0] - different[2]).max() > 1e-2

# %% [markdown]
# **Find the cause** before you open the answer. Which layer of the network looks at more than one image at a time? What
# did this cell do that `fit` undid in its last line?
#
# <details><summary>The cause</summary>
#
# `train()`. In training mode batch normalisation (notebook 04) uses the mean and variance of the batch that it sees, so
# each image's boxes depend on its neighbours, and a batch of one is normalised by itself. Worse, it also moves the
# running statistics with every batch: measuring changes the network. `model.eval()` before measuring, always.
# `minicenternet evaluate` loads networks in evaluation mode, and a folded network has no other.
#
# </details>

# %%
suspect.eval()
maps = [maps_of(suspect, few, batch_size=batch_size)["hm"] for batch_size in (1, 4)]
print(f"in evaluation mode the largest difference is {np.abs(maps[0] - maps[1]).max():.0e}")
assert np.abs(maps[0] - maps[1]).max() < 1e-4

# %% [markdown]
# ## Summary
#
# - Overfit a handful of images first. It finds bugs, and only bugs.
# - Held-out images say what was understood. Train with several seeds before you believe a difference.
# - Oracle swaps say which head costs how much; the ceiling says what the encoding costs.
# - Counts of mistakes, and the worst images, say why.
# - More data would help here, and no cleverness will replace it.
#
# ## In the package
#
# - `minicenternet.train.Run` is `fit` with everything that a long run needs: `minicenternet train --data DIR --size
#   128`.
# - `minicenternet.data.transforms.prepare` and `minicenternet.tasks.detection.encode` make the examples.
# - `minicenternet.evaluate.evaluate` measures, `minicenternet.evaluate.count_mistakes` counts, and `minicenternet
#   evaluate --output DIR` draws the best and the worst images.
# - `minicenternet.points.decode.decode` is what all rungs of the ladder go through.
