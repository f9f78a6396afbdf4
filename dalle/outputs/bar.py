"""How far a long work has come."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


class _Bar(tqdm):
    monitor_interval = 0
    """No thread, which would begin even where nothing is shown. It is there for bars that have learned to look at the clock now
    and then only; ours look at it at every update."""


def progress_bar(**options: Any) -> tqdm:
    """A bar on stderr, and nothing where that is no terminal.

    Args:
        options: tqdm's
    """
    return _Bar(disable=not sys.stderr.isatty(), miniters=1, **options)
