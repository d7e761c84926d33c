"""The command line, `minicenternet VERB [OPTIONS]`: parses, calls, and turns whatever goes wrong into one message.

Each verb has a dataclass in config.py, of which tyro makes its options and help, and a function here, which imports
what it needs: `minicenternet --help` does not wait for matplotlib.

    exit code    0 done    1 a bug, or out of memory    2 a mistake in what was given
                 130 stopped by Ctrl-C    143 a run stopped by SIGTERM: its state is saved, and --resume goes on
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import json
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import __version__
from .config import (
    PLACES,
    BenchConfig,
    CompareConfig,
    ConvertConfig,
    DataCheckConfig,
    DataPrepareConfig,
    DemoConfig,
    DoctorConfig,
    EvaluateConfig,
    ExplainConfig,
    PredictConfig,
    RecipesConfig,
    ReportConfig,
    TrainConfig,
    TutorialCheckConfig,
    TutorialConfig,
    UseConfig,
    WeightsGetConfig,
    WeightsListConfig,
)
from .errors import InputError
from .files import replacing

if TYPE_CHECKING:
    import numpy as np

    from .distributed import World
    from .model import CenterNet
    from .predict import Detections


class Verb(NamedTuple):
    """A command: its options, the function that does it and returns the exit code, and an example.

    first: the option that a first argument without a name is for.  default: makes, from the arguments, the options
    that hold where none are given.
    """

    options: type
    run: Callable[[Any], int]
    example: str
    first: str = ""
    default: Callable[[list[str]], Any] | None = None

    @property
    def summary(self) -> str:
        """One sentence: the docstring of the options."""
        return " ".join(inspect.getdoc(self.options).split())


class Bug(Exception):
    """Something that no input may cause; its traceback is in the file at `path`."""

    def __init__(self, path: Path):
        self.path = path


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments (by default the program's) ask for and return the exit code."""
    with warnings.catch_warnings():
        _quieten_warnings()
        if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal's encoding lacks is no reason to stop
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            with _bugs_reported_in(Path(tempfile.gettempdir())):
                code = _run(sys.argv[1:] if arguments is None else list(arguments))
                sys.stdout.flush()
                return code
        except InputError as error:
            return _fail(2, str(error))
        except BrokenPipeError:  # the reader of our output, `head` perhaps, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            return _fail(2, ": ".join(str(part) for part in (error.filename, error.strerror or error) if part))
        except MemoryError as error:
            return _fail(1, f"out of memory; use a smaller --batch-size or --size, or close other programs. {error}")
        except Bug as bug:
            error = bug.__cause__
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            return _fail(1, f"this is a bug in minicenternet ({reason}); please report it with the file {bug.path}")
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        except SystemExit as end:  # tyro's, after a help text or a message
            return int(end.code or 0)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"minicenternet {__version__}")
        return 0
    for name, verb in VERBS.items():
        words = name.split()
        if arguments[: len(words)] == words:
            return verb.run(_parse(name, verb, arguments[len(words) :]))
    raise InputError(_no_such_verb(arguments))


def _help() -> str:
    lines = [
        f"minicenternet {__version__}: CenterNet (Objects as Points) from scratch in NumPy",
        "",
        "usage: minicenternet VERB [OPTIONS]        minicenternet VERB --help lists the options",
    ]
    for name, verb in VERBS.items():
        lines += ["", f"{name:<16}{verb.summary}", f"{'':16}$ {verb.example}"]
    return "\n".join(lines)


def _parse(name: str, verb: Verb, arguments: list[str]) -> Any:
    import tyro

    if verb.first and arguments and not arguments[0].startswith("-"):
        arguments = [verb.first, *arguments]
    return tyro.cli(
        verb.options,
        prog=f"minicenternet {name}",
        description=f"{verb.summary}\n\nExample: {verb.example}",
        args=arguments,
        **({"default": verb.default(arguments)} if verb.default else {}),
        config=(tyro.conf.PositionalRequiredArgs, tyro.conf.DisallowNone, tyro.conf.OmitArgPrefixes),
    )


