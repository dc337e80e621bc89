"""A model under test: decisions about it, and what it says gated and cut."""

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.patching.patch import gated
from patchers.surgery import cut
from patchers.units import LAYERS, Group, Structure
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import make_plan, measures_of
from sparse_trainer.errors import SparseTrainerError
from sparse_trainer.inputs.make import forward_outputs

# Shape legend: U = units of a group.

_INSIDE_FLOAT32 = 2e-6
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 5e-2}


@dataclass(kw_only=True)
class Report:
    """What was found in a model, and which checks it passed."""

    model_type: str
    is_built: bool = True
    """False where no model of the type can be built or run here; `reason` says why."""
    architecture: str = ""
    units: dict[str, int] = field(default_factory=dict)
    """Units by kind."""
    forms: list[str] = field(default_factory=list)
    untouched: dict[str, str] = field(default_factory=dict)
    """Reason by linear or module left alone inside the blocks, layer numbers starred."""
    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Reason by check."""
    unreached: list[str] = field(default_factory=list)
    """Stacks that the inputs do not pass: their towers are model types of their own."""
    notes: set[str] = field(default_factory=set)
    reason: str = ""
    """Why nothing was checked."""

    @property
    def ok(self) -> bool:
        """Tell whether the model can be pruned, and every check passed."""
        return not self.reason and not self.failed and bool(self.passed)

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {**asdict(self), "notes": sorted(self.notes)}


class CheckError(SparseTrainerError):
    """A law that does not hold for a model."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model under test."""

    reached: set[str]
    model: PreTrainedModel
    structure: Structure
    inputs: dict[str, Tensor]
    before: list[Tensor]
    folder: Path | None
    notes: set[str] = field(default_factory=set)

    def fresh(self) -> PreTrainedModel:
        """Return a copy to cut."""
        return copy.deepcopy(self.model)

    def keep(self, groups: Iterable[Group], seed: int) -> dict[str, Tensor]:
        """Return a random decision that leaves at least one unit in each group, and takes one where it can."""
        generator = torch.Generator().manual_seed(seed)
        keep = {}
        for group in (group for group in groups if group.stack in self.reached):
            keep_U = torch.rand(group.num_units, generator=generator) > 0.4
            first = int(torch.randint(group.num_units, (1,), generator=generator))
            if group.num_units > 1:
                keep_U[first], keep_U[(first + 1) % group.num_units] = True, False
            else:
                keep_U[:] = True
            spare = group.min_units - int(keep_U.sum())
            spare = max(spare, -int(keep_U.sum()) % group.multiple_of)
            keep_U[(~keep_U).nonzero().flatten()[: max(0, spare)]] = True
            keep[group.name] = keep_U
        return keep

    def compact(self, keep: Mapping[str, Tensor]) -> PreTrainedModel:
        """Return a copy cut by a plan, handed in as JSON values, as a user would."""
        decision = Decision(structure=self.structure, keep=keep, request=Request(method="conformance"))
        sizes = measures_of(self.model, self.structure, 128)
        plan = make_plan(self.model, decision, before=sizes, after=sizes)
        return optimize_model(self.fresh(), plan=json.loads(plan.to_json()), inplace=True, check=False)

    def one_per_stack(self) -> list[Group]:
        """Return a layer of each stack, the second where another one of its sort stays."""
        chosen: dict[str, Group] = {}
        layers = self.structure.of([LAYERS])
        for group in layers:
            alike = [g for g in layers if self._sort(g) == self._sort(group)]
            if (
                group.stack in self.reached
                and len(alike) > 1
                and (group.stack not in chosen or group.layer == 1)
            ):
                chosen[group.stack] = group
        return list(chosen.values())

    def _sort(self, layer: Group) -> tuple[object, ...]:
        block = self.model.get_submodule(layer.block)
        kinds = tuple(g.kind for g in self.structure.groups if g.block == layer.block)
        return (layer.stack, kinds, *(type(module) for module in block.modules()))

    def masked(self, keep: Mapping[str, Tensor], model: PreTrainedModel | None = None) -> list[Tensor]:
        """Return the outputs with units closed by gates."""
        model = self.model if model is None else model
        with gated(model, self.structure, keep):
            return forward_outputs(model, self.inputs)

    def changed(self, outputs: list[Tensor]) -> bool:
        """Tell whether outputs are others than those of the whole model: else a check on them proves nothing."""
        return not all(torch.equal(a, b) for a, b in zip(outputs, self.before, strict=True))

    def equals_cut(self, keep: Mapping[str, Tensor]) -> bool:
        """Raise unless closing units equals cutting them; tell whether that proves anything."""
        smaller = self.fresh()
        expected = self.masked(keep)
        cut(smaller, self.structure, keep)
        self.same(forward_outputs(smaller, self.inputs), expected)
        return self.changed(expected)

    def same(self, found: list[Tensor], expected: list[Tensor]) -> None:
        """Raise unless outputs agree up to rounding."""
        if not check_alike(found, expected):
            self.notes.add("float32 inside")


def cast(inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return inputs whose numbers are of a dtype; ids and masks stay."""
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}


def check_alike(found: list[Tensor], expected: list[Tensor]) -> bool:
    """Raise unless outputs agree up to rounding; return False where only up to that of float32 inside the model."""
    exact = True
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            # A map of attention, with a row per head.
            continue
        finite = other.nan_to_num(0, 0, 0)
        scale = max(1.0, float(finite.abs().max())) if other.numel() else 1.0
        near = _TOLERANCES.get(other.dtype, 2e-4) * scale
        if not torch.allclose(one, other, rtol=0, atol=near, equal_nan=True):
            # Some models take their softmax or their routing in float32 whatever they are cast to.
            near = max(near, _INSIDE_FLOAT32 * scale)
            torch.testing.assert_close(one, other, rtol=0, atol=near, equal_nan=True)
            exact = False
    return exact


def reached_stacks(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> set[str]:
    """Return the stacks whose blocks a forward pass runs."""
    found: set[str] = set()
    handles = [
        model.get_submodule(f"{stack.path}.{layer}").register_forward_hook(
            lambda *_, path=stack.path: found.add(path)
        )
        for stack in discover(model).stacks
        for layer in range(stack.size)
    ]
    try:
        forward_outputs(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
