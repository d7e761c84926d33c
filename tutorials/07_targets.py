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
# # 07 · Splatting targets
#
# - **Goal** Turn the boxes of one image into what the network is asked for: a heatmap with one Gaussian for each
#   object, and the cell, offset and size of each.
# - **You need** 06.
# - **Minutes** 50 to read and work / runs in about 7 s
# - **Equations** E1, E2, E3
# - **What you should see** The corrected radius keeps an IoU of exactly 0.7 (to 1e-9, against brute force). The
#   released radius keeps about 0.21 for a square. The target of every image has exactly one 1 for each distinct cell
#   and class.

# %%
import itertools
import math
import os

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from minicenternet.data.shapes import Shapes
from minicenternet.draw import COLOURS, show
from minicenternet.points import targets
from minicenternet.points.losses import focal_loss

FAST = os.environ.get("MINICENTERNET_FAST") == "1"
R = 4  # output stride: one cell of the map is R x R pixels of the input

# %% [markdown]
# ## An object is a point
#
# CenterNet has no anchors and no list of proposals. It asks one question of each cell of a map: *is the centre of an
# object here?* The map is $R = 4$ times smaller than the input, so a cell is a square of 4 by 4 pixels. Here is an
# image of 256 by 256 pixels with its boxes. The map will have 64 by 64 cells.

# %%
shapes = Shapes(20, size=256, seed=7, objects=(5, 8), occlusion=0.3, crowding=0.6)
sample = shapes[3]
boxes, labels = sample.annotation.boxes.astype(np.float64), sample.annotation.labels
for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
    print(f"{shapes.class_names[label]:>8}   x1 {x1:6.2f}   y1 {y1:6.2f}   x2 {x2:6.2f}   y2 {y2:6.2f}")

# %% [markdown]
# ## E1 · The centre and its cell
#
# A box is $x_1\ y_1\ x_2\ y_2$ in pixels: two corners. Its centre $p$ and the cell $\tilde p$ that owns it are (paper
# §3 and §4)
#
# $$p = \left(\tfrac{x_1 + x_2}{2},\ \tfrac{y_1 + y_2}{2}\right), \qquad
# \tilde p = \left\lfloor \tfrac{p}{R} \right\rfloor \qquad \text{(E1)}$$
#
# **Predict.** A box is (13, 20, 58, 47). Which cell owns it at $R = 4$? Would rounding to the nearest integer give
# the same cell?
#
# **Write.** The function takes $(N, 4)$ boxes. It returns $p / R$ and $\tilde p$, each $(N, 2)$, x first.


# %% tags=["exercise", "derives-E1"]
def centre_and_cell(boxes, stride=R):
    """E1: boxes (N, 4) in pixels -> centre / stride (N, 2) float, and the cell it falls in (N, 2) int64, x and y."""
    ### BEGIN SOLUTION hint: the mean of both corners, divided by the stride; then np.floor
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / stride
    return centre, np.floor(centre).astype(np.int64)
    ### END SOLUTION


# %% tags=["check"]
centre, cell = centre_and_cell(np.array([[13.0, 20, 58, 47]]))
assert np.allclose(centre, [[35.5 / 4, 33.5 / 4]]), (
    f"p / R of (13, 20, 58, 47) is (8.875, 8.375), yours {centre.tolist()}: "
    "a box is two corners, so p is their mean; x comes first; then divide by R"
)
assert np.issubdtype(cell.dtype, np.integer), f"a cell is an index, so an integer; yours is {cell.dtype}"
assert cell.tolist() == [[8, 8]], (
    f"p = (35.5, 33.5) lies in pixels 32 to 36 of both axes, which is cell (8, 8); yours {cell.tolist()}: round down"
)
rng = np.random.default_rng(0)
corner = rng.uniform(0, 200, (50, 2))
many = np.concatenate([corner, corner + rng.uniform(1, 50, (50, 2))], axis=1)
for (x1, y1, x2, y2), (x, y) in zip(many.tolist(), centre_and_cell(many)[1].tolist(), strict=True):
    assert R * x <= (x1 + x2) / 2 < R * (x + 1) and R * y <= (y1 + y2) / 2 < R * (y + 1), (
        f"the centre of {[x1, y1, x2, y2]} does not lie in cell {(x, y)}, which covers pixels R*x to R*(x+1)"
    )

# %% [markdown]
# The centre lies in a cell as a coin lies on a tile: anywhere on it. So $p/R - \tilde p$ is between 0 and 1 on each
# axis. Rounding to the nearest integer would move about half of the objects one cell right, and half of them one
# cell down. The difference $p/R - \tilde p$ is the *offset*, a target of its own, in notebook 09.

