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
# # 18 · Convolution on tensor cores
#
# - **Goal**: build a convolution for tensor cores from its parts, and say by hand how fast it could be at best.
# - **You need**: 17 (kernels, shared memory, the CPU runner) and 03 (im2col). No GPU, but g++ on an x86-64 machine.
# - **Minutes**: 90 to read and work / runs in about 10 s (the first time longer: it compiles)
# - **Equations**: none of E1 to E10
# - **What you should see**: a pipelined tensor-core convolution equal to NumPy's in every number, and a roofline of
#   ResNet-18-CenterNet equal to the package's model in every layer.

# %%
import importlib
import math
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import minicenternet
from minicenternet.backend import cuda_source
from minicenternet.draw import COLOURS, show
from minicenternet.ops import conv2d_choice
from minicenternet.ops.conv2d import reference_forward
from minicenternet.ops.geometry import Geometry

FAST = os.environ.get("MINICENTERNET_FAST") == "1"

# %% [markdown]
# ## Where the kernels run
#
# On the CPU runner of notebook 17, the folder `tests/cuda_on_cpu` of this repository: g++ compiles the kernel, three
# thread orders and fences of NaN test it. It has a twin in C++ of each tensor-core instruction. It knows **no time**.
# On a GPU with CuPy every run below happens there as well.

# %%
start = Path(globals().get("__file__", "notebook.ipynb")).resolve()
clones = [*start.parents, Path(minicenternet.__file__).resolve().parents[1]]
TESTS = next((clone / "tests" for clone in clones if (clone / "tests" / "cuda_on_cpu").is_dir()), None)
if TESTS is None:
    raise SystemExit("This notebook stops here: it needs tests/cuda_on_cpu; run it in a clone of the repository.")
sys.path.append(str(TESTS))
workbench = importlib.import_module("cuda_on_cpu.workbench")
if workbench.missing():
    raise SystemExit(f"This notebook stops here: {workbench.missing()}.")
print("kernels run on the CPU" + (" and on the GPU" if workbench.cupy() else "; no GPU with CuPy was found"))

# %% [markdown]
# ## 1. The matrix that is never written down
#
# Notebook 03 turned a convolution into one matrix product: im2col writes the columns, a GEMM multiplies. With channels
# last, weight (O, C, KH, KW) and output pixels $m = (b, i, j)$,
#
# $$Y_{mo} = \sum_d X_{md}\, W_{od}, \qquad d = (u, v, c),$$
#
# where $X_{md}$ is the input at row $S i + u - P$, column $S j + v - P$, channel $c$; zero outside the map. The matrix
# $X$ is $KH \cdot KW$ times as large as the input. An **implicit GEMM** does not write it: whoever wants $X_{md}$
# computes where it lies. Both $m$ and $d$ count in row-major order, the last letter fastest.
#
# **Predict**: with $C = 4$ and a 3 × 3 kernel, which $(u, v, c)$ is $d = 17$?
#
# **Write** the address.


# %% tags=["exercise"]
def implicit_index(m, d, x_shape, out_size, kernel, stride, padding):
    """Return (b, row, column, channel) of element (m, d) of the implicit matrix, None where it is zero.

    x_shape (B, H, W, C); out_size (OH, OW); kernel, stride, padding: one number for both axes.
    """
    ### BEGIN SOLUTION hint: divmod twice for (b, i, j), twice for (u, v, c); then the formula, and the four borders
    b, pixel = divmod(m, out_size[0] * out_size[1])
    i, j = divmod(pixel, out_size[1])
    tap, c = divmod(d, x_shape[3])
    u, v = divmod(tap, kernel)
    row, column = stride * i + u - padding, stride * j + v - padding
    if not (0 <= row < x_shape[1] and 0 <= column < x_shape[2]):
        return None
    return b, row, column, c
    ### END SOLUTION


# %% tags=["check"]
x_shape, out_size = (2, 7, 6, 4), (4, 3)  # 3 x 3, stride 2, padding 1
at = {(u, v): implicit_index(0, 4 * (3 * u + v) + 1, x_shape, out_size, 3, 2, 1) for u in range(3) for v in range(3)}
assert at[1, 1] == (0, 0, 0, 1), f"pixel 0 sees through its middle tap the input (0, 0, 0), channel 1; got {at[1, 1]}"
assert at[0, 1] is at[1, 0] is None, "pixel 0 lies in the corner: its upper row and left column are padding, None"
assert at[1, 2] == (0, 0, 1, 1), f"tap (1, 2) is one column to the right: v runs faster than u; got {at[1, 2]}"
at = implicit_index(12 + 3 * 3 + 1, 17, x_shape, out_size, 3, 2, 1)
assert at == (1, 6, 2, 1), f"image 1, i = 3, j = 1, d = 17 = (1, 1, 1) is x[1, 2*3+1-1, 2*1+1-1, 1]; got {at}"
assert implicit_index(12 + 3 * 3, 28, x_shape, out_size, 3, 2, 1) is None, "row 7 is below the map of 7 rows: None"

# %% [markdown]
# With it the convolution is a product of two matrices. Whole numbers keep it exact: the reference of the package must
# give the same, bit for bit.

# %%
BATCH, HEIGHT, WIDTH, CHANNELS, OUTPUTS, KERNEL, STRIDE, PADDING = 2, 9, 7, 4, 12, 3, 2, 1
rng = np.random.default_rng(0)
x = rng.integers(-4, 5, (BATCH, HEIGHT, WIDTH, CHANNELS)).astype(np.float32)
weight = rng.integers(-4, 5, (OUTPUTS, CHANNELS, KERNEL, KERNEL)).astype(np.float32)
expected = reference_forward(x, weight, Geometry.of(STRIDE, PADDING, 1, 1))
pixels, depth = math.prod(expected.shape[:3]), KERNEL * KERNEL * CHANNELS

