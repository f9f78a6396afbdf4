"""The checks that configurations share, how something is warned of, and the error of a run that went wrong whatever its
configuration."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NOT_THE_CALLERS = ("dalle", "torch", "contextlib")
"""Packages whose lines stand between what warns and the line of a user: ours, and PyTorch's and Python's decorators."""

MOST_UPDATES = 2**32
"""Of a run, and of whatever is told in updates: thousands of times the longest training."""
MOST_ASKED = 2**24
"""Of what is drawn, shown, or asked of people at one time, one after the other: years of it."""
MOST_PROCESSES = 1024
"""That share the work of one machine."""


class Cause(ValueError):
    """What is wrong with something that only the caller can name: half a message, which whoever catches it completes with a name
    and with what to do. No user sees it alone."""


class SaidByAll(ValueError):
    """A complaint that every process of a run raises, of which the first alone prints it."""

    EXIT_CODE = 2


class Hopeless(SaidByAll):
    """A training's numbers have gone wrong, and starting it again as it is would not help. Raised on all ranks alike. Commands
    end with `EXIT_CODE`, at which `launch/train.sbatch` does not go on by itself."""

    EXIT_CODE = 3


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def at_least(config: Any, least: float, *names: str, most: float | None = None) -> None:
    """Raises ValueError unless each of the named fields is at least `least`, and, where it is given, at most `most`."""
    if most is not None:
        at_most(config, most, *names)
    for name in names:
        require(getattr(config, name) >= least, f"{name} {getattr(config, name)}: must be at least {least}")


def at_most(config: Any, most: float, *names: str) -> None:
    """Raises ValueError where one of the named fields that is not null is over `most`: no machine has so much, and what would be made
    of it takes all memory before it fails."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value <= most, f"{name} {value}: must be at most {most:,}")


def multiples_near(value: int, of: int) -> str:
    """The nearest values above 0 that would do where one has to be a multiple, in words: "6", or "6 or 9"."""
    below = max(0, value // of * of)
    return " or ".join(str(each) for each in (below, below + of) if each)


_OUT_OF_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "out of memory", "alloc_failed", "bad_alloc"),
    *("failed to map segment", "can't start new thread"),  # a library to import, and a thread's stack
    *("resource temporarily unavailable", "could not create a primitive"),  # that stack for gloo, a product for oneDNN
    *("without exception set", "without setting an exception"),  # an import that finds none, in Python's
)


def out_of_memory(error: BaseException) -> bool:
    """Whether this, or what it was raised after, is Python, PyTorch, a library of CUDA or NumPy saying that there is no memory."""
    seen: BaseException | None = error
    while seen is not None:
        # of what is not ready yet Python's own error has the same words as gloo's
        told = "" if isinstance(seen, BlockingIOError) else str(seen).lower()
        # PyTorch's own is known by its name: it is not imported here
        is_one = isinstance(seen, MemoryError) or type(seen).__name__ == "OutOfMemoryError"
        if is_one or any(words in told for words in _OUT_OF_MEMORY):
            return True
        seen = seen.__context__
    return False


def of_the_machine(error: BaseException) -> str:
    """What to say of an error that the machine is too small for what was asked, or ended a process of PyTorch's loader, in one
    line; empty for any other."""
    why = printable(" ".join(str(error).split())[:200])
    if out_of_memory(error):
        remedy = "make the batch, the chunk or the model smaller, or use a machine with more"
        return f"out of memory{f' ({why})' if why else ''}; {remedy}"
    if str(error).startswith("DataLoader worker (pid"):
        remedy = "where memory or /dev/shm is full it is ended: make room there, or load with fewer processes"
        return f"a process that loads data has ended ({why}); {remedy}"
    return ""


@contextmanager
def installed(otherwise: str) -> Iterator[None]:
    """Within the block a library is imported that need not be there.

    Raises:
        ValueError: `otherwise`, where it is missing
        ImportError: it is there, and no memory to load it
    """
    try:
        yield
    except ImportError as error:
        if out_of_memory(error):
            raise
        raise ValueError(otherwise) from error


def printable(text: str) -> str:
    """Text of somebody else in a line for a terminal: what a terminal would obey, and what Unicode cannot encode, is written out.
    What joins the parts of an emoji stays."""
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else repr(c)[1:-1] for c in text)


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
