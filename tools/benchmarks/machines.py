"""Several "machines" on one computer: network namespaces, each with a network card of its own at a limited rate.

The cards meet at a switch. What the processes of one machine say to one another stays inside it, at the speed of memory;
what they say to another machine goes through both cards, each limited in both directions as real ones are. Linux, root,
and `ip` and `tc` (iproute2) are needed. The processes share the computer's cores: the link is real, the computers are not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CARD = "eth0"
_PORT = "29500"  # each machine has ports of its own, so this one is free
_POLL_S = 0.05
_QUEUE_S = 0.05
"""What waits in a card's queue before it drops packets: a few round trips of a busy link, as in a common switch."""
_TICK_S = 0.004
"""Between two ticks of a slow kernel clock: a card has to be allowed as many bytes at once as its rate sends meanwhile."""
_SENT_BYTES = Path(f"/sys/class/net/{CARD}/statistics/tx_bytes")
_SHOWN_CHARS = 2000


@dataclass(frozen=True)
class Machine:
    """A network namespace.

    Args:
        name: of the namespace
        address: of its card
    """

    name: str
    address: str

    def command(self, words: list[str]) -> list[str]:
        """The command that runs `words` inside; root there is root here."""
        return ["ip", "netns", "exec", self.name, *words]

    def sent_bytes(self) -> int:
        """Bytes that the card has sent since the machine was made, with the headers of all protocols."""
        return int(_output(self.command(["cat", str(_SENT_BYTES)])))


