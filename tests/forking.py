"""Processes of tests that have imported what they need before they are asked for anything.

One process imports PyTorch, DeepSpeed and the trainings, and then makes others of itself, each of which runs a script as `python -c`
would, with an environment, arguments and streams of its own. So what takes a fresh interpreter seconds is there at once. It may
be done as long as there is one thread, which is so until something is computed.

There are two of it, which order their sets differently, as processes of a run do: where ranks have to agree, they take turns.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
"""For processes that compute on the CPU with gloo also where there is a GPU."""
_IMPORTED = (
    "tests.errors.recording",  # first: what is imported after it notes what it says
    *("torch._dynamo", "deepspeed", "matplotlib.figure", "matplotlib.backends.backend_svg"),
    *("dalle.cli.train", "dalle.training.loop", "dalle.reporting.report", "dalle.sampling.loading"),
    *("dalle.stages.prior", "dalle.stages.dvae", "dalle.stages.clip", "dalle.stages.stackgan"),
    "tests.training.cluster",
)
_SERVER = "import sys; from tests.forking import serve; exec(serve(sys.argv[1]))"


class Forked:
    """A script that has begun, on the CPU.

    Args:
        script: Python
        arguments: what it finds in `sys.argv[1:]`
        environment: all of it
        number: of those that have to agree, from 0
    """

    def __init__(self, script: str, arguments: Sequence[str], environment: Mapping[str, str], number: int = 0):
        self.returncode: int | None = None
        # files, since a pipe that nobody reads would hold the process up when it is full
        self._said = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115, they are closed in `kill`
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_server(os.getpid(), number % 2))
        with tempfile.TemporaryFile("w+") as asked:
            json.dump([script, list(arguments), {**environment, **ON_CPU}], asked)
            asked.flush()
            socket.send_fds(self._connection, [b"."], [file.fileno() for file in (asked, *self._said)])
        self._answers = self._connection.makefile()
        self.pid = int(self._answers.readline())

    def _has_ended(self, timeout_s: float) -> bool:
        waiting = select.poll()  # `select.select` knows no file beyond the 1,024th
        waiting.register(self._connection, select.POLLIN)
        return bool(waiting.poll(1000 * timeout_s))

    def poll(self) -> int | None:
        """How it ended, negative of a signal; none if it has not."""
        if self.returncode is None and self._has_ended(0):
            self.returncode = int(self._answers.readline())
        return self.returncode

    def wait(self, timeout: float) -> int:
        """How it ends. Raises TimeoutError."""
        if self.returncode is None:
            if not self._has_ended(timeout):
                raise TimeoutError(f"{timeout} s")
            self.returncode = int(self._answers.readline())
        return self.returncode

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """What it said, stdout and stderr, once it has ended. Raises TimeoutError."""
        self.wait(timeout)
        for file in self._said:
            file.seek(0)
        out, err = (file.read() for file in self._said)
        return out, err

    def send_signal(self, number: int) -> None:
        """As from a shell, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, if it has not ended, and forget it."""
        with suppress(ProcessLookupError):
            self.send_signal(signal.SIGKILL)
        for file in (self._answers, self._connection, *self._said):
            file.close()


class Fresh(subprocess.Popen):
    """A script that has begun in a new interpreter, as one that uses a GPU has to. Like `Forked` otherwise."""

    def __init__(self, script: str, arguments: Sequence[str], environment: Mapping[str, str], number: int = 0):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        super().__init__([sys.executable, "-c", script, *arguments], env=environment, cwd=ROOT, **streams)


@cache
def _server(_: int, number: int) -> str:
    """Where the process of which others are made listens: for each process of the tests its own, with whose end it ends."""
    path = os.path.join(tempfile.mkdtemp(prefix="forking-"), "socket")
    environment = {**os.environ, **ON_CPU, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PYTHONHASHSEED"] = str(1 + number)
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, path], env=environment, cwd=ROOT, start_new_session=True, **streams
    )
    _servers.append(server)
    assert server.stdout is not None and server.stdout.readline() == b"ready\n"
    return path


_servers: list[subprocess.Popen] = []
"""So that their streams stay open."""


def serve(path: str) -> str:
    """Listen, until the process of the tests has ended. Comes back in each process that was asked for, with its script."""
    said = os.dup(1)
    os.dup2(2, 1)  # what is said while importing is no answer
    for name in _IMPORTED:
        importlib.import_module(name)
    from dalle.training.deepspeed_library import import_muon

    import_muon()
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose threads"
    gc.collect()
    gc.freeze()  # or each process would copy all of it, as it is counted
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those in between
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    os.write(said, b"ready\n")
    os.close(said)
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            os.unlink(path)
            os.rmdir(os.path.dirname(path))
            os._exit(0)
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _become(connection)
        connection.close()


def _become(connection: socket.socket) -> str:
    """In the process that was asked for: its script. In the one in between, which tells how it ended: nothing, for that ends here."""
    _, (asked, *said), _, _ = socket.recv_fds(connection, 1, 3)
    with open(asked) as file:
        file.seek(0)
        script, arguments, environment = json.load(file)
    if pid := os.fork():
        with suppress(BrokenPipeError):  # it was killed by the test, which asks no longer
            connection.sendall(f"{pid}\n".encode())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            connection.sendall(f"{code}\n".encode())
        os._exit(0)
    connection.close()
    os.setsid()
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for stream, file in zip((1, 2), said, strict=True):
        os.dup2(file, stream)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    random.seed()
    sys.modules["numpy"].random.seed()
    return script
