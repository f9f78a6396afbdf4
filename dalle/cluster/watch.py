"""A hung or dead rank ends the run in bounded time, with the rank named.

Without this, what a lost rank leaves behind are others that wait in a collective until a timeout of minutes ends them
with a message about the collective. Here a thread of each rank tells a hub in rank 0 (`watch_hub.py`) every three
seconds where its main thread is, and the hub tells all, in one line that one rank of each machine prints, who is at fault:

- a process that was killed, or a machine that went away: its connection ends, or for a minute nothing is heard;
- a rank that lives and does not move for `silence_limit_s`: who is behind in updates or phases, and where the main
  threads stand;
- a rank that failed with an error, while others still wait for it;
- rank 0 itself, and with it the hub: each of the others notices by itself.

Then the process ends, whatever collective it is in. What takes longer than `silence_limit_s` in one piece,
such as compiling or saving a large checkpoint, needs a higher limit.

Load: each rank one connection to rank 0, 100 bytes to it and one byte back every three seconds. With 1,024 ranks that is
35 kB/s and 340 messages a second at rank 0. The connections are no part of the process group and its store, of which a
rank that waits for another would block the rest.
"""

from __future__ import annotations

import faulthandler
import json
import os
import secrets
import select
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

from dalle.cluster.topology import World
from dalle.cluster.watch_hub import Hub, Limits, Member, Verdict, named
from dalle.outputs.threads import Thread

EXIT_CODE = 75
"""Of a process that ends because another is gone or nobody moves: `EX_TEMPFAIL` of sysexits.h, for starting again with
--resume may well work. Because of another's error it is 1."""

_CONNECT_S = 60.0
_READ_WITHIN_S = 5.0


class _Place(NamedTuple):
    """Where a main thread is: the update, how many marks it has made in that before, the phase, and since when."""

    step: int
    number: int
    phase: str
    since_s: float


