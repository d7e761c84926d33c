import gc
import sys
import threading
import weakref

import numpy as np
import pytest
from gradients import check

from minicenternet import ops
from minicenternet.autograd import Tensor, checkpoint, differentiable, no_grad, running_again

rng = np.random.default_rng(0)


@pytest.fixture
def without_collector():
    gc.disable()
    yield
    gc.enable()


def leaf(*shape):
    return Tensor(rng.standard_normal(shape), requires_grad=True)


# --- the chain rule ---------------------------------------------------------------------------------------------------


def test_a_tensor_used_several_times_gets_the_sum():
    x = leaf(3)
    (x * x + 3 * x + x).sum().backward()
    np.testing.assert_allclose(x.grad, 2 * x.data + 4)


def test_diamonds():
    def diamonds(x, y):
        a = ops.exp(x * y)
        b, c = a * x, a + y
        d = b * c  # a by two ways, x and y by three
        return d * a + d

    check(diamonds, rng.standard_normal(4), rng.standard_normal(4))


def test_both_arguments_are_one_tensor():
    x = leaf(3)
    ops.mul(x, x).backward(np.ones(3))
    np.testing.assert_allclose(x.grad, 2 * x.data)


def test_gradients_add_up_over_losses_until_they_are_forgotten():
    x = leaf(3)
    (2 * x).sum().backward()
    (5 * x).sum().backward()
    assert x.grad.tolist() == [7, 7, 7]
    x.grad = None
    x.sum().backward()
    assert x.grad.tolist() == [1, 1, 1]


def test_adding_up_does_not_write_into_the_gradients_of_others():
    """x and y are given the same array as their gradient; the second loss must not reach y through it."""
    x, y = leaf(3), leaf(3)
    (x + y).backward(np.ones(3))
    x.sum().backward()
    assert x.grad.tolist() == [2, 2, 2] and y.grad.tolist() == [1, 1, 1]


def test_large_gradients_add_up_in_place_without_writing_into_others():
    """Arrays over 1 MB are added into the first sum; the gradients that were handed in stay as they were."""
    x = Tensor(np.ones((300, 1000), np.float32), requires_grad=True)
    gradient = np.full(x.shape, 2, np.float32)
    middle = 1 * x
    total = middle + middle + middle + x
    total.backward(gradient)
    assert (x.grad == 8).all() and (gradient == 2).all()


def test_only_leaves_that_asked_get_a_gradient():
    x, constant = leaf(2, 3), Tensor(np.ones((2, 3)))
    middle = x * constant
    (middle * np.ones((2, 3))).sum().backward()
    assert x.grad.shape == (2, 3)
    assert constant.grad is None and middle.grad is None


def test_a_graph_of_constants_is_not_recorded():
    y = Tensor(np.ones(3)) * 2 + 1
    assert not y.requires_grad and y.node is None
    with pytest.raises(RuntimeError, match="not recorded: no input had requires_grad=True"):
        y.sum().backward()


def test_broadcast_arguments_keep_their_shapes():
    bias, scale, number = leaf(4), leaf(3, 1), leaf()
    (np.ones((2, 3, 4)) * scale + bias - number).sum().backward()
    np.testing.assert_allclose(bias.grad, np.full(4, 6.0))
    np.testing.assert_allclose(scale.grad, np.full((3, 1), 8.0))
    assert number.grad.shape == () and number.grad == -24


def test_an_op_may_have_no_gradient_for_an_argument():
    @differentiable
    def stop(x, y):
        return x + y, lambda dy: (None, dy)

    x, y, z = leaf(2), leaf(2), leaf(2)
    twice = z * 2
    (stop(x * 2, y) + stop(twice, twice)).sum().backward()
    assert x.grad is None and y.grad.tolist() == [1, 1] and z.grad.tolist() == [2, 2]


def test_detach_cuts_the_graph_and_shares_the_data():
    x = leaf(3)
    y = x * 2
    assert not y.detach().requires_grad and y.detach().data is y.data
    (y.detach() * x).sum().backward()
    np.testing.assert_allclose(x.grad, 2 * x.data)


def test_raw_is_the_function_of_arrays():
    x = rng.standard_normal(3)
    y, backward = ops.exp.raw(x)
    assert type(y) is np.ndarray and np.array_equal(y, np.exp(x))
    assert np.array_equal(backward(np.ones(3))[0], y)


