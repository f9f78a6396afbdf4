"""The report as one page: sections under a line of links, for a desk and for a phone, by day and by night."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from dalle.evaluation.report.section import Section
from dalle.outputs.page_head import head

_STYLE = """
nav { margin: .8rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; font-size: .9rem; }
a { color: var(--train); }
section { scroll-margin-top: 1rem; }
h3 { margin: 1.2rem 0 .4rem; font-size: .95rem; font-weight: 600; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .5rem .8rem; }
.facts span { display: block; color: var(--soft); font-size: .78rem; }
.facts b { font-size: 1.15rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.note { border-left: 3px solid var(--warn); color: var(--warn); padding: .1rem .8rem; margin: .5rem 0; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); font-size: .9rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
thead th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child { text-align: left; font-weight: 500; }
.words td { white-space: normal; text-align: left; overflow-wrap: anywhere; }
figure { margin: .6rem 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem; }
figure.curve { display: inline-block; width: min(100%, 34rem); margin-right: .6rem; vertical-align: top; }
figure svg { width: 100%; height: auto; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: .2rem 1rem; font-size: .85rem; }
figcaption i { font-style: normal; color: var(--soft); }
.rows { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 33rem), 1fr)); gap: 0 1.5rem; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; }
.picture { display: block; max-width: 100%; text-decoration: none; color: var(--soft); font-size: .78rem; }
.picture img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 4px; }
.picture span { display: block; max-width: 8.5rem; overflow-wrap: anywhere; }
.pair { padding: .5rem .7rem .6rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.pair.marked { border-color: var(--warn); } .pair b { font-size: .85rem; font-weight: 600; white-space: pre; }
img.sharp { image-rendering: pixelated; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--soft); }
@media (max-width: 600px) { body { padding: 1rem .7rem 3rem; } h1 { font-size: 1.35rem; } th, td { padding: .3rem .45rem; }
  .facts { gap: .4rem; } .facts div { padding: .35rem .6rem; } }
"""


def page(title: str, subtitle: str, facts: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The page as HTML.

    Args:
        title: what was measured
        subtitle: against what, and when
        facts: the few figures that come first, by name
        sections: in the order in which they are read
    """
    tiles = "".join(
        f"<div><span>{html.escape(name)}</span><b>{html.escape(text)}</b></div>" for name, text in facts.items()
    )
    links = "".join(f'<a href="#{html.escape(part.key)}">{html.escape(part.title)}</a>' for part in sections)
    body = "".join(part.html() for part in sections)
    text = (
        f'{head(title, _STYLE)}<h1>{html.escape(title)}</h1><span class="soft">{html.escape(subtitle)}</span>'
        f'<nav>{links}</nav><div class="facts">{tiles}</div>{body}</body></html>\n'
    )
    # which HTML does not allow, and captions from strangers may hold
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\ufffd", text)
