"""Rows with one input and one class, of which the input is read when it is needed."""

import os

from datasets import Dataset

from sparse_trainer.data.openable import path_of
from sparse_trainer.data.splits import DataOptions, label_ids
from sparse_trainer.errors import RecipeError


def only_column(data: DataOptions, such_as: str) -> str:
    """Return the one column of inputs.

    Raises:
        RecipeError: There are several, or none.
    """
    if len(data.text_columns) != 1:
        raise RecipeError(
            "data.text_columns", f"{len(data.text_columns)} columns.", f"Give e.g. [{such_as}]."
        )
    return data.text_columns[0]


def labelled(
    rows: Dataset, column: str, name: str, label_column: str, labels: tuple[str, ...], where: str
) -> Dataset:
    """Return the inputs under the name that the model gives them, and `labels`: a Trainer keeps these columns.

    Raises:
        DataError: A label that is none of the classes.
    """
    numbers = label_ids(rows[label_column], labels, f"data: {where}, column {label_column!r}")
    inputs = rows.select_columns([column])
    inputs = inputs if column == name else inputs.rename_column(column, name)
    return inputs.add_column("labels", numbers)


def example_path(entry: object, stand_in: str) -> str:
    """Return the path of an input, as a pipeline takes it; a stand-in for one that lies in no file."""
    path = path_of(entry)
    return path if path is not None and os.path.isfile(path) else stand_in
