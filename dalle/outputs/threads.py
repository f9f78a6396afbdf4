"""Threads that begin, or fail to. Python's own `threading.Thread.start` waits without end for one that had no memory to begin with."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import Any

_PATIENCE_S = 10.0


class Thread:
    """A thread that does not keep the process from ending.

    Args:
        target: what it calls
        arguments: of that

    Raises:
        RuntimeError: there is no memory for one more
        MemoryError: likewise, found by the thread itself
    """

    def __init__(self, target: Callable[..., Any], *arguments: Any):
        self._target, self._arguments = target, arguments
        self._began, self._ended = threading.Event(), threading.Event()
        _thread.start_new_thread(self._run, ())
        if not self._began.wait(_PATIENCE_S):
            raise MemoryError

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for its end, at most so many seconds; whether it has ended."""
        return self._ended.wait(timeout_s)

    def _run(self) -> None:
        try:
            self._began.set()
            self._target(*self._arguments)
        finally:
            self._ended.set()
