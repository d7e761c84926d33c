"""Makes what is made from the tutorials: the executed notebooks and the static site.

    python tutorials/build.py               every NN_name.ipynb, executed in full, with its pictures
    python tutorials/build.py 07 08         these alone
    python tutorials/build.py --site DIR    the site, of the notebooks as they are

Notebooks need the extra `test`, the site needs `site`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import nbformat
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minicenternet import course  # noqa: E402
from minicenternet.errors import InputError  # noqa: E402
from minicenternet.files import replacing  # noqa: E402

HERE = Path(__file__).resolve().parent


def main(numbers: Annotated[tuple[str, ...], tyro.conf.Positional] = (), /, site: Path | None = None) -> None:
    """Execute the tutorials of these numbers, by default all, and write the notebooks; or make the site.

    Args:
        numbers: Two digits each.
        site: Make the site in this folder, and execute nothing.
    """
    if site is not None:
        print(f"open {make_site(site) / 'index.html'}")
        return
    scripts = course.find_tutorials(HERE)
    unknown = set(numbers) - {script.stem[:2] for script in scripts}
    if unknown:
        raise InputError(f"there is no tutorial {', '.join(sorted(unknown))}: see {HERE}")
    for script in scripts:
        if not numbers or script.stem[:2] in numbers:
            print(build(script), flush=True)


def build(script: Path) -> str:
    """Execute a tutorial in full and write its .ipynb beside it; returns a line that says how long it took."""
    from nbclient import NotebookClient

    notebook = course.read(script)
    stated = course.opening(notebook).seconds
    environment = {name: value for name, value in os.environ.items() if name != "MINICENTERNET_FAST"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), environment.get("PYTHONPATH", "")]).rstrip(
        os.pathsep
    )
    client = NotebookClient(
        notebook,
        timeout=1800,  # seconds to a cell
        kernel_name="python3",
        resources={"metadata": {"path": str(HERE)}},
        record_timing=False,
        coalesce_streams=True,
    )
    start = time.perf_counter()
    client.execute(env=environment)
    seconds = time.perf_counter() - start
    notebook.metadata.language_info = {"name": "python"}  # the version that ran it is no news
    path = script.with_suffix(".ipynb")
    with replacing(path) as temporary:
        nbformat.write(notebook, temporary)
    off = "" if 0.5 * stated <= seconds <= 1.5 * stated else f", but its first cell says {stated}: put that right"
    return f"{path.name:<28}{seconds:4.0f} s{path.stat().st_size / 1000:6.0f} kB{off}"


def make_site(folder: Path) -> Path:
    """Make the static site of the notebooks in a folder, which is made; returns it.

    Raises InputError where Sphinx is not installed, and when it says that something is wrong, a broken link perhaps.
    """
    try:
        from sphinx.cmd.build import build_main
    except ImportError as error:
        raise InputError('the site is made by Sphinx: pip install -e ".[site]"') from error
    with tempfile.TemporaryDirectory() as sources:
        for script in course.find_tutorials(HERE):
            notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
            _describe_pictures(notebook)
            nbformat.write(notebook, Path(sources) / f"{script.stem}.ipynb")
        shutil.copytree(HERE / "pictures", Path(sources) / "pictures")
        names = "\n".join(script.stem for script in course.find_tutorials(HERE))
        readme = (HERE / "README.md").read_text(encoding="utf-8")
        index = f"{readme}\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"
        (Path(sources) / "index.md").write_text(index, encoding="utf-8")
        options = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(HERE / "site"), "-d", f"{sources}/.doctrees"]
        if build_main([*options, sources, str(folder)]):
            raise InputError("the site has the faults named above")
    return folder


def _describe_pictures(notebook: nbformat.NotebookNode) -> None:
    """Tell myst-nb each cell's alt text, which `show` left with the picture."""
    for cell in notebook.cells:
        alts = [
            output.metadata["image/png"]["alt"]
            for output in cell.get("outputs", ())
            if "image/png" in output.get("data", {})
        ]
        if alts:
            cell.metadata["mystnb"] = {"image": {"alt": " ".join(alts)}}


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        sys.exit(f"error: {error}")
