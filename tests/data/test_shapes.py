import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicenternet.data import open_dataset
from minicenternet.data.shapes import CLASSES, RING_HOLE, Shapes
from minicenternet.errors import InputError


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_a_sample_has_the_promised_form():
    dataset = Shapes(3, size=(40, 64))
    sample = dataset[2]
    assert sample.image.shape == (40, 64, 3) and sample.image.dtype == np.uint8 and sample.image.flags.c_contiguous
    annotation = sample.annotation
    assert (annotation.image_id, annotation.width, annotation.height) == (2, 64, 40)
    count = len(annotation.labels)
    assert annotation.boxes.shape == (count, 4) and annotation.boxes.dtype == annotation.area.dtype == np.float32
    assert annotation.labels.dtype == np.int64 and not annotation.crowd.any() and not annotation.difficult.any()
    assert dataset.class_names == ("circle", "square", "triangle", "star", "ring")
    assert dataset.category_ids == (1, 2, 3, 4, 5) and len(dataset) == 3


def test_an_image_depends_on_nothing_but_seed_and_index():
    dataset = Shapes(50, seed=3)
    late = dataset[7]
    for other in (Shapes(8, seed=3)[7], dataset[7], pickle.loads(pickle.dumps(dataset))[7], Shapes(8, seed=3)[-1]):
        np.testing.assert_array_equal(other.image, late.image)
        assert same(other.annotation, late.annotation)
    assert same(dataset.annotation(7), late.annotation)
    assert not np.array_equal(dataset[8].image, late.image)
    assert not np.array_equal(Shapes(50, seed=4)[7].image, late.image)


def test_indexing_is_that_of_a_sequence():
    dataset = Shapes(3, size=32)
    assert len(list(dataset)) == 3
    for beyond in (3, -4):
        with pytest.raises(IndexError):
            dataset[beyond]


@pytest.mark.parametrize("name", CLASSES)
def test_boxes_are_the_extent_of_the_masks(name):
    """In a large image the mask's pixels show the extent, to a pixel at flat sides and a few at a star's thin tips."""
    dataset = Shapes(4, size=400, classes=[name], rotation=180, stretch=1.5, scale=(0.2, 0.8), objects=(1, 3))
    for i in range(len(dataset)):
        for mask, (x1, y1, x2, y2) in zip(dataset.masks(i), dataset.annotation(i).boxes, strict=True):
            rows, columns = np.nonzero(mask > 0.5)  # pixels whose centre is inside
            assert x1 <= columns.min() + 0.5 and columns.max() + 0.5 <= x2
            assert y1 <= rows.min() + 0.5 and rows.max() + 0.5 <= y2
            slack = np.array([columns.min() - x1, rows.min() - y1, x2 - columns.max() - 1, y2 - rows.max() - 1])
            assert slack.max() < (3 if name == "star" else 1.5)


@pytest.mark.parametrize("name", CLASSES)
def test_edges_are_as_smooth_as_eightfold_supersampling_makes_them(name):
    """An image eight times as large has the same shapes, eight times as large."""
    options = {"classes": [name], "rotation": 180, "stretch": 2, "scale": (0.3, 0.8), "objects": (4, 4), "occlusion": 1}
    small, large = Shapes(3, size=64, **options), Shapes(3, size=512, **options)
    for i in range(3):
        np.testing.assert_allclose(large.annotation(i).boxes, 8 * small.annotation(i).boxes, rtol=1e-5, atol=1e-3)
        exact = (large.masks(i) > 0.5).reshape(-1, 64, 8, 64, 8).mean(axis=(2, 4))
        error = np.abs(small.masks(i) - exact)
        assert error.max() < 0.5 and error[(exact > 0) & (exact < 1)].mean() < 0.045


