"""What libraries say is shortened only where it is as it should be."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

from sparse_trainer.cli.quiet import said_once, shorten_report

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


@pytest.mark.parametrize(
    ("handlers", "heard"),
    [([], True), ([logging.NullHandler()], True), ([logging.StreamHandler()], False)],
)
def test_what_a_library_prints_by_itself_is_not_said_twice(
    handlers: list[logging.Handler], heard: bool
) -> None:
    library = logging.getLogger("a_library")
    for handler in handlers:
        library.addHandler(handler)
    said = said_once(logging.makeLogRecord({"name": "a_library.models"}))
    library.handlers.clear()
    assert said is heard


def test_a_command_says_a_warning_once_where_ci_is_set() -> None:
    """transformers hands its records on there, beside printing them."""
    program = (
        "from sparse_trainer.cli.quiet import quieten; quieten()\n"
        "from transformers.utils import logging; logging.get_logger('transformers.any').warning('a new head')\n"
        "import logging; logging.warning('of the root')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CI": "true"},
    )
    assert done.stderr.count("a new head") == done.stderr.count("of the root") == 1
