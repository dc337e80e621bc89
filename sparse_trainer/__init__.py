"""Structured fine-pruning for Hugging Face Transformers: smaller models that are really faster."""

from patchers.lazy import lazy_names

__version__ = "0.4.0"

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
