"""The course: a tutorial is read, made into the reader's copy, run cell by cell, and its exercises are judged.

A tutorial is a script in jupytext's percent form, `tutorials/NN_name.py`. An exercise is a cell tagged "exercise" that
defines one function or class, solved, with a line before and after what the reader is to write:

    ### BEGIN SOLUTION hint: which of the two roots is the smaller radius?
    ...
    ### END SOLUTION

The reader's copy raises NotImplementedError with the hint there. The next code cell, tagged "check", judges the answer
by assertions that name what is wrong.
"""

from __future__ import annotations

import ast
import hashlib
import json
import linecache
import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InputError

if TYPE_CHECKING:
    from nbformat import NotebookNode

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"  # in a clone; an installed wheel has none
INSTALL = 'pip install -e ".[notebooks]"'

_REGION = re.compile(
    r"^(?P<indent>[ \t]*)### BEGIN SOLUTION hint: (?P<hint>\S.*)\n(?P<solution>(?:.*\n)+?)(?P=indent)### END SOLUTION$",
    re.MULTILINE,
)


# ---- tutorials -------------------------------------------------------------------------------------------------------


def find_tutorials(folder: str | os.PathLike | None = None) -> list[Path]:
    """Return the tutorials' scripts in order; folder: where they are, by default in this clone.

    Raises InputError where there are none, as in an installed wheel.
    """
    folder = TUTORIALS if folder is None else Path(folder)
    found = sorted(folder.glob("[0-9][0-9]_*.py"))
    if not found:
        raise InputError(
            f"there are no tutorials in {folder}: an installed package does not hold them. "
            f"Clone the project, and in its folder: {INSTALL}"
        )
    return found


def read(path: str | os.PathLike) -> NotebookNode:
    """Return a tutorial's script as a notebook, nbformat 4.5, whose cells have ids that outlive changes of other cells.

    Raises InputError where jupytext is not installed, and when a marker of an exercise is malformed.
    """
    try:
        import jupytext
    except ImportError as error:
        raise InputError(f"reading the tutorials needs jupytext: {INSTALL}") from error
    notebook = jupytext.read(path)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    seen = Counter()
    for cell in notebook.cells:
        if _has_tag(cell, "exercise"):
            identity = f"exercise-{Exercise.of(cell.source).name}"
        else:
            identity = f"cell-{hashlib.sha256(cell.source.encode()).hexdigest()[:12]}"
        seen[identity] += 1
        cell.id = identity if seen[identity] == 1 else f"{identity}-{seen[identity]}"
    return notebook


class Opening(NamedTuple):
    """What a tutorial's first cell says; seconds: how long it runs."""

    title: str
    goal: str
    needs: str
    minutes: str
    seconds: int
    equations: tuple[str, ...]
    expected: str


LABELS = ("Goal", "You need", "Minutes", "Equations", "What you should see")


def opening(notebook: NotebookNode) -> Opening:
    """Read a tutorial's first cell: its H1, then a list of exactly the LABELS, in bold and in this order.

    Raises InputError when it has another form.
    """
    first = notebook.cells[0]
    title = re.match(r"# (\d\d · .+)\n", first.source)
    if first.cell_type != "markdown" or title is None:
        raise InputError(f"a tutorial begins with a markdown cell '# NN · Title', not with {first.source[:40]!r}")
    items = re.findall(r"^[-*] \*\*(.+?)\*\*:?\s+(.+(?:\n[ \t]+\S.*)*)", first.source, re.MULTILINE)
    if tuple(label for label, _ in items) != LABELS:
        raise InputError(f"{title[1]}: its list has {[label for label, _ in items]}, expected {list(LABELS)}")
    goal, needs, minutes, equations, expected = (" ".join(text.split()) for _, text in items)
    seconds = re.search(r"runs in about (\d+) s\b", minutes)
    if seconds is None:
        raise InputError(f"{title[1]}: **Minutes** is {minutes!r}, expected '... / runs in about N s'")
    none = re.match("none of E1 to E10", equations)
    tags = () if none else tuple(re.findall(r"\bE(?:10|[1-9])\b", equations))
    return Opening(title[1], goal, needs, minutes, int(seconds[1]), tags, expected)