def test_float32_stays_float32():
    x = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    y = 2 * x + 0.5 - x / 3 + x**2 * x.mean()
    assert y.dtype == np.float32
    y.sum().backward()
    assert x.grad.dtype == np.float32


def test_numbers_become_float32():
    assert Tensor(1.5).dtype == Tensor([1, 2]).dtype == np.float32


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_second_backward_says_so():
    x = leaf(3)
    y = ops.exp(x)
    loss = y.sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second backward through sum: its closure was dropped"):
        loss.backward()
    with pytest.raises(RuntimeError, match="second backward through exp"):
        (y * 2).sum().backward()


def test_a_gradient_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"gradient has shape \(2,\), expected \(3,\)"):
        (leaf(3) * 2).backward(np.ones(2))


def test_a_tensor_as_the_first_gradient_is_refused():
    with pytest.raises(TypeError, match="backward begins with is a Tensor; give an array, such as its .data"):
        (leaf(3) * 2).backward(leaf(3))


@pytest.mark.parametrize("gradients", [lambda dx: dx, lambda dx: (dx.sum(),), lambda dx: (dx[:1],)])
def test_a_backward_of_another_shape_names_its_op(gradients):
    """Where the comma of a tuple was forgotten, the rows of an array are taken for the gradients of the arguments."""

    @differentiable
    def twice(x):
        return 2 * x, lambda dy: gradients(2 * dy)

    with pytest.raises(ValueError, match=r"the backward of twice gave a gradient of shape \(.*\) for an argument of"):
        twice(leaf(3)).sum().backward()


def test_data_that_is_a_tensor_is_refused():
    with pytest.raises(TypeError, match="the data of a Tensor is an array, got a Tensor; give its .data"):
        Tensor(leaf(3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_number_of_numpy_becomes_an_array_where_gradients_are_asked(dtype):
    x = Tensor(dtype(1.5), requires_grad=True)
    x.data[...] = 2
    assert type(x.data) is np.ndarray and x.dtype == dtype and x.item() == 2


@pytest.mark.parametrize("wide", [np.float64(0.5), np.full(3, 0.5), np.array([1, 2, 3])])
@pytest.mark.parametrize("op", [ops.add, ops.sub, ops.mul, ops.div, ops.maximum])
def test_a_gradient_has_the_dtype_of_its_tensor(op, wide):
    """Although NumPy makes float64 of a float32 Tensor and float64 or integers."""
    x = Tensor(np.array([1, -2, 4], np.float32), requires_grad=True)
    y = op(x, wide)
    y.sum().backward()
    assert y.dtype == np.float64 and x.grad.dtype == np.float32
    (x * 2).backward(np.array([1, 2, 3]))
    assert x.grad.dtype == np.float32


def test_only_a_scalar_needs_no_gradient():
    with pytest.raises(ValueError, match=r"backward from shape \(3,\) needs a gradient of that shape"):
        (leaf(3) * 2).backward()
    x = leaf(1, 1)
    (x * 2).backward()
    assert x.grad.tolist() == [[2]]


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool, np.float16, np.complex128])
def test_gradients_need_float32_or_float64(dtype):
    with pytest.raises(TypeError, match=f"gradients need float32 or float64, got {np.dtype(dtype)}"):
        Tensor(np.zeros(3, dtype), requires_grad=True)
    assert Tensor(np.zeros(3, dtype)).dtype == dtype


def test_a_tensor_as_an_option_is_refused():
    with pytest.raises(TypeError, match="leaky_relu: slope is a Tensor; give it by position"):
        ops.leaky_relu(leaf(3), slope=Tensor(np.array(0.1)))


# --- no_grad ----------------------------------------------------------------------------------------------------------


def test_no_grad_records_nothing_and_is_undone_by_an_exception():
    x = leaf(3)
    with no_grad():
        assert not (x * 2).requires_grad
        with no_grad():
            pass
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (x * 2).requires_grad


def test_no_grad_holds_for_its_own_thread_only():
    x, inside, seen = leaf(3), threading.Event(), []

    def other():
        inside.wait()
        seen.append((x * 2).requires_grad)
        with no_grad():
            seen.append((x * 2).requires_grad)

    thread = threading.Thread(target=other)
    thread.start()
    with no_grad():
        inside.set()
        thread.join()
    assert seen == [True, False]
    assert (x * 2).requires_grad


