"""The options of each command: one frozen dataclass per verb; the command line is made from these by tyro."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .data.transforms import Augmentation
from .errors import InputError
from .files import replacing

DEMO_FOLDER = Path("runs/demo")
WEIGHTS_FOLDER = Path("weights")
COURSE_FOLDER = Path("course")
DEMO_WEIGHTS = DEMO_FOLDER / "best.safetensors"
PLACES = ("data", "images", "val", "val_images")  # options of train: where the data lie, and what belongs to --data


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise InputError(f"--{name.replace('_', '-')} is {value}, expected {expected}")


@dataclass(frozen=True)
class TrainConfig:
    """Train a detector; everything about the run is kept in its folder."""

    data: str = "shapes"
    """shapes, a COCO-format .json file, or a folder in VOC or COCO layout."""
    images: str | None = None
    """Folder of the images of a .json file, where it is not found beside it."""
    val: str | None = None
    """Validation data; by default what belongs to --data (shapes: unseen ones; VOC: the val split; COCO: the sibling
    instances_val*.json), else the training images themselves."""
    val_images: str | None = None
    """Folder of the images of a .json file named by --val, where it is not found beside it."""
    output: str | None = None
    """Run folder; by default the next free runs/NAME-N."""
    resume: str | None = None
    """Run folder to go on with, exactly where it stopped, or one of its checkpoints to go back to; all other options
    but --device, --precision and --graph are taken from that run, and where its data lie, unless --data and its like
    name the place to which these have moved."""

    recipe: str | None = None
    """Take the options that are not given from a recipe, such as coco-dla34-1x: minicenternet recipes lists them. The
    weights that it begins with are downloaded; --weights random begins without any."""
    backbone: str = "small"
    """small, resnet18, 34, 50, 101 or 152, resdcn18 to 152, dla34, dlav0_34 or hourglass104."""
    weights: str | None = None
    """Begin with these weights instead of random ones: .safetensors or .pth, of this backbone or of its trunk alone
    (torchvision's, of ImageNet); for other classes the last layer of the heatmap begins anew. Images are normalised as
    the file says, channel order included, or by ImageNet's statistics where it says nothing."""
    size: int | None = None
    """Side of the square network input in pixels; by default 128 for shapes and 512 for photographs."""

    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 16
    """Images per step."""
    optimiser: Literal["adam", "sgd"] = "adam"
    """Adam, or SGD with momentum 0.9."""
    learning_rate: float = 1e-3
    """Learning rate at its highest."""
    weight_decay: float = 0.0
    """L2 penalty: weight_decay times the weight is added to each gradient."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """How the learning rate falls: along half a cosine, by 10 after each epoch in --drops, or not at all."""
    drops: tuple[int, ...] = ()
    """Epochs after which the step schedule divides the learning rate by 10 (released COCO recipe: 90 120)."""
    warm_up: int = 100
    """Steps over which the learning rate rises from 0; at most a tenth of the run."""
    clip_norm: float = 0.0
    """Largest joint norm of all gradients; 0 does not limit it."""
    average: float = 0.0
    """Decay of the exponential moving average of the weights, used for AP and the saved weights; 0 for none."""
    checkpointing: bool = False
    """Compute each stage of the backbone again in the backward pass instead of keeping what it made: the same weights,
    in less memory and more time."""
    sync_batch_norm: bool = False
    """Of several ranks: batch norm takes its statistics over the images of all, as one process would."""
    augment: bool = True
    """Random crops, flips and colours; --no-augment shows each image whole."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Strength of each random change."""
    min_overlap: float = 0.7
    """An object's Gaussian in the heatmap reaches as far as a box may be off and still overlap by this IoU."""
    radius_form: Literal["released", "corrected"] = "released"
    """released: the radius as the published networks had it, about three times as large; corrected: what was meant."""
    denominator: Literal["paper", "released"] = "paper"
    """Divide the losses of sizes and offsets by the number of objects, or, as released, by that of their coordinates:
    half as much."""

    shapes: int = 4000
    """Training images that --data shapes makes."""
    val_shapes: int = 200
    """Validation images that --data shapes makes."""
    evaluate_every: int = 1
    """Epochs between measurements of AP on the validation images; the last epoch is always measured."""
    save_every: float = 5.0
    """Minutes between saved states within an epoch; the end of an epoch is always saved."""
    keep_every: int = 0
    """Epochs between checkpoints: weights and state kept in checkpoints/, to use or to go back to; 0 for none."""
    keep_hours: float = 0.0
    """Hours after which a checkpoint is kept in any case, within an epoch too; 0 for none."""
    keep_newest: int = 3
    """How many checkpoints there are at most: older ones are removed."""
    keep_always: int = 0
    """Checkpoints of epochs divisible by this number are never removed; 0 for none."""
    tensorboard: bool = False
    """Write losses, AP and speed for TensorBoard as well (needs the extra tensorboard)."""
    device: str = "auto"
    """auto (a GPU where one can be used), cpu, cuda, or, of several GPUs, cuda:0, cuda:1 and so on. A resumed run may
    be given another."""
    precision: Literal["float32", "tf32", "bf16", "fp16"] = "float32"
    """What convolutions multiply on a GPU: the fewer bits, the faster. tf32 rounds only there; bf16 and fp16 also keep
    maps in 16 bits, weights and statistics in float32, and fp16 scales the loss. A CPU has float32 alone."""
    graph: bool = False
    """On a GPU, launch all kernels of a step at once, as a CUDA graph: the same weights, sooner where the CPU is what a
    step waits for."""
    workers: int | None = None
    """Processes that prepare batches; 0 prepares them in this one; by default one per spare core, at most 8."""
    skip_bad_images: bool = False
    """Replace an image that cannot be read by the next one, name it once, and go on."""
    seed: int = 0
    """Of everything random: the same seed gives the same weights, whatever the number of workers."""

    def __post_init__(self):
        positive = ("epochs", "batch_size", "learning_rate", "shapes", "val_shapes", "evaluate_every", "save_every")
        for name in (*positive, "keep_newest"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("weight_decay", "warm_up", "clip_norm", "seed", "keep_every", "keep_hours", "keep_always"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.size is None or self.size > 0, "size", self.size, "more than 0")
        _require(self.workers is None or self.workers >= 0, "workers", self.workers, "0 or more")
        _require(0 <= self.average < 1, "average", self.average, "0 to less than 1")
        _require(0 < self.min_overlap <= 1, "min_overlap", self.min_overlap, "more than 0, at most 1")
        _require(min(self.drops, default=1) > 0, "drops", " ".join(map(str, self.drops)), "epochs from 1 on")
        if (self.schedule == "step") != bool(self.drops):
            drops = " ".join(map(str, self.drops)) or "empty"
            raise InputError(
                f"--schedule is {self.schedule} and --drops is {drops}; a rate that falls in steps needs both: "
                "--schedule step --drops 90 120"
            )
        if self.val_images is not None and self.val is None:
            raise InputError(f"--val-images {self.val_images} belongs to a file named by --val; name that as well")

    def absolute(self) -> TrainConfig:
        """Return the same with absolute paths of data and weights, which any working directory can go on with."""
        given = {name: getattr(self, name) for name in (*PLACES, "weights")}
        return dataclasses.replace(
            self, **{name: str(Path(path).absolute()) for name, path in given.items() if path not in (None, "shapes")}
        )

    def save(self, path: Path) -> None:
        """Write the configuration as JSON."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
        """Return the configuration that `save` wrote.  Raises InputError when there is none or it is damaged."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                **{
                    **values,
                    "drops": tuple(values["drops"]),
                    "augmentation": Augmentation(**values["augmentation"]),
                }
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(f"{path.parent} is no run folder: it has no {path.name}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is damaged or from another version ({error}); start a new run") from error

    @property
    def side(self) -> int:
        """The side of the network input that `size` stands for."""
        return self.size or (128 if self.data == "shapes" else 512)

    @property
    def num_workers(self) -> int:
        """The number of worker processes that `workers` stands for."""
        return min(8, max(1, (os.cpu_count() or 2) - 1)) if self.workers is None else self.workers


@dataclass(frozen=True)
class ReportConfig:
    """Write report.html of a run: curves, AP by class and size, the worst images."""

    run: Path
    """The run folder; the run may still be going on."""


@dataclass(frozen=True)
class CompareConfig:
    """Put runs beside each other: options that differ, AP, time, and their curves."""

    runs: tuple[Path, ...]
    """Run folders, two or more."""
    output: Path = Path("comparison.html")
    """The page to write."""


@dataclass(frozen=True, kw_only=True)
class UseConfig:
    """How a trained network is put to use; the base of the commands that do so."""

    weights: Path = DEMO_WEIGHTS
    """The trained network: best.safetensors or last.safetensors of a run folder."""
    resolution: Literal["fixed", "keep"] = "fixed"
    """fixed: the whole image, as large as fits into the input trained on; keep: pixel by pixel, whatever its size."""
    flip: bool = False
    """Average with the mirror image: slower, often a little better."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which to look at each image, such as 0.5 1 1.5; their boxes are merged by soft NMS."""
    nms: Literal["soft", "hard"] | None = None
    """Suppress overlapping boxes of a class; a peak per object mostly makes that needless."""
    k: int = 100
    """Most objects of an image."""
    rounded: bool = False
    """Round coordinates and scores to two decimals in what is measured and written, as the released code does."""
    batch_size: int = 8
    """Images that go through the network together."""
    device: str = "auto"
    """auto (a GPU where one can be used), cpu, cuda, or, of several GPUs, cuda:0, cuda:1 and so on."""
    precision: Literal["float32", "tf32", "bf16", "fp16"] = "float32"
    """What convolutions multiply on a GPU: the fewer bits, the faster. tf32 rounds only there; bf16 and fp16 also keep
    maps in 16 bits, weights and statistics in float32, and fp16 scales the loss. A CPU has float32 alone."""
    graph: bool = False
    """On a GPU, launch all kernels of a batch at once, as a CUDA graph: the same boxes, sooner for small batches."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(UseConfig):
    """Measure the AP of a network on a data set."""

    data: str = "shapes"
    """shapes, a COCO-format .json file, or a folder in VOC or COCO layout."""
    images: Path | None = None
    """Folder of the images of a .json file, where it is not found beside it."""
    split: str = "val"
    """Part of the data to measure on; without a val part, all of it. Of COCO's test images, test-dev, whose objects are
    not published, only the detections are made, to be sent in."""
    output: Path | None = None
    """Folder to write the detections, all figures, and pictures of the best and the worst images to. Until then what
    was detected is kept there: the same command goes on from it if it was stopped."""
    protocol: Literal["coco", "voc"] = "coco"
    """voc adds the AP of PASCAL VOC, by 11 points and by all."""
    referee: bool = True
    """Have pycocotools, and faster-coco-eval, measure the same detections, where they are installed."""
    shapes: int = 200
    """Images that --data shapes makes."""
    seed: int = 0
    """Of --data shapes: with the seed of a training run, its validation images."""

    def __post_init__(self):
        _require(self.shapes > 0, "shapes", self.shapes, "more than 0")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(UseConfig):
    """Find the objects in images: draws them and writes COCO-format JSON."""

    images: tuple[Path, ...]
    """Image files, folders, and patterns such as 'photos/*.jpg'."""
    output: Path = Path("predictions")
    """Folder for a picture of each image and predictions.json."""
    min_score: float = 0.3
    """Lowest score, from 0 to 1, of what is drawn and written."""
    draw: bool = True
    """Draw a picture of each image."""


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Draw how an image becomes boxes: heatmap, peaks, offsets, sizes."""

    image: Path
    """The image file."""
    weights: Path = DEMO_WEIGHTS
    """The trained network: best.safetensors or last.safetensors of a run folder."""
    output: Path = Path("explanation.png")
    """The picture to write."""
    min_score: float = 0.3
    """Lowest score, from 0 to 1, of what is shown."""

    def __post_init__(self):
        _require(0 <= self.min_score <= 1, "min_score", self.min_score, "0 to 1")


@dataclass(frozen=True)
class RecipesConfig:
    """List whole trainings by name: published AP, cost, hours on this machine."""

    names: tuple[str, ...] = ()
    """Recipes to show in full, for which --names may be left out; by default all in a table."""
    measure: bool = False
    """Do 20 training steps of each network, and predict hours and memory from them."""
    device: str = "auto"
    """Where to measure: auto (a GPU where one can be used), cpu, cuda, or cuda:0, cuda:1 and so on."""
    precision: Literal["float32", "tf32", "bf16", "fp16"] | None = None
    """What to measure in; by default the recipe's own on a GPU, float32 on a CPU."""
    size: int | None = None
    """Side of the images measured with; by default the recipe's on a GPU, 128 on a CPU."""
    batch_size: int | None = None
    """Images of a step measured with; by default the recipe's on a GPU, or the half that fits; 2 on a CPU."""

    def __post_init__(self):
        for name in ("size", "batch_size"):
            _require(getattr(self, name) is None or getattr(self, name) > 0, name, getattr(self, name), "more than 0")


@dataclass(frozen=True)
class DemoConfig:
    """Train on made-up shapes, measure AP, draw what was found."""

    output: Path = DEMO_FOLDER
    """Folder for the run and its pictures; an unfinished run in it is gone on with."""
    seed: int = 0
    """Of everything random: the same seed gives the same figures."""


@dataclass(frozen=True, kw_only=True)
class DataCheckConfig:
    """List what is wrong with a data set, count and draw what is in it."""

    path: Path
    """A COCO-format .json file, or a folder in VOC or COCO layout."""
    images: Path | None = None
    """Folder of the images of a .json file, where it is not found beside it."""
    split: str = "train"
    """Part of the data to check."""
    output: Path = Path("data-check")
    """Folder for report.txt, report.json and pictures."""
    size: int = 512
    """Side of the network input, in pixels, for which centres that fall into one cell are counted."""


@dataclass(frozen=True, kw_only=True)
class DataPrepareConfig:
    """Download a data set, or take it from disk, check it, and lay it out for training."""

    name: Literal["voc", "coco", "coco-sample"]
    """voc: PASCAL VOC, 20 classes, 3 GB to download; coco: COCO 2017, 80 classes, 20 GB; coco-sample: 73 photographs
    of COCO 2017 under open licences."""
    folder: Path
    """Folder for it; what is there and right is not fetched again."""
    source: str | None = None
    """URL of a mirror, or the folder of the archives where they are on disk; of coco-sample also a folder or an archive
    that has the files, or a URL of such an archive. By default the publisher."""
    years: tuple[int, ...] | None = None
    """Of voc: 2007, 2012, by default both, merged."""
    subset: int | None = None
    """Make a subset as well, of so many images to train on and as many to validate."""
    classes: str = ""
    """Classes of the subset, such as dog,cat: only their objects, and only images that show one; by default all."""
    seed: int = 0
    """Of the choice of images: the same seed gives the same subset."""


@dataclass(frozen=True)
class ConvertConfig:
    """Make a .pth file of the released code one that all verbs take."""

    source: Path
    """The .pth file."""
    target: Path
    """The .safetensors file to write."""
    network: str | None = None
    """The backbone that the file is of, such as resnet18 or dla34."""
    dataset: Literal["coco", "voc"] = "coco"
    """What it was trained on: its 80 or 20 classes, and pixel statistics."""
    size: int | None = None
    """Side of the network input in pixels; by default 512 for coco and 384 for voc."""


@dataclass(frozen=True)
class WeightsListConfig:
    """List the released networks, where they are and what is known of them."""

    folder: Path = WEIGHTS_FOLDER
    """Folder of converted networks: those that are in it are marked."""


@dataclass(frozen=True)
class WeightsGetConfig:
    """Download a released network, check it and convert it."""

    name: str
    """Its name, as minicenternet weights list shows it."""
    source: str | None = None
    """The .pth file where it was downloaded already, or a URL of it; by default from where it was published."""
    folder: Path = WEIGHTS_FOLDER
    """Folder for NAME.pth and NAME.safetensors."""


@dataclass(frozen=True)
class TutorialConfig:
    """Open the course in Jupyter: a copy of each notebook, with exercises."""

    folder: Path = COURSE_FOLDER
    """Folder for your copies, which may stand without --folder; those that you edited are left as they are."""
    jupyter: bool = True
    """Open Jupyter on the folder."""


@dataclass(frozen=True)
class TutorialCheckConfig:
    """Check your answers to the exercises of the course."""

    folder: Path = COURSE_FOLDER
    """Folder of your copies, which may stand without --folder."""
    seconds: float = 180
    """Time limit for each notebook."""


@dataclass(frozen=True)
class DoctorConfig:
    """Say what this machine has, and what to type where something is missing."""

    folder: Path = Path(".")
    """Where runs will be kept: its free space and write access are looked at."""


@dataclass(frozen=True)
class BenchConfig:
    """Measure how fast this machine trains and detects, or how fast batches come."""

    loader: str | None = None
    """Measure this instead: how fast this data (as --data of train) is read and prepared, by how many workers, where
    the time goes, and how many workers feed a training step."""
    images: str | None = None
    """With --loader: folder of the images of a .json file, where it is not found beside it."""
    backbones: tuple[str, ...] = ("small", "resnet18")
    """Networks to measure."""
    size: int | None = None
    """Side of the network input in pixels; by default 128 for small and 256 for the others, with --loader as train."""
    batch_size: int | None = None
    """Images in a step of training; by default 16 for small and 2 for the others, with --loader as train."""
    seconds: float = 3.0
    """Time for each figure; at least three runs are measured."""
    device: str = "cpu"
    """What computes, or, with --loader, what the batches are for: cpu, cuda, or, of several GPUs, cuda:0, cuda:1 and so
    on; auto takes a GPU where one can be used."""
    graph: bool = False
    """On a GPU, launch all kernels of a step or of an image at once, as a CUDA graph."""
    json: Path | None = None
    """File to write the figures to."""
