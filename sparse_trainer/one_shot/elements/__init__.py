"""Masks over single weights: zeros inside dense matrices, in no particular place or N of every M."""
