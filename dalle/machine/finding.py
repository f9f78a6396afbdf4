"""One line of what is told of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """A fact with its verdict.

    Args:
        name: what was looked at, in a word or two
        verdict: "ok"; "warn" where something is slower, smaller or missing; "fail" where something does not work
        fact: what was found
        advice: what to do about it; "" where there is nothing to do
    """

    name: str
    verdict: Verdict
    fact: str
    advice: str = ""

    def line(self) -> str:
        """For a terminal."""
        advice = f": {self.advice}" if self.advice else ""
        return f"{self.verdict:5} {self.name:18} {self.fact}{advice}"


def size(num_bytes: float) -> str:
    """Bytes as people say them."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.0f} MB"
