"""What a user can ask of cheaper layers, in our words and in those of nn_pruning."""

from dataclasses import dataclass, fields
from typing import Final

from sparse_trainer.errors import ArgumentError, one_of
from sparse_trainer.fields import check_share, option
from sparse_trainer.training.options import LAYERS, BlendingOptions

_OF_LAYER: Final = {
    "gelu_patch_steps": "relu",
    "layer_norm_patch_steps": "no_norm",
    "layer_norm_patch_start_delta": "no_norm",
    "cheaper_decay": "no_norm",
}
_OLD_DEFAULTS: Final = {
    "gelu_patch_steps": 50_000,
    "layer_norm_patch_steps": 50_000,
    "layer_norm_patch_start_delta": 0.99,
}
"""Of nn_pruning: scripts that spell them out ask for nothing."""


@dataclass(kw_only=True)
class CheaperArguments:
    """Options of cheaper layers. Naming one in `cheaper`, or setting an old `…_patch`, asks for it."""

    cheaper: list[str] = option(
        [], "Cheaper layers to blend in while training: relu for GELU, no_norm for LayerNorm."
    )
    cheaper_until: float = option(0.7, "Fraction of training after which only the cheaper layers count.")
    cheaper_decay: float = option(0.99, "no_norm: decay of the running mean and variance per step.")
    gelu_patch: bool = option(False, "nn_pruning's word for cheaper: relu.")
    gelu_patch_steps: int | None = option(
        None, "Steps until only ReLU counts; default: cheaper_until of training."
    )
    layer_norm_patch: bool = option(False, "nn_pruning's word for cheaper: no_norm.")
    layer_norm_patch_steps: int | None = option(
        None, "Steps until only NoNorm counts; default: cheaper_until of training."
    )
    layer_norm_patch_start_delta: float | None = option(
        None, "nn_pruning's word for cheaper_decay, which stays as it is."
    )
    eval_with_current_patch_params: bool = option(
        False, "Evaluate with blends and mask thresholds as they are, not as they will be."
    )

    @property
    def cheaper_layers(self) -> tuple[str, ...]:
        """What is asked for."""
        old = {"relu": self.gelu_patch, "no_norm": self.layer_norm_patch}
        return tuple(name for name in LAYERS if name in self.cheaper or old[name])

    @property
    def blending(self) -> BlendingOptions:
        """Which cheaper layers are blended in, and how fast, in whichever words."""
        given = self.layer_norm_patch_start_delta
        return BlendingOptions(
            layers=self.cheaper_layers,
            decay=self.cheaper_decay if given is None else given,
            until=self.cheaper_until,
            steps={
                "relu": ("gelu_patch_steps", self.gelu_patch_steps),
                "no_norm": ("layer_norm_patch_steps", self.layer_norm_patch_steps),
            },
        )

    def check_cheaper(self) -> None:
        """Raise `ArgumentError` for values that make no sense; also after `setattr`."""
        for name in self.cheaper:
            one_of("cheaper", name, LAYERS)
        check_share("cheaper_until", self.cheaper_until, "(0, 1]", "Give a fraction, e.g. 0.7.")
        for name, steps in self.blending.steps.values():
            if steps is not None and not steps > 0:
                raise ArgumentError(name, f"{steps!r} is not positive.", "Give a number of optimizer steps.")
        check_share("cheaper_decay", self.blending.decay, "[0, 1)", "Give e.g. 0.99.")
        self._check_idle_cheaper()

    def _check_idle_cheaper(self) -> None:
        """Refuse options of layers that nobody asked for, and two words for one thing."""
        defaults = {f.name: f.default for f in fields(CheaperArguments)}
        for name, layer in _OF_LAYER.items():
            value = getattr(self, name)
            if layer not in self.cheaper_layers and value not in (defaults[name], _OLD_DEFAULTS.get(name)):
                raise ArgumentError(
                    name, f"is an option of {layer}, which is not asked for.", f"Add {layer!r} to cheaper."
                )
        if self.cheaper_until != defaults["cheaper_until"] and not self.cheaper_layers:
            raise ArgumentError(
                "cheaper_until", "no cheaper layer is asked for.", f"Set `cheaper` to some of {list(LAYERS)}."
            )
        if (
            self.layer_norm_patch_start_delta is not None
            and self.cheaper_decay != defaults["cheaper_decay"]
            and self.layer_norm_patch_start_delta != self.cheaper_decay
        ):
            raise ArgumentError(
                "cheaper_decay, layer_norm_patch_start_delta", "say the same thing.", "Drop one of the two."
            )
