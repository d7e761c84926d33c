import numpy as np
import pytest
from ranks import in_ranks

from minicenternet import CenterNet, ops
from minicenternet.autograd import Tensor
from minicenternet.data import Shapes
from minicenternet.data.loader import Loader
from minicenternet.distributed import GradientSum, World, ending_together, join
from minicenternet.errors import InputError
from minicenternet.examples import TrainingExample
from minicenternet.nn.layers import BatchNorm2d
from minicenternet.nn.module import Parameter
from minicenternet.optim import SGD, Adam
from minicenternet.points.losses import detection_loss, shares_of


def parameters(sizes):
    return [Parameter(np.zeros(size, np.float32)) for size in sizes]


def example_of(size, classes):
    """What makes training examples of square images as they are."""
    return TrainingExample(
        task="detection",
        num_classes=classes,
        size=(size, size),
        pixel_mean=(0.5,) * 3,
        pixel_std=(0.25,) * 3,
        channel_order="RGB",
        augmentation=None,
    )


def batch_of(images, size=32, seed=0, classes=3):
    """Images and targets as the loader stacks them."""
    names = ("circle", "square", "star")[:classes]
    example = example_of(size, classes)
    return next(Loader(Shapes(images, size=size, seed=seed, classes=names), example, images).epoch(0))


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bucket_bytes", [1, 40, 1 << 20])
def test_gradients_are_summed_over_the_ranks(bucket_bytes):
    sizes = (3, 10, 1, 7)
    given = np.random.default_rng(0).standard_normal((3, sum(sizes))).astype(np.float32)

    def rank(world):
        ours = parameters(sizes)
        gradients = GradientSum(world, ours, bucket_bytes)
        for _ in range(2):  # the second step finds it as the first did
            for one, gradient in reversed(list(zip(ours, np.split(given[world.rank], np.cumsum(sizes)), strict=False))):
                one.grad = gradient
                gradients.note(one)
            gradients.finish()
        return np.concatenate([one.grad for one in ours])

    for summed in in_ranks(3, rank):
        np.testing.assert_allclose(summed, given.sum(0), rtol=1e-6)


def test_a_bucket_is_sent_before_the_backward_pass_ends():
    sent = []

    class Listening(World):
        def sum(self, array):
            sent.append(len(array))
            return array

    ours = parameters((5, 2, 3))
    gradients = GradientSum(Listening(), ours, bucket_bytes=20)
    for one in ours[::-1][:2]:
        one.grad = np.ones(one.shape, np.float32)
        gradients.note(one)
    gradients.sender.submit(int).result()  # whatever was sent is done
    assert sent == [5]  # 3 and 2 fill a bucket, in the order of the backward pass
    gradients.finish()
    assert sent == [5, 5]


def test_a_parameter_without_gradient_counts_as_zero():
    def rank(world):
        ours = parameters((4, 4))
        gradients = GradientSum(world, ours)
        for one in ours[world.rank :]:  # rank 1 has none for the first
            one.grad = np.ones(4, np.float32)
            gradients.note(one)
        gradients.finish()
        return [one.grad[0] for one in ours]

    assert in_ranks(2, rank) == [[1, 2], [1, 2]]


def test_buckets_are_sent_in_one_order_whatever_order_gradients_come_in():
    def rank(world):
        ours = parameters((2, 3, 4))
        gradients = GradientSum(world, ours, bucket_bytes=1)
        for i in ([0, 1, 2], [2, 0, 1])[world.rank]:
            ours[i].grad = np.full(ours[i].shape, i + 1, np.float32)
            gradients.note(ours[i])
        gradients.finish()
        return [one.grad.tolist() for one in ours]

    assert in_ranks(2, rank)[1] == [[2] * 2, [4] * 3, [6] * 4]


