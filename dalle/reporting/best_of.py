"""The part of a training's page that tells which of its own candidates a prior learns from."""

from __future__ import annotations

import html
from pathlib import Path

from dalle.config import plain_json

FOLDER = "best-of"
"""In the run's folder."""
FILE = "best-of.json"
PICTURE = "kept-and-dropped.png"


def best_of_section(folder: Path) -> str:
    """Statistics, and pictures of kept ones beside the worst of the same captions; empty where there are none."""
    try:
        lines = plain_json.read(folder / FOLDER / FILE)["lines"]
        said = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    link = f"{FOLDER}/{PICTURE}"
    shown = ""
    if (folder / link).is_file():
        note = "left the best that was kept, right the worst of the same caption, with the judge's scores, where there is a worse one"
        shown = f'<p class="soft">{note}</p><a href="{link}"><img src="{link}" alt="{note}" style="max-width:100%"></a>'
    return f"<h2>Its own candidates</h2>{said}{shown}"