def _no_such_verb(arguments: list[str]) -> str:
    if arguments[0].startswith("-"):
        return f"{arguments[0]} stands before the verb; write minicenternet VERB {arguments[0]} ..."
    typed = " ".join(arguments[: 2 if arguments[0] in ("data", "weights") else 1])
    words = dict.fromkeys(word for verb in VERBS for word in (verb, *verb.split()))
    near = difflib.get_close_matches(typed, words, n=1, cutoff=0.5)
    meant = [verb for verb in VERBS if near and near[0] in (verb, *verb.split())]
    hint = f"did you mean {' or '.join(map(repr, meant))}?" if meant else f"there are {', '.join(VERBS)}"
    return f"there is no verb {typed!r}; {hint} (minicenternet --help shows them all)"


# ---- what each verb does ---------------------------------------------------------------------------------------------


def _demo(options: DemoConfig) -> int:
    from .demo import demo
    from .train import Interrupted

    with _bugs_reported_in(options.output):
        try:
            demo(options.output, options.seed)
        except (Interrupted, KeyboardInterrupt) as stop:
            print("stopped; the same command goes on from here", file=sys.stderr)
            return _code_of(stop)
    return 0


def _train_defaults(arguments: list[str]) -> TrainConfig:
    """Return the options of the run or the recipe that the arguments name, so that those given beside it win over them.

    Where the data of a run have moved, what belongs to them is not taken from it, either.
    """
    named = {}
    for argument, following in itertools.pairwise([*arguments, ""]):
        option, _, value = argument.partition("=")
        named[option] = value or following
    if named.get("--resume"):
        from .run_folder import options_of

        moved = dict.fromkeys(PLACES[1:]) if "--data" in named else {}
        return replace(options_of(Path(named["--resume"])), **moved)
    if named.get("--recipe"):
        from .recipes import find

        return find(named["--recipe"]).config
    return TrainConfig()


def _train(options: TrainConfig) -> int:
    from .distributed import ending_together, join
    from .recipes import begin
    from .train import Interrupted, Run

    world = join()
    with ending_together(world):
        if world.rank == 0:
            begin(options)  # one rank downloads what the others find
        world.share("")
        run = Run(begin(options), world=world)
        with _bugs_reported_in(run.folder):
            try:
                last = run.train()
            except (Interrupted, KeyboardInterrupt) as stop:
                if world.rank == 0:
                    folder = shlex.quote(str(run.folder))
                    print(f"stopped; to go on: minicenternet train --resume {folder}", file=sys.stderr)
                return _code_of(stop)
    if world.rank > 0:
        return 0
    if last["ap"] >= 0:
        print(f"AP {last['ap']:.3f}, AP50 {last['ap50']:.3f}, best AP {run.counters.best_ap:.3f}: see {run.folder}")
    else:
        print(f"no AP, as the validation images hold no objects: see {run.folder}")
    _say_what_next(run.folder / "best.safetensors")
    return 0


def _code_of(stop: BaseException) -> int:
    """The exit code of a run that a signal stopped, as shells have it: 128 and the signal's number."""
    return 128 + getattr(stop, "number", signal.SIGINT)


def _recipes(options: RecipesConfig) -> int:
    from . import recipes
    from .recipes import measure

    chosen = [recipes.find(name) for name in options.names] or list(recipes.recipes().values())
    print(f"{recipes.table(recipes.HEAD, map(recipes.cells, chosen))}\n\n{recipes.LEGEND}")
    for recipe in chosen if options.names else ():
        print(f"\n{recipes.details(recipe)}")
    if options.measure:
        found = measure.measure(chosen, options.device, options.precision, options.size, options.batch_size)
        rows = (measure.cells(recipe, found[recipe.name]) for recipe in chosen)
        print(f"\n{recipes.table(measure.HEAD, rows, left=3)}\n\n{measure.LEGEND}")
    else:
        print(
            f"\nMemory and hours on this machine: minicenternet recipes {' '.join(options.names) or 'NAME'} --measure"
        )
    return 0