# --- batch norm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_over_ranks_is_batch_norm_over_their_batches_together(relu):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 4, 3, 6)) * 3 + 100
    dy = rng.standard_normal(x.shape)
    weight, bias = rng.standard_normal((2, 6))
    parts = (slice(0, 2), slice(2, 3), slice(3, 5))  # ranks may have unequal parts

    def normalised(x, dy, world=None):
        mean, var = np.zeros(6), np.ones(6)
        y, backward = ops.batch_norm.raw(x, weight, bias, mean, var, relu=relu, training=True, world=world)
        return y, *backward(dy)[:3], mean, var

    whole = normalised(x, dy)
    ranks = in_ranks(3, lambda world: normalised(x[parts[world.rank]], dy[parts[world.rank]], world))
    for i in (0, 1):  # y and dx
        np.testing.assert_allclose(np.concatenate([rank[i] for rank in ranks]), whole[i], atol=1e-10)
    for i in (2, 3):  # the gradients of weight and bias are each rank's own
        np.testing.assert_allclose(sum(rank[i] for rank in ranks), whole[i], atol=1e-9)
    for rank in ranks:
        np.testing.assert_allclose(rank[4], whole[4], rtol=1e-12)
        np.testing.assert_allclose(rank[5], whole[5], rtol=1e-9)


def test_in_eval_mode_ranks_do_not_wait_for_each_other():
    layer = BatchNorm2d(2)
    layer.eval()
    layer.world = None  # a world that is asked nothing
    before = layer(Tensor(np.ones((1, 2, 2, 2), np.float32))).data
    layer.world = object()
    np.testing.assert_array_equal(layer(Tensor(np.ones((1, 2, 2, 2), np.float32))).data, before)


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("denominator", ["paper", "released"])
@pytest.mark.parametrize("empty", [False, True], ids=["objects everywhere", "a part without objects"])
def test_the_ranks_losses_add_up_to_the_batchs(denominator, empty):
    from minicenternet.points.targets import Targets

    batch = batch_of(4)
    if empty:
        batch["heatmap"][:2] *= 0.5  # no cell is 1
        batch["mask"][:2] = 0
    rng = np.random.default_rng(2)
    maps = {"hm": rng.standard_normal(batch["heatmap"].shape), "wh": rng.random((4, 8, 8, 2))}
    maps["reg"] = rng.random((4, 8, 8, 2))

    def losses(part, shares=None):
        outputs = {name: Tensor(array[part], requires_grad=True) for name, array in maps.items()}
        targets = Targets(**{name: batch[name][part] for name in Targets._fields})
        total, parts = detection_loss(outputs, targets, denominator=denominator, shares=shares)
        total.backward()
        return [total.item(), *(loss.item() for loss in parts.values())], [one.grad for one in outputs.values()]

    def counts(part):
        return np.array([(batch["heatmap"][part] == 1).sum(), batch["mask"][part].sum()], np.float32)

    parts, everything = (slice(0, 2), slice(2, 4)), slice(0, 4)
    whole = losses(everything)
    split = [losses(part, shares_of(counts(part), counts(everything), denominator)) for part in parts]
    np.testing.assert_allclose(np.sum([values for values, _ in split], axis=0), whole[0], rtol=1e-6)
    for both, expected in zip(zip(*(gradients for _, gradients in split), strict=True), whole[1], strict=True):
        np.testing.assert_allclose(np.concatenate(both), expected, rtol=1e-6, atol=1e-12)


# --- the loader ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_batches_are_one_batch_dealt_out(ranks):
    def loader(**options):
        example = example_of(32, 5)
        return Loader(Shapes(14, size=32), example, 6, seed=3, shuffle=True, drop_last=True, **options)

    whole = list(loader().epoch(1))
    shared = [list(loader(rank=rank, ranks=ranks).epoch(1)) for rank in range(ranks)]
    assert len(whole) == 2 and all(len(own) == 2 for own in shared)
    for step, batch in enumerate(whole):
        for rank, own in enumerate(shared):
            for key, array in batch.items():
                np.testing.assert_array_equal(own[step][key], array[rank::ranks])


@pytest.mark.parametrize(("rank", "ranks"), [(0, 4), (2, 2), (-1, 2)])
def test_an_impossible_share_is_refused(rank, ranks):
    with pytest.raises(InputError, match=f"rank {rank} of {ranks} cannot take its equal share of a batch of 6 images"):
        Loader(Shapes(8, size=32), lambda sample, rng: {"x": np.zeros(1)}, 6, rank=rank, ranks=ranks)


# --- a whole training ------------------------------------------------------------------------------------------------


