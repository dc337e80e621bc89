"""Refuses options of masks that make no sense, contradict each other, or would be read by nobody."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sparse_trainer.errors import ArgumentError
from sparse_trainer.fields import check_share
from sparse_trainer.training.mask_options import DISABLED, PartOptions
from sparse_trainer.training.mask_selection import BY_FRACTION

_ASKERS: Final = ("preset", "dense_pruning_method", "attention_pruning_method", "ampere_pruning_method")
_THRESHOLDS: Final = ("initial_threshold", "final_threshold")
_BY_SCORE: Final = ("threshold", "sigmoid_threshold")
_IN_STEPS: Final = ("initial_warmup", "final_warmup")
_IN_FRACTIONS: Final = ("pruning_warmup_ratio", "cooldown_ratio")
_TEMPERATURES: Final = ("initial_ampere_temperature", "final_ampere_temperature")
_LAMBDAS: Final = (
    "regularization_final_lambda",
    "attention_lambda",
    "dense_lambda",
    "decoder_attention_lambda",
    "decoder_dense_lambda",
)
_OF_GATES: Final = (
    "scoring",
    "density",
    "target",
    "scope",
    "units",
    "multiple_of",
    "min_keep",
    "standardize",
    "taylor_order",
    "taylor_decay",
    "magnitude_norm",
    "gate_epsilon",
    "gate_epsilon_final",
    "gate_penalty",
    "calibration_samples",
    "l0_learning_rate",
    "l0_multiplier_rate",
    "l0_warmup",
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user said of masks."""

    touched: frozenset[str]
    """Options, of gates too, that differ from their defaults."""
    options: Mapping[str, Any]
    """Options of masks, filled in by the preset."""
    parts: Mapping[str, PartOptions]
    """How `dense` and `attention` are masked; those that are not are missing."""

    @property
    def methods(self) -> set[str]:
        """Methods of the parts."""
        return {part.method for part in self.parts.values()}


def check(asked: Asked) -> None:
    """Raise `ArgumentError` for the first thing that cannot be meant."""
    _check_rivals(asked.touched)
    _check_ranges(asked.options)
    _check_families(asked)
    for name, part in asked.parts.items():
        _check_part(name, part)
    _check_regularization(asked)
    _check_starts(asked)
    _check_unread(asked)


def _check_rivals(touched: frozenset[str]) -> None:
    """Refuse options of gates beside those of masks."""
    if {"final_threshold", "density"} <= touched:
        raise ArgumentError(
            "final_threshold, density",
            "say the same thing, of masks and of gates.",
            "Drop density: masks are asked for.",
        )
    steps, fraction = _first(_IN_STEPS, touched), _first(_IN_FRACTIONS, touched)
    if steps and fraction:
        raise ArgumentError(
            f"{steps}, {fraction}",
            f"beside {steps}, in warmup_steps, no fraction of training is read.",
            f"Say both stretches as {' and '.join(_IN_STEPS)}, or both as {' and '.join(_IN_FRACTIONS)}.",
        )
    if "score_learning_rate" in touched:
        raise ArgumentError(
            "score_learning_rate",
            "is that of gates, and masks are asked for.",
            "Set mask_scores_learning_rate.",
        )
    rival = _first(_OF_GATES, touched)
    if rival:
        asker = _first(_ASKERS, touched)
        raise ArgumentError(
            f"{asker}, {rival}", f"{asker} asks for masks, {rival} for gates.", "Drop one of the two."
        )


def _check_ranges(options: Mapping[str, Any]) -> None:
    check_share("linear_min_parameters", options["linear_min_parameters"], "[0, 1)", "Give a fraction.")
    for name in _IN_STEPS:
        if options[name] is not None and not options[name] >= 0:
            raise ArgumentError(
                name, f"{options[name]!r} is negative.", "Give multiples of warmup_steps, or 0."
            )


def _check_families(asked: Asked) -> None:
    """Refuse one threshold for a fraction to keep and for a bar that scores have to pass."""
    given = next((name for name in _THRESHOLDS if asked.options[name] is not None), None)
    fraction = next((n for n, part in asked.parts.items() if part.method in BY_FRACTION), None)
    bar = next((n for n, part in asked.parts.items() if part.method in _BY_SCORE), None)
    if given and fraction and bar:
        raise ArgumentError(
            given,
            f"is a fraction to keep for {fraction}_pruning_method ({asked.parts[fraction].method}), "
            f"a bar for scores for {bar}_pruning_method ({asked.parts[bar].method}).",
            "Take methods of one kind for both, or leave both thresholds alone: each then has its own.",
        )


