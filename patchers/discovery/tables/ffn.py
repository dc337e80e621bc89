"""Feed-forward modules: one row per naming, tried in order."""

from patchers.discovery.tables.forms import FfnForm

_GATED = (
    # Linears in a wrapper that clips what passes.
    (("gate_proj.linear", "up_proj.linear"), "down_proj.linear"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("w1", "w3"), "w2"),
    (("wi_0", "wi_1"), "wo"),
    (("fc1_g", "fc1_x"), "fc2"),
    (("w_in.w_0", "w_in.w_1"), "w_out"),
)
_PLAIN = (
    ("ffw_layer_1.linear", "ffw_layer_2.linear"),
    ("up_proj", "down_proj"),
    ("fc1", "fc2"),
    ("intermediate.dense", "output.dense"),
    ("c_fc", "c_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("lin1", "lin2"),
    ("linear1", "linear2"),
    ("linear_fc1", "linear_fc2"),
    ("linear_1", "linear_2"),
    ("fc_in", "fc_out"),
    ("intermediate_dense", "output_dense"),
    ("ffn", "ffn_output"),
    ("ffw_layer_1", "ffw_layer_2"),
    ("layer_1", "layer_2"),
    ("pwconv1", "pwconv2"),
    ("pointwise_conv1", "pointwise_conv2"),
    ("intermediate", "output"),
    ("in_proj", "out_proj"),
    ("proj_in", "proj_out"),
    ("wi", "wo"),
    ("gate_proj", "down_proj"),
    ("dense1", "dense2"),
    ("0", "2"),
    ("0", "3"),
)
_FUSED = (
    ("gate_up_proj", "down_proj"),
    ("Wi", "Wo"),
    ("weights_in", "weights_out"),
    ("input_linear", "output_linear"),
    ("w12", "w3"),
)

FFN_FORMS: tuple[FfnForm, ...] = (
    *(FfnForm(name=f"{'/'.join(up)}…{down}", up=up, down=down) for up, down in _GATED),
    *(FfnForm(name=f"{up}…{down}", up=(up,), down=down) for up, down in _PLAIN),
    *(FfnForm(name=f"{up}…{down}", up=(up,), down=down, fused="halves") for up, down in _FUSED),
)
