"""BERT and the encoders that kept its names: RoBERTa, XLM-R, CamemBERT, ELECTRA."""

from patchers.families.tables import AttentionTable, Family, FfnTable

BERT = Family(
    name="bert",
    attention=AttentionTable(
        queries=("attention.self.query", "attention.self.key"),
        value="attention.self.value",
        output="attention.output.dense",
        core="attention.self",
    ),
    ffn=FfnTable(up=("intermediate.dense",), down="output.dense"),
)
