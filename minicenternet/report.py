"""The report of a run, and runs beside each other: pages of one file each, which need nothing but a browser.

    report.html        curves, figures, AP by class and size, precision over recall, the worst images, a filmstrip
    comparison.html    which options differ, what came of it, the curves over each other

A report is made of what the run left in its folder and of the images that AP was measured on; no network is run.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from .config import TrainConfig
from .data.annotation import DataSet
from .errors import InputError
from .evaluate import Evaluation
from .files import legible, replacing
from .metrics import average_precision
from .parts import DAMAGED, Part
from .run_folder import read_metrics, versions_of

WORST = 20  # images shown
FRAMES = 24  # of the filmstrip, at most

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1120px; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
img { max-width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #eee; }
th, td { min-width: 4.2rem; }
th:first-child, td:first-child { text-align: left; min-width: 5rem; }
td.bar { background: linear-gradient(90deg, #bcd9ee var(--share), transparent 0); min-width: 5rem; }
figure { margin: 0 0 1.2rem; }
figcaption { font-size: .9rem; color: #444; overflow-wrap: anywhere; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(480px, 1fr)); gap: 0 1.2rem; }
.small { max-width: 15rem; margin-bottom: .6rem; }
.wide { overflow-x: auto; }
@media (max-width: 560px) { .pairs { grid-template-columns: 1fr; } }
pre { overflow-x: auto; background: #f6f6f6; padding: .6rem; }
"""


# ---- one run ---------------------------------------------------------------------------------------------------------


def write_report(folder: Path, dataset: DataSet, between: Callable[[], None] = lambda: None) -> Path:
    """Write report.html into the folder of a run and return its path; dataset: what the run measures AP on.

    between: called between two pictures; what it raises ends the report, and the one of before is left.
    Raises InputError where no epoch is done yet, and where the data are not those that AP was measured on.
    """
    from .draw import draw_curves

    config, rows = TrainConfig.load(folder / "config.json"), _rows(folder)
    parts = [
        f"<p>{escape(_in_one_sentence(config, rows))}</p>",
        "<h2>Curves</h2>",
        _picture(draw_curves(rows), "losses, average precision and learning rate, epoch by epoch"),
    ]
    found = folder / "detections.npz"
    if found.is_file():
        parts += _of_detections(_evaluation(found, dataset), between)
    else:
        parts.append("<p>AP was not measured yet: what belongs to it will be here once it was.</p>")
    parts += _filmstrip(folder, dataset)
    options = [(_option(name), _shown(value)) for name, value in _options(config).items() if value != USUAL[name]]
    parts += ["<h2>Options that are not the usual ones</h2>", _table(("option", "value"), options)]
    parts += ["<h2>Versions</h2>", _table(("of", "version"), versions_of(folder).items())]
    return _write_page(folder / "report.html", str(folder), parts)


def _rows(folder: Path) -> list[dict[str, float]]:
    rows = read_metrics(folder)
    if not rows:
        raise InputError(f"{folder} has no metrics.csv with an epoch in it yet; let the run finish one, then ask again")
    return rows


def _in_one_sentence(config: TrainConfig, rows: Sequence[Mapping[str, float]]) -> str:
    figures = _figures(config, rows)
    best = f"best AP {figures['best AP']}, after epoch {figures['of epoch']}"
    return (
        f"{config.backbone} on {config.data}, {figures['epochs']} epochs in {figures['time']}: {best}; "
        f"in the last measurement {figures['last AP']}."
    )


def _evaluation(found: Path, dataset: DataSet) -> Evaluation:
    try:
        detections = Part.unpack(found.read_bytes(), dataset.class_names).detections
    except DAMAGED as error:
        raise InputError(f"{found} is damaged ({error}); the next measurement of AP writes it again") from error
    if len(detections) != len(dataset):
        raise InputError(
            f"{found} is of {len(detections)} images and the validation data have {len(dataset)}; put the data back "
            "that AP was measured on"
        )
    truth = [dataset.annotation(i) for i in range(len(dataset))]
    result = average_precision(truth, detections, len(dataset.class_names))
    return Evaluation(dataset, detections, result, {}, None, {}, {})


