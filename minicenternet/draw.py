"""Pictures: boxes over images, heatmaps, an explanation of one detection, the curves of a run; `show`, for notebooks.

One look: cividis for heatmaps, the colours of Okabe and Ito, told apart by the colour-blind, for classes, and dashes
where there are more classes than colours. All is drawn into memory, without a screen, by matplotlib's Agg; every
function returns its picture, (H, W, 3) uint8, and writes it to `path` if one is given.

In an image's axes (x, y) are its pixels' outer edges, as in boxes: pixel column 3 reaches from x = 3 to x = 4.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogFormatter, MaxNLocator
from matplotlib.transforms import IdentityTransform
from PIL import Image

from .errors import InputError
from .files import replacing
from .metrics.average_precision import Result
from .ops.deform_conv2d import sample_positions
from .ops.geometry import Geometry
from .points.decode import peaks as keep_peaks

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")  # Okabe and Ito 2008
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # the same, to be seen on white
DASHES = ("-", (0, (4, 1.2)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
HEAT = colormaps["cividis"]
DPI = 128  # a power of two, so that a figure has exactly as many pixels as asked for

STRIDE = 4  # input pixels to a cell


# ---- boxes over an image ---------------------------------------------------------------------------------------------


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    path: str | os.PathLike | None = None,
    *,
    text_size: float = 0.019,
) -> np.ndarray:
    """Draw boxes (N, 4), with class and score, over an image (H, W, 3) uint8 RGB.

    labels (N,); scores (N,) or None; class_names, one per label, or None for numbers.  Images below 640 pixels are
    enlarged by a whole factor.  text_size: height of the text in parts of the picture's longer side; less among many
    objects, where a name that finds no room is left out.
    """
    enlarged = math.ceil(640 / max(image.shape[:2]))
    height, width = enlarged * image.shape[0], enlarged * image.shape[1]
    figure, (axes,) = _page([(0, 0, width, height)], width, height)
    _show(axes, image)
    _draw_boxes(axes, boxes, labels, scores, class_names, text_size * max(height, width))
    return _finish(figure, path)


def _draw_boxes(
    axes: Axes,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    class_names: Sequence[str] | None,
    text_pixels: float,
) -> None:
    line = max(1.5, text_pixels / 7)
    order = range(len(boxes)) if scores is None else np.argsort(-np.asarray(scores), kind="stable")
    crowded = min(1, max(0.65, math.sqrt(12 / max(len(boxes), 1))))
    names = _Names(axes, max(10, crowded * text_pixels))
    for rank, i in enumerate(order):
        x1, y1, x2, y2 = boxes[i]
        colour, dashes = _style(labels[i])
        for width, ink, style in ((2.2 * line, "black", "-"), (line, colour, dashes)):  # dark around it, for any ground
            axes.add_patch(
                Rectangle(
                    (x1, y1),
                    x2 - x1,
                    y2 - y1,
                    fill=False,
                    linewidth=_points(width),
                    linestyle=style,
                    edgecolor=ink,
                    alpha=0.55 if ink == "black" else 1,
                    zorder=3 - rank / len(boxes),  # the best on top
                )
            )
        score = "" if scores is None else f" {scores[i]:.2f}"
        names.put(boxes[i], f"{_name(labels[i], class_names)}{score}", colour)


class _Names:
    """Puts names on filled ground beside boxes: inside the axes, and never on another name or on what is kept clear."""

    def __init__(self, axes: Axes, text_pixels: float):
        self.axes, self.text_pixels = axes, text_pixels
        self.renderer = axes.figure.canvas.get_renderer()
        self.frame = axes.get_window_extent(self.renderer)
        self.taken: list[tuple[float, float, float, float]] = []  # x1 y1 x2 y2 in pixels of the figure, y up

    def keep_clear(self, x: float, y: float, pixels: float) -> None:
        """Put no name over the point (x, y) of the image, nor within some pixels of the figure around it."""
        x, y = self.axes.transData.transform((x, y))
        self.taken.append((x - pixels, y - pixels, x + pixels, y + pixels))

    def put(self, box: Sequence[float], name: str, colour: str) -> None:
        """Put a name above, in, below or beside a box of the image; where there is no room at all, nowhere."""
        pad = 0.15 * self.text_pixels
        text = self.axes.text(
            0,
            0,
            name,
            transform=IdentityTransform(),
            fontsize=_points(self.text_pixels),
            color=_ink_on(colour),
            va="bottom",
            parse_math=False,
            zorder=4,
            bbox={"facecolor": colour, "edgecolor": "none", "boxstyle": "square,pad=0.15", "alpha": 0.85},
        )
        extent = text.get_window_extent(self.renderer)
        width, height = extent.width + 2 * pad, extent.height + 2 * pad
        (left, top), (right, bottom) = self.axes.transData.transform([box[:2], box[2:]])  # in the figure, up is up
        across = (left, right - width, (left + right - width) / 2)
        places = [(x, y) for y in (top, top - height, bottom - height, bottom) for x in across]
        places += [(x, y) for x in (right, left - width) for y in (top - height, bottom, (top + bottom - height) / 2)]
        for x, y in places:
            x = max(min(x, self.frame.x1 - width), self.frame.x0)
            y = max(min(y, self.frame.y1 - height), self.frame.y0)
            if not any(x < x2 and x1 < x + width and y < y2 and y1 < y + height for x1, y1, x2, y2 in self.taken):
                self.taken.append((x, y, x + width, y + height))
                text.set_position((x + pad, y + pad))
                return
        text.remove()


# ---- heatmaps --------------------------------------------------------------------------------------------------------


def draw_heatmap(image: np.ndarray, heatmap: np.ndarray, path: str | os.PathLike | None = None) -> np.ndarray:
    """Draw a heatmap (h, w, C), the largest of its classes in each cell, over its input image (H, W, 3) uint8."""
    height, width = _fit(image, 640)
    figure, (axes,) = _page([(0, 0, width, height)], width, height)
    _show(axes, image, dimmed=True)
    _heat(axes, heatmap)
    return _finish(figure, path)


def draw_targets(
    images: Sequence[np.ndarray], heatmaps: Sequence[np.ndarray], path: str | os.PathLike | None = None
) -> np.ndarray:
    """Draw network inputs (H, W, 3) uint8 and, beside each, the heatmap (h, w, C) that it should give."""
    pairs, titles = [], []
    for image, heatmap in zip(images, heatmaps, strict=True):
        right = draw_heatmap(image, heatmap)
        left = Image.fromarray(image).resize(right.shape[1::-1], Image.Resampling.BICUBIC)
        pairs.append(np.concatenate([left, right], axis=1))
        count = np.count_nonzero(heatmap == 1)
        titles.append(f"input (left), target heatmap (right): {count} centre{'' if count == 1 else 's'}")
    return draw_grid(pairs, titles, path, columns=2)


def draw_explanation(
    image: np.ndarray,
    heatmap: np.ndarray,
    offset: np.ndarray,
    size: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str] | None = None,
    path: str | os.PathLike | None = None,
) -> np.ndarray:
    """Draw how maps become boxes: input, heatmap over it, peaks, offset, sizes, boxes.

    image (H, W, 3) uint8, the network input; heatmap (h, w, C) probabilities; offset, size (h, w, 2) in cells;
    boxes (N, 4) in pixels of the input, labels (N,), scores (N,): the detections worth showing, best first. Peaks below
    the lowest of the scores are not shown.
    """
    columns = 3 if image.shape[1] < 1.8 * image.shape[0] else 2
    height, width = _fit(image, 1400 // columns)
    gap, top, bottom, text = 18, 40, 34, 14
    row = height + top + bottom
    places = [(gap + (gap + width) * (i % columns), top + row * (i // columns), width, height) for i in range(6)]
    figure, panels = _page(places, columns * width + (columns + 1) * gap, 6 // columns * row)
    cells = heatmap.shape[1::-1]
    lowest = scores.min() if len(scores) else 1.0
    y, x, found = np.nonzero(keep_peaks(heatmap[None])[0] >= lowest)
    order = np.argsort(-heatmap[y, x, found], kind="stable")
    y, x, found = y[order], x[order], found[order]
    centre = STRIDE * (np.stack([x, y], axis=1) + offset[y, x])  # (P, 2) in pixels of the input

    inputs, heat, peaks, offsets, sizes, result = panels
    _show(inputs, image)
    _title(inputs, f"1  input: {image.shape[1]} × {image.shape[0]} pixels")

    _show(heat, image, dimmed=True)
    _heat(heat, heatmap)
    _title(heat, f"2  heatmap: {cells[0]} × {cells[1]} cells, all classes")
    _scale_below(figure, heat, "probability of a centre")

    _show(peaks, image, dimmed=True)
    names = _Names(peaks, text)
    for column, line in zip(x, y, strict=True):
        names.keep_clear(STRIDE * (column + 0.5), STRIDE * (line + 0.5), 7)
    for column, line, label in zip(x, y, found, strict=True):
        colour, _ = _style(label)
        cell = STRIDE * np.array([column, line, column + 1, line + 1])
        peaks.plot(cell[::2].mean(), cell[1::2].mean(), "o", color=colour, markersize=6, markeredgecolor="black")
        reach = max(0, 9 * image.shape[1] / width - STRIDE / 2)  # the name stands clear of the dot, 9 pixels
        near = cell + reach * np.array([-1, -1, 1, 1])
        names.put(near, f"{_name(label, class_names)} {heatmap[line, column, label]:.2f}", colour)
    _title(peaks, "3  peaks: no neighbour is higher")
    _note(peaks, f"{len(x)} of them, probability {lowest:.2f} or more" if len(x) else "none worth showing")

    _show(offsets, image, dimmed=True)
    if len(x):
        across, down = np.round(offset[y[0], x[0]], 2) + 0.0  # so that -0.001 is not "-0.00"
        _offset(offsets, heatmap[:, :, found[0]], x[0], y[0], offset[y[0], x[0]], _style(found[0])[0])
        _note(offsets, f"best peak, cell ({x[0]}, {y[0]}): offset ({across:.2f}, {down:.2f}) cells")
    _title(offsets, "4  offset: from the cell's corner to the centre")

    _show(sizes, image, dimmed=True)
    names = _Names(sizes, text)
    for point in centre:
        names.keep_clear(*point, 5)
    for i, ((cx, cy), label) in enumerate(zip(centre, found, strict=True)):
        w, h = size[y[i], x[i]]
        colour, _ = _style(label)
        stroke = [withStroke(linewidth=4, foreground="black")]
        across, down = STRIDE * w / 2, STRIDE * h / 2
        sizes.plot([cx - across, cx + across], [cy, cy], color=colour, linewidth=2, path_effects=stroke)
        sizes.plot([cx, cx], [cy - down, cy + down], color=colour, linewidth=2, path_effects=stroke)
        names.put([cx - across, cy - down, cx + across, cy + down], f"{w:.1f} × {h:.1f}", colour)
    _title(sizes, "5  size: width × height")
    _note(sizes, "in cells")

    _show(result, image)
    _draw_boxes(result, boxes, labels, scores, class_names, text)
    _title(result, "6  boxes")
    _note(result, f"{STRIDE} × (cell + offset ∓ size / 2)")
    return _finish(figure, path)


def _offset(axes: Axes, heatmap: np.ndarray, x: int, y: int, offset: np.ndarray, colour: str) -> None:
    """Zoom into the cells around a peak (x, y) of one class, (h, w), and point from the cell's corner to the centre."""
    _heat(axes, heatmap[:, :, None])
    frame = axes.get_window_extent()
    reach = 2.5 * STRIDE
    reach_x, reach_y = reach * max(1, frame.width / frame.height), reach * max(1, frame.height / frame.width)
    corner = STRIDE * np.array([x, y])
    left, upper = corner + STRIDE / 2 - (reach_x, reach_y)
    axes.set_xlim(left, left + 2 * reach_x)
    axes.set_ylim(upper + 2 * reach_y, upper)
    for row in range(max(0, y - 2), min(len(heatmap), y + 3)):
        for column in range(max(0, x - 2), min(heatmap.shape[1], x + 3)):
            axes.add_patch(
                Rectangle((STRIDE * column, STRIDE * row), STRIDE, STRIDE, fill=False, edgecolor="white", linewidth=0.5)
            )
            value = axes.text(
                STRIDE * (column + 0.5), STRIDE * (row + 0.95), f"{heatmap[row, column]:.2f}", ha="center", va="bottom"
            )
            value.set(fontsize=_points(14), color="white", path_effects=[withStroke(linewidth=2, foreground="black")])
    axes.add_patch(Rectangle(corner, STRIDE, STRIDE, fill=False, edgecolor=colour, linewidth=3))
    centre = corner + STRIDE * offset
    stroke = [withStroke(linewidth=3, foreground="black")]
    arrow = {
        "arrowstyle": "-|>",
        "color": "white",
        "linewidth": 1.5,
        "shrinkA": 0,
        "shrinkB": 0,
        "path_effects": stroke,
    }
    axes.annotate("", centre, corner, arrowprops=arrow, zorder=4)
    axes.plot(*corner, "s", color="white", markeredgecolor="black", markersize=5, zorder=5)
    axes.plot(*centre, "o", color="white", markeredgecolor="black", markersize=6, zorder=5)


