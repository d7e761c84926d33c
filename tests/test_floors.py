"""The floors of the house: a file imports only from floors below its own."""

import ast
import re
from pathlib import Path

import pytest

import minicenternet

PACKAGE = Path(minicenternet.__file__).parent
FLOORS = {
    "backend": 0,
    "threads": 0,
    "memory": 0,
    "strips": 0,
    "staging": 0,
    "graph": 0,
    "errors": 0,
    "files": 0,
    "download": 0,
    "autograd": 1,
    "ops": 2,
    "nn": 3,
    "optim": 3,
    "optim_cuda": 3,
    "points": 4,
    "distributed": 4,
    "backbones": 5,
    "tasks": 5,
    "data": 5,
    "metrics": 5,
    "draw": 6,
    "recipes": 6,
    "cli": 7,
    "__main__": 7,
}
TOP = 6  # every other file directly in the package, and the package itself
NUMPY_ONLY = ("data", "metrics")


def imports(source: str, path: str, paths: set[str]) -> list[str]:
    """Return what a file imports: "cupy", or a path within the package such as "ops/conv2d", "" for the package.

    path: the file's own, in the same form; paths: those of all files, which tell a module from a name in a module.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.Call):  # import_module("cupy"), __import__("cupy")
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                found.append(node.args[0].value)
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                folder = [part for part in path.split("/") if part]
                if path not in packages(paths):
                    folder = folder[:-1]
                base = ["minicenternet", *folder[: len(folder) - node.level + 1], *base]
            for alias in node.names:
                inner = "/".join([*base[1:], alias.name])
                found.append(".".join([*base, alias.name] if base[0] == "minicenternet" and inner in paths else base))
    return [
        name.removeprefix("minicenternet").removeprefix(".").replace(".", "/")
        if name.split(".")[0] == "minicenternet"
        else name.split(".")[0]
        for name in found
    ]


def packages(paths: set[str]) -> set[str]:
    """Return the paths that are folders."""
    return {path.rpartition("/")[0] for path in paths} | {""}


def violations(sources: dict[str, str]) -> list[str]:
    """Return a sentence for each import that breaks the rules; sources: path within the package -> text."""
    paths, found = set(sources), []
    for path, source in sources.items():
        top, folder = path.split("/")[0], path.split("/")[0] if "/" in path or path in packages(paths) else ""
        if folder not in FLOORS and folder:
            found.append(f"the folder {folder} has no floor: add it to the table")
            continue
        for name in imports(source, path, paths):
            if name == "cupy" and path != "backend":
                found.append(f"{path} imports cupy: only backend may")
            if name == "torch":
                found.append(f"{path} imports torch, which only tests may")
            if name not in paths:
                continue
            other = name.split("/")[0]
            other_folder = other if "/" in name or name in packages(paths) else ""
            floor, other_floor = FLOORS.get(top, TOP), FLOORS.get(other, TOP)
            if other_floor > floor:
                found.append(f"{path} (floor {floor}) imports {name} (floor {other_floor})")
            if other_floor == floor == 5 and other_folder != folder:
                found.append(f"{path} imports {name}, its neighbour on floor 5")
            if top in NUMPY_ONLY and other_floor < 5 and other not in ("errors", "files", "threads", "download"):
                found.append(f"{path} imports {name}: {top} is NumPy only")
            if other in ("cli", "__main__") and path != "__main__":
                found.append(f"{path} imports {name}: nobody does")
    return found


def package_sources() -> dict[str, str]:
    sources = {}
    for file in PACKAGE.rglob("*.py"):
        path = file.relative_to(PACKAGE).with_suffix("").as_posix()
        sources[path.removesuffix("__init__").rstrip("/")] = file.read_text(encoding="utf-8")
    return sources


def test_every_file_keeps_to_its_floor():
    assert violations(package_sources()) == []


def test_the_imports_are_seen():
    """A test that sees no imports would pass for ever."""
    sources = package_sources()
    assert "cupy" in imports(sources["backend"], "backend", set(sources))
    assert {"autograd", "backend", "strips"} <= set(imports(sources["ops/conv2d"], "ops/conv2d", set(sources)))
    assert {"nn/module", "threads"} <= set(imports(sources["optim"], "optim", set(sources)))
    assert {"ops", "model"} <= set(imports(sources[""], "", set(sources)))
    assert {"ops/conv2d", "autograd"} <= set(imports(sources["ops"], "ops", set(sources)))


PLANTED = [
    ("ops/relu", "from ..nn import init", r"ops/relu \(floor 2\) imports nn/init \(floor 3\)"),
    ("ops/relu", "from ..nn.init import normal", "imports nn/init"),
    ("ops/relu", "from minicenternet.nn import init", "imports nn/init"),
    ("ops/relu", "import minicenternet.nn.init", "imports nn/init"),
    ("ops/relu", "def f():\n    from .. import optim", "imports optim"),
    ("ops/relu", "from .. import nn", "imports nn"),
    ("backend", "from . import autograd", r"backend \(floor 0\) imports autograd"),
    ("points/losses", "from ..model import CenterNet", "imports model"),
    ("points/losses", "import cupy as cp", "points/losses imports cupy: only backend may"),
    ("ops/relu", "import cupy.cuda", "imports cupy"),
    ("ops/relu", "from cupy import asarray", "imports cupy"),
    ("ops/relu", "import importlib\nxp = importlib.import_module('cupy')", "imports cupy"),
    ("train", "import torch", "imports torch"),
    ("data/coco", "from ..metrics import coco", "data/coco imports metrics/coco, its neighbour on floor 5"),
    ("tasks/detection", "from ..backbones import BACKBONES", "its neighbour"),
    ("data/coco", "from ..backend import get_xp", "data/coco imports backend: data is NumPy only"),
    ("metrics/coco", "from ..ops import conv2d", "metrics is NumPy only"),
    ("metrics/coco", "from ..autograd import Tensor", "metrics is NumPy only"),
    ("train", "from .cli import main", "imports cli"),
    ("helpers/text", "", "the folder helpers has no floor"),
]
HOUSE = [
    "", "backend", "autograd", "ops", "ops/relu", "nn", "nn/init", "optim", "points", "points/losses", "tasks",
    "tasks/detection", "backbones", "data", "data/coco", "metrics", "metrics/coco", "model", "train", "cli",
]  # fmt: skip


@pytest.mark.parametrize("path, source, message", PLANTED)
def test_planted_violations_are_found(path, source, message):
    found = violations(dict.fromkeys(HOUSE, "") | {path: source})
    assert len(found) >= 1 and re.search(message, found[0]), found


@pytest.mark.parametrize(
    "path, source",
    [
        ("ops/relu", "from ..autograd import differentiable\nfrom ..backend import get_xp\nimport numpy"),
        ("ops", "from .relu import relu\nfrom ..autograd import Tensor"),
        ("optim", "from .nn.init import normal"),
        ("data/coco", "from . import DATASETS\nfrom ..errors import InputError\nimport json"),
        ("train", "from . import __version__\nfrom .model import CenterNet\nfrom .metrics.coco import evaluate"),
        ("cli", "from .train import train\nfrom . import data"),
        ("__main__", "from .cli import main"),
        ("backend", "import cupy"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations(dict.fromkeys(HOUSE + ["errors"], "") | {path: source}) == []
