# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 14 · Data and augmentation
#
# - **Goal** Take boxes from the two file formats that matter to a network's input without losing a pixel on the way,
#   and find the labels that are wrong.
# - **You need** 07.
# - **Minutes** 60 to read and work / runs in about 6 s
# - **Equations** none of E1 to E10
# - **What you should see** Your readers and maps agree with the package's to 1e-3 pixels, the step of float32 at this
#   size being finer. Six mistakes planted in a data set are all found, each under its name.

# %%
import json
import os
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from minicenternet.data import Shapes, Voc, open_dataset
from minicenternet.data.check import check
from minicenternet.data.transforms import (
    Augmentation,
    apply_to_boxes,
    jitter_colour,
    letterbox,
    prepare,
    random_colours,
    random_shift_scale,
    warp,
)
from minicenternet.draw import COLOURS, show

FAST = os.environ.get("MINICENTERNET_FAST") == "1"
R = 4  # input pixels to a cell of the heatmap

# %% [markdown]
# ## Photographs, if you have them
#
# This notebook reads a folder in COCO's layout. Name yours in the environment variable `MINICENTERNET_COCO`, or get a
# small one, 73 photographs under open licences, by
#
# ```
# minicenternet data prepare coco-sample data/coco-sample
# ```
#
# Without it the notebook writes drawings of shapes in the same layout to a temporary folder, and says so. Everything
# below works on both.

# %%
scratch = tempfile.TemporaryDirectory()
home = Path(scratch.name)


def write_coco(folder, shapes, split="train"):
    """Write drawings of shapes as COCO does: JPEG files and one JSON file with images, categories, annotations."""
    (folder / f"{split}2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    content = {"images": [], "annotations": [], "categories": []}
    for label, name in enumerate(shapes.class_names):
        content["categories"].append({"id": 2 * label + 1, "name": name})  # ids with gaps, as COCO's are
    for i in range(len(shapes)):
        sample, name = shapes[i], f"{i:012d}.jpg"
        height, width = sample.image.shape[:2]
        Image.fromarray(sample.image).save(folder / f"{split}2017" / name, quality=92)
        content["images"].append({"id": 100 + i, "file_name": name, "width": width, "height": height})
        for (x1, y1, x2, y2), label in zip(sample.annotation.boxes.tolist(), sample.annotation.labels, strict=True):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 100 + i,
                    "category_id": 2 * int(label) + 1,
                    "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                    "area": round((x2 - x1) * (y2 - y1), 2),
                    "iscrowd": 0,
                }
            )
    (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


if "MINICENTERNET_COCO" in os.environ:
    root = Path(os.environ["MINICENTERNET_COCO"])
    print(f"photographs from {root}")
else:
    root = home / "shapes"
    write_coco(root, Shapes(31, size=(320, 426), seed=3, scale=(0.02, 0.6)))
    print("MINICENTERNET_COCO names no folder: 31 drawings of shapes stand in for photographs")
json_path = root / "annotations" / "instances_train2017.json"
image_folder = root / "train2017"

# %% [markdown]
# ## A COCO file
#
# One JSON file describes a whole split: three lists that point at each other by ids.

# %%
content = json.loads(json_path.read_text())
shown = {key: value for key, value in content["annotations"][0].items() if key != "segmentation"}
first = next(image for image in content["images"] if image["id"] == shown["image_id"])
print("an image      ", {key: first[key] for key in ("id", "file_name", "width", "height")})
print("an annotation ", shown)
print("categories    ", [(category["id"], category["name"]) for category in content["categories"]][:6], "...")
print(
    len(content["images"]),
    "images,",
    len(content["annotations"]),
    "annotations,",
    len(content["categories"]),
    "categories",
)

# %% [markdown]
# **Predict.** `bbox` has four numbers. Are the last two a corner, or a size? Find an annotation for which only one
# answer is possible.
#
# **Write.** The package wants boxes as corners $x_1\ y_1\ x_2\ y_2$, and labels 0 to $C - 1$ in the order of rising
# category ids. The ids themselves have gaps.


# %% tags=["exercise"]
def coco_boxes(content, image_id):
    """Boxes (N, 4) x1 y1 x2 y2 float64 and labels (N,) int64 of one image, in the order of the file."""
    ### BEGIN SOLUTION hint: label = position of category_id among the sorted ids; x2 = x + width, y2 = y + height
    label_of = {number: label for label, number in enumerate(sorted(c["id"] for c in content["categories"]))}
    boxes, labels = [], []
    for annotation in content["annotations"]:
        if annotation["image_id"] == image_id:
            x, y, width, height = annotation["bbox"]
            boxes.append((x, y, x + width, y + height))
            labels.append(label_of[annotation["category_id"]])
    return np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64)
    ### END SOLUTION


