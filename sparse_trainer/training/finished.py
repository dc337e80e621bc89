"""A model that was cut in its place in a Trainer: what is saved of it, and that it does not train on there."""

from pathlib import Path
from types import MethodType

from torch import nn
from transformers import PreTrainedModel

from patchers.patching.blends import blended
from patchers.patching.merging import base_model
from patchers.patching.patch import is_patched
from sparse_trainer.cut.record import plan_of
from sparse_trainer.errors import ArgumentError
from sparse_trainer.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, GATE_FILE, STATE_FILE
from sparse_trainer.files.writing import write_text, writing
from sparse_trainer.folders.card import model_card
from sparse_trainer.folders.exports import find_export
from sparse_trainer.folders.pipeline_files import bring_pipeline
from sparse_trainer.folders.save import CARD_FILE
from sparse_trainer.plan.document import PLAN_FILE, Plan
from sparse_trainer.training.wrapped_model import WHOLE_FILE


def save_finished(folder: Path, model: nn.Module) -> bool:
    """Write beside the weights of a model that was cut what belongs to them, and tell whether it was.

    That is its plan, and a pipeline that transformers lacks; what was saved while the model had gates goes.
    """
    plan = _plan_of_cut(model)
    if plan is None:
        return False
    if (
        folder / GATE_FILE
    ).is_file():  # that adapter means nothing without them; stock loaders would put it on
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            (folder / name).unlink(missing_ok=True)
    for name in (STATE_FILE, GATE_FILE, WHOLE_FILE):
        (folder / name).unlink(missing_ok=True)
    plan.save(folder / PLAN_FILE)
    bring_pipeline(folder)
    return True


def write_card(folder: Path, model: nn.Module) -> bool:
    """Write our card of a model that was cut, and tell whether it was: what was kept, and how it is loaded."""
    plan = _plan_of_cut(model)
    if plan is None or not isinstance(model, PreTrainedModel):
        return False
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CARD_FILE, model_card(model, plan, {}, find_export("auto")))
    return True


def check_unfinished(model: nn.Module) -> None:
    """Raise `ArgumentError` for a model that was cut: the optimizer holds the weights it had before, not its own."""
    if _plan_of_cut(model) is not None:
        raise ArgumentError(
            "trainer.model",
            "was cut: it has no gates left, and the optimizer knows nothing of its weights.",
            "Give it to a new Trainer to train it on.",
        )


def check_evaluates(model: nn.Module, trained: nn.Module) -> None:
    """Raise `ArgumentError` for a model that was cut where the Trainer's loss needs a forward pass of its own.

    trl's SFTTrainer puts one on the model it is given, with a fused head; a model that is cut gets its own one back.

    Args:
        trained: What was patched and trained.
    """
    trained = base_model(trained)
    own = vars(trained).get(
        "_original_forward", vars(trained).get("forward")
    )  # the first: under mixed precision
    if _plan_of_cut(model) is not None and own not in (None, MethodType(type(trained).forward, trained)):
        raise ArgumentError(
            "trainer.model",
            "was cut, and lacks the forward pass that this Trainer put on the model it trained.",
            "Evaluate before optimize_model: closed gates give the same numbers. Or give it to a new Trainer.",
        )


def _plan_of_cut(model: nn.Module) -> Plan | None:
    """Return the plan of a model, or of the one that it wraps, which was cut and has nothing left to close."""
    if is_patched(model) or any(blended(model)):
        return None
    return next((plan for part in model.modules() if (plan := plan_of(part)) is not None), None)
