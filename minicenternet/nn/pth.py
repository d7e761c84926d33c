"""Reads .pth files, PyTorch's own, without PyTorch and without running what is in them.

A .pth file is a pickle that describes tensors, and the numbers of their storages:

    legacy   (PyTorch up to 1.5)   five pickles, one after the other: a magic number, a version, the system, the
                                   content, the storages' keys; then for each key an int64 count and as many numbers
    zip      (PyTorch from 1.6)    an archive without compression: NAME/data.pkl is the content, NAME/data/KEY the
                                   numbers of a storage

A pickle is a program for a small machine with a stack. Python's own machine imports and calls whatever the program
names, so that opening a hostile file runs it. The machine here has no instruction that imports: the few names that
tensors need stand in two tables, and to "call" one makes a plain dict or a record of where a tensor's numbers are.
Whatever a file says about sizes is compared with its length before memory is taken.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..errors import InputError

MAX_PROGRAM = 2**22  # bytes of the pickles, or of an archive's list of entries
MAX_INSTRUCTIONS = 500_000  # Hourglass-104 with the state of its optimiser takes about 140,000
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch HalfStorage": "<f2",
    "torch BFloat16Storage": "<u2",  # the upper half of a float32
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
    "torch ByteStorage": "|u1",
}


def load_pth(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return key -> array of the state_dict in a .pth file, which may be the whole content or a part of a checkpoint.

    The prefix "module." of networks trained on several GPUs is dropped. Arrays have the file's dtype (bfloat16 becomes
    float32), shape and strides; those that shared a storage share memory. Storages of other parts, such as the
    optimiser's, are not read.

    Raises InputError when the file is damaged, is not little-endian, holds no state_dict, or asks for anything but
    tensors, dicts, lists, tuples, numbers and text; in no case does anything in the file run.
    """
    path = Path(path)
    with _ShortReads(io.FileIO(path)) as file, _damage_reported(path):
        length = os.fstat(file.fileno()).st_size
        read = _read_zip if file.read(4) == b"PK\x03\x04" else _read_legacy
        file.seek(0)
        with read(file, length) as (content, open_storage):
            tensors = _state_dict(content)
            storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
            numbers = {key: _read_storage(storage, *open_storage(key)) for key, storage in storages.items()}
            return {key: _view(tensor, numbers[tensor.storage.key]) for key, tensor in tensors.items()}


class Refused(Exception):
    """The file asks for something that weights do not need."""


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    try:
        yield
    except Refused as error:
        raise InputError(
            f"{path} asks for {error}, which weights do not need; nothing in it was run. "
            "Use a file that holds a state_dict only, from a source that you trust"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make the readers of the standard library raise a dozen kinds
        reason = (
            str(error) if isinstance(error, (ValueError, zipfile.BadZipFile)) else f"{type(error).__name__} {error}"
        )
        reason = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in reason)  # bytes of the file may be in it
        raise InputError(
            f"{path} is damaged or no .pth file ({reason:.200}); copy it again or use another file"
        ) from error


# ---- the machine -----------------------------------------------------------------------------------------------------


class Storage(NamedTuple):
    """A row of numbers in the file; a view is `count` of them from `start` on."""

    key: str
    kind: str  # a key of STORAGES
    total: int
    start: int
    count: int


