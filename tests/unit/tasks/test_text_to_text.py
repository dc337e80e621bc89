"""Pairs of texts: what is read and written, how long a model writes, label smoothing, mistakes."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import EvalPrediction, GenerationConfig

from sparse_trainer.data.splits import DataOptions
from sparse_trainer.errors import ArgumentError, DataError, RecipeError
from sparse_trainer.tasks.base import Prepared
from sparse_trainer.tasks.generation.training import WritingArguments, WritingTrainer
from sparse_trainer.tasks.text_to_text import TextToText
from tests.fixtures.character_tokenizer import character_tokenizer
from tests.fixtures.language_models import language_model, write_language_model
from tests.fixtures.recipe_files import write_rows

ROWS: list[dict[str, object]] = [
    {"text": f"The number {n} is {'even' if n % 2 == 0 else 'odd'}.", "summary": f"{n} it is"}
    for n in range(6)
]


def prepared(folder: Path, rows: list[dict[str, object]], task: TextToText, **options: Any) -> Prepared:
    file = str(write_rows(folder / "rows.jsonl", rows))
    data = DataOptions(train_file=file, validation_file=file, label_column="summary", **options)
    return task.prepare(data, character_tokenizer(eos=True))


def arguments(folder: Path, **options: Any) -> WritingArguments:
    return WritingArguments(
        output_dir=str(folder / "run"), report_to="none", use_cpu=True, disable_tqdm=True, max_steps=2,
        dataloader_pin_memory=False, **options,
    )  # fmt: skip


def test_texts_are_encoded_with_the_prefix_and_cut(tmp_path: Path) -> None:
    data = prepared(tmp_path, ROWS, TextToText(prefix="sum: ", max_target_length=5), max_length=12)
    tokenizer = character_tokenizer()
    assert tokenizer.decode(data.train[0]["input_ids"]) == "sum: The nu</s>"
    assert tokenizer.decode(data.train[0]["labels"]) == "0 it</s>"
    batch = data.collator([{**data.train[0]}, {**data.train[1], "labels": [5, 1]}])
    assert batch["labels"][1].tolist() == [5, 1, -100, -100, -100]
    assert data.example == "sum: The number 0 is even."


def test_pairs_with_an_empty_text_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, object]] = [{"text": "  ", "summary": "a"}, {"text": "b", "summary": None}, *ROWS]
    with caplog.at_level(logging.WARNING):
        data = prepared(tmp_path, rows, TextToText())
    assert len(data.train) == len(data.validation) == len(ROWS)
    assert "data: train set: 2 of 8 rows have an empty text, and are left out" in caplog.text
    with pytest.raises(DataError, match="no row has text in both text and summary"):
        prepared(tmp_path, rows[:2], TextToText())


def test_what_is_written_is_compared_as_text(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(eos=True)
    data = prepared(tmp_path, ROWS, TextToText(metrics=("rougeL", "rouge1")))
    labels = [[*tokenizer("3 it is")["input_ids"], -100, -100]]
    written = [[1, *tokenizer(" it is 4 ")["input_ids"], 1, -100]]
    found = data.compute_metrics(EvalPrediction(predictions=np.array(written), label_ids=np.array(labels)))
    assert found == {"rougeL": pytest.approx(2 / 3), "rouge1": pytest.approx(2 / 3)}
    assert list(found) == ["rougeL", "rouge1"]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_model_writes_as_much_as_it_says_or_as_answers_may_hold(kind: str, tmp_path: Path) -> None:
    data = prepared(tmp_path, ROWS, TextToText())
    folder = write_language_model(kind, tmp_path / kind)
    task = TextToText(max_target_length=9)
    assert task.load_model(str(folder), "main", data).generation_config.max_length == 10
    GenerationConfig(
        max_new_tokens=7, decoder_start_token_id=1, eos_token_id=1, pad_token_id=1
    ).save_pretrained(folder)
    own = task.load_model(str(folder), "main", data).generation_config
    assert (own.max_length, own.max_new_tokens) == (None, 7)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_labels_are_smoothed_and_texts_written_in_batches_of_any_size(kind: str, tmp_path: Path) -> None:
    data = prepared(tmp_path, ROWS, TextToText())
    task = TextToText(max_target_length=12)
    folder = write_language_model(kind, tmp_path / kind)
    found = []
    for size in (2, 6):
        trainer = WritingTrainer(
            model=task.load_model(str(folder), "main", data), data_collator=data.collator,
            args=arguments(tmp_path, label_smoothing_factor=0.1, per_device_eval_batch_size=size),
            train_dataset=data.train, eval_dataset=data.validation, compute_metrics=data.compute_metrics,
            processing_class=character_tokenizer(eos=True),
        )  # fmt: skip
        predicted = trainer.predict(data.validation)  # type: ignore[arg-type]
        found.append((np.asarray(predicted.predictions).tolist(), predicted.metrics["test_rouge1"]))
        assert np.isfinite(trainer.train().training_loss)
    assert found[0] == found[1]


def test_mistakes(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": "x" * 200, "summary": "y" * 200}, *ROWS]
    bart = str(write_language_model("bart", tmp_path / "bart"))
    long = prepared(tmp_path, rows, TextToText(), max_length=150)
    with pytest.raises(
        RecipeError, match=r"data\.max_length: texts of 150 tokens.*positions for 128\. Give 128"
    ):
        TextToText().load_model(bart, "main", long)
    answers = prepared(tmp_path, rows, TextToText(max_target_length=160), max_length=100)
    with pytest.raises(RecipeError, match=r"task\.max_target_length: texts of 160 tokens.*Give 128"):
        TextToText().load_model(bart, "main", answers)
    with pytest.raises(RecipeError, match=r"training\.generation_max_length: 500 tokens.*positions for 128"):
        WritingTrainer(model=language_model("bart"), args=arguments(tmp_path, generation_max_length=500))
    with pytest.raises(ArgumentError, match="predict_with_generate"):
        arguments(tmp_path, predict_with_generate=False)
    with pytest.raises(ArgumentError, match="generation_max_length: 1 leaves no room"):
        arguments(tmp_path, generation_max_length=1)
    with pytest.raises(ArgumentError, match="max_target_length: 1 is too small"):
        TextToText(max_target_length=1)
    with pytest.raises(DataError, match=r"row 1: 7 in column 'summary' is no text|row 0"):
        prepared(tmp_path, [{"text": "a", "summary": 7}], TextToText())
    with pytest.raises(RecipeError, match=r"data\.text_columns: 2 columns"):
        prepared(tmp_path, ROWS, TextToText(), text_columns=("text", "other"))
