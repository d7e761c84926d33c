"""Makes .pth files by hand, instruction by instruction, without PyTorch: good ones, and parts for bad ones.

A pickle is a sequence of one-byte instructions with their arguments; `pickletools.dis` prints one.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

KINDS = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "i4": "Int", "u1": "Byte", "i2": "Short"}


def pickled(*instructions: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + b"".join(instructions) + b"."


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def made_tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def made_dict(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + made_tuple(*arguments) + b"R"


def ordered_dict(items: Mapping[str, bytes]) -> bytes:
    return call(name("collections", "OrderedDict")) + b"(" + b"".join(text(k) + v for k, v in items.items()) + b"u"


def storage(key: str, kind: str, count: int, view: bytes = b"N") -> bytes:
    parts = text("storage"), name("torch", f"{kind}Storage"), text(key), text("cpu"), number(count), view
    return made_tuple(*parts) + b"Q"


def tensor(row: bytes, size: Sequence[int], stride: Sequence[int] | None = None, offset: int = 0) -> bytes:
    """A tensor that looks into the storage `row`; by default contiguous."""
    stride = [math.prod(size[i + 1 :]) for i in range(len(size))] if stride is None else stride
    size, stride = made_tuple(*map(number, size)), made_tuple(*map(number, stride))
    hooks = call(name("collections", "OrderedDict"))
    return call(name("torch._utils", "_rebuild_tensor_v2"), row, number(offset), size, stride, b"\x89", hooks)


def of_arrays(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The tensors of contiguous arrays, and the bytes of their storages, "0", "1", ..."""
    tensors, storages = {}, {}
    for key, array in arrays.items():
        number_ = str(len(storages))
        storages[number_] = array.tobytes()
        tensors[key] = tensor(storage(number_, KINDS[array.dtype.str[1:]], array.size), array.shape)
    return tensors, storages


def legacy_file(content: bytes, storages: Mapping[str, bytes] | None = None, counts: Mapping[str, int] = {}) -> bytes:
    """A file as PyTorch 0.4 writes it.  counts: numbers in each storage, by default of four bytes each."""
    storages = storages or {}
    start = (
        pickled(number(0x1950A86A20F9469CFC6C)) + pickled(number(1001)) + pickled(made_dict({"little_endian": b"\x88"}))
    )
    keys = pickled(b"](" + b"".join(map(text, storages)) + b"e")
    rows = [struct.pack("<q", counts.get(key, len(row) // 4)) + row for key, row in storages.items()]
    return start + pickled(content) + keys + b"".join(rows)


def zip_file(content: bytes, storages: Mapping[str, bytes] | None = None, **others: bytes) -> bytes:
    """A file as PyTorch 1.6 and later write it.  others: further entries."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", pickled(content))
        for entry, data in others.items():
            archive.writestr(f"net/{entry}", data)
        for key, row in (storages or {}).items():
            archive.writestr(f"net/data/{key}", row)
    return file.getvalue()


def checkpoint(arrays: Mapping[str, np.ndarray], *, zipped: bool) -> bytes:
    """A checkpoint of the released code: epoch, state_dict of several GPUs, optimiser."""
    tensors, storages = of_arrays({f"module.{key}": array for key, array in arrays.items()})
    optimiser = made_dict({"param_groups": b"]" + made_dict({"lr": b"G" + struct.pack(">d", 1.25e-4)}) + b"a"})
    content = made_dict({"epoch": number(140), "state_dict": ordered_dict(tensors), "optimizer": optimiser})
    if zipped:
        return zip_file(content, storages, byteorder=b"little", version=b"3\n")
    counts = {str(i): array.size for i, array in enumerate(arrays.values())}
    return legacy_file(content, storages, counts)
