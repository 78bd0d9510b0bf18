"""Does a real browser show the page, without a complaint and without asking anybody?"""

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from fxprune.reporting.comparison import Comparison

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of the browsers {', '.join(BROWSERS)} is installed")


def open_page(page: Path) -> tuple[str, list[str]]:
    """Return the text that the browser shows, and what it writes to its console."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command = [str(BROWSER), *options, f"--user-data-dir={page.parent / 'profile'}", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    body = re.sub(r"<style.*?</style>", "", shown.stdout, flags=re.S)
    text = unescape(re.sub(r"<[^>]*>", " ", body))
    return text, [line for line in shown.stderr.splitlines() if ":CONSOLE:" in line]


def test_a_browser_shows_it_without_a_complaint(
    comparison: Comparison, headline: tuple[str, ...], tmp_path: Path
) -> None:
    comparison.write(tmp_path / "report.html")
    text, console = open_page(tmp_path / "report.html")
    assert console == []
    assert [words for words in headline if words not in text] == []
    assert "openvino was not measured: not <installed>" in text
    assert "fxprune prune 'mine:net' --target sparsity=0.5 > log & echo" in text


def test_the_page_lets_nothing_in_from_outside(comparison: Comparison, tmp_path: Path) -> None:
    comparison.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    asking = page.replace("<h1>", '<img src="https://example.com/pixel.png"><script>document.title = 1</script><h1>')
    (tmp_path / "asking.html").write_text(asking)
    _, console = open_page(tmp_path / "asking.html")
    assert len(console) == 2
    assert all("Content Security Policy" in line for line in console)
