"""Heads of checkpoints: whether one fits the data, and what a fresh one is told about the classes."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_trainer.errors import DataError
from sparse_trainer.folders.configs import config_values


def check_head(source: str, revision: str, suffix: str, labels: Sequence[str]) -> None:
    """Raise `DataError` for a checkpoint whose head was trained for another number of outputs than the data has.

    Args:
        suffix: How the classes with such a head are called: `ForSequenceClassification`.
        labels: Names of the classes; none = one number.
    """
    config = config_values(source, {"revision": revision})
    if not any(name.endswith(suffix) for name in config.get("architectures") or []):
        return
    outputs, wanted = len(config.get("id2label") or (0, 1)), max(1, len(labels))
    if outputs != wanted:
        named = f"{wanted}: {', '.join(labels)}" if labels else "numbers, which take 1"
        raise DataError(
            f"model.name_or_path: {source}",
            f"its head has {outputs} classes (num_labels), the data has {named}.",
            "Take a model without a head or with as many classes, or set `labels`.",
        )


def class_names(labels: Sequence[str]) -> Mapping[str, Any]:
    """Return the fields of a config that name the classes.

    >>> class_names(["no", "yes"])
    {'id2label': {0: 'no', 1: 'yes'}, 'label2id': {'no': 0, 'yes': 1}}
    """
    names = dict(enumerate(labels))
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}
