"""Recipes that train adapters of LoRA beside frozen weights: their options, and how the adapters come onto the model.

Gates act on linear and adapter together, so pruning needs nothing more. What was trained is merged before a model is
cut, compared or saved, so that no result knows of peft.
"""

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from patchers.layers import LINEAR_TYPES
from patchers.patching.merging import merge_adapters
from sparse_trainer.errors import ArgumentError, RecipeError, first_line, nearest, shown
from sparse_trainer.fields import check_counts, check_positive, check_share

ALL_LINEAR: Final = "all-linear"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraOptions:
    """Adapters of LoRA (Hu et al., arXiv 2106.09685) that every training of the run trains, instead of the weights.

    The options are those of `peft.LoraConfig` that merge exactly and leave the frozen weights alone.
    """

    r: int = 8
    """Rank of the adapters."""
    alpha: float = 16.0
    """The update of a weight is alpha / r times B A."""
    dropout: float = 0.0
    """Share of an adapter's inputs that is dropped in training, in [0, 1)."""
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    """Names of the modules that get an adapter, or the ends of their paths; a text is a pattern for whole paths.
    all-linear = every linear but the head."""
    exclude_modules: tuple[str, ...] = ()
    """Names of modules that get none."""
    modules_to_save: tuple[str, ...] | None = None
    """Names of modules outside the blocks that are trained in full; null = the head, where there is one that is new."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases that are trained, too: none, all of the model, or those of linears with an adapter."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)."""
    use_dora: bool = False
    """Train the norms of the rows beside their directions (DoRA, arXiv 2402.09353)."""
    init: Literal["default", "gaussian", "orthogonal"] = "default"
    """How the adapters start. peft's ways that change the frozen weights (pissa, olora ...) are not among them."""

    def __post_init__(self) -> None:
        check_counts(r=self.r)
        check_positive("alpha", self.alpha)
        check_share("dropout", self.dropout, "[0, 1)", "Give e.g. 0.05.")
        if not self.target_modules:
            raise ArgumentError("target_modules", "names no module.", f"Give e.g. {ALL_LINEAR}.")
        if self.init == "orthogonal" and self.r % 2:
            raise ArgumentError("r", f"{self.r} is odd, and init: orthogonal wants it even.", "Give e.g. 8.")

    def adapt(self, model: PreTrainedModel, seed: int) -> Any:
        """Put adapters on the model, in place, and freeze its weights; return peft's model around it.

        It is of peft's plain class: those for single tasks add what prompts need, and a head, which is here already.

        Args:
            seed: Of the adapters' first weights.

        Raises:
            RecipeError: A module that is named is not there, or takes no adapter.
        """
        # peft takes a second to import, and is no requirement of ours.
        from peft import LoraConfig, get_peft_model

        self._check_names(model)
        targets = self.target_modules
        trained = head_names(model) if self.modules_to_save is None else list(self.modules_to_save)
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            exclude_modules=list(self.exclude_modules) or None,
            modules_to_save=trained or None,
            bias=self.bias,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            init_lora_weights=True if self.init == "default" else self.init,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        )
        set_seed(seed)
        try:
            return get_peft_model(model, config)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise RecipeError(
                "lora",
                f"peft refuses it: {first_line(error)}",
                "Change the option that the message is about.",
            ) from error

    @contextmanager
    def tried(self, model: PreTrainedModel, seed: int = 0) -> Iterator[Any]:
        """Put adapters on the model for the time of a `with` block; then every module and parameter is what it was.

        Args:
            seed: Of the adapters' first weights.
        """
        places = [(module, dict(module._modules)) for module in model.modules()]
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        attributes = set(vars(model))
        try:
            yield self.adapt(model, seed)
        finally:
            for module, children in places:
                for name, child in children.items():
                    setattr(module, name, child)
            for parameter, is_trained in flags:
                parameter.requires_grad_(is_trained)
            for note in set(vars(model)) - attributes:
                delattr(model, note)

    def _check_names(self, model: PreTrainedModel) -> None:
        """Raise `RecipeError` for a name that no module has: peft minds only where none of them is there."""
        paths = [path for path, _ in model.named_modules() if path]
        targets = () if isinstance(self.target_modules, str) else self.target_modules
        takes_adapter = _last_names(model, (*LINEAR_TYPES, nn.Embedding))
        _check_named("target_modules", targets, paths, takes_adapter)
        _check_named("exclude_modules", self.exclude_modules, paths, takes_adapter)
        trains = [*head_names(model), *_last_names(model, (*LINEAR_TYPES, nn.Embedding, nn.LayerNorm))]
        _check_named("modules_to_save", self.modules_to_save or (), paths, list(dict.fromkeys(trains)))


def merged(model: nn.Module) -> PreTrainedModel:
    """Return the model that adapters were put on with what they learned in its weights; in place."""
    base = merge_adapters(model)
    assert isinstance(base, PreTrainedModel)
    return base


def check_peft() -> None:
    """Raise `RecipeError` where peft is missing: before any work."""
    if importlib.util.find_spec("peft") is None:
        raise RecipeError(
            "lora", "peft is not installed.", "Run `pip install 'peft>=0.18'`, or leave out section lora."
        )


def check_not_quantized(config: PreTrainedConfig, name: str) -> None:
    """Raise `RecipeError` for quantized weights, before they are loaded: no training of a recipe can use them."""
    if vars(config).get("quantization_config") is not None:
        raise RecipeError(
            f"model.name_or_path: {name}",
            "its weights are quantized: they can be neither cut nor trained, and no adapter merges into them exactly.",
            "Name the unquantized model (with section lora it stays frozen, and needs no more than its weights), "
            "and quantize the result: docs/quantization.md.",
        )


def head_names(model: PreTrainedModel) -> list[str]:
    """Return the names of what a model has for its task beside the pretrained base, output embeddings apart."""
    if model.base_model is model:
        return []
    outputs = model.get_output_embeddings()
    return [
        name
        for name, child in model.named_children()
        if child is not model.base_model
        and next(child.parameters(), None) is not None
        and all(part is not outputs for part in child.modules())
    ]


def _last_names(model: nn.Module, types: tuple[type, ...]) -> list[str]:
    found = (path.rpartition(".")[2] for path, module in model.named_modules() if isinstance(module, types))
    return list(dict.fromkeys(found))


def _check_named(option: str, names: Iterable[str], paths: Iterable[str], known: Iterable[str]) -> None:
    ends = [f".{path}" for path in paths]
    for name in names:
        if not any(end.endswith(f".{name}") for end in ends):
            raise RecipeError(f"lora.{option}", f"no module is called {shown(name)}.", nearest(name, known))
