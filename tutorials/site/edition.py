"""The course's own part of Sphinx: equations as MathML, pages of the package's source, and links to them.

MathML is drawn by the browser itself, so that the site needs neither a script nor the network for its equations.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from docutils import nodes
from index import NAME, PACKAGE, locate
from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename


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
