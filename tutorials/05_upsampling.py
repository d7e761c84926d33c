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
# # 05 · Upsampling
#
# - **Goal**: make maps larger in the three ways that detectors use, nearest, bilinear and transposed convolution, each
#   with its backward pass; understand checkerboards, and the kernel that has none.
# - **You need**: 02 Gradient checks, 03 Convolution.
# - **Minutes**: 60 to read and work; runs in about 5 s.
# - **Equations**: none of E1 to E10. Here: nearest, bilinear, and the transposed convolution as the adjoint of the
#   convolution.
# - **What you should see**: every $\langle dy, y\rangle = \langle dx, x\rangle$ to ten digits; a transposed convolution
#   with the bilinear kernel equal to bilinear upsampling within $10^{-12}$ away from the border; a random 4 × 4 kernel
#   that learns to be the bilinear one within $10^{-6}$, and a 3 × 3 one that cannot.
#
# An encoder makes maps small: stride 16 or 32, so that an output sees much of the image. CenterNet answers on a map of
# stride $R = 4$, so that two objects rarely share a cell. Something must bring the small map back.

# %%
import math
import os

import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minicenternet.draw import COLOURS, DASHES, show
from minicenternet.nn import init
from minicenternet.ops import conv2d, conv_transpose2d, upsample2d
from minicenternet.ops.upsample2d import bilinear_matrix as package_matrix

FAST = os.environ.get("MINICENTERNET_FAST") == "1"


# %% [markdown]
# All three are linear in $x$: $y = Mx$. So the backward pass is $dx = M^\top dy$, and the test of notebook 03 proves
# it: for random $x$ and $dy$, $\langle dy, y\rangle = \langle dx, x\rangle$.


# %%
def assert_adjoint(y, x, dy, dx, what):
    assert dx.shape == x.shape, f"{what}: dx has shape {dx.shape}, x has {x.shape}"
    sent, got = np.vdot(dy, y), np.vdot(dx, x)
    assert math.isclose(sent, got, rel_tol=1e-10), f"{what}: <dy, y> = {sent:.9f} but <dx, x> = {got:.9f}"


# %% [markdown]
# ## 1 · Nearest
#
# The simplest way: each pixel becomes a block of $F \times F$ equal ones,
#
# $$y_{b,i,j,c} = x_{b,\,\lfloor i/F\rfloor,\,\lfloor j/F\rfloor,\,c}$$
#
# **Predict.** In the backward pass $F^2$ numbers of $dy$ meet in one number of $dx$. Their mean, their sum, or one of
# them?
#
# Use the chain rule: $x_{h,w}$ was used $F^2$ times. **Write** both passes, in the form of an op: return
# `(y, backward)`.


