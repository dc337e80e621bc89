"""Text classification: classes and numbers, pairs, and what cannot be learned."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from sparse_trainer.data.splits import DataOptions
from sparse_trainer.errors import ArgumentError, DataError
from sparse_trainer.tasks.text_classification import TextClassification, same_number
from tests.fixtures.recipe_files import write_rows, write_tiny_model

PAIRS = ("sentence1", "sentence2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_trainer.tasks.metrics.hub_reachable", lambda: False)


def options(folder: Path, scores: list[object], **changes: Any) -> DataOptions:
    rows = [{"sentence1": "is it blue", "sentence2": "it is", "label": score} for score in scores]
    file = str(write_rows(folder / "rows.jsonl", rows))
    return DataOptions(train_file=file, validation_file=file, text_columns=PAIRS, **changes)


def test_a_regression_has_one_output_and_the_squared_error(model: Path, tmp_path: Path) -> None:
    task = TextClassification(problem_type="regression", metrics=("pearsonr", "spearmanr"))
    scores: list[object] = [0, 2.5, 5.0]
    data = task.prepare(options(tmp_path, scores), AutoTokenizer.from_pretrained(model))
    assert data.labels == ()
    batch = data.collator([data.train[row] for row in range(3)])
    assert batch["labels"].dtype == torch.float32
    head = task.load_model(str(model), "main", data)
    assert head.config.problem_type == "regression"
    with torch.no_grad():
        out = head.eval()(**batch)
    assert out.logits.shape == (3, 1)
    assert float(out.loss) == pytest.approx(float(((out.logits[:, 0] - batch["labels"]) ** 2).mean()))


@pytest.mark.parametrize("score", ["high", None, True])
def test_a_label_that_is_no_number_is_named(score: object, model: Path, tmp_path: Path) -> None:
    task = TextClassification(problem_type="regression", metrics=("pearsonr",))
    scores = [score] * 3 if isinstance(score, str | bool) else [1.0, 2.0, score]
    with pytest.raises(DataError, match=r"column 'label': row \d has the label .* no finite number"):
        task.prepare(options(tmp_path, scores), AutoTokenizer.from_pretrained(model))


def test_nan_is_no_label(model: Path, tmp_path: Path) -> None:
    task = TextClassification(problem_type="regression", metrics=("pearsonr",))
    with pytest.raises(DataError, match=r"row 1 has the label nan, which is no finite number"):
        task.prepare(options(tmp_path, [1.0, float("nan")]), AutoTokenizer.from_pretrained(model))


def test_a_head_of_classes_does_not_learn_numbers(model: Path, tmp_path: Path) -> None:
    classes = TextClassification()
    tokenizer = AutoTokenizer.from_pretrained(model)
    classes.load_model(
        str(model), "main", classes.prepare(options(tmp_path, [0, 1]), tokenizer)
    ).save_pretrained(tmp_path / "two")
    task = TextClassification(problem_type="regression", metrics=("pearsonr",))
    data = task.prepare(options(tmp_path, [0, 1]), tokenizer)
    with pytest.raises(DataError, match=r"its head has 2 classes .*, the data has numbers, which take 1"):
        task.load_model(str(tmp_path / "two"), "main", data)


def test_options_that_contradict_a_regression_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"metrics: 'accuracy' does not fit this task.*pearsonr"):
        TextClassification(problem_type="regression")
    with pytest.raises(ArgumentError, match="labels: are names of classes"):
        TextClassification(problem_type="regression", metrics=("pearsonr",), labels=("a", "b"))
    with pytest.raises(ArgumentError, match=r"metrics: 'spearmanr' does not fit this task"):
        TextClassification(metrics=("spearmanr",))


def test_numbers_are_the_same_but_for_rounding() -> None:
    one = {"logits": torch.tensor([[1.0], [2.0]])}
    other = {"logits": torch.tensor([[1.0001], [2.1]])}
    assert same_number(one, other).tolist() == [True, False]


def test_a_text_that_leaves_no_room_is_named(model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    short = options(tmp_path, [0, 1], max_length=7, truncation="only_second")
    TextClassification().prepare(short, tokenizer)
    with pytest.raises(
        DataError, match=r"train set, row 0: the first text has 3 tokens.* leaves no room .* in 6"
    ):
        TextClassification().prepare(dataclasses.replace(short, max_length=6), tokenizer)
