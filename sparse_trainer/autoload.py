"""Import this to let stock `AutoModelFor….from_pretrained(folder)` load uneven folders without `trust_remote_code`.

The auto classes ask one function of transformers which class a config means; ours answers with the pruned class when
the config says `pruning`, and asks theirs otherwise. Nothing is registered, no class is changed, other models never
notice. (A quantizer registered with transformers would do the same through a documented door, but marks the model as
quantized; registering the pruned classes would change the class of every BERT that is loaded.)
`BertModel.from_pretrained(folder)`, on a concrete class, still refuses: use `load_pruned`.
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import auto_factory

from patchers.modeling_pruned import pruned_class

_stock_choice: Any = auto_factory._get_model_class


def _choose_class(config: PreTrainedConfig, model_mapping: Mapping[Any, Any]) -> type[PreTrainedModel]:
    """Return the class that builds `config`: the pruned one where the config says so."""
    stock: type[PreTrainedModel] = _stock_choice(config, model_mapping)
    return pruned_class(stock) if "pruning" in vars(config) else stock


def enable() -> None:
    """Let stock loading accept pruned folders. Importing this module does it."""
    auto_factory._get_model_class = _choose_class


def disable() -> None:
    """Give transformers back its own choice."""
    auto_factory._get_model_class = _stock_choice


enable()