def _has_tag(cell: Any, tag: str) -> bool:
    return cell.cell_type == "code" and tag in cell.metadata.get("tags", ())


@dataclass(frozen=True)
class Exercise:
    """A cell that the reader is to complete: its source is before, solution, after; the solution is indented."""

    name: str
    hint: str
    before: str
    indent: str
    solution: str
    after: str

    @classmethod
    def of(cls, source: str) -> Exercise:
        """Take an exercise's cell apart; raises InputError when it is not one function or class with one solution."""
        tree = ast.parse(source)
        if len(tree.body) != 1 or not isinstance(tree.body[0], (ast.FunctionDef, ast.ClassDef)):
            raise InputError(f"an exercise is a cell of one function or class, but this has something else:\n{source}")
        name, regions = tree.body[0].name, list(_REGION.finditer(source))
        if len(regions) != 1 or source.count("### BEGIN") != 1 or source.count("### END") != 1:
            raise InputError(
                f"the exercise {name} needs the lines '### BEGIN SOLUTION hint: ...' and, equally indented, "
                "'### END SOLUTION' once each, with the solution between them"
            )
        (region,) = regions
        before, after = source[: region.start()], source[region.end() :]
        return cls(name, region["hint"], before, region["indent"], region["solution"], after)

    def answered(self, answer: str) -> str:
        """Return the cell with another answer, given without indentation."""
        return self.before + textwrap.indent(textwrap.dedent(answer).strip("\n"), self.indent) + self.after

    def unsolved(self) -> str:
        """Return the cell as the reader gets it."""
        return self.answered(f"raise NotImplementedError({json.dumps(self.hint, ensure_ascii=False)})")


def exercises(notebook: NotebookNode) -> Iterator[tuple[Exercise, str]]:
    """Yield each exercise with the source of the cell that checks it."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, check in zip(code, [*code[1:], None], strict=True):
        if _has_tag(cell, "exercise"):
            exercise = Exercise.of(cell.source)
            if check is None or not _has_tag(check, "check"):
                raise InputError(f'the code cell after the exercise {exercise.name} is not tagged "check"')
            yield exercise, check.source


# ---- running cells ---------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What a check says of an answer; message: the hint, or what is wrong, or ""."""

    status: str  # "solved"; "not yet": it stops with its hint; "wrong": the check refuses it; "stopped": by an error
    message: str


def run_cell(source: str, namespace: dict[str, Any], name: str) -> None:
    """Run a cell in a namespace; tracebacks and `inspect` find its lines under the name."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), namespace)


def judge(answer: str, check: str, namespace: dict[str, Any], name: str) -> Verdict:
    """Run an exercise's cell, as somebody answered it, and its check, and leave the namespace as it was."""
    with _restored(namespace):
        try:
            run_cell(answer, namespace, f"<{name}>")
            run_cell(check, namespace, f"<check of {name}>")
        except NotImplementedError as error:
            return Verdict("not yet", str(error))
        except AssertionError as error:
            return Verdict("wrong", str(error))
        except Exception as error:  # a reader's answer may raise anything
            return Verdict("stopped", f"{type(error).__name__}: {error}{_where(error, name)}")
    return Verdict("solved", "")


@contextmanager
def _restored(namespace: dict[str, Any]) -> Iterator[None]:
    """Undo what the block binds; the same dict, as the functions of earlier cells look their globals up in it."""
    before = dict(namespace)
    try:
        yield
    finally:
        namespace.clear()
        namespace.update(before)


def _where(error: Exception, name: str) -> str:
    """Name the last line of the answer that was running."""
    if isinstance(error, SyntaxError):
        return ""  # its own message has the line
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == f"<{name}>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return "" if line is None else f" (line {line} of the cell)"
