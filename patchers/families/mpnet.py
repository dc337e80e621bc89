"""MPNet: one table of relative position biases, shared by all layers, with a column per head."""

from patchers.families.tables import AttentionTable, Family, FfnTable

MPNET = Family(
    name="mpnet",
    attention=AttentionTable(
        queries=("attention.attn.q", "attention.attn.k"),
        value="attention.attn.v",
        output="attention.attn.o",
        core="attention.attn",
        core_outputs=1,
        core_owns_output=True,
        selects=(("position_bias", 2, 1),),
    ),
    ffn=FfnTable(up=("intermediate.dense",), down="output.dense"),
)
