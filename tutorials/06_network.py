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
# # 06 · The network
#
# - **Goal**: build the whole network, encoder, decoder and heads, know every shape in it and how far each cell sees;
#   start it from the prior, predict its first loss before it runs, and overfit one batch with an Adam written by hand.
# - **You need**: 03 Convolution, 04 Batch normalisation, 05 Upsampling.
# - **Minutes**: 75 to read and work; runs in about 20 s.
# - **Equations**: E10
# - **What you should see**: maps equal to the package's within $10^{-5}$; a receptive field that is computed and
#   measured to the same pixel; a first heatmap loss within 10 % of the computed one; a batch of four images learnt to
#   less than a tenth of its first loss.

# %%
import math
import os

import matplotlib.pyplot as plt
import numpy as np

from minicenternet import CenterNet, ops
from minicenternet.autograd import Tensor
from minicenternet.backbones.resnet import BasicBlock
from minicenternet.data import Shapes
from minicenternet.draw import COLOURS, DASHES, show
from minicenternet.nn import BatchNorm2d, Conv2d, Module, Parameter, ReLU, Sequential, init
from minicenternet.nn.module import watching
from minicenternet.nn.summary import summarise
from minicenternet.optim import Adam
from minicenternet.points import losses
from minicenternet.points.targets import Targets, encode

FAST = os.environ.get("MINICENTERNET_FAST") == "1"

# %% [markdown]
# ## 1 · What must come out
#
# CenterNet reads an object off one cell of a map. The map has stride $R = 4$: an image of $H \times W$ pixels gives
# $\frac H4 \times \frac W4$ cells. Every cell answers with $C + 4$ numbers:
#
# | head | channels | says |
# |---|---|---|
# | `hm` | $C$ | how sure it is that the centre of an object of class $c$ lies here |
# | `wh` | 2 | width and height of the box, in cells |
# | `reg` | 2 | where in the cell the centre lies, 0 to 1 |
#
# **Predict.** An image of 64 × 64 and five classes: how many numbers does the network answer with? How many of them
# does an image with three objects use for boxes?
#
# Between image and heads stand two parts. The **encoder** makes maps smaller and richer: a cell at stride 16 sees much,
# but is coarse. The **decoder** goes back to stride 4 and keeps what the coarse map knows. Ours has the shape of a
# feature pyramid:
#
# ```
# image (64, 64, 3)
#   stem    /2   (32, 32, 16)
#   stage1  /4   (16, 16, 32) ---- merge1, smooth1 ---- (16, 16, 32) -- heads hm, wh, reg
#   stage2  /8   ( 8,  8, 64) ---- merge2, smooth2 ---- ( 8,  8, 32)
#   stage3  /16  ( 4,  4, 64) -----------'
# ```
#
# ## 2 · The residual block
#
# Each stage is one block of two convolutions around which the input may walk:
#
# $$y = \mathrm{relu}\big(x' + \mathrm{bn}_2(\mathrm{conv}_2(\mathrm{relu}(\mathrm{bn}_1(\mathrm{conv}_1(x)))))\big)$$
#
# where $x' = x$, or, if the block changes size or channels, $x$ through a 1 × 1 convolution of the same stride and a
# batch norm. The addition hands the gradient to $x'$ unchanged, so deep networks of such blocks can be trained (He et
# al. 2015). The last relu comes **after** the addition.
#
# A convolution before a batch norm has no bias, since the batch norm takes its mean away again. Its weights begin as
# $\mathcal N(0, 2/\text{fan})$, which keeps the variance through relu layers.
#
# **Write** `forward`.


# %%
def conv(inputs, outputs, size, stride, rng):
    """Return a convolution without bias that keeps the map's size up to the stride."""
    layer = Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False, rng=rng)
    layer.weight.data = init.kaiming_normal(layer.weight.shape, rng)
    return layer


# %% tags=["exercise"]
class Residual(Module):
    """Two 3 x 3 convolutions with batch norms, the first with the stride, and a way around them."""

    def __init__(self, inputs, outputs, stride, rng):
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride, rng), BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3, 1, rng), BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = Sequential(conv(inputs, outputs, 1, stride, rng), BatchNorm2d(outputs))

    def forward(self, x):
        ### BEGIN SOLUTION hint: relu inside, then add x or self.downsample(x), and relu once more; ops.relu is the op
        y = ops.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return ops.relu(y + (self.downsample(x) if self.downsample else x))
        ### END SOLUTION


# %% tags=["check"]
for inputs, outputs, stride in ((6, 6, 1), (6, 8, 2), (6, 8, 1)):
    rng = np.random.default_rng(0)
    block, packaged = Residual(inputs, outputs, stride, rng), BasicBlock(inputs, outputs, stride, rng)
    packaged.load_state_dict(block.state_dict())
    x_check = Tensor(rng.standard_normal((2, 8, 8, inputs)).astype(np.float32))
    found, expected = block(x_check).data, packaged(x_check).data
    where = f"{inputs} to {outputs} channels, stride {stride}"
    assert found.shape == expected.shape, f"{where}: y has shape {found.shape}, expected {expected.shape}"
    assert found.min() >= 0, f"{where}: y has negative numbers: relu comes after the addition"
    assert np.abs(found - expected).max() < 1e-5, (
        f"{where}: off by {np.abs(found - expected).max():.2g}. Is relu between the convolutions and after the sum, "
        "not before it? Does x go through self.downsample where there is one, and is it added where there is none?"
    )
