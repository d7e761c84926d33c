"""From image to boxes, with a network that is right (`Seer`) or random."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from seer import CLASSES, Painted, Seer, paint

from minicenternet.autograd import Tensor, no_grad
from minicenternet.data.transforms import apply_to_points, prepare, warp
from minicenternet.errors import InputError
from minicenternet.model import CenterNet
from minicenternet.ops import sigmoid
from minicenternet.predict import (
    Detections,
    Predictor,
    average_mirrored,
    explain,
    find_images,
    normalised,
    predict,
    read,
    run,
    view,
)
from minicenternet.released import TRAINING_DATA

OBJECTS = {0: ((10, 22, 53, 61), 1.0), 1: ((70, 9, 117, 30), 0.8), 2: ((63, 65, 84, 107), 0.6)}  # best first


def check(found, objects=OBJECTS, within=0.01):
    """The first detections are the objects, best first."""
    assert found.labels[: len(objects)].tolist() == list(objects)
    for (truth, score), box, confidence in zip(objects.values(), found.boxes, found.scores, strict=False):
        np.testing.assert_allclose(box, truth, atol=within)
        assert confidence == pytest.approx(score, abs=0.01)
    assert found.boxes.dtype == np.float32 and found.scores.dtype == np.float32 and found.labels.dtype == np.int64


# ---- the ways to look at an image ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
def test_image_as_large_as_the_input(flip):
    found = predict(Seer(), paint(128, 128, OBJECTS), flip=flip)
    assert len(found) == 3
    check(found)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(128, 256), (200, 120), (64, 64), (700, 500)])
def test_fixed_resolution_letterboxes(size, flip):
    """To a pixel of the image or of the input, whichever is larger: bilinear reduction is no better."""
    height, width = size
    factor = np.array([width, height, width, height]) / 128
    objects = {
        label: (np.round(np.multiply(box, factor)).astype(int), score) for label, (box, score) in OBJECTS.items()
    }
    model = Seer()
    found = predict(model, paint(height, width, objects), flip=flip)
    assert model.seen[0].shape == (1 + flip, 128, 128, 3)
    assert len(found) == 3
    check(found, objects, within=max(1, max(size) / 128))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("stride", "size", "padded"),
    [(16, (128, 120), (160, 128)), (32, (127, 159), (128, 160)), (128, (128, 127), (256, 128))],
)
def test_keep_resolution_pads(stride, size, padded, flip):
    """To the next multiple of 32, or of 128 for a backbone of that stride, strictly above each side."""
    model = Seer(stride=stride)
    found = predict(model, paint(*size, OBJECTS), resolution="keep", flip=flip)
    assert model.seen[0].shape == (1 + flip, *padded, 3)
    assert len(found) == 3
    check(found)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("resolution", ["fixed", "keep"])
def test_scales_are_merged(resolution, flip):
    model = Seer()
    image = paint(128, 128, OBJECTS)
    scales = (0.5, 1, 1.25)
    found = predict(model, image, resolution=resolution, scales=scales, flip=flip, nms="hard")
    inputs = [(128, 128)] * 3 if resolution == "fixed" else [(96, 96), (160, 160), (192, 192)]
    assert [seen.shape[1:3] for seen in model.seen] == inputs
    assert len(found) == 3
    check(found, within=0.6)  # which scale gives the best score, is chance
    soft = predict(Seer(), image, resolution=resolution, scales=scales, flip=flip, min_score=0)
    assert len(soft) == 9
    check(soft, within=0.6)
    assert (np.diff(soft.scores) <= 0).all()
    duplicates = soft.scores[soft.labels == 0][1:]  # exp(-IoU^2 / 0.5), twice for the second, IoU nearly 1
    assert 0.13 < duplicates[0] < 0.25 and duplicates[1] < 0.05


def test_scales_are_merged_by_the_released_overlap():
    """Of boxes a pixel wider and higher than x2 - x1: here 15 common pixels of 35, where 1/3 would be shared."""
    boxes = np.float32([[0, 0, 4, 4], [2, 0, 6, 4]])
    _, scores, _ = Predictor(Seer(), scales=(1, 2))._merge(boxes, np.float32([0.9, 0.8]), np.array([1, 1]))
    assert scores[1] == pytest.approx(0.8 * np.exp(-((15 / 35) ** 2) / 0.5))


def test_large_scale_cuts_the_input_off():
    """As released: at fixed resolution an image enlarged twice shows its middle alone."""
    centre = {0: ((50, 45, 80, 85), 1.0)}
    edge = {1: ((0, 0, 20, 20), 0.9)}
    found = predict(Seer(), paint(128, 128, centre | edge), scales=(2,))
    assert len(found) == 1
    check(found, centre, within=0.6)
    found = predict(Seer(), paint(128, 128, centre | edge), scales=(2, 1), nms="hard")
    assert len(found) == 2
    check(found, centre | edge, within=0.6)


@pytest.mark.parametrize("pad", [None, 31, 127])
@given(
    st.integers(1, 900), st.integers(1, 900), st.floats(0.2, 3), st.sampled_from([64, 512]), st.sampled_from([64, 512])
)
@settings(deadline=None, max_examples=50)
def test_view_is_the_released_one(pad, height, width, scale, input_height, input_width):
    seen = view(height, width, (input_height, input_width), scale, pad)
    h, w = max(int(height * scale), 1), max(int(width * scale), 1)
    if pad is None:
        out_h, out_w, zoom = input_height, input_width, min(input_height / height, input_width / width)
        centre_x, centre_y = w / 2, h / 2
    else:
        out_h, out_w, zoom = (h | pad) + 1, (w | pad) + 1, 1
        centre_x, centre_y = w // 2, h // 2
    assert seen.size == (out_h, out_w)
    points = np.array([[0, 0], [out_w, 0], [3.5, out_h]])
    expected = (points - [out_w / 2, out_h / 2]) / zoom + [centre_x, centre_y]
    np.testing.assert_allclose(apply_to_points(seen.to_image, points), expected / scale, atol=1e-8)
    corners = np.array([[-0.5, -0.5], [width - 0.5, height - 0.5]])  # of the pixels: resizing maps them onto corners
    resized = np.array([[-0.5, -0.5], [w - 0.5, h - 0.5]])
    expected = (resized - [centre_x, centre_y]) * zoom + [out_w / 2, out_h / 2]
    np.testing.assert_allclose(apply_to_points(seen.to_input, corners), expected, atol=1e-8)


def test_average_mirrored():
    rng = np.random.default_rng(0)
    own, mirror = (
        {name: rng.normal(0, 3, (2, 3, 4, c)).astype(np.float32) for name, c in (("hm", 5), ("wh", 2), ("reg", 2))}
        for _ in range(2)
    )
    own["hm"][0, 0, 0], mirror["hm"][0, 0, 3] = 200, 200  # a probability of exactly 1
    mean = average_mirrored(*({name: Tensor(maps) for name, maps in maps.items()} for maps in (own, mirror)))
    probability, _ = sigmoid.raw(mean["hm"].data)
    for b, y, x in np.ndindex(2, 3, 4):
        for c in range(5):
            expected = np.mean(
                [1 / (1 + np.exp(-np.float64(m))) for m in (own["hm"][b, y, x, c], mirror["hm"][b, y, 3 - x, c])]
            )
            assert probability[b, y, x, c] == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(mean["wh"].data[b, y, x], (own["wh"][b, y, x] + mirror["wh"][b, y, 3 - x]) / 2)
    np.testing.assert_array_equal(mean["reg"].data, own["reg"])


def test_flip_of_a_real_network():
    """Against two runs of the network, averaged and decoded cell by cell."""
    model = CenterNet(class_names=("a", "b"), input_size=(64, 64), seed=3)
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    found = predict(model.eval(), image, flip=True, min_score=0, k=20)
    pixels = ((image / 255 - model.pixel_mean) / model.pixel_std).astype(np.float32)
    with no_grad():
        own, mirror = (model(Tensor(np.ascontiguousarray(x)[None])) for x in (pixels, pixels[:, ::-1]))
    probability, size = np.zeros((16, 16, 2)), np.zeros((16, 16, 2))
    for y, x in np.ndindex(16, 16):
        both = own["hm"].data[0, y, x], mirror["hm"].data[0, y, 15 - x]
        probability[y, x] = sum(1 / (1 + np.exp(-logit)) for logit in both) / 2
        size[y, x] = (own["wh"].data[0, y, x] + mirror["wh"].data[0, y, 15 - x]) / 2
    candidates = []
    for y, x, c in np.ndindex(16, 16, 2):
        if probability[y, x, c] == probability[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2, c].max():
            cx, cy = np.array([x, y]) + own["reg"].data[0, y, x]
            w, h = size[y, x]
            box = [4 * (cx - w / 2), 4 * (cy - h / 2), 4 * (cx + w / 2), 4 * (cy + h / 2)]
            candidates.append((probability[y, x, c], c, np.sort(np.reshape(box, (2, 2)), axis=0).ravel()))
    candidates.sort(key=lambda candidate: -candidate[0])
    for (score, label, box), (_, confidence, found_box), found_label in zip(
        candidates, found, found.labels, strict=False
    ):
        assert confidence == pytest.approx(score, abs=1e-5)
        assert found_label == label
        np.testing.assert_allclose(found_box, box, atol=1e-3)
    assert len(found) == 20


# ---- the network's side ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_input_is_what_training_gives(order):
    data = Painted([{0: ((3, 5, 40, 31), 1.0), 2: ((30, 2, 70, 44), 0.5)}], size=(48, 90))
    model = Seer()
    model.channel_order, model.pixel_mean, model.pixel_std = order, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    predict(model, data[0])
    prepared = prepare(data[0], size=(128, 128), mean=model.pixel_mean, std=model.pixel_std, channel_order=order)
    np.testing.assert_array_equal(model.seen[0][0], prepared.image)


@pytest.mark.parametrize(
    ("dataset", "red", "black"),  # of B, G, R
    [
        ("coco", (-1.413175, -1.631605, 1.904867), (-1.413175, -1.631605, -1.690988)),
        ("voc", (-2.117904, -2.035714, 2.64), (-2.117904, -2.035714, -1.804444)),
    ],
)
def test_input_of_the_released_weights(dataset, red, black):
    """A red image in its letter-box, which is black before normalisation."""
    data = TRAINING_DATA[dataset]
    options = {"pixel_mean": data.pixel_mean, "pixel_std": data.pixel_std, "channel_order": "BGR"}
    model = CenterNet(class_names=("a",), input_size=(32, 64), **options)
    square = np.full((32, 32, 3), (255, 0, 0), np.uint8)
    seen = view(32, 32, model.input_size)
    pixels = normalised(warp(square, seen.to_input, seen.size), model)
    np.testing.assert_allclose(pixels[16, 32], red, atol=1e-5)
    np.testing.assert_allclose(pixels[16, 4], black, atol=1e-5)


def test_mode_and_recording_are_as_before():
    model = CenterNet(class_names=("a",), input_size=(32, 32))
    model.backbone.stem.eval()  # a frozen part of a network in training
    modes = [module.training for _, module in model.named_modules()]
    running = {key: array.copy() for key, array in model.state_dict().items()}
    stream = Predictor(model).stream([np.zeros((32, 32, 3), np.uint8)] * 20)
    next(stream)
    assert [module.training for _, module in model.named_modules()] == modes
    assert model(Tensor(np.zeros((1, 32, 32, 3), np.float32)))["hm"].requires_grad
    assert not run(model, np.zeros((1, 32, 32, 3), np.float32))["hm"].requires_grad
    stream.close()
    model.load_state_dict(running)
    predict(model, np.full((32, 32, 3), 99, np.uint8))
    for key, array in model.state_dict().items():
        np.testing.assert_array_equal(array, running[key], err_msg=key)


# ---- images in, detections out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", ["fixed", "keep"])
def test_a_list_is_as_its_images_alone(resolution):
    rng = np.random.default_rng(4)
    images = []
    for height, width in [(128, 128), (128, 160), (128, 128), (200, 128), (128, 160), (130, 128), (128, 128)]:
        x, y = rng.integers(0, 60, 2)
        images.append(paint(height, width, {int(rng.integers(3)): ((x, y, x + 30, y + 41), 0.9)}))
    model = Seer()
    found = predict(model, images, resolution=resolution, batch_size=4)
    batches = [len(seen) for seen in model.seen]
    assert batches == ([4, 3] if resolution == "fixed" else [2, 1, 1, 1, 2])
    for together, image in zip(found, images, strict=True):
        alone = predict(Seer(), image, resolution=resolution)
        np.testing.assert_array_equal(together.boxes, alone.boxes)
        np.testing.assert_array_equal(together.labels, alone.labels)
        assert together.image is image
    assert predict(model, []) == []


def test_kinds_of_image(tmp_path):
    pixels = paint(128, 128, OBJECTS)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    data = Painted([OBJECTS])
    with Image.open(path) as opened:
        for image, name in [
            (path, str(path)),
            (str(path), str(path)),
            (pixels, ""),
            (opened, str(path)),
            (Image.fromarray(pixels), ""),
            (data[0], "0.png"),
        ]:
            found = predict(Seer(), image)
            check(found)
            assert found.file_name == name
            np.testing.assert_array_equal(found.image, pixels)
    for many in ([path, pixels], np.stack([pixels, pixels]), (data[i] for i in [0, 0])):
        found = predict(Seer(), many)
        assert len(found) == 2
        check(found[1])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_a_pil_image_is_what_its_file_is(tmp_path, mode):
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(noise) if mode == "RGBA" else Image.fromarray(noise[..., :3]).convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    np.testing.assert_array_equal(read(image)[0], read(path)[0])
    with pytest.raises(InputError, match="cannot use the PIL image: its pixels are floating-point"):
        read(Image.new("F", (3, 3)))


def test_stream_holds_one_batch():
    asked = []

    def images():
        for i in range(10):
            asked.append(i)
            yield paint(128, 128, OBJECTS)

    stream = Predictor(Seer(), batch_size=3).stream(images())
    next(stream)
    assert asked == [0, 1, 2]
    assert len(list(stream)) == 9


def test_seconds_of_each_stage():
    predictor = Predictor(Seer())
    list(predictor.stream([paint(128, 128, OBJECTS)]))
    assert list(predictor.seconds) == ["load", "prepare", "network", "decode", "merge"]
    assert all(seconds >= 0 for seconds in predictor.seconds.values())
    before = dict(predictor.seconds)
    list(predictor.stream([paint(128, 128, OBJECTS)]))
    assert all(predictor.seconds[stage] > seconds for stage, seconds in before.items())  # they add up


def test_min_score_and_k():
    image = paint(128, 128, OBJECTS)
    assert len(predict(Seer(), image, min_score=0.7)) == 2
    assert len(predict(Seer(), image, k=1)) == 1
    assert len(predict(Seer(), image, min_score=0)) == 100
    assert len(predict(Seer(), image, scales=(1, 1.1, 0.9), k=2)) == 2
    assert len(predict(Seer(), paint(128, 128, {}))) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_tiny_images(shape):
    for resolution in ("fixed", "keep"):
        found = predict(Seer(), np.zeros((*shape, 3), np.uint8), resolution=resolution, scales=(0.3, 1))
        assert len(found) == 0 and found.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_score": 1.5}, "min_score is 1.5, expected 0 to 1"),
        ({"k": 0}, "k is 0, expected at least 1"),
        ({"resolution": "full"}, "resolution is 'full', expected 'fixed' or 'keep'"),
        ({"scales": ()}, r"scales is \(\), expected one or more factors above 0"),
        ({"scales": (1, -2)}, "scales"),
        ({"nms": "both"}, "nms is 'both', expected None, 'soft' or 'hard'"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        predict(Seer(), paint(128, 128, OBJECTS), **options)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((20, 20, 3)), r"not \(20, 20, 3\) float64; floats from 0 to 1 become uint8"),
        (np.zeros((20, 20), np.uint8), r"array \(H, W, 3\) of uint8, RGB, not \(20, 20\) uint8"),
        (np.zeros((3, 20, 20), np.uint8), r"not \(3, 20, 20\) uint8"),
        (np.zeros((0, 20, 3), np.uint8), r"\(0, 20, 3\) has no pixels"),
        ([3], "not int"),
        (3, "not int"),
        (None, "not NoneType"),
    ],
)
def test_arrays_that_are_no_image(image, message):
    with pytest.raises(InputError, match=message):
        predict(Seer(), image)


def test_files_that_are_no_image(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:9000])
    (tmp_path / "notes.jpg").write_text("not an image")
    for name in ("half.jpg", "notes.jpg", "missing.jpg"):
        with pytest.raises(InputError, match=name):
            predict(Seer(), [tmp_path / "whole.jpg", tmp_path / name])
    with Image.open(tmp_path / "half.jpg") as image, pytest.raises(InputError, match="half.jpg"):
        predict(Seer(), image)


# ---- Detections ------------------------------------------------------------------------------------------------------


def some_detections(image=None):
    boxes = np.float32([[1.234, 2, 30.006, 40], [-5, 0, 7, 9]])
    return Detections(boxes, np.float32([0.987, 0.25]), np.array([2, 0]), CLASSES, image, "a.jpg")


def test_detections_as_text():
    assert str(some_detections()).splitlines() == [
        "a.jpg: 2 objects",
        "  class  score       x1       y1       x2       y2",
        "  blue   0.987      1.2      2.0     30.0     40.0",
        "  red    0.250     -5.0      0.0      7.0      9.0",
    ]
    assert str(some_detections().above(0.99)) == "a.jpg: 0 objects"
    assert [name for name, _, _ in some_detections()] == ["blue", "red"]
    assert len(some_detections().above(0.5)) == 1


def test_detections_to_coco():
    records = some_detections().to_coco(17, category_ids=(5, 6, 90))
    assert [(record["image_id"], record["category_id"]) for record in records] == [(17, 90), (17, 5)]
    assert records[0]["bbox"] == pytest.approx([1.234, 2, 28.772, 38])
    assert records[0]["score"] == pytest.approx(0.987)
    assert [record["category_id"] for record in some_detections().to_coco("x")] == [3, 1]
    assert [record["image_id"] for record in some_detections().to_coco()] == ["a.jpg", "a.jpg"]
    assert replace(some_detections(), file_name="").to_coco()[0]["image_id"] == 1
    assert some_detections().to_coco(1, rounded=True)[0] == {
        "image_id": 1,
        "category_id": 3,
        "bbox": [1.23, 2.0, 28.77, 38.0],
        "score": 0.99,
    }


def test_detections_draw(tmp_path):
    picture = some_detections(np.zeros((50, 60, 3), np.uint8)).draw(tmp_path / "new" / "picture.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "picture.png")), picture)
    assert picture.any()
    with pytest.raises(InputError, match="without their image"):
        some_detections().draw()


def test_explain(tmp_path):
    image = paint(64, 128, {0: ((10, 12, 53, 40), 1.0), 1: ((70, 9, 117, 30), 0.8)})
    explanation = explain(Seer(), image)
    assert explanation.image.shape == (128, 128, 3) and explanation.heatmap.shape == (32, 32, 3)
    shown = {0: ((10, 44, 53, 72), 1.0), 1: ((70, 41, 117, 62), 0.8)}  # the letter-box adds 32 rows above
    check(explanation.detections, shown)
    cell_y, cell_x, _ = np.unravel_index(explanation.heatmap.argmax(), explanation.heatmap.shape)
    np.testing.assert_allclose(4 * (np.array([cell_x, cell_y]) + explanation.offset[cell_y, cell_x]), [31.5, 58])
    np.testing.assert_allclose(4 * explanation.size[cell_y, cell_x], [43, 28])
    assert explanation.draw(tmp_path / "steps.png").shape[2] == 3
    assert (tmp_path / "steps.png").is_file()


# ---- files -----------------------------------------------------------------------------------------------------------


def test_find_images(tmp_path):
    for name in ("b.JPG", "a.png", "sub/c.webp", "sub/deep/d.bmp", "notes.txt", ".hidden.jpg", "odd[1].jpg", "raw.xyz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(*patterns):
        return [str(path.relative_to(tmp_path)) for path in find_images(tmp_path / pattern for pattern in patterns)]

    assert names(".") == ["a.png", "b.JPG", "odd[1].jpg"]
    assert names("raw.xyz", "odd[1].jpg") == ["raw.xyz", "odd[1].jpg"]
    assert names("*.JPG", "a.png", "*") == ["b.JPG", "a.png", "odd[1].jpg"]
    assert names("**/*.*") == ["a.png", "b.JPG", "odd[1].jpg", "sub/c.webp", "sub/deep/d.bmp"]
    (tmp_path / "empty").mkdir()
    for pattern, message in [
        ("empty", "the folder .*empty holds no images"),
        ("nothing.jpg", "no file or folder .*nothing.jpg"),
        ("*.tif", r"no file or folder .*\*.tif, and as a pattern it matches no images"),
    ]:
        with pytest.raises(InputError, match=message):
            names("a.png", pattern)
    with pytest.raises(InputError, match="no images were named"):
        find_images([])


def test_matplotlib_is_left_alone():
    """Who does not draw does not wait for matplotlib; who draws gets no pyplot, which looks for a screen."""
    script = (
        "import sys, minicenternet.evaluate; assert 'matplotlib' not in sys.modules;"
        "import minicenternet.draw; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