# %% tags=["check"]
tiny = {
    "images": [{"id": 7}, {"id": 3}, {"id": 0}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "bicycle"}, {"id": 9, "name": "boat"}],
    "annotations": [
        {"image_id": 7, "category_id": 18, "bbox": [10, 20, 30, 5.5]},
        {"image_id": 3, "category_id": 2, "bbox": [1, 2, 3, 4]},
        {"image_id": 7, "category_id": 2, "bbox": [0, 0, 2, 9]},
    ],
}
boxes, labels = coco_boxes(tiny, 7)
assert boxes.shape == (2, 4), f"image 7 has two annotations, found by image_id; yours has the shape {boxes.shape}"
assert boxes[0].tolist() == [10, 20, 40, 25.5], (
    f"x 10, y 20, width 30, height 5.5 is the box 10 20 40 25.5; yours {boxes[0].tolist()}: the last two are a size"
)
assert labels.tolist() == [2, 0], (
    f"the sorted ids are 2, 9, 18, so that 18 is label 2 and 2 is label 0; yours {labels.tolist()}"
)
assert coco_boxes(tiny, 3)[0].tolist() == [[1, 2, 4, 6]], "image 3 is found by its id, not by its position"
empty = coco_boxes(tiny, 0)
assert empty[0].shape == (0, 4) and empty[1].shape == (0,), "an image without annotations gives (0, 4) and (0,)"

# %% [markdown]
# Your reader against the package's, over the whole file:

# %%
data = open_dataset(root, split="train")
for i in range(len(data)):
    theirs = data.annotation(i)
    boxes, labels = coco_boxes(content, theirs.image_id)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # the package leaves out the few boxes of no area
    assert np.abs(boxes[has_area] - theirs.boxes).max(initial=0) < 1e-3
    assert labels[has_area].tolist() == theirs.labels.tolist()
print(f"{len(data)} images, {len(data.boxes)} boxes: reader and package agree")

# %% [markdown]
# ## The trap: xywh or xyxy
#
# Four numbers do not say what they are. The commonest mistake in detection is to read a size as a corner, or a corner
# as a size. Nothing crashes.
#
# **Predict.** What do the boxes look like if $x\ y\ w\ h$ is taken for corners? And the other way round? In which case
# do boxes leave the image, in which do they vanish?


# %%
def draw_boxes_on(axis, image, boxes, colour=COLOURS[1], line="-"):
    """Show an image with boxes on it; the axes end at the image's edges."""
    height, width = image.shape[:2]
    axis.imshow(image, extent=(0, width, height, 0))
    for x1, y1, x2, y2 in boxes:
        for ink, thickness, style in (("black", 3, "-"), (colour, 1.5, line)):
            axis.add_patch(
                Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=ink, linewidth=thickness, linestyle=style)
            )
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


counts = np.diff(data.first_box)
area_of_image = data.sizes.prod(axis=1)
shares = [np.median(data.annotation(i).area) / area_of_image[i] if 4 <= counts[i] <= 7 else 1 for i in range(len(data))]
chosen = int(np.abs(np.array(shares) - 0.04).argmin())  # a few objects, neither specks nor everything
sample = data[chosen]
right = sample.annotation.boxes
as_corners = np.concatenate([right[:, :2], right[:, 2:] - right[:, :2]], axis=1)  # sizes read as corners
as_sizes = np.concatenate([right[:, :2], right[:, :2] + right[:, 2:]], axis=1)  # corners read as sizes
figure, panels = plt.subplots(1, 3, figsize=(8, 2.6), layout="constrained")
for panel, boxes, title in zip(
    panels, (right, as_corners, as_sizes), ("right", "sizes read as corners", "corners read as sizes"), strict=True
):
    draw_boxes_on(panel, sample.image, boxes)
    gone = np.count_nonzero((boxes[:, 2:] <= boxes[:, :2]).any(axis=1))
    panel.set_title(f"{title}\n{len(boxes) - gone} of {len(boxes)} boxes have an area", fontsize=10)
show(
    figure,
    alt="One image three times: with its boxes; with sizes read as corners, which turns boxes inside out or puts them "
    "towards the upper left; with corners read as sizes, which makes boxes far too large.",
)

# %% [markdown]
# Over the whole data set: which share of the boxes loses its area, and which share leaves its image?

