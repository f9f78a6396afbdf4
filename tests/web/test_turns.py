"""Whose turn it is: told beforehand, fair between addresses and between the clients of one, and never more than may wait."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle.web.turns import Full, Turns


class _Job:
    """Of a job what turns see of it."""

    def __init__(self, address, client, chunks=1):
        self.address, self.client, self.left, self.ahead = address, client, chunks, None

    def tell_ahead(self, turns):
        self.ahead = turns


def _served(turns):
    """The jobs in the order of their turns, each given back until it has had all of its chunks."""
    order = []
    while turns.waiting:
        job = turns.take()
        order.append(job)
        job.left -= 1
        if job.left:
            turns.give_back(job)
    return order


def test_a_client_with_much_does_not_hold_up_those_with_little():
    turns = Turns(32)
    many = [_Job("1", "a") for _ in range(5)]
    jobs = [*many, _Job("1", "b"), _Job("2", "c"), _Job("2", "c"), _Job("3", "a")]
    for job in jobs:
        turns.add(job)
    # by address first: that one has two clients gives it no more turns
    assert [f"{j.address}{j.client}" for j in _served(turns)] == [
        *("1a", "2c", "3a", "1b", "2c", "1a", "1a", "1a", "1a")
    ]


def test_a_long_job_shares_its_turns_and_goes_before_its_clients_next():
    turns = Turns(32)
    long, next_of_it, other = _Job("1", "a", chunks=3), _Job("1", "a"), _Job("1", "b", chunks=2)
    for job in (long, next_of_it, other):
        turns.add(job)
    assert _served(turns) == [long, other, long, other, long, next_of_it]


_JOBS = st.lists(st.tuples(st.sampled_from("123"), st.sampled_from("ab"), st.integers(1, 3)), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(_JOBS, st.integers(0, 12))
def test_what_is_told_of_the_queue_comes_true(kinds, dropped):
    turns = Turns(99)
    jobs = [_Job(*kind) for kind in kinds]
    for job in jobs:
        turns.add(job)
    if dropped < len(jobs):
        turns.drop(jobs.pop(dropped))
    told = {job: job.ahead for job in jobs}
    order = _served(turns)
    assert set(order) == set(jobs)  # none is lost
    assert all(
        order.count(job) == chunks
        for job, chunks in zip(jobs, [k[2] for n, k in enumerate(kinds) if n != dropped], strict=True)
    )
    firsts = [job for place, job in enumerate(order) if job not in order[:place]]
    if all(kind[2] == 1 for kind in kinds):
        assert [told[job] for job in firsts] == list(range(len(jobs)))
    assert turns.waiting == 0


def test_one_that_is_drawn_stands_before_those_that_wait():
    turns = Turns(9)
    one, two = _Job("1", "a"), _Job("1", "b")
    turns.add(one)
    assert one.ahead == 0 and not turns.drawing
    assert turns.take() is one and turns.drawing
    turns.add(two)
    assert (one.ahead, two.ahead) == (0, 1)


def test_there_is_room_for_so_many_and_the_last_of_it_is_for_those_who_have_none():
    turns = Turns(8)
    for _ in range(6):
        turns.add(_Job("1", "a"))
    with pytest.raises(Full, match="6 requests wait already; come again"):
        turns.add(_Job("1", "a"))
    # whoever it calls itself, it is of an address with its share
    with pytest.raises(Full, match="6 requests wait already"):
        turns.add(_Job("1", "b"))
    turns.add(_Job("2", "a"))
    with pytest.raises(Full, match="7 requests wait already"):
        turns.add(_Job("2", "a"))
    turns.add(_Job("2", "b"))
    with pytest.raises(Full, match="8 requests wait already"):
        turns.add(_Job("3", "c"))
    turns.take()
    turns.add(_Job("3", "c"))
    assert turns.waiting == 8


def test_an_address_that_is_alone_has_what_it_may():
    turns = Turns(8)
    for name in "abcdef":
        turns.add(_Job("1", name))
    with pytest.raises(Full, match="6 requests wait already"):
        turns.add(_Job("1", "g"))


def test_closing_wakes_who_takes_and_lets_none_in():
    turns, taken = Turns(8), []
    thread = threading.Thread(target=lambda: taken.append(turns.take()))
    thread.start()
    time.sleep(0.05)
    assert turns.close() == []
    thread.join(5)
    assert taken == [None]
    with pytest.raises(Full, match="shut down"):
        turns.add(_Job("1", "a"))
