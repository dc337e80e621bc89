"""Calibration batches: checked, with labels where a loss needs them, and with padding told apart."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sparse_trainer.errors import ArgumentError, DataError
from sparse_trainer.inputs.answers import (
    IGNORED,
    answers_named,
    bare,
    is_encoder_decoder,
    is_read_shifted,
    shifts_labels,
    without_answers,
)
from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.padding import stands_alone, without_padding

# Shape legend: B = sequences, T = tokens.

DIMENSIONS: Final = {"input_ids": 2, "input_values": 2, "input_features": 3, "pixel_values": 4}
"""Dimensions of a batch of each main input; a row has one less."""
_TOKEN_FIELDS = ("_token_id", "_token_index")
"""How config fields end that name a token: placeholders of images may lie beyond the embeddings."""


class Batches:
    """A calibration set that can be run through more than once.

    Args:
        model: The model that will read it.
        source: Batches, or single rows, as mappings of tensors (or numbers in lists); an iterator is read into memory.

    Raises:
        DataError: there is no batch.
    """

    def __init__(self, model: Any, source: Iterable[Mapping[str, Any]]) -> None:
        self.source = list(source) if iter(source) is source else source
        self.model = model
        self.named, self.takes_any = inputs_named(model)
        self.answers = answers_named(model)
        self.shifts_labels = shifts_labels(model)
        self.is_encoder_decoder = is_encoder_decoder(model)
        self.main_input: str = model.main_input_name
        self.device = next(model.parameters()).device
        self.positions = positions_of(model.config)
        self.vocabulary = _vocabulary(model) if self.main_input == "input_ids" else None
        self.name = type(bare(model)).__name__
        self._looked_at = -1

    def read(self, *, labelled: bool, one_by_one: bool = False) -> Iterator[Batch]:
        """Yield the batches.

        Args:
            labelled: Whether a loss is needed: labels of causal language models are made from the tokens.
            one_by_one: One sequence at a time, without its padding, also where nothing else keeps it from counting.

        Raises:
            DataError: no batch, wrong columns, no labels, sequences longer than the model's positions, or numbers that
                are no tokens of the model.
        """
        number, counted = -1, False
        for number, values in enumerate(self.source):
            inputs = self._checked(number, values)
            if labelled:
                self._label(number, inputs)
                self._ask_no_padding(inputs)
            alone = one_by_one or (
                stands_alone(inputs, self.main_input) and _uneven(inputs, self.main_input) is None
            )
            for part in self._rows(number, inputs) if alone else [inputs]:
                batch = self._batch(number, part, labelled=labelled)
                counted = counted or batch.terms is not None
                yield batch
        if number < 0:
            raise DataError("calibration", "holds no batch.", "Give at least one batch of token ids.")
        if labelled and not counted:
            raise DataError(
                "calibration", f"every label is {IGNORED}, which counts nowhere: there is no loss.",
                "Give labels; or choose a criterion that needs no loss, such as wanda.",
            )  # fmt: skip

    def _checked(self, number: int, values: object) -> dict[str, Tensor]:
        where = f"calibration batch {number}"
        if not isinstance(values, Mapping):
            raise DataError(
                where, f"is a {type(values).__name__}.", "Give mappings of tensors, by input name."
            )
        for name in values:
            if name not in self.named and not self.takes_any:
                raise DataError(
                    where, f"{self.name} reads no column {name!r}.", f"It reads {sorted(self.named)}."
                )
        inputs = {name: _tensor(where, name, value) for name, value in values.items()}
        if self.main_input not in inputs and "inputs_embeds" not in inputs:
            raise DataError(
                where, f"has no column {self.main_input!r}, only {sorted(values)}.", "Rename the column."
            )
        single = next((name for name, value in inputs.items() if value.dim() == 0), None)
        if single is not None:
            raise DataError(where, f"column {single!r} is a single number.", "Give rows, or batches of them.")
        main = inputs.get(self.main_input)
        if main is not None and main.dim() == DIMENSIONS.get(self.main_input, 0) - 1:
            inputs = {name: value.unsqueeze(0) for name, value in inputs.items()}
        if number > self._looked_at:
            self._look_at(where, inputs)
            self._looked_at = number
        # Embeddings read int32, losses do not.
        ready = {n: value.long() if value.dtype == torch.int32 else value for n, value in inputs.items()}
        return {name: value.to(self.device).contiguous() for name, value in ready.items()}

    def _look_at(self, where: str, inputs: Mapping[str, Tensor]) -> None:
        """Raise `DataError` for what the model would stumble over; once per batch, since it reads the numbers."""
        main = inputs.get(self.main_input)
        empty = next((name for name, value in inputs.items() if value.numel() == 0), None)
        if empty is not None:
            raise DataError(where, f"column {empty!r} is empty.", "Leave empty rows out.")
        if main is None or self.main_input != "input_ids":
            return
        if self.positions is not None and main.shape[-1] > self.positions:
            raise DataError(
                where, f"sequences of {main.shape[-1]} tokens, and the model has {self.positions} positions.",
                f"Cut them to {self.positions} tokens or fewer.",
            )  # fmt: skip
        if main.dtype not in (torch.int64, torch.int32):
            raise DataError(where, f"column 'input_ids' holds {main.dtype}.", "Give token ids as int64.")
        self._check_tokens(where, main)
        mask = inputs.get("attention_mask")
        if mask is None or mask.dim() > main.dim():
            return
        if mask.shape != main.shape:
            raise DataError(
                where, f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(main.shape)}.",
                "Give one entry per token.",
            )  # fmt: skip
        if not bool((mask != 0).any(-1).all()):
            raise DataError(where, "a sequence is all padding.", "Leave empty rows out.")

    def _check_tokens(self, where: str, main: Tensor) -> None:
        if self.vocabulary is None:
            return
        size, placeholders = self.vocabulary
        beyond = (main < 0) | (main >= size)
        for token in placeholders:
            beyond &= main != token
        if bool(beyond.any()):
            raise DataError(
                where, f"column 'input_ids' holds {int(main[beyond][0])}; {self.name} knows tokens 0 to {size - 1}.",
                "Tokenize with the tokenizer of this model.",
            )  # fmt: skip

    def _label(self, number: int, inputs: dict[str, Tensor]) -> None:
        """Make sure that there is something to compare the model's answer with."""
        if any(name in inputs for name in self.answers):
            return
        where, choose = f"calibration batch {number}", "choose a criterion that needs no loss, such as wanda"
        if not self.answers:
            raise DataError(
                where, f"{self.name} has no loss over labels, so there is no loss per sequence to take gradients of.",
                f"Give the whole model, with its task head; or {choose}.",
            )  # fmt: skip
        named = type(bare(self.model)).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        if not named or "input_ids" not in inputs:
            columns = " and ".join(self.answers)
            raise DataError(
                where, f"has no {columns}, which the loss of {self.name} needs.", f"Add them as columns; or {choose}."
            )  # fmt: skip
        labels_BT = inputs["input_ids"].clone()
        if "attention_mask" in inputs:
            labels_BT.masked_fill_(inputs["attention_mask"] == 0, IGNORED)
        inputs["labels"] = labels_BT

    def _ask_no_padding(self, inputs: dict[str, Tensor]) -> None:
        """Ignore the label of a token that padding would have to tell, being in front of it."""
        mask_BT, labels_BT = inputs.get("attention_mask"), inputs.get("labels")
        if not self.shifts_labels or mask_BT is None or labels_BT is None or mask_BT.shape != labels_BT.shape:
            return
        after_padding_BT = (mask_BT == 0).roll(1, -1)
        after_padding_BT[..., 0] = False
        inputs["labels"] = labels_BT.masked_fill(after_padding_BT, IGNORED)

    def _batch(self, number: int, inputs: dict[str, Tensor], *, labelled: bool) -> Batch:
        main = inputs.get(self.main_input, next(iter(inputs.values())))
        decoder_BT = inputs.get("decoder_attention_mask")
        if decoder_BT is None and self.is_encoder_decoder:
            decoder_BT = self._answered(inputs)
        terms = self._terms(inputs, len(main)) if labelled else None
        return Batch(
            number=number,
            inputs=inputs if terms is not None else without_answers(self.model, inputs),
            rows=len(main),
            real_BT=_real(inputs.get("attention_mask"), main),
            decoder_real_BT=_real(decoder_BT, decoder_BT),
            terms=terms,
        )

    def _answered(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return where a decoder without a mask reads what has a label, [B, T]; None where labels do not tell."""
        labels_BT = inputs.get("labels")
        if labels_BT is None or labels_BT.dim() != 2:
            return None
        counts_BT = labels_BT != IGNORED
        if is_read_shifted(self.model, inputs):
            return counts_BT
        given = inputs.get("decoder_input_ids")
        if given is None or given.shape != labels_BT.shape:
            return None
        # Data collators give both. Ignored labels in front are those of a prompt; those at the end are padding.
        return counts_BT.flip(1).cumsum(1).flip(1) > 0

    def _terms(self, inputs: Mapping[str, Tensor], rows: int) -> Tensor | None:
        """Return how many labels the mean of the loss is over, scalar; None where none counts.

        Rows, for labels that are no classes and for spans. A loss over alignments (CTC) is a sum, or a mean over rows.
        """
        labels = inputs.get("labels")
        ones = torch.ones((), dtype=torch.long, device=self.device)
        if "ForCTC" in self.name:
            return ones if self.model.config.ctc_loss_reduction == "sum" else ones * rows
        if labels is None or labels.is_floating_point():
            return ones * rows
        counted = labels[..., 1:] if self.shifts_labels else labels
        terms = (counted != IGNORED).sum()
        return terms if bool(terms) else None

    def _rows(self, number: int, inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yield every sequence by itself, without its padding."""
        rows = _num_rows(inputs, self.main_input)
        uneven = _uneven(inputs, self.main_input)
        if uneven is not None:
            raise DataError(
                f"calibration batch {number}", f"column {uneven!r} has not one entry for each of the {rows} sequences.",
                "Give batches of one sequence.",
            )  # fmt: skip
        for row in range(rows):
            part = inputs if rows == 1 else {name: value[row : row + 1] for name, value in inputs.items()}
            yield without_padding(part, self.main_input, is_encoder_decoder=self.is_encoder_decoder)


def _num_rows(inputs: Mapping[str, Tensor], main: str) -> int:
    return len(inputs.get(main, next(iter(inputs.values()))))


def _uneven(inputs: Mapping[str, Tensor], main: str) -> str | None:
    """Return a column that cannot be shared out over the rows: of pictures, for one."""
    rows = _num_rows(inputs, main)
    uneven = (name for name, value in inputs.items() if value.dim() == 0 or len(value) != rows)
    return None if rows == 1 else next(uneven, None)


def _tensor(where: str, name: str, value: object) -> Tensor:
    """Return a column as a tensor; numbers in lists, as data sets hold them, become one."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | np.ndarray):
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                where, f"column {name!r} cannot become a tensor ({error}).",
                "Tokenize the data, and pad the rows of a batch to one length.",
            ) from error  # fmt: skip
    raise DataError(
        where, f"column {name!r} holds no tensor but {type(value).__name__}.",
        "Tokenize the data, and drop columns that the model does not read.",
    )  # fmt: skip


def _vocabulary(model: Any) -> tuple[int, tuple[int, ...]] | None:
    """Return how many tokens a model knows, and placeholders that may lie beyond them; None where it does not tell."""
    try:
        embeddings = bare(model).get_input_embeddings()  # type: ignore[operator]
    except NotImplementedError:
        return None
    if not isinstance(embeddings, nn.Embedding):
        return None
    fields = model.config.to_dict().items()
    named = (value for name, value in fields if name.endswith(_TOKEN_FIELDS) and isinstance(value, int))
    return embeddings.num_embeddings, tuple(token for token in named if token >= embeddings.num_embeddings)


def inputs_named(model: Any) -> tuple[set[str], bool]:
    """Return the names of the inputs that a model reads, and whether it takes others as well."""
    parameters = inspect.signature(model.forward).parameters
    named = {n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    return named, len(named) < len(parameters)


def as_batches(model: Any, calibration: Iterable[Mapping[str, Any]] | Batches) -> Batches:
    """Return a calibration set that can be read more than once."""
    return calibration if isinstance(calibration, Batches) else Batches(model, calibration)


def _real(mask: Tensor | None, read: Tensor | None) -> Tensor | None:
    """Return where tokens are real, [B, T]; None where no mask tells, or (known without a wait) there is no padding.

    Args:
        read: What the mask is over; of several texts a row, [B, choices, T], all are the row's tokens.
    """
    if mask is None or read is None or (mask.dim() != 2 and mask.shape != read.shape) or mask.dim() < 2:
        return None
    real_BT = (mask != 0).flatten(1)
    return None if real_BT.device.type == "cpu" and bool(real_BT.all()) else real_BT


def positions_of(config: Any) -> int | None:
    """Return the longest sequence that a model has positions for, where its config tells."""
    text = config.get_text_config()
    fields = text.to_dict()
    # By no other name: old configs of T5, whose positions are relative, hold an n_positions that nothing reads.
    name = text.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    positions = fields.get(name)
    if not isinstance(positions, int) or positions <= 0:
        return None
    # RoBERTa counts positions from the padding id + 1.
    offset = (fields.get("pad_token_id") or 0) + 1 if "roberta" in config.model_type else 0
    return positions - offset


def check_positions(where: str, length: int | None, positions: int | None) -> None:
    """Raise `ArgumentError` for sequences that are longer than a model has positions for; None = not known."""
    if length is not None and positions is not None and length > positions:
        raise ArgumentError(
            where,
            f"{length} tokens, and the model has positions for {positions}.",
            f"Give {positions} or less.",
        )
