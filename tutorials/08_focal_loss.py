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
# # 08 · Focal loss
#
# - **Goal** Judge a whole heatmap of which almost every cell is background: the loss, its stable form on logits, its
#   gradient, and the values that a trainer should know by sight.
# - **You need** 01, 02, 07.
# - **Minutes** 55 to read and work / runs in about 8 s
# - **Equations** E4
# - **What you should see** At COCO's shape, 7 objects, a fresh network with prior bias loses about 203 (within 1),
#   one without it about 32,400 (within 100), one at the clamp exactly 9.2085 (to 1e-4). The stable form agrees with
#   400-digit arithmetic to 1e-12 for logits from -800 to 800.

# %%
import math
import os
from decimal import Decimal, localcontext

import matplotlib.pyplot as plt
import numpy as np

from minicenternet.draw import COLOURS, show
from minicenternet.points import losses
from minicenternet.points.targets import encode, gaussian

FAST = os.environ.get("MINICENTERNET_FAST") == "1"

# %% [markdown]
# ## A needle in a heatmap
#
# Take the shape that the paper trains on: 80 classes, 128 by 128 cells. An average image of COCO has about 7 objects.

# %%
rng = np.random.default_rng(0)
centres, sides = rng.uniform(60, 450, (7, 2)), rng.uniform(30, 120, (7, 2))
boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
targets = encode(boxes, rng.integers(0, 80, 7), 80, 128, 128)
Y_coco = targets.heatmap[None].astype(np.float64)  # (1, 128, 128, 80)
positives = np.count_nonzero(Y_coco == 1)
around = np.count_nonzero((Y_coco > 0) & (Y_coco < 1))
print(f"{Y_coco.size:,} cells, of them {positives} with Y = 1 and {around} around them")

# %% [markdown]
# **Predict.** A network answers $\hat Y = 0.1$ everywhere. Under plain cross-entropy, $-\log \hat Y$ at a positive
# and $-\log(1 - \hat Y)$ elsewhere, which part of the loss comes from the 7 cells that matter?

# %%
from_positives = positives * -math.log(0.1)
from_negatives = (Y_coco.size - positives) * -math.log(0.9)
print(
    f"positives {from_positives:.1f}, negatives {from_negatives:,.0f}: a share of {from_positives / from_negatives:.1e}"
)
assert from_positives / from_negatives < 2e-4

# %% [markdown]
# About one part in ten thousand. The gradient says: push everything down. The focal loss changes that with two
# factors (paper (1), §3):
#
# $$L_k = -\frac{1}{N} \sum_{xyc} \begin{cases}
# (1 - \hat Y_{xyc})^{\alpha} \log \hat Y_{xyc} & \text{where } Y_{xyc} = 1 \\
# (1 - Y_{xyc})^{\beta}\, \hat Y_{xyc}^{\alpha} \log(1 - \hat Y_{xyc}) & \text{elsewhere}
# \end{cases} \qquad \alpha = 2,\ \beta = 4 \qquad \text{(E4)}$$
#
# - $\hat Y^\alpha$ and $(1-\hat Y)^\alpha$: **what is nearly right counts little.** The prediction decides.
# - $(1-Y)^\beta$: **what is near a centre counts little.** The target decides. Mind which of the two letters has the
#   hat. A slip there looks harmless in the loss; notebook 11 trains it.
# - $N$ is the number of objects, the cells where $Y = 1$, and not the number of cells. An image without objects is
#   divided by 1.
#
# ## The form on probabilities
#
# **Write** E4 as it stands, on probabilities strictly between 0 and 1.


# %% tags=["exercise", "derives-E4"]
def focal_loss_of_probabilities(p, Y, alpha=2, beta=4):
    """E4: the focal loss of probabilities p against the target heatmap Y, of one shape; a number."""
    ### BEGIN SOLUTION hint: np.where(Y == 1, term of a positive, term elsewhere), summed, over N of at least 1
    positive = (1 - p) ** alpha * np.log(p)
    elsewhere = (1 - Y) ** beta * p**alpha * np.log(1 - p)
    return -np.where(Y == 1, positive, elsewhere).sum() / max(np.count_nonzero(Y == 1), 1)
    ### END SOLUTION


