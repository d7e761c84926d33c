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
# # 04 · Batch normalisation
#
# - **Goal**: derive batch normalisation forwards and backwards, in training and in evaluation, and fold it away.
# - **You need**: notebooks 00, 01 and 02. Notebook 03 for the convolution in section 7.
# - **Minutes**: 75 to read and work / runs in about 7 s.
# - **Equations**: none of E1 to E10. The ones that matter here: $\hat x = (x - \mu)/\sqrt{\sigma^2 + \epsilon}$ and its
#   closed backward.
# - **What you should see**: twenty layers whose signal vanishes or explodes without normalisation and stays within a
#   factor of 1.5 with it; a variance that loses all its digits, and one that keeps them; five wrong backwards, of which
#   a loss that sums the output sees one; and a convolution that does the work of two layers, equal to $10^{-12}$.

# %%
import functools
import os

import matplotlib.pyplot as plt
import numpy as np

from minicenternet import CenterNet, autograd, ops
from minicenternet.data import Shapes
from minicenternet.draw import COLOURS, show
from minicenternet.nn.folding import fold
from minicenternet.nn.layers import BatchNorm2d, Conv2d, Sequential
from minicenternet.nn.module import watching
from minicenternet.ops.batch_norm import statistics as package_statistics

FAST = os.environ.get("MINICENTERNET_FAST") == "1"

# %% [markdown]
# ## 1. The signal by depth
#
# A deep network multiplies by one matrix after another. If each makes the signal a little larger, it grows like a
# power. The matrices begin at random, and theory gives the right size for a ReLU layer of $n$ inputs: entries of
# variance $2/n$ keep the size of the signal (He et al. 2015). But training changes the matrices, and nothing keeps
# them right.
#
# Twenty layers, 64 wide, with matrices that are too small by 20 %, right, or too large by 25 %.
#
# **Predict** the size of the signal after twenty layers, as a multiple of the first.


# %%
def sizes_by_depth(gain, normalised):
    """Return the root mean square of the signal after each of twenty layers."""
    rng = np.random.default_rng(0)
    h = rng.standard_normal((512, 64))
    sizes = []
    for _ in range(20):
        h = h @ (gain * rng.standard_normal((64, 64)) * np.sqrt(2 / 64))
        if normalised:
            h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
        h = np.maximum(h, 0)
        sizes.append(np.sqrt(np.mean(h**2)))
    return np.array(sizes)


GAINS = {"20 % too small": 0.8, "right": 1.0, "25 % too large": 1.25}
plain = {name: sizes_by_depth(gain, normalised=False) for name, gain in GAINS.items()}
normalised = {name: sizes_by_depth(gain, normalised=True) for name, gain in GAINS.items()}
for name, gain in GAINS.items():
    change, power = plain[name][-1] / plain[name][0], gain**19
    print(f"{name:15} last layer / first: {change:8.4f} (theory: {power:8.4f}),", end=" ")
    print(f"normalised: {normalised[name][-1] / normalised[name][0]:.4f}")
    assert 1 / 3 < change / power < 3, "the plain signal should change like a power of the gain"
    assert normalised[name].max() / normalised[name].min() < 1.5, "normalised, the signal should keep its size"

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained", sharey=True)
for axes, sizes, title in zip(panels, (plain, normalised), ("without", "with batch normalisation"), strict=True):
    for (name, line), style, colour in zip(sizes.items(), (":", "-", "--"), COLOURS, strict=False):
        axes.semilogy(np.arange(1, 21), line, linestyle=style, color=colour, linewidth=2, label=f"matrices {name}")
    axes.set(xlabel="layer", title=title, xticks=[1, 5, 10, 15, 20])
    axes.grid(color="0.9")
panels[0].set_ylabel("size of the signal (root mean square)")
panels[0].legend(loc="upper left", fontsize=8)
show(
    figure,
    alt="Size of the signal by layer. Without normalisation three lines spread like a fan, to about a hundredth and a "
    "hundred times; with it the three lines lie on each other, flat.",
)

# %% [markdown]
# A gain of 1.25 is harmless once; nineteen more layers make $1.25^{19} \approx 69$ of it, and the run is of that order.
# Batch normalisation (Ioffe and
# Szegedy 2015) measures the signal and divides by what it measured, after every layer, at every step:
#
# $$ \mu = \frac{1}{n}\sum_i x_i, \qquad \sigma^2 = \frac{1}{n}\sum_i (x_i - \mu)^2, \qquad
#    \hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}}, \qquad y_i = \gamma \hat x_i + \beta . $$
#
# In a convolutional network maps are $(B, H, W, C)$. Each channel is normalised by itself, over all $n = B H W$ pixels
# of the batch. $\gamma$ and $\beta$ are learnt, one pair per channel, so that a layer can have another size if it needs
# one. $\epsilon = 10^{-5}$ keeps a constant channel from a division by zero.
#
# ## 2. A variance that does not cancel
#
# Every textbook has $\sigma^2 = \text{mean}(x^2) - \mu^2$. It needs only one pass over the data.
#
# **Predict**: the pixels of a channel are float32 (about 7 digits), with $\sigma = 1$. What does the formula give if
# their mean is 10? 1,000? 10,000?

