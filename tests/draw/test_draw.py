"""Pictures are judged by eye; here is what a test can see: sizes, places, files, and that nothing odd is fatal."""

import base64
import io
import itertools
import sys
import types

import numpy as np
import pictures
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from minicenternet import draw
from minicenternet.draw import look
from minicenternet.errors import InputError
from minicenternet.metrics import average_precision
from minicenternet.predict import Detections


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, in order."""
    drawn = []
    finish = look.finish

    def noting(figure, path):
        drawn.append(figure)
        return finish(figure, path)

    monkeypatch.setattr(look, "finish", noting)
    return drawn


def crowd(rng, count, height, width):
    corner = rng.uniform(0, [0.8 * width, 0.8 * height], (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 0.4 * min(height, width), (count, 2))], axis=1)
    return boxes, rng.integers(0, 40, count), rng.uniform(0.3, 1, count)


@pytest.mark.parametrize(
    ("size", "picture"), [((128, 96), (640, 480)), ((5, 3), (640, 384)), ((600, 800), (600, 800)), ((1, 1), (640, 640))]
)
def test_size_of_the_picture(size, picture):
    drawn = draw.draw_boxes(np.zeros((*size, 3), np.uint8), np.zeros((0, 4)), np.zeros(0, int))
    assert drawn.shape == (*picture, 3) and drawn.dtype == np.uint8
    assert not drawn.any()


def test_image_and_box_are_where_they_belong():
    image = np.zeros((100, 160, 3), np.uint8)  # enlarged 4 times
    image[10:20, 40:60] = 255
    plain = draw.draw_boxes(image, np.zeros((0, 4)), np.zeros(0, int))
    assert (plain[42:78, 162:238] > 200).all()
    assert not plain[:36].any() and not plain[84:].any()
    drawn = draw.draw_boxes(np.zeros_like(image), np.array([[40, 30, 120, 90]]), np.array([1]))
    lines = np.argwhere(np.abs(drawn.astype(int) - (0x56, 0xB4, 0xE9)).max(axis=2) < 60)  # the second colour
    below = lines[lines[:, 0] > 125]  # without the name
    assert abs(below[:, 0].max() - 4 * 90) <= 3
    assert abs(lines[:, 1].min() - 4 * 40) <= 3 and abs(below[:, 1].max() - 4 * 120) <= 3
    assert not drawn[130:350, 170:470].any()


@pytest.mark.parametrize(("size", "count"), [((128, 128), 8), ((1024, 1024), 40), ((480, 640), 100), ((60, 800), 10)])
def test_names_stay_inside_and_apart(figures, size, count):
    boxes, labels, scores = crowd(np.random.default_rng(count), count, *size)
    names = [f"a name of class {c}" for c in range(40)]
    draw.draw_boxes(np.zeros((*size, 3), np.uint8), boxes, labels, scores, names)
    (axes,) = figures[0].axes
    frame = axes.get_window_extent()
    extents = [text.get_bbox_patch().get_window_extent() for text in axes.texts]
    assert len(extents) == count if count < 10 else len(extents) > 3
    for i, a in enumerate(extents):
        assert frame.x0 - 2 <= a.x0 and a.x1 <= frame.x1 + 2 and frame.y0 - 2 <= a.y0 and a.y1 <= frame.y1 + 2
        for b in extents[:i]:
            assert min(a.x1, b.x1) - max(a.x0, b.x0) < 2 or min(a.y1, b.y1) - max(a.y0, b.y0) < 2
    best = np.argmax(scores)
    assert axes.texts[0].get_text() == f"a name of class {labels[best]} {scores[best]:.2f}"


def test_the_best_box_is_on_top():
    boxes, labels = np.full((2, 4), [10, 20, 50, 50]), np.array([1, 0])
    for scores, colour in [((0.9, 0.8), (0x56, 0xB4, 0xE9)), ((0.8, 0.9), (0xE6, 0x9F, 0x00))]:
        drawn = draw.draw_boxes(np.zeros((64, 64, 3), np.uint8), boxes, labels, np.array(scores), text_size=0.05)
        assert np.abs(drawn[500, 300].astype(int) - colour).max() < 30  # the middle of the lower side


def test_classes_look_different():
    assert len({look.style(label) for label in range(28)}) == 28


COLOUR_BLIND = {  # linear red, green and blue as seen without red and without green cones (Machado et al. 2009)
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}  # fmt: skip


@pytest.mark.parametrize("eyes", COLOUR_BLIND)
@pytest.mark.parametrize("colours", [look.PALETTE, look.COLOURS])
def test_colours_differ_for_the_colour_blind(colours, eyes):
    """By 12 in CIELAB; of matplotlib's usual colours some differ by less than 8."""
    srgb = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(COLOUR_BLIND[eyes]), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = seen @ to_xyz.T / (0.9505, 1, 1.089)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(lab, 2)) > 12


