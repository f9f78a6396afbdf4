"""What is known of a kind of file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        make: writes a sound one, with what belongs to it, into a folder; returns the file
        read: what the program reads of it; given the folder
        proven: it has checksums, so that what is not refused is the same
        tolerant: what is damaged of it counts as not there
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    proven: bool = False
    tolerant: bool = False
