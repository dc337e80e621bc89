"""Recovery from folder to folder: load a model that was cut, train it briefly, save it with its plan continued."""

import dataclasses
import json
import shutil
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparse_trainer.budget.counting import parameter_count
from sparse_trainer.errors import ArgumentError, CheckpointError
from sparse_trainer.files.names import ADAPTER_CONFIG
from sparse_trainer.files.writing import write_text
from sparse_trainer.folders.card_facts import CardFacts, CardScore
from sparse_trainer.folders.configs import read_config
from sparse_trainer.folders.load_shape import load_shape
from sparse_trainer.folders.replace import check_target
from sparse_trainer.folders.rescue import rescuing, spare_folder
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.folders.tokenizers import load_tokenizer
from sparse_trainer.inputs.limits import check_positions, positions_of
from sparse_trainer.plan.document import called
from sparse_trainer.plan.parts import Recovered
from sparse_trainer.plan.widths import title_of
from sparse_trainer.run.curves import Log, write_curves
from sparse_trainer.run.options import SourceOptions, Tell
from sparse_trainer.run.page import Page, write_page
from sparse_trainer.run.pictures import FILES, ZERO_FILES, check_drawing
from sparse_trainer.run.recovery import (
    Training,
    check_recovery,
    check_targets,
    checked_plan,
    load_dense,
    read_data,
    recover_model,
)
from sparse_trainer.run.recovery_options import DENSE, RecoveryOptions
from sparse_trainer.run.together import check_alone
from sparse_trainer.tasks.language.token_losses import PERPLEXITY
from sparse_trainer.training.checkpoint import last_checkpoint

OPTIONS_FILE = ".sparse_trainer_recovery.json"
"""Beside checkpoints: the options of the training that wrote them."""
_FREE = ("minutes",)
"""Options that may be others where a training goes on."""


def recover_folder(
    source: SourceOptions,
    folder: Path,
    options: RecoveryOptions,
    *,
    checkpoints: Path | None = None,
    save_steps: int = 100,
    resume: bool = False,
    export: str = "auto",
    overwrite: bool = False,
    tell: Tell,
) -> tuple[Path, Recovered]:
    """Recover the model in a folder and save it to another; return that, and what was done.

    The new folder appears whole or not at all.

    Args:
        checkpoints: Where checkpoints of the training are kept; None = none are.
        resume: Go on from the last of them. `minutes` count anew.
        tell: Called with one line at the start of every stage.

    Raises:
        ArgumentError: An option cannot be meant, or the model has nothing that could learn so.
        CheckpointError: The model cannot be loaded or was not cut, or a folder is not ours to replace.
        DataError: The data cannot be had.
        NonFiniteError: Loss or gradients are no numbers any more; nothing was written.
    """
    check_alone("recover")
    check_target(folder, overwrite=overwrite)
    check_recovery(options)
    check_drawing()
    if options.teacher == DENSE:
        raise ArgumentError(
            "teacher", "'dense' is of recipes that prune.", "Name the folder of the dense model."
        )
    _check_source(source)
    training = _training(options, folder, checkpoints, save_steps, resume=resume, overwrite=overwrite)
    config = read_config(source.name_or_path, source.revision)
    check_positions("length", options.length, positions_of(config))
    check_targets(options, load_shape(source.name_or_path))
    tokenizer = load_tokenizer(source.name_or_path, source.revision)
    tell(f"reading {options.data_name}")
    data = read_data(options, tokenizer)
    tell(f"loading {source.name_or_path}")
    model = source.load()
    _check_not_padded(model)
    teacher = load_dense(options, source, tell)
    if training.folder is not None:
        training.folder.mkdir(parents=True, exist_ok=True)
        if training.checkpoint is None:
            for old in training.folder.glob("checkpoint-*"):
                shutil.rmtree(old)
        write_text(training.folder / OPTIONS_FILE, _written(options))
    done, log = recover_model(model, data, options, teacher=teacher, training=training, tell=tell)
    tell(f"saving to {folder}")
    save_recovered(model, log, folder, tokenizer, source.name_or_path, export=export, overwrite=overwrite)
    return folder, done


