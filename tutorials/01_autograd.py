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
# # 01 · Autograd
#
# - **Goal**: write reverse-mode differentiation yourself, in about sixty lines, and know what it costs in memory.
# - **You need**: Python, and what a derivative is. No earlier notebook.
# - **Minutes**: 75 to read and work / runs in about 4 s.
# - **Equations**: none of E1 to E10. The one that matters here is the chain rule.
# - **What you should see**: a graph in which every node carries its value and its gradient; a network of 2-16-1 units,
#   trained by your own code, that tells two rings apart (at least 95 % right); gradients that equal the package's to
#   $10^{-12}$; and eight layers that keep 9 maps instead of 16 when one op remembers its result, not its argument.

# %%
import gc
import os
import weakref
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np

from minicenternet import autograd, ops
from minicenternet.draw import draw_graph, show

FAST = os.environ.get("MINICENTERNET_FAST") == "1"

# %% [markdown]
# ## 1. An op knows the way back
#
# A network is trained by a number, the loss $L$, and by the question: how does $L$ change when this weight changes a
# little? The network is a long chain of simple steps. The chain rule answers step by step, starting at the loss. If
# $y = f(x)$ is one step, then
#
# $$ \frac{\partial L}{\partial x} = \left(\frac{\partial y}{\partial x}\right)^{T} \frac{\partial L}{\partial y} . $$
#
# Read it as a promise: *tell me how $L$ depends on my result, and I tell you how it depends on my argument.* A step
# that can do this is an **op**. We write it as a function of arrays that returns two things, its result `y` and a
# function `backward`. We abbreviate $\partial L / \partial y$ as `dy`, and `backward(dy)` returns one gradient per
# argument.
#
# The product is the model. From $y = ab$ follows $\partial y/\partial a = b$ and $\partial y/\partial b = a$.


# %%
def product(a, b):
    """Return a * b and the way back."""

    def backward(dy):
        return dy * b, dy * a

    return a * b, backward


y, backward = product(np.array(2.0), np.array(3.0))
da, db = backward(np.array(1.0))
print(f"y = {y}, da = {da}, db = {db}")

# %% [markdown]
# Nothing is computed twice and nothing is symbolic: `backward` is an ordinary function that remembers `a` and `b`
# because it was defined where they were visible. Such a function is called a *closure*. Section 7 looks at what it
# keeps.
#
# ### Exercise 1: the sigmoid
#
# $\sigma(x) = 1/(1 + e^{-x})$ turns any number into a probability. Its derivative can be written with its own value:
# $\sigma'(x) = \sigma(x)\,(1 - \sigma(x))$.
#
# **Predict** first: at which $x$ is the slope largest, and how large is it there?


# %% tags=["exercise"]
def sigmoid(x):
    """Return 1 / (1 + e**-x), element by element, and the way back: a function of dy that returns (dx,)."""
    ### BEGIN SOLUTION hint: y * (1 - y) is the slope; the gradient is the slope times dy, in a tuple of one
    y = 1 / (1 + np.exp(-x))

    def backward(dy):
        return (dy * y * (1 - y),)

    return y, backward
    ### END SOLUTION


# %% tags=["check"]
points = np.linspace(-4, 4, 9)
y, backward = sigmoid(points)
assert np.allclose(y, 0.5 * (1 + np.tanh(points / 2))), "sigmoid: the value is wrong; compare it with 1 / (1 + exp(-x))"
parts = backward(np.ones(9))
assert isinstance(parts, tuple) and len(parts) == 1, "backward must return a tuple with one gradient: (dx,)"
slope = (np.tanh((points + 1e-6) / 2) - np.tanh((points - 1e-6) / 2)) / 4e-6
assert np.allclose(parts[0], slope, atol=1e-8), (
    f"the slope at x = 0 should be {slope[4]:.3f}, yours is {np.ravel(parts[0])[4]:.3f}; is y(1 - y) made from y?"
)
assert np.allclose(backward(3 * points)[0], 3 * points * slope, atol=1e-7), (
    "dx must be the slope TIMES dy; where is dy?"
)

