"""Go through a model block by block: one block's statistics in memory, on an accelerator one block's weights.

Between two blocks the hidden states wait on the CPU. The earlier blocks return them instead of running, so masks,
positions and whatever else a model makes for a block are its own, whatever the architecture.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from accelerate.utils import recursively_apply, send_to_device
from torch import Tensor, nn

from patchers.units import Group, Structure
from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.statistics.batch import Batch
from sparse_trainer.statistics.calibration import Batches, as_batches
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.forward import ForwardPass, StopForward
from sparse_trainer.statistics.requests import Statistic, Statistics


@final
class Blockwise:
    """Iterates over the groups of one block after the other; `collect` runs the current block alone.

    Blocks that a forward pass does not simply run through, once each and in order, are run with the whole model before
    them: slower, the same statistics.

    Args:
        changing: Blocks change while they are the current one: those after them read the outputs of the changed ones.
        device: Where blocks are run, each moved there and back; None = where they are.
        without: Paths of blocks that are passed by: what they read goes on to the next one.

    Raises:
        UnsupportedModelError: a device is given, and groups lie outside of such blocks.
    """

    def __init__(
        self,
        model: Any,
        structure: Structure,
        calibration: Iterable[Mapping[str, Any]] | Batches,
        *,
        changing: bool,
        device: torch.device | str | None = None,
        without: Collection[str] = (),
    ) -> None:
        self.model, self.structure, self.changing = model, structure, changing
        self.batches = as_batches(model, calibration)
        self.device = None if device is None else torch.device(device)
        self.one_by_one = any("experts" in g.consumer for g in structure.groups)
        self._run = ForwardPass(
            model, [g.consumer for g in structure.groups], labelled=False, differentiable=False
        )
        self._replays = {
            path: _Replay(
                model.get_submodule(path),
                {n for n in range(len(model.get_submodule(path))) if f"{path}.{n}" in without},
            )
            for path in self._in_order()
        }
        self._replay: _Replay | None = None
        outside = [g.name for g in structure.groups if g.stack not in self._replays]
        if outside and device is not None:
            raise UnsupportedModelError(
                outside[0], "lies outside of blocks that run once each, in order.", "Give no device."
            )

    def __iter__(self) -> Iterator[tuple[Group, ...]]:
        """Yield the groups of each block that has some."""
        by_block: dict[tuple[str, int], list[Group]] = {}
        for group in self.structure.groups:
            by_block.setdefault((group.stack, group.layer), []).append(group)
        for (stack, layer), groups in by_block.items():
            self._replay = self._replays.get(stack)
            if self._replay is None:
                yield tuple(groups)
                continue
            while self._replay.reached < layer:
                self._advance()
            with _on(self._replay.current, self.device):
                yield tuple(groups)
                if self.changing:
                    self._replay.outputs = []
            if layer + 1 < len(self._replay.blocks) or len(self._replays) > 1:
                self._advance()

    def collect(self, groups: Iterable[Group], requests: Iterable[Statistic[Any]]) -> Statistics:
        """Return the statistics of groups of the current block."""
        chosen = Structure(groups=tuple(groups), stacks=self.structure.stacks)
        with self._alone():
            return collect(
                self.model, chosen, self.batches, requests, stop_early=self._replay is None, one_by_one=self.one_by_one
            )  # fmt: skip

    def outputs(self, group: Group) -> list[Any]:
        """Return what the block of a group returns, one entry per forward pass, on the CPU, and go on behind it."""
        replay = self.reach(group)
        self._advance()
        return replay.before

    def reach(self, group: Group) -> "_Replay":
        """Make the block of a group the current one; it is not moved to the device.

        Args:
            group: Of the current block or one that comes later.

        Raises:
            UnsupportedModelError: a forward pass does not run through these blocks once each, in order.
        """
        self._replay = self._replays.get(group.stack)
        if self._replay is None:
            raise UnsupportedModelError(
                group.block, "lies outside of blocks that run once each, in order.", "Set no reconstruct."
            )
        while self._replay.reached < group.layer:
            self._advance()
        return self._replay

    def _advance(self) -> None:
        """Leave the current block, running it once more if its outputs are not known."""
        assert self._replay is not None
        if not self._replay.outputs:
            with _on(self._replay.current, self.device), evaluating(self.model), self._alone():
                for batch in self._read():
                    self._run(batch)
        self._replay.advance()

    def _read(self) -> Iterator[Batch]:
        return self.batches.read(labelled=False, one_by_one=self.one_by_one)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Run the current block alone: those before it return stored outputs, and the pass ends behind it."""
        with ExitStack() as stack:
            for replay in self._replays.values():
                stack.enter_context(replay.replaying())
            if self._replay is not None:
                stack.enter_context(self._replay.recording(self.device))
            yield

    def _in_order(self) -> list[str]:
        """Return the lists whose blocks a forward pass runs once each, in order."""
        # A first block that cannot go hands on more than the hidden state; stored outputs hold that, too.
        free = [s.path for s in self.structure.stacks if s.size > 1 and s.fixed_layers.keys() <= {0}]
        seen: dict[str, list[int]] = {path: [] for path in free}
        with ExitStack() as stack, evaluating(self.model):
            for path in free:
                for number, block in enumerate(self.model.get_submodule(path)):
                    handle = block.register_forward_pre_hook(lambda *_, p=path, n=number: seen[p].append(n))
                    stack.callback(handle.remove)
            self._run(next(self._read()))
        return [path for path in free if seen[path] == list(range(len(self.model.get_submodule(path))))]


