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
# # 03 · Convolution
#
# - **Goal**: write a convolution five times, from seven loops to Winograd's algorithm, each equal to the last; derive
#   both of its gradients and prove them by the adjoint test.
# - **You need**: 01 Autograd, 02 Gradient checks.
# - **Minutes**: 90 to read and work; runs in about 10 s.
# - **Equations**: none of E1 to E10. Here: $y = \sum w\,x$, $\partial L/\partial w$, $\partial L/\partial x$.
# - **What you should see**: five convolutions within $10^{-10}$ of each other in float64;
#   $\langle dy, y\rangle = \langle dx, x\rangle = \langle dw, w\rangle$ to ten digits; Winograd with 4 times fewer
#   multiplications and, in float32, an error below $10^{-5}$ of the largest output.
#
# Nearly all of a detector's time is spent in this one op. It is worth knowing well.

# %%
import itertools
import math
import os
import time
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from minicenternet.data import Shapes
from minicenternet.draw import COLOURS, show
from minicenternet.memory import release
from minicenternet.ops import conv2d, winograd
from minicenternet.threads import one_blas_thread, thread_count

FAST = os.environ.get("MINICENTERNET_FAST") == "1"

# %% [markdown]
# ## 1 · A sum over a window
#
# A map has $B$ images, $H$ rows, $W$ columns and $C$ channels: `x (B, H, W, C)`. Channels come last, so that the
# numbers of one pixel lie side by side in memory. A weight has $O$ output channels, $C$ input channels and $K \times K$
# **taps**: `weight (O, C, K, K)`. The convolution slides the taps over the map:
#
# $$y_{b,i,j,o} = \sum_{u,v,c} x_{b,\;Si+u-P,\;Sj+v-P,\;c}\;\, w_{o,c,u,v}$$
#
# - $S$ is the **stride**: neighbouring outputs look at windows $S$ pixels apart.
# - $P$ is the **padding**: the map is surrounded by $P$ rows and columns of zeros, so that windows may start outside.
# - The kernel is not turned round. Mathematicians call this a cross-correlation; every framework calls it convolution.
# - A bias adds one number per output channel. It is left out here until the end.
#
# The last window must still fit: $S(OH-1) + K \le H + 2P$. Hence the size of the output:
#
# $$OH = \left\lfloor \frac{H + 2P - K}{S} \right\rfloor + 1$$


# %%
def output_size(size, kernel, stride, padding):
    return (size + 2 * padding - kernel) // stride + 1


def pad(x, padding):
    return np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


# %% [markdown]
# **Predict.** A map of 64 × 64 goes through a 3 × 3 kernel with $P = 1$ at stride 1, then through one at stride 2, then
# through a 7 × 7 kernel at stride 2 with $P = 3$. What are the sizes? Work them out before you run the cell.

# %%
sizes = [64]
for kernel, stride, padding in ((3, 1, 1), (3, 2, 1), (7, 2, 3)):
    sizes.append(output_size(sizes[-1], kernel, stride, padding))
print(sizes)
assert sizes == [64, 64, 32, 16], "stride 1 with P = (K-1)/2 keeps the size; stride 2 halves it"

# %% [markdown]
# One example by hand, which every version below must reproduce. One image, one channel, no padding:
#
# $$x = \begin{pmatrix}1&2&3\\4&5&6\\7&8&9\end{pmatrix},\quad w = \begin{pmatrix}1&2\\3&4\end{pmatrix},\quad y_{0,0} =
# 1\cdot1 + 2\cdot2 + 4\cdot3 + 5\cdot4 = 37,\quad y = \begin{pmatrix}37&47\\67&77\end{pmatrix}$$
#
# **Write** the definition. Four loops say which output, three more say which product. It will be slow. It will also be
# the only version that nobody doubts.


# %% tags=["exercise"]
def convolve_loop(x, weight, stride=1, padding=0):
    """Return y (B, OH, OW, O) of x (B, H, W, C) and weight (O, C, K, K), product by product."""
    (batch, height, width, channels), (outputs, _, kernel, _) = x.shape, weight.shape
    rows, columns = (output_size(n, kernel, stride, padding) for n in (height, width))
    padded = pad(x, padding)
    y = np.zeros((batch, rows, columns, outputs), x.dtype)
    ### BEGIN SOLUTION hint: seven nested loops: b, i, j, o, then u, v, c; in `padded` the window starts at S*i, S*j
    for b, i, j, o in np.ndindex(y.shape):
        for u, v, c in np.ndindex(kernel, kernel, channels):
            y[b, i, j, o] += padded[b, stride * i + u, stride * j + v, c] * weight[o, c, u, v]
    ### END SOLUTION
    return y


# %% tags=["check"]
by_hand = convolve_loop(np.arange(1.0, 10).reshape(1, 3, 3, 1), np.arange(1.0, 5).reshape(1, 1, 2, 2))
assert by_hand.shape == (1, 2, 2, 1), f"y has shape {by_hand.shape}, expected (1, 2, 2, 1)"
turned = np.array_equal(by_hand.ravel(), [23, 33, 53, 63])
assert not turned, "the kernel is turned round: tap (u, v) belongs to the pixel u further down and v further right"
assert np.allclose(by_hand.ravel(), [37, 47, 67, 77]), (
    f"the example by hand gives 37 47 67 77, you have {by_hand.ravel()}"
)

rng = np.random.default_rng(0)
x_check, w_check = rng.standard_normal((2, 6, 7, 3)), rng.standard_normal((4, 3, 3, 3))
for stride, padding in ((1, 0), (1, 1), (2, 0), (2, 1), (3, 2)):
    found, wide = convolve_loop(x_check, w_check, stride, padding), pad(x_check, padding)
    for b, i, j, o in ((0, 0, 0, 0), (1, 1, 1, 3), (1, found.shape[1] - 1, found.shape[2] - 1, 2)):
        window = wide[b, stride * i : stride * i + 3, stride * j : stride * j + 3]
        expected = (window * w_check[o].transpose(1, 2, 0)).sum()
        assert math.isclose(found[b, i, j, o], expected, rel_tol=1e-9, abs_tol=1e-12), (
            f"y[{b}, {i}, {j}, {o}] is {found[b, i, j, o]:.6f}, expected {expected:.6f} at stride {stride}, padding "
            f"{padding}: is every channel added, is the window S*i, S*j, and are b and o the right ones?"
        )
print("the loop is the definition")

# %% [markdown]
# What does such a sum do? It answers "how much does this window look like my taps". Below, two kernels of 3 × 3 that
# nobody trained: one answers where brightness changes from left to right, one where it changes from top to bottom. A
# network learns its kernels; the sum is the same.

