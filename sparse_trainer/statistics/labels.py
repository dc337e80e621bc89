"""Labels of calibration batches: made where a causal language model has none, and counted."""

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sparse_trainer.errors import DataError
from sparse_trainer.inputs.labels import (
    IGNORED,
    is_encoder_decoder,
    is_read_shifted,
    label_names_of,
    shifts_labels,
    unwrapped,
)

# Shape legend: B = sequences, T = tokens.

_CLASSIFIES: Final = re.compile("For(Sequence|Image|Audio|Video)Classification$")
"""Models whose loss goes by `problem_type`; of others it says nothing."""


class Labels:
    """The labels of one model's loss."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.named = label_names_of(model)
        self.of_spans = "start_positions" in self.named
        self.shifts = shifts_labels(model)
        self.name = type(unwrapped(model)).__name__
        problem = getattr(unwrapped(model).config, "problem_type", None)
        self.one_by_one = (
            problem == "multi_label_classification" and _CLASSIFIES.search(self.name) is not None
        )
        """Whether each class is right or wrong by itself."""
        self.is_causal = self.name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()

    def cannot_be_had(self, inputs: Mapping[str, Tensor]) -> bool:
        """Tell whether a batch has no labels, and none can be made of its tokens.

        Never of an encoder-decoder, whose decoder reads them.
        """
        if is_encoder_decoder(self.model) or any(name in inputs for name in self.named):
            return False
        return not self.is_causal or "input_ids" not in inputs

    def add_to(self, inputs: dict[str, Tensor], where: str) -> None:
        """Make sure that the loss has labels, and that no padded position has to predict one.

        Raises:
            DataError: the model has no loss, or none of which labels can be made from the tokens.
        """
        if not any(name in inputs for name in self.named):
            inputs["labels"] = self._of_tokens(inputs, where)
        mask_BT, labels_BT = inputs.get("attention_mask"), inputs.get("labels")
        if not self.shifts or mask_BT is None or labels_BT is None or mask_BT.shape != labels_BT.shape:
            return
        # The label of a token that padding would have to tell, being in front of it.
        after_padding_BT = (mask_BT == 0).roll(1, -1)
        after_padding_BT[..., 0] = False
        inputs["labels"] = labels_BT.masked_fill(after_padding_BT, IGNORED)

    def _of_tokens(self, inputs: Mapping[str, Tensor], where: str) -> Tensor:
        choose = "choose a criterion that needs no loss, such as wanda"
        if not self.named:
            raise DataError(
                where, f"{self.name} has no loss over labels, so there is no loss per sequence to take gradients of.",
                f"Give the whole model, with its task head; or {choose}.",
            )  # fmt: skip
        if not self.is_causal or "input_ids" not in inputs:
            columns = " and ".join(self.named)
            add = "Add them as columns"
            # A decoder reads what its labels say, whatever is asked of it.
            remedy = f"{add}, in Python." if is_encoder_decoder(self.model) else f"{add}; or {choose}."
            raise DataError(where, f"has no {columns}, which the loss of {self.name} needs.", remedy)
        labels_BT = inputs["input_ids"].clone()
        if "attention_mask" in inputs:
            labels_BT.masked_fill_(inputs["attention_mask"] == 0, IGNORED)
        return labels_BT

    def decoder_mask(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return where the decoder beside an encoder reads real tokens, [B, T]; None where nothing tells.

        Without a mask of its own: where it reads what has a label.
        """
        if "decoder_attention_mask" in inputs or not is_encoder_decoder(self.model):
            return inputs.get("decoder_attention_mask")
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

    def terms(self, inputs: Mapping[str, Tensor], rows: int) -> Tensor | None:
        """Return how many labels the mean of the loss is over, scalar; None where none counts.

        Rows, for labels that are no classes and for spans. A loss over alignments (CTC) is a sum, or a mean over rows.
        """
        labels = inputs.get("labels")
        ones = torch.ones((), dtype=torch.long, device=next(iter(inputs.values())).device)
        if "ForCTC" in self.name:
            return ones if self.model.config.ctc_loss_reduction == "sum" else ones * rows
        if labels is None or labels.is_floating_point():
            return ones * rows
        counted = labels[..., 1:] if self.shifts else labels
        terms = (counted != IGNORED).sum()
        return terms if bool(terms) else None
