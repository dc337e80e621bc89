"""Entities in sequences of tags, and precision, recall and F1 over them: the numbers of seqeval's default mode."""

from collections.abc import Sequence
from typing import Final

from sparse_trainer.errors import DataError, shown

OUTSIDE: Final = "O"
_BEGINS: Final = ("B", "S")
_ENDED: Final = ("E", "S", OUTSIDE)
_OF_BILOU: Final = ("L-", "U-")

Entity = tuple[str, int, int]
"""Type, first word, and the word after the last one."""


def check_scheme(tags: Sequence[str]) -> None:
    """Raise `DataError` for a tag that is neither of IOB2 (O, B-PER, I-PER) nor of IOBES (E-PER, S-PER as well)."""
    for tag in tags:
        prefix, dash, kind = tag.partition("-")
        if tag != OUTSIDE and not (prefix in ("B", "I", "E", "S") and dash and kind):
            remedy = (
                "Name all tags in order in task.labels; or measure without entities: task.metrics=[accuracy]."
            )
            if tag.startswith(_OF_BILOU):
                remedy = (
                    "They are of BILOU: write E- for L- and S- for U-, and name the tags so in task.labels."
                )
            raise DataError("task.labels", f"{shown(tag)} is no tag of IOB2 or IOBES.", remedy)


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of a sentence.

    As in the evaluation script of CoNLL, one also begins where a sequence of tags is not well-formed: at an `I-` after
    `O`, after an end, or after another type.

    >>> entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [('PER', 0, 2), ('LOC', 3, 4), ('LOC', 4, 5)]
    """
    found: list[Entity] = []
    before, kind_before = OUTSIDE, ""
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix != OUTSIDE:
            begins = prefix in _BEGINS or before in _ENDED or kind != kind_before
            start = place if begins else found.pop()[1]
            found.append((kind, start, place + 1))
        before, kind_before = prefix, kind
    return found


def entity_scores(
    predicted: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return precision, recall and F1 over all entities of all sentences, and the accuracy over tags.

    An entity is right with the same first word, last word and type. Where nothing is found, or is to be found, the
    score is 0.

    >>> entity_scores([["B-PER", "O"]], [["B-PER", "B-LOC"]])
    {'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666, 'accuracy': 0.5}
    """
    right = num_predicted = num_references = equal = num_tags = 0
    for ours, theirs in zip(predicted, references, strict=True):
        found, wanted = set(entities(ours)), set(entities(theirs))
        right += len(found & wanted)
        num_predicted += len(found)
        num_references += len(wanted)
        equal += sum(one == other for one, other in zip(ours, theirs, strict=True))
        num_tags += len(theirs)
    return {
        "precision": right / max(1, num_predicted),
        "recall": right / max(1, num_references),
        "f1": 2 * right / max(1, num_predicted + num_references),
        "accuracy": equal / max(1, num_tags),
    }