# %% [markdown]
# The slope is largest at $x = 0$ and is $1/4$ there. So a gradient that passes through a sigmoid shrinks to a quarter
# at best. Remember this when you ask why deep networks use other functions between their layers.
#
# ## 2. A tape
#
# For a chain of steps somebody must remember which op made what from what. A `Var` is an array with that memory, and
# `lift` turns an op of arrays into an op of `Var`s. Together they are called a *tape*, since they record.


# %%
class Var:
    """An array, the Vars it was computed from, and the way back to them."""

    def __init__(self, data, name=""):
        self.data = np.asarray(data, dtype=np.float64)
        self.name = name
        self.grad = None  # filled for the leaves: the Vars that no op made
        self.parents = ()
        self.backward = None


class Tape:
    recording = True  # section 6 turns it off


tape = Tape()


def lift(function):
    """Make an op of Vars out of an op of arrays."""

    def op(*parents):
        y, backward = function(*(parent.data for parent in parents))
        result = Var(y, function.__name__)
        if tape.recording:
            result.parents, result.backward = parents, backward
        return result

    return op


multiply = lift(product)
logistic = lift(sigmoid)


@lift
def add(a, b):
    return a + b, lambda dy: (dy, dy)


@lift
def subtract(a, b):
    return a - b, lambda dy: (dy, -dy)


a, b = Var(2.0, "a"), Var(3.0, "b")
y = add(multiply(a, b), a)
print(f"y = {y.data}, made by {y.name} from {[parent.name for parent in y.parents]}")

# %% [markdown]
# ## 3. An order in which everybody is ready
#
# **Predict.** Above, $y = ab + a$ at $a = 2$, $b = 3$. What is $\partial y/\partial a$?
#
# Two roads lead from $a$ to $y$: through the product, with slope $b = 3$, and directly, with slope 1. Both count, so
# the answer is 4. This is the other half of the chain rule, and the half that programs get wrong:
#
# $$
# \frac{\partial L}{\partial x}
# = \sum_{\text{uses of } x} \left(\frac{\partial y}{\partial x}\right)^{T} \frac{\partial L}{\partial y} .
# $$
#
# A gradient is complete only when *all* uses have reported. So before we go through an op, all ops that used its result
# must have been gone through. An order which ensures that is a *topological order*: every `Var` stands after those it
# was computed from. Reversed, it is the order of the way back.
#
# ### Exercise 2: topological order
#
# Two warnings. A `Var` used twice appears once. And networks are deep: a chain of 5,000 ops must work, while Python's
# recursion ends at about 1,000 calls.


# %% tags=["exercise"]
def topological_order(root):
    """Return a list of root and all Vars it depends on, each once, every one after its parents; root is last."""
    ### BEGIN SOLUTION hint: a stack of your own; a Var goes into the list when all its parents are in it
    order, done, stack = [], set(), [root]
    while stack:
        var = stack[-1]
        waiting = [parent for parent in var.parents if parent not in done]
        if waiting:
            stack += waiting
        else:
            stack.pop()
            if var not in done:
                done.add(var)
                order.append(var)
    return order
    ### END SOLUTION


# %% tags=["check"]
def assert_topological(root, count):
    try:
        order = topological_order(root)
    except RecursionError:
        raise AssertionError(
            "Python's recursion is not deep enough for a deep network: keep a stack of your own"
        ) from None
    assert len(order) == len(set(order)), f"{len(order)} entries for {len(set(order))} Vars: each must appear once"
    assert len(order) == count, f"the graph has {count} Vars, your list {len(order)}"
    place = {var: i for i, var in enumerate(order)}
    assert order[-1] is root, "root must come last: everything else was computed before it"
    for var in order:
        for parent in var.parents:
            assert place[parent] < place[var], f"{var.name} stands before {parent.name}, from which it was computed"


