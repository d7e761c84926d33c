"""Ranks on GPUs: here threads, whose NCCL is tests/cuda_on_cpu/nccl.py."""

import os

import numpy as np
import pytest
from on_gpu import nothing_read
from ranks import in_ranks
from test_distributed import batch_of
from test_gpu_step import move

from minicenternet import CenterNet, ops
from minicenternet.autograd import Tensor
from minicenternet.distributed import GradientSum, World
from minicenternet.optim import SGD
from minicenternet.points.losses import shares_of

pytestmark = pytest.mark.skipif(
    os.environ.get("MINICENTERNET_DEVICE") == "cuda", reason="several ranks need several GPUs, and a program for each"
)


def test_sums_and_collections_on_the_gpu(cupy):
    given = np.arange(12, dtype=np.float32).reshape(3, 2, 2)

    def rank(world):
        array = cupy.asarray(given[world.rank])
        return world.sum(array).get(), world.collect(array.T).get(), array.get()

    for number, (total, collected, own) in enumerate(in_ranks(3, rank)):
        np.testing.assert_array_equal(total, given.sum(0))
        np.testing.assert_array_equal(collected, given.transpose(0, 2, 1))
        np.testing.assert_array_equal(own, given[number])


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_over_ranks(cupy, relu):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((4, 3, 5, 6)) * 2 + 5).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    weight, bias = rng.standard_normal((2, 6)).astype(np.float32)

    def normalised(x, dy, to_device=np.array, world=None):
        arrays = [to_device(array) for array in (x, weight, bias, np.zeros(6, np.float32), np.ones(6, np.float32))]
        y, backward = ops.batch_norm.raw(*arrays, relu=relu, training=True, world=world)
        return [getattr(a, "get", lambda a=a: a)() for a in (y, *backward(to_device(dy))[:3], *arrays[3:])]

    whole = normalised(x.astype(np.float64), dy.astype(np.float64))
    parts = (slice(0, 2), slice(2, 4))
    ranks = in_ranks(2, lambda world: normalised(x[parts[world.rank]], dy[parts[world.rank]], cupy.asarray, world))
    for i in (0, 1):
        np.testing.assert_allclose(np.concatenate([rank[i] for rank in ranks]), whole[i], atol=1e-5)
    for i in (2, 3):
        np.testing.assert_allclose(sum(rank[i] for rank in ranks), whole[i], atol=1e-4)
    for rank in ranks:
        np.testing.assert_allclose(rank[4], whole[4], rtol=1e-5)
        np.testing.assert_allclose(rank[5], whole[5], rtol=1e-5)


def test_two_gpus_train_as_one_process_on_the_cpu_does_and_read_nothing_on_the_host(cupy):
    names = ["circle", "square", "star"]
    whole = batch_of(4, size=32)

    def trained(world, to_device=np.array):
        model = move(CenterNet("small", class_names=names, input_size=(32, 32)), to_device)
        optimiser, gradients = SGD(model.named_parameters(), 0.01), GradientSum(world, model.parameters(), 1 << 14)
        if world.size > 1:
            model.synchronise(world)
        batch = {key: to_device(array[world.rank :: world.size]) for key, array in whole.items()}
        for _ in range(2):
            xp = np if to_device is np.array else cupy
            counts = xp.stack([(batch["heatmap"] == 1).sum(), batch["mask"].sum()]).astype(np.float32)
            shares = shares_of(counts, world.sum(counts))
            total, _ = model.task.loss(model(Tensor(batch["image"])), batch, shares=shares)
            model.zero_grad()
            total.backward(ready=gradients.note)
            gradients.finish()
            optimiser.step()
        return model.state_dict()

    def on_gpu(world):
        with nothing_read(cupy):
            return trained(world, cupy.asarray)

    ranks = in_ranks(2, on_gpu)
    for key, expected in trained(World()).items():
        for state in ranks:
            actual = getattr(state[key], "get", lambda key=key, state=state: state[key])()
            np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-4, err_msg=key)
