"""Answers to the exercises of notebook 09 that its checks must refuse: exercise -> what is wrong -> the body."""

WRONG = {
    "gather": {
        "index counts columns": """
batch, height, width, depth = maps.shape
return maps[np.arange(batch)[:, None], index % height, index // height % width]
""",
        "every slot reads the first image": """
batch, height, width, depth = maps.shape
return maps.reshape(batch * height * width, depth)[index]
""",
        "every index from every image": """
batch, height, width, depth = maps.shape
return maps.reshape(batch, height * width, depth)[:, index]
""",
        "maps taken as channels first": """
batch, height, width, depth = maps.shape
return maps.reshape(batch, depth, height * width).transpose(0, 2, 1)[np.arange(batch)[:, None], index]
""",
        "rows of H cells": """
batch, height, width, depth = maps.shape
return maps[np.arange(batch)[:, None], index // height % height, index % height]
""",
    },
    "scatter_add": {
        "+= with a repeated index": """
batch, height, width, depth = shape
dx = np.zeros((batch, height * width, depth))
dx[np.arange(batch)[:, None], index] += dy
return dx.reshape(shape)
""",
        "assignment": """
batch, height, width, depth = shape
dx = np.zeros((batch, height * width, depth))
dx[np.arange(batch)[:, None], index] = dy
return dx.reshape(shape)
""",
        "all images into the first": """
batch, height, width, depth = shape
dx = np.zeros((batch, height * width, depth))
np.add.at(dx, (np.zeros_like(index), index), dy)
return dx.reshape(shape)
""",
        "the mean of what meets in a cell": """
batch, height, width, depth = shape
dx, count = np.zeros((batch, height * width, depth)), np.zeros((batch, height * width, 1))
np.add.at(dx, (np.arange(batch)[:, None], index), dy)
np.add.at(count, (np.arange(batch)[:, None], index), 1)
return (dx / np.maximum(count, 1)).reshape(shape)
""",
        "index counts columns": """
batch, height, width, depth = shape
dx = np.zeros(shape)
np.add.at(dx, (np.arange(batch)[:, None], index % height, index // height % width), dy)
return dx
""",
    },
    "l1_loss": {
        "smooth L1": """
error, N = prediction - target, max(mask.sum(), 1)
mask = mask[..., None]
size = np.abs(error)
smooth = np.where(size < 1, error**2 / 2, size - 0.5)
return (smooth * mask).sum() / N, np.clip(error, -1, 1) * mask / N
""",
        "L1 with the gradient of smooth L1": """
error, N = prediction - target, max(mask.sum(), 1)
mask = mask[..., None]
return (np.abs(error) * mask).sum() / N, np.clip(error, -1, 1) * mask / N
""",
        "the released denominator, 2N": """
error, N = prediction - target, mask.sum() * prediction.shape[-1] + 1e-4
mask = mask[..., None]
return (np.abs(error) * mask).sum() / N, np.sign(error) * mask / N
""",
        "the mean over all slots": """
error = (prediction - target) * mask[..., None]
N = mask.size
return np.abs(error).sum() / N, np.sign(error) / N
""",
        "no mask": """
error, N = prediction - target, max(mask.sum(), 1)
return np.abs(error).sum() / N, np.sign(error) / N
""",
        "no mask in the gradient": """
error, N = prediction - target, max(mask.sum(), 1)
return (np.abs(error) * mask[..., None]).sum() / N, np.sign(error) / N
""",
        "the square": """
error, N = prediction - target, max(mask.sum(), 1)
mask = mask[..., None]
return (error**2 * mask).sum() / N, 2 * error * mask / N
""",
        "the sign the wrong way round": """
error, N = prediction - target, max(mask.sum(), 1)
mask = mask[..., None]
return (np.abs(error) * mask).sum() / N, np.sign(-error) * mask / N
""",
        "no objects: 0 / 0": """
error, N = prediction - target, mask.sum()
mask = mask[..., None]
return (np.abs(error) * mask).sum() / N, np.sign(error) * mask / N
""",
    },
    "size_loss": {
        "sizes in pixels": """
size = boxes[..., 2:] - boxes[..., :2]
loss, _ = l1_loss(gather(size_map, index), size, mask)
return loss
""",
        "smooth L1": """
size = (boxes[..., 2:] - boxes[..., :2]) / stride
error = np.abs(gather(size_map, index) - size)
smooth = np.where(error < 1, error**2 / 2, error - 0.5)
return (smooth * mask[..., None]).sum() / max(mask.sum(), 1)
""",
        "height before width": """
size = (boxes[..., 2:] - boxes[..., :2])[..., ::-1] / stride
loss, _ = l1_loss(gather(size_map, index), size, mask)
return loss
""",
        "x2 and y2 taken as width and height": """
loss, _ = l1_loss(gather(size_map, index), boxes[..., 2:] / stride, mask)
return loss
""",
        "half sizes": """
size = (boxes[..., 2:] - boxes[..., :2]) / stride / 2
loss, _ = l1_loss(gather(size_map, index), size, mask)
return loss
""",
        "over the whole map": """
size = (boxes[..., 2:] - boxes[..., :2]) / stride
return np.abs(size_map.reshape(len(size_map), -1, 1, 2) - size[:, None]).sum() / max(mask.sum(), 1)
""",
        "always a stride of 4": """
size = (boxes[..., 2:] - boxes[..., :2]) / 4
loss, _ = l1_loss(gather(size_map, index), size, mask)
return loss
""",
    },
    "detection_loss": {
        "the weights exchanged": """
size, _ = l1_loss(gather(outputs["wh"], targets.index), targets.size, targets.mask)
offset, _ = l1_loss(gather(outputs["reg"], targets.index), targets.offset, targets.mask)
return heatmap_loss + offset_weight * size + size_weight * offset
""",
        "no weights": """
size, _ = l1_loss(gather(outputs["wh"], targets.index), targets.size, targets.mask)
offset, _ = l1_loss(gather(outputs["reg"], targets.index), targets.offset, targets.mask)
return heatmap_loss + size + offset
""",
        "0.1 for the heatmap, too": """
size, _ = l1_loss(gather(outputs["wh"], targets.index), targets.size, targets.mask)
offset, _ = l1_loss(gather(outputs["reg"], targets.index), targets.offset, targets.mask)
return size_weight * (heatmap_loss + size) + offset_weight * offset
""",
        "the maps exchanged": """
size, _ = l1_loss(gather(outputs["reg"], targets.index), targets.size, targets.mask)
offset, _ = l1_loss(gather(outputs["wh"], targets.index), targets.offset, targets.mask)
return heatmap_loss + size_weight * size + offset_weight * offset
""",
        "the weights written down, not used": """
size, _ = l1_loss(gather(outputs["wh"], targets.index), targets.size, targets.mask)
offset, _ = l1_loss(gather(outputs["reg"], targets.index), targets.offset, targets.mask)
return heatmap_loss + 0.1 * size + offset
""",
        "no offset": """
size, _ = l1_loss(gather(outputs["wh"], targets.index), targets.size, targets.mask)
return heatmap_loss + size_weight * size
""",
    },
}
