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
# # 12 · Train on shapes
#
# - **Goal** Train a detector with a loop that you wrote, and know at every stage whether it is well: the loss at
#   chance, one batch learned by heart, four losses to know by sight, then the real run.
# - **You need** 06, 07, 08, 09, 10.
# - **Minutes** 45 to read and work / runs in about 100 s
# - **Equations** none of E1 to E10 is derived here; E1 to E10 are all used.
# - **What you should see** After 1000 steps on drawings of 64 by 64 pixels: AP50 of at least 0.90 on 200 drawings that
#   the network never saw.

# %%
import os
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np

from minicenternet import CenterNet
from minicenternet.autograd import Tensor, no_grad
from minicenternet.data import Shapes
from minicenternet.draw import COLOURS, draw_boxes, draw_grid, show
from minicenternet.metrics import average_precision
from minicenternet.ops import clip, gather_points, log, sigmoid
from minicenternet.optim import SGD, Adam, learning_rate
from minicenternet.points.decode import decode
from minicenternet.points.losses import CLAMPED_LOSS, detection_loss, expected_first_loss, explain_loss, l1_loss
from minicenternet.points.targets import Targets, encode

FAST = os.environ.get("MINICENTERNET_FAST") == "1"

# %% [markdown]
# ## The drawings
#
# Small images, so that all of it runs on a laptop: 64 by 64 pixels, one to four shapes of three classes. An image
# depends on (seed, index) alone. The test images have another seed, so no image is in both sets.

# %%
SIZE, R = 64, 4  # pixels, pixels per cell
SCENES = {"size": SIZE, "classes": ("circle", "square", "triangle"), "objects": (1, 4), "scale": (0.2, 0.5)}
train_shapes = Shapes(400 if FAST else 3200, seed=1, **SCENES)
test_shapes = Shapes(40 if FAST else 200, seed=2, **SCENES)
train_samples = [train_shapes[i] for i in range(len(train_shapes))]
test_samples = [test_shapes[i] for i in range(len(test_shapes))]
CLASS_NAMES, CLASSES = train_shapes.class_names, len(train_shapes.class_names)
objects = sum(len(sample.annotation.boxes) for sample in train_samples)
print(f"{len(train_samples)} drawings to learn from with {objects} objects, {len(test_samples)} to test with")

# %% [markdown]
# ## A batch
#
# The network wants float32 images of mean about 0 and deviation about 1, shape $(B, H, W, 3)$. The losses want
# `Targets` whose fields have a batch axis in front. `encode` (notebook 07) makes those of one image.
#
# **Write** both. `encode(boxes, labels, num_classes, height, width, stride)` takes boxes in input pixels, and height
# and width in *cells*.