print("the block equals the package's")

# %% [markdown]
# ## 3 · Encoder, decoder, heads
#
# A **merge** takes a coarse map to twice its size (nearest, 05) and adds the fine map of the same size, passed through
# a 1 × 1 convolution so that both speak the same language. A 3 × 3 convolution then smooths the blocks.
#
# A **head** is a 3 × 3 convolution, a relu and a 1 × 1 convolution to the channels that it needs. The heads share
# everything before. Nothing comes after their last convolution: heatmaps stay logits here, the sigmoid is part of the
# loss (08).


# %%
class Merge(Module):
    """relu(bn(conv1x1(fine)) + coarse enlarged twice)."""

    def __init__(self, channels, rng):
        self.conv, self.bn = conv(channels, channels, 1, 1, rng), BatchNorm2d(channels)

    def forward(self, fine, coarse):
        return ops.relu(self.bn(self.conv(fine)) + ops.upsample2d(coarse, factor=2))


class Network(Module):
    """Images (B, H, W, 3) -> {"hm": (B, H/4, W/4, classes), "wh": (.., 2), "reg": (.., 2)}."""

    def __init__(self, classes, rng):
        self.stem = Sequential(conv(3, 16, 3, 2, rng), BatchNorm2d(16, relu=True))
        self.stage1 = Residual(16, 32, 2, rng)
        self.stage2 = Residual(32, 64, 2, rng)
        self.stage3 = Residual(64, 64, 2, rng)
        self.merge2 = Merge(64, rng)
        self.smooth2 = Sequential(conv(64, 32, 3, 1, rng), BatchNorm2d(32, relu=True))
        self.merge1 = Merge(32, rng)
        self.smooth1 = Sequential(conv(32, 32, 3, 1, rng), BatchNorm2d(32, relu=True))
        self.hm, self.wh, self.reg = (self.head(channels, rng) for channels in (classes, 2, 2))

    @staticmethod
    def head(channels, rng):
        return Sequential(Conv2d(32, 32, 3, padding=1, rng=rng), ReLU(), Conv2d(32, channels, 1, rng=rng))

    def forward(self, images):
        fine = self.stage1(self.stem(images))  # stride 4
        middle = self.stage2(fine)  # stride 8
        coarse = self.stage3(middle)  # stride 16
        middle = self.smooth2(self.merge2(middle, coarse))
        features = self.smooth1(self.merge1(fine, middle))  # stride 4
        return {"hm": self.hm(features), "wh": self.wh(features), "reg": self.reg(features)}


