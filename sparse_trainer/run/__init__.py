"""Run a recipe: its stages, what it measures and what it leaves behind."""
