"""Training: a run is a folder that can be killed at any moment and resumed to the same bits.

What is in the folder, run_folder says.  It is the same whatever the device, and a run may go on on another one. On a
GPU no step waits for a number: the losses and whether all of them were finite stay there, and are read once in
READ_EVERY steps and wherever a state is saved. A step whose loss is not finite changes no weight, so that it may be
noticed so late. In fp16 it is skipped, as is one whose gradients overflow, and the next ones scale the loss by less;
training ends where even a loss that is not scaled at all overflows.

Ctrl-C and SIGTERM (a node that is taken away) are heard between two steps, while a batch is waited for, between two
batches of a measurement of AP and between two pictures; then the state is saved and Interrupted raised. What follows an
epoch's last step begins again when the run goes on. Several ranks stop together, at a step or while they measure.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from .autograd import Tensor
from .backend import Array, beside, get_xp, pool_memory, to_cpu
from .board import Board, check_installed
from .config import PLACES, TrainConfig
from .data.loader import Loader
from .device import GB, check_graph, choose, memory_explained
from .distributed import GradientSum, World
from .errors import InputError
from .evaluate import Evaluation, evaluate
from .examples import Preparation, TrainingExample, Unprepared
from .files import lock, replacing
from .graph import Captured
from .model import CenterNet
from .nn.module import first_nonfinite
from .nn.weights import load_weights, save_weights
from .optim import SGD, Adam, Average, LossScale, clip_gradients, learning_rate
from .parts import Part
from .points.losses import expected_first_loss, explain_loss, shares_of
from .predict import explain
from .progress import Progress
from .report import filmed, save_frame, write_report
from .run_data import moved_explained, open_data
from .run_folder import (
    checkpoints,
    keep_checkpoint,
    last_written,
    make_folder,
    read_metrics,
    remove_unfinished,
    run_of,
    write_beginning,
    write_metrics,
)
from .staging import upload_ahead
from .stopping import Interrupted, listening_for_signals
from .threads import one_blas_thread

READ_EVERY = 20  # steps on a GPU between two readings of the losses; each of the first FIRST_READ is read
FIRST_READ = 4
PICTURE_SECONDS = 60.0  # least time between two drawings of a run's pictures; the last epoch is always drawn


@dataclass
class Counters:
    """Where a run is: all of it is saved, so that a resumed run goes on as if nothing had happened."""

    epoch: int = 0
    batch: int = 0  # within the epoch
    best_ap: float = -1.0
    seconds: float = 0.0  # that the run took until it was started the last time
    sums: dict[str, float | Array] = field(default_factory=dict)  # of the losses of this epoch's steps


class Run:
    """One training run: data, network, optimiser and the folder that keeps them.

    To go on with one give its own options, run_folder.options_of(folder), in which device, precision, graph and where
    the data lie may be changed.
    """

    def __init__(self, config: TrainConfig, say: Callable[[str], None] = print, world: World | None = None):
        self.world = world = world or World()
        say = say if world.rank == 0 else lambda text: None
        self.resuming = config.resume is not None
        if self.resuming:
            resumed, self.folder = Path(config.resume), run_of(Path(config.resume))
            saved = TrainConfig.load(self.folder / "config.json").absolute()
            config = _resumed(config, saved)
            self._take_lock()
        self.config, self.say = config, say
        self.device, why = choose(config.device)
        if world.size > 1 and self.device != "cpu":
            self.device, why = choose(f"cuda:{world.local_rank}")  # each rank its own
        if config.device == "auto":
            say(why)
        if self.resuming and self.device == "cpu" and config.precision != "float32":
            say(f"the run was begun in {config.precision}; on the CPU it goes on in float32")
            self.config = config = replace(config, precision="float32")
        if self.resuming and self.device == "cpu":
            self.config = config = replace(config, graph=False)
        check_graph(config.graph, self.device)
        if config.tensorboard:
            check_installed()
        size = (config.side, config.side)
        with moved_explained(config, self.folder) if self.resuming else nullcontext():
            self.train_data, self.val_data = open_data(config, say)
        begun = self.resuming and (resumed / "state.safetensors").exists()  # not killed before anything was done
        if self.resuming and not begun:
            _check_nothing_to_lose(resumed, self.folder)
        source = resumed / "state.safetensors" if begun else config.weights
        arrays, metadata = load_weights(source) if source else ({}, {})
        self.pixels = _pixels(source, metadata)
        self.model = CenterNet(
            config.backbone,
            class_names=self.train_data.class_names,
            input_size=size,
            seed=config.seed,
            checkpointing=config.checkpointing,
            **self.pixels,
        )
        if config.weights and not begun:
            _load_pretrained(config.weights, arrays, metadata, self.model, say)
        self.model.to(self.device).set_precision(config.precision)
        named = self.model.named_parameters()
        if config.optimiser == "adam":
            self.optimiser = Adam(named, config.learning_rate, weight_decay=config.weight_decay)
        else:
            self.optimiser = SGD(named, config.learning_rate, weight_decay=config.weight_decay)
        self.average = Average(self.model, config.average) if config.average else None
        weight = self.model.parameters()[0].data
        self.scaling = LossScale(weight) if config.precision == "fp16" else None
        self.skipped = 0  # steps of which was said that they were
        self.finite = get_xp(weight).ones((), bool)  # whether every loss so far was, or could be skipped
        self.step_on_gpu = Captured(self._step_on_gpu) if config.graph else self._step_on_gpu
        self.counters, self.rows = Counters(), []
        self.asked_to_stop = lambda: 0
        example = TrainingExample(
            task=self.model.task_name,
            num_classes=len(self.model.class_names),
            size=size,
            pixel_mean=self.model.pixel_mean,
            pixel_std=self.model.pixel_std,
            channel_order=self.model.channel_order,
            augmentation=config.augmentation if config.augment else None,
            min_overlap=config.min_overlap,
            radius_form=config.radius_form,
        )
        self.preparation = None if self.device == "cpu" else Preparation(example)
        self.gradients = None
        if world.size > 1:
            _check_ranks(config, len(self.train_data), world)
            self.gradients = GradientSum(world, self.model.parameters())
            if config.sync_batch_norm:
                self.model.synchronise(world)
        self.batch_size = min(config.batch_size, len(self.train_data))
        _check_batch_norm(self.batch_size // world.size, size[0], self.model.backbone.stride)
        self.loader = Loader(
            self.train_data,
            example if self.device == "cpu" else Unprepared(size=size, augmentation=example.augmentation),
            self.batch_size,
            seed=config.seed,
            workers=config.num_workers,
            shuffle=True,
            drop_last=True,
            on_bad_image="skip" if config.skip_bad_images else "raise",
            rank=world.rank,
            ranks=world.size,
            waiting=self._stop_alone,
        )
        self.losses: dict[str, list[float]] = {"heatmap": [], "size": []}  # the last few, to recognise signatures
        self.expected: tuple[float, float] | None = None
        self.explained: set[str] = set()
        self.last_pictures = self.begin = time.monotonic()
        if not self.resuming:  # now that nothing above was refused
            self.folder = Path(world.share(str(make_folder(config)) if world.rank == 0 else ""))
            self._take_lock()
        if world.rank == 0:
            remove_unfinished(self.folder)
        if begun:
            self._load_state(arrays, metadata)
            if resumed != self.folder:
                self._go_back()
            if world.rank == 0 and (moved := _places(config)) != _places(saved):
                replace(saved, **moved).save(self.folder / "config.json")
                say(f"from now on its data are those of {', '.join(place for place in moved.values() if place)}")
        elif world.rank == 0:
            write_beginning(self.folder, self.config)
            self.save_state()

    def _take_lock(self) -> None:
        """See to it that no other process writes to the folder, until training ends or this run is no more."""
        self.lock = lock(self.folder) if self.world.rank == 0 else None

    # --- one step ----------------------------------------------------------------------------------------------------

    def step(self, batch: Mapping[str, Array]) -> dict[str, float | Array]:
        """Do one training step with a batch on the run's device and return its losses.

        On a GPU these are numbers that lie there; `read` waits for them.  Raises InputError, naming the layer, when the
        loss is NaN (on a GPU `read` does that), and when a GPU's memory is too small.
        """
        with one_blas_thread(), self._memory_explained():
            return self._step(batch)

    def _memory_explained(self) -> AbstractContextManager:
        return memory_explained(self.batch_size, self._fitting, self.step_on_gpu if self.config.graph else None)

    def _step(self, batch: Mapping[str, Array]) -> dict[str, float | Array]:
        self.optimiser.lr = self._learning_rate(self.optimiser.steps)
        if self.device == "cpu":
            return self._step_on_cpu(batch)
        self.optimiser.advance()
        if self.average:
            self.average.advance()
        return self.step_on_gpu(batch)

    def _step_on_cpu(self, batch: Mapping[str, Array]) -> dict[str, float]:
        total, losses = self._losses(batch)
        numbers = self.read(losses, batch)
        self._go_back_from(total)
        if self.config.clip_norm:
            clip_gradients(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()
        if self.average:
            self.average.update(self.model)
        return numbers

    def _step_on_gpu(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Do what the GPU does alike in each step, so that a graph can: what differs, it reads from memory."""
        total, losses = self._losses(batch)
        self._go_back_from(total, self.scaling.scale if self.scaling else None)
        self.optimiser.apply(self._factor(self.world.sum(total.data)))
        if self.average:
            self.average.apply(self.model)
        return losses

    def _go_back_from(self, total: Tensor, scale: Array | None = None) -> None:
        """Make every parameter's gradient, of several ranks that of all, `scale` times what it is."""
        self.model.zero_grad()
        total.backward(scale, ready=self.gradients.note if self.gradients else None)
        if self.gradients:
            self.gradients.finish()

    def _losses(self, batch: Mapping[str, Array]) -> tuple[Tensor, dict[str, Array]]:
        """Return what to go back from, and the loss and its parts."""
        shares = self._shares(batch) if self.world.size > 1 else None
        maps = self.model(Tensor(batch["image"]))
        total, parts = self.model.task.loss(maps, batch, denominator=self.config.denominator, shares=shares)
        return total, {name: tensor.data for name, tensor in {"loss": total, **parts}.items()}

    def _shares(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Return what this rank's losses count for."""
        xp = get_xp(batch["heatmap"])
        counts = xp.stack([(batch["heatmap"] == 1).sum(), batch["mask"].sum()]).astype(np.float32)
        return shares_of(counts, self.world.sum(counts), self.config.denominator)

    def _factor(self, loss: Array) -> Array:
        """Return, on the GPU, by what to multiply all gradients: 1, or less to clip them, or NaN not to do the step."""
        xp = get_xp(loss)
        good, factor = xp.isfinite(loss), xp.ones((), np.float32)
        if self.scaling or self.config.clip_norm:
            norm = self.optimiser.gradient_norm()
        if self.scaling:
            factor, good = 1 / self.scaling.scale, good & xp.isfinite(norm)
            norm = norm * factor
            self.finite &= good | (self.scaling.scale > self.scaling.LEAST)
            self.scaling.update(good)
        else:
            self.finite &= good
        if self.config.clip_norm:
            factor = factor * xp.minimum(self.config.clip_norm / norm, 1)
        return xp.where(good, factor, np.float32(np.nan)).astype(np.float32)

    def read(self, losses: Mapping[str, Array], batch: Mapping[str, Array]) -> dict[str, float]:
        """Return the losses as numbers, for which this waits.  Raises InputError when one of any step was NaN.

        In fp16, where such a step is skipped, it raises when one was whose loss was not scaled at all.
        Of `batch` the images, with which the layer is looked for that made the NaN.
        """
        xp = get_xp(*losses.values())
        own = to_cpu(xp.stack([*losses.values(), self.finite.astype(np.float32)]))
        values, of_all = own.tolist(), self.world.sum(own).tolist()
        if not own[-1] or not (self.scaling or all(map(math.isfinite, values))):
            raise InputError(self._what_became_nan(Tensor(batch["image"]), dict(zip(losses, values, strict=False))))
        if not (self.scaling or all(map(math.isfinite, of_all))):
            raise InputError("the loss of another rank is not finite")
        numbers = dict(zip(losses, of_all, strict=False))
        if self.scaling:
            self._say_skipped()
        return numbers

    def _say_skipped(self) -> None:
        skipped, scale = int(self.scaling.skipped.item()), self.scaling.scale.item()
        if skipped > self.skipped:
            steps = "1 step was" if skipped == self.skipped + 1 else f"{skipped - self.skipped} steps were"
            self.say(f"{steps} skipped, as numbers overflowed in fp16; the loss is now scaled by {scale:g}")
            self.skipped = skipped

    def _is_read(self) -> bool:
        """Whether the losses of the step just done are read: each one's on a CPU, where they cost nothing."""
        steps = self.optimiser.steps
        return self.device == "cpu" or steps <= FIRST_READ or steps % READ_EVERY == 0

    def _fitting(self, room: float) -> str:
        """Say which batch size should fit into `room` bytes, by what steps of two and three images take on the CPU."""
        twin = self._twin()
        two, three = twin.training_peak(2), twin.training_peak(3)
        image = three - two
        fits = int((room - (two - 2 * image)) / image)
        return (
            f"A batch size of {fits} should fit, by what steps of two and three images take on the CPU in float32: "
            f"{image / GB:.2f} GB for each image and {(two - 2 * image) / GB:.2f} GB beside"
            if fits > 0
            else "Not even one image should fit: choose a smaller size or backbone, or the CPU"
        )

    def _learning_rate(self, step: int) -> float:
        steps = len(self.loader)
        return learning_rate(
            step,
            base=self.config.learning_rate,
            total_steps=steps * self.config.epochs,
            schedule=self.config.schedule,
            drops=tuple(epoch * steps for epoch in self.config.drops),
            warm_up=min(self.config.warm_up, steps * self.config.epochs // 10),
        )

    def _what_became_nan(self, images: Tensor, losses: Mapping[str, float]) -> str:
        culprit = first_nonfinite(self.model, images)
        if self.scaling:
            culprit = culprit or "every layer's output is finite now"
            return (
                f"epoch {self.counters.epoch + 1}, step {self.optimiser.steps + 1}: fp16 overflows even where the loss "
                f"is not scaled. {culprit}. The last good state is kept in {self.folder}; go on from it with "
                f"--precision bf16 or float32, or lower --learning-rate (now {self.optimiser.lr:.2g})"
            )
        culprit = culprit or "every layer's output is finite: the loss itself overflowed"
        bad = ", ".join(name for name, value in losses.items() if not math.isfinite(value)) or "an earlier loss"
        return (
            f"epoch {self.counters.epoch + 1}, step {self.optimiser.steps + 1}: {bad} is not finite. {culprit}. "
            f"The last good state is kept in {self.folder}; lower --learning-rate (now {self.optimiser.lr:.2g}), "
            "raise --warm-up or set --clip-norm"
        )

    def _explain(self, losses: Mapping[str, float], heatmap: Array) -> None:
        """Say in one line what a well-known value of the loss means, once each."""
        if self.expected is None:
            heatmap = to_cpu(heatmap)
            self.expected = expected_first_loss(heatmap, 0.1), expected_first_loss(heatmap, 0.5)
            if self.optimiser.steps > 1:  # a resumed run: the first step's value was explained before
                self.losses = {"heatmap": [math.inf], "size": [math.inf]}
        for name, values in self.losses.items():
            values.append(losses[name])
            del values[:-4]
        line = explain_loss(self.losses["heatmap"], self.losses["size"], *self.expected)
        if line and line not in self.explained:
            self.explained.add(line)
            self.say(line)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, float]:
        """Train to the last epoch and return the last row of metrics.csv.

        Ctrl-C (or SIGTERM) saves the state and raises Interrupted.
        """
        on_board = self.config.tensorboard and self.world.rank == 0
        self._take_lock()
        with (
            self.loader,
            listening_for_signals() as self.asked_to_stop,
            Board(self.folder, self.optimiser.steps) if on_board else nullcontext() as self.board,
            Progress(
                len(self.loader),
                self.config.epochs,
                self.batch_size,
                None if self.device == "cpu" else self._gpu_memory,
                shown=self.world.rank == 0,
            ) as progress,
        ):
            try:
                while self.counters.epoch < self.config.epochs:
                    self._epoch(progress)
                    self._end_epoch(progress)
            except Interrupted:
                self.save_state()
                raise
            finally:
                self.lock = None
        return self.rows[-1]

    def _epoch(self, progress: Progress) -> None:
        """Do the steps of an epoch that are still to be done."""
        counters, shown = self.counters, {}
        last_save = time.monotonic()
        progress.epoch(counters.epoch, counters.batch)
        batches = self.loader.epoch(counters.epoch, counters.batch)
        for batch in batches if self.device == "cpu" else self.prepared_on_gpu(batches):
            if self.optimiser.steps == 0 and self.world.rank == 0:
                self._draw_targets(batch)
            losses = self.step(batch)
            counters.batch += 1
            for name, value in losses.items():
                so_far = counters.sums.get(name, 0.0)
                if self.scaling:  # a step that was skipped counts as the mean of those before
                    xp = get_xp(value)
                    value = xp.where(xp.isfinite(value), value, so_far / max(counters.batch - 1, 1))
                counters.sums[name] = so_far + value
            if self._is_read():
                shown = losses if self.device == "cpu" else self.read(losses, batch)
                self._explain(shown, batch["heatmap"])
            progress.step(shown, self.optimiser.lr)
            if self.board and self.optimiser.steps % READ_EVERY == 0:
                self.board.write("step", {**shown, "learning_rate": self.optimiser.lr}, self.optimiser.steps)
            self._stop_together()
            if time.monotonic() - last_save > 60 * self.config.save_every:
                self.save_state()
                self._keep(counters.epoch, counters.batch)
                last_save = time.monotonic()

    def _stop_alone(self) -> None:
        """Raise Interrupted when asked to stop; of several ranks none may leave the others, which wait for it."""
        if self.world.size == 1 and self.asked_to_stop():
            raise Interrupted(self.asked_to_stop())

    def _stop_together(self) -> None:
        """Raise Interrupted in all ranks when one was asked to stop; every rank must ask at the same places."""
        number = int(self.world.collect(np.array(self.asked_to_stop())).max())
        if number:
            raise Interrupted(number)

    def _stop_measuring(self, done: int, images: int) -> None:
        """The same, called after each image that this rank measured: some may have one more than others."""
        if done % 8 == 0 and done <= images // self.world.size:
            self._stop_together()

    def _keep(self, epoch: int, batch: int) -> None:
        """Keep a checkpoint of what was just saved, if one is due."""
        if self.world.rank > 0:
            return
        config = self.config
        due = batch == 0 and config.keep_every and epoch % config.keep_every == 0
        if config.keep_hours and not due:
            due = time.time() - last_written(self.folder) > 3600 * config.keep_hours
        if due:
            keep_checkpoint(self.folder, epoch, batch, newest=config.keep_newest, always=config.keep_always)

    def _gpu_memory(self) -> tuple[int, int]:
        """Return bytes on the GPU: in use, and held by all pools; a graph uses all that its own pool holds."""
        used, held = pool_memory()
        of_graphs = self.step_on_gpu.memory()[1] if self.config.graph else 0
        return used + of_graphs, held + of_graphs

    def prepared_on_gpu(self, batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[dict[str, Array]]:
        """Yield images and targets of the batches; a GPU too small for them is an InputError, as in `step`."""
        with self._memory_explained():
            for batch in upload_ahead(batches):
                yield self.preparation(batch)

    def _end_epoch(self, progress: Progress) -> None:
        """Measure AP where it is due, write the epoch's files, then the state."""
        self._check_finite()  # before a good last.safetensors is replaced
        counters, config = self.counters, self.config
        number, last = counters.epoch + 1, counters.epoch + 1 == config.epochs
        means = {name: float(to_cpu(value)) / len(self.loader) for name, value in counters.sums.items()}
        model = self._averaged_model() if self.average else self.model
        measured, evaluation = {}, None
        if last or number % config.evaluate_every == 0:
            progress.note("measuring AP")
            self._share_statistics(model)
            evaluation = evaluate(model.fold(), self.val_data, world=self.world, progress=self._stop_measuring)
            measured = {"ap": evaluation.result.ap, "ap50": evaluation.result.ap50} if evaluation else {}
        row = {"epoch": number, "step": self.optimiser.steps, **means, "ap": math.nan, "ap50": math.nan, **measured}
        row |= {
            "learning_rate": self._learning_rate(self.optimiser.steps - 1),  # of the last step, also after a resume
            "images_per_second": progress.images_per_second,
            "memory_mb": progress.memory_mb,
            "seconds": self._seconds(),
        }
        self.rows.append(row)
        if self.world.rank == 0:
            progress.note("writing weights and pictures")
            self._write_epoch(model, row, evaluation, last)
        counters.epoch, counters.batch, counters.sums = number, 0, {}
        self.save_state()  # last of all: a run killed before this does the epoch again and writes the same files
        self._keep(number, 0)
        if self.board:
            self.board.write("epoch", row, row["step"])
        progress.end_epoch(row)

    def _write_epoch(self, model: CenterNet, row: Mapping[str, float], evaluation: Evaluation | None, last: bool):
        """Write the files that an epoch leaves; Interrupted may cut the pictures short."""
        write_metrics(self.folder, self.rows)
        measured = {name: row[name] for name in ("ap", "ap50")} if evaluation else {}
        if evaluation and row["ap"] >= self.counters.best_ap:
            self.counters.best_ap = row["ap"]
            model.save(self.folder / "best.safetensors", measured)
            with replacing(self.folder / "detections.npz") as temporary:
                temporary.write_bytes(Part(detections=evaluation.detections).pack())
        model.save(self.folder / "last.safetensors", measured)
        save_frame(self.folder, row["epoch"], explain(model, self.val_data[filmed(self.val_data)]).heatmap)
        if evaluation and (last or time.monotonic() - self.last_pictures > PICTURE_SECONDS):
            self._draw_progress(model, evaluation)
        if last:
            write_report(self.folder, self.val_data, self._stop_alone)

    def _seconds(self) -> float:
        """How long the run took so far, the time between a stop and a start left out."""
        return self.counters.seconds + time.monotonic() - self.begin

    def _share_statistics(self, model: CenterNet) -> None:
        """Give every rank the first one's running statistics, which are those saved: each may have its own."""
        if self.world.size > 1:
            for key, array in model.state_dict().items():
                if key.endswith(("running_mean", "running_var")):
                    array[...] = self.world.collect(array)[0]

    def _averaged_model(self) -> CenterNet:
        model = self._twin().to(self.device).set_precision(self.config.precision)
        model.load_state_dict(self.average.arrays)
        return model

    def _twin(self) -> CenterNet:
        """Return a network like the one that is trained, with other weights, on the CPU."""
        return CenterNet(
            self.config.backbone,
            class_names=self.model.class_names,
            input_size=self.model.input_size,
            **self.pixels,
        )

    # --- files -------------------------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Write all that a resumed run needs, whole or not at all; of several ranks, the first does.

        Raises InputError when a weight is not finite.
        """
        self._check_finite()
        if self.world.rank > 0:
            return
        state = {f"model.{key}": array for key, array in self.model.state_dict().items()}
        state |= {f"optimiser.{key}": array for key, array in self.optimiser.state_dict().items()}
        if self.average:
            state |= {f"average.{key}": array for key, array in self.average.arrays.items()}
        if self.scaling:
            state |= {f"scaling.{key}": array for key, array in self.scaling.state_dict().items()}
        counters = self.counters
        values = {
            "epoch": counters.epoch,
            "batch": counters.batch,
            "best_ap": counters.best_ap,
            "seconds": self._seconds(),
            "sums": {name: float(to_cpu(value)) for name, value in counters.sums.items()},
            "average_updates": self.average.updates if self.average else 0,
            "images": len(self.train_data),
            "class_names": self.train_data.class_names,
        }
        pixels = {name: json.dumps(value) for name, value in self.pixels.items()}
        save_weights(self.folder / "state.safetensors", state, {"counters": json.dumps(values), **pixels})

    def _check_finite(self) -> None:
        bad = [key for key, array in self.model.state_dict().items() if not np.isfinite(to_cpu(array)).all()]
        if not to_cpu(self.finite):
            bad.append("the loss")
        if bad:
            raise InputError(
                f"{bad[0]} became NaN or infinite at step {self.optimiser.steps}; not saved. "
                f"The last good state is kept in {self.folder}; lower --learning-rate or set --clip-norm"
            )

    def _load_state(self, state: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        values = json.loads(metadata["counters"])
        images, class_names = values["images"], tuple(values["class_names"])
        if (images, class_names) != (len(self.train_data), self.train_data.class_names):
            different = sorted(set(class_names) ^ set(self.train_data.class_names))
            raise InputError(
                f"the training data changed since {self.folder} was begun: {images} images then, "
                f"{len(self.train_data)} now; classes that differ: {', '.join(different) or 'none'}. "
                "Put the data back, or start a new run"
            )

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.optimiser.load_state_dict(part("optimiser."))
        if self.scaling and (scaling := part("scaling.")):  # none where the run was in another precision before
            self.scaling.load_state_dict(scaling)
            self.skipped = int(scaling["skipped"])
        if self.average:
            for key, array in part("average.").items():
                self.average.arrays[key][...] = beside(self.average.arrays[key], array)
            self.average.updates = values["average_updates"]
        names = ("epoch", "batch", "best_ap", "seconds", "sums")
        self.counters = Counters(**{name: values[name] for name in names if name in values})
        self.rows = [row for row in read_metrics(self.folder) if row["epoch"] <= self.counters.epoch]
        if self.counters.epoch < self.config.epochs:
            self.say(f"going on with {self.folder} at epoch {self.counters.epoch + 1}, batch {self.counters.batch + 1}")
        elif self.rows:
            self.say(f"{self.folder} is finished: all its {self.config.epochs} epochs are done")
        else:
            raise InputError(f"{self.folder} is finished, but its metrics.csv is gone; its weights can still be used")

    def _go_back(self) -> None:
        """Having loaded a checkpoint: the best weights may be those of an epoch that is now to be done again."""
        best = self.folder / "best.safetensors"
        if best.exists():
            measured = json.loads(load_weights(best)[1]["metrics"])
            self.counters.best_ap = max(self.counters.best_ap, measured["ap"])

    def _draw_targets(self, batch: Mapping[str, Array]) -> None:
        from .draw import draw_targets

        images = to_cpu(batch["image"][:8]) * np.float32(self.model.pixel_std) + np.float32(self.model.pixel_mean)
        images = (255 * images.clip(0, 1)).astype(np.uint8)
        if self.model.channel_order == "BGR":
            images = images[..., ::-1]
        draw_targets(images, to_cpu(batch["heatmap"][:8]), self.folder / "targets.png")

    def _draw_progress(self, model: CenterNet, evaluation: Evaluation) -> None:
        from .draw import draw_curves, draw_grid, draw_heatmap

        shown = range(min(8, len(self.val_data)))
        evaluation.draw(self.folder / "detections.png", shown)
        seen = []
        for i in shown:
            self._stop_alone()
            seen.append(explain(model, self.val_data[i]))
        pictures = [draw_heatmap(one.image, one.heatmap) for one in seen]
        draw_grid(pictures, [one.detections.file_name for one in seen], self.folder / "heatmaps.png")
        draw_curves(self.rows, self.folder / "curves.png")
        self.last_pictures = time.monotonic()


def _pixels(path: str | Path | None, metadata: Mapping[str, str]) -> dict[str, object]:
    """Return how a weights file wants its images normalised, as keywords of CenterNet; {} where it does not say.

    Raises InputError when what it says cannot be read.
    """
    keys = ("pixel_mean", "pixel_std", "channel_order")
    try:
        return {key: json.loads(metadata[key]) for key in keys if key in metadata}
    except json.JSONDecodeError as error:
        raise InputError(f"{path} has damaged metadata ({error}); copy it again or use other weights") from error


def _load_pretrained(
    path: str,
    arrays: Mapping[str, np.ndarray],
    theirs: Mapping[str, str],
    model: CenterNet,
    say: Callable[[str], None],
) -> None:
    """Begin with the arrays of a weights file, and say what else its metadata (`theirs`) gives to know.

    Raises InputError when its backbone is another.
    """
    ours = model.metadata()  # of other people's files there is nothing to compare it with
    other = {key for key, text in ours.items() if theirs.get(key, text) != text}
    if "backbone" in other:
        raise InputError(f"{path} is of {theirs['backbone']}, not of {ours['backbone']}; give --backbone")
    try:
        report = model.load_matching(arrays, other_classes="class_names" in other)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    say(f"{path}: {report}")
    if "class_names" in other:
        say(f"it was trained for the classes {theirs['class_names']}")
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (model.pixel_mean, model.pixel_std))
    if "channel_order" in theirs:
        say(f"images are given to it as it knows them: {model.channel_order}, mean {mean}, deviation {std}")
    elif set(model.heads) & {key.split(".")[0] for key in report.loaded}:  # a detector; trunks are of ImageNet, in RGB
        say(
            f"it does not say how its images were normalised; {model.channel_order}, mean {mean}, deviation {std} is "
            "assumed. Released networks want BGR: give what minicenternet convert makes of the file"
        )


def _places(config: TrainConfig) -> dict[str, str | None]:
    return {name: getattr(config, name) for name in PLACES}


def _resumed(given: TrainConfig, saved: TrainConfig) -> TrainConfig:
    """Return the run's own options, with the device, precision, graph and places of data that are given.

    Raises InputError when any other option is not the run's own.
    """
    given = given.absolute()
    saved = replace(saved, **{name: getattr(given, name) for name in ("device", "precision", "graph", *PLACES)})
    for option in fields(TrainConfig):
        value, own = getattr(given, option.name), getattr(saved, option.name)
        if option.name != "resume" and value != own:
            raise InputError(
                f"--{option.name.replace('_', '-')} is {value}, but {given.resume} was begun with {own} and goes on as "
                f"it began: leave it out, or start a new run with --weights {Path(given.resume) / 'last.safetensors'}"
            )
    return saved


def _check_nothing_to_lose(resumed: Path, folder: Path) -> None:
    """Raise InputError where a run without a state, which begins again, would write over what it did before."""
    if resumed != folder:
        there = ", ".join(path.name for path in checkpoints(folder)) or "no checkpoints"
        raise InputError(f"there is no checkpoint at {resumed}; {folder} keeps {there}")
    weights = folder / "last.safetensors"
    if weights.exists():
        raise InputError(
            f"{folder} cannot go on: its state.safetensors is gone. Put that back, go back to one of its checkpoints, "
            f"or start a new run with --weights {weights}"
        )


def _check_ranks(config: TrainConfig, images: int, world: World) -> None:
    if config.graph:
        raise InputError("--graph is of one GPU: what several say to each other cannot be captured; leave it out")
    if config.batch_size % world.size or config.batch_size > images:
        raise InputError(
            f"--batch-size is {config.batch_size}, the images of a step on all ranks; expected a multiple of the "
            f"{world.size} ranks, at most the {images} training images"
        )


def _check_batch_norm(batch_size: int, side: int, stride: int) -> None:
    if batch_size * (side // stride) ** 2 < 2:
        raise InputError(
            f"a batch of one image of {side} pixels leaves batch normalisation one value per channel, of which it "
            "cannot take a variance; choose a larger --size or --batch-size"
        )
