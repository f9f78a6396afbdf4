"""Questions that a process of its own answers: a library that ends the process it is loaded into, or never comes back, is then a
line like any other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from dalle.outputs.threads import Thread

_PLACES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells its processes: ours are none of its."""
_START = "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); import runpy; runpy.run_module(sys.argv.pop(1), None, '__main__')"
"""With the search path of this process, not with the folder that it happens to stand in."""
_MOST_CHARACTERS = 300

Told = dict[str, Any]


class Asked:
    """A Python module that runs as a process of its own.

    Args:
        module: its name; it answers by `telling`
        arguments: of its command line
        timeout_s: after which it is ended, with all that it started
        environment: variables beside those of this process
    """

    def __init__(self, module: str, *arguments: str, timeout_s: float, environment: Mapping[str, str] | None = None):
        surroundings = {name: value for name, value in os.environ.items() if name not in _PLACES}
        self.timeout_s = timeout_s
        self._is_late = False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (which `_end` closes)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, "\n".join(sys.path), module, *arguments],
            env={**surroundings, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that its own processes can be ended with it
        )
        self._over = threading.Event()
        Thread(self._give_up_in_time)

    def answers(self) -> Iterator[Told]:
        """Each thing that it tells, as it does; last, where it did not end well, {"failed": why}."""
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                yield json.loads(line)
            code = self._process.wait()
            if self._is_late:
                yield {"failed": f"did not come back within {self.timeout_s:.0f} s"}
            elif code:
                yield {"failed": self._why(code)}
        finally:
            self._end()

    def _give_up_in_time(self) -> None:
        if not self._over.wait(self.timeout_s):
            self._is_late = True
            self._kill()

    def _kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def _end(self) -> None:
        self._over.set()
        self._kill()  # also what it may have left behind
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _why(self, code: int) -> str:
        """The last line that it printed; of one that was ended from outside by which signal."""
        self._errors.seek(0)
        lines = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        said = " ".join(lines[-1].split())[:_MOST_CHARACTERS] if lines else ""
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return f"was ended by {name}" + (f" ({said})" if said else "")
        return said or f"ended with exit code {code}"


def asked(module: str, *arguments: str, timeout_s: float, environment: Mapping[str, str] | None = None) -> Told:
    """All that a process tells, as one mapping; with "failed" where it did not end well. See `Asked`."""
    told: Told = {}
    for each in Asked(module, *arguments, timeout_s=timeout_s, environment=environment).answers():
        told |= each
    return told


@contextmanager
def telling() -> Iterator[Callable[[Told], None]]:
    """Within the block of a module that is asked: what tells the one who asks. All else that is printed goes to standard error."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)

        def tell(what: Told) -> None:
            channel.write(json.dumps(what) + "\n")
            channel.flush()

        yield tell
