"""What mkdocs calls while it builds the site: pages that are made from the code, and Markdown as GitHub reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from notebook import notebook_page
from python_pages import python_pages
from settings_pages import commands_page, settings_page

ROOT = Path(__file__).parents[2]
_MADE = "reference/python/"
_ITEM = re.compile(r"(?:[-*+]|\d+\.) ")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The pages of the rooms stand in the navigation where their folder is named."""
    for part in config.nav or []:
        for entries in part.values():
            for entry in entries:
                if isinstance(entry, dict) and entry.get("Python") == _MADE:
                    entry["Python"] = [_MADE + name for name in python_pages(ROOT)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pages that lie in no file."""
    made: dict[str, str | bytes] = {"reference/commands.md": commands_page(), "reference/settings.md": settings_page()}
    made |= {_MADE + name: text for name, text in python_pages(ROOT).items()}
    notebook = files.get_file_from_path("notebook.ipynb")
    if notebook is not None:
        made["notebook.md"], pictures = notebook_page(Path(notebook.abs_src_path or ""))
        made |= pictures
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A list may follow a line of text, as on GitHub; who links to the notebook gets its page."""
    markdown = markdown.replace("](notebook.ipynb)", "](notebook.md)")
    result: list[str] = []
    in_code = False
    for line in markdown.splitlines():
        before = result[-1] if result else ""
        if line.startswith("```"):
            in_code = not in_code
        elif (
            not in_code
            and _ITEM.match(line)
            and before.strip()
            and not before.startswith(" ")
            and not _ITEM.match(before)
        ):
            result.append("")
        result.append(line)
    return "\n".join(result)
