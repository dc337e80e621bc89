"""Tokens that a corpus does not use leave embeddings, head and tokenizer."""
