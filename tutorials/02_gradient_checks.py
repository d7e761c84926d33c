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
# # 02 · Gradient checks
#
# - **Goal**: write a checker that tells a right backward from a wrong one, and know what it cannot see.
# - **You need**: notebook 01.
# - **Minutes**: 60 to read and work / runs in about 4 s.
# - **Equations**: none of E1 to E10. The one that matters here: $f'(x) \approx (f(x+h) - f(x-h))/2h$.
# - **What you should see**: the error of this quotient against $h$, a V, whose lowest point lies within a factor of 5
#   of the predicted step, in float32 and in float64; three of five backwards found guilty, one of which a check with
#   a constant output gradient acquits; and the same verdicts from the package's own checker.

# %%
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import minicenternet
from minicenternet import autograd, ops
from minicenternet.draw import COLOURS, show
from minicenternet.points.losses import focal_loss

sys.path.append(str(Path(minicenternet.__file__).resolve().parents[1] / "tests"))
import gradients  # tests/gradients.py, the checker behind all of the package's tests

FAST = os.environ.get("MINICENTERNET_FAST") == "1"

# %% [markdown]
# ## 1. Why check at all
#
# A wrong forward pass shows: the picture is wrong. A wrong backward pass hides. A gradient that is too small by a
# factor of two still points downhill; one that misses a term still points roughly downhill. The loss falls, the
# network learns, and ends a few points of accuracy below what it could reach, and nobody knows. So no backward in
# this course is believed before it was compared with something that knows nothing of the chain rule: the definition
# of a derivative.
#
# ### Exercise 1: the difference quotient
#
# For a function $f$ of arrays, a point $x$ and a direction $v$, the derivative of $f$ along $v$ is approximately
#
# $$ \frac{f(x + hv) - f(x - hv)}{2h} . $$
#
# Why on both sides? By Taylor's formula
# $f(x \pm hv) = f \pm h f' + \tfrac{h^2}{2} f^{(2)} \pm \tfrac{h^3}{6} f^{(3)} + \dots$, where $f^{(k)}$ is the
# $k$-th derivative along $v$. In the difference all even terms cancel, and the error is $\tfrac{h^2}{6} f^{(3)}$.
# One-sided, $(f(x + hv) - f(x))/h$ has an error of $\tfrac{h}{2} f^{(2)}$, which is far larger.
#
# **Predict**: for which functions is the two-sided quotient exact, whatever $h$ is?


# %% tags=["exercise"]
def difference_quotient(f, x, v, h):
    """Return the two-sided difference quotient of f at x along v: an array like f(x)."""
    ### BEGIN SOLUTION hint: evaluate f at x + h * v and at x - h * v; the two points are 2h apart
    return (f(x + h * v) - f(x - h * v)) / (2 * h)
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(7)
x, v = rng.standard_normal((2, 5))
before = x.copy()
quotient = difference_quotient(lambda x: x**2, x, v, 0.5)
assert np.array_equal(x, before), "x was changed; make new arrays: x + h * v, not x += h * v"
assert np.allclose(quotient, 2 * x * v, rtol=1e-12), (
    "for x**2 the two-sided quotient is 2xv exactly, even for h = 0.5: two-sided? divided by 2h? v as it was given?"
)
for h in (0.5, 0.25):
    quotient = difference_quotient(lambda x: x**3, x, v, h)
    assert np.allclose(quotient, 3 * x**2 * v + h**2 * v**3, rtol=1e-12), (
        f"for x**3 the quotient is 3x²v + h²v³ exactly; with h = {h} yours differs"
    )

# %% [markdown]
# It is exact for polynomials of degree two, since $f^{(3)} = 0$.
#
# ## 2. How small is small enough?
#
# **Predict.** The error shrinks with $h^2$. So should $h$ be as small as possible: $10^{-8}$, $10^{-12}$, $10^{-15}$?
#
# The computer stores about 16 digits in float64 and 7 in float32: each value of $f$ is off by up to $\epsilon |f|$,
# with $\epsilon = 2^{-53}$ or $2^{-24}$. The difference of two nearly equal values keeps this error, and the division
# by $2h$ magnifies it. So the error has two parts, one that falls with $h$ and one that rises:
#
# $$ E(h) = \frac{h^2}{6} |f^{(3)}| + \frac{\epsilon |f|}{h} . $$
#
# ### Exercise 2: the best step
#
# Set $E'(h) = 0$ and solve for $h$.


