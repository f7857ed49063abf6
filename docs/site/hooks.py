"""What mkdocs does besides turning Markdown into HTML: pages that are generated from the code, and inlined drawings.

``reference/recipe.md`` is generated from the recipe's JSON Schema, ``reference/commands.md`` from the commands' own
``--help``, and ``changes.md`` is CHANGELOG.md, at every build, so none of them can go stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from commands_page import commands_page
from recipe_page import recipe_page

CHECKOUT = Path(__file__).parents[2]
DRAWING = re.compile(r'<p><img alt="[^"]*" src="([^"]*\.svg)"[^>]*/?></p>')


def changes_page() -> str:
    return (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")


GENERATED: dict[str, Callable[[], str]] = {
    "reference/recipe.md": recipe_page,
    "reference/commands.md": commands_page,
    "changes.md": changes_page,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of the folder."""
    for path, page in GENERATED.items():
        files.append(File.generated(config, path, content=page()))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Put each drawing into the page itself, where it takes the colour of the page's text."""

    def inlined(match: re.Match[str]) -> str:
        drawing = Path(config.docs_dir) / "assets" / Path(match[1]).name
        return f'<div class="drawing">{drawing.read_text(encoding="utf-8")}</div>'

    return DRAWING.sub(inlined, html)
