"""The page in a browser: nothing is cut off, covered or wider than the window, light and dark."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from helpers.synthetic_rows import figure_1, methods_alone

from duality_ssl.reports import overview, page

# What only a browser knows: sizes of texts in its fonts, colors after the style sheet. The page is
# in a frame: a window has no width below 500, and the page itself runs no script.
MEASURE = """
addEventListener("load", () => {
  const view = frames[0], page = view.document, style = view.getComputedStyle(page.body);
  const found = {
    scheme: view.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light",
    paper: style.backgroundColor, ink: style.color,
    window: view.innerWidth, page: page.documentElement.scrollWidth,
    figures: page.querySelectorAll("figure").length, cut: [], covered: []};
  for (const svg of page.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll("text")].map(
      t => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([text, box], i) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
          box.bottom > frame.bottom + 1) found.cut.push(text);
      for (const [other, b] of boxes.slice(0, i))
        if (box.left < b.right - 1 && b.left < box.right - 1 &&
            box.top < b.bottom - 4 && b.top < box.bottom - 4) found.covered.push([text, other]);
    });
  }
  document.body.innerHTML = "<pre></pre>";
  document.querySelector("pre").textContent = JSON.stringify(found);
});
"""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def html() -> str:
    rows = {"figure_1": figure_1(), "normalization": [*methods_alone()]}
    return page.html("Report", [overview.section(name, some) for name, some in rows.items()])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which .ci/run installs")
@pytest.mark.parametrize(
    ("width", "scheme"), [(390, "light"), (1280, "dark")], ids=["phone", "desk in the dark"]
)
def test_the_page_in_a_browser(html: str, tmp_path: Path, width: int, scheme: str) -> None:
    shown = measured(html, tmp_path, width, scheme)
    assert shown["scheme"] == scheme
    dark = (shown["paper"], shown["ink"]) == ("rgb(21, 25, 30)", "rgb(232, 234, 237)")
    assert dark == (scheme == "dark")
    assert shown["page"] <= shown["window"] == width
    assert shown["figures"] > 8
    assert shown["cut"] == []
    assert shown["covered"] == []


def measured(html: str, folder: Path, width: int, scheme: str) -> dict[str, Any]:
    """What `MEASURE` finds in the page."""
    frame = (
        f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{escape(html)}"></iframe>'
    )
    outer = folder / "outer.html"
    outer.write_text(f"<!DOCTYPE html><body>{frame}<script>{MEASURE}</script></body>")
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        "--disable-dev-shm-usage",
        *(f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", "--hide-scrollbars"),
        *(f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", "--dump-dom"),
    ]
    done = subprocess.run(
        [*command, outer.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    assert "CONSOLE" not in done.stderr
    text = re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert text is not None
    found: dict[str, Any] = json.loads(unescape(text[1]))
    return found
