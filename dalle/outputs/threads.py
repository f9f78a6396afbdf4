"""Threads that begin, or fail to. Python's own `threading.Thread.start` waits without end for one that had no memory to begin with."""

from __future__ import annotations

import _thread
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

_PATIENCE_S = 10.0
_T = TypeVar("_T")


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


class Worker:
    """One thread that does what it is given, one thing after the other. PyTorch's products on a CPU belong in one thread: each
    thread that has begun any keeps helpers for them, and where those of all are more than the cores, OpenMP lets every helper sleep
    between two products. Small models draw at less than half their pace then."""

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[tuple[Future, Callable[..., Any], tuple]] = queue.SimpleQueue()
        Thread(self._run)

    def begin(self, call: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Its result, once what was given before is done."""
        future: Future[_T] = Future()
        self._given.put((future, call, arguments))
        return future

    def do(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """The same, waited for."""
        return self.begin(call, *arguments).result()

    def _run(self) -> None:
        while True:
            future, call, arguments = self._given.get()
            try:
                future.set_result(call(*arguments))
            except BaseException as error:
                future.set_exception(error)
            del future, call, arguments  # nothing is kept while it waits
