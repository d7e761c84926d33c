import json

import numpy as np
import pytest
from PIL import Image

from minicenternet.data.annotation import ADVICE
from minicenternet.data.check import CELL_EDGES, check
from minicenternet.data.coco import Coco
from minicenternet.data.voc import Voc
from minicenternet.errors import InputError

WIDTH, HEIGHT = 80, 60


@pytest.fixture
def make(tmp_path):
    """Writes a COCO file, given the boxes of each image, and the images 0.png, 1.png, ...; returns its path."""

    def make(boxes_of_images, change=lambda record: None):
        noise = np.random.default_rng(0)
        record = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
        for i, boxes in enumerate(boxes_of_images):
            pixels = noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
            record["images"].append({"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT})
            for category, *box in boxes:
                number = len(record["annotations"]) + 1
                record["annotations"].append({"id": number, "image_id": i, "category_id": category, "bbox": box})
        change(record)
        (tmp_path / "a.json").write_text(json.dumps(record))
        return tmp_path / "a.json"

    return make


GOOD = [(1, 2, 3, 20, 30), (2, 40, 10, 30, 8)]


def test_a_sound_data_set_has_no_problems(make):
    report = check(make([GOOD, GOOD, []]))
    assert report.problems.counts == {} and report.usable == [0, 1, 2]
    assert "none found" in report.text()
    assert "images     3, 1 of them without boxes" in report.text()
    assert "boxes      4 in 2 of 2 classes" in report.text()


def test_every_mistake_is_listed_with_its_place_and_nothing_stops_the_report(make, tmp_path):
    def spoil(record):
        images, annotations = record["images"], record["annotations"]
        annotations[0]["image_id"] = 99
        annotations[1]["category_id"] = 99
        annotations[2]["bbox"] = [1, 2, -5, 6]
        annotations[3]["bbox"] = [1, 2, 3]
        annotations[4]["id"] = 1
        images[1]["file_name"] = "../1.png"
        images[2]["file_name"] = "gone.png"
        images[4]["file_name"] = "5.png"

    outside, mixed_up, flat = (1, 50, 30, 60, 20), (2, 30, 20, 70, 50), (1, 5, 5, 0, 9)
    path = make([[*GOOD, *GOOD, GOOD[0], outside, mixed_up, flat, (2, 30, 20, 20, 20), (2, 30, 20, 20, 20)]] * 7, spoil)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:500])
    Image.new("RGB", (10, 10)).save(tmp_path / "6.png")
    report = check(path, tmp_path / "report")
    assert report.problems.counts == {
        "unknown image": 1,
        "unknown class": 1,
        "impossible box": 1,
        "malformed record": 1,
        "duplicate id": 1,
        "unsafe file name": 1,
        "missing image": 1,
        "unusable image": 2,
        "image listed twice": 1,
        "box of no area": 6,
        "box outside its image": 6,
        "probably x1 y1 x2 y2": 6,
        "box given twice": 21,
        "centre collision": 21,
    }
    assert report.usable == [0, 3, 4]  # of the six that are left: 0, gone, 3 (cut), 5, 5 again, 6 (of another size)
    text = report.text()
    for words in (
        "annotation 1 is of image 99",
        "annotation 2 is of category 99",
        "annotation 3 has bbox [1, 2, -5, 6]",
        "file_name '../1.png'",
        "gone.png",
        "3.png as an image: it is truncated",
        "6.png is 10 x 10 pixels, but its annotation says 80 x 60",
        "5.png is listed 2 times",
        "0.png: annotation 6 (cat), x1 y1 x2 y2 = 50, 30, 110, 50 in an image of 80 x 60",
        "0.png: annotation 7 (dog), x1 y1 x2 y2 = 30, 20, 100, 70 in an image of 80 x 60",
        "annotation 8 has bbox [5, 5, 0, 9]",
        "0.png: annotation 10 (dog)",
        "box given twice: 21",
        "  - and 11 more",
    ):
        assert words in text, words
    assert all(ADVICE[kind] in text for kind in report.problems.counts)
    assert json.loads((tmp_path / "report" / "report.json").read_text())["problems"]["box given twice"]["count"] == 21


def voc_object(name, *corners):
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"


