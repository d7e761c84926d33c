"""Every tutorial: its form, its pair, and one run of its cells in which each exercise is judged three ways.

FAST is set and the network is blocked. An exercise unsolved stops with its hint, a wrong answer planted in
`wrong/NN_name.py` is refused with a message, and the solution passes; the run goes on with the solution.

    WRONG = {"radius": {"the diameter, not the radius": "return 2 * r", ...}, ...}      at least three of each exercise

A tutorial that derives an equation compares it with the package's function: a cell after the derivation must fail when
that function is off by a hundred thousandth.
"""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import socket
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt

from minicenternet import backend, course, draw
from minicenternet.autograd import Tensor

nbformat = pytest.importorskip("nbformat", reason="tutorials are read by jupytext, which brings nbformat")

TUTORIALS = Path(__file__).resolve().parents[2] / "tutorials"
SCRIPTS = sorted(TUTORIALS.glob("[0-9][0-9]_*.py"))
SECTIONS = ["Break it", "Summary", "In the package"]  # the last of each

index = runpy.run_path(str(TUTORIALS / "index.py"), run_name="index")

every_tutorial = pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])


def planted(script: Path) -> dict[str, dict[str, str]]:
    return runpy.run_path(str(Path(__file__).parent / "wrong" / script.name))["WRONG"]


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook: nbformat.NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


@pytest.fixture(scope="module")
def homes():
    """The module and the name of the function that holds each equation."""
    places = {tag: functions[0] for tag, _, functions, *_ in index["equations"]()}
    parts = {tag: place.partition(".py::") for tag, place in places.items()}
    return {tag: (importlib.import_module(file.replace("/", ".")), name) for tag, (file, _, name) in parts.items()}


