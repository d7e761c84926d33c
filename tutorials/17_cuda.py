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
# # 17 · CUDA kernels with CuPy
#
# - **Goal**: write four kernels and know for each what its threads read, when they may read it, and what that costs.
# - **You need**: 03 (convolution, channels last) and 10 (peaks). No GPU, but g++ on an x86-64 machine.
# - **Minutes**: 75 to read and work / runs in about 10 s (the first time longer: it compiles)
# - **Equations**: none of E1 to E10
# - **What you should see**: a plain transposition moves exactly 4.5 times the bytes of a copy, a tiled one exactly 1.0
#   times; and a kernel that is right in one thread order and wrong in two others.

# %%
import importlib
import inspect
import os
import sys
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np

import minicenternet
from minicenternet.draw import COLOURS, draw_access_pattern, show
from minicenternet.points import decode

FAST = os.environ.get("MINICENTERNET_FAST") == "1"

# %% [markdown]
# ## Where the kernels run
#
# A **kernel** is a function in CUDA C++ that many threads run at once. CuPy compiles it from a text and launches it on
# a GPU. Most readers have none at hand. So this notebook runs each kernel on the CPU: the *CPU runner*, the folder
# `tests/cuda_on_cpu` of this repository, compiles the same text with g++ and runs its threads one after another. The
# project tests all its kernels in this way. Its README says what it shows and what it does not: it has **no notion of
# time**.
#
# The next cell looks for that folder in the folders above this notebook, then beside the installed package. Where there
# is also a GPU with CuPy, every run below happens there as well.

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
# ## 1. One thread for one number
#
# A launch starts a **grid** of **blocks**, each block of the same number of **threads**. All threads run the same text.
# A thread learns which one it is from four built-in variables, each with members `x`, `y` and `z`:
#
# | name | is |
# |---|---|
# | `threadIdx` | number of the thread in its block |
# | `blockIdx` | number of the block in the grid |
# | `blockDim` | threads in a block |
# | `gridDim` | blocks in the grid |
#
# The usual kernel gives every number of its result to one thread. `__global__` marks a function that a launch can call;
# it returns nothing and writes to arrays.

# %%
SCALE = """
__global__ void scale(const float* x, float* y, float by, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = by * x[i];
}"""

x = np.arange(10, dtype=np.float32)
results = workbench.run(SCALE, "scale", (3,), (4,), x, ..., 2.0, 10, output=(10,))
for where, found in results.items():
    print(f"{where:20}", found)

# %% [markdown]
# Ten numbers, blocks of 4 threads: a grid of `(3,)` blocks, rounded up. In the arguments `...` stands for the result.
#
# **Predict**: how many threads run, and how many of them do nothing? What would happen without `if (i < n)`?

# %%
figure, axes = plt.subplots(figsize=(8, 2.2), layout="constrained")
for i in range(12):
    block, thread = divmod(i, 4)
    colour = COLOURS[(0, 4, 5)[block]]
    axes.add_patch(plt.Rectangle((i, 0), 0.92, 1, facecolor=colour, alpha=0.55 if i < 10 else 0.12, edgecolor="black"))
    axes.text(i + 0.46, 0.5, f"thread {thread}", ha="center", va="center", fontsize=8)
    axes.text(i + 0.46, -0.25, f"y[{i}]" if i < 10 else "no y", ha="center", va="center", fontsize=9)
for block in range(3):
    axes.text(4 * block + 1.96, 1.25, f"block {block}", ha="center", va="center", fontsize=10)
axes.set(xlim=(-0.1, 12.1), ylim=(-0.5, 1.5))
axes.set_title("12 threads for 10 numbers", loc="left", fontsize=11)
axes.set_axis_off()
show(figure, alt="Three blocks of four threads in a row; the last two threads of block 2 have no number to write.")

# %% [markdown]
# The runner is a few lines around the compiled kernel. Read them: they say what it looks for. Three **thread orders**
# (forward, reverse, random), because a GPU promises none. **Fences**, a page of NaN on both sides of every array. A
# thread that writes there is found out; one that reads there gets NaN. The output itself begins as NaN.

