"""The loss of a model without some of its blocks, or with changed ones, without running what stays the same.

One forward pass of a batch keeps what every block returns. Without one block more, or with a changed one, the blocks in
front of it return what they returned before: of n blocks, (n + 1) / 2 run on average instead of n.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from patchers.units import Group, Structure
from sparse_trainer.errors import DataError, NonFiniteError, UnsupportedModelError
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.block_states import state_in
from sparse_trainer.statistics.calibration import Batches
from sparse_trainer.statistics.calibration_pass import first_tensor
from sparse_trainer.statistics.forward import ForwardPass


@final
class Replay:
    """Runs one model again and again while blocks of it go or change.

    Args:
        structure: Its groups that may go, and the lists of blocks that they are in.
    """

    def __init__(self, model: nn.Module, structure: Structure, batches: Batches) -> None:
        self.model, self.batches = model, batches
        stacks = {group.stack for group in structure.groups}
        self.paths = tuple(
            f"{stack.path}.{place}"
            for stack in structure.stacks
            if stack.path in stacks
            for place in range(stack.size)
        )
        self.forward = ForwardPass(model, self.paths, labelled=True, differentiable=False)
        self._gone: frozenset[str] = frozenset()
        self._first: str | None = None
        """The first block that runs; None = all run, and are remembered."""
        self._without: frozenset[str] = frozenset()
        self._place: dict[str, int] = {}
        """Place of each block in the order in which they ran."""
        self._outputs: dict[str, Any] = {}
        self._plain: set[str] = set()
        """Blocks that return a hidden state and nothing else."""

    @torch.no_grad()
    def losses(self, gone: Sequence[Group], candidates: Sequence[Group]) -> dict[str, Tensor]:
        """Return the mean loss per label, scalar, without what is gone and one candidate more, by name of the latter.

        Raises:
            DataError: there is no loss, or the calibration set does not fit the model.
            NonFiniteError: NaN or infinity, with a candidate or without it.
            UnsupportedModelError: a block runs more than once in a forward pass, or never.
        """
        self._gone = frozenset(group.block for group in gone)
        sums: dict[str, Tensor] = {}
        terms: Tensor | int = 0
        with torch.inference_mode(False), evaluating(self.model), self.steered():
            for batch in self.batches.read(labelled=True):
                if batch.terms is None:
                    continue
                terms = terms + batch.terms
                self._check_loss(self._loss(batch, None), batch)
                for group in candidates:
                    loss = self._loss(batch, group.block).double()
                    sums[group.name] = sums[group.name] + loss if group.name in sums else loss
        self.forget()
        found = {name: loss / terms for name, loss in sums.items()}
        bad = next((name for name, loss in found.items() if not bool(torch.isfinite(loss))), None)
        if bad is not None:
            raise NonFiniteError(bad, "the loss without it is NaN or infinite.", "Calibrate in float32.")
        return found

    def record(self, batch: Batch) -> Any:
        """Return what the model says, and keep what its blocks return. Within `steered`.

        Raises:
            DataError: a block is not reached.
            UnsupportedModelError: a block runs more than once.
        """
        self._first, self._without, self._place, self._outputs = None, frozenset(), {}, {}
        output = self.forward.output(batch)
        missed = next((path for path in self.paths if path not in self._place), None)
        if missed is not None:
            raise DataError(
                missed,
                "no calibration batch ran through it.",
                "Give the inputs that reach it, or protect it.",
            )
        return output

    def rerun(self, batch: Batch, first: str, without: Collection[str] = ()) -> Any:
        """Return what the model says now that a block has changed: those in front of it return what is recorded.

        Args:
            without: Blocks that are passed by.
        """
        self._first, self._without = first, frozenset(without)
        return self.forward.output(batch)

    def forget(self) -> None:
        """Free what is recorded."""
        self._outputs = {}

    def place(self, block: str) -> int:
        """Return the place of a block in the order in which they ran."""
        return self._place[block]

    def _loss(self, batch: Batch, without: str | None) -> Tensor:
        """Return the summed loss of a batch; without a candidate, keep what the blocks return."""
        output = self.record(batch) if without is None else self.rerun(batch, without, (without,))
        loss: Tensor = output.loss * batch.terms
        return loss

    def _check_loss(self, loss: Tensor, batch: Batch) -> None:
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(
                f"calibration batch {batch.number}", "its loss is NaN or infinite.", "Calibrate in float32."
            )

    @contextmanager
    def steered(self) -> Iterator[None]:
        """Put ourselves in front of every block's forward for the time of a `with` block."""
        before: dict[str, Mapping[str, Any]] = {}
        try:
            for path in self.paths:
                block: Any = self.model.get_submodule(path)
                before[path] = {"forward": vars(block)["forward"]} if "forward" in vars(block) else {}
                block.forward = partial(self._run, path, block.forward)
            yield
        finally:
            for path, own in before.items():
                block = self.model.get_submodule(path)
                del block.forward
                vars(block).update(own)

    def _run(self, path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._first is None:
            if path in self._place:
                raise UnsupportedModelError(
                    path, "runs more than once.", "Take a criterion that does not search."
                )
            self._place[path] = len(self._place)
            self._outputs[path] = output = self._fresh(path, forward, *args, **kwargs)
            return output
        if self._place[path] < self._place[self._first]:
            return self._outputs[path]
        if path in self._without:
            return _replaced(self._outputs[path], first_tensor(args, kwargs))
        return self._fresh(path, forward, *args, **kwargs)

    def _fresh(self, path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a block that is there; of one that is gone return what it read."""
        if path in self._gone and path in self._plain:
            return first_tensor(args, kwargs)
        output = forward(*args, **kwargs)
        if path not in self._gone:
            if isinstance(output, Tensor):
                self._plain.add(path)
            return output
        # A block that returns more than the hidden state (T5's position bias) is run for the rest.
        return _replaced(output, first_tensor(args, kwargs))


def _replaced(output: Any, state: Tensor) -> Any:
    """Return what a block returned with another hidden state in it."""
    if isinstance(output, Tensor):
        return state
    old = state_in(output)
    if isinstance(output, tuple | list):
        return type(output)(state if each is old else each for each in output)
    return {name: state if each is old else each for name, each in output.items()}
