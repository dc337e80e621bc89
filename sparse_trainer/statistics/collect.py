"""One streaming pass over a calibration set."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from patchers.patching.gates import Gate
from patchers.patching.patch import gates_by_group, patch, unpatch
from patchers.units import CHANNELS, HEADS, Group, Structure
from sparse_trainer.errors import DataError, UnsupportedModelError
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.statistics.calibration import Batches, as_batches, count_real
from sparse_trainer.statistics.elements import ElementCollector
from sparse_trainer.statistics.forward import Run, StopForward
from sparse_trainer.statistics.hooks import HookContext
from sparse_trainer.statistics.mask_gradients import GateGradientCollector, MaskGradientCollector
from sparse_trainer.statistics.moments import MomentCollector
from sparse_trainer.statistics.requests import (
    Elements,
    MaskGradients,
    Moments,
    SequenceMeans,
    Statistic,
    Statistics,
    unsupported_reason,
)


def _stop(module: nn.Module, args: Any) -> None:
    raise StopForward


@dataclass
class _Collectors:
    moments: dict[str, MomentCollector] = field(default_factory=dict)
    gradients: dict[str, MaskGradientCollector] = field(default_factory=dict)
    gated: dict[str, GateGradientCollector] = field(default_factory=dict)
    elements: ElementCollector | None = None

    def all(self) -> Iterator[Any]:
        yield from self.moments.values()
        yield from self.gradients.values()
        yield from self.gated.values()
        if self.elements is not None:
            yield self.elements


def collect(
    model: Any,
    structure: Structure,
    calibration: Iterable[Mapping[str, Any]] | Batches,
    requests: Iterable[Statistic],
    *,
    stop_early: bool = False,
    one_by_one: bool = False,
) -> Statistics:
    """Run a calibration set through a model and return what was asked for, and nothing else.

    The model is put in evaluation mode and its weights are frozen for the time of the pass. Padding counts nowhere,
    labels of -100 bring no loss, and the result does not depend on how sequences are shared out over batches.

    Args:
        stop_early: End every forward pass at the last group's consumer. Only where no loss is needed.
        one_by_one: Run one sequence at a time, also where nothing asks for it.

    Raises:
        DataError: the calibration set is empty or does not fit the model.
        NonFiniteError: NaN or infinity; names the group and the batch.
        UnsupportedModelError: a need cannot be met for a group.
    """
    wanted = tuple(dict.fromkeys(requests))
    if not wanted or not structure.groups:
        return Statistics()
    _check_collectable(structure.groups, wanted)
    batches = as_batches(model, calibration)
    flight = HookContext(is_encoder_decoder=batches.is_encoder_decoder)
    collectors = _make(flight, structure.groups, wanted)
    losses = list(dict.fromkeys(n.loss for n in wanted if isinstance(n, Elements)))
    if any(isinstance(n, MaskGradients) for n in wanted) and "labels" not in losses:
        losses.insert(0, "labels")
    tokens, sequences = torch.zeros((), dtype=torch.long), 0
    run = Run(model, structure.groups, labelled="labels" in losses, differentiable=bool(losses))
    with (
        torch.inference_mode(False),
        evaluating(model),
        _frozen(model),
        _gates(model, structure, collectors.gated),
        ExitStack() as stack,
    ):
        for collector in collectors.all():
            for handle in collector.attach(model):
                stack.callback(handle.remove)
        if stop_early and not losses:
            last = model.get_submodule(structure.groups[-1].consumer)
            stack.callback(last.register_forward_pre_hook(_stop).remove)
        alone = one_by_one or bool(collectors.gated)
        alone = alone or any("experts" in g.consumer for g in structure.groups)
        for batch in batches.read(labelled="labels" in losses, one_by_one=alone):
            flight.batch = batch
            loss = run.forward(batch)
            for number, kind in enumerate(losses):
                flight.loss = kind
                value = (
                    loss if kind == "labels" else sum(flight.norms, torch.zeros((), device=batches.device))
                )
                # Nothing asks for a gradient where no group was reached, or no label counts.
                if value is not None and value.requires_grad:
                    value.backward(retain_graph=number + 1 < len(losses))
            flight.norms.clear()
            for collector in collectors.all():
                collector.finish_batch()
            tokens, sequences = tokens.to(batches.device) + count_real(batch), sequences + batch.rows
    flight.check()
    _check_reached(structure.groups, collectors)
    return _result(collectors, wanted, int(tokens), sequences)


def _check_collectable(groups: Sequence[Group], requests: Sequence[Statistic]) -> None:
    """Raise `UnsupportedModelError` where a statistic does not exist for a group."""
    for group in groups:
        reason = unsupported_reason(group, requests)
        if reason is not None:
            raise UnsupportedModelError(group.name, f"{reason}.", "Leave it out, or ask for mask gradients.")


def _make(flight: HookContext, groups: Sequence[Group], requests: Sequence[Statistic]) -> _Collectors:
    made = _Collectors()
    moments = [n for n in requests if isinstance(n, Moments)]
    means = any(isinstance(n, SequenceMeans) for n in requests)
    if moments or means:
        covariance = any(n.covariance for n in moments)
        made.moments = {
            g.name: MomentCollector(
                flight, g, moments=bool(moments), covariance=covariance, sequence_means=means
            )
            for g in groups
        }
    if any(isinstance(n, MaskGradients) for n in requests):
        for g in groups:
            if g.kind in (HEADS, CHANNELS) and g.consumer_tensor is None:
                made.gradients[g.name] = MaskGradientCollector(flight, g)
            else:
                made.gated[g.name] = GateGradientCollector(flight, g)
    elements = [n for n in requests if isinstance(n, Elements)]
    if elements:
        made.elements = ElementCollector(flight, groups, elements)
    return made


def _check_reached(groups: Sequence[Group], made: _Collectors) -> None:
    """Raise `DataError` where no batch came past a group."""
    missed = [name for name, collector in made.moments.items() if not collector.is_reached]
    missed += [name for name, collector in made.gradients.items() if not collector.sums.is_reached]
    missed += [name for name, collector in made.gated.items() if not collector.sums.is_reached]
    if made.elements is not None:
        missed += [g.name for sums in made.elements.sums.values() for g in groups if g.name not in sums]
    if missed:
        raise DataError(
            missed[0], "no calibration batch ran through it.", "Give the inputs that reach it, or protect it."
        )


def _result(made: _Collectors, requests: Sequence[Statistic], tokens: int, sequences: int) -> Statistics:
    return Statistics(
        tokens=tokens,
        sequences=sequences,
        moments={n: c.moments() for n, c in made.moments.items() if c.wants_moments},
        sequence_means={n: c.means_I for n, c in made.moments.items() if c.wants_means},
        mask_gradients={
            **{name: collector.result() for name, collector in made.gradients.items()},
            **{name: collector.result() for name, collector in made.gated.items()},
        },
        elements={} if made.elements is None else made.elements.sums,
    )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no weight ask for a gradient for the time of a `with` block."""
    asked = [p for p in model.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def _gates(
    model: nn.Module, structure: Structure, collectors: Mapping[str, GateGradientCollector]
) -> Iterator[None]:
    """Give these groups gates with a score that takes the gradient; a model that is patched already lends its own."""
    if not collectors:
        yield
        return
    hung = gates_by_group(model, structure)
    if not hung:
        chosen = Structure(
            groups=tuple(g for g in structure.groups if g.name in collectors), stacks=structure.stacks
        )
        hung = patch(model, chosen, lambda g: Gate(g.num_units, scored=True))
        try:
            yield from _lent(hung, collectors)
        finally:
            unpatch(model)
        return
    yield from _lent(hung, collectors)


def _lent(gates: Mapping[str, Gate], collectors: Mapping[str, GateGradientCollector]) -> Iterator[None]:
    """Lend every collector its gate, with a fresh score for the time of the pass."""
    before = {name: gates[name].score_U for name in collectors}
    for name, collector in collectors.items():
        collector.gate = gates[name]
        gates[name].score_U = nn.Parameter(torch.zeros_like(gates[name].keep_U))
    try:
        yield
    finally:
        for name, score_U in before.items():
            gates[name].score_U = score_U
