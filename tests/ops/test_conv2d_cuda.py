"""Every rung of the convolution's ladder against the definition in float64, on the CPU or (see the fixture) on a GPU.

Inputs are rounded as the precision rounds them before the definition sees them, so that what is left to differ is the
order of float32 sums and, in 16 bits, the rounding of the result: a rung that rounded twice, or cut off, would fail.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from cuda_on_cpu.instantiations import INSTANTIATIONS
from on_gpu import RTX, elsewhere

from minicenternet import backend
from minicenternet.ops import conv2d_choice, conv2d_cuda, conv_transpose2d, precisions
from minicenternet.ops.reduce_cuda import over_parts

definition = importlib.import_module("minicenternet.ops.conv2d")  # the package's name conv2d is the op
Geometry = definition.Geometry

CASES = {
    "1x1": dict(kernel=(1, 1)),
    "1x1 stride 2": dict(kernel=(1, 1), stride=2),  # three of four phases have no taps
    "3x3": dict(kernel=(3, 3), padding=1, size=(9, 31)),
    "3x3 valid": dict(kernel=(3, 3), batch=1),
    "3x3 stride 2": dict(kernel=(3, 3), stride=2, padding=1),
    "4x4 stride 2": dict(kernel=(4, 4), stride=2, padding=1, size=(10, 12)),
    "stem": dict(kernel=(7, 7), stride=2, padding=3, size=(33, 18), channels=3),
    "stride above kernel": dict(kernel=(2, 2), stride=3, size=(8, 11)),  # nine phases: three launches
    "dilated": dict(kernel=(3, 3), padding=2, dilation=2),
    "unequal axes": dict(kernel=(3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
    "stride 2 dilation 3": dict(kernel=(3, 3), stride=2, padding=3, dilation=3),
    "groups": dict(kernel=(3, 3), padding=1, groups=2, channels=16, outputs=32),
    "depth-wise": dict(kernel=(3, 3), padding=1, groups=8, channels=8, outputs=8),
    "one pixel": dict(kernel=(3, 3), stride=2, padding=1, size=(1, 1), batch=1),
    "one row": dict(kernel=(1, 3), size=(1, 127)),
    "one column": dict(kernel=(3, 1), size=(33, 1), batch=3),
    "more than a tile": dict(kernel=(3, 3), padding=1, size=(13, 11), channels=20, outputs=67),
    "lots of channels": dict(kernel=(3, 3), stride=2, padding=1, size=(5, 7), channels=128, outputs=128),
    "a lot and a rest": dict(kernel=(3, 3), padding=1, size=(5, 6), channels=72, outputs=8),
    "nothing": dict(kernel=(3, 3), padding=1, batch=0),
}
ON = [
    ("naive", "float32"),
    ("naive", "fp16"),
    ("naive", "bf16"),
    ("im2col", "float32"),
    ("tiled", "float32"),
    ("tensor_cores", "tf32"),
    ("tensor_cores", "fp16"),
    ("tensor_cores", "bf16"),
    ("warpgroups", "tf32"),
    ("warpgroups", "fp16"),
    ("warpgroups", "bf16"),
]
IN_ANOTHER_ORDER = 2e-6  # what float32 sums may differ by, relative to the largest
ADDED_AT_ONCE = 8  # products that the tensor cores add to a sum, of tf32; 16 of the types of 16 bits
HALF_STEP = {"float32": 2**-24, "tf32": 2**-24, "fp16": 2**-11, "bf16": 2**-8}  # of what results are stored in


def rounded(values, precision):
    """Return the float32 values as the precision multiplies them."""
    if precision == "tf32":  # to nearest, 13 of 23 bits of mantissa fewer
        return ((values.view(np.uint32) + 0x1000) & 0xFFFFE000).view(np.float32)
    return values.astype(dtype_of(precision)).astype(np.float32)


def cut_off(values):
    """Return the float32 numbers with 13 of 23 bits of mantissa fewer, as the tensor cores take them."""
    return (values.view(np.uint32) & 0xFFFFE000).view(np.float32)


def dtype_of(precision):
    if precision == "bf16":
        return pytest.importorskip("ml_dtypes").bfloat16
    return {"float32": np.float32, "tf32": np.float32, "fp16": np.float16}[precision]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Compile these alone where the sanitizers run in a process of their own: see `sanitized`."""
    if "CONV2D_SMALL_TILES" in os.environ:
        for rung, tile in (("tiled", "64, 64"), ("tensor_cores", "64, 64"), ("warpgroups", "128, 64|64, 256")):
            file = f"ops/conv2d_{rung}.cu"
            small = [name for name in INSTANTIATIONS[file] if re.search(rf"<(\w+, )?({tile}),", name)]
            monkeypatch.setitem(INSTANTIATIONS, file, small)


