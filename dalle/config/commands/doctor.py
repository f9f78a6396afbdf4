"""What `dalle-doctor` is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from dalle.config.checks import require


@dataclass(frozen=True)
class Doctor:
    """Tell what this machine can do, a line for each fact and what to do about it, then try every stage for a few seconds.

    Every line begins with ok, warn or fail; the exit status is 1 where one of them is a fail. Nothing is kept of what is tried.

    Args:
        output: folder where runs would go, whose disk is looked at
        quick: leave out the trainings and drawings of the self-test
        json: print one JSON object in place of lines
    """

    output: str = "."
    quick: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        require(bool(self.output.strip()), "output: is empty; give the folder where runs would go")