def trained(world, steps=20, synchronised=True, optimiser=Adam, rate=1e-3, dtype=np.float64):
    """The weights of the small network after some steps on a batch of eight images, shared by the ranks."""
    model = CenterNet("small", class_names=["circle", "square", "star"], input_size=(32, 32), seed=1)
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(dtype)
    for _, module in model.named_modules():
        if isinstance(module, BatchNorm2d):
            module.running_mean, module.running_var = np.zeros((2, len(module.running_mean)), dtype)
            module.world = world if synchronised and world.size > 1 else None
    update = optimiser(model.named_parameters(), rate)
    gradients = GradientSum(world, model.parameters(), 1 << 16)
    batch = {key: array[world.rank :: world.size] for key, array in batch_of(8).items()}
    batch |= {key: array.astype(dtype) for key, array in batch.items() if array.dtype == np.float32}
    for _ in range(steps):
        counts = np.array([(batch["heatmap"] == 1).sum(), batch["mask"].sum()], dtype)
        shares = shares_of(counts, world.sum(counts))
        total, _ = model.task.loss(model(Tensor(batch["image"])), batch, shares=shares)
        model.zero_grad()
        total.backward(ready=gradients.note)
        gradients.finish()
        update.step()
    return model.state_dict()


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_train_as_one_process_does(size):
    alone = trained(World())
    for state in in_ranks(size, trained):
        for key, array in state.items():
            np.testing.assert_allclose(array, alone[key], atol=1e-7, err_msg=key)


def test_ranks_train_as_one_process_does_in_float32():
    """Where Adam would blow up what was rounded: it takes steps of one size, however small the gradient."""

    def step(world):
        return trained(world, optimiser=SGD, rate=1e-4, dtype=np.float32)

    alone = step(World())
    for state in in_ranks(2, step):
        for key, array in state.items():
            np.testing.assert_allclose(array, alone[key], atol=1e-5, err_msg=key)


def test_without_synchronised_batch_norm_ranks_agree_on_weights_but_not_with_one_process():
    first, second = in_ranks(2, lambda world: trained(world, 3, synchronised=False))
    alone = trained(World(), 3)
    key = next(iter(alone))
    np.testing.assert_array_equal(first[key], second[key])
    assert abs(first[key] - alone[key]).max() > 1e-4


# --- joining and ending ----------------------------------------------------------------------------------------------


def test_without_a_launcher_a_rank_is_alone(monkeypatch):
    for name in (*LAUNCHERS, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    world = join()
    assert (world.rank, world.size, world.local_rank) == (0, 1, 0)
    assert world.sum(np.ones(2)).tolist() == [1, 1] and world.collect(np.ones(2)).tolist() == [[1, 1]]
    assert world.gather(b"here") == [b"here"] and world.share("text") == "text" and world.apart() is world


LAUNCHERS = ("PMI_SIZE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE")  # MPICH and Slurm's pmi2, PMIx (Slurm too), Open MPI


def test_processes_of_srun_that_do_not_know_of_each_other_are_warned_of(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.warns(UserWarning, match=r"srun started 8 processes .* give srun --mpi=pmix"):
        assert join().size == 1


@pytest.mark.parametrize("variable", LAUNCHERS)
def test_several_ranks_without_mpi4py_are_told_what_to_install(monkeypatch, variable):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "2")
    monkeypatch.setitem(__import__("sys").modules, "mpi4py", None)
    with pytest.raises(InputError, match=r'pip install "minicenternet\[distributed\]"'):
        join()


def test_an_error_on_a_rank_names_it_and_ends_all(capsys):
    class Second(World):
        rank, size, ended = 1, 2, False

        def abort(self):
            self.ended = True

    world = Second()
    with ending_together(world):
        raise InputError("the image cannot be read")
    assert world.ended
    assert "rank 1 of 2" in (told := capsys.readouterr().err) and "the image cannot be read" in told
    assert "Traceback" not in told
    with ending_together(world):
        raise ZeroDivisionError("a bug")
    assert "Traceback" in capsys.readouterr().err


def test_alone_an_error_goes_where_it_would():
    with pytest.raises(InputError), ending_together(World()):
        raise InputError("no")
