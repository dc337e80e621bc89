"""DistilBERT: the attention module owns its output projection."""

from patchers.families.tables import AttentionTable, Family, FfnTable

DISTILBERT = Family(
    name="distilbert",
    attention=AttentionTable(
        queries=("attention.q_lin", "attention.k_lin"),
        value="attention.v_lin",
        output="attention.out_lin",
        core="attention",
        core_owns_output=True,
        num_heads="n_heads",
        all_head_size=None,
    ),
    ffn=FfnTable(up=("ffn.lin1",), down="ffn.lin2"),
    config_keys={"heads": "n_heads", "channels": "hidden_dim", "layers": "n_layers"},
)