# %%
image_of_box = np.repeat(np.arange(len(data)), counts)
size_of_image = data.sizes[image_of_box]  # (N, 2) width, height
every = data.boxes.astype(float)
readings = {
    "right": every,
    "sizes read as corners": np.concatenate([every[:, :2], every[:, 2:] - every[:, :2]], axis=1),
    "corners read as sizes": np.concatenate([every[:, :2], every[:, :2] + every[:, 2:]], axis=1),
}
share = {}
for name, boxes in readings.items():
    lost = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1).mean()
    outside = (boxes[:, 2:] > size_of_image + 1).any(axis=1).mean()
    share[name] = lost, outside
    print(f"{name:24} no area {lost:4.0%}   beyond the image {outside:4.0%}")
assert share["right"] == (0, 0)
assert share["sizes read as corners"][0] > 0.3 and share["corners read as sizes"][1] > 0.3

# %% [markdown]
# Sizes read as corners: most boxes lose their area, and code that clips and drops in good faith throws them away
# without a word. Nothing crashes. Corners read as sizes: no box is lost, but
# every box is too large, and clipping hides that too. Each reading leaves a trace in plain counts. **Count before you
# train.**
#
# ## A VOC file
#
# PASCAL VOC has one XML file for each image, and corners instead of sizes. Its pixels are counted from 1, and the last
# pixel belongs to the box. In continuous coordinates, where the first pixel reaches from 0 to 1:
#
# $$x_1 = x_{min} - 1, \quad y_1 = y_{min} - 1, \quad x_2 = x_{max}, \quad y_2 = y_{max}.$$
#
# **Predict.** How wide is a box with $x_{min} = x_{max} = 1$?
#
# `difficult` is a word in the file, "0" or "1". Mind what Python makes of `bool("0")`.