# %% tags=["check"]
def focal_loss_by_loops(p, Y, alpha, beta):
    """The oracle: one cell at a time, with math.log."""
    total, objects = 0.0, 0
    for p_cell, y_cell in zip(p.ravel().tolist(), Y.ravel().tolist(), strict=True):
        if y_cell == 1:
            objects += 1
            total -= (1 - p_cell) ** alpha * math.log(p_cell)
        else:
            total -= (1 - y_cell) ** beta * p_cell**alpha * math.log(1 - p_cell)
    return total / max(objects, 1)


with np.errstate(all="ignore"):
    half = focal_loss_of_probabilities(np.array([0.5]), np.array([1.0]))
    assert math.isclose(half, 0.25 * math.log(2)), (
        f"one positive at p = 0.5 loses (1/2)^2 log 2 = 0.1733, yours {half:.4f}"
    )
    empty = focal_loss_of_probabilities(np.array([0.2, 0.3]), np.array([0.0, 0.5]))
    assert np.isfinite(empty), f"an image without an object gives {empty}: divide by 1, not by 0"
    near = focal_loss_of_probabilities(np.array([0.5]), np.array([0.9]))
    assert math.isclose(near, 0.1**4 * 0.25 * math.log(2)), (
        f"a cell with Y = 0.9 and p = 0.5 loses (1 - 0.9)^4 (1/2)^2 log 2 = 1.73e-05, yours {near:.3g}: "
        "the fourth power is of 1 - Y, the target, and alpha is the power of p"
    )
    rising = [focal_loss_of_probabilities(np.array([p]), np.array([0.0])) for p in (0.1, 0.5, 0.9, 0.99, 0.999)]
    assert np.all(np.diff(rising) > 0), (
        f"on background, p = 0.1, 0.5, 0.9, 0.99, 0.999 lose {np.round(rising, 4)}, but a more confident "
        "false alarm must cost more: (1 - Y)^beta has no hat"
    )
    rng = np.random.default_rng(1)
    p, Y = rng.uniform(0.01, 0.99, (2, 6, 5, 3)), rng.uniform(0, 0.95, (2, 6, 5, 3))
    Y[rng.random(Y.shape) < 0.1] = 1
    for alpha, beta in ((2, 4), (0, 0), (1, 3)):
        expected, got = focal_loss_by_loops(p, Y, alpha, beta), focal_loss_of_probabilities(p, Y, alpha, beta)
        assert math.isclose(got, expected, rel_tol=1e-10), (
            f"alpha {alpha}, beta {beta}: expected {expected:.6f}, got {got:.6f}. Positives are the cells where Y is "
            "exactly 1, and N is their number, over the whole batch"
        )

# %% [markdown]
# ## Where it overflows
#
# A network gives logits $x$, and $\hat Y = \sigma(x) = 1/(1 + e^{-x})$.
#
# **Predict.** In float32, at which logit does $\sigma(x)$ become exactly 1, and $\log(1 - \hat Y)$ minus infinity?
# Think of the spacing of numbers just below 1: about $6 \cdot 10^{-8}$.