a = Var(2.0, "a")
assert_topological(multiply(a, a), 2)
s = multiply(a, a)
assert_topological(add(s, multiply(s, logistic(s))), 5)
assert_topological(add(multiply(s, logistic(s)), s), 5)
deep = a
for _ in range(5000):
    deep = add(deep, a)
assert_topological(deep, 5001)

# %% [markdown]
# ## 4. The way back
#
# ### Exercise 3: backpropagation
#
# Walk the order backwards. Give every parent its part, and **add** the parts up. The leaves, which no op made, add the
# result to `.grad`: weights keep it there until the optimiser comes.
#
# `gradients` is a dict from `Var` to array. It starts with the root: $\partial L/\partial L = 1$.


# %% tags=["exercise"]
def backpropagate(root, gradient=1.0):
    """Add d(root)/d(leaf) to the .grad of every leaf; return the gradients of all Vars on the way, by Var."""
    ### BEGIN SOLUTION hint: for var in reversed(topological_order(root)): new arrays by a + b, nothing in place
    gradients = {root: np.asarray(gradient, dtype=np.float64)}
    for var in reversed(topological_order(root)):
        if var.backward is None:
            var.grad = gradients[var] if var.grad is None else var.grad + gradients[var]
            continue
        for parent, part in zip(var.parents, var.backward(gradients[var]), strict=True):
            gradients[parent] = gradients[parent] + part if parent in gradients else part
    return gradients
    ### END SOLUTION


# %% tags=["check"]
a, b = Var(2.0, "a"), Var(3.0, "b")
backpropagate(multiply(a, b))
assert a.grad == 3 and b.grad == 2, f"d(ab)/da = b = 3 and d(ab)/db = a = 2, got {a.grad} and {b.grad}"

a, b = Var(2.0, "a"), Var(3.0, "b")
backpropagate(add(multiply(a, b), a))
assert a.grad == 4, f"d(ab + a)/da = b + 1 = 4, got {a.grad}: both uses of a must be added up"

a = Var(3.0, "a")
backpropagate(multiply(a, a))
assert a.grad == 6, f"d(a * a)/da = 2a = 6, got {a.grad}: a is both parents of the product"

a = Var(2.0, "a")
s = multiply(a, a)
backpropagate(multiply(s, multiply(s, s)))
assert a.grad == 6 * 2.0**5, (
    f"d(a**6)/da = 6 a**5 = 192, got {a.grad}: was s gone through before all its uses reported?"
)

a = Var(2.0, "a")
for _ in range(2):
    backpropagate(multiply(a, a))
assert a.grad == 8, f"two backward passes of a * a must leave 4 + 4 = 8 in a.grad, got {a.grad}"

a, b = Var([1.0, 2.0], "a"), Var([3.0, 4.0], "b")
given = np.array([1.0, 10.0])
backpropagate(add(add(a, b), a), given)
assert np.array_equal(given, [1, 10]), "the gradient handed in was overwritten: add with a + b, not with +="
assert np.array_equal(b.grad, [1, 10]), (
    f"b is used once, so its gradient is [1, 10], got {b.grad}: add hands ONE array to both parents, += spoils it"
)
assert np.array_equal(a.grad, [2, 20]), f"a is used twice, so its gradient is [2, 20], got {a.grad}"

calls = []


def counted(a):
    def backward(dy):
        calls.append(1)
        return (2 * dy,)

    return 2 * a, backward


a = Var(1.0, "a")
d = lift(counted)(a)
for _ in range(6):
    d = add(d, d)
found = backpropagate(d)
assert a.grad == 128, f"2 * 2**6 = 128, got {a.grad}"
assert len(calls) == 1, f"64 paths lead through one op; it must be gone through once, not {len(calls)} times"
assert found is not None and found[d] == 1, "return the dict of gradients; the root's is 1"

# %% [markdown]
# The last check counts. In 40 doublings there are $2^{40}$ paths from the root to the leaf: whoever follows each path
# waits for ever, and whoever adds up at each node is done in 41 steps. This is why reverse mode is cheap: *all*
# gradients together cost a small multiple of the forward pass.
#
# ### The picture: values forwards, gradients backwards
#
# One unit of a network: $p = \sigma(wx + b)$, and the loss is its squared distance from a target $t$.
#
# **Predict** the sign of $\partial L/\partial w$: the unit says $p < t$, and $x > 0$. Should $w$ grow or shrink?

