"""Chunks of long contexts: every answer is where the tokens say it is, and nothing else counts as one."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer, EvalPrediction, PreTrainedTokenizerBase

from sparse_trainer.data.splits import DataOptions
from sparse_trainer.errors import ArgumentError, CheckpointError, DataError, RecipeError
from sparse_trainer.tasks.question_answering.features import check_stride, encode
from sparse_trainer.tasks.question_answering.rows import Row, read_rows
from sparse_trainer.tasks.question_answering.task import QuestionAnswering
from tests.fixtures.recipe_files import squad_rows, write_rows, write_tiny_model

COLUMNS = ("question", "context")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = write_tiny_model(tmp_path_factory.mktemp("qa") / "model")
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


def rows_of(*given: dict[str, object], no_answer: bool = False) -> list[Row]:
    """Read rows as a recipe does."""
    return read_rows(Dataset.from_list(list(given)), COLUMNS, "answers", "train set", no_answer=no_answer)


@pytest.mark.parametrize("max_length", [24, 32, 48])
@pytest.mark.parametrize("stride", [0, 3, 8])
def test_the_chunks_of_a_context_hold_all_of_it_and_mark_the_answer(
    max_length: int, stride: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = rows_of(*squad_rows(20))
    chunks = encode(rows, tokenizer, max_length, stride)
    assert len(chunks.encoded) == len(chunks.rows) == len(chunks.offsets)
    assert max_length == 48 or len(chunks.rows) > len(rows)
    marked = set()
    for number, (owner, offsets_T2) in enumerate(zip(chunks.rows, chunks.offsets, strict=True)):
        feature, row = chunks.encoded[number], rows[owner]
        assert len(feature["input_ids"]) == len(offsets_T2) <= max_length
        start, end = feature["start_positions"], feature["end_positions"]
        if start == chunks.first_tokens[number] == 0:
            assert end == 0
            continue
        marked.add(owner)
        assert row.context[offsets_T2[start, 0] : offsets_T2[end, 1]] == row.answers[0]
    # One token: it is in some chunk.
    assert marked == set(range(len(rows)))
    for owner, row in enumerate(rows):
        letters = np.zeros(len(row.context), dtype=bool)
        for offsets_T2, of in zip(chunks.offsets, chunks.rows, strict=True):
            for first, last in offsets_T2[offsets_T2[:, 1] > 0] if of == owner else ():
                letters[first:last] = True
        assert all(covered or letter.isspace() for covered, letter in zip(letters, row.context, strict=True))


def test_the_metrics_are_perfect_for_the_marked_answers_in_any_padding(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    file = str(write_rows(tmp_path / "rows.jsonl", squad_rows(12)))
    data = DataOptions(
        train_file=file, validation_file=file, text_columns=COLUMNS, label_column="answers", max_length=32
    )
    prepared = QuestionAnswering(stride=4).prepare(data, tokenizer)
    count, longest = len(prepared.validation), 40
    starts, ends = np.full((2, count, longest), -5.0)
    # What Trainer pads with, at places that are no token of the chunk, must never be an answer.
    starts[:, 33:], ends[:, 33:] = 100.0, 100.0
    for chunk, feature in enumerate(prepared.validation):
        is_there = feature["start_positions"] > 0
        starts[chunk, feature["start_positions"]] = 9.0 if is_there else -1.0
        ends[chunk, feature["end_positions"]] = 9.0 if is_there else -1.0
    perfect = EvalPrediction(predictions=(starts, ends), label_ids=None)  # type: ignore[arg-type]
    assert prepared.compute_metrics(perfect) == {"f1": 1.0, "exact_match": 1.0}
    wrong = EvalPrediction(predictions=(-starts, -ends), label_ids=None)  # type: ignore[arg-type]
    assert prepared.compute_metrics(wrong)["exact_match"] < 0.5
    assert set(prepared.settings["question_answering"]) == {
        "max_seq_len",
        "doc_stride",
        "max_answer_len",
        "handle_impossible_answer",
    }


def test_no_answer_is_right_where_the_context_does_not_tell(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = squad_rows(4)
    rows[0]["answers"] = {"text": [], "answer_start": []}
    file = str(write_rows(tmp_path / "rows.jsonl", rows))
    data = DataOptions(
        train_file=file, validation_file=file, text_columns=COLUMNS, label_column="answers", max_length=64
    )
    prepared = QuestionAnswering(stride=4, no_answer=True).prepare(data, tokenizer)
    assert prepared.validation[0]["start_positions"] == prepared.validation[0]["end_positions"] == 0
    starts, ends = np.zeros((2, len(prepared.validation), 64))
    for chunk, feature in enumerate(prepared.validation):
        starts[chunk, feature["start_positions"]] = ends[chunk, feature["end_positions"]] = 5.0
    found = prepared.compute_metrics(EvalPrediction(predictions=(starts, ends), label_ids=None))  # type: ignore[arg-type]
    assert found == {"f1": 1.0, "exact_match": 1.0}
    with pytest.raises(DataError, match=r"train set, row 0: has no answer\. Set task\.no_answer: true"):
        QuestionAnswering(stride=4).prepare(data, tokenizer)


GOOD = {"question": "who", "context": "ann did", "answers": {"text": ["ann"], "answer_start": [0]}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answers": {"text": ["bob"], "answer_start": [0]}},
            "row 1: the answer 'bob' does not stand at letter 0",
        ),
        ({"answers": {"text": ["ann"], "answer_start": [99]}}, "does not stand at letter 99"),
        ({"answers": {"text": ["ann"], "answer_start": [-7]}}, "holds .*answer_start"),
        ({"answers": {"text": ["ann", "did"], "answer_start": [0]}}, "as many texts as places"),
        ({"answers": {"text": [""], "answer_start": [0]}}, "as many texts as places"),
        ({"answers": {"text": [], "answer_start": []}}, "row 1: has no answer"),
        ({"answers": None}, "holds None"),
        ({"question": " "}, "column 'question' holds no text"),
        ({"context": None}, "column 'context' holds no text"),
    ],
)
def test_rows_that_cannot_be_learned_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(GOOD, GOOD | change)


def test_answers_may_be_pairs() -> None:
    pairs = [{"text": "ann", "answer_start": 0}, {"text": "did", "answer_start": 4}]
    (row,) = rows_of(GOOD | {"answers": pairs})
    assert row.answers == ("ann", "did")


def test_chunks_must_be_able_to_go_forward(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = rows_of(*squad_rows(5))
    with pytest.raises(RecipeError, match=r"chunks of data\.max_length = 32 tokens cannot overlap by 32"):
        check_stride(32, 32, rows, tokenizer)
    with pytest.raises(DataError, match=r"the question takes \d+ of data\.max_length = 32 tokens"):
        check_stride(24, 32, rows, tokenizer)
    check_stride(16, 32, rows, tokenizer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["em"]}, "'em' is unknown"),
        ({"metrics": []}, "names none"),
        ({"stride": -1}, "stride: -1"),
        ({"max_answer_length": 0}, "max_answer_length"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        QuestionAnswering(**options)  # type: ignore[arg-type]


def test_columns_and_tokenizers_that_cannot_serve_are_refused(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match=r"data\.text_columns: 1 columns"):
        QuestionAnswering().prepare(DataOptions(), tokenizer)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(CheckpointError, match="does not tell where tokens lie"):
        QuestionAnswering().prepare(DataOptions(text_columns=COLUMNS), tokenizer)
