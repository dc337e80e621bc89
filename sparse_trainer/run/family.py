"""A family of models from one training: each is written where its stage ends, and read back for one table."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, final

from transformers import PreTrainedModel, TrainerState

from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.json_text import read_object
from sparse_trainer.files.writing import write_text
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.outcome import FILES
from sparse_trainer.run.report import MISSING, spell_metric
from sparse_trainer.run.speed import measure_speed
from sparse_trainer.run.stages import DENSE, FINISH, PRUNED, Job, State
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments

STAGE_FILE = "stage.json"
"""In the folder of a member: where its stage ended."""
FAMILY_FILE = "family.json"
"""In the folder of a family: its table."""
_REMEDY = "Start over in another folder."


@dataclass(frozen=True, kw_only=True)
class StageEnd:
    """Where a stage of a training ended."""

    name: str
    """As in `Stages.names`."""
    step: int
    """Optimizer steps until then."""
    seconds: float
    """Of training until then, without what was written and measured between; of the processes that came that far."""

    @classmethod
    def read(cls, folder: Path) -> "StageEnd":
        """Return what is noted in the folder of a member; raise `CheckpointError` where that is damaged."""
        return cls(**read_object(folder / STAGE_FILE, _REMEDY))

    def write(self, folder: Path) -> None:
        """Note it in the folder of a member."""
        write_text(folder / STAGE_FILE, json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One finished model of a family."""

    end: StageEnd
    folder: Path
    asked: float
    speedup: float | None
    """Measured; else expected by a table of another device; None where nothing was timed."""
    metrics: Mapping[str, float]
    dense_metrics: Mapping[str, float]
    """Of the dense model, where it was measured."""
    parameters: int

    @classmethod
    def read(cls, folder: Path, asked: float) -> "Member":
        """Return the member that lies in a folder.

        Raises:
            CheckpointError: its files are damaged.
        """
        models = read_object(folder / FILES["report"], _REMEDY)["models"]
        speed = Plan.load(folder).speed
        if speed is not None:
            speedup = speed["speedup_measured"] or speed["speedup_expected"]
        else:
            dense, pruned = (
                next(iter(models[name]["latencies"].values()))["median"] for name in (DENSE, PRUNED)
            )
            speedup = dense / pruned
        return cls(
            end=StageEnd.read(folder),
            folder=folder,
            asked=asked,
            speedup=speedup,
            metrics=models[PRUNED]["metrics"] or {},
            dense_metrics=models[DENSE]["metrics"] or {},
            parameters=models[PRUNED]["parameters"],
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {**asdict(self), "folder": self.folder.name}


@dataclass(frozen=True, kw_only=True)
class FamilyResult:
    """What a training through several budgets leaves behind."""

    recipe: str
    folder: Path
    members: tuple[Member, ...]
    seconds: float
    """Of the whole run, from its start or from where it went on."""

    def rows(self) -> list[list[str]]:
        """Return the table: a header, then one row per member, whose folder is named after what was asked."""
        metrics = list(dict.fromkeys(name for member in self.members for name in member.metrics))
        rows = [["folder", "speed-up", *metrics, "parameters", "steps", "seconds"]]
        for member in self.members:
            speedup = MISSING if member.speedup is None else f"{member.speedup:.2f}x"
            quality = [spell_metric(name, member.metrics.get(name)) for name in metrics]
            rows.append(
                [
                    member.folder.name,
                    speedup,
                    *quality,
                    f"{member.parameters:,}",
                    str(member.end.step),
                    f"{member.end.seconds:.0f}",
                ]
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "recipe": self.recipe,
            "folder": str(self.folder),
            "seconds": round(self.seconds, 1),
            "members": [member.to_json() for member in self.members],
        }


class FamilyJob(Job, Protocol):
    """A job that writes several models."""

    def as_member(self, end: StageEnd) -> Job:
        """Return the job of one of them."""

    def evaluate_pruned(self, state: State) -> State:
        """Measure the cut model."""

    def member_folder(self, name: str) -> Path:
        """Return where one of them goes."""

    def is_done(self, name: str) -> bool:
        """Tell whether an earlier, stopped run has written it."""


@final
class FamilyWriter:
    """Writes the members of a family as their stages end; those that are there stay as they are.

    Args:
        job: Of the whole run.
        state: When training begins, with the dense model.
        pruning: What is asked of the members.
        cut: Returns a copy of the model as it trains, cut.
    """

    def __init__(
        self,
        job: FamilyJob,
        state: State,
        pruning: SparseTrainingArguments,
        cut: Callable[[], PreTrainedModel],
    ) -> None:
        assert pruning.stages is not None
        self.job, self.state, self.cut = job, state, cut
        self.names, self.budgets = pruning.stages.names, pruning.stages.budgets(pruning.budget)
        self._since, self._seconds = time.monotonic(), 0.0

    def write(self, stage: int, trained: TrainerState) -> None:
        """Cut, measure, save and reload the model of a stage that has ended."""
        name, tell, target = self.names[stage], self.state.tell, self.budgets[stage].time
        self._seconds += time.monotonic() - self._since
        if self.job.is_done(name):
            tell(f"{name} is there already")
        else:
            tell(f"cutting {name}")
            end = StageEnd(name=name, step=trained.global_step, seconds=self._seconds)
            pruned = self.cut()
            if target is not None:
                measure_speed(self.state.models[DENSE], pruned, target)
            state = dataclasses.replace(
                self.state, job=self.job.as_member(end), log=tuple(trained.log_history)
            )
            state = state.having(PRUNED, pruned)
            for finish in (self.job.evaluate_pruned, *FINISH):
                with state.rescuing():
                    state = finish(state)
        self._since = time.monotonic()

    def go_on(self, past: Sequence[int]) -> None:
        """Take up the time of the stages that a training which goes on is past.

        Raises:
            CheckpointError: the model of one of them is not there.
        """
        for name in (self.names[stage] for stage in past):
            folder = self.job.member_folder(name)
            if not self.job.is_done(name):
                raise CheckpointError(
                    str(folder),
                    "is not there, and the training that goes on is past the end of its stage.",
                    "Bring it back, or start over in another folder.",
                )
            self._seconds = StageEnd.read(folder).seconds
        self._since = time.monotonic()


def write_table(result: FamilyResult) -> None:
    """Write the table of a family beside its members."""
    write_text(result.folder / FAMILY_FILE, json.dumps(result.to_json(), indent=2) + "\n")
