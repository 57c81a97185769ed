"""The page in a browser: nothing is cut off, covered or wider than the window, light and dark."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from helpers.synthetic_rows import figure_1, methods_alone

from duality_ssl.reports import overview, page

# What only a browser knows: sizes of texts in its fonts, colors after the style sheet.
MEASURE = """
const found = {scheme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light",
  paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color,
  window: innerWidth, page: document.documentElement.scrollWidth,
  figures: document.querySelectorAll("figure").length, cut: [], covered: []};
for (const svg of document.querySelectorAll("svg")) {
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
"""


@pytest.fixture(scope="module")
def html() -> str:
    rows = {"figure_1": figure_1(), "normalization": [*methods_alone()]}
    return page.html("Report", [overview.section(name, some) for name, some in rows.items()])


@pytest.mark.slow
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
    """What `MEASURE` finds in a copy of the page that may run it."""
    open_page = html.replace("default-src 'none'", "default-src 'unsafe-inline'")
    page_ = folder / "page.html"
    page_.write_text(open_page.replace("</body>", f"<script>{MEASURE}</script></body>"))
    chromium = shutil.which("chromium") or "google-chrome"  # Debian's, or another distribution's
    command = [
        *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        *(f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--dump-dom"),
        *("--hide-scrollbars", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"),
    ]
    done = subprocess.run([*command, page_.as_uri()], capture_output=True, text=True, check=True)
    assert "CONSOLE" not in done.stderr
    text = re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert text is not None
    found: dict[str, Any] = json.loads(unescape(text[1]))
    return found
