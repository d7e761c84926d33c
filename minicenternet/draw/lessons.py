"""Pictures that explain an idea: a tape, a loss over two numbers, Gaussians, peaks, a training, memory accesses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ..errors import InputError
from . import look

WIDTH = 800  # pixels of each picture here

_OUTLINE = [withStroke(linewidth=2.5, foreground="black")]


# ---- the tape --------------------------------------------------------------------------------------------------------


def draw_graph(
    nodes: Mapping[str, str], edges: Sequence[tuple[str, str]], path: str | os.PathLike | None = None
) -> np.ndarray:
    """Draw a graph of computation from left to right: each node a box, each edge an arrow from operand to result.

    nodes: name -> what is written in the box, a few short lines, such as "y = x²\\n4.0\\ngrad 1.0"; edges: (operand,
    result) by name, one for each use.  A node stands right of all its operands, the inputs beside what uses them.
    Raises InputError for an edge to a node that is not there, and for a cycle.
    """
    unknown = [name for edge in edges for name in edge if name not in nodes]
    if unknown:
        raise InputError(f"an edge names the node {unknown[0]!r}, but there are only {', '.join(nodes)}")
    column = _columns(list(nodes), edges)
    columns = [[name for name in nodes if column[name] == i] for i in range(max(column.values()) + 1)]
    order = {name: 0.0 for name in nodes}
    for names in reversed(columns):  # beside the mean of what uses it: fewer crossings
        used_by = {name: [order[result] for operand, result in edges if operand == name] for name in names}
        names.sort(key=lambda name: np.mean(used_by[name]) if used_by[name] else 0.5)
        order |= {name: (i + 0.5) / len(names) for i, name in enumerate(names)}

    lines = max(text.count("\n") + 1 for text in nodes.values())
    letters = max(len(line) for text in nodes.values() for line in text.split("\n"))
    size = min(15.0, (WIDTH / len(columns) - 34) / (0.62 * letters + 1))  # of the letters, in pixels
    box_width, box_height = (0.62 * letters + 1) * size, (1.35 * lines + 0.9) * size
    height = round(max(len(names) for names in columns) * (box_height + 26) + 20)
    figure, (axes,) = look.page([(0, 0, WIDTH, height)], WIDTH, height)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    centre = {name: (WIDTH * (column[name] + 0.5) / len(columns), 10 + (height - 20) * order[name]) for name in nodes}
    for name, text in nodes.items():
        x, y = centre[name]
        is_input = not any(result == name for _, result in edges)
        axes.add_patch(
            Rectangle(
                (x - box_width / 2, y - box_height / 2),
                box_width,
                box_height,
                facecolor="white",
                edgecolor=look.COLOURS[0 if is_input else 1],
                linestyle="-" if is_input else look.DASHES[1],
                linewidth=look.points(2.5),
                zorder=2,
            )
        )
        axes.text(
            x, y, text, ha="center", va="center", fontsize=look.points(size), family="monospace", parse_math=False
        )
    uses: dict[tuple[str, str], int] = {}
    for operand, result in edges:
        uses[operand, result] = uses.get((operand, result), 0) + 1
        (x1, y1), (x2, y2) = centre[operand], centre[result]
        bend = 0.25 * (uses[operand, result] - 1)  # the second use of one operand, as in x * x, beside the first
        axes.annotate(
            "",
            (x2 - box_width / 2, y2),
            (x1 + box_width / 2, y1),
            arrowprops={
                "arrowstyle": "-|>",
                "color": "0.25",
                "linewidth": look.points(2),
                "shrinkA": 0,
                "shrinkB": 0,
                "connectionstyle": f"arc3,rad={bend}",
            },
            zorder=1,
        )
    return look.finish(figure, path)


def _columns(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Each node's column: one right of its rightmost operand; inputs just left of the first that uses them."""
    depth = dict.fromkeys(names, 0)
    for _ in names:
        deeper = {name: max((depth[a] + 1 for a, b in edges if b == name), default=0) for name in names}
        if deeper == depth:
            break
        depth = deeper
    else:
        raise InputError("the graph has a cycle: no result can be an operand of its own operands")
    results = {b for _, b in edges}
    for name in names:
        users = [depth[b] for a, b in edges if a == name]
        if name not in results and users:
            depth[name] = min(users) - 1
    return depth


# ---- a loss over two numbers -----------------------------------------------------------------------------------------