# %%
def sigmoid(x):
    """1 / (1 + e^-x) without overflow: e^-|x| is never more than 1."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def first_where(condition, logits):
    return logits[np.flatnonzero(condition)[0]]


for dtype in (np.float32, np.float64):
    up, down = np.arange(0, 800, 0.25, dtype=dtype), -np.arange(0, 800, 0.25, dtype=dtype)
    one, zero = first_where(sigmoid(up) == 1, up), first_where(sigmoid(down) == 0, down)
    with np.errstate(over="ignore"):
        overflow = first_where(np.isinf(np.exp(-down)), down)
    print(f"{dtype.__name__}: p is exactly 1 from logit {one}, exactly 0 from {zero}; e^-x overflows from {overflow}")

with np.errstate(all="ignore"):  # the overflows are the point
    print("\n   logit   float32, Y = 1   float32, Y = 0")
    for x in (-120, -95, -10, 0, 10, 16, 17, 40):
        p = sigmoid(np.float32([x]))
        at_one, at_zero = (focal_loss_of_probabilities(p, np.full(1, y)) + 0 for y in (1.0, 0.0))  # + 0: no -0
        print(f"   {x:5} {at_one:14.6g}  {at_zero:14.6g}")
    assert np.isinf(focal_loss_of_probabilities(sigmoid(np.float32([17])), np.zeros(1)))

# %% [markdown]
# One step that is too large is enough for a logit of 17. From there on a false alarm loses infinity, and a missed
# object does so near -104. The gradient there is $0 \cdot \infty$, NaN, and the weights are lost with the next
# update.
#
# The released code clamps $\hat Y$ to $[10^{-4}, 1 - 10^{-4}]$. Then nothing overflows. But a clamp is flat outside,
# so the gradient there is exactly zero: a cell that is confidently wrong is told nothing. We come back to that at the
# end.
#
# ## The form on logits
#
# Two identities remove the trouble. With $\text{softplus}(x) = \log(1 + e^x)$,
#
# $$-\log(1 - \hat Y) = \text{softplus}(x), \qquad -\log \hat Y = \text{softplus}(-x), \qquad
# 1 - \sigma(x) = \sigma(-x).$$
#
# So a positive is a negative seen in the mirror. Its term is $\sigma(-x)^\alpha\,\text{softplus}(-x)$: the other line
# of E4 for $-x$, of weight 1. And softplus has a form that never overflows and keeps small values:
#
# $$\text{softplus}(x) = \max(x, 0) + \log(1 + e^{-|x|}), \qquad \text{by } \texttt{np.log1p}.$$
#
# **Write** the terms of the sum, one for each cell, not yet divided by $N$. You may use `sigmoid` above. Write
# $1 - \hat Y$ as $\sigma(-x)$: the subtraction loses digits.


# %% tags=["exercise"]
def focal_terms(logits, Y, alpha=2, beta=4):
    """What each cell adds to the focal loss, before the division by N: an array of the logits' shape, at least 0."""
    ### BEGIN SOLUTION hint: flip the sign of x where Y == 1, weight 1 there; weight * sigmoid(x)^alpha * softplus(x)
    x = np.where(Y == 1, -logits, logits)
    weight = np.where(Y == 1, 1, (1 - Y) ** beta)
    softplus = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return weight * sigmoid(x) ** alpha * softplus
    ### END SOLUTION


# %% tags=["check"]
def exact_term(logit, y, alpha=2, beta=4):
    """The oracle: E4 for one cell in decimal arithmetic with 400 digits, from p, without softplus."""
    with localcontext() as context:
        context.prec = 400  # e^-800 is about 1e-347: 1 + e^-800 needs that many digits
        e = Decimal(-abs(logit)).exp()
        small, large = e / (1 + e), 1 / (1 + e)
        p, q = (large, small) if logit >= 0 else (small, large)  # q = 1 - p, kept apart so that it has all its digits
        if y == 1:
            return float(-(q**alpha) * p.ln())
        return float(-((1 - Decimal(y)) ** beta) * p**alpha * q.ln())


with np.errstate(all="ignore"):
    for x in (-800.0, -120.0, -40.0, -17.0, -3.0, 0.0, 2.5, 17.0, 40.0, 120.0, 800.0):
        for y in (0.0, 0.5, 1.0):
            expected, got = exact_term(x, y), focal_terms(np.array([x]), np.array([y]))[0]
            assert np.isfinite(got), f"logit {x}, Y = {y}: {got}; take softplus, and e^-|x|, never e^|x|"
            assert math.isclose(got, expected, rel_tol=1e-12, abs_tol=1e-300), (
                f"logit {x}, Y = {y}: expected {expected:.15g}, got {got:.15g}. If it is close: no clamp, "
                "log1p for a small e^-|x|, and sigmoid(-x) in place of 1 - p"
            )
            got = focal_terms(np.float32([x]), np.float32([y]))
            assert math.isclose(got[0], expected, rel_tol=2e-6, abs_tol=1e-37), f"float32, logit {x}, Y = {y}: {got[0]}"


# %%
def focal_loss(logits, Y, alpha=2, beta=4):
    """E4 on logits."""
    return focal_terms(logits, Y, alpha, beta).sum() / max(np.count_nonzero(Y == 1), 1)


print("   logit    at Y = 1: stable     at Y = 0: stable    at Y = 0: clamped")
for x in (-120, -40, -10, 0, 10, 17, 40, 120):
    at_one, at_zero = (focal_terms(np.float32([x]), np.float32([y]))[0] for y in (1, 0))
    clamped = np.clip(sigmoid(np.float64(x)), 1e-4, 1 - 1e-4)
    print(f"   {x:5} {at_one:18.6g} {at_zero:20.6g} {focal_loss_of_probabilities(clamped, np.zeros(1)):20.6g}")

