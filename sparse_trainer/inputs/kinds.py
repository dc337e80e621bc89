"""Inputs by kind: text, images, patches, sound and series, as the fields of a config ask for them."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from sparse_trainer.inputs.placeholders import special_ids

# Shape legend: V = ids, B = rows, T = tokens, C = channels, F = frames, M = mel bins, N = patches, P = values of one.

TOKENS: Final = 11
IMAGE: Final = 32
FIRST_WORD, LAST_WORD = 5, 80
WAVE: Final = 2000
_PADDING: Final = 4
_FRAMES: Final = 32
_IMAGE_TOKEN_NAMES: Final = (
    "image_token_id",
    "image_token_index",
    "img_token_id",
    "media_placeholder_token_id",
    "im_patch_id",
)


@cache
def _model_types() -> Mapping[str, Any]:
    """Return what is known of model types beyond their configs: `several_images`, `sized_images`, …"""
    return cast(
        Mapping[str, Any],
        yaml.safe_load(Path(__file__).with_name("model_types.yaml").read_text(encoding="utf-8")),
    )


@dataclass(frozen=True)
class InputRequest:
    """A model, and what its inputs are to be."""

    model: PreTrainedModel
    rows: int
    generator: torch.Generator

    @property
    def accepted(self) -> frozenset[str]:
        """Names of the arguments of its forward pass."""
        return frozenset(inspect.signature(self.model.forward).parameters)

    def noise(self, *shape: int) -> Tensor:
        """Return normal numbers in the model's dtype."""
        return torch.randn(*shape, generator=self.generator).to(self.model.dtype)

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        """Return whole numbers from `low` to below `high`."""
        return torch.randint(low, high, shape, generator=self.generator)

    def words(self, *shape: int) -> Tensor:
        """Return ids of a vocabulary that may be small."""
        known = field_of(part_of(self.model.config, "text_config"), "vocab_size")
        last = min(LAST_WORD, known) if isinstance(known, int) else LAST_WORD
        ids = range(min(FIRST_WORD, last - 1), last)
        special = special_ids(self.model.config)
        ids_V = torch.tensor([i for i in ids if i not in special] or list(ids))
        return ids_V[self.whole(0, len(ids_V), *shape)]


def field_of(config: PreTrainedConfig, *names: str) -> Any:
    """Return the first field that is set, by its own or its standard name, or None."""
    fields = vars(config)
    for name in names:
        value = fields.get(config.attribute_map.get(name, name))
        if value is not None:
            return value
    return None


def part_of(config: PreTrainedConfig, *names: str) -> PreTrainedConfig:
    """Return the first sub-config that is set, or the config itself."""
    value = field_of(config, *names)
    return value if isinstance(value, PreTrainedConfig) else config


