"""What a time depends on besides the model: the device, the numbers, the size of a batch, the software."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

import torch
import transformers
from torch import nn

from sparse_trainer.budget.time_target import TimeTarget
from sparse_trainer.errors import CheckpointError

# Inside the class `torch` is a field.
_Device = torch.device


@dataclass(frozen=True, kw_only=True)
class TimingConditions:
    """Under which conditions times were measured: others are not comparable."""

    device: str
    """The processor by its name."""
    threads: int
    """Of the CPU."""
    dtype: str
    batch: int
    sequence_length: int
    phase: str
    runtime: str
    torch: str
    transformers: str

    @classmethod
    def of(cls, model: nn.Module, target: TimeTarget, device: _Device | None = None) -> Self:
        """Return the conditions under which this model would be timed here and now.

        Args:
            device: Where a model that is not loaded yet will lie; None = where it is.
        """
        first = next(p for p in model.parameters() if p.is_floating_point())
        return cls(
            device=processor_name(device or first.device),
            threads=torch.get_num_threads(),
            dtype=str(first.dtype).removeprefix("torch."),
            batch=target.batch,
            sequence_length=target.sequence_length,
            phase=target.phase,
            runtime=target.runtime,
            torch=str(torch.__version__),
            transformers=transformers.__version__,
        )

    @classmethod
    def read(cls, values: object, where: str, remedy: str) -> Self:
        """Return the conditions in JSON values; raise `CheckpointError` where they are damaged."""
        known = {field.name: field.type for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != set(known):
            raise CheckpointError(where, f"does not have exactly the fields {', '.join(known)}.", remedy)
        for name, kind in known.items():
            if type(values[name]) is not kind:
                raise CheckpointError(f"{where}.{name}", f"{values[name]!r} is not of this form.", remedy)
        return cls(**values)

    def differences(self, other: Self) -> dict[str, tuple[object, object]]:
        """Return what is not the same in both, by name."""
        mine, theirs = asdict(self), asdict(other)
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    def __str__(self) -> str:
        """Say it in one line.

        >>> str(TimingConditions(device="A100", threads=1, dtype="float32", batch=1, sequence_length=128,
        ...     phase="prefill", runtime="eager", torch="2.9", transformers="5"))
        'A100, float32, batch 1, 128 tokens, prefill, eager, 1 CPU thread'
        """
        threads = f"{self.threads} CPU thread{'s' if self.threads > 1 else ''}"
        tokens = f"{self.sequence_length} tokens"
        return ", ".join(
            [self.device, self.dtype, f"batch {self.batch}", tokens, self.phase, self.runtime, threads]
        )


def processor_name(device: torch.device) -> str:
    """Return the name of the processor that a device is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type} ({platform.machine()})"
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
