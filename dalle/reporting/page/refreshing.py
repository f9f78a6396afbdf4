"""A page that keeps up with its run: while that goes on it loads itself again, and stays where the reader was.

There is no server behind it, and a page opened from disk may read no other file; so it loads itself whole. Without scripts a
browser does so, too, and scrolls where it wants.
"""

from __future__ import annotations

from pathlib import Path

EVERY_S = 20
"""Between two loadings. The page itself is written anew every minute at most."""
_HOLD = '<button type="button" id="hold" aria-pressed="false">hold it</button>'
"""For who reads at leisure, or by ear."""
_SCRIPT = Path(__file__).with_name("refreshing.js")


def in_head(is_running: bool) -> str:
    """What the head of the page gets."""
    held = "<style>#hold[aria-pressed=true] { background: #1f5fcc; color: #fff }</style>"
    return f'<noscript><meta http-equiv="refresh" content="{EVERY_S}"></noscript>{held}' if is_running else ""


def said(status: str, written_s: float) -> str:
    """What the page says of itself, in HTML, behind the time at which it was written.

    Args:
        status: of the run, such as "running"
        written_s: seconds since 1970
    """
    if status == "running":
        return f'<span id="age" data-written="{written_s:.0f}"></span>; it keeps up with the run by itself ' + _HOLD
    if status == "unknown":
        return ""
    return "; the run has ended, and this page no longer changes"


def script(is_running: bool) -> str:
    """The last element of the page's body."""
    text = _SCRIPT.read_text(encoding="utf-8").replace("EVERY_S", str(EVERY_S if is_running else 0))
    return f"<script>{text}</script>"
