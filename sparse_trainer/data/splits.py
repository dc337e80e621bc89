"""Load a training and a validation set from the hub, from local files or from the generator, and check them."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from datasets import ClassLabel, Dataset

from sparse_trainer.data.quickstart.generated import Split, generate
from sparse_trainer.data.readers import TABLES, TEXTS, check_data_file, read_hub, read_table_or_text
from sparse_trainer.errors import ArgumentError, DataError, shown
from sparse_trainer.fields import check_counts, check_seed

SPLITS: Final[tuple[Split, ...]] = ("train", "validation")
GENERATED = "generated"
"""As `data.source`: the question set of `sparse_trainer.data.quickstart.generated`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Where examples come from, which columns count, and how long they may be."""

    source: str | None = None
    """Hub id (google/boolq), or `generated`; leave it out when files are given."""
    config: str | None = None
    """Configuration of the hub data set, where it has several."""
    train_file: str | None = None
    """Local json, jsonl, csv or parquet file, or plain text, a row a line in column `text`; also with a further .gz."""
    validation_file: str | None = None
    """The same for validation."""
    train_split: str = "train"
    """Name of the training split on the hub."""
    validation_split: str = "validation"
    """Name of the validation split on the hub."""
    text_columns: tuple[str, ...] = ("text",)
    """One column, or a pair such as [question, passage]; `translation.en` is a part of one."""
    label_column: str = "label"
    """Column with the answers: whole numbers, true/false, or the names in task.labels."""
    max_length: int = 256
    """Tokens; longer inputs are cut."""
    truncation: Literal["longest_first", "only_first", "only_second"] = "longest_first"
    """Which text of a pair is cut."""
    max_train_samples: int | None = None
    """Use so many training examples, drawn at random; null = all."""
    max_eval_samples: int | None = None
    """The same for validation."""
    num_train_rows: int = 4000
    """Rows that the generator writes for training."""
    num_eval_rows: int = 1000
    """Rows that the generator writes for validation."""
    seed: int = 42
    """Seed of the generator and of the drawing of samples."""

    def __post_init__(self) -> None:
        check_counts(
            max_length=self.max_length,
            max_train_samples=self.max_train_samples,
            max_eval_samples=self.max_eval_samples,
            num_train_rows=self.num_train_rows,
            num_eval_rows=self.num_eval_rows,
        )
        check_seed(self.seed)
        if self.label_column in self.text_columns:
            raise ArgumentError(
                "label_column", f"{shown(self.label_column)} is a text column.", "Name another column."
            )
        given = self.train_file is not None or self.validation_file is not None
        for name, file in (("train_file", self.train_file), ("validation_file", self.validation_file)):
            if given and file is None:
                raise ArgumentError(name, "missing.", "Give a training and a validation file.")

    def check_files(self) -> None:
        """Raise `DataError` for a local file that is not there: before anything is loaded."""
        for name, file in (("train_file", self.train_file), ("validation_file", self.validation_file)):
            if file is not None:
                check_data_file(Path(file), f"data.{name}: {shown(file)}", (*TABLES, *TEXTS))


@dataclass(frozen=True, slots=True)
class Splits:
    """A training and a validation set."""

    train: Dataset
    validation: Dataset


def load_splits(options: DataOptions, columns: Iterable[str]) -> Splits:
    """Load both sets, check that each has `columns` and rows, and draw the samples asked for.

    Raises:
        DataError: No source, an unreadable file or data set, a missing column, an empty set.
    """
    columns = tuple(columns)
    train, validation = (_with(columns, _load(options, split)) for split in SPLITS)
    for split, dataset in (("train", train), ("validation", validation)):
        check_columns(dataset, columns, f"data: {split} set")
    return Splits(
        train=sampled(train, options.max_train_samples, options.seed, "data.max_train_samples"),
        validation=sampled(validation, options.max_eval_samples, options.seed, "data.max_eval_samples"),
    )


def _with(columns: Sequence[str], dataset: Dataset) -> Dataset:
    """Return the set with parts of columns as columns, where one is asked for: `translation.en`."""
    inside = any("." in column and column not in dataset.column_names for column in columns)
    return dataset.flatten() if inside else dataset


def check_columns(dataset: Dataset, columns: Iterable[str], where: str) -> None:
    """Raise unless the set has rows and every column."""
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise DataError(
            where,
            f"no column {', '.join(map(repr, missing))}.",
            f"It has {', '.join(dataset.column_names) or 'no columns'}: set `text_columns` and `label_column`.",
        )
    if len(dataset) == 0:
        raise DataError(where, "is empty.", "Give a file or split with at least one example.")


def label_names(dataset: Dataset, column: str, asked: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the classes: those asked for, those the data set declares, or the values found.

    >>> label_names(Dataset.from_dict({"label": [True, False, True]}), "label", None)
    ('0', '1')
    """
    if asked is not None:
        return tuple(asked)
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    found = list(dataset[column])
    if not all(isinstance(value, Hashable) for value in found):
        raise DataError(
            f"data: column {column!r}",
            f"{shown(found[0])} is neither the number nor the name of a class.",
            "Set `label_column`.",
        )
    values = set(found)
    if all(isinstance(value, int) for value in values):
        return tuple(str(number) for number in range(max(2, max(int(value) for value in values) + 1)))
    return tuple(sorted(map(str, values)))