# %%
centre, cell = centre_and_cell(boxes)
figure, axes = plt.subplots(1, 2, figsize=(8, 4.1), layout="constrained")
for axis in axes:
    axis.imshow(sample.image, extent=(0, 256, 256, 0))
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        for colour, line in (("black", 3.2), (COLOURS[labels[i]], 1.6)):
            axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=line))
    axis.set_xlabel("x (pixels)")
axes[0].plot(*(R * centre.T), "o", color="white", markeredgecolor="black", markersize=6)
axes[0].set(title="boxes and their centres", ylabel="y (pixels)", xlim=(0, 256), ylim=(256, 0))
smallest = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).argmin()
for x, y in cell:
    axes[1].add_patch(Rectangle((R * x, R * y), R, R, facecolor="white", edgecolor="black", alpha=0.85))
axes[1].plot(*(R * centre.T), "o", color=COLOURS[1], markeredgecolor="black", markersize=6)
left, upper = R * cell[smallest] - 5 * R
axes[1].set(title="the smallest: its cell, its centre", xlim=(left, left + 44), ylim=(upper + 44, upper))
axes[1].set_xticks(np.arange(left, left + 45, R), minor=True)
axes[1].set_yticks(np.arange(upper, upper + 45, R), minor=True)
axes[1].grid(which="minor", color="black", alpha=0.35, linewidth=0.8)
show(
    figure,
    alt="Left: coloured shapes with boxes and centres. Right: one centre, enlarged, within its cell of a 4-pixel grid.",
)

# %% [markdown]
# ## E2 · One Gaussian for each object
#
# A target of 1 at the cell and 0 everywhere else would punish the neighbour as hard as the far corner of the image. A
# box that is drawn from the neighbouring cell is still a good box. So the target falls off around $\tilde p$ like a
# Gaussian (paper §3):
#
# $$Y_{yxc} = \exp\left(-\frac{(x - \tilde p_x)^2 + (y - \tilde p_y)^2}{2\sigma_p^2}\right) \qquad \text{(E2)}$$
#
# It is centred on the *cell*, an integer, so it is exactly 1 there: $e^0$. The loss of notebook 08 tests `Y == 1`.
# The width $\sigma_p$ comes from a radius $r$ in cells, which we derive below: the diameter $2r + 1$ is six sigmas,
# $\sigma_p = (2r + 1)/6$. What lies outside the square of $2r+1$ cells is cut off.
#
# **Predict.** How large is $Y$ at the middle of the square's edge, $r$ cells from the centre, for a large $r$? (At
# $r = 3 \sigma$ a Gaussian is $e^{-4.5}$.)
#
# **Write.** The square, $(2r + 1, 2r + 1)$, in float64.


# %% tags=["exercise"]
def blob(radius):
    """One object's Gaussian: (2 radius + 1, 2 radius + 1) float64, exactly 1 in the middle."""
    ### BEGIN SOLUTION hint: distances -r .. r along each axis; exp of minus their squares over 2 sigma squared
    sigma = (2 * radius + 1) / 6
    distance = np.arange(-radius, radius + 1)
    return np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * sigma**2))
    ### END SOLUTION


