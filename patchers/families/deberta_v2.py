"""DeBERTa-v2 and -v3: disentangled attention adds projections of the relative positions, cut like the queries."""

from patchers.families.tables import AttentionTable, Family, FfnTable

DEBERTA_V2 = Family(
    name="deberta-v2",
    attention=AttentionTable(
        queries=(
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.pos_key_proj",
            "attention.self.pos_query_proj",
        ),
        value="attention.self.value_proj",
        output="attention.output.dense",
        core="attention.self",
    ),
    ffn=FfnTable(up=("intermediate.dense",), down="output.dense"),
    pins_first_layer="conv",
)
