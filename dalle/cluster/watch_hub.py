"""The listening end of the watch (`watch.py`): a thread of rank 0 hears every rank, and judges when one is at fault.

Messages are lines of JSON over one TCP connection for each rank. To the hub: {"token", "rank"} first, then
{"place", "still_s", "stack"} at every beat, the stack only when the rank has long stood still, and at the end {"left"} or
{"failed": why}. From the hub: an empty line at every beat, and at the end {"over"} or the verdict.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby

from dalle.config import plain_json
from dalle.config.checks import Cause
from dalle.outputs.threads import Thread

_LONGEST_GREETING = 1_000
_MOST_STRANGERS = 64
"""Connections that have not greeted yet, beside a greeting of each rank."""
_SHOWN_STACKS = 8


@dataclass(frozen=True)
class Limits:
    """When somebody is at fault, in seconds: `still_s` without progress, `silent_s` without a sign of life; what happens
    within `settle_s` has one cause. Every `beat_s` all say where they are."""

    still_s: float
    silent_s: float
    settle_s: float
    beat_s: float

    @classmethod
    def of(cls, silence_limit_s: float) -> Limits:
        """A minute is enough for a sign of life: it costs a thread microseconds, whatever the main thread does."""
        silent_s = min(60.0, silence_limit_s)
        return cls(silence_limit_s, silent_s, min(3.0, silent_s / 2), min(3.0, silent_s / 5))


@dataclass
class Member:
    """What is known of a rank: where its main thread was at its last beat (update, marks made before in that update, phase)
    and for how long (`still_s`), when it was last heard, and since when it is "here", has "left" in order, "failed" with an
    error, or "ended" without a word."""

    rank: int
    host: str
    process: int
    heard_s: float = 0.0
    step: int = 0
    number: int = 0
    phase: str = "starting"
    still_s: float = 0.0
    stack: str = ""
    state: str = "here"
    since_s: float = 0.0
    error: str = ""

    @property
    def place(self) -> str:
        return f"in update {self.step}" if self.phase == "update" else f"{self.phase} at update {self.step}"


@dataclass(frozen=True)
class Verdict:
    """Why the run ends: the line to show, the ranks that cannot show it, the one of them that shows its own error, and,
    when nobody moves, where the main threads stand."""

    line: str
    gone: list[int] = field(default_factory=list)
    failed: int | None = None
    stacks: str = ""


def judge(members: Sequence[Member], limits: Limits, now_s: float) -> Verdict | None:
    """The verdict, when one is due.

    Who ended or fell silent comes before who failed, for failures of others may follow from that (a collective whose
    peer is gone raises), and these before who stands still.
    """
    ended = [m for m in members if m.state == "ended"]
    watched = [m for m in members if m.state in ("here", "failed")]
    silent = [m for m in watched if now_s - m.heard_s > limits.silent_s]
    failed = sorted((m for m in members if m.state == "failed"), key=lambda m: m.since_s)
    here = [m for m in members if m.state == "here"]
    if ended and not silent and all(now_s - m.since_s <= limits.settle_s for m in ended):
        return None
    if ended or silent:
        parts = [f"{named(ended)} {_has(ended)} ended, last seen {ended[0].place}"] if ended else []
        if silent:
            silent_s = max(now_s - m.heard_s for m in silent)
            parts.append(
                f"{named(silent)} {_has(silent)} been silent for {silent_s:.0f} s, last seen {silent[0].place}"
            )
        return Verdict("; ".join(parts) + "; ending", [m.rank for m in ended + silent])
    if failed and here and now_s - failed[0].since_s > limits.settle_s:
        first = failed[0]
        return Verdict(f"{named([first])} failed {first.place}: {first.error}; ending", [first.rank], first.rank)
    if any(m.still_s + now_s - m.heard_s > limits.still_s for m in here):
        return _standstill(here, now_s)
    return None


def _standstill(here: list[Member], now_s: float) -> Verdict:
    """All wait for whoever is behind."""
    last = min((m.step, m.number) for m in here)
    behind = [m for m in here if (m.step, m.number) == last]
    ahead = [m for m in here if (m.step, m.number) != last]
    still_s = max(m.still_s + now_s - m.heard_s for m in behind)
    line = f"{named(behind)} {_has(behind)} not moved for {still_s:.0f} s, {behind[0].place}"
    if ahead:
        places = " or ".join(sorted({m.place for m in ahead}))
        line += f", while {named(ahead)} {'is' if len(ahead) == 1 else 'are'} further, {places}"
    elif len(behind) > 1:
        line += ": no rank is behind the others"
    by_stack = sorted((m for m in here if m.stack), key=lambda m: (m.stack, m.rank))
    groups = [(list(group), stack) for stack, group in groupby(by_stack, key=lambda m: m.stack)]
    groups.sort(key=lambda group: len(group[0]))  # the odd one out first
    stacks = "".join(f"main thread of {named(group)}:\n{stack}" for group, stack in groups[:_SHOWN_STACKS])
    return Verdict(line + "; ending", stacks=stacks)


def _has(members: list[Member]) -> str:
    return "has" if len(members) == 1 else "have"


def named(members: Sequence[Member]) -> str:
    """Ranks with their hosts: "rank 3 (host node-07, process 4711)", "ranks 8-15, 20 (hosts node-01, node-02)"."""
    if len(members) == 1:
        return f"rank {members[0].rank} (host {members[0].host}, process {members[0].process})"
    hosts = list(dict.fromkeys(m.host for m in members))
    shown = f"{len(hosts)} hosts" if len(hosts) > 4 else f"host{'s' if len(hosts) > 1 else ''} {', '.join(hosts)}"
    return f"ranks {spans([m.rank for m in members])} ({shown})"


def spans(ranks: Sequence[int]) -> str:
    """Whole numbers in short: "0-3, 7"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


