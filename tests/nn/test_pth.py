"""The .pth reader: what PyTorch writes comes back, and what anybody else may write does no harm."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pth_files as pth
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicenternet.errors import InputError
from minicenternet.nn.pth import MAX_INSTRUCTIONS, MAX_PROGRAM, _damage_reported, load_pth
from minicenternet.nn.weights import load_weights

RNG = np.random.default_rng(0)
ARRAYS = {
    "conv.weight": RNG.standard_normal((4, 3, 2, 2)).astype("<f4"),
    "double": RNG.standard_normal(5),
    "half": RNG.standard_normal((2, 3)).astype("<f2"),
    "bn.num_batches_tracked": np.array(2**40 + 1, "<i8"),
    "int": np.array([-7, 2**31 - 1], "<i4"),
    "byte": np.arange(256, dtype=np.uint8),
    "empty": np.zeros((0, 3), "<f4"),
}
ROW = np.arange(6, dtype="<f4")
FORMATS = pytest.mark.parametrize("write", [pth.legacy_file, pth.zip_file], ids=["legacy", "zip"])


def assert_same(loaded, expected):
    assert list(loaded) == list(expected)
    for key, array in expected.items():
        assert loaded[key].dtype == array.dtype and loaded[key].shape == array.shape, key
        assert np.array_equal(loaded[key], array), key


def load(tmp_path, content: bytes) -> dict[str, np.ndarray]:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    return load_pth(path)


# ---- good files, made by hand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
def test_a_checkpoint_of_every_dtype(tmp_path, zipped):
    loaded = load(tmp_path, pth.checkpoint(ARRAYS, zipped=zipped))
    assert_same(loaded, ARRAYS)
    for array in loaded.values():
        assert array.flags.aligned and array.flags.writeable


@FORMATS
def test_shared_and_strided_views(tmp_path, write):
    row = pth.storage("0", "Float", 6)
    tensors = {
        "all": pth.tensor(row, (2, 3)),
        "transposed": pth.tensor(row, (3, 2), (1, 3)),
        "column": pth.tensor(row, (2,), (3,), offset=2),
        "last": pth.tensor(row, (), (), offset=5),
        "one": pth.tensor(row, (1, 2), (10**30, 1)),  # the stride of a single row is never used
    }
    loaded = load(tmp_path, write(pth.ordered_dict(tensors), {"0": ROW.tobytes()}))
    whole = ROW.reshape(2, 3)
    expected = {"all": whole, "transposed": whole.T, "column": whole[:, 2], "last": ROW[5], "one": ROW[None, :2]}
    assert_same(loaded, {key: np.asarray(array) for key, array in expected.items()})
    loaded["all"][1, 2] = 100
    assert loaded["last"] == 100


def test_views_of_storages_and_what_python_2_wrote(tmp_path):
    """As PyTorch 0.1 wrote the ImageNet networks: pairs, byte strings, parameters, no num_batches_tracked."""
    view = pth.made_tuple(pth.text("1"), pth.number(2), pth.number(3))
    size = pth.made_tuple(pth.number(3))
    row = pth.storage("0", "Float", 6, view)
    data = pth.call(
        pth.name("torch._utils", "_rebuild_tensor"), row, pth.number(0), size, pth.made_tuple(pth.number(1))
    )
    parameter = pth.call(pth.name("torch.nn.parameter", "Parameter"), data) + pth.made_tuple(b"\x88\x89}") + b"b"
    pair = b"](U\x04bias" + parameter + b"e"
    content = pth.call(pth.name("collections", "OrderedDict"), b"](" + pair + b"e")
    assert_same(load(tmp_path, pth.legacy_file(content, {"0": ROW.tobytes()})), {"bias": ROW[2:5]})
    beyond = content.replace(pth.number(2) + pth.number(3), pth.number(4) + pth.number(3))
    with pytest.raises(InputError, match="impossible size"):
        load(tmp_path, pth.legacy_file(beyond, {"0": ROW.tobytes()}))


@FORMATS
def test_attributes_of_an_ordered_dict_are_passed_over(tmp_path, write):
    """PyTorch writes `_metadata`; a hostile file could hide methods behind attributes."""
    state = pth.made_dict({"_metadata": pth.ordered_dict({}), "items": b"N", "__class__": b"N"})
    content = pth.ordered_dict({"a": pth.tensor(pth.storage("0", "Float", 6), (6,))}) + state + b"b"
    assert_same(load(tmp_path, write(content, {"0": ROW.tobytes()})), {"a": ROW})


@FORMATS
def test_only_the_state_dict_is_read(tmp_path, write):
    """The optimiser's storages may be damaged or missing."""
    good = pth.tensor(pth.storage("0", "Float", 6), (6,))
    bad = pth.tensor(pth.storage("1", "Float", 6), (10**6,))
    content = pth.made_dict({"optimizer": pth.made_dict({"a": bad}), "model": pth.ordered_dict({"a": good})})
    assert_same(load(tmp_path, write(content, {"0": ROW.tobytes(), "1": ROW.tobytes()})), {"a": ROW})


