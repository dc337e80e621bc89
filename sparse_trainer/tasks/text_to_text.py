"""Write a text about a text, with an encoder-decoder such as T5, BART or Marian: summaries, translations."""

from dataclasses import dataclass
from textwrap import shorten
from typing import Final, final

from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sparse_trainer.data.splits import DataOptions, load_splits
from sparse_trainer.errors import RecipeError
from sparse_trainer.fields import check_counts
from sparse_trainer.folders.load import load_model
from sparse_trainer.inputs.labels import IGNORED
from sparse_trainer.inputs.limits import positions_of
from sparse_trainer.tasks.base import Outputs, Prepared, Task
from sparse_trainer.tasks.generation.pairs import encoded_pairs
from sparse_trainer.tasks.generation.scores import check_scores, installed_scores
from sparse_trainer.tasks.generation.training import WritingArguments, WritingTrainer, scores_of_texts

SHOWN: Final = 300
"""Characters of the example that is shown, prefix left out."""

_CALL: Final = """\
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
written = model.generate(**tokenizer({example!r}, return_tensors="pt"))
print(tokenizer.batch_decode(written, skip_special_tokens=True)[0])"""


@final
@dataclass(frozen=True, kw_only=True)
class TextToText(Task):
    """Summarization, translation and the like: `data.text_columns` names one column, `data.label_column` the answers.

    What is read has `data.max_length` tokens at most. Metrics are of the texts that the model writes, at the length of
    `training.generation_max_length`, else of the model's generation config, else of `max_target_length`.
    """

    prefix: str = ""
    """What stands in front of every text that is read: T5 wants its task there, e.g. `summarize: `."""
    max_target_length: int = 128
    """Tokens of an answer; longer ones are cut."""
    metrics: tuple[str, ...] = ("rouge1", "rouge2", "rougeL")
    """rouge1, rouge2, rougeL, bleu, chrf; the first one is the headline."""

    arguments = WritingArguments
    trainer = WritingTrainer
    pipeline = None
    auto_class = "AutoModelForSeq2SeqLM"
    outputs = Outputs(most=8)
    ready = True

    def __post_init__(self) -> None:
        check_counts(2, max_target_length=self.max_target_length)
        check_scores(self.metrics)

    def prepare(self, data: DataOptions, processor: PreTrainedTokenizerBase) -> Prepared:
        """Load, check and encode the data.

        Raises:
            DataError: Missing columns, a text that is no text, or no pair that is left.
            RecipeError: More than one column to read; the package of a metric is missing.
        """
        scores = installed_scores(self.metrics)
        if len(data.text_columns) != 1:
            raise RecipeError(
                "data.text_columns", f"{len(data.text_columns)} columns.", "Name the one that is read."
            )
        columns = (data.text_columns[0], data.label_column)
        lengths = (data.max_length, self.max_target_length)
        splits = load_splits(data, columns)
        train, validation = (
            encoded_pairs(rows, columns, processor, lengths, self.prefix, f"data: {name} set")
            for name, rows in (("train", splits.train), ("validation", splits.validation))
        )
        first = next(text for text in splits.validation[columns[0]] if text and text.strip())
        example = self.prefix + shorten(first, SHOWN, placeholder=" ...")
        return Prepared(
            train=train,
            validation=validation,
            example=example,
            call=tuple(_CALL.format(example=example).splitlines()),
            collator=DataCollatorForSeq2Seq(processor, label_pad_token_id=IGNORED),
            compute_metrics=scores_of_texts(processor, scores),
        )

    def load_model(self, source: str, revision: str, data: Prepared) -> PreTrainedModel:
        """Load an encoder-decoder; where nobody has said how much it writes, it writes as much as answers may hold.

        Raises:
            CheckpointError: It cannot be loaded, or is a checkpoint with gates.
            RecipeError: Texts are longer than the model has positions for.
        """
        model = load_model(source, AutoModelForSeq2SeqLM, revision=revision)
        _check_positions(model, data)
        generation = model.generation_config
        assert generation is not None
        if generation.max_length is None and generation.max_new_tokens is None:
            generation.max_length = self.max_target_length + 1  # the decoder starts with a token of its own
        return model


def _check_positions(model: PreTrainedModel, data: Prepared) -> None:
    positions = positions_of(model.config)
    for option, column in (("data.max_length", "input_ids"), ("task.max_target_length", "labels")):
        longest = max(len(ids) for split in (data.train, data.validation) for ids in split[column])
        if positions is not None and longest > positions:
            raise RecipeError(
                option, f"texts of {longest} tokens, and the model has positions for {positions}.",
                f"Give {positions} or less.",
            )  # fmt: skip
