"""Inputs on which a model is timed: as many tokens as asked for, none of them padding."""

import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.inputs.kinds import field_of
from sparse_trainer.inputs.labels import is_encoder_decoder
from sparse_trainer.inputs.make import inputs_for
from sparse_trainer.inputs.sample import tokens_for

# Shape legend: B = batch, S = samples of a sound.


def timed_inputs(model: PreTrainedModel, batch_size: int, sequence_length: int) -> dict[str, Tensor]:
    """Return random token ids without padding, or pictures or sound; the same for every model that reads the same."""
    if model.main_input_name == "input_ids":
        tokens = tokens_for(model, rows=batch_size, length=sequence_length)
        # A decoder beside an encoder reads as many; BART would make them itself, T5 asks for them.
        return tokens | ({"decoder_input_ids": tokens["input_ids"]} if is_encoder_decoder(model) else {})
    samples = _samples_per_token(model)
    if samples is None:
        return inputs_for(model, rows=batch_size)
    generator = torch.Generator().manual_seed(0)
    wave_BS = torch.randn(batch_size, sequence_length * samples, generator=generator)
    return {model.main_input_name: wave_BS.to(model.device, model.dtype)}


def has_length(model: PreTrainedModel) -> bool:
    """Tell whether the number of tokens per sequence can be chosen; pictures and spectrograms have their own size."""
    return bool(model.main_input_name == "input_ids") or _samples_per_token(model) is not None


def _samples_per_token(model: PreTrainedModel) -> int | None:
    """Return how many samples of a sound become one token, None where a model reads no waves."""
    strides = field_of(model.config, "conv_stride") if model.main_input_name == "input_values" else None
    return math.prod(strides) if isinstance(strides, (list, tuple)) else None
