"""What stands beside the language model of an image-text model: towers, and what sums their outputs up."""

from collections.abc import Mapping
from typing import Any, Final

from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

_HALVES: Final = ("encoder", "decoder")
"""Parts of a config that are one model together, whatever the encoder reads."""


def towers_of(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of the towers of an image-text model, in model order; nothing for other models.

    Configs of such models have parts: one for the text, others for what reads images, video or sound, and for modules
    that sum up what these say. A module belongs to the part whose config it was built from, whatever it is called.
    """
    config = vars(model).get("config")
    if (
        not isinstance(config, PreTrainedConfig)
        or config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    ):
        return ()
    classes = {type(part) for name, part in _parts(config).items() if name not in _HALVES}
    found: list[str] = []
    for path, module in model.named_modules():
        is_tower = path != "" and type(vars(module).get("config")) in classes
        if is_tower and not any(is_inside(path, (tower,)) for tower in found):
            found.append(path)
    return tuple(found)


def is_inside(name: str, towers: tuple[str, ...]) -> bool:
    """Tell whether a group, module or parameter lies in one of these towers.

    >>> is_inside("vision_tower.layers.0.heads", ("vision_tower",)), is_inside("vision_tower_2", ("vision_tower",))
    (True, False)
    """
    return any(f"{name}.".startswith(f"{tower}.") for tower in towers)


def _parts(config: PreTrainedConfig) -> Mapping[str, Any]:
    """Return the parts of a config, but for that of the language model."""
    text: Any = config.get_text_config()
    named = {name: vars(config).get(name) for name in config.sub_configs}
    return {name: part for name, part in named.items() if part is not None and type(part) is not type(text)}
