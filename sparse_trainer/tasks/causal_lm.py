"""Causal language modelling: running text in blocks of tokens; what counts is the perplexity."""

from dataclasses import dataclass
from typing import final

from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from sparse_trainer.data.corpora.encode import frame_of
from sparse_trainer.data.splits import DataOptions, sampled
from sparse_trainer.errors import RecipeError
from sparse_trainer.folders.load import load_model
from sparse_trainer.tasks.base import Outputs, Prepared, Task
from sparse_trainer.tasks.language.causal_model import check_causal
from sparse_trainer.tasks.language.running_text import RunningText, running_texts
from sparse_trainer.tasks.language.token_losses import PERPLEXITY, TokenBatch, perplexity_of, summed_losses

WORDS = 8
"""Words of the validation text that stand for an input of the pipeline."""


@final
@dataclass(frozen=True, kw_only=True)
class CausalLM(Task):
    """Predict the next token of running text.

    The rows of a set are joined to one text, and cut into blocks of `data.max_length` tokens, each of which starts with
    what the tokenizer puts in front of a text (BOS, where it does). The last block may be shorter, so that no token is
    lost. `data.max_train_samples` draws blocks. `data.source` may be the name of a corpus, such as `wikitext2`.
    """

    separator: str | None = None
    """What stands between two rows, e.g. `<|endoftext|>`; default: a blank line; in a file of plain text, nothing."""

    metrics = (PERPLEXITY,)
    pipeline = "text-generation"
    auto_class = "AutoModelForCausalLM"
    outputs = Outputs(most=2)
    ready = True

    def prepare(self, data: DataOptions, processor: PreTrainedTokenizerBase) -> Prepared:
        """Load, check and encode the data.

        Raises:
            DataError: Missing columns, a row that is no text, too little text.
            RecipeError: More than one column, or blocks that are too short.
        """
        least = max(2, len(frame_of(processor).before) + 1)
        if data.max_length < least:
            raise RecipeError(
                "data.max_length",
                f"blocks of {data.max_length} leave nothing to predict.",
                "Give e.g. 512.",
            )
        train, validation = running_texts(data, self.separator)

        def blocks(text: RunningText) -> Dataset:
            return Dataset.from_dict({"input_ids": text.blocks(processor, data.max_length)})

        return Prepared(
            train=sampled(blocks(train), data.max_train_samples, data.seed, "data.max_train_samples"),
            validation=sampled(blocks(validation), data.max_eval_samples, data.seed, "data.max_eval_samples"),
            example=_opening(validation),
            collator=TokenBatch(padding=processor.pad_token_id or 0),
            compute_metrics=perplexity_of,
            reduce_logits=summed_losses,
        )

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load the weights of a causal language model.

        Raises:
            CheckpointError: It cannot be loaded, or is a checkpoint with gates.
            UnsupportedModelError: It is no causal language model.
            RecipeError: Blocks are longer than the model has positions for.
        """
        model = load_model(source, AutoModelForCausalLM, revision=revision)
        check_causal(model, data)
        return model


def _opening(text: RunningText) -> str:
    """Return the first words of a text."""
    words: list[str] = []
    for part in text.texts():
        words += part.split()[: WORDS - len(words)]
        if len(words) == WORDS:
            break
    return " ".join(words)
