import re

import numpy as np
import pytest

from minicenternet import ops
from minicenternet.autograd import Tensor
from minicenternet.errors import InputError
from minicenternet.nn import module as module_file
from minicenternet.nn.layers import BatchNorm2d, Conv2d, ReLU, Sequential
from minicenternet.nn.module import Module, Parameter, first_nonfinite, watching


class Block(Module):
    def __init__(self, rng):
        self.conv = Conv2d(3, 4, 3, padding=1, bias=False, rng=rng)
        self.bn = BatchNorm2d(4)
        self.scale = Parameter(np.ones(4, np.float32))
        self.shortcut = None
        self.tail = Sequential(Conv2d(4, 2, 1, rng=rng), ReLU())

    def forward(self, x):
        return self.tail(self.bn(self.conv(x)) * self.scale)


@pytest.fixture
def block():
    return Block(np.random.default_rng(0))


@pytest.fixture
def x():
    return Tensor(np.random.default_rng(1).standard_normal((2, 5, 4, 3), dtype=np.float32))


KEYS = {
    "scale": (4,),
    "conv.weight": (4, 3, 3, 3),
    "bn.weight": (4,),
    "bn.bias": (4,),
    "bn.running_mean": (4,),
    "bn.running_var": (4,),
    "bn.num_batches_tracked": (),
    "tail.0.weight": (2, 4, 1, 1),
    "tail.0.bias": (2,),
}


def test_keys_are_attribute_paths(block):
    assert {key: array.shape for key, array in block.state_dict().items()} == KEYS
    assert list(block.state_dict()) == list(KEYS)
    assert [key for key, _ in block.named_parameters()] == [
        "scale", "conv.weight", "bn.weight", "bn.bias", "tail.0.weight", "tail.0.bias",
    ]  # fmt: skip
    assert [path for path, _ in block.named_modules()] == ["", "conv", "bn", "tail", "tail.0", "tail.1"]