class TensorRecord(NamedTuple):
    """Where a tensor's numbers are: `offset`, `size` and `stride` count elements of the storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Name(str):
    """A name that the file asked for and that is in one of the tables."""


def _ordered_dict(items: Sequence = ()) -> dict:
    made: dict = {}
    for key, value in items:
        _put(made, key, value)
    return made


def _rebuild_tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *unused: Any) -> TensorRecord:
    if type(storage) is not Storage:
        raise ValueError("a tensor without a storage")
    return TensorRecord(storage, offset, size, stride)


def _rebuild_parameter(data: TensorRecord, *unused: Any) -> TensorRecord:
    return data


FUNCTIONS: dict[str, Callable] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "torch.nn.parameter Parameter": _rebuild_parameter,
}


def _put(target: dict, key: Any, value: Any) -> None:
    if type(target) is not dict or type(key) not in (str, int):  # to hash a deeply nested tuple overflows C's stack
        raise ValueError("a dict whose keys are neither text nor integers")
    target[key] = value


class Machine:
    """Runs the pickles of a file, one at each call of `run`; its instructions can only make plain data."""

    def __init__(self, program: BinaryIO):
        self.program = program
        self.left = MAX_INSTRUCTIONS
        self.storages: dict[str, Storage] = {}

    def run(self) -> Any:
        """Return what the next pickle makes.  Raises Refused, or any exception where the bytes make no sense."""
        stack: list = []
        outer: list[list] = []  # the stacks below each mark
        memo: dict[int, Any] = {}

        while True:
            opcode = pickletools.code2op.get(self.program.read(1).decode("latin-1"))
            if opcode is None:
                raise ValueError("it ends too early, or holds bytes that are no instruction")
            self._spend(1)
            match opcode.name:
                case "STOP":
                    return stack.pop()
                case "PROTO" | "FRAME":
                    opcode.arg.reader(self.program)

                case "NONE":
                    stack.append(None)
                case "NEWTRUE":
                    stack.append(True)
                case "NEWFALSE":
                    stack.append(False)
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                    stack.append(opcode.arg.reader(self.program))
                case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                    stack.append(opcode.arg.reader(self.program))

                case "MARK":
                    outer.append(stack)
                    stack = []
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    if len(stack) < count:
                        raise ValueError("a tuple of more than there is")
                    stack[-count:] = [tuple(stack[-count:])]
                case "TUPLE":
                    items, stack = stack, outer.pop()
                    stack.append(tuple(items))
                case "EMPTY_LIST":
                    stack.append([])
                case "APPEND":
                    item = stack.pop()
                    _extend(stack[-1], [item])
                case "APPENDS":
                    items, stack = stack, outer.pop()
                    _extend(stack[-1], items)
                case "EMPTY_DICT":
                    stack.append({})
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    _put(stack[-1], key, value)
                case "SETITEMS":
                    items, stack = stack, outer.pop()
                    for key, value in zip(items[::2], items[1::2], strict=True):
                        _put(stack[-1], key, value)

                case "BINPUT" | "LONG_BINPUT":
                    memo[opcode.arg.reader(self.program)] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[opcode.arg.reader(self.program)])

                case "GLOBAL":
                    stack.append(_known(opcode.arg.reader(self.program)))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    if type(name) is not str or type(module) is not str:
                        raise ValueError("a name that is no text")
                    stack.append(_known(f"{module} {name}"))
                case "REDUCE":
                    arguments, name = stack.pop(), stack.pop()
                    if type(name) is not _Name or type(arguments) is not tuple or len(arguments) > 8:
                        raise ValueError("a call that makes no sense")
                    self._spend(sum(len(items) for items in arguments if type(items) is list))
                    stack.append(FUNCTIONS[name](*arguments))
                case "BUILD":  # attributes of an OrderedDict or a parameter: not needed
                    stack.pop()
                    if type(stack[-1]) not in (dict, TensorRecord):
                        raise ValueError("attributes of something that has none")
                case "BINPERSID":
                    identity = stack.pop()
                    if type(identity) is not tuple or len(identity) not in (5, 6):
                        raise ValueError("a storage that makes no sense")
                    stack.append(self._storage(*identity))

                case "INST":
                    raise Refused(_quoted(opcode.arg.reader(self.program)))
                case other:
                    raise Refused(f"the pickle instruction {other}")

    def _spend(self, instructions: int) -> None:
        self.left -= instructions
        if self.left < 0:
            raise ValueError(f"it describes itself in more than {MAX_INSTRUCTIONS} instructions")

    def _storage(
        self, tag: str, kind: _Name, key: str, device: str, total: int, view: tuple[str, int, int] | None = None
    ) -> Storage:
        _, start, count = (None, 0, total) if view is None else view
        if type(kind) is not _Name or kind not in STORAGES or tag != "storage" or type(key) is not str:
            raise ValueError("a storage that makes no sense")
        if not all(type(n) is int for n in (total, start, count)) or not 0 <= start <= start + count <= total:
            raise ValueError("a storage of impossible size")
        storage = Storage(key, str(kind), total, start, count)
        known = self.storages.setdefault(key, storage)
        if (known.kind, known.total) != (storage.kind, storage.total):
            raise ValueError(f"two storages are called {ascii(key)}")
        return storage


def _extend(target: list, items: list) -> None:
    if type(target) is not list:
        raise ValueError("something is appended to what is no list")
    target.extend(items)


def _known(name: str) -> _Name:
    if name not in FUNCTIONS and name not in STORAGES:
        raise Refused(_quoted(name))
    return _Name(name)


def _quoted(name: str) -> str:
    return ascii(name[:200].replace(" ", "."))  # ascii: a hostile name may hold a terminal's control codes


# ---- the two formats -------------------------------------------------------------------------------------------------


@contextmanager
def _read_legacy(file: BinaryIO, length: int) -> Iterator[tuple[Any, Callable]]:
    """Yield the content, and a function from a storage's key to the file at its numbers and their bytes."""
    machine = Machine(io.BytesIO(file.read(min(length, MAX_PROGRAM))))
    if machine.run() != LEGACY_MAGIC:
        raise ValueError("it begins neither as a .pth file of PyTorch up to 1.5 nor as one of later versions")
    version, system = machine.run(), machine.run()
    if version != LEGACY_VERSION or type(system) is not dict or system.get("little_endian") is not True:
        raise ValueError("it is of an unknown version, or was written on a big-endian machine")
    content, keys = machine.run(), machine.run()
    positions: dict[str, tuple[int, int]] = {}
    position = machine.program.tell()
    for key in keys:
        storage = machine.storages.get(key) if type(key) is str else None
        file.seek(position)
        if storage is None or int.from_bytes(file.read(8), "little") != storage.total:
            raise ValueError("its storages are not those that its tensors look into")
        size = storage.total * np.dtype(STORAGES[storage.kind]).itemsize
        positions[key] = position + 8, size
        position += 8 + size
        if position > length:
            raise ValueError("it ends too early")

    def open_storage(key: str) -> tuple[BinaryIO, int]:
        if key not in positions:
            raise ValueError(f"storage {ascii(key)} is not in it")
        position, size = positions[key]
        file.seek(position)
        return file, size

    yield content, open_storage


