"""Carry out a decision: cut the model, and give it the class, the config and the plan of what it is now."""

from typing import Any

from torch import Tensor, nn

from patchers.discovery.discover import discover
from patchers.patching.patch import gated
from patchers.surgery import cut
from patchers.units import LAYERS, Structure
from patchers.zeros import fold_constants
from sparse_trainer.cut.alignment import renumber_alignment
from sparse_trainer.cut.config_changes import Cut
from sparse_trainer.cut.decision import Decision
from sparse_trainer.cut.model_class import record, take_class
from sparse_trainer.cut.record import density_reached, forget_request, make_plan, measures_of
from sparse_trainer.cut.self_check import check_same, outputs_of


def carry_out(
    model: Any, decision: Decision, *, check: bool, expected: list[Tensor] | None = None
) -> Structure:
    """Remove the units that a decision closes, in place, and attach the plan; return what there is afterwards.

    Args:
        model: The bare model, in which nothing hangs.
        check: Compare outputs before and after on a small batch.
        expected: Outputs to compare with, of a model whose zeros stand for gates and masks; else those of `model` with
            the units closed.

    Raises:
        SelfCheckError: the cut model does not compute what the masked one does.
        UnsupportedModelError: units that cannot go, or a result that no config can say.
    """
    if expected is None and check:
        expected = _masked_outputs(model, decision)
    structure, keep, length = decision.structure, decision.keep, decision.request.sequence_length
    before, reached = measures_of(model, structure, length), density_reached(model, decision)
    if decision.folds:
        fold_constants(model, structure, keep, lambda: outputs_of(model))
    cut(model, structure, keep)
    renumber_alignment(model, structure, keep)
    gone: dict[str, set[int]] = {}
    for group in structure.of([LAYERS]):
        if group.name in keep and not bool(keep[group.name].any()):
            gone.setdefault(group.stack, set()).add(group.layer)
    left = discover(model, decision.kinds)
    take_class(model, Cut(before=structure, after=left, gone=gone))
    after = measures_of(model, left, length)
    record(model, make_plan(model, decision, reached=reached, before=before, after=after))
    forget_request(model)
    if expected is not None:
        check_same(expected, model, what="the outputs before and after the cut", kept_K=decision.hidden_K)
    return left


def _masked_outputs(model: nn.Module, decision: Decision) -> list[Tensor]:
    if decision.folds:
        return outputs_of(model)
    with gated(model, decision.structure, decision.keep):
        return outputs_of(model, whole=decision.reaches_heads)
