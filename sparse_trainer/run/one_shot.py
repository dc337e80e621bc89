"""What a one-shot recipe brings to a run: measure, prune, measure again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patchers.units import HEADS, LAYERS
from sparse_trainer.cut.auto_classes import auto_classes_of
from sparse_trainer.cut.decision import Decision
from sparse_trainer.cut.share import check_sharing, share_by
from sparse_trainer.errors import CheckpointError
from sparse_trainer.folders.card_facts import CardFacts, CardScore
from sparse_trainer.folders.configs import read_config, resolve
from sparse_trainer.folders.processors import (
    find_processor,
    load_image_processor,
    load_processor,
    tokenizer_in,
)
from sparse_trainer.folders.replace import check_target
from sparse_trainer.folders.rescue import spare_folder
from sparse_trainer.folders.save import Processor
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.inputs.make import inputs_for
from sparse_trainer.one_shot.checks import check_prunable, check_shape, layers_left
from sparse_trainer.one_shot.kv_merge import KvMergeOptions, check_kv_merge, merge_kv_by
from sparse_trainer.plan.document import Plan
from sparse_trainer.run import pictures
from sparse_trainer.run.options import Tell
from sparse_trainer.run.outcome import model_lines, pipeline_lines
from sparse_trainer.run.prune_folder import prune_model, read_calibration
from sparse_trainer.run.recipes.one_shot import OneShotRecipe
from sparse_trainer.run.recovery import (
    check_dense,
    check_recovery,
    check_targets,
    load_dense,
    read_data,
    recover_model,
)
from sparse_trainer.run.recovery_options import DENSE as BEFORE_PRUNING
from sparse_trainer.run.stages import DENSE, FINISH, PRUNED, Stage, State
from sparse_trainer.run.task_data import TaskData
from sparse_trainer.run.texts import pooled_as_stored
from sparse_trainer.run.vocabulary import trimmed_source
from sparse_trainer.tasks.base import Outputs, Prepared
from sparse_trainer.tasks.language.measure import check_tasks, evaluate, numbers_of


@dataclass(frozen=True, kw_only=True)
class OneShotJob:
    """A one-shot recipe with its calibration text read."""

    recipe: OneShotRecipe
    processor: Processor | None
    """What makes the model's inputs, and is saved with the result."""
    batches: list[dict[str, Tensor]] | None
    """None where criterion and repair look at weights only."""
    device: torch.device
    recovery_data: Prepared | None = None
    """What the model is trained on after the cut."""
    of_task: TaskData | None = None
    """What the model is measured by, where the recipe names a task."""
    teacher: PreTrainedModel | None = None
    """A model that it learns from then, where another one is named than the dense one of this run."""

    @property
    def result(self) -> Path:
        """The folder of the finished model."""
        return result_of(self.recipe)

    @cached_property
    def spare(self) -> Path:
        """A temporary folder: a model that was pruned in one shot has no folder of its own yet."""
        return spare_folder(self.result)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Measure, prune, merge KV heads, share layers and recover where the recipe says so, measure, and finish."""
        merged = () if self.recipe.kv_merge is None else (self.merge,)
        shared = () if self.recipe.sharing is None else (self.share,)
        recovered = () if self.recipe.recovery is None else (self.recover,)
        return (self.evaluate_dense, self.prune, *merged, *shared, *recovered, self.evaluate_pruned, *FINISH)

    def beside(self, folder: Path) -> None:
        """Write what the task says."""
        if self.of_task is not None:
            self.of_task.task.beside(folder, self.of_task.data)

    def evaluate_dense(self, state: State) -> State:
        """Measure the model as it was loaded."""
        return state.having(DENSE, state.models[DENSE], self._measured(state, DENSE))

    def prune(self, state: State) -> State:
        """Score, choose, repair and cut a copy of the model; stage after stage, each on what the last one left."""
        model, prunings = state.models[DENSE], self.recipe.prunings
        decisions: tuple[Decision, ...] = ()
        for number, options in enumerate(prunings):
            if len(prunings) > 1:
                state.tell(f"stage {number + 1} of {len(prunings)}")
            pruned = prune_model(
                model, self.batches, options, device=self.device, inplace=number > 0, tell=state.tell
            )
            model, decisions = pruned.model, (*decisions, *pruned.decisions)
        return replace(state.having(PRUNED, model), decisions=decisions)

    def merge(self, state: State) -> State:
        """Merge KV heads of the layers that are left."""
        options = self.recipe.kv_merge
        assert options is not None
        state.tell(options.method)
        return state.having(PRUNED, merge_kv_by(options, state.models[PRUNED], self.batches, inplace=True))

    def share(self, state: State) -> State:
        """Make groups of the layers that are left share their linears."""
        options = self.recipe.sharing
        assert options is not None
        state.tell(options.method)
        return state.having(PRUNED, share_by(options, state.models[PRUNED], inplace=True))

    def recover(self, state: State) -> State:
        """Train the model briefly as it was cut."""
        options, data = self.recipe.recovery, self.recovery_data
        assert options is not None
        assert data is not None
        dense = state.models[DENSE]
        _, log = recover_model(
            state.models[PRUNED],
            data,
            options,
            teacher=dense if options.teacher == BEFORE_PRUNING else self.teacher,
            tell=state.tell,
        )
        dense.requires_grad_(True)
        return replace(state, log=log)

    def evaluate_pruned(self, state: State) -> State:
        """Measure the model as it was cut."""
        return state.having(PRUNED, state.models[PRUNED], self._measured(state, PRUNED))

    @property
    def outputs(self) -> Outputs:
        """Logits, by the class or token that they choose; or what the task says."""
        return Outputs() if self.of_task is None else self.of_task.task.outputs

    def auto_class(self, plan: Plan) -> str:
        """Return the name of the auto class in transformers that loads the result."""
        return (auto_classes_of(plan.architecture) or ("AutoModel",))[0]

    def examples(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """Return examples of the task, or made-up inputs."""
        if self.of_task is not None:
            return self.of_task.examples(model, self.recipe.export.verify_samples)
        return inputs_for(model, rows=self.recipe.export.verify_samples)

    def card_facts(self, state: State) -> CardFacts:
        """Return what was measured, and what text the choice was made on."""
        calibration = self.recipe.calibration
        scored = tuple(
            CardScore(metric=name.rpartition(" ")[2], value=value, data=Path(name.rpartition(" ")[0]).name)
            for name, value in (state.metrics[PRUNED] or {}).items()
        )
        example, call = (None, ()) if self.of_task is None else self.of_task.asked
        settings = calibration.told if calibration and self.batches else {}
        return CardFacts(scored=scored, settings=settings, example=example, call=call)

    def load_lines(self, plan: Plan | None) -> tuple[str, ...]:
        """Return Python that loads the result, and asks it about an example where there is a task."""
        assert plan is not None
        if self.of_task is not None:
            task, data = self.of_task.task, self.of_task.data
            if task.pipeline is not None:
                return pipeline_lines(self.result, task.pipeline, data.example)
            return (*model_lines(self.result, task.auto_class), *data.call)
        return model_lines(self.result, self.auto_class(plan))

    def _measured(self, state: State, name: str) -> Mapping[str, float] | None:
        """Return what the recipe wants to know of a model, as rows of the table."""
        options, model = self.recipe.evaluation, state.models[name]
        if self.of_task is not None:
            state.tell(f"measuring the {name} model on the validation set")
            return self.of_task.metrics(model)
        if options is None:
            return None
        if tokenizer_in(self.processor) is None:
            raise CheckpointError(
                str(model.config.name_or_path),
                "has no tokenizer.",
                "Save one there, or say evaluation: null.",
            )
        state.tell(f"measuring the {name} model on {', '.join(options.tasks)}")
        found = evaluate(model, self.processor, options.tasks, files=options.files, options=options)
        return {
            f"{task} {number}": value
            for task, result in found.items()
            for number, value, _ in numbers_of(result)
        }


def prepare_one_shot(recipe: OneShotRecipe, tell: Tell, *, overwrite: bool) -> State:
    """Check the options, read the calibration text, load the model.

    Raises:
        SparseTrainerError: Bad input.
    """
    check_target(result_of(recipe), overwrite=overwrite)
    check_one_shot(recipe)
    recipe = _trimmed(recipe, tell)
    pooled = tuple(pooled_as_stored(options, recipe.model, tell) for options in recipe.prunings)
    recipe = replace(recipe, prunings=pooled)
    device, processor = recipe.model.place(), find_processor(recipe.model.name_or_path, recipe.model.revision)
    of_task, batches = _read_task(recipe, tell), None
    if of_task is None:
        batches = read_calibration(
            recipe.model,
            tokenizer_in(processor),
            recipe.prunings,
            recipe.calibration,
            tell,
            always=recipe.kv_merge is not None,
        )
    tell("loading the model")
    dense = recipe.model.load(by_block=any(options.by_block for options in recipe.prunings))
    for options in recipe.prunings:
        check_prunable(options, dense)
    if of_task is not None:
        of_task.check(dense)
        assert recipe.calibration is not None
        batches = of_task.batches(dense, recipe.calibration)
        of_task = of_task.completed(dense, resolve(recipe.model.name_or_path), recipe.model.revision)
    data, teacher = _prepare_recovery(recipe, tokenizer_in(processor), dense, tell)
    job = OneShotJob(
        recipe=recipe,
        processor=processor,
        batches=batches,
        device=device,
        recovery_data=data,
        of_task=of_task,
        teacher=teacher,
    )
    return State(job=job, tell=tell, model=dense, models={DENSE: dense}, metrics={DENSE: None})


def _read_task(recipe: OneShotRecipe, tell: Tell) -> TaskData | None:
    """Return the task with its data encoded, and the rows drawn that are calibrated on."""
    if recipe.task is None:
        return None
    assert recipe.data is not None
    assert recipe.calibration is not None
    tell("reading the data")
    processor = load_processor(recipe.task.processor, recipe.model.name_or_path, recipe.model.revision)
    task_data = TaskData(task=recipe.task, data=recipe.task.prepare(recipe.data, processor))
    return task_data.drawn(recipe.calibration)


def _trimmed(recipe: OneShotRecipe, tell: Tell) -> OneShotRecipe:
    """Return the recipe with the model as it is without the tokens that the recipe's corpus does not use."""
    if recipe.vocabulary is None:
        return recipe
    model, folder = recipe.model, result_of(recipe).parent
    source = trimmed_source(model.name_or_path, model.revision, recipe.vocabulary, folder, tell)
    return replace(recipe, model=replace(model, name_or_path=source, revision="main"))


