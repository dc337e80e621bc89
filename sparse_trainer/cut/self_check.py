"""Does a cut model still say what it said before? Compare two models on a batch that looks like real input."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from patchers.modeling_pruned import base_of
from sparse_trainer.errors import SparseTrainerError, UnsupportedModelError
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.inputs.kinds import reads_choices
from sparse_trainer.inputs.make import forward_outputs
from sparse_trainer.inputs.sample import reads_tokens_only, sample_batch

# Shape legend: B = rows, T = tokens, K = hidden features that are kept.

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TOLERANCE_TF32 = 1e-2
_TOLERANCE_NORMS = 1e-5
"""Of float64 models whose norms lose features: an RMSNorm computes in float32 whatever the model's dtype is."""


class SelfCheckError(SparseTrainerError):
    """A cut model that does not compute what the masked one does."""


def outputs_of(model: Any, *, whole: bool = False, batch: Mapping[str, Tensor] | None = None) -> list[Tensor]:
    """Return what the part below the task head says to the sample batch, or what the whole model says.

    Args:
        batch: Stands in for the sample batch.
    """
    # The head of a language model multiplies by the whole vocabulary, and nothing of it is cut.
    part: Any = base_of(model) if reads_tokens_only(model) and not whole else model
    # A model that chooses between texts has an axis of choices, which the part below its head knows nothing of.
    batch = batch or sample_batch(part if reads_choices(model) else model)
    mask_BT = batch.get("attention_mask")
    try:
        with evaluating(model):
            outputs = forward_outputs(part, batch)
    except Exception as error:  # a model may fail with any error, and then the check has nothing to say
        raise UnsupportedModelError(
            type(model).__name__,
            f"its forward pass fails on the made-up inputs of the self-check ({type(error).__name__}: {error}).",
            "Run the model once yourself: where it works, pass check=False and compare outputs yourself.",
        ) from error
    if mask_BT is None or mask_BT.dim() != 2:
        return outputs
    # What padding says means nothing: in a short sliding window it sees no token at all, and is NaN.
    return [_without_padding(output, mask_BT) for output in outputs]


def _without_padding(output: Tensor, mask_BT: Tensor) -> Tensor:
    if output.shape[:2] != mask_BT.shape:
        return output
    return output.masked_fill(mask_BT.view(*mask_BT.shape, *[1] * (output.dim() - 2)) == 0, 0)


def check_same(expected: list[Tensor], model: Any, *, what: str, kept_K: Tensor | None = None) -> None:
    """Raise `SelfCheckError` unless `model` still gives these outputs, up to rounding.

    Args:
        kept_K: Of a model that lost hidden features, or tokens, those that stay: task heads are compared too then.
    """
    whole = kept_K is not None
    least = _TOLERANCE_NORMS if whole and not _has_layer_norms(model) else 0.0
    answers = outputs_of(model, whole=whole)
    if len(answers) != len(expected):
        raise SelfCheckError(
            type(model).__name__,
            f"{what} differ: {len(expected)} tensors before, {len(answers)} after.",
            "Pass check=False and compare outputs yourself; please report this model.",
        )
    for reference, found in zip(expected, answers, strict=True):
        if kept_K is not None and found.shape != reference.shape:
            # A model without a task head says hidden features, and one of language a score per token.
            reference = reference.index_select(-1, kept_K.to(reference.device))
        if found.shape != reference.shape:
            raise SelfCheckError(
                type(model).__name__,
                f"{what} differ: {tuple(reference.shape)} before, {tuple(found.shape)} after.",
                "Pass check=False and compare outputs yourself; please report this model.",
            )
        scale = float(reference.abs().max())
        worst = float((reference - found).abs().max())
        if not worst <= max(_tolerance(reference.dtype), least) * scale:
            raise SelfCheckError(
                type(model).__name__,
                f"{what} differ: by {worst:.3g}, at outputs up to {scale:.3g}.",
                "Restore weights that hold NaN or infinity; else please report it. In Python check=False skips this.",
            )


def _has_layer_norms(model: nn.Module) -> bool:
    """Tell whether the norms are torch's, which compute in the dtype of the model."""
    return any(isinstance(module, nn.LayerNorm) for module in model.modules())


def _tolerance(dtype: torch.dtype) -> float:
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return _TOLERANCE_TF32
    return _TOLERANCES[dtype]
