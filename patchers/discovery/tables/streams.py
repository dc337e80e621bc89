"""Residual streams: which norms stand before all that reads hidden features, and what reads and writes them."""

from patchers.discovery.tables.forms import StreamForm

STREAM_FORMS = (
    StreamForm(
        name="bert", norms=("attention.output.LayerNorm", "output.LayerNorm"),
        first=("embeddings.LayerNorm", "embeddings_project"),
    ),
    StreamForm(name="distilbert", norms=("sa_layer_norm", "output_layer_norm"), first=("embeddings.LayerNorm",)),
    StreamForm(name="mpnet", norms=("attention.LayerNorm", "output.LayerNorm"), first=("embeddings.LayerNorm",)),
    StreamForm(name="llama", norms=("input_layernorm", "post_attention_layernorm"), last=("norm",)),
    StreamForm(name="gpt2", norms=("ln_1", "ln_2"), last=("ln_f",)),
)  # fmt: skip
"""Embeddings may be projected to the stream (ELECTRA): then the first block reads it without a norm, and the projection
is what is gated."""

WRITERS = (
    "embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings",
    "embed_tokens", "wte", "wpe",
)  # fmt: skip
"""Embeddings that are added up to the stream."""

READERS = (
    "pooler.dense", "pre_classifier", "classifier.dense", "classifier", "score", "qa_outputs", "lm_head",
    "lm_head.dense", "predictions.transform.dense", "vocab_transform", "generator_predictions.dense",
    "discriminator_predictions.dense",
)  # fmt: skip
"""Linears of task heads that read the last norm: only their input follows."""

APART = ("classifier.out_proj", "cls.seq_relationship", "discriminator_predictions.dense_prediction")
"""Linears of task heads that read another linear of the head."""
POOLED = ("classifier", ("pooler.dense", "pre_classifier"))
"""This reader is one of those apart where a model has one of these."""

TRANSFORMS = (
    ("predictions.transform.dense", "predictions.transform.LayerNorm", "predictions.decoder"),
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder"),
    ("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head"),
)
"""Heads of language models with a linear and a norm before the decoder. Its weight is the word embeddings', so that
what lies between goes with the stream."""
