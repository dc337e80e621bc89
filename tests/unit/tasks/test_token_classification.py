"""Token classification: entities as seqeval counts them, tags on first pieces, and what does not fit."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertTokenizerFast,
    EvalPrediction,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sparse_trainer.data.splits import DataOptions
from sparse_trainer.errors import ArgumentError, DataError, RecipeError
from sparse_trainer.tasks.entities import check_scheme, entities, entity_scores
from sparse_trainer.tasks.token_classification import TokenClassification, tag_names
from tests.fixtures.recipe_files import write_rows

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")

# What seqeval 1.2.2 gives in its default mode: predicted, references, (precision, recall, f1, accuracy).
SEQEVAL = [
    (["B-PER", "I-PER", "O", "B-LOC"], ["B-PER", "I-PER", "O", "B-LOC"], (1.0, 1.0, 1.0, 1.0)),
    (["B-PER", "O", "O", "B-LOC"], ["B-PER", "I-PER", "O", "B-LOC"], (1 / 2, 1 / 2, 1 / 2, 3 / 4)),
    (["I-PER", "I-PER", "O", "I-LOC"], ["B-PER", "I-PER", "O", "B-LOC"], (1.0, 1.0, 1.0, 1 / 2)),
    (["B-PER", "B-PER", "I-LOC"], ["B-PER", "I-PER", "B-LOC"], (1 / 3, 1 / 2, 2 / 5, 1 / 3)),
    (["S-PER", "B-LOC", "I-LOC", "E-LOC"], ["S-PER", "B-LOC", "E-LOC", "O"], (1 / 2, 1 / 2, 1 / 2, 1 / 2)),
    (["E-PER", "E-PER", "I-PER"], ["S-PER", "S-PER", "S-PER"], (1.0, 1.0, 1.0, 0.0)),
    (["O", "O"], ["B-PER", "O"], (0.0, 0.0, 0.0, 1 / 2)),
    (["O"], ["O"], (0.0, 0.0, 0.0, 1.0)),
]  # fmt: skip


@pytest.mark.parametrize(("predicted", "references", "scores"), SEQEVAL)
def test_scores_are_those_of_seqeval(
    predicted: list[str], references: list[str], scores: tuple[float, ...]
) -> None:
    found = entity_scores([predicted], [references])
    assert tuple(found.values()) == pytest.approx(scores)


def test_an_entity_ends_with_its_sentence_and_types_may_hold_dashes() -> None:
    assert entities(["B-A-B", "I-A-B", "I-A"]) == [("A-B", 0, 2), ("A", 2, 3)]
    joined = entity_scores([["B-PER"], ["I-PER"]], [["B-PER"], ["B-PER"]])
    assert joined["f1"] == 1.0


def test_scores_are_over_all_sentences_not_their_mean() -> None:
    found = entity_scores([["B-PER"], ["O", "O", "O"]], [["B-PER"], ["B-PER", "B-PER", "B-PER"]])
    assert found["recall"] == 1 / 4


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("NOUN", r"'NOUN' is no tag of IOB2 or IOBES.*task\.metrics=\[accuracy\]"),
        ("0", "Name all tags in order"),
        ("B-", "'B-' is no tag"),
        ("L-PER", "They are of BILOU: write E- for L-"),
        ("B_PER", "is no tag"),
    ],
)
def test_a_tag_of_an_unknown_scheme_is_refused(tag: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_scheme(["O", "B-PER", tag])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """Return a tokenizer that cuts "playing" and "London" into two pieces."""
    file = tmp_path_factory.mktemp("words") / "vocab.txt"
    file.write_text(
        "\n".join(
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ann", "play", "##ing", "in", "lon", "##don"]
        )
    )
    return BertTokenizerFast(str(file), model_max_length=64)


def options(folder: Path, rows: list[dict[str, object]], **changes: Any) -> DataOptions:
    file = str(write_rows(folder / "rows.jsonl", rows))
    given: dict[str, Any] = {"text_columns": ("tokens",), "label_column": "tags", **changes}
    return DataOptions(train_file=file, validation_file=file, **given)


ROW: dict[str, object] = {
    "tokens": ["Ann", "playing", "in", "London"],
    "tags": ["B-PER", "O", "O", "B-LOC"],
}


def test_the_first_piece_of_a_word_has_its_tag(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = TokenClassification(labels=TAGS).prepare(options(tmp_path, [ROW]), tokenizer)
    assert tokenizer.convert_ids_to_tokens(data.train[0]["input_ids"])[2:4] == ["play", "##ing"]
    #                                 [CLS] ann play ##ing in lon ##don [SEP]
    assert data.train[0]["labels"] == [-100, 1, 0, -100, 0, 3, -100, -100]
    assert data.example == "Ann playing in London"
    ids = tokenizer(ROW["tokens"], is_split_into_words=True)["input_ids"]
    assert data.train[0]["input_ids"] == ids


def test_pieces_with_their_space_are_aligned_too(tmp_path: Path) -> None:
    """As of byte-level tokenizers, which need no option to be set for that."""
    vocabulary = {piece: number for number, piece in enumerate(["?", "Ann", "Ġin", "ĠLon", "don"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="?", continuing_subword_prefix=""))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rows: list[dict[str, object]] = [{"tokens": ["Ann", "in", "London"], "tags": [1, 0, 3]}]
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?", pad_token="?")
    data = TokenClassification(labels=TAGS).prepare(options(tmp_path, rows), wrapped)
    assert wrapped.convert_ids_to_tokens(data.train[0]["input_ids"]) == ["Ann", "Ġin", "ĠLon", "don"]
    assert data.train[0]["labels"] == [1, 0, 3, -100]


def test_words_beyond_the_length_are_counted_and_told(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        data = TokenClassification().prepare(options(tmp_path, [ROW], max_length=6), tokenizer)
    assert len(data.train[0]["input_ids"]) == 6
    assert "validation set: 1 of 4 words lie beyond data.max_length (6)" in caplog.text


def test_pieces_without_tag_do_not_count(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    task = TokenClassification(labels=TAGS, metrics=("f1", "accuracy"))
    data = task.prepare(options(tmp_path, [ROW]), tokenizer)
    labels = np.array([data.train[0]["labels"]])
    logits = np.eye(5)[np.where(labels == -100, 2, labels)]  # right where it counts, I-PER elsewhere
    found = data.compute_metrics(EvalPrediction(predictions=logits, label_ids=labels))
    assert found == {"f1": 1.0, "accuracy": 1.0}


def test_tags_are_named_by_the_data() -> None:
    tags = [["B-PER", "O"], ["O", "B-LOC"]]
    assert tag_names(Dataset.from_dict({"tags": tags}), "tags", None) == ("O", "B-LOC", "B-PER")
    declared = Features({"tags": List(ClassLabel(names=["B-X", "O"])), "tokens": List(Value("string"))})
    data = Dataset.from_dict({"tags": [[0]], "tokens": [["a"]]}, features=declared)
    assert tag_names(data, "tags", None) == ("B-X", "O")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tags": ["O"]}, r"train set, row 1: 4 words, but 1 tags in column 'tags'"),
        ({"tokens": [], "tags": []}, r"row 1: column 'tokens' holds \[\], no list of words"),
        (
            {"tags": ["O", "O", "O", "B-ORG"]},
            r"row 1: has the tag 'B-ORG', .*not one of the 5.*Known: O, B-PER",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named(
    row: dict[str, object], message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DataError, match=message):
        TokenClassification(labels=TAGS).prepare(options(tmp_path, [ROW, {**ROW, **row}]), tokenizer)


def test_numbers_out_of_range_and_texts_instead_of_lists_are_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(DataError, match=r"row 0: has the tag 5, which is not one of the 5"):
        TokenClassification(labels=TAGS).prepare(
            options(tmp_path, [{"tokens": ["Ann"], "tags": [5]}]), tokenizer
        )
    with pytest.raises(DataError, match="row 0: column 'tokens' holds 'Ann', no list of words"):
        TokenClassification(labels=TAGS).prepare(
            options(tmp_path, [{"tokens": "Ann", "tags": ["O"]}]), tokenizer
        )
    with pytest.raises(RecipeError, match=r"data\.text_columns: 2 columns"):
        TokenClassification().prepare(options(tmp_path, [ROW], text_columns=("tokens", "more")), tokenizer)


def test_tags_without_a_scheme_need_the_accuracy(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    rows: list[dict[str, object]] = [{"tokens": ["Ann"], "tags": ["NOUN"]}]
    with pytest.raises(DataError, match="'NOUN' is no tag of IOB2 or IOBES"):
        TokenClassification().prepare(options(tmp_path, rows), tokenizer)
    assert TokenClassification(metrics=("accuracy",)).prepare(options(tmp_path, rows), tokenizer).labels == (
        "NOUN",
    )
    with pytest.raises(ArgumentError, match=r"metrics: 'matthews_correlation' does not fit this task"):
        TokenClassification(metrics=("matthews_correlation",))
