"""The command line: every verb does its work, and every mistake gets one message and no traceback."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pth_files import checkpoint
from tiny_tutorial import TUTORIAL

from minicenternet import CenterNet, __version__, cli, course, doctor, evaluate
from minicenternet.data import Shapes
from minicenternet.data.voc import CLASSES as VOC_CLASSES
from minicenternet.errors import InputError
from minicenternet.train import Interrupted, Run

SHAPES = Shapes(1).class_names
TINY = ("--shapes", 8, "--val-shapes", 2, "--size", 32, "--batch-size", 4, "--epochs", 2, "--workers", 0)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run the command line in an empty folder: arguments -> (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """An untrained network for shapes."""
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    CenterNet("small", class_names=SHAPES, input_size=(64, 64)).save(path)
    return path


def assert_refused(outcome: tuple[int, str, str], *words: str, code: int = 2) -> None:
    """One line on standard error, beginning with "error: ", that holds all the words."""
    assert outcome[0] == code
    assert outcome[2].startswith("error: ") and outcome[2].count("\n") == 1
    assert "Traceback" not in "".join(outcome[1:])
    for word in words:
        assert word in outcome[2]


def write_photo(path, height=40, width=50):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(path)


def coco(annotations=(), images=None, categories=({"id": 1, "name": "cat"},)) -> dict:
    """A COCO file of one image, a.png, unless others are given."""
    images = [{"id": 1, "file_name": "a.png", "width": 50, "height": 40}] if images is None else images
    return {"images": images, "categories": list(categories), "annotations": list(annotations)}


def cat(bbox=(5, 5, 20, 20), image_id=1, category_id=1) -> dict:
    return {"id": 7, "image_id": image_id, "category_id": category_id, "bbox": list(bbox)}


# ---- everything once, as a user would --------------------------------------------------------------------------------


def test_from_training_to_detections(run, tmp_path):
    code, said, _ = run("train", *TINY, "--shapes", 16, "--size", 64)
    assert code == 0
    assert "epoch 2/2" in said and "minicenternet predict IMAGES --weights runs/shapes-1/best.safetensors" in said
    best = tmp_path / "runs/shapes-1/best.safetensors"
    assert best.is_file()

    code, said, _ = run("train", "--resume", "runs/shapes-1")  # finished: nothing is left to do
    assert code == 0 and "is finished: all its 2 epochs are done" in said and "epoch 1/2" not in said

    code, said, _ = run("evaluate", "--weights", best, "--shapes", 3, "--flip", "--no-referee", "--protocol", "voc")
    assert code == 0 and "AP50" in said and "11 points" in said and "3 images" in said

    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.jpg"):
        write_photo(tmp_path / "photos" / name)
    code, said, _ = run("predict", "photos", "photos/a.png", "--weights", best, "--min-score", 0, "--k", 3)
    assert code == 0 and "6 objects in 2 images" in said
    assert sorted(os.listdir("predictions")) == ["a-found.jpg", "b-found.jpg", "predictions.json"]
    content = json.loads((tmp_path / "predictions/predictions.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["photos/a.png", "photos/b.jpg"]
    assert [category["name"] for category in content["categories"]] == list(SHAPES)
    assert [annotation["id"] for annotation in content["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert {annotation["image_id"] for annotation in content["annotations"]} == {1, 2}

    code, said, _ = run("explain", "photos/a.png", "--weights", best)
    assert code == 0 and "explanation.png" in said
    with Image.open("explanation.png") as picture:
        assert picture.width > 1000

    (tmp_path / "cats.json").write_text(json.dumps(coco([cat()])))
    code, said, _ = run("data", "check", "cats.json", "--images", "photos", "--output", "looked")
    assert code == 0 and "PROBLEMS" in said and "none found" in said
    assert (tmp_path / "looked/gallery.png").is_file()

    code, said, _ = run("train", "--data", "cats.json", "--images", "photos", "--size", 32, "--epochs", 1, *TINY[-2:])
    assert code == 0 and "no validation data" in said and (tmp_path / "runs/cats-1/best.safetensors").is_file()

    for name in ("shapes-1", "cats-1"):
        written = (tmp_path / "runs" / name / "report.html").read_bytes()
        code, said, _ = run("report", f"runs/{name}")
        assert code == 0 and said == f"runs/{name}/report.html\n"
        assert (tmp_path / said.strip()).read_bytes() == written  # the run had written it already
    code, said, _ = run("compare", "runs/shapes-1", "runs/cats-1")
    assert code == 0 and "--data" in said and "best AP" in said and (tmp_path / "comparison.html").is_file()
    assert_refused(run("compare", "runs/shapes-1"), "name two or more")
    assert_refused(run("report", "photos"), "photos is no run folder")


def test_test_images_are_detected_on_and_a_stopped_evaluation_goes_on(run, tmp_path, weights, monkeypatch):
    for i in range(3):
        write_photo(tmp_path / f"{i}.png")
    images = [{"id": 10 + i, "file_name": f"{i}.png", "width": 50, "height": 40} for i in range(3)]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(SHAPES)]
    (tmp_path / "image_info_test-dev2017.json").write_text(json.dumps({"images": images, "categories": categories}))
    command = ("evaluate", "--data", "image_info_test-dev2017.json", "--weights", weights, "--output", "sent")
    command += ("--batch-size", 1)
    monkeypatch.setattr(evaluate, "KEEP_SECONDS", 0)
    (tmp_path / "2.png").rename(tmp_path / "away.png")
    (tmp_path / "2.png").write_bytes(b"")
    assert_refused(run(*command), "2.png")
    assert len(os.listdir("sent/unfinished")) == 3  # two images, and of what they are
    assert_refused(run(*command, "--flip"), "sent/unfinished keeps detections of another evaluation", "flip differ")
    (tmp_path / "away.png").replace(tmp_path / "2.png")
    code, said, _ = run(*command)
    assert code == 0 and "no annotations" in said and "3 images" in said
    assert sorted(os.listdir("sent")) == ["detections.json", "metrics.json", "table.txt"]
    records = json.loads((tmp_path / "sent/detections.json").read_text())
    assert len(records) == 300 and {record["image_id"] for record in records} == {10, 11, 12}
    assert_refused(run("train", "--data", "image_info_test-dev2017.json"), "no list called annotations")


def test_pictures_of_images_with_one_name_are_kept_apart(run, tmp_path, weights):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_photo(tmp_path / folder / "a.png")
    run("predict", "one", "two", "--weights", weights, "--k", 1)
    assert {"a-found.jpg", "a-found-2.jpg"} < set(os.listdir("predictions"))


def test_no_image_is_written_over_by_the_picture_of_another(run, tmp_path, weights):
    for name in ("a.jpg", "a-found.jpg"):
        write_photo(tmp_path / name)
    theirs = (tmp_path / "a-found.jpg").read_bytes()
    run("predict", ".", "--weights", weights, "--k", 1, "--output", ".")
    assert (tmp_path / "a-found.jpg").read_bytes() == theirs
    assert {"a-found-2.jpg", "a-found-found.jpg"} < set(os.listdir(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every file name is Unicode")
def test_names_that_are_not_unicode_are_shown_as_well_as_can_be(run, tmp_path):
    folder, photo = (os.fsdecode(name) for name in (b"caf\xe9", b"gar\xe7on.png"))  # Latin-1
    (tmp_path / folder / "Annotations").mkdir(parents=True)
    (tmp_path / folder / "JPEGImages").mkdir()
    write_photo(tmp_path / folder / "JPEGImages" / photo)
    (tmp_path / folder / "Annotations" / photo).with_suffix(".xml").write_text(
        "<annotation><size><width>50</width><height>40</height></size><object><name>cat</name><bndbox><xmin>5</xmin>"
        "<ymin>5</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
    )
    assert run("data", "check", folder)[0] == 0
    assert f"data set   {folder} (train)".replace("\udce9", r"\udce9") in Path("data-check/report.txt").read_text(
        "utf-8"
    )
    assert json.loads(Path("data-check/report.json").read_text("utf-8"))["source"] == folder
    options = ("--size", 32, "--epochs", 1, "--workers", 0, "--output", f"runs/{folder}")
    assert run("train", "--data", folder, *options)[0] == 0
    assert r"caf\udce9" in Path(f"runs/{folder}/report.html").read_text("utf-8")
    assert run("evaluate", "--data", folder, "--weights", f"runs/{folder}/best.safetensors", "--output", "out")[0] == 0


def test_nothing_found_is_said(run, weights, tmp_path):
    write_photo(tmp_path / "a.png")
    code, said, _ = run("predict", "a.png", "--weights", weights, "--min-score", 1, "--no-draw")
    assert code == 0 and "nothing with a score of 1.0 or more" in said and "0 objects in 1 image:" in said
    assert os.listdir("predictions") == ["predictions.json"]


@pytest.mark.parametrize("verb, place", [("evaluate", "evaluate.evaluate"), ("predict", "predict.Predictor")])
def test_every_way_to_use_a_network_is_passed_on(run, tmp_path, monkeypatch, weights, verb, place):
    given = {}

    def record(model, *_, **options):
        given.update(options, folded=model.folded)
        raise InputError("that is all")

    monkeypatch.setattr(f"minicenternet.{place}", record)
    write_photo(tmp_path / "a.png")
    options = "--k 7 --resolution keep --flip --scales 0.5 2 --nms hard --batch-size 3".split()
    assert_refused(run(verb, *(["a.png"] if verb == "predict" else []), *options, "--weights", weights), "that is all")
    wanted = {
        "k": 7,
        "resolution": "keep",
        "flip": True,
        "scales": (0.5, 2.0),
        "nms": "hard",
        "batch_size": 3,
        "folded": True,
    }
    assert wanted.items() <= given.items()


def test_rounding_is_passed_on(run, tmp_path, weights):
    write_photo(tmp_path / "a.png")
    options = ["--weights", weights, "--rounded", "--output", "out"]
    assert run("predict", "a.png", *options, "--min-score", 0, "--no-draw")[0] == 0
    assert run("evaluate", *options, "--shapes", 2, "--no-referee")[0] == 0
    records = [json.loads((tmp_path / "out" / name).read_text()) for name in ("predictions.json", "detections.json")]
    assert all(len(repr(x).split(".")[1]) <= 2 for r in records[0]["annotations"] for x in (*r["bbox"], r["score"]))
    assert all(len(repr(x).split(".")[1]) <= 2 for r in records[1] for x in (*r["bbox"], r["score"]))
    assert json.loads((tmp_path / "out/metrics.json").read_text())["options"]["rounded"] is True


# ---- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_verb_with_an_example(run, arguments):
    code, said, _ = run(*arguments)
    assert code == 0
    for name, verb in cli.VERBS.items():
        assert f"\n{name} " in said and verb.example in said
        assert verb.example.startswith(f"minicenternet {name}")
    assert max(map(len, said.splitlines())) <= 100


@pytest.mark.parametrize("name", cli.VERBS)
def test_each_verb_explains_its_options(run, name):
    code, said, _ = run(*name.split(), "--help")
    assert code == 0 and cli.VERBS[name].example in said
    assert f"minicenternet {name}" in said and "\x1b" not in said  # no colour codes: this is not a terminal


@pytest.mark.parametrize("name", cli.VERBS)
def test_examples_are_valid(name):
    arguments = cli.VERBS[name].example.split()[1 + len(name.split()) :]
    assert isinstance(cli._parse(name, cli.VERBS[name], arguments), cli.VERBS[name].options)


def test_commands_of_the_readme_are_valid():
    readme = Path(__file__).parents[1] / "README.md"
    lines = [line for line in readme.read_text(encoding="utf-8").splitlines() if line.startswith("minicenternet ")]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        name = next(name for name in cli.VERBS if words[: len(name.split())] == name.split())
        assert isinstance(cli._parse(name, cli.VERBS[name], words[len(name.split()) :]), cli.VERBS[name].options)


def test_version(run):
    assert run("--version") == (0, f"minicenternet {__version__}\n", "")


def test_help_does_not_wait_for_what_it_does_not_need():
    code = (
        "import sys; from minicenternet import cli; assert cli.main(['--help']) == 0; "
        "sys.exit(str({'matplotlib', 'tyro', 'pycocotools', 'minicenternet.train'} & set(sys.modules)))"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert outcome.stderr == "set()\n"


def test_a_reader_who_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "minicenternet", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


# ---- what was typed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed, words",
    [
        ("trian", ["'trian'", "did you mean 'train'?"]),
        ("evalute --flip", ["did you mean 'evaluate'?"]),
        ("data", ["did you mean 'data check' or 'data prepare'?"]),
        ("dta", ["did you mean 'data check' or 'data prepare'?"]),
        ("data chekc x.json", ["'data chekc'", "did you mean 'data check'?"]),
        ("check", ["did you mean 'tutorial check' or 'data check'?"]),
        ("xyzzy", ["'xyzzy'", "demo, train, evaluate"]),
        ("--epochs 3 train", ["--epochs stands before the verb"]),
    ],
)
def test_an_unknown_verb_suggests_the_near_one(run, typed, words):
    assert_refused(run(*typed.split()), *words)


@pytest.mark.parametrize(
    "typed, words",
    [
        ("train --epoch 3", ["--epoch", "Perhaps you meant", "--epochs"]),
        ("predict a.jpg --sclaes 1", ["--sclaes", "Perhaps you meant", "--scales"]),
        ("train --epochs many", ["--epochs", "many"]),
        ("train --epochs 0", ["--epochs is 0, expected more than 0"]),
        ("train --optimiser adm", ["adm", "adam", "sgd"]),
        ("explain", ["The image file"]),
        ("explain a.png b.png", ["b.png"]),
        ("explain a.png --min-score 7", ["--min-score is 7.0, expected 0 to 1"]),
    ],
)
def test_a_wrong_option_is_named_and_the_near_one_suggested(run, typed, words):
    code, said, error = run(*typed.split())
    assert (code, said) == (2, "") and "Traceback" not in error
    for word in words:
        assert word in error


# ---- weights of others -----------------------------------------------------------------------------------------------


def test_a_network_of_the_released_code_is_converted_and_used(run, tmp_path):
    network = CenterNet("small", class_names=VOC_CLASSES)
    (tmp_path / "net.pth").write_bytes(checkpoint(network.state_dict(), zipped=False))
    code, said, _ = run("convert", "net.pth", "net.safetensors", "--network", "small", "--dataset", "voc", "--size", 64)
    assert code == 0 and "arrays were loaded" in said and "predict IMAGES --weights net.safetensors" in said
    write_photo(tmp_path / "a.png")
    code, said, _ = run("predict", "a.png", "--weights", "net.safetensors", "--min-score", 0, "--no-draw")
    assert code == 0 and "objects in 1 image" in said


def test_what_cannot_be_converted_is_refused(run, tmp_path):
    assert_refused(run("convert", "net.pth", "net.safetensors"), "--network is missing", "dla34")
    assert_refused(run("convert", "net.pth", "net.safetensors", "--network", "dla34"), "no weights at net.pth")
    (tmp_path / "net.pth").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    refusal = run("convert", "net.pth", "net.safetensors", "--network", "small")
    assert_refused(refusal, "net.pth asks for 'os.system', which weights do not need; nothing in it was run")
    assert os.listdir(tmp_path) == ["net.pth"]
    write_photo(tmp_path / "a.png")
    assert_refused(run("predict", "a.png", "--weights", "net.pth"), "net.pth asks for 'os.system'")


def test_released_networks_are_listed_and_taken_from_a_file(run, tmp_path):
    code, said, _ = run("weights", "list")
    assert code == 0 and "ctdet_coco_dla_2x" in said and "MIT" in said
    (tmp_path / "other.pth").write_bytes(b"of something else")
    refusal = run("weights", "get", "ctdet_coco_resdcn18", "--source", "other.pth")
    assert_refused(refusal, "other.pth is not ctdet_coco_resdcn18", "expected f9e413f91cdb235a", "convert --network")
    assert_refused(run("weights", "get", "ctdet_coco_resdcn8"), "did you mean ctdet_coco_resdcn18?")


# ---- bad images ------------------------------------------------------------------------------------------------------


def make_bad_image(kind, path):
    if kind == "truncated":
        write_photo(path, 200, 200)
        path.write_bytes(path.read_bytes()[:3000])
    if kind == "no image":
        path.write_text("this is a shopping list")
    if kind == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize("kind", ["missing", "truncated", "no image", "empty"])
def test_bad_images_are_named(run, tmp_path, weights, kind):
    make_bad_image(kind, tmp_path / "bad.jpg")
    for verb in ("predict", "explain"):
        assert_refused(run(verb, "bad.jpg", "--weights", weights), "bad.jpg")


def test_a_bad_image_among_others_is_left_out(run, tmp_path, weights):
    """What was found in the others is kept, each under its own name; the exit code tells that one is missing."""
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "c.jpg"):
        write_photo(tmp_path / "photos" / name, 40, 30)
    make_bad_image("truncated", tmp_path / "photos" / "b.jpg")
    refusal = run("predict", "photos", "--weights", weights, "--output", "found", "--min-score", 0)
    assert_refused(refusal, "1 image left out", "b.jpg", "truncated")
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert [Path(image["file_name"]).name for image in found["images"]] == ["a.jpg", "c.jpg"]
    assert {annotation["image_id"] for annotation in found["annotations"]} == {1, 2}


def test_a_folder_without_images_is_refused(run, tmp_path, weights):
    (tmp_path / "empty").mkdir()
    assert_refused(run("predict", "empty", "--weights", weights), "the folder empty holds no images")
    assert_refused(run("predict", "--weights", weights), "no images were named")


def test_a_bad_image_in_training_is_named(run, tmp_path):
    make_bad_image("truncated", tmp_path / "a.jpg")
    images = [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 200}]
    (tmp_path / "cats.json").write_text(json.dumps(coco([cat()], images)))
    assert_refused(run("train", "--data", "cats.json", "--size", 32), "a.jpg", "truncated")
    assert not (tmp_path / "runs").exists()  # refused before anything was begun


# ---- bad annotations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", ["not JSON"]),
        ("[]", ["not a COCO annotation file"]),
        ('{"info": 1}', ["images", "'info'"]),
        (coco(images=[]), ["lists no images"]),
        (coco(categories=[]), ["lists no categories"]),
        (coco([cat(image_id=9)]), ["image", "9"]),
        (coco([cat(category_id=9)]), ["category", "9"]),
        (coco([cat((float("nan"), 5, 20, 20))]), ["nan"]),
        (coco([cat((5, 5, -20, 20))]), ["-20"]),
        (coco(images=[{"id": 1, "file_name": "../a.png", "width": 50, "height": 40}]), ["../a.png"]),
        (coco(images=[{"id": 1, "file_name": "b.png", "width": 50, "height": 40}]), ["b.png"]),
    ],
)
def test_bad_annotations_are_named(run, tmp_path, weights, content, words):
    write_photo(tmp_path / "a.png")
    (tmp_path / "bad.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert_refused(run("train", "--data", "bad.json", "--images", "."), "bad.json", *words)
    assert_refused(run("evaluate", "--data", "bad.json", "--images", ".", "--weights", weights), *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", [("train", "--data"), ("evaluate", "--data"), ("data", "check")])
def test_data_that_is_not_there_is_named(run, weights, verb):
    rest = ("--weights", weights) if verb[0] == "evaluate" else ()
    assert_refused(run(*verb, "nowhere.json", *rest), "nowhere.json")
    assert_refused(run(*verb, "nowhere", *rest), "no data set at nowhere", "COCO", "VOC")


def test_data_without_objects_can_be_trained_on_and_evaluated(run, tmp_path):
    write_photo(tmp_path / "a.png")
    (tmp_path / "none.json").write_text(json.dumps(coco()))
    code, said, _ = run("train", "--data", "none.json", "--size", 32, "--epochs", 1, "--workers", 0)
    assert code == 0 and "no AP, as the validation images hold no objects" in said and "nan" not in said
    code, said, _ = run("evaluate", "--data", "none.json", "--weights", "runs/none-1/best.safetensors")
    assert code == 0 and "1 image," in said and "no val split" in said


# ---- bad weights -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_pictures")
def test_weights_of_other_classes_can_be_trained_on_from_but_not_evaluated(run, tmp_path, weights):
    write_photo(tmp_path / "a.png")
    (tmp_path / "cats.json").write_text(json.dumps(coco([cat()])))
    data = ("--data", "cats.json", "--images", ".")
    outcome = run("evaluate", *data, "--split", "train", "--weights", weights)
    assert_refused(outcome, "other classes", "cat", "circle")
    code, said, _ = run("train", *data, "--size", 32, "--epochs", 1, "--workers", 0, "--weights", weights)
    assert code == 0 and "hm.2.weight, hm.2.bias begin anew" in said and '"circle"' in said


@pytest.mark.parametrize("damage", ["missing", "cut short", "other bytes", "no metadata", "other suffix"])
def test_bad_weights_are_named(run, tmp_path, weights, damage):
    path = tmp_path / ("bad.pkl" if damage == "other suffix" else "bad.safetensors")
    if damage == "cut short":
        path.write_bytes(weights.read_bytes()[:-100])
    if damage == "other bytes":
        path.write_bytes(b"PK" + bytes(1000))
    if damage == "no metadata":
        from safetensors.numpy import save_file

        save_file({"x": np.zeros(3)}, path)
    if damage == "other suffix":
        path.write_bytes(weights.read_bytes())
    write_photo(tmp_path / "a.png")
    assert_refused(run("predict", "a.png", "--weights", path), path.name)
    assert_refused(run("evaluate", "--weights", path), path.name)


def test_without_weights_those_of_the_demo_are_meant(run, tmp_path):
    write_photo(tmp_path / "a.png")
    assert_refused(run("predict", "a.png"), "runs/demo/best.safetensors")


def test_a_folder_that_is_no_run_cannot_be_resumed(run):
    assert_refused(run("train", "--resume", "nowhere"), "nowhere is no run folder")


# ---- disks -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_reported_and_the_last_state_kept(run, tmp_path, monkeypatch):
    replace, written = os.replace, []

    def full(source, target):
        written.append(str(target))
        if len(written) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert_refused(run("train", *TINY), "No space left on device", "What was there before is untouched")
    assert not [name for name in os.listdir("runs/shapes-1") if name.endswith(".tmp")]
    monkeypatch.setattr(os, "replace", replace)
    code, said, _ = run("train", "--resume", "runs/shapes-1")
    assert code == 0 and "epoch 2/2" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", *TINY, "--output", "file/run"],
        ["predict", "a.png", "--output", "file/found"],
        ["explain", "a.png", "--output", "file/explained.png"],
        ["evaluate", "--shapes", 1, "--output", "file/evaluation"],
        ["data", "check", "cats.json", "--images", ".", "--output", "file/report"],
        ["demo", "--output", "file/demo"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_output_that_cannot_be_written_is_named(run, tmp_path, weights, arguments):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "cats.json").write_text(json.dumps(coco([cat()])))
    write_photo(tmp_path / "a.png")
    if arguments[0] in ("predict", "explain", "evaluate"):
        arguments = [*arguments, "--weights", weights]
    assert_refused(run(*arguments), arguments[-1] if arguments[-1] != weights else arguments[-3])


def test_what_the_system_refuses_is_passed_on(run, monkeypatch):
    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied", "secret.json")

    monkeypatch.setattr(doctor, "examine", refuse)
    assert_refused(run("doctor"), "secret.json: Permission denied")


# ---- interruptions, bugs, warnings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "expected"), [(Interrupted, 130), (KeyboardInterrupt, 130), (Interrupted(signal.SIGTERM), 143)]
)
def test_a_stopped_run_says_how_to_go_on(run, monkeypatch, reason, expected):
    def stop(self):
        raise reason

    monkeypatch.setattr(Run, "train", stop)
    code, _, error = run("train", *TINY, "--output", "my runs/one")
    assert code == expected and error == "stopped; to go on: minicenternet train --resume 'my runs/one'\n"
    code, _, error = run("demo")
    assert code == expected and error == "stopped; the same command goes on from here\n"


def test_stopping_anything_else_is_quiet(run, monkeypatch):
    def stop(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", stop)
    assert run("doctor") == (130, "", "stopped\n")


def fail(*_):
    raise KeyError("no such thing\nand more of it")


def test_a_bug_is_called_one_and_its_traceback_is_kept(run, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(doctor, "examine", fail)
    outcome = run("doctor")
    [path] = tmp_path.glob("crash-*.txt")
    assert_refused(outcome, "this is a bug in minicenternet", "KeyError", str(path), code=1)
    assert "Traceback" in path.read_text() and "no such thing" in path.read_text() and __version__ in path.read_text()


@pytest.mark.parametrize("verb, folder", [("train", "runs/shapes-1"), ("demo", "runs/demo")])
def test_a_bug_during_a_run_is_kept_in_its_folder(run, monkeypatch, tmp_path, verb, folder):
    monkeypatch.setattr(Run, "train", fail)
    outcome = run(verb, *(TINY if verb == "train" else ()))
    [path] = (tmp_path / folder).glob("crash-*.txt")
    assert_refused(outcome, str(path.relative_to(tmp_path)), code=1)


def test_a_bug_on_a_full_disk_is_kept_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(cli.Bug) as caught, cli._bugs_reported_in(tmp_path / "not there"):
        raise KeyError
    assert caught.value.path.parent == tmp_path and caught.value.path.is_file()


def test_no_memory_is_no_bug(run, monkeypatch):
    def fill(folder):
        raise MemoryError("Unable to allocate 9.99 TiB")

    monkeypatch.setattr(doctor, "examine", fill)
    assert_refused(run("doctor"), "out of memory", "--batch-size", "9.99 TiB", code=1)


def test_only_our_own_warnings_are_shown_and_only_as_a_line(run, monkeypatch):
    def warn(folder):
        warnings.warn_explicit("image 3 is skipped", UserWarning, "train.py", 1, module="minicenternet.train")
        warnings.warn_explicit("overflow", RuntimeWarning, "train.py", 1, module="minicenternet.train")
        warnings.warn_explicit("glyph", UserWarning, "font.py", 1, module="matplotlib.font")
        return []

    monkeypatch.setattr(doctor, "examine", warn)
    code, _, error = run("doctor")
    assert (code, error) == (0, "warning: image 3 is skipped\n")


def test_names_that_the_terminal_or_the_font_lacks_stop_nothing(tmp_path, weights):
    path = tmp_path / "名 é.png"
    write_photo(path)
    CenterNet("small", class_names=["名"], input_size=(32, 32)).save(tmp_path / "w.safetensors")
    command = [sys.executable, "-m", "minicenternet", "predict", path, "--weights", tmp_path / "w.safetensors"]
    ended = subprocess.run(
        [*command, "--min-score", "0.05", "--output", tmp_path / "ö"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert r"\u540d \xe9.png: \u540d" in ended.stdout
    assert json.loads((tmp_path / "ö/predictions.json").read_text(encoding="utf-8"))["images"][0]["file_name"]


def test_input_errors_are_the_message_and_nothing_else(run, monkeypatch):
    def refuse(folder):
        raise InputError("the moon is not full")

    monkeypatch.setattr(doctor, "examine", refuse)
    assert run("doctor") == (2, "", "error: the moon is not full\n")


def test_doctor_and_bench_from_the_command_line(run, monkeypatch):
    code, said, _ = run("doctor")
    assert code == 0 and "numpy" in said and said.endswith("minicenternet can be used here\n")
    assert run("doctor", "--folder", "nowhere")[0] == 1
    monkeypatch.setattr("minicenternet.bench.GEMM_SIDE", 16)
    arguments = ("--backbones", "small", "--size", 32, "--batch-size", 1, "--seconds", 0.001)
    code, said, _ = run("bench", *arguments, "--json", "figures.json")
    assert code == 0 and "images/s" in said and os.path.isfile("figures.json")
    assert_refused(run("bench", "--backbones", "alexnet"), "unknown backbone 'alexnet'")
    assert_refused(run("bench", "--loader", "nowhere"), "no data set at nowhere")


# ---- the course ------------------------------------------------------------------------------------------------------


def test_the_course_is_handed_out_and_checked(run, monkeypatch, tmp_path):
    pytest.importorskip("jupytext")
    monkeypatch.setattr(course, "TUTORIALS", tmp_path)
    (tmp_path / "07_halves.py").write_text(TUTORIAL, encoding="utf-8")
    code, said, _ = run("tutorial", "mine", "--no-jupyter")
    assert code == 0 and "07_halves.ipynb" in said and "minicenternet tutorial check mine" in said
    assert os.listdir("mine") == ["07_halves.ipynb"]
    code, said, _ = run("tutorial", "check", "--folder", "mine")
    assert code == 0 and "not yet: divide" in said and said.splitlines()[-1] == f"{'in all':<32}0 of 1 solved"


def test_without_jupytext_the_course_says_what_to_type(run, monkeypatch, tmp_path):
    monkeypatch.setattr(course, "TUTORIALS", tmp_path)
    (tmp_path / "07_halves.py").write_text(TUTORIAL, encoding="utf-8")
    Path("mine").mkdir()
    Path("mine", "07_halves.ipynb").touch()
    for absent in ("jupytext", "nbformat"):
        monkeypatch.setitem(sys.modules, absent, None)
    assert_refused(run("tutorial"), "reading the tutorials needs jupytext", 'pip install -e ".[notebooks]"')
    assert_refused(run("tutorial", "check", "--folder", "mine"), "reading the tutorials needs jupytext")


def test_an_installed_package_has_no_tutorials(run, monkeypatch, tmp_path):
    monkeypatch.setattr(course, "TUTORIALS", tmp_path)
    assert_refused(run("tutorial"), "an installed package does not hold them", 'pip install -e ".[notebooks]"')
    assert_refused(run("tutorial", "check"), "Clone the project")
