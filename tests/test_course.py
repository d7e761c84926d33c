"""The course's machinery, on a small tutorial made here; the real ones are in tests/tutorials."""

from __future__ import annotations

import inspect
import textwrap

import nbformat
import pytest

from minicenternet import course
from minicenternet.errors import InputError

EXERCISE = '''
def half(x):
    """Half of x."""
    scale = 2
    ### BEGIN SOLUTION hint: divide by "scale"; \\frac
    if scale:
        y = x / scale
    return y
    ### END SOLUTION
'''.strip("\n")
CHECK = """
assert half(4) is not None, "return the half"
assert half(4) == 2, f"half of 4 is 2, not {half(4)}"
""".strip()
TUTORIAL = f"""
# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Halves
#
# - **Goal** To halve
#   numbers.
# - **You need** 06.
# - **Minutes** 40 to read and work / runs in about 12 s.
# - **Equations** E1, E10.
# - **What you should see** 2.

# %%
import math

# %% tags=["exercise"]
{EXERCISE}


# %% [markdown]
# Check it.

# %% tags=["check"]
{CHECK}

# %%
quarter = half(half(math.floor(4.5)))
""".lstrip()


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
        ("12 s", "12 seconds", "expected '... / runs in about N s'"),
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
