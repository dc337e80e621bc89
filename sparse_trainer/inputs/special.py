"""Inputs of model types that the kinds do not cover."""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from sparse_trainer.inputs.kinds import (
    FIRST_WORD,
    IMAGE,
    TOKENS,
    WAVE,
    InputRequest,
    decoder_inputs,
    field_of,
    image_size,
    part_of,
    pixel_inputs,
    text_inputs,
    words,
)

# Shape legend: B = rows, T = tokens, C = channels, F = frames, M = mel bins, N = patches, P = values of a patch.


def _spectrogram(request: InputRequest) -> dict[str, Tensor]:
    config = request.model.config
    return {"input_values": request.noise(request.rows, config.max_length, config.num_mel_bins)}


def _mono(request: InputRequest) -> dict[str, Tensor]:
    return {"input_values": request.noise(request.rows, 1, WAVE)}


def _without_padding(request: InputRequest) -> dict[str, Tensor]:
    inputs = text_inputs(request)
    return {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}


def _layout(request: InputRequest) -> dict[str, Tensor]:
    """Return tokens with boxes that say where on the page they stand."""
    inputs = text_inputs(request)
    low = request.whole(0, 20, request.rows, TOKENS, 2)
    return {**inputs, "bbox": torch.cat([low, low + request.whole(1, 20, request.rows, TOKENS, 2)], dim=-1)}


def _polygons(request: InputRequest) -> dict[str, Tensor]:
    return {**text_inputs(request), "bbox": request.noise(request.rows, TOKENS, 8).sigmoid()}


def _instructed(request: InputRequest) -> dict[str, Tensor]:
    """Return an image of which the query tokens stand in the text, and the text for the query transformer."""
    config = request.model.config
    ids_BT, mask_BT = words(request)
    token_BT = torch.full((request.rows, config.num_query_tokens), config.image_token_index)
    return {
        "pixel_values": pixel_inputs(request)["pixel_values"],
        "input_ids": torch.cat([token_BT, ids_BT], dim=1),
        "attention_mask": torch.cat([torch.ones_like(token_BT), mask_BT], dim=1),
        "qformer_input_ids": ids_BT,
        "qformer_attention_mask": mask_BT,
    }


def _tiles(request: InputRequest) -> dict[str, Tensor]:
    """Return images as Mllama takes them: [B, images, tiles, C, height, width]."""
    config = request.model.config.vision_config
    height, width = image_size(config)
    tiles = config.max_num_tiles
    ids_BT, mask_BT = words(request)
    return {
        "input_ids": ids_BT,
        "attention_mask": mask_BT,
        "pixel_values": request.noise(request.rows, 1, tiles, 3, height, width),
        "aspect_ratio_ids": torch.full((request.rows, 1), 1),
        "aspect_ratio_mask": torch.ones(request.rows, 1, tiles, dtype=torch.long),
        "cross_attention_mask": torch.ones(request.rows, TOKENS, 1, tiles, dtype=torch.long),
    }


def _seen(request: InputRequest) -> dict[str, Tensor]:
    """Return text that attends to its image in every place."""
    seen = torch.ones(request.rows, TOKENS, 1, dtype=torch.long)
    return {**text_inputs(request), **pixel_inputs(request), "image_attention_mask": seen}


def _located(request: InputRequest) -> dict[str, Tensor]:
    return {**text_inputs(request), "bbox": torch.rand(request.rows, TOKENS, 4, generator=request.generator)}


def _regions(request: InputRequest) -> dict[str, Tensor]:
    config = request.model.config
    return {
        **text_inputs(request),
        "visual_feats": request.noise(request.rows, 6, config.visual_feat_dim),
        "visual_pos": request.noise(request.rows, 6, config.visual_pos_dim).sigmoid(),
    }


def _videos(request: InputRequest) -> dict[str, Tensor]:
    config = part_of(request.model.config, "vision_config")
    height, width = image_size(config)
    frames = field_of(config, "num_frames", "frames_per_clip") or 2
    videos = request.noise(request.rows, frames, field_of(config, "num_channels") or 3, height, width)
    return {**text_inputs(request), "pixel_values_videos": videos}


def _image_pairs(request: InputRequest) -> dict[str, Tensor]:
    return {"pixel_values": request.noise(request.rows, 2, 3, IMAGE, IMAGE)}


