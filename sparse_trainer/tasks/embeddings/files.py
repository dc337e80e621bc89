"""The files by which sentence-transformers knows how an encoder's tokens are pooled: read and written."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from transformers.utils.hub import cached_file

from sparse_trainer.errors import CheckpointError, shown
from sparse_trainer.files.json_text import parse_json
from sparse_trainer.files.writing import write_text
from sparse_trainer.inputs.pooling import Mode, Pooling

MODULES_FILE = "modules.json"
_POOLING, _NORMALIZE = "1_Pooling", "2_Normalize"
_TYPE = "sentence_transformers.models.{}"
_KNOWN = ("Transformer", "Pooling", "Normalize")
_FLAGS: Mapping[Mode, str] = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_SETTINGS: Mapping[str, Sequence[str]] = {
    "sentence_bert_config.json": ("max_seq_length", "do_lower_case"),
    "config_sentence_transformers.json": ("prompts", "default_prompt_name", "similarity_fn_name"),
}
"""Further files, and what of them travels on: settings, no names of code."""
_REMEDY = "Take another model, or train it with sentence-transformers (see docs/with-other-trainers.md)."


def read_pooling(source: str, revision: str) -> Pooling | None:
    """Return how a model pools; None where it is no model of sentence-transformers.

    Raises:
        CheckpointError: It has layers or a way of pooling that are not known here, or damaged files.
    """
    modules = _read(source, revision, MODULES_FILE)
    if modules is None:
        return None
    where = f"{source}: {MODULES_FILE}"
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(where, "is no list of modules.", "Restore the file.")
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], [*_KNOWN]):
        raise CheckpointError(where, f"{', '.join(kinds)}: an encoder and its pooling are expected.", _REMEDY)
    file = f"{modules[1].get('path')}/config.json"
    return Pooling(mode=_mode(_read(source, revision, file), f"{source}: {file}"), normalize=len(kinds) > 2)


def read_settings(source: str, revision: str) -> dict[str, dict[str, Any]]:
    """Return the settings of a model of sentence-transformers, such as prompts: name of a file -> what it says."""
    found = {}
    for file, names in _SETTINGS.items():
        values = _read(source, revision, file)
        if isinstance(values, dict):
            found[file] = {name: values[name] for name in names if name in values}
    return found


def write_files(folder: Path, pooling: Pooling, size: int, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what lets `SentenceTransformer(folder)` load the encoder in `folder`.

    Args:
        size: Hidden features of the encoder.
        settings: As `read_settings` returns them.
    """
    paths = ["", _POOLING, *([_NORMALIZE] if pooling.normalize else [])]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": _TYPE.format(kind)}
        for number, (path, kind) in enumerate(zip(paths, _KNOWN, strict=False))
    ]
    flags = {flag: mode == pooling.mode for mode, flag in _FLAGS.items()}
    files: dict[str, object] = {
        MODULES_FILE: modules,
        f"{_POOLING}/config.json": {"word_embedding_dimension": size, **flags},
        **settings,
    }
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    for name, content in files.items():
        write_text(folder / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _mode(values: object, where: str) -> Mode:
    """Return the one way of pooling that a config names, in the old or the new form."""
    found = values if isinstance(values, dict) else {}
    named = found.get("pooling_mode", [mode for mode, flag in _FLAGS.items() if found.get(flag) is True])
    others = [
        name for name in found
        if name.startswith("pooling_mode_") and found[name] is True and name not in _FLAGS.values()
    ]  # fmt: skip
    modes = [*([named] if isinstance(named, str) else named), *others]
    if len(modes) != 1 or modes[0] not in get_args(Mode):
        raise CheckpointError(
            where,
            f"pools by {shown(modes)}; one of {', '.join(get_args(Mode))} is expected.",
            "Set task.pooling.",
        )
    return cast(Mode, modes[0])


def _read(source: str, revision: str, file: str) -> object:
    """Return the JSON in a file of a folder or of a name on the hub, None where there is none."""
    found = cached_file(
        source,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return None
    where = f"{source}: {file}"
    try:
        text = Path(found).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(where, f"cannot be read ({error}).", "Restore the file.") from error
    return parse_json(text, where, "Restore the file.")