class Hub:
    """Hears all ranks until every one has left or a verdict is given.

    Args:
        listener: the socket that the ranks connect to
        token: what they have to know, so that a stranger's connection ends no run
        members: all ranks, in order
        limits: when somebody is at fault
    """

    def __init__(self, listener: socket.socket, token: str, members: list[Member], limits: Limits):
        self.listener, self.token, self.members, self.limits = listener, token, members, limits
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.connections: dict[int, socket.socket] = {}
        self._received: dict[socket.socket, bytes] = {}
        self._ranks: dict[socket.socket, int] = {}
        _allow_open_files(len(members) + 256)

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread = Thread(self._run)

    def join(self, timeout_s: float) -> bool:
        """Wait for its end, at most so many seconds; whether it has ended."""
        return self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._listen()
        finally:
            self.close()

    def close(self) -> None:
        """Also what a forked process does with its copies, which would keep the connections open."""
        for connection in (self.listener, *list(self._received)):
            connection.close()

    def _listen(self) -> None:
        now_s = time.monotonic()
        for member in self.members:
            member.heard_s = now_s
        next_beat_s = next_look_s = 0.0
        while any(m.state in ("here", "ended") for m in self.members):
            for key, _ in self.selector.select(self.limits.beat_s / 4):
                if key.fileobj is self.listener:
                    self._accept()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._receive(key.fileobj)
            now_s = time.monotonic()
            if now_s >= next_beat_s:
                next_beat_s = now_s + self.limits.beat_s
                self._send(self.connections, b"\n")
            if now_s >= next_look_s:  # not for each message: looking at all of 1,024 takes a millisecond
                next_look_s = now_s + self.limits.beat_s / 4
                if verdict := judge(self.members, self.limits, now_s):
                    self._pronounce(verdict)
                    return
        self._send(self.connections, _line({"over": True}))

    def _pronounce(self, verdict: Verdict) -> None:
        self._send([rank for rank in self.connections if rank != 0], _line({**asdict(verdict), "stacks": ""}))
        # rank 0 ends its process at once, and with it this thread and what is still to be sent
        time.sleep(0.5)
        self._send([0], _line(asdict(verdict)), wait_s=5.0)

    def _accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:  # gone again, or no more files may be open
            return
        connection.settimeout(0.0)
        strangers = [each for each in self._received if each not in self._ranks]
        if len(strangers) >= len(self.members) + _MOST_STRANGERS:
            self._drop(strangers[0])  # which has had the longest time to greet
        self._received[connection] = b""
        self.selector.register(connection, selectors.EVENT_READ)

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, rest = (self._received[connection] + data).split(b"\n")
        self._received[connection] = rest
        try:
            for line in lines:
                self._hear(connection, plain_json.load(line, "a message", halves=True))
            known = connection in self._ranks or len(rest) < _LONGEST_GREETING
        except (ValueError, KeyError, TypeError):
            known = False
        if not data or not known:
            self._drop(connection)

    def _hear(self, connection: socket.socket, message: dict) -> None:
        now_s = time.monotonic()
        if connection not in self._ranks:
            if message["token"] != self.token:
                raise Cause("a stranger")
            self._ranks[connection] = message["rank"]
            self.connections[message["rank"]] = connection
        member = self.members[self._ranks[connection]]
        member.heard_s = now_s
        if "place" in message:
            member.step, member.number, member.phase = message["place"]
            member.still_s, member.stack = message["still_s"], message["stack"]
        if "failed" in message or "left" in message:
            member.state, member.since_s = ("failed" if "failed" in message else "left"), now_s
            member.error = message.get("failed", "")

    def _drop(self, connection: socket.socket) -> None:
        self.selector.unregister(connection)
        self._received.pop(connection)
        connection.close()
        if connection in self._ranks:
            member = self.members[self._ranks.pop(connection)]
            del self.connections[member.rank]
            if member.state == "here":
                member.state, member.since_s = "ended", time.monotonic()

    def _send(self, ranks: Iterable[int], data: bytes, wait_s: float = 0.0) -> None:
        for connection in [self.connections[rank] for rank in ranks if rank in self.connections]:
            try:
                connection.settimeout(wait_s)
                connection.sendall(data)
            except OSError:  # ended, or so long suspended that its buffer is full: what was not heard from it tells
                continue


def _line(message: dict) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _allow_open_files(count: int) -> None:
    """A connection is an open file, of which many systems allow 1,024 unless one asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard)
        )
