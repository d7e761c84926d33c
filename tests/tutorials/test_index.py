"""The tables of tutorials/README.md and of the README are what the notebooks and the sources say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from minicenternet import course

pytest.importorskip("jupytext", reason="tutorials are read by jupytext")

ROOT = Path(__file__).resolve().parents[2]
index = runpy.run_path(str(ROOT / "tutorials" / "index.py"), run_name="index")


def test_the_tables_are_up_to_date():
    """To make them anew: python tutorials/index.py"""
    assert index["README"].read_text(encoding="utf-8") == index["readme"](), "python tutorials/index.py makes them anew"


@pytest.fixture(scope="module")
def equations():
    """The index: tag -> notebooks, functions, tests, kernels."""
    return {tag: places for tag, *places in index["equations"]()}


@pytest.mark.parametrize("tag", index["TAGS"])
def test_every_equation_has_one_notebook_one_home_and_a_test(equations, tag):
    notebooks, functions, tests, _ = equations[tag]
    assert len(notebooks) == 1, f"{tag} is derived in {notebooks or 'no notebook'}: tag one cell derives-{tag}"
    assert len(functions) == 1 and tests
    opening = course.opening(course.read(ROOT / "tutorials" / f"{notebooks[0]}.py"))
    assert tag in opening.equations, f"the first cell of {notebooks[0]} does not name {tag}"


def test_the_readme_names_the_same_notebook_and_function(equations):
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split(" | ")[0][2:]: line.split(" | ") for line in lines if re.match(r"\| E\d+ \|", line)}
    assert list(rows) == index["TAGS"]
    for tag, (notebooks, functions, tests, _) in equations.items():
        _, _, function, notebook, test = rows[tag]
        assert f"minicenternet.{function.strip('`')}" == index["_dotted"](functions[0])
        assert [notebook] == [stem[:2] for stem in notebooks], f"{tag} is derived in {notebooks}"
        assert any(name.startswith(f"{test.strip('`| ')}::") for name in tests)


def test_kernels_of_equations(equations):
    kernels = {tag: places[-1] for tag, places in equations.items()}
    assert kernels["E3"] == ["minicenternet/points/targets.cu"] and kernels["E4"] == ["minicenternet/points/losses.cu"]
    assert kernels["E9"] == ["minicenternet/points/decode.cu"] and kernels["E10"] == []


@pytest.mark.parametrize(
    ("name", "file", "line"),
    [
        ("minicenternet.points.losses.focal_loss", "points/losses.py", "def focal_loss("),
        ("minicenternet.nn.Conv2d", "nn/layers.py", "class Conv2d("),
        ("minicenternet.CenterNet.predict", "model.py", "    def predict("),
        ("minicenternet.draw.COLOURS", "draw/__init__.py", "from .look import COLOURS"),
        ("minicenternet.draw.look.COLOURS", "draw/look.py", "COLOURS = "),
        ("minicenternet.ops.conv2d", "ops/conv2d.py", '"""'),
        ("minicenternet.points.losses", "points/losses.py", '"""'),
    ],
)
def test_names_are_located(name, file, line):
    where, number = index["locate"](name)
    assert where == file
    assert (ROOT / "minicenternet" / file).read_text(encoding="utf-8").splitlines()[number - 1].startswith(line)


@pytest.mark.parametrize("name", ["minicenternet.points.losses.focal_los", "minicenternet.nothing.here"])
def test_names_of_nothing(name):
    with pytest.raises(LookupError, match=f"there is no {name}"):
        index["locate"](name)
