"""What regenerates the figures of the documentation: every command there is in its table, and is understood."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import all as every

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
PARSED = [figure for figure in every.FIGURES if figure.common]
"""Scripts with the options of all benchmarks, which look at a machine only after those are read."""


class ParsedError(Exception):
    """The options were understood."""


def test_every_command_of_the_page_is_in_the_table() -> None:
    shown = re.findall(r"^python (benchmarks/\S+\.py.*)$", PAGE, re.MULTILINE)
    wanted = {line.replace("FOLDER", "SMOLLM2") for line in shown if not line.startswith("benchmarks/all.py")}
    assert wanted <= {figure.command(is_quick=False).removeprefix("python ") for figure in every.FIGURES}


def test_every_figure_has_its_place_on_the_page() -> None:
    headings = set(re.findall(r"^##+ (.+)$", PAGE, re.MULTILINE))
    assert {figure.section for figure in every.FIGURES} <= headings


@pytest.mark.parametrize("is_quick", [True, False])
def test_every_script_understands_its_arguments(is_quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import common

    def stop(options: object) -> None:
        raise ParsedError

    monkeypatch.setattr(common, "prepare", stop)
    for figure in PARSED:
        if is_quick and figure.quick is None:
            continue
        words = shlex.split(figure.command(is_quick=is_quick))[1:]
        monkeypatch.setattr(sys, "argv", [*words, "--json"])
        with pytest.raises(ParsedError):
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def test_a_script_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [
        every.Figure(section=name, script=name, full=full, quick="")
        for name, full in (("good", ""), ("bad", ""), ("needy", "--train TRAIN"))
    ]
    monkeypatch.setattr(every, "FIGURES", tuple(figures))

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if "bad.py" in command[1]:
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nValueError: no")
        return subprocess.CompletedProcess(command, 0, 'noise\n{"time": {"a": 1.25}}\n', "")

    monkeypatch.setattr(every.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["all.py", str(tmp_path)])
    assert every.main() == 1
    said = capsys.readouterr().out
    assert "bad.py --threads 1 --clock cpu: failed with exit code 1: ValueError: no" in said
    assert "left out: needs --train" in said
    assert "1 of 3 regenerated" in said
    found = json.loads((tmp_path / every.JSON_FILE).read_text())
    assert [each["result"] for each in found] == [{"time": {"a": 1.25}}, None, None]
    assert "| time / a | 1.25 |" in (tmp_path / every.TEXT_FILE).read_text()
