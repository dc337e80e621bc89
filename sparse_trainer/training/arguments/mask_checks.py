"""Refuses options of masks that make no sense, contradict each other, or would be read by nobody."""

import math
from collections.abc import Iterable, Mapping
from typing import Final

from sparse_trainer.errors import ArgumentError
from sparse_trainer.fields import check_share
from sparse_trainer.training.mask_options import DISABLED, PARTS, MaskOptions, Part, PartOptions
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
    "speedup",
    "milliseconds",
    "latency_batch",
    "latency_phase",
    "latency_runtime",
    "latency_table",
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
    "reconstruct",
    "damping",
    "l0_learning_rate",
    "l0_multiplier_rate",
    "l0_warmup",
)


def check_mask_options(asked: MaskOptions, touched: frozenset[str]) -> None:
    """Raise `ArgumentError` for the first thing that cannot be meant.

    Args:
        touched: Flat options, of gates too, that differ from their defaults.
    """
    _check_rivals(touched)
    _check_ranges(asked)
    _check_families(asked.parts, touched)
    for name, part in asked.parts.items():
        _check_part(name, part)
    _check_regularization(asked, touched)
    _check_starts(asked)
    _check_unread(asked, touched)


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


def _check_ranges(asked: MaskOptions) -> None:
    check_share("linear_min_parameters", asked.least, "[0, 1)", "Give a fraction.")
    for name, value in zip(_IN_STEPS, asked.stretches, strict=True):
        if value is not None and not value >= 0:
            raise ArgumentError(name, f"{value!r} is negative.", "Give multiples of warmup_steps, or 0.")


def _check_families(parts: Mapping[Part, PartOptions], touched: frozenset[str]) -> None:
    """Refuse one threshold for a fraction to keep and for a bar that scores have to pass."""
    # Every preset gives both.
    given = _THRESHOLDS[0] if "preset" in touched else _first(_THRESHOLDS, touched)
    fraction = next((n for n, part in parts.items() if part.method in BY_FRACTION), None)
    bar = next((n for n, part in parts.items() if part.method in _BY_SCORE), None)
    if given and fraction and bar:
        raise ArgumentError(
            given,
            f"is a fraction to keep for {fraction}_pruning_method ({parts[fraction].method}), "
            f"a bar for scores for {bar}_pruning_method ({parts[bar].method}).",
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


def _check_regularization(asked: MaskOptions, touched: frozenset[str]) -> None:
    penalty, methods = asked.regularization, {part.method for part in asked.parts.values()}
    if penalty.kind == DISABLED:
        if "l0" in methods:
            raise ArgumentError(
                "regularization",
                "the method l0 prunes by its penalty alone.",
                "Set it to 'l0', with a lambda.",
            )
        unread = _first(_LAMBDAS, touched)
        if unread:
            raise ArgumentError(
                unread,
                "weighs a penalty, and regularization is disabled.",
                "Set that to l1 or l0, or drop this.",
            )
        return
    if not penalty.weight > 0:
        raise ArgumentError(
            "regularization_final_lambda",
            f"{penalty.weight!r} makes {penalty.kind} do nothing.",
            "Give a weight above 0.",
        )
    if methods <= {"magnitude"} and asked.ampere in (DISABLED, "magnitude"):
        raise ArgumentError("regularization", "magnitude has no scores to keep small.", "Disable it.")


def _check_starts(asked: MaskOptions) -> None:
    """Refuse `sigmoid_threshold` where all scores start above the bar and no penalty pulls them down."""
    if asked.regularization.kind != DISABLED:
        return
    scale = asked.scale or 0.0
    # Kaiming's bound is 1 at most: one over the root of the inputs.
    lowest = {"constant": scale, "uniform": -abs(scale), "kaiming": -1.0}[asked.init]
    start = 0.5 * (1.0 + math.tanh(0.5 * lowest))  # the sigmoid
    for name, part in asked.parts.items():
        if part.method == "sigmoid_threshold" and part.final < start:
            raise ArgumentError(
                "regularization",
                f"{name}_pruning_method: all scores start at {start:.3g} or more, the final threshold is "
                f"{part.final:g}, and no penalty pulls them down: nothing would be pruned.",
                "Set regularization to 'l1', with regularization_final_lambda, or raise final_threshold.",
            )


def _check_unread(asked: MaskOptions, touched: frozenset[str]) -> None:
    """Refuse what no mask that is asked for reads."""
    for name in PARTS:
        size = _first((f"{name}_block_rows", f"{name}_block_cols"), touched)
        if size and name not in asked.parts:
            raise ArgumentError(
                size, f"{name} matrices are not masked.", f"Set {name}_pruning_method, or drop it."
            )
    dense = asked.parts.get("dense")
    if dense is not None and dense.shape == "1d_alt" and "dense_block_cols" in touched:
        raise ArgumentError(
            "dense_block_cols",
            "1d_alt closes whole channels.",
            "Drop it; dense_block_rows says how many close together.",
        )
    if asked.ampere != "annealing":
        temperature = _first(_TEMPERATURES, touched)
        if temperature:
            raise ArgumentError(
                temperature, "is read by annealing alone.", "Set ampere_pruning_method to it, or drop this."
            )
    threshold = _first(_THRESHOLDS, touched)
    if threshold and all(part.method == "l0" for part in asked.parts.values()):
        raise ArgumentError(threshold, "no method that is asked for has a threshold.", "Drop it.")


def _first(names: Iterable[str], touched: frozenset[str]) -> str | None:
    return next((name for name in names if name in touched), None)
