"""Answers to the exercises of notebook 12 that its checks must refuse: exercise -> what is wrong -> the body."""

WRONG = {
    "make_batch": {
        "the map has as many cells as the image pixels": """
images = (np.stack([sample.image for sample in samples]).astype(np.float32) / 255 - np.float32(0.5)) * 4
targets = [encode(s.annotation.boxes, s.annotation.labels, CLASSES, SIZE, SIZE, R) for s in samples]
return images, Targets(*(np.stack(field) for field in zip(*targets, strict=True)))
""",
        "boxes divided by R before encode, which divides them too": """
images = (np.stack([sample.image for sample in samples]).astype(np.float32) / 255 - np.float32(0.5)) * 4
targets = [encode(s.annotation.boxes / R, s.annotation.labels, CLASSES, SIZE // R, SIZE // R, R) for s in samples]
return images, Targets(*(np.stack(field) for field in zip(*targets, strict=True)))
""",
        "x y width height given for x1 y1 x2 y2": """
images = (np.stack([sample.image for sample in samples]).astype(np.float32) / 255 - np.float32(0.5)) * 4
targets = []
for s in samples:
    boxes = s.annotation.boxes.copy()
    boxes[:, 2:] -= boxes[:, :2]
    targets.append(encode(boxes, s.annotation.labels, CLASSES, SIZE // R, SIZE // R, R))
return images, Targets(*(np.stack(field) for field in zip(*targets, strict=True)))
""",
        "not normalised": """
images = np.stack([sample.image for sample in samples]).astype(np.float32)
targets = [encode(s.annotation.boxes, s.annotation.labels, CLASSES, SIZE // R, SIZE // R, R) for s in samples]
return images, Targets(*(np.stack(field) for field in zip(*targets, strict=True)))
""",
        "bytes that wrap around": """
images = ((np.stack([sample.image for sample in samples]) - np.uint8(128)) / np.float32(64)).astype(np.float32)
targets = [encode(s.annotation.boxes, s.annotation.labels, CLASSES, SIZE // R, SIZE // R, R) for s in samples]
return images, Targets(*(np.stack(field) for field in zip(*targets, strict=True)))
""",
        "float64": """
images = (np.stack([sample.image for sample in samples]) / 255 - 0.5) * 4
targets = [encode(s.annotation.boxes, s.annotation.labels, CLASSES, SIZE // R, SIZE // R, R) for s in samples]
return images, Targets(*(np.stack(field) for field in zip(*targets, strict=True)))
""",
        "the targets of the first image for all": """
images = (np.stack([sample.image for sample in samples]).astype(np.float32) / 255 - np.float32(0.5)) * 4
s = samples[0]
target = encode(s.annotation.boxes, s.annotation.labels, CLASSES, SIZE // R, SIZE // R, R)
return images, Targets(*(np.stack([field] * len(samples)) for field in target))
""",
    },
    "training_step": {
        "gradients add up over the steps": """
model.train()
total, parts = detection_loss(model(Tensor(images)), targets)
total.backward()
optimiser.step()
return {"total": total.item(), **{name: part.item() for name, part in parts.items()}}
""",
        "gradients forgotten before they are used": """
model.train()
total, parts = detection_loss(model(Tensor(images)), targets)
total.backward()
model.zero_grad()
optimiser.step()
return {"total": total.item(), **{name: part.item() for name, part in parts.items()}}
""",
        "the step comes before the gradients": """
model.train()
total, parts = detection_loss(model(Tensor(images)), targets)
optimiser.step()
model.zero_grad()
total.backward()
return {"total": total.item(), **{name: part.item() for name, part in parts.items()}}
""",
        "no step": """
model.train()
total, parts = detection_loss(model(Tensor(images)), targets)
model.zero_grad()
total.backward()
return {"total": total.item(), **{name: part.item() for name, part in parts.items()}}
""",
        "in evaluation mode": """
model.eval()
total, parts = detection_loss(model(Tensor(images)), targets)
model.zero_grad()
total.backward()
optimiser.step()
return {"total": total.item(), **{name: part.item() for name, part in parts.items()}}
""",
        "sizes weigh as much as offsets": """
model.train()
total, parts = detection_loss(model(Tensor(images)), targets, size_weight=1.0)
model.zero_grad()
total.backward()
optimiser.step()
return {"total": total.item(), **{name: part.item() for name, part in parts.items()}}
""",
        "only the heatmap learns": """
model.train()
total, parts = detection_loss(model(Tensor(images)), targets)
model.zero_grad()
parts["heatmap"].backward()
optimiser.step()
return {"total": total.item(), **{name: part.item() for name, part in parts.items()}}
""",
    },
    "diagnose": {
        "any step is compared with the first values": """
latest, latest_size = heatmap_losses[-3:], size_losses[-3:]
if abs(heatmap_losses[-1] / at_prior - 1) < 0.25:
    return "healthy"
if abs(heatmap_losses[-1] / at_half - 1) < 0.25:
    return "no prior"
if len(latest) == 3 and all(abs(loss - 9.2085) < 1e-3 for loss in latest):
    return "dead gradient"
if len(latest) == 3 and max(latest) < 0.01 and max(latest_size) == 0:
    return "no object"
return None
""",
        "healthy for ever after a healthy first step": """
first, latest, latest_size = heatmap_losses[0], heatmap_losses[-3:], size_losses[-3:]
if abs(first / at_prior - 1) < 0.25:
    return "healthy"
if abs(first / at_half - 1) < 0.25:
    return "no prior"
if len(latest) == 3 and all(abs(loss - 9.2085) < 1e-3 for loss in latest):
    return "dead gradient"
if len(latest) == 3 and max(latest) < 0.01 and max(latest_size) == 0:
    return "no object"
return None
""",
        "9.2085 once is enough": """
first, latest, latest_size = heatmap_losses[0], heatmap_losses[-3:], size_losses[-3:]
if len(heatmap_losses) == 1 and abs(first / at_prior - 1) < 0.25:
    return "healthy"
if len(heatmap_losses) == 1 and abs(first / at_half - 1) < 0.25:
    return "no prior"
if abs(latest[-1] - 9.2085) < 1e-3:
    return "dead gradient"
if len(latest) == 3 and max(latest) < 0.01 and max(latest_size) == 0:
    return "no object"
return None
""",
        "a low loss alone is taken for no object": """
first, latest = heatmap_losses[0], heatmap_losses[-3:]
if len(heatmap_losses) == 1 and abs(first / at_prior - 1) < 0.25:
    return "healthy"
if len(heatmap_losses) == 1 and abs(first / at_half - 1) < 0.25:
    return "no prior"
if len(latest) == 3 and all(abs(loss - 9.2085) < 1e-3 for loss in latest):
    return "dead gradient"
if len(latest) == 3 and max(latest) < 0.01:
    return "no object"
return None
""",
        "prior and one half exchanged": """
first, latest, latest_size = heatmap_losses[0], heatmap_losses[-3:], size_losses[-3:]
if len(heatmap_losses) == 1 and abs(first / at_prior - 1) < 0.25:
    return "no prior"
if len(heatmap_losses) == 1 and abs(first / at_half - 1) < 0.25:
    return "healthy"
if len(latest) == 3 and all(abs(loss - 9.2085) < 1e-3 for loss in latest):
    return "dead gradient"
if len(latest) == 3 and max(latest) < 0.01 and max(latest_size) == 0:
    return "no object"
return None
""",
    },
    "rate_at": {
        "no warm-up": """
return base * 0.5 * (1 + np.cos(np.pi * step / steps))
""",
        "the first step has rate 0": """
return base * 0.5 * (1 + np.cos(np.pi * step / steps)) * min(1, step / max(warm_up, 1))
""",
        "the cosine rises": """
return base * 0.5 * (1 - np.cos(np.pi * step / steps)) * min(1, (step + 1) / (warm_up + 1))
""",
        "a whole cosine": """
return base * 0.5 * (1 + np.cos(2 * np.pi * step / steps)) * min(1, (step + 1) / (warm_up + 1))
""",
        "degrees": """
return base * 0.5 * (1 + np.cos(180 * step / steps)) * min(1, (step + 1) / (warm_up + 1))
""",
        "the rise goes on beyond the warm-up": """
return base * 0.5 * (1 + np.cos(np.pi * step / steps)) * (step + 1) / (warm_up + 1)
""",
    },
}
