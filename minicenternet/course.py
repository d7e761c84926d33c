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
import importlib.util
import json
import linecache
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InputError
from .files import replacing

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
    seconds = re.match(r"\d+ to read and work.*runs in about (\d+) s\b", minutes)
    if seconds is None:
        raise InputError(f"{title[1]}: **Minutes** is {minutes!r}, expected 'M to read and work / runs in about N s'")
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


# ---- the reader's copies ---------------------------------------------------------------------------------------------


def readers_copy(notebook: NotebookNode) -> NotebookNode:
    """Return a tutorial as its reader gets it: exercises unsolved, hints instead of tracebacks."""
    import nbformat

    copy = nbformat.from_dict(notebook)
    for cell in copy.cells:
        if _has_tag(cell, "exercise"):
            cell.source = Exercise.of(cell.source).unsolved()
    first = next(i for i, cell in enumerate(copy.cells) if cell.cell_type == "code")
    copy.cells.insert(first, nbformat.v4.new_code_cell(_SHOW_HINTS, id="show-hints"))
    copy.metadata["minicenternet"] = {"digest": _digest(copy)}
    return copy


_SHOW_HINTS = """from minicenternet.course import show_hints

show_hints()  # an exercise that is not solved yet says its hint, without a traceback"""


def show_hints() -> None:
    """Have the notebook that calls this print the message alone where a cell raises NotImplementedError."""
    from IPython import get_ipython

    def say(_, kind, error, traceback, tb_offset=None):
        print(f"not yet: {error}")

    get_ipython().set_custom_exc((NotImplementedError,), say)


def _digest(notebook: NotebookNode) -> str:
    """Of what the reader may have edited: the cells, not what they put out."""
    return hashlib.sha256("\0".join(cell.source for cell in notebook.cells).encode()).hexdigest()


def hand_out(folder: str | os.PathLike, tutorials: str | os.PathLike | None = None) -> Iterator[str]:
    """Put the reader's copies into a folder; yields a line on each.  A copy that was edited is never written over.

    tutorials: the folder of the scripts, by default this clone's.
    Raises InputError as find_tutorials and read, and when a copy cannot be read or written.
    """
    for script in find_tutorials(tutorials):
        path = Path(folder) / f"{script.stem}.ipynb"
        copy = readers_copy(read(script))
        there = read_copy(path) if path.exists() else None
        if there is not None and _digest(there) != there.metadata.get("minicenternet", {}).get("digest"):
            yield f"{path.name:<32}yours, left as it is"
        elif there is not None and _digest(there) == _digest(copy):
            yield f"{path.name:<32}there"
        else:
            import nbformat  # which came with jupytext

            with replacing(path) as temporary:
                nbformat.write(copy, temporary)
            yield f"{path.name:<32}{'new' if there is None else 'brought up to date'}"


def read_copy(path: Path) -> NotebookNode:
    """Return a notebook that its reader may have edited.  Raises InputError when it is damaged."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat has half a dozen kinds for what is no notebook
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is no notebook ({reason}); move it away, and a new one is made") from error


def open_jupyter(folder: str | os.PathLike) -> int:
    """Run Jupyter on a folder until it is closed and return its exit code.  Raises InputError where there is none."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise InputError(f"Jupyter is not installed: {INSTALL}. The notebooks are in {folder}, for other editors too")
    with subprocess.Popen([sys.executable, "-m", "jupyterlab", str(folder)]) as process:
        while True:
            with suppress(KeyboardInterrupt):  # Jupyter gets it as well, and asks whether to stop
                return process.wait()


# ---- how far the reader is -------------------------------------------------------------------------------------------


class Progress(NamedTuple):
    """How far a copy is; fault: why not all of it was run, or ""."""

    notebook: str
    verdicts: dict[str, Verdict]
    fault: str

    @property
    def solved(self) -> int:
        """How many exercises are solved."""
        return sum(verdict.status == "solved" for verdict in self.verdicts.values())

    def __str__(self) -> str:
        """A line on the notebook and, indented, one on each exercise that is not solved."""
        lines = [f"{self.notebook:<32}{self.solved} of {len(self.verdicts)} solved"]
        for name, (status, message) in self.verdicts.items():
            if status != "solved":
                said = " ".join(message.split())
                lines.append(f"    {name:<28}{'wrong' if status == 'stopped' else status}: {said}")
        return "\n".join(lines + ([f"    {self.fault}"] if self.fault else []))