def test_keys_and_shapes_are_pytorchs(torch, block):
    class Twin(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.bn = torch.nn.BatchNorm2d(4)
            self.scale = torch.nn.Parameter(torch.ones(4))
            self.tail = torch.nn.Sequential(torch.nn.Conv2d(4, 2, 1), torch.nn.ReLU())

    twin = {key: tuple(value.shape) for key, value in Twin().state_dict().items()}
    assert twin == KEYS and list(twin) == list(KEYS)


def test_state_dict_holds_the_modules_own_arrays(block):
    block.state_dict()["bn.running_mean"][:] = 7
    assert (block.bn.running_mean == 7).all()


def test_loading_copies_and_converts(block, x):
    other = Block(np.random.default_rng(5))
    state = {key: array.astype(np.float64) for key, array in other.state_dict().items()}
    block.load_state_dict(state)
    state["scale"][:] = 9
    assert all(np.array_equal(a, other.state_dict()[key]) for key, a in block.state_dict().items())
    assert block.conv.weight.dtype == np.float32 and block.bn.num_batches_tracked.dtype == np.int64
    assert np.array_equal(block.eval()(x).data, other.eval()(x).data)


def test_one_message_names_every_key_that_does_not_fit(block):
    before = {key: array.copy() for key, array in block.state_dict().items()}
    state = {key: array + 1 for key, array in before.items()}
    del state["conv.weight"], state["bn.bias"]
    state["head.weight"] = np.zeros((2, 3))
    state["scale"] = np.zeros(5)
    state["bn.num_batches_tracked"] = np.zeros(1)
    with pytest.raises(InputError) as caught:
        block.load_state_dict(state)
    assert str(caught.value).splitlines() == [
        "the weights do not fit this Block:",
        "  missing: conv.weight [4, 3, 3, 3]",
        "  missing: bn.bias [4]",
        "  unexpected: head.weight [2, 3]",
        "  misshapen: scale is [5], expected [4]",
        "  misshapen: bn.num_batches_tracked is [1], expected []",
    ]
    assert all(np.array_equal(before[key], array) for key, array in block.state_dict().items())


def test_a_misspelt_attribute_raises_and_suggests(block):
    with pytest.raises(AttributeError, match="Block has no attribute 'trainning'; did you mean 'training'?"):
        block.trainning = False
    with pytest.raises(AttributeError, match="Conv2d has no attribute 'strid'; did you mean 'stride'?"):
        block.conv.strid = 2
    block.conv.stride = 2
    block.shortcut = ReLU()
    assert "shortcut" in dict(block.children())


def test_train_and_eval_reach_all_modules(block):
    assert all(module.training for _, module in block.named_modules())
    assert block.eval() is block
    assert not any(module.training for _, module in block.named_modules())
    block.train()
    assert all(module.training for _, module in block.named_modules())


def test_training_mode_moves_the_running_statistics_only_there(block, x):
    block.eval()(x)
    assert not block.bn.running_mean.any() and block.bn.num_batches_tracked == 0
    block.train()(x)
    assert block.bn.running_mean.all() and block.bn.num_batches_tracked == 1


def test_gradients_reach_every_parameter_and_are_forgotten(block, x):
    block(x).sum().backward()
    assert all(p.grad.shape == p.shape for p in block.parameters())
    block.zero_grad()
    assert all(p.grad is None for p in block.parameters())


def test_astype_converts_parameters_and_statistics(block, x):
    block(x).sum().backward()
    block.astype(np.float64)
    dtypes = {key: array.dtype for key, array in block.state_dict().items()}
    assert dtypes.pop("bn.num_batches_tracked") == np.int64
    assert set(dtypes.values()) == {np.dtype(np.float64)}
    assert all(p.grad is None for p in block.parameters())
    assert block(Tensor(x.data.astype(np.float64))).dtype == np.float64


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        Module()(1)


def test_an_array_is_refused(cupy):
    layer = Conv2d(3, 4, 3)
    for array in (np.zeros((1, 8, 8, 3)), cupy.zeros((1, 8, 8, 3))):
        with pytest.raises(TypeError, match=re.escape("Conv2d takes Tensors, got an array (1, 8, 8, 3)")):
            layer(array)


def test_watching_sees_inner_modules_first_and_ends(block, x):
    seen = []
    with pytest.raises(KeyError), watching(lambda module, inputs, output: seen.append((type(module), output.shape))):
        block(x)
        raise KeyError
    assert [kind for kind, _ in seen] == [Conv2d, BatchNorm2d, Conv2d, ReLU, Sequential, Block]
    assert seen[0][1] == (2, 5, 4, 4) and seen[-1][1] == (2, 5, 4, 2)
    assert module_file._watchers == []


def test_the_first_layer_with_nan_is_named(block, x):
    assert first_nonfinite(block, x) is None
    block.tail[0].weight.data[0, 0] = np.nan
    assert first_nonfinite(block, x) == (
        "tail.0 (Conv2d) is the first layer with NaN or infinity; its parameter weight is not finite"
    )


def test_a_layer_that_overflows_is_named(block, x):
    block.bn.weight.data[:] = 1e38
    block.bn.bias.data[:] = 3e38
    assert (
        first_nonfinite(block, x)
        == "bn (BatchNorm2d) is the first layer with NaN or infinity; its parameters are finite"
    )


def test_nan_in_one_of_several_maps_is_found():
    class Heads(Module):
        def forward(self, x):
            return {"a": x, "b": ops.log(x)}

    assert first_nonfinite(Heads(), Tensor(np.ones(2))) is None
    assert "Heads is the first layer" in first_nonfinite(Heads(), Tensor(np.zeros(2))).replace(" (Heads)", "")


class Tied(Module):
    """One Parameter and one layer, each under two names."""

    def __init__(self):
        self.encoder = Parameter(np.ones(3, np.float32))
        self.decoder = self.encoder
        self.conv = Conv2d(1, 1, 1, rng=np.random.default_rng(0))
        self.again = Sequential(self.conv)


def test_a_parameter_in_several_places_is_one_parameter_and_several_keys():
    tied = Tied()
    assert [key for key, _ in tied.named_parameters()] == ["encoder", "conv.weight", "conv.bias"]
    assert tied.parameters() == [tied.encoder, tied.conv.weight, tied.conv.bias]
    assert {"encoder", "decoder", "conv.bias", "again.0.bias"} < tied.state_dict().keys()


@pytest.mark.parametrize("bad", [np.array(["a", "b"]), np.array([1j, 2]), np.array([None, 1])])
def test_what_is_no_real_number_is_refused_and_nothing_changes(bad):
    layer = Conv2d(1, 2, 1, rng=np.random.default_rng(0))
    before = {key: array.copy() for key, array in layer.state_dict().items()}
    with pytest.raises(InputError, match=f"  no array of real numbers: bias is {bad.dtype}"):
        layer.load_state_dict({"weight": before["weight"] + 1, "bias": bad})
    assert all(np.array_equal(before[key], array) for key, array in layer.state_dict().items())
