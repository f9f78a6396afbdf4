"""The checks that configurations share."""

from __future__ import annotations


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def at_least(config, least: float, *names: str) -> None:
    """Raises ValueError unless each of the named fields is at least `least`."""
    for name in names:
        require(getattr(config, name) >= least, f"{name} {getattr(config, name)}: must be at least {least}")
