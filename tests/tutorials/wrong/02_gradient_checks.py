"""Answers to the exercises of 02_gradient_checks that its checks must refuse: bodies in place of the solution."""

GAPS = """
rng = np.random.default_rng([0, 0xC0FFEE])
y, backward = op(*arguments)
dy = {cotangent}
found = {{}}
for i, (argument, gradient) in enumerate(zip(arguments, backward(dy))):
    if argument.dtype.kind != "f":
        continue
    if np.shape(gradient) != argument.shape:
        found[i] = np.inf
        continue
    v = {direction}
    ends = [op(*arguments[:i], argument + sign * h * v, *arguments[i + 1 :])[0] for sign in (1, -1)]
    quotient = (ends[0] - ends[1]) / (2 * h)
    difference = abs(np.vdot(dy, quotient) - np.vdot(gradient, v))
    found[i] = difference{relative}
return found
"""
RANDOM_DY, RANDOM_V = "rng.standard_normal(y.shape)", "rng.standard_normal(argument.shape)"
RELATIVE = " / (np.linalg.norm(quotient) + 1e-3 * np.linalg.norm(y))"

WRONG = {
    "difference_quotient": {
        "one-sided": """
return (f(x + h * v) - f(x)) / h
""",
        "divided by h": """
return (f(x + h * v) - f(x - h * v)) / h
""",
        "v is normalised": """
v = v / np.linalg.norm(v)
return (f(x + h * v) - f(x - h * v)) / (2 * h)
""",
        "x is moved in place": """
x += h * v
above = f(x)
x -= 2 * h * v
return (above - f(x)) / (2 * h)
""",
    },
    "best_step": {
        "the one-sided quotient's": """
return (2 * epsilon * abs(value) / abs(third)) ** (1 / 2)
""",
        "the factor is forgotten": """
return (epsilon * abs(value) / abs(third)) ** (1 / 3)
""",
        "upside down": """
return (3 * epsilon * abs(third) / abs(value)) ** (1 / 3)
""",
        "the value does not matter": """
return (3 * epsilon) ** (1 / 3)
""",
    },
    "gaps": {
        "a constant output gradient": GAPS.format(cotangent="np.ones(y.shape)", direction=RANDOM_V, relative=RELATIVE),
        "a constant direction": GAPS.format(
            cotangent=RANDOM_DY, direction="np.ones(argument.shape)", relative=RELATIVE
        ),
        "an absolute gap": GAPS.format(cotangent=RANDOM_DY, direction=RANDOM_V, relative=""),
        "shapes are not compared": GAPS.format(cotangent=RANDOM_DY, direction=RANDOM_V, relative=RELATIVE).replace(
            "np.shape(gradient) != argument.shape", "False"
        ),
        "only the first argument": """
rng = np.random.default_rng([0, 0xC0FFEE])
y, backward = op(*arguments)
dy, v = rng.standard_normal(y.shape), rng.standard_normal(arguments[0].shape)
ends = [op(arguments[0] + sign * h * v, *arguments[1:])[0] for sign in (1, -1)]
quotient = (ends[0] - ends[1]) / (2 * h)
difference = abs(np.vdot(dy, quotient) - np.vdot(backward(dy)[0], v))
return {0: difference / (np.linalg.norm(quotient) + 1e-3 * np.linalg.norm(y))}
""",
        "all arguments move together": """
rng = np.random.default_rng([0, 0xC0FFEE])
y, backward = op(*arguments)
dy, v = rng.standard_normal(y.shape), rng.standard_normal(arguments[0].shape)
floats = [i for i, argument in enumerate(arguments) if argument.dtype.kind == "f"]
ends = [op(*(a + sign * h * v if i in floats else a for i, a in enumerate(arguments)))[0] for sign in (1, -1)]
quotient = (ends[0] - ends[1]) / (2 * h)
by_backward = sum(np.vdot(gradient, v) for gradient in backward(dy) if gradient is not None)
gap = abs(np.vdot(dy, quotient) - by_backward) / (np.linalg.norm(quotient) + 1e-3 * np.linalg.norm(y))
return dict.fromkeys(floats, gap)
""",
    },
    "right_softmax": {
        "the mean, not the weighted sum": """
e = np.exp(x - x.max(-1, keepdims=True))
y = e / e.sum(-1, keepdims=True)
return y, lambda dy: (y * (dy - dy.mean(-1, keepdims=True)),)
""",
        "the sigmoid's formula: the diagonal alone": """
e = np.exp(x - x.max(-1, keepdims=True))
y = e / e.sum(-1, keepdims=True)
return y, lambda dy: (dy * y * (1 - y),)
""",
        "summed over all rows": """
e = np.exp(x - x.max(-1, keepdims=True))
y = e / e.sum(-1, keepdims=True)
return y, lambda dy: (y * (dy - (y * dy).sum()),)
""",
        "nothing is subtracted": """
e = np.exp(x - x.max(-1, keepdims=True))
y = e / e.sum(-1, keepdims=True)
return y, lambda dy: (y * dy,)
""",
    },
}
