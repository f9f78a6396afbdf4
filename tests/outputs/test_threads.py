"""Threads: with no memory left one is refused, and its caller does not wait for it."""

import _thread
import gc
import threading
import weakref

import pytest

from dalle.outputs import threads
from dalle.outputs.threads import Thread, Worker


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


def test_a_worker_does_all_in_one_thread_in_order():
    worker, seen = Worker(), []
    futures = [
        worker.begin(lambda number=number: (seen.append(number), threading.get_ident())[1]) for number in range(20)
    ]
    idents = {future.result(20) for future in futures}
    assert seen == list(range(20)) and len(idents) == 1 and threading.get_ident() not in idents
    assert worker.do(divmod, 7, 2) == (3, 1)


def test_a_worker_goes_on_after_an_error_which_its_caller_gets():
    worker = Worker()
    with pytest.raises(ZeroDivisionError):
        worker.do(divmod, 1, 0)
    assert worker.do(abs, -1) == 1


def test_a_worker_keeps_nothing_while_it_waits():
    class Thing:
        pass

    worker, thing = Worker(), Thing()
    kept = weakref.ref(thing)
    worker.do(id, thing)
    worker.do(abs, -1)
    del thing
    gc.collect()
    assert kept() is None
