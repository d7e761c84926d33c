"""Pages about runs: what stands in them, that nothing is missing or fetched, and that a browser shows them whole."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minicenternet.config import TrainConfig
from minicenternet.data import Shapes
from minicenternet.errors import InputError
from minicenternet.metrics import average_precision
from minicenternet.parts import Part
from minicenternet.predict import Detections
from minicenternet.report import compare, duration, filmed, save_frame, write_report
from minicenternet.run_folder import write_metrics

CONFIG = TrainConfig(shapes=8, val_shapes=4, size=64, epochs=3, backbone="small", learning_rate=2e-3)
DATA = Shapes(4, 64, seed=11)  # no star is among them


def found_in(i: int) -> Detections:
    """All objects of an image where they are; but one in image 2 is missed, and nothing found in image 3."""
    truth = DATA.annotation(i)
    kept = slice({2: 1, 3: len(truth.boxes)}.get(i, 0), None)
    count = len(truth.boxes[kept])
    return Detections(truth.boxes[kept], np.linspace(0.9, 0.5, count, dtype=np.float32), truth.labels[kept], ())


DETECTIONS = [found_in(i) for i in range(4)]


def make_run(folder: Path, config: TrainConfig = CONFIG, aps=(0.125, 0.5, 0.25)) -> Path:
    """What a run leaves that a report is made of."""
    folder.mkdir(parents=True)
    config.save(folder / "config.json")
    (folder / "versions.json").write_text(json.dumps({"numpy": "<b>2.4"}))
    names = ("loss", "heatmap", "size", "offset")
    rows = [
        {"epoch": i, "step": 4 * i, **dict.fromkeys(names, 3 / i), "ap": ap, "ap50": 2 * ap, "learning_rate": 1e-3}
        | {"images_per_second": 7.25, "memory_mb": 100.0, "seconds": 1801.0 * i}
        for i, ap in enumerate(aps, start=1)
    ]
    write_metrics(folder, rows)
    (folder / "detections.npz").write_bytes(Part(detections=DETECTIONS).pack())
    for epoch in (1, 2, 10):
        save_frame(folder, epoch, np.full((16, 16, 5), epoch / 10, np.float32))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = make_run(tmp_path_factory.mktemp("runs") / "a & <b>")
    assert write_report(folder, DATA) == folder / "report.html"
    return (folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags are closed in order; `images`, `links` and the text of `tables` (rows of cells) are noted."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.images, self.links, self.tables, self.text = [], [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href", "srcset", "data") if name in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif "style" not in self.open:
            self.text += data


def picture(attributes: dict[str, str]) -> Image.Image:
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", attributes["src"]).groups()
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert image.format.lower() == kind and image.size == (int(attributes["width"]), int(attributes["height"]))
    return image


# ---- a report --------------------------------------------------------------------------------------------------------


def test_a_page_is_whole_and_fetches_nothing(page):
    parsed = Page(page)
    assert len(parsed.images) == 1 + 1 + 4 + 2  # curves, precision and recall, the worst, an image and its filmstrip
    assert all(link.startswith("data:image/") for link in parsed.links) and "url(" not in page and "@import" not in page
    for attributes in parsed.images:
        assert attributes["alt"] and np.ptp(np.asarray(picture(attributes).convert("L"))) > 50
    assert "a & <b>" in parsed.text and "<b>2.4" in str(parsed.tables)  # escaped, and read as it was meant


def test_ap_by_class_and_size_is_that_of_the_detections(page):
    truth = [DATA.annotation(i) for i in range(4)]
    result = average_precision(truth, DETECTIONS, len(DATA.class_names))
    table = next(table for table in Page(page).tables if table[0][0] == "class")
    assert table[1][:4] == ["all", str(sum(len(one.boxes) for one in truth)), f"{result.ap:.3f}", f"{result.ap50:.3f}"]
    assert {row[0] for row in table[2:]} == set(DATA.class_names) - {"star"} and "No objects there: star." in page
    for name, count, ap, _, small, medium, large in table[2:]:
        c = DATA.class_names.index(name)
        assert int(count) == sum(np.count_nonzero(one.labels == c) for one in truth)
        assert ap == f"{result.per_class[c]:.3f}"
        # a class alone: its AP by size is the mean over one class
        alone = average_precision([only(one, c) for one in truth], [only(one, c) for one in DETECTIONS], 5)
        expected = [alone.ap_small, alone.ap_medium, alone.ap_large]
        assert [small, medium, large] == ["-" if ap < 0 else f"{ap:.3f}" for ap in expected]


def only(one, label):
    """An annotation or detections with the objects of one class."""
    kept = one.labels == label
    arrays = {name: getattr(one, name)[kept] for name in ("boxes", "labels", "scores", "crowd", "difficult", "area")
              if hasattr(one, name)}  # fmt: skip
    return replace(one, **arrays)


def test_the_worst_images_come_first(page):
    captions = re.findall(r"<figcaption>(.*?):", page)
    assert captions[:2] == [DATA.annotation(3).file_name, DATA.annotation(2).file_name] and len(captions) == 4
    assert f"{len(DATA.annotation(3).boxes)} missed, 0 false" in page


def test_the_sentence_and_the_options(page):
    parsed = Page(page)
    assert "small on shapes, 3 of 3 epochs in 1:30:03: best AP 0.500, after epoch 2; in the last" in parsed.text
    options = next(dict(table) for table in parsed.tables if table[0][0] == "option")
    assert options["--learning-rate"] == "0.002" and "--batch-size" not in options and "--output" not in options


def test_frames_are_in_the_order_of_epochs_and_not_too_many(tmp_path, monkeypatch):
    shown = []
    folder = make_run(tmp_path / "run")
    for epoch in range(1, 101):
        save_frame(folder, epoch, np.full((8, 8, 2), epoch / 100, np.float32))
    (folder / "filmstrip" / "epoch-mine.png").write_text("somebody's own")

    def film(frames, titles):
        shown.extend(zip([float(frame.mean()) for frame in frames], titles, strict=True))
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr("minicenternet.draw.draw_filmstrip", film)
    (folder / "detections.npz").unlink()
    write_report(folder, DATA)
    assert len(shown) == 24 and (shown[0][1], shown[-1][1]) == ("epoch 1", "epoch 100")
    for value, title in shown:
        assert abs(value - int(title.removeprefix("epoch ")) / 100) < 1 / 255


def test_a_report_can_be_stopped_between_two_pictures(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    monkeypatch.setattr("minicenternet.draw.draw_curves", lambda rows: np.zeros((4, 4, 3), np.uint8))
    folder = make_run(tmp_path / "run")
    with pytest.raises(Stop):
        write_report(folder, DATA, stop)
    assert not (folder / "report.html").exists() and not list(folder.glob(".*"))


def test_before_ap_is_measured_there_is_a_report_without_it(tmp_path):
    folder = make_run(tmp_path / "run", aps=(float("nan"),))
    (folder / "detections.npz").unlink()
    text = write_report(folder, DATA).read_text(encoding="utf-8")
    assert "AP was not measured yet" in text and "1 of 3 epochs" in text and "best AP -" in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "metrics.csv").unlink(), "no metrics.csv with an epoch in it yet"),
        (lambda folder: (folder / "config.json").unlink(), "is no run folder"),
        (lambda folder: (folder / "detections.npz").write_bytes(b"PK ha"), r"detections\.npz is damaged"),
        (lambda folder: (folder / "detections.npz").write_bytes(b""), r"detections\.npz is damaged"),
        (
            lambda folder: (folder / "detections.npz").write_bytes((folder / "detections.npz").read_bytes()[:-30]),
            r"detections\.npz is damaged",
        ),
        (lambda folder: (folder / "filmstrip/epoch-0002.png").write_bytes(b"ha"), r"epoch-0002\.png is damaged"),
        (
            lambda folder: (folder / "detections.npz").write_bytes(Part(detections=DETECTIONS[:2]).pack()),
            "of 2 images and the validation data have 4",
        ),
        (lambda folder: (folder / "versions.json").write_text("{"), r"versions\.json is damaged"),
    ],
)
def test_what_a_report_cannot_be_made_of_is_refused(tmp_path, monkeypatch, damage, message):
    for name in ("draw_curves", "draw_precision_recall", "draw_filmstrip", "draw_boxes"):
        monkeypatch.setattr(f"minicenternet.draw.{name}", lambda *_, **__: np.zeros((4, 4, 3), np.uint8))
    folder = make_run(tmp_path / "run")
    damage(folder)
    with pytest.raises(InputError, match=message):
        write_report(folder, DATA)
    assert not (folder / "report.html").exists()


def test_the_filmed_image_holds_objects():
    empty = replace(DATA.annotation(0), boxes=np.zeros((0, 4), np.float32))
    first = DATA.annotation(0)

    class Few:
        def __init__(self, *annotations):
            self.annotations = annotations

        def __len__(self):
            return len(self.annotations)

        def annotation(self, i):
            return self.annotations[i]

    assert filmed(Few(empty, empty, first)) == 2 and filmed(Few(empty, empty)) == 0


# ---- several ---------------------------------------------------------------------------------------------------------


def test_runs_beside_each_other(tmp_path):
    one = make_run(tmp_path / "one")
    other = replace(CONFIG, batch_size=4, augmentation=replace(CONFIG.augmentation, flip=0.25), output="elsewhere")
    two = make_run(tmp_path / "two", other, aps=(0.25, 0.75))
    comparison = compare([one, two])
    assert comparison.options == {"--batch-size": ["16", "4"], "--augmentation.flip": ["0.5", "0.25"]}
    assert comparison.figures["best AP"] == ["0.500", "0.750"] and comparison.figures["of epoch"] == ["2", "2"]
    assert comparison.figures["last AP"] == ["0.250", "0.750"] and comparison.figures["epochs"] == ["3 of 3", "2 of 3"]
    assert comparison.figures["time"] == ["1:30:03", "1:00:02"]
    lines = comparison.text().splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[1].split() == ["--batch-size", "16", "4"]
    comparison.save(tmp_path / "page.html")
    parsed = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert parsed.tables == [[["", str(one), str(two)], *map(list, comparison.lines())]]
    assert len(parsed.images) == 1 and picture(parsed.images[0])


def test_what_cannot_be_compared_is_refused(tmp_path):
    one = make_run(tmp_path / "one")
    for few in ([one], [one, one], [one, tmp_path / "two" / ".." / "one"]):
        with pytest.raises(InputError, match="name two or more, each once"):
            compare(few)
    with pytest.raises(InputError, match="is no run folder"):
        compare([one, tmp_path / "nowhere"])
    two = make_run(tmp_path / "two")
    write_metrics(two, [{"epoch": 1, "loss": 2.0, "images_per_second": 3.0, "map": 0.5}])
    with pytest.raises(InputError, match=r"two.metrics\.csv is damaged \(it has no ap, ap50\)"):
        compare([one, two])


@pytest.mark.parametrize(("seconds", "text"), [(3723.4, "1:02:03"), (0.0, "0:00:00"), (float("nan"), "-")])
def test_durations(seconds, text):
    assert duration(seconds) == text


# ---- in a browser ----------------------------------------------------------------------------------------------------

LOOK = """<script>
document.title = JSON.stringify({
    shown: [...document.images].filter(image => image.complete && image.naturalWidth > 0).length,
    fetched: performance.getEntriesByType("resource").filter(one => !one.name.startsWith("data:")).length,
    wide: document.documentElement.scrollWidth - innerWidth,
    bars: [...document.querySelectorAll("td.bar")].map(
        cell => [cell.textContent, getComputedStyle(cell).backgroundImage.match(/([0-9.]+)%/)[1]]),
})</script></body>"""


def test_a_browser_shows_all_of_it_offline(page, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome to look at the page with")
    (tmp_path / "page.html").write_text(page.replace("</body>", LOOK), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom")
    command = [browser, *options, "--window-size=700,900", f"--user-data-dir={tmp_path / 'browser'}"]
    ended = subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120)
    seen = json.loads(re.search("<title>(.*?)</title>", ended.stdout)[1])
    assert seen["shown"] == len(Page(page).images) and seen["fetched"] == 0
    assert seen["wide"] <= 0  # nothing is cut off at the right
    assert len(seen["bars"]) > 5
    for text, percent in seen["bars"]:
        assert abs(float(text) - float(percent) / 100) < 1e-3
