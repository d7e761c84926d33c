"""From a photograph to its objects: put it before the network, decode the maps, and take the boxes back.

    image --view--> network input --network--> maps --decode--> boxes of the input --view, backwards--> boxes

Everything is done as the released code does it: fixed or kept resolution, the mirrored image beside the image itself
("flip test"), several scales merged by soft-NMS ("multi-scale test"). Boxes are not clipped to the image.
"""

from __future__ import annotations

import glob
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from .autograd import Tensor, no_grad
from .backend import Array, get_xp, to_cpu, to_gpu
from .data.annotation import Sample
from .data.images import IMAGE_SUFFIXES, read_image, to_rgb
from .data.transforms import apply_to_boxes, compose, invert, keep_resolution, letterbox, normalise, warp
from .device import check_graph, memory_explained
from .errors import InputError
from .graph import Captured
from .metrics.coco import to_coco_results
from .ops import sigmoid
from .points.decode import nms as hard_nms
from .points.decode import soft_nms
from .threads import one_blas_thread

if TYPE_CHECKING:
    from .model import CenterNet

ImageLike = str | os.PathLike | np.ndarray | Image.Image | Sample


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, best first.

    boxes (N, 4) float32, x1 y1 x2 y2 in pixels of the image, not clipped to it; scores (N,) float32, 0 to 1;
    labels (N,) int64; class_names, one per label; image (H, W, 3) uint8 RGB, or None where it was not kept; file_name,
    empty for an image that came without one.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    image: np.ndarray | None = field(default=None, repr=False)
    file_name: str = ""

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[tuple[str, float, np.ndarray]]:
        """Yield (class name, score, box) of each object."""
        for label, score, box in zip(self.labels, self.scores, self.boxes, strict=True):
            yield self.class_names[label], float(score), box

    def __str__(self) -> str:
        """A heading, then a line for each object: class, score, box."""
        width = max([len(name) for name, _, _ in self] + [len("class")])
        lines = [f"{self.file_name or 'image'}: {len(self)} object{'' if len(self) == 1 else 's'}"]
        if len(self):
            lines.append(f"  {'class':<{width}}  score       x1       y1       x2       y2")
        for name, score, box in self:
            lines.append(f"  {name:<{width}}  {score:5.3f}" + "".join(f"{value:9.1f}" for value in box))
        return "\n".join(lines)

    def above(self, min_score: float) -> Detections:
        """Return those with a score of at least min_score."""
        kept = self.scores >= min_score
        return replace(self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept])

    def draw(self, path: str | os.PathLike | None = None, min_score: float = 0.3) -> np.ndarray:
        """Return the image with the boxes of at least min_score, (H', W', 3) uint8, and write it to path if given.

        Small images are enlarged.  Raises InputError when the image was not kept or path cannot be written.
        """
        from .draw import draw_boxes  # matplotlib is imported only by those who draw

        if self.image is None:
            raise InputError("these detections were stored without their image; use minicenternet.draw.draw_boxes")
        shown = self.above(min_score)
        return draw_boxes(self.image, shown.boxes, shown.labels, shown.scores, self.class_names, path)

    def to_coco(
        self, image_id: int | str | None = None, category_ids: Sequence[int] | None = None, rounded: bool = False
    ) -> list[dict]:
        """Return the records of a COCO results file, ready for json.dump, with boxes as x, y, width, height.

        image_id: by default the file name, or 1 where there is none.  category_ids: one for each label, by default 1 to
        C.  rounded: to two decimals, as the released code writes.
        """
        image_id = (self.file_name or 1) if image_id is None else image_id
        category_ids = range(1, len(self.class_names) + 1) if category_ids is None else category_ids
        return to_coco_results([self], [image_id], category_ids, rounded=rounded)


def predict(
    model: CenterNet,
    images: ImageLike | Iterable[ImageLike],
    *,
    min_score: float = 0.1,
    k: int = 100,
    resolution: Literal["fixed", "keep"] = "fixed",
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    nms: Literal["soft", "hard"] | None = None,
    batch_size: int = 8,
) -> Detections | list[Detections]:
    """Return the Detections of one image, or a list of them for a list of images.

    images: a path, an array (H, W, 3) uint8 RGB, a PIL image or a Sample; or an iterable of these.  All other options
    are Predictor's.  Raises InputError for an image that cannot be read or an option out of range.
    """
    predictor = Predictor(
        model,
        min_score=min_score,
        k=k,
        resolution=resolution,
        flip=flip,
        scales=tuple(scales),
        nms=nms,
        batch_size=batch_size,
    )
    one = isinstance(images, (str, os.PathLike, Image.Image, Sample)) or getattr(images, "ndim", 0) in (2, 3)
    if one or not isinstance(images, Iterable):
        return next(predictor.stream([images]))
    return list(predictor.stream(images))