def draw_surface(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    labels: tuple[str, str, str],
    path: str | os.PathLike | None = None,
    *,
    title: str = "",
    trail: np.ndarray | None = None,
    levels: int = 12,
) -> np.ndarray:
    """Draw z (len(y), len(x)) over x and y as colour and contour lines, its lowest point marked by a star.

    labels: of x, y and z, with their units; trail (N, 2): points (x, y) in the order in which a descent came by.
    Raises InputError when the shapes do not fit or z is not finite.
    """
    if z.shape != (len(y), len(x)):
        raise InputError(f"z has the shape {z.shape}, expected (len(y), len(x)) = ({len(y)}, {len(x)})")
    if not np.isfinite(z).all():
        raise InputError("z holds NaN or infinity: draw it where it is finite, or its logarithm")
    figure, (axes,) = look.page([(76, 44, 600, 420)], WIDTH, 530)
    mesh = axes.pcolormesh(x, y, z, cmap=look.HEAT, shading="gouraud")
    lines = axes.contour(x, y, z, levels, colors="white", linewidths=look.points(1.2))
    for text in axes.clabel(lines, fontsize=look.points(13), fmt="%.3g"):
        text.set_path_effects(_OUTLINE)
    if trail is not None:
        style = {"color": "white", "linewidth": look.points(2.5), "path_effects": _OUTLINE}
        axes.plot(*np.asarray(trail).T, marker="o", markersize=look.points(6), **style)
    row, column = np.unravel_index(z.argmin(), z.shape)
    star = {"color": look.PALETTE[0], "markeredgecolor": "black", "markersize": look.points(20)}
    axes.plot(x[column], y[row], "*", clip_on=False, zorder=3, **star)
    axes.set(xlim=(x.min(), x.max()), ylim=(y.min(), y.max()))
    look.label_plot(axes, title or f"lowest, {z.min():.3g}, at the star", labels[0], labels[1])
    axes.grid(False)
    _colour_bar(figure, axes, mesh, labels[2])
    return look.finish(figure, path)


def _colour_bar(figure: Figure, axes: Axes, mappable: object, label: str) -> None:
    """A bar of the colours, with numbers, right of the axes."""
    place = axes.get_position()
    bar = figure.add_axes((place.x1 + 24 / figure.bbox.width, place.y0, 18 / figure.bbox.width, place.height))
    figure.colorbar(mappable, cax=bar)
    bar.set_ylabel(label, fontsize=look.points(15))
    bar.tick_params(labelsize=look.points(14))


# ---- heatmaps, cell by cell ------------------------------------------------------------------------------------------


def draw_gaussians(
    heatmap: np.ndarray,
    centres: np.ndarray,
    radii: np.ndarray,
    path: str | os.PathLike | None = None,
    *,
    title: str = "",
) -> np.ndarray:
    """Draw a heatmap (h, w) of values 0..1, cell by cell, with the centre cell (x, y) and the radius of each object.

    centres (N, 2), radii (N,): in cells; where the map has at most 20 columns each cell's value is written into it.
    """
    figure, axes = _cells(heatmap, "target")
    for (x, y), radius in zip(centres, radii, strict=True):
        if not axes.texts:  # in the way of a value
            axes.plot(x, y, "+", color="black", markersize=look.points(13), markeredgewidth=look.points(2))
        if radius:
            axes.add_patch(
                Circle(
                    (x, y), radius, fill=False, edgecolor="white", linewidth=look.points(2), linestyle=look.DASHES[1]
                )
            )
    look.put_title(axes, title or "the target, 1 at its centres, and their radii (dashed)")
    return look.finish(figure, path)


def draw_peaks(
    heatmap: np.ndarray, peaks: np.ndarray, path: str | os.PathLike | None = None, *, title: str = ""
) -> np.ndarray:
    """Draw a heatmap (h, w) of values 0..1, cell by cell, with a frame around each peak (x, y) of (N, 2)."""
    figure, axes = _cells(heatmap, "probability")
    for x, y in peaks:
        frame = Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=look.PALETTE[0], linewidth=look.points(4))
        frame.set_path_effects([withStroke(linewidth=look.points(7), foreground="black")])
        axes.add_patch(frame)
    look.put_title(axes, title or f"{len(peaks)} peak{'' if len(peaks) == 1 else 's'} (framed): no neighbour is higher")
    return look.finish(figure, path)


