"""The self-test of contributors: tiny models of every type of transformers, held against the laws of `check_model`."""