@pytest.mark.parametrize(
    "name, fraction",
    [
        ("circle", math.pi / 4),
        ("square", 1),
        ("triangle", 1 / 2),
        ("hexagon", 3 / 4),
        ("star", 5 * math.sin(math.pi / 10) / math.sin(3 * math.pi / 10) * math.sin(math.pi / 5) / (3.4409548)),
        ("ring", math.pi / 4 * (1 - RING_HOLE**2)),
    ],
)
def test_upright_shapes_cover_the_known_fraction_of_their_box(name, fraction):
    """A star whose tips are at distance 1 has a box of 2 sin 72° by 1 + cos 36°, an area of 3.441."""
    dataset = Shapes(3, size=300, classes=[name], rotation=0, scale=(0.4, 0.8), objects=(1, 1))
    for i in range(len(dataset)):
        annotation = dataset.annotation(i)
        x1, y1, x2, y2 = annotation.boxes[0].astype(float)
        assert annotation.area[0] / ((x2 - x1) * (y2 - y1)) == pytest.approx(fraction, rel=0.01)
        assert dataset.masks(i)[0].sum() == pytest.approx(annotation.area[0], rel=1e-4)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**40),
    height=st.integers(24, 90),
    width=st.integers(24, 90),
    occlusion=st.floats(0, 0.9),
    crowding=st.floats(0, 1),
    scale=st.tuples(st.floats(0.05, 0.9), st.floats(0.05, 0.9)).map(sorted).map(tuple),
)
def test_controls_hold(seed, height, width, occlusion, crowding, scale):
    dataset = Shapes(1, (height, width), seed, CLASSES, (1, 6), scale, 90, 1.5, occlusion, crowding)
    annotation, masks = dataset.annotation(0), dataset.masks(0) > 0.5
    assert 1 <= len(annotation.labels) <= 6
    boxes = annotation.boxes
    assert boxes.min() >= -1e-3 and boxes[:, 2].max() <= width + 1e-3 and boxes[:, 3].max() <= height + 1e-3
    longer = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) / min(height, width)
    assert longer.min() >= scale[0] - 1e-4 and longer.max() <= scale[1] + 1e-4
    for k, mask in enumerate(masks):  # later ones lie on top
        hidden = np.count_nonzero(mask & masks[k + 1 :].any(axis=0))
        assert hidden <= occlusion * np.count_nonzero(mask) + 1e-6


def test_shapes_are_painted_where_the_masks_say():
    """Without its object an image is smooth but for the grain, so that edges lie on the mask's outline and shadow."""
    dataset = Shapes(5, size=200, classes=["square"], objects=(1, 1), scale=(0.5, 0.5), rotation=0)
    for i in range(len(dataset)):
        image, (x1, y1, x2, y2) = dataset[i].image.astype(float), dataset.annotation(i).boxes[0].round().astype(int)
        outline = np.concatenate([image[y1 + 1, x1 + 4 : x2 - 4], image[y1 + 4 : y2 - 4, x1 + 1]])
        outside = np.concatenate([image[y1 - 2, x1 + 4 : x2 - 4], image[y1 + 4 : y2 - 4, x1 - 2]])
        assert np.abs(outline - outside).mean() > 15


def test_crowding_brings_objects_together():
    def mean_distance(crowding):
        dataset = Shapes(30, objects=(3, 3), scale=(0.1, 0.15), crowding=crowding)
        boxes = [dataset.annotation(i).boxes for i in range(len(dataset))]
        centres = [(box[:, :2] + box[:, 2:]) / 2 for box in boxes]
        return np.mean([np.linalg.norm(centre[-1] - centre[:-1], axis=1).min() for centre in centres])

    assert mean_distance(1) < 0.6 * mean_distance(0)


def test_images_without_objects_can_be_asked_for():
    annotation = Shapes(1, objects=(0, 0)).annotation(0)
    assert annotation.boxes.shape == (0, 4) and annotation.area.shape == (0,)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"length": 0}, "length is 0.*at least 1 image"),
        ({"seed": -1}, "seed is -1"),
        ({"size": 8}, "size is 8 x 8"),
        ({"classes": ("circel",)}, "no class 'circel'. Did you mean 'circle'"),
        ({"classes": ("xyz",)}, "no class 'xyz'. Choose from circle, "),
        ({"classes": ()}, "classes is empty"),
        ({"classes": ("ring", "ring")}, "names one twice"),
        ({"objects": (5, 2)}, r"objects is \(5, 2\)"),
        ({"scale": (0.5, 0.1)}, r"scale is \(0.5, 0.1\)"),
        ({"scale": (0.5, 1.5)}, "expected 0 < smallest <= largest <= 0.9"),
        ({"stretch": 0.5}, "stretch is 0.5"),
        ({"occlusion": 2}, "occlusion is 2"),
        ({"crowding": -1}, "crowding is -1"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Shapes(**{"length": 2, **options})


def test_each_split_is_a_series_of_its_own():
    train, val, test = (open_dataset("shapes", split=split, length=3, seed=5) for split in ("train", "val", "test"))
    np.testing.assert_array_equal(train[0].image, Shapes(3, seed=5)[0].image)
    seen = {dataset[i].image.tobytes() for dataset in (train, val, test) for i in range(3)}
    assert len(seen) == 9
    again = open_dataset("shapes", split="val", length=10, seed=5)
    np.testing.assert_array_equal(again[2].image, val[2].image)
    assert open_dataset("shapes", size=(32, 48), length=2)[1].image.shape == (32, 48, 3)


def test_an_image_folder_for_shapes_is_refused(tmp_path):
    with pytest.raises(InputError, match="drawn, not read: leave the image folder"):
        open_dataset("shapes", image_folder=tmp_path)
