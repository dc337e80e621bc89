"""The core of fine-pruning, without a Trainer: patch, score, select, step by step."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from patchers import Gate, Structure, discover, patch
from sparse_trainer.args import SparseTrainingArguments
from sparse_trainer.budget import Selector
from sparse_trainer.cost import unit_cost
from sparse_trainer.criteria import CRITERIA
from sparse_trainer.distillation import Distiller
from sparse_trainer.errors import ArgumentError, NonFiniteError, UnsupportedModelError
from sparse_trainer.record import Request, remember_request
from sparse_trainer.standardize import STANDARDIZERS


@dataclass(frozen=True, kw_only=True)
class ExtraLosses:
    """What fine-pruning adds to a task loss."""

    distillation: Tensor | None
    penalty: Tensor | None


class ModelPatchingCoordinator:
    """Patches a model and closes its gates while somebody else trains it.

    In a loop: `patch_model` once; `begin` once; after the last backward of a step `observe`; after the optimizer's step
    `step`. `loss` combines the task loss with distillation and penalty. All state that a restart needs lives in the
    model: save and load its state dict.

    Args:
        sparse_args: What to prune and how.
        teacher: A model to learn from; else `sparse_args.distil_teacher_name_or_path` says which, if any.
    """

    def __init__(
        self, sparse_args: SparseTrainingArguments | None = None, *, teacher: nn.Module | None = None
    ) -> None:
        self.args = SparseTrainingArguments() if sparse_args is None else sparse_args
        self.teacher = teacher
        self.criterion = CRITERIA[self.args.scoring](self.args)
        self.total_steps, self.current_step = 0, 0
        self._reset_statistics()

    def _reset_statistics(self) -> None:
        self._finite: Tensor | None = None
        self._threshold: Tensor | None = None
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def patch_model(self, model: nn.Module) -> nn.Module:
        """Find the units of `model`, hang gates on them (all open) and make the teacher ready; return the model.

        Raises:
            UnsupportedModelError: no family knows the model, or nothing of it is left to prune.
            BudgetError: the budget cannot be met.
        """
        self.structure: Structure = discover(model, self.args.kinds, self.args.exclude, self.args.include)
        if not self.structure.groups:
            raise UnsupportedModelError(
                type(model).__name__,
                f"no prunable group of kind {', '.join(self.args.kinds)} is left.",
                "Exclude less, or name other units.",
            )
        target, length = self.args.cost_target, self.args.sequence_length
        self.costs = {g.name: unit_cost(model, g, target, length) for g in self.structure.groups}
        self.selector = Selector(self.structure.groups, self.costs, self.args.budget)
        self.distiller = self._make_distiller(model)
        self.model = model
        self.gates: dict[str, Gate] = patch(model, self.structure, self.criterion.make_gate)
        remember_request(model, self._request())
        self.criterion.advance(self.gates, 0.0, False)
        return model

    def _request(self) -> Request:
        """Return what plans and cards quote of the arguments."""
        asked = self.args.density
        return Request(
            method=self.args.scoring,
            target=self.args.cost_target,
            scope=self.args.scope,
            density=dict(asked) if isinstance(asked, Mapping) else float(asked),
            sequence_length=self.args.sequence_length,
        )

    def _make_distiller(self, model: nn.Module) -> Distiller | None:
        source = self.args.distil_teacher_name_or_path
        teacher = self.teacher
        if teacher is model:
            raise ArgumentError("teacher", "it is the student itself.", "Pass a copy, or 'self'.")
        if teacher is None and source == "self":
            teacher = copy.deepcopy(model)
        elif teacher is None and source is not None:
            teacher = type(model).from_pretrained(source)  # type: ignore[attr-defined]
        if teacher is None:
            return None
        shifted = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        return Distiller(teacher, self.args, shifted=shifted)

    def score_parameters(self) -> list[nn.Parameter]:
        """Return the parameters behind the gates, learned or merely read."""
        return [gate.score_U for gate in self.gates.values() if gate.score_U is not None]

    def parameter_groups(self, **options: Any) -> list[dict[str, Any]]:
        """Return optimizer groups: the weights under `options`, learned scores with their own rate and no decay."""
        scores = {id(p) for p in self.score_parameters()}
        weights = [p for p in self.model.parameters() if p.requires_grad and id(p) not in scores]
        return [{"params": weights, **options}, *self.score_groups()]

    def score_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer group of the learned scores, if the criterion learns any."""
        if not self.criterion.learns:
            return []
        rate = self.args.score_learning_rate
        group = {"params": self.score_parameters(), "lr": rate, "weight_decay": 0.0}
        return [{**group, **self.criterion.optimizer_options}]

    def begin(self, total_steps: int, step: int = 0) -> None:
        """Start, or resume at `step`, a training of `total_steps` optimizer steps."""
        if total_steps < 1:
            raise ArgumentError("total_steps", f"{total_steps} is not positive.", "Give the optimizer steps.")
        self.total_steps, self.current_step = total_steps, step
        reference = next(iter(self.gates.values())).keep_U
        if self.distiller is not None:
            self.distiller.teacher.to(reference.device)
        self._reset_statistics()

    @property
    def progress(self) -> float:
        """Fraction of training that is done."""
        return self.current_step / self.total_steps if self.total_steps else 0.0

    @property
    def finished(self) -> bool:
        """Whether the final structure is reached."""
        return self.total_steps > 0 and self.args.schedule.frozen(self.progress)

    def observe(self) -> None:
        """Read the mask gradients of one optimizer step: call after its last backward, before clipping."""
        self.criterion.observe(self.gates)

    @torch.no_grad()
    def step(self, step: int | None = None) -> None:
        """Move to the state after optimizer step number `step` (counted from 1), and select anew."""
        was_frozen = self.finished
        self.current_step = self.current_step + 1 if step is None else step
        self.criterion.advance(self.gates, self.progress, self.finished)
        due = self.current_step % self.args.update_every == 0 or self.finished
        if due and not was_frozen:
            self.select()

    @torch.no_grad()
    def select(self) -> None:
        """Open and close the gates by their scores as they are now, under the budget of this moment."""
        raw = self.criterion.scores(self.model, self.structure, self.gates)
        scores = STANDARDIZERS[self.args.standardize or self.criterion.standardize](raw, self.costs)
        finite = torch.stack([score_U.isfinite().all() for score_U in scores.values()]).all()
        self._finite = finite if self._finite is None else self._finite & finite
        selection = self.selector.select(scores, self.args.schedule.remaining(self.progress))
        self._threshold = selection.threshold
        for name, gate in self.gates.items():
            gate.set_keep(selection.keep[name])

    @property
    def density_target(self) -> float:
        """Fraction of the prunable cost that the schedule allows now; of several, by cost."""
        budget, remaining = self.args.budget, self.args.schedule.remaining(self.progress)
        cost = sum(
            budget.density_of(g.kind) * g.num_units * self.costs[g.name] for g in self.structure.groups
        )
        final = cost / self.selector.total
        return final + (1.0 - final) * remaining

    def extra_losses(self, inputs: Mapping[str, Any], outputs: Any) -> ExtraLosses:
        """Return what fine-pruning adds for one batch."""
        distillation = penalty = None
        if self.distiller is not None:
            distillation = self.distiller.loss(inputs, outputs, self._open_layers())
        if not self.finished:
            penalty = self.criterion.penalty(self.gates, self.costs, self.density_target)
        self._remember("distillation_loss", distillation)
        self._remember("penalty", penalty)
        return ExtraLosses(distillation=distillation, penalty=penalty)

    def _open_layers(self) -> Tensor | None:
        """Return which layers of the stack are kept, shape [L], or None where no layer can close."""
        layers = self.structure.of(["layers"])
        if not layers or len(self.structure.stacks) != 1:
            return None
        by_layer = {g.layer: self.gates[g.name].keep_U for g in layers}
        always = torch.ones_like(next(iter(by_layer.values())))
        return torch.cat([by_layer.get(layer, always) for layer in range(self.structure.stacks[0].size)])

    @property
    def needs_hidden_states(self) -> bool:
        """Whether the model must be called with `output_hidden_states=True`."""
        return self.distiller is not None and self.distiller.needs_hidden_states

    @property
    def task_weight(self) -> float:
        """Weight of the task loss: `distil_alpha_ce` beside a teacher, else 1."""
        return self.args.distil_alpha_ce if self.distiller is not None else 1.0

    def loss(self, task_loss: Tensor, inputs: Mapping[str, Any], outputs: Any) -> Tensor:
        """Return the loss to train on, for a loop without gradient accumulation."""
        extra = self.extra_losses(inputs, outputs)
        total = self.task_weight * task_loss
        for part in (extra.distillation, extra.penalty):
            total = total if part is None else total + part
        return total

    def metrics(self) -> dict[str, float]:
        """Return what to log, averaged since the last call. This is where the host waits for the device.

        Raises:
            NonFiniteError: scores became NaN or infinite.
        """
        self.check_finite()
        logged = {"density": self.density_reached(), "density_target": self.density_target}
        if self._threshold is not None:
            logged["threshold"] = float(self._threshold)
        for name, (total, count) in self._sums.items():
            logged[name] = float(total) / count
        self._sums = {}
        return logged

    def check_finite(self) -> None:
        """Raise `NonFiniteError` if a score was NaN or infinite at any selection so far."""
        if self._finite is not None and not bool(self._finite):
            scores = self.criterion.scores(self.model, self.structure, self.gates)
            bad = [name for name, score_U in scores.items() if not bool(score_U.isfinite().all())]
            raise NonFiniteError(
                f"step {self.current_step}",
                f"scores are NaN or infinite in {', '.join(bad[:3]) or 'a group'}.",
                "Training stopped before saving over the last checkpoint. Lower the learning rates or check the data.",
            )

    def density_reached(self) -> float:
        """Return the fraction of the prunable cost behind open gates now."""
        kept = sum(float(gate.keep_U.sum()) * self.costs[name] for name, gate in self.gates.items())
        return kept / self.selector.total

    def report(self) -> dict[str, Any]:
        """Return asked and reached: what plans and cards quote."""
        asked = self.args.density
        return {
            "scoring": self.args.scoring,
            "target": self.args.target,
            "scope": self.args.scope,
            "density_asked": dict(asked) if isinstance(asked, Mapping) else float(asked),
            "density_reached": self.density_reached(),
            "kept": {name: int(gate.keep_U.sum()) for name, gate in self.gates.items()},
        }

    def _remember(self, name: str, value: Tensor | None) -> None:
        if value is not None:
            total, count = self._sums.get(name, (torch.zeros_like(value), 0))
            self._sums[name] = (total + value.detach(), count + 1)