def _load(options: UseConfig, say: Callable[[str], None] = print) -> CenterNet:
    """Return the network, on the device asked for; of auto, say which it is and why."""
    from .device import choose
    from .model import CenterNet

    model = CenterNet.load(options.weights)
    device, why = choose(options.device)
    if options.device == "auto":
        say(why)
    return model.to(device).set_precision(options.precision)


def _evaluate(options: EvaluateConfig) -> int:
    from .distributed import ending_together, join

    world = join()
    with ending_together(world):
        return _evaluate_in(world, options)


def _evaluate_in(world: World, options: EvaluateConfig) -> int:
    """Evaluate as one of several ranks, of which the first speaks and writes."""
    from tqdm import tqdm

    from .data import open_dataset
    from .evaluate import evaluate
    from .parts import delete_parts

    say = print if world.rank == 0 else lambda text: None
    model = _load(options, say)
    source = {
        "source": options.data,
        "image_folder": options.images,
        "size": model.input_size,
        "length": options.shapes,
        "seed": options.seed,
        "unannotated": True,
    }
    dataset = open_dataset(split=options.split, **source)
    if dataset is None:
        dataset = open_dataset(split="train", **source)
        say(f"{options.data} has no {options.split} split: all of it is measured\n")
    keep = options.output / "unfinished" if options.output else None
    hidden = None if world.rank == 0 else True  # None: where nobody watches
    with tqdm(total=len(dataset), desc="detecting", unit=" images", leave=False, disable=hidden) as bar:
        evaluation = evaluate(
            model.fold(),
            dataset,
            protocol=options.protocol,
            referee=options.referee,
            k=options.k,
            resolution=options.resolution,
            flip=options.flip,
            scales=options.scales,
            nms=options.nms,
            rounded=options.rounded,
            batch_size=options.batch_size,
            graph=options.graph,
            progress=lambda done, total: bar.update(done - bar.n),
            world=world,
            keep=keep,
        )
    if evaluation is None:
        return 0
    print(evaluation.text())
    if options.output:
        evaluation.save(options.output)
        delete_parts(keep)
        print(f"\ndetections, figures and pictures are in {options.output}")
    return 0


def _predict(options: PredictConfig) -> int:
    from .data.images import read_image
    from .predict import Predictor, find_images

    paths = find_images(options.images)
    model = _load(options).fold()
    predictor = Predictor(
        model,
        min_score=options.min_score,
        k=options.k,
        resolution=options.resolution,
        flip=options.flip,
        scales=options.scales,
        nms=options.nms,
        batch_size=options.batch_size,
        graph=options.graph,
    )
    images, annotations, readable, unreadable = [], [], [], []

    def read_in_turn() -> Iterator[np.ndarray]:
        for path in paths:
            try:
                image = read_image(path)
            except InputError as error:
                unreadable.append(str(error))
            else:
                readable.append(path)
                yield image

    folder = options.output.absolute()
    pictures = {path.name for path in paths if path.absolute().parent == folder}  # not to be written over
    for number, found in enumerate(predictor.stream(read_in_turn()), start=1):
        path = readable[number - 1]
        print(f"{path}: {_objects(found) or f'nothing with a score of {options.min_score} or more'}")
        height, width, _ = found.image.shape
        images.append({"id": number, "file_name": str(path), "width": width, "height": height})
        annotations += found.to_coco(number, rounded=options.rounded)
        if options.draw:
            picture = next(name for name in _picture_names(path) if name not in pictures)
            pictures.add(picture)
            found.draw(options.output / picture, options.min_score)
    if not images:
        raise InputError("; ".join(unreadable))
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    categories = [{"id": number, "name": name} for number, name in enumerate(model.class_names, start=1)]
    path = options.output / "predictions.json"
    with replacing(path) as temporary:
        content = {"images": images, "categories": categories, "annotations": annotations}
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    drawn = ", with a picture of each image" if options.draw else ""
    print(f"\n{_count(annotations, 'object')} in {_count(images, 'image')}: {path}{drawn}")
    if unreadable:
        return _fail(2, f"{_count(unreadable, 'image')} left out: {'; '.join(unreadable)}")
    return 0