@dataclass
class Rank:
    """A process on a machine, with a process group of its own.

    Args:
        number: its global rank
        machine: where it runs
        process: itself
        log: the file that its stdout and stderr go to
    """

    number: int
    machine: Machine
    process: subprocess.Popen
    log: Path

    def output(self) -> str:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """At once, with its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def card_sent_bytes() -> int:
    """To be called inside a machine: its `sent_bytes`."""
    return int(_SENT_BYTES.read_text())


def why_none() -> str | None:
    """Why there can be no machines here; None when there can."""
    try:
        with joined(1, mbit=1):
            return None
    except (OSError, RuntimeError) as error:
        return str(error)


@contextlib.contextmanager
def joined(count: int, mbit: float | None) -> Iterator[list[Machine]]:
    """Machines on one switch. They are gone after the block, whatever ended it; SIGTERM ends it like Ctrl-C.

    Args:
        count: how many
        mbit: Mbit/s of each card in each direction; None limits nothing

    Raises:
        RuntimeError: there can be none here, and why
    """
    if os.geteuid() != 0:
        raise RuntimeError("machines on a limited link are network namespaces, and only root can make these")
    if missing := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        raise RuntimeError(f"no {' and no '.join(missing)} here: install iproute2")
    own = f"dalle-{os.getpid()}-{time.monotonic_ns()}"
    switch = f"{own}-switch"
    machines = [Machine(f"{own}-{i}", f"10.0.0.{i + 1}") for i in range(count)]
    made: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for name in (switch, *(machine.name for machine in machines)):
            made.append(name)
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for i, machine in enumerate(machines):
            _plug_in(machine, switch, f"port{i}", mbit)
        yield machines
    finally:
        for name in made:  # the cards go with them
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        signal.signal(signal.SIGTERM, before)


def _plug_in(machine: Machine, switch: str, port: str, mbit: float | None) -> None:
    _ip("link", "add", CARD, "netns", machine.name, "type", "veth", "peer", "name", port, "netns", switch)
    _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", CARD)
    _ip("-n", switch, "link", "set", port, "master", "bridge")
    for name, device in ((machine.name, CARD), (switch, port)):  # what it sends, and what it receives
        if mbit is not None:
            rate_bytes = mbit * 1e6 / 8
            burst_bytes = max(64 * 1024, int(_TICK_S * rate_bytes))  # at least one packet before it is segmented
            limit_bytes = burst_bytes + int(_QUEUE_S * rate_bytes)
            limits = ("rate", f"{int(mbit * 1e6)}bit", "burst", str(burst_bytes), "limit", str(limit_bytes))
            _output(["tc", "-n", name, "qdisc", "add", "dev", device, "root", "tbf", *limits])
        _ip("-n", name, "link", "set", device, "up")


@contextlib.contextmanager
def started(
    machines: list[Machine], words: list[str], per_machine: int, environment: dict[str, str] | None = None
) -> Iterator[list[Rank]]:
    """`per_machine` processes of one command on each machine, each with its place among them in the environment that the
    launchers set. Those that still run are killed after the block.

    Args:
        machines: on which
        words: the command
        per_machine: processes of each; they get a thread each, since all share the cores
        environment: variables beside this process's own
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks: list[Rank] = []
        try:
            for number in range(per_machine * len(machines)):
                machine = machines[number // per_machine]
                place = {
                    "RANK": number,
                    "LOCAL_RANK": number % per_machine,
                    "WORLD_SIZE": per_machine * len(machines),
                    "LOCAL_WORLD_SIZE": per_machine,
                    "MASTER_ADDR": machines[0].address,
                    "MASTER_PORT": _PORT,
                    "GLOO_SOCKET_IFNAME": CARD,
                    "OMP_NUM_THREADS": 1,
                }
                variables = {**os.environ, **{name: str(value) for name, value in place.items()}, **(environment or {})}
                log = Path(folder) / f"{number}.txt"
                with log.open("wb") as file:
                    process = subprocess.Popen(
                        machine.command(words),
                        env=variables,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                ranks.append(Rank(number, machine, process, log))
            yield ranks
        finally:
            for rank in ranks:
                rank.kill()


def run(
    machines: list[Machine],
    words: list[str],
    per_machine: int,
    timeout_s: float,
    environment: dict[str, str] | None = None,
) -> list[str]:
    """What each process of a command said, by rank, when all have ended.

    Raises:
        RuntimeError: one failed, or `timeout_s` have passed: which, and the end of what it said
    """
    deadline_s = time.monotonic() + timeout_s
    with started(machines, words, per_machine, environment) as ranks:
        running = list(ranks)
        while running:
            time.sleep(_POLL_S)
            for rank in ranks:
                if code := rank.process.poll():
                    raise RuntimeError(f"rank {rank.number} ended with exit code {code}:\n{_end_of(rank)}")
            running = [rank for rank in running if rank.process.poll() is None]
            if running and time.monotonic() > deadline_s:
                late = ", ".join(str(rank.number) for rank in running)
                raise RuntimeError(f"not done after {timeout_s:g} s: rank {late}; the first:\n{_end_of(running[0])}")
        return [rank.output() for rank in ranks]


def measured_mbit(sender: Machine, receiver: Machine, num_bytes: int) -> float:
    """What a plain socket reaches from one to the other."""
    words = [sys.executable, "-c", _RECEIVE, receiver.address, _PORT, str(num_bytes)]
    receiving = subprocess.Popen(receiver.command(words), stdout=subprocess.PIPE, text=True)
    assert receiving.stdout is not None
    try:
        receiving.stdout.readline()  # it listens
        _output(sender.command([sys.executable, "-c", _SEND, receiver.address, _PORT, str(num_bytes)]))
        return num_bytes * 8 / 1e6 / float(receiving.stdout.readline())
    finally:
        receiving.kill()
        receiving.wait()


_SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as to:
    to.sendall(bytes(int(sys.argv[3])))
"""
_RECEIVE = """
import socket, sys, time
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    print("listening", flush=True)
    source, _ = server.accept()
    began_s, left = time.perf_counter(), int(sys.argv[3])
    while left:
        left -= len(source.recv(2**20))
    print(time.perf_counter() - began_s)
"""


def _end_of(rank: Rank) -> str:
    return rank.output()[-_SHOWN_CHARS:]


def _ip(*words: str) -> str:
    return _output(["ip", *words])


def _output(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