# %% tags=["check"]
assert blob(3).shape == (7, 7), f"a radius of 3 needs 2 * 3 + 1 = 7 cells a side, yours has shape {blob(3).shape}"
assert blob(4)[4, 4] == 1, f"the middle must be exactly 1, yours is {blob(4)[4, 4]}: the loss looks for Y == 1"
for radius in (0, 1, 4, 9):
    for dy, dx in ((0, 0), (0, radius), (radius, 0), (radius, radius), (radius // 2, -radius)):
        expected = math.exp(-18 * (dx * dx + dy * dy) / (2 * radius + 1) ** 2)  # 1 / (2 sigma^2) = 18 / (2r + 1)^2
        got = blob(radius)[radius + dy, radius + dx]
        assert math.isclose(got, expected, rel_tol=1e-12), (
            f"radius {radius}, {dx} cells right and {dy} down: expected {expected:.6f}, got {got:.6f}. "
            "The exponent is -(dx^2 + dy^2) / (2 sigma^2), with sigma = (2r + 1) / 6: sigma is squared"
        )
print(f"at the edge of the square, r = 50: {blob(50)[50, 0]:.4f};  e^-4.5 = {math.exp(-4.5):.4f}")
print(f"the three values along the axis for r = 2: {blob(2)[2, 2:].round(3)}")

# %% [markdown]
# The cut at $r$ throws away values below about 0.011, so that drawing an object costs its square and not the map.
#
# ### Two objects, one map
#
# Two objects of one class share one map. Where their Gaussians overlap, the paper takes the **element-wise maximum**.
#
# **Predict.** Two circles, 5 cells apart, $r = 6$. What happens to the first one's peak if the second is (a) written
# over it, (b) added, (c) combined by the minimum?

# %%
first, second = np.zeros(30), np.zeros(30)
first[5:18], second[10:23] = blob(6)[6], blob(6)[6]  # one row through both centres, cells 11 and 16
overwritten = first.copy()
overwritten[10:23] = blob(6)[6]
ways = {
    "maximum": np.maximum(first, second),
    "overwritten": overwritten,
    "sum": first + second,
    "minimum": np.minimum(first, second),
}
figure, axes = plt.subplots(1, 4, figsize=(8, 2.6), layout="constrained", sharey=True)
for axis, (name, row) in zip(axes, ways.items(), strict=True):
    axis.plot(first, ":", color="grey", linewidth=1.2)
    axis.plot(second, ":", color="grey", linewidth=1.2)
    axis.plot(row, "-o", color=COLOURS[0], markersize=3)
    axis.plot(np.flatnonzero(row == 1), row[row == 1], "s", color=COLOURS[1], markersize=8, label="Y = 1", zorder=3)
    axis.axhline(1, color="black", linewidth=0.7, linestyle="--")
    axis.set(title=f"{name}: {np.count_nonzero(row == 1)} ones", xlabel="x (cells)", xlim=(3, 25))
    print(f"{name:>12}: ones at cells {np.flatnonzero(row == 1).tolist()}, highest {row.max():.3f}")
axes[0].set_ylabel("Y")
axes[0].legend(loc="lower left", fontsize=8)
show(
    figure,
    alt="Two overlapping Gaussians joined in four ways; only the maximum keeps both peaks at one, with nothing above.",
)

# %% [markdown]
# Only the maximum leaves both cells at exactly 1 and nothing above. Written over, the later object erases the peak of
# the earlier one: it has no positive cell any more. The sum rises above 1 and has no cell that equals 1. The minimum
# leaves the foothills where both overlap.
#
# ### Truncation at the borders
#
# An object near the border has a blob that reaches beyond the map. The window in the map is cut; the blob must be cut
# *by the same cells*. Along one axis, with the map of length $W$:
#
# | | map | blob |
# |---|---|---|
# | first cell | $\max(x - r, 0)$ | $\max(x - r, 0) - (x - r)$ |
# | one past the last | $\min(x + r + 1, W)$ | $\min(x + r + 1, W) - (x - r)$ |
#
# **Write.** Draw in place; `heatmap` is $(H, W)$, one class.


# %% tags=["exercise", "derives-E2"]
def splat(heatmap, x, y, radius):
    """E2: draw one object's Gaussian around cell (x, y), in place, keeping the element-wise maximum."""
    ### BEGIN SOLUTION hint: cut the window and the blob by the same cells, then np.maximum(window, part, out=window)
    height, width = heatmap.shape
    top, bottom = max(y - radius, 0), min(y + radius + 1, height)
    left, right = max(x - radius, 0), min(x + radius + 1, width)
    part = blob(radius)[top - (y - radius) : bottom - (y - radius), left - (x - radius) : right - (x - radius)]
    window = heatmap[top:bottom, left:right]
    np.maximum(window, part, out=window)
    ### END SOLUTION


# %% tags=["check"]
def splat_by_loops(heatmap, x, y, radius):
    """The oracle: every cell of the map, one at a time."""
    for row, column in np.ndindex(*heatmap.shape):
        dx, dy = column - x, row - y
        if abs(dx) <= radius and abs(dy) <= radius:
            value = math.exp(-18 * (dx * dx + dy * dy) / (2 * radius + 1) ** 2)
            heatmap[row, column] = max(heatmap[row, column], value)


one, expected = np.zeros((12, 16)), np.zeros((12, 16))
splat(one, 8, 6, 3)
splat_by_loops(expected, 8, 6, 3)
assert np.allclose(one, expected), (
    f"one object in the middle of the map is already wrong, by up to {np.abs(one - expected).max():.3f}; "
    "an empty map is all zero, so a minimum with it stays zero; heatmap[y, x], row first"
)
for x, y in ((0, 0), (15, 11), (1, 10), (14, 2), (0, 6)):
    at_border, expected = np.zeros((12, 16)), np.zeros((12, 16))
    try:
        splat(at_border, x, y, 4)
    except ValueError as error:
        raise AssertionError(f"cell {(x, y)}: the window and the blob have different shapes there: {error}") from error
    splat_by_loops(expected, x, y, 4)
    assert at_border[y, x] == 1, (
        f"cell {(x, y)} near the border must hold 1, has {at_border[y, x]:.3f}: cut the blob, do not move it"
    )
    assert np.allclose(at_border, expected), f"the blob around {(x, y)} is not cut by the same cells as the map"
two, expected = np.zeros((12, 16)), np.zeros((12, 16))
for x, y, radius in ((6, 5, 4), (9, 5, 4), (8, 8, 2)):
    splat(two, x, y, radius)
    splat_by_loops(expected, x, y, radius)
assert two.max() == 1, (
    f"the largest target is {two.max():.3f}, expected 1: where objects overlap, neither add nor reduce"
)
assert np.count_nonzero(two == 1) == 3, (
    f"three objects need three ones, found {np.count_nonzero(two == 1)}: take the maximum"
)
assert np.allclose(two, expected), (
    "where two overlap, each cell keeps the larger value; the later object must not erase"
)

# %% [markdown]
# ## E3 · How wide should it be?
#
# The width is not a matter of taste. It comes from a question (paper §3, via CornerNet): *how far may both corners of
# a box be off, and the box still overlap the true one by an IoU of
# $o = 0.7$?* Call that distance $r$. Let the true box be $h \times w$ cells and let each corner move by $r$ along
# each axis. Three ways matter.
#
# 1. **Moved.** Both corners go the same way. The common part is $(h - r)(w - r)$, and both boxes have the area $hw$:
#    $$\frac{(h-r)(w-r)}{2hw - (h-r)(w-r)} = o \quad\Rightarrow\quad r^2 - (h+w)\,r + hw\,\frac{1-o}{1+o} = 0$$
# 2. **Shrunk.** Both corners go inwards. The common part is the smaller box, the union the true one:
#    $$\frac{(h-2r)(w-2r)}{hw} = o \quad\Rightarrow\quad 4r^2 - 2(h+w)\,r + (1-o)\,hw = 0$$
# 3. **Grown.** Both corners go outwards. The common part is the true box, the union the larger one:
#    $$\frac{hw}{(h+2r)(w+2r)} = o \quad\Rightarrow\quad 4o\,r^2 + 2o(h+w)\,r - (1-o)\,hw = 0$$

# %%
height, width, r = 6, 9, 1.2
figure, axes = plt.subplots(1, 3, figsize=(8, 2.9), layout="constrained", sharey=True)
for axis, (name, (x1, y1, x2, y2)) in zip(
    axes,
    {
        "moved": (r, r, width + r, height + r),
        "shrunk": (r, r, width - r, height - r),
        "grown": (-r, -r, width + r, height + r),
    }.items(),
    strict=True,
):
    axis.add_patch(Rectangle((0, 0), width, height, facecolor=COLOURS[0], alpha=0.3, edgecolor="none"))
    axis.add_patch(Rectangle((0, 0), width, height, fill=False, edgecolor=COLOURS[0], linewidth=2, label="true box"))
    axis.add_patch(
        Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=COLOURS[1], linewidth=2, linestyle="--", label="other"
        )
    )
    axis.annotate("", (x1, y1), (0, 0), arrowprops={"arrowstyle": "->", "linewidth": 1.5})
    axis.annotate("", (x2, y2), (width, height), arrowprops={"arrowstyle": "->", "linewidth": 1.5})
    common = (min(x2, width) - max(x1, 0)) * (min(y2, height) - max(y1, 0))
    overlap = common / (width * height + (x2 - x1) * (y2 - y1) - common)
    axis.set(title=f"{name}: IoU {overlap:.3f}", xlabel="x (cells)", xlim=(-2, 11), ylim=(8, -2), aspect="equal")
axes[0].set_ylabel("y (cells)")
axes[1].legend(loc="lower center", fontsize=8, ncols=2, bbox_to_anchor=(0.5, -0.02))
show(
    figure,
    alt="A box of 6 by 9 cells and the same box moved, shrunk and grown by 1.2 cells, with the IoU of each pair.",
)

# %% [markdown]
# **Predict.** The arrows have one length in all three. Which way loses the most overlap? So which quadratic has the
# smallest solution?
#
# **Write.** For $a r^2 + b r + c = 0$ the roots are $(-b \pm \sqrt{b^2 - 4ac}) / 2a$. The first two have two positive
# roots: the larger one is beyond the point where the box has no area left, so the smaller counts. The third has
# $c < 0$, so one root is negative. Return the smallest positive root of all.
#
# **Check by brute force.** The oracle knows no quadratic. It pushes each of the four sides by $-r$, $0$ or $+r$, all
# 81 ways, computes each IoU, and bisects for the largest $r$ at which none falls below 0.7. So it also tests the
# claim that the three ways above are the worst.


# %% tags=["exercise", "derives-E3"]
def radius(height, width, overlap=0.7):
    """E3: how far, in cells, both corners of a height x width box may be off while its IoU stays at least `overlap`."""
    ### BEGIN SOLUTION hint: three quadratics; which of their two roots is the smaller radius?
    around, area = height + width, height * width
    quadratics = (
        (1, -around, area * (1 - overlap) / (1 + overlap)),
        (4, -2 * around, area * (1 - overlap)),
        (4 * overlap, 2 * overlap * around, -area * (1 - overlap)),
    )
    solutions = []
    for a, b, c in quadratics:
        root = math.sqrt(b * b - 4 * a * c)
        solutions += [(-b - root) / (2 * a), (-b + root) / (2 * a)]
    return min(solution for solution in solutions if solution > 0)
    ### END SOLUTION


# %% tags=["check"]
def worst_iou(height, width, r):
    """The least IoU of a box with itself after each of its four sides moved by -r, 0 or r: 81 ways."""
    worst = 1.0
    for left, top, right, bottom in itertools.product((-r, 0, r), repeat=4):
        other_width, other_height = max(width + right - left, 0), max(height + bottom - top, 0)
        common_width = max(min(width, width + right) - max(0, left), 0)
        common_height = max(min(height, height + bottom) - max(0, top), 0)
        common = common_width * common_height
        worst = min(worst, common / (height * width + other_width * other_height - common))
    return worst


def radius_by_brute_force(height, width, overlap):
    low, high = 0.0, float(height + width)
    for _ in range(48):
        middle = (low + high) / 2
        low, high = (middle, high) if worst_iou(height, width, middle) >= overlap else (low, middle)
    return low


rng = np.random.default_rng(1)
for h, w in [(10, 10), (32, 32), (10, 40), *rng.uniform(1, 128, (3 if FAST else 20, 2)).tolist()]:
    expected, got = radius_by_brute_force(h, w, 0.7), radius(h, w)
    assert abs(got - expected) < 1e-9 * (h + w), (
        f"a box of {h:.1f} x {w:.1f} cells: corners may be off by {expected:.4f} cells, yours says {got:.4f}, "
        f"where the IoU falls to {worst_iou(h, w, got):.3f}, not 0.7. "
        "Look at the sign of the root, at the division by 2a, and take the smallest of all"
    )
assert abs(radius(20, 30, 0.3) - radius_by_brute_force(20, 30, 0.3)) < 1e-7, (
    "right at an overlap of 0.7, wrong at 0.3: use it"
)

# %% [markdown]
# ### Which of the three decides?

# %%
rng = np.random.default_rng(2)
decides = {"moved": 0, "shrunk": 0, "grown": 0}
for h, w, o in zip(*rng.uniform(1, 128, (2, 500)), rng.uniform(0.05, 0.95, 500), strict=True):
    smallest_roots = {
        "moved": ((h + w) - math.sqrt((h + w) ** 2 - 4 * h * w * (1 - o) / (1 + o))) / 2,
        "shrunk": ((h + w) - math.sqrt((h + w) ** 2 - 4 * (1 - o) * h * w)) / 4,
        "grown": (math.sqrt((h + w) ** 2 + 4 * h * w * (1 - o) / o) - (h + w)) / 4,
    }
    decides[min(smallest_roots, key=smallest_roots.get)] += 1
print(decides)
assert decides["shrunk"] == 500, "a smaller box always loses most"

# %% [markdown]
# Always the shrunk box. Losing a strip on all four sides costs more IoU than any other push of that size. Three
# quadratics, and one of them decides for every box and every overlap.
#
# ### What the released code does
#
# The released code uses $(b + \sqrt{b^2 - 4ac})/2$ for all three, with its $b$ written as $+(h+w)$, $+2(h+w)$ and
# $-2o(h+w)$. In our signs that is $(-b + \sqrt{b^2 - 4ac})/2$: the larger root, and multiplied by $a$, because the
# division by $2a$ became one by 2. It has no meaning as an overlap. Yet the released models were trained with it, so
# it is the package's default.


# %%
def released_radius(height, width, overlap=0.7):
    """The released code's radius: no root of its quadratics unless a = 1."""
    around, area = height + width, height * width
    quadratics = (
        (1, -around, area * (1 - overlap) / (1 + overlap)),
        (4, -2 * around, area * (1 - overlap)),
        (4 * overlap, 2 * overlap * around, -area * (1 - overlap)),
    )
    return min((-b + math.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in quadratics)


print("  box (cells)   corrected   released   ratio   IoU kept: corrected, released")
for h, w in ((10, 10), (32, 32), (50, 50), (10, 40), (10, 100)):
    good, large = radius(h, w), released_radius(h, w)
    kept = f"{worst_iou(h, w, good):10.3f}  {worst_iou(h, w, large):10.3f}"
    print(f"  {h:3} x {w:3}     {good:9.3f}  {large:9.3f}  {large / good:6.2f}   {kept}")

# %% [markdown]
# For a square both radii are a fixed part of the side, so the ratio is fixed too. With $r = k \cdot \text{side}$, the
# shrunk box keeps $(1 - 2k)^2$.
#
# **Predict.** Which `overlap` must you ask of the corrected form to get the released radius of a square?

# %%
k = released_radius(1, 1)
same_overlap = (1 - 2 * k) ** 2
print(f"released radius of a square: {k:.4f} of its side, which keeps an IoU of {same_overlap:.4f}, not 0.7")
assert abs(radius(50, 50, same_overlap) - released_radius(50, 50)) < 1e-9
assert 0.20 < same_overlap < 0.21

# %% [markdown]
# So for a square the released system behaves as if it had asked for an IoU of about 0.21. Some re-implementations use
# the corrected form with an overlap of 0.3, which lands nearby. A wider blob makes more neighbours cheap to confuse
# with the centre; notebook 08 shows how cheap. Which of them trains better is for an experiment to say (notebook 11),
# not for this derivation.

# %%
sides = np.linspace(2, 128, 64)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
axes[0].plot(sides, [released_radius(s, s) for s in sides], "--", color=COLOURS[1], label="released, square")
axes[0].plot(sides, [released_radius(s, s / 4) for s in sides], ":", color=COLOURS[1], label="released, 4 : 1")
axes[0].plot(sides, [radius(s, s) for s in sides], "-", color=COLOURS[0], label="corrected, square")
axes[0].plot(sides, [radius(s, s / 4) for s in sides], "-.", color=COLOURS[0], label="corrected, 4 : 1")
for side in (8, 40, 72, 104) if not FAST else (40, 104):
    brute = [radius_by_brute_force(side, side, 0.7), radius_by_brute_force(side, side / 4, 0.7)]
    axes[0].plot([side, side], brute, "o", color="black", markersize=5, label="brute force" if side == 40 else None)
axes[0].set(title="radius against box size", xlabel="longer side (cells)", ylabel="radius (cells)")
axes[0].legend(fontsize=8)
fractions = np.linspace(0, 0.35, 60)
axes[1].plot(fractions, (1 - 2 * fractions) ** 2, "-", color=COLOURS[0], label="shrunk")
axes[1].plot(fractions, (1 - fractions) ** 2 / (2 - (1 - fractions) ** 2), "--", color=COLOURS[1], label="moved")
axes[1].plot(fractions, 1 / (1 + 2 * fractions) ** 2, "-.", color=COLOURS[3], label="grown")
for fraction, name in ((radius(1, 1), "corrected"), (released_radius(1, 1), "released")):
    axes[1].axvline(fraction, color="black", linewidth=0.8, linestyle=":")
    axes[1].text(fraction + 0.004, 0.93, name, fontsize=8)
axes[1].axhline(0.7, color="black", linewidth=0.8)
axes[1].set(title="IoU of a square whose corners are off", xlabel="radius / side", ylabel="IoU", ylim=(0, 1))
axes[1].legend(fontsize=8, loc="lower left")
show(
    figure,
    alt="Left: released radii are over three times the corrected ones. Right: IoU falls fastest if a box is shrunk.",
)

# %% [markdown]
# ## All targets of an image
#
# **Write.** Put the pieces together, as the paper and the released code do:
#
# - go to cells first: divide the boxes by $R$ and clip them to the map (an object half outside is seen, and asked
#   for, only in part);
# - the size is $(w, h)$ in cells; the radius takes $\lceil h \rceil, \lceil w \rceil$ and is truncated to an integer;
#   use `released_radius`;
# - each object draws into the map of its class, at its cell;
# - the cell goes out as one number, $\text{index} = \tilde p_y W + \tilde p_x$; the offset is $p / R - \tilde p$.


# %% tags=["exercise"]
def encode(boxes, labels, num_classes, height, width, stride=R):
    """Boxes (N, 4), labels (N,) -> heatmap (height, width, num_classes), index (N,), offset (N, 2), size (N, 2)."""
    heatmap = np.zeros((height, width, num_classes))
    ### BEGIN SOLUTION hint: divide and clip; then centre_and_cell(boxes, 1), and splat into heatmap[:, :, label]
    boxes = np.clip(boxes / stride, 0, (width, height, width, height))
    size = boxes[:, 2:] - boxes[:, :2]
    centre, cell = centre_and_cell(boxes, 1)
    for label, (x, y), (w, h) in zip(labels, cell, np.ceil(size), strict=True):
        splat(heatmap[:, :, label], x, y, int(released_radius(h, w)))
    index = cell[:, 1] * width + cell[:, 0]
    offset = centre - cell
    ### END SOLUTION
    return heatmap, index, offset, size


# %% tags=["check"]
def encode_by_loops(boxes, labels, num_classes, height, width):
    """The oracle: one object at a time, one number at a time, with the package's radius."""
    heatmap, rows = np.zeros((height, width, num_classes)), []
    for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels, strict=True):
        x1, x2 = (min(max(x / 4, 0), width) for x in (x1, x2))
        y1, y2 = (min(max(y / 4, 0), height) for y in (y1, y2))
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        r = int(targets.gaussian_radius(math.ceil(y2 - y1), math.ceil(x2 - x1)))
        splat_by_loops(heatmap[:, :, label], int(x), int(y), r)
        rows.append((int(y) * width + int(x), x - int(x), y - int(y), x2 - x1, y2 - y1))
    return heatmap, np.array(rows)


tested_boxes = np.array(
    [[13.0, 20, 58, 47], [90, 30, 150.5, 118], [100, 60, 131, 70], [-20, 50, 44, 90], [140, 100, 175, 140]]
)
tested_labels = np.array([0, 1, 1, 0, 2])
heatmap, index, offset, size = encode(tested_boxes, tested_labels, 3, 32, 40)
expected, rows = encode_by_loops(tested_boxes, tested_labels, 3, 32, 40)
ones = np.count_nonzero(heatmap == 1)
assert ones == 5, (
    f"five objects with five centres need five cells that are exactly 1, found {ones}: "
    "is the Gaussian around the cell, an integer, or around p / R?"
)
assert np.array_equal(index, rows[:, 0]), f"index is y * W + x of the cell: expected {rows[:, 0]}, got {index}"
assert np.allclose(size, rows[:, 3:]), (
    f"size is (w, h) in cells of the clipped box: expected\n{rows[:, 3:]}\ngot\n{size}"
)
assert np.allclose(offset, rows[:, 1:3]), f"offset is p / R minus the cell: expected\n{rows[:, 1:3]}\ngot\n{offset}"
assert np.allclose(heatmap, expected), (
    f"the heatmap is off by up to {np.abs(heatmap - expected).max():.3f}: "
    "the radius is int(released_radius(ceil h, ceil w)), with sizes in cells"
)

# %% [markdown]
# **Picture.** The targets of our image, the maximum over classes laid over it.

# %%
heatmap, index, offset, size = encode(boxes, labels, len(shapes.class_names), 64, 64)
narrow = np.zeros_like(heatmap)
for label, (x, y), (w, h) in zip(labels, cell, np.ceil(size), strict=True):
    splat(narrow[:, :, label], x, y, int(radius(h, w)))
figure, axes = plt.subplots(1, 2, figsize=(8, 3.9), layout="constrained", sharey=True)
for axis, (name, map_) in zip(axes, {"released radius": heatmap, "corrected radius": narrow}.items(), strict=True):
    axis.imshow(sample.image.mean(axis=2), cmap="gray", extent=(0, 256, 256, 0), alpha=0.6)
    drawn = axis.imshow(map_.max(axis=2), cmap="cividis", extent=(0, 256, 256, 0), alpha=0.72, vmin=0, vmax=1)
    for x1, y1, x2, y2 in boxes:
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=1))
    above = np.count_nonzero(map_ > 0.5)
    axis.set(title=f"{name}: {above} cells above 0.5", xlabel="x (pixels)")
