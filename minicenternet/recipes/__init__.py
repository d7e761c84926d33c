"""Recipes: whole trainings by name, each a file of options of `train` beside this one, with what is known of it.

options         what differs from the defaults of TrainConfig; the command line wins over it
trunk           the weights that the training begins with, a key of TRUNKS
published       AP on COCO val2017, or mAP on VOC 2007 test, in per cent: plain, with flip, and at many scales as well
released        on how many GPUs the authors trained, images of a batch on the first one, hours
parameters      of the network; multiply_adds: of one image forward, at the size trained on

One thing is not as released: images are given in RGB with ImageNet's statistics, as its trunks know them, where the
weights do not say otherwise. The released code gave them in BGR, and of COCO with COCO's own statistics.
"""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..config import WEIGHTS_FOLDER, TrainConfig
from ..data.transforms import Augmentation
from ..download import download, sha256
from ..errors import InputError

FOLDER = Path(__file__).parent
IMAGES = {"coco": 118_287, "voc": 16_551}  # to train on
CLASSES = {"coco": 80, "voc": 20}
MAX_BYTES = 2**30
RANDOM = "random"
UNLIKE = "Images are in RGB with ImageNet's statistics, unless the weights say otherwise; the released code gave BGR."


class Trunk(NamedTuple):
    """Weights to begin with: what they are, and where a file of them is published; its name ends in the SHA-256's
    first eight digits."""

    what: str
    url: str | None = None
    remark: str = ""

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


TRUNKS = {
    "resnet18": Trunk("ResNet-18 of ImageNet", "https://download.pytorch.org/models/resnet18-5c106cde.pth"),
    "resnet101": Trunk("ResNet-101 of ImageNet", "https://download.pytorch.org/models/resnet101-5d3b4d8f.pth"),
    "dla34": Trunk(
        "DLA-34 of ImageNet",
        "http://dl.yf.io/dla/models/imagenet/dla34-ba72cf86.pth",
        "This address is said to be gone. ",
    ),
    "hourglass104": Trunk("ExtremeNet's Hourglass-104 after 500,000 steps on COCO"),
}


class Recipe(NamedTuple):
    """A training by name; the fields are those of its file."""

    name: str
    about: str
    source: str
    dataset: str
    options: dict[str, Any]
    trunk: str
    published: dict[str, float | None]
    released: dict[str, float | None]
    parameters: int
    multiply_adds: int
    notes: list[str]

    @property
    def config(self) -> TrainConfig:
        """The options of the training, for want of others the defaults."""
        special = {"drops": tuple(self.options["drops"]), "augmentation": Augmentation(**self.options["augmentation"])}
        return TrainConfig(recipe=self.name, **(self.options | special))

    @property
    def steps(self) -> int:
        """How many steps the whole training has."""
        return IMAGES[self.dataset] // self.options["batch_size"] * self.options["epochs"]


@cache
def recipes() -> dict[str, Recipe]:
    """Return all recipes by name: COCO's before VOC's."""
    return {
        path.stem: Recipe(path.stem, **json.loads(path.read_text("utf-8"))) for path in sorted(FOLDER.glob("*.json"))
    }


def find(name: str) -> Recipe:
    """Return a recipe.  Raises InputError, with the nearest name, where there is none of that name."""
    if name in recipes():
        return recipes()[name]
    near = difflib.get_close_matches(name, recipes(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(recipes())}"
    raise InputError(f"there is no recipe {name!r}; {hint} (minicenternet recipes shows them all)")


def begin(config: TrainConfig, folder: Path = WEIGHTS_FOLDER, say: Callable[[str], None] = print) -> TrainConfig:
    """Return the options with the weights that their recipe begins with, which are downloaded unless in `folder`.

    Weights that were given stay; `random` stands for none.  Raises InputError when the file cannot be had or is not
    the published one.
    """
    if config.recipe is None or config.resume is not None:
        return config
    if config.weights == RANDOM:
        return replace(config, weights=None)
    if config.weights is not None:
        return config
    trunk = TRUNKS[find(config.recipe).trunk]
    otherwise = f"{trunk.remark}Name a file of such weights by --weights FILE, or begin without by --weights {RANDOM}"
    if trunk.url is None:
        raise InputError(f"{config.recipe} begins with {trunk.what}, which is not published as a file. {otherwise}")
    path = folder / trunk.file
    if not path.is_file():
        say(f"{config.recipe} begins with {trunk.what}: {trunk.url}")
        download(trunk.url, path, MAX_BYTES, otherwise)
    digits, found = path.stem.rpartition("-")[2], sha256(path)
    if not found.startswith(digits):
        raise InputError(
            f"{path} is not the published one: its SHA-256 begins with {found[:8]}, expected {digits}. Delete it to "
            f"get it again. {otherwise}"
        )
    return replace(config, weights=str(path))


# ---- in words --------------------------------------------------------------------------------------------------------

HEAD = ("recipe", "network", "input", "batch", "epochs", "drops", "AP / flip / scales", "params", "GFLOPs", "released")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 2) -> str:
    """Return rows of text below their titles, in columns, the first `left` of them flush left."""
    rows = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def cells(recipe: Recipe) -> tuple[str, ...]:
    """Return what is known of a recipe, a cell for each title in HEAD."""
    options, released = recipe.options, recipe.released
    scores = " / ".join("-" if score is None else f"{score:.1f}" for score in recipe.published.values())
    return (
        recipe.name,
        options["backbone"],
        str(options["size"]),
        str(options["batch_size"]),
        str(options["epochs"]),
        " ".join(map(str, options["drops"])),
        scores,
        f"{recipe.parameters / 1e6:.1f} M",
        f"{2e-9 * recipe.multiply_adds:.1f}",
        f"{released['hours']} h on {released['gpus']}" if released["hours"] else "-",
    )


LEGEND = """\
AP in per cent, as published: plain, with flip, with flip at many scales; on COCO val2017, or, of voc-..., mAP at an IoU
of 0.5 on VOC 2007 test. GFLOPs: of one image forward, two for each multiply-add. Released: the authors' hours on so
many GPUs of the TITAN V's class."""


def details(recipe: Recipe) -> str:
    """Return all of a recipe but its row of the table."""
    options = {name: value for name, value in recipe.options.items() if name != "augmentation"}
    options |= {f"augmentation.{name}": value for name, value in recipe.options["augmentation"].items()}
    words = (" ".join(map(str, value)) if isinstance(value, list) else value for value in options.values())
    text = ", ".join(f"{name} {word}" for name, word in zip(options, words, strict=True))
    trunk = TRUNKS[recipe.trunk]
    lines = {
        "source": [recipe.source],
        "begins with": [f"{trunk.what}{f', {trunk.url}' if trunk.url else ''}"],
        "options": [text],
        "note": [*recipe.notes, UNLIKE],
        "command": [f"minicenternet train --recipe {recipe.name} --data DIR"],
    }
    return "\n".join(
        [
            f"{recipe.name}: {recipe.about}",
            *(
                textwrap.fill(line, 118, initial_indent=f"  {title:<14}", subsequent_indent=16 * " ")
                for title, texts in lines.items()
                for line in texts
            ),
        ]
    )