def _flat_patches(request: InputRequest) -> dict[str, Tensor]:
    """Return patches as Pix2Struct takes them: row and column before the values."""
    values = field_of(part_of(request.model.config, "vision_config"), "patch_embed_hidden_size") or 32
    places = request.whole(1, 8, request.rows, TOKENS, 2).to(request.model.dtype)
    patches = torch.cat([places, request.noise(request.rows, TOKENS, values)], dim=-1)
    return {"flattened_patches": patches, **decoder_inputs(request)}


def _codes(request: InputRequest) -> dict[str, Tensor]:
    config = part_of(request.model.config, "decoder_config")
    codebooks = field_of(config, "num_channels", "num_codebooks") or 1
    ids_BT, mask_BT = words(request)
    ids_BTQ = request.whole(FIRST_WORD, 20, request.rows, 6, codebooks)
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "decoder_input_ids": ids_BTQ}


def _trajectory(request: InputRequest) -> dict[str, Tensor]:
    config = request.model.config
    steps = 6
    return {
        "states": request.noise(request.rows, steps, config.state_dim),
        "actions": request.noise(request.rows, steps, config.act_dim),
        "rewards": request.noise(request.rows, steps, 1),
        "returns_to_go": request.noise(request.rows, steps, 1),
        "timesteps": torch.arange(steps).expand(request.rows, steps),
        "attention_mask": torch.ones(request.rows, steps, dtype=torch.long),
    }


def _soft_patches(request: InputRequest) -> dict[str, Tensor]:
    """Return patches and their places, in a square that the pooling divides."""
    config = request.model.config
    side = 2 * config.pooling_kernel_size
    places_N2 = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    return {
        "pixel_values": request.noise(request.rows, side * side, 3 * config.patch_size**2),
        "pixel_position_ids": places_N2.expand(request.rows, -1, -1),
    }


def _hidden_states(request: InputRequest) -> dict[str, Tensor]:
    width = request.model.config.hidden_size
    return {
        "input_values": request.noise(request.rows, TOKENS, width),
        "decoder_input_values": request.noise(request.rows, TOKENS - 3, width),
    }


def _clip_of_sound(request: InputRequest) -> dict[str, Tensor]:
    config = request.model.config.audio_config
    frames = config.spec_size**2 // config.num_mel_bins
    return {
        **text_inputs(request),
        "input_features": request.noise(request.rows, 1, frames, config.num_mel_bins),
    }


def _sound_and_text(request: InputRequest) -> dict[str, Tensor]:
    return {**text_inputs(request), **_mono(request)}


def _latents(request: InputRequest) -> dict[str, Tensor]:
    return {"inputs": request.noise(request.rows, TOKENS, request.model.config.d_model)}


def _queries(request: InputRequest) -> dict[str, Tensor]:
    config = request.model.config
    return {
        "query_embeds": request.noise(request.rows, TOKENS, config.hidden_size),
        "encoder_hidden_states": request.noise(request.rows, TOKENS, config.encoder_hidden_size),
    }


BY_TYPE: Final[Mapping[str, Callable[[InputRequest], dict[str, Tensor]]]] = {
    "audio-spectrogram-transformer": _spectrogram,
    "blip_2_qformer": _queries,
    "decision_transformer": _trajectory,
    "dia": _codes,
    "idefics": _seen,
    "lightglue": _image_pairs,
    "lxmert": _regions,
    "mllama": _tiles,
    "perceiver": _latents,
    "pix2struct": _flat_patches,
    "superglue": _image_pairs,
    "udop": _located,
    "vjepa2": _videos,
    "videomt": _videos,
    "videoprism": _videos,
    "videoprism_vision_model": _videos,
    "bros": _polygons,
    "clap": _clip_of_sound,
    "dac": _mono,
    "encodec": _mono,
    "gemma4_vision": _soft_patches,
    "mimi": _mono,
    "mimi_encoder": _mono,
    "pe_audio": _sound_and_text,
    "speecht5": _hidden_states,
    "instructblip": _instructed,
    "layoutlm": _layout,
    "lilt": _layout,
    "pe_audio_encoder": _mono,
    "pocket_tts_audio_tokenizer": _mono,
    "pocket_tts_audio_tokenizer_encoder": _mono,
    "prophetnet": _without_padding,
    "xcodec": _mono,
}