axes[0].set_ylabel("y (pixels)")
figure.colorbar(drawn, ax=axes, shrink=0.8, label="Y, largest over classes")
show(
    figure,
    alt="Targets over the grey image with boxes: wide Gaussians from the released radius, narrow from the corrected.",
)

# %% [markdown]
# ## The same in the package
#
# The package computes in float64 and stores float32, so heatmaps agree to about 1e-7.

# %%
for i in range(len(shapes)):
    annotation = shapes.annotation(i)
    image_boxes = annotation.boxes.astype(np.float64)
    ours = encode(image_boxes, annotation.labels, 5, 64, 64)
    theirs = targets.encode(image_boxes, annotation.labels, 5, 64, 64)
    count = len(image_boxes)
    assert np.array_equal(theirs.index[:count], ours[1])
    for name, mine in zip(("heatmap", "offset", "size"), (ours[0], ours[2], ours[3]), strict=True):
        field = getattr(theirs, name) if name == "heatmap" else getattr(theirs, name)[:count]
        assert np.abs(field - mine).max() < 1e-6 * max(np.abs(mine).max(), 1), f"image {i}: {name} differs"
    distinct = len(set(zip(theirs.index[:count].tolist(), annotation.labels.tolist(), strict=True)))
    assert np.count_nonzero(theirs.heatmap == 1) == distinct