class _Replay:
    """Stored outputs of the blocks of one list, one entry per forward pass."""

    def __init__(self, blocks: Any, without: Collection[int] = ()) -> None:
        self.blocks: list[nn.Module] = list(blocks)
        self.without = without
        """Places of blocks that are passed by; the first is none of them."""
        self.reached = 0
        self.outputs: list[Any] = []
        """Outputs of the current block, where it has run."""
        self.before: list[Any] = []
        """Outputs of the block before it."""
        self._turn = 0

    @property
    def current(self) -> nn.Module:
        """Return the current block."""
        return self.blocks[self.reached]

    def advance(self) -> None:
        """Make the next block the current one."""
        self.reached += 1
        while self.reached in self.without:
            self.reached += 1
        self.before, self.outputs = self.outputs, []

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Let the blocks before the current one return stored outputs instead of running."""
        self._turn = 0
        with ExitStack() as stack:
            for number, block in enumerate(self.blocks[: self.reached]):
                stack.enter_context(
                    _replaced(block, self._play_last if number + 1 == self.reached else self._play)
                )
            yield

    @contextmanager
    def recording(self, device: torch.device | None) -> Iterator[None]:
        """Store the outputs of the current block, and run nothing after it."""
        self.outputs = []

        def move(_: nn.Module, args: tuple[Any, ...], kwargs: Any) -> Any:
            return send_to_device(args, device), send_to_device(kwargs, device)

        with ExitStack() as stack:
            stack.enter_context(self.current.register_forward_hook(self._record))
            if device is not None:
                hook = self.current.register_forward_pre_hook(move, with_kwargs=True, prepend=True)
                stack.enter_context(hook)
            yield

    def _play(self, *args: Any, **kwargs: Any) -> Any:
        first = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        # A copy: what comes next may write into it.
        return send_to_device(recursively_apply(torch.clone, self.before[self._turn]), first.device)

    def _play_last(self, *args: Any, **kwargs: Any) -> Any:
        output = self._play(*args, **kwargs)
        self._turn += 1
        return output

    def _record(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.outputs.append(send_to_device(output, "cpu"))
        raise StopForward


@contextmanager
def _replaced(block: nn.Module, forward: Any) -> Iterator[None]:
    """Give a block another `forward` for the time of a `with` block."""
    own = {name: value for name, value in vars(block).items() if name == "forward"}
    vars(block)["forward"] = forward
    try:
        yield
    finally:
        del vars(block)["forward"]
        vars(block).update(own)


@contextmanager
def _on(block: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Hold a block on a device for the time of a `with` block."""
    if device is None:
        yield
        return
    home = next(block.parameters()).device
    block.to(device)
    try:
        yield
    finally:
        block.to(home)
