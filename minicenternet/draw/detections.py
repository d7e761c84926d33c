"""Images and what is found in them: boxes, heatmaps, how one becomes the other, where a convolution looks."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import IdentityTransform
from PIL import Image

from ..errors import InputError
from ..ops.deform_conv2d import sample_positions
from ..ops.geometry import Geometry
from ..points.decode import peaks as keep_peaks
from . import look

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
    figure, (axes,) = look.page([(0, 0, width, height)], width, height)
    look.put_image(axes, image)
    _draw_boxes(axes, boxes, labels, scores, class_names, text_size * max(height, width))
    return look.finish(figure, path)


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
        colour, dashes = look.style(labels[i])
        for width, ink, style in ((2.2 * line, "black", "-"), (line, colour, dashes)):  # dark around it, for any ground
            axes.add_patch(
                Rectangle(
                    (x1, y1),
                    x2 - x1,
                    y2 - y1,
                    fill=False,
                    linewidth=look.points(width),
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
            fontsize=look.points(self.text_pixels),
            color=look.ink_on(colour),
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
    height, width = look.fit(image, 640)
    figure, (axes,) = look.page([(0, 0, width, height)], width, height)
    look.put_image(axes, image, dimmed=True)
    look.heat(axes, heatmap)
    return look.finish(figure, path)


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
    height, width = look.fit(image, 1400 // columns)
    gap, top, bottom, text = 18, 40, 34, 14
    row = height + top + bottom
    places = [(gap + (gap + width) * (i % columns), top + row * (i // columns), width, height) for i in range(6)]
    figure, panels = look.page(places, columns * width + (columns + 1) * gap, 6 // columns * row)
    cells = heatmap.shape[1::-1]
    lowest = scores.min() if len(scores) else 1.0
    y, x, found = np.nonzero(keep_peaks(heatmap[None])[0] >= lowest)
    order = np.argsort(-heatmap[y, x, found], kind="stable")
    y, x, found = y[order], x[order], found[order]
    centre = look.STRIDE * (np.stack([x, y], axis=1) + offset[y, x])  # (P, 2) in pixels of the input

    inputs, heat, peaks, offsets, sizes, result = panels
    look.put_image(inputs, image)
    look.put_title(inputs, f"1  input: {image.shape[1]} × {image.shape[0]} pixels")

    look.put_image(heat, image, dimmed=True)
    look.heat(heat, heatmap)
    look.put_title(heat, f"2  heatmap: {cells[0]} × {cells[1]} cells, all classes")
    look.scale_below(figure, heat, "probability of a centre")

    look.put_image(peaks, image, dimmed=True)
    names = _Names(peaks, text)
    for column, line in zip(x, y, strict=True):
        names.keep_clear(look.STRIDE * (column + 0.5), look.STRIDE * (line + 0.5), 7)
    for column, line, label in zip(x, y, found, strict=True):
        colour, _ = look.style(label)
        cell = look.STRIDE * np.array([column, line, column + 1, line + 1])
        peaks.plot(cell[::2].mean(), cell[1::2].mean(), "o", color=colour, markersize=6, markeredgecolor="black")
        reach = max(0, 9 * image.shape[1] / width - look.STRIDE / 2)  # the name stands clear of the dot, 9 pixels
        near = cell + reach * np.array([-1, -1, 1, 1])
        names.put(near, f"{_name(label, class_names)} {heatmap[line, column, label]:.2f}", colour)
    look.put_title(peaks, "3  peaks: no neighbour is higher")
    look.put_note(peaks, f"{len(x)} of them, probability {lowest:.2f} or more" if len(x) else "none worth showing")

    look.put_image(offsets, image, dimmed=True)
    if len(x):
        across, down = np.round(offset[y[0], x[0]], 2) + 0.0  # so that -0.001 is not "-0.00"
        _offset(offsets, heatmap[:, :, found[0]], x[0], y[0], offset[y[0], x[0]], look.style(found[0])[0])
        look.put_note(offsets, f"best peak, cell ({x[0]}, {y[0]}): offset ({across:.2f}, {down:.2f}) cells")
    look.put_title(offsets, "4  offset: from the cell's corner to the centre")

    look.put_image(sizes, image, dimmed=True)
    names = _Names(sizes, text)
    for point in centre:
        names.keep_clear(*point, 5)
    for i, ((cx, cy), label) in enumerate(zip(centre, found, strict=True)):
        w, h = size[y[i], x[i]]
        colour, _ = look.style(label)
        stroke = [withStroke(linewidth=4, foreground="black")]
        across, down = look.STRIDE * w / 2, look.STRIDE * h / 2
        sizes.plot([cx - across, cx + across], [cy, cy], color=colour, linewidth=2, path_effects=stroke)
        sizes.plot([cx, cx], [cy - down, cy + down], color=colour, linewidth=2, path_effects=stroke)
        names.put([cx - across, cy - down, cx + across, cy + down], f"{w:.1f} × {h:.1f}", colour)
    look.put_title(sizes, "5  size: width × height")
    look.put_note(sizes, "in cells")

    look.put_image(result, image)
    _draw_boxes(result, boxes, labels, scores, class_names, text)
    look.put_title(result, "6  boxes")
    look.put_note(result, f"{look.STRIDE} × (cell + offset ∓ size / 2)")
    return look.finish(figure, path)


def _offset(axes: Axes, heatmap: np.ndarray, x: int, y: int, offset: np.ndarray, colour: str) -> None:
    """Zoom into the cells around a peak (x, y) of one class, (h, w), and point from the cell's corner to the centre."""
    look.heat(axes, heatmap[:, :, None])
    frame = axes.get_window_extent()
    reach = 2.5 * look.STRIDE
    reach_x, reach_y = reach * max(1, frame.width / frame.height), reach * max(1, frame.height / frame.width)
    corner = look.STRIDE * np.array([x, y])
    left, upper = corner + look.STRIDE / 2 - (reach_x, reach_y)
    axes.set_xlim(left, left + 2 * reach_x)
    axes.set_ylim(upper + 2 * reach_y, upper)
    for row in range(max(0, y - 2), min(len(heatmap), y + 3)):
        for column in range(max(0, x - 2), min(heatmap.shape[1], x + 3)):
            axes.add_patch(
                Rectangle(
                    (look.STRIDE * column, look.STRIDE * row),
                    look.STRIDE,
                    look.STRIDE,
                    fill=False,
                    edgecolor="white",
                    linewidth=0.5,
                )
            )
            value = axes.text(
                look.STRIDE * (column + 0.5),
                look.STRIDE * (row + 0.95),
                f"{heatmap[row, column]:.2f}",
                ha="center",
                va="bottom",
            )
            value.set(
                fontsize=look.points(14), color="white", path_effects=[withStroke(linewidth=2, foreground="black")]
            )
    axes.add_patch(Rectangle(corner, look.STRIDE, look.STRIDE, fill=False, edgecolor=colour, linewidth=3))
    centre = corner + look.STRIDE * offset
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
    height, width = look.fit(image, 640)
    side = max(height, 480)
    places = [(gap, top, width, height), (2 * gap + width, top, side, side)]
    figure, (whole, near) = look.page(places, 3 * gap + width + side, top + side + bottom)
    everything = np.concatenate([unmoved, moved])
    centre = (everything.min(axis=0) + everything.max(axis=0)) / 2
    reach = np.ptp(everything, axis=0).max() / 2 + cell_size.max()
    near.add_patch(Rectangle(centre - reach, 2 * reach, 2 * reach, color="0.85", zorder=0))  # outside of the image
    for axes, scale in ((whole, 0.5), (near, 1)):
        look.put_image(axes, image)
        axes.autoscale(False)
        stroke = [withStroke(linewidth=1.5 * scale + 1, foreground="black")]
        lines = np.stack([unmoved, moved], axis=1)
        axes.add_collection(LineCollection(lines, colors="white", linewidths=1.5 * scale, path_effects=stroke))
        edge = {"edgecolor": "black", "linewidth": 1.5 * scale}
        axes.scatter(*unmoved.T, 40 * scale, "white", marker="s", zorder=3, label="without offset", **edge)
        axes.scatter(*moved.T, 400 * scale * mask[y, x], look.PALETTE[0], zorder=4, **edge)
    near.set_xlim(centre[0] - reach, centre[0] + reach)
    near.set_ylim(centre[1] + reach, centre[1] - reach)
    near.add_patch(
        Rectangle(cell_size * cell, *cell_size, fill=False, edgecolor="white", linewidth=1.5, path_effects=stroke)
    )
    for value in (0.25, 1):
        near.scatter([], [], 400 * value, look.PALETTE[0], label=f"mask {value}", **edge)
    near.legend(
        loc="upper left",
        bbox_to_anchor=(0, 0),
        ncols=3,
        fontsize=look.points(15),
        frameon=False,
        borderpad=0.8,
        borderaxespad=0,
        handletextpad=0.8,
        columnspacing=1.2,
    )
    look.put_title(whole, f"cell ({x}, {y}) of a map of {columns} × {rows} cells")
    look.put_title(near, f"where its {size} × {size} taps look")
    return look.finish(figure, path)


def _name(label: int, class_names: Sequence[str] | None) -> str:
    return str(label) if class_names is None else class_names[label]


# ---- several pictures -----------------------------------------------------------------------------------------------


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
        row = [look.fit(picture, cell) for picture in pictures[start : start + columns]]
        places += [(gap + (cell + gap) * i, y + line, w, h) for i, (h, w) in enumerate(row)]
        y += line + max(h for h, _ in row) + gap
    figure, all_axes = look.page(places, width, y)
    for axes, picture, title in zip(all_axes, pictures, titles, strict=True):
        look.put_image(axes, picture)
        look.put_title(axes, title)
    return look.finish(figure, path)