def words(request: InputRequest, length: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Return token ids and their mask, [B, T]; the last row ends in padding."""
    ids_BT = request.words(request.rows, length)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[-1, -_PADDING:] = 0
    return ids_BT, mask_BT


def decoder_inputs(request: InputRequest) -> dict[str, Tensor]:
    """Return what a decoder beside an encoder reads; nothing, where there is none."""
    if "decoder_input_ids" not in request.accepted:
        return {}
    return {"decoder_input_ids": request.words(request.rows, TOKENS - 3)}


def image_size(config: PreTrainedConfig) -> tuple[int, int]:
    """Return height and width in pixels."""
    size = field_of(config, "image_size", "img_size", "input_size", "crop_size")
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[-1])
    return (size, size) if isinstance(size, int) else (IMAGE, IMAGE)


def text_inputs(request: InputRequest) -> dict[str, Tensor]:
    """Return text, [B, T]; [B, 1, T] for a model that chooses between texts: one choice a row."""
    ids_BT, mask_BT = words(request)
    if reads_choices(request.model):
        return {"input_ids": ids_BT[:, None], "attention_mask": mask_BT[:, None]}
    inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
    return {**inputs, **decoder_inputs(request)}


def reads_choices(model: object) -> bool:
    """Tell whether a model reads several texts a row, [B, choices, T]: all such heads of transformers are called so."""
    return type(model).__name__.endswith("ForMultipleChoice")


def pixel_inputs(request: InputRequest) -> dict[str, Tensor]:
    """Return images or clips, [B, C, height, width], with more dimensions in front of C where rows hold several."""
    config = part_of(request.model.config, "vision_config", "encoder", "backbone_config")
    if "spatial_shapes" in request.accepted:
        return _natural_size(request, config)
    channels = field_of(config, "num_channels", "in_channels", "in_chans", "image_channels") or 3
    height, width = image_size(config)
    frames = field_of(config, "num_frames", "frames_per_clip", "video_length")
    shape = (frames, channels) if frames else (channels,)
    model_type = request.model.config.model_type
    size = [height, width]
    if model_type in _model_types()["several_images"]:
        shape = (_model_types()["several_images"][model_type], *shape)
    elif field_of(request.model.config, "image_grid_pinpoints"):
        size = min(request.model.config.image_grid_pinpoints, key=math.prod)
        shape = (_tiles(size, (height, width)), *shape)
    inputs = {"pixel_values": request.noise(request.rows, *shape, height, width)}
    if model_type in _model_types()["sized_images"]:
        inputs["image_sizes"] = torch.tensor([list(size)] * request.rows)
    return {**inputs, **decoder_inputs(request)}


def _tiles(size: Sequence[int], tile: tuple[int, int]) -> int:
    """Return how many tiles an image is cut into (LLaVA-NeXT), and the whole image beside them.

    >>> _tiles((336, 672), (336, 336))
    3
    """
    return math.ceil(size[0] / tile[0]) * math.ceil(size[1] / tile[1]) + 1


def _natural_size(request: InputRequest, config: PreTrainedConfig) -> dict[str, Tensor]:
    """Return patches as Siglip2 takes them, [B, N, P], the last row with padding."""
    side, patch = 4, field_of(config, "patch_size") or 8
    mask_BN = torch.ones(request.rows, side * side, dtype=torch.long)
    return {
        "pixel_values": request.noise(request.rows, side * side, 3 * patch * patch),
        "pixel_attention_mask": mask_BN,
        "spatial_shapes": torch.tensor([[side, side]] * request.rows),
    }


def _patches(request: InputRequest) -> dict[str, Tensor]:
    """Return pixels as Qwen-VL takes them: the patches of all images behind one another, and grids."""
    config = part_of(request.model.config, "vision_config")
    patch = field_of(config, "patch_size") or 8
    channels = field_of(config, "num_channels", "in_channels", "in_chans") or 3
    merge = field_of(config, "spatial_merge_size", "merge_size") or 1
    side = 2 * merge
    values = channels * patch * patch * (field_of(config, "temporal_patch_size") or 1)
    grid = torch.tensor([[1, side, side]] * request.rows)
    return {"pixel_values": request.noise(request.rows * side * side, values), "image_grid_thw": grid}


def tower_inputs(request: InputRequest) -> dict[str, Tensor]:
    """Return patches, [N, P], as towers take them that stand alone."""
    patches_NP, grid = _patches(request).values()
    return {
        "hidden_states": patches_NP,
        "pixel_values": patches_NP,
        "grid_thw": grid,
        "image_grid_thw": grid,
        "merge_sizes": torch.ones(request.rows, dtype=torch.long),
    }


def image_text_inputs(request: InputRequest) -> dict[str, Tensor]:
    """Return images, and text with as many placeholders as they have features."""
    images = _patches(request) if "image_grid_thw" in request.accepted else pixel_inputs(request)
    if request.model.config.model_type in _model_types()["text_only"]:
        return text_inputs(request)
    token = field_of(request.model.config, *_IMAGE_TOKEN_NAMES)
    if not isinstance(token, int):
        return {**text_inputs(request), **images}
    count = _features_per_image(request, images)
    words_BT, mask_BT = words(request)
    image_BT = torch.full((request.rows, count), token)
    ids_BT = torch.cat([words_BT[:, :2], image_BT, words_BT[:, 2:]], dim=1)
    mask_BT = torch.cat([torch.ones_like(image_BT), mask_BT], dim=1)
    kinds_BT = (ids_BT == token).long()
    text = {
        "input_ids": ids_BT,
        "attention_mask": mask_BT,
        "token_type_ids": kinds_BT,
        "mm_token_type_ids": kinds_BT,
    }
    return {**text, **images, **decoder_inputs(request)}


@torch.no_grad()
def _features_per_image(request: InputRequest, images: dict[str, Tensor]) -> int:
    method: Any = request.model.get_image_features
    wanted = inspect.signature(method).parameters
    found: Any = method(**{name: value for name, value in images.items() if name in wanted})
    if isinstance(found, ModelOutput):
        pooled = found.get("pooler_output")
        found = found["last_hidden_state"] if pooled is None else pooled
    parts = [found] if isinstance(found, Tensor) else list(found)
    return sum(math.prod(part.shape[:-1]) for part in parts) // request.rows


def series_inputs(request: InputRequest) -> dict[str, Tensor]:
    """Return the past of time series, and their future."""
    config = request.model.config
    lags = field_of(config, "lags_sequence") or [0]
    past = (field_of(config, "context_length") or 16) + max(lags)
    future = field_of(config, "prediction_length") or 4
    channels = field_of(config, "num_input_channels", "input_size") or 1
    series = field_of(config, "num_input_channels") is not None
    past = field_of(config, "context_length") if series else past
    shape = (past, channels) if series or channels > 1 else (past,)
    times = field_of(config, "num_time_features") or 0
    return {
        "past_values": request.noise(request.rows, *shape),
        "past_time_features": request.noise(request.rows, past, times),
        "past_observed_mask": torch.ones(request.rows, *shape),
        "past_values_padding": torch.zeros(request.rows, past),
        "freq": torch.zeros(request.rows, 1, dtype=torch.long),
        "future_values": request.noise(request.rows, future),
        "future_time_features": request.noise(request.rows, future, times),
    }


def wave_inputs(request: InputRequest) -> dict[str, Tensor]:
    """Return sound as samples, [B, samples]."""
    return {"input_values": request.noise(request.rows, WAVE), **decoder_inputs(request)}


def feature_inputs(request: InputRequest) -> dict[str, Tensor]:
    """Return sound as spectrograms, [B, F, M]."""
    config = part_of(request.model.config, "audio_config", "encoder_config", "encoder")
    bins = field_of(config, "num_mel_bins", "feature_projection_input_dim", "input_dim", "n_mels") or 16
    mel_first = config.model_type in _model_types()["mel_first"]
    if mel_first:
        shape = (bins, 2 * (field_of(config, "max_source_positions") or _FRAMES // 2))
    else:
        shape = (_FRAMES, field_of(config, "input_feat_per_channel") or bins)
    mask = torch.ones(request.rows, shape[-1] if mel_first else _FRAMES, dtype=torch.long)
    inputs = {"input_features": request.noise(request.rows, *shape), "input_features_mask": mask}
    return {**inputs, **decoder_inputs(request)}
