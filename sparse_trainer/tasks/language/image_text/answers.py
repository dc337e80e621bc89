"""WrittenAnswers of the answers that an image-text model writes with those that people gave."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from sparse_trainer.data.image_text.encoder import RowEncoder
from sparse_trainer.data.image_text.rows import ImageRow
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.tasks.language.choices import mean_error
from sparse_trainer.tasks.language.image_text.inputs import on_model
from sparse_trainer.tasks.language.image_text.vqa import agreement, is_exact
from sparse_trainer.tasks.language.scoring import Tell, refuse_endless

ANSWER_TOKENS: Final = 16
"""Tokens that a written answer may have, unless somebody says more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenAnswers:
    """How far people agree with the answers that a model wrote; higher is better."""

    corpus: str
    exact_match: float
    """Share of questions whose answer somebody gave, but for capitals, articles and punctuation."""
    exact_match_stderr: float | None
    """Standard error over questions; None of a single one."""
    vqa_acc: float
    """Mean over questions of how far people agree, as VQA counts it."""
    vqa_acc_stderr: float | None
    num_questions: int
    answer_tokens: int
    """Tokens that an answer had at most."""
    written: tuple[str, ...]
    """Of each question, what the model wrote."""
    exact: tuple[bool, ...]
    """Of each question, whether `exact_match` counts it."""
    shares: tuple[float, ...]
    """Of each question, what `vqa_acc` is the mean of."""

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON, without the single questions."""
        left_out = ("written", "exact", "shares")
        return {"kind": "vqa"} | {name: value for name, value in asdict(self).items() if name not in left_out}


def answer_questions(
    model: PreTrainedModel,
    encoder: RowEncoder,
    rows: Sequence[ImageRow],
    corpus: str,
    *,
    answer_tokens: int | None = None,
    tell: Tell | None = None,
) -> WrittenAnswers:
    """Let a model answer questions about images, each by itself, and compare: the likeliest token each time.

    Args:
        rows: With answers of people.
        answer_tokens: Tokens of an answer at most; default: 16.

    Raises:
        DataError: The processor makes no inputs of a row.
        NonFiniteError: NaN or infinite logits.
    """
    most, written = answer_tokens or ANSWER_TOKENS, []
    for number, row in enumerate(rows):
        written.append(_written(model, encoder, row, most))
        if tell is not None:
            tell(number + 1, len(rows))
    exact = tuple(is_exact(text, row.answers) for text, row in zip(written, rows, strict=True))
    shares = tuple(agreement(text, row.answers) for text, row in zip(written, rows, strict=True))
    return WrittenAnswers(
        corpus=corpus,
        exact_match=sum(exact) / len(rows),
        exact_match_stderr=mean_error(exact),
        vqa_acc=sum(shares) / len(rows),
        vqa_acc_stderr=mean_error(shares),
        num_questions=len(rows),
        answer_tokens=most,
        written=tuple(written),
        exact=exact,
        shares=shares,
    )


@torch.no_grad()
def _written(model: PreTrainedModel, encoder: RowEncoder, row: ImageRow, most: int) -> str:
    """Return the first line that a model writes in answer to a row."""
    inputs = on_model(model, encoder.prompt(row))
    with evaluating(model):
        found: Any = model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=most, do_sample=False, num_beams=1,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    refuse_endless(model, torch.stack([logits.isfinite().all() for logits in found.logits]))
    text = encoder.decoded(found.sequences[0, inputs["input_ids"].shape[1] :])
    return next(iter(text.strip().splitlines()), "").strip()
