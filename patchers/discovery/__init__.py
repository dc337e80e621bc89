"""Find what of a model can be pruned."""
