"""A check that cannot fail is worth nothing: wrong gradients are planted in every op and loss, and must be refused.

A fault is a function (backward, dy, *arguments) that returns the wrong gradients; the very call that refuses it
passes with the op as it is.
"""

import functools
from typing import NamedTuple

import numpy as np
import pytest
from gradients import check

from minicenternet import ops
from minicenternet.autograd import differentiable
from minicenternet.points import losses

rng = np.random.default_rng(0)


def away(*shape):
    """Return random numbers that keep away from 0, where some ops have a kink."""
    return rng.uniform(0.2, 2, shape) * rng.choice([-1.0, 1.0], shape)


class Call(NamedTuple):
    op: object
    arguments: tuple
    options: dict = {}
    constants: tuple = ()


HEATMAP = rng.uniform(0, 0.9, (2, 4, 5, 3))
HEATMAP[0, 1, 2, 0] = HEATMAP[1, 3, 4, 2] = HEATMAP[1, 0, 0, 1] = 1
CELLS = np.array([[5, 5, 0, 11], [3, 7, 7, 7]])
STATE = ("running_mean", "running_var")


@differentiable
def parts_exchanged(x):
    """Split x (..., 4) after its first channel and join the parts the other way round: an op of one output."""
    (head, tail), backward_of_both = ops.split.raw(x, (1, 3))

    def backward(dy):
        return backward_of_both(dy[..., 3:], dy[..., :3])

    return np.concatenate([tail, head], -1), backward


CALLS = {
    "add": Call(ops.add, (away(2, 3, 4), away(3, 1))),
    "sub": Call(ops.sub, (away(2, 3), away(2, 3))),
    "mul": Call(ops.mul, (away(2, 3), away(2, 3))),
    "div": Call(ops.div, (away(2, 3), away(2, 3))),
    "pow": Call(ops.pow, (abs(away(2, 3)), away(2, 3))),
    "exp": Call(ops.exp, (away(2, 3),)),
    "log": Call(ops.log, (abs(away(2, 3)),)),
    "sqrt": Call(ops.sqrt, (abs(away(2, 3)),)),
    "abs": Call(ops.abs, (away(2, 3),)),
    "relu": Call(ops.relu, (away(4, 5),)),
    "leaky_relu": Call(ops.leaky_relu, (away(4, 5),), {"slope": 0.2}),
    "sigmoid": Call(ops.sigmoid, (away(2, 3),)),
    "clip": Call(ops.clip, (away(4, 5), -1.0, 1.0)),
    "maximum": Call(ops.maximum, (away(4, 5), away(4, 5))),
    "sum": Call(ops.sum, (away(3, 4), 0)),
    "mean": Call(ops.mean, (away(3, 4), 0)),
    "max": Call(ops.max, (away(3, 4), 0)),
    "reshape": Call(ops.reshape, (away(3, 4), (4, 3))),
    "transpose": Call(ops.transpose, (away(3, 3, 3), (1, 2, 0))),
    "concatenate": Call(ops.concatenate, (away(2, 3), away(2, 3))),
    "split": Call(parts_exchanged, (away(2, 3, 4),)),
    "slice": Call(ops.slice, (away(4, 3), np.array([1, 3, 1]))),
    "pad": Call(ops.pad, (away(3, 4), ((1, 2), (0, 1)))),
    "matmul": Call(ops.matmul, (away(2, 3, 3), away(3, 3))),
    "conv2d": Call(ops.conv2d, (away(2, 7, 6, 4), away(4, 2, 3, 3), away(4)), {"stride": 2, "padding": 1, "groups": 2}),
    "conv2d relu": Call(ops.conv2d, (away(1, 5, 4, 3), away(2, 3, 3, 3), away(2)), {"padding": 1, "relu": True}),
    "conv_transpose2d": Call(
        ops.conv_transpose2d, (away(1, 3, 4, 2), away(2, 2, 3, 3), away(2)), dict(stride=2, padding=1, output_padding=1)
    ),
    "deform_conv2d": Call(
        ops.deform_conv2d,
        (
            away(2, 4, 5, 3),
            rng.integers(-2, 2, (2, 4, 5, 18)) + rng.uniform(0.1, 0.9, (2, 4, 5, 18)),
            rng.uniform(0.2, 1, (2, 4, 5, 9)),
            away(4, 3, 3, 3),
            away(4),
        ),
        {"padding": 1},
    ),
    "batch_norm": Call(
        ops.batch_norm, (3 + away(2, 3, 4, 2), away(2), away(2), away(2), abs(away(2))), {"training": True}, STATE
    ),
    "batch_norm eval": Call(ops.batch_norm, (away(2, 3, 4, 2), away(2), away(2), away(2), abs(away(2))), {}, STATE),
    "max_pool2d": Call(ops.max_pool2d, (away(1, 6, 6, 2),)),
    "avg_pool2d": Call(ops.avg_pool2d, (away(1, 6, 6, 2),), {"size": 3, "padding": 1}),
    "upsample2d nearest": Call(ops.upsample2d, (away(1, 3, 4, 2),)),
    "upsample2d bilinear": Call(ops.upsample2d, (away(1, 3, 4, 2),), {"mode": "bilinear"}),
    "gather_points": Call(ops.gather_points, (away(2, 3, 4, 2), CELLS)),
    "focal_loss": Call(losses.focal_loss, (away(2, 4, 5, 3), HEATMAP), {}, ("heatmap",)),
    "l1_loss": Call(
        losses.l1_loss,
        (away(2, 4, 2), 3 * away(2, 4, 2), np.array([[1.0, 1, 0, 1], [0, 1, 0, 0]])),
        {},
        ("target", "mask"),
    ),
    "l1_loss released": Call(
        losses.l1_loss,
        (away(2, 4, 2), 3 * away(2, 4, 2), np.array([[1.0, 1, 0, 1], [0, 1, 0, 0]])),
        {"denominator": "released"},
        ("target", "mask"),
    ),
}


