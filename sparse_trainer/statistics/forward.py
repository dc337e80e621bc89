"""Forward passes over calibration batches, no further than hooks need."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from patchers.modeling_pruned import base_of
from sparse_trainer.errors import DataError, SparseTrainerError
from sparse_trainer.inputs.evaluating import plain_outputs
from sparse_trainer.inputs.labels import is_encoder_decoder
from sparse_trainer.inputs.limits import DIMENSIONS, inputs_named
from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.own_output import OwnOutput


class StopForward(Exception):  # noqa: N818
    """Ends a forward pass early."""


class ForwardPass:
    """Runs the whole model where a loss is needed, else the model without its head.

    Extra outputs are switched off: the balance loss of a router, which some models add then, is no sum over rows.

    Args:
        paths: Modules with hooks.
        labelled: Whether the model's loss is asked for.
        differentiable: Whether there will be a backward pass.
    """

    def __init__(self, model: Any, paths: Iterable[str], *, labelled: bool, differentiable: bool) -> None:
        self.model = model
        self.differentiable = differentiable
        base = base_of(model)
        inside = {id(module) for module in base.modules()}
        in_base = all(id(model.get_submodule(path)) in inside for path in paths)
        reads_same = model.main_input_name in inputs_named(base)[0]
        skips_head = not labelled and in_base and reads_same and not is_encoder_decoder(model)
        self.inner: Any = base if skips_head else model
        self._own_output = OwnOutput()

    def __call__(self, batch: Batch) -> Tensor | None:
        """Return the loss summed over the labels that count, or over what the model says; None where there is none.

        Raises:
            DataError: the model fails on the batch.
        """
        output = self.output(batch)
        if output is not None and batch.is_own_target:
            return self._own_output(output, batch)
        if output is None or batch.terms is None:
            return None
        loss: Tensor = output.loss * batch.terms
        return loss

    def output(self, batch: Batch) -> Any:
        """Return all that the model says; None where a hook ended the pass.

        Raises:
            DataError: the model fails on the batch.
        """
        inputs: dict[str, Any] = dict(batch.inputs)
        module = self._module(inputs)
        names = inputs_named(module)[0]
        if module is not self.model:
            inputs = {name: value for name, value in inputs.items() if name in names}
        if "use_cache" in names:
            inputs["use_cache"] = False
        with torch.set_grad_enabled(self.differentiable), plain_outputs(module):
            try:
                return module(**inputs)
            except StopForward:
                return None
            except (SparseTrainerError, torch.OutOfMemoryError):
                raise
            except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
                raise DataError(
                    f"calibration batch {batch.number}",
                    f"{type(module).__name__} cannot read it ({type(error).__name__}: {error}).",
                    "Give, in Python, the columns that the model's own data collator makes.",
                ) from error

    def _module(self, inputs: Mapping[str, Tensor]) -> Any:
        """Return what reads a batch: of several texts a row (multiple choice), only the whole model makes rows."""
        name = self.model.main_input_name
        several = name in inputs and inputs[name].dim() > DIMENSIONS.get(name, inputs[name].dim())
        return self.model if several else self.inner