class Off:
    """A function whose numbers are off by a hundred thousandth: what it returns or, returning nothing, fills in."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments, **options):
        result = self.function(*arguments, **options)
        if result is None:
            arguments[0][...] *= 1 + 1e-5
        return off(result)

    def __getattr__(self, name):  # the `raw` of an op
        return Off(getattr(self.function, name))


def off(value):
    if isinstance(value, Tensor):
        return value * (1 + 1e-5)  # on the tape
    if isinstance(value, (float, np.floating, np.ndarray)) and np.issubdtype(np.asarray(value).dtype, np.floating):
        return value * (1 + np.asarray(1e-5, np.asarray(value).dtype))
    if isinstance(value, tuple):
        return type(value)(*map(off, value)) if hasattr(value, "_fields") else tuple(map(off, value))
    return value


def compares(source: str, module, name: str, namespace: dict) -> bool:
    """Whether a cell refuses a function of the package that is off."""
    if "assert" not in source or not re.search(rf"\b({name}|{module.__name__.rpartition('.')[2]})\b", source):
        return False
    function = getattr(module, name)
    setattr(module, name, Off(function))
    imported = {key: Off(function) for key, value in namespace.items() if value is function}
    try:
        return course.judge("", source, {**namespace, **imported}, "comparison").status == "wrong"
    finally:
        setattr(module, name, function)


@pytest.fixture
def sealed(monkeypatch):
    """FAST, no network, and what a tutorial may leave behind put right again."""

    def refuse(*_, **__):
        raise AssertionError("a tutorial reaches for the network, which is blocked")

    connect = socket.socket.connect
    monkeypatch.setattr(
        socket.socket, "connect", lambda self, to: (connect if self.family == socket.AF_UNIX else refuse)(self, to)
    )
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("MINICENTERNET_FAST", "1")
    backend._kernel.cache_clear()  # a tutorial may put the stand-in in the place of CuPy, whose kernels are others
    with matplotlib.rc_context(), np.errstate():
        plt.switch_backend("agg")
        yield
    plt.close("all")
    backend._kernel.cache_clear()


@every_tutorial
def test_the_cells_run_and_exercises_are_judged_three_ways(script, sealed, homes, monkeypatch):
    notebook, wrong = course.read(script), planted(script)
    solved = {exercise.name: (exercise, check) for exercise, check in course.exercises(notebook)}
    assert set(wrong) == set(solved), "wrong answers are planted for each exercise, and for nothing else"
    assert all(len(answers) >= 3 for answers in wrong.values()), "at least three wrong answers to each exercise"
    shown = []
    show = draw.show
    monkeypatch.setattr(draw, "show", lambda figure, alt: shown.append(alt) or show(figure, alt))
    namespace, derived, compared = {"__name__": "__main__"}, set(), set()
    for number, cell in enumerate(code_cells(notebook), start=1):
        tags = cell.metadata.get("tags", ())
        compared |= {tag for tag in derived - compared if compares(cell.source, *homes[tag], namespace)}
        derived |= {tag.removeprefix("derives-") for tag in tags if tag.startswith("derives-")}
        if "exercise" in tags:
            exercise, check = solved[course.Exercise.of(cell.source).name]
            verdict = course.judge(exercise.unsolved(), check, namespace, exercise.name)
            assert verdict == ("not yet", exercise.hint), f"{exercise.name}, unsolved: {verdict}"
            for slip, answer in wrong[exercise.name].items():
                verdict = course.judge(exercise.answered(answer), check, namespace, exercise.name)
                assert verdict.status == "wrong" and verdict.message, f"{exercise.name}, {slip}: {verdict}"
        try:
            course.run_cell(cell.source, namespace, f"<{script.stem}, code cell {number}>")
        except SystemExit as stop:  # the tutorial needs what this machine has not, and says what
            pytest.skip(str(stop))
        assert not plt.get_fignums(), f"code cell {number} of {script.name} leaves a figure open: end it with show()"
    assert shown, "a tutorial shows pictures"
    assert compared == derived, f"no cell fails when the package's function of {derived - compared} is off by 1e-5"


@every_tutorial
def test_form(script):
    notebook = course.read(script)
    opening = course.opening(notebook)
    assert opening.title.startswith(script.stem[:2])
    assert not {tag for tag in opening.equations if not 1 <= int(tag[1:]) <= 10}
    text = prose(notebook)
    outside_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert len(re.findall(r"^# ", outside_code, re.MULTILINE)) == 1, "one H1"
    headings = [heading.strip() for heading in re.findall(r"^## (.+)$", outside_code, re.MULTILINE)]
    assert headings[-3:] == SECTIONS
    assert "<details>" in text.partition("## Break it")[2].partition("## Summary")[0], (
        "the cause is folded in <details>"
    )
    assert 3 <= len(list(course.exercises(notebook))) <= 5


@every_tutorial
def test_code(script):
    """Pictures have their alt text, the assertions of checks their messages; the script needs no notebook to run."""
    for cell in code_cells(course.read(script)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("show", "draw.show"):
                (alt,) = (keyword.value for keyword in node.keywords if keyword.arg == "alt")
                assert not isinstance(alt, ast.Constant) or len(alt.value.split()) >= 5, f"a longer alt: {alt.value}"
            if isinstance(node, ast.Assert) and "check" in cell.metadata.get("tags", ()):
                assert node.msg is not None, f"an assertion without a message: {ast.unparse(node)}"
    assert '"MINICENTERNET_FAST"' in script.read_text(encoding="utf-8"), "FAST cuts its steps"


@every_tutorial
def test_names_of_the_package_exist(script):
    """Backticked names such as `minicenternet.points.losses.focal_loss` become links to what they name."""
    text = prose(course.read(script))
    names = re.findall(r"`(minicenternet(?:\.\w+)+)(?:\(\))?`", text)
    assert re.search(r"`minicenternet\.", text.partition("## In the package")[2]), "where the package holds the same"
    for name in names:
        index["locate"](name)


@every_tutorial
def test_pair(script):
    """NN_name.ipynb is NN_name.py, executed, with all pictures.  To make it anew: python tutorials/build.py NN"""
    path, make = script.with_suffix(".ipynb"), f"make it: python tutorials/build.py {script.stem[:2]}"
    assert path.is_file(), f"{path.name} is missing; {make}"
    assert path.stat().st_size < 1_000_000
    pair = nbformat.read(path, as_version=4)
    nbformat.validate(pair)
    script_cells, pair_cells = (
        [(cell.id, cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]
        for notebook in (course.read(script), pair)
    )
    assert pair_cells == script_cells, f"{path.name} is not what {script.name} says; {make}"
    for number, cell in enumerate(code_cells(pair), start=1):
        assert cell.execution_count == number, f"code cell {number} was not run in its turn; {make}"
        assert not [output for output in cell.outputs if output.output_type == "error"]
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        shows = re.search(r"\bshow\(", cell.source) and "def " not in cell.source
        assert not shows or pictures, f"code cell {number} has lost its picture; {make}"
        assert all(picture.metadata["image/png"]["alt"] for picture in pictures)
