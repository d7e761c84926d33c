"""The course's machinery, on a small tutorial made here; the real ones are in tests/tutorials."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap

import pytest
from tiny_tutorial import CHECK, EXERCISE, TUTORIAL

from minicenternet import course
from minicenternet.errors import InputError

nbformat = pytest.importorskip("nbformat", reason="tutorials are read by jupytext, which brings nbformat")


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "07_halves.py"
    path.write_text(TUTORIAL, encoding="utf-8")
    return path


def test_tutorials_are_found_in_order(tmp_path):
    for name in ("10_b.py", "02_a.py", "build.py", "10_b.ipynb"):
        (tmp_path / name).touch()
    assert [path.name for path in course.find_tutorials(tmp_path)] == ["02_a.py", "10_b.py"]


def test_no_tutorials(tmp_path):
    with pytest.raises(InputError, match=r"no tutorials in .*: an installed package .* pip install -e"):
        course.find_tutorials(tmp_path)


def test_a_script_becomes_a_notebook(script):
    notebook = course.read(script)
    nbformat.validate(notebook)
    kinds = ["markdown", "code", "code", "markdown", "code", "code"]
    assert [cell.cell_type for cell in notebook.cells] == kinds
    assert notebook.cells[2].id == "exercise-half" and notebook.cells[2].source == EXERCISE
    assert notebook.metadata.kernelspec.name == "python3"


def test_cells_keep_their_ids_when_another_is_put_before_them(script):
    before = [cell.id for cell in course.read(script).cells]
    script.write_text(TUTORIAL.replace("# %%\nimport math", "# %%\nnew = 1\n\n# %%\nimport math"), encoding="utf-8")
    after = [cell.id for cell in course.read(script).cells]
    assert after[:1] + after[2:] == before and len(set(after)) == len(after)


def test_equal_cells_have_ids_of_their_own(script):
    script.write_text(TUTORIAL + "\n# %%\nprint()\n\n# %%\nprint()\n", encoding="utf-8")
    assert len({cell.id for cell in course.read(script).cells}) == 8


def test_opening(script):
    assert course.opening(course.read(script)) == (
        "07 · Halves", "To halve numbers.", "06.", "40 to read and work / runs in about 12 s.", 12, ("E1", "E10"), "2."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# # 07 · Halves", "# ## 07 · Halves", "begins with a markdown cell '# NN · Title'"),
        ("# # 07 · Halves", "# # Halves", "begins with a markdown cell"),
        ("**You need**", "**Needs**", r"07 · Halves: its list has \['Goal', 'Needs'"),
        ("# - **Goal** To halve\n#   numbers.\n", "", r"its list has \['You need'"),
        ("12 s", "12 seconds", "expected 'M to read and work / runs in about N s'"),
        ("40 to read and work /", "About 40 /", "expected 'M to read"),
    ],
)
def test_an_opening_of_another_form_is_refused(script, old, new, message):
    assert old in TUTORIAL
    script.write_text(TUTORIAL.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        course.opening(course.read(script))


def test_no_equations(script):
    script.write_text(TUTORIAL.replace("E1, E10.", "none of E1 to E10."), encoding="utf-8")
    assert course.opening(course.read(script)).equations == ()


def test_an_exercise_with_answers():
    exercise = course.Exercise.of(EXERCISE)
    assert (exercise.name, exercise.hint) == ("half", 'divide by "scale"; \\frac')
    assert textwrap.dedent(exercise.solution) == "if scale:\n    y = x / scale\nreturn y\n"
    assert exercise.answered("if x:\n    return 3\n").endswith("    scale = 2\n    if x:\n        return 3")
    namespace = {}
    exec(exercise.unsolved(), namespace)
    with pytest.raises(NotImplementedError) as hint:
        namespace["half"](1)
    assert str(hint.value) == exercise.hint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (EXERCISE + "\nx = 1", "a cell of one function or class"),
        ("x = 1", "a cell of one function or class"),
        (EXERCISE.replace(" hint: ", " "), "the exercise half needs the lines"),
        (EXERCISE.replace("### END SOLUTION", "### END"), "needs the lines"),
        (EXERCISE.replace("    ### END SOLUTION", "### END SOLUTION"), "equally indented"),
        (EXERCISE + "\n    ### BEGIN SOLUTION hint: two\n    pass\n    ### END SOLUTION", "once each"),
        (EXERCISE.replace("    ### BEGIN", "    #### BEGIN"), "needs the lines"),
    ],
)
def test_malformed_exercises_are_refused(source, message):
    with pytest.raises(InputError, match=message):
        course.Exercise.of(source)


def test_an_exercise_needs_its_check(script):
    assert [(exercise.name, check) for exercise, check in course.exercises(course.read(script))] == [("half", CHECK)]
    script.write_text(TUTORIAL.replace('# %% tags=["check"]', "# %%"), encoding="utf-8")
    with pytest.raises(InputError, match='after the exercise half is not tagged "check"'):
        list(course.exercises(course.read(script)))


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("return x / 2", ("solved", "")),
        ("return 2 * x", ("wrong", "half of 4 is 2, not 8")),
        ("pass", ("wrong", "return the half")),
        ("raise NotImplementedError('a hint')", ("not yet", "a hint")),
        ("y = 1\nreturn z", ("stopped", "NameError: name 'z' is not defined (line 5 of the cell)")),
        ("return x.size", ("stopped", "AttributeError: 'int' object has no attribute 'size' (line 4 of the cell)")),
    ],
)
def test_verdicts(answer, verdict):
    namespace = {"half": None}
    exercise = course.Exercise.of(EXERCISE)
    assert course.judge(exercise.answered(answer), CHECK, namespace, "half") == verdict
    assert {name for name in namespace if name != "__builtins__"} == {"half"} and namespace["half"] is None


def test_an_answer_that_is_no_python():
    verdict = course.judge("def half(x:", CHECK, {}, "half")
    assert verdict.status == "stopped" and verdict.message.startswith("SyntaxError: ")


def test_functions_of_earlier_cells_see_the_answer_that_is_judged():
    namespace = {}
    course.run_cell("def half(x):\n    return x / 2\n\ndef quarter(x):\n    return half(half(x))", namespace, "<first>")
    check = "assert quarter(4) == 1, 'a quarter'"
    assert course.judge("def half(x):\n    return x", check, namespace, "half").status == "wrong"
    assert namespace["quarter"](4) == 1


def test_the_source_of_a_cell_is_found():
    namespace = {}
    course.run_cell(EXERCISE, namespace, "<cell 3>")
    assert inspect.getsource(namespace["half"]).startswith("def half(x):")


# ---- the reader's copies ---------------------------------------------------------------------------------------------


@pytest.fixture
def copies(script, tmp_path):
    """A folder with the reader's copy of the tutorial, and the copy."""
    folder = tmp_path / "course"
    assert list(course.hand_out(folder, script.parent)) == [f"{'07_halves.ipynb':<32}new"]
    return folder, folder / "07_halves.ipynb"