def test_threads_record_their_own_graphs():
    """Each thread builds and walks its own graphs of a shared constant; the numbering of nodes is common."""
    constant, results = Tensor(rng.standard_normal(50)), {}

    def work(i):
        x = Tensor(np.full(50, float(i)), requires_grad=True)
        for _ in range(50):
            y = x * constant
            for _ in range(10):
                y = y + x
            y.sum().backward()
        results[i] = x.grad

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for gradient in results.values():
        np.testing.assert_allclose(gradient, 50 * (constant.data + 10))
    assert len(results) == 4


# --- long graphs and memory -------------------------------------------------------------------------------------------


def test_a_chain_of_5000_ops_needs_no_recursion(without_collector):
    depth = sys.getrecursionlimit() * 5
    assert depth >= 5000
    x = leaf(2)
    y = x
    for _ in range(depth):
        y = y + x
    y.sum().backward()
    assert x.grad.tolist() == [depth + 1, depth + 1]
    y = x
    for _ in range(depth):
        y = y + x
    reference = weakref.ref(y.data)
    del y  # never gone back through: the chain is freed link by link
    assert reference() is None


def network(x):
    """Return a loss, and weak references to the arrays of every activation."""
    activations = [x * 2]
    for op in (ops.relu, ops.exp, ops.sigmoid, ops.abs):
        activations.append(op(activations[-1]))
    activations.append(activations[-1] * activations[0])
    return activations[-1].sum(), [weakref.ref(tensor.data) for tensor in activations]


def test_dropping_the_loss_frees_the_graph(without_collector):
    loss, activations = network(leaf(1000))
    assert all(reference() is not None for reference in activations)
    del loss
    assert all(reference() is None for reference in activations)


def test_backward_frees_the_graph_even_where_the_loss_is_kept(without_collector):
    loss, activations = network(leaf(1000))
    loss.backward()
    assert all(reference() is None for reference in activations)


def test_activations_are_freed_while_the_pass_runs(without_collector):
    references, alive = [], []

    @differentiable
    def double(x):
        def backward(dy):
            alive.append(sum(reference() is not None for reference in references))
            return (2 * dy,)

        return 2 * x, backward

    y = leaf(1000)
    for _ in range(6):
        y = double(y)
        references.append(weakref.ref(y.data))
    loss = y.sum()
    del y
    loss.backward()
    assert alive == [6, 5, 4, 3, 2, 1]


def test_a_closure_is_dropped_after_its_use(without_collector):
    kept = []

    @differentiable
    def keeping(x):
        extra = np.ones(1000)
        kept.append(weakref.ref(extra))
        return x * 1, lambda dy: (dy * extra,)

    loss = keeping(keeping(leaf(1000))).sum()
    loss.backward()
    assert all(reference() is None for reference in kept)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_exception_leaves_no_cycle(where, without_collector):
    @differentiable
    def failing(x):
        def backward(dy):
            raise ArithmeticError

        if where == "forward":
            raise ArithmeticError
        return x * 1, backward

    def step(references):
        y = leaf(1000) * 2
        references.append(weakref.ref(y.data))
        failing(y).sum().backward()

    references = []
    try:
        step(references)
    except ArithmeticError:
        pass
    assert references[0]() is None


X = rng.standard_normal((2, 4, 4, 3))
KEEPS_NOTHING = {
    "add": lambda x: ops.add.raw(x, X),
    "add to": lambda x: ops.add.raw(X, x),
    "sub": lambda x: ops.sub.raw(x, X),
    "neg": lambda x: ops.neg.raw(x),
    "sum": lambda x: ops.sum.raw(x, (1, 2)),
    "mean": lambda x: ops.mean.raw(x, (1, 2)),
    "reshape": lambda x: ops.reshape.raw(x, (-1,)),
    "transpose": lambda x: ops.transpose.raw(x, (0, 3, 1, 2)),
    "slice": lambda x: ops.slice.raw(x, np.s_[:, 1:]),
    "concatenate": lambda x: ops.concatenate.raw(x, X),
    "pad": lambda x: ops.pad.raw(x, ((0, 0), (1, 1), (1, 1), (0, 0))),
    "relu": lambda x: ops.relu.raw(x),
    "exp": lambda x: ops.exp.raw(x),
    "sigmoid": lambda x: ops.sigmoid.raw(x),
    "sqrt": lambda x: ops.sqrt.raw(abs(x)),
    "avg_pool2d": lambda x: ops.avg_pool2d.raw(x),
    "upsample2d nearest": lambda x: ops.upsample2d.raw(x),
    "upsample2d bilinear": lambda x: ops.upsample2d.raw(x, mode="bilinear"),
    "gather_points": lambda x: ops.gather_points.raw(x, np.zeros((2, 1), int)),
}