# %% [markdown]
# Far out the loss is a straight line: a miss by 120 costs 120. The clamped loss stops at 9.2.
#
# ## The gradient
#
# Away from a peak a term is $t(x) = w\, p^\alpha\, s$ with $p = \sigma(x)$, $s = \text{softplus}(x)$,
# $w = (1-Y)^\beta$. From $p' = p(1-p)$ and $s' = p$ by the product rule:
#
# $$\frac{dt}{dx} = w\left(\alpha p^{\alpha - 1}\, p (1-p)\, s + p^\alpha\, p\right)
# = w\, p^\alpha \left(\alpha (1-p)\, s + p\right).$$
#
# At a peak $x$ is replaced by $-x$, so the slope changes its sign.
#
# **Predict.** What is the slope far out on the wrong side, at a positive with $x = -120$?
#
# **Write** the gradient of the whole loss with respect to every logit.


# %% tags=["exercise"]
def focal_gradient(logits, Y, alpha=2, beta=4):
    """The gradient of the focal loss with respect to the logits, of their shape."""
    ### BEGIN SOLUTION hint: sign * w * p^alpha * (alpha (1 - p) s + p) / N, all of the flipped x
    sign = np.where(Y == 1, -1, 1)
    x = sign * logits
    weight = np.where(Y == 1, 1, (1 - Y) ** beta)
    p, softplus = sigmoid(x), np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    slope = sign * weight * p**alpha * (alpha * sigmoid(-x) * softplus + p)
    return slope / max(np.count_nonzero(Y == 1), 1)
    ### END SOLUTION


# %% tags=["check"]
def loss_for_differences(logits, Y, alpha, beta):
    """The oracle's loss, by E4 on probabilities; its gradient is taken by central differences."""
    p, q = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(logits))
    terms = np.where(Y == 1, q**alpha * np.log(p), (1 - Y) ** beta * p**alpha * np.log(q))
    return -terms.sum() / max(np.count_nonzero(Y == 1), 1)


rng = np.random.default_rng(2)
x, Y = rng.normal(0, 4, (2, 5, 4, 3)), rng.uniform(0, 0.95, (2, 5, 4, 3))
Y[rng.random(Y.shape) < 0.1] = 1
with np.errstate(all="ignore"):
    for alpha, beta in ((2, 4), (1, 2), (3, 0)):
        got = focal_gradient(x, Y, alpha, beta)
        for cell in [tuple(c) for c in np.argwhere(Y == 1)[:3]] + [tuple(c) for c in np.argwhere(Y < 1)[:6]]:
            step = np.zeros_like(x)
            step[cell] = 1e-5
            ahead, behind = (loss_for_differences(x + s, Y, alpha, beta) for s in (step, -step))
            expected = (ahead - behind) / 2e-5
            assert math.isclose(got[cell], expected, rel_tol=1e-6, abs_tol=1e-9), (
                f"alpha {alpha}, beta {beta}, a cell with Y = {Y[cell]:.2f}, logit {x[cell]:.2f}: differences say "
                f"{expected:.8f}, yours {got[cell]:.8f}. Product rule: p^alpha has a slope as well; at a peak the sign "
                "turns; divide by N"
            )
    far = focal_gradient(np.array([-120.0, 800.0]), np.array([1.0, 0.0]))
    assert np.allclose(far, [-1, 1]), f"far out on the wrong side the slopes are -1 and 1 (N = 1), yours {far}"

# %% [markdown]
# Minus one. However wrong the network is, each object pulls at its logit with a force of $1/N$. That is the property
# that a clamp destroys.
#
# ### What $\alpha$ and $\beta$ do
#
# **Predict.** At a positive with $\hat Y = 0.9$: by which factor does $\alpha = 2$ shrink the loss against
# $\alpha = 0$? And with $\beta = 4$, what is the weight of a cell with $Y = 0.5$?

# %%
p = np.linspace(0.002, 0.998, 400)
logit = np.log(p / (1 - p))
distance = np.arange(0, 7)
blob = gaussian(6)[6, 6:].astype(np.float64)
figure, axes = plt.subplots(2, 2, figsize=(8, 6), layout="constrained")
for alpha, line, colour in ((0, ":", COLOURS[6]), (1, "-.", COLOURS[3]), (2, "-", COLOURS[0]), (4, "--", COLOURS[1])):
    axes[0, 0].plot(p, focal_terms(logit, np.ones_like(p), alpha), line, color=colour, label=f"α = {alpha}")
    axes[0, 1].plot(
        p, [-focal_gradient(x, np.float64(1), alpha) for x in logit], line, color=colour, label=f"α = {alpha}"
    )