def _cells(heatmap: np.ndarray, label: str) -> tuple[Figure, Axes]:
    """A heatmap in axes whose (x, y) is the middle of that cell, the values in the cells if they are few."""
    rows, columns = heatmap.shape
    cell = min(600 / columns, 600 / rows)
    width, height = round(cell * columns), round(cell * rows)
    figure, (axes,) = look.page([(76, 44, width, height)], WIDTH, height + 110)
    drawn = axes.imshow(heatmap, cmap=look.HEAT, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    if columns <= 20:
        size = look.points(min(15, 0.34 * cell))
        for y, x in np.ndindex(rows, columns):
            value = f"{heatmap[y, x]:.2f}".removeprefix("0") if heatmap[y, x] < 1 else "1"
            ink = "black" if heatmap[y, x] > 0.55 else "white"
            axes.text(x, y, value, ha="center", va="center", fontsize=size, color=ink)
    look.label_plot(axes, "", "x (cells)", "y (cells)")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.grid(False)
    _colour_bar(figure, axes, drawn, label)
    return figure, axes


def draw_filmstrip(
    frames: Sequence[np.ndarray],
    titles: Sequence[str],
    path: str | os.PathLike | None = None,
    *,
    columns: int = 6,
    label: str = "probability",
) -> np.ndarray:
    """Draw heatmaps (h, w) of values 0..1 in the order of time, left to right, a title above each, one scale for all.

    Raises InputError when there are no frames, or not one title for each.
    """
    if not len(frames) or len(frames) != len(titles):
        raise InputError(f"a filmstrip needs a title for each frame: {len(frames)} frames, {len(titles)} titles")
    columns = min(columns, len(frames))
    gap, line = 8, 28
    width = (WIDTH - gap * (columns + 1)) // columns
    height = round(width * frames[0].shape[0] / frames[0].shape[1])
    rows = -(-len(frames) // columns)
    places = [
        (gap + (width + gap) * (i % columns), line + (height + line) * (i // columns), width, height)
        for i in range(len(frames))
    ]
    figure, all_axes = look.page(places, WIDTH, rows * (height + line) + 40)
    for axes, frame, title in zip(all_axes, frames, titles, strict=True):
        axes.imshow(frame, cmap=look.HEAT, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        look.put_title(axes, title, 15)
    look.scale_below(figure, all_axes[(rows - 1) * columns], label)
    return look.finish(figure, path)


# ---- memory ----------------------------------------------------------------------------------------------------------


def draw_access_pattern(
    addresses: np.ndarray,
    path: str | os.PathLike | None = None,
    *,
    title: str = "",
    segment: int = 8,
    names: tuple[str, str] = ("thread", "float"),
) -> np.ndarray:
    """Draw which element of memory each thread reads at one moment, and how many segments must be fetched for it.

    addresses (T,): the element that thread t reads, from 0; segment: elements that memory gives at once, 8 floats to 32
    bytes; touched elements are filled and touched segments framed.  names: of what asks and of what is asked for.
    Raises InputError when an address is negative or none is given.
    """
    addresses = np.asarray(addresses)
    if not addresses.size or addresses.min() < 0:
        raise InputError(f"addresses are elements of memory counted from 0, at least one, got {addresses.tolist()}")
    touched = np.unique(addresses // segment)
    elements = segment * (int(touched.max()) + 1)
    figure, (axes,) = look.page([(16, 44, WIDTH - 32, 170)], WIDTH, 262)
    axes.set(xlim=(0, 1), ylim=(1, 0))
    axes.set_axis_off()
    above, below = 0.18, 0.82  # lower edge of the threads, upper edge of the elements
    for t, address in enumerate(addresses):
        axes.plot([(t + 0.5) / len(addresses), (address + 0.5) / elements], [above, below], color="0.45", zorder=1,
                  linewidth=look.points(1.2))  # fmt: skip
    for count, top, filled, colour in (
        (len(addresses), 0, range(len(addresses)), look.PALETTE[1]),
        (elements, below, set(addresses.tolist()), look.PALETTE[0]),
    ):
        for i in range(count):
            face = colour if i in filled else "white"
            box = Rectangle((i / count, top), 1 / count, 0.18, facecolor=face, edgecolor="0.35", clip_on=False)
            box.set_linewidth(look.points(0.8))
            axes.add_patch(box)
            if count <= 32:
                axes.text((i + 0.5) / count, top + 0.09, str(i), ha="center", va="center", fontsize=look.points(13))
    for i in touched:
        frame = Rectangle((segment * i / elements, below), segment / elements, 0.18, fill=False, edgecolor="black")
        frame.set(linewidth=look.points(3.5), clip_on=False, zorder=3)
        axes.add_patch(frame)
    look.put_title(axes, title or f"which {names[1]} each {names[0]} reads")
    used = len(np.unique(addresses)) / (segment * len(touched))
    look.put_note(
        axes,
        f"above: {len(addresses)} {names[0]}s; below: memory, {len(touched)} segment{'' if len(touched) == 1 else 's'} "
        f"of {segment} {names[1]}s fetched (framed), {used:.0%} of them used",
    )
    return look.finish(figure, path)