# %%
w, x, b, t = Var(0.8, "w"), Var(1.5, "x"), Var(-1.0, "b"), Var(1.0, "t")
p = logistic(add(multiply(w, x), b))
d = subtract(p, t)
loss = multiply(d, d)
gradients = backpropagate(loss)

order = topological_order(loss)
names = {var: f"{i}" for i, var in enumerate(order)}
texts = {names[var]: f"{var.name}\n{var.data:.4f}\ngrad {gradients[var]:.4f}" for var in order}
edges = [(names[parent], names[var]) for var in order for parent in var.parents]
show(
    draw_graph(texts, edges),
    alt="Graph of one unit: product of w and x, plus b, sigmoid, minus t, squared; each node carries its value and the "
    "loss's gradient, which gets smaller from right to left.",
)
assert w.grad < 0, "the loss falls when w grows"

# %% [markdown]
# Solid boxes are leaves, dashed ones ops; `grad` is the gradient of the loss. Read it from the right. The square
# hands back $2d$, in two halves of $d$, since $d$ is both factors. The sigmoid multiplies by at most $1/4$. Then $b$
# gets what arrives, and $w$ gets it times $x = 1.5$. The gradient of $w$ is negative: a larger $w$ lowers the loss,
# as it should when $p$ is too small.
#
# ## 5. Broadcasting has a transpose
#
# A bias is one number per channel, added to every pixel. NumPy *broadcasts* it: it acts as if the bias had been copied
# along the missing axes. Each copy is a use. So its gradient is the **sum** over the copies.
#
# In the language of the chain rule: broadcasting is a matrix $S$ of zeros and ones, with one 1 in each row. The way
# back multiplies by $S^T$, and a column of $S$ has a 1 for each copy.
#
# **Predict** the shape of the gradient of a bias of shape `(3,)` that was added to maps of shape `(2, 5, 5, 3)`. What
# is each entry if `dy` is all ones?
#
# ### Exercise 4: unbroadcast
#
# NumPy aligns shapes at the right. An axis can be stretched in two ways: it was missing on the left, or it had length
# 1.


# %% tags=["exercise"]
def unbroadcast(gradient, shape):
    """Sum a gradient over the axes along which an array of this shape was stretched; the result has that shape."""
    ### BEGIN SOLUTION hint: first sum the axes missing on the left, then, keeping them, those of length 1
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1)
    return gradient.sum(stretched, keepdims=True)
    ### END SOLUTION


# %% tags=["check"]
rng = np.random.default_rng(0)
CASES = [((3,), (2, 3)), ((4, 1), (4, 3)), ((), (2, 3)), ((1, 3), (5, 2, 3)), ((2, 3), (2, 3)), ((1,), (1,))]
CASES += [((3,), (2, 5, 5, 3)), ((2, 1, 1, 3), (2, 5, 5, 3)), ((1, 1), (3, 4)), ((1, 4), (3, 1, 4)), ((3,), (3, 3))]
for shape, stretched in CASES:
    dy = rng.standard_normal(stretched)
    source = np.broadcast_to(np.arange(int(np.prod(shape))).reshape(shape), stretched)  # whose copy is this?
    expected = np.bincount(source.ravel(), weights=dy.ravel()).reshape(shape)
    found = np.asarray(unbroadcast(dy, shape))
    assert found.shape == shape, (
        f"{shape} was stretched to {stretched}; its gradient has shape {found.shape}, not {shape}"
    )
    assert np.allclose(found, expected), (
        f"{shape} stretched to {stretched}: each entry must be the SUM over its copies and over nothing else"
    )

