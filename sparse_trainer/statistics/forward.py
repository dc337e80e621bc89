"""Run a model on calibration batches, no further than somebody looks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patchers.groups import Group
from patchers.modeling_pruned import base_of
from sparse_trainer.answers import is_encoder_decoder
from sparse_trainer.errors import DataError, SparseTrainerError
from sparse_trainer.statistics.calibration import Batch, inputs_named


class EnoughSeen(Exception):  # noqa: N818
    """Ends a forward pass whose rest nobody reads."""


class Run:
    """Runs a batch: the whole model where a loss is needed, else without the head, whose output nobody reads."""

    def __init__(self, model: Any, groups: Sequence[Group], *, labelled: bool, differentiable: bool) -> None:
        self.differentiable = differentiable
        base = base_of(model)
        inside = {id(module) for module in base.modules()}
        in_base = all(id(model.get_submodule(g.consumer)) in inside for g in groups)
        reads_same = model.main_input_name in inputs_named(base)[0]
        skips_head = not labelled and in_base and reads_same and not is_encoder_decoder(model)
        self.module: Any = base if skips_head else model
        self.names = inputs_named(self.module)[0]
        self.whole = self.module is model

    def forward(self, batch: Batch) -> Tensor | None:
        """Return the loss summed over the labels that count; None where there is none.

        Raises:
            DataError: the model fails on the batch.
        """
        inputs: dict[str, Any] = dict(batch.inputs)
        if not self.whole:
            inputs = {name: value for name, value in inputs.items() if name in self.names}
        if "use_cache" in self.names:
            inputs["use_cache"] = False
        with torch.set_grad_enabled(self.differentiable):
            try:
                output = self.module(**inputs)
            except EnoughSeen:
                return None
            except (SparseTrainerError, torch.OutOfMemoryError):
                raise
            except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
                raise DataError(
                    f"calibration batch {batch.number}",
                    f"{type(self.module).__name__} cannot read it ({type(error).__name__}: {error}).",
                    "Give the columns that the model's own data collator makes.",
                ) from error
            if batch.terms is None:
                return None
            loss: Tensor = output.loss * batch.terms
            return loss
