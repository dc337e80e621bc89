"""What a run of a recipe leaves behind: measurements, files beside the model, and how to load it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparse_trainer.files.foreign_code import needs_our_code
from sparse_trainer.files.writing import write_text
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.page import PAGE_FILE, Page, write_page
from sparse_trainer.run.pictures import WIDTH_FILES, write_widths
from sparse_trainer.run.report import Comparison, shape_lines
from sparse_trainer.run.verify import Reloaded

RECIPE_FILE = "recipe.yaml"
ALWAYS = {"page": PAGE_FILE, "recipe": RECIPE_FILE, "report": "report.json", "shapes": "shapes.txt"}
FILES = ALWAYS | WIDTH_FILES
"""What a file holds -> its name in the folder of the model."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run leaves behind."""

    recipe: str
    folder: Path
    seconds: float
    comparison: Comparison
    plan: Plan | None
    """None of a dense run."""
    reloaded: Reloaded | None
    """None where it was switched off, or nothing was pruned."""
    load_lines: tuple[str, ...]
    """Python that loads and uses the result."""
    files: dict[str, Path]
    """What was written beside the model."""

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        plan = self.plan
        return {
            "recipe": self.recipe,
            "folder": str(self.folder),
            "seconds": round(self.seconds, 1),
            **self.comparison.to_json(),
            "density_asked": plan.density_asked if plan else None,
            "density_reached": plan.density_reached if plan else None,
            "reloaded": asdict(self.reloaded) if self.reloaded else None,
            "load": list(self.load_lines),
            "files": {name: str(path) for name, path in self.files.items()},
        }


def write_beside(folder: Path, recipe: str, comparison: Comparison, page: Page) -> None:
    """Write recipe, page, tables and pictures beside the model: `ALWAYS`, and what widths and zeros have to show."""
    plan = page.plan
    zero, size = plan.zeros_in_all
    report = comparison.to_json() | ({"zeros": {"weights": size, "zeros": zero}} if plan.zeros else {})
    write_text(folder / FILES["recipe"], recipe)
    write_text(folder / FILES["report"], json.dumps(report, indent=2) + "\n")
    write_text(folder / FILES["shapes"], "\n".join(shape_lines(plan)) + "\n")
    write_widths(plan, folder)
    write_page(folder, page)


def pipeline_lines(folder: Path, task: str, example: object) -> tuple[str, ...]:
    """Return Python that loads the folder and asks it about an example."""
    return (
        "from transformers import pipeline",
        f'model = pipeline("{task}", model="{folder}"{_trust(folder, pipeline=True)})',
        f"print(model({example!r}))",
    )


def model_lines(folder: Path, auto_class: str) -> tuple[str, ...]:
    """Return Python that loads the folder."""
    return (
        f"from transformers import {auto_class}",
        f'model = {auto_class}.from_pretrained("{folder}"{_trust(folder)})',
    )


def _trust(folder: Path, *, pipeline: bool = False) -> str:
    """Return the argument that loads our files in the folder, where they are needed."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    is_needed = needs_our_code(folder, config) or (pipeline and "custom_pipelines" in config)
    return ", trust_remote_code=True" if is_needed else ""
