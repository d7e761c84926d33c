"""Pictures of ideas: what a test can see of them."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.patches import Circle, Rectangle
from PIL import Image

from minicenternet import draw
from minicenternet.draw import look
from minicenternet.errors import InputError


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, in order."""
    drawn = []
    finish = look.finish
    monkeypatch.setattr(look, "finish", lambda figure, path: drawn.append(figure) or finish(figure, path))
    return drawn


def inside(figure) -> None:
    """No text reaches out of the figure."""
    frame = figure.bbox
    for axes in figure.axes:
        texts = [*axes.texts, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for text in (text for text in texts if text.get_text()):
            box = text.get_window_extent()
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, text


NODES = {"x": "x\n2.0", "y": "y\n3.0", "a": "a = x * y\n6.0", "b": "b = x * x\n4.0", "L": "L = a + b\n10.0"}
EDGES = [("x", "a"), ("y", "a"), ("x", "b"), ("x", "b"), ("a", "L"), ("b", "L")]


def test_graph(figures, tmp_path):
    drawn = draw.draw_graph(NODES, EDGES, tmp_path / "graph.png")
    assert drawn.shape[1:] == (800, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "graph.png")), drawn)
    (axes,) = figures[0].axes
    boxes = {
        text.get_text(): box.get_window_extent()
        for text, box in zip(axes.texts[: len(NODES)], axes.patches, strict=False)
    }
    assert list(boxes) == list(NODES.values())
    for operand, result in EDGES:
        assert boxes[NODES[operand]].x1 < boxes[NODES[result]].x0
    assert not boxes[NODES["x"]].overlaps(boxes[NODES["y"]]) and not boxes[NODES["a"]].overlaps(boxes[NODES["b"]])
    for text in axes.texts[: len(NODES)]:
        box, letters = boxes[text.get_text()], text.get_window_extent()
        assert box.x0 <= letters.x0 and letters.x1 <= box.x1 and box.y0 <= letters.y0 and letters.y1 <= box.y1
    inside(figures[0])


def test_an_input_stands_beside_what_uses_it(figures):
    nodes = dict.fromkeys(("x", "a", "b", "w", "c"), "")
    nodes = {name: name for name in nodes}
    draw.draw_graph(nodes, [("x", "a"), ("a", "b"), ("b", "c"), ("w", "c")])
    place = {text.get_text(): text.get_position()[0] for text in figures[0].axes[0].texts[:5]}
    assert place["w"] == place["b"] > place["a"] > place["x"]


def test_graphs_that_are_none():
    with pytest.raises(InputError, match="names the node 'z', but there are only x, a"):
        draw.draw_graph({"x": "", "a": ""}, [("x", "a"), ("z", "a")])
    with pytest.raises(InputError, match="cycle"):
        draw.draw_graph({"x": "", "a": ""}, [("x", "a"), ("a", "x")])


def test_surface(figures):
    x, y = np.linspace(-2, 2, 41), np.linspace(0, 3, 31)
    z = (x[None] - 1) ** 2 + (y[:, None] - 2) ** 2
    drawn = draw.draw_surface(x, y, z, ("x (m)", "y (s)", "loss"), trail=np.array([[-1, 1], [0, 2]]))
    assert drawn.shape == (530, 800, 3)
    axes, bar = figures[0].axes
    trail, star = axes.lines
    np.testing.assert_allclose(star.get_xydata(), [[1, 2]])
    np.testing.assert_allclose(trail.get_xydata(), [[-1, 1], [0, 2]])
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("x (m)", "y (s)", "loss")
    inside(figures[0])


def test_surfaces_that_cannot_be_drawn():
    x, y = np.arange(3), np.arange(4)
    with pytest.raises(InputError, match=r"z has the shape \(3, 4\), expected \(len\(y\), len\(x\)\) = \(4, 3\)"):
        draw.draw_surface(x, y, np.zeros((3, 4)), ("x", "y", "z"))
    with pytest.raises(InputError, match="NaN or infinity"):
        draw.draw_surface(x, y, np.full((4, 3), np.inf), ("x", "y", "z"))


@pytest.mark.parametrize("shape", [(6, 9), (32, 32), (9, 6)])
def test_gaussians(figures, shape):
    heatmap = np.zeros(shape)
    heatmap[4, 2] = 1
    drawn = draw.draw_gaussians(heatmap, np.array([[2, 4]]), np.array([1.5]))
    assert drawn.shape[1] == 800
    axes = figures[0].axes[0]
    (circle,) = [patch for patch in axes.patches if isinstance(patch, Circle)]
    assert circle.center == (2, 4) and circle.radius == 1.5
    values = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(values) == (heatmap.size if shape[1] <= 20 else 0)
    assert not values or (values[2, 4] == "1" and values[4, 2] == ".00")
    x, y = axes.transData.transform((2.35, 4.35))  # clear of value and mark
    np.testing.assert_allclose(drawn[round(drawn.shape[0] - y), round(x)], 255 * np.array(look.HEAT(1.0))[:3], atol=2)
    inside(figures[0])


def test_peaks(figures):
    draw.draw_peaks(np.eye(5), np.array([[1, 1], [3, 3]]))
    axes = figures[0].axes[0]
    assert [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle)] == [(0.5, 0.5), (2.5, 2.5)]
    assert axes.get_title("left").startswith("2 peaks")
    draw.draw_peaks(np.eye(5), np.array([[1, 1]]))
    assert figures[1].axes[0].get_title("left").startswith("1 peak (")


@pytest.mark.parametrize("count", [1, 4, 13])
def test_filmstrip(figures, count):
    titles = [f"step {i}" for i in range(count)]
    drawn = draw.draw_filmstrip([np.full((8, 12), i / count) for i in range(count)], titles)
    assert drawn.shape[1] == 800
    *frames, _ = figures[0].axes
    assert [axes.get_title("left") for axes in frames] == titles
    for i, axes in enumerate(frames):
        x, y = np.array(axes.transAxes.transform((0.5, 0.5)))
        expected = 255 * np.array(look.HEAT(i / count))[:3]
        np.testing.assert_allclose(drawn[round(drawn.shape[0] - y), round(x)], expected, atol=2)
    inside(figures[0])


def test_filmstrip_needs_a_title_for_each_frame():
    with pytest.raises(InputError, match="0 frames, 0 titles"):
        draw.draw_filmstrip([], [])
    with pytest.raises(InputError, match="1 frames, 2 titles"):
        draw.draw_filmstrip([np.eye(2)], ["a", "b"])


@pytest.mark.parametrize(
    ("addresses", "segments", "used"),
    [(np.arange(16), 2, "100%"), (5 * np.arange(16), 10, "20%"), (np.zeros(8, int), 1, "12%"), ([7, 8], 2, "12%")],
)
def test_access_pattern(figures, addresses, segments, used):
    draw.draw_access_pattern(addresses)
    (axes,) = figures[0].axes
    note = axes.texts[-1].get_text()
    assert f"memory, {segments} segment" in note and f"{used} of them used" in note
    framed = [patch for patch in axes.patches if not patch.get_fill()]
    assert len(framed) == segments and len(axes.lines) == len(addresses)
    inside(figures[0])


@pytest.mark.parametrize("addresses", [[], [3, -1]])
def test_access_pattern_of_nothing(addresses):
    with pytest.raises(InputError, match="counted from 0, at least one"):
        draw.draw_access_pattern(addresses)