# %% tags=["exercise"]
def make_batch(samples):
    """Return images (B, 64, 64, 3) float32, (colour/255 - 0.5) / 0.25, and Targets whose fields are stacked."""
    ### BEGIN SOLUTION hint: np.stack the images and normalise; encode each annotation on a map of SIZE // R cells; zip
    images = (np.stack([sample.image for sample in samples]).astype(np.float32) / 255 - np.float32(0.5)) * 4
    targets = [
        encode(sample.annotation.boxes, sample.annotation.labels, CLASSES, SIZE // R, SIZE // R, R)
        for sample in samples
    ]
    return images, Targets(*(np.stack(field) for field in zip(*targets, strict=True)))
    ### END SOLUTION


# %% tags=["check"]
got_images, got_targets = make_batch(train_samples[:3])
assert got_images.shape == (3, 64, 64, 3), f"images have shape {got_images.shape}, expected (3, 64, 64, 3)"
assert got_images.dtype == np.float32, f"images are {got_images.dtype}, expected float32: in float64 all runs slower"
for i, sample in enumerate(train_samples[:3]):
    for y, x in ((0, 0), (17, 40), (63, 63)):
        for c in range(3):
            want = (int(sample.image[y, x, c]) / 255 - 0.5) / 0.25
            assert abs(got_images[i, y, x, c] - want) < 1e-5, (
                f"colour {sample.image[y, x, c]} became {got_images[i, y, x, c]:.4f}, expected {want:.4f}"
            )
    assert got_targets.heatmap.shape == (3, 16, 16, 3), (
        f"heatmaps have shape {got_targets.heatmap.shape}, expected (3, 16, 16, 3): 64 pixels are 16 cells"
    )
    for box, label, index, size in zip(
        sample.annotation.boxes, sample.annotation.labels, got_targets.index[i], got_targets.size[i], strict=False
    ):
        x, y = int((box[0] + box[2]) / 2 // 4), int((box[1] + box[3]) / 2 // 4)
        assert index == y * 16 + x, f"box {box} of image {i} should sit in cell y = {y}, x = {x}: index {index}"
        assert got_targets.heatmap[i, y, x, label] == 1, f"class {label} should peak at y = {y}, x = {x} of image {i}"
        assert np.allclose(size, (box[2:] - box[:2]) / 4, atol=1e-4), f"sizes are in cells: got {size} for box {box}"
    assert got_targets.mask[i].sum() == len(sample.annotation.boxes), "the mask counts the objects of each image"

# %%
images, targets = make_batch(train_samples[:4])
figure, axes = plt.subplots(2, 4, figsize=(8, 4.2), layout="constrained")
for i in range(4):
    axes[0, i].imshow(train_samples[i].image, extent=(0, SIZE, SIZE, 0))
    for x1, y1, x2, y2 in train_samples[i].annotation.boxes:
        axes[0, i].add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=1.5))
    drawn = axes[1, i].imshow(targets.heatmap[i].max(axis=2), cmap="cividis", vmin=0, vmax=1)
    axes[1, i].set_xlabel("x (cells)")
axes[0, 0].set_ylabel("y (pixels)")
axes[1, 0].set_ylabel("y (cells)")
figure.colorbar(drawn, ax=axes[1], label="Y, largest class")
show(figure, alt="Four drawings with white boxes above, and below each its target heatmap with one Gaussian per shape.")

# %% [markdown]
# ## The loss at chance
#
# Before training the loss is no surprise. The heatmap answers $\hat Y \approx \pi = 0.1$ everywhere (E10), sizes and
# offsets are answered with about 0, since their last layers begin with tiny weights.
#
# **Predict** the three losses of the first step. $L_k$: notebook 08. Sizes: if the answer is 0, the L1 error is the
# size itself, width plus height in cells. Offsets: each coordinate lies between 0 and 1, and there are two.

# %%
images, targets = make_batch(train_samples[:16])
there = targets.mask == 1
chance = {
    "heatmap": expected_first_loss(targets.heatmap, 0.1),
    "size": targets.size[there].sum(axis=1).mean(),
    "offset": targets.offset[there].sum(axis=1).mean(),
}


def new_network(seed=0):
    return CenterNet("small", class_names=CLASS_NAMES, input_size=(SIZE, SIZE), seed=seed)


_, parts = detection_loss(new_network()(Tensor(images)), targets)
for name, expected in chance.items():
    print(f"{name:>8}: expected {expected:7.3f}, measured {parts[name].item():7.3f}")
    assert abs(parts[name].item() / expected - 1) < 0.25, name

# %% [markdown]
# Within a quarter, as the random weights add a little. If a first loss of yours is not what you computed, stop there.
# It is the cheapest test that there is.
#
# ## One step
#
# Forward, loss, forget the old gradients, backward, update. Five lines, and their order matters.
#
# **Write** them.


# %% tags=["exercise"]
def training_step(model, optimiser, images, targets):
    """Do one step on a batch; return {"total", "heatmap", "size", "offset"}: the losses before it, as numbers."""
    ### BEGIN SOLUTION hint: model.train(); detection_loss(model(Tensor(images)), targets); zero_grad; backward; step
    model.train()
    total, parts = detection_loss(model(Tensor(images)), targets)
    model.zero_grad()
    total.backward()
    optimiser.step()
    return {"total": total.item(), **{name: part.item() for name, part in parts.items()}}
    ### END SOLUTION


