"""A stand-in for a trained network, and images for it: coloured rectangles on black, and a `Seer` that finds them.

Red, green and blue are classes 0, 1 and 2, one object of each at most; the brightness of an object is its score.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from minicenternet.autograd import Tensor
from minicenternet.data.annotation import Annotation, Sample
from minicenternet.nn.module import Module, Parameter
from minicenternet.points.targets import encode
from minicenternet.tasks import detection

CLASSES = ("red", "green", "blue")


def paint(height, width, objects):
    """(height, width, 3) uint8 with a rectangle (x1, y1, x2, y2), whole pixels, and a score for each label."""
    image = np.zeros((height, width, 3), np.uint8)
    for label, ((x1, y1, x2, y2), score) in objects.items():
        image[y1:y2, x1:x2, label] = round(255 * score)
    return image


class Seer(Module):
    """Has CenterNet's interface, and answers with the maps of the rectangles it finds in its input.

    `seen` keeps the inputs. A ramp between two pixels counts in parts, so that boxes are exact to a part of a pixel.
    """

    task = detection
    pixel_mean, pixel_std, channel_order, precision = (0, 0, 0), (1, 1, 1), "RGB", "float32"

    def __init__(self, input_size=(128, 128), class_names=CLASSES, stride=16):
        self.weight = Parameter(np.zeros(1, np.float32))
        self.input_size, self.class_names = input_size, class_names
        self.backbone = SimpleNamespace(stride=stride)
        self.seen = []

    def forward(self, images):
        assert not self.training
        self.seen.append(images.data)
        maps = [self._maps(image) for image in images.data]
        return {name: Tensor(np.stack([one[name] for one in maps])) for name in ("hm", "wh", "reg")}

    def _maps(self, image):
        height, width = image.shape[0] // 4, image.shape[1] // 4
        boxes, labels = [], []
        probability = np.zeros((height, width, 3))
        for label in range(3):
            score = image[..., label].max()
            if score > 0:
                (x1, x2), (y1, y2) = (_extent(image[..., label].max(axis) / score) for axis in (0, 1))
                boxes.append((x1, y1, x2, y2))
                labels.append(label)
                probability[..., label] = score
        targets = encode(np.reshape(boxes, (-1, 4)), np.array(labels, int), 3, height, width)
        p = np.clip(targets.heatmap * probability, 1e-9, 1 - 1e-9)
        maps = {"hm": np.log(p / (1 - p)), "wh": np.zeros((height, width, 2)), "reg": np.zeros((height, width, 2))}
        for name, values in (("wh", targets.size), ("reg", targets.offset)):
            maps[name].reshape(-1, 2)[targets.index[: len(boxes)]] = values[: len(boxes)]
        return {name: values.astype(np.float32) for name, values in maps.items()}


def _extent(profile):
    """Where a row of ones, blurred at its ends, begins and ends."""
    centre = (profile * (np.arange(len(profile)) + 0.5)).sum() / profile.sum()
    return centre - profile.sum() / 2, centre + profile.sum() / 2


class Painted:
    """A data set of painted images; `objects[i]` maps labels to (box, score)."""

    class_names, category_ids = CLASSES, (7, 3, 90)

    def __init__(self, objects, size=(128, 128)):
        self.objects, self.size = objects, size

    def __len__(self):
        return len(self.objects)

    def annotation(self, i):
        boxes = np.array([box for box, _ in self.objects[i].values()], np.float32).reshape(-1, 4)
        labels = np.array(list(self.objects[i]), np.int64)
        none = np.zeros(len(boxes), bool)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        return Annotation(1000 + i, f"{i}.png", self.size[1], self.size[0], boxes, labels, none, none, area)

    def __getitem__(self, i):
        return Sample(paint(*self.size, self.objects[i]), self.annotation(i))
