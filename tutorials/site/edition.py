"""The course's own part of Sphinx: equations as MathML, pages of the package's source, and links to them.

MathML is drawn by the browser itself, so that the site needs neither a script nor the network for its equations.
"""

from __future__ import annotations

import ast
import html
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename

import minicenternet

PACKAGE = Path(minicenternet.__file__).resolve().parent
NAME = re.compile(r"(minicenternet(?:\.\w+)+)(?:\(\))?")


def setup(app) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (_inline_equation, None), (_equation, None))
    app.connect("doctree-resolved", _link_names)
    app.connect("html-collect-pages", lambda app: source_pages())
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# ---- equations -------------------------------------------------------------------------------------------------------


def mathml(latex: str, display: str) -> str:
    """Return an equation, "inline" or "block", as MathML; raises ValueError when a command of it is not known."""
    converted = convert(latex, display=display)
    unknown = re.search(r"\\\w+", re.sub(r"<annotation.*?</annotation>", "", converted))
    if unknown:
        raise ValueError(f"{unknown[0]} cannot be typeset in {latex!r}")
    return converted


def _inline_equation(writer, node) -> None:
    writer.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _equation(writer, node) -> None:
    writer.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


# ---- sources ---------------------------------------------------------------------------------------------------------


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


def _import(name: str) -> tuple[object, list[str]]:
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
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _page(file: str) -> str:
    return f"source/minicenternet/{file}"


def _link_names(app, document, docname: str) -> None:
    """Make each `minicenternet.module.name` in the text a link to the line that defines it."""
    for literal in list(document.findall(nodes.literal)):
        match = NAME.fullmatch(literal.astext())
        if match and not isinstance(literal.parent, nodes.reference):
            file, line = locate(match[1])
            link = nodes.reference("", "", refuri=f"{app.builder.get_relative_uri(docname, _page(file))}#L-{line}")
            literal.replace_self(link)
            link += literal


def source_pages() -> Iterator[tuple[str, dict[str, str], str]]:
    """Yield a page for every source file of the package, each of whose lines can be linked to."""
    formatter = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True, cssclass="highlight")
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".cu", ".cuh"):
            file = path.relative_to(PACKAGE).as_posix()
            lexer = get_lexer_for_filename("kernel.cu" if path.suffix == ".cuh" else path.name)
            code = highlight(path.read_text(encoding="utf-8"), lexer, formatter)
            title = html.escape(f"minicenternet/{file}")
            yield _page(file), {"title": title, "body": f"<h1>{title}</h1>\n{code}"}, "page.html"