# %% tags=["exercise"]
def voc_objects(text):
    """A VOC annotation (XML) -> list of (name, [x1, y1, x2, y2], difficult), in the order of the file."""
    ### BEGIN SOLUTION hint: for element in ElementTree.fromstring(text).iter("object"): findtext("bndbox/xmin") ...
    objects = []
    for element in ElementTree.fromstring(text).iter("object"):
        xmin, ymin, xmax, ymax = (float(element.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
        difficult = int(element.findtext("difficult") or 0) == 1
        objects.append((element.findtext("name"), [xmin - 1, ymin - 1, xmax, ymax], difficult))
    return objects
    ### END SOLUTION


# %% tags=["check"]
text = """<annotation><size><width>50</width><height>40</height></size>
<object><name>dog</name><difficult>0</difficult>
  <bndbox><ymax>30</ymax><xmin>11</xmin><ymin>6</ymin><xmax>20</xmax></bndbox></object>
<object><name>cat</name><difficult>1</difficult>
  <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></object>
<object><name>cow</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object>
</annotation>"""
found = voc_objects(text)
assert [name for name, _, _ in found] == ["dog", "cat", "cow"], "three objects, in the order of the file"
assert [float(v) for v in found[0][1]] == [10, 5, 20, 30], (
    f"pixels 11 to 20 and 6 to 30, counted from 1, are the box 10 5 20 30; yours {found[0][1]}. "
    "The four numbers may come in any order: look them up by name"
)
assert [float(v) for v in found[1][1]] == [0, 0, 1, 1], (
    f"a single pixel at 1 is a box one pixel wide, 0 0 1 1; yours {found[1][1]}: only the lower ends are shifted"
)
assert [bool(difficult) for _, _, difficult in found] == [False, True, False], (
    'difficult is "0", "1" or not there; bool("0") is True, so make it a number first'
)

# %% [markdown]
# To try it on many images, the data set is written in VOC's form. Both readers must give the same boxes.

# %%
voc = home / "VOC2012"
(voc / "Annotations").mkdir(parents=True)
(voc / "JPEGImages").mkdir()
used = range(min(len(data), 8 if FAST else 31))
for i in used:
    a = data.annotation(i)
    objects = "".join(
        f"<object><name>{data.class_names[label]}</name><bndbox><xmin>{x1 + 1!r}</xmin><ymin>{y1 + 1!r}</ymin>"
        f"<xmax>{x2!r}</xmax><ymax>{y2!r}</ymax></bndbox></object>"
        for (x1, y1, x2, y2), label in zip(a.boxes.tolist(), a.labels, strict=True)
    )
    size = f"<size><width>{a.width}</width><height>{a.height}</height></size>"
    (voc / "Annotations" / f"{Path(a.file_name).stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (voc / "JPEGImages" / a.file_name).write_bytes((image_folder / a.file_name).read_bytes())
package = Voc(voc, classes=data.class_names)
position = {name: i for i, name in enumerate(package.image_ids)}
for i in used:
    a = data.annotation(i)
    b = package.annotation(position[Path(a.file_name).stem])
    ours = voc_objects((voc / "Annotations" / f"{Path(a.file_name).stem}.xml").read_text())
    boxes = np.array([box for _, box, _ in ours]).reshape(-1, 4)
    assert np.abs(boxes - b.boxes).max(initial=0) < 1e-3 and np.abs(boxes - a.boxes).max(initial=0) < 1e-3
    assert [name for name, _, _ in ours] == [data.class_names[label] for label in b.labels]
print(f"{len(used)} images: COCO to VOC and back, boxes unchanged to 1e-3 pixels")

# %% [markdown]
# ## What is in it
#
# **Predict.** At an input of 128 pixels the heatmap has 32 by 32 cells. Which share of all boxes is smaller than one
# cell then (the square root of the area counts)? And at 512 pixels?

# %%
edges = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128])
root_area = np.sqrt((every[:, 2:] - every[:, :2]).prod(axis=1))
figure, (left, middle, right_panel) = plt.subplots(
    1, 3, figsize=(8, 3.4), layout="constrained", width_ratios=(1.3, 1, 0.9)
)
per_class = np.bincount(data.labels, minlength=len(data.class_names))
most = np.argsort(-per_class, kind="stable")[:12]
left.barh(range(len(most)), per_class[most], color=COLOURS[0])
left.set_yticks(range(len(most)), [data.class_names[c] for c in most], fontsize=8)
left.invert_yaxis()
left.set(xlabel="boxes", title="commonest classes")
for k, (size, hatch) in enumerate(((128, ""), (512, "//"))):
    cells = root_area * size / size_of_image.max(axis=1) / R
    counted = np.histogram(cells, edges)[0]
    middle.bar(
        np.arange(len(counted)) + 0.4 * k - 0.2,
        counted,
        width=0.4,
        color=COLOURS[k],
        hatch=hatch,
        label=f"input {size}",
    )
    print(f"input {size}: {np.mean(cells < 1):.0%} of the boxes are smaller than one cell")
middle.set_xticks(
    range(len(edges) - 1),
    [f"{low}-{high}" for low, high in zip(edges, edges[1:], strict=False)],
    fontsize=7,
    rotation=60,
)
middle.set(xlabel="size (cells)", title="size of the boxes")
middle.set_ylim(0, 1.3 * middle.get_ylim()[1])
middle.legend(frameon=False, fontsize=8, loc="upper right")
right_panel.hist(counts, bins=np.arange(counts.max() + 2) - 0.5, color=COLOURS[0])
right_panel.xaxis.get_major_locator().set_params(integer=True)
right_panel.set(xlabel="boxes in an image", ylabel="images", title="crowdedness")
show(
    figure,
    alt="Three histograms of the data set: boxes of the commonest classes; sizes of the boxes in heatmap cells at an "
    "input of 128 and of 512 pixels; images by their number of boxes.",
)

# %% [markdown]
# ## One matrix for pixels and boxes
#
# The network wants a square of fixed size. The image goes in as a whole, as large as it fits, in the middle: a
# *letterbox*. With $s = \min(S / w,\ S / h)$ a point moves to
#
# $$x' = s\,x + \tfrac{S - s\,w}{2}, \qquad y' = s\,y + \tfrac{S - s\,h}{2}.$$
#
# Every other view, cropped, zoomed or mirrored, is a matrix of the same form. So we write one function that makes the
# matrix, and one that takes boxes through any matrix. Pixels and boxes then cannot drift apart.
#
# **Write** the matrix: (2, 3), so that $(x', y') = M\,(x, y, 1)^T$.


# %% tags=["exercise"]
def letterbox_matrix(width, height, size):
    """The (2, 3) matrix that puts an image of width x height into the middle of a square of `size` pixels."""
    ### BEGIN SOLUTION hint: one scale, the smaller of size/width and size/height; half of what is left goes before
    s = min(size / width, size / height)
    return np.array([[s, 0, (size - s * width) / 2], [0, s, (size - s * height) / 2]])
    ### END SOLUTION


# %% tags=["check"]
wide, tall = letterbox_matrix(640, 480, 128), letterbox_matrix(100, 400, 128)
assert np.shape(wide) == (2, 3), f"a (2, 3) matrix, yours {np.shape(wide)}"
assert np.allclose(wide @ [0, 0, 1], [0, 16]) and np.allclose(wide @ [640, 480, 1], [128, 112]), (
    f"640 x 480 becomes 128 x 96, with 16 rows above and below; its corners go to (0, 16) and (128, 112), "
    f"yours to {(wide @ [0, 0, 1]).round(2).tolist()} and {(wide @ [640, 480, 1]).round(2).tolist()}"
)
assert np.allclose(tall @ [50, 200, 1], [64, 64]), "the middle of the image goes to the middle of the square"
assert np.allclose(tall[0, 0], 0.32) and np.allclose(tall[1, 1], 0.32), (
    "one scale for both axes, the smaller one: nothing is stretched, nothing is cut off"
)
for width, height in ((640, 480), (333, 500), (64, 64)):
    assert np.abs(letterbox_matrix(width, height, 128) - letterbox(width, height, 128, 128)).max() < 1e-12, (
        f"the package's letterbox of {width} x {height} is another matrix"
    )

# %% [markdown]
# A box has four corners, and all four go through the matrix. The new box is the upright one around them. Two corners
# are enough as long as nothing is mirrored or turned.
#
# **Predict.** What happens to $x_1 < x_2$ under a mirror image?


# %% tags=["exercise"]
def boxes_through(matrix, boxes):
    """Boxes (N, 4) through a (2, 3) matrix: the upright boxes around the four moved corners, (N, 4)."""
    ### BEGIN SOLUTION hint: corners (N, 4, 2) @ matrix[:, :2].T + matrix[:, 2]; then min and max over the four
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    corners = corners @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    ### END SOLUTION


# %% tags=["check"]
box = np.array([[10.0, 20, 30, 60]])
assert np.allclose(boxes_through(np.array([[2.0, 0, 5], [0, 3, 7]]), box), [[25, 67, 65, 187]]), (
    "scaled by 2 and 3 and moved by (5, 7), the box 10 20 30 60 becomes 25 67 65 187; is the shift added?"
)
mirrored = boxes_through(np.array([[-1.0, 0, 100], [0, 1, 0]]), box)
assert np.allclose(mirrored, [[70, 20, 90, 60]]), (
    f"mirrored in an image 100 wide it becomes 70 20 90 60, yours {mirrored.tolist()}: left and right change places"
)
c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
turned = boxes_through(np.array([[c, -s, 0], [s, c, 0]]), np.array([[0.0, 0, 2, 1]]))
assert np.allclose(turned, [[-s, 0, 2 * c, 2 * s + c]]), (
    f"turned by 30 degrees, the box around all four corners is {np.round([-s, 0, 2 * c, 2 * s + c], 3).tolist()}, "
    f"yours {turned.round(3).tolist()}: two corners are not enough"
)
assert boxes_through(np.eye(2, 3), np.zeros((0, 4))).shape == (0, 4), "no boxes in, no boxes out: (0, 4)"
rng = np.random.default_rng(0)
matrix, many = rng.normal(size=(2, 3)), np.sort(rng.uniform(0, 100, (20, 2, 2)), axis=1).reshape(20, 4)
assert np.abs(boxes_through(matrix, many) - apply_to_boxes(matrix, many)).max() < 1e-3, (
    "the package moves them elsewhere"
)

# %%
height, width = sample.image.shape[:2]
matrix = letterbox_matrix(width, height, 128)
small = warp(sample.image, matrix, (128, 128))
figure, (left, right_panel) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", width_ratios=(1.3, 1))
draw_boxes_on(left, sample.image, sample.annotation.boxes)
left.set_title(f"as photographed: {width} × {height} pixels")
draw_boxes_on(right_panel, small, boxes_through(matrix, sample.annotation.boxes))
right_panel.set_title("what the network gets: 128 × 128 pixels")
show(
    figure,
    alt="Left: an image with its boxes. Right: the same image letterboxed to 128 by 128 pixels with black bars, the "
    "boxes still around their objects.",
)

# %% [markdown]
# ## Mirror images
#
# **Write** the flip by itself: pixels and boxes. In continuous coordinates the left edge of an image of width $w$ is 0
# and the right edge is $w$.


# %% tags=["exercise"]
def flip(image, boxes):
    """The mirror image of (H, W, 3) and of its boxes (N, 4): left and right exchanged; the inputs are left alone."""
    ### BEGIN SOLUTION hint: image[:, ::-1]; the new x1 is w minus the OLD x2, and the new x2 is w minus the OLD x1
    width = image.shape[1]
    x1, y1, x2, y2 = boxes.T
    return image[:, ::-1], np.stack([width - x2, y1, width - x1, y2], axis=1)
    ### END SOLUTION


# %% tags=["check"]
picture = np.zeros((6, 10, 3), np.uint8)
picture[1:5, 2:5] = 255  # rows 1 to 4, columns 2 to 4: the box 2 1 5 5
before = np.array([[2.0, 1, 5, 5]])
after, moved = flip(picture, before)
assert before.tolist() == [[2, 1, 5, 5]] and picture[1, 2, 0] == 255, "the inputs were written over; make new arrays"
assert moved.shape == (1, 4) and moved[0, 0] < moved[0, 2], (
    f"x1 stays left of x2: yours {moved.tolist()}; the new x1 comes from the old x2"
)
rows, columns = np.nonzero(after[..., 0])
around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
assert around == [5, 1, 8, 5], f"the white block should now fill columns 5 to 7, rows 1 to 4; yours {around}"
assert moved[0].tolist() == around, (
    f"the box of the moved pixels is {around}, yours {moved[0].tolist()}: the edges of the image are 0 and w, not w - 1"
)
again = flip(*flip(picture, before))
assert np.array_equal(again[0], picture) and again[1].tolist() == before.tolist(), "twice mirrored is unchanged"

# %% [markdown]
# The released training code mirrors by the convention $x \leftarrow w - 1 - x$ for pixel *centres*, and then takes
# boxes through the same matrix. The package does as it does, for the sake of the published weights, and says so in
# its docstring. How far apart are pixels and boxes then? We need not believe it. We can measure it, on one white
# block.

# %%
block = np.zeros((64, 64, 3), np.uint8)
block[20:30, 12:24] = 255
edges_of_block = np.array([[12.0, 20, 24, 30]])
for mirrored in (False, True):
    matrix = random_shift_scale(np.random.default_rng(0), 64, 64, 64, 64, shift=0, scale=0, flip=float(mirrored))
    rows, columns = np.nonzero(warp(block, matrix, (64, 64))[..., 0] > 127)
    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    error = boxes_through(matrix, edges_of_block)[0] - seen
    print(f"mirrored {mirrored!s:5}  pixels {seen.tolist()}  box is off by {error.tolist()} pixels")
    assert error.tolist() == ([-1, 0, -1, 0] if mirrored else [0, 0, 0, 0])

# %% [markdown]
# One pixel to the left in mirror images: a quarter of a cell at $R = 4$. The offset head (E5) meets both kinds.
# It is small, and it is real. Such half pixels are why a box must be checked against *pixels*, as the last cell does,
# and not against another formula.
#
# ## Colours
#
# The released training also changes colours. With $g$ the grey of a pixel, $\bar g$ the mean grey of the image and a
# random $f$ near 1:
#
# $$\text{brightness } v \leftarrow f v, \qquad \text{contrast } v \leftarrow f v + (1 - f)\,\bar g, \qquad
# \text{saturation } v \leftarrow f v + (1 - f)\,g,$$
#
# and a shift along the principal colours of natural images (*lighting*). Boxes do not notice.

# %%
pixels = small.astype(np.float32) / 255
grey = pixels @ np.float32([0.299, 0.587, 0.114])
inside = grey > 0
variants = {
    "as it is": pixels,
    "brightness 0.6": 0.6 * pixels,
    "contrast 0.6": 0.6 * pixels + 0.4 * grey.mean(),
    "saturation 0.2": 0.2 * pixels + 0.8 * grey[..., None],
    "all, at random": jitter_colour(pixels, random_colours(np.random.default_rng(2), 0.6, 0.6, 0.6, 0.3)),
}
only = {"brightness 0.6": 0, "contrast 0.6": 1, "saturation 0.2": 2}
for name, k in only.items():  # the same by the package: one strength, so that f is 1 + U(-strength, strength)
    strengths = np.zeros(3)
    strengths[k] = 0.9
    colours = random_colours(np.random.default_rng(7), *strengths, lighting=0)
    f = colours.of_image
    mine = (f * pixels, f * pixels + (1 - f) * grey.mean(), f * pixels + (1 - f) * grey[..., None])[k]
    assert np.abs(jitter_colour(pixels, colours) - mine).max() < 1e-6, name
figure, panels = plt.subplots(1, 5, figsize=(8, 2), layout="constrained")
for panel, (name, image) in zip(panels, variants.items(), strict=True):
    panel.imshow(image.clip(0, 1))
    panel.set_title(name, fontsize=10)
    panel.set_axis_off()
show(
    figure, alt="The small image five times: as it is, darker, with less contrast, nearly grey, and in random colours."
)

# %% [markdown]
# ## All of it, eight times
#
# `prepare` does it in one go: a random view, the warp, the boxes, the colours. A reader who trains should look at this
# page before every first run: **is every box still around its object?**

# %%
figure, panels = plt.subplots(2, 4, figsize=(8, 4.3), layout="constrained")
for k, panel in enumerate(panels.ravel()):
    views = prepare(
        sample,
        size=(128, 128),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        augmentation=Augmentation(),
        rng=np.random.default_rng(k),
    )
    draw_boxes_on(panel, views.image.clip(0, 1), views.boxes)
    panel.set_title(f"seed {k}: {len(views.boxes)} of {len(sample.annotation.boxes)} boxes", fontsize=10)
    assert (views.boxes >= 0).all() and (views.boxes <= 128).all()
show(
    figure,
    alt="Eight random views of one image at 128 by 128 pixels, cropped, zoomed, some mirrored, in changed colours, "
    "each with the boxes that are left around their objects.",
)

# %% [markdown]
# ## Bad labels
#
# Data made by people holds mistakes. Six common ones are planted here in a copy of the annotation file. Then
# `minicenternet.data.check.check` looks it over, as `minicenternet data check` does.
#
# **Predict.** Which of the six can a program find for sure, and which only suspect?

# %%
bad = json.loads(json_path.read_text())
size_of = {record["id"]: (record["width"], record["height"]) for record in bad["images"]}
planted = {}


def beginning(annotation):
    """How far to the right and down a box begins, in parts of its image: beyond 1/2, corners read as sizes leave it."""
    (x, y, _, _), (width, height) = annotation["bbox"], size_of[annotation["image_id"]]
    return min(x / width, y / height)


def plant(kind, choose, change):
    """Change the annotation for which `choose` is largest, in an image that has no planted mistake yet."""
    used = [number for number, _, _ in planted.values()]
    annotation = max((a for a in bad["annotations"] if a["image_id"] not in used and not a["iscrowd"]), key=choose)
    planted[kind] = (annotation["image_id"], annotation, list(annotation["bbox"]))
    change(annotation, *annotation["bbox"])


def middling(annotation):
    """Largest for a box that takes a tenth of its image: neither everything nor a speck."""
    (_, _, w, h), (width, height) = annotation["bbox"], size_of[annotation["image_id"]]
    return -abs(w * h / (width * height) - 0.1)


plant("probably x1 y1 x2 y2", beginning, lambda a, x, y, w, h: a.update(bbox=[x, y, x + w, y + h]))
plant("box outside its image", middling, lambda a, x, y, w, h: a.update(bbox=[-w / 2, y, w, h]))
plant("box of no area", middling, lambda a, x, y, w, h: a.update(bbox=[x, y, w, 0]))
plant("impossible box", middling, lambda a, x, y, w, h: a.update(bbox=[x + w, y, -w, h]))
plant("unknown class", middling, lambda a, x, y, w, h: a.update(category_id=1234))
plant("box given twice", middling, lambda a, x, y, w, h: None)
again = dict(planted["box given twice"][1], id=max(a["id"] for a in bad["annotations"]) + 1)
bad["annotations"].append(again)
bad_path = home / "bad.json"
bad_path.write_text(json.dumps(bad))
report = check(bad_path, image_folder=image_folder, input_size=512)
for kind in planted:
    print(f"{kind:22} found {report.problems.counts.get(kind, 0)}")
    print("   ", report.problems.examples[kind][0].replace(str(home), "...")[:110])
clean = check(json_path, image_folder=image_folder, input_size=512)
for kind in planted:
    assert report.problems.counts[kind] == clean.problems.counts.get(kind, 0) + 1, kind

# %%
figure, panels = plt.subplots(2, 3, figsize=(8, 5.4), layout="constrained")
files = {record["id"]: record["file_name"] for record in bad["images"]}
for panel, (kind, (number, annotation, original)) in zip(panels.ravel(), planted.items(), strict=True):
    image = np.asarray(Image.open(image_folder / files[number]).convert("RGB"))
    height, width = image.shape[:2]
    x, y, w, h = original
    draw_boxes_on(panel, image, [])
    panel.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=COLOURS[5], linewidth=4))
    x, y, w, h = annotation["bbox"]
    planted_box = {"fill": False, "edgecolor": COLOURS[1], "linewidth": 2, "linestyle": "--", "zorder": 3}
    panel.add_patch(Rectangle((x, y), w, h, **planted_box))
    margin = 0.25 * width
    panel.set(
        xlim=(-margin, width + margin), ylim=(height + 0.25 * height, -0.25 * height), facecolor="0.93", title=kind
    )