# %% [markdown]
# The bias's gradient has shape `(3,)` and each entry is 50, the number of pixels in the batch. Forget the sum and the
# shapes do not fit; take the mean and the bias learns 50 times too slowly, which no error message tells you.
#
# Now all ops for a small network. Each is its formula, its transpose, and `unbroadcast` where shapes may differ.


# %%
@lift
def add(a, b):
    return a + b, lambda dy: (unbroadcast(dy, a.shape), unbroadcast(dy, b.shape))


@lift
def subtract(a, b):
    return a - b, lambda dy: (unbroadcast(dy, a.shape), unbroadcast(-dy, b.shape))


@lift
def multiply(a, b):
    return a * b, lambda dy: (unbroadcast(dy * b, a.shape), unbroadcast(dy * a, b.shape))


@lift
def matmul(a, b):  # y = ab: <dy, (da) b> = <dy b^T, da>, and the same for b
    return a @ b, lambda dy: (dy @ b.T, a.T @ dy)


@lift
def relu(x):
    y = np.maximum(x, 0)
    return y, lambda dy: (dy * (y > 0),)


@lift
def mean(x):
    return x.mean(), lambda dy: (np.full(x.shape, dy / x.size),)


def network(x, parameters):
    """Return the probability that each point (N, 2) belongs to the outer ring: (N, 1)."""
    w1, b1, w2, b2 = parameters
    return logistic(add(matmul(relu(add(matmul(x, w1), b1)), w2), b2))


def new_parameters(seed):
    rng = np.random.default_rng(seed)
    return [
        Var(rng.standard_normal((2, 16))),
        Var(np.zeros(16)),
        Var(0.5 * rng.standard_normal((16, 1))),
        Var(np.zeros(1)),
    ]


# %% [markdown]
# ### It learns
#
# Two noisy rings, which no straight line separates. The loss is the mean squared distance, the update is the plainest
# there is: $w \leftarrow w - \eta\, \partial L/\partial w$.
#
# **Predict** what happens if the line `parameter.grad = None` is deleted. (Section 4 has a check about that.)

# %%
rng = np.random.default_rng(1)
outer = rng.random(240) < 0.5
radius = np.where(outer, 2.0, 1.0) + 0.15 * rng.standard_normal(240)
angle = rng.uniform(0, 2 * np.pi, 240)
ring_points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)  # (N, 2)
targets = outer[:, None].astype(float)

parameters = new_parameters(seed=0)
losses = []
for _ in range(400 if FAST else 1500):
    error = subtract(network(Var(ring_points), parameters), Var(targets))
    loss = mean(multiply(error, error))
    backpropagate(loss)
    losses.append(float(loss.data))
    for parameter in parameters:
        parameter.data = parameter.data - 1.0 * parameter.grad
        parameter.grad = None

probability = network(Var(ring_points), parameters).data[:, 0]
right = np.mean((probability > 0.5) == outer)
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; {100 * right:.1f} % of the points are on the right side")
assert right >= 0.95, f"only {right:.2f} right: the network did not learn"

# %%
grid = np.linspace(-3, 3, 121)
plane = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
seen = network(Var(plane), parameters).data.reshape(121, 121)
figure, (left, side) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", width_ratios=[1, 1.15])
left.plot(losses, color="black")
left.set(xlabel="step", ylabel="loss (mean squared error)", title="the loss falls", ylim=(0, None))
shown = side.imshow(seen, extent=(-3, 3, -3, 3), origin="lower", cmap="cividis", vmin=0, vmax=1)
side.plot(*ring_points[outer].T, "x", color="black", markersize=4, label="outer ring")
side.plot(*ring_points[~outer].T, "o", color="white", markeredgecolor="black", markersize=4, label="inner ring")
side.set(xlabel="first coordinate", ylabel="second coordinate", title="what the network says")
side.legend(loc="upper right", fontsize=8, framealpha=0.9)
figure.colorbar(shown, ax=side, label="probability of the outer ring")
show(
    figure,
    alt="Left: the loss falls over the steps. Right: a map of the probability, low in the middle and high outside, "
    "with the two rings of points on their sides of the border.",
)