# %% tags=["check"]
yours, ours = new_network(3), new_network(3)
optimiser = SGD(yours.named_parameters(), lr=0.01, momentum=0.0)
yours.eval()  # as it is after it was measured
check_images, check_targets = make_batch(train_samples[:4])
for step in (1, 2):
    got = training_step(yours, optimiser, check_images, check_targets)
    total, parts = detection_loss(ours(Tensor(check_images)), check_targets)
    for parameter in ours.parameters():
        parameter.grad = None
    total.backward()
    for parameter in ours.parameters():
        parameter.data = parameter.data - np.float32(0.01) * parameter.grad  # the definition of gradient descent
    assert isinstance(got, dict) and set(got) == {"total", "heatmap", "size", "offset"}, f"you returned {got}"
    for name, want in {"total": total, **parts}.items():
        assert abs(got[name] - want.item()) < 1e-3 * abs(want.item()), (
            f"step {step}: {name} is {got[name]:.5f}, expected {want.item():.5f}. Is the network in training mode, and "
            "did the step before this one move it rightly?"
        )
    for (name, a), (_, b) in zip(yours.named_parameters(), ours.named_parameters(), strict=True):
        assert np.allclose(a.data, b.data, rtol=1e-3, atol=1e-5), (
            f"after step {step}, {name} is off by up to {np.abs(a.data - b.data).max():.2g}: gradients of this batch "
            "alone, with which the optimiser steps once, after backward"
        )

# %% [markdown]
# ## One batch by heart
#
# A network that cannot learn eight images by heart will not learn 3200. This test takes seconds and finds most
# mistakes: in targets, losses, gradients, decoder and evaluation, all at once.
#
# **Predict.** 160 steps on the same eight images. Which AP50 on these eight, and which of the three losses falls last?

# %%
EIGHT = train_samples[:8]


def detect(model, samples):
    """Return for each sample its boxes in pixels, scores and labels, the best first."""
    model.eval()
    with no_grad():
        maps = model(Tensor(make_batch(samples)[0]))
    found = decode(sigmoid(maps["hm"]).data, maps["reg"].data, maps["wh"].data, k=50, stride=R)
    return [SimpleNamespace(boxes=b, scores=s, labels=c) for b, s, c in zip(*found, strict=True)]


def ap50(found, samples):
    return average_precision([sample.annotation for sample in samples], found, CLASSES).ap50


model = new_network()
optimiser = Adam(model.named_parameters(), lr=4e-3)
images, targets = make_batch(EIGHT)
by_heart = [training_step(model, optimiser, images, targets) for _ in range(60 if FAST else 160)]
learned = ap50(detect(model, EIGHT), EIGHT)
print(f"total loss {by_heart[0]['total']:.2f} -> {by_heart[-1]['total']:.2f}; AP50 on the eight: {learned:.3f}")
assert by_heart[-1]["total"] < by_heart[0]["total"] / 5
assert learned > 0.95

# %%
figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
styles = {"heatmap": ("-", COLOURS[0]), "size": ("--", COLOURS[1]), "offset": (":", COLOURS[2])}


def plot_losses(axis, history):
    for name, (line, colour) in styles.items():
        axis.semilogy([losses[name] for losses in history], line, color=colour, label=name)
    axis.set(xlabel="step", ylabel="loss (unweighted)")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(color="0.9")
    axis.legend()


plot_losses(axis, by_heart)
show(figure, alt="Heatmap, size and offset losses on one batch fall over the steps, on a logarithmic scale.")

# %% [markdown]
# ## Four losses to know by sight
#
# Notebook 08 computed them. Here they are provoked, each by the mistake that makes it:
#
# - **healthy**: nothing is wrong.
# - **no prior**: the last bias of the heatmap is 0, so every $\hat Y$ begins near 0.5.
# - **dead gradient**: probabilities are held at $10^{-4}$ or more, as in the released code, and a step that was too
#   large has thrown every logit below that. Here the bias is set to $-14$ by hand.
# - **no object**: a filter keeps crowd regions and drops everything else, where the opposite was meant.
#
# **Predict** for each: the first value of $L_k$, and where it goes.

