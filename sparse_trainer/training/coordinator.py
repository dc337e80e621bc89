"""The core of fine-pruning, without a Trainer: patch, score, select, step by step."""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from patchers.discovery.discover import discover
from patchers.patching.gates import Gate
from patchers.patching.merging import base_model, check_mergeable, has_adapters
from patchers.units import Structure
from sparse_trainer.criteria.weights import check_weights
from sparse_trainer.cut.layout import refuse_shared
from sparse_trainer.errors import ArgumentError
from sparse_trainer.training.agreement import Agreement
from sparse_trainer.training.arguments.arguments import SparseTrainingArguments
from sparse_trainer.training.arguments.checks import check_gradients, check_on_model
from sparse_trainer.training.blending import Blending
from sparse_trainer.training.distillation.layer_map import LayerMap, attach_projection
from sparse_trainer.training.distillation.teacher import Distiller, TeacherSource, make_distiller, open_layers
from sparse_trainer.training.drivers import Driver, make_driver
from sparse_trainer.training.extra_losses import Averages, ExtraLosses
from sparse_trainer.training.one_cut import check_enough

logger = logging.getLogger(__name__)


class ModelPatchingCoordinator:
    """Patches a model and closes its gates, or masks its weights, while somebody else trains it.

    In a loop: `patch_model` once; `begin` once; after the last backward of a step `observe`; after the optimizer's step
    `step`. `loss` combines the task loss with distillation and penalty. All state that a restart needs lives in the
    model: save and load its state dict.

    Args:
        sparse_args: What to prune and how.
        teacher: A model to learn from; else `sparse_args.distil_teacher_name_or_path` says which, if any.
        teacher_constructor: Loads that name: an auto class; default: the class of the model.
        cache_dir: Goes to the constructor.
        device, model_name_or_path, logit_names: Of nn_pruning, without effect here.
    """

    structure: Structure
    distiller: Distiller | None
    teacher_context: Callable[[], AbstractContextManager[Any]]
    """In which the teacher is called, e.g. the autocast of an accelerator, so that it computes as the student does."""

    def __init__(
        self,
        sparse_args: SparseTrainingArguments | None = None,
        device: Any = None,
        cache_dir: str | None = None,
        model_name_or_path: str | None = None,
        logit_names: Any = None,
        teacher_constructor: Any = None,
        *,
        teacher: nn.Module | None = None,
    ) -> None:
        self.args = SparseTrainingArguments() if sparse_args is None else sparse_args
        if not isinstance(self.args, SparseTrainingArguments):
            given = type(self.args).__name__
            raise ArgumentError("sparse_args", f"is a {given}.", "Give SparseTrainingArguments(density=…).")
        self.args.check()
        self.teacher = teacher
        self._load_teacher = TeacherSource(constructor=teacher_constructor, cache_dir=cache_dir)
        self.distiller, self.teacher_context = None, nullcontext
        self._attached: tuple[nn.Module, Driver] | None = None
        self._asked: dict[str, Any] = {}
        self.total_steps, self.current_step = 0, 0
        self._averages, self._agreement = Averages(), Agreement()

    def patch_model(self, model: nn.Module) -> nn.Module:
        """Find the units of `model`, attach gates or masks (all open), make the teacher ready; return the model.

        Raises:
            UnsupportedModelError: nothing of a known form is in the model, or nothing of it is left to prune.
            BudgetError: the budget cannot be met.
        """
        self.args.check()
        check_mergeable(model)
        check_weights(model)
        refuse_shared(model)
        if self.args.prunes_nothing:
            logger.warning("density %s keeps all: nothing is pruned.", self.args.density)
        distiller = make_distiller(
            model,
            self.args.distillation,
            self.teacher,
            self._load_teacher,
            is_frozen=self.args.freeze_weights,
        )
        return self._attach(model, distiller)

    def restore(self, model: nn.Module) -> nn.Module:
        """Attach what `patch_model` attaches, without a teacher, to a model that is about to load weights and gates."""
        return self._attach(model, None)

    def _attach(self, model: nn.Module, distiller: Distiller | None) -> nn.Module:
        self.distiller = distiller
        self.total_steps, self.current_step = 0, 0
        budget, options, asked = self.args.budget, self.args.driver_options, self.args.distillation
        self.structure = discover(model, budget.kinds, budget.exclude, budget.include)
        check_on_model(model, self.structure, budget, options)
        self.blending = Blending(base_model(model), self.args.blending)
        self._attached = (model, make_driver(model, self.structure, options))
        self._freeze()
        if asked.learns_layer_map:
            projection = attach_projection(model, self.gates)
            if distiller is not None:
                distiller.layer_map = LayerMap(projection, in_order=asked.in_order)
        self._asked = asdict(self.args)
        return model

    def follow_adapters(self, model: nn.Module) -> None:
        """Go on with adapters that were put on the patched model, or around it: they must merge, and scores must learn.

        Libraries freeze everything that is not their own. Called by a Trainer that is handed the model, and by `begin`.

        Args:
            model: The patched model, or one that wraps it.

        Raises:
            UnsupportedModelError: adapters that cannot be merged into the weights, or a criterion that reads the
                gradients of adapters which are not there.
        """
        check_mergeable(model)
        check_gradients(self.model, self.structure, self.args.driver_options)
        self._freeze()
        self._thaw()

    def _freeze(self) -> None:
        """Freeze the weights, where that is asked for."""
        if not self.args.freeze_weights:
            return
        if has_adapters(self.model):
            raise ArgumentError(
                "freeze_weights",
                "the model has adapters, which would be frozen with all else.",
                "Drop one of the two: under adapters the weights are frozen already.",
            )
        attached = {id(p) for p in self.attached_parameters()}
        for weight in self.model.parameters():
            if id(weight) not in attached:
                weight.requires_grad_(False)

    def _thaw(self) -> None:
        """Let scores learn, and what is attached to gates."""
        for gate in self.gates.values():
            gate.requires_grad_(True)
        for score in self.score_parameters():
            score.requires_grad_(True)

    def _patched(self) -> tuple[nn.Module, Driver]:
        if self._attached is None:
            raise ArgumentError(
                type(self).__name__, "has patched no model.", "Call patch_model(model) before anything else."
            )
        return self._attached

    @property
    def model(self) -> nn.Module:
        """The patched model."""
        return self._patched()[0]

    @property
    def pruner(self) -> Driver:
        """What closes units of the model."""
        return self._patched()[1]

    @property
    def gates(self) -> dict[str, Gate]:
        """The gates by group name."""
        return self.pruner.gates

    def score_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of gates or masks: scores, learned or merely read, and scales."""
        return self.pruner.score_parameters()

    def attached_parameters(self) -> list[nn.Parameter]:
        """Return all parameters that patching has brought along: scores, and what is learned beside them."""
        found = [p for gate in self.gates.values() for p in gate.parameters()]
        return list(dict.fromkeys([*found, *self.score_parameters()]))

    def parameter_groups(self, **options: Any) -> list[dict[str, Any]]:
        """Return optimizer groups: the weights under `options`, learned scores with their own rate and no decay."""
        scores = {id(p) for p in self.score_parameters()}
        weights = [p for p in self.model.parameters() if p.requires_grad and id(p) not in scores]
        return [{"params": weights, **options}, *self.score_groups()]

    def score_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer groups of learned scores and of scales, if any are."""
        return self.pruner.score_groups()

    @property
    def wants_calibration(self) -> bool:
        """Whether `calibrate` has to be called: before `begin`, unless a training is resumed; with `reconstruct`, after
        the step with which the dense start ends, or a stage.
        """
        return self.pruner.wants_calibration

    def calibrate(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Score the units by a criterion of one-shot pruning, such as wanda, on batches of the training set.

        With `reconstruct` the budget falls here: units are closed, and what reads them is refitted.

        Raises:
            DataError: the batches are too few, or do not fit the model.
            NonFiniteError: NaN or infinity.
        """
        self.pruner.calibrate(batches)

    def check_calibration(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Raise `DataError` for a calibration set that is too small for `reconstruct`, before a step is taken."""
        if self.args.reconstruct is not None:
            check_enough(self.model, self.structure, list(batches))

    def refitted_parameters(self) -> list[nn.Parameter]:
        """Return the weights and biases that `calibrate` may change."""
        return self.pruner.refitted_parameters()

    def begin(self, total_steps: int, step: int = 0, warmup_steps: int = 0) -> None:
        """Start, or resume at `step`, a training of `total_steps` optimizer steps.

        Args:
            warmup_steps: Of the learning rate: the unit of `initial_warmup` and `final_warmup`.

        Raises:
            ArgumentError: an option was changed after the model was patched.
        """
        pruner = self.pruner
        self._check_unchanged()
        if total_steps < 1:
            raise ArgumentError("total_steps", f"{total_steps} is not positive.", "Give the optimizer steps.")
        self.follow_adapters(self.model)
        self.total_steps, self.current_step = total_steps, step
        self.blending.begin(total_steps, step)
        pruner.begin(total_steps, step, warmup_steps)
        if self.distiller is not None:
            self.distiller.teacher.to(next(self.model.parameters()).device)
        self._averages, self._agreement = Averages(), Agreement()

    @property
    def progress(self) -> float:
        """Fraction of training that is done."""
        return self.current_step / self.total_steps if self.total_steps else 0.0

    @property
    def finished(self) -> bool:
        """Whether the final structure is reached, with nothing left of the layers that cheaper ones replace."""
        return self.total_steps > 0 and self.pruner.finished and self.blending.finished

    @property
    def final_from(self) -> int:
        """The first optimizer step of the training after which the structure is final."""
        schedule, total = self.pruner.schedule, self.total_steps
        first = bisect_left(range(total), True, key=lambda step: schedule.frozen(step / total))
        return max(first, self.blending.final_from)

    def observe(self, loss_scale: Tensor | None = None) -> None:
        """Read the mask gradients of one optimizer step: call after its last backward, before clipping.

        Args:
            loss_scale: What a GradScaler has multiplied the loss by, where the gradients are still so.
        """
        self.pruner.observe(loss_scale)

    @torch.no_grad()
    def step(self, step: int | None = None) -> None:
        """Move to the state after optimizer step number `step` (counted from 1), and select anew."""
        self.current_step = self.current_step + 1 if step is None else step
        self._thaw()
        self.blending.step(self.current_step)
        was_finished, due = self.pruner.finished, self.current_step % self.args.update_every == 0
        self.pruner.step(self.progress, due=due)
        if due or self.pruner.finished != was_finished:
            self._agreement.take_in(self.pruner.decided())

    def check_agreement(self) -> None:
        """Compare all decisions so far with those of the other processes, where there are any.

        A Trainer does so when it logs, evaluates or saves, and at the end. In a loop of your own call it now and then,
        in all processes at the same time.

        Raises:
            DisagreementError: in every process, where two of them have decided differently.
        """
        self._agreement.check(self.pruner.decided(), self.current_step)

    def end(self) -> None:
        """Write zeros into the parameters where weight masks are closed, once training has reached its end.

        A training that ended earlier, by early stopping for one, is told of.
        """
        if self.total_steps and not self.finished:
            report = self.report()
            logger.warning(
                "Training ended at step %d of %d, before the structure is final: density reached %.3f, asked %s. "
                "optimize_model cuts what is closed by now. For the rest resume from the last checkpoint, and let "
                "early stopping begin after the schedule (final_warmup), or plan for fewer steps (max_steps).",
                self.current_step, self.total_steps, self.density_reached(), report["density_asked"],
            )  # fmt: skip
        self.pruner.end()

    @contextmanager
    def final_masks(self) -> Iterator[None]:
        """Show weight masks and cheaper layers as they will be in the end, for a `with` block; gates stay."""
        if self.args.eval_with_current_patch_params:
            yield
            return
        with self.pruner.final(), self.blending.final():
            yield

    def extra_losses(self, inputs: Mapping[str, Any], outputs: Any) -> ExtraLosses:
        """Return what fine-pruning adds for one batch."""
        distilled = None
        if self.distiller is not None:
            opened = open_layers(self.structure, self.gates)
            distilled = self.distiller.losses(inputs, outputs, opened, context=self.teacher_context)
        extra = ExtraLosses(distilled=distilled, penalty=self.pruner.penalty())
        self._averages.add("distillation_loss", extra.distillation)
        self._averages.add("penalty", extra.penalty)
        return extra

    @property
    def needs_hidden_states(self) -> bool:
        """Whether the model must be called with `output_hidden_states=True`."""
        return self.distiller is not None and self.distiller.needs_hidden_states

    @property
    def task_weight(self) -> float:
        """Weight of the task loss: less than 1 beside a teacher."""
        return 1.0 if self.distiller is None else self.distiller.options.alpha_task

    def loss(self, task_loss: Tensor, inputs: Mapping[str, Any], outputs: Any) -> Tensor:
        """Return the loss to train on, for a loop without gradient accumulation."""
        return self.extra_losses(inputs, outputs).added_to(self.task_weight * task_loss)

    def metrics(self) -> dict[str, float]:
        """Return what to log, averaged since the last call. This is where the host waits for the device.

        Raises:
            NonFiniteError: scores became NaN or infinite.
        """
        self.check_finite()
        return {"density": self.density_reached(), **self.pruner.log(), **self._averages.take()}

    def check_finite(self) -> None:
        """Raise `NonFiniteError` if a score was NaN or infinite at any selection so far."""
        self.pruner.check_finite(self.current_step)

    def density_reached(self) -> float:
        """Return the fraction of the prunable cost behind open gates now; with masks, of the weights under them."""
        return self.pruner.density()

    def report(self) -> dict[str, Any]:
        """Return asked and reached: what plans and cards quote."""
        return self.pruner.report()

    def _check_unchanged(self) -> None:
        """Raise `ArgumentError` for an option that is another now than when the model was patched."""
        self.args.check()
        for name, now in asdict(self.args).items():
            then = self._asked[name]
            if now != then:
                raise ArgumentError(
                    name,
                    f"is {now!r} now; the model was patched with {then!r}.",
                    "Set it before patch_model.",
                )
