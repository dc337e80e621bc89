"""What model types call their sizes: the attributes of modules, and the fields of configs, one row per concept.

Discovery reads attributes by these names, and a cut writes the new sizes under them, into modules and into the config.
Where one holder has several names of a row, the first counts. A size under a name of its own = one more entry here.
"""

NUM_HEADS = (
    "num_attention_heads", "num_heads", "n_heads", "n_head", "num_query_heads", "num_attn_heads", "heads",
)  # fmt: skip
NUM_HEADS_FIELDS = (*NUM_HEADS, "encoder_attention_heads", "decoder_attention_heads")
"""The same in configs: encoder-decoders count the heads of both in one."""
NUM_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_heads", "n_kv_heads", "n_head_kv")
HEAD_DIM = (
    "head_dim",
    "attention_head_size",
    "key_value_proj_dim",
    "d_kv",
    "head_size",
    "dim_head",
    "d_head",
)
HEADS_PER_GROUP = ("num_key_value_groups", "n_rep", "kv_repeat")
HEADS_WIDTH = (
    "all_head_size", "inner_dim", "split_size", "embed_dim", "attention_size", "hidden_size", "dim", "d_model",
    "projection_size", "q_size", "query_dim", "q_dim", "head_size",
)  # fmt: skip
"""Features of all query heads together, where an attention module counts them."""
KV_HEADS_WIDTH = ("kv_dim", "kv_size", "key_value_dim")

FFN_WIDTH = (
    "intermediate_size", "ffn_dim", "d_ff", "n_inner", "d_inner", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim",
    "ffn_hidden_size", "dim_feedforward", "mlp_dim", "moe_intermediate_size", "shared_expert_intermediate_size", "dff",
    "dim_ff", "shared_intermediate_size", "encoder_intermediate_size", "decoder_intermediate_size", "intermediate_dim",
    "expert_dim", "inner_dim", "hidden_features",
)  # fmt: skip
"""Channels of a feed-forward module, or of an expert."""
NUM_EXPERTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "n_experts", "num_routed_experts",
)  # fmt: skip

HIDDEN_SIZE = ("hidden_size", "d_model", "n_embd", "embed_dim", "model_dim")
HIDDEN_SIZE_FIELDS = (*HIDDEN_SIZE, "dim")
"""The same in configs; what attention modules call `dim` counts the features of their heads."""
NUM_LAYERS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
    "num_encoder_layers", "depth", "encoder_num_layers", "decoder_num_layers", "encoder_num_hidden_layers",
    "decoder_num_hidden_layers", "num_blocks", "num_transformer_layers",
)  # fmt: skip
SORTS_OF_LAYERS = ("has_sliding_layers",)
"""Attributes of what runs the layers that say whether any of a sort is among them."""
LAYERS_OF_STAGES = ("depths", "num_layers", "depth")
"""Fields that list the layers of each stage."""

ACTIVATION = ("hidden_act", "activation_function", "activation", "hidden_activation", "hidden_activation_fn")
BIASES = ("mlp_bias", "attention_bias", "attention_out_bias", "use_bias", "bias")
"""Fields that give linears a bias."""
POSITIONS = "max_position_embeddings"
"""Under no other name: old configs of T5, whose positions are relative, hold an `n_positions` that nothing reads."""