@dataclass
class Predictor:
    """A network and the options it is used with; `seconds` sums up the time of each stage.

    min_score      lowest score reported
    k              most objects of an image
    resolution     "fixed": the whole image, as large as it fits into model.input_size; "keep": pixel by pixel
    flip           average heatmaps and sizes with those of the mirrored image
    scales         sizes at which the image is looked at; the boxes of several are merged by `nms`, or "soft"
    nms            None, "soft" (Gaussian) or "hard" suppression of overlapping boxes of a class
    batch_size     images read at a time; those of equal input size go through the network together
    graph          on a GPU, launch the kernels of a batch as a CUDA graph, from the second batch of a size on; the
                   network must then stay where it lies, and keep its precision

    Raises InputError for an option out of range, and where the heatmap holds NaN.  Source: paper section 4.1, released
    code.
    """

    model: CenterNet
    min_score: float = 0.1
    k: int = 100
    resolution: Literal["fixed", "keep"] = "fixed"
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    nms: Literal["soft", "hard"] | None = None
    batch_size: int = 8
    graph: bool = False
    seconds: Counter[str] = field(default_factory=Counter)

    def __post_init__(self):
        check_graph(self.graph, "cpu" if get_xp(self.model.parameters()[0].data) is np else "cuda")
        self.captured = Captured(lambda arrays: self.model.task.decode(self._maps(arrays["image"]), self.k))
        self.assumed = self._assumed() if self.graph else None
        requirements = {
            f"min_score is {self.min_score}, expected 0 to 1": 0 <= self.min_score <= 1,
            f"k is {self.k}, expected at least 1": self.k >= 1,
            f"resolution is {self.resolution!r}, expected 'fixed' or 'keep'": self.resolution in ("fixed", "keep"),
            f"scales is {self.scales}, expected one or more factors above 0": len(self.scales) > 0
            and all(0 < scale < np.inf for scale in self.scales),
            f"nms is {self.nms!r}, expected None, 'soft' or 'hard'": self.nms in (None, "soft", "hard"),
            f"batch_size is {self.batch_size}, expected at least 1": self.batch_size >= 1,
            "graph wants inputs of one size; with resolution 'keep' each would have a graph of its own": not self.graph
            or self.resolution == "fixed",
        }
        for message, holds in requirements.items():
            if not holds:
                raise InputError(f"{message}.")

    def stream(self, images: Iterable[ImageLike]) -> Iterator[Detections]:
        """Yield the Detections of each image in turn; never more than batch_size images are held.

        Raises InputError, which names the file, for an image that cannot be read.
        """
        images = iter(images)
        while True:
            with self._timed("load"):
                chunk = [read(image) for image in itertools.islice(images, self.batch_size)]
            if not chunk:
                return
            found = self._detect([pixels for pixels, _ in chunk])
            for (pixels, file_name), (boxes, scores, labels) in zip(chunk, found, strict=True):
                yield Detections(boxes, scores, labels, self.model.class_names, pixels, file_name)

    def _detect(self, images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Boxes, scores and labels of each image."""
        found = [[] for _ in images]  # for each image, what was found at each scale: (boxes, scores, labels)
        for scale in self.scales:
            views = [self._view(image, scale) for image in images]
            for size in dict.fromkeys(view.size for view in views):
                members = [i for i, view in enumerate(views) if view.size == size]
                with self._timed("prepare"):
                    canvases = [warp(images[i], views[i].to_input, size) for i in members]
                    batch = np.stack([normalised(canvas, self.model) for canvas in canvases])
                with memory_explained(self.batch_size, self._halved, self.captured):
                    decoded = self._in_input(batch)
                with self._timed("merge"):
                    for i, boxes, scores, labels in zip(members, *decoded, strict=True):
                        found[i].append((apply_to_boxes(views[i].to_image, boxes), scores, labels))
        with self._timed("merge"):
            return [self._merge(*map(np.concatenate, zip(*parts, strict=True))) for parts in found]

    def _in_input(self, batch: np.ndarray) -> list[np.ndarray]:
        """Boxes in pixels of the network input, scores and labels of a batch."""
        if self.graph:
            if self._assumed() != self.assumed:
                raise InputError(
                    "the network was moved, or given another precision; a graph needs a Predictor made anew"
                )
            with self._timed("network and decode"):
                return _on_cpu(self.captured({"image": to_gpu(batch)}), self.model)
        with self._timed("network"):
            outputs = self._maps(batch)
        with self._timed("decode"):
            return _on_cpu(self.model.task.decode(outputs, self.k), self.model)

    def _assumed(self) -> tuple[str, object]:
        """Return what a graph takes for granted: the precision, and where the weights lie."""
        return self.model.precision, getattr(self.model.parameters()[0].data.data, "ptr", None)

    def _halved(self, room: float) -> str:
        if self.batch_size == 1:
            return "One image is more than it can hold: use a smaller size, or the CPU"
        return f"Try a batch size of {self.batch_size // 2}: half, as nothing more is known"

    def _view(self, image: np.ndarray, scale: float) -> View:
        pad = max(self.model.backbone.stride, 32) - 1
        return view(*image.shape[:2], self.model.input_size, scale, None if self.resolution == "fixed" else pad)

    def _maps(self, batch: Array) -> Mapping[str, Tensor]:
        if not self.flip:
            return run(self.model, batch)
        both = run(self.model, get_xp(batch).concatenate([batch, batch[:, :, ::-1]]))
        outputs = {name: Tensor(maps.data[: len(batch)]) for name, maps in both.items()}
        mirrored = {name: Tensor(maps.data[len(batch) :]) for name, maps in both.items()}
        return average_mirrored(outputs, mirrored)

    def _merge(
        self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k best of all scales, duplicates suppressed, best first."""
        if self.nms == "hard":
            kept = hard_nms(boxes, scores, labels)
            scores = scores[kept]
        elif self.nms == "soft" or len(self.scales) > 1:
            kept, scores = soft_nms(boxes, scores, labels, plus_one=True)  # as released
        else:
            kept = np.arange(len(scores))
        best = np.flatnonzero(scores >= self.min_score)[: self.k]  # what decode and both kinds of NMS return is sorted
        return boxes[kept][best], scores[best].astype(np.float32), labels[kept][best]

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start


def _on_cpu(decoded: Iterable[Array], model: CenterNet) -> list[np.ndarray]:
    """Return boxes, scores and labels on the CPU.

    Raises InputError for scores of NaN, which is how a GPU, that waits for nothing, tells of a heatmap with NaN.
    """
    boxes, scores, labels = (to_cpu(array) for array in decoded)
    if np.isnan(scores).any():
        overflow = ", or for numbers too large for fp16, of which bf16 takes more" if model.precision == "fp16" else ""
        raise InputError(
            f"the heatmap holds NaN, so that its best cells are unknown; look for NaN in the weights{overflow}"
        )
    return [boxes, scores, labels]


class View(NamedTuple):
    """How an image is put before the network: (h, w) of the input, and (2, 3) matrices there, and back for boxes."""

    size: tuple[int, int]
    to_input: np.ndarray
    to_image: np.ndarray


def view(height: int, width: int, input_size: tuple[int, int], scale: float = 1, pad: int | None = None) -> View:
    """Put an image of (height, width), resized by `scale`, into the middle of a network input (released code).

    pad: None for an input of input_size that the unscaled image just fits into ("fixed resolution"; larger scales are
    cut off); otherwise each side becomes the next multiple of pad + 1 and pixels keep their size ("keep resolution").
    """
    scaled_height, scaled_width = max(int(height * scale), 1), max(int(width * scale), 1)
    if pad is None:
        size = tuple(input_size)
        middle = np.array([[1, 0, (width - scaled_width) / 2], [0, 1, (height - scaled_height) / 2]])
        place = compose(letterbox(width, height, size[1], size[0]), middle)
    else:
        place, size = keep_resolution(scaled_width, scaled_height, pad)
    # Resizing leaves the outer edges where they are, so that (0, 0), the centre of the first pixel, moves.
    x, y = scaled_width / width, scaled_height / height
    resize = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2]])
    return View(size, compose(place, resize), invert(place) / scale)