CLASSES = 5
network = Network(CLASSES, np.random.default_rng(0))
maps = network(Tensor(np.zeros((1, 64, 64, 3), np.float32)))
print({name: array.shape for name, array in maps.items()})
assert sum(array.shape[3] for array in maps.values()) == CLASSES + 4, "C + 4 maps"
assert all(array.shape[1:3] == (64 // 4, 64 // 4) for array in maps.values()), "at R = 4"

# %% [markdown]
# The answers: $16 \cdot 16 \cdot 9 = 2304$ numbers. Boxes need four numbers at each object's cell, twelve in all; the
# other cells of `wh` and `reg` are never asked.
#
# Is it the network of the package? Give the package's network our weights, and both the same images.

# %%
rng = np.random.default_rng(1)
images = Tensor(rng.standard_normal((2, 64, 64, 3)).astype(np.float32))
packaged = CenterNet("small", class_names=("circle", "square", "triangle", "star", "ring"), input_size=(64, 64))
packaged.load_state_dict(network.state_dict())
ours, theirs = network(images), packaged(images)
for name in ours:
    gap = np.abs(ours[name].data - theirs[name].data).max()
    print(f"{name:4s} {ours[name].shape}  largest difference {gap:.1e}")
    assert gap < 1e-5, f"{name}: our network and the package's differ with the same weights"

# %% [markdown]
# ## 4 · Shapes, parameters, work
#
# A convolution of $C$ to $O$ channels with $K \times K$ taps has $O C K^2$ weights. Each is multiplied once for every
# output pixel: $OH \cdot OW \cdot O C K^2$ multiply-adds. **Predict**: which layer has the most weights, and which does
# the most work?


# %%
def table(network, size):
    """Return (name, output shape, weights, multiply-adds) of every convolution, in the order in which they run."""
    names = {id(layer): name for name, layer in network.named_modules()}
    rows = []

    def note(layer, inputs, output):
        if isinstance(layer, Conv2d):
            outputs, channels, kernel, _ = layer.weight.shape
            weights = outputs * channels * kernel**2
            rows.append((names[id(layer)], output.shape[1:], weights, output.shape[1] * output.shape[2] * weights))

    with watching(note):
        network(Tensor(np.zeros((1, size, size, 3), np.float32)))
    return rows


network.eval()  # measuring must not touch the running statistics
rows = table(network, 64)
for name, shape, weights, work in rows:
    print(f"{name:22s} {' x '.join(map(str, shape)):14s} {weights:8,d} weights {work / 1e6:8.3f} M multiply-adds")
total_work = sum(work for *_, work in rows)
parameters = sum(parameter.size for parameter in network.parameters())
print(f"{parameters:,} parameters in all, {total_work / 1e6:.1f} M multiply-adds for an image of 64 x 64")

summary = summarise(packaged.eval(), np.zeros((1, 64, 64, 3), np.float32))
assert summary.multiply_adds == total_work, "the package counts as we do"
assert summary.parameters == parameters, "weights, biases and batch norms"

# %% [markdown]
# Halve the sides of a map and double its channels: a quarter of the pixels, four times the weights, the same work. So
# the coarse stages hold most of the weights. stage1 and stage2 do equal work; stage3, whose channels are not doubled,
# does a third of it.

# %%
last_of = {name: f"{name}.conv2" for name in ("stage1", "stage2", "stage3")} | {
    name: f"{name}.0" for name in ("stem", "smooth2", "smooth1")
}
by_layer = {name: shape for name, shape, *_ in rows}
parts = ("stem", "stage1", "stage2", "stage3", "smooth2", "smooth1")
shapes = {"image": (64, 64, 3)} | {name: by_layer[last_of[name]] for name in parts}
shapes["hm, wh, reg"] = (16, 16, CLASSES + 4)
drop = {"stage2": -34, "stage3": -62, "smooth2": -34}
figure, axis = plt.subplots(figsize=(8, 3.7), layout="constrained")
place, at = 0, {}
for k, (name, (height, width, channels)) in enumerate(shapes.items()):
    depth = 3 + channels / 4
    colour = COLOURS[0] if k < 5 else COLOURS[1] if k < 7 else COLOURS[2]
    hatch = "" if k < 5 else "//" if k < 7 else ".."
    top = drop.get(name, 0)
    axis.add_patch(plt.Rectangle((place, top - height / 2), depth, height, facecolor=colour, alpha=0.75, hatch=hatch))
    axis.text(place + depth / 2, top + height / 2 + 2, name, ha="center", fontsize=9)
    axis.text(
        place + depth / 2, top - height / 2 - 2, f"{height}×{width}×{channels}", ha="center", va="top", fontsize=8
    )
    at[name] = (place, place + depth, top)
    place += depth + 17
for start, end in (
    *zip(list(shapes)[:-1], list(shapes)[1:], strict=True),
    ("stage1", "smooth1"),
    ("stage2", "smooth2"),
):
    (_, right, y_start), (left, _, y_end) = at[start], at[end]
    arrow = {"arrowstyle": "->", "linestyle": "--" if start[-1] + end[-1] in ("11", "22") else "-", "color": "0.2"}
    axis.annotate("", (left - 1, y_end), (right + 1, y_start), arrowprops=arrow)
axis.set(xlim=(-8, place - 8), ylim=(-76, 44), xticks=[], yticks=[])
for spine in axis.spines.values():
    spine.set_visible(False)
axis.set_title("encoder plain, decoder hatched, heads dotted; height is rows, width stands for channels", fontsize=10)
show(
    figure,
    alt="The network as blocks: maps shrink from 64 to 4 rows and grow back to 16; two dashed ways skip the depth.",
)

# %% [markdown]
# ## 5 · How far does a cell see?
#
# Notebook 03 computed the size of the field of a chain. With upsampling on the way, follow the **interval** itself,
# from the output back to the image. If the outputs `first` to `last` of a layer are wanted, then
#
# - a convolution $(K, S, P)$ needs its inputs $S \cdot \text{first} - P$ to $S \cdot \text{last} - P + K - 1$,
# - nearest upsampling by $F$ needs its inputs $\lfloor \text{first}/F \rfloor$ to $\lfloor \text{last}/F \rfloor$.
#
# Positions outside the map are padding: there is nothing to see. Do not cut them off before the end.
#
# **Write** it. A layer is `("conv", K, S, P)` or `("up", F)`, and the list is in the order of the forward pass.


# %% tags=["exercise"]
def seen(layers, first, last):
    """Return the first and the last input position that the outputs first..last of the chain depend on."""
    ### BEGIN SOLUTION hint: from the last layer to the first, replace (first, last) by what that layer needs
    for kind, *numbers in reversed(layers):
        if kind == "conv":
            kernel, stride, padding = numbers
            first, last = stride * first - padding, stride * last - padding + kernel - 1
        else:
            (factor,) = numbers
            first, last = first // factor, last // factor
    return first, last
    ### END SOLUTION


# %% tags=["check"]
def seen_one_by_one(layers, first, last):
    wanted = set(range(first, last + 1))
    for kind, *numbers in reversed(layers):
        if kind == "conv":
            wanted = {numbers[1] * i - numbers[2] + u for i in wanted for u in range(numbers[0])}
        else:
            wanted = {i // numbers[0] for i in wanted}
    return min(wanted), max(wanted)


for layers in (
    [("conv", 3, 1, 1)],
    [("conv", 3, 2, 1)],
    [("conv", 7, 2, 3), ("conv", 3, 2, 1), ("conv", 3, 1, 1)],
    [("conv", 3, 2, 1), ("conv", 3, 1, 1), ("up", 2), ("conv", 3, 1, 1)],
    [("conv", 3, 2, 1), ("up", 4), ("conv", 5, 1, 2)],
):
    for cells in ((0, 0), (5, 5), (3, 6)):
        found, expected = seen(layers, *cells), seen_one_by_one(layers, *cells)
        assert tuple(found) == expected, (
            f"{layers}, outputs {cells[0]} to {cells[1]}: {found}, position by position it is {expected}. Begin "
            "with the last layer; a convolution needs S * first - P to S * last - P + K - 1; up divides, rounded down"
        )
print("intervals, from the output back")

# %% [markdown]
# The widest way through our network goes down to stage3 and back. **Predict** how many of the pixels of a 64-pixel
# image a cell of the heads sees.

# %%
ENCODER = {
    "stem": [("conv", 3, 2, 1)],
    "stage1": [("conv", 3, 2, 1), ("conv", 3, 1, 1)],
    "stage2": [("conv", 3, 2, 1), ("conv", 3, 1, 1)],
    "stage3": [("conv", 3, 2, 1), ("conv", 3, 1, 1)],
}
DECODER = {
    "smooth2": [("up", 2), ("conv", 3, 1, 1)],
    "smooth1": [("up", 2), ("conv", 3, 1, 1)],
    "heads": [("conv", 3, 1, 1), ("conv", 1, 1, 0)],
}
chain, stride, fields = [], 1, {}
for name, layers in (ENCODER | DECODER).items():
    chain = chain + layers
    for kind, *numbers in layers:
        stride = stride * numbers[1] if kind == "conv" else stride // numbers[0]
    fields[name] = seen(chain, 96 // stride, 96 // stride)
    start, end = fields[name]
    print(
        f"{name:8s} stride {stride:2d}: the cell at pixel 96 sees {start:3d} to {end:3d}, {end - start + 1:3d} pixels"
    )

# %% [markdown]
# Now **measure** it. Give every convolution equal positive weights, so that nothing cancels and no relu closes; send a
# gradient back from one cell; see which pixels it reaches. Winograd's convolution (03) leaves rounding dust of
# $10^{-16}$ in its tiles where there should be zeros, so anything below $10^{-12}$ of the largest counts as nothing.

# %%
SIZE = 192
averaging = Network(CLASSES, np.random.default_rng(0)).astype(np.float64).eval()
for _, layer in averaging.named_modules():
    if isinstance(layer, Conv2d):
        layer.weight.data[...] = 1 / layer.weight.data[0].size
picture = Tensor(np.ones((1, SIZE, SIZE, 3)), requires_grad=True)
heatmap = averaging(picture)["hm"]
cell = 96 // 4
dy = np.zeros(heatmap.shape)
dy[0, cell, cell, 0] = 1
heatmap.backward(dy)
reached = picture.grad[0].sum(axis=2)
reached[reached < 1e-12 * reached.max()] = 0
measured = np.flatnonzero(reached.any(axis=1))[[0, -1]]
print(f"computed {fields['heads']}, measured {tuple(int(i) for i in measured)}")
assert tuple(measured) == fields["heads"], "the gradient reaches exactly the pixels that were computed"

# %%
sample = Shapes(1, size=SIZE, seed=3)[0]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained", sharey=True)
left.imshow(sample.image)
for k, name in enumerate(("stem", "stage1", "stage2", "stage3", "heads")):
    first, last = fields[name]
    side, colour = last - first + 1, "white" if k % 2 else COLOURS[k]
    square = {"edgecolor": colour, "linestyle": DASHES[k % 4], "linewidth": 2, "label": f"{name}, {side}"}
    left.add_patch(plt.Rectangle((first - 0.5,) * 2, side, side, fill=False, **square))
left.legend(loc="lower right", fontsize=8, facecolor="0.25", labelcolor="white", framealpha=0.9)
left.set(title="what a cell sees, pixels", xlabel="column, pixels", ylabel="row, pixels", xlim=(-0.5, SIZE - 0.5))
drawn = right.imshow(np.sqrt(reached / reached.max()), cmap="cividis")
first, last = fields["heads"]
right.add_patch(plt.Rectangle((first - 0.5,) * 2, side, side, fill=False, edgecolor="white", linestyle="--"))
right.set(title="what reaches the image from one cell", xlabel="column, pixels")
figure.colorbar(drawn, ax=right, label="root of the weight, largest = 1", shrink=0.85)
show(
    figure,
    alt="Nested squares of the layers' fields over a drawing; the measured weight of each pixel, most in the middle.",
)

# %%
inner = np.sort(reached.ravel())[::-1]
enough = int(np.searchsorted(inner.cumsum(), 0.5 * inner.sum())) + 1
share = enough / (np.ptp(fields["heads"]) + 1) ** 2
print(f"half of the weight lies on {enough} pixels, {100 * share:.1f} % of the field")
assert share < 0.1, "the weight is far from evenly spread"

# %% [markdown]
# A field larger than the image is not wasted: a cell's weight gathers in its middle, as in notebook 03. With these
# equal weights half of it lies on a few per cent of the field.
#
# ## 6 · The prior
#
# Before the first step the last weights are small, so all heatmap logits are near the bias of the last layer. With bias
# 0 every cell says $\hat Y = \sigma(0) = 0.5$: "half sure of every class, everywhere". Nearly all cells are background,
# so the first steps of training are spent on saying no a thousand times over.
#
# Start instead from what is true of nearly every cell: an object is rare. Choose the bias $b$ so that every cell begins
# with the **prior** probability $\pi$:
#
# $$\sigma(b) = \frac{1}{1 + e^{-b}} = \pi \;\Longleftrightarrow\; e^{-b} = \frac{1 - \pi}{\pi} \;\Longleftrightarrow\;
# \boxed{\,b = -\ln\frac{1 - \pi}{\pi}\,} \qquad \text{(E10)}$$
#
# The paper takes $\pi = 0.1$ (§5, via RetinaNet). **Predict** the sign of $b$. **Write** E10.


# %% tags=["exercise", "derives-E10"]
def prior_bias(prior):
    """E10: return the bias b for which sigmoid(b) = prior."""
    ### BEGIN SOLUTION hint: solve sigmoid(b) = prior for b; a rare thing has a negative logit
    return -math.log((1 - prior) / prior)
    ### END SOLUTION


# %% tags=["check"]
for prior in (0.01, 0.1, 0.5, 0.9):
    b = prior_bias(prior)
    assert math.isclose(1 / (1 + math.exp(-b)), prior, rel_tol=1e-9), (
        f"prior {prior}: b = {b:.4f} gives sigmoid(b) = {1 / (1 + math.exp(-b)):.4f}; natural logarithm, and the sign?"
    )
    assert abs(b - init.prior_bias(prior)) < 1e-12, f"prior {prior}: the package has {init.prior_bias(prior)}"
print(f"b = {prior_bias(0.1):.4f} for a prior of 0.1")

# %% [markdown]
# ## 7 · The first loss, before it happens
#
# Whoever knows what the first loss should be finds many mistakes in the first second. The heatmap loss is E4;
# notebook 08 derives it. With $N$ objects and targets $Y$, which are 1 at the objects' cells and fall off around them:
#
# $$L_k = -\frac1N \sum \begin{cases} (1 - \hat Y)^2 \ln \hat Y & \text{where } Y = 1\\
# (1 - Y)^4\, \hat Y^2 \ln(1 - \hat Y) & \text{elsewhere}\end{cases}$$
#
# At the start $\hat Y = \pi$ in every cell. Put it in: the loss depends on nothing but the targets. **Write** it.


# %% tags=["exercise"]
def expected_first_loss(heatmap, prior):
    """Return L_k for targets (B, H, W, C) when every cell answers `prior`."""
    ### BEGIN SOLUTION hint: one term for the N cells with Y = 1, one for the others, weighted by (1 - Y)^4; divide by N
    objects = (heatmap == 1).sum()
    at_objects = objects * (1 - prior) ** 2 * math.log(prior)
    elsewhere = ((1 - heatmap[heatmap < 1]) ** 4).sum() * prior**2 * math.log(1 - prior)
    return -(at_objects + elsewhere) / objects
    ### END SOLUTION


# %% tags=["check"]
blank = np.zeros((1, 4, 4, 2))
blank[0, 1, 1, 0] = 1
by_hand = -(0.81 * math.log(0.1) + 31 * 0.01 * math.log(0.9))  # one object, 31 cells of background
found = expected_first_loss(blank, 0.1)
assert math.isclose(found, by_hand, rel_tol=1e-9), f"one object, 31 empty cells: {found:.6f}, by hand {by_hand:.6f}"
soft = np.random.default_rng(2).uniform(0, 0.9, (2, 8, 8, 3))
soft[0, 2, 3, 1] = soft[1, 5, 5, 0] = soft[1, 1, 6, 2] = 1
for prior in (0.1, 0.5):
    logits = np.full(soft.shape, -math.log((1 - prior) / prior))
    found, expected = expected_first_loss(soft, prior), float(losses.focal_loss.raw(logits, soft)[0])
    assert math.isclose(found, expected, rel_tol=1e-6), (
        f"prior {prior}: {found:.6f}, the package's loss of such a network is {expected:.6f}. Is (1 - Y)^4 there, is "
        "the sum divided by the number of objects and not of cells?"
    )
    assert math.isclose(found, losses.expected_first_loss(soft, prior), rel_tol=1e-6), (
        "the package expects another loss"
    )
print("the first loss is known beforehand")

# %% [markdown]
# For COCO, 80 classes on 128 × 128 cells with seven objects, what would you expect? And without the prior? The values
# below leave out the Gaussians around the objects, which lower them a little.

# %%
coco = np.zeros((1, 128, 128, 80), np.float32)
coco[0, np.arange(7) * 15 + 10, np.arange(7) * 15 + 10, np.arange(7)] = 1
exact, rounded, none = (expected_first_loss(coco, p) for p in (0.1, 1 / (1 + math.exp(2.19)), 0.5))
print(f"prior 0.1: {exact:.1f}   b rounded to -2.19, as released: {rounded:.1f}   without a prior: {none:,.0f}")
assert abs(exact - 199.1) < 0.5 and abs(rounded - 203.1) < 0.5 and abs(none - 32447) < 50, "as computed by hand"

# %% [markdown]
# Keep these in mind: about 200 is healthy, about 32,000 is a forgotten prior. Now for our own batch: four images with a
# few shapes each. The targets come from the package; notebook 07 makes them.

# %%
data = Shapes(4, size=64, seed=0, objects=(1, 4), scale=(0.2, 0.45))
samples = [data[i] for i in range(4)]
pixels = np.stack([sample.image for sample in samples]).astype(np.float32) / 255
images = ((pixels - pixels.mean(axis=(0, 1, 2))) / pixels.std(axis=(0, 1, 2))).astype(np.float32)
encoded = [encode(s.annotation.boxes, s.annotation.labels, CLASSES, 16, 16) for s in samples]
targets = Targets(*(np.stack(field) for field in zip(*encoded, strict=True)))


def new_network(seed, prior=0.1):
    rng = np.random.default_rng(seed)
    network = Network(CLASSES, rng)
    network.hm[2].bias.data[:] = prior_bias(prior)  # E10; 0 for a prior of 0.5
    for head in (network.wh, network.reg):  # sizes and offsets begin near 0
        head[2].weight.data = init.normal(head[2].weight.shape, rng, 0.001)
        head[2].bias.data[:] = 0
    return network


for prior in (0.1, 0.5):
    expected = expected_first_loss(targets.heatmap.astype(float), prior)
    for seed in range(3):
        _, parts = losses.detection_loss(new_network(seed, prior)(Tensor(images)), targets)
        found = parts["heatmap"].item()
        off = found / expected - 1
        print(f"prior {prior}, seed {seed}: heatmap loss {found:7.3f}, expected {expected:7.3f} ({100 * off:+.1f} %)")
        assert abs(off) < 0.1, "the first loss is not what the bias promises: look at the last layer's bias and weights"

# %% [markdown]
# The small differences come from the last layers' random weights. If this check fails in your own project, stop there
# and
# look at the bias, at the targets and at the division by $N$.
#
# ## 8 · Adam by hand
#
# Plain gradient descent, $\theta \leftarrow \theta - \eta g$, takes large steps where gradients are large. How
# different are they in one network? Look at the first step.

# %%
network = new_network(seed=0)
losses.detection_loss(network(Tensor(images)), targets)[0].backward()
sizes = {key: math.sqrt((p.grad**2).mean()) for key, p in network.named_parameters()}
for key in sorted(sizes, key=sizes.get)[:2] + sorted(sizes, key=sizes.get)[-2:]:
    print(f"{key:22s} root mean square of its gradient {sizes[key]:.1e}")
assert max(sizes.values()) > 100 * min(sizes.values()), "gradients differ by orders of magnitude"

# %% [markdown]
# No learning rate suits them all. Adam (Kingma and Ba, 2015) divides each parameter's step by the usual size of its own
# gradient. It keeps two running means, of $g$ and of $g^2$:
#
# $$m \leftarrow \beta_1 m + (1 - \beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2$$
#
# Both begin at 0, so they are too small at first. At step $t = 1, 2, \dots$ they hold the fractions $1 - \beta_1^t$ and
# $1 - \beta_2^t$ of a full mean. Divide by these, then step:
#
# $$\hat m = \frac{m}{1 - \beta_1^t}, \qquad \hat v = \frac{v}{1 - \beta_2^t}, \qquad
# \theta \leftarrow \theta - \eta\, \frac{\hat m}{\sqrt{\hat v} + \epsilon}$$
#
# **Predict.** How large is the very first step of a parameter with gradient 0.001, and with gradient 1000?
#
# **Write** the update.


# %% tags=["exercise"]
def adam_step(theta, gradient, mean, variance, step, lr, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """Return the new theta, mean and variance; step counts from 1."""
    ### BEGIN SOLUTION hint: update both means; a step uses them divided by 1 - beta^step; return them undivided
    mean = beta1 * mean + (1 - beta1) * gradient
    variance = beta2 * variance + (1 - beta2) * gradient**2
    unbiased_mean, unbiased_variance = mean / (1 - beta1**step), variance / (1 - beta2**step)
    theta = theta - lr * unbiased_mean / (np.sqrt(unbiased_variance) + epsilon)
    ### END SOLUTION
    return theta, mean, variance


# %% tags=["check"]
g_check = np.array([1e-3, -1.0, 1e3])
moved, m_check, v_check = adam_step(np.zeros(3), g_check, np.zeros(3), np.zeros(3), 1, lr=0.01)
assert np.allclose(moved, -0.01 * np.sign(g_check), rtol=1e-4), (
    f"the first step is lr against the gradient's sign, whatever its size; you have {moved}. Are both means corrected?"
)
assert np.allclose(m_check, 0.1 * g_check) and np.allclose(v_check, 0.001 * g_check**2), (
    "return the means as they are kept, without the correction: it is made anew in each step"
)
rng = np.random.default_rng(3)
parameter = Parameter(rng.standard_normal(6))
optimiser = Adam([("theta", parameter)], lr=0.05, epsilon=1e-3)
theta_check, m_check, v_check = parameter.data.copy(), np.zeros(6), np.zeros(6)
for step in range(1, 8):
    g_check = rng.standard_normal(6) * 10.0 ** np.arange(-3, 3)
    parameter.grad = g_check.copy()
    optimiser.step()
    theta_check, m_check, v_check = adam_step(theta_check, g_check, m_check, v_check, step, lr=0.05, epsilon=1e-3)
    assert np.abs(theta_check - parameter.data).max() < 1e-10, (
        f"step {step}: off by {np.abs(theta_check - parameter.data).max():.2g} from the package. Which beta belongs to "
        "which mean, is epsilon added after the root, does the correction use this step?"
    )
print("Adam agrees with the package over seven steps")

# %% [markdown]
# The first step is $\eta$ for every parameter, whatever its gradient. That is Adam's strength, and why its learning
# rate says how far parameters move per step.
#
# ## 9 · Overfit one batch
#
# The best test of a network, a loss and an optimiser together: can it learn four images by heart? If not, no data set
# will help. The loss E7 adds three parts; 08 and 09 derive them.

# %%
STEPS, FIRST = (25, 10) if FAST else (100, 15)


def train(seed, steps, prior=0.1, lr=4e-3):
    """Return the network, and (total, heatmap, size, offset) losses of each step."""
    network, history = new_network(seed, prior), []
    moments = {key: (np.zeros_like(p.data), np.zeros_like(p.data)) for key, p in network.named_parameters()}
    for step in range(1, steps + 1):
        loss, parts = losses.detection_loss(network(Tensor(images)), targets)
        network.zero_grad()
        loss.backward()
        for key, parameter in network.named_parameters():
            parameter.data, *moments[key] = adam_step(parameter.data, parameter.grad, *moments[key], step, lr)
        history.append([loss.item()] + [parts[name].item() for name in ("heatmap", "size", "offset")])
    return network, np.array(history)


network, history = train(seed=0, steps=STEPS)
_, without = train(seed=0, steps=FIRST, prior=0.5)
first, last = history[0], history[-1]
print(f"first: total {first[0]:.3f}, heatmap {first[1]:.3f};  step {STEPS}: total {last[0]:.3f}, heatmap {last[1]:.4f}")
assert last[0] < first[0] / 10, "one batch must be learnt: the total falls to less than a tenth"
assert last[1] < 0.1, "and its heatmaps are nearly right"

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
for k, name in enumerate(("total", "heatmap", "size", "offset")):
    left.plot(history[:, k], color=COLOURS[k], linestyle=DASHES[k], label=name)
left.set(yscale="log", xlabel="step", ylabel="loss", title="one batch of four images")
left.legend(frameon=False, fontsize=9, ncols=2)
right.plot(history[:FIRST, 1], color=COLOURS[0], marker="o", markersize=4, label="prior 0.1")
right.plot(without[:, 1], color=COLOURS[1], linestyle="--", marker="s", markersize=4, label="no prior (bias 0)")
for prior, colour in ((0.1, COLOURS[0]), (0.5, COLOURS[1])):
    expected = expected_first_loss(targets.heatmap.astype(float), prior)
    right.axhline(expected, color=colour, linewidth=0.8, linestyle=":")
    right.text(FIRST - 0.7, expected * 1.12, f"expected at first: {expected:.1f}", ha="right", fontsize=8)
right.set(
    yscale="log",
    xlabel="step",
    ylabel="heatmap loss",
    title=f"the first {FIRST} steps",
    ylim=(None, 150),
    xticks=range(0, FIRST, 2),
)
right.legend(frameon=False, fontsize=9, loc="lower left")
show(
    figure,
    alt="Left: all losses fall. Right: the heatmap loss starts at 2 with the prior, at 63 without, both as computed.",
)

# %%
network.train()  # the batch's own statistics: what was learnt by heart
predicted = ops.sigmoid(network(Tensor(images))["hm"]).data
figure, axes = plt.subplots(3, 4, figsize=(8, 6.1), layout="constrained")
for i, (upper, middle, lower) in enumerate(axes.T):
    upper.imshow(pixels[i])
    for x1, y1, x2, y2 in samples[i].annotation.boxes:
        box = plt.Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=1.5)
        upper.add_patch(box)
    middle.imshow(targets.heatmap[i].max(axis=2), cmap="cividis", vmin=0, vmax=1)
    drawn = lower.imshow(predicted[i].max(axis=2), cmap="cividis", vmin=0, vmax=1)
for axis in axes.ravel():
    axis.set_xticks([])
    axis.set_yticks([])
for axis, label in zip(axes[:, 0], ("image, boxes", "target Y", "predicted Ŷ"), strict=True):
    axis.set_ylabel(label)
figure.colorbar(drawn, ax=axes[1:], label="largest over the classes", shrink=0.7)
show(
    figure,
    alt="Four images with boxes, their target heatmaps, and the predicted ones, which peak at the same cells.",
)

at_objects = predicted[targets.heatmap == 1]
elsewhere = predicted[targets.heatmap == 0]
print(
    f"at the {len(at_objects)} objects: {at_objects.min():.2f} and more; far from any: {elsewhere.max():.2f} and less"
)
assert at_objects.min() > 0.5 > elsewhere.max(), "every object is found, and nothing where nothing is"

# %% [markdown]
# $Y$ has a halo around each object, $\hat Y$ has none. The loss does not ask for the halo, it only forgives it: the
# factor $(1-Y)^4$. Notebook 08 looks at that.
#
# ## Break it
#
# The same network, the same batch, the same Adam, written by someone in a hurry. It learns at first. Compare the norm
# of the gradients with ours, step by step.


# %%
def gradient_norms(training_step, seed, steps):
    """Return the losses, and the norm of all gradients, of each step."""
    network, losses_seen, norms = new_network(seed), [], []
    optimiser = Adam(network.named_parameters(), lr=4e-3)
    for _ in range(steps):
        losses_seen.append(training_step(network, optimiser))
        norms.append(math.sqrt(sum(float((p.grad**2).sum()) for p in network.parameters())))
    return losses_seen, norms


def our_step(network, optimiser):
    loss, _ = losses.detection_loss(network(Tensor(images)), targets)
    network.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def their_step(network, optimiser):
    loss, _ = losses.detection_loss(network(Tensor(images)), targets)
    loss.backward()
    optimiser.step()
    return loss.item()


SEEDS = (0,) if FAST else (0, 1, 2)
runs = {
    (name, seed): gradient_norms(step, seed, 18 if FAST else 25)
    for seed in SEEDS
    for name, step in (("ours", our_step), ("theirs", their_step))
}
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for (name, seed), values in runs.items():
    k = ("ours", "theirs").index(name)
    for axis, curve in zip(axes, values, strict=True):
        axis.plot(curve, color=COLOURS[k], linestyle=DASHES[k], linewidth=1.3, label=name if seed == 0 else None)
axes[0].set(yscale="log", xlabel="step", ylabel="total loss")
axes[1].set(yscale="log", xlabel="step", ylabel="norm of the gradients")
axes[0].legend(frameon=False)
show(
    figure,
    alt="Losses and gradient norms of two loops: in theirs the norm stays large, and the loss falls and then stops.",
)
ends = {key: np.array(values)[:, -5:].mean(axis=1) for key, values in runs.items()}  # of the last five steps
for (name, seed), (loss, norm) in ends.items():
    print(f"seed {seed}, {name:6s}: in the last five steps loss {loss:.3f}, norm of the gradients {norm:.1f}")

# %% [markdown]
# What is missing, and why does the loss fall at all?
#
# <details><summary>Answer</summary>
#
# `their_step` never calls `zero_grad`. `backward` *adds* to `.grad` (notebook 01: a parameter may be used more than
# once), so every step uses the sum of all gradients so far. Early on they all point the same way, and Adam divides by
# their size anyway, so the loss falls. Later the old gradients outvote the new one: the parameters run past the minimum
# and cannot turn, like a ball with no friction. The sign is a gradient norm that stays high while the loss goes down.
# Print it once in every new project.
#
# </details>

# %%
for seed in SEEDS:
    (our_loss, our_norm), (their_loss, their_norm) = ends["ours", seed], ends["theirs", seed]
    assert their_norm > 3 * our_norm, "their gradients are a sum that does not get smaller"
    assert their_loss > 2 * our_loss, "and their loss stays behind"

# %% [markdown]
# ## Summary
#
# - An encoder to stride 16, a decoder back to $R = 4$, and three heads with $C + 4$ maps: with the same weights it
#   gives the package's numbers.
# - Weights sit where channels are many, work where maps are large. A table says both before anything is trained.
# - The field of a cell is found by walking intervals back, and measured by a gradient.
# - E10, $b = -\ln\frac{1-\pi}{\pi}$, starts every cell at the prior; the first loss then follows from the targets
#   alone.
# - Adam divides each step by the usual size of the gradient. One batch learnt by heart says that all parts fit.
#
# ## In the package
#
# - `minicenternet.backbones.small.Small`: encoder and decoder; `minicenternet.backbones.resnet.BasicBlock`: the block;
#   `minicenternet.model.CenterNet`: with the heads.
# - `minicenternet.nn.init.prior_bias`: E10. `minicenternet.points.losses.expected_first_loss`: the first loss, which
#   training compares.
# - `minicenternet.nn.summary.summarise`: the table, with memory. `minicenternet.optim.Adam`: the optimiser.
