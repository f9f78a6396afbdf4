"""The checks that configurations share, and the error of a run that went wrong whatever its configuration."""

from __future__ import annotations


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