def _prepare_recovery(
    recipe: OneShotRecipe, tokenizer: PreTrainedTokenizerBase | None, dense: PreTrainedModel, tell: Tell
) -> tuple[Prepared | None, PreTrainedModel | None]:
    """Return data and teacher of the training after the cut, once they are known to go with the model."""
    options = recipe.recovery
    if options is None:
        return None, None
    if tokenizer is None:
        raise CheckpointError(recipe.model.name_or_path, "has no tokenizer.", "Save one there.")
    check_targets(options, dense)
    tell(f"reading {options.data_name}")
    data = read_data(options, tokenizer)
    teacher = None if options.teacher == BEFORE_PRUNING else load_dense(options, recipe.model, tell)
    if teacher is not None:
        check_dense(dense, teacher, options)
    return data, teacher


def check_one_shot(recipe: OneShotRecipe) -> None:
    """Refuse what needs neither weights nor text to be refused.

    Raises:
        SparseTrainerError: An option that cannot work.
    """
    pictures.check_drawing()
    if recipe.data is not None:
        recipe.data.check_files()
    if recipe.recovery is not None:
        check_recovery(recipe.recovery)
    if recipe.evaluation is not None:
        known = check_tasks(recipe.evaluation.tasks, recipe.evaluation.files, recipe.evaluation)
        if any(corpus.has_images for corpus in known.values()):
            load_image_processor(recipe.model.name_or_path, recipe.model.revision)
    _check_positions(recipe)
    _check_shape(recipe)


