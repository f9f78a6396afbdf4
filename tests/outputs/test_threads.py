"""Threads: with no memory left one is refused, and its caller does not wait for it."""

import _thread
import threading

import pytest

from dalle.outputs import threads
from dalle.outputs.threads import Thread


def test_it_runs_and_is_waited_for():
    said, go = [], threading.Event()
    thread = Thread(lambda *words: (go.wait(20), said.extend(words)), "a", "b")
    assert not thread.join(0.01) and said == []
    go.set()
    assert thread.join(20) and said == ["a", "b"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_ends_by_an_error():
    thread = Thread(lambda: 1 / 0)
    assert thread.join(20)


def test_one_that_does_not_begin_is_refused(monkeypatch):
    """As the interpreter does where memory runs out between the thread's start and its first line."""
    monkeypatch.setattr(threads, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(_thread, "start_new_thread", lambda *_: 1)
    with pytest.raises(MemoryError):
        Thread(print)