# ---- deformable convolution ------------------------------------------------------------------------------------------


def draw_sampling_points(
    image: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray,
    cell: tuple[int, int],
    path: str | os.PathLike | None = None,
) -> np.ndarray:
    """Draw where the taps of a deformable convolution look, for one output: in its image and, beside it, from near.

    image (H, W, 3) uint8, the network input; offset (h, w, 2*K*K), mask (h, w, K*K) in 0..1, of a K x K layer that
    keeps the size of its map, h x w cells; cell: (x, y) of the output.  The area of a point is its mask.
    Raises InputError when the arrays do not fit or the cell is not of the map.
    """
    (rows, columns, taps), (x, y), size = mask.shape, cell, math.isqrt(mask.shape[2])
    if size**2 != taps or offset.shape != (rows, columns, 2 * taps):
        raise InputError(
            f"offset {offset.shape} and mask {mask.shape} do not fit: expected (h, w, 2*K*K) and (h, w, K*K)"
        )
    if not (0 <= x < columns and 0 <= y < rows):
        raise InputError(f"there is no cell {cell}: the map has {columns} x {rows}, counted from (0, 0)")
    unmoved, moved = (
        np.stack(sample_positions(map_[None], (size, size), Geometry.of(1, size // 2, 1, 1)), axis=-1)[0, y, x]
        for map_ in (np.zeros_like(offset), offset)
    )
    cell_size = np.array([image.shape[1] / columns, image.shape[0] / rows])  # in pixels of the image
    unmoved, moved = ((points[:, ::-1] + 0.5) * cell_size for points in (unmoved, moved))  # (K*K, 2), x and y

    gap, top, bottom = 18, 40, 46
    height, width = _fit(image, 640)
    side = max(height, 480)
    places = [(gap, top, width, height), (2 * gap + width, top, side, side)]
    figure, (whole, near) = _page(places, 3 * gap + width + side, top + side + bottom)
    everything = np.concatenate([unmoved, moved])
    centre = (everything.min(axis=0) + everything.max(axis=0)) / 2
    reach = np.ptp(everything, axis=0).max() / 2 + cell_size.max()
    near.add_patch(Rectangle(centre - reach, 2 * reach, 2 * reach, color="0.85", zorder=0))  # outside of the image
    for axes, scale in ((whole, 0.5), (near, 1)):
        _show(axes, image)
        axes.autoscale(False)
        stroke = [withStroke(linewidth=1.5 * scale + 1, foreground="black")]
        lines = np.stack([unmoved, moved], axis=1)
        axes.add_collection(LineCollection(lines, colors="white", linewidths=1.5 * scale, path_effects=stroke))
        edge = {"edgecolor": "black", "linewidth": 1.5 * scale}
        axes.scatter(*unmoved.T, 40 * scale, "white", marker="s", zorder=3, label="without offset", **edge)
        axes.scatter(*moved.T, 400 * scale * mask[y, x], PALETTE[0], zorder=4, **edge)
    near.set_xlim(centre[0] - reach, centre[0] + reach)
    near.set_ylim(centre[1] + reach, centre[1] - reach)
    near.add_patch(
        Rectangle(cell_size * cell, *cell_size, fill=False, edgecolor="white", linewidth=1.5, path_effects=stroke)
    )
    for value in (0.25, 1):
        near.scatter([], [], 400 * value, PALETTE[0], label=f"mask {value}", **edge)
    near.legend(
        loc="upper left",
        bbox_to_anchor=(0, 0),
        ncols=3,
        fontsize=_points(15),
        frameon=False,
        borderpad=0.8,
        borderaxespad=0,
        handletextpad=0.8,
        columnspacing=1.2,
    )
    _title(whole, f"cell ({x}, {y}) of a map of {columns} × {rows} cells")
    _title(near, f"where its {size} × {size} taps look")
    return _finish(figure, path)


# ---- curves ----------------------------------------------------------------------------------------------------------


def draw_curves(
    rows: Sequence[Mapping[str, str | float | None]],
    path: str | os.PathLike | None = None,
    *,
    losses: Sequence[str] = ("loss", "heatmap", "size", "offset"),
) -> np.ndarray:
    """Draw how a run went, from the rows of its metrics.csv: losses, average precision, learning rate over epochs.

    Each row has "epoch" and may have the columns named by `losses`, "ap", "ap50" and "learning_rate"; what was not
    measured in an epoch is missing, None, empty or NaN.
    """
    panels = {"loss": losses, "average precision": ("ap", "ap50"), "learning rate": ("learning_rate",)}
    width, height, left, top, bottom = 460, 360, 76, 44, 56
    places = [(left + (left + width) * i, top, width, height) for i in range(len(panels))]
    figure, all_axes = _page(places, (left + width) * len(panels) + 20, top + height + bottom)
    epochs = _column(rows, "epoch")
    for axes, (title, columns) in zip(all_axes, panels.items(), strict=True):
        for name, ink in zip(columns, itertools.cycle(COLOURS), strict=False):
            values = _column(rows, name)
            known = values > 0 if title == "loss" else values >= 0  # not NaN, nor what a logarithm cannot show
            if known.any():
                label, marker = f"{name}  {values[known][-1]:.3g}", "o" if known.sum() < 30 else ""
                axes.plot(epochs[known], values[known], color=ink, marker=marker, markersize=3, label=label)
        if title == "loss":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        else:
            axes.set_ylim(0, 1 if title == "average precision" else None)
        _plot(axes, title, "epoch", "")
        if len(epochs):  # the same for all panels, also where AP was measured in few of the epochs
            axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(columns) > 1 and axes.lines:
            axes.legend(fontsize=_points(14), frameon=False)
    return _finish(figure, path)


def draw_precision_recall(
    result: Result, class_names: Sequence[str], path: str | os.PathLike | None = None
) -> np.ndarray:
    """Draw precision over recall at IoU 0.50: each class, named where they are few, and their mean."""
    figure, (axes,) = _page([(80, 48, 560, 520)], 940, 640)
    recall = np.linspace(0, 1, result.precision.shape[1])
    measured = np.flatnonzero(~np.isnan(result.per_class_ap50))
    best_first = measured[np.argsort(-result.per_class_ap50[measured], kind="stable")]
    named = best_first if len(best_first) <= 12 else np.concatenate([best_first[:5], best_first[-5:]])
    for c in np.setdiff1d(best_first, named):
        axes.plot(recall, result.precision[c], color="0.8", linewidth=0.7)
    if len(measured):
        mean = result.precision[measured].mean(axis=0)
        axes.plot(recall, mean, color="black", linewidth=3, label=f"mean  {result.ap50:.3f}")
    for i, c in enumerate(named):
        ink = COLOURS[:-1]  # black is the mean's
        label = f"{class_names[c]}  {result.per_class_ap50[c]:.3f}"
        style = DASHES[i // len(ink) % len(DASHES)]
        axes.plot(recall, result.precision[c], color=ink[i % len(ink)], linestyle=style, linewidth=1.5, label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    _plot(axes, "precision and recall at IoU 0.50", "recall", "precision")
    if len(measured):
        title = "AP50" if len(named) == len(measured) else f"AP50, best and worst of {len(measured)}"
        legend = axes.legend(
            loc="upper left",
            bbox_to_anchor=(1.02, 1),
            fontsize=_points(15),
            title=title,
            title_fontsize=_points(15),
            frameon=False,
            alignment="left",
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    else:
        axes.text(0.5, 0.5, "no objects to find", ha="center", fontsize=_points(18))
    return _finish(figure, path)


def draw_grid(
    pictures: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    path: str | os.PathLike | None = None,
    *,
    columns: int = 4,
    width: int = 1600,
) -> np.ndarray:
    """Lay pictures, (H, W, 3) uint8 each, out in rows on a page of `width` pixels, with a title above each."""
    if not len(pictures):
        raise InputError("there is nothing to draw: no pictures were given")
    gap = 10
    columns = min(columns, len(pictures))
    cell = (width - gap * (columns + 1)) // columns
    titles = [""] * len(pictures) if titles is None else titles
    letters = max(10, cell // 10)  # that fit into a line
    titles = [textwrap.fill(title, letters, max_lines=2, placeholder=" …") for title in titles]
    line = 24 * max(title.count("\n") + 1 for title in titles) + 10 if any(titles) else 0
    places, y = [], gap
    for start in range(0, len(pictures), columns):
        row = [_fit(picture, cell) for picture in pictures[start : start + columns]]
        places += [(gap + (cell + gap) * i, y + line, w, h) for i, (h, w) in enumerate(row)]
        y += line + max(h for h, _ in row) + gap
    figure, all_axes = _page(places, width, y)
    for axes, picture, title in zip(all_axes, pictures, titles, strict=True):
        _show(axes, picture)
        _title(axes, title)
    return _finish(figure, path)


# ---- in a notebook ---------------------------------------------------------------------------------------------------


def show(figure: Figure | np.ndarray, alt: str) -> None:
    """Show a figure in a notebook, as PNG with `alt` as its text for those who cannot see it, and close it.

    figure: matplotlib's, shown at 100 pixels to an inch, or a picture (H, W, 3) uint8 as the functions here return.
    In a plain script it is drawn, so that a figure that cannot be drawn is noticed, and closed.
    Raises InputError when alt is empty.
    """
    if not alt.strip():
        raise InputError("a picture needs alt: say in one sentence what is seen in it, as to someone who cannot see it")
    if isinstance(figure, Figure):
        from matplotlib import pyplot

        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=100)
        pyplot.close(figure)
        picture = Image.open(drawn).convert("RGB")
    else:
        picture = Image.fromarray(figure)
    if not _in_notebook():
        return
    from IPython.display import display

    png = io.BytesIO()  # 256 colours: a third of the bytes, and no difference to be seen
    picture.quantize(256, dither=Image.Dither.NONE).save(png, format="PNG", optimize=True)
    encoded = base64.b64encode(png.getvalue()).decode()
    display({"image/png": encoded, "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)


def _in_notebook() -> bool:
    """Whether IPython runs this code; it is imported only where it is at work already."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


# ---- figures, axes, text ---------------------------------------------------------------------------------------------


def _page(places: Sequence[tuple[int, int, int, int]], width: int, height: int) -> tuple[Figure, list[Axes]]:
    """A white figure of exactly (height, width) pixels with axes at (left, top, width, height) each."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    all_axes = [
        figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height), xticks=[], yticks=[])
        for x, y, w, h in places
    ]
    return figure, all_axes


def _finish(figure: Figure, path: str | os.PathLike | None) -> np.ndarray:
    figure.canvas.draw()
    picture = np.array(figure.canvas.buffer_rgba())[:, :, :3]
    if path is not None:
        save_picture(picture, path)
    return picture


def save_picture(picture: np.ndarray, path: str | os.PathLike) -> None:
    """Write a picture (H, W, 3) uint8, whole or not at all, in the format of the path's suffix (.png, .jpg, .webp).

    Raises InputError for another suffix and when the file cannot be written.
    """
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise InputError(f"cannot write a picture as {path}: its name must end in {', '.join(formats)}")
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format=formats[suffix], quality=92)


def _show(axes: Axes, image: np.ndarray, dimmed: bool = False) -> None:
    height, width = image.shape[:2]
    if dimmed:
        image = np.repeat((0.55 * image.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2)
    frame = axes.get_window_extent()
    shown = Image.fromarray(image).resize((round(frame.width), round(frame.height)), Image.Resampling.BICUBIC)
    axes.imshow(shown, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def _heat(axes: Axes, heatmap: np.ndarray) -> None:
    """The largest of the classes in each cell, (h, w, C), the more opaque the higher."""
    height, width = heatmap.shape[:2]
    value = np.clip(heatmap.max(axis=2), 0, 1)
    colours = HEAT(value)
    colours[..., 3] = 0.85 * np.sqrt(value)
    axes.imshow(colours, extent=(0, STRIDE * width, STRIDE * height, 0), interpolation="nearest", aspect="auto")


def _scale_below(figure: Figure, axes: Axes, title: str) -> None:
    """A bar of the heatmap's colours under the axes, from 0 to 1."""
    place = axes.get_position()
    unit_x, unit_y = 1 / figure.bbox.width, 1 / figure.bbox.height  # a pixel
    bar = figure.add_axes((place.x0 + 30 * unit_x, place.y0 - 22 * unit_y, 120 * unit_x, 12 * unit_y), xticks=[])
    bar.imshow(np.linspace(0, 1, 64)[None], cmap=HEAT, aspect="auto", extent=(0, 1, 0, 1))
    bar.set_axis_off()
    size = _points(15)
    bar.text(-0.06, 0.5, "0", ha="right", va="center", fontsize=size, transform=bar.transAxes)
    bar.text(1.06, 0.5, f"1   {title}", ha="left", va="center", fontsize=size, transform=bar.transAxes)


def _title(axes: Axes, title: str, pixels: float = 17) -> None:
    axes.set_title(title, fontsize=_points(pixels), loc="left", pad=_points(6), parse_math=False)


def _note(axes: Axes, text: str) -> None:
    """A line under the axes."""
    axes.text(0, -_pixels_down(axes, 8), text, transform=axes.transAxes, va="top", fontsize=_points(15))


def _pixels_down(axes: Axes, pixels: float) -> float:
    return pixels / axes.get_window_extent().height


def _plot(axes: Axes, title: str, x: str, y: str) -> None:
    """A plot's title, labels, ticks and grid, after its lines are drawn."""
    _title(axes, title)
    axes.set_xlabel(x, fontsize=_points(15))
    axes.set_ylabel(y, fontsize=_points(15))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.tick_params(which="both", labelsize=_points(14))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _column(rows: Sequence[Mapping[str, str | float | None]], name: str) -> np.ndarray:
    values = [row.get(name) for row in rows]
    return np.array([math.nan if value in (None, "") else float(value) for value in values])


def _fit(image: np.ndarray, longer: float) -> tuple[int, int]:
    """Height and width, in pixels of the figure, at which an image's longer side is `longer`."""
    height, width = image.shape[:2]
    return round(longer * height / max(height, width)), round(longer * width / max(height, width))


def _style(label: int) -> tuple[str, str | tuple]:
    """Colour and dashes of a class."""
    return PALETTE[label % len(PALETTE)], DASHES[label // len(PALETTE) % len(DASHES)]


def _name(label: int, class_names: Sequence[str] | None) -> str:
    return str(label) if class_names is None else class_names[label]


def _ink_on(colour: str) -> str:
    """Black or white, whichever is read more easily on the colour."""
    red, green, blue = ((int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5))
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else "white"


def _points(pixels: float) -> float:
    """Font sizes and line widths are in points, 72 to an inch."""
    return pixels * 72 / DPI