# %% tags=["exercise"]
def nearest(x, factor):
    """Return y (B, F*H, F*W, C) of x (B, H, W, C), and the function that takes dy to dx."""
    batch, height, width, channels = x.shape
    ### BEGIN SOLUTION hint: repeat along rows and columns; dy as blocks (B, H, F, W, F, C) tells which numbers meet
    y = x.repeat(factor, axis=1).repeat(factor, axis=2)

    def backward(dy):
        return dy.reshape(batch, height, factor, width, factor, channels).sum(axis=(2, 4))

    return y, backward
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(0)
x_check = rng.standard_normal((2, 3, 4, 5))
for factor in (1, 2, 3):
    y_check, backward_check = nearest(x_check, factor)
    assert y_check.shape == (2, 3 * factor, 4 * factor, 5), f"factor {factor}: y has shape {y_check.shape}"
    for i, j in ((0, 0), (factor, 1), (3 * factor - 1, 4 * factor - 1)):
        assert np.array_equal(y_check[:, i, j], x_check[:, i // factor, j // factor]), (
            f"factor {factor}: y at row {i}, column {j} is not x at row {i // factor}, column {j // factor}"
        )
    dy_check = rng.standard_normal(y_check.shape)
    dx_check = backward_check(dy_check)
    assert_adjoint(y_check, x_check, dy_check, dx_check, f"nearest, factor {factor}: which numbers of dy meet, and how")
print("nearest and its adjoint")

# %% [markdown]
# ## 2 · Bilinear
#
# Blocks are coarse. Put a straight line between neighbours instead. The only question is **where the pixels lie**, and
# many bugs are wrong answers to it.
#
# A pixel is a square, not a point. Pixel $i$ covers $[i, i+1)$; its centre is at $i + \tfrac12$. Enlarging by $F$
# stretches the picture, so the centre $i + \tfrac12$ of an output pixel lies at $(i + \tfrac12)/F$ of the input, which
# is the position
#
# $$p_i = \frac{i + \tfrac12}{F} - \tfrac12$$
#
# in units of input pixel *indices*. The two neighbours are $l = \lfloor p_i\rfloor$ and $l + 1$, with the weights
# $1 - (p_i - l)$ and $p_i - l$. Positions outside $[0, H-1]$ are moved to the border.
#
# **Predict.** For $F = 2$, which weights does output 1 give to inputs 0 and 1?
#
# All weights together are a matrix $A$ $(FH \times H)$; the same along columns, $A'$:
#
# $$y_{b,i,j,c} = \sum_{h,w} A_{ih}\,A'_{jw}\,x_{b,h,w,c}$$
#
# **Write** $A$. For one input row ($H = 1$) it is a column of ones.


# %% tags=["exercise"]
def bilinear_matrix(size, factor):
    """Return A (factor*size, size): row i holds the weights of output i."""
    matrix = np.zeros((factor * size, size))
    ### BEGIN SOLUTION hint: p = (i + 1/2)/F - 1/2, moved into 0 .. size-1; its neighbours are floor(p) and the next
    for i in range(factor * size):
        position = min(max((i + 0.5) / factor - 0.5, 0), size - 1)
        left = int(position)
        right = min(left + 1, size - 1)
        matrix[i, left] += 1 - (position - left)
        matrix[i, right] += position - left
    ### END SOLUTION
    return matrix


# %% tags=["check"]
found = bilinear_matrix(2, 2)
expected = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
assert np.allclose(found, expected), (
    f"for 2 pixels and F = 2 the positions are 0 (moved), 1/4, 3/4, 1 (moved):\n{found}"
)
for size, factor in ((5, 2), (4, 3), (6, 4), (1, 2)):
    found = bilinear_matrix(size, factor)
    assert np.allclose(found.sum(axis=1), 1), f"size {size}, F = {factor}: the weights of an output add up to 1"
    assert found.min() >= 0, f"size {size}, F = {factor}: a weight is below 0; move the position into the map first"
    centres = found @ (np.arange(size) + 0.5)  # where the weights lie
    wanted = np.clip((np.arange(factor * size) + 0.5) / factor, 0.5, size - 0.5)
    assert np.allclose(centres, wanted), f"size {size}, F = {factor}: positions are off; pixel centres are at i + 1/2"
    assert np.allclose(found, package_matrix(size, factor), atol=1e-12), "the package's matrix is another one"
print(bilinear_matrix(3, 2))


# %% [markdown]
# The op is two matrix products, and its backward pass is the same with both matrices transposed. No new thought is
# needed: $M = A \otimes A'$, so $M^\top = A^\top \otimes A'^\top$.


# %%
def bilinear(x, factor):
    rows, columns = (bilinear_matrix(size, factor) for size in x.shape[1:3])

    def along(rows, columns, x):
        return np.einsum("ih,jw,bhwc->bijc", rows, columns, x, optimize=True)

    return along(rows, columns, x), lambda dy: along(rows.T, columns.T, dy)


rng = np.random.default_rng(1)
x = rng.standard_normal((2, 5, 4, 3))
for factor in (2, 3, 4):
    for function, mode in ((nearest, "nearest"), (bilinear, "bilinear")):
        y, backward = function(x, factor)
        dy = rng.standard_normal(y.shape)
        assert_adjoint(y, x, dy, backward(dy), f"{mode}, factor {factor}")
        package_y, package_backward = upsample2d.raw(x, factor=factor, mode=mode)
        assert np.abs(y - package_y).max() < 1e-12, f"{mode}: the package's y differs"
        assert np.abs(backward(dy) - package_backward(dy)[0]).max() < 1e-12, f"{mode}: the package's dx differs"
print("both agree with the package, forwards and backwards")

# %% [markdown]
# In one dimension both can be seen at once. The third curve uses the positions $i/F$, which many first drafts do.

# %%
samples, factor = np.array([1.0, 3.0, 2.0, 4.0, 0.5]), 8
fine = np.arange(factor * len(samples))
wrong_positions = np.minimum(fine / factor, len(samples) - 1)
figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
at = (fine + 0.5) / factor
curves = {
    "nearest": samples[fine // factor],
    "bilinear": bilinear_matrix(len(samples), factor) @ samples,
    "bilinear, positions i / F": np.interp(wrong_positions, np.arange(len(samples)), samples),
}
for k, (name, values) in enumerate(curves.items()):
    axis.plot(at, values, color=COLOURS[k], linestyle=DASHES[k], marker=".", markersize=3, label=name)
axis.plot(np.arange(len(samples)) + 0.5, samples, "o", color="black", markersize=8, label="input pixels")
axis.set(
    xlabel="place, input pixels (pixel i covers i to i + 1)", ylabel="value", xlim=(0, len(samples)), ylim=(0, 5.6)
)
axis.legend(loc="upper left", ncols=2, fontsize=9, frameon=False)
show(
    figure,
    alt="Five samples, the steps of nearest, the polygon of bilinear through all samples, and the same shifted left.",
)

# %% [markdown]
# Nearest and bilinear pass through the samples' centres. The third curve is shifted to the left by half an input pixel
# less half an output pixel. Remember it.
#
# ## 3 · Transposed convolution
#
# Both ways above are fixed. A **transposed convolution** learns its weights. Its definition is short. A convolution
# with stride $S$ takes a large map $z$ to a small one, $z \mapsto Mz$. Its adjoint $M^\top$ takes a small map to a
# large one:
#
# $$\langle x, \mathrm{conv}(z, w)\rangle = \langle \mathrm{conv}^\top(x, w), z\rangle \quad \text{for all } x, z$$
#
# You have written it already: it is the input gradient of notebook 03, now used forwards. Every input pixel puts its
# kernel, times its value, on the output; where stamps overlap they add up:
#
# $$y_{b,\;Si+u-P,\;Sj+v-P,\;o} \mathrel{+}= x_{b,i,j,c}\; w_{c,o,u,v}$$
#
# The stamps cover $S(H-1) + K$ rows; $P$ are cut off on both sides: $OH = S(H-1) + K - 2P$. The weight is
# `(C, O, K, K)`, inputs first, as the convolution from $O$ to $C$ channels has it.
#
# In one dimension the matrices can be drawn. **Predict**: how do $M$ and $M^\top$ look for $K = 4$, $S = 2$, $P = 1$?

# %%
kernel = np.array([1.0, 2, 3, 4])
M = np.zeros((4, 8))
for i in range(4):
    for u in range(4):
        if 0 <= 2 * i + u - 1 < 8:
            M[i, 2 * i + u - 1] = kernel[u]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained", width_ratios=(2, 1.2))
for axis, matrix, title, x_name, y_name in (
    (left, M, "convolution, M", "pixel of the large map", "pixel of the small map"),
    (right, M.T, "transposed convolution, Mᵀ", "pixel of the small map", "pixel of the large map"),
):
    drawn = axis.imshow(matrix, cmap="cividis", vmin=0, vmax=4)
    for row, column in np.argwhere(matrix):
        value = int(matrix[row, column])
        axis.text(column, row, f"w{value - 1}", ha="center", va="center", color="white" if value < 3 else "black")
    axis.set(title=title, xlabel=x_name, ylabel=y_name, xticks=range(matrix.shape[1]), yticks=range(matrix.shape[0]))
show(
    figure,
    alt="The matrix of a strided convolution, four rows of shifted kernels, and its transpose, used for upsampling.",
)

# %% [markdown]
# A row of $M$ is one window. A column of $M^\top$ is one stamp. Not an inverse: $M^\top M \ne 1$. The name
# "deconvolution" is an accident.
#
# **Write** it with stamps, one slice per tap as in 03.


# %% tags=["exercise"]
def transposed(x, weight, stride, padding):
    """Return y (B, OH, OW, O) of x (B, H, W, C) and weight (C, O, K, K)."""
    (batch, height, width, _), (_, outputs, kernel, _) = x.shape, weight.shape
    rows, columns = (stride * (n - 1) + kernel for n in (height, width))
    whole = np.zeros((batch, rows, columns, outputs), x.dtype)
    ### BEGIN SOLUTION hint: for each tap, a slice of `whole` from u, v on with step S, += x @ weight[:, :, u, v]; cut P
    for u, v in np.ndindex(kernel, kernel):
        stamped = whole[:, u : u + stride * (height - 1) + 1 : stride, v : v + stride * (width - 1) + 1 : stride]
        stamped += x @ weight[:, :, u, v]
    return whole[:, padding : rows - padding, padding : columns - padding]
    ### END SOLUTION


# %% tags=["check"]
one = np.zeros((1, 2, 2, 1))
one[0, 1, 0] = 1
stamp = transposed(one, np.arange(1.0, 10).reshape(1, 1, 3, 3), 2, 0)[0, :, :, 0]
assert stamp.shape == (5, 5), f"2 pixels, K = 3, S = 2 give 5 rows and columns, you have {stamp.shape}"
placed = np.zeros((5, 5))
placed[2:5, 0:3] = np.arange(1, 10).reshape(3, 3)
assert np.array_equal(stamp, placed), (
    f"pixel (1, 0) puts its kernel, as it is, on rows 2 to 4, columns 0 to 2; you:\n{stamp}"
)
rng = np.random.default_rng(2)
for kernel, stride, padding in ((3, 1, 1), (4, 2, 1), (3, 2, 1), (2, 2, 0), (2, 3, 0)):
    x_check, w_check = rng.standard_normal((2, 4, 3, 5)), rng.standard_normal((5, 6, kernel, kernel))
    y_check = transposed(x_check, w_check, stride, padding)
    size = tuple(stride * (n - 1) + kernel - 2 * padding for n in (4, 3))
    where = f"K = {kernel}, S = {stride}, P = {padding}"
    assert y_check.shape == (2, *size, 6), f"{where}: y has shape {y_check.shape}, expected {(2, *size, 6)}: cut P off"
    z_check = rng.standard_normal(y_check.shape)
    by_convolution = np.vdot(x_check, conv2d.raw(z_check, w_check, stride=stride, padding=padding)[0])
    by_stamps = np.vdot(y_check, z_check)
    assert math.isclose(by_convolution, by_stamps, rel_tol=1e-10), (
        f"{where}: <x, conv(z)> = {by_convolution:.6f} but <transposed(x), z> = {by_stamps:.6f}. "
        "Stamps add up; pixel i begins at S*i; the kernel is not turned; P is cut off on all four sides"
    )
print("the adjoint of the convolution")

# %% [markdown]
# ## 4 · Its backward pass
#
# With $y = M^\top x$ the gradient is $dx = (M^\top)^\top dy = M\,dy$: **the convolution**. For the weight write both
# ops as one form that is linear in each of its three arguments,
#
# $$\langle x, \mathrm{conv}(z, w)\rangle = \sum_{b,i,j,c,o,u,v} x_{b,i,j,c}\; z_{b,Si+u-P,Sj+v-P,o}\; w_{c,o,u,v}$$
#
# For the convolution, $z$ is its input and $x$ takes the place of its output gradient. For the transposed one, $x$ is
# the input and $z$ takes the place of $dy$. The weight gradient is the derivative of the same sum by $w$, so it is the
# same function, with the roles of input and output gradient exchanged. Here are the two functions of 03, short:


# %%
def convolve(z, weight, stride, padding):
    """Return the convolution of z (B, OH, OW, O) with weight (C, O, K, K): (B, H, W, C)."""
    return np.einsum("bijouv,couv->bijc", _seen(z, weight.shape[2], stride, padding), weight, optimize=True)


def convolution_weight_gradient(z, dsmall, kernel, stride, padding):
    """Return (C, O, K, K) for a convolution of z (B, OH, OW, O) whose output gradient is dsmall (B, H, W, C)."""
    return np.einsum("bijouv,bijc->couv", _seen(z, kernel, stride, padding), dsmall, optimize=True)


def _seen(z, kernel, stride, padding):
    z = np.pad(z, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return sliding_window_view(z, (kernel, kernel), (1, 2))[:, ::stride, ::stride]


# %% [markdown]
# **Write** the backward pass of the transposed convolution. Two lines are enough, if you know who plays whom.


# %% tags=["exercise"]
def transposed_gradients(dy, x, weight, stride, padding):
    """Return dx (B, H, W, C) and dweight (C, O, K, K) of y = transposed(x, weight, stride, padding)."""
    ### BEGIN SOLUTION hint: dx is a convolution of dy; for dweight, dy is what it saw, and x what came back
    dx = convolve(dy, weight, stride, padding)
    dweight = convolution_weight_gradient(dy, x, weight.shape[2], stride, padding)
    return dx, dweight
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(3)
for kernel, stride, padding in ((4, 2, 1), (3, 2, 1), (3, 1, 1), (2, 2, 0)):
    x_check, w_check = rng.standard_normal((2, 4, 3, 5)), rng.standard_normal((5, 6, kernel, kernel))
    y_check = transposed(x_check, w_check, stride, padding)
    dy_check = rng.standard_normal(y_check.shape)
    found = transposed_gradients(dy_check, x_check, w_check, stride, padding)
    where = f"K = {kernel}, S = {stride}, P = {padding}"
    for name, gradient, of in zip(("dx", "dweight"), found, (x_check, w_check), strict=True):
        assert gradient.shape == of.shape, f"{where}: {name} has shape {gradient.shape}, expected {of.shape}"
        sent, got = np.vdot(dy_check, y_check), np.vdot(gradient, of)  # y is linear in x, and in weight
        assert math.isclose(sent, got, rel_tol=1e-9), f"{where}: <dy, y> = {sent:.6f} but with {name} it is {got:.6f}"
    _, package_backward = conv_transpose2d.raw(x_check, w_check, stride=stride, padding=padding)
    for name, own, theirs in zip(("dx", "dweight"), found, package_backward(dy_check), strict=False):
        assert np.abs(own - theirs).max() < 1e-10, (
            f"{where}: {name} is not the package's; are taps or channels exchanged?"
        )
print("dx and dweight: the convolution in other roles, and equal to the package's")

# %%
rng = np.random.default_rng(4)
x, weight, bias = rng.standard_normal((2, 6, 5, 16)), rng.standard_normal((16, 24, 4, 4)), rng.standard_normal(24)
package_y, _ = conv_transpose2d.raw(x, weight, bias, stride=2, padding=1)
assert np.abs(transposed(x, weight, 2, 1) + bias - package_y).max() < 1e-10, (
    "the package's transposed convolution differs"
)
print("forward agrees too:", package_y.shape)

# %% [markdown]
# ## 5 · Checkerboards
#
# Let every stamp be all ones and every input one. An output pixel then shows how many stamps cover it.
#
# **Predict.** $S = 2$. How many stamps cover each inner pixel for $K = 3$? For $K = 4$? What must hold between $K$ and
# $S$, so that all get equally many?

# %%
coverage = {}
for kernel in (2, 3, 4, 5):
    y = transposed(np.ones((1, 8, 8, 1)), np.ones((1, 1, kernel, kernel)), 2, 0)[0, :, :, 0]
    coverage[kernel] = np.unique(y[4:-4, 4:-4]).astype(int)
    print(f"K = {kernel}: an inner pixel is covered by {coverage[kernel]} stamps")
assert list(coverage[3]) == [1, 2, 4] and list(coverage[5]) == [4, 6, 9], "K not a multiple of S: uneven"
assert list(coverage[2]) == [1] and list(coverage[4]) == [4], "K a multiple of S: even"

# %% [markdown]
# Output pixel $o$ of one axis hears the taps $u \equiv o + P \pmod S$. These are the $S$ **phases** of the kernel. When
# $S$ divides $K$, each phase has $K/S$ taps. That is a fair start, and not yet enough: on a constant map, phase $q$
# answers with the *sum of its taps*, so a flat input stays flat only if all phase sums are equal. A random kernel has
# unequal ones.
#
# ## 6 · The bilinear kernel
#
# Which kernel turns a transposed convolution into bilinear interpolation? Follow one input pixel. Its weight in the
# outputs falls off linearly with distance, from 1 at its centre to 0 at the next centre, which is $F$ output pixels
# away: a triangle. The taps are the triangle at the centres of the output pixels. With $K$ taps their distances from
# the middle are $t_u = u - \tfrac{K-1}{2}$:
#
# $$h_u = 1 - \frac{|t_u|}{F}, \qquad K = 2F - (F \bmod 2), \quad P = \frac{K - F}{2}, \quad S = F$$
#
# $K$ is even for even $F$, since the input's centre then lies between two output pixels. In two dimensions
# $w_{uv} = h_u h_v$.
#
# **Write** $h$.


# %% tags=["exercise"]
def bilinear_kernel(factor):
    """Return the taps h (K,) with which a transposed convolution of stride `factor` interpolates linearly."""
    ### BEGIN SOLUTION hint: K distances t from the middle (K - 1)/2; a triangle that reaches 0 at distance F
    taps = 2 * factor - factor % 2
    distance = np.abs(np.arange(taps) - (taps - 1) / 2)
    return 1 - distance / factor
    ### END SOLUTION


# %% tags=["check"]
for factor, by_hand in ((2, [1 / 4, 3 / 4, 3 / 4, 1 / 4]), (3, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])):
    found = bilinear_kernel(factor)
    assert len(found) == len(by_hand), f"F = {factor}: K = 2F - F mod 2 = {len(by_hand)} taps, you have {len(found)}"
    assert np.allclose(found, by_hand), f"F = {factor}: {found}, expected {by_hand}: 1 - |t|/F, t from the middle"
for factor in (2, 3, 4, 8):
    found = bilinear_kernel(factor)
    phases = [found[q::factor].sum() for q in range(factor)]
    assert np.allclose(phases, 1), f"F = {factor}: the phases add up to {phases}, expected 1 each"
    packaged = init.bilinear((1, 1, len(found), len(found)))[0, 0]
    assert np.abs(np.outer(found, found) - packaged).max() < 1e-6, f"F = {factor}: the package's kernel is another one"
print("F = 2:", bilinear_kernel(2), "  F = 4:", bilinear_kernel(4))

# %%
rng = np.random.default_rng(5)
x = rng.standard_normal((1, 7, 6, 1))
for factor in (2, 3, 4):
    h = bilinear_kernel(factor)
    by_stamps = transposed(x, np.outer(h, h)[None, None], factor, (len(h) - factor) // 2)
    gap = np.abs(by_stamps - upsample2d.raw(x, factor=factor, mode="bilinear")[0])[0, :, :, 0]
    inside = gap[factor:-factor, factor:-factor].max()
    print(f"F = {factor}: largest difference from bilinear {inside:.1e} inside, {gap.max():.2f} with the border")
    assert inside < 1e-12, "away from the border a transposed convolution with this kernel is bilinear upsampling"

# %% [markdown]
# At the border they differ: bilinear upsampling holds the last value, the transposed convolution sees zeros beyond the
# map and darkens.
#
# **Predict**, for each of the four kernels below, what a constant map becomes.

# %%
rng = np.random.default_rng(6)
h = bilinear_kernel(2)
KERNELS = {  # all of them so scaled that the mean of an inner output is 1
    "3 × 3, ones": np.ones((3, 3)) * 4 / 9,
    "4 × 4, ones": np.ones((4, 4)) / 4,
    "4 × 4, random": np.abs(rng.standard_normal((4, 4))),
    "4 × 4, bilinear": np.outer(h, h),
}
KERNELS["4 × 4, random"] *= 4 / KERNELS["4 × 4, random"].sum()
figure, axes = plt.subplots(2, 4, figsize=(8, 4.3), layout="constrained", height_ratios=(1, 1.6))
unevenness = {}
for (name, taps), (upper, lower) in zip(KERNELS.items(), axes.T, strict=True):
    y = transposed(np.ones((1, 8, 8, 1)), taps[None, None], 2, 1)[0, :, :, 0]
    unevenness[name] = y[3:-3, 3:-3].std() / y[3:-3, 3:-3].mean()
    weights = upper.imshow(taps, cmap="cividis", vmin=0, vmax=1)
    upper.set_title(name, fontsize=10)
    drawn = lower.imshow(y, cmap="cividis", vmin=0, vmax=1.8)
    lower.set_title(f"unevenness {100 * unevenness[name]:.0f} %", fontsize=10)
    for axis in (upper, lower):
        axis.set_xticks([])
        axis.set_yticks([])
axes[0, 0].set_ylabel("kernel")
axes[1, 0].set_ylabel("constant map,\nstride 2")
figure.colorbar(weights, ax=axes[0], label="tap", shrink=0.9)
figure.colorbar(drawn, ax=axes[1], label="output", shrink=0.9)
show(
    figure,
    alt="Four kernels and what they make of a constant map: checkerboards for 3 by 3 ones and random taps, else flat.",
)
print({name: round(float(value), 3) for name, value in unevenness.items()})
assert max(unevenness["4 × 4, ones"], unevenness["4 × 4, bilinear"]) < 1e-12, "equal phases leave a constant flat"
assert min(unevenness["3 × 3, ones"], unevenness["4 × 4, random"]) > 0.05, "unequal phases do not"

# %% [markdown]
# The same pattern appears in backward passes: the gradient of a strided convolution *is* a transposed convolution, so 3
# × 3 layers of stride 2 spread their gradients as in the first column. You saw the numbers 1, 2, 4 in notebook 03.
#
# ## 7 · Can it learn?
#
# A network's transposed convolution begins with random taps. Give it a task with a known answer: reproduce bilinear
# upsampling of random maps. Gradient descent with your `transposed_gradients`, nothing else. **Predict** the end of
# both curves: 4 × 4 taps, and 3 × 3.

# %%
STEPS = 100 if FAST else 240


def learn(kernel, seed):
    """Return the learnt kernel, and the error of every step: root mean square, away from the border."""
    rng = np.random.default_rng(seed)
    weight = 0.3 * rng.standard_normal((1, 1, kernel, kernel))
    inside, errors = (slice(None), slice(2, 14), slice(2, 14)), []
    for _ in range(STEPS):
        x = rng.standard_normal((8, 8, 8, 1))
        target = upsample2d.raw(x, factor=2, mode="bilinear")[0]
        # with 3 x 3 taps and P = 1 the output has one row and column less: compare what both have
        y = transposed(x, weight, 2, 1)
        dy = np.zeros_like(y)
        difference = y[inside] - target[inside]
        dy[inside] = difference / len(x)
        weight -= 0.005 * transposed_gradients(dy, x, weight, 2, 1)[1]
        errors.append(math.sqrt((difference**2).mean()))
    return weight[0, 0], errors


runs = {(kernel, seed): learn(kernel, seed) for kernel in (3, 4) for seed in range(3)}
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
for (kernel, seed), (_, errors) in runs.items():
    label = f"{kernel} × {kernel} taps, 3 seeds" if seed == 0 else None
    axis.plot(errors, color=COLOURS[kernel - 3], linestyle=DASHES[kernel - 3], linewidth=1.4, label=label)
axis.set(yscale="log", xlabel="step", ylabel="error, root mean square")
axis.grid(alpha=0.3)
axis.legend(frameon=False)
show(
    figure,
    alt="Error against steps, three seeds each: 4 by 4 kernels fall to rounding, 3 by 3 kernels stay where they are.",
)

# %%
target = np.outer(bilinear_kernel(2), bilinear_kernel(2))
for (kernel, seed), (learnt, errors) in runs.items():
    last = np.mean(errors[-20:])
    if kernel == 4:
        gap = np.abs(learnt - target).max()
        print(f"4 x 4, seed {seed}: last error {last:.1e}, largest difference from the bilinear kernel {gap:.1e}")
        assert gap < 1e-6, "a random 4 x 4 kernel learns to be the bilinear one"
    else:
        print(f"3 x 3, seed {seed}: last error {last:.3f}")
        assert last > 0.1, "3 x 3 taps cannot interpolate: one phase of each axis has a single tap"

# %% [markdown]
# The released CenterNet uses both lessons: its transposed convolutions are 4 × 4 with stride 2, so all phases have
# equally many taps; those of DLA-34 begin as bilinear kernels. Our small network uses nearest upsampling with a
# convolution after it; away from the border both leave a constant map constant, whatever the weights.
#
# What do they cost? Per output pixel and channel, nearest needs no multiplication, bilinear at most four, the
# transposed convolution $C K^2/S^2$.
#
# ## Break it
#
# A heatmap is enlarged to the size of the image, to look for its peaks there. Everything looks right. Yet all boxes are
# off by the same few pixels, up and to the left, and the more the larger $F$ is. Here a blob sits exactly at the middle
# of the image, and the middle of the enlarged blob is measured.


# %%
def their_matrix(size, factor):
    position = np.minimum(np.arange(factor * size) / factor, size - 1)
    left = np.minimum(position.astype(int), size - 2)
    matrix = np.zeros((factor * size, size))
    matrix[np.arange(factor * size), left] = 1 - (position - left)
    matrix[np.arange(factor * size), left + 1] = position - left
    return matrix


blob = np.exp(-((np.arange(16) - 7.5) ** 2) / (2 * 1.5**2))  # its middle is that of 16 pixels
shifts = {}
for factor in (2, 4, 8):
    for name, matrix in (("ours", bilinear_matrix(16, factor)), ("theirs", their_matrix(16, factor))):
        enlarged = matrix @ blob
        middle = (enlarged * (np.arange(16 * factor) + 0.5)).sum() / enlarged.sum()
        shifts[name, factor] = middle - 16 * factor / 2
    print(f"F = {factor}: off by {shifts['ours', factor]:+.3f} pixels (ours), {shifts['theirs', factor]:+.3f} (theirs)")

# %% [markdown]
# Rows of their matrix add up to 1, a constant stays constant, the adjoint test passes. What is wrong, and by how much
# exactly?
#
# <details><summary>Answer</summary>
#
# The positions are $i/F$ instead of $(i + \tfrac12)/F - \tfrac12$: pixels are taken as points at their upper left
# corners. An input index $h$ lands at output index $Fh$, but its centre belongs at $F(h + \tfrac12) - \tfrac12$.
# Everything moves by $\tfrac{F-1}{2}$ pixels: 0.5, 1.5 and 3.5 for $F = 2, 4, 8$. It is the third curve of section 2.
# No test of the op alone can see it, because the op is a perfectly good linear map; it is only not the one that was
# meant. A test that can: enlarge something whose middle is known.
#
# </details>

# %%
for factor in (2, 4, 8):
    assert abs(shifts["ours", factor]) < 1e-3, "half-pixel centres keep the middle"
    assert abs(shifts["theirs", factor] + (factor - 1) / 2) < 1e-3, "theirs moves it by (F - 1)/2"

# %% [markdown]
# ## Summary
#
# - Upsampling is linear, so its backward pass is the transpose: block sums for nearest, $A^\top$ for bilinear, a
#   convolution for the transposed convolution.
# - Pixel centres lie at $i + \tfrac12$. Whoever forgets it moves everything by $(F-1)/2$ pixels.
# - A transposed convolution stamps kernels. Its phases answer in turn; unequal phase sums make checkerboards. Where $S$
#   does not divide $K$, even equal taps have them.
# - The triangle $1 - |t|/F$ makes it bilinear, and a 4 × 4 kernel finds that by itself.
#
# ## In the package
#
# - `minicenternet.ops.upsample2d.upsample2d`: nearest and bilinear; `minicenternet.ops.upsample2d.bilinear_matrix`:
#   $A$.
# - `minicenternet.ops.conv_transpose2d.conv_transpose2d`: the three functions of `minicenternet.ops.conv2d.conv2d` in
#   other roles.
# - `minicenternet.nn.init.bilinear`: the bilinear kernel as a start.
