"""Made-up inputs for a tiny model of any type, and the tensors that it returns for them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from sparse_trainer.inputs.evaluating import plain_outputs
from sparse_trainer.inputs.kinds import (
    InputRequest,
    feature_inputs,
    image_text_inputs,
    pixel_inputs,
    series_inputs,
    text_inputs,
    tower_inputs,
    wave_inputs,
)
from sparse_trainer.inputs.special import BY_TYPE

_BY_MAIN_INPUT: Final[Mapping[str, Callable[[InputRequest], dict[str, Tensor]]]] = {
    "input_ids": text_inputs,
    "pixel_values": pixel_inputs,
    "pixel_values_videos": pixel_inputs,
    "input_values": wave_inputs,
    "input_features": feature_inputs,
}


def inputs_for(model: PreTrainedModel, *, rows: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """Return inputs with which `model(**inputs)` runs, where it lies and in its dtype; the last row ends in padding."""
    request = InputRequest(model, rows, torch.Generator().manual_seed(seed))
    make = BY_TYPE.get(model.config.model_type) or _kind(request)
    place = next(model.parameters())
    return {
        name: value.to(place.device, place.dtype if value.is_floating_point() else value.dtype)
        for name, value in make(request).items()
        if name in request.accepted
    }


def forward_outputs(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Return every floating-point tensor that a model returns; random choices are seeded.

    Without caches and the extra outputs that a config asks for: their shapes follow layers, heads and experts.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]), plain_outputs(model):
        torch.manual_seed(0)
        return list(_floats(model(**inputs)))


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Cache):
        return
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _floats(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _floats(item)


def _kind(request: InputRequest) -> Callable[[InputRequest], dict[str, Tensor]]:
    accepted = request.accepted
    main = request.model.main_input_name
    if "grid_thw" in accepted or ("image_grid_thw" in accepted and "input_ids" not in accepted):
        return tower_inputs
    if "past_values" in accepted:
        return series_inputs
    if "pixel_values" in accepted and "input_ids" in accepted:
        return image_text_inputs
    if main in accepted and main in _BY_MAIN_INPUT:
        return _BY_MAIN_INPUT[main]
    return next((make for name, make in _BY_MAIN_INPUT.items() if name in accepted), text_inputs)
