"""What every recipe has: where it was read from, how it is written, and what its result looks like."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sparse_trainer.errors import RecipeError, shown
from sparse_trainer.run.recipes.reading import DESCRIPTION, Sections
from sparse_trainer.run.recipes.sections import RESUME, ExportOptions, as_yaml, check_names, parsed


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run, in sections. A kind of recipe adds its sections as fields."""

    SECTIONS: ClassVar[Mapping[str, type]] = {"export": ExportOptions}
    """Section -> the dataclass of its options."""

    name: str
    """Name of the file, without its ending."""
    description: str
    resume: bool
    """Go on with a run of this recipe that was stopped; where there is none, start one."""
    export: ExportOptions
    sections: Sections
    """The recipe as written, overrides included: what `dump` writes."""
    origin: str
    """Where it was read from, for messages."""
    overrides: tuple[str, ...] = field(default=(), compare=False)
    """What was changed of it on the command line, for messages."""

    @property
    def classes(self) -> Mapping[str, type]:
        """Section -> the dataclass of its options, in this recipe."""
        return self.SECTIONS

    def dump(self) -> str:
        """Return the recipe as YAML that loads to the same recipe."""
        return as_yaml(self.sections)

    @classmethod
    def header(cls, sections: Sections, name: str, origin: str) -> dict[str, Any]:
        """Return the fields that all recipes have, once the names of the sections are known to be right."""
        check_names(sections, tuple(cls.SECTIONS), origin)
        resume = sections.get(RESUME, False)
        if not isinstance(resume, bool):
            raise RecipeError(f"{origin}: {RESUME}", f"{shown(resume)} is not true or false.", "Give true.")
        return {
            "name": name,
            "description": str(sections.get(DESCRIPTION, "")),
            "resume": resume,
            "export": parsed(ExportOptions, sections, "export", origin),
            "sections": copy.deepcopy(dict(sections)),
            "origin": origin,
        }