@pytest.mark.parametrize("names", [None, ["$x_1", "$\\frac{$", "a_b^c"]])
def test_any_name_can_be_drawn(figures, names):
    draw.draw_boxes(np.zeros((50, 50, 3), np.uint8), np.full((3, 4), 10.0), np.arange(3), None, names)
    assert {text.get_text() for text in figures[0].axes[0].texts} == set(names or ["0", "1", "2"])


def test_boxes_outside_the_image(figures):
    boxes = np.array([[-500, -500, -300, -300], [0, 0, 1e5, 1e5], [20, 20, 20, 20]])
    draw.draw_boxes(np.zeros((64, 64, 3), np.uint8), boxes, np.zeros(3, int))
    assert figures[0].get_size_inches() @ [look.DPI, 0] == 640


def maps(height=32, width=32, classes=3, peak=(20, 11)):
    heatmap, offset, size = np.zeros((height, width, classes)), *np.zeros((2, height, width, 2))
    y, x = peak
    heatmap[y, x, 1] = 0.9
    offset[y, x], size[y, x] = (0.25, 0.75), (6, 4)
    box = 4 * np.array([x + 0.25 - 3, y + 0.75 - 2, x + 0.25 + 3, y + 0.75 + 2])
    return heatmap, offset, size, box[None], np.array([1]), np.array([0.9])


