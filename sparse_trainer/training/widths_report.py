"""A picture of the widths that are left, for what a training reports to (`report_to`)."""

import io
from collections.abc import Callable
from typing import Any, Final

import numpy
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, TrackioCallback, WandbCallback

from sparse_trainer.plan.parts import GroupPlan
from sparse_trainer.plan.widths import widths_figure
from sparse_trainer.training.coordinator import ModelPatchingCoordinator

NAME = "train/widths"
"""What the picture is called, beside train/density and train/threshold."""


def _to_tensorboard(callback: Any, picture: Image.Image, step: int) -> None:
    if callback.tb_writer is not None:
        callback.tb_writer.add_image(NAME, numpy.asarray(picture), step, dataformats="HWC")


def _to_wandb(callback: Any, picture: Image.Image, step: int) -> None:
    import wandb

    if wandb.run is not None:
        wandb.log({NAME: wandb.Image(picture), "train/global_step": step})


def _to_trackio(callback: Any, picture: Image.Image, step: int) -> None:
    import trackio

    trackio.log({NAME: trackio.Image(picture), "train/global_step": step})


REPORTS: Final[dict[type[TrainerCallback], Callable[[Any, Image.Image, int], None]]] = {
    TensorBoardCallback: _to_tensorboard,
    WandbCallback: _to_wandb,
    TrackioCallback: _to_trackio,
}
"""How a picture is handed over, by the callback that reports; there is one only where it was asked for."""


class WidthsReport(TrainerCallback):
    """Shows the widths at the end of a training. It has to come before the callbacks that report: they close then."""

    def __init__(self, coordinator: ModelPatchingCoordinator, handler: Any) -> None:
        self.coordinator, self.handler = coordinator, handler

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw, where somebody listens; weight masks alone have no widths before they are cut."""
        listening = [
            (callback, show)
            for callback in self.handler.callbacks
            for kind, show in REPORTS.items()
            if isinstance(callback, kind)
        ]
        kinds = kept_widths(self.coordinator)
        if not (listening and kinds and state.is_world_process_zero):
            return
        drawn = io.BytesIO()
        widths_figure(kinds).savefig(drawn, format="png", dpi=120)
        picture = Image.open(drawn).convert("RGB")
        for callback, show in listening:
            show(callback, picture, state.global_step)


def kept_widths(coordinator: ModelPatchingCoordinator) -> dict[str, list[GroupPlan]]:
    """Return which units the gates leave open now, by kind of unit."""
    kinds: dict[str, list[GroupPlan]] = {}
    for group in coordinator.structure.groups:
        gate = coordinator.gates.get(group.name)
        if gate is not None:
            keep = gate.keep_U.nonzero().flatten().tolist()
            plan = GroupPlan(kind=group.kind, layer=group.layer, size=group.num_units, keep=keep)
            kinds.setdefault(group.unit_name, []).append(plan)
    return kinds