# %%
noise = np.random.default_rng(1).standard_normal((4, 32, 32, 1))
for level in (10, 100, 1000, 10_000):
    pixels = (level + noise).astype(np.float32)
    one_pass = (pixels * pixels).mean() - pixels.mean() ** 2
    print(
        f"mean {level:6}: mean of squares - square of mean {one_pass:8.4f}, true {pixels.astype(np.float64).var():.4f}"
    )

# %% [markdown]
# At a mean of 1,000, $\text{mean}(x^2)$ and $\mu^2$ are both about 1,000,000. With 7 digits they are known to about
# $\pm 0.06$, and their difference is 1. The digits that matter were rounded away before the subtraction. In general
# the relative error is about $\epsilon_{32}\, \mu^2/\sigma^2$ with $\epsilon_{32} = 6 \cdot 10^{-8}$. The result can
# be 0, or even negative, and the root of that is NaN.
#
# ### Exercise 1: statistics
#
# Subtract first, then square.


# %% tags=["exercise"]
def statistics(x):
    """Return mean and (biased) variance of each channel of x (B, H, W, C): two arrays (C,)."""
    ### BEGIN SOLUTION hint: axes (0, 1, 2); the mean of the squares of x - mean
    mean = x.mean((0, 1, 2))
    return mean, ((x - mean) ** 2).mean((0, 1, 2))
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(2)
x = rng.standard_normal((4, 8, 8, 3)) * [1, 2, 5] + [0, 3, -1]
mean, variance = statistics(x)
assert np.shape(mean) == np.shape(variance) == (3,), (
    f"one number per channel: expected shape (3,), got {np.shape(mean)}"
)
for c in range(3):
    values = x[..., c].ravel().tolist()
    middle = sum(values) / len(values)
    expected = sum((value - middle) ** 2 for value in values) / len(values)
    assert np.isclose(mean[c], middle), f"channel {c}: its mean is {middle:.4f}, not {mean[c]:.4f}"
    assert np.isclose(variance[c], expected, rtol=1e-6), (
        f"channel {c}: the mean square distance is {expected:.6f}, you give {variance[c]:.6f} (divide by n, not n - 1)"
    )
shifted = (x + 2000).astype(np.float32)
exact = shifted.astype(np.float64).var((0, 1, 2))
assert np.allclose(statistics(shifted)[1], exact, rtol=1e-3), (
    f"x + 2000 in float32: the variances are {exact.round(3)}, you give {statistics(shifted)[1]}: subtract, THEN square"
)

# %%
ratios = np.logspace(0, 4, 9 if FAST else 33)
draws = np.random.default_rng(3).standard_normal((8, 1, 64, 64, 1))
FORMULAS = {
    "mean of squares - square of mean": lambda x: (x * x).mean() - x.mean() ** 2,
    "subtract, then square (yours)": lambda x: statistics(x)[1][0],
    "the package": lambda x: package_statistics(x)[1][0],
}
variance_errors = {}  # root mean square over the draws, for each ratio
for name, formula in FORMULAS.items():
    maps = [[(ratio + noise).astype(np.float32) for noise in draws] for ratio in ratios]
    relative = [[formula(x) / x.astype(np.float64).var() - 1 for x in row] for row in maps]
    variance_errors[name] = np.sqrt(np.mean(np.square(relative), axis=1))
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
for (name, errors), style, colour in zip(variance_errors.items(), ("-", "--", ":"), COLOURS, strict=False):
    axes.loglog(ratios, errors, linestyle=style, color=colour, linewidth=2, label=name)
axes.loglog(ratios, 2.0**-24 * ratios**2, color="0.5", linewidth=0.8, label=r"$\epsilon_{32}\,\mu^2/\sigma^2$")
axes.set(xlabel=r"$\mu/\sigma$", ylabel="relative error of the variance", ylim=(1e-9, 30))
axes.grid(color="0.9")
axes.legend(loc="upper left", fontsize=9)
show(
    figure,
    alt="Relative error of a float32 variance against mean over standard deviation. The one-pass formula climbs along "
    "the predicted line and passes 1 below 10,000; the other two stay below 1e-5 throughout.",
)
assert max(variance_errors["subtract, then square (yours)"]) < 1e-4 and max(variance_errors["the package"]) < 1e-4
assert variance_errors["mean of squares - square of mean"][-1] > 0.1

# %% [markdown]
# The dotted line falls at $\mu = 4\sigma$: below that, the package takes the one-pass formula, which then costs at most
# 4 of 24 bits, and above it subtracts first.
#
# ### In pieces
#
# Two passes over a map that does not fit the cache cost twice the memory traffic. The package goes over blocks of rows
# that do fit, on all cores, and so it needs to put the statistics of blocks together. So does training on many GPUs.
#
# Keep for each block three things: the count $n$, the mean $\mu$, and $Q = \sum (x - \mu)^2$.
#
# ### Exercise 2: combine
#
# The mean of the whole is the weighted mean. For $Q$, measure each block from the common mean:
# $\sum_{i \in a} (x_i - \mu)^2 = Q_a + n_a (\mu_a - \mu)^2$. Add both blocks and simplify (Chan et al. 1979):
#
# $$ Q = Q_a + Q_b + (\mu_a - \mu_b)^2\, \frac{n_a n_b}{n_a + n_b} . $$


