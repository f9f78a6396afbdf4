"""Who is next: round robin between addresses, and between the clients of one address, so that whoever asks for much waits for
his own requests and not the others for them. A turn is one chunk of candidates."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from dalle.web.job import Job


class Full(Exception):
    """There are as many waiting as may; the message says so."""


class Turns:
    """The jobs that wait, for one thread that takes them and any that bring them.

    Args:
        most_waiting: jobs that wait, at most. The last quarter of the places is for clients of whom none waits yet, and
            never for an address that fills the others: what a client calls itself is its own to say
    """

    def __init__(self, most_waiting: int):
        self.most_waiting = most_waiting
        self._ready = threading.Condition()
        self._rings: dict[str, dict[str, deque[Job]]] = {}
        self._drawn: Job | None = None
        self._closed = False

    def add(self, job: Job) -> None:
        """One more waits. Raises Full."""
        with self._ready:
            waiting = sum(1 for _ in self._order())
            clients = self._rings.get(job.address, {})
            kept_free = self.most_waiting // 4
            has_its_share = job.client in clients or sum(map(len, clients.values())) >= self.most_waiting - kept_free
            room = self.most_waiting - (kept_free if has_its_share else 0)
            if self._closed or waiting >= room:
                told = "it is being shut down" if self._closed else f"{waiting} requests wait already"
                raise Full(f"no room: {told}; come again in a moment")
            self._append(job)
            self._tell()
            self._ready.notify()

    def take(self) -> Job | None:
        """The next one, whose turn it is until it is given back or ended; waits for one. None once closed."""
        with self._ready:
            self._drawn = None
            while not self._rings and not self._closed:
                self._ready.wait()
            if self._closed:
                return None
            address = next(iter(self._rings))
            clients = self._rings.pop(address)
            client = next(iter(clients))
            jobs = clients.pop(client)
            self._drawn = jobs.popleft()
            if jobs:
                clients[client] = jobs
            if clients:
                self._rings[address] = clients
            self._tell()
            return self._drawn

    def give_back(self, job: Job) -> None:
        """It has had its turn, and has more to draw."""
        with self._ready:
            self._drawn = None
            self._append(job, first=True)
            self._tell()

    def drop(self, job: Job) -> None:
        """Nobody waits for it any longer."""
        with self._ready:
            clients = self._rings.get(job.address, {})
            jobs = clients.get(job.client, deque())
            if job not in jobs:
                return
            jobs.remove(job)
            if not jobs:
                del clients[job.client]
            if not clients:
                del self._rings[job.address]
            self._tell()

    def close(self) -> list[Job]:
        """No more turns; returns those that were waiting."""
        with self._ready:
            self._closed = True
            left = list(self._order())
            self._rings.clear()
            self._ready.notify_all()
            return left

    @property
    def waiting(self) -> int:
        """How many wait."""
        with self._ready:
            return sum(1 for _ in self._order())

    @property
    def drawing(self) -> bool:
        """Whether it is anybody's turn."""
        return self._drawn is not None

    def _append(self, job: Job, first: bool = False) -> None:
        """first: before the same client's others, which were not begun."""
        jobs = self._rings.setdefault(job.address, {}).setdefault(job.client, deque())
        (jobs.appendleft if first else jobs.append)(job)

    def _order(self) -> Iterator[Job]:
        """Those that wait, in the order of their next turns."""
        rings = deque(deque(map(deque, clients.values())) for clients in self._rings.values())
        while rings:
            clients = rings.popleft()
            jobs = clients.popleft()
            yield jobs.popleft()
            if jobs:
                clients.append(jobs)
            if clients:
                rings.append(clients)

    def _tell(self) -> None:
        """Each how many turns come before its own."""
        if self._drawn is not None:
            self._drawn.tell_ahead(0)
        for place, job in enumerate(self._order(), int(self._drawn is not None)):
            job.tell_ahead(place)
