"""Multiple choice: columns or lists of choices, answers by number or name, and rows that do not fit."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sparse_trainer.architectures.check import check_model
from sparse_trainer.data.splits import DataOptions
from sparse_trainer.errors import ArgumentError, DataError, RecipeError
from sparse_trainer.tasks.multiple_choice import MultipleChoice, answer_of
from tests.fixtures.recipe_files import swag_rows, write_rows, write_tiny_model

ENDINGS = ("ending0", "ending1", "ending2", "ending3")
ARC: dict[str, object] = {"question": "is it", "choices": ["blue", "red", "green"], "label": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("choice") / "model")


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
    return loaded


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_trainer.tasks.metrics.hub_reachable", lambda: False)


def options(folder: Path, rows: list[dict[str, object]], *columns: str, **changes: Any) -> DataOptions:
    file = str(write_rows(folder / "rows.jsonl", rows))
    return DataOptions(
        train_file=file, validation_file=file, text_columns=columns or ("question",), max_length=48, **changes
    )


def test_a_column_per_choice_with_a_column_that_begins_them(
    model: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    task = MultipleChoice(choices=ENDINGS)
    rows = swag_rows(6)
    data = task.prepare(options(tmp_path, rows, "sent1", "sent2"), tokenizer)
    expected = tokenizer(rows[0]["sent1"], "it is red")["input_ids"]
    assert data.train[0]["input_ids"][1] == expected
    assert data.train["labels"][:] == [0, 1, 2, 3, 0, 1]
    batch = data.collator([data.train[row] for row in range(6)])
    assert batch["input_ids"].shape[:2] == (6, 4)
    head = task.load_model(str(model), "main", data).eval()
    with torch.no_grad():
        assert head(**batch).logits.shape == (6, 4)


def test_a_list_of_choices_and_their_names(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    hub: dict[str, object] = {"text": ["blue", "red", "green"], "label": ["A", "B", "C"]}
    plain = MultipleChoice().prepare(options(tmp_path, [ARC]), tokenizer)
    named = MultipleChoice().prepare(options(tmp_path, [{**ARC, "choices": hub, "label": "B"}]), tokenizer)
    assert plain.train[0] == named.train[0]
    assert plain.train[0]["labels"] == 1
    assert plain.example == {"context": "is it", "choices": ["blue", "red", "green"]}


def test_names_come_before_numbers() -> None:
    assert answer_of("1", ["1", "2", "3"], 3) == 0
    assert answer_of("3", ["A", "B"], 2) is None
    assert answer_of(True, (), 2) is None
    assert answer_of(-1, (), 2) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"choices": ["blue", "red"]},
            r"train set, row 1: 2 choices, but the first row .* has 3.*num_choices=3",
        ),
        ({"choices": ["blue"], "label": 0}, r"row 1: 1 choices in column 'choices'.*2 or more"),
        ({"choices": []}, r"row 1: 0 choices"),
        ({"label": 3}, r"row 1: has the label 3, which names none of its 3 choices"),
        ({"label": None}, r"row 1: has the label None"),
        ({"question": None}, r"row 1: None is no text"),
        ({"choices": ["blue", None, "red"]}, r"row 1: None is no text"),
    ],
)
def test_a_row_that_does_not_fit_is_named(
    row: dict[str, object], message: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        MultipleChoice().prepare(options(tmp_path, [ARC, {**ARC, **row}]), tokenizer)


def test_a_text_that_leaves_no_room_is_named(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    rows = [ARC, {**ARC, "choices": ["blue", "it is " * 30, "red"]}]
    with pytest.raises(
        DataError, match=r"row 1: the second text has 60 tokens, and data\.truncation=only_first"
    ):
        MultipleChoice().prepare(options(tmp_path, rows, truncation="only_first"), tokenizer)
    MultipleChoice().prepare(options(tmp_path, rows), tokenizer)


def test_rows_of_another_number_can_be_left_out(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{**ARC, "choices": ["blue", "red"]}, ARC, {**ARC, "label": 2}]
    with caplog.at_level(logging.WARNING):
        data = MultipleChoice(num_choices=3).prepare(options(tmp_path, rows), tokenizer)
    assert data.train["labels"][:] == [1, 2]
    assert "1 of 3 rows are left out, they have other than 3 choices" in caplog.text
    with pytest.raises(DataError, match=r"no row has 5 choices\. Change task\.num_choices"):
        MultipleChoice(num_choices=5).prepare(options(tmp_path, rows), tokenizer)


def test_options_that_cannot_be_meant(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="num_choices: 1 is too small"):
        MultipleChoice(num_choices=1)
    with pytest.raises(ArgumentError, match="choices: names no column"):
        MultipleChoice(choices=())
    with pytest.raises(ArgumentError, match=r"metrics: 'f1' does not fit this task\. Known: accuracy"):
        MultipleChoice(metrics=("f1",))
    with pytest.raises(RecipeError, match=r"data\.text_columns: 3 columns"):
        MultipleChoice().prepare(options(tmp_path, [ARC], "a", "b", "c"), tokenizer)
    with pytest.raises(DataError, match="no column 'endings'"):
        MultipleChoice(choices=("endings",)).prepare(options(tmp_path, [ARC]), tokenizer)


def test_the_lines_that_call_the_model_run(
    model: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = MultipleChoice()
    data = task.prepare(options(tmp_path, [ARC]), tokenizer)
    head = task.load_model(str(model), "main", data).eval()
    exec("\n".join(data.call), {"model": head})
    assert capsys.readouterr().out.strip() in ("blue", "red", "green")


def test_the_laws_hold_for_a_head_that_chooses(
    model: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Its made-up inputs have an axis of choices: hidden features are checked through the head."""
    task = MultipleChoice()
    report = check_model(
        task.load_model(str(model), "main", task.prepare(options(tmp_path, [ARC]), tokenizer))
    )
    assert not report.failed
    assert "hidden" in report.passed
