"""AP of a network that is right, and of one that is not, with every image counted."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ranks import in_ranks
from seer import CLASSES, Painted, Seer

import minicenternet
from minicenternet import CenterNet
from minicenternet import evaluate as module
from minicenternet.data import Shapes, open_dataset
from minicenternet.data.coco import Coco
from minicenternet.data.transforms import apply_to_boxes, warp
from minicenternet.errors import InputError
from minicenternet.evaluate import count_mistakes, evaluate
from minicenternet.ops import sigmoid
from minicenternet.predict import Detections, normalised, run, view

OBJECTS = [
    {0: ((10, 22, 53, 61), 0.9), 1: ((70, 9, 117, 30), 0.8)},
    {},
    {2: ((5, 6, 40, 90), 0.7)},
    {0: ((64, 60, 100, 70), 0.35), 1: ((3, 2, 31, 30), 0.95), 2: ((40, 80, 90, 120), 0.6)},
]


class Missing(Painted):
    """An image that the network sees has more, or less, in it than its annotation says."""

    def __init__(self, annotated, painted):
        super().__init__(painted)
        self.annotated = Painted(annotated)

    def annotation(self, i):
        return self.annotated.annotation(i)


@pytest.mark.parametrize(
    "options", [{}, {"flip": True}, {"resolution": "keep"}, {"scales": (1, 0.75), "nms": "hard"}, {"batch_size": 3}]
)
def test_perfect_network(options):
    evaluation = evaluate(Seer(), Painted(OBJECTS), **options)
    assert evaluation.result.ap > 0.999
    assert evaluation.result.per_class == pytest.approx([1, 1, 1], abs=1e-3)
    assert len(evaluation.detections) == 4
    assert all(found.image is None for found in evaluation.detections)  # a large data set would not fit into memory


def test_images_without_objects_count():
    """The best detection of all is on an image without objects: precision begins at 1/2."""
    painted = [OBJECTS[2], {2: ((60, 60, 90, 90), 0.95)}]
    result = evaluate(Seer(), Missing([OBJECTS[2], {}], painted)).result
    assert result.per_class[2] == pytest.approx(0.5, abs=1e-3)
    assert result.per_class[:2] == pytest.approx([np.nan, np.nan], nan_ok=True)


def test_labels_of_another_order():
    data = Painted(OBJECTS)
    data.class_names = ("blue", "red", "green")
    data.objects = [{(label + 1) % 3: values for label, values in objects.items()} for objects in OBJECTS]
    painted = Missing(data.objects, OBJECTS)
    painted.class_names = data.class_names
    evaluation = evaluate(Seer(), painted)
    assert evaluation.result.ap > 0.999
    assert {name for name, _, _ in evaluation.detections[2].above(0.5)} == {"blue"}


def test_other_classes():
    data = Painted(OBJECTS)
    data.class_names = ("red", "green", "cyan", "pink")
    with pytest.raises(InputError) as error:
        evaluate(Seer(), data)
    assert str(error.value) == (
        "the network was trained on other classes than this data set has. Only the network (3 in all): blue. "
        "Only the data set (4 in all): cyan, pink. "
        "Give weights trained on these classes, or a data set with the network's class names."
    )
    data.class_names = (*CLASSES, "pink")
    with pytest.raises(InputError, match=r"Only the network \(3 in all\): none. Only the data set .*: pink"):
        evaluate(Seer(), data)
    data.class_names = tuple(f"c{i}" for i in range(80))
    with pytest.raises(InputError, match="c7 and 72 more"):
        evaluate(Seer(), data)


def test_bad_arguments():
    with pytest.raises(InputError, match="no images"):
        evaluate(Seer(), Painted([]))
    with pytest.raises(InputError, match="protocol is 'kitti', expected 'coco' or 'voc'"):
        evaluate(Seer(), Painted(OBJECTS), protocol="kitti")
    with pytest.raises(InputError, match="k is 0"):
        evaluate(Seer(), Painted(OBJECTS), k=0)


def coco_folder(tmp_path):
    data = Painted(OBJECTS)
    categories = [{"id": id, "name": name} for id, name in sorted(zip(data.category_ids, CLASSES, strict=True))]
    images, annotations = [], []
    for i in range(len(data)):
        sample = data[i]
        Image.fromarray(sample.image).save(tmp_path / f"{i}.png")
        images.append({"id": 1000 + i, "file_name": f"{i}.png", "width": 128, "height": 128})
        for (x1, y1, x2, y2), label in zip(sample.annotation.boxes.tolist(), sample.annotation.labels, strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            category = data.category_ids[label]
            annotations.append({"id": len(annotations) + 1, "image_id": 1000 + i, "category_id": category, "bbox": box})
    content = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return Coco(tmp_path / "truth.json")


def test_unreadable_image_is_named(tmp_path):
    data = coco_folder(tmp_path)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    with pytest.raises(InputError, match="2.png"):
        evaluate(Seer(), data)


def test_save(tmp_path):
    data = coco_folder(tmp_path)  # orders its labels by category id: green, red, blue
    evaluation = evaluate(Seer(), data, protocol="voc")
    evaluation.save(tmp_path / "results")
    records = json.loads((tmp_path / "results" / "detections.json").read_text())
    sure = [record for record in records if record["score"] > 0.1]
    assert sorted((record["image_id"], record["category_id"]) for record in sure) == [
        (1000, 3),
        (1000, 7),
        (1002, 90),
        (1003, 3),
        (1003, 7),
        (1003, 90),
    ]
    assert sure[0]["bbox"] == pytest.approx([10, 22, 43, 39], abs=0.1)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text(), parse_constant=refuse)
    assert metrics["ap"] == pytest.approx(1, abs=1e-3) and metrics["ap_large"] is None
    assert list(metrics["per_class"]) == ["green", "red", "blue"]
    assert metrics["images"] == 4 and metrics["voc_11"] == 1 and metrics["options"]["resolution"] == "fixed"
    assert (tmp_path / "results" / "table.txt").read_text() == evaluation.text() + "\n"
    for name in ("best.png", "worst.png", "precision_recall.png"):
        with Image.open(tmp_path / "results" / name) as picture:
            assert picture.size[0] >= 900
    with pytest.raises(InputError, match="cannot write"):
        evaluation.save(tmp_path / "truth.json")


def test_rounding_ties_scores(tmp_path):
    """127/255 on an object and 128/255 on nothing are both 0.50; of equal scores, the first image's counts first."""
    painted = [{2: ((5, 6, 40, 90), 127 / 255)}, {2: ((60, 60, 90, 90), 128 / 255)}]
    data = Missing([painted[0], {}], painted)
    assert evaluate(Seer(), data).result.ap == pytest.approx(0.5, abs=1e-3)
    rounded = evaluate(Seer(), data, rounded=True, referee=True, protocol="voc")
    assert rounded.result.ap == pytest.approx(1, abs=1e-3) and rounded.voc["all"][1] == pytest.approx(1, abs=1e-3)
    assert all(rounded.difference(name) < 1e-6 for name in rounded.referees)
    rounded.save(tmp_path, pictures=1)
    best = json.loads((tmp_path / "detections.json").read_text())[0]
    assert best["score"] == 0.5 and best["bbox"] == [round(x, 2) for x in best["bbox"]]


