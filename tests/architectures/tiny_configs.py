"""Tables for tiny models: what a model type needs besides small sizes, and the types that cannot be tested."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


def _because(*groups: tuple[str, ...]) -> Mapping[str, str]:
    """Return the reason of each model type from groups of a reason and lines of types."""
    return MappingProxyType({name: why for why, *lines in groups for line in lines for name in line.split()})


_HEAD_DIM: Final = MappingProxyType({"head_dim": 8})
_MROPE: Final = MappingProxyType(
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
)
# Neighbouring windows need four by four patches in the last of the four stages.
_SWIN: Final = MappingProxyType(
    {"image_size": 64, "patch_size": 2, "embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4]}
)
_FORECAST: Final = MappingProxyType({"prediction_length": 4, "context_length": 16})
_TILES: Final = MappingProxyType({"image_grid_pinpoints": [[32, 32], [32, 64]]})
_WINDOWS: Final = MappingProxyType({"window_size": 32})

# Fields by model type, of the config or of a sub-config of that type; a mapping leads into a sub-config.
OVERRIDES: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "albert": {"embedding_size": 24},
        "align": {"projection_dim": 64},
        "align_vision_model": {"width_coefficient": 0.2, "depth_coefficient": 0.3, "hidden_dim": 32},
        "autoformer": _FORECAST,
        "bamba": {"attn_layer_indices": [1]},
        "bit": {"num_groups": 4, "embedding_size": 16},
        "blip-2": {"image_token_index": 90},
        "bridgetower": {
            "hidden_size": 64,
            "text_config": {"hidden_size": 64},
            "vision_config": {"hidden_size": 64},
        },
        "bros": {"dim_bbox_sinusoid_emb_2d": 32, "dim_bbox_sinusoid_emb_1d": 4, "dim_bbox_projection": 8},
        "chmv2": {"neck_hidden_sizes": (8, 16, 24, 32), "reassemble_hidden_size": 32},
        "clap_audio_model": {
            "depths": [1, 1, 1, 1],
            "patch_embeds_hidden_size": 8,
            "num_attention_heads": [1, 2, 2, 4],
            "spec_size": 64,
            "num_mel_bins": 16,
            "hidden_size": 64,
        },
        "cohere_compass_text": {
            "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
        },
        "cosmos3_edge_text": _MROPE,
        "cvt": {"depth": (1, 2, 3), "embed_dim": (16, 32, 48), "num_heads": (1, 2, 4)},
        "dac": {"encoder_hidden_size": 8, "decoder_hidden_size": 64},
        "dbrx": {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        },
        "decision_transformer": {"max_ep_len": 64},
        "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
        "depth_anything": {"neck_hidden_sizes": (16,), "reassemble_factors": (1,)},
        "depth_pro": {"patch_size": 32},
        "donut-swin": _SWIN,
        "dots1": {
            "moe_intermediate_size": 24,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
        },
        "dots3_note_text": {"num_key_value_heads": 4, "per_layer_config": {}},
        "efficientnet": {
            "width_coefficient": 0.2,
            "depth_coefficient": 0.3,
            "hidden_dim": 256,
            "image_size": 64,
        },
        "encodec": {"num_filters": 4},
        "esm": {"vocab_size": 99, "mask_token_id": 4, "pad_token_id": 1},
        "esmc": {"num_key_value_heads": 4, "vocab_size": 99},
        "exaone4_5_vision": _WINDOWS,
        "falcon_h1": {"mamba_d_head": 16, "mamba_d_ssm": 64},
        "focalnet": {"embed_dim": 16, "depths": [1, 1, 2, 1]},
        "funnel": {"block_sizes": (2, 2), "num_decoder_layers": 1, "architectures": ["FunnelModel"]},
        "gemma3n_text": {
            "intermediate_size": 48,
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.0] * 6,
            "laurel_rank": 8,
        },
        "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
        "glm4v_moe_text": {**_MROPE, "partial_rotary_factor": 1.0},
        "glm4v_text": _MROPE,
        "glm5_next_text": {"num_key_value_heads": 4},
        "glm_image_text": _MROPE,
        "glm_ocr_text": _MROPE,
        "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
        "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
        "hgnet_v2": {
            "embedding_size": 16,
            "hidden_sizes": (16, 24, 32, 40),
            "stem_channels": (3, 8, 16),
            "stage_in_channels": (16, 24, 32, 40),
            "stage_mid_channels": (8, 8, 16, 16),
            "stage_out_channels": (24, 32, 40, 48),
            "stage_numb_of_layers": (2, 2, 2, 2),
        },
        "hiera": {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4]},
        "hunyuan_v1_dense": _HEAD_DIM,
        "hunyuan_v1_moe": _HEAD_DIM,
        "hunyuan_vl_text": {
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1, 1]},
        },
        "informer": _FORECAST,
        "instructblip": {"image_token_index": 90},
        "instructblipvideo": {"video_token_index": 91},
        "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
        "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
        "levit": {
            "image_size": 64,
            "patch_size": 16,
            "depths": (1, 2, 1),
            "hidden_sizes": (16, 24, 32),
            "num_attention_heads": (2, 2, 4),
        },
        "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
        "lfm2_moe": {
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "num_hidden_layers": 4,
        },
        "lilt": {"hidden_size": 48},
        "llama4_vision_model": {"intermediate_size": 128},
        "llava_next": _TILES,
        "llava_next_video": _TILES,
        "llava_onevision": _TILES,
        "luke": {"entity_vocab_size": 20, "entity_emb_size": 16},
        "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2},
        "maskformer-swin": _SWIN,
        "mimi": {"num_filters": 4, "upsample_groups": 32},
        "mimi_decoder": {"num_filters": 4, "upsample_groups": 32},
        "mimi_encoder": {"num_filters": 4, "upsample_groups": 32},
        "ministral": _HEAD_DIM,
        "mistral4": {"head_dim": 16},
        "mllama_text_model": {"cross_attention_layers": [1]},
        "mllama_vision_model": {"num_global_layers": 2, "vision_output_dim": 64},
        "mobilevitv2": {"image_size": 128},
        "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
        "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
        "nemotron_h": {"n_groups": 2},
        "paddleocr_vl_text": _MROPE,
        "patchtsmixer": {"patch_length": 4, "patch_stride": 4},
        "patchtst": {"patch_length": 4, "patch_stride": 4},
        "qwen2_5_omni_text": _MROPE,
        "qwen2_5_omni_thinker": {"vision_start_token_id": 93},
        "qwen2_5_omni_vision_encoder": _WINDOWS,
        "qwen2_5_vl_text": _MROPE,
        "qwen2_5_vl_vision": _WINDOWS,
        "qwen2_vl_text": _MROPE,
        "qwen3_omni_moe_thinker": {"vision_start_token_id": 93},
        "qwen4_exp_text": {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 2,
            "indexer_head_dim": 8,
            "indexer_budget": 16,
            "indexer_compress_ratio": 2,
        },
        "reformer": {"axial_pos_embds_dim": (8, 24), "axial_pos_shape": (4, 16), "is_decoder": True},
        "roc_bert": {"pronunciation_vocab_size": 30, "shape_vocab_size": 30, "pronunciation_embed_dim": 16},
        "sam2_hiera_det_model": {"hidden_size": 16},
        "sam_hq_vision_model": {"num_pos_feats": 16},
        "sam_vision_model": {"num_pos_feats": 16},
        "swin": _SWIN,
        "swinv2": _SWIN,
        "time_series_transformer": _FORECAST,
        "timesfm": {"patch_length": 16},
        "udop": {"max_2d_position_embeddings": 64},
        "vjepa2": {
            "pred_hidden_size": 24,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 2,
            "frames_per_clip": 4,
            "crop_size": 32,
        },
        "xlstm": {"mlstm_round_up_to_multiple_of": 8, "ffn_round_up_to_multiple_of": 8},
        "xmod": {"default_language": "en_XX"},
        "zamba": {
            "num_hidden_layers": 5,
            "layers_block_type": [
                "linear_attention",
                "linear_attention",
                "hybrid",
                "linear_attention",
                "hybrid",
            ],
            "n_mamba_heads": 2,
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
            "num_key_value_heads": 4,
        },
        "step3p7_text": {"sliding_window": 5},
        "zamba2": {
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
            "n_mamba_heads": 4,
            "attention_hidden_size": 64,
            "num_key_value_heads": 4,
            "num_mem_blocks": 1,
        },
    }
)

# Sub-configs that are left out by default, as model types.
PARTS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "gemma4": {"vision_config": "gemma4_vision"},
        "gemma4_unified": {"vision_config": "gemma4_unified_vision"},
        "embedding_gemma2": {"vision_config": "gemma4_vision"},
    }
)

NOT_TESTABLE: Final[Mapping[str, str]] = _because(
    (
        "stays large: its widths are no fields of the config.",
        "blt chmv2 depth_pro fastspeech2_conformer_with_hifigan neucodec pp_formulanet",
        "pp_ocrv5_mobile_det pp_ocrv5_mobile_rec qwen2_5_omni tvp univnet unlimited_ocr uvdoc",
        "vibevoice vibevoice_acoustic_tokenizer vibevoice_acoustic_tokenizer_decoder",
        "vibevoice_acoustic_tokenizer_encoder vibevoice_asr vits xcodec2",
    ),
    (
        "has sizes or inputs that depend on one another in ways the rules do not know.",
        "chameleon clap clvp d_fine deepseek_ocr2 deimv2 depth_anything diffusion_gemma dots3_note",
        "dots3_note_text efficientloftr emu3 encodec eomt eomt_dinov3 ernie4_5_vl_moe fun_asr_nano",
        "fun_asr_nano_encoder gemma4_assistant gemma4_unified_assistant granite4_vision",
        "granite_speech5_ctc granite_speech5_encoder inkling2_vision kimi_k25_vision",
        "kyutai_speech_to_text lw_detr mask2former minicpm_ocr_vision minicpmv4_7_vision",
        "muse_glimmer_vision muse_spark muse_spark_audio muse_spark_vision nemotron_h_omni neomme",
        "pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4 pp_ocrv5_server_det pp_ocrv5_server_rec",
        "pp_ocrv6_medium_det pp_ocrv6_small_det pp_ocrv6_small_rec pp_ocrv6_tiny_rec",
        "prompt_depth_anything qwen4_exp qwen4_exp_text rt_detr rt_detr_v2 sam2",
        "sam2_hiera_det_model sam2_vision_model sam3_tracker slanet slanext step3p7 textnet",
        "tipsv2_dpt upernet vitmatte xcodec xlstm zoedepth",
    ),
    (
        "runs on a video session, not on tensors.",
        "edgetam_video sam2_video sam3_tracker_video sam3_video",
    ),
    (
        "has no forward.",
        "bark glm_image_vqmodel",
    ),
    (
        "takes inputs that are not imitated here.",
        "colmodernvbert colpali colqwen2 gemma3n_audio instructblipvideo janus jev kosmos-2",
        "mimi_decoder muse_glimmer_assistant nemotron3_5_transcribe_word_timestamp oneformer pi0",
        "pocket_tts_audio_tokenizer_decoder qwen3_asr_encoder seggpt voxtral_realtime",
    ),
    (
        "gives NaN for tiny inputs.",
        "grounding-dino mm-grounding-dino timesfm",
    ),
    (
        "cannot be built from its default config.",
        "moonshine_streaming musicgen musicgen_melody qwen3_omni_moe t5gemma2_encoder",
        "voxtral_realtime_text",
    ),
)

# Their masks overflow, they cast to float32 and do not cast back, or (mimi) they keep a table in their first dtype.
FLOAT32: Final = frozenset(
    {
        "autoformer",
        "zaya",
        "canine",
        "fastspeech2_conformer",
        "gemma4_audio",
        "inkling2",
        "inkling2_text",
        "mimi",
        "mra",
        "prophetnet",
        "xglm",
    }
)