# %%
print(inspect.getsource(workbench.run))

# %%
for text, change in (("without the bound", ("if (i < n) ", "")), ("with <= for <", ("i < n", "i <= n"))):
    try:
        workbench.run(SCALE.replace(*change), "scale", (3,), (4,), x, ..., 2.0, 10, output=(10,))
    except workbench.KernelFault as fault:
        print(f"{text}: {fault}")
    else:
        raise AssertionError(f"a kernel {text} was not noticed")

# %% [markdown]
# **Write.** The backward pass of ReLU: $dx_i = dy_i$ where $y_i > 0$, and 0 elsewhere. Your function returns the
# kernel's text.


# %% tags=["exercise"]
def relu_backward():
    """Return the text of a kernel relu_backward(const float* dy, const float* y, float* dx, int n)."""
    ### BEGIN SOLUTION hint: one thread for one i, as in scale; dx must be written for every i < n, also where it is 0
    return """
    __global__ void relu_backward(const float* dy, const float* y, float* dx, int n) {
      int i = blockIdx.x * blockDim.x + threadIdx.x;
      if (i < n) dx[i] = y[i] > 0 ? dy[i] : 0;
    }"""
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(0)
dy, y = rng.standard_normal((2, 1000)).astype(np.float32)
y[::3] = 0
results = workbench.run(relu_backward(), "relu_backward", (4,), (256,), dy, y, ..., 1000, output=(1000,))
expected = np.array([gradient if value > 0 else 0 for gradient, value in zip(dy, y, strict=True)], np.float32)
workbench.assert_agree(results, expected, hint="Look at the index i, at the bound, and at what y = 0 gives.")
print("the same as a Python loop:", *results, sep="\n  ")

# %% [markdown]
# ## 2. Two axes, and gathering
#
# Grids and blocks have up to three axes. A map of the detector has two, so a block of 16 × 16 threads covers 16 × 16
# cells: `x` along a row, `y` down. In memory, cell $(y, x)$ of a map of $W$ columns is number $yW + x$.
#
# Decoding (notebook 10) keeps a cell of the heatmap only where none of its 8 neighbours is larger. As a kernel, one
# thread has one cell. It **gathers**: it reads up to nine numbers and writes one. No two threads write to the same
# place, so that their order cannot matter. Every kernel of the package is written so.
#
# **Predict**: the heatmap has 21 × 37 cells. How many blocks of 16 × 16, and how many threads do nothing?

