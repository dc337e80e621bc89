"""The corpora that have a name: one row each."""

from sparse_trainer.data.corpora import questions
from sparse_trainer.data.corpora.base import Corpus, Row, value
from sparse_trainer.data.corpora.python_docs import python_docs
from sparse_trainer.errors import DataError


def line(row: Row) -> str:
    """Return a line of WikiText as the published file has it: the hub's empty rows are a space and a line end there.

    >>> line({"text": ""}), line({"text": " = Title = \\n"})
    (' \\n', ' = Title = \\n')
    """
    return str(row["text"]) or " \n" if "text" in row else plain(row)


def plain(row: Row) -> str:
    """Return the text of a row: its column `text`, or the only column that holds text.

    >>> plain({"id": 1, "document": "a b"})
    'a b'
    """
    if "text" in row:
        return str(value(row, "text"))
    texts = [content for content in row.values() if isinstance(content, str)]
    if len(texts) != 1:
        raise DataError(
            "row", "no column 'text'.", f"It has {', '.join(row) or 'no columns'}: name one of them text."
        )
    return texts[0]


CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            name="wikitext2",
            hub="Salesforce/wikitext",
            config="wikitext-2-raw-v1",
            evaluation="test",
            text=line,
            joint="",
            is_one_text=True,
        ),
        Corpus(name="python-docs", hub=None, read=python_docs, text=plain),
        Corpus(
            name="c4",
            hub="allenai/c4",
            files={
                "train": "en/c4-train.00000-of-01024.json.gz",
                "validation": "en/c4-validation.00000-of-00008.json.gz",
            },
            text=plain,
            max_tokens=256 * 2048,  # of 20 million: what GPTQ and its followers measure on
        ),
        Corpus(
            name="mmlu",
            hub="cais/mmlu",
            config="all",
            calibration="dev",
            evaluation="test",
            question=questions.mmlu,
        ),
        Corpus(name="hellaswag", hub="Rowan/hellaswag", question=questions.hellaswag),
        Corpus(
            name="winogrande", hub="allenai/winogrande", config="winogrande_xl", question=questions.winogrande
        ),
        Corpus(
            name="arc_easy",
            hub="allenai/ai2_arc",
            config="ARC-Easy",
            evaluation="test",
            question=questions.arc,
        ),
        Corpus(
            name="arc_challenge",
            hub="allenai/ai2_arc",
            config="ARC-Challenge",
            evaluation="test",
            question=questions.arc,
        ),
        Corpus(name="boolq", hub="aps/super_glue", config="boolq", question=questions.boolq),
        Corpus(name="piqa", hub="baber/piqa", question=questions.piqa),
    )
}
"""Name -> corpus."""
