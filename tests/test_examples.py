"""What a GPU makes of a batch is what the CPU's workers make: of one seed, the same views and colours."""

import pickle

import numpy as np
import pytest
from on_gpu import nothing_read

from minicenternet.backend import to_gpu
from minicenternet.data import Shapes
from minicenternet.data.annotation import Annotation, Sample
from minicenternet.data.loader import Loader
from minicenternet.data.transforms import Augmentation
from minicenternet.examples import ROOM, Preparation, TrainingExample, Unprepared
from minicenternet.points.targets import MAX_OBJECTS

SIZE = (32, 48)


class Photos:
    """Images of several sizes, some with many objects, some too large for their room on the GPU."""

    class_names, category_ids = ("a", "b", "c"), (1, 2, 3)
    sizes = ((20, 31), (48, 32), (64, 128), (7, 90), (200, 300))
    counts = (3, 0, MAX_OBJECTS + 40, 1, 8)

    def __len__(self) -> int:
        return len(self.sizes)

    def annotation(self, i: int) -> Annotation:
        rng, (height, width), n = np.random.default_rng(i), self.sizes[i], self.counts[i]
        corner = rng.uniform(-5, [width, height], (n, 2))
        boxes = np.concatenate([corner, corner + rng.exponential([width / 5, height / 5], (n, 2))], axis=1)
        nothing = np.zeros(n, bool)
        return Annotation(i, f"{i}.jpg", width, height, boxes.astype(np.float32), rng.integers(0, 3, n), nothing,
                          nothing, np.ones(n, np.float32))  # fmt: skip

    def __getitem__(self, i: int) -> Sample:
        return Sample(np.random.default_rng(i).integers(0, 256, (*self.sizes[i], 3), np.uint8), self.annotation(i))


def example(**changes) -> TrainingExample:
    options = dict(task="detection", num_classes=3, size=SIZE, pixel_mean=(0.4, 0.5, 0.6), pixel_std=(0.2, 0.3, 0.25),
                   channel_order="RGB", augmentation=Augmentation())  # fmt: skip
    return TrainingExample(**options | changes)


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(channel_order="BGR", augmentation=Augmentation(random_crop=False), radius_form="corrected"),
        dict(augmentation=None, min_overlap=0.3),
    ],
)
def test_a_gpus_batch_is_the_cpus(cupy, changes):
    on_cpu, prepare = example(**changes), Preparation(example(**changes))
    unprepared = pickle.loads(pickle.dumps(Unprepared(size=SIZE, augmentation=on_cpu.augmentation)))
    loaders = [Loader(Photos(), make, 5, seed=3, shuffle=True) for make in (on_cpu, unprepared)]
    for epoch in (0, 1):
        (expected,), (given,) = (list(loader.epoch(epoch)) for loader in loaders)
        assert np.array_equal(given["dataset_index"], expected.pop("dataset_index"))
        uploaded = {name: to_gpu(array) for name, array in given.items()}
        with nothing_read(cupy):
            found = prepare(uploaded)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            ours = found[name].get()
            assert ours.dtype == array.dtype, name
            if name == "image":
                np.testing.assert_allclose(ours, array, rtol=2e-6, atol=2e-6 * np.abs(array).max())
            elif name == "heatmap":
                np.testing.assert_allclose(ours, array, rtol=1e-6)
            else:
                assert np.array_equal(ours, array), name
        assert expected["mask"].sum(axis=1).max() == MAX_OBJECTS or changes


def test_less_is_uploaded_than_the_cpus_batch_has():
    shapes, rng = Shapes(1, SIZE[0]), np.random.default_rng(0)
    sizes = [
        sum(np.asarray(array).nbytes for array in make(shapes[0], rng).values())
        for make in (Unprepared(size=SIZE, augmentation=None), example(num_classes=80))
    ]
    assert sizes[0] < sizes[1] / 3


def test_an_image_too_large_for_its_room_comes_as_the_input():
    make = Unprepared(size=SIZE, augmentation=None)
    for i, large in enumerate([False, False, True, False, True]):
        given = make(Photos()[i], np.random.default_rng(0))
        assert tuple(given["height_width"]) == (SIZE if large else Photos.sizes[i])
        assert given["pixels"].size == ROOM * 3 * SIZE[0] * SIZE[1]
        assert np.array_equal(given["from_output"], np.eye(2, 3)) == large
