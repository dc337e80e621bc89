"""Recipe files: those that train, those that prune once, and the sections they share."""

from sparse_trainer.recipe.fine_pruning import Recipe, load_recipe, speaking_of
from sparse_trainer.recipe.oneshot import OneShotRecipe

__all__ = ["OneShotRecipe", "Recipe", "load_recipe", "speaking_of"]
