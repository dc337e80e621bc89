"""Log-likelihoods of the last tokens of sequences: the one forward pass behind perplexity and multiple choice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.errors import ArgumentError, NonFiniteError, UnsupportedModelError
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.inputs.labels import is_encoder_decoder, unwrapped
from sparse_trainer.inputs.limits import inputs_named, positions_of

# Shape legend: B = sequences, T = tokens, K = positions with logits, C = scored tokens, V = vocabulary.

Tell = Callable[[int, int], None]
"""Takes the number of sequences done, and of all."""

Input = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """A sequence, of which the last tokens are scored given all before them."""

    ids: tuple[int, ...]
    count: int
    """Scored tokens: 1 to one less than there are."""


def check_generates(model: PreTrainedModel) -> None:
    """Raise `UnsupportedModelError` for a model that does not go on writing a text."""
    if is_encoder_decoder(model) or not model.can_generate():
        raise UnsupportedModelError(
            type(unwrapped(model)).__name__,
            "is no causal language model.",
            "Give a model that predicts the next token (AutoModelForCausalLM, AutoModelForImageTextToText).",
        )


def summed_log_likelihood(logits_CV: Tensor, target_C: Tensor) -> Tensor:
    """Return the log-likelihood of some tokens, each foretold by one row of logits; scalar, in nats."""
    # Half precision has too few digits for a sum over the vocabulary.
    logits_CV = logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()
    chosen_C = logits_CV.gather(1, target_C.to(logits_CV.device)[:, None]).squeeze(1)
    return (chosen_C - logits_CV.logsumexp(1)).sum()


def refuse_endless(model: PreTrainedModel, is_finite: Tensor) -> None:
    """Raise `NonFiniteError` unless all that a model said is finite."""
    if not bool(is_finite.all()):
        raise NonFiniteError(
            type(model).__name__, "gives NaN or infinite logits.", "Try dtype float32, or check the weights."
        )


class Scorer:
    """Scores sequences with one model.

    Args:
        model: A causal language model.
        batch_size: Sequences per forward pass.

    Raises:
        UnsupportedModelError: The model is none.
        ArgumentError: A batch size below 1.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int) -> None:
        check_generates(model)
        if batch_size < 1:
            raise ArgumentError("batch_size", f"{batch_size} is not positive.", "Give 1 or more.")
        self.model, self.batch_size = model, batch_size
        self.positions = positions_of(model.config)
        """Longest sequence that the model has positions for, where its config tells."""
        named = inputs_named(model)[0]
        self._device = next(model.parameters()).device
        self._keeps_some = "logits_to_keep" in named
        self._options = {"use_cache": False} if "use_cache" in named else {}

    def room(self, length: int | None, default: int) -> int:
        """Return how long a sequence may be.

        Raises:
            ArgumentError: `length` is below 2, or beyond the model's positions.
        """
        if length is None:
            return min(default, self.positions or default)
        if length < 2 or length > (self.positions or length):
            most = "" if self.positions is None else f" to {self.positions}, the positions of the model"
            raise ArgumentError("length", f"{length} tokens.", f"Give 2{most}.")
        return length

    @torch.no_grad()
    def log_likelihoods(self, scored: Sequence[Scored], tell: Tell | None = None) -> list[float]:
        """Return the log-likelihood of the last tokens of each sequence, in nats.

        Sequences that differ in nothing but their last token share a forward pass. Batches hold sequences of like
        length, padded on the right, where no token looks at the padding.

        Raises:
            NonFiniteError: NaN or infinite logits.
        """
        numbers: dict[Input, list[int]] = {}
        for number, item in enumerate(scored):
            numbers.setdefault(item.ids[:-1], []).append(number)
        found: dict[int, float] = {}
        with evaluating(self.model):
            for batch in _batches(sorted(numbers, key=len, reverse=True), self.batch_size):
                members = [(row, number) for row, ids in enumerate(batch) for number in numbers[ids]]
                values = self._score(batch, [(row, scored[number]) for row, number in members])
                found |= zip((number for _, number in members), values, strict=True)
                if tell is not None:
                    tell(len(found), len(scored))
        return [found[number] for number in range(len(scored))]

    def _score(self, batch: Sequence[Input], items: Sequence[tuple[int, Scored]]) -> list[float]:
        first = min(len(item.ids) - 1 - item.count for _, item in items)
        logits_BKV = self._logits(batch, first)
        sums = []
        for row, item in items:
            end = len(item.ids) - 1 - first
            logits_CV = logits_BKV[row, end - item.count : end]
            target_C = torch.tensor(item.ids[-item.count :])
            sums.append(summed_log_likelihood(logits_CV, target_C))
        stacked = torch.stack(sums)
        refuse_endless(self.model, stacked.isfinite())
        values: list[float] = stacked.tolist()
        return values

    def _logits(self, batch: Sequence[Input], first: int) -> Tensor:
        """Return the logits from position `first` on, [B, K, V]."""
        longest = max(map(len, batch))
        ids_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in batch])
        options: dict[str, Any] = dict(self._options)
        if any(len(ids) < longest for ids in batch):
            lengths_B1 = torch.tensor([[len(ids)] for ids in batch])
            options["attention_mask"] = (torch.arange(longest) < lengths_B1).long().to(self._device)
        if self._keeps_some:
            options["logits_to_keep"] = longest - first
        logits: Tensor = self.model(input_ids=ids_BT.to(self._device), **options).logits
        return logits if self._keeps_some else logits[:, first:]


def _batches(inputs: Sequence[Input], size: int) -> Iterator[Sequence[Input]]:
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size]
