"""What `import minicenternet` brings along, in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

import minicenternet

PACKAGE = Path(minicenternet.__file__).parent


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent, timeout=120)


def test_importing_touches_neither_cuda_nor_heavy_libraries():
    run(
        "import sys, minicenternet\n"
        "heavy = {'cupy', 'torch', 'matplotlib', 'pycocotools', 'PIL', 'tyro', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )


def test_layers_and_the_paper_are_found_where_they_belong():
    run(
        "from minicenternet import nn, points\n"
        "nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())\n"
        "assert points.targets.encode and points.losses.focal_loss and points.decode.decode\n"
    )


def test_a_missing_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="minicenternet"):
        minicenternet.CentreNet  # noqa: B018


def test_every_module_imports_without_optional_packages():
    """No GPU library, no PyTorch, no pycocotools and nothing of Jupyter is needed to import anything."""
    names = [
        ".".join(["minicenternet", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.stem != "__main__"
    ]
    run(
        "import importlib, sys\n"
        "for absent in ('cupy', 'torch', 'pycocotools', 'jupytext', 'nbformat', 'IPython'):\n"
        "    sys.modules[absent] = None\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
    )
