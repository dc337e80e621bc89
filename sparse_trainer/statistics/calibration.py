"""Calibration batches: checked, with labels where a loss needs them, and with padding told apart."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sparse_trainer.errors import DataError

# Shape legend: B = sequences, T = tokens.

IGNORED = -100
_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "labels", "position_ids")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One calibration batch on the model's device."""

    number: int
    inputs: dict[str, Tensor]
    rows: int
    real_BT: Tensor | None
    """True = a real token; None = every token is."""
    decoder_real_BT: Tensor | None
    """The same for the decoder's tokens of an encoder-decoder model."""
    terms: Tensor | None
    """Labels that count, scalar: the loss is their mean."""


class Batches:
    """A calibration set that can be run through more than once.

    Args:
        model: The model that will read it.
        source: Batches as mappings of tensors; an iterator is read into memory.

    Raises:
        DataError: there is no batch.
    """

    def __init__(self, model: Any, source: Iterable[Mapping[str, Any]]) -> None:
        self.source = list(source) if iter(source) is source else source
        self.named, self.takes_any = inputs_named(model)
        self.is_causal = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.main_input: str = model.main_input_name
        self.device = next(model.parameters()).device
        self.positions = _positions(model.config)
        self.name = type(model).__name__

    def read(self, *, labelled: bool, one_by_one: bool = False) -> Iterator[Batch]:
        """Yield the batches.

        Args:
            labelled: Whether a loss is needed: labels of causal language models are made from the tokens.
            one_by_one: One sequence at a time, without its padding.

        Raises:
            DataError: no batch, wrong columns, no labels, or sequences longer than the model's positions.
        """
        number = -1
        for number, values in enumerate(self.source):
            inputs = self._checked(number, values)
            if labelled:
                self._label(number, inputs)
            else:
                inputs.pop("labels", None)
            for part in _rows(inputs) if one_by_one else [inputs]:
                yield self._batch(number, part)
        if number < 0:
            raise DataError("calibration", "holds no batch.", "Give at least one batch of token ids.")

    def _checked(self, number: int, values: object) -> dict[str, Tensor]:
        where = f"calibration batch {number}"
        if not isinstance(values, Mapping):
            raise DataError(
                where, f"is a {type(values).__name__}.", "Give mappings of tensors, by input name."
            )
        for name, value in values.items():
            if not isinstance(value, Tensor):
                raise DataError(
                    where, f"column {name!r} holds no tensor but {type(value).__name__}.",
                    "Tokenize the data, and drop columns that the model does not read.",
                )  # fmt: skip
            if name not in self.named and not self.takes_any:
                raise DataError(
                    where, f"{self.name} reads no column {name!r}.", f"It reads {sorted(self.named)}."
                )
        if self.main_input not in values and "inputs_embeds" not in values:
            raise DataError(
                where, f"has no column {self.main_input!r}, only {sorted(values)}.", "Rename the column."
            )
        main = values.get(self.main_input)
        limit = self.positions if self.main_input == "input_ids" else None
        if main is not None and limit is not None and main.shape[-1] > limit:
            raise DataError(
                where, f"sequences of {main.shape[-1]} tokens, and the model has {limit} positions.",
                f"Cut them to {limit} tokens or fewer.",
            )  # fmt: skip
        return {name: value.to(self.device) for name, value in values.items()}

    def _label(self, number: int, inputs: dict[str, Tensor]) -> None:
        if "labels" in inputs:
            return
        if not self.is_causal or "input_ids" not in inputs:
            raise DataError(
                f"calibration batch {number}", f"has no labels, which the loss of {self.name} needs.",
                "Add a labels column; or choose a criterion that needs no loss, such as wanda.",
            )  # fmt: skip
        labels_BT = inputs["input_ids"].clone()
        if "attention_mask" in inputs:
            labels_BT.masked_fill_(inputs["attention_mask"] == 0, IGNORED)
        inputs["labels"] = labels_BT

    def _batch(self, number: int, inputs: dict[str, Tensor]) -> Batch:
        labels = inputs.get("labels")
        decoder_BT = inputs.get("decoder_attention_mask")
        if decoder_BT is None and self.is_encoder_decoder and labels is not None and labels.dim() == 2:
            decoder_BT = labels != IGNORED
        return Batch(
            number=number,
            inputs=inputs,
            rows=next(iter(inputs.values())).shape[0],
            real_BT=_real(inputs.get("attention_mask")),
            decoder_real_BT=_real(decoder_BT),
            terms=None if labels is None else self._terms(labels),
        )

    def _terms(self, labels: Tensor) -> Tensor:
        """Return how many labels the mean of the loss is over; rows, for labels that are no classes."""
        if labels.is_floating_point():
            return labels.new_tensor(labels.shape[0])
        counted = labels[..., 1:] if self.is_causal else labels
        return (counted != IGNORED).sum()


def inputs_named(model: Any) -> tuple[set[str], bool]:
    """Return the names of the inputs that a model reads, and whether it takes others as well."""
    parameters = inspect.signature(model.forward).parameters
    named = {n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    return named, len(named) < len(parameters)


def as_batches(model: Any, calibration: Iterable[Mapping[str, Any]] | Batches) -> Batches:
    """Return a calibration set that can be read more than once."""
    return calibration if isinstance(calibration, Batches) else Batches(model, calibration)


def _real(mask_BT: Tensor | None) -> Tensor | None:
    """Return where tokens are real; None where there is no 2-dimensional mask, or (known without a wait) no padding."""
    if mask_BT is None or mask_BT.dim() != 2:
        return None
    real_BT = mask_BT != 0
    return None if real_BT.device.type == "cpu" and bool(real_BT.all()) else real_BT


def _rows(inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield every sequence by itself, without its padding."""
    mask_BT = inputs.get("attention_mask")
    for row in range(next(iter(inputs.values())).shape[0]):
        part = {name: value[row : row + 1] for name, value in inputs.items()}
        if mask_BT is not None and mask_BT.dim() == 2:
            real_T = mask_BT[row] != 0
            shape = part["attention_mask"].shape
            part = {
                name: value[:, real_T] if name in _PER_TOKEN and value.shape == shape else value
                for name, value in part.items()
            }
        yield part


def _positions(config: Any) -> int | None:
    """Return the longest sequence that a model has positions for, where its config tells."""
    fields = config.get_text_config().to_dict()
    positions = fields.get("max_position_embeddings") or fields.get("n_positions")
    if not isinstance(positions, int) or positions <= 0:
        return None
    # RoBERTa counts positions from the padding id + 1.
    offset = (fields.get("pad_token_id") or 0) + 1 if "roberta" in config.model_type else 0
    return positions - offset


def count_real(batch: Batch) -> Tensor:
    """Return the number of real tokens of a batch, scalar; of images and sounds, how many there are."""
    if batch.real_BT is not None:
        return batch.real_BT.sum()
    main = next(iter(batch.inputs.values()))
    return torch.tensor(main.numel() if main.dim() == 2 else main.shape[0], device=main.device)
