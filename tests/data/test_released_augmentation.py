"""Training images against the released loader, restated from its description: where things go, which views are drawn,
and what colours come out."""

import itertools
import math

import numpy as np
import pytest

from minicenternet.data import Coco, Shapes
from minicenternet.data.annotation import Annotation, Sample
from minicenternet.data.transforms import (
    Augmentation,
    apply_to_points,
    choose,
    letterbox,
    prepare,
    random_colours,
    random_crop,
    random_shift_scale,
)
from minicenternet.released import TRAINING_DATA
from minicenternet.tasks import detection

PIXELS = {"mean": TRAINING_DATA["coco"].pixel_mean, "std": TRAINING_DATA["coco"].pixel_std, "channel_order": "BGR"}


# ---- the released loader ---------------------------------------------------------------------------------------------


def get_affine_transform(centre, scale, out_width, out_height):
    """Three points of the image, and where each goes, give the six numbers of the map: centre, above it, beside it."""
    up = np.array([0, -0.5 * scale])
    image = [np.array(centre, float), centre + up, centre + up + [up[1], -up[0]]]
    out_up = np.array([0, -0.5 * out_width])
    middle = np.array([0.5 * out_width, 0.5 * out_height])
    output = [middle, middle + out_up, middle + out_up + [out_up[1], -out_up[0]]]
    return np.linalg.solve([[*point, 1] for point in image], output).T


def border(border, size):
    i = 1
    while size - border // i <= border // i:
        i *= 2
    return border // i


def released_boxes(boxes, centre, scale, flipped, width, out):
    """Corners, mirrored, through the affine to a map of (out, out), clipped; those left with no area are dropped."""
    transform, placed = get_affine_transform(centre, scale, out, out), []
    for x1, y1, x2, y2 in boxes.astype(float):
        if flipped:
            x1, x2 = width - x2 - 1, width - x1 - 1
        corners = [transform @ (x1, y1, 1), transform @ (x2, y2, 1)]
        box = np.clip(np.concatenate(corners), 0, out - 1)
        if (box[2:] > box[:2]).all():
            placed.append(box)
    return np.array(placed).reshape(-1, 4)


def warp_affine(image, transform, out):
    """Bilinear, black outside, the centre of the first pixel at (0, 0) on both sides; pixel by pixel."""
    padded = np.pad(image.astype(float), [(1, 2), (1, 2), (0, 0)])
    inverse = np.linalg.inv(np.vstack([transform, [0, 0, 1]]))
    canvas = np.zeros((out, out, 3))
    for v, u in itertools.product(range(out), range(out)):
        x, y, _ = inverse @ (u, v, 1)
        if -1 < x < image.shape[1] and -1 < y < image.shape[0]:
            i, j = math.floor(y), math.floor(x)
            b, a = y - i, x - j
            corner = padded[i + 1 : i + 3, j + 1 : j + 3]
            rows = (1 - a) * corner[:, 0] + a * corner[:, 1]
            canvas[v, u] = (1 - b) * rows[0] + b * rows[1]
    return canvas


EIGENVALUES = [0.2141788, 0.01817699, 0.00341571]
EIGENVECTORS = np.array(
    [
        [-0.58752847, -0.69563484, 0.41340352],
        [-0.5832747, 0.00994535, -0.81221408],
        [-0.56089297, 0.71832671, 0.41158938],
    ]
)


def colour_augmentation(bgr, order, factors, alpha):
    """One blend after the other, with the greys of the image as it came, then lighting; bgr (..., 3) in [0, 1]."""
    grey = bgr @ [0.114, 0.587, 0.299]
    mean = grey.mean()
    for step in order:
        other = {"brightness": 0, "contrast": mean, "saturation": grey[..., None]}[step]
        bgr = factors[step] * bgr + (1 - factors[step]) * other
    return bgr + EIGENVECTORS @ (np.array(EIGENVALUES) * alpha)


# ---- geometry --------------------------------------------------------------------------------------------------------


def some_boxes(rng, width, height, count=30):
    corner = rng.uniform(-5, 1, (count, 2)) + rng.uniform(0, 1, (count, 2)) * [width, height]
    return np.concatenate([corner, corner + np.exp(rng.uniform(0, np.log(300), (count, 2)))], 1).astype(np.float32)


def sample_of(image, boxes):
    count = len(boxes)
    none = np.zeros(count, bool)
    size = image.shape[1], image.shape[0]
    return Sample(image, Annotation(1, "a.jpg", *size, boxes, np.arange(count) % 7, none, none, np.ones(count)))