def normalised(canvas: np.ndarray, model: CenterNet) -> np.ndarray:
    """(h, w, 3) uint8 RGB as the network wants it: float32, in its channel order, by its pixel statistics."""
    pixels = np.float32(1 / 255) * canvas
    if model.channel_order == "BGR":
        pixels = pixels[..., ::-1]
    return normalise(pixels, model.pixel_mean, model.pixel_std)


def run(model: CenterNet, batch: Array) -> Mapping[str, Tensor]:
    """The raw output maps of a batch (B, h, w, 3) in evaluation mode, float32 or as the weights, with nothing recorded.

    Afterwards each layer is in the mode it was in.
    """
    weights = model.parameters()[0].data
    modes = [(module, module.training) for _, module in model.named_modules()]
    model.eval()
    try:
        with no_grad(), one_blas_thread():
            outputs = model(Tensor(get_xp(weights).asarray(batch, dtype=weights.dtype)))
            return {name: Tensor(maps.data.astype(weights.dtype, copy=False)) for name, maps in outputs.items()}
    finally:
        for module, training in modes:
            module.training = training


def average_mirrored(outputs: Mapping[str, Tensor], mirrored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Raw maps whose heatmap and sizes are the means of an image's own and of its mirror image's (released code).

    Probabilities are averaged, not logits. The offset, which the mirror turns round, is that of the image itself.
    """
    own, other = outputs["hm"].data, mirrored["hm"].data[:, :, ::-1]
    xp = get_xp(own)
    probability = (sigmoid.raw(own)[0] + sigmoid.raw(other)[0]) / 2
    with np.errstate(divide="ignore"):  # a probability of 1 has the logit infinity
        logit = xp.log(probability) - xp.log1p(-probability)
    size = (outputs["wh"].data + mirrored["wh"].data[:, :, ::-1]) / 2
    return {**outputs, "hm": Tensor(logit), "wh": Tensor(size)}


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the network sees and answers, step by step.

    image (h, w, 3) uint8, the network input; heatmap (h/4, w/4, C) probabilities; offset, size (h/4, w/4, 2) in cells;
    detections: decoded from these maps, in pixels of the network input.
    """

    image: np.ndarray
    heatmap: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    detections: Detections

    def draw(self, path: str | os.PathLike | None = None, min_score: float = 0.3) -> np.ndarray:
        """Return one picture of all steps, (H, W, 3) uint8, and write it to path if given; see draw_explanation."""
        from .draw import draw_explanation  # matplotlib is imported only by those who draw

        shown = self.detections.above(min_score)
        return draw_explanation(
            self.image,
            self.heatmap,
            self.offset,
            self.size,
            shown.boxes,
            shown.labels,
            shown.scores,
            shown.class_names,
            path,
        )


def explain(model: CenterNet, image: ImageLike, *, k: int = 100) -> Explanation:
    """Return every step from an image (path, array, PIL image or Sample) to its boxes, at fixed resolution.

    Raises InputError for an image that cannot be read.
    """
    pixels, file_name = read(image)
    fixed = view(*pixels.shape[:2], model.input_size)
    canvas = warp(pixels, fixed.to_input, fixed.size)
    outputs = run(model, normalised(canvas, model)[None])
    boxes, scores, labels = (array[0] for array in _on_cpu(model.task.decode(outputs, k), model))
    maps = {name: to_cpu(tensor.data)[0] for name, tensor in outputs.items()}
    detections = Detections(boxes, scores, labels, model.class_names, canvas, file_name)
    return Explanation(canvas, sigmoid.raw(maps["hm"])[0], maps["reg"], maps["wh"], detections)


def read(image: ImageLike) -> tuple[np.ndarray, str]:
    """Return (H, W, 3) uint8 RGB and the file name, if known, of a path, array, PIL image or Sample.

    Raises InputError for a file that cannot be read and for an array of another shape or type.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image), os.fspath(image)
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "")
        try:
            return to_rgb(ImageOps.exif_transpose(image)), name
        except InputError as error:
            raise InputError(f"cannot use {name or 'the PIL image'}: {error}") from error
        except OSError as error:
            raise InputError(f"cannot read {name or 'the PIL image'}: it is truncated or damaged ({error})") from error
    name = ""
    if isinstance(image, Sample):
        image, name = image.image, image.annotation.file_name
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        given = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(
            f"an image is a path, a PIL image or an array (H, W, 3) of uint8, RGB, not {given}; "
            "floats from 0 to 1 become uint8 by (255 * image).astype('uint8')"
        )
    if image.size == 0:
        raise InputError(f"an image of shape {image.shape} has no pixels")
    return image, name


def find_images(patterns: Iterable[str | os.PathLike]) -> list[Path]:
    """Return the image files that files, folders and glob patterns name, each once, folders in order of name.

    A file named itself is taken whatever its suffix; in a folder, not in those below it, IMAGE_SUFFIXES are; "**" in a
    pattern stands for any folders.  Raises InputError for a pattern that leads to no image.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_file():
            here = [path]
        elif path.is_dir():
            here = _images_among(path.iterdir())
            searched = f"the folder {path} holds"
        else:
            here = _images_among(map(Path, glob.glob(os.fspath(pattern), recursive=True)))
            searched = f"there is no file or folder {path}, and as a pattern it matches"
        if not here:
            raise InputError(f"{searched} no images ({' '.join(IMAGE_SUFFIXES)}). Check the name.")
        found.update(dict.fromkeys(here))
    if not found:
        raise InputError("no images were named; give files, folders or patterns such as 'photos/*.jpg'.")
    return list(found)


def _images_among(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
