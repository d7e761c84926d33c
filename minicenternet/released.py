"""The networks that the authors of CenterNet released: where they are, how they are fetched, and how they become ours.

    released .pth --download, or a local file--> SHA-256 --convert--> .safetensors with classes and pixel statistics

They were trained on images in BGR order, with statistics of that order for COCO; for VOC, the usual ImageNet numbers,
which are of RGB, were applied to BGR all the same, and so must we.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .data.voc import CLASSES as VOC_CLASSES
from .download import download, sha256
from .errors import InputError
from .model import IMAGENET_MEAN, IMAGENET_STD, CenterNet, LoadReport
from .nn.weights import load_weights

PAGE = "https://github.com/xingyizhou/CenterNet/blob/master/readme/MODEL_ZOO.md"
MIRRORS = (
    "https://huggingface.co/LibreYOLO/LibreCenterNetresdcn18",
    "https://huggingface.co/LibreYOLO/LibreCenterNetdla34",
)
LICENCE = "MIT, Copyright (c) 2019 Xingyi Zhou"
MAX_BYTES = 2**31  # the largest network has 0.8 GB

COCO_CLASSES = tuple(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush".split(",")
)


class TrainingData(NamedTuple):
    """What released networks expect of an image, whose channels are in BGR order, and the names of their classes."""

    class_names: tuple[str, ...]
    pixel_mean: tuple[float, ...]  # of pixels in 0..1
    pixel_std: tuple[float, ...]
    size: int  # side of the network input where none is given


TRAINING_DATA = {
    "coco": TrainingData(
        COCO_CLASSES, (0.40789654, 0.44719302, 0.47026115), (0.28863828, 0.27408164, 0.27809835), size=512
    ),
    "voc": TrainingData(VOC_CLASSES, IMAGENET_MEAN, IMAGENET_STD, size=384),
}


class Released(NamedTuple):
    """A released file; its size in bytes was not published, its SHA-256 only by others."""

    network: str
    dataset: str
    size: int  # side of the network input
    score: str  # as published: AP on COCO val2017, or mAP on VOC 2007 test with flip
    drive: str  # its id at Google Drive, where PAGE points to
    sha256: str | None = None

    @property
    def url(self) -> str:
        """The address of the file itself."""
        return f"https://drive.usercontent.google.com/download?id={self.drive}&export=download&confirm=t"


RELEASED = {
    "ctdet_coco_resdcn18": Released(
        "resdcn18", "coco", 512, "28.1", "1RtFps3kQAyLjQyzCao7pPDclOBQ64Vyp",
        "f9e413f91cdb235adbcb41c5c4052b8f7ff53999374048949789c29d6df18eaa",
    ),
    "ctdet_coco_resdcn101": Released("resdcn101", "coco", 512, "34.6", "1tKkSyzC3iWmM6XTYNJrC4XLCIToDmnHz"),
    "ctdet_coco_dla_1x": Released("dla34", "coco", 512, "36.3", "1xqFsdA3DANMq1MfnXG8n7nQPe4AfXTHv"),
    "ctdet_coco_dla_2x": Released(
        "dla34", "coco", 512, "37.4", "18Q3fzzAsha_3Qid6mn4jcIFPeOGUaj1d",
        "43bf4cc2efe00e02c1ae8484035b062a35543872d276c7dcfeb4db3e64203e4f",
    ),
    "ctdet_coco_hg": Released("hourglass104", "coco", 512, "40.3", "13F904yXltGIqa_K3g3-FLleaNX0n7c9O"),
    "ctdet_pascal_resdcn18_384": Released("resdcn18", "voc", 384, "72.6", "1mpeslWUt0aJqx99_-UcCzJ7GBcD6sCA-"),
    "ctdet_pascal_resdcn18_512": Released("resdcn18", "voc", 512, "75.7", "1ILnmGrJQiDK2Ib-D7TzBs2fq5bfju-Bd"),
    "ctdet_pascal_resdcn101_384": Released("resdcn101", "voc", 384, "77.1", "1-Qy4zMhzmBk9fMF0u2s5zNI0Uj9latsk"),
    "ctdet_pascal_resdcn101_512": Released("resdcn101", "voc", 512, "78.7", "1TiJkPaofzUaEMLi5wr9TIIUY8G2VewCQ"),
    "ctdet_pascal_dla_384": Released("dla34", "voc", 384, "79.3", "19J7WoUZKYiSEU7vrhZInz5C2m0-9zmC1"),
    "ctdet_pascal_dla_512": Released("dla34", "voc", 512, "80.7", "1Iqqr_VLtG8T3tUzy-EuMaeuCtFuv6pEU"),
}  # fmt: skip


def table(folder: Path) -> str:
    """Return the released files as text, those whose .safetensors is in `folder` marked."""
    width = max(map(len, RELEASED))
    lines = [
        f"Networks released by the authors of CenterNet ({LICENCE}), published at",
        f"  {PAGE}",
        "",
        f"  {'name':<{width}}  network       data  input  score",
    ]
    for name, file in RELEASED.items():
        mark = "*" if (folder / f"{name}.safetensors").is_file() else " "
        lines.append(f"{mark} {name:<{width}}  {file.network:<12}  {file.dataset:<4}  {file.size:>5}  {file.score:>5}")
    return "\n".join(
        [
            *lines,
            "",
            f"*: already in {folder}. Score: AP on COCO val2017, or mAP on VOC 2007 test with flip, as published.",
            "",
            "The files' sizes and SHA-256 were not published. Second-hand, from the mirrors below, are",
            *(f"  {name:<{width}}  {file.sha256}" for name, file in RELEASED.items() if file.sha256),
            "Mirrors, by others; where a file there holds the same arrays, minicenternet convert reads it:",
            *(f"  {mirror}" for mirror in MIRRORS),
            "No address, of these or at Google Drive, could be tried when this was written.",
        ]
    )


def get(name: str, folder: Path, source: str | os.PathLike | None = None, say: Callable[[str], None] = print) -> Path:
    """Return folder/NAME.safetensors, made of the released file unless it is there already.

    source: the .pth file, or a URL of it; by default it is downloaded from where it was published, to folder/NAME.pth.
    Raises InputError for an unknown name, when the download fails, and when the file is not the released one.
    """
    if name not in RELEASED:
        near = difflib.get_close_matches(name, RELEASED, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(RELEASED)}"
        raise InputError(f"no released network is called {name!r}; {hint}")
    released, target = RELEASED[name], folder / f"{name}.safetensors"
    if target.is_file():
        say(f"{target} is there already")
        return target
    url = released.url if source is None else str(source)
    if url.startswith(("https://", "http://")):
        path = folder / f"{name}.pth"
        if not path.is_file():
            say(f"{name}: {LICENCE}, published at {PAGE}")
            download(url, path, MAX_BYTES, f"get the file in a browser: {PAGE}")
        advice = f"Remove {path} to download it again, or"
    else:
        path = Path(source)
        if not path.is_file():
            raise InputError(f"no file {path}; check the path")
        advice = "Download it again, or"
    found = sha256(path)
    if released.sha256 is None:
        say(f"the SHA-256 of {path} is {found}; that of the released file is not known to us, so nothing is checked")
    elif found != released.sha256:
        raise InputError(
            f"{path} is not {name}: its SHA-256 is {found}, expected {released.sha256}. {advice}, if you trust it, "
            f"use minicenternet convert --network {released.network} --dataset {released.dataset}"
        )
    say(str(convert(path, target, network=released.network, dataset=released.dataset, size=released.size)))
    return target


def convert(
    source: str | os.PathLike, target: str | os.PathLike, *, network: str, dataset: str, size: int | None = None
) -> LoadReport:
    """Write the weights of a network that the released code trained as a file that CenterNet.load reads.

    network: a name in BACKBONES.  dataset: a name in TRAINING_DATA, which gives the class names and pixel statistics
    of the metadata.  size: side of the network input in pixels, by default the data set's.
    Raises InputError when the source cannot be read, is not such a network as a whole, or the target cannot be written.
    """
    if dataset not in TRAINING_DATA:
        raise InputError(f"unknown data set {dataset!r}; there are {', '.join(TRAINING_DATA)}")
    data = TRAINING_DATA[dataset]
    model = CenterNet(
        network,
        class_names=data.class_names,
        input_size=(size or data.size,) * 2,
        pixel_mean=data.pixel_mean,
        pixel_std=data.pixel_std,
        channel_order="BGR",
    )
    arrays, _ = load_weights(source)
    try:
        report = model.load_matching(arrays)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    if report.missing or report.misshapen:
        raise InputError(
            f"{source} is no {network} with the {len(data.class_names)} classes of {dataset}: {report}. "
            "Name its own network and data set; to train on from it, give it to minicenternet train --weights"
        )
    model.save(target)
    return report
