"""What follows a form by its names and still cannot be cut soundly, by class name, with the reason."""


def _by_class(classes: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the reason by class, of classes by reason."""
    return {name: reason for reason, names in classes.items() for name in names}


RESHAPES = "its forward divides the hidden size by the number of heads, so all heads must stay"

HEADS_STAY = _by_class({
    RESHAPES: (
        "BlipAttention", "Blip2Attention", "InstructBlipAttention", "InstructBlipVideoAttention",
        "LongformerAttention", "LEDEncoderAttention", "HieraMaskUnitAttention", "PegasusXGlobalLocalAttention",
        "PvtV2SelfAttention",
    ),
    "its masks are made for all heads": ("ProphetNetAttention", "ProphetNetNgramSelfAttention"),
    "its position biases feed the other layers": ("Pix2StructTextAttention",),
    "its weights are shared by layers with adapters of their own": ("Zamba2Attention",),
    "it subtracts one half of its heads from the other": ("DiffLlamaAttention",),
    "its heads lie in four blocks that must stay equally large": ("CodeGenAttention",),
    "its autocorrelation averages over all heads": ("AutoformerAttention",),
    "it is built anew, with all its heads, when inputs are short": ("BigBirdBlockSparseAttention",),
    "its global attention computes position biases of its own for all heads": ("LongT5TransientGlobalAttention",),
})  # fmt: skip
"""Attention modules that need all their heads."""

CHANNELS_STAY: dict[str, str] = {
    "LightGlueMLP": "a norm between its linears works on all channels",
}
"""Feed-forward modules that need all their channels."""

NEVER_EMPTY = frozenset({
    "BloomAttention", "GitSelfAttention", "GPTNeoXJapaneseAttention", "HrmTextAttention", "FSMTAttention",
    "T5Gemma2MergedAttention",
})  # fmt: skip
"""Attention modules that do more than attend: add the residual stream, return a bias, share a cache, tell a number."""

LAYERS_STAY = _by_class({
    "its config counts the layers of each sort by period": ("JambaAttentionDecoderLayer", "JambaMambaDecoderLayer"),
    "its blocks pool the sequence between them": ("FunnelLayer",),
    "each layer holds two slots of the cache": ("LongcatFlashDecoderLayer",),
    "stages make the picture smaller between its blocks": ("HieraLayer",),
    "layers of three towers are joined by their number": (
        "BridgeTowerResidualAttention", "BridgeTowerTextLayer", "BridgeTowerBertCrossLayer",
    ),
    "its output is taken by number": ("VitPoseBackboneLayer", "SamHQVisionLayer", "MllamaVisionEncoderLayer"),
    "each layer has position embeddings of its own": ("YolosLayer",),
    "its weights are shared by layers with adapters of their own": (
        "Zamba2AttentionDecoderLayer", "Zamba2MambaDecoderLayer",
    ),
    "each stage makes the picture smaller": ("CvtStage",),
    "the sizes of its encoders hang together": ("LxmertLayer",),
    "it passes on two streams of states": (
        "LiltLayer", "PegasusXEncoderLayer", "SamTwoWayAttentionBlock", "SamHQTwoWayAttentionBlock",
        "Sam2TwoWayAttentionBlock", "Sam2VideoTwoWayAttentionBlock", "EdgeTamTwoWayAttentionBlock",
        "EdgeTamVideoTwoWayAttentionBlock", "Sam3TrackerTwoWayAttentionBlock",
        "Sam3TrackerVideoTwoWayAttentionBlock",
    ),
    "the states of its router go from layer to layer": ("ZayaDecoderLayer",),
    "the last blocks see queries as well, counted from the end": ("VideomtLayer", "EomtLayer", "EomtDinov3Layer"),
    "it passes on a trend beside the states": ("AutoformerDecoderLayer",),
    "the model returns a memory of each layer": ("XLNetLayer",),
    "each layer moves the boxes that the next one starts from": (
        "Sam3DetrDecoderLayer", "Sam3LiteTextDetrDecoderLayer",
    ),
    "the model returns the states of every layer": ("FlavaLayer",),
    "its layers take turns by a list of the model": ("SuperGlueAttentionalPropagation",),
    "cross-attention layers are counted by an interval": ("IdeficsDecoderLayer",),
})  # fmt: skip
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
