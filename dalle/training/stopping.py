"""Ctrl-C, SIGTERM and SIGUSR1 as wishes to stop: the first is a user's, the others a launcher's or Slurm's."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C, SIGTERM and SIGUSR1 do not end the process but set the flag that the given function reads; a
    second Ctrl-C ends it at once. One from the terminal reaches launcher and processes alike, and the launcher then sends
    SIGTERM too: neither that nor a quick repetition is a second wish."""
    asked_at: float | None = None

    def ask(signum: Any, frame: Any) -> None:
        nonlocal asked_at
        if signum == signal.SIGINT and asked_at is not None and time.monotonic() - asked_at > 1:
            raise KeyboardInterrupt
        asked_at = asked_at or time.monotonic()

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield lambda: asked_at is not None
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