# %%
H, W = 21, 37
grid = (-(-W // 16), -(-H // 16))  # x first
print(f"{grid[0]} x {grid[1]} blocks, {grid[0] * grid[1] * 256} threads, {grid[0] * grid[1] * 256 - H * W} do nothing")


# %% tags=["exercise"]
def peaks():
    """Return the text of a kernel peaks(const float* heatmap, float* kept, int height, int width).

    kept: the heatmap where no neighbour (there are fewer at a border) is larger, 0 elsewhere. Equal neighbours stay.
    """
    ### BEGIN SOLUTION hint: clip the rows y-1 .. y+1 and the columns x-1 .. x+1 to the map before you read
    return """
    __global__ void peaks(const float* heatmap, float* kept, int height, int width) {
      int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
      if (x >= width || y >= height) return;
      float own = heatmap[y * width + x], largest = own;
      for (int row = max(y - 1, 0); row <= min(y + 1, height - 1); row++)
        for (int column = max(x - 1, 0); column <= min(x + 1, width - 1); column++)
          largest = max(largest, heatmap[row * width + column]);
      kept[y * width + x] = own == largest ? own : 0;
    }"""
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(1)
heatmap = np.round(rng.random((H, W)), 1).astype(np.float32)  # one decimal: many neighbours are equal
expected = np.zeros_like(heatmap)
for row in range(H):
    for column in range(W):
        near = heatmap[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        expected[row, column] = heatmap[row, column] * (heatmap[row, column] == near.max())
results = workbench.run(peaks(), "peaks", grid, (16, 16), heatmap, ..., H, W, output=(H, W))
workbench.assert_agree(results, expected, hint="Look at the borders, at the diagonal, at equals, and at y * width + x.")

# %% [markdown]
# The package's `peaks` on the CPU (a 3 × 3 maximum by whole arrays) must keep the same cells.

# %%
by_package = decode.peaks(heatmap[None, :, :, None])[0, :, :, 0]
for found in results.values():
    assert np.array_equal(found, by_package), "the kernel and minicenternet.points.decode.peaks differ"
print(f"{np.count_nonzero(by_package)} of {H * W} cells are peaks, in the kernel and in the package")

# %% [markdown]
# ## 3. What a warp reads
#
# Threads do not run one by one. Each 32 with neighbouring numbers are a **warp**: one instruction, 32 **lanes**. When a
# warp reads, its 32 addresses go to memory together. Memory is moved in **sectors** of 32 bytes, 8 floats, that begin
# at multiples of 32. One sector is moved whole, whether one byte of it or all are wanted. So the cost of a read is the
# number of *different sectors* that the 32 addresses fall into.
#
# | lanes read | bytes wanted | sectors, at best |
# |---|---|---|
# | 32 neighbouring floats | 128 | 4 |
# | 32 floats, each in a row of its own | 128 | 32 |
#
# Reads of the first kind are called **coalesced**.
#
# **Write** the count. The address of each float is in bytes; a float is 4 bytes long and its address a multiple of 4.


# %% tags=["exercise"]
def sectors(addresses):
    """Return how many sectors of 32 bytes a warp touches that reads a float at each of these byte addresses."""
    ### BEGIN SOLUTION hint: which sector does an address lie in? lanes in the same sector share it
    return len({address // 32 for address in addresses})
    ### END SOLUTION


# %% tags=["check"]
lanes = np.arange(32)
assert sectors(0 + 4 * lanes) == 4, "32 neighbouring floats are 128 bytes: 4 sectors of 32 bytes, not lines of 128"
assert sectors(4 + 4 * lanes) == 5, "one float further: 128 bytes from byte 4 on reach into a fifth sector"
assert sectors(4096 + 8 * lanes) == 8, "every second float: 256 bytes are touched, so twice the sectors"
assert sectors(4096 + 400 * lanes) == 32, "a row of 100 floats between lanes: no two share a sector"
assert sectors(np.full(32, 444)) == 1, "all lanes read the same float: one sector, not one for each lane"
assert sectors(4 * (31 - lanes)) == 4, "backwards: the same four sectors, whatever the order of the lanes"

# %% [markdown]
# **Predict** the number for each row of the picture before you read its right-hand side. A column is one float; dark
# lines are the borders of sectors; a mark is a lane.

# %%
patterns = {
    "x[lane]": lanes,
    "x[lane + 1]": lanes + 1,
    "x[31 - lane]": 31 - lanes,
    "x[2 * lane]": 2 * lanes,
    "x[5 * lane % 32]": 5 * lanes % 32,
    "x[lane / 8 * 16]": lanes // 8 * 16,
    "x[100 * lane]": 100 * lanes,
}
figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
for row, words in enumerate(patterns.values()):
    touched = np.unique(words // 8)
    for sector in touched[touched < 9]:
        axes.add_patch(plt.Rectangle((8 * sector, row - 0.4), 8, 0.8, facecolor="#e3e0cf", edgecolor="none"))
    shown = words < 72
    axes.scatter(words[shown] + 0.5, np.full(shown.sum(), row), c=lanes[shown], cmap="cividis", vmin=0, vmax=31, s=22)
    count = sectors(4 * words)
    axes.text(73, row, f"{count} sector{'s' * (count > 1)}", va="center", fontsize=9)
for sector in range(10):
    axes.axvline(8 * sector, color="0.35", linewidth=0.8)
axes.set(xlim=(0, 72), ylim=(len(patterns) - 0.4, -0.6), xlabel="float in memory (8 of them are a sector)")
axes.set_yticks(range(len(patterns)), patterns, family="monospace")
axes.set_xticks(range(0, 73, 8))
axes.spines[["top", "right"]].set_visible(False)
bar = figure.colorbar(axes.collections[0], ax=axes, location="bottom", shrink=0.4, aspect=30)
bar.set_label("lane")
show(figure, alt="Seven access patterns of a warp: 32 neighbours touch 4 sectors, a stride of 100 touches 32.")

# %% [markdown]
# For `x[100 * lane]` only lane 0 is within the picture. Its 32 sectors bring 1024 bytes, of which 128 are wanted. The
# second row from near, in the package's own picture, where a sector is a segment:

# %%
picture = draw_access_pattern(lanes + 1, title="x[lane + 1]", names=("lane", "float"))
show(
    picture,
    alt="32 lanes read floats 1 to 32; five sectors of eight floats are framed, one of them for a single float.",
)

# %% [markdown]
# ### Counting in a real kernel
#
# `workbench.trace` runs a kernel whose arrays write down every access: block, warp, *turn* (the first access of each
# thread, the second, ...) and the index. The accesses of a warp in one turn are one instruction. This is the array
# that it puts in the place of `const float*`:

# %%
print(workbench.TRACED)


def sectors_moved(records):
    """Return the sectors that a traced array moved, each instruction of each warp for itself."""
    block, warp, turn, word = records.T
    return len(np.unique(np.stack([block, warp, turn, word // 8]), axis=1).T)


n, rng = 1024, np.random.default_rng(4)
for name, index in (("neighbours", "i"), ("every second", "2 * i % n")):
    text = SCALE.replace("x[i]", f"x[{index}]")
    records = workbench.trace(text, "scale", (n // 256,), (256,), rng.random(n, np.float32), ..., 2.0, n, output=(n,))
    print(f"{name:13} x: {sectors_moved(records['x'])} sectors for {n} floats, y: {sectors_moved(records['y'])}")

# %% [markdown]
# This is **a count, not a time**. It takes arrays to begin at the border of a sector, as CuPy's do. It leaves out
# caches: sectors that another warp wants soon afterwards may be found there. But one should not have to hope for that.
#
# ## 4. Shared memory
#
# Networks of other frameworks store maps with channels first, (C, H, W); ours has channels last, (H, W, C). To go from
# one to the other is to transpose a matrix of $HW$ rows and $C$ columns. The plain kernel has one thread for one
# element:

# %%
PLAIN = """
__global__ void transpose(const float* x, float* y, int rows, int columns) {
  int column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
  for (int i = 0; i < 32; i += 8)
    if (column < columns && row + i < rows) y[column * rows + row + i] = x[(row + i) * columns + column];
}"""

# %% [markdown]
# A block is `(32, 8)` threads, 8 warps, and each thread has 4 elements of a 32 × 32 tile: a warp is a row of 32
# threads with the same `threadIdx.y`.
#
# **Predict** for one warp and one turn: how many sectors does it read, and how many does it write?

# %%
ROWS, COLUMNS = 96, 64
big = np.random.default_rng(5).random((ROWS, COLUMNS), np.float32)
launch = ((COLUMNS // 32, ROWS // 32), (32, 8))
records = workbench.trace(PLAIN, "transpose", *launch, big, ..., ROWS, COLUMNS, output=(COLUMNS, ROWS))
instructions = ROWS * COLUMNS // 32
plain = {array: sectors_moved(touched) / instructions for array, touched in records.items()}
print(f"for each instruction of a warp: {plain['x']:g} sectors read, {plain['y']:g} sectors written")
assert plain == {"x": 4, "y": 32}

# %% [markdown]
# One side is always bad: what are neighbours in `x` are `rows` floats apart in `y`. The way out is memory that does not
# mind. Every block has **shared memory**, a few tens of kilobytes on the chip that all its threads can read and write:
#
# ```
# __shared__ float tile[32][33];   // one array for the whole block
# __syncthreads();                 // a barrier: no thread goes on before all have arrived
# ```
#
# 1. The block reads a tile of 32 × 32 along the rows of `x`, coalesced, into shared memory.
# 2. **Barrier.** From here on every thread may read what the others brought.
# 3. It writes the tile along the rows of `y`, coalesced, and takes from the tile *columns*.
#
# Why 33? Shared memory has 32 **banks**; word number $w$ lies in bank $w \bmod 32$. One instruction gets one word from
# each bank. If its lanes want different words of one bank, they wait in line.
#
# **Predict**: lanes read column 0 of `tile[32][32]`. How many wait in line? And of `tile[32][33]`?

# %%
row, column = np.mgrid[0:32, 0:32]
figure, panels = plt.subplots(1, 2, figsize=(8, 4.3), layout="constrained")
for axes, width in zip(panels, (32, 33), strict=True):
    bank = (row * width + column) % 32
    longest = int(np.bincount(bank[:, 0]).max())
    image = axes.imshow(bank, cmap="cividis")
    axes.add_patch(plt.Rectangle((-0.5, -0.5), 1, 32, fill=False, edgecolor="#D55E00", linewidth=2.5))
    axes.set_title(f"tile[32][{width}]: column 0 takes {longest} turn{'s' * (longest > 1)}", loc="left", fontsize=10)
    axes.set(xlabel="column", ylabel="row")
    assert longest == {32: 32, 33: 1}[width]
bar = figure.colorbar(image, ax=panels, location="bottom", shrink=0.5, aspect=30)
bar.set_label("bank")
show(figure, alt="Banks of a 32 by 32 tile: with rows of 32 words column 0 is one bank, with 33 it has all 32 banks.")

# %% [markdown]
# The runner does not see banks. It sees the rest: shared memory begins as NaN in every block, and a thread runs alone
# up to the barrier, so that what another has not brought yet is not there.
#
# **Write** the transposition, for blocks of `(32, 8)` threads. It must also work where rows and columns are no
# multiples of 32, and index its arrays as `x[...]` and `y[...]`, so that it can be traced.


# %% tags=["exercise"]
def transpose():
    """Return the text of a kernel transpose(const float* x, float* y, int rows, int columns), y[c, r] = x[r, c]."""
    ### BEGIN SOLUTION hint: two loops with a barrier between them; in both, threadIdx.x must run along a row of memory
    return """
    __global__ void transpose(const float* x, float* y, int rows, int columns) {
      __shared__ float tile[32][33];
      int left = blockIdx.x * 32, top = blockIdx.y * 32, t = threadIdx.x;
      for (int i = threadIdx.y; i < 32; i += 8)
        if (left + t < columns && top + i < rows) tile[i][t] = x[(top + i) * columns + left + t];
      __syncthreads();
      for (int i = threadIdx.y; i < 32; i += 8)
        if (left + i < columns && top + t < rows) y[(left + i) * rows + top + t] = tile[t][i];
    }"""
    ### END SOLUTION


# %% [markdown]
# The check has three parts. The numbers, in three orders. The trace: four sectors for each instruction on both sides.
# And **AddressSanitizer**: the kernel is compiled once more so that every access is checked, and runs in a process of
# its own. It finds what no wrong number shows: a tile that is too small, whose last row lies in memory that happens to
# be free.

# %% tags=["check"]
odd = np.random.default_rng(2).random((45, 70), np.float32)
given = (transpose(), "transpose", (3, 2), (32, 8), odd, ..., 45, 70)
results = workbench.run(*given, output=(70, 45))
workbench.assert_agree(results, odd.T, hint="NaN: is the barrier there? Look at both bounds: rows and columns change.")
records = workbench.trace(transpose(), "transpose", *launch, big, ..., ROWS, COLUMNS, output=(COLUMNS, ROWS))
tiled = {array: sectors_moved(touched) / instructions for array, touched in records.items()}
for array, found in tiled.items():
    assert found == 4, f"{array} moves {found:g} sectors an instruction, not 4: threadIdx.x must run along its rows"
report = workbench.sanitised("address,undefined", *given, output=(70, 45))
assert report == "", f"AddressSanitizer: {report}. Is the tile large enough for all that is put into it?"
print("right, coalesced on both sides, and within its memory")

# %% [markdown]
# ## 5. Working together: a sum
#
# A loss is a sum over all cells. A GPU adds in a tree: the block's 256 numbers lie in shared memory; 128 threads add a
# second number to theirs, then 64, then 32, ... After 8 steps the sum lies in place 0. Between two steps stands a
# barrier. The order of the additions is fixed, so that the same call gives the same bits; an `atomicAdd`, which takes
# numbers as they come, would not.
#
# ```
# step 1    s[0..127] += s[128..255]
# step 2    s[0..63]  += s[64..127]
# ...
# step 8    s[0]      += s[1]
# ```


# %% tags=["exercise"]
def block_sums():
    """Return the text of a kernel block_sums(const float* x, float* sums, int n), for blocks of 256 threads.

    sums[b] is the sum of block b's 256 numbers of x; those at n and beyond count as 0.
    """
    ### BEGIN SOLUTION hint: fill all 256 places, also those beyond n; then for (half = 128; half > 0; half /= 2)
    return """
    __global__ void block_sums(const float* x, float* sums, int n) {
      __shared__ float s[256];
      int i = blockIdx.x * 256 + threadIdx.x;
      s[threadIdx.x] = i < n ? x[i] : 0;
      for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) s[threadIdx.x] += s[threadIdx.x + half];
      }
      if (threadIdx.x == 0) sums[blockIdx.x] = s[0];
    }"""
    ### END SOLUTION


# %% tags=["check"]
whole = np.random.default_rng(3).integers(0, 100, 1000).astype(np.float32)  # sums of whole numbers have no rounding
results = workbench.run(block_sums(), "block_sums", (4,), (256,), whole, ..., 1000, output=(4,))
expected = np.array([sum(whole[first : first + 256]) for first in range(0, 1000, 256)], np.float32)
workbench.assert_agree(results, expected, hint="NaN: a place read before it was filled. Else: is every half added?")

# %% [markdown]
# A missing barrier need not show in numbers: the order may be lucky. **ThreadSanitizer** does not look at numbers. It
# keeps for every address who touched it last and whether a barrier lies between. Take the barrier out of a sum and it
# names the line.

# %%
LUCKY = """
__global__ void halves(const float* x, float* sums) {
  __shared__ float s[2];
  s[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x == 1) sums[0] = s[0] + s[1];
}"""
two = np.float32([3, 4])
for where, found in workbench.run(LUCKY, "halves", (1,), (2,), two, ..., output=(1,)).items():
    print(f"{where:20} {found[0]}")
report = workbench.sanitised("thread", LUCKY, "halves", (1,), (2,), two, ..., output=(1,))
print("ThreadSanitizer:", report)
assert "data race, line 5" in report, f"a race between two threads was not reported: {report!r}"

# %% [markdown]
# ## 6. The ladder
#
# Four kernels that move the same numbers once: a copy, the two plain transpositions (one reads badly, one writes
# badly), and yours. On a GPU the cell measures time; here it counts bytes. **A count is not a time**: it says how much
# memory must move at least if caches do not help, and that is what these kernels wait for.
#
# **Predict** the heights of the four bars, in bytes moved for each float. A copy: 4 read and 4 written.

# %%
COPY = """
__global__ void copy(const float* x, float* y, int rows, int columns) {
  int column = blockIdx.x * 32 + threadIdx.x, row = blockIdx.y * 32 + threadIdx.y;
  for (int i = 0; i < 32; i += 8)
    if (column < columns && row + i < rows) y[(row + i) * columns + column] = x[(row + i) * columns + column];
}"""
READS_BADLY = PLAIN.replace(
    "y[column * rows + row + i] = x[(row + i) * columns + column]",
    "y[column + (row + i) * columns] = x[column * rows + row + i]",  # the grid lies over y: rows and columns change
)
ladder = {
    "copy": (COPY, "copy", (ROWS, COLUMNS)),
    "plain, reads\nalong columns": (READS_BADLY, "transpose", (COLUMNS, ROWS)),
    "plain, writes\nalong columns": (PLAIN, "transpose", (ROWS, COLUMNS)),
    "tiled": (transpose(), "transpose", (ROWS, COLUMNS)),
}
moved = {}
for rung, (text, name, (rows, columns)) in ladder.items():
    grid = (columns // 32, rows // 32)
    records = workbench.trace(text, name, grid, (32, 8), big, ..., rows, columns, output=(ROWS * COLUMNS,))
    if name == "transpose":
        results = workbench.run(text, name, grid, (32, 8), big, ..., rows, columns, output=(COLUMNS, ROWS))
        workbench.assert_agree(results, big.T, hint=f"the rung {rung!r} does not transpose")
    moved[rung] = [32 * sectors_moved(records[array]) / big.size for array in ("x", "y")]
    print(f"{' '.join(rung.split()):28} {moved[rung][0]:4.0f} read + {moved[rung][1]:4.0f} written, bytes for a float")
assert sum(moved["copy"]) == sum(moved["tiled"]) == 8
assert sum(moved["plain, writes\nalong columns"]) == 4.5 * sum(moved["copy"])


# %%
def gpu_microseconds(text, name, rows, columns, repeats=20):
    """Return the median time of a launch on the GPU, between two events of its stream."""
    cupy = workbench.cupy()
    kernel = cupy.RawModule(code=text, options=("-std=c++17",), name_expressions=(name,)).get_function(name)
    x, y = cupy.ones((rows, columns), np.float32), cupy.empty((columns, rows), np.float32)
    times = []
    for _ in range(repeats):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        kernel((columns // 32, rows // 32), (32, 8), (x, y, np.int32(rows), np.int32(columns)))
        end.record()
        end.synchronize()
        times.append(1e3 * cupy.cuda.get_elapsed_time(begin, end))
    return float(np.median(times))


times = {}
if workbench.cupy():
    side = 1024 if FAST else 4096
    times = {rung: gpu_microseconds(text, name, side, side) for rung, (text, name, _) in ladder.items()}
    print({" ".join(rung.split()): round(value, 1) for rung, value in times.items()}, f"microseconds, {side} x {side}")
else:
    print("no GPU: nothing was timed, the picture shows the count")

# %%
figure, panels = plt.subplots(1, 1 + bool(times), figsize=(8, 3.6), layout="constrained", squeeze=False)
counts, places = panels[0, 0], np.arange(len(moved))
read, written = np.array(list(moved.values())).T
counts.barh(places, read, color=COLOURS[0], label="read")
counts.barh(places, written, left=read, color=COLOURS[4], hatch="//", edgecolor="white", label="written")
for place, total in zip(places, read + written, strict=True):
    counts.text(total + 0.4, place, f"{total:g}", va="center", fontsize=9)
counts.set_yticks(places, moved)
counts.set(xlabel="bytes moved for each float: a count, not a time", xlim=(0, 42))
counts.legend(frameon=False, loc="lower right")
counts.set_title("memory that must move", loc="left", fontsize=11)
if times:
    panels[0, 1].barh(places, list(times.values()), color=COLOURS[1])
    panels[0, 1].set_yticks(places, [""] * len(places))
    panels[0, 1].set(xlabel="microseconds, median of 20 launches")
for axes in panels[0]:
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
show(figure, alt="Bytes moved for each float: copy 8, two plain transpositions 36 each, tiled 8.")

# %% [markdown]
# ## 7. The package's own kernel
#
# With CuPy an array lies on the GPU, and the package's functions launch kernels for it. Without a GPU the tests put a
# **stand-in** in the place of CuPy: its arrays are NumPy arrays in a wrapper, its kernels run on the CPU runner, and it
# counts what a GPU would not like, such as values read back by the host. Here it runs the package's ReLU, forward and
# backward, to compare with yours.

# %%
stand_in = importlib.import_module("cuda_on_cpu.stand_in")
with mock.patch.dict(sys.modules, cupy=stand_in):  # from here to the end of the block, `import cupy` finds the stand-in
    stand_in.reset()
    pointwise_cuda = importlib.import_module("minicenternet.ops.pointwise_cuda")
    by_package = pointwise_cuda.relu_backward(stand_in.asarray(dy), stand_in.asarray(y))
    print("launched:", *stand_in.launches, sep="\n  ")
    print(f"{stand_in.uploads} arrays were copied to the device, {stand_in.host_reads} values read back")
    assert stand_in.host_reads == 0, "a launch must not wait for the host"
    by_package = by_package.get()
results = workbench.run(relu_backward(), "relu_backward", (4,), (256,), dy, y, ..., 1000, output=(1000,))
for found in results.values():
    assert np.array_equal(found, by_package), "your kernel and minicenternet.ops.pointwise_cuda.relu_backward differ"

# %% [markdown]
# On a GPU the lines are the same, with CuPy itself:
#
# ```python
# import cupy
#
# module = cupy.RawModule(code=relu_backward(), options=("-std=c++17",), name_expressions=("relu_backward",))
# kernel = module.get_function("relu_backward")
# dx = cupy.empty(1000, cupy.float32)
# kernel((4,), (256,), (cupy.asarray(dy), cupy.asarray(y), dx, cupy.int32(1000)))
# ```
#
# `cupy.int32(1000)` matters: CuPy passes a Python int as 64 bits and checks nothing, and the kernel reads 32.
#
# ## Break it
#
# Somebody saves memory and keeps the peaks *in place*: one array, read and written.

# %%
IN_PLACE = peaks().replace("const float* heatmap, float* kept", "float* heatmap").replace("kept[", "heatmap[")
smooth = np.add.outer(np.sin(np.arange(H) / 3), np.cos(np.arange(W) / 3)).astype(np.float32)
smooth = (smooth - smooth.min()) / np.ptp(smooth)
apart = workbench.run(peaks(), "peaks", (3, 2), (16, 16), smooth, ..., H, W, output=(H, W))
count = {where: int(np.count_nonzero(found)) for where, found in apart.items()}
print("two arrays:", count)

library = workbench.build.build(IN_PLACE, ("peaks",))
found = {}
for order in workbench.build.ORDERS:
    same = smooth.copy()
    with mock.patch.dict(os.environ, CUDA_ON_CPU_ORDER=order):
        library.launch("peaks", (3, 2), (16, 16), [same, np.int32(H), np.int32(W)])
    found[order] = int(np.count_nonzero(same))
print("in place:  ", found)
assert len(set(count.values())) == 1, "with two arrays every order must give the same peaks"
assert len(set(found.values())) > 1, "in place the orders should differ"

# %% [markdown]
# Same formula, same input. In place it finds more peaks than there are, and a different number in each order. A
# colleague proposes `__syncthreads()` between reading and writing. **Find the cause**, and say whether the barrier
# would help. A hint from ThreadSanitizer:

# %%
report = workbench.sanitised("thread", IN_PLACE, "peaks", (3, 2), (16, 16), ..., H, W, output=(H, W))
print("ThreadSanitizer:", report)
assert "data race" in report, "the race between neighbouring cells was not reported"

# %% [markdown]
# <details><summary>Answer</summary>
#
# A thread that is no peak sets its cell to 0. A neighbour that looks afterwards sees the 0, not the value: it may now
# be the largest around and is kept. Who looks first depends on the order.
#
# A barrier holds the threads of *one block*. It would mend the inside of each 16 × 16 block. At the borders between
# blocks the race remains, and there is no barrier for a whole grid but the end of the kernel. The cure is the rule of
# section 2: gather from one array, write to another.
#
# </details>
#
# ## Summary
#
# - Grid, block, thread: $i$ = `blockIdx.x * blockDim.x + threadIdx.x`, and a bound for the last block.
# - A thread gathers and writes one place. Then no order of threads matters, and no atomics are needed.
# - A warp's 32 addresses cost as many sectors of 32 bytes as they touch: 4 at best, 32 at worst.
# - Shared memory turns bad accesses into good ones. Between writing and reading it stands a barrier, for one block.
# - Wrong kernels often give right numbers. Orders, fences, NaN and sanitizers find them without a GPU.
#
# ## In the package
#
# - `minicenternet.ops.pointwise_cuda.relu_backward` is exercise 1, in `ops/pointwise.cu`, 16 bytes a thread.
# - `minicenternet.points.decode.peaks` is exercise 2; on a GPU the same test is in `best_cell` of `points/decode.cu`.
# - `block_sum` in `ops/block_sum.cuh` is exercise 5, used by the loss and by batch norm.
# - `minicenternet.backend.kernel` compiles a `.cu` file once and checks what CuPy does not.