# %%
image = Shapes(1, size=64, seed=4, objects=(4, 4), scale=(0.3, 0.45))[0].image.astype(float) / 255
grey = image.mean(axis=2)[None, :, :, None]
across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
edges = convolve_loop(grey, np.stack([across, across.T])[:, None], padding=1)

figure, axes = plt.subplots(1, 3, figsize=(8, 2.7), layout="constrained")
axes[0].imshow(image)
axes[0].set_title("image")
for axis, channel, title in ((axes[1], 0, "left to right"), (axes[2], 1, "top to bottom")):
    drawn = axis.imshow(np.abs(edges[0, 1:-1, 1:-1, channel]), cmap="cividis", vmin=0, vmax=0.18)
    axis.set_title(f"|change| {title}")
figure.colorbar(drawn, ax=axes[1:], label="brightness per pixel", shrink=0.75)
for axis in axes:
    axis.set_xticks([])
    axis.set_yticks([])
show(figure, alt="A drawing of shapes, and two maps that light up at its vertical and its horizontal edges.")

# %% [markdown]
# ## 2 · A view of every window
#
# An array is a block of memory and, for each axis, a **stride in bytes**: how far to walk for the next index. (The word
# is the same as the convolution's stride, the thing is not.) For a channels-last map of float64, `x.strides` says so:

# %%
x = np.zeros((2, 6, 7, 3))
image_step, row_step, column_step, channel_step = x.strides
print("bytes to the next image, row, column, channel:", x.strides)
assert (channel_step, column_step, row_step, image_step) == (8, 3 * 8, 7 * 3 * 8, 6 * 7 * 3 * 8)

# %% [markdown]
# Nothing forbids two axes from walking the same way. Index a map by $(b, i, j, u, v, c)$, and let $i$ walk $S$ rows per
# step and $u$ one row: element $(b,i,j,u,v,c)$ is then the pixel $x_{b,\,Si+u,\,Sj+v,\,c}$. This array of all windows
# **owns no memory**. Its elements are shared by up to $K^2$ windows.
#
# **Predict.** How many bytes does the view of a 1 MB map with 3 × 3 windows add? And if you write to one element of the
# view, how many windows change?
#
# **Write** it with `as_strided(x, shape, strides, writeable=False)`. It believes every number that you give it, and
# reads beyond the array without a word if you are wrong. Take the steps from `x.strides`: an array that is itself a
# slice has other steps than its shape suggests.


# %% tags=["exercise"]
def windows(x, kernel, stride=1):
    """Return a view (B, OH, OW, K, K, C) of x (B, H, W, C): all windows of kernel x kernel, `stride` apart."""
    ### BEGIN SOLUTION hint: six axes b, i, j, u, v, c; i walks `stride` rows at a step and u one row
    batch, height, width, channels = x.shape
    image, row, column, channel = x.strides
    rows, columns = (output_size(n, kernel, stride, 0) for n in (height, width))
    shape = (batch, rows, columns, kernel, kernel, channels)
    steps = (image, stride * row, stride * column, row, column, channel)
    return as_strided(x, shape, steps, writeable=False)
    ### END SOLUTION


