"""The data of a run: what it trains on, what it measures AP on, and that both know the same classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .config import PLACES, TrainConfig
from .data import open_dataset
from .data.annotation import Annotation, DataSet, Sample
from .errors import InputError


@dataclass(frozen=True)
class BlackWhereUnreadable:
    """A data set in which an image that cannot be read is black, with one warning: its objects count as missed."""

    dataset: DataSet
    named: set[str] = field(default_factory=set)  # the messages given so far

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.dataset.class_names

    @property
    def category_ids(self) -> tuple[int, ...]:
        return self.dataset.category_ids

    def __len__(self) -> int:
        return len(self.dataset)

    def annotation(self, i: int) -> Annotation:
        return self.dataset.annotation(i)

    def __getitem__(self, i: int) -> Sample:
        try:
            return self.dataset[i]
        except InputError as error:
            if str(error) not in self.named:
                self.named.add(str(error))
                warnings.warn(f"black when AP is measured: {error}", stacklevel=2)
            annotation = self.annotation(i)
            return Sample(np.zeros((annotation.height, annotation.width, 3), np.uint8), annotation)


@contextmanager
def moved_explained(config: TrainConfig, run: Path) -> Iterator[None]:
    """Inside, data of a run that are not where it had them are an InputError that says how to name their new place."""
    try:
        yield
    except InputError as error:
        places = [getattr(config, name) for name in PLACES]
        if all(place in (None, "shapes") or Path(place).exists() for place in places):
            raise
        hint = f"If the data of {run} have moved: minicenternet train --resume {run} --data NEW_PLACE"
        raise InputError(f"{error} {hint}") from error


def open_training(config: TrainConfig) -> DataSet:
    """Open the data that a run trains on."""
    return open_dataset(
        config.data, split="train", image_folder=config.images, size=config.side, length=config.shapes, seed=config.seed
    )


def open_validation(config: TrainConfig) -> DataSet | None:
    """Open the data that a run measures AP on, or return None where those are its training images."""
    named = config.val is not None
    val_data = open_dataset(
        config.val if named else config.data,
        # a .json file that was named is taken as it is; of anything else, the val split
        split="train" if named and config.val.endswith(".json") else "val",
        image_folder=config.val_images if named else config.images,
        size=config.side,
        length=config.val_shapes,
        seed=config.seed,
    )
    return _measurable(config, val_data) if val_data else None


def open_measured(config: TrainConfig) -> DataSet:
    """Open the data that a run measures AP on, whether they are validation data or its training images."""
    return open_validation(config) or _measurable(config, open_training(config))


def _measurable(config: TrainConfig, dataset: DataSet) -> DataSet:
    return BlackWhereUnreadable(dataset) if config.skip_bad_images else dataset


def open_data(config: TrainConfig, say: Callable[[str], None]) -> tuple[DataSet, DataSet]:
    """Open both; where there are no validation data, say so: AP is then measured on the training images.

    Raises InputError when their classes differ, and what open_dataset raises.
    """
    train_data, val_data = open_training(config), open_validation(config)
    if val_data is None:
        say("no validation data found beside --data: AP is measured on the training images (name some by --val)")
        val_data = _measurable(config, train_data)
    if val_data.class_names != train_data.class_names:
        different = sorted(set(val_data.class_names) ^ set(train_data.class_names))
        raise InputError(
            f"the training and the validation data have different classes: {different or 'another order'}; "
            "give both files the same list of categories"
        )
    return train_data, val_data
