"""What a user can ask of weight masks, in the words of nn_pruning."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from sparse_trainer.budget.schedule import Schedule
from sparse_trainer.errors import ArgumentError, one_of
from sparse_trainer.fields import changed_fields, option
from sparse_trainer.training.mask_options import (
    DISABLED,
    PARTS,
    MaskOptions,
    Part,
    PartOptions,
    Regularization,
    parse_method,
    spelled,
)
from sparse_trainer.training.mask_selection import BY_FRACTION, METHODS, Method
from sparse_trainer.training.protect import Protection

AMPERE: Final = (DISABLED, "topK", "threshold", "sigmoid_threshold", "magnitude", "annealing")
INITS: Final = ("constant", "uniform", "kaiming")

_STRUCTURED: Final = {
    "dense_pruning_method": "sigmoid_threshold:1d_alt",
    "attention_pruning_method": "sigmoid_threshold",
    "attention_output_with_dense": False,
    "initial_threshold": 0.0,
    "final_threshold": 0.1,
    "regularization": "l1",
    "regularization_final_lambda": 20.0,
}
# Lagunas et al., arXiv 2109.04838: 32 x 32 blocks, or whole heads of 64 x 768, on attention; channels in the FFNs.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "hybrid": {**_STRUCTURED, "attention_block_rows": 32, "attention_block_cols": 32},
    "struct": {
        **_STRUCTURED,
        "attention_block_rows": 0,
        "attention_block_cols": 0,
        "attention_lambda": 0.00156,
    },
}


@dataclass(kw_only=True)
class MaskArguments:
    """Options of weight masks. Naming a pruning method, or a preset, asks for masks instead of gates."""

    preset: str | None = option(
        None,
        "hybrid or struct: fills in the mask options that were left alone; what is set to its usual "
        "default counts as left alone.",
    )
    dense_pruning_method: str | None = option(
        None,
        "Masks on feed-forward matrices: topK, threshold, sigmoid_threshold, magnitude, l0 or disabled, "
        "with :1d or :1d_alt where it is not by blocks.",
    )
    attention_pruning_method: str | None = option(
        None, "Masks on attention: as for dense, with :1d or :joint."
    )
    attention_output_with_dense: bool = option(
        True, "Mask the output matrix of attention like the dense ones."
    )
    ampere_pruning_method: str = option(
        DISABLED, "2 of 4 weights: by score (topK), magnitude or annealing; disabled = no."
    )
    dense_block_rows: int = option(1, "Rows of a block of a dense matrix.")
    dense_block_cols: int = option(1, "Columns of a block; 0 = all.")
    attention_block_rows: int = option(
        1, "Rows of a block of q, k and v; 0 = a head's. The output matrix swaps both."
    )
    attention_block_cols: int = option(1, "Columns of a block; 0 = all.")
    initial_threshold: float | None = option(
        None, "At first; default: 1 where it is the fraction to keep, else 0."
    )
    final_threshold: float | None = option(
        None, "In the end; default: 0.5 where it is the fraction to keep, else 0.1."
    )
    initial_warmup: float | None = option(
        None, "Dense start, in warmup_steps; default: pruning_warmup_ratio of training."
    )
    final_warmup: float | None = option(
        None, "Final stretch, in warmup_steps; default: cooldown_ratio of training."
    )
    initial_ampere_temperature: float = option(0.0, "annealing: at first.")
    final_ampere_temperature: float = option(20.0, "annealing: in the end.")
    mask_init: str = option("constant", "Scores start constant, uniform or kaiming.")
    mask_scale: float | None = option(None, "The constant, or the bound of uniform; default 0, for l0 2.197.")
    mask_scores_learning_rate: float = option(1e-2, "Learning rate of mask scores.")
    bias_mask: bool = option(True, "An output without any weight loses its bias as well.")
    linear_min_parameters: float = option(0.005, "Fraction of a matrix that thresholds leave in any case.")
    regularization: str = option(DISABLED, "Of the scores: l1, l0 or disabled.")
    regularization_final_lambda: float = option(0.0, "Its weight in the end.")
    attention_lambda: float = option(1.0, "Its share for attention.")
    dense_lambda: float = option(1.0, "Its share for dense matrices.")
    decoder_attention_lambda: float | None = option(
        None, "Its share for attention of a decoder behind an encoder."
    )
    decoder_dense_lambda: float | None = option(None, "Its share for dense matrices of such a decoder.")

    @property
    def uses_masks(self) -> bool:
        """Whether masks are asked for instead of gates."""
        methods = (self.dense_pruning_method, self.attention_pruning_method, self.preset)
        return any(method is not None for method in methods) or self.ampere_pruning_method != DISABLED

    def mask_option(self, name: str) -> Any:
        """Return an option, or what the preset says where the user said nothing."""
        value = getattr(self, name)
        if self.preset is None or name in changed_fields(self):
            return value
        return PRESETS[self.preset].get(name, value)

    def part(self, name: Part) -> PartOptions | None:
        """Return how `dense` or `attention` matrices are masked, None = not at all."""
        method, shape = parse_method(f"{name}_pruning_method", self.mask_option(f"{name}_pruning_method"))
        if method == DISABLED:
            return None
        known: Method = next(m for m in METHODS if m == method)
        by_fraction = known in BY_FRACTION
        initial, final = self.mask_option("initial_threshold"), self.mask_option("final_threshold")
        return PartOptions(
            method=known,
            shape=shape,
            rows=self.mask_option(f"{name}_block_rows"),
            cols=self.mask_option(f"{name}_block_cols"),
            initial=float(by_fraction) if initial is None else initial,
            final=(0.5 if by_fraction else 0.1) if final is None else final,
        )

    def mask_options(
        self, *, schedule: Schedule, seed: int, protection: Protection | None
    ) -> MaskOptions | None:
        """Return what is asked for, filled in by the preset; None where no masks are."""
        if not self.uses_masks:
            return None
        parts = {name: self.part(name) for name in PARTS}
        return MaskOptions(
            method=self.preset or f"masks: {self.dense_pruning_method}, {self.attention_pruning_method}",
            parts={name: part for name, part in parts.items() if part is not None},
            output_with_dense=bool(self.mask_option("attention_output_with_dense")),
            ampere=spelled(self.ampere_pruning_method),
            temperatures=(self.initial_ampere_temperature, self.final_ampere_temperature),
            init=self.mask_init,
            scale=self.mask_scale,
            learning_rate=self.mask_scores_learning_rate,
            masks_bias=bool(self.bias_mask),
            least=self.linear_min_parameters,
            regularization=Regularization(
                kind=self.mask_option("regularization"),
                weight=self.mask_option("regularization_final_lambda"),
                shares={name: self.mask_option(f"{name}_lambda") for name in PARTS},
                decoder_shares={
                    "attention": self.decoder_attention_lambda,
                    "dense": self.decoder_dense_lambda,
                },
            ),
            schedule=schedule,
            stretches=(self.initial_warmup, self.final_warmup),
            seed=seed,
            protection=protection,
        )

    def check_masks(self) -> None:
        """Raise `ArgumentError` for unknown words, and for options of masks that nobody asked for."""
        one_of("preset", self.preset, (None, *PRESETS))
        for name, known in (("regularization", (DISABLED, "l1", "l0")), ("mask_init", INITS)):
            one_of(name, getattr(self, name), known)
        one_of("ampere_pruning_method", spelled(self.ampere_pruning_method), AMPERE)
        for f in () if self.uses_masks else fields(MaskArguments):
            if getattr(self, f.name) != f.default:
                raise ArgumentError(
                    f.name,
                    "is an option of weight masks, and no mask is asked for.",
                    "Set dense_pruning_method, attention_pruning_method or preset too.",
                )
