"""The one look of all pictures: colours, pages with axes, titles and text, and how a picture is shown and saved."""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ..errors import InputError
from ..files import legible, replacing

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")  # Okabe and Ito 2008
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # the same, to be seen on white
DASHES = ("-", (0, (4, 1.2)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
HEAT = colormaps["cividis"]
DPI = 128  # a power of two, so that a figure has exactly as many pixels as asked for

STRIDE = 4  # input pixels to a cell


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

    png = io.BytesIO()
    _few_colours(picture).save(png, format="PNG", optimize=True)
    encoded = base64.b64encode(png.getvalue()).decode()
    display({"image/png": encoded, "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)


def _few_colours(picture: Image.Image) -> Image.Image:
    """Return an RGB picture in 256 colours, half of the bytes: white, those of most pixels, and those of rare ones.

    The second sort paints a ground's shades, the third keeps small things and a colour scale what they are.
    """
    colours, palette = bytearray(b"\xff\xff\xff"), Image.new("P", (1, 1))
    for count, method in ((128, Image.Quantize.MEDIANCUT), (127, Image.Quantize.MAXCOVERAGE)):
        found = picture.quantize(count, method=method).getpalette("RGB")
        colours += bytes(found[: 3 * count]).ljust(3 * count, b"\0")
    palette.putpalette(colours)
    few = picture.quantize(palette=palette, dither=Image.Dither.NONE)
    few.paste(0, mask=Image.fromarray((np.asarray(picture) == 255).all(axis=2)))  # the search is coarse: off-white
    return few


def _in_notebook() -> bool:
    """Whether IPython runs this code; it is imported only where it is at work already."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


# ---- figures, axes, text ---------------------------------------------------------------------------------------------


def page(places: Sequence[tuple[int, int, int, int]], width: int, height: int) -> tuple[Figure, list[Axes]]:
    """A white figure of exactly (height, width) pixels with axes at (left, top, width, height) each."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    all_axes = [
        figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height), xticks=[], yticks=[])
        for x, y, w, h in places
    ]
    return figure, all_axes


def finish(figure: Figure, path: str | os.PathLike | None) -> np.ndarray:
    """Draw a figure and return it as a picture (H, W, 3) uint8, written to `path` if one is given."""
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


def put_image(axes: Axes, image: np.ndarray, dimmed: bool = False) -> None:
    """An image (H, W, 3) uint8 as axes in which (x, y) are its pixels' outer edges."""
    height, width = image.shape[:2]
    if dimmed:
        image = np.repeat((0.55 * image.mean(axis=2, keepdims=True)).astype(np.uint8), 3, axis=2)
    frame = axes.get_window_extent()
    shown = Image.fromarray(image).resize((round(frame.width), round(frame.height)), Image.Resampling.BICUBIC)
    axes.imshow(shown, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    axes.set_axis_off()


def heat(axes: Axes, heatmap: np.ndarray) -> None:
    """The largest of the classes in each cell, (h, w, C), the more opaque the higher."""
    height, width = heatmap.shape[:2]
    value = np.clip(heatmap.max(axis=2), 0, 1)
    colours = HEAT(value)
    colours[..., 3] = 0.85 * np.sqrt(value)
    axes.imshow(colours, extent=(0, STRIDE * width, STRIDE * height, 0), interpolation="nearest", aspect="auto")


def scale_below(figure: Figure, axes: Axes, title: str) -> None:
    """A bar of the heatmap's colours under the axes, from 0 to 1."""
    place = axes.get_position()
    unit_x, unit_y = 1 / figure.bbox.width, 1 / figure.bbox.height  # a pixel
    bar = figure.add_axes((place.x0 + 30 * unit_x, place.y0 - 22 * unit_y, 120 * unit_x, 12 * unit_y), xticks=[])
    bar.imshow(np.linspace(0, 1, 64)[None], cmap=HEAT, aspect="auto", extent=(0, 1, 0, 1))
    bar.set_axis_off()
    size = points(15)
    bar.text(-0.06, 0.5, "0", ha="right", va="center", fontsize=size, transform=bar.transAxes)
    bar.text(1.06, 0.5, f"1   {title}", ha="left", va="center", fontsize=size, transform=bar.transAxes)


def put_title(axes: Axes, title: str, pixels: float = 17) -> None:
    """A title above the axes, at their left."""
    axes.set_title(legible(title), fontsize=points(pixels), loc="left", pad=points(6), parse_math=False)


def put_note(axes: Axes, text: str) -> None:
    """A line under the axes."""
    axes.text(0, -_pixels_down(axes, 8), text, transform=axes.transAxes, va="top", fontsize=points(15))


def _pixels_down(axes: Axes, pixels: float) -> float:
    return pixels / axes.get_window_extent().height


def label_plot(axes: Axes, title: str, x: str, y: str) -> None:
    """A plot's title, labels, ticks and grid, after its lines are drawn."""
    put_title(axes, title)
    axes.set_xlabel(x, fontsize=points(15))
    axes.set_ylabel(y, fontsize=points(15))
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.tick_params(which="both", labelsize=points(14))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def fit(image: np.ndarray, longer: float) -> tuple[int, int]:
    """Height and width, in pixels of the figure, at which an image's longer side is `longer`."""
    height, width = image.shape[:2]
    return round(longer * height / max(height, width)), round(longer * width / max(height, width))


def style(label: int) -> tuple[str, str | tuple]:
    """Colour and dashes of a class."""
    return PALETTE[label % len(PALETTE)], DASHES[label // len(PALETTE) % len(DASHES)]


def ink_on(colour: str) -> str:
    """Black or white, whichever is read more easily on the colour."""
    red, green, blue = ((int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5))
    return "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 else "white"


def points(pixels: float) -> float:
    """Font sizes and line widths are in points, 72 to an inch."""
    return pixels * 72 / DPI