class Layer:
    """A convolution with random numbers: arrays on the device, and what the definition makes of them."""

    def __init__(self, cupy, precision, kernel, size=(7, 6), batch=2, channels=12, outputs=10, **options):
        rng = np.random.default_rng(0)
        options = dict(stride=1, padding=0, dilation=1, groups=1) | options
        self.cupy, self.precision, self.kernel, self.size = cupy, precision, kernel, size
        self.geometry = Geometry.of(**options)
        taps = (outputs, channels // options["groups"], *kernel)
        shapes = (batch, *size, channels), taps, (batch, *self.geometry.output_size(*size, kernel), outputs)
        self.x, self.weight, self.dy = (rng.standard_normal(shape, np.float32) for shape in shapes)
        self.rung = None  # that `choices` was asked for

    def choices(self, rung, tile="small"):
        """Return what does both kinds of pass; a weight gradient in tf32, which warpgroups cannot, is tensor_cores'."""
        groups, outputs, channels = self.geometry.groups, len(self.weight), self.weight.shape[1]
        choices, self.rung = [], rung
        for kind in ("correlate", "dweight"):
            of_pass = "tensor_cores" if (rung, kind, self.precision) == ("warpgroups", "dweight", "tf32") else rung
            if not conv2d_choice.can(of_pass, kind, self.precision, groups, channels, outputs // groups):
                pytest.skip(f"the rule takes another rung: {rung} cannot do groups of {channels} channels")
            choices.append(conv2d_choice.candidates(of_pass, kind, tile)[0])
            if not conv2d_choice.runs_on(backend.current_gpu(), kind, choices[-1]):
                pytest.skip(f"the rule takes another choice: the GPU has not what {choices[-1]} needs")
        return choices

    def device(self):
        """Return x, weight, dy on the device: maps as they are stored, the weight in float32."""
        dtype = dtype_of(self.precision)
        return [self.cupy.asarray(a) for a in (self.x.astype(dtype), self.weight, self.dy.astype(dtype))]

    def run(self, correlate=None, dweight=None, statistics=(None, None)):
        """Return y, dx, dweight as the kernels find them; statistics: what those of y and of dx are written to."""
        x, weight, dy = self.device()
        options = dict(precision=self.precision)
        return (
            conv2d_cuda.forward(x, weight, self.geometry, choice=correlate, statistics=statistics[0], **options),
            conv2d_cuda.input_gradient(
                dy, weight, self.size, self.geometry, choice=correlate, statistics=statistics[1], **options
            ),
            conv2d_cuda.weight_gradient(x, dy, weight.shape, self.geometry, choice=dweight, **options),
        )

    def expected(self):
        """Return y, dx, dweight by the definition in float64."""
        x, weight, dy = (rounded(array, self.precision) for array in (self.x, self.weight, self.dy))
        if (self.rung, self.precision) == ("warpgroups", "tf32"):
            x, dy = cut_off(self.x), cut_off(self.dy)
        x, weight, dy = (array.astype(np.float64) for array in (x, weight, dy))
        y = definition.reference_forward(x, weight, self.geometry)
        dx = definition.reference_input_gradient(dy, weight, self.size, self.geometry)
        if self.precision == "tf32":
            x, dy = (cut_off(array).astype(np.float64) for array in (self.x, self.dy))
        return y, dx, definition.reference_weight_gradient(x, dy, self.kernel, self.geometry)

    def lost(self):
        """Return what the sums of y, dx and dweight may lose, relative to the largest of them.

        The tensor cores of a GPU do not round what they add to nearest, they cut it off: each time up to a whole step,
        2^-23, and always towards zero, so that it adds up. Their stand-in rounds, as all else does.
        """
        if self.precision == "float32" or hasattr(self.cupy, "launches"):
            return 3 * (IN_ANOTHER_ORDER,)
        taps, pixels = self.weight[0, 0].size, self.dy[..., 0].size
        depths = taps * self.weight.shape[1], taps * len(self.weight) // self.geometry.groups, pixels
        return tuple(max(IN_ANOTHER_ORDER, depth / ADDED_AT_ONCE * 2**-23) for depth in depths)

    def check(self, found):
        dtypes = dtype_of(self.precision), dtype_of(self.precision), np.float32
        for array, wanted, dtype, lost in zip(found, self.expected(), dtypes, self.lost(), strict=True):
            assert array.dtype == dtype
            step = HALF_STEP[self.precision] if dtype != np.float32 else 2**-24
            assert_close(array, wanted, 1.01 * step, lost)


def assert_close(found, wanted, rtol, lost=IN_ANOTHER_ORDER):
    """Equal up to rounding (rtol) and to what float32 sums lose, relative to the largest."""
    found = found.get().astype(np.float64)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=lost * np.abs(wanted).max(initial=0))


@pytest.mark.parametrize("rung, precision", ON)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(cupy, rung, precision, name):
    layer = Layer(cupy, precision, **CASES[name])
    layer.check(layer.run(*layer.choices(rung)))


@pytest.mark.parametrize("rung, precision", [on for on in ON if on[0] in conv2d_choice.TILES])
@pytest.mark.parametrize("tile", ["narrow", "medium", "wide", "large", "widest"])
def test_other_tiles(cupy, rung, precision, tile):
    layer = Layer(cupy, precision, (3, 3), size=(15, 11), channels=36, outputs=40, padding=1)
    layer.check(layer.run(*layer.choices(rung, tile)))


@pytest.mark.parametrize("precision", precisions.PRECISIONS)
@pytest.mark.parametrize("name", ["depth-wise", "groups", "stem", "3x3"])
def test_the_rule_finds_a_rung_for_every_layer(cupy, precision, name):
    layer = Layer(cupy, precision, **CASES[name])
    found = layer.run()
    if precision == "tf32" and layer.geometry.groups > 1:  # on a rung that does not round
        layer.precision = "float32"
    layer.check(found)


@pytest.mark.parametrize("rung, precision", ON)
def test_maps_that_begin_anywhere(cupy, monkeypatch, rung, precision):
    """Copies of 16 bytes do not: a map that lies in the middle of another array is moved before."""
    layer = Layer(cupy, precision, (3, 3), channels=16, outputs=8, padding=1)
    choices = layer.choices(rung)
    expected, device = layer.run(*choices), layer.device
    monkeypatch.setattr(layer, "device", lambda: [elsewhere(cupy, array) for array in device()])
    for found, wanted in zip(layer.run(*choices), expected, strict=True):
        assert np.array_equal(found.get(), wanted.get())


# --- what follows in the same kernel ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rung, precision", ON)
@pytest.mark.parametrize("name", ["3x3", "4x4 stride 2", "stride above kernel", "more than a tile"])
@pytest.mark.parametrize("shared", [False, True])
def test_bias_relu_and_statistics(cupy, monkeypatch, rung, precision, name, shared):
    """Of both correlations: the input gradient is the forward pass of conv_transpose2d.

    shared: the depth of a tile, among blocks that each take one step at least.
    """
    monkeypatch.setattr(conv2d_choice, "LEAST_STEPS", 1 if shared else 10**6)
    if shared and rung not in conv2d_choice.TILES:
        pytest.skip(f"{rung} has no tiles")
    layer = Layer(cupy, precision, **CASES[name] | (dict(channels=136, outputs=136) if shared else {}))
    choice, _ = layer.choices(rung)
    x, weight, dy = layer.device()
    wanted_y, wanted_dx, _ = layer.expected()
    of_y, of_dx, _ = layer.lost()
    for relu in (False, True):
        for wanted, lost, call, arguments in (
            (wanted_y, of_y, conv2d_cuda.forward, (x, weight, layer.geometry)),
            (wanted_dx, of_dx, conv2d_cuda.input_gradient, (dy, weight, layer.size, layer.geometry)),
        ):
            bias = np.linspace(-2, 2, wanted.shape[3], dtype=np.float32)
            found = {}
            if hasattr(cupy, "launches"):
                cupy.launches.clear()
            result = call(
                *arguments, precision=precision, bias=cupy.asarray(bias), relu=relu, statistics=found, choice=choice
            )
            wanted = np.maximum(wanted + bias, 0) if relu else wanted + bias
            assert_close(result, wanted, 1.01 * HALF_STEP[precision], lost)
            if hasattr(cupy, "launches"):
                assert any("finish_splits" in launch.name for launch in cupy.launches) == shared
            whole = not shared and (name != "stride above kernel" or call is conv2d_cuda.forward)
            assert bool(found) == (rung in conv2d_choice.TILES and whole)
            check_statistics(found, result)


def check_statistics(found, result):
    """Statistics, where some were found, are those of two passes over the stored result in float64."""
    stored = result.get().astype(np.float64)
    for name, array in found.items():
        expected = {"mean": stored.mean, "variance": stored.var}[name]((0, 1, 2))
        tolerance = dict(rtol=0, atol=2e-6 * np.abs(stored).max()) if name == "mean" else dict(rtol=1e-5)
        np.testing.assert_allclose(array.get(), expected, **tolerance)
        assert array.dtype == np.float32


@pytest.mark.parametrize("rung, precision", [("tiled", "float32"), ("tensor_cores", "tf32"), ("warpgroups", "tf32")])
def test_statistics_do_not_cancel(cupy, rung, precision):
    """Mean 1000, deviation about 1: E[y^2] - E[y]^2 in float32 would be wrong in the first digit."""
    layer = Layer(cupy, precision, (1, 1), size=(31, 33), channels=4, outputs=5)
    x, weight, _ = layer.device()
    bias = cupy.asarray(np.full(5, 1000, np.float32))
    choice, _ = layer.choices(rung)
    found = {}
    options = dict(precision=precision, bias=bias, statistics=found, choice=choice)
    check_statistics(found, conv2d_cuda.forward(x, weight, layer.geometry, **options))
    assert len(found) == 2


@pytest.mark.parametrize("sizes", [(1,), (4099,), (5, 0, 4100, 36)])
def test_statistics_of_many_tiles(cupy, sizes):
    """Tiles of 4 pixels, of phases that need not have equally many: a thread merges several, the last one not full."""
    rng, tile, channels = np.random.default_rng(0), 4, 11
    pixels = [100 + rng.standard_normal((size, channels)) for size in sizes]
    parts = -(-max(sizes) // tile)
    means, squares = np.full((2, len(sizes) * parts, channels), np.nan, np.float32)
    phases = np.zeros(1, conv2d_cuda.PHASES)
    phases["count"] = len(sizes)
    for number, of_phase in enumerate(pixels):
        phase = phases["of"][0, number]
        phase["batch"], phase["rows"], phase["columns"] = 1, len(of_phase), 1
        for part, begin in enumerate(range(0, len(of_phase), tile)):
            some = of_phase[begin : begin + tile]
            means[number * parts + part], squares[number * parts + part] = some.mean(0), some.var(0) * len(some)
    mean, variance = cupy.zeros(channels, np.float32), cupy.zeros(channels, np.float32)
    backend.kernel("ops/conv2d_statistics.cu", "conv2d_merge_statistics")(
        *over_parts(channels), cupy.asarray(means), cupy.asarray(squares), mean, variance, phases, parts, tile, channels
    )
    everything = np.concatenate(pixels)
    np.testing.assert_allclose(mean.get(), everything.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance.get(), everything.var(0), rtol=1e-4, atol=1e-8)


# --- weights that are kept from call to call -------------------------------------------------------------------------


@pytest.mark.parametrize("rung", conv2d_choice.RUNGS)
@pytest.mark.parametrize("op", [definition.conv2d, conv_transpose2d])
def test_a_weight_that_stays_is_arranged_once_for_each_form(cupy, op, rung, monkeypatch):
    """One dict serves maps of all sizes, all precisions, and even other strides and weights of other shapes."""
    monkeypatch.setenv("MINICENTERNET_CUDA_CONV", rung)
    rng, kernels, kept = np.random.default_rng(0), {}, {}
    weights = {side: cupy.asarray(rng.standard_normal((12, 12, side, side), np.float32)) for side in (2, 3)}
    layers = [(3, 2), (3, 1), (2, 2)]  # side, stride
    for precision in ("float32", "tf32", "fp16"):
        for size in (7, 9):
            x = cupy.asarray(rng.standard_normal((1, size, size, 12), np.float32).astype(dtype_of(precision)))
            for side, stride in layers:
                given = dict(stride=stride, precision=precision)
                expected, _ = op.raw(x, weights[side], **given)
                found, _ = op.raw(x, weights[side], **given, kernels=kernels)
                assert np.array_equal(found.get(), expected.get())
                assert kernels.keys() >= kept.keys() and all(kernels[key] is array for key, array in kept.items())
                kept = dict(kernels)
    # float32, in which what the first two rungs read does not depend on the stride; rounded to tf32; float16
    on_tensor_cores = dict.fromkeys(conv2d_choice.ON_TENSOR_CORES, 3 + 3 + 3)
    assert len(kept) == ({"naive": 2 + 2, "im2col": 2 + 3, "tiled": 3 + 3} | on_tensor_cores)[rung]


def test_kept_weights_cost_no_launch(cupy):
    if not hasattr(cupy, "launches"):
        pytest.skip("CuPy itself does not list its launches")
    x, weight, kernels, names = cupy.ones((1, 5, 5, 12), np.float32), cupy.ones((40, 12, 3, 3), np.float32), {}, []
    for _ in range(2):
        cupy.launches.clear()
        conv2d_cuda.forward(x, weight, Geometry.of(1, 1, 1, 1), kernels=kernels, precision="fp16")
        names.append([launch.name.partition("<")[0] for launch in cupy.launches])
    assert "conv2d_arrange" in names[0] and "conv2d_arrange" not in names[1]


def test_a_weight_is_arranged_as_it_is(cupy, monkeypatch):
    """In float32, whatever is multiplied: no launch converts it before."""
    layer, read, helper = Layer(cupy, "fp16", (3, 3), channels=16, outputs=16), [], conv2d_cuda._helper
    monkeypatch.setattr(
        conv2d_cuda, "_helper", lambda name: lambda *arguments: read.append(arguments[2]) or helper(name)(*arguments)
    )
    x, weight, _ = layer.device()
    conv2d_cuda.forward(x, weight, layer.geometry, precision="fp16", choice=layer.choices("tensor_cores")[0])
    assert len(read) == 1 and read[0] is weight


def test_a_plan_is_kept_and_can_only_be_read(cupy):
    """Of one convolution all launches are given the same arrays."""
    layer = Layer(cupy, "tf32", (3, 3), padding=1, stride=2)
    choices = layer.choices("tensor_cores")
    layer.check(layer.run(*choices))
    before = conv2d_cuda._plan.cache_info(), conv2d_cuda._forward_correlation.cache_info()
    layer.check(layer.run(*choices))
    after = conv2d_cuda._plan.cache_info(), conv2d_cuda._forward_correlation.cache_info()
    assert [found.hits - first.hits for first, found in zip(before, after, strict=True)] == [2, 1]
    assert [found.misses for found in after] == [first.misses for first in before]
    sizes = layer.x.shape, layer.dy.shape, layer.kernel, layer.geometry
    (launch,) = conv2d_cuda._plan(conv2d_cuda._forward_correlation, *sizes, 64).launches
    for array in (conv2d_cuda._forward_correlation(*sizes), launch.phases):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_an_image_is_converted_and_padded_once(cupy, precision):
    """By the op, for the forward pass and the weight gradient: the same bits as when each does it."""
    if not hasattr(cupy, "launches"):
        pytest.skip("CuPy itself does not list its launches")
    rng, geometry = np.random.default_rng(0), Geometry.of(2, 1, 1, 1)
    x, weight = (cupy.asarray(rng.standard_normal(shape, np.float32)) for shape in ((2, 3, 9, 11), (16, 3, 3, 3)))
    x = x.transpose(0, 2, 3, 1)  # not contiguous
    dy = cupy.asarray(rng.standard_normal((2, 5, 6, 16), np.float32).astype(dtype_of(precision)))
    stored = x.astype(dtype_of(precision))
    expected = conv2d_cuda.forward(stored, weight, geometry, precision=precision)
    expected_dweight = conv2d_cuda.weight_gradient(stored, dy, weight.shape, geometry, precision=precision)
    cupy.launches.clear()
    y, backward = definition.conv2d.raw(x, weight, stride=2, padding=1, want_dx=False, precision=precision)
    dweight = backward(dy)[1]
    (pad,) = (launch.name for launch in cupy.launches if launch.name.startswith("conv2d_pad_channels"))
    assert pad.startswith("conv2d_pad_channels<float,")  # which converts, too
    assert np.array_equal(y.get(), expected.get()) and np.array_equal(dweight.get(), expected_dweight.get())


@pytest.mark.parametrize("rung", ["naive", "im2col", "tiled"])
def test_an_image_is_padded_for_tensor_cores_alone(cupy, rung, monkeypatch):
    monkeypatch.setenv("MINICENTERNET_CUDA_CONV", rung)
    x = cupy.zeros((1, 5, 5, 3), np.float32)
    assert conv2d_cuda.prepared(x, (8, 3, 3, 3), Geometry.of(1, 1, 1, 1), "tf32") is x


@pytest.mark.parametrize("kind", ["correlate", "dweight"])
def test_an_image_is_padded_where_both_passes_want_it(cupy, kind, monkeypatch):
    chosen = conv2d_cuda.chosen
    monkeypatch.setattr(
        conv2d_cuda, "chosen", lambda of, *shape: conv2d_choice.Choice("naive") if of == kind else chosen(of, *shape)
    )
    x = cupy.zeros((1, 5, 5, 3), np.float32)
    assert conv2d_cuda.prepared(x, (8, 3, 3, 3), Geometry.of(1, 1, 1, 1), "tf32") is x


def test_groups_are_not_padded(cupy):
    """The channels of one would become the next one's."""
    x = cupy.zeros((1, 5, 5, 6), np.float32)
    assert conv2d_cuda.prepared(x, (8, 3, 3, 3), Geometry.of(1, 1, 1, 2), "tf32") is x


@pytest.mark.parametrize("rung", ["naive", "im2col", "tiled"])
def test_another_rung_may_be_asked_for_before_the_backward_pass(cupy, rung, monkeypatch):
    """Which then is given an image that was padded for tensor cores."""
    rng = np.random.default_rng(0)
    x, weight, dy = (rng.standard_normal(shape, np.float32) for shape in ((1, 5, 5, 3), (8, 3, 3, 3), (1, 5, 5, 8)))
    monkeypatch.setenv("MINICENTERNET_CUDA_CONV", "tensor_cores")
    _, backward = definition.conv2d.raw(
        cupy.asarray(x), cupy.asarray(weight), padding=1, want_dx=False, precision="tf32"
    )
    monkeypatch.setenv("MINICENTERNET_CUDA_CONV", rung)
    _, dweight, _ = backward(cupy.asarray(dy))
    wanted = definition.reference_weight_gradient(x.astype(float), dy.astype(float), (3, 3), Geometry.of(1, 1, 1, 1))
    np.testing.assert_allclose(dweight.get(), wanted, rtol=1e-5, atol=1e-5)


# --- reproducible, and without waiting -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rung, precision",
    [("im2col", "float32"), ("tiled", "float32"), ("tensor_cores", "bf16"), ("warpgroups", "bf16")],
)
@pytest.mark.parametrize("options", [dict(stride=2), dict(batch=3)])
def test_the_order_of_threads_does_not_change_a_bit(cupy, rung, precision, monkeypatch, options):
    """Nor when copies land and products are added; in the second case buffers are filled again in every pass."""
    monkeypatch.setattr(conv2d_choice, "BLOCKS", 1)
    layer = Layer(cupy, precision, **CASES["more than a tile"] | options)
    results = []
    for order in ("forward", "reverse", "random"):
        monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
        results.append([array.get().tobytes() for array in layer.run(*layer.choices(rung))])
    assert results[0] == results[1] == results[2]
    layer.check(layer.run(*layer.choices(rung)))


@pytest.mark.parametrize("rung, precision", ON)
def test_nothing_is_read_back(cupy, rung, precision):
    if not hasattr(cupy, "host_reads"):
        pytest.skip("this is CuPy itself")
    layer = Layer(cupy, precision, **CASES["3x3 stride 2"])
    choices = layer.choices(rung)
    before = cupy.uploads
    layer.run(*choices)
    assert cupy.host_reads == 0
    assert cupy.uploads == before + 3  # the test's own x, weight, dy


def test_im2col_takes_some_images_at_a_time(cupy, monkeypatch):
    layer = Layer(cupy, "float32", **CASES["3x3"] | dict(batch=5))
    image = layer.x[0].nbytes * 9
    monkeypatch.setattr(conv2d_cuda, "COLUMN_BYTES", 2 * image)
    layer.check(layer.run(*layer.choices("im2col")))
    if hasattr(cupy, "launches"):
        assert sum(launch.name == "conv2d_columns" for launch in cupy.launches) == 2 * 3  # forward and weight gradient


@pytest.mark.parametrize("rung, precision", [("tiled", "float32"), ("tensor_cores", "tf32"), ("warpgroups", "bf16")])
@pytest.mark.parametrize("blocks", [1, 7, 10**6])
def test_a_weight_gradient_in_any_number_of_splits(cupy, rung, precision, blocks, monkeypatch):
    monkeypatch.setattr(conv2d_choice, "BLOCKS", blocks)
    layer = Layer(cupy, precision, **CASES["more than a tile"])
    layer.check(layer.run(*layer.choices(rung)))


# --- faults are found, and without them the sanitizers find none -----------------------------------------------------

FAULTS = {  # name: (rung, text of its kernels, what is planted in its place)
    "a wait too late": (
        "tensor_cores",
        "cp_async_wait<STAGES - 2>();  // this",
        "cp_async_wait<STAGES - 1>();  // this",
    ),
    "a missing barrier": ("tiled", "__syncthreads();  // the tiles are filled", ""),
    "a column too few": ("tensor_cores", "number < depth &&", "number < depth - CHUNK &&"),
    "a row too many": ("tiled", "< (unsigned)g.height", "<= (unsigned)g.height"),
    "cut off instead of rounded": ("tensor_cores", "to_operand<T>(a[now][i]);  // the taps", ";  // the taps"),
    "copies waited for too late": (
        "warpgroups",
        "cp_async_wait<STAGES - 3>();  // this",
        "cp_async_wait<STAGES - 2>();  // this",
    ),
    "sums read too early": ("warpgroups", "warpgroup_finish(sum);\n  __sync", "__sync"),
    "chunks not swizzled": (
        "warpgroups",
        "swizzled(copies.r, threadIdx.x % CHUNKS) * 4;  // of its",
        "copies.r % 8 * 4;  // of its",
    ),
    "tiles that begin at no multiple of 1024 bytes, by which chunks are swizzled": (
        "warpgroups",
        "__align__(1024)",
        "__align__(128)",
    ),
    "the next slice's place": ("warpgroups", "ROW_WORDS + k, tile_w + k)", "ROW_WORDS + k, tile_w)"),
}
REFUSED_FAULTS = {  # name: (rung, text, what is planted, the simulator's message)
    "no fence after the copies": (
        "warpgroups",
        "fence_copies();               // tensor",
        ";  // tensor",
        r"tensor cores read what \d+ threads have copied without a fence",
    ),
    "copies of 16 bytes to memory aligned to 4": (
        "tensor_cores",
        "__shared__ __align__(16) uint32_t",
        "__shared__ uint32_t",
        "cp.async needs 16-byte alignment",
    ),
}
FAULTS_FOR_SANITIZERS = {  # name: (rung, text, what is planted, sanitizer, its report)
    "a pixel too many": ("tiled", "if (m >= g.pixels())", "if (m > g.pixels())", "address", "overflow"),
    "a missing barrier": (
        "tensor_cores",
        "__syncthreads();              // everybody's",
        ";  //",
        "thread",
        "data race",
    ),
    "products waited for too late": (
        "warpgroups",
        "warpgroup_wait<1>();      // the last",
        "warpgroup_wait<2>();  // the last",
        "thread",
        "data race",
    ),
    "scratch before others have read the results": (
        "warpgroups",
        "__syncthreads();\n    write_statistics",
        "write_statistics",
        "thread",
        "data race",
    ),
    "scratch too early": (
        "tensor_cores",
        "__syncthreads();  // nobody reads the tiles",
        ";  //",
        "thread",
        "data race",
    ),
}


@pytest.fixture
def plant(monkeypatch):
    """A function that replaces text of a rung's kernels, of which it compiles one correlation alone."""

    def plant(rung, text, fault):
        file, sound = f"ops/conv2d_{rung}.cu", backend.cuda_source
        assert text in sound(file)
        monkeypatch.setattr(backend, "cuda_source", lambda file: sound(file).replace(text, fault))
        monkeypatch.setitem(INSTANTIATIONS, file, [name for name in INSTANTIATIONS[file] if name in SMALLEST])
        backend._kernel.cache_clear()

    yield plant
    backend._kernel.cache_clear()


SMALLEST = (
    "conv2d_tiled_correlate<64, 64, 16, 4, 4>",
    "conv2d_tensor_cores_correlate<float, 64, 64, 32, 32, 32, 4>",
    "conv2d_warpgroups_correlate<float, 128, 64, 32, 4>",
)


def correlate(cupy, rung):
    """A forward pass by one block."""
    precision = "tf32" if rung in conv2d_choice.ON_TENSOR_CORES else "float32"
    layer = Layer(cupy, precision, (3, 3), (9, 7), 1, channels=32, padding=1)
    x, weight, _ = layer.device()
    found = {}
    options = dict(precision=layer.precision, statistics=found, choice=layer.choices(rung)[0])
    with patch.object(conv2d_choice, "LEAST_STEPS", 10**6):
        y = conv2d_cuda.forward(x, weight, layer.geometry, **options)
    wanted, *_ = layer.expected()
    assert_close(y, wanted, 1e-6)
    check_statistics(found, y)
    assert len(found) == 2


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(cupy, plant, name):
    if not hasattr(cupy, "launches"):
        pytest.skip("faults are for the simulator")
    rung, text, fault = FAULTS[name]
    correlate(cupy, rung)
    plant(rung, text, fault)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        correlate(cupy, rung)


def test_a_ring_that_is_too_small_is_found(cupy, plant, monkeypatch):
    """Where copies land at once, which they do in reverse order: as late as they may, nothing is to be seen."""
    if not hasattr(cupy, "launches"):
        pytest.skip("faults are for the simulator")
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", "reverse")
    correlate(cupy, "tensor_cores")
    plant("tensor_cores", "step % STAGES *", "step % (STAGES - 1) *")
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        correlate(cupy, "tensor_cores")
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", "forward")
    correlate(cupy, "tensor_cores")


@pytest.mark.parametrize("name", REFUSED_FAULTS)
def test_what_the_simulator_refuses_is_found(cupy, plant, name):
    if not hasattr(cupy, "launches"):
        pytest.skip("faults are for the simulator")
    rung, text, fault, message = REFUSED_FAULTS[name]
    plant(rung, text, fault)
    with pytest.raises(RuntimeError, match=message):
        correlate(cupy, rung)


@pytest.mark.parametrize("rung, precision", [on for on in ON if on[0] in conv2d_choice.TILES])
def test_small_grids(cupy, rung, precision, monkeypatch, plant):
    """What the sanitizers run, with a fault where CONV2D_FAULT names one."""
    if "CONV2D_FAULT" in os.environ:
        fault = FAULTS_FOR_SANITIZERS[os.environ["CONV2D_FAULT"]]
        plant(*fault[:3])
        return correlate(cupy, fault[0])
    monkeypatch.setattr(conv2d_choice, "BLOCKS", 2)
    layer = Layer(cupy, precision, (2, 3), size=(9, 7), batch=2, channels=16, stride=(1, 2), padding=1)
    statistics = {}, {}  # merged of several blocks and, of dx, of two phases
    found = layer.run(*layer.choices(rung), statistics)
    layer.check(found)
    for of_one, result in zip(statistics, found[:2], strict=True):
        check_statistics(of_one, result)
        assert len(of_one) == 2


def sanitized(sanitizer, tests, **environment):
    """Run tests of this file under a sanitizer; return what the process wrote, and whether all was well."""
    library = "libtsan.so" if sanitizer == "thread" else "libasan.so"
    try:
        found = subprocess.run(["g++", f"-print-file-name={library}"], capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        pytest.skip("g++ is not installed")
    if not Path(found).is_absolute():
        pytest.skip(f"g++ has no {library}")
    environment |= {"LD_PRELOAD": found, "CUDA_ON_CPU_SANITIZER": sanitizer, "MINICENTERNET_DEVICE": "cpu"}
    environment |= {"CONV2D_SMALL_TILES": "1", "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", __file__, "-k", tests]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    return done.stdout + done.stderr, done.returncode == 0


def test_the_address_sanitizer_finds_nothing():
    output, well = sanitized("address,undefined", "small_grids or definition and (stem or one or nothing)")
    assert well and " passed" in output, output


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_the_thread_sanitizer_finds_nothing(order):
    output, well = sanitized("thread", "test_small_grids", CUDA_ON_CPU_ORDER=order)
    assert well and " passed" in output, output


@pytest.mark.parametrize("name", FAULTS_FOR_SANITIZERS)
def test_the_sanitizers_find_a_planted_fault(name):
    *_, sanitizer, report = FAULTS_FOR_SANITIZERS[name]
    options = {"CONV2D_FAULT": name, "CUDA_ON_CPU_ORDER": "random"}  # in which some copies land at once, others late
    output, well = sanitized(sanitizer, "test_small_grids and tf32", **options)
    assert not well and report in output, output


# --- tiles -----------------------------------------------------------------------------------------------------------


def test_every_tile_fits_shared_memory(cupy):
    for precision in ("float32", "tf32", "fp16"):
        rung = "tiled" if precision == "float32" else "tensor_cores"
        for kind, tiles in conv2d_choice.TILES[rung].items():
            for tile in (tile for some in tiles.values() for tile in some):
                x = cupy.zeros(1, dtype_of(precision))
                _, threads, shared = conv2d_cuda._tile_kernel(kind, x, conv2d_choice.Choice(rung, tile))
                blocks = max(1, 8 // (threads // 32))  # so that 8 warps share one of an H200's processors, 227 KB
                assert 64 <= threads <= 256 and blocks * shared <= 227 << 10
    for kind, tiles in conv2d_choice.TILES["warpgroups"].items():
        for tile in (tile for some in tiles.values() for tile in some):
            choice = conv2d_choice.Choice("warpgroups", tile)
            _, threads, shared = conv2d_cuda._tile_kernel(kind, cupy.zeros(1, np.float16), choice)
            assert threads == 256 and shared <= 227 << 10


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_a_gpu_with_less_shared_memory_takes_smaller_tiles(cupy, another_gpu, monkeypatch, precision):
    monkeypatch.setattr(conv2d_choice, "BLOCKS", 2)  # all but narrow shapes are large ones
    layer = Layer(cupy, precision, (1, 1), size=(9, 15), channels=72, outputs=80)
    taken = []
    for shared_memory in (227 << 10, RTX):
        another_gpu("86", shared_memory)
        cupy.launches.clear()
        layer.check(layer.run())
        taken.append(max(launch.shared for launch in cupy.launches))
    assert RTX < taken[0] and taken[1] < RTX


@pytest.mark.parametrize("rung, precision", ON)
@pytest.mark.parametrize("shared", [False, True])
def test_relu_lets_nan_through(cupy, monkeypatch, rung, precision, shared):
    """As the CPU's and PyTorch's: a NaN that became 0 would let a broken network go on in silence.

    shared: as in test_bias_relu_and_statistics.
    """
    if shared and rung not in conv2d_choice.TILES:
        pytest.skip(f"{rung} has no tiles")
    monkeypatch.setattr(conv2d_choice, "LEAST_STEPS", 1 if shared else 10**6)
    channels = 136 if shared else 8
    x, weight = (cupy.ones(shape, dtype_of(precision)) for shape in ((1, 4, 4, channels), (channels, channels, 1, 1)))
    x[0, 1, 2, 0] = np.nan
    choice = conv2d_choice.candidates(rung, "correlate", "small")[0]
    y = conv2d_cuda.forward(x, weight, Geometry.of(1, 0, 1, 1), precision=precision, relu=True, choice=choice).get()
    assert np.isnan(y[0, 1, 2]).all() and np.count_nonzero(np.isnan(y)) == channels
    dx = conv2d_cuda.input_gradient(
        x, weight, (4, 4), Geometry.of(1, 0, 1, 1), precision=precision, relu=True, choice=choice
    ).get()
    assert np.isnan(dx[0, 1, 2]).all() and np.count_nonzero(np.isnan(dx)) == channels