def _objects(found: Detections, named: int = 5) -> str:
    names = ", ".join(f"{name} {score:.2f}" for name, score, _ in itertools.islice(found, named))
    return names + (f" and {len(found) - named} more" if len(found) > named else "")


def _count(things: Sequence, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _picture_names(path: Path) -> Iterator[str]:
    """Names for the picture of an image's objects, of which the first that is free is taken."""
    yield f"{path.stem}-found.jpg"
    for number in itertools.count(2):
        yield f"{path.stem}-found-{number}.jpg"


def _explain(options: ExplainConfig) -> int:
    from .model import CenterNet
    from .predict import explain

    explanation = explain(CenterNet.load(options.weights), options.image)
    explanation.draw(options.output, options.min_score)
    print(explanation.detections.above(options.min_score))
    print(f"\nhow it got there, step by step: {options.output}")
    return 0


def _report(options: ReportConfig) -> int:
    from .report import write_report
    from .run_data import moved_explained, open_measured

    config = TrainConfig.load(options.run / "config.json")
    with moved_explained(config, options.run):
        dataset = open_measured(config)
    print(write_report(options.run, dataset))
    return 0


def _compare(options: CompareConfig) -> int:
    from .report import compare

    comparison = compare(options.runs)
    comparison.save(options.output)
    print(f"{comparison.text()}\n\nwith the curves over each other: {options.output}")
    return 0


def _data_check(options: DataCheckConfig) -> int:
    from .data.check import check

    report = check(
        options.path, options.output, split=options.split, image_folder=options.images, input_size=options.size
    )
    print(report.text())
    print(f"this report and pictures of the data are in {options.output}")
    return 0


def _data_prepare(options: DataPrepareConfig) -> int:
    from .data.prepare import prepare

    try:
        prepare(
            options.name,
            options.folder,
            options.source,
            years=options.years,
            count=options.subset,
            classes=[name.strip() for name in options.classes.split(",") if name.strip()],
            seed=options.seed,
        )
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _convert(options: ConvertConfig) -> int:
    from .backbones import BACKBONES
    from .released import convert

    if options.network is None:
        raise InputError(f"--network is missing: which network is {options.source} of? One of {', '.join(BACKBONES)}")
    print(
        convert(
            options.source,
            options.target,
            network=options.network,
            dataset=options.dataset,
            size=options.size,
        )
    )
    _say_what_next(options.target)
    return 0


def _weights_list(options: WeightsListConfig) -> int:
    from .released import table

    print(table(options.folder))
    return 0


def _weights_get(options: WeightsGetConfig) -> int:
    from .released import get

    _say_what_next(get(options.name, options.folder, options.source))
    return 0


def _say_what_next(weights: Path) -> None:
    print(f"now try: minicenternet predict IMAGES --weights {shlex.quote(str(weights))}")


def _tutorial(options: TutorialConfig) -> int:
    from .course import hand_out, open_jupyter

    for line in hand_out(options.folder):
        print(line)
    print(f"\nyour answers are judged by: minicenternet tutorial check {shlex.quote(str(options.folder))}")
    return open_jupyter(options.folder) if options.jupyter else 0


def _tutorial_check(options: TutorialCheckConfig) -> int:
    from .course import check

    reached = []
    for progress in check(options.folder, seconds=options.seconds):
        print(progress, flush=True)
        reached.append(progress)
    there = sum(len(progress.verdicts) for progress in reached)
    print(f"\n{'in all':<32}{sum(progress.solved for progress in reached)} of {there} solved")
    return 0


def _doctor(options: DoctorConfig) -> int:
    from .doctor import examine, report, usable

    findings = examine(options.folder)
    print(report(findings))
    return 0 if usable(findings) else 1


def _bench(options: BenchConfig) -> int:
    from .bench import bench, save
    from .bench_loader import bench_loader

    if options.loader:
        figures = bench_loader(
            options.loader,
            options.backbones,
            images=options.images,
            size=options.size,
            batch_size=options.batch_size,
            device=options.device,
            graph=options.graph,
            seconds=options.seconds,
        )
    else:
        figures = bench(
            options.backbones,
            options.size,
            options.batch_size,
            options.seconds,
            device=options.device,
            graph=options.graph,
        )
    if options.json:
        save(figures, options.json)
    return 0


VERBS = {
    "demo": Verb(DemoConfig, _demo, "minicenternet demo"),
    "train": Verb(
        TrainConfig,
        _train,
        "minicenternet train --data instances.json --images photos --epochs 50",
        default=_train_defaults,
    ),
    "evaluate": Verb(EvaluateConfig, _evaluate, "minicenternet evaluate --weights runs/demo/best.safetensors"),
    "predict": Verb(PredictConfig, _predict, "minicenternet predict photos --weights runs/demo/best.safetensors"),
    "explain": Verb(ExplainConfig, _explain, "minicenternet explain photo.jpg --weights runs/demo/best.safetensors"),
    "report": Verb(ReportConfig, _report, "minicenternet report runs/demo"),
    "compare": Verb(CompareConfig, _compare, "minicenternet compare runs/shapes-1 runs/shapes-2"),
    "tutorial check": Verb(TutorialCheckConfig, _tutorial_check, "minicenternet tutorial check", "--folder"),
    "tutorial": Verb(TutorialConfig, _tutorial, "minicenternet tutorial", "--folder"),
    "data check": Verb(DataCheckConfig, _data_check, "minicenternet data check instances.json --images photos"),
    "data prepare": Verb(DataPrepareConfig, _data_prepare, "minicenternet data prepare voc data/voc"),
    "recipes": Verb(RecipesConfig, _recipes, "minicenternet recipes coco-dla34-1x --measure", "--names"),
    "convert": Verb(ConvertConfig, _convert, "minicenternet convert net.pth net.safetensors --network dla34"),
    "weights list": Verb(WeightsListConfig, _weights_list, "minicenternet weights list"),
    "weights get": Verb(WeightsGetConfig, _weights_get, "minicenternet weights get ctdet_coco_resdcn18"),
    "doctor": Verb(DoctorConfig, _doctor, "minicenternet doctor"),
    "bench": Verb(BenchConfig, _bench, "minicenternet bench --json figures.json"),
}


# ---- what may go wrong -----------------------------------------------------------------------------------------------


def _fail(code: int, message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _quieten_warnings() -> None:
    """Show this package's own warnings, a line each, and those of libraries only where Python was asked for them."""
    if sys.warnoptions:
        return
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", category=UserWarning, module="minicenternet")
    warnings.filterwarnings("ignore", message="Glyph")  # matplotlib's, of a class name in a script its font lacks
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)


@contextmanager
def _bugs_reported_in(folder: Path) -> Iterator[None]:
    """Turn what no input may cause into a Bug, with its traceback in a file in the folder."""
    try:
        yield
    except (InputError, OSError, MemoryError, Bug):
        raise
    except Exception as error:
        system = f"minicenternet {__version__}, Python {platform.python_version()}, {platform.platform()}"
        text = f"{system}\n{shlex.join(sys.argv)}\n\n{traceback.format_exc()}"
        path = folder / time.strftime("crash-%Y%m%d-%H%M%S.txt")
        try:
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            path = Path(tempfile.gettempdir()) / path.name
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        raise Bug(path) from error