# %% tags=["exercise"]
def best_step(value, third, epsilon):
    """Return the h at which h**2 / 6 * |third| + epsilon * |value| / h is smallest."""
    ### BEGIN SOLUTION hint: h * |third| / 3 = epsilon * |value| / h**2
    return (3 * epsilon * abs(value) / abs(third)) ** (1 / 3)
    ### END SOLUTION


# %% tags=["check"]
fine = np.logspace(-9, 3, 200_001)
for value, third, epsilon in ((1.0, 1.0, 2.0**-53), (1.0, 1.0, 2.0**-24), (-5.0, 0.2, 1e-10), (0.1, -30.0, 1e-6)):
    expected = fine[np.argmin(fine**2 / 6 * abs(third) + epsilon * abs(value) / fine)]
    found = best_step(value, third, epsilon)
    assert np.isclose(found, expected, rtol=1e-3), (
        f"f = {value}, f''' = {third}, epsilon = {epsilon:.1e}: E is smallest at {expected:.3e}, you say {found:.3e}"
    )

# %% [markdown]
# Now measured. For $f = e^x$ all derivatives equal the value, so the relative error is $h^2/6 + \epsilon/h$ at every
# $x$. We take 64 points and the root of the mean square of their relative errors, in both precisions, and for float64
# also the one-sided quotient.

# %%
steps = np.logspace(-14, 0, 57 if FAST else 141)
start = np.random.default_rng(0).uniform(0.5, 1.5, 64)


def relative_errors(dtype, two_sided=True):
    """Return the relative error of the quotient of exp for each step, over 64 points: root mean square."""
    x = start.astype(dtype)
    exact = np.exp(x.astype(np.float64))
    errors = []
    for h in steps.astype(dtype):
        if two_sided:
            quotient = difference_quotient(np.exp, x, dtype(1), h)
        else:
            quotient = (np.exp(x + h) - np.exp(x)) / h
        errors.append(np.sqrt(np.mean((quotient / exact - 1) ** 2)))
    return np.array(errors)


errors = {name: relative_errors(dtype) for name, dtype in (("float64", np.float64), ("float32", np.float32))}
errors["float64, one-sided"] = relative_errors(np.float64, two_sided=False)
best = {"float64": best_step(1, 1, 2.0**-53), "float32": best_step(1, 1, 2.0**-24)}
for name, predicted in best.items():
    lowest = np.argmin(errors[name])
    print(f"{name}: best h {steps[lowest]:.1e}, predicted {predicted:.1e}; error there {errors[name][lowest]:.1e}")
    assert 0.2 < steps[lowest] / predicted < 5, f"{name}: the lowest point is not where it was predicted"

# %%
figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
looks = {"float64": ("-", COLOURS[0]), "float32": ("--", COLOURS[1]), "float64, one-sided": (":", "black")}
for name, (style, colour) in looks.items():
    axes.loglog(steps, errors[name], linestyle=style, color=colour, linewidth=2, label=name)
for name, predicted in best.items():
    axes.axvline(predicted, color=looks[name][1], linestyle=looks[name][0], linewidth=0.8)
    axes.text(predicted * 1.2, 4, f"$h^*$ = {predicted:.1e}", color=looks[name][1], fontsize=9)
axes.set(xlabel="step h", ylabel="relative error of the quotient", ylim=(1e-13, 30), xlim=(1e-14, 1))
axes.set_title("too small a step drowns in rounding, too large a step in curvature")
axes.legend(loc="lower left")
axes.grid(color="0.9")
show(
    figure,
    alt="Three V-shaped curves of error against step. Two-sided float64 is lowest, about 1e-11, just left of 7e-6; "
    "one-sided float64 reaches 1e-8; float32 reaches 1e-5 near 3e-3. Thin lines mark the predicted steps.",
)

