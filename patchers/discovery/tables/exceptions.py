"""What follows a form by its names and still cannot be cut soundly, by class name, with the reason."""

RESHAPES = "its forward divides the hidden size by the number of heads, so all heads must stay"

HEADS_STAY: dict[str, str] = {
    "BlipAttention": RESHAPES,
    "Blip2Attention": RESHAPES,
    "InstructBlipAttention": RESHAPES,
    "InstructBlipVideoAttention": RESHAPES,
    "LongformerAttention": RESHAPES,
    "LEDEncoderAttention": RESHAPES,
    "HieraMaskUnitAttention": RESHAPES,
    "PegasusXGlobalLocalAttention": RESHAPES,
    "PvtV2SelfAttention": RESHAPES,
    "ProphetNetAttention": "its masks are made for all heads",
    "ProphetNetNgramSelfAttention": "its masks are made for all heads",
    "Pix2StructTextAttention": "its position biases feed the other layers",
    "Zamba2Attention": "its weights are shared by layers with adapters of their own",
    "DiffLlamaAttention": "it subtracts one half of its heads from the other",
    "CodeGenAttention": "its heads lie in four blocks that must stay equally large",
    "AutoformerAttention": "its autocorrelation averages over all heads",
    "BigBirdBlockSparseAttention": "it is built anew, with all its heads, when inputs are short",
    "LongT5TransientGlobalAttention": "its global attention computes position biases of its own for all heads",
}
"""Attention modules that need all their heads."""

CHANNELS_STAY: dict[str, str] = {
    "LightGlueMLP": "a norm between its linears works on all channels",
}
"""Feed-forward modules that need all their channels."""

NEVER_EMPTY = frozenset(
    {
        "BloomAttention",
        "GitSelfAttention",
        "GPTNeoXJapaneseAttention",
        "HrmTextAttention",
        "FSMTAttention",
        "T5Gemma2MergedAttention",
    }
)
"""Attention modules that do more than attend: add the residual stream, return a bias, share a cache, tell a number."""

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
    "LiltLayer": "it passes on two streams of states",
    "PegasusXEncoderLayer": "it passes on two streams of states",
    "ZayaDecoderLayer": "the states of its router go from layer to layer",
    "VideomtLayer": "the last blocks see queries as well, counted from the end",
    "EomtLayer": "the last blocks see queries as well, counted from the end",
    "EomtDinov3Layer": "the last blocks see queries as well, counted from the end",
    "AutoformerDecoderLayer": "it passes on a trend beside the states",
    "XLNetLayer": "the model returns a memory of each layer",
    "Sam3DetrDecoderLayer": "each layer moves the boxes that the next one starts from",
    "Sam3LiteTextDetrDecoderLayer": "each layer moves the boxes that the next one starts from",
    "SamTwoWayAttentionBlock": "it passes on two streams of states",
    "SamHQTwoWayAttentionBlock": "it passes on two streams of states",
    "Sam2TwoWayAttentionBlock": "it passes on two streams of states",
    "Sam2VideoTwoWayAttentionBlock": "it passes on two streams of states",
    "EdgeTamTwoWayAttentionBlock": "it passes on two streams of states",
    "EdgeTamVideoTwoWayAttentionBlock": "it passes on two streams of states",
    "Sam3TrackerTwoWayAttentionBlock": "it passes on two streams of states",
    "Sam3TrackerVideoTwoWayAttentionBlock": "it passes on two streams of states",
    "FlavaLayer": "the model returns the states of every layer",
    "SuperGlueAttentionalPropagation": "its layers take turns by a list of the model",
    "IdeficsDecoderLayer": "cross-attention layers are counted by an interval",
}
"""Blocks of a list from which no block can go."""
FIRST_STAYS: dict[str, str] = dict.fromkeys(
    ("MiniMaxDecoderLayer", "MllamaSelfAttentionDecoderLayer"), "caches count tokens at the first layer"
)
"""Blocks that have to stay where they come first, before others that keep no count."""
PER_LAYER_INPUT = "per_layer_input_gate"
"""A child of blocks that take an input made for their number (Gemma 3n, Gemma 4)."""
TAPPED = ("deepstack", "intermediate_layers", "fullatt_block", "out_features", "out_indices", "stage_names")
"""Parts of attribute names beside a list of blocks whose outputs are taken by number."""
SHARED_CACHE = ("is_kv_shared_layer", "store_full_length_kv")
"""Attributes of an attention that shares keys and values with another layer."""
PER_HEAD_MASK: dict[str, tuple[tuple[str, int, int], ...]] = {
    "LayoutLMv3Attention": (("position_bias", 2, 1),),
    "Sam3Attention": (("attention_mask", 3, 1),),
    "Sam3LiteTextAttention": (("attention_mask", 3, 1),),
}
"""Per-head arguments by class of attention, where the names of its parts tell too little."""
TOWERS = ("vision", "image_tower", "video_tower")
"""Parts of the paths of towers, of which `config.vision_feature_layer` takes one layer's output."""
