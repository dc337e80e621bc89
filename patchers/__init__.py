"""Module trees: what can be pruned in a model, gates in it, and the cut. Knows nothing of training or files."""

from patchers.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
