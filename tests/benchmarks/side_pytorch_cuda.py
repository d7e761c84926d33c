"""PyTorch's side of the benchmark on a GPU: eager, channels_last, its algorithms chosen by measurement.

float32 multiplies as it is; tf32 rounds what convolutions and products multiply; bf16 trains under autocast and infers
with weights of that type.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import inputs
import numpy as np
import released
import side_pytorch
import torch
from torch_twin import detection_loss, to_torch, twin_of

device = "cuda"  # the tests set "cpu"


def begin() -> dict[str, str]:
    """Set the layout of all maps; return the versions."""
    side_pytorch.layout = torch.channels_last
    torch.backends.cudnn.benchmark = True
    return {
        "torch": torch.__version__,
        "torch_cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def within(precision: str, run: Callable[[], object]) -> Callable[[], object]:
    """Return a function that runs in a precision."""
    mixed = partial(torch.autocast, device, torch.bfloat16) if precision == "bf16" else nullcontext

    def run_within() -> object:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
        side_pytorch.forward_in = mixed
        return run()

    return run_within


def train(backbone: str, size: int, batch: int, classes: int, precision: str) -> Callable[[], None]:
    """A training step with the fused Adam."""
    with torch.device(device):
        return within(precision, side_pytorch.train(backbone, size, batch, classes))


def infer(backbone: str, size: int, batch: int, classes: int, precision: str) -> Callable[[], None]:
    """From images on the GPU to the best 100 boxes, with the batch norms folded."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.device(device):
        network = side_pytorch.fold(side_pytorch._network(backbone, classes).eval())
        images = to_torch(inputs.images(batch, size))
    network.to(dtype=dtype, memory_format=torch.channels_last)
    images = images.to(dtype=dtype, memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode():
            maps = network(images)
            released.decode(maps["hm"], maps["reg"], maps["wh"])

    return within(precision, run)


# Graphs of ours are compared with the same as ever.
JOBS = {"train": train, "infer": infer, "train graph": train, "infer graph": infer}


def gradients(model, images: np.ndarray, targets: dict[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    """Return the loss, "loss", and all gradients of one step of a network's twin."""

    def step() -> dict[str, np.ndarray]:
        twin = twin_of(model).to(device, memory_format=torch.channels_last)
        with torch.device(device):
            with side_pytorch.forward_in():
                maps = twin(to_torch(images))
            total = detection_loss({name: logits.float() for name, logits in maps.items()}, targets)["loss"]
            total.backward()
        found = {name: parameter.grad.cpu().numpy() for name, parameter in twin.named_parameters()}
        return {"loss": total.detach().cpu().numpy(), **found}

    return within(precision, step)()


def convolution(
    x_shape: tuple[int, ...], weight_shape: tuple[int, ...], geometry, precision: str, launches: Callable
) -> Iterator[float]:
    """Yield the seconds of all kernels of a forward pass, an input gradient and a weight gradient.

    launches(run): what the GPU did in a run, see gpu_profile.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    stride, padding, dilation, groups = geometry
    size = geometry.output_size(*x_shape[1:3], weight_shape[2:])

    def numbers(batch: int, height: int, width: int, channels: int) -> torch.Tensor:
        shape = batch, channels, height, width
        return torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)

    x, dy = numbers(*x_shape), numbers(x_shape[0], *size, weight_shape[0])
    weight = torch.randn(weight_shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    given = (None, stride, padding, dilation)

    def gradient(*wanted: bool) -> None:
        torch.ops.aten.convolution_backward(dy, x, weight, *given, False, (0, 0), groups, wanted)

    for run in (
        partial(torch.nn.functional.conv2d, x, weight, *given, groups),
        partial(gradient, True, False, False),
        partial(gradient, False, True, False),
    ):
        for _ in range(2):
            within(precision, run)()  # cuDNN makes its choice
        yield sum(launch.seconds for launch in launches(within(precision, run)))


def free() -> None:
    """Give back the memory of tensors that nobody holds any more."""
    gc.collect()
    torch.cuda.empty_cache()


def peak(run: Callable[[], object]) -> dict[str, int]:
    """Return the bytes in use at the peak of a run, and the most that the allocator then held."""
    free()
    torch.cuda.reset_peak_memory_stats()
    run()
    return {"in use": torch.cuda.max_memory_allocated(), "held": torch.cuda.max_memory_reserved()}