def _check_part(name: str, part: PartOptions) -> None:
    for option, size in (("rows", part.rows), ("cols", part.cols)):
        if size < 0:
            raise ArgumentError(f"{name}_block_{option}", f"{size} is negative.", "Give a size, or 0.")
    for option, value in zip(_THRESHOLDS, (part.initial, part.final), strict=True):
        if part.method in BY_FRACTION and not 0 < value <= 1:
            raise ArgumentError(
                option, f"{value!r}: {part.method} keeps a fraction in (0, 1].", "Give e.g. 0.5."
            )
        if part.method == "sigmoid_threshold" and not 0 <= value < 1:
            raise ArgumentError(
                option, f"{value!r} is not in [0, 1), where a sigmoid can be above it.", "Give e.g. 0.1."
            )
    if part.method in BY_FRACTION and part.initial < part.final:
        raise ArgumentError(
            "initial_threshold, final_threshold",
            f"{part.method} would keep {part.initial!r} at first and {part.final!r} in the end.",
            "Lower final_threshold, or raise initial_threshold.",
        )


def _check_regularization(asked: Asked) -> None:
    kind, weight = (asked.options[n] for n in ("regularization", "regularization_final_lambda"))
    if kind == DISABLED:
        if "l0" in asked.methods:
            raise ArgumentError(
                "regularization",
                "the method l0 prunes by its penalty alone.",
                "Set it to 'l0', with a lambda.",
            )
        unread = _first(_LAMBDAS, asked.touched)
        if unread:
            raise ArgumentError(
                unread,
                "weighs a penalty, and regularization is disabled.",
                "Set that to l1 or l0, or drop this.",
            )
        return
    if not weight > 0:
        raise ArgumentError(
            "regularization_final_lambda", f"{weight!r} makes {kind} do nothing.", "Give a weight above 0."
        )
    if asked.methods <= {"magnitude"} and asked.options["ampere_pruning_method"] in (DISABLED, "magnitude"):
        raise ArgumentError("regularization", "magnitude has no scores to keep small.", "Disable it.")


def _check_starts(asked: Asked) -> None:
    """Refuse `sigmoid_threshold` where all scores start above the bar and no penalty pulls them down."""
    if asked.options["regularization"] != DISABLED:
        return
    scale = asked.options["mask_scale"] or 0.0
    # Kaiming's bound is 1 at most: one over the root of the inputs.
    lowest = {"constant": scale, "uniform": -abs(scale), "kaiming": -1.0}[asked.options["mask_init"]]
    start = 0.5 * (1.0 + math.tanh(0.5 * lowest))  # the sigmoid
    for name, part in asked.parts.items():
        if part.method == "sigmoid_threshold" and part.final < start:
            raise ArgumentError(
                "regularization",
                f"{name}_pruning_method: all scores start at {start:.3g} or more, the final threshold is "
                f"{part.final:g}, and no penalty pulls them down: nothing would be pruned.",
                "Set regularization to 'l1', with regularization_final_lambda, or raise final_threshold.",
            )


def _check_unread(asked: Asked) -> None:
    """Refuse what no mask that is asked for reads."""
    for name in ("dense", "attention"):
        size = _first((f"{name}_block_rows", f"{name}_block_cols"), asked.touched)
        if size and name not in asked.parts:
            raise ArgumentError(
                size, f"{name} matrices are not masked.", f"Set {name}_pruning_method, or drop it."
            )
    dense = asked.parts.get("dense")
    if dense is not None and dense.shape == "1d_alt" and "dense_block_cols" in asked.touched:
        raise ArgumentError(
            "dense_block_cols",
            "1d_alt closes whole channels.",
            "Drop it; dense_block_rows says how many close together.",
        )
    if asked.options["ampere_pruning_method"] != "annealing":
        temperature = _first(_TEMPERATURES, asked.touched)
        if temperature:
            raise ArgumentError(
                temperature, "is read by annealing alone.", "Set ampere_pruning_method to it, or drop this."
            )
    threshold = _first(_THRESHOLDS, asked.touched)
    if threshold and asked.methods <= {"l0"}:
        raise ArgumentError(threshold, "no method that is asked for has a threshold.", "Drop it.")


def _first(names: Iterable[str], touched: frozenset[str]) -> str | None:
    return next((name for name in names if name in touched), None)
