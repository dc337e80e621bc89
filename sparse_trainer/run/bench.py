"""A bench: one model, or a model beside a baseline, weighed and timed in several runtimes."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from sparse_trainer.errors import ArgumentError, CheckpointError
from sparse_trainer.fields import check_counts
from sparse_trainer.folders.configs import read_config, resolve
from sparse_trainer.inputs.evaluating import evaluating
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.run.generation_speed import check_writes_tokens
from sparse_trainer.run.latency import check_bench, conditions_of, cpu_threads
from sparse_trainer.run.llama_cpp import SUFFIX, facts_of, weigh_file
from sparse_trainer.run.options import Tell
from sparse_trainer.run.peak_memory import MemoryRequest, peak_memory
from sparse_trainer.run.runtimes import (
    COMPILE,
    GGUF,
    Candidate,
    Setting,
    check_runs,
    find_runtimes,
    gguf_file,
)
from sparse_trainer.run.side_by_side import BenchResult, Name, Ready, time_forward, time_generation
from sparse_trainer.run.weights import Weight, load_weighed

logger = logging.getLogger(__name__)

_MEASURED: Final = ("eager", GGUF)
"""Runtimes whose memory is measured: the others make what they run in the same process first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """What is timed, and how."""

    model: str
    """Folder, hub id, or GGUF file."""
    against: str | None = None
    """The baseline, the same."""
    batch_sizes: Sequence[int] = (1, 16)
    lengths: Sequence[int] = (128,)
    """Tokens per sequence; each with every batch size."""
    rounds: int = 20
    threads: int | None = None
    """None = as torch is set."""
    device: torch.device
    dtype: torch.dtype
    runtimes: str | None = None
    """Parted by commas; None = eager, or gguf where a model is a GGUF file."""
    generate: int | None = None
    """New tokens after prompts of each length."""
    memory: bool = False
    """Whether peak memory is measured, each model in a process of its own."""

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        if not self.lengths:
            raise ArgumentError("sequence_length", "names no length.", "Give e.g. 128.")
        for length in self.lengths:
            check_bench(
                batch_sizes=self.batch_sizes,
                sequence_length=length,
                rounds=self.rounds,
                threads=self.threads,
            )
        check_counts(generate=self.generate)
        if self.against is not None and _place(self.against) == _place(self.model):
            raise ArgumentError(
                "against", f"{self.against} is the model itself.", "Name another one, or drop it."
            )

    @property
    def names(self) -> list[str]:
        """The models; the baseline comes first."""
        return [name for name in (self.against, self.model) if name is not None]

    @property
    def longest(self) -> int:
        """The most tokens of a sequence, new ones included."""
        return max(self.lengths) + (self.generate or 0)


def run_bench(options: BenchOptions, tell: Tell = logger.info) -> BenchResult:
    """Weigh and time models.

    Args:
        tell: Called with one line at the start of every stage.

    Raises:
        ArgumentError: Sequences that a model has no positions for, an unknown runtime or one whose packages are
            missing, a model that a runtime does not run or that writes no tokens.
        CheckpointError: A model that cannot be loaded.
        ConversionError: One that cannot be a GGUF file.
    """
    files = [name for name in options.names if name.endswith(SUFFIX)]
    runtimes = find_runtimes(options.runtimes or (GGUF if files else "eager"))
    if options.generate is not None and set(runtimes) == {COMPILE}:
        raise ArgumentError("generate", f"is not timed in {COMPILE}.", "Name another runtime beside it.")
    for name in files:
        _check_file(name, set(runtimes))
    for name in options.names:
        _check_length(name, options)
    folders = [name for name in options.names if name not in files]
    check_runs(runtimes, folders, options.device, options.dtype)
    with ExitStack() as stack:
        stack.enter_context(cpu_threads(options.threads))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        setting = Setting(
            device=options.device,
            dtype=options.dtype,
            threads=torch.get_num_threads(),
            rows=max(options.batch_sizes),
            length=options.longest,
            scratch=scratch,
        )
        tell(f"loading {' and '.join(options.names)}")
        candidates, weights = _load(options, setting)
        models = {name: one.model for name, one in candidates.items() if one.model is not None}
        stack.enter_context(evaluating(*models.values()))
        if options.generate is not None:
            for name, model in models.items():
                check_writes_tokens(name, model, options.longest)
        tell(f"making ready for {', '.join(runtimes)}")
        ready: dict[Name, Ready] = {
            (name, runtime): make(one, setting)
            for runtime, make in runtimes.items()
            for name, one in candidates.items()
        }
        shared: dict[str, Any] = {
            "batch_sizes": options.batch_sizes,
            "lengths": options.lengths,
            "rounds": options.rounds,
            "baseline": options.against,
        }
        tell("timing forward passes, models in turn")
        times = time_forward(ready, device=options.device, **shared)
        if options.generate is not None:
            tell("timing new tokens, models in turn")
        spoken = (
            [] if options.generate is None else time_generation(ready, new_tokens=options.generate, **shared)
        )
        if options.memory:
            tell("measuring memory in processes of their own")
        names = [name for name in ready if options.memory and name[1] in _MEASURED]
        return BenchResult(
            conditions=conditions_of(options.device, options.dtype, options.rounds, None),
            weights=weights,
            memory={
                name: _memory(candidates[name[0]], name[1], setting, max(options.lengths)) for name in names
            },
            forward=times,
            generation=spoken,
            notes=_notes(options, set(runtimes)),
        )