# %% tags=["exercise"]
def combine(a, b):
    """Return (count, mean, Q) of two blocks together, each given as (count, mean, Q); mean and Q are (C,)."""
    ### BEGIN SOLUTION hint: the means weighted by their counts; Q_a + Q_b and what the distance of the means adds
    (count_a, mean_a, squares_a), (count_b, mean_b, squares_b) = a, b
    count = count_a + count_b
    mean = (count_a * mean_a + count_b * mean_b) / count
    return count, mean, squares_a + squares_b + (mean_a - mean_b) ** 2 * count_a * count_b / count
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(4)
rows = rng.standard_normal((40, 3)) + np.linspace(0, 9, 40)[:, None]  # the mean drifts from row to row
blocks = [rows[:5], rows[5:8], rows[8:30], rows[30:]]
parts = [(len(block), block.mean(0), ((block - block.mean(0)) ** 2).sum(0)) for block in blocks]
count, mean, squares = functools.reduce(combine, parts)
assert count == 40, f"5 + 3 + 22 + 10 values are 40, not {count}"
assert np.allclose(mean, rows.mean(0)), (
    f"the mean of all is {rows.mean(0).round(4)}, not {mean.round(4)}: weigh by counts"
)
expected = ((rows - rows.mean(0)) ** 2).sum(0)
assert np.allclose(squares, expected), (
    f"Q of all is {expected.round(3)}, not {np.round(squares, 3)}: the distance of the means, SQUARED, counts as well"
)

# %% [markdown]
# ## 3. Backwards
#
# Take one channel as a vector $x$ of $n$ pixels. We have $\partial L/\partial y_i = dy_i$ and want $dx_j$.
#
# The outer map is easy: $y = \gamma \hat x + \beta$ gives $d\gamma = \sum_i dy_i\, \hat x_i$, $d\beta = \sum_i dy_i$
# and $d\hat x_i = \gamma\, dy_i$.
#
# Then $\hat x_i = (x_i - \mu)/s$ with $s = \sqrt{\sigma^2 + \epsilon}$. **Predict**: if the pixel $x_j$ grows a little,
# which of the $\hat x_i$ change?
#
# All of them, for $x_j$ is part of $\mu$ and of $\sigma^2$. The pieces:
#
# $$ \frac{\partial \mu}{\partial x_j} = \frac{1}{n}, \qquad
#    \frac{\partial \sigma^2}{\partial x_j} = \frac{2}{n}(x_j - \mu), \qquad
#    \frac{\partial s}{\partial x_j} = \frac{1}{2s} \cdot \frac{2}{n}(x_j - \mu) = \frac{\hat x_j}{n} . $$
#
# (In $\partial \sigma^2$ the dependence through $\mu$ drops out, since $\sum_i (x_i - \mu) = 0$.) By the quotient rule
#
# $$ \frac{\partial \hat x_i}{\partial x_j}
#    = \frac{1}{s}\left(\delta_{ij} - \frac{1}{n}\right) - \frac{x_i - \mu}{s^2} \cdot \frac{\hat x_j}{n}
#    = \frac{1}{s}\left(\delta_{ij} - \frac{1}{n} - \frac{\hat x_i \hat x_j}{n}\right) . $$
#
# Multiply by $d\hat x_i = \gamma\, dy_i$ and sum over $i$. That is the closed backward:
#
# $$ dx_j = \frac{\gamma}{s}\left(dy_j - \text{mean}(dy) - \hat x_j\, \text{mean}(dy \cdot \hat x)\right) , $$
#
# where the means are over the $n$ pixels. No matrix of $n \times n$ is left: two means and one pass. It holds for
# any $\epsilon$, not just for a small one.
#
# ### Exercise 3: batch normalisation, both ways


# %% tags=["exercise"]
def batch_norm(x, weight, bias, epsilon=1e-5):
    """Return y (B, H, W, C), and backward: dy -> (dx, dweight, dbias). weight is γ (C,), bias is β (C,)."""
    ### BEGIN SOLUTION hint: x̂ once; every mean and sum over axes (0, 1, 2); three terms in dx
    mean, variance = statistics(x)
    s = np.sqrt(variance + epsilon)
    normal = (x - mean) / s  # x̂

    def backward(dy):
        along_one, along_x = dy.mean((0, 1, 2)), (dy * normal).mean((0, 1, 2))
        dx = weight / s * (dy - along_one - normal * along_x)
        return dx, (dy * normal).sum((0, 1, 2)), dy.sum((0, 1, 2))

    return weight * normal + bias, backward
    ### END SOLUTION


