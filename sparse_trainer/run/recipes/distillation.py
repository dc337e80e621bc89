"""Section `distillation` of a recipe: whom a model learns from that is not pruned in this run."""

from dataclasses import dataclass

from sparse_trainer.errors import ArgumentError
from sparse_trainer.fields import check_counts, check_not_negative, check_positive
from sparse_trainer.training.options import DistillationOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherOptions:
    """A teacher, and how much is learned from it: for runs with `pruning: null`."""

    teacher: str
    """Folder or hub id of a model of the same task and vocabulary, e.g. the dense one that this one was cut from."""
    alpha_ce: float = 0.1
    """Weight of the task loss."""
    alpha_teacher: float = 0.9
    """Weight of the distance between the answers."""
    alpha_hidden: float = 0.0
    """Weight of the distance between the hidden states; the teacher has as many layers, and as wide ones."""
    tail_layers: int | None = None
    """Of the hidden states, compare those after the last so many layers only: then the teacher may have more layers."""
    temperature: float = 2.0
    """Of the answers, when they are compared."""

    def __post_init__(self) -> None:
        for name in ("alpha_ce", "alpha_teacher", "alpha_hidden"):
            check_not_negative(name, getattr(self, name))
        check_positive("temperature", self.temperature)
        if self.tail_layers is not None:
            check_counts(tail_layers=self.tail_layers)
            if self.alpha_hidden == 0:
                raise ArgumentError(
                    "tail_layers", "alpha_hidden is 0: no hidden states are compared.", "Raise it."
                )
        if self.alpha_teacher + self.alpha_hidden == 0:
            raise ArgumentError(
                "alpha_teacher, alpha_hidden",
                "both are 0, and the teacher would teach nothing.",
                "Raise one.",
            )

    @property
    def weights(self) -> DistillationOptions:
        """How the losses are weighed; the teacher is loaded by who trains."""
        return DistillationOptions(
            teacher=None,
            alpha_task=self.alpha_ce,
            alpha_logits=self.alpha_teacher,
            alpha_hidden=self.alpha_hidden,
            temperature=self.temperature,
            layer_map="fixed",
            in_order=False,
            tail_layers=self.tail_layers,
        )