def save_recovered(
    model: PreTrainedModel,
    log: Log,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    before: str,
    *,
    export: str,
    overwrite: bool,
) -> None:
    """Save a model with the plan that it carries, its page, and the pictures that lay beside it before.

    Args:
        log: Of its training.
        before: The folder that it was loaded from.
    """
    plan = checked_plan(model)
    done = plan.recoveries[-1]
    score = CardScore(
        metric=PERPLEXITY, value=done["perplexity_after"], data=done["data"], part="what was held out"
    )

    def beside(place: Path) -> None:
        write_curves(log, place, title_of(plan, f"recovered ({done['train']})"))
        write_page(place, Page(name=called(before), plan=plan, log=log))
        for file in (FILES | ZERO_FILES).values():
            if (Path(before) / file).is_file():
                shutil.copyfile(Path(before) / file, place / file)

    with rescuing(model, tokenizer, spare_folder(folder)):
        save_pruned(
            model,
            folder,
            processor=tokenizer,
            facts=CardFacts(scored=(score,)),
            export=export,
            overwrite=overwrite,
            beside=beside,
        )


def _check_source(source: SourceOptions) -> None:
    if (Path(source.name_or_path) / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            source.name_or_path,
            "holds adapters already, which recovery would freeze.",
            "Merge them first: peft.AutoPeftModel….from_pretrained(folder).merge_and_unload().",
        )


def _check_not_padded(model: PreTrainedModel) -> None:
    """Raise `CheckpointError` for a model that zeros fill up: trained, they would be no zeros any more."""
    plan = checked_plan(model)
    if parameter_count(model) != plan.params["compact"]:
        raise CheckpointError(
            str(model.config.name_or_path),
            f"has {parameter_count(model):,} parameters, and its plan says {plan.params['compact']:,}: it is padded.",
            "Give the folder that was saved native or self-contained.",
        )


def _training(
    options: RecoveryOptions,
    result: Path,
    folder: Path | None,
    save_steps: int,
    *,
    resume: bool,
    overwrite: bool,
) -> Training:
    """Return where checkpoints go, and the one to go on from. Nothing is deleted yet.

    Raises:
        ArgumentError: Nothing is kept to go on from, or it would lie in the result.
        CheckpointError: There is no checkpoint, one of other options, or one that nobody asked to go on from.
    """
    if folder is None:
        if resume:
            raise ArgumentError(
                "resume", "no checkpoints are kept.", "Set `checkpoints`, the folder of those of then."
            )
        return Training()
    if result.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ArgumentError(
            "checkpoints", f"{folder} lies in the folder of the result, which appears at the end, whole.",
            "Name a folder beside it.",
        )  # fmt: skip
    found = last_checkpoint(folder)
    if resume and found is None:
        raise CheckpointError(str(folder), "holds no complete checkpoint.", "Start it without `resume=True`.")
    if found is not None and not resume and not overwrite:
        raise CheckpointError(
            str(found),
            "is work of an earlier recovery, which would be written over.",
            "Set `resume=True` to go on with it, or `overwrite=True` to start over.",
        )
    if resume:
        _check_same(folder / OPTIONS_FILE, options)
    elif found is not None and not (folder / OPTIONS_FILE).is_file():
        raise CheckpointError(
            str(found), "is no checkpoint of a recovery: not ours to replace.", "Name another folder."
        )
    return Training(folder=folder, save_steps=save_steps, checkpoint=found if resume else None)


def _check_same(file: Path, options: RecoveryOptions) -> None:
    try:
        then = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            str(file), f"cannot be read ({error}).", "Start over with `overwrite=True`."
        ) from error
    now = json.loads(_written(options))
    changed = [name for name in now if then.get(name) != now[name] and name not in _FREE]
    if changed:
        raise CheckpointError(
            f"{file}: {', '.join(changed)}",
            "; ".join(f"{name} was {then.get(name)!r} and is {now[name]!r} now" for name in changed) + ".",
            "Go on with the options of then, or start over with `overwrite=True`.",
        )


def _written(options: RecoveryOptions) -> str:
    return json.dumps(dataclasses.asdict(options), indent=2) + "\n"