axes[0, 0].set(title="a positive: loss", ylabel="loss", ylim=(0, 4))
axes[0, 1].set(title="a positive: pull on its logit", ylabel="-d loss / d logit")
for beta, line, colour in ((0, ":", COLOURS[6]), (2, "-.", COLOURS[3]), (4, "-", COLOURS[0]), (8, "--", COLOURS[1])):
    weight = np.where(blob == 1, np.nan, (1 - blob) ** beta)
    axes[1, 0].plot(distance, weight, line, marker="o", markersize=4, color=colour, label=f"β = {beta}")
    slope = focal_gradient(logit, np.full_like(p, 0.8), 2, beta)
    axes[1, 1].semilogy(p, slope, line, color=colour, label=f"β = {beta}")
axes[1, 0].set(title="weight (1 - Y)^β beside a centre, r = 6", xlabel="distance (cells)", ylabel="weight")
axes[1, 1].set(title="a neighbour, Y = 0.8: push on its logit", ylabel="d loss / d logit", ylim=(1e-10, 3))
for axis in (axes[0, 0], axes[0, 1], axes[1, 1]):
    axis.set_xlabel("predicted probability Ŷ")
for axis, place in zip(axes.flat, ("upper right", "upper right", "lower right", "lower right"), strict=True):
    axis.legend(fontsize=8, loc=place)
show(
    figure,
    alt="Loss and gradient of a positive for four alphas, and weight and gradient of a neighbour for four betas.",
)

for alpha in (0, 2):
    print(f"alpha = {alpha}: a positive at 0.9 loses {focal_terms(np.log(9.0), np.float64(1), alpha):.6f}")
fresh = np.full_like(Y_coco, -math.log(9))  # every p is 0.1
print("\n  alpha  beta         loss   of it from positives")
for alpha in (0, 2) if FAST else (0, 1, 2, 4):
    for beta in (0, 4):
        terms = focal_terms(fresh, Y_coco, alpha, beta)
        share = terms[Y_coco == 1].sum() / terms.sum()
        print(f"  {alpha:5}  {beta:4} {terms.sum() / positives:12.4f}   {share:.2%}")

# %% [markdown]
# $\alpha$ does the heavy lifting at the start: the share of the positives rises from one in ten thousand to about one
# in a hundred, and more as the background falls. $\beta$ hardly changes the total. It changes *where* the loss is: it
# spares the nine hundred or so cells around the centres.
#
# ## Why $\hat Y = Y$ is not the answer
#
# The heatmap looks like a regression target. It is not one.
#
# **Predict.** Which has the lower loss: a network that answers exactly $\hat Y = Y$, or one that answers 1 at the
# centres and 0 everywhere else?

# %%
small = encode(np.array([[10.0, 12, 90, 80], [80, 60, 120, 110]]), np.array([0, 0]), 1, 32, 32).heatmap.astype(
    np.float64
)
tiny = 1e-12  # keeps the probabilities inside (0, 1)
copy_of_target = np.clip(small, tiny, 1 - tiny)
only_centres = np.where(small == 1, 1 - tiny, tiny)
loss_of_copy, loss_of_centres = (focal_loss_of_probabilities(p, small) for p in (copy_of_target, only_centres))
print(f"the target itself: {loss_of_copy:.4f}    ones at the centres, zero elsewhere: {loss_of_centres:.2e}")
assert loss_of_centres < 1e-9 < 0.05 < loss_of_copy

# %% [markdown]
# Every cell but the centres wants $\hat Y = 0$. $Y$ says how *much* it wants that. The Gaussian is a **map of
# weights**, $(1 - Y)^4$: full weight far away, next to none beside the centre.

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 2.9), layout="constrained", sharey=True)
logits_of_copy = np.log(copy_of_target / (1 - copy_of_target))
pictures = {
    "target Y": small[:, :, 0],
    "weight of a negative, (1 - Y)⁴": np.where(small == 1, np.nan, (1 - small) ** 4)[:, :, 0],
    "loss of Ŷ = Y (thousandths)": 1000 * focal_terms(logits_of_copy, small)[:, :, 0],
}
for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
    drawn = axis.imshow(picture, cmap="cividis", vmin=0)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("x (cells)")
    figure.colorbar(drawn, ax=axis, shrink=0.85, orientation="horizontal")
