"""What libraries say is shortened only where it is as it should be."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

from sparse_trainer.cli.quiet import shorten_report

CONFIG = BertConfig(
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=8,
    vocab_size=32,
    num_labels=2,
)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """Return the list to which what transformers says of a loaded model is added, as a command shows it."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("transformers.modeling_utils"), Keep()
    logger.addHandler(handler)
    logger.addFilter(shorten_report)
    yield lines
    logger.removeFilter(shorten_report)
    logger.removeHandler(handler)


def test_a_new_head_is_one_line(said: list[str], tmp_path: Path) -> None:
    BertModel(CONFIG).save_pretrained(tmp_path)
    AutoModelForSequenceClassification.from_pretrained(tmp_path)
    (line,) = [line for line in said if "weights" in line]
    assert line == "new weights, which training has to fill: classifier.bias, classifier.weight"


def test_weights_that_find_no_place_are_reported_in_full(said: list[str], tmp_path: Path) -> None:
    BertForSequenceClassification(CONFIG).save_pretrained(tmp_path)
    smaller = BertConfig.from_pretrained(tmp_path, num_hidden_layers=1)
    BertForSequenceClassification.from_pretrained(tmp_path, config=smaller)
    assert any("LOAD REPORT" in line and "UNEXPECTED" in line for line in said)
