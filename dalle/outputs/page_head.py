"""What our pages share: they open from disk, ask nothing of the network, and follow the reader's light or dark."""

from __future__ import annotations

import html

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c2330; --soft: #5d6778; --line: #dfe3ea;
  --train: #2563c9; --valid: #d9641a; --warn: #a35a00; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1b2029; --ink: #e6e9ef; --soft: #98a2b3;
  --line: #313846; --train: #6ea8ff; --valid: #ff9d5c; --warn: #ffb454; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1400px; padding: 2rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.2rem 0 .8rem; font-size: 1.15rem; }
.soft { color: var(--soft); font-size: .85rem; }
"""


def head(title: str, style: str, more: str = "") -> str:
    """The beginning of a page, up to and with `<body>`.

    Args:
        title: of the window
        style: CSS that is added to what all pages share
        more: elements of the head, in HTML
    """
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{more}\n'
        f"<style>{_STYLE}{style}</style></head><body>"
    )