# %% tags=["check"]
def by_the_formula(x, weight, bias, epsilon):
    """Batch normalisation, one channel after the other."""
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        channel = x[..., c]
        distance = channel - channel.sum() / channel.size
        y[..., c] = weight[c] * distance / np.sqrt((distance**2).sum() / channel.size + epsilon) + bias[c]
    return y


def gradient_by_differences(x, weight, bias, epsilon, dy):
    """Return dx, entry by entry: 2 evaluations for each."""
    dx = np.empty_like(x)
    for place in np.ndindex(x.shape):
        move = np.zeros_like(x)
        move[place] = 1e-5
        above, below = (by_the_formula(x + sign * move, weight, bias, epsilon) for sign in (1, -1))
        dx[place] = np.vdot(dy, above - below) / 2e-5
    return dx


rng = np.random.default_rng(5)
x, dy = rng.standard_normal((2, 2, 3, 2, 3)) * [1, 2, 0.5] + [0, 1, 2]
weight, bias = np.array([1.5, -0.5, 2.0]), np.array([0.1, 0.2, 0.3])
for epsilon in (1e-5, 0.3):
    y, backward = batch_norm(x, weight, bias, epsilon)
    expected = by_the_formula(x, weight, bias, epsilon)
    assert np.allclose(y, expected), f"epsilon = {epsilon}: y is wrong; x̂ = (x - μ)/√(σ² + ε), then γx̂ + β"
    dx, dweight, dbias = backward(dy)
    assert np.allclose(dbias, [dy[..., c].sum() for c in range(3)]), (
        "dbias is the sum of dy over all pixels, per channel"
    )
    normal = by_the_formula(x, np.ones(3), np.zeros(3), epsilon)
    assert np.allclose(dweight, (dy * normal).sum((0, 1, 2))), "dweight is the sum of dy * x̂, with x̂, not x"
    expected = gradient_by_differences(x, weight, bias, epsilon, dy)
    assert np.allclose(dx, expected, atol=1e-7), (
        f"epsilon = {epsilon}: dx is off by up to {np.abs(dx - expected).max():.2g}; three terms? γ? s with its ε?"
    )

# %% [markdown]
# ### What the three terms do
#
# $dx$ is $\gamma\, dy/s$ after two parts of it were taken out: its mean (the part along the vector of ones) and its
# part along $\hat x$. The reason is seen without a formula. Add a constant to all pixels of a channel: $\hat x$ does
# not change. Multiply all by 2: again no change (but for $\epsilon$). A gradient never points where the function is
# constant.
#
# **Predict** the two inner products below.

# %%
rng = np.random.default_rng(6)
x, dy = rng.standard_normal((2, 4, 8, 8, 16))
y, backward = batch_norm(x, np.ones(16), np.zeros(16))
dx = backward(dy)[0]
along_ones = np.abs(dx.sum((0, 1, 2))).max() / np.abs(dx).sum()
along_x = np.abs((dx * y).sum((0, 1, 2))).max() / np.abs(dx).sum()
print(f"share of dx along ones {along_ones:.1e}, along x̂ {along_x:.1e}")
assert along_ones < 1e-12 and along_x < 1e-5

# %% [markdown]
# It follows that **the weights in front of a batch normalisation have no length that matters**. Multiply a
# convolution's weights by 10: the result stays, and the gradient becomes ten times *smaller*.

# %%
rng = np.random.default_rng(7)
features, matrix, dy = (
    rng.standard_normal((256, 1, 1, 8)),
    rng.standard_normal((8, 4)),
    rng.standard_normal((256, 1, 1, 4)),
)
found = {}
for factor in (1, 10):
    y, backward = batch_norm(features @ (factor * matrix), np.ones(4), np.zeros(4))
    found[factor] = y, np.tensordot(features, backward(dy)[0], axes=((0, 1, 2), (0, 1, 2)))
print(f"largest change of y: {np.abs(found[10][0] - found[1][0]).max():.1e}")
print(f"gradient of the weights, ratio of lengths: {np.linalg.norm(found[10][1]) / np.linalg.norm(found[1][1]):.4f}")
assert np.abs(found[10][0] - found[1][0]).max() < 1e-4
assert np.isclose(np.linalg.norm(found[10][1]) / np.linalg.norm(found[1][1]), 0.1, rtol=1e-3)

# %% [markdown]
# ## 4. Why a constant cotangent hides a bug
#
# Notebook 02 found one wrong backward that a summed loss does not see. Batch normalisation is the extreme case. Sum $y$
# over a channel: $\sum_i y_i = \gamma \sum_i \hat x_i + n\beta = n\beta$, *whatever $x$ is*. So for `dy` = 1 the true
# gradient is zero, and any formula that happens to give zero passes.
#
# Five wrong backwards. **Predict** which of them a loss `y.sum()` sees; then, which a loss `(y * y).sum() / 2` sees,
# for which `dy` = $y$, and with $\gamma = 1$, $\beta = 0$ that is $\hat x$.


