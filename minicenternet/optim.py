"""Optimisers, schedules, gradient clipping, loss scaling and the average of weights.

With gradient g (plus weight_decay * θ), step t = 1, 2, ... and learning rate η:

    SGD    m = μ m + g                                          θ = θ - η m
    Adam   m = β1 m + (1-β1) g,  v = β2 v + (1-β2) g²           θ = θ - η m̂ / (√v̂ + ε),  m̂ = m/(1-β1ᵗ), v̂ = v/(1-β2ᵗ)
    EMA    θ' = d θ' + (1-d) θ
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from .backend import Array, beside, get_xp
from .errors import InputError
from .nn.module import Module, Parameter
from .ops.pointwise import in_blocks
from .optim_cuda import OneLaunch
from .strips import BLOCK
from .threads import parallel_for, per_thread

Part = tuple[str, slice]  # some numbers of the array with this name


def shares(sizes: Mapping[str, int]) -> list[list[Part]]:
    """Share out arrays of these sizes: jobs of about BLOCK numbers, of one array or of several small ones."""
    jobs, room = [], 0
    for key, size in sizes.items():
        for start in range(0, size, BLOCK):
            part = slice(start, min(start + BLOCK, size))
            if part.stop - part.start > room:
                jobs.append([])
                room = BLOCK
            jobs[-1].append((key, part))
            room -= part.stop - part.start
    return jobs


def for_parts(function: Callable[..., None], jobs: list[list[Part]], arrays: Mapping[str, Sequence[Array]]) -> None:
    """Call function(*parts, scratch) for the parts of the arrays of each name, which have one size, on all threads.

    scratch: an array like the first part, with arbitrary content, for what is computed on the way.
    """
    flat = {key: [array.reshape(-1) for array in group] for key, group in arrays.items()}
    most = max((min(group[0].size, BLOCK) * group[0].itemsize for group in flat.values()), default=0)
    memory = per_thread(lambda: np.empty(most, np.uint8))

    def work(job: list[Part]) -> None:
        for key, part in job:
            if key in flat:
                parts = [array[part] for array in flat[key]]
                first, xp = parts[0], get_xp(parts[0])
                scratch = memory()[: first.nbytes].view(first.dtype) if xp is np else xp.empty_like(first)
                function(*parts, scratch)

    parallel_for(work, jobs)


class Optimiser:
    """Updates parameters by their gradients; `state_dict` holds all that a resumed run needs.

    lr: learning rate, may be changed between steps.  weight_decay: added to the gradient as weight_decay * θ (L2).
    """

    slots: tuple[str, ...] = ()  # names of the arrays kept beside each parameter

    def __init__(self, named_parameters: Iterable[tuple[str, Parameter]], lr: float, weight_decay: float = 0.0):
        self.parameters = dict(named_parameters)
        self.lr, self.weight_decay, self.steps = lr, weight_decay, 0
        self.one_launch = OneLaunch()
        self.slot_arrays = {
            name: {key: get_xp(p.data).zeros_like(p.data, order="C") for key, p in self.parameters.items()}
            for name in self.slots
        }
        self.jobs = shares({key: parameter.size for key, parameter in self.parameters.items()})

    def step(self, factor: Array | None = None) -> None:
        """Update every parameter that has a gradient.

        factor, on a GPU alone: a float32 number there, by which all gradients are multiplied; NaN skips the update.
        """
        self.advance()
        self.apply(factor)

    def advance(self) -> None:
        """Begin a step: count it, and on a GPU write the rates of this step to where the kernel reads them."""
        self.steps += 1
        data = [parameter.data for parameter in self.parameters.values()]
        if data and get_xp(*data) is not np:
            self.one_launch.set_rates(self.rates(), data[0])

    def apply(self, factor: Array | None = None) -> None:
        """Do what is the same in every step, and so can be captured in a graph; see `step`."""
        arrays = self._arrays()
        if arrays and get_xp(*(of_one[0] for of_one in arrays.values())) is not np:
            self.update_on_gpu(list(arrays.values()), factor)
        else:
            for_parts(self.update, self.jobs, arrays)

    def gradient_norm(self) -> Array:
        """Return the joint Euclidean norm of all gradients, which lie on a GPU, as a number there: nobody waits."""
        return self.one_launch.norm(list(self._arrays().values()))

    def _arrays(self) -> dict[str, list[Array]]:
        """Return, for each parameter that has a gradient, its weight, gradient and slots, contiguous."""
        arrays = {}
        for key, parameter in self.parameters.items():
            if parameter.grad is not None:
                xp = get_xp(parameter.data, parameter.grad)
                # Parts are then views, and a gradient that is copied is copied once.
                parameter.data, parameter.grad = (xp.asarray(a, order="C") for a in (parameter.data, parameter.grad))
                arrays[key] = [parameter.data, parameter.grad, *(self.slot_arrays[name][key] for name in self.slots)]
        return arrays

    def rates(self) -> list[float]:
        """Return the numbers of the step under way that the kernel reads from memory: see optim.cu."""
        raise NotImplementedError

    def update(self, weight: Array, gradient: Array, *slots_and_scratch: Array) -> None:
        """Update one part of a parameter, and of its slots, in place."""
        raise NotImplementedError

    def update_on_gpu(self, arrays: list[list[Array]], factor: Array | None) -> None:
        """Update all parameters in place; arrays: of each its weight, gradient and slots; factor: see `step`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Array]:
        """Return the arrays that `load_state_dict` takes: "steps" and "<slot>.<parameter>"."""
        arrays = {f"{name}.{key}": array for name, slot in self.slot_arrays.items() for key, array in slot.items()}
        return {"steps": np.array(self.steps), **arrays}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy a state back.  Raises InputError when it belongs to another optimiser or network."""
        own = self.state_dict()
        different = own.keys() ^ state.keys() | {k for k in own.keys() & state.keys() if own[k].shape != state[k].shape}
        if different:
            raise InputError(
                f"the optimiser's state does not fit this {type(self).__name__}: it differs in {sorted(different)[:3]}"
            )
        self.steps = int(state["steps"])
        for key, array in own.items():
            if key != "steps":
                array[...] = beside(array, state[key])


class SGD(Optimiser):
    """Stochastic gradient descent with momentum, as PyTorch's (dampening 0)."""

    slots = ("momentum",)

    def __init__(self, named_parameters, lr: float, momentum: float = 0.9, weight_decay: float = 0.0):
        super().__init__(named_parameters, lr, weight_decay)
        self.momentum = momentum

    def update(self, weight, gradient, velocity, change):
        if self.weight_decay:
            gradient = gradient + self.weight_decay * weight
        velocity *= self.momentum
        velocity += gradient
        get_xp(weight).multiply(velocity, self.lr, out=change)
        weight -= change

    def rates(self):
        return [self.lr]

    def update_on_gpu(self, arrays, factor):
        self.one_launch.step("sgd_step", arrays, self.momentum, self.weight_decay, factor)


