"""Prove on one model that what is discovered can be cut, saved and loaded again without changing what it says."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.discovery.findings import starred
from sparse_trainer.architectures.case import Case, Report, cast, check_alike, reached_stacks
from sparse_trainer.architectures.decoding import RUN_ERRORS
from sparse_trainer.architectures.laws import DEFAULT, EXACT, EXPECTED_FILE, INPUT, OUTPUT, Law
from sparse_trainer.errors import SparseTrainerError
from sparse_trainer.folders.load import load_pruned
from sparse_trainer.inputs.make import forward_outputs, inputs_for

logger = logging.getLogger(__name__)


def check_model(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor] | None = None,
    folder: Path | None = None,
    *,
    used: PreTrainedModel | None = None,
) -> Report:
    """Check every law on a model; also for a private one whose naming was just declared.

    Args:
        model: Small, in float64 or float32, with biases and norms off their start values (`perturb` does that).
        inputs: For its forward; default: made up from its config.
        folder: Where to save the cut models, for `check_reload` in another process; None = not saved.
        used: The same model as users run it, with the kernels that transformers takes by itself; default: `model` in
            float32.
    """
    report = Report(model_type=model.config.model_type, architecture=type(model).__name__)
    try:
        structure = discover(model)
        given = dict(inputs_for(model) if inputs is None else inputs)
        before = forward_outputs(model, given)
    except SparseTrainerError as error:
        report.reason = error.what
        return report
    except RUN_ERRORS as error:
        report.is_built, report.reason = False, f"does not run: {type(error).__name__}: {error}"
        return report
    report.forms = list(structure.forms)
    report.untouched = {
        starred(path): why for path, why in structure.untouched.items() if why != "outside the blocks"
    }
    for group in structure.groups:
        report.units[group.kind] = report.units.get(group.kind, 0) + group.num_units
    reached = reached_stacks(model, given)
    report.unreached = [stack.path for stack in structure.stacks if stack.path not in reached]
    case = Case(reached=reached, model=model, structure=structure, inputs=given, before=before, folder=folder)
    report.notes = case.notes
    _judge(report, EXACT, case)
    model = copy.deepcopy(model).float() if used is None else used
    given = cast(given, model.dtype)
    try:
        before = forward_outputs(model, given)
    except RUN_ERRORS as error:
        report.notes.add(f"does not run with its own kernels: {error}")
        return report
    _judge(report, DEFAULT, replace(case, model=model, structure=structure, inputs=given, before=before))
    return report


def _judge(report: Report, laws: Mapping[str, Law], case: Case) -> None:
    """Enter which laws hold."""
    for name, check in laws.items():
        try:
            if check(case):
                report.passed.append(name)
        except Exception as error:
            report.failed[name] = f"{type(error).__name__}: {str(error).strip()[:300]}"
            logger.debug("%s: %s", report.model_type, name, exc_info=error)


def check_reload(folder: Path) -> None:
    """Raise unless a folder that `check_model` saved loads and answers as before. For a fresh process.

    Up to rounding: kernels add in another order where memory is aligned otherwise.
    """
    tensors = load_file(folder / EXPECTED_FILE)
    inputs = {name.removeprefix(INPUT): t for name, t in tensors.items() if name.startswith(INPUT)}
    expected = [tensors[f"{OUTPUT}{place}"] for place in range(len(tensors) - len(inputs))]
    model = load_pruned(folder).eval()
    check_alike(forward_outputs(model, inputs), expected)
