"""Is what is measured on a GPU right?

Every kernel family against NumPy, a training step also against PyTorch; what a CUDA graph does, against the same
without, to the last bit.
"""

from __future__ import annotations

import copy
import importlib
import traceback
from collections.abc import Callable, Iterator, Sequence

import inputs
import kernels
import numpy as np
import side_cuda
from on_gpu import nothing_read

from minicenternet import CenterNet
from minicenternet.autograd import Tensor
from minicenternet.backend import current_gpu, to_cpu, to_gpu
from minicenternet.ops import conv2d_choice, conv2d_cuda, deform_conv2d_cuda, precisions
from minicenternet.ops.geometry import Geometry
from minicenternet.optim import Adam

conv2d = importlib.import_module("minicenternet.ops.conv2d")  # the package's name conv2d is the op
deform_conv2d = importlib.import_module("minicenternet.ops.deform_conv2d")

CONVOLUTIONS = [  # kernel, size of the map, channels, outputs, options
    ((1, 1), (9, 7), 20, 67, {}),
    ((3, 3), (13, 11), 20, 67, dict(padding=1)),
    ((7, 7), (33, 18), 3, 64, dict(stride=2, padding=3)),
    ((4, 4), (10, 12), 64, 20, dict(stride=2, padding=1)),
    ((3, 3), (9, 7), 16, 32, dict(padding=2, dilation=2, groups=2)),
]
TOLERANCES = {"float32": 1e-5, "tf32": 3e-3, "fp16": 5e-3, "bf16": 4e-2}  # of the largest number
LOSS, GRADIENT = 1e-4, 1e-3  # relative, of a float32 step: sums in another order, a ReLU here and there
AS_PYTORCH = 2  # how many times PyTorch's own rounding errors a step in fewer bits may make
LAST_BIT = {"tf32": 2**-10, "fp16": 2**-10, "bf16": 2**-7}  # which a loss may be off, PyTorch's happening to be exact