def test_memory_stays_below_the_files_size(tmp_path):
    """A state_dict and twice as much of the optimiser's: 12 MB, of which 4 are wanted."""
    rows = {str(i): np.full(2**18, i, "<f4").tobytes() for i in range(12)}
    parts = {key: pth.tensor(pth.storage(key, "Float", 2**18), (2**18,)) for key in rows}
    content = pth.made_dict(
        {
            "state_dict": pth.ordered_dict({f"w{key}": parts[key] for key in "0123"}),
            "optimizer": pth.made_dict({f"w{key}": parts[key] for key in list(rows)[4:]}),
        }
    )
    for write in (pth.legacy_file, pth.zip_file):
        path = tmp_path / "net.pth"
        path.write_bytes(write(content, rows))
        tracemalloc.start()
        loaded = load_pth(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [array[-1] for array in loaded.values()] == [0, 1, 2, 3]
        assert peak < 4 * 2**20 + MAX_PROGRAM + 2**21 < 12 * 2**20


def test_load_weights_takes_both_suffixes(tmp_path):
    for suffix in (".pth", ".pt"):
        (tmp_path / f"net{suffix}").write_bytes(pth.checkpoint(ARRAYS, zipped=True))
        arrays, metadata = load_weights(tmp_path / f"net{suffix}")
        assert_same(arrays, ARRAYS)
        assert metadata == {}


# ---- good files, written by PyTorch ----------------------------------------------------------------------------------


@pytest.fixture
def torch_network(torch):
    """A small network after a step, and its optimiser."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ConvTranspose2d(4, 2, 2))
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 3, 6, 6)).square().sum().backward()
    optimiser.step()
    return network, optimiser


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [False, True])
def test_checkpoints_of_pytorch(tmp_path, torch, torch_network, zipped, protocol):
    network, optimiser = torch_network
    state = torch.nn.DataParallel(network).state_dict()
    assert all(key.startswith("module.") for key in state)
    content = {"epoch": 230, "state_dict": state, "optimizer": optimiser.state_dict()}
    path = tmp_path / "net.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    assert_same(load_pth(path), {key: value.numpy() for key, value in network.state_dict().items()})


@pytest.mark.parametrize("zipped", [False, True])
def test_tensors_of_pytorch(tmp_path, torch, zipped):
    base = torch.arange(24, dtype=torch.float64)
    tensors = {
        "base": base,
        "strided": base.view(4, 6).t()[::2],
        "offset": base[5:9],
        "scalar": torch.tensor(3.5, dtype=torch.float16),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "empty": torch.zeros(0, 4),
        "long": torch.tensor([2**62, -1]),
        "int": torch.tensor([1, 2], dtype=torch.int32),
        "byte": torch.tensor([255], dtype=torch.uint8),
    }
    torch.save(tensors, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    loaded = load_pth(tmp_path / "net.pth")
    assert_same(loaded, {key: tensor.detach().numpy() for key, tensor in tensors.items()})
    assert np.shares_memory(loaded["base"], loaded["offset"])
    half = torch.randn(3, 5).bfloat16()
    torch.save({"half": half[:, 1:]}, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    assert_same(load_pth(tmp_path / "net.pth"), {"half": half[:, 1:].float().numpy()})


@pytest.mark.parametrize("zipped", [False, True])
def test_a_whole_module_is_refused(tmp_path, torch, zipped):
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"asks for 'torch\.nn\.modules\.conv\.Conv2d'"):
        load_pth(tmp_path / "net.pth")


def test_an_expanded_tensor_is_refused(tmp_path, torch):
    """It would need far more memory as soon as it is copied."""
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "net.pth")
    with pytest.raises(InputError, match="looks beyond its storage of 1 numbers"):
        load_pth(tmp_path / "net.pth")


# ---- hostile files ---------------------------------------------------------------------------------------------------

COMMAND, CODE = pth.text("touch canary"), pth.text("open('canary', 'w').close()")


def getting(module: str, attribute: str) -> bytes:
    """A name by the instruction of protocol 4, which may have dots in it."""
    return pth.text(module) + pth.text(attribute) + b"\x93"


class Reduced:
    def __reduce__(self):
        import os

        return os.system, ("touch canary",)


def reduced(protocol: int) -> bytes:
    pickle_ = pickle.dumps(Reduced(), protocol)
    return pickle_[2:-1] if protocol >= 2 else pickle_[:-1]  # without PROTO and STOP


TOUCH = b"](" + pth.text("touch") + pth.text("canary") + b"e"
CANARY = pth.call(pth.name("pathlib", "Path"), pth.text("canary"))
OS = pth.call(pth.name("builtins", "__import__"), pth.text("os"))
INNER = b"cos\nsystem\n(S'touch canary'\ntR."
WORKING = {  # Python's own unpickler runs each of these
    "os.system": pth.call(pth.name("os", "system"), COMMAND),
    "posix.system": pth.call(pth.name("posix", "system"), COMMAND),
    "builtins.eval": pth.call(pth.name("builtins", "eval"), CODE),
    "builtins.exec": pth.call(pth.name("builtins", "exec"), CODE),
    "subprocess.call": pth.call(pth.name("subprocess", "call"), TOUCH),
    "pathlib.Path.touch": pth.call(getting("pathlib", "Path.touch"), CANARY),
    "the instruction INST": b"(" + COMMAND + b"ios\nsystem\n",
    "the instruction OBJ": b"(" + pth.name("subprocess", "Popen") + TOUCH + b"o",
    "nested reductions": pth.call(pth.call(pth.name("builtins", "getattr"), OS, pth.text("system")), COMMAND),
    "a pickle in a pickle": pth.call(pth.name("pickle", "loads"), b"C" + bytes([len(INNER)]) + INNER),
    **{f"protocol {protocol}": reduced(protocol) for protocol in range(6)},
}
NAMED = {  # nor may any of these be asked for
    "nt.system": pth.name("nt", "system"),
    "__builtin__.eval": pth.name("__builtin__", "eval"),
    "importlib.import_module": pth.name("importlib", "import_module"),
    "builtins.open": pth.name("builtins", "open"),
    "runpy.run_path": pth.name("runpy", "run_path"),
    "operator.attrgetter": pth.name("operator", "attrgetter"),
    "codecs.decode": pth.name("codecs", "decode"),
    "functools.partial": pth.name("functools", "partial"),
    "numpy.load": pth.name("numpy", "load"),
    "numpy.core.multiarray._reconstruct": pth.name("numpy.core.multiarray", "_reconstruct"),
    "torch.load": pth.name("torch", "load"),
    "torch.hub.load": pth.name("torch.hub", "load"),
    "torch.storage._load_from_bytes": pth.name("torch.storage", "_load_from_bytes"),
    "torch._utils._import_dotted_name": pth.name("torch._utils", "_import_dotted_name"),
    "torch._utils._rebuild_tensor_v2.__globals__": getting("torch._utils", "_rebuild_tensor_v2.__globals__"),
    "collections.OrderedDict.__class__": getting("collections", "OrderedDict.__class__"),
    "collections.namedtuple": pth.name("collections", "namedtuple"),
    "minicenternet.nn.pth.load_pth": pth.name("minicenternet.nn.pth", "load_pth"),
    "..minicenternet": pth.name("", ".minicenternet"),
    "\\x1b[2J.\\x07": pth.name("\x1b[2J", "\x07"),  # nothing of it reaches the terminal
}
ORDERED = pth.name("collections", "OrderedDict")
INSTRUCTIONS = {  # instructions that Python's unpickler has and this one has not
    "NEWOBJ": ORDERED + b")\x81",
    "NEWOBJ_EX": ORDERED + b")}\x92",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"Pos.system\n",
    "BINBYTES8": b"\x8e" + struct.pack("<Q", 2**62),
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 2**62),
    "NEXT_BUFFER": b"\x97",
    "EMPTY_SET": b"\x8f",
    "LONG4": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "LONG": b"L" + b"9" * 100_000 + b"L\n",
    "INT": b"I" + b"9" * 100_000 + b"\n",
    "POP": b"N0",
    "DUP": b"N2",
}
ROW_OF_6 = pth.storage("0", "Float", 6)
NESTED = b")" + b"\x85" * 200_000  # a tuple in a tuple in ...
PAIRS = b"](" + (pth.text("a") + b"N\x86") * 1000 + b"e"
DOUBLED = b")q\x00" + b"h\x00h\x00\x86q\x00" * 100  # 2 ** 100 empty tuples, if anybody walked them


def in_dict(value: bytes) -> bytes:
    return pth.made_dict({"a": value})


SENSELESS = {  # words of the message -> content
    "a call that makes no sense: text": pth.call(pth.text("os.system"), COMMAND),
    "a call that makes no sense: many": ORDERED + b"(" + b"N" * 9 + b"tR",
    "KeyError: a storage is no function": pth.call(pth.name("torch", "FloatStorage"), pth.number(2**60)),
    "a storage that makes no sense: text": pth.text("os.system") + b"Q",
    "a storage that makes no sense: no kind": in_dict(
        pth.made_tuple(pth.text("storage"), ORDERED, pth.text("0"), pth.text("cpu"), pth.number(6)) + b"Q"
    ),
    "a storage that makes no sense: nested kind": in_dict(
        pth.made_tuple(pth.text("storage"), NESTED, pth.text("0"), pth.text("cpu"), pth.number(6)) + b"Q"
    ),
    "a storage that makes no sense: nested key": in_dict(
        pth.made_tuple(pth.text("storage"), pth.name("torch", "FloatStorage"), DOUBLED, b"N", pth.number(6)) + b"Q"
    ),
    "a storage of impossible size: negative": in_dict(pth.tensor(pth.storage("0", "Float", -6), (1,))),
    "a dict whose keys: nested": b"}" + NESTED + b"Ns",
    "a dict whose keys: doubled": b"}" + DOUBLED + b"Ns",
    "a dict whose keys: into a list": b"]" + pth.text("a") + b"Ns",
    "appended to what is no list": b"}Na",
    "attributes of something that has none": b"]}b",
    "a name that is no text": DOUBLED + pth.text("system") + b"\x93",
    "a tensor without a storage": in_dict(pth.tensor(b"N", (1,))),
    "two storages are called '0'": in_dict(
        pth.tensor(ROW_OF_6, (6,)) + pth.tensor(pth.storage("0", "Double", 3), (3,)) + b"\x86"
    ),
    "looks beyond: size": in_dict(pth.tensor(ROW_OF_6, (7,))),
    "looks beyond: offset": in_dict(pth.tensor(ROW_OF_6, (6,), offset=1)),
    "looks beyond: stride": in_dict(pth.tensor(ROW_OF_6, (2, 2), (5, 1))),
    "looks beyond: expanded": in_dict(pth.tensor(ROW_OF_6, (10**9, 10**9), (0, 0))),
    "looks beyond: huge": in_dict(pth.tensor(ROW_OF_6, (2**62, 2**62, 4))),
    "looks beyond: overflowing": in_dict(pth.tensor(ROW_OF_6, (2, 2), (2**64 - 1, 1))),
    "no count: negative size": in_dict(pth.tensor(ROW_OF_6, (-1,))),
    "no count: negative stride": in_dict(pth.tensor(ROW_OF_6, (2,), (-1,), offset=5)),
    "no count: negative offset": in_dict(pth.tensor(ROW_OF_6, (2,), offset=-6)),
    "do not fit each other: lengths": in_dict(pth.tensor(ROW_OF_6, (2, 3), (1,))),
    "do not fit each other: dimensions": in_dict(pth.tensor(ROW_OF_6, (1,) * 9)),
    "no .pth file: text in place of sizes": in_dict(
        pth.call(pth.name("torch._utils", "_rebuild_tensor"), ROW_OF_6, pth.text("0"), pth.text("6"), pth.text("1"))
    ),
    "storage '1' is not in it": in_dict(pth.tensor(pth.storage("1", "Float", 6), (6,))),
    "storage '../../0' is not in it": in_dict(pth.tensor(pth.storage("../../0", "Float", 6), (6,))),
    "storage '/etc/passwd' is not in it": in_dict(pth.tensor(pth.storage("/etc/passwd", "Byte", 6), (6,))),
    "instructions: one list handed over and over": PAIRS + b"q\x00" + (ORDERED + b"h\x00\x85R") * 1000,
    "no .pth file: a text of four gigabytes": b"X\xff\xff\xff\xff" + b"a" * 20,
    "no .pth file: nothing on the stack": b"",
    "no .pth file: an unknown mark": b"t",
    "no .pth file: an unknown memory": b"h\x07",
    "no .pth file: a memory cell far away": b"Nr\xff\xff\xff\xff" + b"R",
    "it holds no state_dict: a number": pth.number(1),
    "it holds no state_dict: nothing": b"}",
    "it holds no state_dict: nested": NESTED,
    "which is no tensor with a name: none": in_dict(b"N"),
    "which is no tensor with a name: control": pth.made_dict({"a\x1b[2J": pth.tensor(ROW_OF_6, (6,))}),
    "two tensors have one name": pth.ordered_dict(
        {"a": pth.tensor(ROW_OF_6, (6,)), "module.a": pth.tensor(ROW_OF_6, (6,))}
    ),
}


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    """The file that hostile content makes when it runs, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "canary"


@pytest.mark.parametrize("content", WORKING.values(), ids=WORKING)
def test_python_would_run_it(canary, content):
    """Otherwise the tests below would prove nothing."""
    made = pickle.loads(pth.pickled(content, protocol=4))
    if hasattr(made, "wait"):
        made.wait()
    assert canary.exists()


@FORMATS
@pytest.mark.parametrize("content", WORKING.values(), ids=WORKING)
def test_what_python_would_run_is_refused(tmp_path, canary, write, content):
    for part in (content, in_dict(content), b"(" + content + b"N0"):
        with pytest.raises(InputError, match=r"asks for '(\w+\.)+\w+'.* nothing in it was run"):
            load(tmp_path, write(part, {"0": ROW.tobytes()}))
    assert not canary.exists()


@FORMATS
@pytest.mark.parametrize("wanted, content", NAMED.items(), ids=range(len(NAMED)))
def test_what_is_asked_for_is_named(tmp_path, write, wanted, content):
    with pytest.raises(InputError) as refusal:
        load(tmp_path, write(content + b"N\x85R"))
    assert f"net.pth asks for '{wanted}', which weights do not need" in str(refusal.value)
    assert str(refusal.value).isprintable()


@FORMATS
@pytest.mark.parametrize("instruction, content", INSTRUCTIONS.items(), ids=INSTRUCTIONS)
def test_other_instructions_are_refused(tmp_path, write, instruction, content):
    with pytest.raises(InputError, match=f"asks for the pickle instruction {instruction}, which weights do not need"):
        load(tmp_path, write(content))


@FORMATS
@pytest.mark.parametrize("words, content", SENSELESS.items(), ids=SENSELESS)
def test_what_makes_no_sense_is_refused(tmp_path, write, words, content):
    with pytest.raises(InputError) as refusal:
        load(tmp_path, write(content, {"0": ROW.tobytes()} if ROW_OF_6 in content else {}))
    message = str(refusal.value)
    assert words.split(":")[0] in message and "copy it again or use another file" in message
    assert message.isprintable() and len(message) < 600


def test_a_bare_pickle_is_refused(tmp_path, canary):
    for protocol in range(6):
        with pytest.raises(InputError, match="asks for 'posix.system'|asks for 'nt.system'"):
            load(tmp_path, pickle.dumps(Reduced(), protocol))
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"\x00", b"PK\x03\x04", b"hello, world", b"\x80\x02.", bytes(1000)])
def test_other_files_are_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"net\.pth is damaged or no \.pth file"):
        load(tmp_path, content)


