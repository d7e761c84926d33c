"""Answers to the exercises of 01_autograd that its checks must refuse: bodies in place of the solution."""

WRONG = {
    "sigmoid": {
        "dy is forgotten": """
y = 1 / (1 + np.exp(-x))
return y, lambda dy: (y * (1 - y),)
""",
        "the slope is made from x": """
y = 1 / (1 + np.exp(-x))
return y, lambda dy: (dy * x * (1 - x),)
""",
        "not a tuple": """
y = 1 / (1 + np.exp(-x))
return y, lambda dy: dy * y * (1 - y)
""",
        "the sign of the exponent": """
y = 1 / (1 + np.exp(x))
return y, lambda dy: (dy * y * (1 - y),)
""",
    },
    "topological_order": {
        "recursive: not deep enough": """
order, done = [], set()

def visit(var):
    if var not in done:
        done.add(var)
        for parent in var.parents:
            visit(parent)
        order.append(var)

visit(root)
return order
""",
        "a Var used twice appears twice": """
order, stack = [], [root]
while stack:
    var = stack.pop()
    order.append(var)
    stack += var.parents
return order[::-1]
""",
        "order of discovery, reversed": """
order, stack = [], [root]
while stack:
    var = stack.pop(0)
    if var not in order:
        order.append(var)
        stack += var.parents
return order[::-1]
""",
        "root first": """
order, done, stack = [], set(), [root]
while stack:
    var = stack[-1]
    waiting = [parent for parent in var.parents if parent not in done]
    stack += waiting
    if not waiting:
        stack.pop()
        if var not in done:
            done.add(var)
            order.append(var)
return order[::-1]
""",
        "leaves left out": """
order, done, stack = [], set(), [root]
while stack:
    var = stack[-1]
    waiting = [parent for parent in var.parents if parent.parents and parent not in done]
    stack += waiting
    if not waiting:
        stack.pop()
        if var not in done:
            done.add(var)
            order.append(var)
return order
""",
    },
    "backpropagate": {
        "the last use wins": """
gradients = {root: np.asarray(gradient, dtype=np.float64)}
for var in reversed(topological_order(root)):
    if var.backward is None:
        var.grad = gradients[var] if var.grad is None else var.grad + gradients[var]
        continue
    for parent, part in zip(var.parents, var.backward(gradients[var])):
        gradients[parent] = part
return gradients
""",
        "added in place": """
gradients = {root: np.asarray(gradient, dtype=np.float64)}
for var in reversed(topological_order(root)):
    if var.backward is None:
        var.grad = gradients[var] if var.grad is None else var.grad + gradients[var]
        continue
    for parent, part in zip(var.parents, var.backward(gradients[var])):
        if parent in gradients:
            gradients[parent] += part
        else:
            gradients[parent] = part
return gradients
""",
        "gone through when first met": """
gradients, queue, done = {root: np.asarray(gradient, dtype=np.float64)}, [root], set()
while queue:
    var = queue.pop(0)
    if var in done:
        continue
    done.add(var)
    if var.backward is None:
        var.grad = gradients[var] if var.grad is None else var.grad + gradients[var]
        continue
    for parent, part in zip(var.parents, var.backward(gradients[var])):
        gradients[parent] = gradients[parent] + part if parent in gradients else part
        queue.append(parent)
return gradients
""",
        "every path is walked": """
gradients = {}

def walk(var, part):
    gradients[var] = gradients[var] + part if var in gradients else part
    if var.backward is None:
        var.grad = part if var.grad is None else var.grad + part
    else:
        for parent, share in zip(var.parents, var.backward(part)):
            walk(parent, share)

walk(root, np.asarray(gradient, dtype=np.float64))
return gradients
""",
        "a second pass overwrites": """
gradients = {root: np.asarray(gradient, dtype=np.float64)}
for var in reversed(topological_order(root)):
    if var.backward is None:
        var.grad = gradients[var]
        continue
    for parent, part in zip(var.parents, var.backward(gradients[var])):
        gradients[parent] = gradients[parent] + part if parent in gradients else part
return gradients
""",
        "a parent that is both factors counts once": """
gradients = {root: np.asarray(gradient, dtype=np.float64)}
for var in reversed(topological_order(root)):
    if var.backward is None:
        var.grad = gradients[var] if var.grad is None else var.grad + gradients[var]
        continue
    for parent, part in dict(zip(var.parents, var.backward(gradients[var]))).items():
        gradients[parent] = gradients[parent] + part if parent in gradients else part
return gradients
""",
    },
    "unbroadcast": {
        "only the missing axes": """
return gradient.sum(tuple(range(gradient.ndim - len(shape))))
""",
        "always the first axis": """
return gradient if gradient.shape == shape else gradient.sum(0)
""",
        "the mean over the copies": """
gradient = gradient.mean(tuple(range(gradient.ndim - len(shape))))
return gradient.mean(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
""",
        "axes of length 1 are lost": """
gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
return gradient.sum(tuple(i for i, n in enumerate(shape) if n == 1))
""",
        "one of the copies": """
while gradient.ndim > len(shape):
    gradient = gradient[0]
return gradient[tuple(slice(0, n) for n in shape)]
""",
    },
    "no_grad": {
        "an error leaves it off": """
before = tape.recording
tape.recording = False
yield
tape.recording = before
""",
        "on again, whatever was before": """
tape.recording = False
try:
    yield
finally:
    tape.recording = True
""",
        "nothing is switched": """
yield
""",
        "never on again": """
tape.recording = False
yield
""",
    },
}
