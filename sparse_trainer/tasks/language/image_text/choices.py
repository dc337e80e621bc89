"""Multiple-choice accuracy on images: the answer that a model finds most likely behind image and question."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.data.image_text.encoder import AnsweredInputs, RowEncoder
from sparse_trainer.data.image_text.rows import ImageRow
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.inputs.limits import inputs_named
from sparse_trainer.tasks.language.choices import Accuracy, accuracy_of
from sparse_trainer.tasks.language.image_text.inputs import on_model
from sparse_trainer.tasks.language.scoring import Tell, refuse_endless, summed_log_likelihood

# Shape legend: T = tokens, C = scored tokens, V = vocabulary.


def choose_answers(
    model: PreTrainedModel,
    encoder: RowEncoder,
    rows: Sequence[ImageRow],
    corpus: str,
    *,
    tell: Tell | None = None,
) -> Accuracy:
    """Measure accuracy on questions about images, each by itself.

    Args:
        rows: With choices.

    Raises:
        DataError: The processor makes no inputs of a row.
        NonFiniteError: NaN or infinite logits.
    """
    logs = []
    for number, row in enumerate(rows):
        logs.append(log_likelihoods_of(model, encoder, row))
        if tell is not None:
            tell(number + 1, len(rows))
    lengths = [[len(choice) for choice in row.choices] for row in rows]
    return accuracy_of(corpus, logs, lengths, [row.gold for row in rows])


@torch.no_grad()
def log_likelihoods_of(model: PreTrainedModel, encoder: RowEncoder, row: ImageRow) -> list[float]:
    """Return the log-likelihood of each choice behind images and question, in nats.

    Choices that differ in nothing but their last token share a forward pass.
    """
    passes: dict[tuple[int, ...], Tensor] = {}
    sums = []
    with evaluating(model):
        for choice in row.choices:
            made = encoder.answered(row, choice)
            ids_T = made.inputs["input_ids"][0]
            read = tuple(ids_T[: made.first + made.count - 1].tolist())
            if read not in passes:
                passes[read] = _logits(model, made)
            target_C = ids_T[made.first : made.first + made.count]
            sums.append(summed_log_likelihood(passes[read], target_C))
    stacked = torch.stack(sums)
    refuse_endless(model, stacked.isfinite())
    values: list[float] = stacked.tolist()
    return values


def _logits(model: PreTrainedModel, made: AnsweredInputs) -> Tensor:
    """Return the logits that foretell the answer, [C, V]."""
    named = inputs_named(model)[0]
    kept = made.inputs["input_ids"].shape[1] - made.first + 1
    options: dict[str, Any] = {"logits_to_keep": kept} if "logits_to_keep" in named else {}
    if "use_cache" in named:
        options["use_cache"] = False
    logits_TV: Tensor = model(**on_model(model, made.inputs), **options).logits[0]
    return logits_TV[-kept : made.count - kept]
