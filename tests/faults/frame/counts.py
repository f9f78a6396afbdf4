"""What became of all trials, counted by the suite itself: a line as each kind of them ends, and a table when all have."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

DAMAGED = int(os.environ.get("DALLE_FAULTS_DAMAGED", "500"))
"""Of each kind of file, four times."""
_told: dict[tuple[str, str], Counter[str]] = {}


@contextmanager
def counted(kind: str, name: str, capsys) -> Iterator[Counter[str]]:
    """A counter for the block, by what became of each trial. kind: of fault; name: of the command or file."""
    outcomes = _told.setdefault((kind, name), Counter())
    try:
        yield outcomes
    finally:
        with capsys.disabled():
            print(f"\n{name}: {kind}: {outcomes.total()}: {_words(outcomes)}", flush=True)


def table() -> list[str]:
    """Markdown: a line for each kind of fault and command or file."""
    if not _told:
        return []
    lines = ["| fault | what | tried | what became of it |", "| --- | --- | ---: | --- |"]
    lines += [f"| {kind} | {name} | {found.total():,} | {_words(found)} |" for (kind, name), found in _told.items()]
    for kind in dict.fromkeys(kind for kind, _ in _told):
        whole = sum((found for (each, _), found in _told.items() if each == kind), Counter())
        lines.append(f"| {kind} | all | {whole.total():,} | {_words(whole)} |")
    return lines


def _words(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count:,} {word}" for word, count in sorted(outcomes.items()))
