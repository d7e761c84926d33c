"""Every equation has one home and at least one test: the tags E1 to E10 in the docstrings of both are counted."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOMES = {
    "E1": "points/targets.py:encode",
    "E2": "points/targets.py:splat",
    "E3": "points/targets.py:gaussian_radius",
    "E4": "points/losses.py:focal_loss",
    "E5": "points/losses.py:l1_loss",
    "E6": "points/losses.py:l1_loss",
    "E7": "points/losses.py:detection_loss",
    "E8": "points/decode.py:peaks",
    "E9": "points/decode.py:decode",
    "E10": "nn/init.py:prior_bias",
}


@functools.cache
def tags(folder: Path) -> dict[str, list[str]]:
    """Return, for each tag, "file:function" of every function or class below folder whose docstring has it."""
    found = defaultdict(list)
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                for tag in set(re.findall(r"\bE\d+\b", ast.get_docstring(node) or "")):
                    found[tag].append(f"{path.relative_to(folder).as_posix()}:{node.name}")
    return found


@pytest.mark.parametrize("tag", HOMES)
def test_equation_has_one_home(tag):
    places = tags(ROOT / "minicenternet")[tag]
    assert places == [HOMES[tag]], f"only the docstring of {HOMES[tag]} may have the tag {tag}, found in {places}"


@pytest.mark.parametrize("tag", HOMES)
def test_equation_has_a_test(tag):
    places = tags(ROOT / "tests")[tag]
    assert any(place.split(":")[1].startswith("test_") for place in places), f"no test's docstring has {tag}"


def test_no_other_tag_is_in_use():
    assert set(tags(ROOT / "minicenternet")) <= set(HOMES)


def test_the_readme_names_the_home_and_a_test_of_every_equation():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    rows = {line.split()[1]: re.findall(r"`([^`]+)`", line) for line in lines if re.match(r"\| E\d+ \|", line)}
    assert list(rows) == list(HOMES)
    for tag, names in rows.items():
        assert names[0] == HOMES[tag].replace(".py:", ".").replace("/", ".")
        test = names[-1].removeprefix("tests/")
        assert any(place.startswith(f"{test}:test_") for place in tags(ROOT / "tests")[tag]), f"{test} has no {tag}"
