"""A network that answers perfectly: whatever AP it misses is lost by encoding and decoding."""

import numpy as np
import pytest

from minicenternet.data.coco import Coco
from minicenternet.data.shapes import Shapes
from minicenternet.data.transforms import apply_to_boxes, invert, letterbox
from minicenternet.metrics import average_precision
from minicenternet.points.decode import decode
from minicenternet.points.targets import encode
from minicenternet.predict import Detections


def encode_and_decode(annotation, num_classes, size):
    """The detections of an image whose maps, at `size` x `size` pixels, are exactly those asked for."""
    matrix = letterbox(annotation.width, annotation.height, size, size)
    cells = size // 4
    targets = encode(apply_to_boxes(matrix, annotation.boxes), annotation.labels, num_classes, cells, cells)
    used = targets.mask == 1
    offset, wh = np.zeros((2, cells * cells, 2), np.float32)
    offset[targets.index[used]], wh[targets.index[used]] = targets.offset[used], targets.size[used]
    maps = targets.heatmap[None], offset.reshape(1, cells, cells, 2), wh.reshape(1, cells, cells, 2)
    boxes, scores, labels = (array[0] for array in decode(*maps, k=128))
    real = scores == 1
    return Detections(apply_to_boxes(invert(matrix), boxes)[real], scores[real], labels[real], ())


def oracle(dataset, size):
    truth = [dataset.annotation(i) for i in range(len(dataset))]
    classes = len(dataset.class_names)
    return average_precision(truth, [encode_and_decode(one, classes, size) for one in truth], classes)


def test_oracle_on_photographs(shared_data):
    result = oracle(Coco(shared_data / "coco-open" / "annotations" / "instances_val2017.json"), 512)
    assert result.ap >= 0.99
    assert result.ar_100 >= 0.99


@pytest.mark.parametrize("size", [128, 192])
def test_oracle_on_shapes(size):
    result = oracle(Shapes(100, 128, seed=1), size)
    assert result.ap >= 0.99
    assert result.ar_100 >= 0.99


def test_oracle_sees_collisions():
    """On 8 x 8 cells centres collide, and AP tells: the figures above are no matter of course."""
    assert oracle(Shapes(100, 128, seed=1), 32).ap < 0.98
