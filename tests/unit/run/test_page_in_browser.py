"""The page of a run in a headless browser, where one is at hand: narrow and wide, light and dark."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sparse_trainer.run.page import Page, render
from tests.unit.run.test_page import LOG, comparison
from tests.unit.run.test_report import plan

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
def test_a_page_is_readable(width: int, is_dark: bool, tmp_path: Path) -> None:
    assert BROWSER is not None
    page = Page(name="squad-bert", plan=plan(), comparison=comparison(), recipe="a: 1\n" + 300 * "x", log=LOG)
    (tmp_path / "report.html").write_text(render(page) + PROBE, encoding="utf-8")
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
