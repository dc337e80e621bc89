"""Stages of a run: each goes from what there is to what there is after it. Here are those that every run ends with."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from sparse_trainer.budget.counting import parameter_count
from sparse_trainer.cut.decision import Decision
from sparse_trainer.folders.card_facts import CardFacts
from sparse_trainer.folders.rescue import rescuing
from sparse_trainer.folders.save import Processor, save_pruned
from sparse_trainer.plan.document import Plan
from sparse_trainer.plan.widths import title_of
from sparse_trainer.run import pictures
from sparse_trainer.run.curves import CURVES_FILES, Log, lines_of, write_curves
from sparse_trainer.run.latency import bench
from sparse_trainer.run.options import Tell
from sparse_trainer.run.outcome import ALWAYS, write_beside
from sparse_trainer.run.page import Page
from sparse_trainer.run.recipes.recipe import Recipe
from sparse_trainer.run.report import Comparison, Measured
from sparse_trainer.run.together import is_first
from sparse_trainer.run.verify import Reloaded, verify_reload
from sparse_trainer.tasks.base import Outputs

logger = logging.getLogger(__name__)

DENSE, PRUNED = "dense", "pruned"
"""What the models of a run are called: the one that all is compared with, and the one that is cut."""


class Job(Protocol):
    """What one kind of recipe brings to a run: it was made with data and model loaded, and all options checked."""

    @property
    def recipe(self) -> Recipe:
        """What is run."""

    @property
    def processor(self) -> Processor | None:
        """What makes the model's inputs: it is saved with it."""

    def beside(self, folder: Path) -> None:
        """Write what the result needs beside its weights."""

    @property
    def result(self) -> Path:
        """The folder of the finished model."""

    @property
    def spare(self) -> Path:
        """Where a model goes that cannot be measured or saved."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is done, in order."""

    @property
    def outputs(self) -> Outputs:
        """Which outputs of the reloaded model are compared, and how."""

    def auto_class(self, plan: Plan) -> str:
        """Return the name of the auto class in transformers that loads the result."""

    def examples(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """Return a batch without labels on which the reloaded model is compared."""

    def card_facts(self, state: State) -> CardFacts:
        """Return what the card of the result says beside its plan and the table."""

    def load_lines(self, plan: Plan | None) -> tuple[str, ...]:
        """Return Python that loads and uses the result."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What the stages of a run have made so far."""

    job: Job
    tell: Tell
    model: PreTrainedModel
    """The model that the next stage works on."""
    models: Mapping[str, PreTrainedModel]
    """Those that are compared, by name; the baseline, `dense`, comes first."""
    metrics: Mapping[str, Mapping[str, float] | None]
    """Of each model; None = it was never fine-tuned, or nothing is asked of it."""
    decisions: tuple[Decision, ...] = ()
    """Of one-shot pruning: scores and kept units of each round."""
    log: Log = ()
    """Of the training that pruned."""
    comparison: Comparison | None = None
    is_saved: bool = False
    reloaded: Reloaded | None = None

    def having(self, name: str, model: PreTrainedModel, metrics: Mapping[str, float] | None = None) -> State:
        """Return the state with a model, and with what was measured of it."""
        models, measured = {**self.models, name: model}, {**self.metrics, name: metrics}
        return replace(self, model=model, models=models, metrics=measured)

    def rescuing(self) -> AbstractContextManager[None]:
        """Save a model that is cut, and is not saved yet, when the block fails."""
        if self.is_saved or PRUNED not in self.models or not is_first():
            return nullcontext()
        return rescuing(self.models[PRUNED], self.job.processor, self.job.spare)


Stage = Callable[[State], State]


def measure_models(state: State) -> State:
    """Measure the sizes of the models, and their latencies side by side."""
    if not is_first():
        return state
    state.tell("measuring")
    options = state.job.recipe.export
    timed = bench(
        dict(state.models),
        batch_sizes=options.latency_batch_sizes,
        sequence_length=options.latency_sequence_length,
        rounds=options.latency_rounds,
    )
    measured = {
        name: Measured(
            metrics=state.metrics[name],
            parameters=parameter_count(model),
            file_bytes=_file_bytes(model),
            latencies=timed.latencies[name],
        )
        for name, model in state.models.items()
    }
    return replace(state, comparison=Comparison(models=measured, conditions=timed.conditions))


def save(state: State) -> State:
    """Write the pruned model with all that belongs to it, all or nothing."""
    if not is_first():
        return state
    job, comparison = state.job, state.comparison
    assert comparison is not None
    state.tell(f"saving to {job.result}")

    def beside(place: Path) -> None:
        job.beside(place)
        recipe = job.recipe.dump()
        plan = Plan.load(place)
        page = Page(
            name=job.recipe.name,
            plan=plan,
            comparison=comparison,
            recipe=recipe,
            log=state.log,
            decisions=state.decisions,
        )
        write_beside(place, recipe, comparison, page)
        if state.decisions:
            pictures.write_scores(state.decisions, place, title_of(plan))
        write_curves(state.log, place, title_of(plan))

    save_pruned(
        state.models[PRUNED],
        job.result,
        processor=job.processor,
        metrics=comparison.card_rows(),
        facts=replace(job.card_facts(state), conditions=str(comparison.conditions)),
        export=job.recipe.export.export,
        overwrite=True,
        beside=beside,
    )
    return replace(state, is_saved=True)


def reload(state: State) -> State:
    """Check the folder in a new process, on the CPU."""
    if not state.job.recipe.export.verify or not is_first():
        return state
    state.tell("reloading in a new process")
    model, folder = state.models[PRUNED], state.job.result
    model.to("cpu")  # type: ignore[arg-type]
    examples, auto_class = state.job.examples(model), state.job.auto_class(Plan.load(folder))
    return replace(state, reloaded=verify_reload(folder, auto_class, model, examples, state.job.outputs))


FINISH: tuple[Stage, ...] = (measure_models, save, reload)
"""How every run ends that has cut a model."""


def files_of(state: State, plan: Plan) -> dict[str, str]:
    """Return what a run with a plan leaves beside the model: what a file holds -> its name."""
    curves = CURVES_FILES if lines_of(state.log) else {}
    return ALWAYS | pictures.picture_files(plan, state.decisions) | curves


def _file_bytes(model: PreTrainedModel) -> int:
    """Return the size of the weight files of a model, by writing them."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        return sum(path.stat().st_size for path in Path(scratch).glob("*.safetensors"))
