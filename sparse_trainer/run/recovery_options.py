"""Options of recovery: what of a cut model learns again, from which data, and for how long."""

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from sparse_trainer.data.corpora.table import CORPORA
from sparse_trainer.data.readers import TABLES, TEXTS, check_data_file, ending
from sparse_trainer.data.splits import DataOptions
from sparse_trainer.errors import ArgumentError, shown
from sparse_trainer.fields import check_counts, check_positive, check_seed, check_share
from sparse_trainer.run.lora import ALL_LINEAR, LoraOptions
from sparse_trainer.training.options import DistillationOptions

DENSE = "dense"
"""As `teacher` in a recipe that prunes: the model as it was before."""
_RATES = {"lora": 5e-4, "norms-and-biases": 1e-3, "all": 5e-5}


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoveryOptions:
    """How a model that was cut is trained briefly, to win back what the cut cost.

    Training ends with `steps`, `tokens` or `minutes`, whichever comes first; without any, after one pass over the data.
    """

    train: Literal["lora", "norms-and-biases", "all"] = "lora"
    """What learns: adapters (Hu et al., arXiv 2106.09685), merged at the end; norms and biases; or all weights."""
    rank: int = 8
    """Of the adapters."""
    alpha: float = 16.0
    """The update of a weight is alpha / rank times B A."""
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Names of the modules that get an adapter, or the ends of their paths; all-linear = every linear but the head."""
    data: str = "wikitext2"
    """A corpus, a data set on the hub, or a local file: text, json, jsonl, csv or parquet."""
    validation: str | None = None
    """A local file for the perplexity before and after; null = that of the set; of a local file, its last rows."""
    held_out: int = 32
    """Rows, or blocks of text, on which that perplexity is measured."""
    instructions: bool = False
    """Rows are conversations, or prompts with `answers`, and only answers count; else rows are running text."""
    column: str = "text"
    """Column with the text, conversations or prompts."""
    answers: str | None = None
    """Column with the answers to prompts."""
    length: int = 512
    """Tokens per sequence."""
    batch_size: int = 8
    """Sequences per forward pass."""
    accumulate: int = 1
    """Forward passes per step."""
    steps: int | None = None
    """Most optimizer steps."""
    tokens: int | None = None
    """Most tokens."""
    minutes: float | None = None
    """Most minutes of training."""
    learning_rate: float | None = None
    """Null = 5e-4 of adapters, 1e-3 of norms and biases, 5e-5 of all weights. It falls to 0 as a cosine."""
    teacher: str | None = None
    """Folder or hub id of the dense model, whose answers are learned beside the text; in a recipe also `dense`."""
    teacher_weight: float = 0.9
    """Share of the loss that is the distance to the teacher."""
    temperature: float = 1.0
    """Of the answers, when they are compared with the teacher's."""
    bf16: bool | None = None
    """Autocast to bfloat16; what learns stays in float32. Null = where the weights are stored in 16 bits."""
    seed: int = 42
    """Of the order of the data and the first weights of adapters."""

    def __post_init__(self) -> None:
        check_counts(
            rank=self.rank, batch_size=self.batch_size, accumulate=self.accumulate, steps=self.steps,
            tokens=self.tokens, held_out=self.held_out,
        )  # fmt: skip
        check_counts(2, length=self.length)
        check_seed(self.seed)
        positive = {"alpha": self.alpha, "temperature": self.temperature, "minutes": self.minutes}
        for name, value in {**positive, "learning_rate": self.learning_rate}.items():
            if value is not None:
                check_positive(name, value)
        check_share("teacher_weight", self.teacher_weight, "(0, 1]", "Give e.g. 0.9.")
        if not self.targets:
            raise ArgumentError("targets", "names no module.", f"Give e.g. {ALL_LINEAR}.")
        for field in fields(self):
            asked = field.name in ("rank", "alpha", "targets") and getattr(self, field.name) != field.default
            if asked and self.train != "lora":
                raise ArgumentError(field.name, "is of adapters.", "Set `train='lora'`, or drop it.")
        if self.answers is not None and not self.instructions:
            raise ArgumentError("answers", "belongs to instructions.", "Set `instructions=True`, or drop it.")

    @property
    def lora(self) -> LoraOptions | None:
        """The adapters, where they are what learns."""
        if self.train != "lora":
            return None
        targets = ALL_LINEAR if self.targets == (ALL_LINEAR,) else self.targets
        return LoraOptions(r=self.rank, alpha=self.alpha, target_modules=targets, modules_to_save=())

    @property
    def rate(self) -> float:
        """The learning rate at its highest."""
        return _RATES[self.train] if self.learning_rate is None else self.learning_rate

    @property
    def distillation(self) -> DistillationOptions:
        """How the losses are weighed; the teacher is handed over by who loads it."""
        return DistillationOptions(
            teacher=None,
            alpha_task=1 - self.teacher_weight,
            alpha_logits=self.teacher_weight,
            alpha_hidden=0.0,
            temperature=self.temperature,
            layer_map="fixed",
            in_order=False,
        )

    @property
    def is_local(self) -> bool:
        """Whether the data is a file here."""
        return self.data not in CORPORA and (
            ending(Path(self.data)) in (*TABLES, *TEXTS) or Path(self.data).is_absolute()
        )

    @property
    def data_name(self) -> str:
        """What plans and cards call the data: of a file its name, without the folders above."""
        return Path(self.data).name if self.is_local else self.data

    @property
    def teacher_name(self) -> str | None:
        """What plans and cards call the teacher: of a folder its name, without those above."""
        if self.teacher is None or self.teacher == DENSE:
            return self.teacher
        return Path(self.teacher).name if os.path.isdir(self.teacher) else self.teacher

    def data_options(self) -> DataOptions:
        """Return where the rows come from; of a local file without `validation`, both sets are the file."""
        validation = self.validation or self.data
        return DataOptions(
            source=None if self.is_local else self.data,
            train_file=self.data if self.is_local else None,
            validation_file=validation if self.is_local else None,
            text_columns=(self.column,),
            label_column=self.answers or "label",
            max_length=self.length,
            seed=self.seed,
        )

    def check_data(self) -> None:
        """Raise `DataError` for a file that is not there, or of no form that is read: before anything is loaded."""
        for name, file in (("data", self.data if self.is_local else None), ("validation", self.validation)):
            if file is not None:
                check_data_file(Path(file), f"{name}: {shown(file)}", (*TABLES, *TEXTS))
        if self.validation is not None and not self.is_local:
            raise ArgumentError(
                "validation", f"{self.data} has its own.", "Leave it out, or give a file as data."
            )

    def most_steps(self, rows: int) -> int:
        """Return how many steps are taken at most, of so many rows."""
        per_step = self.batch_size * self.accumulate
        asked = [self.steps] if self.steps is not None else []
        if self.tokens is not None:
            asked.append(math.ceil(self.tokens / (per_step * self.length)))
        if asked or self.minutes is not None:
            return min([*asked, _MANY])
        return math.ceil(rows / per_step)


_MANY = 10**7
"""Steps that no minutes are enough for."""
