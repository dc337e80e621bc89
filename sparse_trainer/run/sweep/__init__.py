"""Sweeps: many runs of one recipe, and what they show side by side."""