# %%
def wrong_backwards(x, epsilon=1e-5):
    """Return name -> function from dy to dx, for γ = 1: the right one and five that are not."""
    mean, variance = statistics(x)
    s = np.sqrt(variance + epsilon)
    normal = (x - mean) / s

    def average(values):
        return values.mean((0, 1, 2))

    def right(dy):
        return (dy - average(dy) - normal * average(dy * normal)) / s

    return {
        "right": right,
        "returns zeros": lambda dy: 0 * dy,
        "no term along x̂": lambda dy: (dy - average(dy)) / s,
        "divided by s²": lambda dy: right(dy) / s,
        "twice too large": lambda dy: 2 * right(dy),
        "μ and σ taken as constants": lambda dy: dy / s,
    }


rng = np.random.default_rng(8)
x, v, noise = rng.standard_normal((3, 2, 6, 6, 4))
x = 3 * x + 1
ends = [by_the_formula(x + sign * 1e-5 * v, np.ones(4), np.zeros(4), 1e-5) for sign in (1, -1)]
Jv = (ends[0] - ends[1]) / 2e-5
y = by_the_formula(x, np.ones(4), np.zeros(4), 1e-5)
COTANGENTS = {"a sum: dy = 1": np.ones_like(y), "squares: dy = y": y, "random dy": noise}
gap = {
    loss: {
        name: abs(np.vdot(dy, Jv) - np.vdot(formula(dy), v)) / np.linalg.norm(Jv)
        for name, formula in wrong_backwards(x).items()
    }
    for loss, dy in COTANGENTS.items()
}
print(f"{'':26}" + "".join(f"{loss:>18}" for loss in gap))
for name in wrong_backwards(x):
    print(f"{name:26}" + "".join(f"{gap[loss][name]:18.1e}" for loss in gap))
seen = {loss: {name for name, value in gaps.items() if value > 1e-3} for loss, gaps in gap.items()}
assert seen["a sum: dy = 1"] == {"μ and σ taken as constants"}
assert seen["squares: dy = y"] == {"no term along x̂", "μ and σ taken as constants"}
assert seen["random dy"] == set(wrong_backwards(x)) - {"right"}

# %%
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
names = list(wrong_backwards(x))
for (loss, gaps), marker, colour, shift in zip(
    gap.items(), "xs^", (*COLOURS[:2], "black"), (-0.2, 0, 0.2), strict=True
):
    axes.scatter(np.maximum(list(gaps.values()), 1e-14), np.arange(6) + shift, marker=marker, color=colour, label=loss)
axes.axvline(1e-3, color="black", linestyle="--", linewidth=1)
axes.text(7e-4, -0.45, "seen to the right of this line", fontsize=9, va="center", ha="right")
axes.set_yticks(range(6), names)
axes.set(xscale="log", xlabel="relative gap between backward and differences", xlim=(2e-15, 1e4), ylim=(5.5, -0.7))
axes.legend(loc="lower left", fontsize=9)
axes.grid(color="0.9")
show(
    figure,
    alt="Gaps of six backwards under three losses, logarithmic. For a sum only the one with constant statistics lies "
    "right of the line; for squares also the one without the term along x-hat; for random dy all five wrong ones.",
)

# %% [markdown]
# The sum sees one of five. The sum of squares sees two: $dy = \hat x$ is the other direction that the backward takes
# out, and what is left of the other gaps, about $10^{-6}$, is $\epsilon/\sigma^2$. A random `dy` sees all five. A
# checker that starts its backward pass from ones passes a batch normalisation **whose gradient is zero**, and then
# nothing in front of such a layer ever learns.
#
# ## 5. Training and evaluation
#
# During training the batch itself gives $\mu$ and $\sigma^2$. When one photograph is to be looked at, there is no
# batch, and what is seen in it should not depend on what else happens to be in the batch. So the layer keeps
# *running* statistics while it trains and uses these in evaluation:
#
# $$ \text{running} \leftarrow (1 - m)\, \text{running} + m \cdot \text{batch}, \qquad m = 0.1 . $$
#
# The running variance is meant for the population, not the batch. A batch's $\sigma^2$ underestimates that on average,
# by the factor $(n-1)/n$, because $\mu$ was fitted to the same pixels. So the update uses $\sigma^2\, n/(n-1)$. (The
# normalisation itself uses $\sigma^2$. This is PyTorch's convention, and checkpoints rely on it.)
#
# ### Exercise 4: running statistics


# %% tags=["exercise"]
def update(running_mean, running_var, x, momentum=0.1):
    """Return the new running mean and variance (C,) after a batch x (B, H, W, C)."""
    ### BEGIN SOLUTION hint: momentum is the weight of the NEW value; the variance with n / (n - 1)
    mean, variance = statistics(x)
    count = x.size // x.shape[-1]
    unbiased = variance * count / (count - 1)
    return (
        (1 - momentum) * running_mean + momentum * mean,
        (1 - momentum) * running_var + momentum * unbiased,
    )
    ### END SOLUTION


