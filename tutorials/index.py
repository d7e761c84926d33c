"""The map of the course and the index of the equations, made from the notebooks and the sources.

python tutorials/index.py       writes both tables into tutorials/README.md
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from minicenternet import course  # noqa: E402
from minicenternet.files import replacing  # noqa: E402

PACKAGE = ROOT / "minicenternet"
README = HERE / "README.md"
TAGS = [f"E{number}" for number in range(1, 11)]
NAME = re.compile(r"(minicenternet(?:\.\w+)+)(?:\(\))?")  # what is in backticks


class Equation(NamedTuple):
    """Where an equation is: notebooks that derive it, functions and tests whose docstrings have its tag, kernels."""

    tag: str
    notebooks: list[str]
    functions: list[str]
    tests: list[str]
    kernels: list[str]


def equations() -> list[Equation]:
    """Return E1 to E10 as they are found in the sources.

    A notebook derives E4 in a cell with the tag "derives-E4"; a kernel has the tag in a comment, alone or in a range.
    """
    notebooks = {script.stem: course.read(script) for script in course.find_tutorials(HERE)}
    derived = [
        (tag.removeprefix("derives-"), stem)
        for stem, notebook in notebooks.items()
        for cell in notebook.cells
        for tag in cell.metadata.get("tags", ())
        if tag.startswith("derives-")
    ]
    functions, tests = (list(_tagged(ROOT / folder)) for folder in ("minicenternet", "tests"))
    kernels = [
        (tag, path.relative_to(ROOT).as_posix())
        for path in sorted(PACKAGE.rglob("*.cu"))
        for tag in sorted(_tags(path.read_text(encoding="utf-8")))
    ]
    found = [derived, functions, [(tag, name) for tag, name in tests if "::test_" in name], kernels]
    return [Equation(tag, *([name for other, name in places if other == tag] for places in found)) for tag in TAGS]


def _tags(text: str) -> set[str]:
    """The tags in a text; "E1 to E3" are three."""
    tags = set(re.findall(r"\bE\d+\b", text))
    for first, last in re.findall(r"\bE(\d+) to E(\d+)\b", text):
        tags |= {f"E{number}" for number in range(int(first), int(last) + 1)}
    return tags


def _tagged(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (tag, file::function) for each function whose docstring has a tag."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for tag in sorted(set(re.findall(r"\bE\d+\b", ast.get_docstring(node) or ""))):
                    yield tag, f"{path.relative_to(ROOT).as_posix()}::{node.name}"


def names_in_the_package(notebook) -> list[str]:
    """Return the dotted names under a tutorial's last heading, "In the package"."""
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.findall(rf"`{NAME.pattern}`", prose.partition("## In the package")[2])


def locate(name: str) -> tuple[str, int]:
    """Return where what a dotted name of the package names is defined: its file, within the package, and the line.

    Raises LookupError when there is no such thing.
    """
    module, inner = _import(name)
    found = module
    for part in inner:
        if not hasattr(found, part):
            raise LookupError(f"there is no {name}")
        found = getattr(found, part)
    found = inspect.unwrap(found) if callable(found) else found
    if inspect.ismodule(found):
        module, inner = found, []
    elif hasattr(found, "__qualname__"):  # where it is defined, not where it was imported to
        module, inner = importlib.import_module(found.__module__), found.__qualname__.split(".")
    path = Path(module.__file__).resolve()
    line, body = 1, ast.parse(path.read_text(encoding="utf-8")).body
    for part in inner:
        definition = next((node for node in body if part in _defined(node)), None)
        if definition is None:
            raise LookupError(f"{name} is not defined in {path.name}")
        line, body = definition.lineno, getattr(definition, "body", [])
    return path.relative_to(PACKAGE).as_posix(), line


def _import(name: str) -> tuple[ModuleType, list[str]]:
    """Return the innermost module of a dotted name, and the names that are left."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            return importlib.import_module(".".join(parts[:count])), parts[count:]
        except ModuleNotFoundError:
            continue
    raise LookupError(f"there is no module {name}")


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.ImportFrom):  # of a constant, which does not know where it comes from
        return [alias.asname or alias.name for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


# ---- tables ----------------------------------------------------------------------------------------------------------


def map_table() -> str:
    """The course, a line to a notebook."""
    lines = [
        "| notebook | needs | minutes to read and work | seconds to run | equations | ends in |",
        "|---|---|---|---|---|---|",
    ]
    for script in course.find_tutorials(HERE):
        notebook = course.read(script)
        opening = course.opening(notebook)
        needs = ", ".join(re.findall(r"\b\d\d\b", opening.needs))
        minutes = re.match(r"\d+", opening.minutes)
        files = dict.fromkeys(locate(name)[0] for name in names_in_the_package(notebook))
        ends = ", ".join(f"`{file}`" for file in list(files)[:3])
        lines.append(
            f"| [{opening.title}]({script.stem}.ipynb) | {needs} | {minutes[0] if minutes else ''} | {opening.seconds} "
            f"| {', '.join(opening.equations)} | {ends} |"
        )
    return "\n".join(lines)


def equation_table() -> str:
    """The equations, a line to each."""
    lines = ["| equation | derived in | function | test | kernel |", "|---|---|---|---|---|"]
    for tag, notebooks, functions, tests, kernels in equations():
        links = ", ".join(f"[{stem[:2]}]({stem}.ipynb)" for stem in notebooks)
        homes = ", ".join(f"`{_dotted(name)}`" for name in functions)
        files = ", ".join(f"`{file}`" for file in dict.fromkeys(name.partition("::")[0] for name in tests))
        lines.append(f"| {tag} | {links} | {homes} | {files} | {', '.join(f'`{file}`' for file in kernels)} |")
    return "\n".join(lines)


def _dotted(place: str) -> str:
    return place.replace(".py::", ".").replace("/", ".")


def readme() -> str:
    """Return tutorials/README.md with both tables made anew."""
    text = README.read_text(encoding="utf-8")
    for name, table in (("map", map_table()), ("equations", equation_table())):
        between = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text, count = between.subn(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"{README} has the markers of the table {name} {count} times, expected once")
    return text


if __name__ == "__main__":
    content = readme()
    with replacing(README) as temporary:
        temporary.write_text(content, encoding="utf-8")