@pytest.mark.parametrize("name", KEEPS_NOTHING)
def test_ops_keep_no_argument_that_backward_does_not_need(name, without_collector):
    x = X.copy()
    reference = weakref.ref(x)
    _, backward = KEEPS_NOTHING[name](x)
    del x, _
    assert reference() is None
    del backward


def test_max_pool2d_keeps_its_input_and_no_larger_copy():
    _, backward = ops.max_pool2d.raw(X)
    arrays = [cell.cell_contents for cell in backward.__closure__ if isinstance(cell.cell_contents, np.ndarray)]
    assert max(array.size for array in arrays) == X.size


# --- checkpoints -----------------------------------------------------------------------------------------------------


def same_bits(function, *arrays):
    """The gradients of function(wrap, *Tensors) are the same whether wrap(part, *Tensors) is a checkpoint or a call."""
    found = []
    for wrap in (lambda part, *tensors: part(*tensors), checkpoint):
        leaves = [Tensor(array.copy(), requires_grad=True) for array in arrays]
        y = function(wrap, *leaves)
        y.backward(np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype))
        found.append([y.data, *(leaf.grad for leaf in leaves)])
    for plain, again in zip(*found, strict=True):
        assert plain.dtype == again.dtype and np.array_equal(plain, again)


def one(wrap, x, weight):
    return wrap(lambda x: ops.exp(x * weight) * x, x * 2)


def many_uses(wrap, x, weight):
    """Gradients of x and of the weight are sums of several parts, some of which do not come from the checkpoint."""
    x = x * 2
    y = wrap(lambda a: ops.exp(a) * weight + a * a * weight, x)
    return y * x + ops.sigmoid(x) * weight + y


def several(wrap, x, weight):
    """Two inputs and three results, of which one is an input and one is not used."""
    a, b, _ = wrap(lambda x, w: [x * w, x, x + w], x * 1, weight * 1)
    return a * b


def nested(wrap, x, weight):
    return wrap(lambda x: wrap(lambda x: ops.exp(x * weight), x * weight) + wrap(ops.sigmoid, x), x * 3)


def closed_over(wrap, x, weight):
    """What the function reads beside its arguments was computed, too, and is read by others before and after."""
    w = weight * weight
    first = wrap(lambda x: x * w + ops.exp(w), x)
    return wrap(lambda y: y * w + x, first * w) + first * w


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", [one, many_uses, several, nested, closed_over])
def test_a_checkpoint_changes_no_bit(function, dtype):
    same_bits(function, *rng.standard_normal((2, 3, 5)).astype(dtype))


@pytest.mark.parametrize("function", [one, many_uses, several, nested, closed_over])
def test_gradients_of_checkpoints(function):
    check(lambda x, weight: function(checkpoint, x, weight), *rng.standard_normal((2, 3, 5)))


def test_a_chain_of_checkpoints_reuses_ids_without_harm():
    """The Tensors of one second run lie where those of the run before lay; which sums were whose is not mixed up."""

    def part(x):
        v, u = ops.sigmoid(x), x * 0.5
        e = ops.sigmoid(u)
        return (u + v) + e  # u and v are given one array, then u its second part, which must not be written over it

    def chain(wrap, x):
        for _ in range(20):
            x = wrap(part, x)
        return x

    same_bits(chain, rng.standard_normal((600, 500)).astype(np.float32))  # large enough to be added up in place


def test_a_checkpoint_of_constants_still_gives_to_parameters():
    weight, constant = leaf(3), Tensor(np.ones(3))
    checkpoint(lambda x: x * weight, constant).sum().backward()
    assert weight.grad.tolist() == [1, 1, 1] and constant.grad is None
    y, same = checkpoint(lambda x: (x * weight, x), constant)
    (y * same).sum().backward()
    assert weight.grad.tolist() == [2, 2, 2] and constant.grad is None