# %% tags=["check"]
x = np.array([1.0, 2.0, 3.0, 6.0]).reshape(1, 2, 2, 1)  # mean 3; squared distances 4 + 1 + 0 + 9 = 14
mean, variance = update(np.array([0.0]), np.array([1.0]), x, momentum=0.25)
assert np.isclose(mean[0], 0.75), f"0.75 · 0 + 0.25 · 3 = 0.75, you give {mean[0]:.4f}: which one gets the momentum?"
assert np.isclose(variance[0], 0.75 + 0.25 * 14 / 3), (
    f"0.75 · 1 + 0.25 · 14/3 = {0.75 + 0.25 * 14 / 3:.4f}, you give {variance[0]:.4f} (14/3 is unbiased)"
)
mean, variance = np.array([7.0]), np.array([5.0])
for _ in range(20):
    mean, variance = update(mean, variance, x)
left = 0.9**20  # what is left of the start
assert np.isclose(mean[0], left * 7 + (1 - left) * 3), "after 20 equal batches 0.9**20 of the start should be left"
assert np.isclose(variance[0], left * 5 + (1 - left) * 14 / 3), "the running variance, not its root, is averaged"

# %% [markdown]
# **Predict**: the layer starts with running mean 0 and variance 1. After how many batches has it forgotten 99 % of that
# with $m = 0.1$? With $m = 0.01$? (Solve $(1 - m)^k = 0.01$.)

# %%
for momentum in (0.1, 0.01):
    print(f"m = {momentum}: {np.log(0.01) / np.log(1 - momentum):.0f} batches")

steps = 100 if FAST else 600
rng = np.random.default_rng(9)
probe = 5 + 2 * rng.standard_normal((4, 8, 8, 16))
in_training = by_the_formula(probe, np.ones(16), np.zeros(16), 1e-5)
distance = {}
for momentum in (0.1, 0.01):
    mean, variance, distance[momentum] = np.zeros(16), np.ones(16), []
    for _ in range(steps):
        in_evaluation = (probe - mean) / np.sqrt(variance + 1e-5)
        distance[momentum].append(np.sqrt(np.mean((in_evaluation - in_training) ** 2)))
        mean, variance = update(mean, variance, 5 + 2 * rng.standard_normal((4, 8, 8, 16)), momentum)
print(f"distance at the start: {distance[0.1][0]:.2f}")
print(f"after 99 batches: {distance[0.1][99]:.3f} with m = 0.1, {distance[0.01][99]:.3f} with m = 0.01")
assert distance[0.1][0] > 1 and distance[0.1][99] < 0.15 and distance[0.01][99] > 5 * distance[0.1][99]

# %%
figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
for momentum, style, colour in ((0.1, "-", COLOURS[0]), (0.01, "--", COLOURS[1])):
    axes.semilogy(distance[momentum], linestyle=style, color=colour, linewidth=2, label=f"m = {momentum}")
    axes.axvline(np.log(0.01) / np.log(1 - momentum), color=colour, linestyle=style, linewidth=0.8)
axes.set(xlabel="batches seen", ylabel="training output - evaluation output\n(root mean square)", xlim=(0, steps))
axes.legend(loc="upper right")
axes.grid(color="0.9")
show(
    figure,
    alt="Distance between outputs in the two modes against batches seen, falling: for m = 0.1 to its floor in about 50 "
    "batches, for m = 0.01 much more slowly. Thin lines: 99 % of the start forgotten.",
)

# %% [markdown]
# The floor of the curve is the batch's own noise: its mean is not the population's. A network evaluated after few steps
# is judged by statistics that are mostly the initial 0 and 1, and looks broken while its training loss is fine.
#
# In evaluation $\mu$ and $\sigma^2$ are constants, and the backward becomes what was wrong in section 4:
# $dx = \gamma\, dy / s$.
#
# ### A trained network, by depth
#
# Do running statistics describe images that were not trained on? The detector of notebook 00 has fourteen batch
# normalisations. We show it eight new images and look at each: how large is the spread of what comes in, and of
# $\hat x$, computed with the *running* statistics?
#
# **Predict** both: how much does the first differ from layer to layer, and where should the second lie?

# %%
detector = CenterNet.pretrained()
names = {id(layer): name for name, layer in detector.named_modules()}
spread = {}  # name -> standard deviation of what comes in, and of x̂


def look(layer, given, output):
    if isinstance(layer, BatchNorm2d):
        x = given[0].data
        normal = (x - layer.running_mean) / np.sqrt(layer.running_var + layer.epsilon)
        spread[names[id(layer)]] = x.std(), normal.std()


shapes = Shapes(8, size=128, seed=5)
new = np.stack([shapes[i].image for i in range(8)])
new = ((new / 255 - detector.pixel_mean) / detector.pixel_std).astype(np.float32)
with autograd.no_grad(), watching(look):
    detector(autograd.Tensor(new))
incoming, outgoing = np.array(list(spread.values())).T
print(f"what comes in: {incoming.min():.2f} to {incoming.max():.2f}; x̂: {outgoing.min():.2f} to {outgoing.max():.2f}")
assert incoming.max() / incoming.min() > 3, "the spread of what comes in should differ from layer to layer"
assert np.all((outgoing > 0.8) & (outgoing < 1.25)), "on new images x̂ should have a spread near 1"

