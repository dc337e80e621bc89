"""Does a cut model still say what it said before? Compare two models on a batch that looks like real input."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from patchers.modeling_pruned import base_of
from sparse_trainer.errors import SparseTrainerError, UnsupportedModelError

# Shape legend: B = rows, T = tokens.

_ROWS, _LONGEST = 3, 16
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TOLERANCE_TF32 = 1e-2


class SelfCheckError(SparseTrainerError):
    """A cut model that does not compute what the masked one does."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode for the time of a `with` block, and back in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def probe_batch(model: Any) -> dict[str, Tensor]:
    """Return random tokens with padded rows; the same for every model of the same vocabulary.

    Raises:
        UnsupportedModelError: the model does not read tokens.
    """
    if model.main_input_name != "input_ids":
        raise UnsupportedModelError(
            type(model).__name__,
            f"the self-check knows token ids, and this model reads {model.main_input_name}.",
            "Pass check=False and compare outputs yourself.",
        )
    fields = model.config.to_dict()
    pad = fields.get("pad_token_id") or 0
    # RoBERTa counts positions from the padding id + 1.
    length = max(1, min(_LONGEST, fields.get("max_position_embeddings", _LONGEST) - pad - 1))
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, max(fields["vocab_size"] - 1, 1), (_ROWS, length), generator=generator)
    ids_BT += ids_BT >= pad
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1:, (length + 1) // 2 :] = 0
    ids_BT[mask_BT == 0] = pad
    device = next(model.parameters()).device
    return {"input_ids": ids_BT.to(device), "attention_mask": mask_BT.to(device)}


@torch.no_grad()
def outputs_of(model: Any) -> list[Tensor]:
    """Return what the part below the task head says to the probe batch."""
    with evaluating(model):
        output = base_of(model)(**probe_batch(model), return_dict=True)
    return [value for value in output.values() if isinstance(value, Tensor) and value.is_floating_point()]


def check_same(expected: list[Tensor], model: Any, *, what: str) -> None:
    """Raise `SelfCheckError` unless `model` still gives these outputs, up to rounding."""
    for reference, found in zip(expected, outputs_of(model), strict=True):
        scale = float(reference.abs().max())
        worst = float((reference - found).abs().max())
        if not worst <= _tolerance(reference.dtype) * scale:
            raise SelfCheckError(
                type(model).__name__,
                f"{what} differ: by {worst:.3g}, at outputs up to {scale:.3g}.",
                "Mend weights that hold NaN or infinity; else please report this model. check=False skips this.",
            )


def _tolerance(dtype: torch.dtype) -> float:
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return _TOLERANCE_TF32
    return _TOLERANCES[dtype]
