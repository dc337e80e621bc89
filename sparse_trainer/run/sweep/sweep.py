"""A sweep: one recipe, a grid of overrides, a run for every combination, and one table of all."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparse_trainer.fields import check_counts
from sparse_trainer.files.writing import check_file, writing
from sparse_trainer.run.options import Tell
from sparse_trainer.run.page import PAGE_FILE
from sparse_trainer.run.pictures import write_csv
from sparse_trainer.run.report import MISSING, spell_metric
from sparse_trainer.run.sweep.figures import Cells, Figures, columns
from sparse_trainer.run.sweep.overview import write_overview
from sparse_trainer.run.sweep.picture import write_picture
from sparse_trainer.run.sweep.planned import PlannedRun
from sparse_trainer.run.sweep.processes import Ended, RunProcess, places, run_all, sole_use
from sparse_trainer.run.together import check_alone

TABLE_FILE, PICTURE_FILE = "sweep.csv", "sweep.png"
WAITING, FINISHED, FAILED = "waiting", "finished", "failed"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The runs of a sweep, and what came of them so far."""

    runs: Sequence[PlannedRun]
    root: Path
    """Where the runs have their folders, and the table is written."""
    finished: dict[str, Figures] = field(default_factory=dict)
    """Name of a run -> what it measured."""
    failed: dict[str, str] = field(default_factory=dict)
    """Name of a run -> why it failed."""

    @property
    def page(self) -> Path:
        """The file that shows all of it, and leads to the pages of the runs."""
        return self.root / PAGE_FILE

    @property
    def table(self) -> Path:
        """The file with a row for every run."""
        return self.root / TABLE_FILE

    @property
    def picture(self) -> Path:
        """The file that shows quality over speed."""
        return self.root / PICTURE_FILE

    def status(self, run: PlannedRun) -> str:
        """Return how far a run is, in one word."""
        if run.name in self.finished:
            return FINISHED
        return FAILED if run.name in self.failed else WAITING

    def rows(self) -> list[Cells]:
        """Return a row for every run: name, status, the options that differ, what was measured, the error."""
        return [
            {"run": run.name, "status": self.status(run), **run.combination.values}
            | (self.finished[run.name].cells() if run.name in self.finished else {})
            | {"folder": str(run.result), "error": self.failed.get(run.name)}
            for run in self.runs
        ]

    def shown_rows(self) -> list[list[str]]:
        """Return a table for readers: the headline metric, the size and the speed of every run."""
        figures = list(self.finished.values())
        metric = next((name for each in figures for name in each.metrics), None)
        batches = list(dict.fromkeys(batch for each in figures for batch in each.speedups))
        header = ["run", *([metric, "dense"] if metric else []), "parameters"]
        rows = [[*header, *(f"speed-up, batch {batch}" for batch in batches)]]
        for run in self.runs:
            found = self.finished.get(run.name)
            cells = [self.status(run)] if found is None else _cells(found, metric, batches)
            rows.append([run.name, *cells, *[""] * (len(rows[0]) - 1 - len(cells))])
        return rows

    def write(self) -> None:
        """Write table, picture and page, each all or nothing."""
        rows = self.rows()
        last = ["folder", "error"]
        header = [name for name in columns(rows) if name not in last] + last
        write_csv(self.table, header, [[_text(row.get(name)) for name in header] for row in rows])
        title = f"{self.root.name}: {len(self.finished)} of {len(self.runs)} runs"
        write_picture(self.finished, self.picture, title)
        done = [run for run in self.runs if run.name in self.finished]
        pages = {run.name: run.result for run in done if (run.result / PAGE_FILE).is_file()}
        write_overview(self.root, self.shown_rows(), self.finished, pages, name=self.root.name, title=title)

    def to_json(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return {
            "folder": str(self.root),
            "table": str(self.table),
            "page": str(self.page),
            "picture": str(self.picture) if self.picture.is_file() else None,
            "runs": [
                {**row, "overrides": list(run.combination.overrides)}
                for run, row in zip(self.runs, self.rows(), strict=True)
            ],
        }


def run_sweep(
    runs: Sequence[PlannedRun], tell: Tell = logger.info, *, jobs: int = 1, plugins: Sequence[str] = ()
) -> Sweep:
    """Run what `plan_runs` returned, each in a process of its own, and write the table anew after every run.

    Runs that are finished are not run again; one that was stopped goes on; a run that fails does not keep the others.

    Args:
        tell: Called with one line when a run starts or ends.
        jobs: Runs at a time.
        plugins: Python files that every run imports.

    Raises:
        SparseTrainerError: Bad input, before the first run starts.
    """
    check_alone("sweep")
    check_counts(jobs=jobs)
    root = runs[0].root
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    check_file(root / TABLE_FILE)
    done = Sweep(runs=runs, root=root)
    with sole_use(root) as keep:
        for run in runs:
            if run.begun == "finished":
                tell(f"{run.name}: finished before")
                done.finished[run.name] = Figures(result=run.measured())
        done.write()
        options = [option for plugin in plugins for option in ("--plugin", plugin)]
        environments = places(jobs)

        def start(run: PlannedRun, place: int) -> RunProcess:
            tell(
                f"{run.name}: {'goes on' if run.begun == 'stopped' else 'starts'}, and says more in {run.log}"
            )
            return RunProcess(run, options, environments[place], keep)

        def ended(run: PlannedRun, how: Ended) -> None:
            if how.result is not None:
                run.record(how.result)
                done.finished[run.name] = Figures(result=how.result)
            else:
                done.failed[run.name] = str(how.error)
            tell(f"{run.name}: {done.failed.get(run.name) or FINISHED}")
            done.write()

        waiting = [run for run in runs if run.name not in done.finished]
        try:
            run_all(waiting, jobs, start, ended)
        except (KeyboardInterrupt, SystemExit):
            tell("stopped: the same command goes on with it")
            raise
    return done


def _cells(found: Figures, metric: str | None, batches: Sequence[str]) -> list[str]:
    quality = [] if metric is None else [found.metrics.get(metric), found.dense_metrics.get(metric)]
    speeds = [found.speedups.get(batch) for batch in batches]
    return [
        *(spell_metric(str(metric), value) for value in quality),
        f"{found.parameters:,}",
        *(MISSING if speed is None else f"{speed:.2f}x" for speed in speeds),
    ]


def _text(value: object) -> str:
    return "" if value is None else str(value)