def edit(path, name, source):
    """Write another source into the cell of an exercise."""
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if cell.id == f"exercise-{name}"]
    cell.source = source
    nbformat.write(notebook, path)


def test_the_readers_copy(copies):
    notebook = nbformat.read(copies[1], as_version=4)
    nbformat.validate(notebook)
    sources = [cell.source for cell in notebook.cells]
    assert sources[3] == course.Exercise.of(EXERCISE).unsolved() and sources[1].startswith("from minicenternet.course")
    assert "x / scale" not in copies[1].read_text()


def test_hints_come_without_a_traceback(copies):
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(copies[1], as_version=4)
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3", allow_errors=True).execute()
    (check,) = [cell for cell in notebook.cells if "check" in cell.metadata.get("tags", ())]
    (output,) = check.outputs
    assert (output.output_type, output.text) == ("stream", 'not yet: divide by "scale"; \\frac\n')


def test_an_edited_copy_is_never_written_over(script, copies):
    folder, copy = copies
    assert list(course.hand_out(folder, script.parent)) == [f"{copy.name:<32}there"]
    script.write_text(TUTORIAL.replace("# Check it.", "# Check it now."), encoding="utf-8")
    assert list(course.hand_out(folder, script.parent)) == [f"{copy.name:<32}brought up to date"]
    assert "Check it now." in copy.read_text()
    edit(copy, "half", "def half(x):\n    return 7")
    mine = copy.read_bytes()
    script.write_text(TUTORIAL.replace("# Check it.", "# Check it again."), encoding="utf-8")
    assert list(course.hand_out(folder, script.parent)) == [f"{copy.name:<32}yours, left as it is"]
    assert copy.read_bytes() == mine


def test_what_a_copy_put_out_is_no_edit(script, copies):
    folder, copy = copies
    notebook = nbformat.read(copy, as_version=4)
    notebook.cells[1].execution_count = 5
    nbformat.write(notebook, copy)
    assert list(course.hand_out(folder, script.parent)) == [f"{copy.name:<32}there"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"nbformat": 4}'])
def test_a_damaged_copy_is_left_alone(script, copies, content):
    folder, copy = copies
    copy.write_text(content)
    for use in (course.hand_out, course.check):
        with pytest.raises(InputError, match="07_halves.ipynb is no notebook .*move it away"):
            list(use(folder, script.parent))
    assert copy.read_text() == content


# ---- how far the reader is -------------------------------------------------------------------------------------------


