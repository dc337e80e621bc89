"""`convert_folder`: a model folder in the form of another runtime, all or nothing."""

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sparse_trainer.convert.base import Conversion, Convertible
from sparse_trainer.convert.registry import CONVERSIONS
from sparse_trainer.errors import ArgumentError, CheckpointError, one_of
from sparse_trainer.files.writing import check_file, new_file, place_of
from sparse_trainer.folders.configs import config_values, resolve
from sparse_trainer.folders.load import refuse_adapter_alone, refuse_patched
from sparse_trainer.folders.load_shape import load_shape
from sparse_trainer.folders.replace import check_target, new_folder


def convert_folder(
    source: str, out: str | os.PathLike[str], to: str, *, quantize: str | None = None
) -> tuple[Path, Mapping[str, Any]]:
    """Write a model in the form of another runtime; return the place and facts about what lies there.

    Args:
        source: Folder, dense or pruned, or hub id.
        out: The file or folder to write, which must not be there.
        to: A name in `CONVERSIONS`.
        quantize: Format of the numbers; default: the first that the conversion knows.

    Raises:
        ArgumentError: an unknown conversion or format, or a package is missing.
        CheckpointError: `source` cannot be loaded, `out` is there or cannot be written.
        ConversionError: the form cannot hold this model.
    """
    form = CONVERSIONS[one_of("to", to, CONVERSIONS)]
    numbers = form.formats[0] if quantize is None else one_of("quantize", quantize, form.formats)
    check_installed("to", form.extra, form.packages)
    target = free_place(out, form)
    origin = find_origin(source)
    form.refuse(origin, numbers)
    if form.is_file:
        with new_file(target) as draft:
            return target, form.write(origin, draft, numbers)
    with new_folder(target, overwrite=False) as folder:
        return target, form.write(origin, folder, numbers)


def check_installed(where: str, extra: str, packages: Mapping[str, str]) -> None:
    """Raise `ArgumentError` where a package is not installed, with the line to run.

    Args:
        where: The option that asks for them.
        extra: The extra of sparse-trainer that brings them.
        packages: Name of the distribution -> release that this was tested with.
    """
    for package, tested in packages.items():
        try:
            version(package)
        except PackageNotFoundError as error:
            raise ArgumentError(
                where,
                f"{package} is not installed (tested with {tested}).",
                f"Run `pip install 'sparse-trainer[{extra}]'`.",
            ) from error


def find_origin(source: str) -> Convertible:
    """Return what is converted, its weights still on the disk.

    Raises:
        CheckpointError: as `load_pruned`.
    """
    where = resolve(source)
    if os.path.isdir(where):
        refuse_patched(where)
        refuse_adapter_alone(where)
    if config_values(where, {}).get("quantization_config"):
        raise CheckpointError(source, "is quantized.", "Convert the folder that it was made of.")
    return Convertible(name=source, skeleton=load_shape(source))


def free_place(out: str | os.PathLike[str], form: Conversion) -> Path:
    """Return where the output goes, and raise `CheckpointError` where something is, or nothing can be written."""
    target = place_of(out)
    if (target.is_dir() and any(target.iterdir())) or (form.is_file and target.exists()):
        raise CheckpointError(str(target), "is there already.", "Name another place, or move it away.")
    if not form.is_file:
        check_target(target, overwrite=False)
    else:
        check_file(target)
    return target
