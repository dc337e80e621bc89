"""Gates that learn on frozen weights: a short training by transformers' `Trainer` of one score per unit."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from patchers.patching.gates import DrawnGate, Gate
from patchers.patching.patch import patch, unpatch
from patchers.units import Group, Structure
from sparse_trainer.criteria.calibration.base import LearnsGates
from sparse_trainer.errors import DataError, NonFiniteError, UnsupportedModelError
from sparse_trainer.inputs.evaluating import evaluating, frozen
from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.forward import ForwardPass

# Shape legend: U = units of a group, or of all, P = forward passes.


def learn_gates(
    model: Any,
    structure: Structure,
    batches: Batches,
    options: LearnsGates,
    *,
    costs: Mapping[str, int],
    density: float,
) -> dict[str, Tensor]:
    """Return the score, shape [U], that gates learned from the model's own loss, by name of the group.

    The model is in evaluation mode meanwhile; weights, buffers, config, modes and random states are afterwards what
    they were, and there are no gates in it.

    Args:
        structure: The groups that may go.
        costs: Cost of one unit, by group name.
        density: Fraction of the whole cost that stays.

    Raises:
        DataError: There is no loss, or the calibration set does not fit the model, or never runs through a group.
        NonFiniteError: NaN or infinity.
        UnsupportedModelError: The model lies on several devices, or on one that `Trainer` does not train on.
    """
    sequences = [batch for batch in batches.read(labelled=True, one_by_one=True) if batch.terms is not None]
    gates: dict[str, DrawnGate] = {}

    def make_gate(group: Group) -> Gate:
        gates[group.name] = DrawnGate(group.num_units)
        return gates[group.name]

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        evaluating(model),
        frozen(model),
        _own_randomness(),
    ):
        try:
            patch(model, structure, make_gate)
            forward = ForwardPass(model, (), labelled=True, differentiable=True)
            learner = _Learner(forward, gates, options, costs, density)
            _check_reached(learner, sequences)
            _train(learner, sequences, options, batches.device)
        finally:
            unpatch(model)
    return {name: _score(gate).detach() for name, gate in gates.items()}


def _score(gate: Gate) -> Tensor:
    assert gate.score_U is not None
    return gate.score_U


@final
class _Learner(nn.Module):
    """All that `Trainer` sees of the model: its gates, and the loss behind them."""

    def __init__(
        self,
        run: ForwardPass,
        gates: dict[str, DrawnGate],
        options: LearnsGates,
        costs: Mapping[str, int],
        density: float,
    ) -> None:
        super().__init__()
        self.run, self.options, self.density = run, options, density
        self.by_name = gates
        self.gates = nn.ModuleList(gates.values())
        self.sizes = [gate.keep_U.numel() for gate in gates.values()]
        device = next(iter(gates.values())).keep_U.device
        cost_U = torch.tensor([costs[name] for name in gates], dtype=torch.float64).repeat_interleave(
            torch.tensor(self.sizes)
        )
        self.cost_U = (cost_U / cost_U.sum()).to(device, torch.float32)
        generator = torch.Generator().manual_seed(options.seed)
        uniform_PU = torch.rand(options.steps * options.batch_size, len(cost_U), generator=generator)
        self.uniform_PU = uniform_PU.clamp(1e-6, 1 - 1e-6).to(device)
        self.passes = 0

    def forward(self, sequences: Sequence[Batch]) -> dict[str, Tensor]:
        """Return the mean loss per label of one sequence behind gates that were drawn for it."""
        [sequence] = sequences
        score_U = torch.cat([_score(gate) for gate in self.by_name.values()])
        value_U = self.options.draw(score_U, self.uniform_PU[self.passes], self.cost_U, self.density)
        self.passes += 1
        for gate, part_U in zip(self.by_name.values(), value_U.split(self.sizes), strict=True):
            gate.value_U = part_U
        return {"loss": self.mean_loss(sequence)}

    def mean_loss(self, sequence: Batch) -> Tensor:
        """Return the model's own loss."""
        loss = self.run(sequence)
        assert loss is not None
        assert sequence.terms is not None
        return loss / sequence.terms


@final
class _NormalizedSGD(torch.optim.SGD):
    """Gradient descent with momentum, the gradient of all parameters together normalised to length 1."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        length = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        for gradient in gradients:
            gradient.div_(length.clamp_min(torch.finfo(length.dtype).tiny))
        super().step()


@torch.no_grad()
def _check_reached(learner: _Learner, sequences: Sequence[Batch]) -> None:
    """Run sequences until each gate was read; raise where one never is, or where the loss is not finite before that."""
    read: set[Gate] = set()
    gates = learner.by_name
    hooks = [gate.register_forward_hook(lambda gate, *_: read.add(gate)) for gate in gates.values()]
    for sequence in sequences:
        if not bool(learner.mean_loss(sequence).isfinite()):
            raise NonFiniteError(
                f"calibration batch {sequence.number}",
                "its loss is NaN or infinite before anything is learned.",
                "Calibrate in float32, or leave this batch out.",
            )
        if len(read) == len(gates):
            break
    for hook in hooks:
        hook.remove()
    missed = next((name for name, gate in gates.items() if gate not in read), None)
    if missed is not None:
        raise DataError(
            missed, "no calibration batch ran through it.", "Give the inputs that reach it, or protect it."
        )


def _train(learner: _Learner, sequences: list[Batch], options: LearnsGates, device: torch.device) -> None:
    # It takes a second to import, and only gates that learn need it.
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=options.batch_size,
            lr_scheduler_type="linear",
            max_grad_norm=0.0,
            seed=options.seed,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=device.type == "cpu",
            logging_strategy="no",
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        _check_device(learner, arguments.device)
        trainer = Trainer(
            model=learner,
            args=arguments,
            train_dataset=sequences,
            data_collator=lambda rows: {"sequences": rows},
            optimizers=(_NormalizedSGD(learner.parameters(), lr=options.learning_rate, momentum=0.9), None),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    unsure = next((n for n, gate in learner.by_name.items() if not bool(_score(gate).isfinite().all())), None)
    if unsure is not None:
        raise NonFiniteError(
            unsure,
            "its gate became NaN or infinite while it learned.",
            "Lower layer_gate(learning_rate=...), or calibrate in float32.",
        )


def _check_device(learner: _Learner, trained_on: torch.device) -> None:
    """Raise `UnsupportedModelError` where gates lie elsewhere than `Trainer` would move them."""
    for name, gate in learner.by_name.items():
        device = gate.keep_U.device
        if (device.type, device.index or 0) != (trained_on.type, trained_on.index or 0):
            raise UnsupportedModelError(
                name,
                f"is on {device}, and gates learn on {trained_on}.",
                f"Move the whole model to {trained_on}, or to the CPU.",
            )


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Leave the random states as they were: `Trainer` seeds all of them."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