@pytest.fixture
def voc(tmp_path):
    """A VOC folder of two images, one of them with annotations that are not XML."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / "voc" / folder).mkdir(parents=True)
    objects = voc_object("cat", 40, 30, 20, 10) + voc_object("cat", 1, 1, 9, 9) + voc_object("dog", 9, 9, 200, 20)
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    (tmp_path / "voc/Annotations/a.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (tmp_path / "voc/Annotations/b.xml").write_text("broken")
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "voc/JPEGImages/a.jpg")
    (tmp_path / "voc/ImageSets/Main/train.txt").write_text("a\nb\nc\n")
    return tmp_path / "voc"


def test_mistakes_of_a_voc_folder(voc):
    report = check(voc)
    assert report.problems.counts == {
        "unreadable XML": 1,
        "missing annotation": 1,
        "probably x y width height": 1,
        "box outside its image": 1,
    }
    assert "a.xml: object 1 (cat) has xmin 40, ymin 30, xmax 20, ymax 10" in report.text()
    assert "a.jpg: object 3 (dog), x1 y1 x2 y2 = 8, 8, 200, 20" in report.text()


def test_boxes_in_fractions_of_the_image_are_recognised(make):
    path = make([[(1, 0.1, 0.2, 0.5, 0.25), (2, 0.5, 0.5, 0.5, 0.5)]])
    assert check(path).problems.counts == {"probably fractions": 2}
    path = make([[(1, 0.1, 0.2, 0.5, 0.25), (2, 5, 5, 10, 10)]])
    assert check(path).problems.counts == {}


def test_corners_in_place_of_width_and_height_are_told_from_boxes_that_are_merely_outside(make):
    corners = [(1, 50, 30, 70, 50), (1, 40, 5, 79, 55)]
    assert check(make([corners])).problems.counts == {"probably x1 y1 x2 y2": 2}
    beyond = [(1, 70, 10, 20, 20), (1, -5, 10, 20, 20), (1, 30, 50, 20, 20)]
    assert check(make([beyond])).problems.counts == {"box outside its image": 3}
    rounding = [(1, -0.5, -0.9, 80, 60), (1, 60.5, 0, 20, 60.9)]
    assert check(make([rounding])).problems.counts == {}


def test_figures_equal_those_of_plain_loops(make):
    rng = np.random.default_rng(1)
    boxes_of_images = []
    for _ in range(3):
        corners = rng.uniform(0, 15, (40, 2)).round(1)
        sizes = rng.uniform(1, 9, (40, 2)).round(1)
        boxes_of_images.append([(int(rng.integers(1, 3)), *c, *s) for c, s in zip(corners, sizes, strict=True)])
    report = check(make(boxes_of_images), stride=4, input_size=120)

    cells, lost, pairs, sizes = {}, 0, 0, []
    class_boxes, class_images = {1: 0, 2: 0}, {1: set(), 2: set()}
    for i, boxes in enumerate(boxes_of_images):
        for category, x, y, w, h in boxes:
            class_boxes[category] += 1
            class_images[category].add(i)
            scale = 120 / WIDTH  # letterboxed: the width fills the input, the height is centred in it
            centre_x, centre_y = (x + w / 2) * scale, (y + h / 2) * scale + (120 - HEIGHT * scale) / 2
            cell = (i, category, int(centre_x // 4), int(centre_y // 4))
            pairs += cells.get(cell, 0)
            lost += cell in cells
            cells[cell] = cells.get(cell, 0) + 1
            sizes.append((w * h) ** 0.5 * scale / 4)
    assert report.class_boxes.tolist() == list(class_boxes.values())
    assert report.class_images.tolist() == [len(images) for images in class_images.values()]
    assert (report.collision_pairs, report.collision_lost) == (pairs, lost) and pairs > lost > 0
    counts = [sum(low <= size < high for size in sizes) for low, high in zip(CELL_EDGES, CELL_EDGES[1:], strict=False)]
    assert report.cell_counts.tolist() == counts
    assert report.area_counts.tolist() == [120, 0, 0]


def test_one_box_of_two_classes_is_neither_given_twice_nor_a_collision(make):
    assert check(make([[(1, 2, 3, 20, 30), (2, 2, 3, 20, 30)]])).problems.counts == {}


def test_crowd_regions_do_not_collide(make):
    def crowd(record):
        record["annotations"][0]["iscrowd"] = 1

    twice = [(1, 2, 3, 20, 30), (1, 2, 3.5, 20, 29)]
    assert check(make([twice])).collision_lost == 1
    assert check(make([twice], crowd)).collision_lost == 0


def test_save_writes_reports_and_pictures(make, tmp_path):
    report = check(make([GOOD] * 20, lambda record: record["categories"][0].update(name="$c_a$t 猫")), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "gallery.png",
        "histograms.png",
        "report.json",
        "report.txt",
    ]
    assert (tmp_path / "out" / "report.txt").read_text(encoding="utf-8") == report.text()
    facts = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert facts["images"] == 20 and facts["class_boxes"] == {"$c_a$t 猫": 20, "dog": 20}
    for name in ("gallery.png", "histograms.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 400 and len(picture.getcolors(2**20)) > 20


def test_a_data_set_without_objects_or_without_usable_images(make, tmp_path):
    path = make([[]], lambda record: record["images"][0].update(file_name="1.png"))
    (tmp_path / "1.png").write_text("no image")
    report = check(path, tmp_path / "out")
    assert report.problems.counts == {"unusable image": 1} and report.usable == []
    assert "0 in 0 of 2 classes" in report.text() and (tmp_path / "out" / "gallery.png").is_file()


def test_what_cannot_be_looked_over_is_refused(make, tmp_path):
    path = make([GOOD])
    with pytest.raises(InputError, match="has no val split"):
        check(path, split="val")
    with pytest.raises(InputError, match="shapes are drawn"):
        check("shapes")
    with pytest.raises(InputError, match="no data set at"):
        check(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        check(path, tmp_path / "file")


def test_an_input_without_pixels_is_refused(make):
    with pytest.raises(InputError, match="the network input is 0, expected 1 pixel or more"):
        check(make([GOOD]), input_size=0)


def test_every_kind_of_mistake_that_stops_training_is_refused_there_too(make, voc):
    def spoil(record):
        record["annotations"][0]["bbox"][2] = -1

    path = make([GOOD], spoil)
    assert check(path).problems.counts == {"impossible box": 1}
    with pytest.raises(InputError, match="minicenternet data check"):
        Coco(path)
    with pytest.raises(InputError, match="minicenternet data check"):
        Voc(voc)


def test_real_photographs_have_no_problems(shared_data):
    assert check(shared_data / "coco-open").problems.counts == {}
    report = check(shared_data / "voc-sample" / "VOCdevkit", split="val")
    assert report.problems.counts == {} and len(report.usable) == 20