# %%
STEPS = 15 if FAST else 60


def clamped_loss(maps, targets):
    """E7 with a focal loss of clamped probabilities."""
    p, peak = clip(sigmoid(maps["hm"]), 1e-4, 1 - 1e-4), (targets.heatmap == 1).astype(np.float32)
    terms = peak * (1 - p) ** 2 * log(p) + (1 - peak) * (1 - targets.heatmap) ** 4 * p**2 * log(1 - p)
    parts = {"heatmap": -terms.sum() / max(peak.sum(), 1)}
    for name, head, wanted in (("size", "wh", targets.size), ("offset", "reg", targets.offset)):
        parts[name] = l1_loss(gather_points(maps[head], targets.index), wanted, targets.mask)
    return parts["heatmap"] + 0.1 * parts["size"] + parts["offset"], parts


def only_crowds(sample):
    kept = sample.annotation.crowd  # where ~crowd was meant
    boxes, labels = sample.annotation.boxes[kept], sample.annotation.labels[kept]
    return SimpleNamespace(image=sample.image, annotation=SimpleNamespace(boxes=boxes, labels=labels))


def provoked(bias=None, loss=detection_loss, samples=EIGHT):
    model = new_network()
    if bias is not None:
        model.heads["hm"][2].bias.data[:] = bias
    optimiser = Adam(model.named_parameters(), lr=4e-3)
    images, targets = make_batch(samples)
    history = {"heatmap": [], "size": []}
    for _ in range(STEPS):
        total, parts = loss(model(Tensor(images)), targets)
        for name, values in history.items():
            values.append(parts[name].item())
        model.zero_grad()
        total.backward()
        optimiser.step()
    return history


runs = {
    "healthy": provoked(),
    "no prior": provoked(bias=0.0),
    "dead gradient": provoked(bias=-14.0, loss=clamped_loss),
    "no object": provoked(samples=[only_crowds(sample) for sample in EIGHT]),
}
at_prior, at_half = (expected_first_loss(make_batch(EIGHT)[1].heatmap, prior) for prior in (0.1, 0.5))
print(f"expected at the prior: {at_prior:.3f}, at one half: {at_half:.2f}")
for name, history in runs.items():
    heatmap, size = history["heatmap"], history["size"]
    print(f"{name:>14}: heatmap {heatmap[0]:8.4f} -> {heatmap[-1]:8.4f}    size {size[0]:6.2f} -> {size[-1]:6.2f}")

# %%
figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
for (name, history), line, colour in zip(runs.items(), ("-", "--", "-.", ":"), COLOURS, strict=False):
    axis.semilogy(history["heatmap"], line, color=colour, label=name, linewidth=2)
axis.axhline(CLAMPED_LOSS, color="black", linewidth=0.7)
axis.text(STEPS - 1, CLAMPED_LOSS * 1.15, "9.2085", ha="right", fontsize=9)
axis.set(xlabel="step", ylabel="heatmap loss")
axis.yaxis.set_major_formatter("{x:g}")
axis.legend()
show(
    figure,
    alt="Heatmap losses: healthy begins at 2, no prior at 42, dead gradient is flat at 9.2085, no object goes to 0.",
)
assert abs(runs["healthy"]["heatmap"][0] / at_prior - 1) < 0.25
assert abs(runs["no prior"]["heatmap"][0] / at_half - 1) < 0.25
assert np.abs(np.array(runs["dead gradient"]["heatmap"]) - 9.2085).max() < 1e-3
assert runs["no object"]["heatmap"][-1] < runs["healthy"]["heatmap"][-1]
assert max(runs["no object"]["heatmap"][-3:]) < 0.01 and max(runs["no object"]["size"]) == 0