axes[0].set_ylabel("y (cells)")
show(
    figure,
    alt="Three maps: the Gaussian target, weights that are low around the centres, and rings of loss where Ŷ = Y.",
)

# %% [markdown]
# So why do trained heatmaps look like blobs all the same? Because a network is not sure. Suppose it knows that a cell
# is the centre with probability $q$, and otherwise a neighbour with target $Y$. It answers the $\hat Y$ that is best
# on average:
#
# $$\min_{\hat Y}\; -q\,(1-\hat Y)^2 \log \hat Y - (1-q)(1-Y)^4\, \hat Y^2 \log(1-\hat Y).$$
#
# **Predict.** With $q = 0.1$: where is the best answer if otherwise $Y = 0$? If otherwise $Y = 0.8$?

# %%
q = np.linspace(0.002, 0.6, 60)
answers = np.linspace(0.001, 0.999, 999)
figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
best = {}
for y, line, colour in (
    (0.0, ":", COLOURS[6]),
    (0.5, "-.", COLOURS[3]),
    (0.8, "-", COLOURS[0]),
    (0.95, "--", COLOURS[1]),
):
    as_centre = -((1 - answers) ** 2) * np.log(answers)
    as_neighbour = -((1 - y) ** 4) * answers**2 * np.log(1 - answers)
    best[y] = answers[(q[:, None] * as_centre + (1 - q[:, None]) * as_neighbour).argmin(axis=1)]
    axis.plot(q, best[y], line, color=colour, label=f"otherwise Y = {y}")
axis.plot(q, q, color="grey", linewidth=0.8, label="answer = probability")
axis.set(xlabel="probability q that the cell is the centre", ylabel="best answer Ŷ", ylim=(0, 1))
axis.legend(fontsize=8, ncols=2)
show(
    figure,
    alt="The best answer against the probability q of being the centre: the higher, the nearer the other Y is to 1.",
)
tenth = np.abs(q - 0.1).argmin()
for y, answer in best.items():
    print(f"q = {q[tenth]:.2f}, otherwise Y = {y}: best answer {answer[tenth]:.2f}")
assert best[0.8][tenth] > best[0.0][tenth] + 0.3, "near a centre an unsure network answers higher"

# %% [markdown]
# A doubtful cell beside a centre answers high, since being wrong there is cheap. Far from a centre the same doubt
# answers lower. The blob in a trained heatmap is the network's doubt about the exact cell, on a ground that was made
# cheap for doubt. And even at $Y = 0$ the best answer is not $q$: the scores of a detector trained this way order its
# detections, but they are no probabilities.
#
# ## The same in the package
#
# `minicenternet.points.losses.focal_loss` works on logits and makes its gradient in the same pass.

# %%
rng = np.random.default_rng(3)
for scale in (1, 4, 30, 300):
    logits, Y = rng.normal(0, scale, (2, 16, 12, 5)), rng.uniform(0, 0.99, (2, 16, 12, 5)) ** 3
    Y[rng.random(Y.shape) < 0.01] = 1
    for alpha, beta in ((2, 4), (1, 2), (3, 4)):
        loss, backward = losses.focal_loss.raw(logits, Y, alpha, beta)
        gradient, _ = backward(np.float64(1))
        assert math.isclose(loss, focal_loss(logits, Y, alpha, beta), rel_tol=1e-10)
        assert np.allclose(gradient, focal_gradient(logits, Y, alpha, beta), rtol=1e-10, atol=1e-12)
        if scale <= 4:
            assert math.isclose(loss, focal_loss_of_probabilities(sigmoid(logits), Y, alpha, beta), rel_tol=1e-6)
print("loss and gradient agree with minicenternet.points.losses.focal_loss, for logits into the hundreds")

# %% [markdown]
# ## Four values to know by sight
#
# The first value of the loss is no accident: at the start the network answers the same everywhere, and you can
# compute what that costs *before* you train. If the first printed loss is not that number, something is wrong, and
# you have lost a minute and not a night.
#
# Let $\hat Y = \pi$ everywhere, $N$ objects. Every positive loses $-(1-\pi)^\alpha \log \pi$. Every other cell loses
# $-(1-Y)^\beta \pi^\alpha \log(1-\pi)$.
#
# **Write** that, without making a heatmap of answers.


