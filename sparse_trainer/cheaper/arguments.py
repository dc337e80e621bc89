"""What a user can ask of cheaper layers, in our words and in those of nn_pruning."""

from dataclasses import dataclass, field
from typing import Final

from sparse_trainer.errors import ArgumentError, nearest

LAYERS: Final = ("relu", "no_norm")


@dataclass(kw_only=True)
class CheaperArguments:
    """Options of cheaper layers. Naming one in `cheaper`, or setting an old `…_patch`, asks for it."""

    cheaper: list[str] = field(
        default_factory=list,
        metadata={"help": "Cheaper layers to blend in while training: relu for GELU, no_norm for LayerNorm."},
    )
    cheaper_until: float = field(
        default=0.7, metadata={"help": "Fraction of training after which only the cheaper layers count."}
    )
    cheaper_decay: float = field(
        default=0.99, metadata={"help": "no_norm: decay of the running mean and variance per step."}
    )
    gelu_patch: bool = field(default=False, metadata={"help": "nn_pruning's word for cheaper: relu."})
    gelu_patch_steps: int | None = field(
        default=None, metadata={"help": "Steps until only ReLU counts; default: cheaper_until of training."}
    )
    layer_norm_patch: bool = field(
        default=False, metadata={"help": "nn_pruning's word for cheaper: no_norm."}
    )
    layer_norm_patch_steps: int | None = field(
        default=None, metadata={"help": "Steps until only NoNorm counts; default: cheaper_until of training."}
    )
    layer_norm_patch_start_delta: float | None = field(
        default=None, metadata={"help": "nn_pruning's word for cheaper_decay, which stays as it is."}
    )
    eval_with_current_patch_params: bool = field(
        default=False,
        metadata={"help": "Evaluate with blends and mask thresholds as they are, not as they will be."},
    )

    @property
    def cheaper_layers(self) -> tuple[str, ...]:
        """What is asked for."""
        old = {"relu": self.gelu_patch, "no_norm": self.layer_norm_patch}
        return tuple(name for name in LAYERS if name in self.cheaper or old[name])

    @property
    def statistics_decay(self) -> float:
        """Decay of the statistics of `no_norm`, in whichever words."""
        given = self.layer_norm_patch_start_delta
        return self.cheaper_decay if given is None else given

    def blend_steps(self, total_steps: int) -> dict[str, float]:
        """Return the optimizer steps after which only the cheaper layer counts, by its name.

        Raises:
            ArgumentError: training ends before.
        """
        old = {"relu": self.gelu_patch_steps, "no_norm": self.layer_norm_patch_steps}
        fields = {"relu": "gelu_patch_steps", "no_norm": "layer_norm_patch_steps"}
        steps: dict[str, float] = {}
        for name in self.cheaper_layers:
            given = old[name]
            if given is not None and given > total_steps:
                raise ArgumentError(
                    fields[name],
                    f"{given} steps, but training has {total_steps}: the original layers would never be gone.",
                    "Train longer, lower it, or leave it out: then cheaper_until of training counts.",
                )
            steps[name] = self.cheaper_until * total_steps if given is None else given
        return steps

    def check_cheaper(self) -> None:
        """Raise `ArgumentError` for values that make no sense; also after `setattr`."""
        for name in self.cheaper:
            if name not in LAYERS:
                raise ArgumentError("cheaper", f"unknown value {name!r}.", nearest(name, LAYERS))
        if not 0 < self.cheaper_until <= 1:
            raise ArgumentError(
                "cheaper_until", f"{self.cheaper_until!r} is not in (0, 1].", "Give a fraction, e.g. 0.7."
            )
        for name in ("gelu_patch_steps", "layer_norm_patch_steps"):
            steps: int | None = getattr(self, name)
            if steps is not None and not steps > 0:
                raise ArgumentError(name, f"{steps!r} is not positive.", "Give a number of optimizer steps.")
        if not 0 <= self.statistics_decay < 1:
            raise ArgumentError(
                "cheaper_decay", f"{self.statistics_decay!r} is not in [0, 1).", "Give e.g. 0.99."
            )
