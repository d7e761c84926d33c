"""Answers to the exercises of notebook 07 that its checks must refuse: exercise -> what is wrong -> the body."""

QUADRATICS = """
around, area = height + width, height * width
quadratics = (
    (1, -around, area * (1 - overlap) / (1 + overlap)),
    (4, -2 * around, area * (1 - overlap)),
    (4 * overlap, 2 * overlap * around, -area * (1 - overlap)),
)
"""

WRONG = {
    "centre_and_cell": {
        "not rounded down": """
centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / stride
return centre, centre
""",
        "rounded to the nearest cell": """
centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / stride
return centre, np.round(centre).astype(np.int64)
""",
        "box taken as x, y, width, height": """
centre = (boxes[:, :2] + boxes[:, 2:] / 2) / stride
return centre, np.floor(centre).astype(np.int64)
""",
        "centre left in pixels": """
centre = (boxes[:, :2] + boxes[:, 2:]) / 2
return centre, np.floor(centre / stride).astype(np.int64)
""",
        "y before x": """
centre = (boxes[:, :2] + boxes[:, 2:])[:, ::-1] / 2 / stride
return centre, np.floor(centre).astype(np.int64)
""",
        "rounded down before the division": """
centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / stride
return centre, np.floor(boxes[:, :2] / stride + boxes[:, 2:] // stride / 2).astype(np.int64)
""",
    },
    "blob": {
        "2 sigma in place of 2 sigma squared": """
sigma = (2 * radius + 1) / 6
distance = np.arange(-radius, radius + 1)
return np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * sigma))
""",
        "sigma is the radius": """
distance = np.arange(-radius, radius + 1)
return np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * max(radius, 1) ** 2))
""",
        "no 2 in the denominator": """
sigma = (2 * radius + 1) / 6
distance = np.arange(-radius, radius + 1)
return np.exp(-(distance[:, None] ** 2 + distance**2) / sigma**2)
""",
        "a density, which sums to 1 and does not peak at 1": """
sigma = (2 * radius + 1) / 6
distance = np.arange(-radius, radius + 1)
density = np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * sigma**2))
return density / density.sum()
""",
        "one cell short": """
sigma = (2 * radius + 1) / 6
distance = np.arange(-radius, radius)
return np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * sigma**2))
""",
    },
    "splat": {
        "minimum in place of maximum": """
height, width = heatmap.shape
top, bottom = max(y - radius, 0), min(y + radius + 1, height)
left, right = max(x - radius, 0), min(x + radius + 1, width)
part = blob(radius)[top - (y - radius) : bottom - (y - radius), left - (x - radius) : right - (x - radius)]
window = heatmap[top:bottom, left:right]
np.minimum(window, part, out=window)
""",
        "minimum wherever something was drawn before": """
height, width = heatmap.shape
top, bottom = max(y - radius, 0), min(y + radius + 1, height)
left, right = max(x - radius, 0), min(x + radius + 1, width)
part = blob(radius)[top - (y - radius) : bottom - (y - radius), left - (x - radius) : right - (x - radius)]
window = heatmap[top:bottom, left:right]
window[:] = np.where(window > 0, np.minimum(window, part), part)
""",
        "overwrites": """
height, width = heatmap.shape
top, bottom = max(y - radius, 0), min(y + radius + 1, height)
left, right = max(x - radius, 0), min(x + radius + 1, width)
part = blob(radius)[top - (y - radius) : bottom - (y - radius), left - (x - radius) : right - (x - radius)]
heatmap[top:bottom, left:right] = part
""",
        "adds": """
height, width = heatmap.shape
top, bottom = max(y - radius, 0), min(y + radius + 1, height)
left, right = max(x - radius, 0), min(x + radius + 1, width)
part = blob(radius)[top - (y - radius) : bottom - (y - radius), left - (x - radius) : right - (x - radius)]
heatmap[top:bottom, left:right] += part
""",
        "the blob's upper left part at every border": """
height, width = heatmap.shape
top, bottom = max(y - radius, 0), min(y + radius + 1, height)
left, right = max(x - radius, 0), min(x + radius + 1, width)
window = heatmap[top:bottom, left:right]
np.maximum(window, blob(radius)[: window.shape[0], : window.shape[1]], out=window)
""",
        "not cut at all": """
window = heatmap[y - radius : y + radius + 1, x - radius : x + radius + 1]
np.maximum(window, blob(radius), out=window)
""",
        "x is the row": """
height, width = heatmap.shape
top, bottom = max(x - radius, 0), min(x + radius + 1, height)
left, right = max(y - radius, 0), min(y + radius + 1, width)
part = blob(radius)[top - (x - radius) : bottom - (x - radius), left - (y - radius) : right - (y - radius)]
window = heatmap[top:bottom, left:right]
np.maximum(window, part, out=window)
""",
    },
    "radius": {
        "the released form: the larger root, not divided by 2a": QUADRATICS
        + """
return min((-b + math.sqrt(b * b - 4 * a * c)) / 2 for a, b, c in quadratics)
""",
        "the larger roots": QUADRATICS
        + """
return min((-b + math.sqrt(b * b - 4 * a * c)) / (2 * a) for a, b, c in quadratics)
""",
        "divided by 2 in place of 2a": QUADRATICS
        + """
return min(2 * abs(c) / (abs(b) + math.sqrt(b * b - 4 * a * c)) * a for a, b, c in quadratics)
""",
        "the diameter, not the radius": QUADRATICS
        + """
return 2 * min(2 * abs(c) / (abs(b) + math.sqrt(b * b - 4 * a * c)) for a, b, c in quadratics)
""",
        "the largest of the three": QUADRATICS
        + """
return max(2 * abs(c) / (abs(b) + math.sqrt(b * b - 4 * a * c)) for a, b, c in quadratics)
""",
        "only the moved box": """
around, area = height + width, height * width
return (around - math.sqrt(around**2 - 4 * area * (1 - overlap) / (1 + overlap))) / 2
""",
        "the overlap is always 0.7": """
around, area = height + width, height * width
return (around - math.sqrt(around**2 - 4 * area * 0.3)) / 4
""",
    },
    "encode": {
        "the Gaussian around p / R, not floored": """
boxes = np.clip(boxes / stride, 0, (width, height, width, height))
size = boxes[:, 2:] - boxes[:, :2]
centre, cell = centre_and_cell(boxes, 1)
rows, columns = np.indices((height, width))
for label, (x, y), (w, h) in zip(labels, centre, np.ceil(size), strict=True):
    sigma = (2 * int(released_radius(h, w)) + 1) / 6
    gaussian = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    np.maximum(heatmap[:, :, label], gaussian, out=heatmap[:, :, label])
index = cell[:, 1] * width + cell[:, 0]
offset = centre - cell
""",
        "the radius from pixels": """
boxes = np.clip(boxes / stride, 0, (width, height, width, height))
size = boxes[:, 2:] - boxes[:, :2]
centre, cell = centre_and_cell(boxes, 1)
for label, (x, y), (w, h) in zip(labels, cell, np.ceil(size * stride), strict=True):
    splat(heatmap[:, :, label], x, y, int(released_radius(h, w)))
index = cell[:, 1] * width + cell[:, 0]
offset = centre - cell
""",
        "not clipped to the map": """
boxes = boxes / stride
size = boxes[:, 2:] - boxes[:, :2]
centre, cell = centre_and_cell(boxes, 1)
for label, (x, y), (w, h) in zip(labels, cell, np.ceil(size), strict=True):
    splat(heatmap[:, :, label], x, y, int(released_radius(h, w)))
index = cell[:, 1] * width + cell[:, 0]
offset = centre - cell
""",
        "index by columns": """
boxes = np.clip(boxes / stride, 0, (width, height, width, height))
size = boxes[:, 2:] - boxes[:, :2]
centre, cell = centre_and_cell(boxes, 1)
for label, (x, y), (w, h) in zip(labels, cell, np.ceil(size), strict=True):
    splat(heatmap[:, :, label], x, y, int(released_radius(h, w)))
index = cell[:, 0] * height + cell[:, 1]
offset = centre - cell
""",
        "size in pixels": """
boxes = np.clip(boxes / stride, 0, (width, height, width, height))
size = boxes[:, 2:] - boxes[:, :2]
centre, cell = centre_and_cell(boxes, 1)
for label, (x, y), (w, h) in zip(labels, cell, np.ceil(size), strict=True):
    splat(heatmap[:, :, label], x, y, int(released_radius(h, w)))
index = cell[:, 1] * width + cell[:, 0]
offset, size = centre - cell, size * stride
""",
        "the radius rounded up": """
boxes = np.clip(boxes / stride, 0, (width, height, width, height))
size = boxes[:, 2:] - boxes[:, :2]
centre, cell = centre_and_cell(boxes, 1)
for label, (x, y), (w, h) in zip(labels, cell, np.ceil(size), strict=True):
    splat(heatmap[:, :, label], x, y, math.ceil(released_radius(h, w)))
index = cell[:, 1] * width + cell[:, 0]
offset = centre - cell
""",
        "all classes in one map": """
boxes = np.clip(boxes / stride, 0, (width, height, width, height))
size = boxes[:, 2:] - boxes[:, :2]
centre, cell = centre_and_cell(boxes, 1)
for (x, y), (w, h) in zip(cell, np.ceil(size), strict=True):
    splat(heatmap[:, :, 0], x, y, int(released_radius(h, w)))
index = cell[:, 1] * width + cell[:, 0]
offset = centre - cell
""",
    },
}