def test_a_checkpoint_keeps_nothing_and_runs_again_once(without_collector):
    references, runs = [], []

    def function(x):
        runs.append(running_again())
        y = ops.exp(x)
        references.append(weakref.ref(y.data))
        return ops.sigmoid(y)

    x = leaf(1000)
    loss = checkpoint(function, x * 2).sum()
    assert runs == [False] and references[0]() is None
    loss.backward()
    assert runs == [False, True] and references[1]() is None and not running_again()
    with pytest.raises(RuntimeError, match="second backward through sum"):
        loss.backward()


def test_only_one_checkpoint_is_open_at_a_time(without_collector):
    references, alive = [], []

    def function(x):
        alive.append(sum(reference() is not None for reference in references))
        y = ops.sigmoid(x)
        references.append(weakref.ref(y.data))
        return y * 1

    y = leaf(1000)
    for _ in range(4):
        y = checkpoint(function, y)
    loss = y.sum()
    del y
    loss.backward()
    assert alive == [0] * 8


def test_a_second_backward_through_a_checkpoint_says_so():
    y = checkpoint(ops.exp, leaf(3))
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second backward through checkpoint"):
        (y * 2).sum().backward()


def test_inside_no_grad_a_checkpoint_is_the_plain_call():
    with no_grad():
        y = checkpoint(ops.exp, leaf(3))
    assert not y.requires_grad and y.node is None


def test_backward_inside_no_grad_records_the_second_run():
    x = leaf(3)
    loss = checkpoint(ops.exp, x).sum()
    with no_grad():
        loss.backward()
        assert not (x * 2).requires_grad
    np.testing.assert_array_equal(x.grad, np.exp(x.data))


def test_an_exception_in_the_second_run_leaves_the_tape_as_it_was():
    def function(x):
        if running_again():
            raise ArithmeticError
        return x * 2

    loss = checkpoint(function, leaf(3)).sum()
    with pytest.raises(ArithmeticError):
        loss.backward()
    assert not running_again() and (leaf(3) * 2).requires_grad


# --- the rest of Tensor -----------------------------------------------------------------------------------------------


def test_what_a_tensor_tells():
    x = Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    assert (x.shape, x.dtype, x.ndim, x.size, len(x)) == ((2, 3), np.float64, 2, 6, 2)
    assert x.numpy() is x.data and x[1, 2].item() == 5
    assert "requires_grad" in repr(x) and "made by mul" in repr(x * 2)


def test_a_misspelt_attribute_raises():
    with pytest.raises(AttributeError):
        leaf(2).require_grad = False


def test_a_leaf_may_be_gone_back_from():
    x = Tensor(np.full(3, 2.0), requires_grad=True)
    x.backward(np.arange(3.0))
    assert x.grad.tolist() == [0, 1, 2]


def test_a_leaf_is_ready_as_soon_as_all_its_uses_were_gone_through():
    went_through, ready = [], []

    def op(name):
        @differentiable
        def product(x, w):
            def backward(dy):
                went_through.append(name)
                return dy * w, dy * x

            return x * w, backward

        return product

    first, second, twice = (Tensor(np.full(2, value), requires_grad=True) for value in (2.0, 3.0, 5.0))
    names = {id(first): "first", id(second): "second", id(twice): "twice"}
    x = op("a")(Tensor(np.ones(2)), first)
    x = op("b")(x, twice)
    x = op("c")(x, second)
    x = op("d")(x, twice)
    x.sum().backward(ready=lambda leaf: ready.append((names[id(leaf)], "".join(went_through), leaf.grad[0])))
    # of `twice`, used by d and b, the gradient is complete after b; the values are those of 2 * 5 * 3 * 5
    assert ready == [("second", "dc", 50.0), ("twice", "dcb", 60.0), ("first", "dcba", 75.0)]


@pytest.mark.parametrize("function", [np.asarray, np.exp, lambda x: np.maximum(x, 0), lambda x: np.stack([x])])
def test_functions_of_numpy_refuse_a_tensor(function):
    """They would go around the tape, or make arrays of single Tensors."""
    with pytest.raises(TypeError, match=r"given a Tensor; use one of minicenternet.ops, or give it .numpy\(\)"):
        function(Tensor(np.ones((2, 3), np.float32), requires_grad=True))