def test_bytes_of_a_file_in_a_message_are_printable():
    with pytest.raises(InputError) as caught, _damage_reported(Path("net.pth")):
        raise ValueError("no storage 'a\x07\nb\ufffe'")
    assert r"no storage 'a\x07\nb\ufffe'" in str(caught.value)


# ---- hostile archives and legacy files -------------------------------------------------------------------------------

CONTENT = in_dict(pth.tensor(ROW_OF_6, (6,)))


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as target:
        for name, data in entries.items():
            target.writestr(name, data)
    return file.getvalue()


def patched(content: bytes, before: bytes, after: bytes, count: int) -> bytes:
    assert content.count(before) == count and len(before) == len(after)
    return content.replace(before, after)


PROGRAM = pth.pickled(CONTENT)
GOOD = {"net/data.pkl": PROGRAM, "net/data/0": ROW.tobytes()}
ARCHIVES = {
    "compressed": archive({**GOOD, "net/data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED),
    "no data.pkl": archive({"net/data/0": ROW.tobytes()}),
    "no data.pkl in it: path": archive({"../../data.pkl": PROGRAM, "../../data/0": ROW.tobytes()}),
    "no data.pkl in it: two": archive({**GOOD, "other/data.pkl": PROGRAM}),
    "storage '0' is not in it": archive({"net/data.pkl": PROGRAM, "net/data/../data/0": ROW.tobytes()}),
    "has 20 bytes instead of 6": archive({**GOOD, "net/data/0": ROW[:5].tobytes()}),
    "has 28 bytes instead of 6": archive({**GOOD, "net/data/0": ROW.tobytes() + b"1234"}),
    "big-endian": archive({**GOOD, "net/byteorder": b"big"}),
    "description of tensors": archive({**GOOD, "net/data.pkl": PROGRAM + bytes(MAX_PROGRAM)}),
    "larger than the file": patched(archive(GOOD), struct.pack("<II", 24, 24), struct.pack("<II", 24, 2**31), 2),
    "should be short": archive({f"{i}" + "a" * 9999: b"" for i in range(430)}),
    "Bad CRC-32": patched(archive(GOOD), ROW.tobytes(), (ROW + 1).tobytes(), 1),
}


@pytest.mark.parametrize("words, content", ARCHIVES.items(), ids=ARCHIVES)
def test_hostile_archives_are_refused(tmp_path, words, content):
    (tmp_path / "net.pth").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError) as refusal:
        load_pth(tmp_path / "net.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert words.split(":")[0] in str(refusal.value)
    assert peak < 2 * len(content) + 2**20


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for data in (ROW, -ROW):
            target.writestr("net/data/0", data.tobytes())
        target.writestr("net/data.pkl", PROGRAM)
    with pytest.raises(InputError, match="two entries have one name"):
        load(tmp_path, file.getvalue())


LEGACY = pth.legacy_file(CONTENT, {"0": ROW.tobytes()})


@pytest.mark.parametrize(
    "before, after, words",
    [
        (b"little_endian\x88", b"little_endian\x89", "big-endian"),
        (pth.number(1001), pth.number(1002), "unknown version"),
        (pth.number(0x1950A86A20F9469CFC6C), pth.number(0x1950A86A20F9469CFC6D), "begins neither"),
        (struct.pack("<q", 6), struct.pack("<q", 7), "not those"),
        (struct.pack("<q", 6), struct.pack("<q", 2**62), "not those"),
        (struct.pack("<q", 6), struct.pack("<q", -1), "not those"),
        (b"X\x01\x00\x00\x000e", b"X\x01\x00\x00\x001e", "not those"),
        (b"X\x01\x00\x00\x000e", b"K\x00K\x00K\x00e", "not those"),
        (pth.number(6), pth.number(2**31 - 1), "not those"),
    ],
)
def test_hostile_legacy_files_are_refused(tmp_path, before, after, words):
    with pytest.raises(InputError, match=words):
        load(tmp_path, patched(LEGACY, before, after, LEGACY.count(before)) if len(before) == len(after) else b"")


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    """Two gigabytes are announced consistently, and 24 bytes are there."""
    content = in_dict(pth.tensor(pth.storage("0", "Float", 2**29), (2**29,)))
    files = {
        "ends too early": pth.legacy_file(content, {"0": ROW.tobytes()}, {"0": 2**29}),
        "has 24 bytes": pth.zip_file(content, {"0": ROW.tobytes()}),
        "larger than the file": patched(
            pth.zip_file(content, {"0": ROW.tobytes()}), struct.pack("<II", 24, 24), struct.pack("<II", 2**31, 2**31), 2
        ),
    }
    for words, data in files.items():
        (tmp_path / "net.pth").write_bytes(data)
        tracemalloc.start()
        with pytest.raises(InputError, match=words):
            load_pth(tmp_path / "net.pth")
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


@pytest.mark.parametrize("instruction", [b"]", b"}", b"(", b")\x85", b"N\x94", b"K\x01\x85"])
def test_many_small_objects_take_bounded_memory(tmp_path, monkeypatch, instruction):
    limit = 20_000
    monkeypatch.setattr("minicenternet.nn.pth.MAX_INSTRUCTIONS", limit)
    (tmp_path / "net.pth").write_bytes(pth.legacy_file(instruction * limit))
    tracemalloc.start()
    with pytest.raises(InputError, match="in more than 20000 instructions"):
        load_pth(tmp_path / "net.pth")
    assert tracemalloc.get_traced_memory()[1] < 128 * limit  # 64 MB for as many as are allowed
    tracemalloc.stop()


def test_long_descriptions_are_refused(tmp_path):
    with pytest.raises(InputError, match=f"in more than {MAX_INSTRUCTIONS} instructions"):
        load(tmp_path, pth.zip_file(b"](" + b"]" * 10**6 + b"e"))
    with pytest.raises(InputError, match="no .pth file"):
        load(tmp_path, pth.legacy_file(pth.text("a" * MAX_PROGRAM)))


@pytest.mark.parametrize("zipped", [False, True])
def test_files_cut_short_anywhere_are_refused(tmp_path, zipped):
    arrays = {"weight": ROW, "count": np.array(3, "<i8")}
    whole = pth.checkpoint(arrays, zipped=zipped)
    path = tmp_path / "net.pth"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"damaged|asks for"):  # a name that is cut short is another name
            load_pth(path)
    path.write_bytes(whole)
    assert_same(load_pth(path), arrays)


# ---- anything --------------------------------------------------------------------------------------------------------

SEEDS = [pth.checkpoint({"a": ROW, "b": np.array(3, "<i8")}, zipped=zipped) for zipped in (False, True)]
PIECES = [NAMED["runpy.run_path"], COMMAND, ORDERED, ROW_OF_6, b"R", b"Q", b"(", b"t", b"u", b"b", b"q\x00", b"h\x00"]


@settings(deadline=None, max_examples=300)
@given(seed=st.sampled_from(SEEDS), data=st.data())
def test_anything_is_an_input_error_or_harmless(tmp_path_factory, seed, data):
    """Bytes changed, cut out, put in or moved: arrays or an InputError in one line, and never another exception."""
    content = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(content)))
        stop = start + data.draw(st.integers(0, 8))
        content[start:stop] = data.draw(st.binary(max_size=8) | st.sampled_from(PIECES))
    path = tmp_path_factory.getbasetemp() / "anything.pth"
    path.write_bytes(content)
    try:
        arrays = load_pth(path)
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert sum(array.nbytes for array in arrays.values()) <= 4 * len(content)
