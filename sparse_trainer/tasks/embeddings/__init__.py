"""Embeddings of sentences: how tokens are pooled, the loss of learning them, how well texts are found by them."""