# %% [markdown]
# The curve that ends lowest is the one that learns nothing. A low loss is no proof.
#
# **Write** a function that recognises them while a run goes on. Only the very first value is compared with the two
# expected ones, within a quarter. The other two signs must have held for the last three steps.


# %% tags=["exercise"]
def diagnose(heatmap_losses, size_losses, at_prior, at_half):
    """Return "healthy", "no prior", "dead gradient", "no object" or None, from the losses so far, oldest first.

    dead: within 1e-3 of 9.2085.  no object: the heatmap loss below 0.01 and the size loss 0.
    """
    ### BEGIN SOLUTION hint: the first two for the very first value only; the others need three in heatmap_losses[-3:]
    first, latest, latest_size = heatmap_losses[0], heatmap_losses[-3:], size_losses[-3:]
    if len(heatmap_losses) == 1 and abs(first / at_prior - 1) < 0.25:
        return "healthy"
    if len(heatmap_losses) == 1 and abs(first / at_half - 1) < 0.25:
        return "no prior"
    if len(latest) == 3 and all(abs(loss - 9.2085) < 1e-3 for loss in latest):
        return "dead gradient"
    if len(latest) == 3 and max(latest) < 0.01 and max(latest_size) == 0:
        return "no object"
    return None
    ### END SOLUTION


# %% tags=["check"]
cases = [  # heatmap losses, size losses, what to say
    ([203.0], [12.0], "healthy"),
    ([31_000.0], [12.0], "no prior"),
    ([1000.0], [12.0], None),
    ([203.0, 60.0], [12.0, 11.0], None),
    ([500.0, 203.0], [12.0, 12.0], None),
    ([500.0, 9.2085, 9.2085, 9.2085], [12.0, 11.0, 11.0, 11.0], "dead gradient"),
    ([12.0, 9.2085], [12.0, 12.0], None),
    ([11.0, 9.2085, 7.5], [12.0, 12.0, 12.0], None),
    ([150.0, 0.004, 0.003, 0.002], [0.0, 0.0, 0.0, 0.0], "no object"),
    ([150.0, 0.004, 0.003, 0.002], [9.0, 0.5, 0.4, 0.3], None),
    ([150.0, 2.0, 0.003, 0.002], [0.0, 0.0, 0.0, 0.0], None),
]
for heatmap_losses, size_losses, want in cases:
    said = diagnose(heatmap_losses, size_losses, 200.0, 32_000.0)
    assert said == want, (
        f"heatmap losses {heatmap_losses} and size losses {size_losses}, with 200 expected at the prior and 32,000 at "
        f"one half: you say {said!r}, expected {want!r}"
    )

# %%
for name, history in runs.items():
    said, package = set(), []
    for step in range(1, STEPS + 1):
        so_far = history["heatmap"][:step], history["size"][:step], at_prior, at_half
        said.add(diagnose(*so_far))
        package.append(explain_loss(*so_far))
        assert (diagnose(*so_far) is None) == (package[-1] is None), f"{name}, step {step}: {package[-1]}"
    assert name in said, f"{name} was not recognised: {said}"
    print(f"{name}: {next(line for line in reversed(package) if line)}\n")

# %% [markdown]
# The sentences are those of the package's trainer, `minicenternet.points.losses.explain_loss`.
#
# ## How fast to walk
#
# Adam takes steps of about the learning rate, whatever the size of the gradient. At the start its averages rest on a
# handful of gradients, so the rate rises over a few steps. At the end it falls to nothing, so that the weights stop
# wandering about and settle. With base rate $\eta$, $T$ steps and $w$ steps of warm-up, step $t = 0, 1, \dots$ has
#
# $$\eta_t = \eta \cdot \tfrac12 \left(1 + \cos \frac{\pi t}{T}\right)
# \cdot \min\!\left(1, \frac{t + 1}{w + 1}\right).$$
#
# **Write** it.