@pytest.mark.parametrize("peak", [(20, 11), (0, 0), (31, 31)])
@pytest.mark.parametrize("size", [(128, 128), (128, 384)])
def test_explanation(figures, size, peak):
    height, width = size
    image = np.full((height, width, 3), 200, np.uint8)
    draw.draw_explanation(image, *maps(height // 4, width // 4, peak=peak), ["a", "b", "c"])
    inputs, heat, peaks, offset, sizes, result, scale = figures[0].axes
    assert inputs.get_title("left") == f"1  input: {width} × {height} pixels"
    assert "b 0.90" in [text.get_text() for text in peaks.texts]
    assert "6.0 × 4.0" in [text.get_text() for text in sizes.texts]
    assert "b 0.90" in [text.get_text() for text in result.texts]
    dot = offset.lines[-1].get_xydata()[0]
    np.testing.assert_allclose(dot, 4 * (np.array(peak[::-1]) + (0.25, 0.75)))


def test_explanation_of_nothing(figures):
    nothing = (np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    draw.draw_explanation(np.zeros((64, 64, 3), np.uint8), *maps(16, 16, peak=(3, 3))[:3], *nothing)
    assert "none worth showing" in [text.get_text() for text in figures[0].axes[2].texts]


def test_heatmap_and_targets(figures):
    image = np.full((128, 128, 3), 128, np.uint8)
    heatmap = maps()[0] / 0.9
    drawn = draw.draw_heatmap(image, heatmap)
    y, x = np.unravel_index(drawn[..., 0].argmax(), drawn.shape[:2])  # yellow
    assert (y // 20, x // 20) == (20, 11)  # 640 pixels for 32 cells
    drawn = draw.draw_targets([image, image], [heatmap, 0 * heatmap])
    assert drawn.shape[1] == 1600
    titles = [axes.get_title("left") for axes in figures[-1].axes]
    assert titles == [
        "input (left), target heatmap (right): 1 centre",
        "input (left), target heatmap (right): 0 centres",
    ]


@pytest.mark.parametrize("size", [(96, 160), (160, 96), (96, 600)])
def test_sampling_points_are_where_the_taps_look(figures, tmp_path, size):
    height, width = size
    offset, mask = np.zeros((12, 20, 18)), np.full((12, 20, 9), 0.5)
    offset[7, 4, :2] = (2, -1)  # the tap of the upper left neighbour: two cells down, one to the left
    offset[7, 4, 17], mask[7, 4, 8] = 0.5, 0.25
    image = np.full((height, width, 3), 90, np.uint8)
    drawn = draw.draw_sampling_points(image, offset, mask, (4, 7), tmp_path / "points.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "points.png")), drawn)
    down, across = height / 12, width / 20  # pixels of the image to a cell
    for axes in figures[0].axes:
        _, unmoved, moved, *_ = axes.collections
        grid = [[across * (4.5 + v), down * (7.5 + u)] for u in (-1, 0, 1) for v in (-1, 0, 1)]
        np.testing.assert_allclose(unmoved.get_offsets(), grid)
        grid[0][0], grid[0][1], grid[8][0] = grid[0][0] - across, grid[0][1] + 2 * down, grid[8][0] + across / 2
        np.testing.assert_allclose(moved.get_offsets(), grid)
        np.testing.assert_allclose(moved.get_sizes() / moved.get_sizes()[0], 8 * [1] + [0.5])
    frame, legend = figures[0].bbox, figures[0].axes[1].get_legend().get_window_extent()
    assert frame.x0 <= legend.x0 and legend.x1 <= frame.x1 and frame.y0 <= legend.y0


def test_the_picture_of_sampling_points_is_what_the_code_draws():
    """To make it anew: python tests/pictures.py (another matplotlib may set its letters otherwise)."""
    with Image.open(pictures.SAMPLING_POINTS) as picture:
        committed = np.asarray(picture.convert("RGB"), float)
    drawn = pictures.sampling_points()
    assert committed.shape == drawn.shape and np.abs(committed - drawn).mean() < 8
    orange = np.abs(drawn.astype(int) - (0xE6, 0x9F, 0x00)).max(axis=2) < 10
    assert np.count_nonzero(orange) > 4000 and np.abs(committed[orange] - (0xE6, 0x9F, 0x00)).max() < 30
    assert pictures.SAMPLING_POINTS.stat().st_size < 200_000


def test_sampling_points_far_outside(figures):
    offset, mask = np.full((4, 4, 18), -50.0), np.ones((4, 4, 9))
    draw.draw_sampling_points(np.zeros((16, 16, 3), np.uint8), offset, mask, (0, 0))
    near = figures[0].axes[1]
    assert near.get_xlim()[0] < 4 * -51 and near.get_xlim()[1] > 4 and near.get_ylim()[1] < 4 * -51


@pytest.mark.parametrize(
    ("channels", "cell", "message"),
    [
        ((18, 9), (4, 0), r"there is no cell \(4, 0\): the map has 4 x 3"),
        ((18, 9), (0, -1), r"there is no cell \(0, -1\)"),
        ((9, 9), (0, 0), r"offset \(3, 4, 9\) and mask \(3, 4, 9\) do not fit"),
        ((16, 8), (0, 0), r"expected \(h, w, 2\*K\*K\) and \(h, w, K\*K\)"),
    ],
)
def test_sampling_points_that_do_not_fit(channels, cell, message):
    offset, mask = (np.zeros((3, 4, count)) for count in channels)
    with pytest.raises(InputError, match=message):
        draw.draw_sampling_points(np.zeros((12, 16, 3), np.uint8), offset, mask, cell)


def test_curves(figures):
    rows = [
        {"epoch": "1", "loss": "3.5", "heatmap": 3.0, "size": 0.0, "offset": 0.5, "ap": "", "learning_rate": 0.001},
        {
            "epoch": 2,
            "loss": 1.5,
            "heatmap": 1.0,
            "size": 0.0,
            "offset": 0.4,
            "ap": float("nan"),
            "learning_rate": 0.001,
        },
        {"epoch": 3, "loss": 1.0, "heatmap": 0.5, "size": 0.0, "ap": -1, "ap50": 0.7, "learning_rate": 1e-4},
        {"epoch": 4, "loss": 0.9, "heatmap": 0.4, "size": 0.0, "ap": 0.6, "ap50": 0.8, "learning_rate": 1e-4},
    ]
    drawn = draw.draw_curves(rows)
    assert drawn.shape[2] == 3
    losses, ap, rate = figures[0].axes
    shown = {line.get_label(): line.get_xydata().tolist() for axes in (losses, ap, rate) for line in axes.lines}
    assert shown["offset  0.4"] == [[1, 0.5], [2, 0.4]]
    assert shown["ap  0.6"] == [[4, 0.6]] and shown["ap50  0.8"] == [[3, 0.7], [4, 0.8]]
    assert len(shown["learning_rate  0.0001"]) == 4
    assert not any(label.startswith("size") for label in shown)  # a logarithm has no zero
    draw.draw_curves(rows[:1])
    draw.draw_curves([])


@pytest.mark.parametrize("classes", [1, 5, 40])
def test_precision_recall(figures, classes):
    rng = np.random.default_rng(0)
    truth, found = [], []
    for _ in range(20):
        boxes, labels, scores = crowd(rng, 12, 200, 200)
        labels %= classes
        none = np.zeros(12, bool)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        truth.append(Objects(boxes=boxes, labels=labels, crowd=none, difficult=none, area=area))
        found.append(Detections(boxes + rng.normal(0, 6, boxes.shape), scores, labels, ()))
    names = [f"class {c} $\\frac{{$" for c in range(classes + 1)]
    result = average_precision(truth, found, classes + 1)  # the last class has no objects
    assert draw.draw_precision_recall(result, names).shape == (640, 940, 3)
    named = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert len(figures[0].axes[0].lines) == classes + 1
    assert named[0] == f"mean  {result.ap50:.3f}" and len(named) == 1 + min(classes, 10)
    assert f"class {classes}" not in " ".join(named)


class Objects:
    def __init__(self, **arrays):
        self.__dict__.update(arrays)


def test_runs_over_each_other(figures):
    runs = {
        "a $\\frac{$": [{"epoch": 1, "loss": 2.0, "ap": float("nan")}, {"epoch": 2, "loss": 1.0, "ap": 0.5}],
        "b": [{"epoch": 1, "loss": 3.0, "ap": 0.25, "seconds": 7200.0}],
    }
    drawn = draw.draw_comparison(runs)
    assert drawn.ndim == 3 and drawn.dtype == np.uint8
    loss, by_epoch, by_hour = ([line.get_xydata().tolist() for line in axes.lines] for axes in figures[0].axes)
    assert loss == [[[1, 2], [2, 1]], [[1, 3]]] and by_epoch == [[[2, 0.5]], [[1, 0.25]]]
    assert by_hour == [[], [[2, 0.25]]]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == list(runs)


def test_precision_recall_of_nothing():
    none = np.zeros(0, bool)
    nothing = Objects(boxes=np.zeros((0, 4)), labels=np.zeros(0, int), crowd=none, difficult=none, area=np.zeros(0))
    result = average_precision([nothing], [Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), ())], 2)
    draw.draw_precision_recall(result, ["a", "b"])


def test_grid(figures):
    pictures = [np.full((height, width, 3), 100, np.uint8) for height, width in [(10, 20), (40, 20), (30, 30)]]
    titles = ["one", "two " * 60, ""]
    drawn = draw.draw_grid(pictures, titles, columns=2, width=400)
    assert drawn.shape[1] == 400
    one, two, three = (axes.get_window_extent() for axes in figures[0].axes)
    assert one.width == pytest.approx(2 * one.height, rel=0.02) and two.height == pytest.approx(2 * two.width, rel=0.02)
    assert one.y1 == two.y1 and three.y1 < min(one.y0, two.y0) and one.x0 == three.x0
    assert figures[0].axes[1].get_title("left").endswith("…")
    assert draw.draw_grid(pictures[:1]).shape[1] == 1600
    with pytest.raises(InputError, match="no pictures"):
        draw.draw_grid([])


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp"])
def test_pictures_are_written_whole(tmp_path, suffix):
    picture = np.full((20, 30, 3), 90, np.uint8)
    path = tmp_path / "new folder" / f"picture.{suffix}"
    draw.save_picture(picture, path)
    np.testing.assert_allclose(np.asarray(Image.open(path).convert("RGB")), picture, atol=2)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_pictures_that_cannot_be_written(tmp_path):
    picture = np.zeros((20, 30, 3), np.uint8)
    for name in ("picture.txt", "picture"):
        with pytest.raises(InputError, match=f"cannot write a picture as .*{name}: its name must end in .png, .jpg"):
            draw.save_picture(picture, tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write .*picture.png"):
        draw.save_picture(picture, tmp_path / "file" / "picture.png")


def test_no_label_of_the_curves_is_cut_off():
    """Losses between 0.2 and 4 label their axis between the powers of ten; AP was measured in the last epoch alone."""
    rows = [
        {"epoch": i, "loss": 4 / i, "size": 1 / i, "ap": 0.6 if i == 4 else "", "learning_rate": 1e-3 / i}
        for i in range(1, 5)
    ]
    assert (draw.draw_curves(rows)[:, :6] == 255).all()


@pytest.fixture
def displayed(monkeypatch):
    """What is displayed, as if IPython ran the code: (data, metadata) each."""
    plt.close(plt.figure())  # the first figure asks IPython for more than is put here
    shown = []
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = object
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = lambda data, metadata, raw: shown.append((data, metadata))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    return shown


def figure_of_a_line():
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    axes.plot([0, 1], color=draw.COLOURS[1])
    return figure


def test_show_in_a_notebook(displayed):
    figure = figure_of_a_line()
    draw.show(figure, alt="A line that rises.")
    ((data, metadata),) = displayed
    assert data["text/plain"] == "A line that rises." and metadata == {"image/png": {"alt": "A line that rises."}}
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB"), int)
    assert picture.shape == (300, 800, 3)
    assert np.count_nonzero(np.abs(picture - (0xD5, 0x5E, 0x00)).max(axis=2) < 10) > 500
    assert not plt.fignum_exists(figure.number)


def test_show_a_picture(displayed):
    picture = np.zeros((40, 50, 3), np.uint8)
    picture[:, 25:] = (0, 0x72, 0xB2)
    draw.show(picture, alt="Black and blue.")
    shown = Image.open(io.BytesIO(base64.b64decode(displayed[0][0]["image/png"])))
    np.testing.assert_array_equal(np.asarray(shown.convert("RGB")), picture)


def test_show_keeps_colours_that_few_pixels_have(displayed):
    rng = np.random.default_rng(0)
    picture = np.clip(rng.normal((150, 120, 160), 12, (200, 200, 3)), 0, 255).astype(np.uint8)
    picture[:10, :10], picture[:10, 10:20] = (255, 230, 30), (0, 34, 78)
    picture[100:] = 255 - rng.integers(0, 9, (100, 200, 3))  # nearly white
    picture[150:] = 255
    draw.show(picture, alt="A purple ground, and two small squares.")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(displayed[0][0]["image/png"]))).convert("RGB"))
    assert np.abs(shown.astype(int) - picture).max() <= 24
    assert (shown[150:] == 255).all()


def test_show_in_a_plain_script(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    figure = figure_of_a_line()
    draw.show(figure, alt="A line that rises.")
    assert not plt.fignum_exists(figure.number) and "IPython" not in sys.modules
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_show_needs_alt(alt):
    with pytest.raises(InputError, match="a picture needs alt"):
        draw.show(np.zeros((4, 4, 3), np.uint8), alt=alt)


def test_show_notices_a_figure_that_cannot_be_drawn():
    figure = figure_of_a_line()
    figure.axes[0].set_title("$\\frac{$")
    with pytest.raises(ValueError, match="frac"):
        draw.show(figure, alt="A title that is no formula.")
    plt.close(figure)
