"""Calibration batches: checked, with labels where a loss needs them, and with padding told apart."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from sparse_trainer.errors import DataError
from sparse_trainer.inputs.bars import bar
from sparse_trainer.inputs.labels import IGNORED, is_encoder_decoder, without_labels
from sparse_trainer.inputs.pooling import Pooling
from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.columns import ColumnReader
from sparse_trainer.statistics.labels import Labels
from sparse_trainer.statistics.padding import stands_alone, without_padding

# Shape legend: B = sequences, T = tokens.


class Batches:
    """A calibration set that can be run through more than once.

    Args:
        model: The model that will read it.
        source: Batches, or single rows, as mappings of tensors (or numbers in lists); an iterator is read into memory.
        pooling: How the vectors of texts are made of what a model without a head says of tokens; None = tokens stand
            alone.

    Raises:
        DataError: there is no batch.
    """

    def __init__(
        self, model: Any, source: Iterable[Mapping[str, Any]], pooling: Pooling | None = None
    ) -> None:
        self.source = list(source) if iter(source) is source else source
        self.model, self.pooling = model, pooling
        self.columns, self.labels = ColumnReader(model), Labels(model)
        self.main_input, self.device = self.columns.main_input, self.columns.device
        self._looked_at = -1

    def read(self, *, labelled: bool, one_by_one: bool = False, own_targets: bool = False) -> Iterator[Batch]:
        """Yield the batches.

        Args:
            labelled: Whether a loss is needed: labels of causal language models are made from the tokens.
            one_by_one: One sequence at a time, without its padding, also where nothing else keeps it from counting.
            own_targets: Where a loss is needed, there are no labels and none can be made of the tokens: whether what
                the model says takes their place.

        Raises:
            DataError: no batch, wrong columns, no labels, sequences longer than the model's positions, or numbers that
                are no tokens of the model.
        """
        number, counted = -1, False
        for number, values in enumerate(bar(self.source, "reading calibration batches")):
            where = f"calibration batch {number}"
            inputs = self.columns.read(where, values, look=number > self._looked_at)
            self._looked_at = max(number, self._looked_at)
            own = labelled and own_targets and self.labels.cannot_be_had(inputs)
            if labelled and not own:
                self.labels.add_to(inputs, where)
            uneven = _uneven(inputs, self.main_input)
            counts = stands_alone(inputs, self.main_input, is_span=own and self.labels.of_spans)
            alone = one_by_one or (counts and uneven is None)
            for part in self._rows(where, inputs) if alone else [inputs]:
                batch = self._batch(number, part, labelled=labelled and not own, own=own)
                counted = counted or own or batch.terms is not None
                yield batch
        if number < 0:
            raise DataError("calibration", "holds no batch.", "Give at least one batch of token ids.")
        if labelled and not counted:
            raise DataError(
                "calibration", f"every label is {IGNORED}, which counts nowhere: there is no loss.",
                "Give labels; or choose a criterion that needs no loss, such as wanda.",
            )  # fmt: skip

    def _batch(self, number: int, inputs: dict[str, Tensor], *, labelled: bool, own: bool) -> Batch:
        main = inputs.get(self.main_input, next(iter(inputs.values())))
        decoder_BT = self.labels.decoder_mask(inputs)
        terms = self.labels.terms(inputs, len(main)) if labelled else None
        return Batch(
            number=number,
            inputs=inputs if terms is not None else without_labels(self.model, inputs),
            rows=len(main),
            real_BT=_real(inputs.get("attention_mask"), main),
            has_decoder_beside=is_encoder_decoder(self.model),
            decoder_real_BT=_real(decoder_BT, decoder_BT),
            terms=terms,
            is_own_target=own,
            pooling=self.pooling,
            has_labels_one_by_one=self.labels.one_by_one,
        )

    def _rows(self, where: str, inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yield every sequence by itself, without its padding."""
        rows = _num_rows(inputs, self.main_input)
        uneven = _uneven(inputs, self.main_input)
        if uneven is not None:
            raise DataError(
                where, f"column {uneven!r} has not one entry for each of the {rows} sequences.",
                "Give batches of one sequence.",
            )  # fmt: skip
        for row in range(rows):
            part = inputs if rows == 1 else {name: value[row : row + 1] for name, value in inputs.items()}
            yield without_padding(part, self.main_input, is_encoder_decoder=is_encoder_decoder(self.model))


def _num_rows(inputs: Mapping[str, Tensor], main: str) -> int:
    return len(inputs.get(main, next(iter(inputs.values()))))


def _uneven(inputs: Mapping[str, Tensor], main: str) -> str | None:
    """Return a column that cannot be shared out over the rows: of pictures, for one."""
    rows = _num_rows(inputs, main)
    uneven = (name for name, value in inputs.items() if value.dim() == 0 or len(value) != rows)
    return None if rows == 1 else next(uneven, None)


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