def label_ids(values: Sequence[object], names: Sequence[str], where: str) -> list[int]:
    """Return the class number of each value: true/false, a number, or a name.

    Raises:
        DataError: A value that stands for no class.

    >>> label_ids([True, 0, "yes"], ["no", "yes"], "data.label_column")
    [1, 0, 1]
    """
    numbers: Mapping[object, int] = {name: number for number, name in enumerate(names)}
    ids = []
    for row, value in enumerate(values):
        number = int(value) if isinstance(value, bool | int) else numbers.get(value, -1)
        if not 0 <= number < len(names):
            raise DataError(
                where,
                f"row {row} has the label {value!r}, which is not one of the {len(names)} classes.",
                f"Label rows 0 to {len(names) - 1} or {', '.join(names)}, or set task.labels.",
            )
        ids.append(number)
    return ids


def label_numbers(values: Sequence[object], where: str) -> list[float]:
    """Return the labels of a regression.

    Raises:
        DataError: A value that is no finite number.

    >>> label_numbers([3, 4.5], "data.label_column")
    [3.0, 4.5]
    """
    numbers = []
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(
                where, f"row {row} has the label {shown(value)}, which is no finite number.",
                "Correct or drop the row; classes are learned with task.problem_type=single_label_classification.",
            )  # fmt: skip
        numbers.append(float(value))
    return numbers


def _load(options: DataOptions, split: Split) -> Dataset:
    file = options.train_file if split == "train" else options.validation_file
    if file is not None:
        return read_table_or_text(Path(file), f"data.{split}_file: {file}")
    if options.source is None:
        raise DataError("data", "no source.", "Set `source`, or `train_file` and `validation_file`.")
    if options.source == GENERATED:
        num_rows = options.num_train_rows if split == "train" else options.num_eval_rows
        return Dataset.from_list([dict(row) for row in generate(split, num_rows, options.seed)])
    return read_hub(
        options.source,
        options.config,
        options.train_split if split == "train" else options.validation_split,
        where=f"data.source: {options.source}",
        remedy="data.train_file and data.validation_file",
    )


def sampled(dataset: Dataset, count: int | None, seed: int, where: str) -> Dataset:
    """Return so many rows of a set, drawn at random; None = all of them.

    Args:
        where: The option that asks for it.

    Raises:
        DataError: Fewer than 1.
    """
    if count is None or count >= len(dataset):
        return dataset
    if count < 1:
        raise DataError(where, f"{count} examples.", "Ask for 1 or more, or null for all.")
    return dataset.shuffle(seed=seed).select(range(count))
