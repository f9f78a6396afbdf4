"""The checks that configurations share, how something is warned of, and the error of a run that went wrong whatever its
configuration."""

from __future__ import annotations

import sys
import warnings

_NOT_THE_CALLERS = ("dalle", "torch", "contextlib")
"""Packages whose lines stand between what warns and the line of a user: ours, and PyTorch's and Python's decorators."""


class SaidByAll(ValueError):
    """A complaint that every process of a run raises, of which the first alone prints it."""

    EXIT_CODE = 2


class Hopeless(SaidByAll):
    """A training's numbers have gone wrong, and starting it again as it is would not help. Raised on all ranks alike. Commands
    end with `EXIT_CODE`, at which `launch/train_prior.sbatch` does not go on by itself."""

    EXIT_CODE = 3


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def at_least(config, least: float, *names: str) -> None:
    """Raises ValueError unless each of the named fields is at least `least`."""
    for name in names:
        require(getattr(config, name) >= least, f"{name} {getattr(config, name)}: must be at least {least}")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called this program, however deep in it something was noticed: the one that its author can change.
    Python shows the same warning of the same line once."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_CALLERS:
        frame = frame.f_back
    names = frame.f_globals
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        names.get("__name__", "<unknown>"),
        names.setdefault("__warningregistry__", {}),
    )
