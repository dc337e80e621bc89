"""Learn from a teacher: answers by the divergence of their task, hidden states by mean squared error."""

import copy
import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from patchers.patching.gates import Gate
from patchers.units import LAYERS, Structure
from sparse_trainer.errors import ArgumentError
from sparse_trainer.inputs.labels import shifts_labels, unwrapped, without_labels
from sparse_trainer.training.distillation.comparable import check_distillation, check_teacher
from sparse_trainer.training.distillation.divergences import Divergence, divergence_for
from sparse_trainer.training.distillation.layer_map import LayerMap
from sparse_trainer.training.distillation.tokens import token_mask, valid_distributions
from sparse_trainer.training.extra_losses import DistillationLosses
from sparse_trainer.training.options import DistillationOptions

# Shape legend: B = batch, T = tokens, D = hidden features, C = classes or vocabulary, L = layers.


def hidden_loss(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Return the mean squared error over the real tokens of the batch: token-wise, as ZipLM (arXiv 2302.04089)."""
    error_BT = (student_BTD.float() - teacher_BTD.float()).square().mean(-1)
    if mask_BT is None:
        return error_BT.mean()
    mask_BT = mask_BT.to(error_BT.dtype)
    return (error_BT * mask_BT).sum() / mask_BT.sum().clamp_min(1)


@final
class Distiller:
    """Compares a student with a frozen teacher on the same batch.

    Args:
        teacher: Put into evaluation mode; its parameters stop asking for gradients.
        student: The model that learns: its task says how answers are compared.
        shifted: Whether it is causal (labels are shifted).
    """

    def __init__(
        self, teacher: nn.Module, options: DistillationOptions, *, student: nn.Module, shifted: bool
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.options, self.student, self.shifted = options, student, shifted
        self._divergences: dict[str, Divergence] = {}
        self.layer_map: LayerMap | None = None

    @property
    def needs_hidden_states(self) -> bool:
        """Whether the student has to return its hidden states."""
        return self.options.alpha_hidden > 0

    def losses(
        self,
        inputs: Mapping[str, Any],
        outputs: Any,
        open_L: Tensor | None = None,
        *,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> DistillationLosses:
        """Return the losses of logits and hidden states, each times its weight.

        Args:
            inputs: The student's batch; labels are withheld from the teacher.
            outputs: The student's outputs, with hidden states where `needs_hidden_states`.
            open_L: 1 for the layers that are kept, 0 for closed ones, whose outputs are not compared; None = all are.
            context: In which the teacher is called.
        """
        if self.options.alpha_logits > 0 and not carries_gradient(outputs):
            raise ArgumentError(
                "distil_alpha_teacher",
                "the logits that compute_loss returned carry no gradient: they teach the student nothing.",
                "Return the outputs that the loss was computed from, or train without a teacher.",
            )
        with torch.no_grad(), context():
            taught = self.teacher(
                **without_labels(self.teacher, inputs), output_hidden_states=self.needs_hidden_states
            )
        logits = hidden = None
        if self.options.alpha_logits > 0:
            logits = self.options.alpha_logits * self._logits(inputs, outputs, taught)
        if self.needs_hidden_states:
            hidden = self.options.alpha_hidden * self._hidden(inputs, outputs, taught, open_L)
        return DistillationLosses(logits=logits, hidden=hidden)

    def _logits(self, inputs: Mapping[str, Any], outputs: Any, taught: Any) -> Tensor:
        names = [name for name in taught if name.endswith("logits") and taught[name] is not None]
        if not names:
            raise ArgumentError(
                "distil_teacher_name_or_path",
                f"{type(unwrapped(self.teacher)).__name__} has no logits to learn from, only {', '.join(taught)}.",
                "Take models with a task head, or train without a teacher.",
            )
        losses = []
        for name in names:
            student, teacher = _output(outputs, name), taught[name]
            if student.shape != teacher.shape:
                raise ArgumentError(
                    "distil_teacher_name_or_path",
                    f"the teacher's {name} have shape {tuple(teacher.shape)}, the student's {tuple(student.shape)}.",
                    "Take a teacher with the same labels and vocabulary.",
                )
            if name not in self._divergences:
                self._divergences[name] = divergence_for(self.student, name, student, inputs.get("labels"))
            counts = valid_distributions(student, inputs, shifted=self.shifted)
            losses.append(self._divergences[name](student, teacher, self.options.temperature, counts))
        return torch.stack(losses).mean()

    def _hidden(self, inputs: Mapping[str, Any], outputs: Any, taught: Any, open_L: Tensor | None) -> Tensor:
        """Compare kept layers with the teacher's in their place, or with those of the learned map, and average."""
        states, taught_states = _output(outputs, "hidden_states"), _output(taught, "hidden_states")
        mask_BT = token_mask(states[-1].shape[:2], inputs)
        if self.layer_map is not None:
            compare = functools.partial(hidden_loss, mask_BT=mask_BT)
            return self.layer_map.loss(states[1:], taught_states[1:], compare, open_L)
        tail = self.options.tail_layers
        if tail is not None:
            states, taught_states = states[-tail:], taught_states[-tail:]
            open_L = None if open_L is None else open_L[-tail:]
        else:
            states, taught_states = states[1:], taught_states[1:]
        pairs = list(zip(states, taught_states, strict=True))
        loss_L = torch.stack([hidden_loss(student, teacher, mask_BT) for student, teacher in pairs])
        if open_L is None:
            return loss_L.mean()
        return (loss_L * open_L).sum() / open_L.sum().clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class TeacherSource:
    """Where a teacher that is given by name comes from."""

    constructor: Any = None
    """Something with `from_pretrained`, e.g. an auto class; None = the class of the student."""
    cache_dir: str | None = None


def make_distiller(
    model: nn.Module,
    options: DistillationOptions,
    teacher: nn.Module | None,
    source: TeacherSource,
    *,
    is_frozen: bool = False,
) -> Distiller | None:
    """Return what compares `model` with `teacher`, or with the one that is named; None without either.

    Args:
        is_frozen: Whether the weights of `model` stay as they are: `self` then needs no copy of them.
    """
    check_distillation(model, options, teacher)
    name = options.teacher
    if teacher is model:
        raise ArgumentError("teacher", "it is the student itself.", "Pass a copy, or 'self'.")
    if teacher is None and name == "self":
        shared: dict[int, Any] = {id(weight): weight for weight in model.parameters()} if is_frozen else {}
        teacher = copy.deepcopy(model, shared)
    elif teacher is None and name is not None:
        teacher = _load(name, model, source)
    if teacher is None:
        return None
    check_teacher(model, teacher, options)
    return Distiller(teacher, options, student=model, shifted=shifts_labels(model))


def _load(name: str, model: nn.Module, source: TeacherSource) -> nn.Module:
    options = {} if source.cache_dir is None else {"cache_dir": source.cache_dir}
    constructor: Any = source.constructor or type(unwrapped(model))
    try:
        teacher: nn.Module = constructor.from_pretrained(name, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ArgumentError(
            "distil_teacher_name_or_path",
            f"{name!r} cannot be loaded by {constructor.__name__} ({first}).",
            "Give a folder with a saved model, an id on the hub, or 'self'.",
        ) from error
    return teacher


def carries_gradient(outputs: Any) -> bool:
    """Tell whether a student can learn from its logits; True where there are none, which is told elsewhere."""
    values = outputs.items() if isinstance(outputs, Mapping) else ()
    logits = [v for name, v in values if name.endswith("logits") and isinstance(v, Tensor)]
    return not (logits and torch.is_grad_enabled()) or any(v.requires_grad for v in logits)


def _output(outputs: Any, name: str) -> Any:
    """Return what a model answered under a name."""
    value = outputs.get(name) if isinstance(outputs, Mapping) else None
    if value is None:
        raise ArgumentError(
            "distil_alpha_hidden" if name == "hidden_states" else "distil_alpha_teacher",
            f"the outputs hold no {name} to compare.",
            "Let compute_loss call model(**inputs), all of inputs, and return (loss, outputs); in a loop of your own "
            "pass output_hidden_states=coordinator.needs_hidden_states.",
        )
    return value


def open_layers(structure: Structure, gates: Mapping[str, Gate]) -> Tensor | None:
    """Return which layers of the stack are kept, shape [L], or None where no layer can close."""
    layers = structure.of([LAYERS])
    if not layers or len(structure.stacks) != 1:
        return None
    by_layer = {g.layer: gates[g.name].keep_U for g in layers}
    always = torch.ones_like(next(iter(by_layer.values())))
    return torch.cat([by_layer.get(layer, always) for layer in range(structure.stacks[0].size)])
