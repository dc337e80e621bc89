"""The config of a DeciLM folder, for readers that ask transformers for it: there is no such model type in transformers.

This file travels inside the folder, and imports transformers only.
"""

from typing import Any

from transformers import LlamaConfig


class Entries(dict[str, Any]):
    """Entries of JSON that can be read as attributes, too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):
    """A Llama whose layers say in `block_configs` what each of them has."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_configs = [
            Entries({branch: Entries(said) for branch, said in block.items()})
            for block in block_configs or []
        ]
