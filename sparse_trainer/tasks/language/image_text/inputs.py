"""Inputs that a processor made, as a model reads them."""

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel


def on_model(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs on the model's device, pixels in its dtype: processors make them in float32."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