@pytest.mark.parametrize("out", [384, 512])
@pytest.mark.parametrize("seed", range(6))
def test_points_boxes_and_cells_go_where_the_released_affine_puts_them(seed, out):
    """Within 1e-4 pixels: the same scale, centre and mirroring drawn from the same rng, by the released formulas."""
    rng = np.random.default_rng(100 + seed)
    width, height = (int(side) for side in rng.integers(150, 700, 2))
    boxes = some_boxes(rng, width, height)
    sample = sample_of(np.zeros((height, width, 3), np.uint8), boxes)
    chosen = choose(sample.annotation, size=(out, out), augmentation=Augmentation(), rng=np.random.default_rng(seed))

    draw = np.random.default_rng(seed)
    scale = max(height, width) * (0.6 + 0.1 * draw.integers(8))
    centre = [draw.integers(border(128, side), side - border(128, side)) for side in (width, height)]
    flipped = draw.random() < 0.5
    if flipped:
        centre[0] = width - centre[0] - 1

    points = rng.uniform(-100, 800, (50, 2))
    mirrored = np.where([flipped, False], [width - 1, 0] - points, points)
    transform = get_affine_transform(centre, scale, out, out)
    expected = [transform @ (*point, 1) for point in mirrored]
    np.testing.assert_allclose(apply_to_points(chosen.matrix, points), expected, rtol=0, atol=1e-4)

    cells = out // 4  # the released loader has a second affine, to the map, and clips to its last cell
    expected = released_boxes(boxes, centre, scale, flipped, width, cells)
    targets = detection.encode(chosen.boxes, chosen.labels, 7, out, out)
    inside = [(box > 0).all() and (box < cells - 1).all() for box in expected]
    assert sum(inside) > 3
    found = targets["mask"] == 1
    cell = np.stack([targets["index"] % cells, targets["index"] // cells], 1)
    centres, sizes = (cell + targets["offset"])[found], targets["size"][found]
    for box in expected[inside]:
        apart = np.abs(np.concatenate([centres - (box[:2] + box[2:]) / 2, sizes - (box[2:] - box[:2])], 1)).max(axis=1)
        assert apart.min() < 1e-4 / 4 + 1e-6


@pytest.mark.parametrize("width, height", [(640, 480), (333, 500), (512, 512)])
def test_the_whole_image_goes_where_the_released_affine_puts_it(width, height):
    expected = get_affine_transform((width / 2, height / 2), max(width, height), 512, 512)
    np.testing.assert_allclose(letterbox(width, height, 512, 512), expected, rtol=0, atol=1e-9)


# ---- what is drawn ---------------------------------------------------------------------------------------------------

DRAWS = 3000


def assert_same_distribution(ours, theirs, what):
    """Kolmogorov and Smirnov's test of two samples, at a level of 0.1 %."""
    values = np.unique(np.concatenate([ours, theirs]).round(6))
    below = [np.searchsorted(np.sort(sample), values + 1e-9, side="right") / len(sample) for sample in (ours, theirs)]
    distance = np.abs(below[0] - below[1]).max()
    assert distance < 1.95 * math.sqrt(1 / len(ours) + 1 / len(theirs)), f"{what}: {distance:.3f}"


def released_views(rng, width, height, crop, count):
    """Scale, centre and mirroring, of NumPy's old random numbers as the released loader has them."""
    scale, x, y = np.full(count, 1.0 * max(height, width)), np.full(count, width / 2), np.full(count, height / 2)
    if crop:
        scale *= rng.choice(np.arange(0.6, 1.4, 0.1), count)
        w_border, h_border = border(128, width), border(128, height)
        x, y = rng.randint(w_border, width - w_border, count), rng.randint(h_border, height - h_border, count)
    else:
        x += scale * np.clip(rng.randn(count) * 0.1, -0.2, 0.2)
        y += scale * np.clip(rng.randn(count) * 0.1, -0.2, 0.2)
        scale *= np.clip(rng.randn(count) * 0.4 + 1, 0.6, 1.4)
    flipped = rng.random_sample(count) < 0.5
    return scale, np.where(flipped, width - x - 1, x), y, flipped


@pytest.mark.parametrize("draw", [random_crop, random_shift_scale])
@pytest.mark.parametrize("width, height", [(640, 427), (500, 375), (200, 90)])
def test_views_are_drawn_as_the_released_loader_draws_them(width, height, draw):
    rng, ours = np.random.default_rng(0), []
    for _ in range(DRAWS):
        (a, _, c), (_, zoom, f) = draw(rng, width, height, 512, 512)
        x = (256 - c) / a  # of the image as it is; the released loader's is of the mirrored one
        ours.append((512 / zoom, width - x - 1 if a < 0 else x, (256 - f) / zoom, a < 0))
    ours = np.array(ours, float).T
    theirs = released_views(np.random.RandomState(0), width, height, draw is random_crop, 100 * DRAWS)
    for name, mine, other in zip(("scale", "x", "y", "mirrored"), ours, theirs, strict=True):
        assert_same_distribution(mine, other, name)
    for one, another in itertools.combinations(ours, 2):
        assert abs(np.corrcoef(one, another)[0, 1]) < 4 / math.sqrt(DRAWS)  # drawn independently of each other


# ---- colours ---------------------------------------------------------------------------------------------------------

STEPS = ("brightness", "contrast", "saturation")


def test_colours_have_the_released_mean_and_spread_within_a_hundredth():
    """Of every pixel and channel over all that may be drawn; the released ones not by drawing, but integrated.

    Both moments are polynomials of the three factors, of degree 2 in each, so that three nodes of Gauss are exact.
    """
    bgr = np.array([[[0.9, 0.4, 0.3], [0.3, 0.8, 0.5]], [[0.4, 0.5, 0.95], [0.5, 0.6, 0.4]]])
    nodes, weights = np.polynomial.legendre.leggauss(3)
    first = second = 0
    for order in itertools.permutations(STEPS):
        for chosen in itertools.product(range(3), repeat=3):
            factors = {step: 1 + 0.4 * nodes[i] for step, i in zip(STEPS, chosen, strict=True)}
            weight = np.prod(weights[list(chosen)] / 2) / 6
            values = colour_augmentation(bgr, order, factors, np.zeros(3))
            first, second = first + weight * values, second + weight * values**2
    variance = second - first**2 + (0.1**2 * (EIGENVECTORS * EIGENVALUES) ** 2).sum(axis=1)

    rng = np.random.default_rng(0)
    rgb = bgr[..., ::-1]
    drawn = [random_colours(rng) for _ in range(40_000)]
    of_image, of_grey, of_mean = np.array([colours[:3] for colours in drawn]).T[..., None, None, None]
    shift = np.array([colours.shift for colours in drawn])[:, None, None]
    grey = rgb @ [0.299, 0.587, 0.114]
    drawn = (of_image * rgb + of_grey * grey[..., None] + of_mean * grey.mean() + shift)[..., ::-1]
    np.testing.assert_allclose(drawn.mean(axis=0), first, rtol=0.01)
    np.testing.assert_allclose(drawn.std(axis=0), np.sqrt(variance), rtol=0.01)


def assert_statistics_within_a_hundredth(samples, size):
    """Inputs of the network, pixel by pixel from the same draws: mean and spread of each channel of all of them."""
    ours, theirs = [], []
    for seed, sample in enumerate(samples):
        prepared = prepare(
            sample, size=(size, size), augmentation=Augmentation(), rng=np.random.default_rng(seed), **PIXELS
        )
        draw = np.random.default_rng(seed)
        matrix = random_crop(draw, sample.image.shape[1], sample.image.shape[0], size, size)
        order = draw.permutation(list(STEPS))
        factors = {step: 1 + draw.uniform(-0.4, 0.4) for step in order}
        bgr = warp_affine(sample.image[..., ::-1], matrix, size) / 255
        bgr = colour_augmentation(bgr, order, factors, draw.normal(size=3) * 0.1)
        ours.append(prepared.image)
        theirs.append((bgr - PIXELS["mean"]) / PIXELS["std"])
    ours, theirs = np.array(ours, float), np.array(theirs)
    spread = theirs.std(axis=(0, 1, 2))
    np.testing.assert_allclose(ours.std(axis=(0, 1, 2)), spread, rtol=0.01)
    assert (np.abs(ours.mean(axis=(0, 1, 2)) - theirs.mean(axis=(0, 1, 2))) < 0.01 * spread).all()
    assert np.median(np.abs(ours - theirs)) < 0.01 * spread.mean()  # not on the whole alone


def test_drawn_inputs_have_the_released_statistics():
    assert_statistics_within_a_hundredth([Shapes(length=6, size=96, seed=1)[i] for i in range(6)], 48)


def test_inputs_of_photographs_have_the_released_statistics(shared_data):
    data = Coco(shared_data / "coco-open" / "annotations" / "instances_train2017.json")
    assert_statistics_within_a_hundredth([data[i] for i in range(8)], 48)