# %% [markdown]
# Without `grad = None` each step would add to the gradients of all steps before it, as the check with 4 + 4 = 8
# demanded. That is a feature (several losses, or several small batches, may share one step) and a trap.
#
# ## 6. Not recording
#
# After training nobody asks for gradients. Yet each `Var` still holds its parents, these theirs, and so every array of
# the forward pass stays in memory. `tape.recording` is the switch.
#
# ### Exercise 5: no_grad
#
# A context manager: inside `with no_grad():` nothing is recorded. It must put back what was there **before**, which is
# not always `True` (think of `no_grad` inside `no_grad`), and it must do so when the block ends with an error.


# %% tags=["exercise"]
@contextmanager
def no_grad():
    """Inside, nothing is recorded; afterwards, all is as before."""
    ### BEGIN SOLUTION hint: remember tape.recording, set it, yield inside try, put it back in finally
    before = tape.recording
    tape.recording = False
    try:
        yield
    finally:
        tape.recording = before
    ### END SOLUTION


# %% tags=["check"]
tape.recording = True  # whatever was tried before
a = Var(2.0, "a")
with no_grad():
    inside = multiply(a, a)
    assert inside.parents == (), "inside no_grad the product still remembers its parents"
    with no_grad():
        pass
    assert multiply(a, a).parents == (), "an inner no_grad ended and recording is on again, inside the outer one"
assert multiply(a, a).parents == (a, a), "after no_grad recording must be on again"
try:
    with no_grad():
        raise KeyError("something went wrong in the middle")
except KeyError:
    pass
still = tape.recording
tape.recording = True
assert still, "an error inside no_grad left recording off for the rest of the program: use try ... finally"

# %%
with_tape = topological_order(network(Var(ring_points), parameters))
with no_grad():
    without = topological_order(network(Var(ring_points), parameters))
held = sum(var.data.nbytes for var in with_tape)
print(f"recorded: {len(with_tape)} Vars, {held:,} bytes")
print(f"inside no_grad: {len(without)} Var, {without[0].data.nbytes:,} bytes")
assert len(without) == 1

# %% [markdown]
# ## 7. What a closure keeps
#
# During training the tape *must* keep things, and this is where most of a training step's memory goes. But which
# things? Python can be asked: the variables that a closure remembers are in `backward.__closure__`, their names in
# `backward.__code__.co_freevars`.


# %%
def kept(backward):
    """Return name -> array of the arrays that a closure remembers."""
    cells = zip(backward.__code__.co_freevars, backward.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells if isinstance(cell.cell_contents, np.ndarray)}


a, b = Var(np.ones(1000)), Var(np.ones(1000))
for op, arguments in ((multiply, (a, b)), (add, (a, b)), (logistic, (a,)), (relu, (a,)), (mean, (a,))):
    held = kept(op(*arguments).backward)
    print(f"{op(*arguments).name:9} keeps {list(held)}, {sum(array.nbytes for array in held.values()):6,} bytes")

# %% [markdown]
# The product has to keep both factors. The sigmoid keeps its result. But look at `add`: it holds on to two arrays, and
# all it wants from them is their *shape*. So does `mean`. The cure is one line: take the shape outside of `backward`.


# %%
@lift
def add(a, b):
    a_shape, b_shape = a.shape, b.shape
    return a + b, lambda dy: (unbroadcast(dy, a_shape), unbroadcast(dy, b_shape))


assert kept(add(a, b).backward) == {}, "the sum of two arrays needs neither of them on the way back"

# %% [markdown]
# Now the package's ops. `op.raw` is the version for bare arrays, which returns `(y, backward)` like ours.
#
# **Predict**, before you run the cell, how many arrays of the size of $x$ each of these keeps: $a + b$, $ab$, $a/b$,
# $e^x$, $\log x$, $\sigma(x)$, $\max(x, 0)$.