# %% [markdown]
# **The V.** Read the float64 curve from the right. From $h = 1$ to $10^{-5}$ the line falls by two decades for each
# decade of $h$: that is $h^2/6$. Further to the left it *rises* by one decade per decade: that is $\epsilon/h$. The
# float32 curve ends in a plateau: below $10^{-8}$, $x + h$ *is* $x$ in float32, the quotient is 0 and all of the
# value is missing. The one-sided quotient has the same left arm but a right arm of slope 1, so it meets the rounding
# sooner and higher.

# %%
slopes = {}
for name, first, last in (("float64", 1e-4, 1e-1), ("float64", 1e-12, 1e-7), ("float64, one-sided", 1e-6, 1e-2)):
    arm = (steps > first) & (steps < last)
    slope, _ = np.polyfit(np.log10(steps[arm]), np.log10(errors[name][arm]), 1)
    slopes[name, first] = slope
    print(f"{name}, h from {first:.0e} to {last:.0e}: slope {slope:+.2f}")
assert abs(slopes["float64", 1e-4] - 2) < 0.1 and abs(slopes["float64", 1e-12] + 1) < 0.2
assert abs(slopes["float64, one-sided", 1e-6] - 1) < 0.1

# %% [markdown]
# Two consequences, which the rest of the course keeps to. **Gradients are checked in float64**: at its best step
# float32 leaves an error of about $10^{-5}$, and a fault smaller than that stays unseen. **The step is $10^{-5}$**,
# close to the best one for any function whose value and third derivative are of the size of 1.
#
# ## 3. All entries at once
#
# An op has arrays as arguments: say $x$ has $n$ numbers and $y$ has $m$. The derivative is a matrix $J$ of
# $m \times n$. `backward(dy)` claims to return $J^T dy$.
#
# **Predict**: to move each number of a map of 64 × 64 × 32 by $\pm h$, how many evaluations of the op are needed?
#
# 262,144. But there is a better way. For any `dy` and any direction $v$
#
# $$ \langle dy,\; J v \rangle = \langle J^T dy,\; v \rangle . $$
#
# On the left, $Jv$ is the derivative along $v$: a difference quotient, two evaluations. On the right stands what
# `backward` returns. **Two numbers must be equal**, and every entry of the gradient takes part.
#
# Can an error hide? Let $e$ be the gradient's error. The two numbers differ by $\langle e, v \rangle$. With entries
# of $v$ drawn from the normal distribution this is a random number of standard deviation $\|e\|$: it is as good as
# never zero. That holds if $v$ **and** `dy` are random. Section 5 shows what happens when one of them is not.

# %%
rng = np.random.default_rng(3)
A = rng.standard_normal((4, 6))
v, dy = rng.standard_normal(6), rng.standard_normal(4)
print(f"<dy, Av> = {np.vdot(dy, A @ v):.12f}")
print(f"<A'dy, v> = {np.vdot(A.T @ dy, v):.12f}")
slip = A.T @ dy
slip[2] *= 1.01
print(f"with one of six entries 1 % off: {np.vdot(slip, v):.12f}")
assert np.isclose(np.vdot(dy, A @ v), np.vdot(A.T @ dy, v), rtol=1e-12)

# %% [markdown]
# ### Exercise 3: the checker
#
# `op(*arguments)` returns `(y, backward)`, as in notebook 01. Draw a random `dy`, run `backward` once, and then take
# each floating-point argument **alone**: draw a direction $v$, move that argument by $\pm hv$, and compare the two
# inner products. Return the relative gap of each argument, by its number:
#
# $$ \text{gap} = \frac{|\langle dy, Jv \rangle - \langle dx, v \rangle|}{\|Jv\| + 10^{-3} \|y\|} . $$
#
# The second term of the denominator allows for rounding where $Jv$ is zero. A gradient of the wrong shape has the gap
# `np.inf`. Integer arguments (indices) have no gradient and are skipped.