# %% tags=["exercise"]
def first_loss(Y, prior, alpha=2, beta=4):
    """The focal loss of a network that answers `prior` in every cell."""
    ### BEGIN SOLUTION hint: N positives at one price, the sum of (1 - Y)^beta elsewhere at another; divide by N
    positives = np.count_nonzero(Y == 1)
    elsewhere = ((1 - Y) ** beta)[Y != 1].sum()
    total = positives * (1 - prior) ** alpha * math.log(prior) + elsewhere * prior**alpha * math.log(1 - prior)
    return -total / max(positives, 1)
    ### END SOLUTION


# %% tags=["check"]
by_hand = {  # three cells: one positive, one half-way neighbour, one of background
    0.1: -(0.81 * math.log(0.1) + (0.0625 + 1) * 0.01 * math.log(0.9)),
    0.5: -(0.25 * math.log(0.5) + (0.0625 + 1) * 0.25 * math.log(0.5)),
}
with np.errstate(all="ignore"):
    for prior, expected in by_hand.items():
        got = first_loss(np.array([1.0, 0.5, 0.0]), prior)
        assert math.isclose(got, expected), (
            f"Y = 1, 0.5, 0 and prior {prior}: expected {expected:.6f}, got {got:.6f}. Neighbours weigh (1 - Y)^beta; "
            "natural logarithms; a positive's price is (1 - prior)^alpha log(prior)"
        )
    empty = first_loss(np.zeros(10), 0.1)
    assert math.isclose(empty, -10 * 0.01 * math.log(0.9)), f"ten cells without an object: divide by 1; got {empty}"
    got = first_loss(Y_coco, 0.1)
    assert 190 < got < 210, f"at COCO's shape and prior 0.1 expect about 199, got {got:.1f}: divide by the 7 objects"

# %%
prior_of_bias = float(sigmoid(np.float64(-2.19)))  # the bias of the paper's last heatmap layer: 0.1007
assert math.isclose(first_loss(Y_coco, 0.1), losses.expected_first_loss(Y_coco, 0.1), rel_tol=1e-9)
clamped = np.clip(sigmoid(np.full(Y_coco.shape, -30.0)), 1e-4, 1 - 1e-4)
Y_unfloored = np.minimum(Y_coco, 0.99)  # no cell reaches 1
values = {
    "prior bias -2.19": losses.focal_loss.raw(np.full(Y_coco.shape, -2.19), Y_coco)[0],
    "bias 0": losses.focal_loss.raw(np.zeros(Y_coco.shape), Y_coco)[0],
    "all at the clamp": focal_loss_of_probabilities(clamped, Y_coco),
    "no positive, silent network": losses.focal_loss.raw(np.full(Y_coco.shape, -12.0), Y_unfloored)[0],
}
for name, value in values.items():
    print(f"{name:>28}: {value:12.4f}")
at_prior, at_half = first_loss(Y_coco, prior_of_bias), first_loss(Y_coco, 0.5)
assert abs(values["prior bias -2.19"] - 203) < 1 and math.isclose(values["prior bias -2.19"], at_prior, rel_tol=1e-9)
assert abs(values["bias 0"] - 32_400) < 100 and math.isclose(values["bias 0"], at_half, rel_tol=1e-9)
assert abs(values["all at the clamp"] - 9.2085) < 1e-4
assert values["no positive, silent network"] < 1e-3

# %% [markdown]
# | value | what it says | what to do |
# |---|---|---|
# | about 203 at step 0, then falling | every $\hat Y$ at the prior 0.1: healthy | carry on |
# | about 32,400 | every $\hat Y$ near 0.5: the prior bias is missing | set the last bias to $-2.19$ (E10) |
# | 9.2085, not moving | every $\hat Y$ at the clamp $10^{-4}$: no gradient | use the stable form |
# | towards 0.000, size loss 0 as well | no positive reaches the loss | floor the centre; check box format, labels |
#
# The first two depend on the shape: classes, cells and objects. Compute them for your own run. The third does not.
# The package's trainer compares and says so:

