"""Inputs made up for a model of any type, and what models read."""