implicit = np.zeros((pixels, depth), np.float32)
for m in range(pixels):
    for d in range(depth):
        place = implicit_index(m, d, x.shape, expected.shape[1:3], KERNEL, STRIDE, PADDING)
        implicit[m, d] = 0 if place is None else x[place]
taps = np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(OUTPUTS, depth)  # o, then d = (u, v, c)
product = (implicit @ taps.T).reshape(expected.shape)
assert np.array_equal(product, expected), "the implicit product and the package's convolution differ"
print(f"({pixels}, {depth}) times ({depth}, {OUTPUTS}): equal to minicenternet.ops.conv2d.reference_forward")

# %% [markdown]
# ## 2. Tiles: fewer loads for the same products
#
# One multiply-add needs two numbers. A kernel with one thread for one output loads both from memory each time: 2 loads
# for 1 multiply-add. Tiles share them:
#
# - a **block** brings $(B_M + B_N)$ numbers for each step of the depth to shared memory and uses them for
#   $B_M B_N$ multiply-adds;
# - a **thread** takes $(T_M + T_N)$ of these into registers for $T_M T_N$ multiply-adds.
#
# **Predict** for a block of 128 × 128 and a thread of 8 × 8: how many multiply-adds for one load, at both levels?

# %%
for (bm, bn, _, tm, tn), *_ in conv2d_choice.TILES["tiled"]["correlate"].values():
    print(
        f"block {bm:3} x {bn:3}, thread {tm} x {tn}: {bm * bn / (bm + bn):4.1f} multiply-adds a load from global"
        f" memory, {tm * tn / (tm + tn):3.1f} a load from shared memory; {bm // tm * (bn // tn)} threads"
    )

# %% [markdown]
# Here are both kernels for our small convolution. `source(m, d)` is your exercise in C++; the sizes are constants of
# the text.


# %%
def constants(channels=CHANNELS):
    """Return the sizes of the convolution and the address computation as CUDA C++."""
    out_height, out_width = expected.shape[1:3]
    return f"""
constexpr int BATCH = {BATCH}, HEIGHT = {HEIGHT}, WIDTH = {WIDTH}, CHANNELS = {channels}, OUTPUTS = {OUTPUTS};
constexpr int KERNEL = {KERNEL}, STRIDE = {STRIDE}, PADDING = {PADDING};
constexpr int OUT_HEIGHT = {out_height}, OUT_WIDTH = {out_width};
constexpr int PIXELS = BATCH * OUT_HEIGHT * OUT_WIDTH, DEPTH = KERNEL * KERNEL * CHANNELS;

__device__ int source(int m, int d) {{  // where element (m, d) of the implicit matrix lies in x, -1 where it is zero
  int j = m % OUT_WIDTH, i = m / OUT_WIDTH % OUT_HEIGHT, b = m / OUT_WIDTH / OUT_HEIGHT;
  int c = d % CHANNELS, v = d / CHANNELS % KERNEL, u = d / CHANNELS / KERNEL;
  int row = STRIDE * i + u - PADDING, column = STRIDE * j + v - PADDING;
  bool inside = m < PIXELS && d < DEPTH && row >= 0 && row < HEIGHT && column >= 0 && column < WIDTH;
  return inside ? ((b * HEIGHT + row) * WIDTH + column) * CHANNELS + c : -1;
}}
"""


