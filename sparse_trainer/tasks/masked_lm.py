"""Masked language modelling: guess the tokens that are masked in running text."""

from dataclasses import dataclass
from itertools import islice
from typing import final

from datasets import Dataset
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sparse_trainer.data.corpora.encode import frame_of
from sparse_trainer.data.splits import DataOptions, sampled
from sparse_trainer.errors import DataError, RecipeError
from sparse_trainer.fields import check_share
from sparse_trainer.folders.load import load_model
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.tasks.base import Outputs, Prepared, Task
from sparse_trainer.tasks.language.masked_tokens import MaskedBatch, guesses, guessing_metrics, masked_once
from sparse_trainer.tasks.language.running_text import RunningText, blocks_of, running_texts
from sparse_trainer.tasks.language.token_losses import PERPLEXITY, TokenBatch

WORDS = 12
"""Words of the validation text that stand for an input of the pipeline."""


@final
@dataclass(frozen=True, kw_only=True)
class MaskedLM(Task):
    """Guess masked tokens of running text.

    The rows of a set are joined to one text, and cut into blocks of `data.max_length` tokens, special tokens included;
    the last one may be shorter. `data.max_train_samples` draws blocks. What is masked is drawn anew whenever a block
    is trained on; in the validation set once, by `data.seed`, so that evaluations compare. `data.source` may be the
    name of a corpus, such as `wikitext2`.
    """

    mask_probability: float = 0.15
    """Share of tokens to guess: 80 % of them are masked, 10 % replaced by any token, 10 % left as they are."""
    separator: str | None = None
    """What stands between two rows; default: a blank line; in a file of plain text, nothing."""

    metrics = (PERPLEXITY, "accuracy")
    pipeline = "fill-mask"
    auto_class = "AutoModelForMaskedLM"
    outputs = Outputs(most=2)
    ready = True

    def __post_init__(self) -> None:
        check_share("mask_probability", self.mask_probability, "(0, 1)", "Give e.g. 0.15.")

    def prepare(self, data: DataOptions, processor: PreTrainedTokenizerBase) -> Prepared:
        """Load, check and encode the data.

        Raises:
            DataError: Missing columns, a row that is no text, too little text.
            RecipeError: More than one column, a tokenizer that masks nothing, or blocks without room.
        """
        if processor.mask_token is None:
            raise RecipeError(
                "model.name_or_path", "its tokenizer has no token for masked places.",
                "Give an encoder such as BERT; decoders learn with task.name=causal-lm.",
            )  # fmt: skip
        train, validation = running_texts(data, self.separator)
        masking = DataCollatorForLanguageModeling(processor, mlm_probability=self.mask_probability)
        evaluated = _blocks(validation, processor, data.max_length)
        blocks = Dataset.from_dict({"input_ids": _blocks(train, processor, data.max_length)})
        return Prepared(
            train=sampled(blocks, data.max_train_samples, data.seed, "data.max_train_samples"),
            validation=sampled(
                masked_once(evaluated, masking, data.seed),
                data.max_eval_samples,
                data.seed,
                "data.max_eval_samples",
            ),
            example=_with_mask(validation, processor.mask_token),
            collator=MaskedBatch(masking=masking, padded=TokenBatch(padding=processor.pad_token_id or 0)),
            compute_metrics=guessing_metrics,
            reduce_logits=guesses,
        )

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load the weights of a masked language model; a fresh head where the checkpoint has none.

        Raises:
            CheckpointError: It cannot be loaded, or is a checkpoint with gates.
            ArgumentError: Blocks are longer than the model has positions for.
        """
        model = load_model(source, AutoModelForMaskedLM, revision=revision)
        longest = max(len(ids) for split in (data.train, data.validation) for ids in split["input_ids"])
        check_positions("data.max_length", longest, positions_of(model.config))
        return model


def _blocks(text: RunningText, tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    """Return a text in blocks of `length` tokens, each between the special tokens that stand around a text."""
    frame = frame_of(tokenizer)
    if length <= len(frame):
        raise RecipeError("data.max_length", f"blocks of {length} hold no text.", "Give e.g. 128.")
    found = blocks_of(text.tokens(tokenizer), frame.before, length - len(frame))
    if not found:
        raise DataError(text.corpus.name, "no text.", "Give more text.")
    return [[*block, *frame.after] for block in found]


def _with_mask(text: RunningText, mask: str) -> str:
    """Return the first words of a text, the one in the middle masked."""
    words = list(islice((word for row in text.texts() for word in row.split()), WORDS))
    words[len(words) // 2] = mask
    return " ".join(words)