# %%
a = np.linspace(0.1, 2, 4096, dtype=np.float32)
b = a[::-1].copy()
PACKAGE_OPS = {
    "a + b": (ops.add, a, b), "a * b": (ops.mul, a, b), "a / b": (ops.div, a, b), "exp": (ops.exp, a),
    "log": (ops.log, a), "sigmoid": (ops.sigmoid, a), "relu": (ops.relu, a),
}  # fmt: skip
arrays_kept = {}
for name, (op, *arguments) in PACKAGE_OPS.items():
    _, backward = op.raw(*arguments)
    arrays_kept[name] = sum(array.nbytes for array in kept(backward).values()) / a.nbytes
    print(f"{name:8} {list(kept(backward))}")
assert arrays_kept == {"a + b": 0, "a * b": 2, "a / b": 2, "exp": 1, "log": 1, "sigmoid": 1, "relu": 1}

# %% [markdown]
# ReLU keeps its result `y`, although $x > 0$ and $y > 0$ say the same. Does that matter? Both are one array. But `y`
# is also the *next* layer's argument, which keeps it anyway, while nobody else wants $x$. One array that two closures
# share is paid for once.
#
# Let us count distinct arrays on a real tape: eight layers of `relu(h * w + b)`, once with the package's ReLU, once
# with one that keeps $x$.


# %%
@autograd.differentiable
def relu_that_keeps_x(x):
    def backward(dy):
        return (dy * (x > 0),)

    return np.maximum(x, 0), backward


def bytes_on_tape(tensor):
    """Return the bytes of the distinct arrays that the closures of all ops under a Tensor remember."""
    arrays, stack, done = {}, [tensor], set()
    while stack:
        node = stack.pop().node
        if node is None or id(node) in done:
            continue
        done.add(id(node))
        arrays |= {id(array): array for array in kept(node.backward).values()}
        stack += [parent for parent in node.inputs if parent is not None]
    return sum(array.nbytes for array in arrays.values())


def eight_layers(rectify):
    rng = np.random.default_rng(0)
    h = autograd.Tensor(rng.standard_normal((64, 64, 32)).astype(np.float32), requires_grad=True)
    unit = h.data.nbytes
    for _ in range(8):
        w, b = (autograd.Tensor(np.full(32, value, np.float32), requires_grad=True) for value in (1.1, 0.05))
        h = rectify(h * w + b)
    return bytes_on_tape(h) / unit


layers_kept = {"ReLU keeps x": eight_layers(relu_that_keeps_x), "ReLU keeps y": eight_layers(ops.relu)}
with autograd.no_grad():
    layers_kept["no_grad"] = eight_layers(ops.relu)
for name, units in layers_kept.items():
    print(f"{name}: {units:.2f} maps")
assert abs(layers_kept["ReLU keeps x"] - 16) < 0.1 and abs(layers_kept["ReLU keeps y"] - 9) < 0.1
assert layers_kept["no_grad"] == 0

# %%
figure, (left, side) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", width_ratios=[1.3, 1])
bars = left.bar(list(arrays_kept), list(arrays_kept.values()), color="0.35")
left.bar_label(bars, fmt="%g")
left.set(ylabel="arrays of the argument's size", title="what one op keeps", ylim=(0, 2.4))
left.tick_params(axis="x", labelrotation=30)
bars = side.barh(list(layers_kept), list(layers_kept.values()), color=["0.35", "#0072B2", "0.35"], hatch=["", "//", ""])
side.bar_label(bars, fmt="%.1f", padding=3)
side.set(xlabel="maps of 64 × 64 × 32 on the tape", title="what eight layers keep", xlim=(0, 19))
side.invert_yaxis()
show(
    figure,
    alt="Left: arrays kept by an op; a plus b none, a times b and a over b two, exp, log, sigmoid and relu one. Right: "
    "eight layers keep 16 maps if ReLU keeps its argument, 9 if it keeps its result, none inside no_grad.",
)

# %% [markdown]
# Nine maps instead of sixteen, for the price of thinking about one character. The network of notebook 06 uses the same
# trick throughout, and `autograd.checkpoint` goes further: it keeps nothing inside a stage and computes it again.
#
# ## 8. The package agrees
#
# The same network and the same loss, with `minicenternet.autograd.Tensor`. Both are float64, so the gradients have to
# agree to the last digits.