def first(change):
    """Return the fault that changes the first gradient, change(dx, dy, *arguments), and leaves the others."""
    return nth(0, change)


def nth(i, change):
    def fault(backward, dy, *arguments):
        gradients = list(backward(dy))
        gradients[i] = change(gradients[i], dy, *arguments)
        return tuple(gradients)

    return fault


def with_dy(change):
    """Return the fault that goes back from a changed dy."""
    return lambda backward, dy, *arguments: backward(change(dy))


def without(dx, *index):
    """Return dx with zeros at an index: a part that was forgotten."""
    dx = dx.copy()
    dx[index] = 0
    return dx


def rolled(axis):
    return lambda dx, *_: np.roll(dx, 1, axis)


def read_once(dx, dy, x, index):
    """Write each gradient of a read element over the one before, where it should be added."""
    dx = np.zeros_like(dx)
    dx[index] = dy
    return dx


def gathered(cell_of):
    """Scatter dy to cell_of(cell, height, width), with or without adding."""

    def change(dx, dy, x, index):
        dx = np.zeros_like(dx)
        for b, m in np.ndindex(*index.shape):
            cell, add = cell_of(index[b, m], *x.shape[1:3])
            at = (b, cell // x.shape[2] % x.shape[1], cell % x.shape[2])
            dx[at] = dx[at] * add + dy[b, m]
        return dx

    return change


def normalised(x, epsilon=1e-5):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(variance + epsilon), 1 / np.sqrt(variance + epsilon)


def batch_norm_dx(dy_mean=1.0, product=1.0, centred=True, count_off=0):
    """Return a change that computes dx by its formula, with terms scaled, left out or not centred."""

    def change(dx, dy, x, weight, *_):
        hat, inverse = normalised(x)
        seen = hat if centred else x * inverse
        count = x.size // x.shape[3] - count_off
        correction = dy_mean * dy.sum((0, 1, 2)) / count + product * seen * (dy * seen).sum((0, 1, 2)) / count
        return weight * inverse * (dy - correction)

    return change


def pooled(overwrite=False, corner=False):
    """Return a change of max_pool2d's dx: overlapping windows overwrite, or each window's first pixel gets it all."""

    def change(dx, dy, x):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        out = np.zeros_like(padded)
        for b, i, j, c in np.ndindex(*dy.shape):
            window = padded[b, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
            u, v = (1, 1) if corner else np.unravel_index(window.argmax(), (3, 3))
            at = (b, 2 * i + u, 2 * j + v, c)
            out[at] = dy[b, i, j, c] + (0 if overwrite else out[at])
        return out[:, 1:-1, 1:-1]

    return change


def align_corners(dx, dy, x):
    """Interpolate between the corner pixels' centres: the other convention."""

    def matrix(n):
        position = np.linspace(0, n - 1, 2 * n)
        return np.maximum(0, 1 - abs(position[:, None] - np.arange(n)))

    return np.einsum("ih,jw,bijc->bhwc", matrix(x.shape[1]), matrix(x.shape[2]), dy)


def focal_dx(peak=1.0, near=True, background_at_peak=False, swapped_powers=False, alpha_term=1.0, count=True):
    """Return a change that computes the focal loss's gradient by its formula, with one thing wrong."""

    def change(dx, dy, logits, heatmap):
        p = 1 / (1 + np.exp(-logits))
        weight = (1 - heatmap) ** 4 if near else 1.0
        weight = (1 - p) ** 4 if swapped_powers else weight
        at_one = (1 - p) ** 2 * (alpha_term * 2 * p * np.log(p) - (1 - p))
        elsewhere = p**2 * (p - alpha_term * 2 * (1 - p) * np.log(1 - p))
        is_peak = heatmap == 1
        found = np.where(is_peak, peak * at_one + background_at_peak * elsewhere, weight * elsewhere)
        return dy * found / (is_peak.sum() if count else 1)

    return change


FAULTS = {
    "add": {
        "missing unbroadcast": nth(1, lambda db, dy, a, b: dy),
        "mean over the stretched axes": nth(1, lambda db, *_: db / 8),
        "stretched axis summed twice": nth(1, lambda db, *_: np.full_like(db, db.sum())),
    },
    "sub": {"sign of b": nth(1, lambda db, *_: -db), "sign of a": first(lambda da, *_: -da)},
    "mul": {"swapped": lambda backward, dy, a, b: (dy * a, dy * b)},
    "div": {
        "sign": nth(1, lambda db, *_: -db),
        "divisor not squared": nth(1, lambda db, dy, a, b: -dy * a / b),
    },
    "pow": {
        "exponent forgotten": first(lambda da, dy, a, b: dy * a ** (b - 1)),
        "exponent not lowered": first(lambda da, dy, a, b: dy * b * a**b),
        "logarithm of the exponent": nth(1, lambda db, dy, a, b: dy * a**b * np.log(abs(b))),
    },
    "exp": {"y forgotten": first(lambda dx, dy, x: dy)},
    "log": {"multiplied": first(lambda dx, dy, x: dy * x)},
    "sqrt": {"half forgotten": first(lambda dx, *_: 2 * dx)},
    "abs": {"sign forgotten": first(lambda dx, dy, x: dy)},
    "relu": {"mask forgotten": first(lambda dx, dy, x: dy), "mask turned": first(lambda dx, dy, x: dy * (x < 0))},
    "leaky_relu": {
        "slope twice": first(lambda dx, dy, x: np.where(x > 0, dy, 0.04 * dy)),
        "slope dropped": first(lambda dx, dy, x: dy * (x > 0)),
    },
    "sigmoid": {"1 - y missing": first(lambda dx, dy, x: dy / (1 + np.exp(-x)))},
    "clip": {
        "mask forgotten": first(lambda dx, dy, *_: dy),
        "lower limit only": first(lambda dx, dy, x, *_: dy * (x >= -1)),
    },
    "maximum": {
        "both get all": lambda backward, dy, a, b: (dy, dy),
        "minimum": lambda backward, dy, *_: backward(dy)[::-1],
    },
    "sum": {"first row only": first(lambda dx, *_: without(dx, np.s_[1:]))},
    "mean": {
        "1/N missing": first(lambda dx, *_: 3 * dx),
        "1/(N - 1)": first(lambda dx, *_: dx * 3 / 2),
        "N of all axes": first(lambda dx, *_: dx / 4),
    },
    "max": {
        "all get it": first(lambda dx, dy, *_: np.tile(dy, (3, 1))),
        "shared": first(lambda dx, dy, *_: np.tile(dy / 3, (3, 1))),
    },
    "reshape": {"column by column": first(lambda dx, dy, *_: dy.reshape(3, 4, order="F"))},
    "transpose": {"forward once more": first(lambda dx, dy, x, axes: dy.transpose(axes))},
    "split": {
        "parts exchanged": first(lambda dx, dy, x: dy),
        "first part only": first(lambda dx, *_: dx * [1, 0, 0, 0]),
        "shifted": first(rolled(-1)),
    },
    "concatenate": {"parts exchanged": lambda backward, dy, *_: backward(dy)[::-1]},
    "slice": {"read twice, written once": first(read_once), "shifted": first(rolled(0))},
    "pad": {
        "off by one": first(lambda dx, dy, *_: dy[0:3, 0:4]),
        "border dropped": first(lambda dx, *_: without(dx, 0)),
    },
    "matmul": {
        "a not transposed": nth(1, lambda db, dy, a, b: (a @ dy).sum(0)),
        "b not transposed": first(lambda da, dy, a, b: dy @ b),
        "batch not summed": nth(1, lambda db, dy, a, b: a.swapaxes(-1, -2) @ dy),
        "first of the batch only": nth(1, lambda db, dy, a, b: a[0].T @ dy[0]),
    },
    "conv2d relu": {
        "mask forgotten": lambda backward, dy, *arrays: ops.conv2d.raw(*arrays, padding=1)[1](dy),
        "mask of the bias only": nth(2, lambda db, dy, *_: dy.sum((0, 1, 2))),
    },
    "conv2d": {
        "kernel turned": nth(1, lambda dw, *_: dw[:, :, ::-1, ::-1]),
        "kernel transposed": nth(1, lambda dw, *_: dw.swapaxes(2, 3)),
        "channels of a group exchanged": nth(1, lambda dw, *_: dw[:, ::-1]),
        "groups exchanged": nth(1, lambda dw, *_: np.roll(dw, 2, 0)),
        "dx by one pixel": first(rolled(1)),
        "dx without the border": first(lambda dx, *_: without(dx, slice(None), 0)),
        "dx with channels exchanged": first(lambda dx, *_: dx[..., ::-1]),
        "dx of one group": first(lambda dx, *_: without(dx, ..., np.s_[2:])),
        "last row of dy dropped": with_dy(lambda dy: without(dy, slice(None), -1)),
        "bias forgotten": nth(2, lambda db, *_: 0 * db),
        "bias averaged": nth(2, lambda db, *_: db / 24),
        "dweight averaged over the batch": nth(1, lambda dw, *_: dw / 2),
        "no dx": first(lambda dx, *_: None),
    },
    "conv_transpose2d": {
        "dx flipped": first(lambda dx, *_: -dx),
        "dx by one pixel": first(rolled(2)),
        "inputs and outputs exchanged": nth(1, lambda dw, *_: dw.swapaxes(0, 1)),
        "kernel turned": nth(1, lambda dw, *_: dw[:, :, ::-1, ::-1]),
        "output padding dropped": with_dy(lambda dy: without(dy, slice(None), slice(None), -1)),
        "bias forgotten": nth(2, lambda db, *_: None),
    },
    "deform_conv2d": {
        "kernel transposed": nth(3, lambda dw, *_: dw.swapaxes(2, 3)),
        "dx by one pixel": first(rolled(2)),
        "dx without the border": first(lambda dx, *_: without(dx, slice(None), slice(None), -1)),
        "dx without the mask": first(
            lambda dx, dy, x, offset, mask, weight, bias: ops.deform_conv2d.raw(
                x, offset, np.ones_like(mask), weight, padding=1
            )[1](dy)[0]
        ),
        "rows and columns of the offset exchanged": nth(
            1, lambda do, *_: do.reshape(*do.shape[:3], 9, 2)[..., ::-1].reshape(do.shape)
        ),
        "all rows before all columns": nth(
            1, lambda do, *_: do.reshape(*do.shape[:3], 9, 2).swapaxes(3, 4).reshape(do.shape)
        ),
        "sign of the offset": nth(1, lambda do, *_: -do),
        "offset without the mask": nth(1, lambda do, dy, x, offset, mask, *_: do / mask.repeat(2, axis=-1)),
        "offset of the last tap forgotten": nth(1, lambda do, *_: without(do, ..., np.s_[16:])),
        "mask's own factor": nth(2, lambda dm, dy, x, offset, mask, *_: dm * mask),
        "mask taken as a constant": nth(2, lambda dm, *_: None),
        "taps of the mask turned": nth(2, lambda dm, *_: dm[..., ::-1]),
        "bias averaged": nth(4, lambda db, *_: db / 40),
    },
    "batch_norm": {
        "mean of dy missing": first(batch_norm_dx(dy_mean=0)),
        "product term missing": first(batch_norm_dx(product=0)),
        "statistics taken as constants": first(batch_norm_dx(dy_mean=0, product=0)),
        "x not centred": first(batch_norm_dx(centred=False)),
        "n - 1": first(batch_norm_dx(count_off=1)),
        "zero, as a constant dy would have it": first(lambda dx, *_: 0 * dx),
        "weight forgotten": first(lambda dx, dy, x, weight, *_: dx / weight),
        "dweight of x not centred": nth(1, lambda dw, dy, x, *_: (dy * x).sum((0, 1, 2)) * normalised(x)[1]),
        "dweight not normalised": nth(1, lambda dw, dy, x, *_: dw / normalised(x)[1]),
        "dweight and dbias exchanged": lambda backward, dy, *_: tuple(np.array(backward(dy), object)[[0, 2, 1, 3, 4]]),
    },
    "batch_norm eval": {
        "statistics of the batch": first(batch_norm_dx()),
        "dweight of x not centred": nth(
            1, lambda dw, dy, x, w, b, mean, var: (dy * x).sum((0, 1, 2)) / np.sqrt(var + 1e-5)
        ),
    },
    "max_pool2d": {
        "middle of the window": first(pooled(corner=True)),
        "overlaps overwritten": first(pooled(overwrite=True)),
        "by one pixel": first(rolled(2)),
        "border dropped": first(lambda dx, *_: without(dx, slice(None), slice(None), -1)),
    },
    "avg_pool2d": {
        "1/K² missing": first(lambda dx, *_: 9 * dx),
        "1/K": first(lambda dx, *_: 3 * dx),
        "border cells weigh more": first(lambda dx, *_: np.where(dx == dx[:, :1], 1.5 * dx, dx)),
    },
    "upsample2d nearest": {
        "first of each block": first(lambda dx, dy, x: dy[:, ::2, ::2]),
        "mean of each block": first(lambda dx, *_: dx / 4),
    },
    "upsample2d bilinear": {
        "corners aligned": first(align_corners),
        "border not limited": first(lambda dx, *_: np.concatenate([0.75 * dx[:, :1], dx[:, 1:]], 1)),
        "nearest": first(lambda dx, dy, x: dy.reshape(1, 3, 2, 4, 2, 2).sum((2, 4))),
    },
    "gather_points": {
        "read twice, written once": first(gathered(lambda cell, h, w: (cell, 0))),
        "next cell": first(gathered(lambda cell, h, w: (cell + 1, 1))),
        "rows and columns exchanged": first(gathered(lambda cell, h, w: (cell % w * w + cell // w, 1))),
    },
    "focal_loss": {
        "flipped": first(lambda dx, *_: -dx),
        "1/N missing": first(focal_dx(count=False)),
        "(1 - Y)^4 missing": first(focal_dx(near=False)),
        "(1 - p)^4 for (1 - Y)^4": first(focal_dx(swapped_powers=True)),
        "peaks forgotten": first(focal_dx(peak=0.0)),
        "peaks counted as background too": first(focal_dx(background_at_peak=True)),
        "power taken as a constant": first(focal_dx(alpha_term=0.0)),
        "dloss ignored": first(lambda dx, dy, *_: dx / dy),
    },
    "l1_loss": {
        "flipped": first(lambda dx, *_: -dx),
        "mask forgotten": first(lambda dx, dy, x, target, mask: dy * np.sign(x - target) / 4),
        "1/N missing": first(lambda dx, *_: 4 * dx),
        "squared error": first(lambda dx, dy, x, target, mask: dx * 2 * abs(x - target)),
        "second coordinate forgotten": first(lambda dx, *_: without(dx, ..., 1)),
        "denominator of the released code": first(lambda dx, *_: dx * 4 / (8 + 1e-4)),
    },
    "l1_loss released": {
        "denominator of the paper": first(lambda dx, *_: dx * (8 + 1e-4) / 4),
        "1e-4 forgotten": first(lambda dx, *_: dx * (8 + 1e-4) / 8),
    },
}
CASES = [(name, fault) for name, faults in FAULTS.items() for fault in faults]


@pytest.mark.parametrize("name", CALLS)
def test_the_sound_op_passes(name):
    op, arguments, options, constants = CALLS[name]
    check(op, *arguments, constants=constants, **options)


@pytest.mark.parametrize("name, fault", CASES, ids=[f"{name}: {fault}" for name, fault in CASES])
def test_a_planted_fault_is_refused(name, fault):
    op, arguments, options, constants = CALLS[name]

    @functools.wraps(op.raw)
    def mutant(*arrays, **options):
        y, backward = op.raw(*arrays, **options)
        return y, lambda dy: FAULTS[name][fault](backward, dy, *arrays)

    with pytest.raises(
        AssertionError, match="^gradient of .* differences say|has no gradient|has shape .*, its gradient"
    ):
        check(differentiable(mutant), *arguments, constants=constants, **options)


def test_every_op_has_a_planted_fault():
    lifted = {name for name in ops.__all__ if name != "neg"}
    assert lifted <= {name.split()[0] for name in FAULTS}
    assert len(CASES) >= 30 and FAULTS.keys() == CALLS.keys()


@pytest.mark.parametrize("fault", ["product term missing", "zero, as a constant dy would have it"])
def test_why_the_cotangent_is_random(fault):
    """With dy = 1 the gradient of a batch norm is zero, and so are these: a check seeded with ones passes."""
    x, weight, *rest = CALLS["batch_norm"].arguments
    y, backward = ops.batch_norm.raw(x, weight, *(array.copy() for array in rest), training=True)
    wrong = FAULTS["batch_norm"][fault](backward, np.ones_like(y), x, weight)[0]
    np.testing.assert_allclose(backward(np.ones_like(y))[0], wrong, atol=1e-12)
