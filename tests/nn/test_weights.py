import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicenternet.errors import InputError
from minicenternet.nn.layers import BatchNorm2d
from minicenternet.nn.weights import load_weights, save_weights

ARRAYS = {
    "layer.0.weight": np.random.default_rng(0).standard_normal((2, 3, 4), dtype=np.float32),
    "double": np.linspace(0, 1, 5),
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "strided": np.arange(24, dtype=np.float32).reshape(4, 6).T[::2],
    "bytes": np.arange(5, dtype=np.uint8),
}


def assert_same(loaded, expected):
    assert loaded.keys() == expected.keys()
    for key, array in expected.items():
        assert loaded[key].dtype == array.dtype and loaded[key].shape == array.shape
        assert np.array_equal(loaded[key], array)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_round_trip(tmp_path, suffix):
    save_weights(tmp_path / f"w{suffix}", ARRAYS)
    arrays, metadata = load_weights(str(tmp_path / f"w{suffix}"))
    assert_same(arrays, ARRAYS)
    assert metadata == {}
    assert [path.name for path in tmp_path.iterdir()] == [f"w{suffix}"]


def test_metadata(tmp_path):
    metadata = {"task": "detection", "class_names": '["Fußgänger", "自転車"]', "empty": ""}
    save_weights(tmp_path / "w.safetensors", ARRAYS, metadata)
    assert load_weights(tmp_path / "w.safetensors")[1] == metadata


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_modules_state_comes_back(tmp_path, suffix):
    layer = BatchNorm2d(3)
    layer.running_mean[:] = 5
    layer.num_batches_tracked += 2
    save_weights(tmp_path / f"w{suffix}", layer.state_dict())
    other = BatchNorm2d(3)
    other.load_state_dict(load_weights(tmp_path / f"w{suffix}")[0])
    assert_same(other.state_dict(), layer.state_dict())


def test_loaded_arrays_may_be_written_to(tmp_path):
    for suffix in (".safetensors", ".npz"):
        save_weights(tmp_path / f"w{suffix}", ARRAYS)
        for array in load_weights(tmp_path / f"w{suffix}")[0].values():
            array[...] = 0


def test_safetensors_files_are_everybodys(tmp_path):
    from safetensors.numpy import load_file, save_file

    save_weights(tmp_path / "ours.safetensors", ARRAYS)
    assert_same(load_file(tmp_path / "ours.safetensors"), ARRAYS)
    save_file({"a": np.ones(3)}, tmp_path / "theirs.safetensors")
    assert_same(load_weights(tmp_path / "theirs.safetensors")[0], {"a": np.ones(3)})


def test_pytorch_and_this_package_exchange_safetensors(tmp_path, torch):
    from safetensors.torch import load_file, save_file

    ours, theirs = BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    ours.running_mean[:], ours.weight.data[:] = 5, (1, 2, 3)
    save_weights(tmp_path / "ours.safetensors", ours.state_dict(), {"task": "detection"})
    theirs.load_state_dict(load_file(tmp_path / "ours.safetensors"))
    assert theirs.running_mean.tolist() == [5, 5, 5] and theirs.weight.tolist() == [1, 2, 3]
    theirs.running_var[:] = 7
    theirs.num_batches_tracked += 4
    save_file(theirs.state_dict(), tmp_path / "theirs.safetensors", {"format": "pt"})
    ours.load_state_dict(load_weights(tmp_path / "theirs.safetensors")[0])
    assert ours.running_var.tolist() == [7, 7, 7] and ours.num_batches_tracked == 4
    half = {"a": torch.tensor([1.5, 2.5], dtype=torch.float16), "b": torch.arange(6).view(2, 3)}
    save_file(half, tmp_path / "half.safetensors")
    assert_same(load_weights(tmp_path / "half.safetensors")[0], {key: value.numpy() for key, value in half.items()})


def test_an_old_file_survives_a_failed_save(tmp_path):
    save_weights(tmp_path / "w.npz", {"a": np.ones(3)})
    with pytest.raises(InputError, match=r"cannot save weights as w\.npz: expected \.safetensors, or \.npz without"):
        save_weights(tmp_path / "w.npz", {"a": np.zeros(3)}, {"some": "metadata"})
    assert load_weights(tmp_path / "w.npz")[0]["a"].all()
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot save weights as w\.pth"):
        save_weights(tmp_path / "w.pth", ARRAYS)
    (tmp_path / "w.pkl").write_bytes(b"x")
    with pytest.raises(
        InputError, match=r"cannot read weights from w\.pkl: expected a \.safetensors, \.npz, \.pth or \.pt"
    ):
        load_weights(tmp_path / "w.pkl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no weights at .*best\.safetensors; check the path"):
        load_weights(tmp_path / "best.safetensors")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError, match=r"no weights at .*folder\.npz"):
        load_weights(tmp_path / "folder.npz")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a weight file executed code",)


def test_pickles_are_never_opened(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([Bomb()], object))
    with pytest.raises(InputError, match="damaged or no npz file"):
        load_weights(tmp_path / "w.npz")
    for name in ("p.npz", "p.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(InputError, match="damaged or no"):
            load_weights(tmp_path / name)


def test_an_npy_file_by_another_name(tmp_path):
    np.save(tmp_path / "w.npy", np.ones(3))
    (tmp_path / "w.npy").rename(tmp_path / "w.npz")
    with pytest.raises(InputError, match="damaged or no npz file"):
        load_weights(tmp_path / "w.npz")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the bytes of a good file of each kind, and where to put damaged ones."""
    folder = tmp_path_factory.mktemp("weights")
    arrays = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(1)}
    for suffix in (".safetensors", ".npz"):
        save_weights(folder / f"w{suffix}", arrays)
    return {suffix: (folder / f"w{suffix}").read_bytes() for suffix in (".safetensors", ".npz")}, folder


@settings(deadline=None, max_examples=150)
@given(suffix=st.sampled_from([".safetensors", ".npz"]), data=st.data())
def test_damage_is_an_input_error_or_harmless(whole, suffix, data):
    """Cut short, or with some bytes changed: never another exception."""
    originals, folder = whole
    content = bytearray(originals[suffix])
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / f"damaged{suffix}").write_bytes(content)
    try:
        load_weights(folder / f"damaged{suffix}")
    except InputError as error:
        assert "damaged" in str(error)