# %%
ours = new_parameters(seed=3)
theirs = [autograd.Tensor(parameter.data.copy(), requires_grad=True) for parameter in ours]

error = subtract(network(Var(ring_points), ours), Var(targets))
backpropagate(mean(multiply(error, error)))

w1, b1, w2, b2 = theirs
p = ops.sigmoid(ops.relu(autograd.Tensor(ring_points) @ w1 + b1) @ w2 + b2)
loss = ((p - targets) * (p - targets)).mean()
loss.backward()

for name, own, tensor in zip(("w1", "b1", "w2", "b2"), ours, theirs, strict=True):
    gap = np.abs(own.grad - tensor.grad).max()
    print(f"{name}: largest difference {gap:.1e}, largest gradient {np.abs(tensor.grad).max():.1e}")
    assert gap < 1e-12, f"{name} differs from the package's gradient"

# %% [markdown]
# The package differs from yours in three ways. Ops are numbered as they run, and that *is* a topological order: it
# sorts by the number. Only what depends on a Tensor with `requires_grad` is recorded. And a closure is dropped as
# soon as it was used, so that activations are freed while the pass runs. The price: one can go back only once.

# %%
try:
    loss.backward()
except RuntimeError as error:
    print(error)
else:
    raise AssertionError("a second backward should have raised")

# %% [markdown]
# ## Break it
#
# Somebody writes an exponential without `lift`, in a hurry. Its values are right and so are its gradients.


# %%
def exp_in_a_hurry(x):
    result = Var(np.exp(x.data), "exp")
    result.parents = (x,)
    result.backward = lambda dy: (dy * result.data,)
    return result


@lift
def exp(x):
    y = np.exp(x)
    return y, lambda dy: (dy * y,)


def results_alive_after(steps, op):
    """Compute op in a loop, as training does, and count the results that are still in memory."""
    x = Var(np.ones(1000))
    watched = [weakref.ref(op(x)) for _ in range(steps)]
    return sum(reference() is not None for reference in watched)


gc.collect()
gc.disable()  # so that only reference counting frees memory, at once
alive = {op: results_alive_after(50, op) for op in (exp, exp_in_a_hurry)}
gc.enable()
print("of 50 results that nobody uses any more, still in memory:")
print(f"  {alive[exp]} of those made with lift, {alive[exp_in_a_hurry]} of those made in a hurry")
assert alive == {exp: 0, exp_in_a_hurry: 50}

# %% [markdown]
# In a real network this shows as memory that climbs over many steps and falls in jerks. What holds the results?
#
# <details><summary>Answer</summary>
#
# `backward` mentions `result`, so its closure keeps the `Var`, and the `Var` keeps `backward`: a circle. Python frees
# an object when nobody refers to it any more; in a circle somebody always does. Only the garbage collector, which
# runs now and then, finds circles. In `exp` the closure sees the array `y`, not the `Var` around it: no circle, and a
# dropped graph is gone at once. This is why the package's ops are functions of arrays.
#
# </details>
#
# ## Summary
#
# - An op returns its result and a closure that turns `dy` into the gradients of its arguments.
# - Gradients of several uses are added; a topological order ensures that all have arrived.
# - Broadcasting copies, so its way back sums.
# - What the closures keep is the memory of training: keep shapes, not arrays; keep what the neighbour keeps anyway.
# - Closures see arrays, never Tensors, or memory waits for the garbage collector.
#
# A gradient that is wrong by a factor trains, only worse. Notebook 02 finds such errors.
#
# ## In the package
#
# - `minicenternet.autograd.Tensor` and its method `backward`: the tape
# - `minicenternet.autograd.differentiable`: `lift`
# - `minicenternet.autograd.no_grad`, `minicenternet.autograd.checkpoint`
# - `minicenternet.ops.pointwise.unbroadcast`, and in the same file the ops that use it