captions = ("", "", "height 0", "width below 0", "category_id 1234", "two records, one box")
for panel, caption in zip(panels.ravel(), captions, strict=True):
    panel.text(0.5, 0.03, caption, transform=panel.transAxes, ha="center")
handles = [
    Rectangle((0, 0), 1, 1, fill=False, edgecolor=COLOURS[5], linewidth=4, label="as it was"),
    Rectangle((0, 0), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2, linestyle="--", label="as planted"),
]
figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
show(
    figure,
    alt="Six images, each with one box as it was and, dashed, as it was planted wrongly: corners for sizes, outside "
    "the image, without height, of negative width, of an unknown class, and given twice.",
)

# %% [markdown]
# A negative width, a class that is not listed or the same box twice are certain. "Probably corners" is a suspicion:
# the box leaves the image as it is written, and would fit if its numbers were corners. What no program finds is a box
# that is merely in the wrong place. For that there is the gallery of `minicenternet data check`, and your eyes.
#
# ## Break it
#
# A training pipeline mirrors half of its images. Nothing crashes and nothing warns. Here are four of its views. Two are
# in order.


# %%
def training_view(sample, rng, size=128):
    height, width = sample.image.shape[:2]
    matrix = letterbox_matrix(width, height, size)
    image, boxes = warp(sample.image, matrix, (size, size)), boxes_through(matrix, sample.annotation.boxes)
    if rng.random() < 0.5:
        image = image[:, ::-1]
        boxes[:, 0] = size - boxes[:, 2]
        boxes[:, 2] = size - boxes[:, 0]
    return image, boxes


