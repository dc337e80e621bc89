"""What every field of a plan has to be, for plans that are read."""

from collections.abc import Callable, Mapping
from typing import Final

from patchers.units import KINDS
from sparse_trainer.errors import CheckpointError
from sparse_trainer.plan.parts import KeptTokens, Recovered, Speed
from sparse_trainer.plan.searched import are_searches

FORMAT = 1
RESTORE = "Restore the file, or make the plan again with optimize_model."


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_density(value: object) -> bool:
    if isinstance(value, dict):
        return all(kind in KINDS and _is_fraction(v) for kind, v in value.items())
    return value is None or _is_fraction(value)


def _is_sizes(value: object) -> bool:
    return (
        isinstance(value, dict) and set(value) == {"dense", "compact"} and all(map(_is_count, value.values()))
    )


def _is_shape(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_count, value))


def _are_shapes(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and _is_shape(pair[0])
        and (pair[1] is None or _is_shape(pair[1]))
        for pair in value.values()
    )


def _are_zeros(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_shape(pair) and len(pair) == 2 and pair[0] <= pair[1] for pair in value.values()
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


def _are_recoveries(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    return all(
        isinstance(each, dict)
        and set(each) == set(Recovered.__annotations__)
        and _is_text(each["train"])
        and _is_text(each["data"])
        and (each["teacher"] is None or _is_text(each["teacher"]))
        and _is_count(each["steps"])
        and _is_count(each["tokens"])
        and all(isinstance(each[f"perplexity_{when}"], int | float) for when in ("before", "after"))
        for each in value
    )


def _is_vocabulary(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or set(value) != set(KeptTokens.__annotations__):
        return False
    keep, corpora = value["keep"], value["corpora"]
    return (
        _is_count(value["size"])
        and _is_count(value["minimum_count"])
        and isinstance(keep, list)
        and set(map(type, keep)) == {int}
        and len(set(keep)) == len(keep)
        and 0 <= min(keep) <= max(keep) < value["size"]
        and isinstance(corpora, dict)
        and all(map(_is_text, corpora.values()))
    )


def _is_speed(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or set(value) != set(Speed.__annotations__):
        return False
    times, conditions = value["milliseconds"], value["conditions"]
    if not isinstance(times, dict) or set(times) != {"dense", "compact"} or not _is_text(conditions):
        return False
    known = (value["speedup_expected"], *times.values())
    others = [value[name] for name in ("speedup_asked", "milliseconds_asked", "speedup_measured", "noise")]
    return all(map(_is_positive, known)) and all(each is None or _is_positive(each) for each in others)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _are_versions(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


FIELDS: Final[Mapping[str, tuple[Callable[[object], bool], str]]] = {
    "format": (lambda value: value == FORMAT, f"format {FORMAT}, which this version reads"),
    "model": (_is_text, "text"),
    "model_type": (_is_text, "text"),
    "architecture": (_is_text, "text"),
    "method": (_is_text, "text"),
    "target": (_is_text, "text"),
    "scope": (_is_text, "text"),
    "density_asked": (_is_density, "a number in [0, 1], one such number per kind, or null"),
    "density_reached": (lambda value: value is None or _is_fraction(value), "a number in [0, 1], or null"),
    "params": (_is_sizes, '{"dense": count, "compact": count}'),
    "macs": (_is_sizes, '{"dense": count, "compact": count}'),
    "groups": (lambda value: isinstance(value, dict), "an object"),
    "shapes": (_are_shapes, "an object of [before, after] shapes"),
    "versions": (_are_versions, "an object of texts"),
    "zeros": (_are_zeros, "an object of [zeros, weights]"),
    "recoveries": (_are_recoveries, "a list of trainings after the cut"),
    "speed": (_is_speed, "what was asked and measured of the time, or null"),
    "kv_groups": (lambda value: isinstance(value, bool), "true or false"),
    "untouched_towers": (_are_texts, "a list of module paths"),
    "vocabulary": (_is_vocabulary, "null, or the tokens that stay"),
    "searches": (are_searches, "a list of searches for widths"),
}
"""Of every field of a plan: whether JSON values can be it, and what it has to be."""


def check_group(where: str, group: object) -> None:
    """Refuse JSON values that are no group of a plan.

    Raises:
        CheckpointError: a field is missing, unknown or of the wrong form; names it.
    """
    fields = {"kind", "layer", "size", "keep"}
    if not isinstance(group, dict) or set(group) != fields:
        raise CheckpointError(
            where, f"does not have exactly the fields {', '.join(sorted(fields))}.", RESTORE
        )
    if group["kind"] not in KINDS:
        raise CheckpointError(
            f"{where}.kind", f"{group['kind']!r} is not one of {', '.join(KINDS)}.", RESTORE
        )
    for name in ("layer", "size"):
        if not _is_count(group[name]):
            raise CheckpointError(f"{where}.{name}", f"{group[name]!r} is not a count.", RESTORE)
    keep = group["keep"]
    # Whole-list operations: a plan lists tens of thousands of channels, and loading a model waits for this.
    if not isinstance(keep, list) or not set(map(type, keep)) <= {int}:
        raise CheckpointError(f"{where}.keep", "is not a list of indices.", RESTORE)
    if keep != sorted(set(keep)):
        raise CheckpointError(f"{where}.keep", "is not in rising order.", RESTORE)
    if keep and not 0 <= keep[0] <= keep[-1] < group["size"]:
        raise CheckpointError(f"{where}.keep", f"does not list indices below {group['size']}.", RESTORE)
