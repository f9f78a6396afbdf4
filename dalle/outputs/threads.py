"""Threads that begin, or fail to. Python's own `threading.Thread.start` waits without end for one that had no memory to begin with."""

from __future__ import annotations

import _thread
import queue
import threading
import weakref
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


class Workers:
    """Threads that do what they are given, one thing after the other. They end when they are let go.

    PyTorch's products on a CPU belong in one thread: each that has begun any keeps helpers for them, and where those of all are
    more than the cores, OpenMP lets every helper sleep between two products. Small models draw at less than half their pace then.

    Args:
        count: of the threads

    Raises:
        RuntimeError, MemoryError: as `Thread`, where none begins; some are enough
    """

    def __init__(self, count: int = 1):
        given: queue.SimpleQueue[_Given | None] = queue.SimpleQueue()
        self._given, begun = given, 0
        for _ in range(count):
            try:
                Thread(_work, given)
            except (RuntimeError, MemoryError):
                if not begun:
                    raise
                break
            begun += 1
        weakref.finalize(self, _let_go, given, begun)

    def begin(self, call: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Its result, some time after what was given before was begun."""
        future: Future[_T] = Future()
        self._given.put((future, call, arguments))
        return future

    def do(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """The same, waited for."""
        return self.begin(call, *arguments).result()


_Given = tuple[Future, Callable[..., Any], tuple]


def _let_go(given: queue.SimpleQueue[_Given | None], count: int) -> None:
    for _ in range(count):
        given.put(None)


def _work(given: queue.SimpleQueue[_Given | None]) -> None:
    while (one := given.get()) is not None:
        future, call, arguments = one
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call(*arguments))
            except BaseException as error:
                future.set_exception(error)
        del one, future, call, arguments  # nothing is kept while it waits