def _check_shape(recipe: OneShotRecipe) -> None:
    """Refuse prunings, merging and sharing that the sizes of the model forbid."""
    shape, prunings = recipe.model.shape(), recipe.prunings
    device = recipe.model.place_of_model(by_block=any(options.by_block for options in prunings))
    for options in prunings:
        check_shape(options, shape, device)
    if recipe.kv_merge is not None:
        kinds = {kind for options in prunings if options.elements is None for kind in options.budget.kinds}
        counted = kinds.isdisjoint((HEADS, LAYERS))
        check_kv_merge(recipe.kv_merge if counted else KvMergeOptions(kv_heads=1), shape)
    if recipe.sharing is not None:
        check_sharing(recipe.sharing, shape, layers_left(prunings, shape))


def result_of(recipe: OneShotRecipe) -> Path:
    """Return the folder of the finished model."""
    return Path(recipe.export.output_dir or f"runs/{recipe.name}/pruned")


def _check_positions(recipe: OneShotRecipe) -> None:
    """Raise `ArgumentError` for sequences, of the measurements at the end, that the model has no positions for."""
    positions = positions_of(read_config(recipe.model.name_or_path, recipe.model.revision))
    if recipe.data is not None:
        check_positions("data.max_length", recipe.data.max_length, positions)
    elif recipe.calibration is not None:
        check_positions("calibration.length", recipe.calibration.length, positions)
    if recipe.evaluation is not None:
        check_positions("evaluation.length", recipe.evaluation.length, positions)
    if recipe.recovery is not None:
        check_positions("recovery.length", recipe.recovery.length, positions)
    check_positions("export.latency_sequence_length", recipe.export.latency_sequence_length, positions)