# %% tags=["exercise"]
def rate_at(step, steps, base, warm_up):
    """Return the learning rate of a step: half a cosine from base to 0, times a linear rise over warm_up steps."""
    ### BEGIN SOLUTION hint: the formula above; np.cos takes radians
    return base * 0.5 * (1 + np.cos(np.pi * step / steps)) * min(1, (step + 1) / (warm_up + 1))
    ### END SOLUTION


# %% tags=["check"]
first, end = rate_at(0, 100, 1.0, 9), rate_at(99, 100, 1.0, 9)
assert first > 0, "the first step has rate 0, so it is wasted: it is step t = 0, and the rise is (t + 1) / (w + 1)"
assert abs(first - 0.1) < 1e-9, f"with 9 steps of warm-up, step 0 has a tenth of the base rate; yours {first:.4f}"
assert abs(rate_at(50, 100, 1.0, 9) - 0.5) < 1e-9, f"half way: half the base rate; yours {rate_at(50, 100, 1.0, 9):.4f}"
assert end < 0.001, f"the last of 100 steps has nearly no rate left; yours {end:.4f}"
for step in range(0, 300, 7):
    for warm_up in (0, 30):
        want = learning_rate(step, base=0.02, total_steps=300, schedule="cosine", warm_up=warm_up)
        got = rate_at(step, 300, 0.02, warm_up)
        assert abs(got - want) < 1e-12, f"step {step} of 300, warm-up {warm_up}: {want:.6f} expected, yours {got:.6f}"

# %% [markdown]
# ## The run
#
# Everything is there. The loop is this, and there is nothing else in it but the frames of a film: what the network
# sees in one test image, every now and then.

# %%
BATCH, RATE, TRAINING_STEPS = 16, 5e-3, 80 if FAST else 1000


