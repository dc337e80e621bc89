"""Learn from a teacher: logits by temperature-scaled KL, hidden states by mean squared error."""

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from patchers import Gate, Structure
from sparse_trainer.distillation.layer_map import LayerMap
from sparse_trainer.errors import ArgumentError

# Shape legend: B = batch, T = tokens, D = hidden features, C = classes or vocabulary, L = layers.

IGNORED = -100
"""Label of positions that do not count, as in transformers."""


def valid_distributions(logits: Tensor, inputs: Mapping[str, Any], *, shifted: bool) -> Tensor:
    """Return the mask of the distributions in [B, T, C] logits that count, shape [B, T].

    Positions with an ignored label, or, without labels, padding, do not count. A causal model's position t is judged by
    the label at t + 1, so its last position never counts.
    """
    labels = inputs.get("labels")
    if labels is not None and labels.shape == logits.shape[:2]:
        counts_BT: Tensor = labels != IGNORED
    elif inputs.get("attention_mask") is not None:
        counts_BT = inputs["attention_mask"].bool()
    else:
        counts_BT = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    if shifted:
        counts_BT = F.pad(counts_BT[:, 1:], (0, 1), value=False)
    return counts_BT


def logit_loss(student: Tensor, teacher: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
    """Return T^2 * KL(teacher || student), averaged over the distributions that count (Hinton et al., 1503.02531).

    Args:
        student: Logits [..., C].
        teacher: Logits of the same shape.
        counts: Mask over the leading dimensions, or None = all.

    >>> z = torch.tensor([[1.0, 2.0]])
    >>> float(logit_loss(z, z, temperature=2.0))
    0.0
    """
    student_log = F.log_softmax(student.float() / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher.float() / temperature, dim=-1)
    kl = F.kl_div(student_log, teacher_log, log_target=True, reduction="none").sum(-1)
    if counts is None:
        return kl.mean() * temperature**2
    return (kl * counts).sum() / counts.sum().clamp_min(1) * temperature**2


def hidden_loss(student_BTD: Tensor, teacher_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Return the mean squared error over the real tokens of each sequence, averaged over sequences."""
    error_BT = (student_BTD.float() - teacher_BTD.float()).square().mean(-1)
    if mask_BT is None:
        return error_BT.mean()
    mask_BT = mask_BT.to(error_BT.dtype)
    return ((error_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp_min(1)).mean()


@final
class Distiller:
    """Compares a student with a frozen teacher on the same batch.

    Args:
        teacher: Put into evaluation mode; its parameters stop asking for gradients.
        args: `SparseTrainingArguments`.
        shifted: Whether the model is causal (labels are shifted).
    """

    def __init__(self, teacher: nn.Module, args: Any, *, shifted: bool) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.args, self.shifted = args, shifted
        self.layer_map: LayerMap | None = None

    @property
    def needs_hidden_states(self) -> bool:
        """Whether the student has to return its hidden states."""
        return bool(self.args.distil_alpha_hidden > 0)

    def loss(self, inputs: Mapping[str, Any], outputs: Any, open_L: Tensor | None = None) -> Tensor:
        """Return the weighted sum of logit and hidden-state losses.

        Args:
            inputs: The student's batch; labels are withheld from the teacher.
            outputs: The student's outputs, with hidden states where `needs_hidden_states`.
            open_L: 1 for the layers that are kept, 0 for closed ones, whose outputs are not compared; None = all are.
        """
        withheld = {"labels", "start_positions", "end_positions", "num_items_in_batch"}
        questions = {name: value for name, value in inputs.items() if name not in withheld}
        with torch.no_grad():
            taught = self.teacher(**questions, output_hidden_states=self.needs_hidden_states)
        total: Tensor = self.args.distil_alpha_teacher * self._logits(inputs, outputs, taught)
        if self.needs_hidden_states:
            total = total + self.args.distil_alpha_hidden * self._hidden(inputs, outputs, taught, open_L)
        return total

    def _logits(self, inputs: Mapping[str, Any], outputs: Any, taught: Any) -> Tensor:
        names = [name for name in taught if name.endswith("logits") and taught[name] is not None]
        losses = []
        for name in names:
            student, teacher = outputs[name], taught[name]
            if student.shape != teacher.shape:
                raise ArgumentError(
                    "distil_teacher_name_or_path",
                    f"the teacher's {name} have shape {tuple(teacher.shape)}, the student's {tuple(student.shape)}.",
                    "Take a teacher with the same labels and vocabulary.",
                )
            counts = (
                valid_distributions(student, inputs, shifted=self.shifted) if student.dim() == 3 else None
            )
            losses.append(logit_loss(student, teacher, self.args.distil_temperature, counts))
        return torch.stack(losses).mean()

    def _hidden(self, inputs: Mapping[str, Any], outputs: Any, taught: Any, open_L: Tensor | None) -> Tensor:
        """Compare kept layers with the teacher's in their place, or with those of the learned map, and average."""
        mask_BT = inputs.get("attention_mask")
        if self.layer_map is not None:
            compare = functools.partial(hidden_loss, mask_BT=mask_BT)
            student, teacher = outputs["hidden_states"][1:], taught["hidden_states"][1:]
            return self.layer_map.loss(student, teacher, compare, open_L)
        pairs = list(zip(outputs["hidden_states"], taught["hidden_states"], strict=True))[1:]
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
    model: nn.Module, args: Any, teacher: nn.Module | None, source: TeacherSource
) -> Distiller | None:
    """Return what compares `model` with `teacher`, or with the one that the arguments name; None without either."""
    name = args.distil_teacher_name_or_path
    if teacher is model:
        raise ArgumentError("teacher", "it is the student itself.", "Pass a copy, or 'self'.")
    if teacher is None and name == "self":
        teacher = copy.deepcopy(model)
    elif teacher is None and name is not None:
        options = {} if source.cache_dir is None else {"cache_dir": source.cache_dir}
        constructor: Any = source.constructor or type(model)
        teacher = constructor.from_pretrained(name, **options)
    if teacher is None:
        return None
    shifted = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return Distiller(teacher, args, shifted=shifted)


def open_layers(structure: Structure, gates: Mapping[str, Gate]) -> Tensor | None:
    """Return which layers of the stack are kept, shape [L], or None where no layer can close."""
    layers = structure.of(["layers"])
    if not layers or len(structure.stacks) != 1:
        return None
    by_layer = {g.layer: gates[g.name].keep_U for g in layers}
    always = torch.ones_like(next(iter(by_layer.values())))
    return torch.cat([by_layer.get(layer, always) for layer in range(structure.stacks[0].size)])
