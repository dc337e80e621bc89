"""Which form a module follows, by the tables; and which sort of block it is."""

from torch import nn

from patchers.discovery.tables.forms import AttentionForm, FfnForm
from patchers.discovery.tables.registry import attention_forms, ffn_forms
from patchers.layers import features, is_linear, linear_at, present

_EXPERTS_INTERFACE = ("has_gate", "has_bias", "is_transposed", "is_concatenated")
"""Attributes by which transformers' stacked experts describe themselves."""


def attention_form_of(module: nn.Module) -> AttentionForm | None:
    """Return the first form whose parts `module` has, or None."""
    paths = present(module)
    for form in attention_forms():
        # Most modules have none of the outputs: what else a form needs is looked at after that.
        if form.output not in paths or not paths.issuperset(_producers(form)):
            continue
        if form.marker is None or any(
            form.marker in vars(m) for m in (module, module.get_submodule(form.core))
        ):
            return form
    return None


def _producers(form: AttentionForm) -> list[str]:
    return [path for path in (form.query, form.key, form.value, form.fused) if path is not None]


def ffn_form_of(module: nn.Module) -> FfnForm | None:
    """Return the first form whose parts `module` has with fitting shapes, or None."""
    paths = present(module)
    for form in ffn_forms():
        if form.down in paths and paths.issuperset(form.up) and _fits(module, form):
            return form
    return None


def _fits(module: nn.Module, form: FfnForm) -> bool:
    if form.down.isdigit() and not isinstance(module, nn.Sequential):
        return False
    roles = [*form.up, form.down]
    if not all(is_linear(module.get_submodule(name)) for name in roles):
        return True
    _, width = features(linear_at(module, form.down))
    allowed = (width,) if form.fused is None else (width, 2 * width)
    return all(features(linear_at(module, name))[0] in allowed for name in form.up)


def is_experts(module: nn.Module) -> bool:
    """Tell whether a module holds stacked experts and describes them as transformers' experts interface asks."""
    own = vars(module)
    return all(name in own for name in _EXPERTS_INTERFACE) and "down_proj" in dict(module.named_parameters())


def sort_of(block: nn.Module) -> str:
    """Name what mixes tokens in a block: the classes of its parts that hold matrices, feed-forward parts aside.

    Libraries look for the first block of each sort (caches, masks), so one of each has to stay.

    >>> from transformers import Lfm2Config, Lfm2Model
    >>> sorts = ["conv", "full_attention"]
    >>> config = Lfm2Config(vocab_size=8, hidden_size=32, intermediate_size=32, layer_types=sorts, num_hidden_layers=2,
    ...     num_attention_heads=2, num_key_value_heads=2)
    >>> [sort_of(block) for block in Lfm2Model(config).layers]
    ['Lfm2ShortConv', 'Lfm2Attention']
    """
    found = (type(child).__name__ for child in block.children() if _has_matrices(child) and _mixes(child))
    return " ".join(sorted(found))


def _has_matrices(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _mixes(module: nn.Module) -> bool:
    """Tell whether a part of a block is neither a linear nor a feed-forward part."""
    forward = isinstance(module, nn.Linear) or ffn_form_of(module) is not None
    return not forward and not any(is_experts(inner) for inner in module.modules())
