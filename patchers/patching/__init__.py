"""Gates and masks in a model, and out again."""