# %%
histories = {
    "healthy": ([values["prior bias -2.19"]], [5.0]),
    "no prior": ([values["bias 0"]], [5.0]),
    "dead": ([32_000.0] + [9.2085] * 3, [5.0] * 4),
    "no object": ([150.0] + [0.0] * 3, [0.0] * 4),
    "an ordinary step": ([203.0, 40.0, 12.3, 6.1], [5.0] * 4),
}
for name, (heatmap_losses, size_losses) in histories.items():
    print(f"{name}: {losses.explain_loss(heatmap_losses, size_losses, at_prior, at_half)}\n")
assert losses.explain_loss(*histories["an ordinary step"], at_prior, at_half) is None

# %% [markdown]
# ## Break it
#
# Two runs of the same model, the same data and the same learning rate. The model is as small as it gets: a feature
# map $F$ that is high at the objects, and two numbers, $x = aF + b$, with $b = 0$ at the start. One run prints the
# same loss for ever.

# %%
Y_small = small  # (32, 32, 1), two objects
rng = np.random.default_rng(4)
F = np.where(Y_small == 1, 1.0, 0.0) + 0.1 * rng.normal(size=Y_small.shape)


def gradient_at_clamp(logits, Y):
    p = sigmoid(logits)
    return np.where((p > 1e-4) & (p < 1 - 1e-4), focal_gradient(logits, Y), 0)


def loss_at_clamp(logits, Y):
    return focal_loss_of_probabilities(np.clip(sigmoid(logits), 1e-4, 1 - 1e-4), Y)


def run(loss, gradient, steps=600, rate=0.3):
    a, b, history = 1.0, 0.0, []
    for _ in range(steps):
        logits = a * F + b
        history.append(loss(logits, Y_small))
        slope = gradient(logits, Y_small)
        a, b = a - rate * (slope * F).sum(), b - rate * slope.sum()
    return np.array(history), b


runs = {"first": run(loss_at_clamp, gradient_at_clamp), "second": run(focal_loss, focal_gradient)}
for name, (history, b) in runs.items():
    print(f"{name}: {', '.join(f'{value:.4f}' for value in history[[0, 1, 2, 10, 100, 300, -1]])};  b = {b:.2f}")
figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
axis.semilogy(runs["first"][0], "--", color=COLOURS[1], label="first run")
axis.semilogy(runs["second"][0], "-", color=COLOURS[0], label="second run")
axis.axhline(losses.CLAMPED_LOSS, color="black", linewidth=0.8, linestyle=":", label="9.2085")
axis.set(xlabel="step", ylabel="focal loss")
axis.legend()
show(figure, alt="Loss by step: the first run is a horizontal line at 9.2085, the second falls below 1.")
assert np.all(np.abs(runs["first"][0][1:] - losses.CLAMPED_LOSS) < 1e-3)
assert runs["second"][0][-1] < 1

# %% [markdown]
# What happened in the first step, and why does only one of them recover?
#
# <details><summary>Answer</summary>
#
# With $b = 0$ every $\hat Y$ is near 0.5 and a thousand background cells push at once. The first step throws $b$ far
# down, in both runs: the missing prior. Then every $\hat Y$ is below $10^{-4}$. In the first run the clamp holds it
# there, the loss is
# $-(1 - 10^{-4})^2 \log 10^{-4} = 9.2085$ whatever the logits are, and its gradient is zero: nothing can move again.
# In the second run each object still pulls with $1/N$, and $b$ climbs back by 0.3 a step. The prior bias avoids the
# plunge; the stable form survives it.
#
# </details>

# %% [markdown]
# ## Summary
#
# - E4 has two weights: $\alpha$ takes the loss from what is nearly right, $\beta$ from what is near a centre.
# - On logits, with softplus, nothing overflows, and the pull of a lost object is $1/N$ however lost it is. A clamp
#   makes it zero.
# - $Y$ is a map of weights and not a regression target. $\hat Y = Y$ costs something; ones at the centres and zeros
#   elsewhere cost nothing.
# - About 203, about 32,400, exactly 9.2085, and 0.000 each say what is going on, before any detection is drawn.
#
# ## In the package
#
# - `minicenternet.points.losses.focal_loss` holds E4, on logits, with its gradient.
# - `minicenternet.points.losses.expected_first_loss` is the first loss to expect.
# - `minicenternet.points.losses.explain_loss` names the four values while a run prints them.