def test_saved_detections_are_what_pycocotools_reads(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    data = coco_folder(tmp_path)
    evaluation = evaluate(Seer(), data, k=30)
    evaluation.save(tmp_path / "results", pictures=1)
    content = json.loads((tmp_path / "truth.json").read_text())
    for annotation in content["annotations"]:
        annotation |= {"iscrowd": 0, "area": annotation["bbox"][2] * annotation["bbox"][3]}
    truth = coco.COCO()
    truth.dataset = {"info": {}, **content}
    truth.createIndex()
    score = cocoeval.COCOeval(truth, truth.loadRes(str(tmp_path / "results" / "detections.json")), "bbox")
    score.evaluate()
    score.accumulate()
    score.summarize()
    np.testing.assert_allclose(score.stats, evaluation.result.stats(), atol=1e-6)


def test_referee():
    pytest.importorskip("pycocotools")
    evaluation = evaluate(Seer(), Missing(OBJECTS, [*OBJECTS[:3], OBJECTS[0]]), referee=True)
    assert 0 < evaluation.result.ap < 1
    assert evaluation.difference("pycocotools") < 1e-6
    assert "pycocotools agrees: the largest difference is" in evaluation.text()
    wrong = replace(evaluation, referees={"pycocotools": replace(evaluation.referees["pycocotools"], ar_10=0.123)})
    ours = evaluation.result
    near = replace(evaluation, referees={"pycocotools": replace(ours, ar_10=ours.ar_10 + 2e-6)})
    assert "pycocotools DISAGREES" in near.text()
    assert "pycocotools DISAGREES" in wrong.text() and wrong.metrics()["difference_from_pycocotools"] > 0.1


def test_without_referee(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    evaluation = evaluate(Seer(), Painted(OBJECTS), referee=True)
    assert not evaluation.referees
    assert "pycocotools is not installed" in evaluation.text()
    assert "pycocotools" not in evaluate(Seer(), Painted(OBJECTS)).text()


def test_text():
    text = evaluate(Seer(), Painted(OBJECTS[:2]), protocol="voc").text()
    lines = text.splitlines()
    assert lines[0].split() == ["AP", "AP50", "AP75", "small", "medium", "large"]
    assert ["red", "1.000", "1.000"] in [line.split() for line in lines]
    assert ["VOC,", "IoU", "0.50", "11", "points", "all", "points"] in [line.split() for line in lines]
    assert ["mean", "1.000", "1.000"] in [line.split() for line in lines]
    assert ["blue", "-", "-"] in [line.split() for line in lines]
    assert "2 images, milliseconds for each: load" in lines[-1]


def test_voc_measures_far_edges():
    """Half of a box has an IoU of 0.5, which is not enough; with boxes that end on their last pixel it would be."""
    evaluation = evaluate(Seer(), Missing([{0: ((20, 20, 40, 40), 1)}], [{0: ((20, 20, 40, 30), 0.9)}]), protocol="voc")
    assert evaluation.voc["11"][1] == evaluation.voc["all"][1] == 0


def test_progress():
    calls = []
    evaluate(Seer(), Painted(OBJECTS), batch_size=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_count_mistakes():
    data = Painted([{0: ((0, 0, 10, 10), 1), 1: ((20, 0, 30, 10), 1), 2: ((40, 0, 50, 10), 1)}])
    truth = data.annotation(0)
    boxes = np.float32([[0, 0, 10, 11], [0, 0, 10, 12], [20, 0, 30, 10], [40, 0, 50, 25], [40, 0, 50, 10]])
    labels, scores = np.array([0, 0, 0, 2, 2]), np.float32([0.9, 0.8, 0.7, 0.6, 0.2])
    found = Detections(boxes, scores, labels, CLASSES)
    count = count_mistakes(truth, found)  # one found, then again, one of another class, one too tall, one unsure
    assert (count.found, count.missed, count.false) == (1, 2, 3)
    ignored = replace(truth, difficult=np.array([True, False, False]), crowd=np.array([False, False, True]))
    count = count_mistakes(ignored, found)  # what lies in a crowd region is not false
    assert (count.found, count.missed, count.false) == (0, 1, 3)
    inside = Detections(np.float32([[41, 1, 43, 3]] * 4), np.float32([0.9] * 4), np.array([2] * 4), CLASSES)
    count = count_mistakes(ignored, inside)
    assert (count.found, count.missed, count.false) == (0, 1, 0)


def test_best_and_worst_are_told_apart(monkeypatch, tmp_path):
    annotated = [OBJECTS[3], OBJECTS[0], {}, OBJECTS[2], {}]
    painted = [OBJECTS[3], {0: OBJECTS[0][0]}, {}, {}, OBJECTS[2]]
    data = Missing(annotated, painted)
    evaluation = evaluate(Seer(), data)
    counts = [count_mistakes(data.annotation(i), evaluation.detections[i]) for i in range(5)]
    ranks = [count.rank for count in counts]
    assert ranks[0] > ranks[2] > ranks[1] > ranks[3] == ranks[4]  # all found, nothing to find, half, nothing right
    pages = {}
    monkeypatch.setattr(module.Evaluation, "draw", lambda self, path, images: pages.update({path.name: list(images)}))
    evaluation.save(tmp_path, pictures=2)
    assert pages["best.png"] == [0, 2] and sorted(pages["worst.png"]) == [3, 4]


def test_the_faster_referee():
    pytest.importorskip("pycocotools")
    pytest.importorskip("faster_coco_eval")
    evaluation = evaluate(Seer(), Missing(OBJECTS, [*OBJECTS[:3], OBJECTS[0]]), referee=True)
    assert list(evaluation.referees) == ["pycocotools", "faster-coco-eval"]
    assert evaluation.difference("faster-coco-eval") < 1e-6
    assert "faster-coco-eval agrees" in evaluation.text()


# ---- at full size: images without annotations, killed and gone on with, shared out -----------------------------------


def assert_same_detections(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_images_without_annotations_are_detected_on(tmp_path):
    coco_folder(tmp_path)
    content = json.loads((tmp_path / "truth.json").read_text())
    with_truth = evaluate(Seer(), Coco(tmp_path / "truth.json"))
    del content["annotations"]
    (tmp_path / "image_info_test-dev2017.json").write_text(json.dumps(content))
    data = Coco(tmp_path / "image_info_test-dev2017.json", unannotated=True)
    evaluation = evaluate(Seer(), data, referee=True, protocol="voc")
    assert evaluation.result is None and evaluation.voc is None and not evaluation.referees
    assert_same_detections(evaluation.detections, with_truth.detections)
    assert "no annotations" in evaluation.text() and "milliseconds for each: load" in evaluation.text()
    evaluation.save(tmp_path / "results")
    assert sorted(os.listdir(tmp_path / "results")) == ["detections.json", "metrics.json", "table.txt"]
    records = json.loads((tmp_path / "results/detections.json").read_text())
    assert {record["image_id"] for record in records if record["score"] > 0.1} == {1000, 1002, 1003}
    assert json.loads((tmp_path / "results/metrics.json").read_text())["images"] == 4


class Counting(Painted):
    """Notes which images are read, and ends the program at one of them."""

    def __init__(self, objects, fatal=None):
        super().__init__(objects)
        self.fatal, self.read = fatal, []

    def __getitem__(self, i):
        if i == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.read.append(i)
        return super().__getitem__(i)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is Unix's")
def test_a_killed_evaluation_goes_on(tmp_path):
    program = f"""
from seer import Seer
from test_evaluate import OBJECTS, Counting, module
module.KEEP_SECONDS = 0
module.evaluate(Seer(), Counting(2 * OBJECTS, fatal=5), keep={str(tmp_path / "kept")!r}, flip=True, batch_size=2)
"""
    paths = [str(Path(__file__).parent), str(Path(minicenternet.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    data, calls = Counting(2 * OBJECTS), []
    options = {"flip": True, "keep": tmp_path / "kept", "progress": lambda *numbers: calls.append(numbers)}
    evaluation = evaluate(Seer(), data, **options)
    assert sorted(data.read) == [4, 5, 6, 7] and calls == [(5, 8), (6, 8), (7, 8), (8, 8)]
    whole = evaluate(Seer(), Painted(2 * OBJECTS), flip=True)
    assert_same_detections(evaluation.detections, whole.detections)
    assert evaluation.result.stats() == pytest.approx(whole.result.stats(), nan_ok=True)

    again = Counting(2 * OBJECTS)  # finished: nothing is left to look at, and the seconds are those of then
    finished = evaluate(Seer(), again, **options, protocol="voc", rounded=True)
    assert again.read == [] and finished.seconds["network"] == pytest.approx(evaluation.seconds["network"])
    with pytest.raises(InputError, match="another evaluation.*: flip differ"):
        evaluate(Seer(), again, **options | {"flip": False})
    with pytest.raises(InputError, match="another evaluation.*: images differ"):
        evaluate(Seer(), Painted(OBJECTS), **options)
    other = Seer()
    other.weight.data[0] = 1
    with pytest.raises(InputError, match="another evaluation.*: weights differ"):
        evaluate(other, again, **options)


def test_shapes_of_another_seed_are_other_images_though_their_names_are_the_same(tmp_path):
    some, others = Shapes(2, 64, seed=0), Shapes(2, 64, seed=1)
    assert some.annotation(0).file_name == others.annotation(0).file_name
    model = CenterNet("small", class_names=some.class_names, input_size=(64, 64))
    evaluate(model, some, keep=tmp_path)
    with pytest.raises(InputError, match="another evaluation.*: images differ"):
        evaluate(model, others, keep=tmp_path)


def test_another_number_of_ranks_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "KEEP_SECONDS", 0)
    objects, read = [*OBJECTS, *OBJECTS[::-1], OBJECTS[0]], []

    class Stopping(Painted):
        fatal = set()

        def __getitem__(self, i):
            if i in self.fatal:
                raise InputError("stopped")
            read.append(i)
            return super().__getitem__(i)

    def part(world):
        return evaluate(Seer(), data, keep=tmp_path, world=world, batch_size=1)

    data = Stopping(objects)
    for ranks, fatal in ((3, {3, 7}), (2, {6, 7})):
        data.fatal = fatal
        with pytest.raises(InputError, match="stopped"):
            in_ranks(ranks, part)
    data.fatal = set()
    (evaluation,) = in_ranks(1, part)
    assert sorted(read) == list(range(9))  # none twice
    assert_same_detections(evaluation.detections, evaluate(Seer(), Painted(objects)).detections)


def test_ranks_share_the_images_and_add_their_seconds():
    data = [Counting(OBJECTS + OBJECTS[:1]) for _ in range(3)]
    first, *others = in_ranks(3, lambda world: evaluate(Seer(), data[world.rank], world=world))
    assert others == [None, None] and [one.read for one in data] == [[0, 3], [1, 4], [2]]
    assert_same_detections(first.detections, evaluate(Seer(), data[0]).detections)
    assert set(first.seconds) == {"load", "prepare", "network", "decode", "merge"}
    assert "5 images" in first.text()


# ---- several scales and the mirror image, composed by hand -----------------------------------------------------------


def soft_nms_by_loops(boxes, scores, labels, floor=0.001):
    """Gaussian soft-NMS, sigma 0.5, of one class at a time, with overlaps in whole pixels (released code)."""
    left, kept = {i: float(score) for i, score in enumerate(scores)}, []
    corners = boxes.astype(float)
    while left:
        best = max(left, key=lambda i: (left[i], -i))
        score = left.pop(best)
        if score < floor:
            break
        kept.append((best, score))
        for i in left:
            if labels[i] == labels[best]:
                low, high = np.maximum(corners[i, :2], corners[best, :2]), np.minimum(corners[i, 2:], corners[best, 2:])
                common = max(high[0] - low[0] + 1, 0) * max(high[1] - low[1] + 1, 0)
                areas = [(corners[j, 2] - corners[j, 0] + 1) * (corners[j, 3] - corners[j, 1] + 1) for j in (i, best)]
                left[i] *= math.exp(-((common / (sum(areas) - common)) ** 2) / 0.5)
    indices, values = zip(*kept, strict=True)
    return np.array(indices), np.array(values)


def detect_by_hand(model, image, scales, resolution, k):
    """One image at each scale and its mirror image, each alone through the network; then soft-NMS of all."""
    found = []
    for scale in scales:
        seen = view(*image.shape[:2], model.input_size, scale, None if resolution == "fixed" else 31)
        pixels = normalised(warp(image, seen.to_input, seen.size), model)[None]
        own, mirrored = run(model, pixels), run(model, np.ascontiguousarray(pixels[:, :, ::-1]))
        p = [sigmoid.raw(maps["hm"].data.astype(float))[0] for maps in (own, mirrored)]
        p = (p[0] + p[1][:, :, ::-1]) / 2
        size = (own["wh"].data + mirrored["wh"].data[:, :, ::-1]) / 2
        maps = {"hm": np.log(p / (1 - p)), "wh": size, "reg": own["reg"].data}
        maps = {name: minicenternet.autograd.Tensor(values.astype(np.float32)) for name, values in maps.items()}
        boxes, scores, labels = (array[0] for array in model.task.decode(maps, k))
        found.append((apply_to_boxes(seen.to_image, boxes), scores, labels))
    boxes, scores, labels = map(np.concatenate, zip(*found, strict=True))
    kept, new = soft_nms_by_loops(boxes, scores, labels)
    assert len(kept) and np.abs(new - scores[kept]).max() > 0.01, "nothing was suppressed: nothing is tested"
    return boxes[kept][:k], new[:k], labels[kept][:k]


@pytest.mark.parametrize("resolution", ["fixed", "keep"])
def test_several_scales_of_photographs_are_single_ones_composed_by_hand(shared_data, resolution):
    data = open_dataset(shared_data / "coco-open", split="val")
    rng, k = np.random.default_rng(0), 30
    scales = (0.5, 1, 1.25) if resolution == "fixed" else (0.2, 0.4, 0.5)
    model = CenterNet("small", class_names=data.class_names, input_size=(128, 128))
    for name, spread, middle in (("hm", 0.2, -1), ("wh", 1.0, 8), ("reg", 0.3, 0.5)):
        last = model.heads[name][2]
        last.weight.data = (spread * rng.standard_normal(last.weight.shape)).astype(np.float32)
        last.bias.data[:] = middle

    class Few:
        class_names, category_ids = data.class_names, data.category_ids

        def __len__(self):
            return 3

        def annotation(self, i):
            return data.annotation(5 * i)

        def __getitem__(self, i):
            return data[5 * i]

    evaluation = evaluate(model, Few(), flip=True, scales=scales, resolution=resolution, k=k)
    for i, found in enumerate(evaluation.detections):
        boxes, scores, labels = detect_by_hand(model, Few()[i].image, scales, resolution, k)
        np.testing.assert_allclose(found.scores, scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes, boxes, atol=1e-2)
        np.testing.assert_array_equal(found.labels, labels)
