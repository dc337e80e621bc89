"""Tables for tiny models: the size of a field by its name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


def _by_name(*sizes: tuple[int, str]) -> Mapping[str, int]:
    return MappingProxyType({name: size for size, names in sizes for name in names.split()})


def _names(*lines: str) -> frozenset[str]:
    return frozenset(name for line in lines for name in line.split())


# A number is only ever made smaller: a field that is already below its size here stays.
SIZES: Final = _by_name(
    (32, "hidden_size d_model n_embd dim embed_dim emb_dim d_embed embedding_size encoder_hidden_size"),
    (
        32,
        "text_embed_dim width word_embed_proj_dim projection_dim project_dim vision_output_dim embedding_dim",
    ),
    (
        32,
        "q_hidden_size out_hidden_size decoder_hidden_size d_latents output_dim feat_extract_dim encoder_dim",
    ),
    (32, "projector_hidden_size model_dim adapter_hidden_size bottleneck_features mask_feature_size"),
    (
        32,
        "fusion_hidden_size hidden_size_global text_hidden_size backbone_hidden_size image_text_hidden_size",
    ),
    (32, "patch_embed_hidden_size memory_attention_hidden_size memory_encoder_hidden_size cross_hidden_size"),
    (32, "memory_fuser_embed_dim mask_downsampler_embed_dim fpn_hidden_size adapter_in_dim adapter_out_dim"),
    (
        32,
        "adapter_input_size audio_embed_dim mm_embed_dim mit_hidden_size projection_size pooler_output_size",
    ),
    (
        32,
        "projector_input_dim projector_output_dim projection_hidden_size attention_hidden_size unit_embed_dim",
    ),
    (32, "semantic_hidden_size pooler_hidden_size encoder_hidden_dim descriptor_dim"),
    (32, "feature_size vit_dim output_proj_dims feature_dim decoder_dim neck_dim text_dim image_dim"),
    (
        32,
        "output_channels iou_head_hidden_dim prediction_head_size descriptor_decoder_dim auxiliary_channels",
    ),
    (
        32,
        "base_channels audio_hidden_size condition_dim conv_size projection_hidden_dim projection_intermediate_dim",
    ),
    (4, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    (4, "attention_heads num_cross_attention_heads num_self_attention_heads decoder_num_attention_heads"),
    (
        4,
        "encoder_num_attention_heads num_query_heads audio_num_attention_heads swa_num_attention_heads",
    ),
    (
        4,
        "memory_attention_num_attention_heads mask_downsampler_num_heads linear_num_value_heads",
    ),
    (
        4,
        "speech_encoder_attention_heads t2u_encoder_attention_heads t2u_decoder_attention_heads",
    ),
    (
        4,
        "mamba_n_heads mamba_num_heads dim_num_heads resampler_n_heads cross_num_attention_heads",
    ),
    (
        2,
        "num_key_value_heads num_kv_heads multi_query_group_num n_head_kv num_global_key_value_heads kv_n_heads",
    ),
    (
        2,
        "decoder_num_key_value_heads encoder_num_key_value_heads swa_num_key_value_heads linear_num_key_heads",
    ),
    (4, "mit_num_attention_heads"),
    (2, "cross_num_key_value_heads"),
    (48, "intermediate_size ffn_dim d_ff d_inner n_inner encoder_ffn_dim decoder_ffn_dim hidden_dim"),
    (48, "ffn_hidden_size dim_feedforward decoder_intermediate_size encoder_intermediate_size mlp_dim"),
    (48, "encoder_feedforward_dim decoder_feedforward_dim feedforward_dim qformer_intermediate_size fc_size"),
    (48, "dense_intermediate_size dff dim_ff intermediate_size_mlp projection_intermediate_size"),
    (48, "memory_attention_feed_forward_hidden_size memory_fuser_intermediate_dim mit_intermediate_size"),
    (
        48,
        "speech_encoder_intermediate_size t2u_encoder_ffn_dim t2u_decoder_ffn_dim alignment_intermediate_size",
    ),
    (48, "memory_attention_mlp_hidden_size perceiver_resampler_mlp_intermediate_size encoder_linear_units"),
    (48, "decoder_linear_units block_dim block_ff_dim text_mlp_dim audio_intermediate_size"),
    (
        24,
        "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size expert_dim",
    ),
    (24, "shared_intermediate_size expert_ffn_hidden_size shared_experts_intermediate_size moe_hidden_size"),
    (24, "share_expert_dim"),
    (
        3,
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers depth",
    ),
    (3, "num_encoder_layers decoder_num_hidden_layers encoder_num_hidden_layers num_block_layers"),
    (3, "encoder_num_layers decoder_num_layers num_self_attends_per_block speech_encoder_layers"),
    (
        3,
        "t2u_encoder_layers t2u_decoder_layers memory_attention_num_layers num_dense_layers mit_num_hidden_layers",
    ),
    (99, "vocab_size text_vocab_size vocab_size_per_layer_input backbone_vocab_size src_vocab_size"),
    (99, "tgt_vocab_size t2u_vocab_size unit_hifi_gan_vocab_size input_vocab_size output_vocab_size"),
    (99, "audio_vocab_size vision_vocab_size codebook_vocab_size mel_vocab_size unpadded_vocab_size"),
    (8, "head_dim d_kv qk_nope_head_dim v_head_dim kv_channels attention_head_dim global_head_dim d_head"),
    (8, "head_size swa_head_dim swa_v_head_dim qk_rope_head_dim rotary_dim index_head_dim linear_head_dim"),
    (8, "linear_key_head_dim linear_value_head_dim resampler_head_dim dim_head cross_head_dim mamba_d_state"),
    (8, "mamba_chunk_size chunk_size attention_dim attention_head_size"),
    (
        16,
        "kv_lora_rank q_lora_rank hidden_size_per_layer_input o_lora_rank codevector_dim proj_codevector_dim",
    ),
    (16, "codebook_dim num_mel_bins n_mels classifier_proj_size num_queries num_positional_features"),
    (16, "num_conv_pos_embeddings index_topk lang_embed_dim spkr_embed_dim subsampling_conv_channels"),
    (16, "position_buckets relative_attention_max_distance max_distance rel_extent num_embeddings"),
    (16, "codebook_size vector_quantization_hidden_dimension latent_channels num_query_tokens"),
    (
        16,
        "depthwise_separable_out_channel ext_pw_out_channel nemo_conv_channels bias_max_distance n_mel_bins",
    ),
    (
        16,
        "query_pre_attn_scalar ssm_state_size block_size num_latents downsample_hidden_size quantization_dim",
    ),
    (
        64,
        "max_position_embeddings n_positions max_target_positions max_sequence_length seq_length max_seq_len",
    ),
    (64, "n_ctx max_encoder_position_embeddings position_embedding_size max_2d_position_embeddings"),
    (64, "t2u_max_position_embeddings max_pos_emb max_length num_hash_buckets"),
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts n_experts num_attn_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_k moe_topk top_k_experts moe_top_k mlp_top_k"),
    (1, "n_group topk_group n_shared_experts first_k_dense_replace moe_num_shared_experts upsample_groups"),
    (1, "moe_layer_start_index num_codebooks_per_frame num_zero_experts"),
    (32, "image_size pretrain_image_size spec_size resolution max_image_size"),
    (8, "patch_size"),
    (5, "sliding_window sliding_window_size local_attention window_attention_size keep_window_size"),
    (4, "attention_window window_size attention_chunk_size context_size num_key_value_groups"),
    (
        4,
        "num_conv_pos_embedding_groups num_codevectors_per_group local_block_size local_attention_window_len",
    ),
    (16, "mamba_d_head mamba_headdim mamba_head_dim max_source_positions"),
    (64, "mamba_d_ssm"),
    (4, "mm_tokens_per_image"),
    (8, "num_parallel_samples train_num_points num_negatives num_denoising"),
)

# Lists of which each element is made smaller by itself, by the place in the list where it matters.
DEPTH_LISTS: Final = _names(
    "depths num_blocks stage_numb_of_layers blocks_per_stage encoder_depths decoder_depths",
    "layers_per_stage num_block_repeats depth num_hidden_layers encoder_layers decoder_layers",
    "num_layers",
)
HEAD_LISTS: Final = _names(
    "num_heads num_attention_heads num_attention_heads_per_stage encoder_num_heads attention_heads",
)
WIDTH_LISTS: Final = _names(
    "hidden_sizes embed_dims embed_dim dim_embed encoder_hidden_sizes neck_hidden_sizes",
    "embed_dim_per_stage conv_dim tdnn_dim upsample_channels conv_dims",
)
INDEX_LISTS: Final = _names(
    "global_attn_indexes deepstack_visual_indexes fullatt_block_indexes global_attention_blocks",
    "intermediate_layers_indices vision_feature_layer full_attn_idxs out_indices",
    "backbone_out_indices deepstack_layers deepstack_layer_map",
)
# Widths along a list repeat this cycle: unequal, and all of them divide by 2 heads and by 8.
WIDTHS: Final = (16, 32, 24, 40)

ZEROED: Final = (
    "dropout",
    "drop_path",
    "layerdrop",
    "drop_rate",
    "dropedge",
    "_pdrop",
    "drop_prob",
    "mask_time_prob",
)

TOKENS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        "image_token_id": 90,
        "image_token_index": 90,
        "img_token_id": 90,
        "media_placeholder_token_id": 90,
        "im_patch_id": 90,
        "video_token_id": 91,
        "video_token_index": 91,
        "audio_token_id": 92,
        "audio_token_index": 92,
        "vision_start_token_id": 93,
        "vision_end_token_id": 94,
        "image_start_token_id": 93,
        "image_end_token_id": 94,
        "audio_start_token_id": 95,
        "audio_end_token_id": 96,
    }
)
OTHER_TOKEN: Final = 3

# Fields whose names mean a number of layers elsewhere, and that other fields depend on.
KEPT: Final = frozenset({"num_stages", "num_encoder_blocks"})
