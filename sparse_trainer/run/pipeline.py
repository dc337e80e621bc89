"""Run a recipe: its stages in order, and what they leave behind."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sparse_trainer.errors import ArgumentError
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.card_commands import add_commands
from sparse_trainer.run.conversions import AskedConversion, asked_conversions, convert_result
from sparse_trainer.run.family import FamilyResult, Member, write_table
from sparse_trainer.run.family_page import write_family_page
from sparse_trainer.run.one_shot import prepare_one_shot, result_of
from sparse_trainer.run.options import Tell
from sparse_trainer.run.outcome import RECIPE_FILE, RunResult
from sparse_trainer.run.preparation import prepare_fine_pruning
from sparse_trainer.run.recipes.fine_pruning import FinePruningRecipe
from sparse_trainer.run.recipes.load import speaking_of
from sparse_trainer.run.recipes.one_shot import OneShotRecipe
from sparse_trainer.run.recipes.recipe import Recipe
from sparse_trainer.run.resume import RunFolder
from sparse_trainer.run.stages import PRUNED, State, files_of
from sparse_trainer.run.together import check_alone, from_first, is_first, together

logger = logging.getLogger(__name__)


def run(
    recipe: Recipe, tell: Tell = logger.info, *, overwrite: bool = False, resume: bool = False
) -> RunResult:
    """Run a recipe from start to end; in several processes, all of them call it, and get the same result.

    Args:
        tell: Called with one line at the start of every stage.
        overwrite: Replace the result of an earlier run; as `export.overwrite` of the recipe.
        resume: Go on with a run of the same recipe that was stopped, from its last checkpoint. `resume: true` in the
            recipe asks for the same, and starts a run where there is none.

    Raises:
        SparseTrainerError: Bad input, before any stage starts; or a result that does not hold what it promises.
    """
    if makes_family(recipe):
        raise ArgumentError(
            recipe.name, "makes several models.", "Call run_family (sparse-trainer family, or run)."
        )
    start = time.monotonic()
    with speaking_of(recipe), _advising(recipe, tell, resume=resume) as told:
        with together():
            asked = from_first(lambda: _conversions(recipe, resume=told.resume))
        state = _finished(recipe, told, overwrite=overwrite)
        converted = from_first(lambda: convert_result(asked, state.job.result, told.tell))
        if PRUNED in state.models and is_first():
            add_commands(state.job.result, converted)
        return from_first(lambda: _result(state, converted, time.monotonic() - start))


def makes_family(recipe: Recipe) -> bool:
    """Tell a recipe that trains through several budgets in turn, and writes a model for each."""
    return (
        isinstance(recipe, FinePruningRecipe)
        and recipe.pruning is not None
        and recipe.pruning.stages is not None
    )


def run_family(
    recipe: Recipe, tell: Tell = logger.info, *, overwrite: bool = False, resume: bool = False
) -> FamilyResult:
    """Run a recipe that trains through several budgets in turn (`speedups`, `densities`); a model for each is written.

    A run that goes on keeps the models that are there.

    Args:
        tell, overwrite, resume: As of `run`.

    Raises:
        SparseTrainerError: Bad input, before any stage starts; or a result that does not hold what it promises.
    """
    start = time.monotonic()
    stages = recipe.pruning.stages if isinstance(recipe, FinePruningRecipe) and recipe.pruning else None
    if stages is None:
        raise ArgumentError(
            recipe.name, "asks for one model.", "Give `speedups` or `densities` (pruning.speedups=[1.5,2])."
        )
    if recipe.export.convert:
        raise ArgumentError(
            "export.convert",
            "is for runs that make one model.",
            "Run `sparse-trainer convert` on each of them.",
        )
    with speaking_of(recipe), _advising(recipe, tell, resume=resume) as told:
        _finished(recipe, told, overwrite=overwrite)
        assert isinstance(recipe, FinePruningRecipe)
        folder = RunFolder(recipe=recipe, resume=resume)
        asked = stages.speedups or stages.densities
        result = FamilyResult(
            recipe=recipe.name,
            folder=folder.result,
            members=tuple(Member.read(*each) for each in zip(folder.results, asked, strict=True)),
            seconds=time.monotonic() - start,
        )
        if is_first():
            for member in result.members:
                add_commands(member.folder)
        write_table(result)
        write_family_page(result)
        return result


@dataclass(frozen=True, kw_only=True)
class _Told:
    """How a run speaks, and whether it goes on with one that was stopped."""

    tell: Tell
    resume: bool


@contextmanager
def _advising(recipe: Recipe, tell: Tell, *, resume: bool) -> Iterator[_Told]:
    """Say how to go on when the block is interrupted, at whatever point; of several processes the first one speaks."""
    told = _Told(tell=tell if is_first() else _say_nothing, resume=resume)
    try:
        told = replace(told, resume=resume or from_first(lambda: _asks_to_go_on(recipe)))
        yield told
    except (KeyboardInterrupt, SystemExit):
        if isinstance(recipe, FinePruningRecipe):
            told.tell(RunFolder(recipe=recipe, resume=told.resume).advice())
        raise


def _finished(recipe: Recipe, told: _Told, *, overwrite: bool) -> State:
    """Return what the stages of a recipe have made."""
    with together():
        state = _prepared(
            recipe, told.tell, overwrite=overwrite or recipe.export.overwrite, resume=told.resume
        )
    for stage in state.job.stages:
        with together(), state.rescuing():
            state = stage(state)
    return state


def _conversions(recipe: Recipe, *, resume: bool) -> tuple[AskedConversion, ...]:
    """Return what is written for other runtimes in the end; a run that goes on leaves out what is there."""
    texts = recipe.export.convert
    if isinstance(recipe, FinePruningRecipe):
        folder, source = RunFolder(recipe=recipe, resume=resume).result, None
    else:
        assert isinstance(recipe, OneShotRecipe)
        folder = result_of(recipe)
        source = recipe.model.name_or_path if recipe.vocabulary is None else None
    if resume:
        texts = tuple(text for text in texts if not AskedConversion.parse(text).place(folder).exists())
    return asked_conversions(texts, folder, source)


def _say_nothing(line: str) -> None:
    """Stand in for `tell` in all processes but the first."""


def _asks_to_go_on(recipe: Recipe) -> bool:
    """Tell whether the recipe asks to go on with an earlier run, and there is one."""
    if not recipe.resume or not isinstance(recipe, FinePruningRecipe):
        return recipe.resume
    return RunFolder(recipe=recipe, resume=False).is_begun


def _prepared(recipe: Recipe, tell: Tell, *, overwrite: bool, resume: bool) -> State:
    """Return what the first stage starts from: all is loaded, and what can be known to fail has failed."""
    if isinstance(recipe, FinePruningRecipe):
        return prepare_fine_pruning(recipe, tell, overwrite=overwrite, resume=resume)
    assert isinstance(recipe, OneShotRecipe)
    check_alone(recipe.name)
    if resume:
        raise ArgumentError(
            "resume", f"{recipe.name} trains nothing to go on with.", "Leave resume out (--resume)."
        )
    return prepare_one_shot(recipe, tell, overwrite=overwrite)


def _result(state: State, converted: dict[str, Path], seconds: float) -> RunResult:
    assert state.comparison is not None
    job, folder = state.job, state.job.result
    plan = Plan.load(folder) if PRUNED in state.models else None
    files = {"recipe": RECIPE_FILE} if plan is None else files_of(state, plan)
    return RunResult(
        recipe=job.recipe.name,
        folder=folder,
        comparison=state.comparison,
        plan=plan,
        reloaded=state.reloaded,
        load_lines=job.load_lines(plan),
        files={what: folder / name for what, name in files.items()} | converted,
        seconds=seconds,
    )
