"""What became of the samples of a run's data, told as the run goes on, at its end, and in its report.

A run's folder gets `samples.json`: the counts by the setting that names the data.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dalle.config import plain_json
from dalle.data.counts import Counts
from dalle.outputs.whole import replace_text

FILE = "samples.json"


class SamplesLog:
    """Of one training run; on other ranks than the first it does nothing.

    Args:
        folder: the run's
        warn: shows a line and records it
        is_main: False on every rank but one
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], is_main: bool = True):
        self.folder, self.warn, self.is_main = folder, warn, is_main
        self.counts: dict[str, Counts] = {}
        self._told: dict[tuple[str, str], int] = {}

    def take(self, counts: dict[str, Counts]) -> None:
        """What happened to the samples so far. What was left out is a warning, anew for another reason and whenever a reason
        has twice as many."""
        if not self.is_main:
            return
        self.counts = counts
        for name, each in counts.items():
            found = {(name, reason): of.count for of_kind in each.left_out() for reason, of in of_kind.items()}
            if any(count >= 2 * self._told.get(reason, 0) for reason, count in found.items()):
                self._told |= found
                self.warn(f"{name}: {each.line()}")
        with suppress(OSError):  # of a full disk, which the metrics tell
            text = json.dumps({name: each.to_json() for name, each in counts.items()}, ensure_ascii=False)
            replace_text(self.folder / FILE, text)

    def lines(self) -> list[str]:
        """All of it, a line for each data set."""
        return [f"{name}: {each.line()}" for name, each in self.counts.items()]


def samples_section(folder: Path) -> str:
    """The part of a report that tells the same; empty where nothing is known."""
    try:
        found = plain_json.read(folder / FILE)
        lines = [f"{name}: {Counts.from_json(values).line()}" for name, values in found.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return "<h2>Samples</h2>" + "".join(f"<p>{html.escape(line)}</p>" for line in lines) if lines else ""
