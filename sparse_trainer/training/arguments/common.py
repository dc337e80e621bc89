"""What most runs ask for: how much of what stays, when, by which score, with which teacher."""

from dataclasses import dataclass

from sparse_trainer.fields import Multiple, PerKind, option


@dataclass(kw_only=True)
class CommonArguments:
    """Options of gates and their budget, and of the teacher. The last base of all: its fields come first in a help."""

    density: PerKind = option(
        0.5,
        'Fraction of the prunable part to keep, in (0, 1]; or of the units of each kind: {"heads": 0.75}.',
    )
    scoring: str = option(
        "movement",
        "Criterion: movement, layer_gate, l0, taylor, magnitude, random; or one of one-shot pruning, such"
        " as wanda, taken once before training.",
    )
    target: str = option("params", "What density counts: params, macs (per token) or units.")
    units: list[str] | None = option(
        None, "Kinds of unit to prune; default: the kinds in density, else those of the criterion."
    )
    scope: str = option(
        "global", "global (over the whole model), layer (each layer meets it) or uniform (equal widths)."
    )
    multiple_of: Multiple | None = option(
        None,
        "Kept channels are multiples of this; or one number per kind. Default, and auto: 8 in experts, else 1.",
    )
    min_keep: PerKind = option(1, "Heads and channels that every layer keeps; or one number per kind.")
    exclude: list[str] = option([], "Patterns of group names that stay dense, e.g. layer.0 or *.heads.")
    include: list[str] = option(
        [], "Patterns of the only groups to prune, e.g. language_model or vision_tower; none = all."
    )
    standardize: str | None = option(
        None,
        "Makes scores comparable: none, cost, share, zscore_layer, zscore_global, median_layer, log_layer, rank_layer.",
    )
    sequence_length: int = option(128, "Tokens per sequence, for target macs.")
    pruning_warmup_ratio: float = option(0.1, "Fraction of training, at its start, in which all is kept.")
    cooldown_ratio: float = option(0.3, "Fraction of training, at the end, with the final structure.")
    score_learning_rate: float = option(1e-2, "Learning rate of learned scores.")
    update_every: int = option(1, "Optimizer steps between two selections.")
    taylor_order: int = option(1, "taylor: 1 = |g|, 2 = g^2 per step (Fisher).")
    taylor_decay: float = option(0.99, "taylor: decay of the running saliency per step.")
    magnitude_norm: int = option(2, "magnitude: 1 or 2.")
    gate_epsilon: float = option(0.1, "layer_gate: epsilon of the gates at the start.")
    gate_epsilon_final: float = option(1e-4, "layer_gate: epsilon at the end.")
    gate_penalty: float = option(10.0, "layer_gate: weight of the budget penalty.")
    calibration_samples: int = option(
        128, "Training rows on which criteria of one-shot pruning, such as wanda, score units first."
    )
    pruning_seed: int = option(42, "Seed of what random and l0 draw.")
    distil_teacher_name_or_path: str | None = option(
        None, "Teacher: a path or hub id, or 'self' = the model before pruning."
    )
    distil_alpha_ce: float = option(0.1, "Weight of the task loss beside a teacher.")
    distil_alpha_teacher: float = option(0.9, "Weight of the logits distillation.")
    distil_temperature: float = option(2.0, "Temperature of the logits distillation.")