rng = np.random.default_rng(3)
for h, w in rng.uniform(0.5, 128, (200, 2)):
    assert abs(targets.gaussian_radius(h, w, form="corrected") - radius(h, w)) < 1e-9
    assert abs(targets.gaussian_radius(h, w) - released_radius(h, w)) < 1e-9
for r in range(20):
    assert np.abs(targets.gaussian(r) - blob(r)).max() < 1e-6
print(f"{len(shapes)} images and 200 radii agree with minicenternet.points.targets")

# %% [markdown]
# ## Break it
#
# With this encoder the heatmap loss goes to 0.000, and looks perfect. The network never finds an object.
# Here is its target for our image, and the loss of a network that answers *no object anywhere*.


# %%
def broken_encode(boxes, labels, num_classes, height, width):
    heatmap = np.zeros((height, width, num_classes))
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / R
    size = (boxes[:, 2:] - boxes[:, :2]) / R
    rows, columns = np.indices((height, width))
    for label, (x, y), (w, h) in zip(labels, centre, np.ceil(size), strict=True):
        sigma = (2 * int(released_radius(h, w)) + 1) / 6
        gaussian = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
        np.maximum(heatmap[:, :, label], gaussian, out=heatmap[:, :, label])
    return heatmap


broken = broken_encode(boxes, labels, 5, 64, 64)
silent = np.full((1, 64, 64, 5), -12.0)  # logits: every probability is about 6e-6
for name, map_ in (("sound", heatmap), ("broken", broken)):
    loss, _ = focal_loss.raw(silent, map_[None])
    peak = [map_[y, x, label] for (x, y), label in zip(cell, labels, strict=True)]
    print(f"{name:>7}: highest target {map_.max():.4f}, loss of the silent network {loss:.6f}")
    print(f"         at the centres: {np.round(peak, 3)}")
