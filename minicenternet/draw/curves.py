"""The curves of a run, and of its average precision."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, MaxNLocator

from ..files import legible
from ..metrics.average_precision import Result
from . import look


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
    figure, all_axes = look.page(places, (left + width) * len(panels) + 20, top + height + bottom)
    epochs = _column(rows, "epoch")
    for axes, (title, columns) in zip(all_axes, panels.items(), strict=True):
        for name, ink in zip(columns, itertools.cycle(look.COLOURS), strict=False):
            values = _column(rows, name)
            known = values > 0 if title == "loss" else values >= 0  # not NaN, nor what a logarithm cannot show
            if known.any():
                label, marker = f"{name}  {values[known][-1]:.3g}", "o" if known.sum() < 30 else ""
                axes.plot(epochs[known], values[known], color=ink, marker=marker, markersize=3, label=label)
        if title == "loss":
            _set_logarithmic(axes)
        else:
            axes.set_ylim(0, 1 if title == "average precision" else None)
        look.label_plot(axes, title, "epoch", "")
        if len(epochs):  # the same for all panels, also where AP was measured in few of the epochs
            axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(columns) > 1 and axes.lines:
            axes.legend(fontsize=look.points(14), frameon=False)
    return look.finish(figure, path)


def draw_comparison(
    runs: Mapping[str, Sequence[Mapping[str, float]]], path: str | os.PathLike | None = None
) -> np.ndarray:
    """Draw several runs over each other, name -> rows of metrics.csv: loss, and AP over epochs and over hours.

    What was not measured is missing or NaN, as in `draw_curves`.
    """
    panels = [("loss", "loss", "epoch"), ("average precision", "ap", "epoch"), ("average precision", "ap", "hours")]
    width, height, left, top = 460, 360, 76, 44
    legend = 30 * len(runs) + 16
    places = [(left + (left + width) * i, top, width, height) for i in range(len(panels))]
    figure, all_axes = look.page(places, (left + width) * len(panels) + 20, top + height + 56 + legend)
    for axes, (title, column, along) in zip(all_axes, panels, strict=True):
        for i, rows in enumerate(runs.values()):
            x = _column(rows, "epoch") if along == "epoch" else _column(rows, "seconds") / 3600
            y = _column(rows, column)
            known = (y > 0 if column == "loss" else y >= 0) & ~np.isnan(x)
            style = {"color": look.COLOURS[i % len(look.COLOURS)], "linestyle": look.DASHES[i % len(look.DASHES)]}
            axes.plot(x[known], y[known], marker="o" if known.sum() < 30 else "", markersize=3, **style)
        if column == "loss":
            _set_logarithmic(axes)
        else:
            axes.set_ylim(0, 1)
        look.label_plot(axes, title, along, "")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=along == "epoch"))
    named = figure.legend(
        all_axes[0].lines,
        list(map(legible, runs)),
        loc="lower left",
        fontsize=look.points(15),
        frameon=False,
        handlelength=4,
    )
    for text in named.get_texts():
        text.set_parse_math(False)
    return look.finish(figure, path)


def _set_logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))


def draw_precision_recall(
    result: Result, class_names: Sequence[str], path: str | os.PathLike | None = None
) -> np.ndarray:
    """Draw precision over recall at IoU 0.50: each class, named where they are few, and their mean."""
    figure, (axes,) = look.page([(80, 48, 560, 520)], 940, 640)
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
        ink = look.COLOURS[:-1]  # black is the mean's
        label = f"{class_names[c]}  {result.per_class_ap50[c]:.3f}"
        style = look.DASHES[i // len(ink) % len(look.DASHES)]
        axes.plot(recall, result.precision[c], color=ink[i % len(ink)], linestyle=style, linewidth=1.5, label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    look.label_plot(axes, "precision and recall at IoU 0.50", "recall", "precision")
    if len(measured):
        title = "AP50" if len(named) == len(measured) else f"AP50, best and worst of {len(measured)}"
        legend = axes.legend(
            loc="upper left",
            bbox_to_anchor=(1.02, 1),
            fontsize=look.points(15),
            title=title,
            title_fontsize=look.points(15),
            frameon=False,
            alignment="left",
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    else:
        axes.text(0.5, 0.5, "no objects to find", ha="center", fontsize=look.points(18))
    return look.finish(figure, path)


def _column(rows: Sequence[Mapping[str, str | float | None]], name: str) -> np.ndarray:
    values = [row.get(name) for row in rows]
    return np.array([math.nan if value in (None, "") else float(value) for value in values])