# %% tags=["check"]
numbers = np.arange(2.0 * 8 * 9 * 3).reshape(2, 8, 9, 3)
for name, array in (("a whole map", numbers), ("a slice of a map", numbers[:, 1:, 1:-1, ::2])):
    for kernel, stride in ((3, 1), (3, 2), (2, 2), (1, 3)):
        oracle = sliding_window_view(array, (kernel, kernel), (1, 2))[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
        seen = windows(array, kernel, stride)
        where = f"{name}, kernel {kernel}, stride {stride}"
        assert seen.shape == oracle.shape, f"{where}: shape {seen.shape}, expected {oracle.shape}"
        assert np.array_equal(seen, oracle), (
            f"{where}: wrong pixels. Does i walk `stride` rows, u one row, j and v columns, in bytes from x.strides?"
        )
        assert np.shares_memory(seen, array), f"{where}: this is a copy, not a view; use as_strided"
print("every window, and not one byte")

# %%
megabyte = np.zeros((1, 512, 512, 1), np.float32)
seen = windows(megabyte, 3)
print(f"the view seems to hold {seen.nbytes / 2**20:.1f} MB; it owns its memory: {seen.flags.owndata}")
megabyte[0, 100, 100, 0] = 1
print(f"one pixel was changed, and {np.count_nonzero(seen)} elements of the view with it")
assert np.count_nonzero(seen) == 9, "a pixel inside lies in nine windows of 3 x 3"

# %% [markdown]
# That is why the view is made read-only: one write would change nine windows.
#
# With this view the formula is one line. `einsum` multiplies and adds over the letters that the output lacks:


# %%
def convolve_view(x, weight, stride=1, padding=0):
    return np.einsum("bijuvc,ocuv->bijo", windows(pad(x, padding), weight.shape[2], stride), weight)


rng = np.random.default_rng(1)
x, weight = rng.standard_normal((2, 7, 8, 3)), rng.standard_normal((4, 3, 3, 3))
CASES = ((1, 0), (1, 1), (2, 1), (3, 2))  # stride, padding


def assert_equals_the_loop(function):
    for stride, padding in CASES:
        gap = np.abs(function(x, weight, stride, padding) - convolve_loop(x, weight, stride, padding))
        assert gap.max() < 1e-10, f"stride {stride}, padding {padding}: off by {gap.max():.2g}"


assert_equals_the_loop(convolve_view)
print("view = loop")

# %% [markdown]
# ## 3 · One matrix product
#
# Processors are best at one thing: the product of two large matrices (GEMM). Sort the sum for it. An output pixel
# $(b,i,j)$ is a row, the products' index $(u,v,c)$ is what is summed, an output channel is a column:
#
# $$\underbrace{Y}_{B\,OH\,OW \times O} =
# \underbrace{X_{\text{columns}}}_{B\,OH\,OW \times K^2 C}\;\underbrace{W}_{K^2 C \times O}$$
#
# $X_{\text{columns}}$ is the view of section 2, reshaped. This reshape cannot be a view any more, so NumPy copies:
# every pixel is written up to $K^2$ times. The name of the trick is **im2col**. The order of the summed index must be
# the same in both matrices: $(u, v, c)$ for the columns, so the weight's axes are moved from $(o, c, u, v)$ to
# $(u, v, c, o)$ first.


# %%
def im2col(x, kernel, stride=1, padding=0):
    """Return the columns (B*OH*OW, K*K*C)."""
    seen = windows(pad(x, padding), kernel, stride)
    return seen.reshape(math.prod(seen.shape[:3]), -1)


def weight_matrix(weight):
    """Return weight (O, C, K, K) as a matrix (K*K*C, O)."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))


def convolve_im2col(x, weight, stride=1, padding=0):
    kernel = weight.shape[2]
    size = [output_size(n, kernel, stride, padding) for n in x.shape[1:3]]
    return (im2col(x, kernel, stride, padding) @ weight_matrix(weight)).reshape(len(x), *size, len(weight))


assert_equals_the_loop(convolve_im2col)
print("im2col = loop")

# %% [markdown]
# **Predict.** What do the columns of a small map look like, if each pixel has its own shade? Along which lines do equal
# shades lie?

# %%
small = np.arange(25.0).reshape(1, 5, 5, 1)
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.9), layout="constrained")
left.imshow(small[0, :, :, 0], cmap="cividis")
for h, w in np.ndindex(5, 5):
    left.text(w, h, str(5 * h + w), ha="center", va="center", color="white" if 5 * h + w < 13 else "black", fontsize=9)
left.add_patch(plt.Rectangle((0.5, -0.5), 3, 3, fill=False, edgecolor=COLOURS[1], linewidth=2.5))
left.set(title="map, and the window of output 1", xlabel="column", ylabel="row", xticks=range(5), yticks=range(5))
columns = im2col(small, 3)
right.imshow(columns, cmap="cividis")
for row, column in np.ndindex(columns.shape):
    value = int(columns[row, column])
    right.text(column, row, str(value), ha="center", va="center", color="white" if value < 13 else "black", fontsize=9)
right.add_patch(plt.Rectangle((-0.5, 0.5), 9, 1, fill=False, edgecolor=COLOURS[1], linewidth=2.5))
right.set(
    title="its columns, 9 outputs of 9 taps",
    xlabel="tap, 3u + v",
    ylabel="output, 3i + j",
    xticks=range(9),
    yticks=range(9),
)
show(
    figure,
    alt="A 5 by 5 map with numbered pixels, and the 9 by 9 matrix of its windows: pixels recur on anti-diagonals.",
)

# %%
print(f"{small.size} numbers became {columns.size}; the middle pixel is there {int((columns == 12).sum())} times")
assert (columns == 12).sum() == 9, "the middle pixel lies in all nine windows"
big = im2col(np.zeros((1, 64, 64, 8), np.float32), 3, padding=1)
assert big.size == 9 * 64 * 64 * 8, "at stride 1 with P = 1 the columns are exactly 9 times the map"

# %% [markdown]
# That is the price: at stride 1 a 3 × 3 convolution writes and reads nine times its input. For one layer of 64 channels
# at 128 × 128 pixels, batch 4, the columns take 144 MB of float32. No cache holds that. The processor waits for memory,
# not for products.
#
# ## 4 · Strips
#
# The columns need not exist at the same time. Take a few output rows, gather their columns into memory that stays in
# the cache, multiply, go on. The arithmetic is the same, and the columns never leave the processor.
#
# The output rows `first` to `last` (excluded) see the rows of the padded map from $S \cdot \text{first}$ to
# $S(\text{last}-1) + K - 1$. Neighbouring strips see some rows twice, and the last strip may be lower than the others.
#
# **Write** the body of the loop.


# %% tags=["exercise"]
def convolve_strips(x, weight, stride=1, padding=0, rows=4):
    """Return y (B, OH, OW, O), computed `rows` output rows of one image at a time."""
    kernel, padded, matrix = weight.shape[2], pad(x, padding), weight_matrix(weight)
    height, width = (output_size(n, kernel, stride, padding) for n in x.shape[1:3])
    y = np.zeros((len(x), height, width, len(weight)), x.dtype)
    for b, first in itertools.product(range(len(x)), range(0, height, rows)):
        ### BEGIN SOLUTION hint: last = min(first + rows, height); cut what these rows see out of padded[b : b + 1]
        last = min(first + rows, height)
        seen = padded[b : b + 1, stride * first : stride * (last - 1) + kernel]
        columns = windows(seen, kernel, stride).reshape(-1, len(matrix))
        y[b, first:last] = (columns @ matrix).reshape(last - first, width, -1)
        ### END SOLUTION
    return y


# %% tags=["check"]
rng = np.random.default_rng(2)
x_check, w_check = rng.standard_normal((2, 9, 8, 3)), rng.standard_normal((4, 3, 3, 3))
for (stride, padding), rows in itertools.product(CASES, (1, 2, 4, 100)):
    gap = np.abs(
        convolve_strips(x_check, w_check, stride, padding, rows) - convolve_im2col(x_check, w_check, stride, padding)
    )
    line = np.unravel_index(gap.argmax(), gap.shape)
    assert gap.max() < 1e-10, (
        f"stride {stride}, padding {padding}, {rows} rows a strip: wrong at image {line[0]}, row {line[1]}. Look at "
        "the rows that a strip sees, S*first to S*(last-1)+K, at the last strip, and at which image is cut"
    )
x_check, w_check = rng.standard_normal((1, 64, 64, 16)), rng.standard_normal((16, 16, 3, 3))
tracemalloc.start()
convolve_strips(x_check, w_check, padding=1)
peak = tracemalloc.get_traced_memory()[1]
tracemalloc.stop()
assert peak < 9 * x_check.nbytes / 2, (
    f"{peak / x_check.nbytes:.1f} times the map was allocated: gather the columns of one strip only"
)
print(f"strips = im2col; beside the map, {peak / x_check.nbytes:.1f} times its memory instead of more than 9")

# %% [markdown]
# How many rows? Enough that one product is worth a call from Python, few enough for the cache. The package aims at 2 MB
# of columns. It also lets several threads take strips, since NumPy releases Python's lock during a product.
#
# ## 5 · Winograd: fewer multiplications
#
# So far every version does the same $K^2 C$ multiplications for an output number. It can be done with fewer. Begin in
# one dimension: two outputs of a kernel of three taps, from four inputs,
#
# $$y_0 = d_0 g_0 + d_1 g_1 + d_2 g_2, \qquad y_1 = d_1 g_0 + d_2 g_1 + d_3 g_2,$$
#
# six multiplications. Now look at four:
#
# $$m_1 = (d_0 - d_2)\,g_0, \qquad m_2 = (d_1 + d_2)\,\tfrac{g_0+g_1+g_2}{2},$$
#
# $$m_3 = (d_2 - d_1)\,\tfrac{g_0-g_1+g_2}{2}, \qquad m_4 = (d_1 - d_3)\,g_2,$$
#
# $$y_0 = m_1 + m_2 + m_3, \qquad y_1 = m_2 - m_3 - m_4$$
#
# The sums over $g$ are done once for all pixels. The sums over $d$ and $m$ are additions, and they are shared between
# channels, as we shall see. Check it, then ask where it comes from.

# %%
d, g = np.random.default_rng(3).standard_normal((2, 4))
g = g[:3]
m = [(d[0] - d[2]) * g[0], (d[1] + d[2]) * g.sum() / 2, (d[2] - d[1]) * (g[0] - g[1] + g[2]) / 2, (d[1] - d[3]) * g[2]]
four = [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
assert np.allclose(four, np.correlate(d, g, "valid"), atol=1e-12), "four products give what six give"
print("six multiplications:", np.correlate(d, g, "valid"), " four:", np.array(four))

# %% [markdown]
# ### Polynomials, and then backwards
#
# **Step 1: the product of two polynomials.** Let $a(t) = a_0 + \dots + a_{m-1}t^{m-1}$ and
# $g(t) = g_0 + \dots + g_{r-1}t^{r-1}$. Their product $s(t)$ has $n = m + r - 1$ coefficients. The school's way takes
# $mr$ multiplications. Cook and Toom: a polynomial of $n$ coefficients is known by its values at $n$ points. So
# evaluate $a$ and $g$ at $n$ points, multiply the **values**, $n$ multiplications, and find the polynomial with these
# values:
#
# $$s = V^{-1}\big((A a) \odot (G g)\big)$$
#
# $A$, $G$ and $V$ evaluate polynomials with $m$, $r$ and $n$ coefficients: row $t$ is $(1, p_t, p_t^2, \dots)$. One of
# the points may be infinity: "the value at infinity" is the leading coefficient, the row $(0, \dots, 0, 1)$.


# %%
def evaluation(points, numbers):
    """Return the matrix that evaluates a polynomial of so many coefficients at the points, and at infinity."""
    return np.array([[p**k for k in range(numbers)] for p in points] + [[0] * (numbers - 1) + [1]], float)


points = (0, 1, -1)  # and infinity: n = 4
a, g = np.array([2.0, 5.0]), np.array([1.0, 3.0, 4.0])
values = (evaluation(points, 2) @ a) * (evaluation(points, 3) @ g)
product = np.linalg.inv(evaluation(points, 4)) @ values
print("(2 + 5t)(1 + 3t + 4t²) has the coefficients", product)
assert np.allclose(product, np.convolve(a, g), atol=1e-12), "by values, or by the school's way"

# %% [markdown]
# **Step 2: turn it round.** Hold $g$ fixed. The map $a \mapsto s$ is linear: $s = T a$ with
# $T = V^{-1}\,\mathrm{diag}(Gg)\,A$. Multiplication by $g$ is also the matrix $T_{l,i} = g_{l-i}$. Take its transpose
# and apply it to $d$:
#
# $$(T^\top d)_i = \sum_l g_{l-i}\,d_l = \sum_k g_k\, d_{i+k}$$
#
# That is our correlation. Transposing the other form of $T$ gives the algorithm, for any number of outputs $m$ and taps
# $r$:
#
# $$\boxed{\;y = A^\top\big((G g) \odot (B^\top d)\big), \qquad B = V^{-1}\;}$$
#
# **Step 3: move the fractions.** $V^{-1}$ is full of fractions with the denominators
# $N_t = \prod_{q \ne p_t}(p_t - q)$, the product over the other finite points ($N = 1$ at infinity). Multiply column
# $t$ of $B$ by $N_t$ and divide row $t$ of $G$ by it: the product is the same, $B$ becomes simple, and the fractions
# land in the kernel, which is transformed once.
#
# **Write** the three matrices.


# %% tags=["exercise"]
def cook_toom(points, outputs, taps):
    """Return A (n, outputs), G (n, taps), B (n, n) for n - 1 finite points and infinity; n = outputs + taps - 1."""
    ### BEGIN SOLUTION hint: evaluate three times, invert one; then column t of B times N_t, row t of G over N_t
    A, G = evaluation(points, outputs), evaluation(points, taps)
    B = np.linalg.inv(evaluation(points, outputs + taps - 1))
    scale = np.array([math.prod(p - q for q in points if q != p) for p in points] + [1.0])
    return A, G / scale[:, None], B * scale
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(4)
for points, outputs, taps in (
    ((0, 1, -1), 2, 3),
    ((0, 1, -1, 2, -2), 4, 3),
    ((0, 1, -1, 2), 4, 2),
    ((0, 1, -1, 2), 3, 3),
):
    A, G, B = cook_toom(points, outputs, taps)
    n = outputs + taps - 1
    shapes = (A.shape, G.shape, B.shape)
    assert shapes == ((n, outputs), (n, taps), (n, n)), (
        f"shapes {shapes}, expected A (n, outputs), G (n, taps), B (n, n)"
    )
    d, g = rng.standard_normal(n), rng.standard_normal(taps)
    found, expected = A.T @ ((G @ g) * (B.T @ d)), np.correlate(d, g, "valid")
    assert np.allclose(found, expected, atol=1e-9), (
        f"{outputs} outputs of {taps} taps: {found}, expected {expected}. B is the inverse of the evaluation of n "
        "coefficients; what a column of B is multiplied by, the same row of G is divided by"
    )
    assert np.allclose(B, B.round(), atol=1e-9), "B still holds fractions: multiply its column t by N_t"
print("A^T ((G g) * (B^T d)) correlates")

# %%
A, G, B = cook_toom((0, 1, -1), 2, 3)
for name, matrix in (("A^T", A.T), ("G", G), ("B^T", B.T)):
    print(name, *matrix.round(3) + 0.0, sep="\n   ")

# %% [markdown]
# Compare with the four products above: they are these rows, up to signs that cancel. The same function
# gives any size: $m = 4$ outputs of $r = 3$ taps need $n = 6$ products instead of 12.
#
# ### Two dimensions
#
# Do it along rows, and along columns of the result. With a tile $d$ of $n \times n$ pixels and a kernel $g$ of
# $r \times r$ taps:
#
# $$y = A^\top\big[(G\,g\,G^\top) \odot (B^\top d\,B)\big]A$$
#
# **Predict.** How many multiplications does a tile of 4 × 4 outputs of a 3 × 3 kernel take, directly and so? And a tile
# of 2 × 2 outputs?

# %%
for outputs, taps in ((2, 3), (4, 3), (4, 2)):
    direct, fewer = (outputs * taps) ** 2, (outputs + taps - 1) ** 2
    saved = f"{direct:3d} -> {fewer:2d} multiplications, {direct / fewer:.2f} times fewer"
    print(f"{outputs} x {outputs} outputs of {taps} x {taps} taps: {saved}")
assert (4 * 3) ** 2 / 6**2 == 4

# %% [markdown]
# ### Many channels
#
# A convolution sums over channels. The last step, $A^\top[\cdot]A$, is linear, so the sum may be done before it. For
# each of the $n^2 = 36$ positions in the transformed tile ("frequencies") there is a sum over $c$ of (tile, $c$) times
# ($c$, $o$): **36 matrix products** over all tiles. The transforms are shared: each input tile is transformed once for
# all $O$ outputs, each output tile once for all $C$ inputs. That is why additions do not matter when there are many
# channels.
#
# Tiles of 6 × 6 pixels, 4 apart: our `windows` once more.

# %%
POINTS = {3: (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2), 2: (0, 3 / 4, -3 / 4, 3 / 2)}  # why these: see below


def convolve_winograd(x, weight, padding=1, tile=4, points=None):
    """Return y (B, OH, OW, O) at stride 1, tile x tile outputs at a time."""
    (batch, height, width, channels), (outputs, _, taps, _) = x.shape, weight.shape
    points = POINTS[taps] if points is None else points
    A, G, B = (matrix.astype(x.dtype) for matrix in cook_toom(points, tile, taps))
    rows, columns = (output_size(n, taps, 1, padding) for n in (height, width))
    down, wide = -(-rows // tile), -(-columns // tile)  # tiles, rounded up
    below, right = padding + tile * down - rows, padding + tile * wide - columns
    padded = np.pad(x, ((0, 0), (padding, below), (padding, right), (0, 0)))

    kernel = np.einsum("tu,ocuv,sv->tsco", G, weight, G, optimize=True)  # (n, n, C, O)
    tiles = windows(padded, tile + taps - 1, tile)  # (B, down, wide, n, n, C)
    seen = np.einsum("lt,bijlmc,ms->tsbijc", B, tiles, B, optimize=True)
    products = seen.reshape(*kernel.shape[:2], -1, channels) @ kernel  # n*n matrix products: (n, n, tiles, O)
    y = np.einsum("tm,tsno,sk->nmko", A, products, A, optimize=True)  # (tiles, tile, tile, O)
    y = y.reshape(batch, down, wide, tile, tile, outputs).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, down * tile, wide * tile, outputs)[:, :rows, :columns]


rng = np.random.default_rng(5)
for size, taps, padding in (((8, 8), 3, 1), ((7, 10), 3, 1), ((9, 6), 3, 0), ((8, 9), 2, 0)):
    maps, kernels = rng.standard_normal((2, *size, 3)), rng.standard_normal((4, 3, taps, taps))
    gap = np.abs(convolve_winograd(maps, kernels, padding) - convolve_loop(maps, kernels, 1, padding)).max()
    assert gap < 1e-10, f"{size}, {taps}x{taps}, padding {padding}: off by {gap:.2g}"
print("Winograd = loop, in float64, whether or not the tiles fit")

# %% [markdown]
# ### The price: rounding
#
# In exact arithmetic any $n - 1$ distinct points will do. In float32 they will not. **Predict**: which of these sets
# rounds worst, which best, and by what factor?

# %%
SETS = {
    "0 1 2 3 4": (0, 1, 2, 3, 4),
    "0 ±1 ±2": (0, 1, -1, 2, -2),
    "0 ±1 ±½": (0, 1, -1, 1 / 2, -1 / 2),
    "0 ±¾ ±1½": (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2),
}
SEEDS = range(5)
errors = {name: [] for name in ("direct", *SETS)}
for seed in SEEDS:
    rng = np.random.default_rng(seed)
    maps, kernels = rng.standard_normal((1, 32, 32, 32)), rng.standard_normal((32, 32, 3, 3))
    exact = convolve_im2col(maps, kernels, padding=1)
    single = maps.astype(np.float32), kernels.astype(np.float32)
    results = {"direct": convolve_im2col(*single, padding=1)}
    results |= {key: convolve_winograd(*single, points=points) for key, points in SETS.items()}
    for name, y in results.items():
        errors[name].append(np.abs(y - exact).max() / np.abs(exact).max())
for name, found in errors.items():
    print(f"{name:10s} largest error / largest output: {np.mean(found):.1e}  ({min(found):.1e} to {max(found):.1e})")
assert max(errors["0 ±¾ ±1½"]) < 1e-5, "float32 with the package's points stays below 1e-5 of the largest output"
assert max(errors["0 ±¾ ±1½"]) < min(errors["0 ±1 ±2"]), "on every seed the package's points round less"

figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
for place, found in enumerate(errors.values()):
    axis.plot(found, [place] * len(found), "o", color=COLOURS[place], markersize=7, alpha=0.8)
axis.set_yticks(range(len(errors)), [name if name == "direct" else f"Winograd, {name}" for name in errors])
axis.set(
    xscale="log", xlabel="largest error of float32, as a part of the largest output", ylim=(len(errors) - 0.4, -0.6)
)
axis.grid(axis="x", alpha=0.3)
show(
    figure,
    alt="Rounding errors of five seeds: direct least, Winograd with 0, ±3/4, ±3/2 next, with 0 to 4 by far the most.",
)

# %% [markdown]
# The powers of the points stand in $A$: 4 to the third is 64, and its column dwarfs the others before they cancel.
# Points near 1 in size are better, and pairs $\pm p$ keep zeros in the matrices. Larger tiles than 4 × 4 would save
# more multiplications and need still more points; the package stops at 4.
#
# ## 6 · Backwards
#
# Notebook 01 gave the rule: an op gets $dy = \partial L/\partial y$ and returns $\partial L/\partial$ of each input.
# With $L$ a function of $y$ and $y$ a sum of products:
#
# $$dw_{o,c,u,v} =
# \sum_{b,i,j} \frac{\partial L}{\partial y_{b,i,j,o}}\,\frac{\partial y_{b,i,j,o}}{\partial w_{o,c,u,v}} =
# \sum_{b,i,j} dy_{b,i,j,o}\; x_{b,\,Si+u-P,\,Sj+v-P,\,c}$$
#
# Each tap multiplies what it saw by what came back, and adds up. In matrices: $dW = X_{\text{columns}}^\top\, dY$. One
# more GEMM.


# %%
def weight_gradient(x, dy, kernel, stride=1, padding=0):
    """Return dweight (O, C, K, K)."""
    channels, outputs = x.shape[3], dy.shape[3]
    matrix = im2col(x, kernel, stride, padding).T @ dy.reshape(-1, outputs)  # (K*K*C, O)
    return matrix.reshape(kernel, kernel, channels, outputs).transpose(3, 2, 0, 1)


# %% [markdown]
# For $x$, collect the outputs that saw pixel $(h, w)$: all $(i, u)$ with $Si + u - P = h$ and $(j, v)$ with
# $Sj + v - P = w$,
#
# $$dx_{b,h,w,c} = \sum_{\substack{i,u:\;Si+u-P=h\\ j,v:\;Sj+v-P=w}}\;\sum_o dy_{b,i,j,o}\;w_{o,c,u,v}$$
#
# Do not search for the pairs. Walk the other way: tap $(u, v)$ took pixel $Si + u$ of the padded map to output $i$, so
# it sends $dy_i\, w_{\cdot,\cdot,u,v}$ back to pixel $Si + u$. For one tap, these pixels are a slice with step $S$.
# Nine taps, nine slices, **added**, because a pixel was seen by several taps. At the end the padding is cut off: nobody
# asks for the gradient of the zeros.
#
# **Write** it.


# %% tags=["exercise"]
def input_gradient(dy, weight, size, stride=1, padding=0):
    """Return dx (B, H, W, C) of dy (B, OH, OW, O); size = (H, W), which dy alone does not tell."""
    (batch, rows, columns, _), (_, channels, kernel, _), (height, width) = dy.shape, weight.shape, size
    padded = np.zeros((batch, height + 2 * padding, width + 2 * padding, channels), dy.dtype)
    ### BEGIN SOLUTION hint: for each tap (u, v) a slice of padded += dy @ weight[:, :, u, v]; then cut off the padding
    for u, v in np.ndindex(kernel, kernel):
        seen = padded[:, u : u + stride * (rows - 1) + 1 : stride, v : v + stride * (columns - 1) + 1 : stride]
        seen += dy @ weight[:, :, u, v]
    return padded[:, padding : padding + height, padding : padding + width]
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(6)
x_check, w_check = rng.standard_normal((2, 7, 8, 3)), rng.standard_normal((4, 3, 3, 3))
for stride, padding in CASES:
    y_check = convolve_im2col(x_check, w_check, stride, padding)
    dy_check = rng.standard_normal(y_check.shape)
    dx_check = input_gradient(dy_check, w_check, x_check.shape[1:3], stride, padding)
    where = f"stride {stride}, padding {padding}"
    assert dx_check.shape == x_check.shape, f"{where}: dx has shape {dx_check.shape}, x has {x_check.shape}"
    sent, got = np.vdot(dy_check, y_check), np.vdot(dx_check, x_check)
    assert math.isclose(sent, got, rel_tol=1e-9), (
        f"{where}: <dy, y> = {sent:.6f} but <dx, x> = {got:.6f}. Add, do not assign; the slice of tap (u, v) begins "
        "at u, v and has step S; the kernel is not turned here; the padding is cut off on both sides"
    )
print("the gradient of x is the adjoint")

# %% [markdown]
# ### The adjoint test
#
# The check above used a test that needs no step size and no second implementation. For fixed $w$, $y = Mx$ is linear in
# $x$, and $dx = M^\top dy$. The transpose is *defined* by
#
# $$\langle dy, M x\rangle = \langle M^\top dy, x\rangle \quad\text{for all } x, dy.$$
#
# A wrong $M'$ passes only if $\langle (M' - M^\top)dy, x\rangle = 0$, and random vectors do not hit that plane. The
# convolution is linear in $w$ too, so three numbers must agree:
#
# $$\langle dy, y\rangle = \langle dx, x\rangle = \langle dw, w\rangle$$
#
# The vectors must be random. With $dy$ all ones, a kernel turned round passes far from the borders. Notebook 02 says
# more about that.

# %%
rng = np.random.default_rng(7)
x, weight = rng.standard_normal((2, 7, 8, 3)), rng.standard_normal((4, 3, 3, 3))
for stride, padding in CASES:
    y = convolve_im2col(x, weight, stride, padding)
    dy = rng.standard_normal(y.shape)
    dx, dweight = input_gradient(dy, weight, x.shape[1:3], stride, padding), weight_gradient(x, dy, 3, stride, padding)
    three = np.array([np.vdot(dy, y), np.vdot(dx, x), np.vdot(dweight, weight)])
    print(
        f"stride {stride}, padding {padding}:  <dy, y> {three[0]:.9f}  <dx, x> {three[1]:.9f}  <dw, w> {three[2]:.9f}"
    )
    assert np.ptp(three) < 1e-10 * np.linalg.norm(dy) * np.linalg.norm(y), "one of the two gradients is not the adjoint"

# %% [markdown]
# ### The gradient is a convolution again
#
# At stride 1, put $h = i + u - P$ into the formula of $dx$: pixel $h$ gets $\sum_u dy_{h + P - u}\, w_u$. With
# $u' = K - 1 - u$ this is $\sum_{u'} dy_{h + u' - (K-1-P)}\, w_{K-1-u'}$: a convolution of $dy$ with the kernel turned
# by 180 degrees, inputs and outputs exchanged, and padding $K - 1 - P$. So every fast version above serves the backward
# pass too, Winograd included.
#
# At stride $S$, pixels that share $h \bmod S$ see the same taps. The package splits $dx$ into $S \cdot S$ phases, each
# a small convolution at stride 1.

# %%
dy = np.random.default_rng(8).standard_normal((2, 7, 8, 4))
turned = weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)  # (C, O, K, K)
scattered = input_gradient(dy, weight, (7, 8), padding=1)
for name, function in (("im2col", convolve_im2col), ("Winograd", convolve_winograd)):
    gap = np.abs(function(dy, turned, padding=3 - 1 - 1) - scattered).max()
    assert gap < 1e-10, f"{name}: off by {gap:.2g}"
print("dx by im2col and by Winograd equals dx by scattering")

# %% [markdown]
# **Predict.** Every window of a 3 × 3 kernel at stride 2 sends back 1 to each pixel that it saw. How much arrives at
# each pixel of a 9 × 9 map?

# %%
sent = {}
for stride in (1, 2):
    rows = output_size(9, 3, stride, 1)
    sent[stride] = input_gradient(np.ones((1, rows, rows, 1)), np.ones((1, 1, 3, 3)), (9, 9), stride, 1)[0, :, :, 0]
print(sent[2].astype(int))
assert set(sent[2].ravel()) == {1, 2, 4}, "at stride 2 a pixel is seen by one, two or four windows"
assert sent[1][1:-1, 1:-1].min() == 9, "at stride 1 every inner pixel is seen by nine"

# %% [markdown]
# At stride 2 some pixels are seen four times as often as others. The same pattern, forwards, is the checkerboard of
# notebook 05.
#
# ## 7 · How far does an output see?
#
# One layer of 3 × 3 sees 3 pixels. A second one sees 3 outputs of the first, so 5 pixels. In general a layer of kernel
# $k$ adds $(k-1)$ steps of the size of the product of all strides before it:
#
# $$r_l = r_{l-1} + (k_l - 1)\prod_{q<l} S_q, \qquad r_0 = 1$$
#
# That is the **receptive field**. Measure it: send a gradient from one output pixel back, and see where it arrives.
# With kernels of $1/9$ each the arriving weights are also a picture of *how much* each pixel counts.


# %%
def receptive_field(layers):
    """Return the field in pixels of a chain of (kernel, stride)."""
    field, step = 1, 1
    for kernel, stride in layers:
        field, step = field + (kernel - 1) * step, step * stride
    return field


def arriving(layers, size):
    """Return (size, size): the gradient of the middle output pixel with respect to the input, kernels all 1/k²."""
    sizes = [size]
    for kernel, stride in layers:
        sizes.append(output_size(sizes[-1], kernel, stride, kernel // 2))
    gradient = np.zeros((1, sizes[-1], sizes[-1], 1))
    gradient[0, sizes[-1] // 2, sizes[-1] // 2] = 1
    for (kernel, stride), before in zip(reversed(layers), reversed(sizes[:-1]), strict=True):
        weight = np.full((1, 1, kernel, kernel), 1 / kernel**2)
        gradient = input_gradient(gradient, weight, (before, before), stride, kernel // 2)
    return gradient[0, :, :, 0]


CHAINS = {
    "2 layers": [(3, 1)] * 2,
    "8 layers": [(3, 1)] * 8,
    "4 layers, two of stride 2": [(3, 2), (3, 1), (3, 2), (3, 1)],
}
figure, axes = plt.subplots(1, 3, figsize=(8, 3.2), layout="constrained")
for axis, (name, layers) in zip(axes, CHAINS.items(), strict=True):
    weights = arriving(layers, 41)
    measured = np.count_nonzero(weights.any(axis=0))
    assert measured == receptive_field(layers), f"{name}: measured {measured}, computed {receptive_field(layers)}"
    drawn = axis.imshow(weights / weights.max(), cmap="cividis")
    middle = np.flatnonzero(weights.any(axis=0))[[0, -1]]
    axis.add_patch(
        plt.Rectangle(
            (middle[0] - 0.5,) * 2, measured, measured, fill=False, edgecolor="white", linewidth=1.5, linestyle="--"
        )
    )
    axis.set(title=f"{name}:\n{measured} × {measured} pixels", xlabel="column, pixels")
axes[0].set_ylabel("row, pixels")
figure.colorbar(drawn, ax=axes, label="weight, largest = 1", shrink=0.8)
show(
    figure, alt="Three receptive fields inside dashed squares of 5, 17 and 19 pixels; the weight gathers in the middle."
)

# %% [markdown]
# The dashed squares are the fields, computed and measured alike. Within them the weight gathers in the middle. For the
# chain of $n$ equal layers the reason is the central limit theorem: along a row the weights are the distribution of a
# sum of $n$ independent steps of $-1$, $0$ or $1$, each of variance $2/3$. The field grows with $n$, its useful width
# with $\sqrt n$: the standard deviation is $\sqrt{2n/3}$ pixels.

# %%
for depth in (2, 8, 18):
    profile = arriving([(3, 1)] * depth, 81).sum(axis=0)
    field, computed = receptive_field([(3, 1)] * depth), math.sqrt(2 * depth / 3)
    spread = math.sqrt((profile * (np.arange(81) - 40) ** 2).sum())
    print(f"{depth:2d} layers: field {field:2d} pixels, spread {spread:.3f}, computed {computed:.3f}")
    assert math.isclose(spread, computed, rel_tol=1e-9), f"the spread of {depth} layers is not √(2n/3)"

# %% [markdown]
# ## 8 · Time and memory
#
# **Predict** the order of the five versions in time, and in memory beside input and output. Then measure. The loop gets
# a small map, or we would wait for hours; so times are per million multiplications *of the definition*, whatever the
# version really does. Matrix products run on one thread, so that large and small ones are compared fairly. The last bar
# is the package, which shares its strips out to all threads.

# %%
SHAPE = (2, 48, 48, 32) if FAST else (4, 64, 64, 64)
rng = np.random.default_rng(9)
maps = rng.standard_normal(SHAPE, np.float32)
kernels = rng.standard_normal((SHAPE[3], SHAPE[3], 3, 3), np.float32)
few_maps, few_kernels = maps[:1, :8, :8, :4], kernels[:4, :4]


def cost(function, maps, kernels, repeats):
    """Return (milliseconds per million multiplications of the definition, bytes allocated beside the output)."""
    y = function(maps, kernels)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(maps, kernels)
        times.append(time.perf_counter() - start)
    release()
    tracemalloc.start()
    function(maps, kernels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    millions = y.size * kernels[0].size / 1e6
    return 1e3 * np.median(times) / millions, peak - y.nbytes


VERSIONS = {
    "loop": (lambda x, w: convolve_loop(x, w, padding=1), few_maps, few_kernels, 1),
    "view, einsum": (lambda x, w: convolve_view(x, w, padding=1), maps[:1, :32, :32], kernels, 1),
    "im2col": (lambda x, w: convolve_im2col(x, w, padding=1), maps, kernels, 5),
    "strips": (lambda x, w: convolve_strips(x, w, padding=1, rows=8), maps, kernels, 5),
    "Winograd": (convolve_winograd, maps, kernels, 5),
    "the package": (lambda x, w: conv2d.raw(x, w, padding=1)[0], maps, kernels, 5),
}
with one_blas_thread():
    costs = {name: cost(*version) for name, version in VERSIONS.items()}
print(f"map {SHAPE}, {kernels.shape[0]} outputs, float32; threads of the package: {thread_count()}")
for name, (milliseconds, allocated) in costs.items():
    print(
        f"{name:13s} {milliseconds:10.4f} ms per million multiplications  {allocated / 2**20:7.2f} MB beside the output"
    )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
large = {name: value for name, value in costs.items() if name not in ("loop", "view, einsum")}  # the same maps
for place, (name, (milliseconds, allocated)) in enumerate(costs.items()):
    hatch = {"the package": "//"}.get(name)
    left.barh(place, milliseconds, color=COLOURS[0], hatch=hatch, edgecolor="white")
    left.text(milliseconds, place, f" {milliseconds:,.3f}", va="center", fontsize=9)
    if name in large:
        right.barh(place, allocated / 2**20, color=COLOURS[1], hatch=hatch, edgecolor="white")
        right.text(allocated / 2**20, place, f" {allocated / 2**20:.1f}", va="center", fontsize=9)
    else:
        right.text(0, place, " (smaller map)", va="center", fontsize=9)
left.set_yticks(range(len(costs)), costs)
left.invert_yaxis()
left.set(xscale="log", xlabel="ms per million multiplications")
left.set_xlim(min(milliseconds for milliseconds, _ in costs.values()) / 3, 1e6)
right.set(xlabel="MB beside the output")
right.set_xlim(right=right.get_xlim()[1] * 1.15)
show(figure, alt="Bars of time and memory of the five convolutions and the package, measured in this run.")

# %%
columns_bytes = 9 * maps.nbytes
assert costs["im2col"][1] >= columns_bytes, "im2col holds all columns at once"
assert costs["strips"][1] < columns_bytes / 2, "strips hold a part of them"
for name in large:
    print(f"{name:12s} {large[name][1] / maps.nbytes:.1f} times the memory of the input map, beside the output")

# %% [markdown]
# Times differ from machine to machine, so no check is made of them. What to look for: the step from the loop to one
# matrix product is a factor of many thousands, at equal arithmetic. All that follows is worth a small factor, and is
# decided by memory: strips drop the nine copies, and our Winograd, short as it is, holds all transformed tiles at once:
# $36/16 = 2.25$ maps for the input, as much for the products, and copies on the way. The package puts sections 4 and 5
# together: **strips of tiles**, transformed, multiplied and transformed back while they are in the cache, on all
# threads.
#
# ## 9 · Agreement with the package
#
# `conv2d.raw` returns `(y, backward)`, as every op since notebook 01. Bias included: its gradient is the sum of $dy$
# over all pixels.

# %%
rng = np.random.default_rng(10)
x, weight, bias = rng.standard_normal((2, 18, 20, 16)), rng.standard_normal((24, 16, 3, 3)), rng.standard_normal(24)
for stride, padding in CASES:
    y, backward = conv2d.raw(x, weight, bias, stride=stride, padding=padding)
    dy = rng.standard_normal(y.shape)
    ours = (
        convolve_im2col(x, weight, stride, padding) + bias,
        input_gradient(dy, weight, x.shape[1:3], stride, padding),
        weight_gradient(x, dy, 3, stride, padding),
        dy.sum(axis=(0, 1, 2)),
    )
    for name, own, theirs in zip(("y", "dx", "dweight", "dbias"), ours, (y, *backward(dy)), strict=True):
        gap = np.abs(own - theirs).max() / np.abs(own).max()
        assert gap < 1e-10, f"{name} at stride {stride}, padding {padding}: relative difference {gap:.2g}"

for taps, points in POINTS.items():
    for name, own, theirs in zip(
        "AGB", cook_toom(points, 4, taps), winograd.cook_toom(taps, np.dtype(float)), strict=True
    ):
        assert np.abs(own - theirs).max() < 1e-12, f"{name} of {taps} taps differs"
print("y, dx, dweight, dbias and the matrices A, G, B agree with the package")

# %% [markdown]
# ## Break it
#
# A colleague found the transpose in `weight_matrix` superfluous: "a reshape gives the same shape". It passes their two
# tests. Weights trained with their code work in their code. Weights of everybody else detect nothing.


# %%
def their_convolution(x, weight, padding=0):
    kernel = weight.shape[2]
    size = [output_size(n, kernel, 1, padding) for n in x.shape[1:3]]
    return (im2col(x, kernel, 1, padding) @ weight.reshape(len(weight), -1).T).reshape(len(x), *size, len(weight))


rng = np.random.default_rng(11)
gaps = {}
for name, channels, kernel in (
    ("their first test: 1 channel, 3x3", 1, 3),
    ("their second test: 8 channels, 1x1", 8, 1),
    ("8 channels, 3x3", 8, 3),
):
    maps, kernels = rng.standard_normal((1, 9, 9, channels)), rng.standard_normal((4, channels, kernel, kernel))
    gaps[name] = np.abs(their_convolution(maps, kernels) - convolve_loop(maps, kernels)).max()
    print(f"{name:36s} largest difference from the loop {gaps[name]:.2e}")

# %% [markdown]
# What is wrong, why do both tests miss it, and why does training not notice?
#
# <details><summary>Answer</summary>
#
# The weight is stored $(o, c, u, v)$, the columns are ordered $(u, v, c)$. A bare reshape orders the weight $(c, u, v)$
# and multiplies tap by tap with the wrong numbers. With one channel, or with one tap, both orders are the same, so
# neither test can see it. Training cannot see it either: a permutation of the weights is only another name for them,
# and gradient descent does not care for names. It shows when weights come from elsewhere. The remedy for the code is
# `transpose(2, 3, 1, 0)`; the remedy for the tests is sizes that all differ: no axis of 1, no two axes alike.
#
# </details>

# %%
first, second, third = gaps.values()
assert max(first, second) < 1e-12, "the two tests that pass"
assert third > 1, "and the one that would have caught it"

# %% [markdown]
# ## Summary
#
# - A convolution is a sum over a window. Strides in memory make all windows one array that owns nothing; reshaped, it
#   is one matrix product.
# - Time is decided by memory as much as by arithmetic: strips keep the columns in the cache.
# - Winograd's matrices come from multiplying polynomials by their values, transposed. 4 × 4 tiles of a 3 × 3 kernel
#   take 4 times fewer multiplications, and cost some digits.
# - $dw = X_{\text{columns}}^\top dY$; $dx$ sends every tap's share back; both are proved by
#   $\langle dy, y\rangle = \langle dx, x\rangle = \langle dw, w\rangle$.
# - The receptive field is $r_l = r_{l-1} + (k_l-1)\prod S_q$; what counts in it is narrower.
#
# ## In the package
#
# - `minicenternet.ops.conv2d.conv2d`: the op; `minicenternet.ops.conv2d.reference_forward`, one product per tap, is its
#   definition.
# - `minicenternet.ops.conv2d.input_gradient` and `minicenternet.ops.conv2d.weight_gradient`: its two adjoints, in
#   strips.
# - `minicenternet.strips.strips`: how maps are cut into pieces that fit the cache.
# - `minicenternet.ops.winograd.cook_toom`: the matrices; `minicenternet.ops.winograd.jobs`: strips of tiles;
#   `minicenternet.ops.conv2d.folding`: the rule that says when Winograd pays; `minicenternet.ops.winograd.gradients`:
#   $dx$ and $dw$ of one transform of $dy$.
