"""What a recipe that trains brings to a run: fine-tune dense, fine-prune and cut, evaluate."""

import copy
import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor
from transformers import (
    PreTrainedModel,
    SchedulerType,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME

from sparse_trainer.cut.fill import fill, rewind
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.cut.record import plan_of
from sparse_trainer.errors import SparseTrainerError
from sparse_trainer.files.writing import write_text
from sparse_trainer.folders.card_facts import CardFacts, CardScore
from sparse_trainer.folders.pipeline_files import bring_pipeline
from sparse_trainer.folders.replace import new_folder
from sparse_trainer.plan.document import PLAN_FILE, Plan
from sparse_trainer.run.bare_model import bare_model
from sparse_trainer.run.family import FamilyWriter, StageEnd
from sparse_trainer.run.lora import merged
from sparse_trainer.run.options import Tell
from sparse_trainer.run.outcome import RECIPE_FILE, model_lines, pipeline_lines
from sparse_trainer.run.recipes.fine_pruning import DENSE, FinePruningRecipe
from sparse_trainer.run.resume import RunFolder
from sparse_trainer.run.speed import measure_speed
from sparse_trainer.run.stages import FINISH, PRUNED, Stage, State, measure_models
from sparse_trainer.run.task_data import asked_by, example_inputs
from sparse_trainer.run.teachers import learner
from sparse_trainer.run.together import from_first, is_first
from sparse_trainer.run.trainings import dense_trainer, trained_whole
from sparse_trainer.tasks.base import Outputs, Prepared
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.sharding import is_fsdp
from sparse_trainer.training.stage_ends import StageEnds
from sparse_trainer.training.trainer import pruning_trainer


@dataclass(frozen=True, kw_only=True)
class FinePruningJob:
    """A recipe that trains, with its data encoded."""

    recipe: FinePruningRecipe
    processor: Any
    """What makes the model's inputs, as the task says: a tokenizer, an image processor ..."""
    data: Prepared
    source: str
    folder: RunFolder
    end: StageEnd | None = None
    """Of a family: the stage whose model is the result."""
    teacher: PreTrainedModel | None = None
    """A teacher that the recipe names; the dense model of this run is handed on by its stage."""

    @property
    def result(self) -> Path:
        """The folder of the finished model."""
        return self.folder.result if self.end is None else self.member_folder(self.end.name)

    @property
    def spare(self) -> Path:
        """A folder beside the checkpoints."""
        return self.folder.rescued

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Without pruning: fine-tune, measure, save. Else: fine-tune dense, fine-prune and cut, evaluate, finish."""
        if self.recipe.pruning is None:
            return (self.fine_tune, measure_models, self.save_dense)
        if self.recipe.pruning.stages is not None:
            return (self.fine_tune_dense, self.fine_prune_family)
        return (self.fine_tune_dense, self.fine_prune, self.evaluate_pruned, *FINISH)

    def fine_tune(self, state: State) -> State:
        """Fine-tune without pruning: it is all that the run does."""
        state.tell("fine-tuning")
        training = self.recipe.dense_training() or self.recipe.training
        model = self._trained(state.model, training, learner(self.recipe, self.teacher))
        return state.having(DENSE, model, self._metrics(model, training))

    def save_dense(self, state: State) -> State:
        """Write the fine-tuned model as a stock checkpoint."""
        state.tell(f"saving to {self.result}")
        if is_first():
            save_dense(self, state.models[DENSE], self.result)
        return state

    def fine_tune_dense(self, state: State) -> State:
        """Fine-tune the dense baseline where the recipe says so; hand on the model that is pruned."""
        training = self.recipe.dense_training()
        if training is None:
            state, student = self._measured(state), copy.deepcopy(state.model)
            return dataclasses.replace(state, model=self.start(student, state.tell))
        dense = self._dense_model(state, training)
        from_dense = self.recipe.model.prune_from == DENSE
        student = copy.deepcopy(dense) if from_dense else self.load_model()
        state = state.having(DENSE, dense, self._metrics(dense, training))
        return dataclasses.replace(state, model=self.start(student, state.tell))

    def fine_prune(self, state: State) -> State:
        """Fine-tune under the budget, and cut."""
        pruning = self.recipe.pruning
        assert pruning is not None
        training, kept = self.recipe.training, from_first(self.folder.uncut_model)
        state.tell("fine-pruning" if kept is None else f"taking the fine-pruned model from {kept}")
        trainer, student = self._pruning_trainer(state, pruning)
        if kept is None:
            student = trained_whole(trainer, self.checkpoint(training))
            trainer.save_model(str(self.folder.uncut))
            if is_first():
                trainer.state.save_to_json(str(self.folder.uncut / TRAINER_STATE_NAME))
                self.folder.finish_uncut()
        else:
            trainer.restore(kept)
            if (kept / TRAINER_STATE_NAME).is_file():  # earlier releases kept none
                trainer.state = TrainerState.load_from_json(str(kept / TRAINER_STATE_NAME))
        try:
            log = tuple(trainer.state.log_history)
            pruned = optimize_model(student)
            if pruning.budget.time is not None and is_first():
                state.tell("timing the pruned model beside the dense one")
                measure_speed(state.models[DENSE], pruned, pruning.budget.time)
            return dataclasses.replace(state.having(PRUNED, pruned), log=log)
        except SparseTrainerError as error:
            remedy = f"{error.remedy} The trained model, with its gates, is in {self.folder.uncut}."
            raise type(error)(error.where, error.what, remedy) from error

    def fine_prune_family(self, state: State) -> State:
        """Fine-tune under one budget after the other; each stage ends with a finished model."""
        pruning = self.recipe.pruning
        assert pruning is not None
        state.tell("fine-pruning, stage by stage")
        trainer, student = self._pruning_trainer(state, pruning)
        writer = FamilyWriter(self, state, pruning, lambda: bare_model(trainer, optimize_model(student)))
        trainer.add_callback(StageEnds(trainer.coordinator, writer.write, writer.go_on))
        trained_whole(trainer, self.checkpoint(self.recipe.training))
        return state

    def as_member(self, end: StageEnd) -> Self:
        """Return the job whose result is the model of one stage."""
        return dataclasses.replace(self, end=end)

    def member_folder(self, name: str) -> Path:
        """Return where the model of a stage goes."""
        return self.folder.result / name

    def is_done(self, name: str) -> bool:
        """Tell whether an earlier, stopped run has written the model of a stage."""
        return self.folder.has(self.member_folder(name))

    def _pruning_trainer(self, state: State, pruning: SparseTrainingArguments) -> tuple[Any, Any]:
        """Return what fine-prunes, and the model as it trains."""
        teacher = state.models[DENSE] if pruning.distil_teacher_name_or_path == DENSE else self.teacher
        training, student = self.recipe.training, self.adapted(state.model)
        trainer = pruning_trainer(self.recipe.task.trainer)(
            model=student,
            args=training,
            sparse_args=of_coordinator(pruning, has_teacher=teacher is not None),
            teacher=teacher,
            callbacks=self.recipe.callbacks(training),
            **self.trainer_options(),
        )
        return trainer, student

    def evaluate_pruned(self, state: State) -> State:
        """Measure the cut model on the validation set."""
        model = state.models[PRUNED]
        return state.having(PRUNED, model, self._metrics(model, self.recipe.training))

    @property
    def outputs(self) -> Outputs:
        """What the task says."""
        return self.recipe.task.outputs

    def beside(self, folder: Path) -> None:
        """Write what the task says; of a family, where the stage ended."""
        self.recipe.task.beside(folder, self.data)
        if self.end is not None:
            self.end.write(folder)

    def auto_class(self, plan: Plan) -> str:
        """Return the name of the auto class in transformers that loads the result."""
        return self.recipe.task.auto_class

    def examples(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """Return examples of the validation set."""
        return example_inputs(self.recipe.task, self.data, model, self.recipe.export.verify_samples)

    def card_facts(self, state: State) -> CardFacts:
        """Return the metrics on the validation set, how the model was trained, and an example."""
        training, data, pruning = self.recipe.training, self.recipe.data, self.recipe.pruning
        assert pruning is not None
        name = data.source if data.config is None else f"{data.source} ({data.config})"
        found = state.metrics[PRUNED] or {}
        scored = (
            CardScore(
                metric=metric, value=value, data=name or "local files",
                split=data.validation_split if data.source else "validation",
            )
            for metric, value in found.items()
        )  # fmt: skip
        settings = {
            "data": name or "local files",
            "training examples": len(self.data.train),
            "epochs": training.num_train_epochs,
            "batch size": training.train_batch_size * training.gradient_accumulation_steps,
            "learning rate": training.learning_rate,
            "learning rate schedule": SchedulerType(training.lr_scheduler_type).value,
            "seed": training.seed,
            "mixed precision": "bfloat16" if training.bf16 else "float16" if training.fp16 else "no",
            "scores": pruning.scoring,
            "teacher": "the dense model" if pruning.distil_teacher_name_or_path else "none",
        }
        example, call = asked_by(self.recipe.task, self.data)
        return CardFacts(scored=tuple(scored), settings=settings, example=example, call=call)

    def load_lines(self, plan: Plan | None) -> tuple[str, ...]:
        """Return Python that loads the result and asks it about an example."""
        task = self.recipe.task
        if task.pipeline is None:
            return (*model_lines(self.result, task.auto_class), *self.data.call)
        return pipeline_lines(self.result, task.pipeline, self.data.example)

    def load_model(self) -> PreTrainedModel:
        """Load the model that the recipe starts from; its fresh head follows from the seed."""
        set_seed(self.recipe.training.seed)
        return self.recipe.task.load_model(self.source, self.recipe.model.revision, self.data)

    def rewound(self, model: PreTrainedModel) -> PreTrainedModel:
        """Return the model in the shapes of the plan that the recipe names, or the model itself."""
        plan = self.recipe.model.rewind
        return model if plan is None else rewind(model, plan)

    def start(self, model: PreTrainedModel, tell: Tell) -> PreTrainedModel:
        """Return the model to train: rewound, and filled in place, where the recipe says so."""
        model = self.rewound(model)
        if self.recipe.model.fill:
            tell(f"{fill(model):,} zeros filled")
        return model

    def adapted(self, model: PreTrainedModel) -> Any:
        """Return the model as it trains: frozen, with adapters, where the recipe says so."""
        lora = self.recipe.lora
        return model if lora is None else lora.adapt(model, self.recipe.training.seed)

    def tried(self, model: PreTrainedModel) -> AbstractContextManager[Any]:
        """Show the model as it trains, for a `with` block."""
        lora = self.recipe.lora
        return nullcontext(model) if lora is None else lora.tried(model)

    def checkpoint(self, training: TrainingArguments) -> str | None:
        """Return the checkpoint from which a stage goes on, as Trainer takes it."""
        found = from_first(lambda: self.folder.checkpoint(training.output_dir))
        return None if found is None else str(found)

    def trainer_options(self) -> dict[str, Any]:
        """Return the arguments that every Trainer of the run shares."""
        return {
            "train_dataset": self.data.train,
            "eval_dataset": self.data.validation,
            "processing_class": self.processor,
            "data_collator": self.data.collator,
            "compute_metrics": self.data.compute_metrics,
            "compute_loss_func": self.data.loss,
            "preprocess_logits_for_metrics": self.data.reduce_logits,
        }

    def _dense_model(self, state: State, training: TrainingArguments) -> PreTrainedModel:
        """Return the fine-tuned dense model: of the earlier run that goes on, or trained now and kept for the next."""
        kept = from_first(self.folder.dense_model)
        if kept is not None:
            state.tell(f"taking the dense model from {kept}")
            dense = self.recipe.task.load_model(str(kept), "main", self.data)
            for part in (module for module in dense.modules() if isinstance(module, PreTrainedModel)):
                part.name_or_path = part.config.name_or_path = state.model.config.name_or_path
            return dense
        state.tell("fine-tuning the dense model")
        dense = self._trained(state.model, training, self.recipe.task.trainer)
        if is_first():
            save_dense(self, dense, self.folder.dense)
        return dense

    def _measured(self, state: State) -> State:
        """Measure the dense model as it was loaded, where the task can do that."""
        if not self.recipe.task.ready:
            return state
        state.tell("measuring the dense model on the validation set")
        return state.having(DENSE, state.model, self._metrics(state.model, self.recipe.training))

    def _trained(
        self, model: PreTrainedModel, training: TrainingArguments, base: type[Trainer]
    ) -> PreTrainedModel:
        student = self.adapted(model)
        trainer = dense_trainer(base)(
            model=student, args=training, callbacks=self.recipe.callbacks(training), **self.trainer_options()
        )
        trained = trained_whole(trainer, self.checkpoint(training))
        return merged(trained) if self.recipe.lora else trained

    def _metrics(self, model: PreTrainedModel, training: TrainingArguments) -> dict[str, float]:
        """Return the metrics of the recipe on the validation set."""
        trainer = self.recipe.task.trainer(model=model, args=training, **self.trainer_options())
        if is_fsdp(trainer.accelerator):
            # Transformers 5.24 shares a model out together with an optimizer only: here it lies whole everywhere.
            trainer.is_fsdp_enabled = False
            model.to(training.device)  # type: ignore[arg-type]
        logged = trainer.evaluate()
        bare_model(trainer, model)
        return {name: logged[f"eval_{name}"] for name in self.recipe.task.metrics}


def save_dense(job: FinePruningJob, model: PreTrainedModel, folder: Path) -> None:
    """Write a model that was fine-tuned, all or nothing; with the plan of one that was pruned before."""
    with new_folder(folder, overwrite=True, ours=RECIPE_FILE) as draft:
        model.save_pretrained(draft)
        job.processor.save_pretrained(draft)
        job.beside(draft)
        bring_pipeline(draft)
        write_text(draft / RECIPE_FILE, job.recipe.dump())
        plan = plan_of(model)
        if plan is not None:
            plan.save(draft / PLAN_FILE)


def of_coordinator(pruning: SparseTrainingArguments, *, has_teacher: bool) -> SparseTrainingArguments:
    """Return the arguments as the coordinator gets them: a teacher that was loaded is handed over, not named."""
    return dataclasses.replace(pruning, distil_teacher_name_or_path=None) if has_teacher else pruning
