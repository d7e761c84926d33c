"""The options: each is explained, refused where it makes no sense, and comes back from its file as it was."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicenternet import config
from minicenternet.config import EvaluateConfig, TrainConfig
from minicenternet.data.transforms import Augmentation
from minicenternet.errors import InputError

CONFIGS = [value for name, value in vars(config).items() if name.endswith("Config")]


@pytest.mark.parametrize("options", CONFIGS, ids=lambda options: options.__name__)
def test_every_option_is_explained(options):
    """The command line's help is made of the docstring below each field."""
    body = ast.parse(inspect.getsource(options)).body[0].body
    fields = [i for i, statement in enumerate(body) if isinstance(statement, ast.AnnAssign)]
    for i in fields:
        explanation = body[i + 1].value.value if isinstance(body[i + 1], ast.Expr) else ""
        assert len(explanation) > 10 and explanation.endswith("."), body[i].target.id
    assert fields and options.__doc__.endswith(".") and dataclasses.is_dataclass(options)


@pytest.mark.parametrize("options", CONFIGS, ids=lambda options: options.__name__)
def test_options_are_frozen(options):
    required = {
        field.name: () for field in dataclasses.fields(options) if field.default is field.default_factory is not None
    }
    values = options(**required)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(values, dataclasses.fields(options)[0].name, None)


@settings(deadline=None, max_examples=15)
@given(
    learning_rate=st.floats(1e-9, 10),
    drops=st.lists(st.integers(1, 200), max_size=3).map(tuple),
    size=st.none() | st.integers(1, 4096),
    data=st.text(min_size=1),
    augmentation=st.builds(Augmentation, random_crop=st.booleans(), shift=st.floats(0, 1)),
)
def test_what_is_saved_comes_back(tmp_path_factory, learning_rate, drops, size, data, augmentation):
    path = tmp_path_factory.mktemp("run") / "config.json"
    options = TrainConfig(
        data=data,
        learning_rate=learning_rate,
        schedule="step" if drops else "cosine",
        drops=drops,
        size=size,
        augmentation=augmentation,
    )
    options.save(path)
    assert TrainConfig.load(path) == options


@pytest.mark.parametrize(
    "name, value",
    [
        ("epochs", 0),
        ("batch_size", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("shapes", 0),
        ("val_shapes", 0),
        ("evaluate_every", 0),
        ("save_every", 0.0),
        ("weight_decay", -1e-4),
        ("warm_up", -1),
        ("clip_norm", -1.0),
        ("seed", -1),
        ("size", 0),
        ("workers", -1),
        ("average", 1.0),
        ("min_overlap", 0.0),
        ("min_overlap", 1.1),
    ],
)
def test_values_without_sense_are_refused(name, value):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} is {value}, expected"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("given", [{"shapes": 0}, {"seed": -1}])
def test_shapes_without_sense_are_not_evaluated_on(given):
    with pytest.raises(InputError, match="is -?[01], expected"):
        EvaluateConfig(**given)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path.name} is no run folder: it has no config.json"):
        TrainConfig.load(tmp_path / "config.json")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is no run folder"):
        TrainConfig.load(tmp_path / "file" / "config.json")


@pytest.mark.parametrize(
    "change",
    [lambda values: values.pop("drops"), lambda values: values.update(colour=1), lambda values: values.clear()],
)
def test_a_file_of_another_version_is_named(tmp_path, change):
    path = tmp_path / "config.json"
    TrainConfig().save(path)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="config.json is damaged or from another version"):
        TrainConfig.load(path)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"schedule": "step"}, "--schedule is step and --drops is empty"),
        ({"drops": (3, 5)}, "--schedule is cosine and --drops is 3 5"),
        ({"schedule": "step", "drops": (3, 0)}, "--drops is 3 0, expected epochs from 1 on"),
        ({"val_images": "photos"}, "--val-images photos belongs to a file named by --val"),
    ],
)
def test_options_that_would_do_nothing_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match="config.json is damaged"):
        TrainConfig.load(path)


def test_workers_follow_the_cores(monkeypatch):
    for cores, workers in [(None, 1), (1, 1), (2, 1), (4, 3), (64, 8)]:
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert TrainConfig().num_workers == workers
    assert TrainConfig(workers=0).num_workers == 0