def check(
    folder: str | os.PathLike, tutorials: str | os.PathLike | None = None, *, seconds: float = 180
) -> Iterator[Progress]:
    """Judge the answers in each copy in a folder, one after another, each in a process of its own with a time limit.

    Each exercise is judged by itself, by the tutorial's own check: later cells run with the solution, in FAST mode.
    Raises InputError as find_tutorials and read, where there are no copies, and for a damaged one.
    """
    copies = {script: Path(folder).resolve() / f"{script.stem}.ipynb" for script in find_tutorials(tutorials)}
    copies = {script: copy for script, copy in copies.items() if copy.exists()}
    if not copies:
        raise InputError(
            f"there are no notebooks of the course in {folder}; minicenternet tutorial {folder} makes them"
        )
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"MINICENTERNET_FAST": "1", "MPLBACKEND": "agg", "PYTHONPATH": path}
    run = "import sys; from minicenternet.course import write_verdicts; write_verdicts(*sys.argv[1:])"
    for script, copy in copies.items():
        names = [exercise.name for exercise, _ in exercises(read(script))]
        read_copy(copy)  # a damaged one is refused here
        with tempfile.TemporaryDirectory() as temporary:
            results, fault = Path(temporary) / "verdicts", ""
            command = [sys.executable, "-c", run, str(script.resolve()), str(copy), str(results)]
            try:
                ended = subprocess.run(command, env=environment, cwd=folder, timeout=seconds, **_UNSEEN)
                if ended.returncode:
                    last = (ended.stderr.decode(errors="replace").strip().splitlines() or ["it ended by itself"])[-1]
                    fault = f"the rest was not run: {last}"
            except subprocess.TimeoutExpired:
                fault = f"stopped after {seconds:.0f} s: is there a loop without end in the next exercise?"
            lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
            verdicts = {name: Verdict(*verdict) for name, *verdict in map(json.loads, lines)}
        unseen = Verdict("not yet", "not reached")
        yield Progress(script.stem, {name: verdicts.get(name, unseen) for name in names}, fault)


_UNSEEN = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}


def write_verdicts(script: str, copy: str, results: str) -> None:
    """Judge the answers in a copy and write each verdict, a line of JSON, as soon as it is known."""
    with open(results, "w", encoding="utf-8") as file:
        for name, verdict in judge_copy(read(script), read_copy(Path(copy))):
            print(json.dumps([name, *verdict]), file=file, flush=True)


def judge_copy(notebook: NotebookNode, copy: NotebookNode) -> Iterator[tuple[str, Verdict]]:
    """Yield each exercise's name and verdict, for the answers in a copy and the cells that its reader added.

    All other cells are the tutorial's: what its reader changed in them does not count.
    """
    ids = {cell.id for cell in notebook.cells}
    answers = {cell.id: cell.source for cell in copy.cells}
    added: dict[str, list[str]] = {}  # before which cell of the tutorial the reader put which of their own
    waiting: list[str] = []
    for cell in copy.cells:
        if cell.id in ids:
            added[cell.id], waiting = waiting, []
        elif cell.cell_type == "code" and cell.id != "show-hints":
            waiting.append(cell.source)
    checks = {exercise.name: check for exercise, check in exercises(notebook)}
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(notebook.cells, start=1):
        for source in added.get(cell.id, ()):
            with suppress(Exception):  # the reader's own trials may fail
                run_cell(source, namespace, "<a cell of yours>")
        if _has_tag(cell, "exercise"):
            name = Exercise.of(cell.source).name
            if cell.id in answers:
                yield name, judge(answers[cell.id], checks[name], namespace, name)
            else:
                yield name, Verdict("not yet", "its cell is no longer in your copy")
        if cell.cell_type == "code":
            run_cell(cell.source, namespace, f"<cell {number}>")
