"""`report.html` of a family: its table, quality over speed, and where the page of each member is."""

from pathlib import Path

from sparse_trainer.files.json_text import read_object
from sparse_trainer.plan.document import Plan
from sparse_trainer.run.family import FamilyResult
from sparse_trainer.run.outcome import FILES
from sparse_trainer.run.sweep.figures import Figures
from sparse_trainer.run.sweep.overview import write_overview


def write_family_page(result: FamilyResult) -> Path:
    """Write `report.html` into the folder of a family, and return where it is."""
    folders = {member.folder.name: member.folder for member in result.members}
    plan = Plan.load(result.members[0].folder)
    return write_overview(
        result.folder,
        result.rows(),
        {name: Figures(result=read_object(folder / FILES["report"], "")) for name, folder in folders.items()},
        folders,
        name=result.recipe,
        title=f"{plan.model or plan.architecture}, {plan.method}, {len(folders)} models of one training",
    )