# %% tags=["exercise"]
def gaps(op, *arguments, h=1e-5):
    """Return argument number -> relative gap between difference quotient and backward, for each float argument."""
    ### BEGIN SOLUTION hint: rng.standard_normal for dy and for each v; op(*arguments[:i], moved, *arguments[i + 1:])
    rng = np.random.default_rng([0, 0xC0FFEE])  # a seed that nobody takes for the arguments
    y, backward = op(*arguments)
    dy = rng.standard_normal(y.shape)
    found = {}
    for i, (argument, gradient) in enumerate(zip(arguments, backward(dy), strict=True)):
        if argument.dtype.kind != "f":
            continue
        if np.shape(gradient) != argument.shape:
            found[i] = np.inf
            continue
        v = rng.standard_normal(argument.shape)
        ends = [op(*arguments[:i], argument + sign * h * v, *arguments[i + 1 :])[0] for sign in (1, -1)]
        quotient = (ends[0] - ends[1]) / (2 * h)
        difference = abs(np.vdot(dy, quotient) - np.vdot(gradient, v))
        found[i] = difference / (np.linalg.norm(quotient) + 1e-3 * np.linalg.norm(y))
    return found
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng([7, 2])
a, b, row = rng.standard_normal((3, 4)), rng.standard_normal((3, 4)), rng.standard_normal(4)
pick = np.array([0, 2])
RIGHT = {
    "a * b": (lambda a, b: (a * b, lambda dy: (dy * b, dy * a)), a, b),
    "1e6 * a * a": (lambda a: (1e6 * a * a, lambda dy: (2e6 * dy * a,)), a),
    "a - mean(a)": (lambda a: (a - a.mean(), lambda dy: (dy - dy.mean(),)), a),
    "a[[0, 2]].sum(0)": (lambda a, i: (a[i].sum(0), lambda dy: (np.array([dy, 0 * dy, dy]), None)), a, pick),
}
WRONG_BACKWARDS = {
    "a * b, the second gradient is doubled": (lambda a, b: (a * b, lambda dy: (dy * b, 2 * dy * a)), 1, a, b),
    "a * b, 0.1 % too large": (lambda a, b: (a * b, lambda dy: (1.001 * dy * b, dy * a)), 0, a, b),
    "a - mean(a), whose backward returns zeros": (lambda a: (a - a.mean(), lambda dy: (0 * dy,)), 0, a),
    "a + b, with 2dy for a and 0 for b": (lambda a, b: (a + b, lambda dy: (2 * dy, 0 * dy)), 0, a, b),
    "a * b, entries in the wrong order": (lambda a, b: (a * b, lambda dy: (np.roll(dy * b, 1), dy * a)), 0, a, b),
    "1e-6 * a, twice too large": (lambda a: (1e-6 * a, lambda dy: (2e-6 * dy,)), 0, a),
}
for name, (op, *arguments) in RIGHT.items():
    found = gaps(op, *arguments)
    floats = [i for i, argument in enumerate(arguments) if argument.dtype.kind == "f"]
    assert sorted(found) == floats, f"{name}: expected gaps of the arguments {floats}, got those of {sorted(found)}"
    assert max(found.values()) < 1e-7, (
        f"{name} is right, but you find a gap of {max(found.values()):.1e}: is it relative?"
    )
for name, (op, i, *arguments) in WRONG_BACKWARDS.items():
    gap = gaps(op, *arguments)[i]
    assert gap > 1e-5, f"{name}: wrong, but the gap of argument {i} is only {gap:.1e}; dy and v random? each one alone?"
try:
    gap = gaps(lambda a, row: (a + row, lambda dy: (dy, dy)), a, row)[1]
except ValueError:
    gap = None
assert gap == np.inf, "a + row, whose gradient for row has a's shape: the gap should be inf; compare shapes first"

# %% [markdown]
# ## 4. Five suspects
#
# Here are five ops, each with a backward that somebody wrote. Three are wrong.
#
# **Predict**: read them before you run anything, and write down which. Each slip has been made in real programs.


# %%
def smooth_l1(x):
    """x² / 2 near zero, |x| - 1/2 elsewhere."""
    near = np.abs(x) < 1
    return np.where(near, x * x / 2, np.abs(x) - 0.5), lambda dy: (dy * np.where(near, x, np.sign(x)),)


def divide(a, b):
    """a / b."""
    return a / b, lambda dy: (dy / b, -dy * a / b)