class Adam(Optimiser):
    """Adam (Kingma and Ba, 2015); weight decay is added to the gradient, as in torch.optim.Adam."""

    slots = ("mean", "variance")

    def __init__(
        self, named_parameters, lr: float, betas=(0.9, 0.999), epsilon: float = 1e-8, weight_decay: float = 0.0
    ):
        super().__init__(named_parameters, lr, weight_decay)
        self.betas, self.epsilon = betas, epsilon

    def update(self, weight, gradient, mean, variance, change):
        if self.weight_decay:
            gradient = gradient + self.weight_decay * weight
        xp, (beta1, beta2) = get_xp(weight), self.betas
        mean *= beta1
        mean += xp.multiply(gradient, 1 - beta1, out=change)
        variance *= beta2
        xp.multiply(gradient, gradient, out=change)
        change *= 1 - beta2
        variance += change
        # The corrections of the mean and of the variance are taken out of the fraction: two passes fewer.
        correction = math.sqrt(1 - beta2**self.steps)
        xp.sqrt(variance, out=change)
        change += self.epsilon * correction
        xp.divide(mean, change, out=change)
        change *= self.lr * correction / (1 - beta1**self.steps)
        weight -= change

    def rates(self):
        beta1, beta2 = self.betas
        return [self.lr / (1 - beta1**self.steps), 1 / math.sqrt(1 - beta2**self.steps)]

    def update_on_gpu(self, arrays, factor):
        beta1, beta2 = self.betas
        decays = beta1, 1 - beta1, beta2, 1 - beta2
        self.one_launch.step("adam_step", arrays, *decays, self.epsilon, self.weight_decay, factor)


