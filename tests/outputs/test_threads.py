"""Threads: with no memory left one is refused, and its caller does not wait for it."""

import _thread
import gc
import sys
import threading
import time
import weakref

import pytest

from dalle.outputs import threads
from dalle.outputs.threads import Thread, Workers


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


def test_several_workers_work_at_once_and_end_when_let_go():
    workers, both = Workers(2), threading.Barrier(2)
    first, second = workers.begin(both.wait, 20), workers.begin(both.wait, 20)
    assert {first.result(20), second.result(20)} == {0, 1}
    before = len(sys._current_frames())
    del workers
    until = time.monotonic() + 20
    while len(sys._current_frames()) > before - 2:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_was_cancelled_is_not_done():
    worker, go, done = Workers(), threading.Event(), []
    first, second = worker.begin(go.wait, 20), worker.begin(done.append, 1)
    assert second.cancel()
    go.set()
    assert first.result(20) and worker.do(abs, -1) == 1 and done == []


def test_some_workers_are_enough_and_none_are_refused(monkeypatch):
    monkeypatch.setattr(threads, "_PATIENCE_S", 0.05)
    plain, left = _thread.start_new_thread, [1]
    monkeypatch.setattr(_thread, "start_new_thread", lambda *given: plain(*given) if left.pop() else 1)
    left[:] = [0, 1]
    assert Workers(8).do(abs, -1) == 1 and left == []
    left[:] = [0]
    with pytest.raises(MemoryError):
        Workers(8)


def test_a_worker_does_all_in_one_thread_in_order():
    worker, seen = Workers(), []
    futures = [
        worker.begin(lambda number=number: (seen.append(number), threading.get_ident())[1]) for number in range(20)
    ]
    idents = {future.result(20) for future in futures}
    assert seen == list(range(20)) and len(idents) == 1 and threading.get_ident() not in idents
    assert worker.do(divmod, 7, 2) == (3, 1)


def test_a_worker_goes_on_after_an_error_which_its_caller_gets():
    worker = Workers()
    with pytest.raises(ZeroDivisionError):
        worker.do(divmod, 1, 0)
    assert worker.do(abs, -1) == 1


def test_a_worker_keeps_nothing_while_it_waits():
    class Thing:
        pass

    worker, thing = Workers(), Thing()
    kept = weakref.ref(thing)
    worker.do(id, thing)
    del thing
    until = time.monotonic() + 20
    while kept() is not None:  # it lets go just after its caller has the result
        assert time.monotonic() < until
        gc.collect()