def gather(x, index):
    """x[index]: some rows of x, in this order."""

    def backward(dy):
        dx = np.zeros_like(x)
        dx[index] = dy
        return dx, None

    return x[index], backward


def softmax(x):
    """e**x, divided by its sum over the last axis: probabilities."""
    e = np.exp(x - x.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    return y, lambda dy: (y * (dy - dy.mean(-1, keepdims=True)),)


def log_sum_exp(x):
    """The logarithm of the sum of e**x over the last axis."""
    highest = x.max(-1, keepdims=True)
    e = np.exp(x - highest)
    total = e.sum(-1, keepdims=True)
    return (np.log(total) + highest)[..., 0], lambda dy: (dy[..., None] * e / total,)


rng = np.random.default_rng(11)
scores = rng.standard_normal((6, 5))
SUSPECTS = {
    "smooth_l1": (smooth_l1, 2 * scores),
    "divide": (divide, scores, 1 + rng.random((6, 5))),
    "gather": (gather, scores, np.array([4, 1, 4])),
    "softmax": (softmax, scores),
    "log_sum_exp": (log_sum_exp, scores),
}
TOLERANCE = 1e-6
by_random = {name: max(gaps(op, *arguments).values()) for name, (op, *arguments) in SUSPECTS.items()}
for name, gap in by_random.items():
    print(f"{name:12} gap {gap:.1e}   {'WRONG' if gap > TOLERANCE else 'right'}")
guilty = {name for name, gap in by_random.items() if gap > TOLERANCE}
assert guilty == {"divide", "gather", "softmax"}

# %% [markdown]
# - **divide**: $\partial (a/b)/\partial b = -a/b^2$. One division is missing. The first gradient is right, so a checker
#   that tries only the first argument passes it.
# - **gather**: row 4 was taken twice, so its gradient has two parts. `dx[index] = dy` writes one over the other;
#   `np.add.at(dx, index, dy)` adds. In this course a gather reads the maps at the objects' centres, where two objects
#   can meet (notebook 09).
# - **softmax**: we come to it.
#
# The gather is worth a second look: with three different rows there is nothing to add up.

# %%
distinct = gaps(gather, scores, np.array([4, 1, 0]))[0]
print(f"gather of rows 4, 1, 0: gap {distinct:.1e}")
assert distinct < TOLERANCE

# %% [markdown]
# **A check says something about the arguments it was given, and nothing about others.** Give it ties, repeats,
# stretched axes, negative numbers: whatever the code treats specially.
#
# ## 5. The blind spot: a constant output gradient
#
# Many checks are written differently. To have a single number, they take $L = \sum_i y_i$ and compare its gradient with
# differences. That is convenient, and it means `dy` = 1 everywhere. Let us do this to the five suspects.
#
# **Predict** the verdict on each.


# %%
def summed(op):
    """Return the op followed by a sum over all of its result."""

    def total(*arguments):
        y, backward = op(*arguments)
        return y.sum(), lambda d: backward(np.full(y.shape, d))

    return total


by_sum = {name: max(gaps(summed(op), *arguments).values()) for name, (op, *arguments) in SUSPECTS.items()}
for name, gap in by_sum.items():
    print(f"{name:12} gap {gap:.1e}   {'WRONG' if gap > TOLERANCE else 'right'}")
acquitted = guilty - {name for name, gap in by_sum.items() if gap > TOLERANCE}
assert acquitted == {"softmax"}

# %%
figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
rows = np.arange(len(SUSPECTS))
axes.scatter(np.maximum(list(by_random.values()), 1e-16), rows - 0.12, marker="o", color=COLOURS[0], label="random dy")
axes.scatter(
    np.maximum(list(by_sum.values()), 1e-16), rows + 0.12, marker="x", color=COLOURS[1], label="dy = 1 (a sum)"
)
axes.axvline(TOLERANCE, color="black", linestyle="--", linewidth=1)
axes.text(TOLERANCE * 1.5, -0.35, "tolerance", fontsize=9, va="center")
axes.set_yticks(rows, list(SUSPECTS))
axes.set(xscale="log", xlabel="relative gap (right of the line: refused)", xlim=(3e-17, 30), ylim=(4.6, -0.6))
axes.legend(loc="lower right")
axes.grid(color="0.9")
show(
    figure,
    alt="Gaps of the five ops on a logarithmic axis. With random dy divide, gather and softmax lie far right of the "
    "tolerance, the other two far left. With dy = 1 softmax lies left too: its fault is not seen.",
)

# %% [markdown]
# The probabilities of a softmax add up to 1, whatever $x$ is. So the sum of $y$ is constant, its true gradient is zero,
# and the wrong formula gives $y\,(1 - 1) = 0$ as well. *A constant `dy` cannot see what sums to a constant.* Every op
# that normalises has this property: softmax, subtracting a mean, batch normalisation. Notebook 04 shows how much of a
# batch normalisation can be missing without the sum noticing.
#
# ### Exercise 4: the right softmax
#
# From $y_i = e^{x_i} / \sum_k e^{x_k}$ follows $\partial y_i / \partial x_j = y_i (\delta_{ij} - y_j)$, where
# $\delta_{ij}$ is 1 for $i = j$ and 0 otherwise. Multiply by $dy_i$, sum over $i$, and compare with the suspect.


# %% tags=["exercise"]
def right_softmax(x):
    """Return the softmax over the last axis of x (N, C), and its backward."""
    ### BEGIN SOLUTION hint: dx_j = y_j (dy_j - sum over i of y_i dy_i), row by row
    e = np.exp(x - x.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    return y, lambda dy: (y * (dy - (y * dy).sum(-1, keepdims=True)),)
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(5)
x, dy = rng.standard_normal((2, 3, 4))
y, backward = right_softmax(x)
assert np.allclose(y, softmax(x)[0]), "the forward was right in the suspect; keep it"
expected = np.stack([(np.diag(p) - np.outer(p, p)).T @ d for p, d in zip(y, dy, strict=True)])  # the matrix, row by row
found = backward(dy)[0]
assert found.shape == x.shape, f"x has shape {x.shape}, its gradient {found.shape}"
assert np.allclose(found, expected), (
    f"row 0: the matrix gives {expected[0].round(4)}, yours {found[0].round(4)}; the sum is weighted by y, row by row"
)

# %%
print(f"gap of the right softmax: {gaps(right_softmax, scores)[0]:.1e}")
assert gaps(right_softmax, scores)[0] < TOLERANCE

# %% [markdown]
# ## 6. Where there is no derivative
#
# **Predict** what the two-sided quotient of $\max(x, 0)$ is at $x = 0$.

# %%
at_zero = difference_quotient(lambda x: np.maximum(x, 0), np.zeros(1), np.ones(1), 1e-5)
beside = difference_quotient(lambda x: np.maximum(x, 0), np.array([4e-6]), np.ones(1), 1e-5)
print(f"at 0: {at_zero[0]}, at 0.000004: {beside[0]:.2f}, true slopes: 0 to the left, 1 to the right")
assert at_zero[0] == 0.5 and np.isclose(beside[0], 0.7)

# %% [markdown]
# Neither 0 nor 1: the two points lie on different sides of the kink. This is no fault of the op. Whoever checks a
# ReLU, an absolute value or a maximum keeps the arguments further than $h$ from the kinks. Random float64 arguments
# nearly always do: with $h = 10^{-5}$, fewer than one run in a hundred has any of a thousand normal numbers that
# close to zero.

# %%
near_a_kink = 2e-5 / np.sqrt(2 * np.pi)  # probability that a normal number lies within 1e-5 of zero
print(f"expected among 1,000 numbers: {1000 * near_a_kink:.4f}")
assert 1000 * near_a_kink < 0.01

# %% [markdown]
# ## 7. The package agrees
#
# `tests/gradients.py` holds the checker that every op of the package has passed. It works as yours does, and tries all
# arguments together as well. First the five suspects, then an equation of the paper.


# %%
def verdict(op, *arguments, **options):
    """Return what the package's checker says: None, or its complaint."""
    try:
        gradients.check(op, *arguments, **options)
    except AssertionError as complaint:
        return str(complaint)
    return None


complaints = {}
for name, (op, *arguments) in (SUSPECTS | {"right_softmax": (right_softmax, scores)}).items():
    complaints[name] = verdict(autograd.differentiable(op), *arguments)
    print(f"{name:14} {complaints[name] or 'right'}")
assert {name for name, complaint in complaints.items() if complaint} == guilty

# %%
rng = np.random.default_rng(13)
logits = rng.standard_normal((2, 8, 8, 3))
heatmap = rng.random((2, 8, 8, 3)) * 0.9
heatmap[0, 3, 4, 1] = heatmap[1, 6, 2, 0] = 1
assert verdict(focal_loss, logits, heatmap, constants=("heatmap",)) is None
assert verdict(ops.log, 1 + rng.random((3, 4))) is None
print("the focal loss (E4) and the logarithm have right gradients")

# %% [markdown]
# It also asks what inner products in float64 cannot show. Here are two ops whose gradients pass your check.
#
# **Predict** what is wrong with each.


# %%
@autograd.differentiable
def scale(x):
    factor = np.array([0.5, 2.0, 1.0, 3.0])
    return x * factor, lambda dy: (dy * factor,)


@autograd.differentiable
def shift(x):
    return x + 1, lambda dy: (dy + 1e-8,)


for op in (scale, shift):
    print(f"{op.__name__}: your gap {gaps(op.raw, a)[0]:.1e}; the package: {verdict(op, a)}")
    assert gaps(op.raw, a)[0] < TOLERANCE and verdict(op, a) is not None

# %% [markdown]
# `scale` turns float32 into float64 without a word, which doubles the memory and the time of everything after it.
# `shift` adds a constant that does not come from `dy`: too small for the tolerance, yet a gradient is linear in `dy`
# by its nature, and that can be tested to $10^{-9}$ without any $h$.
#
# ## Break it
#
# A colleague checks $y = x/\|x\|$. The backward is a stub that returns zeros. The output gradient is random, the
# direction is random, and the check passes.


# %%
def normalise(x):
    return x / np.linalg.norm(x), lambda dy: (np.zeros_like(x),)


def colleagues_gap(op, x):
    rng = np.random.default_rng(0)
    v = rng.standard_normal(x.shape)
    dy = rng.standard_normal(x.shape)
    quotient = difference_quotient(lambda x: op(x)[0], x, v, 1e-5)
    return abs(np.vdot(dy, quotient) - np.vdot(op(x)[1](dy)[0], v))


x = np.random.default_rng(0).standard_normal(8)
print(f"the colleague's gap: {colleagues_gap(normalise, x):.1e}")
print(f"yours:               {gaps(normalise, x)[0]:.1e}")
assert colleagues_gap(normalise, x) < TOLERANCE < gaps(normalise, x)[0]

# %% [markdown]
# Random, both of them. Why does the check not see that the gradient is missing?
#
# <details><summary>Answer</summary>
#
# `np.random.default_rng(0)` appears twice: once for the argument, once in the check. The same seed gives the same
# numbers, so $v = x$. Along $x$ itself, $x/\|x\|$ does not change: $Jv = 0$, and zeros agree with it. The same happens
# to every op that does not care about the length of its argument, and batch normalisation is nearly one. The cure is a
# seed that nobody else uses; the package's checker takes `default_rng([seed, 0xC0FFEE])`, and says why.
#
# </details>
#
# ## Summary
#
# - The two-sided quotient errs by $h^2 |f^{(3)}|/6$ from curvature and by about $\epsilon |f|/h$ from rounding. The
#   best step is the cube root of $3 \epsilon |f|/|f^{(3)}|$: near $10^{-5}$ in float64.
# - $\langle dy, Jv \rangle = \langle J^T dy, v \rangle$ tests every entry of a gradient with two evaluations.
# - Both `dy` and $v$ must be random, of a seed of their own, and each argument must move alone.
# - A constant `dy` is blind to whatever sums to a constant.
# - A check holds for the arguments that it was given.
#
# ## In the package
#
# - `tests/gradients.py`: `check` for ops, `check_module` for layers with parameters
# - `tests/test_gradients.py`: faults planted in it, each of which it must refuse
# - `minicenternet.points.losses.focal_loss`, `minicenternet.ops.pointwise.log`: two of the ops that passed here