class _ShortReads(io.BufferedReader):
    """A file that refuses to be read in one large piece, as zipfile would read a list of entries of any length."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_PROGRAM:
            raise ValueError(f"a part that should be short has {size} bytes")
        return super().read(size)


@contextmanager
def _read_zip(file: BinaryIO, length: int) -> Iterator[tuple[Any, Callable]]:
    """Yield the content, and a function from a storage's key to a file of its numbers and their bytes."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise ValueError("two entries have one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("its entries are compressed, which PyTorch's are not")
        if sum(entry.file_size for entry in entries.values()) > length:
            raise ValueError("its entries are larger than the file")
        descriptions = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(descriptions) != 1:
            raise ValueError("there is no data.pkl in it")
        folder = descriptions[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        if entries[descriptions[0]].file_size > MAX_PROGRAM:
            raise ValueError(f"its description of tensors has more than {MAX_PROGRAM} bytes")
        content = Machine(io.BytesIO(archive.read(descriptions[0]))).run()

        def open_storage(key: str) -> tuple[BinaryIO, int]:
            entry = entries.get(f"{folder}data/{key}")
            if entry is None:
                raise ValueError(f"storage {ascii(key)} is not in it")
            return archive.open(entry), entry.file_size

        yield content, open_storage


# ---- from records to arrays ------------------------------------------------------------------------------------------


def _state_dict(content: Any) -> dict[str, TensorRecord]:
    """The tensors by name, without the prefix "module."."""
    if type(content) is dict:  # a checkpoint, whose other parts are the epoch and the optimiser
        content = next((content[name] for name in ("state_dict", "model") if type(content.get(name)) is dict), content)
    if type(content) is not dict or not content:
        raise ValueError("it holds no state_dict")
    tensors = {}
    for key, tensor in content.items():
        if type(key) is not str or not key.isprintable() or type(tensor) is not TensorRecord:
            raise ValueError(f"its state_dict has the entry {ascii(key):.100}, which is no tensor with a name")
        tensors[key.removeprefix("module.")] = tensor
    if len(tensors) != len(content):
        raise ValueError("two tensors have one name")
    return tensors


def _read_storage(storage: Storage, file: BinaryIO, size: int) -> np.ndarray:
    """All numbers of a storage, 1-D."""
    dtype = np.dtype(STORAGES[storage.kind])
    if storage.total * dtype.itemsize != size:
        raise ValueError(f"storage {ascii(storage.key)} has {size} bytes instead of {storage.total} {dtype}")
    numbers = np.empty(storage.total, dtype)
    target = memoryview(numbers).cast("B") if size else b""
    done = 0
    while done < size:
        count = file.readinto(target[done : done + 2**20])  # piecewise: zipfile's reader makes a copy of each
        if not count:
            raise ValueError("it ends too early")
        done += count
    if storage.kind == "torch BFloat16Storage":
        numbers = (numbers.astype("<u4") << 16).view("<f4")
    return numbers


def _view(tensor: TensorRecord, numbers: np.ndarray) -> np.ndarray:
    """The tensor as an array that looks into its storage."""
    (_, _, _, start, count), offset, size, stride = tensor
    if type(size) is not tuple or type(stride) is not tuple or not len(size) == len(stride) <= 8:
        raise ValueError("a tensor whose size and stride do not fit each other")
    if not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        raise ValueError("a tensor with a size or stride that is no count")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (last >= count or math.prod(size) > count):
        raise ValueError(f"a tensor of size {list(size)} looks beyond its storage of {count} numbers")
    if 0 in size:
        return np.empty(size, numbers.dtype)
    steps = [step * numbers.itemsize if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
    return np.lib.stride_tricks.as_strided(numbers[start + offset : start + count], size, steps)
