"""A Seq2SeqTrainer that evaluates by what the model writes."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from sparse_trainer.errors import ArgumentError, RecipeError
from sparse_trainer.inputs.limits import positions_of
from sparse_trainer.tasks.generation.scores import Score

# Shape legend: N = rows of a set, T = tokens.


@dataclass
class WritingArguments(Seq2SeqTrainingArguments):
    """Options of a Seq2SeqTrainer; metrics are of texts, so that texts are written in evaluation."""

    predict_with_generate: bool = field(
        default=True, metadata={"help": "Whether to write texts in evaluation: there is no way without."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        if not self.predict_with_generate:
            raise ArgumentError("predict_with_generate", "false, and texts are measured.", "Leave it out.")
        if self.generation_max_length is not None and self.generation_max_length < 2:
            raise ArgumentError(
                "generation_max_length", f"{self.generation_max_length} leaves no room.", "Give e.g. 128."
            )


class WritingTrainer(Seq2SeqTrainer):
    """A `Seq2SeqTrainer` that knows how long its model can write, and smooths labels of any encoder-decoder.

    Raises:
        RecipeError: Texts longer than the model has positions for are to be written.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.args, Seq2SeqTrainingArguments)
        assert isinstance(self.model, nn.Module)
        positions, asked = positions_of(self.model.config), self.args.generation_max_length
        if positions is not None and asked is not None and asked > positions:
            raise RecipeError(
                "training.generation_max_length",
                f"{asked} tokens, and the model has positions for {positions}.",
                f"Give {positions} or less.",
            )
        if self.label_smoother is not None and isinstance(self.data_collator, DataCollatorForSeq2Seq):
            # The labels are withheld from the model then, which makes its decoder's inputs of them.
            self.data_collator = dataclasses.replace(self.data_collator, model=self.model)


def scores_of_texts(
    tokenizer: PreTrainedTokenizerBase, scores: Mapping[str, Score]
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the `compute_metrics` of a Trainer that generates: scores of the decoded texts, spaces around them off."""
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def decoded(ids_NT: Any) -> list[str]:
        tokens_NT: NDArray[np.int64] = np.asarray(ids_NT)
        # -100 stands where rows of other batches are longer.
        texts = tokenizer.batch_decode(np.where(tokens_NT < 0, filler, tokens_NT), skip_special_tokens=True)
        return [text.strip() for text in texts]

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        written, references = decoded(prediction.predictions), decoded(prediction.label_ids)
        return {name: score(written, references) for name, score in scores.items()}

    return compute