class Watch:
    """Within the block this process is watched and watches the others. Alone it does nothing.

    All ranks enter, and all leave: in order together, so that no launcher takes the first end for a fault; with an error as
    soon as it is clear whose fault that was.

    Args:
        world: the processes
        silence_limit_s: longest time without progress

    Raises:
        ValueError: rank 0 cannot be reached
    """

    def __init__(self, world: World, silence_limit_s: float):
        self.world, self.limits = world, Limits.of(silence_limit_s)
        self._place = _Place(0, 0, "starting", time.monotonic())
        self._error: BaseException | None = None
        self._thread: Thread | None = None
        self._hub: Hub | None = None

    def mark(self, step: int, phase: str) -> None:
        """Say where the main thread is: the update, and "update", "waiting for data", "validating" and the like. All ranks
        say the same things in the same order: within an update their number tells who is behind."""
        number = self._place.number + 1 if step == self._place.step else 0
        self._place = _Place(step, number, phase, time.monotonic())

    def __enter__(self) -> Watch:
        if self.world.size > 1:
            self._join()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is None:
            return
        self._error = error
        self._send({"left": True} if error is None else {"failed": _in_one_line(error)})
        self._thread.join()
        if self._hub:
            self._hub.join(self.limits.silent_s)  # it may still have to tell others that all is over
        self._socket.close()
        if error is None:  # otherwise it still bounds the time that ending takes
            faulthandler.cancel_dump_traceback_later()

    def _join(self) -> None:
        rank = self.world.rank
        listener = _listener(self.world.size) if rank == 0 else None
        port = listener.getsockname()[1] if listener else None
        mine = {"host": socket.gethostname(), "process": os.getpid(), "port": port, "token": secrets.token_hex(16)}
        all_ranks = self.world.gather(mine)
        self.members = [Member(i, each["host"], each["process"]) for i, each in enumerate(all_ranks)]
        token = all_ranks[0]["token"]
        if listener:
            self._hub = Hub(listener, token, self.members, self.limits)
            self._hub.start()
        address = (os.environ["MASTER_ADDR"], all_ranks[0]["port"])
        try:
            self._socket = socket.create_connection(address, timeout=_CONNECT_S)
        except OSError as error:
            raise ValueError(
                f"{named([self.members[rank]])} cannot reach {named([self.members[0]])} at {address[0]}:{address[1]} "
                f"({error}): open the ports between the machines"
            ) from None
        self._socket.settimeout(self.limits.beat_s / 2)
        os.register_at_fork(after_in_child=self._close)  # or a loader's copy would outlive a process that was killed
        self._lock = threading.Lock()
        self._send({"token": token, "rank": rank})
        self._place = _Place(0, 0, "starting", time.monotonic())
        self._thread = Thread(self._follow)

    def _close(self) -> None:
        self._socket.close()
        if self._hub:
            self._hub.close()

    def _send(self, message: dict) -> None:
        try:
            with self._lock:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:  # rank 0 has gone; the thread will hear it
            pass

    def _beat(self) -> None:
        place = self._place
        still_s = time.monotonic() - place.since_s
        # sent some time before anyone is judged, so that all that wait have sent theirs
        stack = _main_stack() if still_s > 0.75 * self.limits.still_s else ""
        self._send({"place": place[:3], "still_s": still_s, "stack": stack})
        # for when this thread cannot run, because the process is suspended or a call holds the interpreter's lock: the others
        # end then, and this timer, which needs neither, ends the process itself
        with suppress(RuntimeError):  # no memory for its thread: the next beat tries again
            faulthandler.dump_traceback_later(self.limits.still_s, exit=True, file=sys.__stderr__ or 2)

    def _follow(self) -> None:
        """Beat, and hear the hub, until it says that all is over or who is at fault."""
        heard_s, next_beat_s, received = time.monotonic(), 0.0, b""
        while True:
            if time.monotonic() >= next_beat_s:
                next_beat_s = time.monotonic() + self.limits.beat_s
                self._beat()
            try:
                data = self._socket.recv(65_536)
            except TimeoutError:
                silent_s = time.monotonic() - heard_s
                if silent_s > self.limits.silent_s:
                    return self._end(self._without_hub(f"has been silent for {silent_s:.0f} s"))
                continue
            except OSError:
                data = b""
            if not data:
                return self._end(self._without_hub("has ended"))
            heard_s = time.monotonic()
            *lines, received = (received + data).split(b"\n")
            for line in filter(None, lines):
                message = json.loads(line)
                if "over" not in message:
                    self._end(Verdict(**message))
                return None

    def _without_hub(self, what: str) -> Verdict:
        line = f"{named(self.members[:1])} {what}, noticed in update {self._place.step}; ending"
        return Verdict(line, gone=[0])

    def _end(self, verdict: Verdict) -> None:
        """End the process, unless its own error is about to. The lowest rank of a machine that can shows the verdict."""
        rank = self.world.rank
        if self._error is not None and (rank == verdict.failed or not isinstance(self._error, RuntimeError)):
            return  # a RuntimeError is what a collective raises when others are gone
        try:
            here = [m.rank for m in self.members if m.host == self.members[rank].host and m.rank not in verdict.gone]
            if rank == min(here, default=rank):
                _write_within(_READ_WITHIN_S, 2, f"{verdict.line}\n{verdict.stacks}".encode())
        finally:
            os._exit(EXIT_CODE if verdict.failed is None else 1)


def _write_within(seconds: float, file: int, text: bytes) -> None:
    """As much of it as is taken in time, for nobody may be reading."""

    def write() -> None:
        with suppress(OSError):
            os.write(file, text)

    try:
        Thread(write).join(seconds)
    except (RuntimeError, MemoryError):
        _write_without_a_thread(seconds, file, text)


def _write_without_a_thread(seconds: float, file: int, text: bytes) -> None:
    """The same where there is no memory for one. A terminal whose output is held may wait all the same."""
    waiting, until_s = select.poll(), time.monotonic() + seconds
    waiting.register(file, select.POLLOUT)
    with suppress(OSError):
        while text and waiting.poll(1000 * max(0.0, until_s - time.monotonic())):
            text = text[os.write(file, text[: select.PIPE_BUF]) :]  # so much of a pipe does not wait


def _listener(size: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=size, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=size)


def _in_one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _main_stack() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame, limit=20)) if frame else ""