NAIVE = """
__global__ void convolve(const float* x, const float* taps, float* y) {
  int m = blockIdx.x * 16 + threadIdx.y, n = blockIdx.y * 16 + threadIdx.x;
  if (m >= PIXELS || n >= OUTPUTS) return;
  float sum = 0;
  for (int d = 0; d < DEPTH; d++) {
    int from = source(m, d);
    if (from >= 0) sum += x[from] * taps[n * DEPTH + d];
  }
  y[m * OUTPUTS + n] = sum;
}"""
TILED = """
__global__ void convolve(const float* x, const float* taps, float* y) {
  __shared__ float a[16][17];
  __shared__ float b[16][17];
  int tx = threadIdx.x, ty = threadIdx.y, m0 = blockIdx.x * 16, n0 = blockIdx.y * 16;
  float sum = 0;
  for (int d0 = 0; d0 < DEPTH; d0 += 16) {
    int from = source(m0 + ty, d0 + tx), n = n0 + ty, d = d0 + tx;
    a[ty][tx] = from >= 0 ? x[from] : 0.f;
    b[ty][tx] = n < OUTPUTS && d < DEPTH ? taps[n * DEPTH + d] : 0.f;
    __syncthreads();  // the tiles are filled
    for (int k = 0; k < 16; k++) sum += a[ty][k] * b[tx][k];
    __syncthreads();  // nobody reads them any more
  }
  if (m0 + ty < PIXELS && n0 + tx < OUTPUTS) y[(m0 + ty) * OUTPUTS + n0 + tx] = sum;
}"""
grid = (-(-pixels // 16), -(-OUTPUTS // 16))
flat = expected.reshape(pixels, OUTPUTS)
for name, text in (("naive", NAIVE), ("tiled", TILED)):
    given = (constants() + text, "convolve", grid, (16, 16), x, taps, ...)
    workbench.assert_agree(workbench.run(*given, output=(pixels, OUTPUTS)), flat, hint=f"the {name} kernel is at fault")
    loads = {array: len(touched) for array, touched in workbench.trace(*given, output=(pixels, OUTPUTS)).items()}
    print(f"{name}: right; {loads['x']} loads of x, {loads['taps']} of the taps")

# %% [markdown]
# The tile of 16 × 16 reads each number once for a block. With 12 outputs a block has 12 of 16 columns to fill, so that
# the gain here is 12, not 16. **Predict** what happens without the *second* barrier. Will all orders be wrong?

# %%
parts = TILED.rsplit("    __syncthreads();  // nobody reads them any more\n", 1)
without = workbench.run(constants() + "".join(parts), *given[1:], output=(pixels, OUTPUTS))
for where, found in without.items():
    print(f"{where:20} {np.count_nonzero(found != flat):4} of {flat.size} numbers are wrong")
    if where != "GPU":  # there, luck may hide it
        assert np.isfinite(found).all() and (found != flat).any(), "a missing barrier gave the right numbers"

# %% [markdown]
# A fast thread fills the next tile while a slow one still reads this one. No NaN gives it away: the numbers are of the
# wrong step, and look like numbers. Tests with an oracle find that; NaN in fresh memory alone would not.
#
# ## 3. Tensor cores
#
# A **tensor core** multiplies small matrices. The instruction `mma.sync.m16n8k8` is one for the *whole warp*:
#
# $$D_{16\times8} \mathrel{+}= A_{16\times8}\, B_{8\times8}.$$
#
# A and B are **tf32**: float32 with 10 bits of mantissa instead of 23. D is float32. The matrices are spread over the
# registers of the 32 lanes. With $g = \lfloor \text{lane}/4 \rfloor$ and $t = \text{lane} \bmod 4$ a lane brings
#
# | | of A | | of B | | of D |
# |---|---|---|---|---|---|
# | a[0] | A[g, t] | b0 | B[t, g] | d0 | D[g, 2t] |
# | a[1] | A[g+8, t] | b1 | B[t+4, g] | d1 | D[g, 2t+1] |
# | a[2] | A[g, t+4] | | | d2 | D[g+8, 2t] |
# | a[3] | A[g+8, t+4] | | | d3 | D[g+8, 2t+1] |
#
# **Predict** before the picture: which lane holds A[3, 6], and which D[3, 6]?

# %%
lane = np.arange(32)
g, t = lane // 4, lane % 4
A, B, D = (np.empty(size, int) for size in ((16, 8), (8, 8), (16, 8)))
for up, right in ((0, 0), (8, 0), (0, 4), (8, 4)):
    A[g + up, t + right] = lane
for down in (0, 4):
    B[t + down, g] = lane
for up, right in ((0, 0), (0, 1), (8, 0), (8, 1)):
    D[g + up, 2 * t + right] = lane
figure, panels = plt.subplots(1, 3, figsize=(8, 5.2), layout="constrained")
for axes, (name, held) in zip(panels, {"A": A, "B": B, "D": D}.items(), strict=True):
    image = axes.imshow(held, cmap="cividis")
    for (row, column), holder in np.ndenumerate(held):
        ink = "white" if holder < 16 else "black"
        axes.text(column, row, holder, ha="center", va="center", fontsize=7.5, color=ink)
    axes.set_title(f"{name}, {held.shape[0]} × {held.shape[1]}", loc="left", fontsize=11)
    axes.set(xlabel="column", ylabel="row", xticks=range(8), yticks=range(len(held)))
    axes.tick_params(labelsize=8)
bar = figure.colorbar(image, ax=panels, location="bottom", shrink=0.5, aspect=30)
bar.set_label("lane that holds the number")
show(
    figure, alt="Lanes that hold each number: A in four 8 by 4 quarters, B in two 4 by 8 halves, D in pairs of columns."
)
print(f"A[3, 6] is in lane {A[3, 6]}, D[3, 6] in lane {D[3, 6]}")

# %% [markdown]
# The package keeps its few instructions in `ops/tensor_cores.cuh`, each with a comment. Two matter now:
#
# ```
# uint32_t round_to_tf32(uint32_t bits);                      // float32 to tf32, to nearest
# void mma<float>(d0, d1, d2, d3, a, b0, b1);                 // D += A B; a is uint32_t[4], b0 and b1 are uint32_t
# ```
#
# They take *bits*: `__float_as_uint(value)` gives those of a float. Rounding is not optional. The tensor core ignores
# the lower 13 bits of what it gets. Cut off instead of rounded, every number comes nearer to zero, never further away:
# errors that all point one way do not cancel in a sum.
#
# **Write** a kernel of one warp: `a` is A in rows of 8, `b` is B *by columns* (`b[8 * n + k]` is B[k, n], as taps lie
# in memory), `d` is D in rows of 8.

# %%
HEADER = cuda_source("ops/tensor_cores.cuh") + '\n#line 1 "kernel.cu"\n'


# %% tags=["exercise"]
def multiply():
    """Return the text of a kernel multiply(const float* a, const float* b, float* d) for one warp, D = A B in tf32."""
    ### BEGIN SOLUTION hint: g and t from threadIdx.x; four words of A, two of B, each rounded; then d0 .. d3 to D
    return """
    __device__ uint32_t tf32(float value) { return round_to_tf32(__float_as_uint(value)); }

    __global__ void multiply(const float* a, const float* b, float* d) {
      int g = threadIdx.x / 4, t = threadIdx.x % 4;
      uint32_t words[4] = {tf32(a[8 * g + t]), tf32(a[8 * (g + 8) + t]),
                           tf32(a[8 * g + t + 4]), tf32(a[8 * (g + 8) + t + 4])};
      float d0 = 0, d1 = 0, d2 = 0, d3 = 0;
      mma<float>(d0, d1, d2, d3, words, tf32(b[8 * g + t]), tf32(b[8 * g + t + 4]));
      d[8 * g + 2 * t] = d0;
      d[8 * g + 2 * t + 1] = d1;
      d[8 * (g + 8) + 2 * t] = d2;
      d[8 * (g + 8) + 2 * t + 1] = d3;
    }"""
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(1)
a, b = rng.integers(-9, 10, (16, 8)).astype(np.float32), rng.integers(-9, 10, (8, 8)).astype(np.float32)
results = workbench.run(HEADER + multiply(), "multiply", (1,), (32,), a, b, ..., output=(16, 8))
workbench.assert_agree(results, a @ b.T, hint="Whole numbers, so a place is wrong: compare with the three pictures.")
a, b = rng.random((16, 8), np.float32), rng.random((8, 8), np.float32)
nearest = [((f.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32).astype(np.float64) for f in (a, b)]
results = workbench.run(HEADER + multiply(), "multiply", (1,), (32,), a, b, ..., output=(16, 8))
workbench.assert_agree(results, nearest[0] @ nearest[1].T, atol=1e-5, hint="Places are right: was each word rounded?")
error = np.abs(nearest[0] @ nearest[1].T - a.astype(np.float64) @ b.T.astype(np.float64)).max()
print(f"equal to the product of rounded numbers; tf32 itself is off by up to {error:.1e} here")

# %% [markdown]
# ## 4. Copies under way
#
# A tensor core is so fast that it mostly waits for numbers. `cp.async` starts a copy of 16 bytes from global to shared
# memory and goes on at once; the numbers pass no register. The tiles become a **ring** of `STAGES` buffers:
#
# ```
# cp_async(to, from, inside);   // start a copy of 16 bytes; zeros where inside is false
# cp_async_commit();            // what was started since the last commit is one group
# cp_async_wait<N>();           // wait until at most N of *this thread's* groups are under way
# ```
#
# With two buffers (**double buffering**) step $s + 1$ is copied while step $s$ is multiplied. Here is a drawing of the
# idea, with invented durations: a copy takes 3 units, a multiplication 2.
#
# **Predict** the end of 8 steps: with one buffer, with two, with three. When does a fourth help?


# %%
def timeline(steps, copy, multiply, stages):
    """Return when each copy and each multiplication begins: copy k may begin with multiplication k - stages + 1."""
    copies, products, free = [], [], 0
    for step in range(steps):
        if stages == 1:
            copies.append(free)  # the only buffer is in use until then
        else:
            copies.append(products[step - stages + 1] if step >= stages - 1 else 0)
        products.append(max(free, copies[-1] + copy))
        free = products[-1] + multiply
    return copies, products


figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
ends, row = {}, 0
for stages in (1, 2, 3):
    copies, products = timeline(8, 3, 2, stages)
    ends[stages] = products[-1] + 2
    for step in range(8):
        lane_of_copy = row + (step % stages) * 0.3
        axes.barh(lane_of_copy, 3, left=copies[step], height=0.26, color=COLOURS[5], edgecolor="white", align="edge")
        place = row + 0.3 * stages
        axes.barh(place, 2, left=products[step], height=0.3, color=COLOURS[0], edgecolor="white", align="edge")
        axes.text(products[step] + 1, place + 0.16, step, ha="center", va="center", fontsize=8, color="white")
    name = f"{stages} buffer{'s' * (stages > 1)}"
    axes.text(-0.4, row + 0.15 * (stages + 1), name, ha="right", va="center", fontsize=10)
    axes.text(ends[stages] + 0.4, row + 0.3 * stages + 0.15, f"ends at {ends[stages]}", va="center", fontsize=9)
    row += 0.3 * stages + 0.7
axes.barh([0], [0], color=COLOURS[5], label="copy")
axes.barh([0], [0], color=COLOURS[0], label="multiplication, with its step")
axes.invert_yaxis()
axes.set(xlabel="units of time, invented", xlim=(-6, 46), yticks=[], xticks=range(0, 41, 5))
axes.spines[["top", "right", "left"]].set_visible(False)
axes.legend(frameon=False, loc="lower right")
show(
    figure, alt="Timelines of 8 steps: one buffer ends at 40, two at 26 as copies overlap, three at 19 without waiting."
)
assert ends == {1: 40, 2: 26, 3: 19} and timeline(8, 3, 2, 4)[1][-1] + 2 == 19
print("with three the multiplications follow each other; a fourth changes nothing")

# %% [markdown]
# Now the whole kernel: a warp computes 16 pixels × 8 outputs, 8 columns of the implicit matrix a step. `copy(step)`
# starts the copies of a step, each of 4 channels. `multiply(step)` is your exercise, with tiles in shared memory. What
# is missing is the main loop.
#
# Rows of the tiles are 12 floats long, not 8. **Predict** why: lane $(g, t)$ reads word $L g + t$.

# %%
for length in (8, 12):
    banks = (length * g + t) % 32
    print(f"rows of {length:2} floats: the busiest bank has {np.bincount(banks).max()} of the 32 words")

# %%
KERNEL_AROUND = """
constexpr int STEPS = (DEPTH + 7) / 8, STAGES = 3;

__global__ void convolve(const float* x, const float* taps, float* y) {
  __shared__ __align__(16) float a[STAGES][16][12];
  __shared__ __align__(16) float b[STAGES][8][12];
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4, m0 = blockIdx.x * 16, n0 = blockIdx.y * 8;
  float d0 = 0, d1 = 0, d2 = 0, d3 = 0;

  auto copy = [&](int step) {  // 16 rows of a and 8 of b, two copies of 4 numbers each
    int row = lane / 2, k = lane % 2 * 4, d = step * 8 + k;
    if (step < STEPS) {
      int from = source(m0 + row, d);
      cp_async(&a[step % STAGES][row][k], x + max(from, 0), from >= 0);
      bool inside = n0 + row < OUTPUTS && d < DEPTH;
      if (row < 8) cp_async(&b[step % STAGES][row][k], taps + (inside ? (n0 + row) * DEPTH + d : 0), inside);
    }
    cp_async_commit();  // one group for each step, even an empty one: waiting counts groups
  };
  auto multiply = [&](int step) {
    auto& A = a[step % STAGES];
    auto& B = b[step % STAGES];
    auto tf32 = [](float value) { return round_to_tf32(__float_as_uint(value)); };
    uint32_t words[4] = {tf32(A[g][t]), tf32(A[g + 8][t]), tf32(A[g][t + 4]), tf32(A[g + 8][t + 4])};
    mma<float>(d0, d1, d2, d3, words, tf32(B[g][t]), tf32(B[g][t + 4]));
  };
  // ---- the main loop
MAIN_LOOP
  // ----
  auto write = [&](int m, int n, float value) {
    if (m < PIXELS && n < OUTPUTS) y[m * OUTPUTS + n] = value;
  };
  write(m0 + g, n0 + 2 * t, d0);
  write(m0 + g, n0 + 2 * t + 1, d1);
  write(m0 + g + 8, n0 + 2 * t, d2);
  write(m0 + g + 8, n0 + 2 * t + 1, d3);
}"""

# %% [markdown]
# **Write** the loop. Three questions to answer first:
#
# 1. How many steps must be under way before the first multiplication?
# 2. When `multiply(step)` begins, how many newer groups may still be under way?
# 3. `cp_async_wait` waits for *this thread's* copies. Who brought the rest of the tile?
#
# The runner lets a copy land when its thread waits for it, **and not before**. Who reads too early finds the NaN of
# fresh shared memory, or the numbers of three steps ago.


# %% tags=["exercise"]
def main_loop():
    """Return the main loop's text: it calls copy(step), cp_async_wait<N>(), __syncthreads() and multiply(step)."""
    ### BEGIN SOLUTION hint: STAGES - 1 copies first; then for each step: wait<STAGES - 2>, barrier, next copy, multiply
    return """
  for (int step = 0; step < STAGES - 1; step++) copy(step);
  for (int step = 0; step < STEPS; step++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    copy(step + STAGES - 1);
    multiply(step);
  }"""
    ### END SOLUTION


# %% tags=["check"]
text = HEADER + constants() + KERNEL_AROUND.replace("MAIN_LOOP", main_loop())
shape = ((-(-pixels // 16), -(-OUTPUTS // 8)), (32,))
results = workbench.run(text, "convolve", *shape, x, taps, ..., output=(pixels, OUTPUTS))
workbench.assert_agree(
    results, flat, hint="NaN: multiplied before all copies of the step had landed. Else: which steps are multiplied?"
)
print(
    f"a convolution on tensor cores, {math.ceil(depth / 8)} steps in a ring of 3: equal to the reference, bit for bit"
)

# %% [markdown]
# It is a full, if small, fourth rung of the ladder in `ops/conv2d_cuda.py`. The package's kernel has larger tiles, up
# to eight warps to a block, `ldmatrix` for loading fragments, bf16 beside tf32, and an epilogue.
#
# One limit of the runner, to be honest: it lets copies land as *late* as possible. A copy that is started too early,
# into a buffer that a slower warp still reads, it does not see. The place of the barrier before `copy` guards that.
#
# ## 5. Occupancy by hand
#
# A processor (SM) keeps many warps at once and runs those that need not wait. How many **blocks** fit is decided by
# what runs out first. Compute capability 9.0 (H100, H200), by NVIDIA's programming guide and occupancy calculator:

# %%
LIMITS = {
    "threads": 2048,
    "blocks": 32,
    "registers": 65536,  # of 32 bits; a warp gets them in units of 256
    "shared": 228 << 10,  # bytes; 1 KB of it is kept for each block
}

# %% [markdown]
# Threads come in warps: a block of 100 threads takes the place of 128. Its registers are counted by the warp, 32 times
# those of a thread, rounded up to a multiple of 256.
#
# **Predict**: 256 threads with 128 registers each. How many blocks, and which limit?


# %% tags=["exercise"]
def blocks_per_processor(threads, registers, shared):
    """Return how many blocks fit: threads of a block, registers of a thread, bytes of shared memory of a block."""
    ### BEGIN SOLUTION hint: warps = threads / 32, rounded up; then the smallest of four quotients
    warps = math.ceil(threads / 32)
    registers_of_warp = math.ceil(32 * registers / 256) * 256
    return min(
        LIMITS["threads"] // (32 * warps),
        LIMITS["blocks"],
        LIMITS["registers"] // (registers_of_warp * warps),
        LIMITS["shared"] // (shared + 1024),
    )
    ### END SOLUTION


# %% tags=["check"]
cases = [
    ((1024, 32, 0), 2, "2048 threads are two blocks of 1024"),
    ((256, 128, 0), 2, "256 * 128 registers are 32768 a block, and there are 65536"),
    ((100, 16, 0), 16, "100 threads take 4 warps, the place of 128"),
    ((96, 37, 0), 17, "37 registers are 1184 a warp, rounded up to 1280; 3 warps take 3840"),
    ((32, 16, 0), 32, "no more than 32 blocks, however small"),
    ((128, 32, 46080), 4, "45 KB and the 1 KB that is kept: 46 KB of 228"),
    ((256, 128, 100 << 10), 2, "101 KB of 228 and 32768 registers of 65536: both allow two"),
]
for given, blocks, why in cases:
    found = blocks_per_processor(*given)
    assert found == blocks, f"threads, registers, shared = {given}: {blocks} blocks ({why}), got {found}"

# %% [markdown]
# The package's tile for large maps in tf32: 128 pixels × 128 outputs, 32 columns a step, a warp 64 × 64, three stages.
# Rows in shared memory are 4 floats longer. A thread keeps 128 sums, so that its launch bounds promise the compiler no
# more than 8 warps on a processor, and leave a thread 255 registers.

# %%
bm, bn, bk, wm, wn, stages = conv2d_choice.TILES["tensor_cores"]["correlate"]["large"][0]
threads, shared = bm // wm * (bn // wn) * 32, 4 * stages * (bm + bn) * (bk + 4)
blocks = blocks_per_processor(threads, 255, shared)
print(f"{threads} threads, {shared} bytes of shared memory: {blocks} blocks, {blocks * threads // 32} of 64 warps")
assert blocks * threads // 32 == 8, "the launch bounds of conv2d_tensor_cores.cu say 8 warps"

# %%
registers = np.arange(16, 256)
figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
for style, ink, used in (("-", COLOURS[0], 0), ("--", COLOURS[1], shared)):
    warps = [blocks_per_processor(threads, int(count), used) * threads // 32 for count in registers]
    label = f"{threads} threads, {used / 1024:.0f} KB of shared memory"
    axes.step(registers, warps, where="post", color=ink, linestyle=style, label=label)
axes.plot(255, 8, "o", color="black", markersize=6, clip_on=False)
axes.annotate("the package's tile", (255, 8), (190, 26), arrowprops={"arrowstyle": "-"}, fontsize=9)
axes.set(xlabel="registers of a thread", ylabel="warps on a processor", ylim=(0, 68), xlim=(16, 255))
axes.set_yticks(range(0, 65, 16))
axes.grid(color="0.9")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="upper right")
show(figure, alt="Warps fall in steps from 64 to 8 as registers grow; with 108 KB of shared memory at most 8 fit.")

# %% [markdown]
# An eighth of the warps, and on purpose. Many warps hide waiting; but large tiles in registers need less to wait for,
# and the copies in flight hide the rest, with the loads of the next slice of the depth. On an H200, before that loading
# ahead was written, 64 × 64 sums a warp did 12 to 16 % more a second than 64 × 32 with twice the warps (3×3, 256 to 192
# channels, bf16 and tf32). Occupancy is a means, not a measure of speed.
#
# ## 6. The roofline by hand
#
# How long must a layer take *at least*? It has to do its operations and to move its bytes. With a peak of $\pi$
# operations and $\beta$ bytes a second,
#
# $$t \ge \max\left(\frac{\text{operations}}{\pi},\; \frac{\text{bytes}}{\beta}\right).$$
#
# Their quotient, operations for one byte, is the **intensity** $I$. At best a layer runs at $\min(\pi, I\beta)$: a
# roof with a slope and a flat part. By NVIDIA's data sheet of the H200 (SXM; its figures are with sparsity, half of
# them without): 494.5 TFLOP/s for tf32, 989.5 for bf16, and 4.8 TB/s of memory.
#
# **This is a model, not a measurement.** No kernel reaches a peak, and every array is counted once, as if caches kept
# all that is read again.
#
# Count, for the forward pass: a multiply-add is **two** operations. Each output pixel of a convolution meets the whole
# weight once; in a transposed convolution each *input* pixel does. Input, output and weight are moved once.
#
# **Predict**: which layers wait for memory: 7 × 7 on the image, 3 × 3 in the middle, or 1 × 1 at the end?


# %% tags=["exercise"]
def forward_work(x_shape, y_shape, weight_shape, transposed, itemsize):
    """Return (operations, bytes) of a forward pass; shapes (B, H, W, C) of x and y, itemsize: bytes of a number."""
    ### BEGIN SOLUTION hint: pixels of y (transposed: of x) times the size of the weight, times two
    pixels = math.prod(x_shape[:3] if transposed else y_shape[:3])
    weights = math.prod(weight_shape)
    return 2 * pixels * weights, itemsize * (math.prod(x_shape) + math.prod(y_shape) + weights)
    ### END SOLUTION


# %% tags=["check"]
operations, moved = forward_work((4, 10, 12, 8), (4, 5, 6, 16), (16, 8, 3, 3), False, 4)
assert operations == 276480, f"4 * 5 * 6 outputs pixels, 16 * 8 * 9 weights, two operations: 276480, got {operations}"
assert moved == 27648, f"3840 + 1920 + 1152 numbers of 4 bytes: 27648, got {moved}"
operations, moved = forward_work((1, 4, 4, 8), (1, 8, 8, 16), (8, 16, 4, 4), True, 2)
assert operations == 65536, f"transposed: each of 16 input pixels meets 8 * 16 * 16 weights: 65536, got {operations}"
assert moved == 6400, f"128 + 1024 + 2048 numbers of 2 bytes: 6400, got {moved}"

# %% [markdown]
# The package has the same arithmetic for a whole training step, `tests/benchmarks/roofline.py`: it runs a step in which
# every kernel is noted instead of run. Both must agree on the operations of every convolution, for a batch of 32. Of
# bytes, a kernel moves a little more than these three arrays: a bias; in its epilogue the mean and the squares of each
# tile, for the batch norm that follows; partial sums where several blocks share a tile. And copies are 16 bytes, so
# that the image's 3 channels are padded to 4 before the first layer.

# %%
roofline = importlib.import_module("benchmarks.roofline")
side, number = 256 if FAST else 512, 32
works = roofline.step("resnet18", size=side, classes=80, batch=number, precision="tf32")
layers = {}  # one of each kind: the last, which has the largest map
for work in works:
    if work.kind != "forward":
        continue
    x_shape, y_shape, (outputs, channels, *kernel_size) = work.shapes
    transposed = work.function == "input_gradient"  # of the convolution that makes its input of its output
    if transposed:
        x_shape, y_shape, outputs, channels = y_shape, x_shape, channels, outputs
    padded = (*x_shape[:3], -(-x_shape[3] // 4) * 4)
    name = f"{channels} to {outputs}, {kernel_size[0]} × {kernel_size[1]}"
    layers[name] = forward_work(padded, y_shape, work.shapes[2], transposed, 4)
    assert layers[name][0] == work.operations, f"{name}: {layers[name][0]} operations here, {work.operations} there"
    assert layers[name][1] <= work.bytes, f"{name}: {layers[name][1]} bytes here, {work.bytes} there"

PEAK, BANDWIDTH = 494.5e12, 4.8e12
assert (PEAK, BANDWIDTH) == (roofline.PEAK["tf32"], roofline.BANDWIDTH)
print(f"{side} x {side}, batch {number}, tf32: a model, not a measurement")
for name, (operations, moved) in layers.items():
    arithmetic, memory = 1e6 * operations / PEAK, 1e6 * moved / BANDWIDTH
    waits = "arithmetic" if arithmetic > memory else "memory"
    print(f"{name:22} {operations / 1e9:6.1f} GFLOP {moved / 1e6:6.1f} MB {max(arithmetic, memory):6.1f} us  {waits}")

# %%
shown = {  # where the label stands
    "64 to 2, 1 × 1": (1.7, 2.6),
    "128 to 256, 1 × 1": (15, 20),
    "64 to 80, 1 × 1": (4, 150),
    "3 to 64, 7 × 7": (13, 330),
    "64 to 64, 3 × 3": (112, 250),
    "256 to 192, 3 × 3": (420, 55),
    "256 to 256, 4 × 4": (150, 110),
    "512 to 512, 3 × 3": (440, 250),
}
figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
intensity = np.geomspace(0.2, 2000, 400)
for precision, style, ink in (("tf32", "-", COLOURS[0]), ("bf16", "--", COLOURS[1])):
    peak = roofline.PEAK[precision]
    roof = np.minimum(peak, intensity * BANDWIDTH) / 1e12
    axes.plot(intensity, roof, style, color=ink, label=f"roof for {precision}")
ridge = PEAK / BANDWIDTH
axes.axvline(ridge, color="0.6", linewidth=0.8, linestyle=":")
axes.text(ridge * 0.93, 0.75, f"ridge for tf32: {ridge:.0f}", rotation=90, ha="right", va="bottom", fontsize=9)
for name, (operations, moved) in layers.items():
    found = operations / moved
    height = min(PEAK, found * BANDWIDTH) / 1e12
    axes.plot(found, height, "o", color=COLOURS[0], markersize=5, markeredgecolor="white")
    if name in shown:
        line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4}
        axes.annotate(name, (found, height), shown[name], fontsize=8.5, va="center", arrowprops=line)
axes.plot(0.25, 0.25 * BANDWIDTH / 1e12, "s", color="black", markersize=6)
axes.annotate("one thread for one output,\nwithout caches", (0.25, 1.2), (0.42, 1.0), fontsize=8.5, va="center")
axes.set(xscale="log", yscale="log", xlim=(0.2, 2000), ylim=(0.7, 1600))
axes.set(xlabel="intensity, operations for one byte", ylabel="at best, TFLOP/s: a model")
axes.grid(color="0.92")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="upper left")
show(
    figure,
    alt="Roofline of an H200: 1 by 1 convolutions lie on the slope, 3 by 3 ones on the flat roof of 494 TFLOP/s.",
)

# %% [markdown]
# The black square is the naive kernel without caches: 2 operations for 2 loads of 4 bytes, a quarter of an operation
# for a byte. It could never pass 1.2 TFLOP/s. Tiles move a kernel to the right, towards the intensity of its layer.
#
# Now a whole training step in the model. Batch norm has next to no arithmetic. **Predict**: what do all batch norms,
# forward and backward, take at best beside the forward pass of all convolutions?

# %%
print("A MODEL, nothing was measured:", roofline.table(works, "tf32"))
seconds = {}
for work in works:
    seconds[work.kind] = seconds.get(work.kind, 0) + work.seconds("tf32")
assert seconds["batch norm"] > seconds["forward"], "in the model the batch norms have the higher floor"
print(f"at best {number / sum(seconds.values()):,.0f} images a second, if every kernel reached its floor")

# %% [markdown]
# Batch norm reads its maps several times: a floor made of memory alone, and higher than that of the products. So the
# package gathers its statistics in the convolution's epilogue, where the numbers are still in registers. A pencil finds
# such a choice before anything runs; whether it pays, only a measurement says.
#
# ## 7. A rung further: warpgroups
#
# For `mma`, A and B lie in registers: each warp first loads what it needs, and its neighbours load much of it again.
# Hopper GPUs (compute capability 9.0) have `wgmma`. Four warps, a *warpgroup*, name two tiles in shared memory; the
# tensor cores fetch 64 rows of A and up to 256 columns of B by themselves, and the threads go on to copy what is next.
#
# **Predict**: how many numbers are read from shared memory for 1000 multiply-adds, by a warp with 64 × 64 sums and by a
# warpgroup with 64 × 256?

# %%
_, _, _, wm, wn, _ = conv2d_choice.TILES["tensor_cores"]["correlate"]["widest"][0]
_, n, _, _ = conv2d_choice.TILES["warpgroups"]["correlate"]["widest"][0]
for who, rows, columns in (("a warp", wm, wn), ("a warpgroup", 64, n)):
    print(f"{who:11}, {rows} x {columns} sums: {1000 * (rows + columns) / (rows * columns):.1f} numbers for 1000")

# %% [markdown]
# They fetch 8 rows of 16 bytes at a time. A row of a tile is 128 bytes, once around all 32 banks: the same chunk of 8
# rows would lie in the same 4 banks, to be read one after another. `conv2d_tensor_cores.cu` makes its rows 16 bytes
# longer. `wgmma` wants them *swizzled* instead: chunk $c$ of row $r$ lies at place $c \oplus (r \bmod 8)$, the bits of
# the two numbers added without carrying (`swizzled` in `ops/tensor_cores.cuh`).

# %%
row, chunk = np.indices((8, 8))
plain, swizzled = chunk, chunk ^ row % 8  # where chunk `chunk` of row `row` lies
figure, both = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained", sharey=True)
for axes, place, title in zip(both, (plain, swizzled), ("as they come", "swizzled"), strict=True):
    lies = np.argsort(place, axis=1)  # which chunk lies at each place
    axes.imshow(np.where(lies == 2, 1, 0), cmap="Blues", vmin=0, vmax=2)
    for r, p in np.ndindex(8, 8):
        axes.text(p, r, lies[r, p], ha="center", va="center", weight="bold" if lies[r, p] == 2 else None)
    axes.set(xticks=range(8), yticks=range(8), xlabel="banks", title=f"{title}: chunk 2 of 8 rows")
    axes.set_xticklabels([f"{4 * p}-{4 * p + 3}" for p in range(8)], fontsize=7)
both[0].set_ylabel("row")
show(figure, alt="Left, chunk 2 of all 8 rows stands in one column of banks; right, in another column for each row.")
assert all(len(set(swizzled[:, c])) == 8 for c in range(8)), "each chunk is in 8 different places"

# %% [markdown]
# The rest is in `ops/conv2d_warpgroups.cu`, in the shape of section 4: a ring, copies, a barrier. Two waits are new.
# What `cp.async` has written the tensor cores see only after a *fence*; and a sum, or a tile that is still multiplied,
# may be touched only when the products of its step have been waited for. The runner knows both: leave one out, and it
# says so.
#
# Tensor cores this fast must be fed. A step of a tile copies 128 bytes for each of its pixels and outputs, from the L2
# cache; but neighbouring taps see the same pixels, and the L1 cache can keep what was copied for the tap before. The
# columns of the matrix may be counted in any order, as long as the weight's are: all taps of the same 64 channels one
# after another.
#
# **Predict**: 256 neighbouring pixels of a map 128 wide, 3 × 3 taps, 64 channels of bf16. What comes from L2 for these
# nine steps if the L1 cache forgets everything, and if it forgets nothing?

# %%
pixels_of_tile, outputs_of_tile, row_bytes, width = 256, 128, 128, 128
every = [(p // width + u, p % width + v) for p in range(pixels_of_tile) for u in range(3) for v in range(3)]
weights = 9 * outputs_of_tile * row_bytes
for what, seen in (("forgets everything", len(every)), ("forgets nothing", len(set(every)))):
    print(f"the L1 cache {what}: {(seen * row_bytes + weights) / 1024:.0f} KB, of them {weights / 1024:.0f} of weights")

# %% [markdown]
# Whether it pays only a measurement says: a GPU's 256 KB for L1 cache and shared memory are one, and the ring of tiles
# takes more than half of them.
#
# ## Break it
#
# The kernel of section 4 is right with 4 channels. Now a map of 6.

# %%
six = np.random.default_rng(2).integers(-4, 5, (BATCH, HEIGHT, WIDTH, 6)).astype(np.float32)
taps_of_six = np.random.default_rng(3).integers(-4, 5, (OUTPUTS, 6, KERNEL, KERNEL)).astype(np.float32)
expected_of_six = reference_forward(six, taps_of_six, Geometry.of(STRIDE, PADDING, 1, 1)).reshape(pixels, OUTPUTS)


def convolve(values, kernel):
    """Run the pipelined kernel on the CPU and on a GPU, if there."""
    channels = values.shape[3]
    text = HEADER + constants(channels) + KERNEL_AROUND.replace("MAIN_LOOP", main_loop())
    rows = np.ascontiguousarray(kernel.transpose(0, 2, 3, 1)).reshape(OUTPUTS, -1)
    return workbench.run(text, "convolve", *shape, values, rows, ..., output=(pixels, OUTPUTS))


try:
    convolve(six, taps_of_six)
except workbench.KernelFault as fault:
    symptom = str(fault)
print(symptom)
assert "alignment" in symptom, "the runner should refuse this kernel"

# %% [markdown]
# Nothing is wrong with the loop, nor with the bounds. 8 channels work, 12 work, 6 and 3 do not. **Find the cause**, and
# a cure that leaves the kernel as it is.
#
# <details><summary>Answer</summary>
#
# A copy is 16 bytes, 4 floats, and both its addresses must be multiples of 16. With 6 channels a pixel begins every 24
# bytes. And even where the address fits, 4 numbers from $d$ on may reach into the next tap, whose numbers lie
# elsewhere. The cure: zeros up to the next multiple of 4, in the channels of the map and of the weight. Zeros add
# nothing to a sum. The package's `conv2d_pad_channels` does that for the image's 3 channels.
#
# </details>

# %%
padded = [np.pad(six, [(0, 0)] * 3 + [(0, 2)]), np.pad(taps_of_six, [(0, 0), (0, 2), (0, 0), (0, 0)])]
workbench.assert_agree(convolve(*padded), expected_of_six, hint="padded channels must not change the result")
print("8 channels, two of them zero: equal to the convolution of 6")

# %% [markdown]
# ## Summary
#
# - A convolution is a matrix product; an implicit GEMM computes the addresses of its left matrix and writes none of it.
# - Tiles in shared memory and in registers: more multiply-adds for each load.
# - `mma` is an instruction of a warp; who holds what is fixed. tf32 is rounded before, not cut off.
# - A ring of buffers and `cp.async`: wait for the right group, then a barrier, then the next copy.
# - `wgmma` reads shared memory by itself: larger tiles for fewer reads, swizzled rows, one fence and one wait more.
# - Occupancy is the smallest of four quotients. The roofline is the longer of two times, and a model.
#
# ## In the package
#
# - `minicenternet.ops.conv2d_cuda.forward` chooses a rung of the ladder by `minicenternet.ops.conv2d_choice.choose`.
# - `Row::at` in `ops/conv2d_tile.cuh` is exercise 1 with the divisions taken out of the loop.
# - `ops/tensor_cores.cuh` holds `mma` and `cp_async`; exercises 2 and 3 are parts of `ops/conv2d_tensor_cores.cu`.
# - `ops/conv2d_warpgroups.cu` is the ladder's fifth rung; `gpu.py --tune` takes it where it was measured to be faster.
# - `tests/benchmarks/roofline.py` is exercise 5 for every kernel of a training step.