def train(model, samples, steps, seed=0, frames=()):
    """Train with Adam; return the losses of each step, and the probabilities of one test image after some of them."""
    optimiser = Adam(model.named_parameters(), RATE)
    rng, order, history, film = np.random.default_rng(seed), [], [], {}
    for step in range(steps):
        if step in frames:
            film[step] = probabilities(model, FILMED)
        if len(order) < BATCH:  # a new epoch
            order = rng.permutation(len(samples))
        chosen, order = order[:BATCH], order[BATCH:]
        optimiser.lr = rate_at(step, steps, RATE, warm_up=steps // 10)
        images, targets = make_batch([samples[i] for i in chosen])
        history.append(training_step(model, optimiser, images, targets))
    film[steps] = probabilities(model, FILMED)
    return history, film


def probabilities(model, sample):
    model.eval()
    with no_grad():
        return sigmoid(model(Tensor(make_batch([sample])[0]))["hm"]).data[0]  # (16, 16, C)


FILMED = max(test_samples, key=lambda sample: len(sample.annotation.boxes))
model = new_network()
frames = [0, 10, 20, 40] if FAST else [0, 20, 60, 200, 500]
history, film = train(model, train_samples, TRAINING_STEPS, frames=frames)
for name in history[0]:
    print(f"{name:>8}: mean of the last 20 steps {np.mean([losses[name] for losses in history[-20:]]):.3f}")

# %%
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
plot_losses(axis, history)
show(figure, alt="The three losses of the run fall over the steps, noisy from batch to batch, sizes the most.")

# %% [markdown]
# **Predict.** The film: what comes first, the right places or the narrow peaks? What has the network to know to paint
# the right *class*?

# %%
figure, axes = plt.subplots(1, 1 + len(film), figsize=(8, 1.9), layout="constrained")
axes[0].imshow(FILMED.image)
axes[0].set_title("test image", fontsize=9)
for axis, (step, heatmap) in zip(axes[1:], film.items(), strict=True):
    drawn = axis.imshow(heatmap.max(axis=2), cmap="cividis", vmin=0, vmax=1)
    axis.set_title(f"step {step}", fontsize=9)
for axis in axes:
    axis.set_axis_off()
figure.colorbar(drawn, ax=axes, label="Ŷ, largest class", shrink=0.8)
show(figure, alt="A test image and its predicted heatmap after more and more steps: from an even grey to bright peaks.")
print(f"highest probability: {film[0].max():.2f} at the start, {film[TRAINING_STEPS].max():.2f} at the end")
assert film[TRAINING_STEPS].max() > 1.5 * film[0].max()

# %% [markdown]
# ## What it found
#
# AP is measured on the test images alone. Notebook 13 makes AP by hand; here `average_precision` is given.

# %%
found = detect(model, test_samples)
result = average_precision([sample.annotation for sample in test_samples], found, CLASSES)
print(f"AP50 {result.ap50:.3f}, AP75 {result.ap75:.3f}, AP {result.ap:.3f} on {len(test_samples)} unseen drawings")
for name, value in zip(CLASS_NAMES, result.per_class_ap50, strict=True):
    print(f"{name:>10}: AP50 {value:.3f}")
assert result.ap50 >= (0.20 if FAST else 0.90)

# %%
pictures = []
for sample, detections in list(zip(test_samples, found, strict=True))[:8]:
    shown = detections.scores >= 0.3
    pictures.append(
        draw_boxes(
            sample.image,
            detections.boxes[shown],
            detections.labels[shown],
            detections.scores[shown],
            CLASS_NAMES,
            text_size=0.055,
        )
    )
show(
    draw_grid(pictures, columns=4, width=800),
    alt="Eight unseen drawings with the boxes found in them, each with its class and score.",
)

# %% [markdown]
# ## Break it
#
# The network that was just trained, the same weights, the same images. Somebody rewrote `detect`. The losses were fine
# to the last step, the heatmap is right, and AP50 is this:

# %%


def detect_rewritten(model, samples):
    model.eval()
    with no_grad():
        maps = model(Tensor(make_batch(samples)[0]))
    found = decode(sigmoid(maps["hm"]).data, maps["reg"].data, maps["wh"].data, k=50, stride=1)
    return [SimpleNamespace(boxes=b, scores=s, labels=c) for b, s, c in zip(*found, strict=True)]


rewritten = detect_rewritten(model, test_samples)
print(f"AP50 before {result.ap50:.3f}, now {ap50(rewritten, test_samples):.3f}")
assert ap50(rewritten, test_samples) < 0.05
pictures = []
for sample, detections in list(zip(test_samples, rewritten, strict=True))[:4]:
    shown = detections.scores >= 0.3
    pictures.append(draw_boxes(sample.image, detections.boxes[shown], detections.labels[shown], text_size=0.05))
show(
    draw_grid(pictures, columns=4, width=800),
    alt="Four drawings in which all boxes are small and huddle in the upper left quarter.",
)

# %% [markdown]
# Which number is wrong? Look at the picture before you look at the code.
#
# <details><summary>Answer</summary>
#
# The boxes are a picture of the scene, four times too small and in the corner: they are in cells, not in pixels. E9
# ends with "times $R$", and `stride=1` leaves that out. Training never decodes, so that no loss can notice. That is
# why the test of one batch by heart ends with AP on that batch and not with its loss: it goes through the decoder too.
#
# </details>

# %% [markdown]
# ## Summary
#
# - Compute the first losses before you look at them: $L_k$ at the prior, sizes and offsets at an answer of 0.
# - Let the network learn one batch by heart, and measure that with AP, not with the loss.
# - Four heatmap losses tell four stories: expected at the prior, expected at one half, stuck at 9.2085, and falling to
#   0 without a size loss.
# - The loop is a dozen lines: a rate, a batch, a step.
#
# ## In the package
#
# - `minicenternet.train.Run` is this loop with a folder that can be killed and resumed; its `step` is `training_step`.
# - `minicenternet.train.TrainingExample` and `minicenternet.data.loader.Loader` make the batches.
# - `minicenternet.optim.learning_rate` is `rate_at`.
# - `minicenternet.points.losses.expected_first_loss` and `minicenternet.points.losses.explain_loss` watch the losses.
