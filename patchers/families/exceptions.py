"""What follows a form by its names and still cannot be cut soundly, by class name, with the reason."""

_RESHAPES = "its forward divides the hidden size by the number of heads, so all heads must stay"

HEADS_STAY: dict[str, str] = {
    "BlipAttention": _RESHAPES,
    "Blip2Attention": _RESHAPES,
    "InstructBlipAttention": _RESHAPES,
    "InstructBlipVideoAttention": _RESHAPES,
    "Attention": _RESHAPES,
    "LongformerAttention": _RESHAPES,
    "LEDEncoderAttention": _RESHAPES,
    "LEDDecoderAttention": _RESHAPES,
    "HieraMaskUnitAttention": _RESHAPES,
    "PegasusXGlobalLocalAttention": _RESHAPES,
    "PvtV2SelfAttention": _RESHAPES,
    "TrOCRAttention": _RESHAPES,
    "ProphetNetAttention": "its masks are made for all heads",
    "ProphetNetNgramSelfAttention": "its masks are made for all heads",
    "Pix2StructTextAttention": "its position biases feed the other layers",
    "Zamba2Attention": "its weights are shared by layers with adapters of their own",
    "DiffLlamaAttention": "it subtracts one half of its heads from the other",
    "AutoformerAttention": "its autocorrelation averages over all heads",
    "LongT5TransientGlobalAttention": "its global attention computes position biases of its own for all heads",
}
"""Attention modules that need all their heads."""

CHANNELS_STAY: dict[str, str] = {
    "LightGlueMLP": "a norm between its linears works on all channels",
}
"""Feed-forward modules that need all their channels."""

NEVER_EMPTY = frozenset({"BloomAttention", "GPTNeoXJapaneseAttention", "HrmTextAttention", "FSMTAttention"})
"""Attention modules that do more than attend: add the residual stream, return a bias, share a cache."""

LAYERS_STAY: dict[str, str] = {
    "JambaAttentionDecoderLayer": "its config counts the layers of each sort by period",
    "JambaMambaDecoderLayer": "its config counts the layers of each sort by period",
    "FunnelLayer": "its blocks pool the sequence between them",
    "LongcatFlashDecoderLayer": "each layer holds two slots of the cache",
    "HieraLayer": "stages make the picture smaller between its blocks",
    "BridgeTowerResidualAttention": "layers of three towers are joined by their number",
    "BridgeTowerTextLayer": "layers of three towers are joined by their number",
    "BridgeTowerBertCrossLayer": "layers of three towers are joined by their number",
    "VitPoseBackboneLayer": "its output is taken by number",
    "SamHQVisionLayer": "its output is taken by number",
    "YolosLayer": "each layer has position embeddings of its own",
    "MllamaVisionEncoderLayer": "its output is taken by number",
    "Zamba2AttentionDecoderLayer": "its weights are shared by layers with adapters of their own",
    "Zamba2MambaDecoderLayer": "its weights are shared by layers with adapters of their own",
    "CvtStage": "each stage makes the picture smaller",
    "LxmertLayer": "the sizes of its encoders hang together",
    "IdeficsDecoderLayer": "cross-attention layers are counted by an interval",
}
"""Blocks of a list from which no block can go."""
PER_LAYER_INPUT = "per_layer_input_gate"
"""A child of blocks that take an input made for their number (Gemma 3n, Gemma 4)."""
TAPPED = ("deepstack", "intermediate_layers", "fullatt_block", "out_features", "out_indices")
"""Parts of attribute names beside a list of blocks whose outputs are taken by number."""
SHARED_CACHE = ("is_kv_shared_layer", "store_full_length_kv")
"""Attributes of an attention that shares keys and values with another layer."""