def judged(script, copy) -> dict[str, tuple[str, str]]:
    return dict(course.judge_copy(course.read(script), course.read_copy(copy)))


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("def half(x):\n    return 0.5 * x", ("solved", "")),
        ("def half(x):\n    return x", ("wrong", "half of 4 is 2, not 4")),
        (course.Exercise.of(EXERCISE).unsolved(), ("not yet", 'divide by "scale"; \\frac')),
        ("helper = math.floor\ndef half(x):\n    return helper(x / 2)", ("solved", "")),
    ],
)
def test_the_readers_answer_is_judged(script, copies, answer, verdict):
    edit(copies[1], "half", answer)
    assert judged(script, copies[1]) == {"half": verdict}


def test_later_exercises_run_with_the_solution(script, copies):
    second = EXERCISE.replace("half(x)", "quarter_of(x)").replace("y = x / scale", "y = half(half(x))")
    check = 'assert quarter_of(4) == 1, "a quarter"'
    script.write_text(f'{TUTORIAL}\n# %% tags=["exercise"]\n{second}\n\n\n# %% tags=["check"]\n{check}\n')
    list(course.hand_out(copies[0], script.parent))
    edit(copies[1], "half", "def half(x):\n    return x")
    edit(copies[1], "quarter_of", "def quarter_of(x):\n    return half(half(x))")
    assert judged(script, copies[1]) == {"half": ("wrong", "half of 4 is 2, not 4"), "quarter_of": ("solved", "")}


def test_cells_that_the_reader_added_are_run(script, copies):
    edit(copies[1], "half", "def half(x):\n    return by_two(x)")
    notebook = nbformat.read(copies[1], as_version=4)
    for source in ("%timeit x", "def by_two(x):\n    return x / 2", "1 / 0"):
        notebook.cells.insert(3, nbformat.v4.new_code_cell(source))
    nbformat.write(notebook, copies[1])
    assert judged(script, copies[1]) == {"half": ("solved", "")}


def test_the_check_is_the_tutorials_own(script, copies):
    notebook = nbformat.read(copies[1], as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "check" not in cell.metadata.get("tags", ())]
    nbformat.write(notebook, copies[1])
    edit(copies[1], "half", "def half(x):\n    return x")
    assert judged(script, copies[1])["half"].status == "wrong"


def test_an_exercise_whose_cell_is_gone(script, copies):
    notebook = nbformat.read(copies[1], as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.id != "exercise-half"]
    nbformat.write(notebook, copies[1])
    assert judged(script, copies[1]) == {"half": ("not yet", "its cell is no longer in your copy")}


def test_check_runs_each_copy_in_a_process_in_fast_mode(script, copies):
    edit(copies[1], "half", 'import os\n\ndef half(x):\n    return x / 2 if os.environ["MINICENTERNET_FAST"] else 0')
    (progress,) = course.check(copies[0], script.parent)
    assert progress == ("07_halves", {"half": ("solved", "")}, "") and progress.solved == 1
    assert str(progress) == f"{'07_halves':<32}1 of 1 solved"


@pytest.mark.parametrize(
    ("answer", "fault"),
    [("while True:\n        pass", "stopped after 6 s: is there a loop"), ("raise SystemExit('bye')", "not run: bye")],
)
def test_answers_that_do_not_end(script, copies, answer, fault):
    edit(copies[1], "half", f"def half(x):\n    {answer}")
    (progress,) = course.check(copies[0], script.parent, seconds=6)
    assert progress.verdicts == {"half": ("not yet", "not reached")} and fault in progress.fault
    assert fault in str(progress)


def test_progress_in_words():
    verdicts = {
        "half": course.Verdict("solved", ""),
        "third": course.Verdict("wrong", "a third of 3\n  is 1"),
        "fourth": course.Verdict("stopped", "NameError: x"),
        "fifth": course.Verdict("not yet", "divide"),
    }
    assert str(course.Progress("07_halves", verdicts, "the end")).splitlines() == [
        f"{'07_halves':<32}1 of 4 solved",
        f"    {'third':<28}wrong: a third of 3 is 1",
        f"    {'fourth':<28}wrong: NameError: x",
        f"    {'fifth':<28}not yet: divide",
        "    the end",
    ]


def test_nothing_to_check(script, tmp_path):
    with pytest.raises(InputError, match="no notebooks of the course in .*; minicenternet tutorial .* makes them"):
        list(course.check(tmp_path / "empty", script.parent))


def test_jupyter_may_be_missing(monkeypatch):
    monkeypatch.setattr(course.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'Jupyter is not installed: pip install -e "\.\[notebooks\]"'):
        course.open_jupyter("course")


def test_ctrl_c_is_left_to_jupyter(monkeypatch):
    class Jupyter(subprocess.Popen):
        interrupted = False

        def __init__(self, command):
            assert command == [sys.executable, "-m", "jupyterlab", "course"]
            super().__init__([sys.executable, "-c", "raise SystemExit(3)"])

        def wait(self, timeout=None):
            if not self.interrupted:
                self.interrupted = True
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(course.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(course.subprocess, "Popen", Jupyter)
    assert course.open_jupyter("course") == 3