def _of_detections(evaluation: Evaluation, between: Callable[[], None]) -> list[str]:
    from .draw import draw_precision_recall

    result, names = evaluation.result, evaluation.dataset.class_names
    worst = []
    for i in evaluation.best_first()[::-1][:WORST]:
        between()
        picture, title = evaluation.beside(i)
        worst.append(
            f"<figure>{_picture(picture, f'ground truth and detections of {title}', 'JPEG')}"
            f"<figcaption>{escape(title)}</figcaption></figure>"
        )
    figures, rows = result.stats(), _by_class(evaluation)
    absent = [name for name, there in zip(names, ~np.isnan(result.per_class), strict=True) if not there]
    return [
        f"<h2>What the best weights find in {len(evaluation.detections)} images</h2>",
        _table(("", "AP", "AP50", "AP75", "small", "medium", "large"), [("precision", *figures[:6])]),
        _table(("", "AR 1", "AR 10", "AR 100", "small", "medium", "large"), [("recall", *figures[6:])]),
        "<h2>AP by class and size</h2>",
        "<p>Small objects have up to 32² square pixels, medium ones up to 96²; the classes from best to worst.</p>",
        _table(("class", "objects", "AP", "AP50", "small", "medium", "large"), rows, bars=True),
        f"<p>No objects there: {escape(', '.join(absent))}.</p>" if absent else "",
        "<h2>Precision and recall</h2>",
        _picture(draw_precision_recall(result, names), "precision over recall at IoU 0.50, a line for each class"),
        f"<h2>The {len(worst)} worst images</h2>" if len(worst) > 1 else "<h2>The worst image</h2>",
        "<p>Ground truth left, detections with a score of at least 0.3 right.</p>",
        f'<div class="pairs">{"".join(worst)}</div>',
    ]


def _by_class(evaluation: Evaluation) -> list[tuple]:
    """Name, number of objects and APs of each class that has objects, and of all, which come first."""
    result, names = evaluation.result, evaluation.dataset.class_names
    annotations = [evaluation.dataset.annotation(i) for i in range(len(evaluation.dataset))]
    labels = np.concatenate([one.labels[~(one.crowd | one.difficult)] for one in annotations])
    count = np.bincount(labels, minlength=len(names))
    rows = [("all", len(labels), result.ap, result.ap50, result.ap_small, result.ap_medium, result.ap_large)]
    for c in np.argsort(-result.per_class, kind="stable")[: np.count_nonzero(count)]:  # nan comes last
        values = result.per_class[c], result.per_class_ap50[c], *result.per_class_by_size[c]
        rows.append((names[c], int(count[c]), *map(float, values)))
    return rows


# ---- the filmstrip ---------------------------------------------------------------------------------------------------


def filmed(dataset: DataSet) -> int:
    """Return the image of which a run keeps a heatmap in each epoch: the first that holds objects, else the first."""
    return next((i for i in range(len(dataset)) if len(dataset.annotation(i).boxes)), 0)


def save_frame(folder: Path, epoch: int, heatmap: np.ndarray) -> None:
    """Keep a heatmap (h, w, C) of probabilities, the largest of the classes, as a frame of the filmstrip."""
    frame = np.round(255 * heatmap.max(axis=2)).astype(np.uint8)
    with replacing(folder / "filmstrip" / f"epoch-{epoch:04d}.png") as temporary:
        Image.fromarray(frame).save(temporary, format="PNG")


def _frame(path: Path) -> np.ndarray:
    try:
        return np.asarray(Image.open(path)) / 255
    except OSError as error:
        raise InputError(f"{path} is damaged ({error}); delete it, and the report does without") from error


def _filmstrip(folder: Path, dataset: DataSet) -> list[str]:
    from .draw import draw_boxes, draw_filmstrip

    there = (folder / "filmstrip").glob("epoch-*.png")
    paths = sorted(path for path in there if path.stem.removeprefix("epoch-").isdecimal())
    if not paths:
        return []
    shown = np.unique(np.linspace(0, len(paths) - 1, min(FRAMES, len(paths))).round().astype(int))
    frames = [_frame(paths[i]) for i in shown]
    titles = [f"epoch {int(paths[i].stem.removeprefix('epoch-'))}" for i in shown]
    sample = dataset[filmed(dataset)]
    truth = sample.annotation
    image = draw_boxes(sample.image, truth.boxes, truth.labels, None, dataset.class_names)
    return [
        "<h2>Where the network saw centres, epoch by epoch</h2>",
        f"<p>The heatmap of {escape(truth.file_name)}, the largest probability of all classes in each cell.</p>",
        f'<div class="small">{_picture(image, "the image and its objects", "JPEG")}</div>',
        _picture(draw_filmstrip(frames, titles), "heatmaps of one image, from the first epoch to the last"),
    ]