def convolution(cupy, precision: str) -> None:
    """Raise AssertionError unless all rungs and tiles do the three passes as the definition does in float64."""
    dtype = precisions.storage(precision)
    for kernel_size, size, channels, outputs, options in CONVOLUTIONS:
        geometry = Geometry.of(*({"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options).values())
        rng, groups = np.random.default_rng(0), geometry.groups
        shapes = (2, *size, channels), (outputs, channels // groups, *kernel_size)
        shapes = *shapes, (2, *geometry.output_size(*size, kernel_size), outputs)
        arrays = [rng.standard_normal(shape, np.float32).astype(dtype) for shape in shapes]
        x, weight, dy = (array.astype(np.float64) for array in arrays)
        expected = {
            "correlate": (
                conv2d.reference_forward(x, weight, geometry),
                conv2d.reference_input_gradient(dy, weight, size, geometry),
            ),
            "dweight": (conv2d.reference_weight_gradient(x, dy, kernel_size, geometry),),
        }
        x, weight, dy = map(cupy.asarray, arrays)
        for kind, wanted in expected.items():
            for choice in choices(kind, precision, groups, channels // groups, outputs // groups):
                given, what = dict(precision=precision, choice=choice), f"{choice.rung} {kind} {choice.tile}"
                if kind == "dweight":
                    found = [conv2d_cuda.weight_gradient(x, dy, weight.shape, geometry, **given)]
                else:
                    found = [
                        conv2d_cuda.forward(x, weight, geometry, **given),
                        conv2d_cuda.input_gradient(dy, weight, size, geometry, **given),
                    ]
                for ours, theirs in zip(found, wanted, strict=True):
                    _assert_near(ours, theirs, precision, f"{what}, {kernel_size}, {options}")


def choices(kind: str, *shape) -> Iterator[conv2d_choice.Choice]:
    """Yield all that can do a pass here; shape: what else `conv2d_choice.can` asks for."""
    for rung in conv2d_choice.RUNGS:
        if conv2d_choice.can(rung, kind, *shape):
            for choice in conv2d_choice.candidates(rung, kind, "small"):
                if conv2d_choice.runs_on(current_gpu(), kind, choice):
                    yield choice


def deformable(cupy, precision: str) -> None:
    """Raise AssertionError unless the deformable convolution and its gradients are the definition's."""
    dtype, geometry, rng = precisions.storage(precision), Geometry.of(1, 1, 1, 1), np.random.default_rng(0)
    offset = rng.integers(-2, 3, (2, 7, 6, 18)) + rng.integers(1, 8, (2, 7, 6, 18)) / 8
    others = [rng.standard_normal(shape) for shape in ((2, 7, 6, 5), (4, 5, 3, 3), (2, 7, 6, 4))]
    x, weight, dy, offset, mask = (
        array.astype(dtype) for array in (*others, offset, rng.uniform(0.1, 1, (2, 7, 6, 9)))
    )
    given = [x, offset, mask, weight]
    exact = [array.astype(np.float64) for array in given]
    expected = [deform_conv2d.reference_forward(*exact, geometry)]
    expected += deform_conv2d.reference_gradients(*exact, dy.astype(np.float64), geometry)
    on_gpu = [cupy.asarray(array) for array in given]
    found = [deform_conv2d_cuda.forward(*on_gpu, geometry, precision=precision)]
    found += deform_conv2d_cuda.gradients(*on_gpu, cupy.asarray(dy), geometry, precision=precision)
    for ours, theirs in zip(found, expected, strict=True):
        _assert_near(ours, theirs, precision, "deformable convolution")


def _assert_near(found, expected: np.ndarray, precision: str, what: str) -> None:
    error = np.abs(found.get().astype(np.float64) - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCES[precision], f"{what}: off by {error:.1e}, allowed {TOLERANCES[precision]:.1e}"


def families() -> list[tuple[str, Callable, str]]:
    """Return (name, check, its dtype or precision) of all kernel families; bfloat16 where ml_dtypes is installed."""
    precisions = side_cuda.available()
    dtypes = [name for name in kernels.DTYPES if name != "bfloat16" or "bf16" in precisions]
    found = [
        (f"{check.__name__.replace('_', ' ')}, {dtype}", check, dtype)
        for check, made_for in kernels.EXERCISES.items()
        for dtype in made_for
        if dtype in dtypes
    ]
    found += [(f"convolution, {name}", convolution, name) for name in precisions]
    return [*found, *((f"deformable convolution, {name}", deformable, name) for name in precisions)]


def check_families(cupy) -> dict[str, str]:
    """Return, for each kernel family, "equal" or what is wrong with it."""
    found = {}
    for name, check, dtype in families():
        try:
            check(cupy, dtype)
            found[name] = "equal"
        except Exception as error:  # what a kernel can do wrong has no end, and the others are to be checked
            found[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return found


# --- a training step -------------------------------------------------------------------------------------------------


def our_gradients(model: CenterNet, images, targets: dict, precision: str | None) -> dict[str, np.ndarray]:
    """Return the loss, "loss", and all gradients of one step on the GPU; on the CPU where precision is None."""
    model = copy.deepcopy(model)

    def step() -> dict[str, np.ndarray]:
        total, _ = model.task.loss(
            model(Tensor(given(images))), {name: given(array) for name, array in targets.items()}
        )
        total.backward()
        found = {name: to_cpu(parameter.grad) for name, parameter in model.named_parameters()}
        return {"loss": total.numpy(), **found}

    if precision is None:
        given = np.asarray
        return step()
    given = to_gpu
    model.to("cuda").set_precision(precision)
    return step()


def errors(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> tuple[float, float]:
    """Return the relative error of the loss and, all taken together, of the gradients."""
    off, size = 0.0, 0.0
    for name, gradient in expected.items():
        if name != "loss":
            off += float(np.square(found[name] - gradient, dtype=np.float64).sum())
            size += float(np.square(gradient, dtype=np.float64).sum())
    return abs(float(found["loss"]) / float(expected["loss"]) - 1), (off / size) ** 0.5


def _row(name: str, actual: tuple[float, float], allowed: tuple[float, float]) -> dict:
    right = all(a <= b for a, b in zip(actual, allowed, strict=True))  # false for NaN, too
    return {"name": name, "errors": actual, "allowed": allowed, "right": right}


def check_step(
    backbone: str, size: int, batch: int, precisions: Sequence[str], theirs: Callable | None
) -> Iterator[dict]:
    """Compare the loss and gradients of one step with NumPy's in float32, and with PyTorch's; yield row by row.

    theirs: side_pytorch_cuda.gradients.  In fewer bits, PyTorch's float32 is the truth, from which ours may be
    AS_PYTORCH times as far as what PyTorch makes of the same bits.
    """
    model = CenterNet(backbone, class_names=["a", "b", "c"], input_size=(size, size))
    images, targets = inputs.images(batch, size), inputs.targets(batch, size, 3)

    numpy_step = our_gradients(model, images, targets, None)
    yield _row(
        "float32 and NumPy", errors(our_gradients(model, images, targets, "float32"), numpy_step), (LOSS, GRADIENT)
    )
    if theirs is not None:
        truth = theirs(model, images, targets, "float32")
        for precision in precisions:
            allowed = LOSS, GRADIENT
            if precision != "float32":
                rounding = errors(theirs(model, images, targets, precision), truth)
                allowed = max(LAST_BIT[precision], AS_PYTORCH * rounding[0]), max(GRADIENT, AS_PYTORCH * rounding[1])
            ours = our_gradients(model, images, targets, precision)
            yield _row(f"{precision} and PyTorch", errors(ours, truth), allowed)


def check_reads(cupy, backbone: str, size: int, batch: int, precisions: Sequence[str]) -> dict[str, str]:
    """Return, for each precision, "nothing" or what CuPy says of a training step that reads a number on the host."""
    found = {}
    for precision in precisions:
        step = side_cuda.train(backbone, size, batch, 3, precision)
        step()  # compiles it
        try:
            with nothing_read(cupy):
                step()
            found[precision] = "nothing"
        except (AssertionError, RuntimeError) as error:
            traceback.print_exc()  # names the place
            found[precision] = f"{type(error).__name__}: {error}"
    return found


# --- graphs ----------------------------------------------------------------------------------------------------------


def check_graphs(backbone: str, size: int, batch: int, precisions: Sequence[str]) -> Iterator[dict]:
    """Compare training steps and detections as a CUDA graph with those without, bit by bit; yield as check_step does.

    Three steps: one runs, one is captured, one is but launched.
    """
    model = CenterNet(backbone, class_names=["a", "b", "c"], input_size=(size, size))
    given = {"image": inputs.images(batch, size), **inputs.targets(batch, size, 3)}

    def trained(precision: str, graph: bool) -> dict[str, np.ndarray]:
        ours = copy.deepcopy(model).to("cuda").set_precision(precision)
        arrays = {name: to_gpu(array) for name, array in given.items()}
        step = side_cuda.steps(ours, Adam(ours.named_parameters(), 1e-3), arrays, graph)
        losses = [to_cpu(step()).copy() for _ in range(3)]
        return {"loss": losses[-1]} | {name: to_cpu(array) for name, array in ours.state_dict().items()}

    def detected(precision: str, graph: bool) -> dict[str, np.ndarray]:
        folded = model.fold().to("cuda").set_precision(precision)
        run = side_cuda.detections(folded, to_gpu(given["image"][:1]), graph)
        for _ in range(3):
            boxes, scores, labels = run()
        return {
            "loss": to_cpu(scores).sum(),
            "boxes": to_cpu(boxes),
            "scores": to_cpu(scores),
            "labels": to_cpu(labels),
        }

    for precision in precisions:
        for name, done in (("training", trained), ("one image", detected)):
            actual = errors(done(precision, True), done(precision, False))
            yield _row(f"{precision}, {name}: graph and without", actual, (0.0, 0.0))
