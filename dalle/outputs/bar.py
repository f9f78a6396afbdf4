"""How far a long work has come."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

tqdm.monitor_interval = 0  # its thread, which begins even where nothing is shown, takes memory and does nothing for us


def progress_bar(**options: Any) -> tqdm:
    """A bar on stderr, and nothing where that is no terminal.

    Args:
        options: tqdm's
    """
    return tqdm(disable=not sys.stderr.isatty(), **options)
