"""Answers to the exercises of notebook 14 that its checks must refuse: exercise -> what is wrong -> the body."""

COCO = """
label_of = {LABELS}
boxes, labels = [], []
for annotation in content["annotations"]:
    if annotation["image_id"] == image_id:
        x, y, width, height = annotation["bbox"]
        boxes.append(BOX)
        labels.append(label_of[annotation["category_id"]])
return np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64)
"""
SORTED = 'number: label for label, number in enumerate(sorted(c["id"] for c in content["categories"]))'
CORNERS = "(x, y, x + width, y + height)"


def coco(labels=SORTED, box=CORNERS) -> str:
    return COCO.replace("LABELS", labels).replace("BOX", box)


VOC = """
objects = []
for element in ElementTree.fromstring(text).iter("object"):
    xmin, ymin, xmax, ymax = (float(element.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
    difficult = DIFFICULT
    objects.append((element.findtext("name"), BOX, difficult))
return objects
"""


def voc(box="[xmin - 1, ymin - 1, xmax, ymax]", difficult='int(element.findtext("difficult") or 0) == 1') -> str:
    return VOC.replace("DIFFICULT", difficult).replace("BOX", box)


WRONG = {
    "coco_boxes": {
        "sizes left as corners": coco(box="(x, y, width, height)"),
        "centre and size": coco(box="(x - width / 2, y - height / 2, x + width / 2, y + height / 2)"),
        "x and y exchanged": coco(box="(y, x, y + height, x + width)"),
        "ids minus one": coco(labels='c["id"]: c["id"] - 1 for c in content["categories"]'),
        "categories in the order of the file": coco(
            labels='c["id"]: label for label, c in enumerate(content["categories"])'
        ),
        "annotations by position": """
label_of = {number: label for label, number in enumerate(sorted(c["id"] for c in content["categories"]))}
position = [image["id"] for image in content["images"]].index(image_id)
x, y, width, height = content["annotations"][position]["bbox"]
label = label_of[content["annotations"][position]["category_id"]]
return np.array([[x, y, x + width, y + height]]), np.array([label])
""",
        "no shape without boxes": coco().replace(".reshape(-1, 4)", ""),
    },
    "voc_objects": {
        "counted from 1": voc(box="[xmin, ymin, xmax, ymax]"),
        "all four shifted": voc(box="[xmin - 1, ymin - 1, xmax - 1, ymax - 1]"),
        "sizes": voc(box="[xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]"),
        "the word 0 is true": voc(difficult='bool(element.findtext("difficult"))'),
        "in the order of the file": """
objects = []
for element in ElementTree.fromstring(text).iter("object"):
    a, b, c, d = (float(child.text) for child in element.find("bndbox"))
    objects.append((element.findtext("name"), [a - 1, b - 1, c, d], element.findtext("difficult") == "1"))
return objects
""",
    },
    "letterbox_matrix": {
        "stretched": """
return np.array([[size / width, 0, 0], [0, size / height, 0]])
""",
        "in the upper left": """
s = min(size / width, size / height)
return np.array([[s, 0, 0], [0, s, 0]])
""",
        "cut off": """
s = max(size / width, size / height)
return np.array([[s, 0, (size - s * width) / 2], [0, s, (size - s * height) / 2]])
""",
        "all of the rest before": """
s = min(size / width, size / height)
return np.array([[s, 0, size - s * width], [0, s, size - s * height]])
""",
        "the other way round": """
s = max(width, height) / size
return np.array([[s, 0, (width - s * size) / 2], [0, s, (height - s * size) / 2]])
""",
    },
    "boxes_through": {
        "two corners, in their old order": """
ends = boxes.reshape(-1, 2, 2) @ matrix[:, :2].T + matrix[:, 2]
return ends.reshape(-1, 4)
""",
        "two corners, put in order": """
ends = boxes.reshape(-1, 2, 2) @ matrix[:, :2].T + matrix[:, 2]
return np.concatenate([ends.min(axis=1), ends.max(axis=1)], axis=1)
""",
        "the shift forgotten": """
corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) @ matrix[:, :2].T
return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
""",
        "the matrix not transposed": """
corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2) @ matrix[:, :2] + matrix[:, 2]
return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
""",
    },
    "flip": {
        "overwritten before it is read": """
boxes = boxes.copy()
boxes[:, 0] = image.shape[1] - boxes[:, 2]
boxes[:, 2] = image.shape[1] - boxes[:, 0]
return image[:, ::-1], boxes
""",
        "ends not exchanged": """
x1, y1, x2, y2 = boxes.T
return image[:, ::-1], np.stack([image.shape[1] - x1, y1, image.shape[1] - x2, y2], axis=1)
""",
        "w - 1, as for pixel centres": """
x1, y1, x2, y2 = boxes.T
return image[:, ::-1], np.stack([image.shape[1] - 1 - x2, y1, image.shape[1] - 1 - x1, y2], axis=1)
""",
        "boxes alone": """
x1, y1, x2, y2 = boxes.T
return image, np.stack([image.shape[1] - x2, y1, image.shape[1] - x1, y2], axis=1)
""",
        "upside down": """
x1, y1, x2, y2 = boxes.T
return image[::-1], np.stack([x1, image.shape[0] - y2, x2, image.shape[0] - y1], axis=1)
""",
        "the reader's boxes written over": """
boxes[:, 0], boxes[:, 2] = image.shape[1] - boxes[:, 2], image.shape[1] - boxes[:, 0].copy()
return image[:, ::-1], boxes
""",
    },
}