# ---- several runs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other: options that differ and figures, name -> a text for each run; and all their rows."""

    names: tuple[str, ...]
    options: Mapping[str, Sequence[str]]
    figures: Mapping[str, Sequence[str]]
    rows: Sequence[Sequence[Mapping[str, float]]]

    def lines(self) -> list[tuple[str, ...]]:
        """The table, row by row, a column for each run."""
        return [(name, *values) for name, values in (*self.options.items(), *self.figures.items())]

    def text(self) -> str:
        """The table, aligned."""
        table = [("", *self.names), *self.lines()]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table
        )

    def save(self, path: Path) -> None:
        """Write the table and the curves as one page."""
        from .draw import draw_comparison

        curves = draw_comparison(dict(zip(self.names, self.rows, strict=True)))
        same = "" if self.options else "<p>All options are the same.</p>"
        parts = [
            same + _table(("", *self.names), self.lines()),
            "<h2>Curves</h2>",
            _picture(curves, f"losses and average precision of {', '.join(self.names)}"),
        ]
        _write_page(path, f"{len(self.names)} runs", parts)


def compare(folders: Sequence[Path]) -> Comparison:
    """Return what differs between runs, and what came of it.

    Raises InputError for fewer than two, for one given twice, and for what is no run or has no epoch done.
    """
    names = tuple(map(str, folders))
    if len({folder.resolve() for folder in folders}) < max(2, len(names)):
        raise InputError(f"there are {len(names)} runs to compare: {', '.join(names)}; name two or more, each once")
    configs = [TrainConfig.load(folder / "config.json") for folder in folders]
    rows = [_rows(folder) for folder in folders]
    options = [_options(config) for config in configs]
    differ = {name: [each[name] for each in options] for name in USUAL}
    differ = {name: values for name, values in differ.items() if any(value != values[0] for value in values)}
    figures = [_figures(*of_run) for of_run in zip(configs, rows, strict=True)]
    return Comparison(
        names,
        {_option(name): [_shown(value) for value in values] for name, values in differ.items()},
        {name: [each[name] for each in figures] for name in figures[0]},
        rows,
    )


def _figures(config: TrainConfig, rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """What came of a run, for people."""
    measured = [row for row in rows if row["ap"] >= 0]
    best = max(measured, key=lambda row: (row["ap"], row["epoch"]), default={})  # of equals the later, as is saved
    last = measured[-1] if measured else {}
    return {
        "epochs": f"{int(rows[-1]['epoch'])} of {config.epochs}",
        "best AP": _number(best.get("ap")),
        "of epoch": f"{int(best['epoch'])}" if best else "-",
        "best AP50": _number(best.get("ap50")),
        "last AP": _number(last.get("ap")),
        "last AP50": _number(last.get("ap50")),
        "last loss": _number(rows[-1]["loss"]),
        "time": duration(rows[-1].get("seconds", math.nan)),
        "images/s": f"{rows[-1]['images_per_second']:.1f}",
    }


# ---- options, numbers, html ------------------------------------------------------------------------------------------


def _options(config: TrainConfig) -> dict[str, object]:
    """A run's options, those within options by a dotted name, without its folder, in which runs differ anyway."""
    flat = {}
    for name, value in dataclasses.asdict(config).items():
        flat |= {f"{name}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if name not in ("output", "resume")}


USUAL = _options(TrainConfig())


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None or not value >= 0 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds, 1:02:03; "-" of NaN."""
    if math.isnan(seconds):
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _table(header: Sequence[str], rows: Sequence[Sequence], bars: bool = False) -> str:
    """A table; floats are shares of 1, drawn as bars if asked for, and "-" where there is nothing to measure."""

    def cell(value: object) -> str:
        if not isinstance(value, float):
            return f"<td>{escape(str(value))}</td>"
        if not bars or not value >= 0:
            return f"<td>{_number(value)}</td>"
        return f'<td class="bar" style="--share: {100 * value:.1f}%">{_number(value)}</td>'

    lines = ["".join(f"<th>{escape(name)}</th>" for name in header)]
    lines += ["".join(map(cell, row)) for row in rows]
    return '<div class="wide"><table>' + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table></div>"


def _picture(picture: np.ndarray, alt: str, kind: str = "PNG") -> str:
    """A picture (H, W, 3) uint8 as part of the page: PNG in 256 colours for drawings, JPEG for photographs."""
    file, image = io.BytesIO(), Image.fromarray(picture)
    if kind == "PNG":
        image = image.quantize(256, dither=Image.Dither.NONE)
    image.save(file, format=kind, optimize=True, quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    height, width = picture.shape[:2]
    source = f"data:image/{kind.lower()};base64,{data}"
    return f'<img src="{source}" alt="{escape(alt)}" width="{width}" height="{height}">'


def _write_page(path: Path, title: str, parts: Sequence[str]) -> Path:
    body = "\n".join(parts)
    with replacing(path) as temporary:
        page = (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
            f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
        )
        temporary.write_text(legible(page), encoding="utf-8")
    return path