def _place(name: str) -> Path:
    return Path(name if name.endswith(".gguf") else resolve(name)).resolve()


def _check_file(name: str, runtimes: set[str]) -> None:
    if not Path(name).is_file():
        raise CheckpointError(name, "is not there.", "Name a GGUF file, a folder or a hub id.")
    others = sorted(runtimes - {GGUF})
    if others:
        raise ArgumentError(
            "runtimes",
            f"{others[0]} does not run {name}, a GGUF file.",
            "Name the folder, or take gguf alone.",
        )


def _check_length(name: str, options: BenchOptions) -> None:
    is_file = name.endswith(SUFFIX)
    positions = facts_of(Path(name)).context if is_file else positions_of(read_config(name))
    new, longest = options.generate, max(options.lengths)
    check_positions("sequence_length", longest, positions)
    if new is not None and positions is not None and longest + new > positions:
        raise ArgumentError(
            "generate",
            f"{new} tokens after {longest}, and the model has positions for {positions}.",
            f"Give {positions - longest} or less, or shorter sequences."
            if longest < positions
            else "Give shorter sequences.",
        )


def _load(options: BenchOptions, setting: Setting) -> tuple[dict[str, Candidate], dict[str, Weight]]:
    candidates, weights = {}, {}
    for number, name in enumerate(options.names):
        model: PreTrainedModel | None = None
        if name.endswith(SUFFIX):
            weights[name] = weigh_file(Path(name), setting.threads)
        else:
            model, weights[name] = load_weighed(
                name, device=setting.device, dtype=setting.dtype, sequence_length=max(options.lengths)
            )
        candidates[name] = Candidate(number=number, place=name, model=model)
    return candidates, weights


def _memory(candidate: Candidate, runtime: str, setting: Setting, length: int) -> int | None:
    file = gguf_file(candidate, setting) if runtime == GGUF else None
    return peak_memory(
        MemoryRequest(
            name=candidate.place if file is None else str(file),
            tokens=None if file is None else facts_of(file).tokens,
            device=str(setting.device),
            dtype=setting.dtype,
            threads=setting.threads,
            rows=setting.rows,
            length=length,
        )
    )


def _notes(options: BenchOptions, runtimes: set[str]) -> list[str]:
    """Return what a reader of the numbers should know."""
    found = []
    if any(name.endswith(SUFFIX) for name in options.names):
        found.append(f"{SUFFIX} files run in the format of numbers that they hold.")
    if GGUF in runtimes and len(runtimes) > 1:
        found.append(
            "gguf: llama.cpp computes logits of the last token only; compare its prompts with each other."
        )
    if COMPILE in runtimes and options.generate is not None:
        found.append(f"{COMPILE}: generation is not timed there, for a cache that grows is compiled anew.")
    unmeasured = sorted(runtimes - set(_MEASURED))
    if unmeasured and options.memory:
        found.append(f"{', '.join(unmeasured)}: peak memory is not measured there.")
    return found
