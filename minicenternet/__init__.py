"""minicenternet: CenterNet ("Objects as Points", Zhou et al. 2019) from scratch in NumPy and CuPy.

Data walks one way:

    image -> data -> points/targets -> network (backbones, nn, ops)
          -> points/losses -> optim -> points/decode -> metrics

The floors; a file imports only from floors below its own:

    F0  backend, staging, threads, files    numpy or cupy, batches on their way, worker threads, whole files
    F1  autograd                            Tensor, @differentiable, no_grad
    F2  ops/                                one op per file: formula, forward, backward
    F3  nn/, optim                          modules, layers, initial values, weight files; optimisers
    F4  points/                             the paper: targets, losses, decode
    F5  backbones/ tasks/ data/ metrics/    networks, what they are for, images and boxes, average precision
    F6  model, train, evaluate, predict...  CenterNet and what is done with it
    F7  cli                                 the command line
"""

__version__ = "0.1.0"

from . import ops  # gives Tensors their operators


def __getattr__(name: str):
    """CenterNet and Detections are imported when they are first asked for: `import minicenternet` stays quick."""
    if name == "CenterNet":
        from .model import CenterNet

        return CenterNet
    if name == "Detections":
        from .predict import Detections

        return Detections
    raise AttributeError(f"module 'minicenternet' has no attribute {name!r}")


__all__ = ["CenterNet", "Detections", "__version__", "ops"]