assert focal_loss.raw(silent, broken[None])[0] < 1e-3 < focal_loss.raw(silent, heatmap[None])[0]

# %% [markdown]
# The blobs look right in a picture. What is wrong, and why is silence rewarded?
#
# <details><summary>Answer</summary>
#
# The Gaussian is drawn around $p/R$ and not around $\tilde p = \lfloor p/R \rfloor$. Its top falls between cells, so
# no cell is exactly 1. The loss takes as positive the cells where $Y = 1$, and there are none. Every cell is a
# negative, "nothing anywhere" is the perfect answer, and the loss goes to zero. The test that catches it counts: one
# cell equal to 1 for each distinct centre.
#
# </details>

# %% [markdown]
# ## Summary
#
# - A box is a point: its centre $p$, in the cell $\tilde p = \lfloor p/R \rfloor$ (E1).
# - The target is a Gaussian around the cell, exactly 1 there, joined by the element-wise maximum, cut at the borders
#   (E2).
# - The radius comes from the IoU that a box with shifted corners must keep. Of three quadratics the shrunk box
#   decides. The released formula gives over three times as much and keeps about 0.21 for a square, not 0.7 (E3).
# - If no cell equals 1, there is no positive, and the loss rewards silence.
#
# ## In the package
#
# - `minicenternet.points.targets.encode` holds E1, and drops boxes that are left with no area.
# - `minicenternet.points.targets.splat` holds E2; `minicenternet.points.targets.gaussian` its blob, made once for
#   each radius.
# - `minicenternet.points.targets.gaussian_radius` holds E3 in both forms.
