"""How notebooks are made: executed in full, written whole, and their time compared with what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from tiny_tutorial import TUTORIAL

from minicenternet.errors import InputError

nbformat = pytest.importorskip("nbformat", reason="tutorials are read by jupytext, which brings nbformat")
pytest.importorskip("nbclient")
build = runpy.run_path(str(Path(__file__).resolve().parents[2] / "tutorials" / "build.py"), run_name="build")


def test_a_notebook_is_executed_in_full(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICENTERNET_FAST", "1")
    script = tmp_path / "07_halves.py"
    script.write_text(TUTORIAL + '\n# %%\nimport os\n\nprint(os.environ.get("MINICENTERNET_FAST"), quarter)\n')
    line = build["build"](script)
    assert line.startswith("07_halves.ipynb") and line.endswith("but its first cell says 12: put that right")
    notebook = nbformat.read(tmp_path / "07_halves.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5]
    assert code[-1].outputs[0].text == "None 1.0\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["07_halves.ipynb", "07_halves.py"]


def test_a_notebook_that_fails_is_not_written(tmp_path):
    script = tmp_path / "07_halves.py"
    script.write_text(TUTORIAL + "\n# %%\n1 / 0\n")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        build["build"](script)
    assert [path.name for path in tmp_path.iterdir()] == ["07_halves.py"]


def test_an_unknown_number():
    with pytest.raises(InputError, match="there is no tutorial 77"):
        build["main"](("77",))
