"""Weight files, none of which can execute code: safetensors (arrays and text metadata), npz and pth (arrays)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from ..backend import Array, to_cpu
from ..errors import InputError
from ..files import replacing
from .pth import load_pth


def save_weights(
    path: str | os.PathLike, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays, and text metadata, to a .safetensors file (or, without metadata, .npz), whole or not at all.

    Raises InputError for another suffix, for metadata with .npz, and when the file cannot be written.
    """
    path = Path(path)
    arrays = {key: np.asarray(to_cpu(array), order="C") for key, array in arrays.items()}
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            temporary.write_bytes(save(arrays, dict(metadata or {})))
        elif path.suffix == ".npz" and not metadata:
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)
        else:
            raise InputError(f"cannot save weights as {path.name}: expected .safetensors, or .npz without metadata")


def load_weights(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return (arrays, metadata) of a .safetensors, .npz, .pth or .pt file; only .safetensors has metadata.

    Raises InputError when the file is missing, damaged or of another kind, and for a .pth or .pt file that asks for
    more than tensors (see pth.load_pth).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"no weights at {path}; check the path (a run folder keeps best.safetensors and last.safetensors)"
        )
    if path.suffix in (".pth", ".pt"):
        return load_pth(path), {}
    if path.suffix not in (".safetensors", ".npz"):
        raise InputError(f"cannot read weights from {path.name}: expected a .safetensors, .npz, .pth or .pt file")
    try:
        if path.suffix == ".npz":
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays), {}
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except Exception as error:  # the readers raise a dozen kinds, down to NotImplementedError, for damaged bytes
        raise InputError(
            f"{path} is damaged or no {path.suffix[1:]} file ({error}); copy it again or use another checkpoint"
        ) from error