# %%
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
axes.semilogy(incoming, "o--", color=COLOURS[1], label="what comes in")
axes.semilogy(outgoing, "s-", color=COLOURS[0], label=r"$\hat x$, by running statistics")
axes.set_xticks(range(len(spread)), list(spread), rotation=40, ha="right", fontsize=8)
axes.set_yticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"])
axes.minorticks_off()
axes.set(ylabel="standard deviation", xlabel="batch normalisation, in the order of the network", ylim=(0.3, 9))
axes.grid(color="0.9")
axes.legend(loc="upper left")
show(
    figure,
    alt="Standard deviation at fourteen layers of the trained detector on new images: what comes in wanders between "
    "about 0.6 and 5, x-hat stays near 1 throughout.",
)
#
# What comes in differs several times over, and nothing in its training asked it not to. $\hat x$ has a spread near 1 in
# every layer, on images that the statistics never saw: that is what they are kept for.
#
# ## 6. The package agrees
#
# `ops.batch_norm` does the same in blocks of rows on all cores, with an optional residual and ReLU in the same pass. In
# float64, in both modes:

# %%
rng = np.random.default_rng(10)
x, dy = 2 * rng.standard_normal((2, 4, 32, 32, 16)) + 3
weight, bias = rng.standard_normal((2, 16))
y, backward = batch_norm(x, weight, bias)
running = [np.zeros(16), np.ones(16)]
their_y, their_backward = ops.batch_norm.raw(x, weight, bias, *running, training=True)
pairs = {"y": (y, their_y)}
for name, own, theirs in zip(("dx", "dweight", "dbias"), backward(dy), their_backward(dy)[:3], strict=True):
    pairs[name] = own, theirs
own_mean, own_variance = update(np.zeros(16), np.ones(16), x)
pairs |= {"running mean": (own_mean, running[0]), "running variance": (own_variance, running[1])}
y, backward = ops.batch_norm.raw(x, weight, bias, *running, training=False)
scale = weight / np.sqrt(running[1] + 1e-5)
pairs |= {"y in evaluation": (scale * (x - running[0]) + bias, y), "dx in evaluation": (scale * dy, backward(dy)[0])}
for name, (own, theirs) in pairs.items():
    print(f"{name:17} largest difference {np.abs(own - theirs).max():.1e}")
    assert np.allclose(own, theirs, rtol=1e-10, atol=1e-10), f"{name} differs from the package's"

# %% [markdown]
# What does its closure keep? (Notebook 01, section 7.) Yours keeps $\hat x$, a new map. The package keeps $x$, which
# the convolution before it made and which nobody else has to keep, and computes $\hat x$ again. (With maps of less than
# 16384 numbers, where memory is no matter and every call counts, it does as you do.)

# %%
for name, op_backward in (("yours", batch_norm(x, weight, bias)[1]), ("the package", their_backward)):
    cells = zip(op_backward.__code__.co_freevars, op_backward.__closure__, strict=True)
    large = [key for key, cell in cells if isinstance(cell.cell_contents, np.ndarray) and cell.cell_contents.size > 16]
    print(f"{name} keeps maps: {large}")

# %% [markdown]
# ## 7. Folded away
#
# In evaluation, batch normalisation is $y = a x + b$ per channel, with constants $a$ and $b$. A convolution comes
# before it, which is linear, and has one filter per output channel. Two linear maps are one:
#
# $$ \gamma\, \frac{(W x + c) - \mu}{s} + \beta
#    = \Big(\frac{\gamma}{s} W\Big) x + \Big(\frac{\gamma}{s}(c - \mu) + \beta\Big) . $$
#
# So a trained detector does not need the layer any more: it costs nothing when images are looked at.
#
# ### Exercise 5: fold
#
# The weight of a convolution is $(O, C, k, k)$: $O$ filters. **Predict** along which axis $\gamma/s$ goes.


# %% tags=["exercise"]
def folded(weight, bias, gamma, beta, mean, variance, epsilon=1e-5):
    """Return the weight (O, C, k, k) and bias (O,) of a convolution that does its own work and the normalisation's."""
    ### BEGIN SOLUTION hint: a = gamma / sqrt(variance + epsilon), one number per filter: a[:, None, None, None]
    scale = gamma / np.sqrt(variance + epsilon)
    return weight * scale[:, None, None, None], scale * (bias - mean) + beta
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(11)
x = rng.standard_normal((2, 6, 6, 4))
weight, bias = rng.standard_normal((4, 4, 3, 3)), rng.standard_normal(4)  # as many filters as channels: any axis fits
gamma, beta, mean = rng.standard_normal((3, 4))
variance = 0.1 + rng.random(4)
new_weight, new_bias = folded(weight, bias, gamma, beta, mean, variance)
assert new_weight.shape == weight.shape and new_bias.shape == (4,), (
    f"the weight must stay (4, 4, 3, 3) and the bias (4,), got {new_weight.shape} and {new_bias.shape}"
)
zero = np.zeros((1, 3, 3, 4))  # of a black image only the bias is seen
at_zero = gamma * (bias - mean) / np.sqrt(variance + 1e-5) + beta
assert np.allclose(new_bias, at_zero), f"where x = 0 the answer is {at_zero.round(3)}; your bias is {new_bias.round(3)}"
convolved = ops.conv2d.raw(x, weight, bias, padding=1)[0]
expected = gamma * (convolved - mean) / np.sqrt(variance + 1e-5) + beta
gap_of_fold = np.abs(ops.conv2d.raw(x, new_weight, new_bias, padding=1)[0] - expected).max()
assert gap_of_fold < 1e-11, f"the results differ by {gap_of_fold:.2g}: one factor γ/√(σ² + ε) per OUTPUT channel"

