"""The page of a run in a headless browser, where one is at hand: narrow and wide, light and dark."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sparse_trainer.run.page import PAGE_FILE, Page, write_page
from sparse_trainer.run.sweep.overview import write_overview
from tests.unit.run.test_page import LOG, comparison
from tests.unit.run.test_report import plan
from tests.unit.run.test_sweep_figures import figures

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
PROBE = """
<script>
const overflow = document.documentElement.scrollWidth - innerWidth;
const letters = [...document.querySelectorAll("svg text")].map((text) => text.getBoundingClientRect().height);
const colours = ["color", "backgroundColor"].map((name) => getComputedStyle(document.body)[name]);
document.body.dataset.found = [overflow, Math.min(...letters).toFixed(1), ...colours].join("; ");
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason=f"no browser: none of {', '.join(NAMES)}")
@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("kind", ["run", "family"])
def test_a_page_is_readable(kind: str, width: int, is_dark: bool, tmp_path: Path) -> None:
    assert BROWSER is not None
    if kind == "run":
        recipe = "a: 1\n" + 300 * "x"
        page = Page(name="squad-bert", plan=plan(), comparison=comparison(), recipe=recipe, log=LOG)
        write_page(tmp_path, page)
    else:
        models = {
            name: figures(0.8, seconds) for name, seconds in (("density-0.75", 5.0), ("density-0.5", 3.0))
        }
        rows = [["density asked", "speed-up", "accuracy", "parameters", "steps", "seconds", "folder"]]
        rows += [["0.75", "1.60x", "80.0 %", "17,397,153", "1,000", "1,234", name] for name in models]
        pages = {name: tmp_path / name for name in models}
        write_overview(tmp_path, rows, models, pages, name="a family", title="bert-base-uncased, movement")
    with (tmp_path / PAGE_FILE).open("a", encoding="utf-8") as file:
        file.write(PROBE)
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900",
        f"--blink-settings=preferredColorScheme={0 if is_dark else 1}", f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom", (tmp_path / "report.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found
    overflow, letters, ink, paper = found[1].split("; ")
    assert float(overflow) <= 0
    assert float(letters) >= 8
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (brightness[0] > brightness[1]) == is_dark
    assert abs(brightness[0] - brightness[1]) > 300
