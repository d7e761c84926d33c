import numpy as np
import pytest
from on_gpu import nothing_read

from minicenternet.errors import InputError
from minicenternet.points import targets, targets_cuda


def padded(images, slots):
    """boxes (B, M, 4) and labels (B, M), -1 where a slot is empty, from a list of (boxes, labels)."""
    boxes = np.zeros((len(images), slots, 4), np.float32)
    labels = np.full((len(images), slots), -1)
    for i, (some, of) in enumerate(images):
        boxes[i, : len(some)], labels[i, : len(of)] = some, of
    return boxes, labels


def random_images(rng, count, most, side, classes):
    """Boxes of all sizes, some outside the map, some without area, several on one cell."""
    for _ in range(count):
        n = rng.integers(0, most + 1)
        corner, sides = rng.uniform(-20, side, (n, 2)), rng.exponential(side / 4, (n, 2))
        boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
        boxes[rng.random(n) < 0.1, 2] = 0
        boxes[rng.random(n) < 0.2] = boxes[:1]
        yield boxes, rng.integers(0, classes, n)


def assert_equal(found, expected):
    for name in targets.Targets._fields:
        gpu, cpu = getattr(found, name).get(), getattr(expected, name)
        assert gpu.dtype == cpu.dtype, name
        if name == "heatmap":
            np.testing.assert_allclose(gpu, cpu, rtol=1e-6)
            assert np.array_equal(gpu == 1, cpu == 1)
        else:
            assert np.array_equal(gpu, cpu), name


@pytest.mark.parametrize("form", ["released", "corrected"])
@pytest.mark.parametrize("height, width, classes", [(1, 1, 1), (31, 33, 3), (3, 127, 2), (9, 8, 201)])
def test_equals_the_cpu_image_by_image(cupy, height, width, classes, form):
    rng = np.random.default_rng(9)
    images = list(random_images(rng, 3, 40, 4 * max(height, width), classes))
    boxes, labels = (cupy.asarray(array) for array in padded(images, 40))
    with nothing_read(cupy):
        found = targets_cuda.encode(boxes, labels, classes, height, width, max_objects=30, form=form)
    one_by_one = [targets.encode(*image, classes, height, width, max_objects=30, form=form) for image in images]
    assert_equal(found, targets.Targets(*(np.stack(fields) for fields in zip(*one_by_one, strict=True))))


def test_more_objects_than_slots(cupy):
    """The first ones count, and the next image's slots are left alone."""
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 90, (2, 20, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (2, 20, 2))], axis=2).astype(np.float32)
    labels = rng.integers(0, 3, (2, 20))
    found = targets_cuda.encode(cupy.asarray(boxes), cupy.asarray(labels), 3, 31, 33, max_objects=7)
    one_by_one = [targets.encode(boxes[i], labels[i], 3, 31, 33, max_objects=7) for i in range(2)]
    assert_equal(found, targets.Targets(*(np.stack(fields) for fields in zip(*one_by_one, strict=True))))


@pytest.mark.parametrize("classes", [3, 8])
def test_more_slots_than_threads(cupy, classes):
    """And more objects than are kept, the last of which is looked for after the first threads' share."""
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 90, (2, 300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (2, 300, 2))], axis=2).astype(np.float32)
    labels = np.where(rng.random((2, 300)) < 0.7, rng.integers(0, classes, (2, 300)), -1)
    for most in (150, 1000):
        found = targets_cuda.encode(cupy.asarray(boxes), cupy.asarray(labels), classes, 31, 33, max_objects=most)
        kept = [labels[i] >= 0 for i in range(2)]
        one_by_one = [
            targets.encode(boxes[i][kept[i]], labels[i][kept[i]], classes, 31, 33, max_objects=most) for i in range(2)
        ]
        assert_equal(found, targets.Targets(*(np.stack(fields) for fields in zip(*one_by_one, strict=True))))


def test_a_block_draws_several_tiles(cupy, monkeypatch):
    """What one tile was given does not show in the next one, and no tile is left out."""
    rng = np.random.default_rng(2)
    corners = rng.uniform(0, 100, (2, 20, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 60, (2, 20, 2))], axis=2).astype(np.float32)
    labels = rng.integers(0, 3, (2, 20))
    one_by_one = [targets.encode(boxes[i], labels[i], 3, 31, 33) for i in range(2)]
    expected = targets.Targets(*(np.stack(fields) for fields in zip(*one_by_one, strict=True)))
    for blocks in (1, 5, 10**6):
        monkeypatch.setattr(targets_cuda, "BLOCKS", blocks)
        assert_equal(targets_cuda.encode(cupy.asarray(boxes), cupy.asarray(labels), 3, 31, 33), expected)


def test_boxes_of_every_size_have_the_cpus_radius(cupy):
    """A radius is cut to an integer, so that a single rounding could show."""
    sides = np.arange(1, 301, dtype=np.float32)
    boxes = np.stack([0 * sides, 0 * sides, 4 * sides, 4 * sides[::-1]], axis=1)
    for first in range(0, 300, 50):
        some, labels = boxes[first : first + 50], np.arange(50)
        expected = targets.encode(some, labels, 50, 300, 300)
        found = targets_cuda.encode(cupy.asarray(some[None]), cupy.asarray(labels[None]), 50, 300, 300)
        assert np.array_equal(found.heatmap.get()[0] > 0, expected.heatmap > 0)


def test_one_launch_for_the_batch(cupy):
    if not hasattr(cupy, "launches"):
        pytest.skip("CuPy itself does not count")
    boxes, labels = padded([([[0, 0, 9, 9]], [0])] * 5, 4)
    arrays = cupy.asarray(boxes), cupy.asarray(labels)
    targets_cuda.encode(*arrays, 2, 8, 8)
    assert len(cupy.launches) == 1


def test_no_images_no_slots_and_wrong_shapes(cupy):
    none = targets_cuda.encode(cupy.zeros((0, 4, 4), np.float32), cupy.zeros((0, 4), np.int64), 2, 8, 8)
    assert none.heatmap.shape == (0, 8, 8, 2)
    blank = targets_cuda.encode(cupy.zeros((2, 0, 4), np.float32), cupy.zeros((2, 0), np.int64), 2, 8, 8)
    assert not blank.heatmap.get().any() and not blank.mask.get().any()
    with pytest.raises(InputError, match=r"needs boxes \(B, M, 4\)"):
        targets_cuda.encode(cupy.zeros((4, 4), np.float32), cupy.zeros(4, np.int64), 2, 8, 8)
    with pytest.raises(InputError, match="no form 'other'"):
        targets_cuda.encode(cupy.zeros((1, 4, 4), np.float32), cupy.zeros((1, 4), np.int64), 2, 8, 8, form="other")