# %% [markdown]
# The package folds whole networks: `minicenternet.nn.folding.fold` watches one forward pass to see whose output each
# batch normalisation reads. On two layers of each kind, whose running statistics come from one batch:

# %%
rng = np.random.default_rng(12)
network = Sequential(
    Conv2d(3, 8, 3, padding=1, rng=rng), BatchNorm2d(8, relu=True), Conv2d(8, 8, 3, padding=1, rng=rng), BatchNorm2d(8)
).astype(np.float64)
images = rng.standard_normal((4, 16, 16, 3))
network.train()
for _ in range(20):
    network(autograd.Tensor(images))
network.eval()
before = network(autograd.Tensor(images)).data
first = network[0]
weight_before, bias_before, norm = first.weight.data.copy(), first.bias.data.copy(), network[1]
own_weight, own_bias = folded(
    weight_before, bias_before, norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var
)
fold(network, images)
after = network(autograd.Tensor(images)).data
print("after folding:", [type(layer).__name__ for _, layer in network.children()])
print(f"largest change of the output: {np.abs(after - before).max():.1e}")
print(f"your weights and the package's: {np.abs(own_weight - first.weight.data).max():.1e}")
assert np.abs(after - before).max() < 1e-12
assert np.allclose(own_weight, first.weight.data, atol=1e-14) and np.allclose(own_bias, first.bias.data, atol=1e-14)

# %% [markdown]
# ## Break it
#
# A trained detector is put to use. The same photograph is shown to it twice, in different company.

# %%
rng = np.random.default_rng(13)
detector = Sequential(Conv2d(3, 8, 3, padding=1, rng=rng), BatchNorm2d(8, relu=True), Conv2d(8, 1, 1, rng=rng))
for _ in range(50):  # stands for its training
    detector(autograd.Tensor(rng.random((8, 16, 16, 3), dtype=np.float32)))

photograph = rng.random((1, 16, 16, 3), dtype=np.float32)
company = {"dark": 0.1 * rng.random((3, 16, 16, 3), dtype=np.float32)}
company["bright"] = 0.9 + company["dark"]
scores = {
    name: float(detector(autograd.Tensor(np.concatenate([photograph, others]))).data[0].mean())
    for name, others in company.items()
}
print(
    f"mean score of the photograph beside dark images {scores['dark']:+.4f}, beside bright ones {scores['bright']:+.4f}"
)
assert abs(scores["dark"] - scores["bright"]) > 0.05

# %% [markdown]
# No weight changed in between. What is wrong, and which one line cures it?
#
# <details><summary>Answer</summary>
#
# The network is still in training mode: its batch normalisation takes $\mu$ and $\sigma^2$ from the batch, so the
# photograph is normalised by its neighbours. `detector.eval()` cures it. Worse, each of these calls has also moved the
# running statistics towards the dark and the bright images. `model.predict` and `evaluate` of the package set the mode
# themselves and put it back.
#
# </details>

# %%
detector.eval()
cured = {
    name: detector(autograd.Tensor(np.concatenate([photograph, others]))).data[0] for name, others in company.items()
}
difference = np.abs(cured["dark"] - cured["bright"]).max()
print(f"in evaluation mode the two answers differ by {difference:.1e}")
assert difference < 1e-5

# %% [markdown]
# ## Summary
#
# - Batch normalisation gives every channel mean $\beta$ and size $\gamma$, so that the signal keeps its size at any
#   depth.
# - Subtract the mean before you square; statistics of blocks combine exactly.
# - $dx = \frac{\gamma}{s}(dy - \text{mean}(dy) - \hat x\, \text{mean}(dy \cdot \hat x))$: what points along ones or
#   along $\hat x$ is taken out.
# - For the same reason a constant `dy`, and `dy` = $y$, are blind to most mistakes in it. Check with a random one.
# - Training uses the batch, evaluation the running statistics, and these need some fifty batches to mean something.
# - In evaluation it folds into the convolution before it.
#
# ## In the package
#
# - `minicenternet.ops.batch_norm.batch_norm`: forward and backward, in blocks, with residual and ReLU
# - `minicenternet.ops.batch_norm.statistics`: the variance that does not cancel
# - `minicenternet.nn.layers.BatchNorm2d`: the layer with its running statistics
# - `minicenternet.nn.folding.fold`, `minicenternet.model.CenterNet.fold`: folding
