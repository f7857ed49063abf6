"""The pages of the docs and the commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
DOCS = CHECKOUT / "docs"
PAGES = {str(path.relative_to(CHECKOUT)): path for path in (CHECKOUT / "README.md", *sorted(DOCS.rglob("*.md")))}

MARK = "not run here"
PROGRAMS = ("stoker", "make", "python", "ray", "serve", "curl", "pip", "torchrun", "eval", "export", ".", "cd")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Command:
    """A command line of a page. ``is_marked``: the page says that no test runs it."""

    page: str
    text: str
    is_marked: bool
    is_inline: bool = False

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def commands_of(page: str) -> list[Command]:
    """The command lines of the page's ``sh`` and ``console`` blocks, then those within its text."""
    return commands_in(page, PAGES[page].read_text(encoding="utf-8"))


def commands_in(page: str, text: str) -> list[Command]:
    return [*_in_blocks(page, text), *_in_text(page, text)]


def _in_blocks(page: str, text: str) -> Iterator[Command]:
    for block in _FENCE.finditer(text):
        if block[1] not in {"sh", "console"}:
            continue
        before = text[: block.start()].rstrip().rpartition("\n")[2]
        is_marked = before.startswith("<!--") and MARK in before
        command = ""
        for line in block[2].replace("\\\n", " ").splitlines():
            words, _, comment = line.partition("# ") if line.startswith("#") else line.partition("  # ")
            command = f"{command} {words.removeprefix('$ ')}".strip()
            if command and command.count("'") % 2 == 0:  # a quoted argument may go over several lines
                yield Command(page, " ".join(command.split()), is_marked or MARK in comment)
                command = ""


def _in_text(page: str, text: str) -> Iterator[Command]:
    for paragraph in re.split(r"\n\s*\n|\n(?=[-|] )", _FENCE.sub("\n\n", text)):
        for span in _SPAN.findall(paragraph):
            words = " ".join(span.split())
            if " " in words and words.split()[0] in PROGRAMS:
                yield Command(page, words, MARK in paragraph, is_inline=True)