class LossScale:
    """Dynamic loss scaling for float16, whose smallest number is 6e-8: small gradients would become 0.

    The loss, and with it every gradient, is multiplied by `scale`. When gradients overflow the step must be skipped,
    and the scale is halved, to LEAST at most; after PATIENCE good steps in a row it is doubled. All numbers lie on the
    GPU.  array: any on that GPU.  Source: Micikevicius et al. 2018, §3.2.
    """

    FIRST, LEAST, PATIENCE = 2.0**16, 1.0, 2000

    def __init__(self, array: Array):
        xp = get_xp(array)
        self.scale = xp.full((), self.FIRST, np.float32)
        self.good, self.skipped = xp.zeros((), np.int32), xp.zeros((), np.int32)  # in a row; in all

    def update(self, finite: Array) -> None:
        """Note whether the loss and the gradients of a step were finite, a bool on the GPU."""
        xp = get_xp(finite)
        good = xp.where(finite, self.good + 1, 0)
        grows = good >= self.PATIENCE
        change = xp.where(finite, xp.where(grows, 2, 1), 0.5)
        self.scale[...] = xp.maximum(self.scale * change, self.LEAST)
        self.good[...] = xp.where(grows, 0, good)
        self.skipped[...] = self.skipped + xp.where(finite, 0, 1)

    def state_dict(self) -> dict[str, Array]:
        """Return all three numbers."""
        return {"scale": self.scale, "good": self.good, "skipped": self.skipped}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy a state back."""
        for name, array in self.state_dict().items():
            array[...] = beside(array, state[name])


def clip_gradients(parameters: Iterable[Parameter], max_norm: float) -> float | Array:
    """Scale all gradients so that their joint Euclidean norm is at most max_norm; return the norm before."""
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    xp = get_xp(*(parameter.grad for parameter in with_gradient))
    if xp is not np:
        gradients = [xp.asarray(parameter.grad, order="C") for parameter in with_gradient]
        norm = OneLaunch().norm([[gradient, gradient] for gradient in gradients])
        factor = xp.minimum(max_norm / norm, 1)
        for parameter in with_gradient:
            parameter.grad = parameter.grad * factor
        return norm
    gradients = {str(i): [parameter.grad] for i, parameter in enumerate(with_gradient)}
    squares: list[float] = []

    def add_square(part: Array, _) -> None:
        squares.append(float(np.vdot(part, part)))

    for_parts(add_square, shares({key: gradient.size for key, (gradient,) in gradients.items()}), gradients)
    norm = math.sqrt(math.fsum(squares))  # exact, so that the order of the parts does not matter
    if norm > max_norm:
        scale = max_norm / norm
        for parameter in with_gradient:  # not in place: gradients may share an array
            parameter.grad = in_blocks(lambda gradient: gradient * scale, parameter.grad)
    return norm


class Average:
    """EMA: an exponential moving average of a module's floating-point state, often a better detector than the last.

    After t updates the decay is min(decay, (1 + t)/(10 + t)), so that a short run is not averaged with its beginning.
    """

    def __init__(self, module: Module, decay: float = 0.999):
        self.decay, self.updates = decay, 0
        self.arrays = {key: array.copy() for key, array in module.state_dict().items()}
        self.jobs = shares({key: array.size for key, array in self.arrays.items()})
        self.one_launch = OneLaunch()

    def update(self, module: Module) -> None:
        """Take the module's present state into the average."""
        self.advance()
        self.apply(module)

    def advance(self) -> None:
        """Begin an update: count it, and on a GPU write its rate to where the kernel reads it."""
        self.updates += 1
        if self.arrays and get_xp(*self.arrays.values()) is not np:
            self.one_launch.set_rates([1 - self._present_decay()], next(iter(self.arrays.values())))

    def _present_decay(self) -> float:
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    def apply(self, module: Module) -> None:
        """Do what is the same in every update, and so can be captured in a graph."""
        decay, state = self._present_decay(), module.state_dict()
        if get_xp(*state.values()) is not np:
            floating = [key for key, array in self.arrays.items() if array.dtype.kind == "f"]
            self.one_launch.step("average_step", [(self.arrays[key], state[key]) for key in floating])
            for key in self.arrays.keys() - floating:
                self.arrays[key][...] = state[key]
            return

        def approach(average: Array, present: Array, step: Array) -> None:
            if average.dtype.kind == "f":
                np.subtract(present, average, out=step)
                step *= 1 - decay
                average += step
            else:
                average[...] = present

        for_parts(approach, self.jobs, {key: (average, state[key]) for key, average in self.arrays.items()})


def learning_rate(
    step: int,
    *,
    base: float,
    total_steps: int,
    schedule: str = "step",
    drops: tuple[int, ...] = (),
    warm_up: int = 0,
    factor: float = 0.1,
) -> float:
    """Return the learning rate of a step (0, 1, ...).

    "step": base times `factor` for each step number in `drops` that was reached.  "cosine": base falls to 0 along half
    a cosine.  "constant": base.  During the first `warm_up` steps it rises linearly to that.
    Raises InputError for another schedule.
    """
    if schedule == "step":
        rate = base * factor ** sum(step >= drop for drop in drops)
    elif schedule == "cosine":
        rate = base * 0.5 * (1 + math.cos(math.pi * min(step / max(total_steps, 1), 1)))
    elif schedule == "constant":
        rate = base
    else:
        raise InputError(f"unknown schedule {schedule!r}; expected step, cosine or constant")
    return rate * min(1, (step + 1) / (warm_up + 1))
