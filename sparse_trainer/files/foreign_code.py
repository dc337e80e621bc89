"""Code that folders name: dropped from what we write, never run, and told apart from the one file that is ours.

transformers runs what `auto_map` and `custom_pipelines` name as soon as somebody passes `trust_remote_code=True`, which
our own uneven folders need. So nothing of a source folder may hand such a name on.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from patchers import modeling_pruned
from sparse_trainer.errors import CheckpointError
from sparse_trainer.files.pipelines import is_ours
from sparse_trainer.files.writing import write_text

CODE_FILE = "modeling_pruned.py"
_NAMES = ("auto_map", "custom_pipelines")
"""Entries of config files that name code; in tokenizers, processors and configs inside configs, too."""
_OURS = f"{CODE_FILE.removesuffix('.py')}."


def drop_code_names(config: PreTrainedConfig) -> None:
    """Take what names code out of a config of transformers, in place: all but our file, where the config needs it.

    A config class of the user's own keeps its names.
    """
    if _is_stock(type(config)):
        named = {name: vars(config).pop(name, None) for name in _NAMES}
        references = named["auto_map"] if isinstance(named["auto_map"], dict) else {}
        ours = {auto: reference for auto, reference in references.items() if _is_ours(reference)}
        if ours and "pruning" in vars(config):
            vars(config)["auto_map"] = ours
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            drop_code_names(value)


def drop_code_names_of(processor: Any) -> None:
    """Take what names code out of a tokenizer, image processor or the like that transformers loaded, in place."""
    fields = vars(processor)
    for name in _NAMES:
        fields.pop(name, None)
        fields.get("init_kwargs", {}).pop(name, None)


def _is_ours(reference: object) -> bool:
    return isinstance(reference, str) and reference.startswith(_OURS) and "--" not in reference


def _is_stock(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "transformers"


def clean_folder(folder: Path) -> None:
    """Take out of the JSON files of a folder that is being written what names code that does not lie in it."""
    for file in sorted(folder.glob("*.json")):
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            continue  # of a source, and copied as it is: who reads it will tell
        if _clean(values, folder):
            write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _clean(values: object, folder: Path) -> bool:
    """Drop foreign names, in place, and tell whether there were any."""
    found = False
    for holder in list(_mappings(values)):
        for name in (name for name in _NAMES if name in holder):
            named = holder[name]
            kept = {
                key: reference
                for key, reference in (named.items() if isinstance(named, dict) else ())
                if (_lies_in(reference, folder) if name == "auto_map" else is_ours(key, reference, folder))
            }
            found = found or kept != named
            if kept:
                holder[name] = kept
            else:
                del holder[name]
    return found


def _lies_in(reference: object, folder: Path) -> bool:
    """Tell whether a reference `module.Class`, or a pair of them, means a file of the folder itself."""
    parts = reference if isinstance(reference, list | tuple) else [reference]
    return all(
        part is None or (isinstance(part, str) and (folder / f"{part.partition('.')[0]}.py").is_file())
        for part in parts
    )


def _mappings(value: object) -> Iterator[dict[str, Any]]:
    """Yield the mappings in JSON values."""
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            yield here
            waiting += here.values()
        elif isinstance(here, list):
            waiting += here


def needs_our_code(folder: Path, config: Mapping[str, Any]) -> bool:
    """Tell whether a folder of ours loads with `trust_remote_code`: its config names our file, and nothing else.

    Args:
        config: What its config.json holds.

    Raises:
        CheckpointError: The file of that name is not the one that we write.
    """
    references = config.get("auto_map")
    if not isinstance(references, Mapping) or not references:
        return False
    if not all(map(_is_ours, references.values())):
        return False
    file = folder / CODE_FILE
    if not file.is_file() or file.read_bytes() != Path(modeling_pruned.__file__).read_bytes():
        raise CheckpointError(
            str(file), "is not the file that this version writes.", "Save the model again, with save_pruned."
        )  # fmt: skip
    return True