figure, panels = plt.subplots(1, 4, figsize=(8, 2.5), layout="constrained")
for k, panel in enumerate(panels):
    image, boxes = training_view(sample, np.random.default_rng(k))
    draw_boxes_on(panel, image, boxes)
    panel.set_title(f"seed {k}\n{np.count_nonzero(boxes[:, 2] > boxes[:, 0])} boxes with an area", fontsize=10)
show(
    figure,
    alt="Four views of one image at 128 pixels; in two, the mirrored ones, boxes are too wide or turned inside out.",
)

# %% [markdown]
# **Find the cause** before you open the answer. Which numbers of a mirrored box are right, which are wrong, and what
# are the wrong ones equal to?
#
# <details><summary>The cause</summary>
#
# The first line writes over $x_1$, and the second reads it: $x_2 = S - x_1^{new} = S - (S - x_2) = x_2$. So $x_1$ is
# right and $x_2$ never moves. Boxes left of the middle turn inside out and are dropped later, without a word; boxes
# right of it become too wide. Read both before you write either: `x1, x2 = size - boxes[:, 2], size - boxes[:, 0]`,
# or take the boxes through the matrix of the mirror image, where the mistake cannot be made.
#
# </details>

# %%
for k in range(4):
    image, boxes = training_view(sample, np.random.default_rng(k))
    upright = boxes_through(letterbox_matrix(*data.sizes[chosen].tolist(), 128), sample.annotation.boxes)
    if np.random.default_rng(k).random() < 0.5:
        correct = flip(image, upright)[1]
        assert np.allclose(boxes[:, 2], upright[:, 2]) and np.allclose(boxes[:, 0], correct[:, 0])
        print(f"seed {k}: x1 is right, x2 is still that of the image before it was mirrored")
scratch.cleanup()

# %% [markdown]
# ## Summary
#
# - COCO: $x\ y\ w\ h$, ids with gaps, labels in the order of the ids. VOC: corners counted from 1, the last pixel
#   inside.
# - Formats are conventions: count boxes without area and boxes outside, and look at pixels.
# - One matrix moves pixels and boxes; all four corners go through it.
# - Augmentation changes what is seen, never what is true of it. Look at a page of it before training.
# - Programs find impossible labels. Eyes find wrong ones.
#
# ## In the package
#
# - `minicenternet.data.coco.Coco` and `minicenternet.data.voc.Voc` read the two formats;
#   `minicenternet.data.open_dataset` tells which is which.
# - `minicenternet.data.transforms.letterbox`, `minicenternet.data.transforms.random_crop` and
#   `minicenternet.data.transforms.apply_to_boxes` are the geometry, `minicenternet.data.transforms.random_colours`
#   and `minicenternet.data.transforms.jitter_colour` the colours, `minicenternet.data.transforms.prepare` all of it.
# - `minicenternet.data.check.check` looks a data set over: `minicenternet data check PATH`.
# - `minicenternet.data.prepare.prepare` makes the folder of photographs.
