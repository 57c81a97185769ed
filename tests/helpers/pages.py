"""The pages of the documentation: their blocks, commands and prose."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *DOCS, ROOT / "tests/README.md"]


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fenced(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text[: m.start()].count("\n") + 1, m[1], m[2]) for m in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The lines of the bash blocks, and the commands in the prose."""
    blocks = [block.text for block in fenced(page) if block.language == "bash"]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    lines += re.findall(
        r"`((?:make|duality-ssl|python(?! -m`)|pip|sbatch|torchrun|srun) [^`]+)`", prose(page)
    )
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words]


BLOCKS = [block for page in PAGES for block in fenced(page)]
