"""Answers to the exercises of notebook 11 that its checks must refuse: exercise -> what is wrong -> the body."""

WRONG = {
    "in_noise": {
        "the mean of all differences for each row's own": """
d = np.asarray(d, float)
variants, seeds = d.shape
s = math.sqrt(((d - d.mean()) ** 2).sum() / (variants * (seeds - 1)))
return d.mean(axis=1) / (s / math.sqrt(seeds)), s
""",
        "divided by V S, not V (S - 1)": """
d = np.asarray(d, float)
variants, seeds = d.shape
means = d.mean(axis=1)
s = math.sqrt(((d - means[:, None]) ** 2).sum() / (variants * seeds))
return means / (s / math.sqrt(seeds)), s
""",
        "in deviations of one difference, not of a mean": """
d = np.asarray(d, float)
variants, seeds = d.shape
means = d.mean(axis=1)
s = math.sqrt(((d - means[:, None]) ** 2).sum() / (variants * (seeds - 1)))
return means / s, s
""",
        "the variance for its root": """
d = np.asarray(d, float)
variants, seeds = d.shape
means = d.mean(axis=1)
s = ((d - means[:, None]) ** 2).sum() / (variants * (seeds - 1))
return means / (s / math.sqrt(seeds)), s
""",
        "each row's own spread": """
d = np.asarray(d, float)
s = d.std(axis=1, ddof=1)
return d.mean(axis=1) / (s / math.sqrt(d.shape[1]) + 1e-12), s.mean()
""",
        "without the sign": """
d = np.asarray(d, float)
variants, seeds = d.shape
means = d.mean(axis=1)
s = math.sqrt(((d - means[:, None]) ** 2).sum() / (variants * (seeds - 1)))
return np.abs(means) / (s / math.sqrt(seeds)), s
""",
        "seeds and variants exchanged": """
d = np.asarray(d, float).T
variants, seeds = d.shape
means = d.mean(axis=1)
s = math.sqrt(((d - means[:, None]) ** 2).sum() / (variants * max(seeds - 1, 1)))
return means / (s / math.sqrt(seeds)), s
""",
    },
    "examine": {
        "all is well": """
return "sound"
""",
        "counts the ones without looking where they are": """
box = np.array([[17.0, 31.0, 71.0, 93.0]])
Y = draw(box, np.array([0]))[:, :, 0]
if Y.max() == 0:
    return "overlap"
if (Y == 1).sum() != 1:
    return "centre"
sigma = (2 * int(gaussian_radius(16, 14)) + 1) / 6
y, x = np.argwhere(Y == 1)[0]
if abs(Y[y, x + 1] - math.exp(-1 / (2 * sigma**2))) > 1e-4:
    return "spread"
other = box + [16, 0, 16, 0]
alone, both = draw(other, np.array([0]))[:, :, 0], draw(np.concatenate([box, other]), np.array([0, 0]))[:, :, 0]
if np.abs(both - np.maximum(Y, alone)).max() > 1e-6:
    return "overlap"
return "sound"
""",
        "only the peak is looked at": """
box = np.array([[17.0, 31.0, 71.0, 93.0]])
Y = draw(box, np.array([0]))[:, :, 0]
if Y.max() == 0:
    return "overlap"
if Y[15, 11] != 1 or (Y == 1).sum() != 1:
    return "centre"
other = box + [16, 0, 16, 0]
alone, both = draw(other, np.array([0]))[:, :, 0], draw(np.concatenate([box, other]), np.array([0, 0]))[:, :, 0]
if np.abs(both - np.maximum(Y, alone)).max() > 1e-6:
    return "overlap"
return "sound"
""",
        "an object whose centre is at a corner of a cell": """
box = np.array([[16.0, 32.0, 72.0, 96.0]])
Y = draw(box, np.array([0]))[:, :, 0]
if Y.max() == 0:
    return "overlap"
if Y[16, 11] != 1 or (Y == 1).sum() != 1:
    return "centre"
sigma = (2 * int(gaussian_radius(16, 14)) + 1) / 6
if abs(Y[16, 12] - math.exp(-1 / (2 * sigma**2))) > 1e-4:
    return "spread"
other = box + [16, 0, 16, 0]
alone, both = draw(other, np.array([0]))[:, :, 0], draw(np.concatenate([box, other]), np.array([0, 0]))[:, :, 0]
if np.abs(both - np.maximum(Y, alone)).max() > 1e-6:
    return "overlap"
return "sound"
""",
        "two objects that do not meet": """
box = np.array([[17.0, 31.0, 71.0, 93.0]])
Y = draw(box, np.array([0]))[:, :, 0]
if Y.max() == 0:
    return "overlap"
if Y[15, 11] != 1 or (Y == 1).sum() != 1:
    return "centre"
sigma = (2 * int(gaussian_radius(16, 14)) + 1) / 6
if abs(Y[15, 12] - math.exp(-1 / (2 * sigma**2))) > 1e-4:
    return "spread"
other = box + [56, 0, 56, 0]
alone, both = draw(other, np.array([0]))[:, :, 0], draw(np.concatenate([box, other]), np.array([0, 0]))[:, :, 0]
if np.abs(both - np.maximum(Y, alone)).max() > 1e-6:
    return "overlap"
return "sound"
""",
        "the slip itself for a yardstick: 2 sigma": """
box = np.array([[17.0, 31.0, 71.0, 93.0]])
Y = draw(box, np.array([0]))[:, :, 0]
if Y.max() == 0:
    return "overlap"
if Y[15, 11] != 1 or (Y == 1).sum() != 1:
    return "centre"
sigma = (2 * int(gaussian_radius(16, 14)) + 1) / 6
if abs(Y[15, 12] - math.exp(-1 / (2 * sigma))) > 1e-4:
    return "spread"
other = box + [16, 0, 16, 0]
alone, both = draw(other, np.array([0]))[:, :, 0], draw(np.concatenate([box, other]), np.array([0, 0]))[:, :, 0]
if np.abs(both - np.maximum(Y, alone)).max() > 1e-6:
    return "overlap"
return "sound"
""",
    },
    "punishes_false_alarms": {
        "two probabilities, both low": """
Y = np.zeros((1, 1, 1, 1))
values = [loss(Tensor(np.full(Y.shape, math.log(p / (1 - p)))), Y).item() for p in (0.02, 0.2)]
return values[1] > values[0]
""",
        "the first against the last": """
Y = np.zeros((1, 1, 1, 1))
values = [loss(Tensor(np.full(Y.shape, math.log(p / (1 - p)))), Y).item() for p in (0.02, 0.999)]
return values[1] > values[0]
""",
        "falls are not looked for beyond 0.8": """
Y = np.zeros((1, 1, 1, 1))
probabilities = [0.02, 0.1, 0.2, 0.4, 0.6, 0.8]
values = [loss(Tensor(np.full(Y.shape, math.log(p / (1 - p)))), Y).item() for p in probabilities]
return bool(np.all(np.diff(values) > 0))
""",
        "at a positive, where it must fall": """
Y = np.ones((1, 1, 1, 1))
probabilities = [0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99, 0.999]
values = [loss(Tensor(np.full(Y.shape, math.log(p / (1 - p)))), Y).item() for p in probabilities]
return bool(np.all(np.diff(values) > 0))
""",
        "flat is good enough": """
Y = np.zeros((1, 1, 1, 1))
probabilities = [0.02, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.99, 0.999]
values = [loss(Tensor(np.full(Y.shape, math.log(p / (1 - p)))), Y).item() for p in probabilities]
return bool(np.all(np.diff(values) >= 0))
""",
    },
    "slope": {
        "the loss, not its slope": """
return loss(Tensor(np.array([[[error, 0.0]]])), np.zeros((1, 1, 2)), np.ones((1, 1))).item()
""",
        "a step larger than the error": """
def value(off):
    return loss(Tensor(np.array([[[off, 0.0]]])), np.zeros((1, 1, 2)), np.ones((1, 1))).item()

return (value(error + 1) - value(error - 1)) / 2
""",
        "divided by h, not by 2h": """
h = abs(error) / 100

def value(off):
    return loss(Tensor(np.array([[[off, 0.0]]])), np.zeros((1, 1, 2)), np.ones((1, 1))).item()

return (value(error + h) - value(error - h)) / h
""",
        "from the target to the prediction": """
h = abs(error) / 100

def value(off):
    return loss(Tensor(np.zeros((1, 1, 2))), np.array([[[off, 0.0]]]), np.ones((1, 1))).item()

return -(value(error + h) - value(error - h)) / (2 * h)
""",
        "both coordinates moved": """
h = abs(error) / 100

def value(off):
    return loss(Tensor(np.array([[[off, off]]])), np.zeros((1, 1, 2)), np.ones((1, 1))).item()

return (value(error + h) - value(error - h)) / (2 * h)
""",
        "the size of the slope, without its sign": """
h = abs(error) / 100

def value(off):
    return loss(Tensor(np.array([[[off, 0.0]]])), np.zeros((1, 1, 2)), np.ones((1, 1))).item()

return abs(value(error + h) - value(error - h)) / (2 * h)
""",
    },
    "round_trip": {
        "the upper left corner alone": """
targets = encode(boxes, np.zeros(len(boxes), int), CLASSES, MAP, MAP, R)
offset, size = np.zeros((2, 1, MAP, MAP, 2), np.float32)
for slot in np.flatnonzero(targets.mask):
    y, x = divmod(targets.index[slot], MAP)
    offset[0, y, x], size[0, y, x] = targets.offset[slot], targets.size[slot]
found = decode(targets.heatmap[None], offset, size).boxes[0]
return max(np.abs(found - box)[:, :2].max(axis=1).min() for box in boxes)
""",
        "the mean over boxes and numbers": """
targets = encode(boxes, np.zeros(len(boxes), int), CLASSES, MAP, MAP, R)
offset, size = np.zeros((2, 1, MAP, MAP, 2), np.float32)
for slot in np.flatnonzero(targets.mask):
    y, x = divmod(targets.index[slot], MAP)
    offset[0, y, x], size[0, y, x] = targets.offset[slot], targets.size[slot]
found = decode(targets.heatmap[None], offset, size).boxes[0]
return np.mean([np.abs(found - box).mean(axis=1).min() for box in boxes])
""",
        "x and y of the cell exchanged": """
targets = encode(boxes, np.zeros(len(boxes), int), CLASSES, MAP, MAP, R)
offset, size = np.zeros((2, 1, MAP, MAP, 2), np.float32)
for slot in np.flatnonzero(targets.mask):
    x, y = divmod(targets.index[slot], MAP)
    offset[0, y, x], size[0, y, x] = targets.offset[slot], targets.size[slot]
found = decode(targets.heatmap[None], offset, size).boxes[0]
return max(np.abs(found - box).max(axis=1).min() for box in boxes)
""",
        "offsets left at 0": """
targets = encode(boxes, np.zeros(len(boxes), int), CLASSES, MAP, MAP, R)
offset, size = np.zeros((2, 1, MAP, MAP, 2), np.float32)
for slot in np.flatnonzero(targets.mask):
    y, x = divmod(targets.index[slot], MAP)
    size[0, y, x] = targets.size[slot]
found = decode(targets.heatmap[None], offset, size).boxes[0]
return max(np.abs(found - box).max(axis=1).min() for box in boxes)
""",
        "the best box instead of the worst": """
targets = encode(boxes, np.zeros(len(boxes), int), CLASSES, MAP, MAP, R)
offset, size = np.zeros((2, 1, MAP, MAP, 2), np.float32)
for slot in np.flatnonzero(targets.mask):
    y, x = divmod(targets.index[slot], MAP)
    offset[0, y, x], size[0, y, x] = targets.offset[slot], targets.size[slot]
found = decode(targets.heatmap[None], offset, size).boxes[0]
return min(np.abs(found - box).max(axis=1).min() for box in boxes)
""",
        "detections in the order of the boxes": """
targets = encode(boxes, np.zeros(len(boxes), int), CLASSES, MAP, MAP, R)
offset, size = np.zeros((2, 1, MAP, MAP, 2), np.float32)
for slot in np.flatnonzero(targets.mask):
    y, x = divmod(targets.index[slot], MAP)
    offset[0, y, x], size[0, y, x] = targets.offset[slot], targets.size[slot]
found = decode(targets.heatmap[None], offset, size).boxes[0]
return np.abs(found[: len(boxes)] - boxes).max()
""",
    },
}
