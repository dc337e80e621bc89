"""Recipes as data: YAML files that `sparse-trainer run NAME` reads, and their catalogue."""
