"""A task in a user's own file: its options, data, model, metric and comparison, from a recipe to a finished folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sparse_trainer import register_task
from sparse_trainer.data.splits import DataOptions, load_splits
from sparse_trainer.errors import ArgumentError, RecipeError
from sparse_trainer.folders.load import load_model
from sparse_trainer.run.pipeline import run
from sparse_trainer.run.recipes.load import load_recipe
from sparse_trainer.tasks.base import Outputs, Prepared, Task
from sparse_trainer.tasks.registry import TASKS
from tests.fixtures.recipe_files import boolq_rows, write_rows, write_tiny_model

COMPARED: list[int] = []
"""How many numbers were compared after each reload."""


def close(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """Tell which numbers are the same to five digits."""
    COMPARED.append(len(one["logits"]))
    same: Tensor = (one["logits"] - other["logits"]).abs()[:, 0] < 1e-5
    return same


@dataclass(frozen=True, kw_only=True)
class Length(Task):
    """Regression: how long is a text, in units of `per` letters?"""

    per: float = 100.0
    metrics: tuple[str, ...] = ("squared error",)

    pipeline = None
    auto_class = "AutoModelForSequenceClassification"
    outputs = Outputs(same=close)

    def __post_init__(self) -> None:
        if self.per <= 0:
            raise ArgumentError("per", f"{self.per} is not positive.", "Give e.g. 100.")

    def prepare(self, data: DataOptions, processor: PreTrainedTokenizerBase) -> Prepared:
        """Encode the first text column; its length is the label."""

        def encode(row: Mapping[str, Any]) -> dict[str, Any]:
            text = row[data.text_columns[0]]
            encoded = processor(text, truncation=True, max_length=data.max_length)
            return {**encoded, "labels": len(text) / self.per}

        splits = load_splits(data, data.text_columns)
        columns = splits.train.column_names
        return Prepared(
            train=splits.train.map(encode, remove_columns=columns),
            validation=splits.validation.map(encode, remove_columns=columns),
            example=None,
            collator=DataCollatorWithPadding(processor),
            compute_metrics=squared_error,
        )

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load the weights with a head of one number."""
        return load_model(source, AutoModelForSequenceClassification, revision=revision, num_labels=1)


def squared_error(prediction: EvalPrediction) -> dict[str, float]:
    """Return the mean squared error."""
    difference = np.asarray(prediction.predictions)[:, 0] - np.asarray(prediction.label_ids)
    return {"squared error": float((difference**2).mean())}


def write_recipe(folder: Path, **task: object) -> Path:
    """Write a recipe of two steps, dense and pruning, with its model and rows."""
    write_tiny_model(folder / "model")
    rows = str(write_rows(folder / "rows.jsonl", boolq_rows(16)))
    sections = {
        "task": task,
        "model": {"name_or_path": str(folder / "model"), "dense_training": {}, "prune_from": "dense"},
        "data": {"train_file": rows, "validation_file": rows, "text_columns": ["passage"], "max_length": 32},
        "pruning": {"density": 0.6, "scoring": "magnitude"},
        "training": {
            "output_dir": str(folder / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "use_cpu": True,
            "report_to": "none",
        },
        "export": {"latency_rounds": 1, "latency_batch_sizes": [1], "latency_sequence_length": 8},
    }
    path = folder / "length.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def test_a_task_of_ones_own_runs_from_recipe_to_folder(tmp_path: Path) -> None:
    register_task("text-length", Length)
    task: type[Task] = Length
    recipe = load_recipe(write_recipe(tmp_path, name="text-length", per=50))
    result = run(recipe)
    assert TASKS["text-length"] is task
    dense, pruned = result.comparison.models.values()
    assert pruned.parameters < dense.parameters
    assert dense.metrics is not None
    assert pruned.metrics is not None
    assert pruned.metrics["squared error"] > 0
    assert result.reloaded is not None
    assert result.reloaded.same_predictions == result.reloaded.samples == COMPARED[-1] == 16
    assert "from_pretrained" in result.load_lines[-1]
    (row,) = [row for row in result.comparison.rows() if row[0] == "squared error"]
    assert not any("%" in cell for cell in row)
    again = load_recipe(result.folder / "recipe.yaml")
    assert vars(again)["task"] == Length(per=50)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"name": "text-length", "pre": 3}, r"task\.pre: unknown key\. Did you mean 'per'"),
        (
            {"name": "text-length", "labels": ["a"]},
            r"task\.labels: unknown key\. .*Known: name, per, metrics",
        ),
        ({"name": "text-length", "per": "x"}, r"task\.per: 'x' is text\. Give a number"),
        ({"name": "text-length", "per": 0}, r"task\.per: 0 is not positive"),
        ({"name": "text-lenght"}, r"unknown task 'text-lenght'\. Did you mean 'text-length'"),
        ({"name": ["text-length"]}, r"task\.name: unknown task"),
    ],
)
def test_a_section_is_checked_against_the_options_of_its_task(
    task: dict[str, object], message: str, tmp_path: Path
) -> None:
    register_task("text-length", Length)
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(tmp_path, **task))


@dataclass(frozen=True, kw_only=True)
class Other(Length):
    """Another class."""


@dataclass(frozen=True, kw_only=True)
class Half:
    """No model, no comparison."""

    metrics: tuple[str, ...] = ("accuracy",)
    pipeline = None
    auto_class = "AutoModel"

    def prepare(self) -> None:
        """Do nothing."""


class Plain:
    """No dataclass."""


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("text-classification", Length, "is taken by .*TextClassification. Take another name"),
        ("text-length", Other, "is taken by .*Length"),
        ("half", Half, "Half has no outputs, load_model, arguments"),
        ("plain", Plain, "is no dataclass"),
        ("instance", Length(), "is no dataclass"),
        ("", Length, "is no name"),
        ("a b", Length, "is no name"),
    ],
)
def test_what_cannot_serve_is_refused(name: str, task: Any, message: str) -> None:
    register_task("text-length", Length)
    register_task("text-length", Length)
    with pytest.raises(ArgumentError, match=message):
        register_task(name, task)


def test_a_recipe_finds_the_task_of_its_plugin(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from sparse_trainer import register_task\nfrom tests.integration.test_own_task import Length\n"
        "register_task('its-length', Length)\n"
    )
    path = write_recipe(tmp_path, name="its-lenght")
    path.write_text(f"plugins: [mine.py]\n{path.read_text()}")
    with pytest.raises(RecipeError, match=r"unknown task 'its-lenght'\. Did you mean 'its-length'"):
        load_recipe(path)
    assert vars(load_recipe(path, ["task.name=its-length", "task.per=2"]))["task"].per == 2
