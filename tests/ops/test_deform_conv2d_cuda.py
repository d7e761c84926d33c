"""The deformable convolution's kernels against the definition in float64, on the CPU or (see the fixture) on a GPU."""

import importlib

import numpy as np
import pytest

from minicenternet.ops import conv2d_cuda, deform_conv2d, deform_conv2d_cuda

definition = importlib.import_module("minicenternet.ops.deform_conv2d")  # the package's name deform_conv2d is the op
Geometry = definition.Geometry

CASES = {
    "3x3": dict(padding=1),
    "1x1": dict(kernel=(1, 1), size=(31, 3)),
    "stride 2": dict(stride=2, padding=1, channels=33),
    "dilated": dict(padding=2, dilation=2),
    "unequal axes": dict(kernel=(3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
    "one pixel": dict(padding=1, size=(1, 1), batch=1),
    "mostly outside": dict(padding=1, reach=9),
    "many points in few pixels": dict(padding=1, size=(9, 9), reach=0, kernel=(5, 5)),
}
PRECISIONS = {"float32": 1e-5, "tf32": 3e-3, "fp16": 5e-3, "bf16": 4e-2}


def make(precision, kernel=(3, 3), size=(7, 6), batch=2, channels=5, outputs=4, reach=2, **options):
    """Return x, offset, mask, weight, dy, rounded as they are stored, and the geometry."""
    rng = np.random.default_rng(0)
    geometry = Geometry.of(options.get("stride", 1), options.get("padding", 0), options.get("dilation", 1), 1)
    shape, taps = (batch, *geometry.output_size(*size, kernel)), kernel[0] * kernel[1]
    offset = rng.integers(-reach, reach + 1, (*shape, 2 * taps)) + rng.integers(1, 8, (*shape, 2 * taps)) / 8
    mask = rng.uniform(0.1, 1, (*shape, taps))
    x, weight = rng.standard_normal((batch, *size, channels)), rng.standard_normal((outputs, channels, *kernel))
    arrays = x, offset, mask, weight, rng.standard_normal((*shape, outputs))
    return [array.astype(dtype_of(precision)) for array in arrays], geometry


def dtype_of(precision):
    if precision == "bf16":
        return pytest.importorskip("ml_dtypes").bfloat16
    return np.float16 if precision == "fp16" else np.float32


def check(cupy, arrays, geometry, precision):
    x, offset, mask, weight, dy = (cupy.asarray(array) for array in arrays)
    y = deform_conv2d_cuda.forward(x, offset, mask, weight, geometry, precision=precision)
    found = deform_conv2d_cuda.gradients(x, offset, mask, weight, dy, geometry, precision=precision)
    x, offset, mask, weight, dy = (array.astype(np.float64) for array in arrays)
    wanted = [definition.reference_forward(x, offset, mask, weight, geometry)]
    wanted += definition.reference_gradients(x, offset, mask, weight, dy, geometry)
    for ours, theirs in zip([y, *found], wanted, strict=True):
        ours = ours.get()
        assert ours.dtype == dtype_of(precision) and ours.shape == theirs.shape
        atol = PRECISIONS[precision] * np.abs(theirs).max(initial=0)
        np.testing.assert_allclose(ours.astype(np.float64), theirs, rtol=0, atol=atol)
    return [y, *found]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(cupy, name, precision):
    check(cupy, *make(precision, **CASES[name]), precision)


@pytest.mark.parametrize("images", [1, 2])
def test_some_images_at_a_time(cupy, images, monkeypatch):
    arrays, geometry = make("float32", batch=5, padding=1)
    monkeypatch.setattr(deform_conv2d_cuda, "COLUMN_BYTES", images * arrays[2][0].size * arrays[0].shape[3] * 4)
    check(cupy, arrays, geometry, "float32")
    if hasattr(cupy, "launches"):
        count = sum(launch.name == "deform_conv2d_columns<float>" for launch in cupy.launches)
        assert count == 2 * -(-5 // images)


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_the_gradient_of_the_columns_is_copied_only_where_x_has_another_dtype(cupy, precision, monkeypatch):
    """x is float32; the columns are the largest arrays of all."""
    made, read = [], []
    product, gather = conv2d_cuda.input_gradient, deform_conv2d_cuda._gather
    monkeypatch.setattr(conv2d_cuda, "input_gradient", lambda *a, **b: made.append(product(*a, **b)) or made[0])
    monkeypatch.setattr(deform_conv2d_cuda, "_gather", lambda *a: read.append(a[2]) or gather(*a))
    arrays, geometry = make("float32", padding=1)
    deform_conv2d_cuda.gradients(*map(cupy.asarray, arrays), geometry, precision=precision)
    assert read[0].dtype == np.float32
    assert (read[0].data.ptr == made[0].data.ptr) == (precision == "float32")
    np.testing.assert_array_equal(read[0].get(), made[0].get().astype(np.float32))


def test_the_order_of_threads_does_not_change_a_bit(cupy, monkeypatch):
    results = []
    for order in ("forward", "reverse", "random"):
        monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
        found = check(cupy, *make("float32", **CASES["many points in few pixels"]), "float32")
        results.append([array.get().tobytes() for array in found])
    assert results[0] == results[1] == results[2]


def test_the_op_runs_on_the_gpu(cupy):
    arrays, geometry = make("float32", padding=1)
    device = [cupy.asarray(array) for array in arrays]
    bias = np.arange(4, dtype=np.float32)
    before = getattr(cupy, "uploads", 0)
    y, backward = deform_conv2d.raw(*device[:4], cupy.asarray(bias), padding=1)
    gradients = backward(device[4])
    if hasattr(cupy, "host_reads"):
        assert cupy.host_reads == 0 and cupy.uploads == before + 1  # the bias
    wanted, backward = deform_conv2d.raw(*arrays[:4], bias, padding=1)
    for ours, theirs in zip([y, *gradients], [wanted, *backward(arrays[4])], strict=True):
        np.testing.assert_allclose(ours.get(), theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("far", [0.5, 1, 100, 1e30, np.inf])
def test_a_point_a_pixel_outside_sees_nothing(cupy, far):
    x = np.array([[1.0, 2], [4, 8]], np.float32).reshape(1, 2, 2, 1)
    weight, geometry = np.full((1, 1, 1, 1), 10, np.float32), Geometry.of(1, 0, 1, 1)
    for position in [(-far, 0), (0, -far), (1 + far, 1), (1, 1 + far)]:
        offset, mask = np.zeros((1, 2, 2, 2), np.float32), np.ones((1, 2, 2, 1), np.float32)
        offset[0, 0, 0] = position
        check(cupy, (x, offset, mask, weight, np.ones((1, 2, 2, 1), np.float32)), geometry, "float32")


def test_a_nan_stays_in_its_own_pixel(cupy):
    (x, offset, mask, weight, _), geometry = make("float32", padding=1)
    offset[1, 2, 3, 4] = np.nan
    y = deform_conv2d_cuda.forward(*(cupy.asarray(a) for a in (x, offset, mask, weight)), geometry).get()
    assert np.isnan(y[1, 2, 3]).all() and np.isnan(y).sum() == y.shape[3]


def test_empty_batch(cupy):
    check(cupy, *make("float32", padding=1, batch=0), "float32")
