"""Tasks by name: each module says which maps a network puts out, what they should be, the loss, and how to read them.

A task has `heads(num_classes)`, `encode(boxes, labels, num_classes, height, width, ...)` and `encode_batch(...)`, the
same for a whole batch on a GPU, `loss(outputs, targets, ...)` and `decode(outputs)`; the dots are keywords with
defaults, the variants of the paper and of the released code.
"""

from . import detection

TASKS = {"detection": detection}
