"""Small scenes for the tests of the metrics, with ties, duplicates, crowd regions, difficult objects, empty boxes."""

from types import SimpleNamespace

import numpy as np
from hypothesis import strategies as st


def objects(boxes=(), labels=None, crowd=None, difficult=None, area=None):
    """The ground truth of one image; one class, ordinary objects and the boxes' own areas unless told otherwise."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    n = len(boxes)
    return SimpleNamespace(
        boxes=boxes,
        labels=np.zeros(n, int) if labels is None else np.array(labels, int),
        crowd=np.zeros(n, bool) if crowd is None else np.array(crowd, bool),
        difficult=np.zeros(n, bool) if difficult is None else np.array(difficult, bool),
        area=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) if area is None else np.array(area, np.float32),
    )


def found(boxes=(), scores=(), labels=None):
    """The detections of one image; one class unless told otherwise."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels, int)
    return SimpleNamespace(boxes=boxes, scores=np.array(scores, np.float32), labels=labels)


def xyxy(x, y, width, height):
    return x, y, x + width, y + height


# a grid so coarse that boxes repeat, and IoUs and areas fall exactly on thresholds: 32 by 32, 96 by 96, IoU 0.5
boxes = st.builds(xyxy, *[st.sampled_from((0, 16))] * 2, *[st.sampled_from((32, 48, 96, 0))] * 2)
labels = st.integers(0, 2)
rarely = st.sampled_from((False, False, False, True))
areas = st.sampled_from((0, 500, 1023, 1024, 1025, 9215, 9216, 9217))
scores = st.integers(1, 5).map(lambda tenths: tenths / 10)


@st.composite
def scenes(draw):
    """Ground truth and detections of up to four images, three classes; many detections are exactly on an object."""
    truth, detections = [], []
    for _ in range(draw(st.integers(1, 4))):
        rows = draw(st.lists(st.tuples(boxes, labels, rarely, rarely, areas), max_size=5))
        truth.append(objects(*zip(*rows, strict=True)))
        anywhere = st.tuples(boxes, labels)
        on_object = st.sampled_from([row[:2] for row in rows]) if rows else anywhere
        rows = draw(st.lists(st.tuples(st.one_of(on_object, anywhere), scores), max_size=8))
        detections.append(found([row[0][0] for row in rows], [row[1] for row in rows], [row[0][1] for row in rows]))
    return truth, detections


def crowded(images, per_image, seed, decimals=2):
    """Random images with detections scattered round the objects, more of them than are counted, and rounded scores."""
    rng = np.random.default_rng(seed)
    truth, detections = [], []
    for _ in range(images):
        n = rng.integers(1, 8)
        size = np.exp(rng.uniform(np.log(8), np.log(200), (n, 2)))
        corner = rng.uniform(0, 300, (n, 2))
        box, label = np.concatenate([corner, corner + size], axis=1), rng.integers(0, 3, n)
        area = size.prod(axis=1) * rng.uniform(0.4, 1, n)
        truth.append(objects(box, label, rng.random(n) < 0.15, rng.random(n) < 0.1, area))
        source = rng.integers(0, n, per_image)
        shift = rng.normal(0, 0.08, (per_image, 4)) * np.tile(size[source], 2)
        score = rng.random(per_image).round(decimals)
        detections.append(found(box[source] + shift, score, label[source]))
    return truth, detections
