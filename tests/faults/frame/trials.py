"""The frame of all trials: a command is run with a fault, then once more as a user would, and compared with the same command
undisturbed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest

from dalle.cluster.watch import EXIT_CODE
from tests.conftest import ROOT, clean_environment

KILL = 0
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
_NO_THREAD_DATA = 127
"""The exit code of glibc's dynamic loader for an error that it cannot go on from."""
_SHIM = Path(__file__).with_name("shim.c")
_VOLATILE = ("*.dalle-lock", "*.dalle-lock.*", "*/previous-*")
"""A lock that somebody was killed while asking for, which goes some minutes later; and `previous-1`, where a training puts what one
left that had no checkpoint yet."""


_IMPORTED = (
    *("dalle.cli.train", "dalle.cli.sample", "dalle.cli.data.tokenize", "dalle.cli.export", "deepspeed"),
    *("dalle.training.loop", "dalle.stages.dvae", "dalle.stages.prior", "dalle.stages.clip", "pyarrow"),
    *("dalle.sampling.loading", "dalle.sampling.workers", "dalle.sampling.output", "dalle.evaluation.layout_gallery"),
    *("dalle.cli.data.filter", "dalle.cli.data.train_tokenizer", "dalle.data.pairs"),
)
_IMPORTED_FOR_ALL = (
    *_IMPORTED,
    *("dalle.stages.stackgan", "dalle.stages.text_encoder", "dalle.ready.publishing", "dalle.planning.search"),
    *("open_clip", "torch._dynamo", "torch_fidelity", "torchmetrics", "prdc", "matplotlib.pyplot", "einops", "wandb"),
)
"""Before anything is run."""


@dataclass
class Command:
    """What is tried.

    main: `module:function` of its console script. arguments: without the output. made: from the output to the state to begin
    from, such as of an earlier making; null for nothing. again: arguments that a user adds to call it again. overwrites: the
    remedy that its refusal names is `--overwrite`. output: what is written, below the folder whose changes are counted. output_key:
    of the setting that names it. processes: as many as a launcher starts. volatile: patterns of files, below the output, that it
    may make otherwise or do without.
    """

    main: str
    arguments: list[str]
    made: Callable[[Path], None] | None = None
    again: list[str] = field(default_factory=list)
    output: str = "out"
    output_key: str = "--output"
    processes: int = 1
    volatile: tuple[str, ...] = ()


@dataclass
class Outcome:
    """Of a trial: how the command with the fault ended, of several processes the first; what it said, how many calls it made, how
    long it took; the exit code of each process, and which of them a launcher had to end."""

    code: int
    said: str
    calls: int
    took_s: float
    codes: list[int]
    ended: list[int]


class Server:
    """Runs commands, with faults: see `server`. of_all: it is to be quick for all commands, and begins later."""

    def __init__(self, folder: Path, of_all: bool = False):
        self.folder = folder
        folder.mkdir()
        compiler = os.environ.get("CXX") or shutil.which("gcc") or shutil.which("cc") or shutil.which("g++")
        if not sys.platform.startswith("linux") or compiler is None:
            pytest.skip("NOT TESTED: faults at every write. It takes Linux and a C compiler")
        shim = folder / "shim.so"
        subprocess.run([compiler, "-x", "c", "-O1", "-shared", "-fPIC", "-o", shim, _SHIM, "-ldl"], check=True)
        environment = {**clean_environment(), "LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= {"XDG_CACHE_HOME": str(folder / "cache")}
        self._errors = (folder / "server").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.frame.server", *(_IMPORTED_FOR_ALL if of_all else _IMPORTED)],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        while (line := self._process.stdout.readline()) != "ready\n":  # what libraries say as they are imported
            assert line, (folder / "server").read_text()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=300)
        self._process.stdout.close()
        self._errors.close()

    def run(self, main: str, arguments: Sequence[str], below: Path, processes: int = 1, **fault) -> Outcome:
        """Run it; with a fault, by the names that `server` has for it."""
        log = self.folder / "log"
        trial = {"command": main, "arguments": [*arguments], "folder": str(below), "log": str(log)}
        trial |= {
            "processes": processes,
            "at": -1,
            "error": KILL,
            "lasts": False,
            "each_us": 0,
            "after_s": 0.0,
            "victims": [],
            "memory_bytes": -1,
            "clock": False,
            **fault,
        }
        self._process.stdin.write(json.dumps(trial) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, (self.folder / "server").read_text()
        logs = [log, *(self.folder / f"log-{rank}" for rank in range(1, processes))]
        answer, said = json.loads(line), "\n".join(each.read_text(errors="replace") for each in logs)
        assert not answer["late"], f"did not come to an end: {said}"
        return Outcome(answer["codes"][0], said, answer["calls"], answer["took_s"], answer["codes"], answer["ended"])


def content(folder: Path, volatile: Sequence[str] = ()) -> dict[str, str]:
    """All files below a folder but volatile ones, by what they hold, and their folders; of checkpoints the last."""
    found = {}
    last = {path.parent: path for path in sorted(folder.rglob("checkpoints/step-*")) if path.is_dir()}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if any(fnmatch(name, pattern) for pattern in (*_VOLATILE, *volatile)):
            continue
        if any(each.parent in last and each != last[each.parent] for each in (path, *path.parents)):
            continue
        if path.is_dir():
            found[name] = "folder"
        elif path.name == "state.json":
            found[name] = "there"  # a checkpoint's index tells of the clock, too
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _room(folder: Path) -> int:
    """Bytes that its files take, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


@contextmanager
def _disk(place: Path, size: int) -> Iterator[Callable[[], None]]:
    """A disk of so many bytes in a place, for the block, and what makes it a large one."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={max(size, 4096)}", "tmpfs", place], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("NOT TESTED: disks that are full. It takes the right to mount a tmpfs")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=1g", place], check=True)
    finally:
        subprocess.run(["umount", place], check=True)


class Trials:
    """Of one command.

    Args:
        server: runs it
        command: what is tried
        folder: for its output and a copy of what is there before
    """

    def __init__(self, server: Server, command: Command, folder: Path):
        self.server, self.command, self.folder = server, command, folder
        self.before, self.place = folder / "before", folder / "place"
        self.before.mkdir(parents=True)
        if command.made is not None:
            command.made(self.before / command.output)
        self._reset()
        undisturbed = self._again([])
        self.calls, self.took_s = undisturbed.calls, undisturbed.took_s
        self.expected = self._content()
        self.written = _room(self.place)

    def _reset(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.before, self.place)

    def _again(self, more: list[str], allow: Sequence[int] | None = (0,), **fault) -> Outcome:
        words = [*self.command.arguments, self.command.output_key, str(self.place / self.command.output), *more]
        done = self.server.run(self.command.main, words, self.place, self.command.processes, **fault)
        if not fault and allow is not None:
            assert all(code in allow for code in done.codes), done.said
        return done

    def _content(self) -> dict[str, str]:
        return content(self.place, [f"{self.command.output}/{pattern}" for pattern in self.command.volatile])

    def try_at(self, at: int, error: int = KILL, lasts: bool = False) -> str:
        """A fault at one call, or from it on, and what becomes of it, in a word. Fails where something is lost, mixed or a dead end."""
        self._reset()
        done = self._again([], at=at, error=error, lasts=lasts)
        kind = f"{errno.errorcode.get(error, 'a kill')}{' from there on' if lasts else ''}"
        where = f"call {at} of {self.calls}, {kind}: {done.said}"
        if error == KILL:
            assert -9 in done.codes or self._content() == self.expected, where
        else:
            self._check_said(done, os.strerror(error), where)
        return self._becomes(done, where)

    def _check_said(self, done: Outcome, reason: str, where: str) -> None:
        """It says in its last line what was wrong with which file, or it needed nothing that failed, or says what it did without. Of
        several processes the first may have heard of it from another one, and names that."""
        alone = self.command.processes == 1
        assert "Traceback" not in done.said, where
        assert done.code in (0, 2) or (not alone and done.code == EXIT_CODE), where
        if not done.code and self._content() != self.expected:
            assert reason in done.said, f"something is missing, and nothing was said: {where}"
        if done.code:
            lines = done.said.strip().splitlines()[-1 if alone else 0 :]
            others = "disk is full|disk I/O error|unable to open database file|make room"  # SQLite's words, and a look beforehand
            assert any(str(self.place) in line and re.search(f"{reason}|{others}", line) for line in lines), where

    def try_slowly(self) -> str:
        """Each of its calls takes some hundredths of a second; nothing comes of it."""
        self._reset()
        done = self._again([], each_us=20_000)
        assert done.code == 0 and self._content() == self.expected, done.said
        return "as if nothing had been"

    def try_with_disk(self, share: float) -> str:
        """On a disk of its own, which has room for a part of what it writes, and then for all; what becomes of it, in a word. Fails as
        `try_at`, and skips without the right to mount a tmpfs."""
        self._reset()
        needed = _room(self.place)
        shutil.rmtree(self.place)
        self.place.mkdir()
        with _disk(self.place, needed + int(share * (self.written - needed))) as enlarge:
            shutil.copytree(self.before, self.place, dirs_exist_ok=True)
            done = self._again([], allow=None)
            where = f"a disk with room for {share:.0%}, {done.codes}: {done.said}"
            self._check_said(done, os.strerror(errno.ENOSPC), where)
            enlarge()
            return self._becomes(done, where)

    def try_after(self, after_s: float, victims: Sequence[int]) -> str:
        """Some of its processes killed at a moment, and what becomes of it, in a word. Fails as `try_at`, and where another process
        ends by a signal that nobody sent."""
        self._reset()
        done = self._again([], after_s=after_s, victims=[*victims])
        where = f"killed {[*victims]} after {after_s:.3f} of {self.took_s:.3f} s, {done.codes}: {done.said}"
        if all(code == 0 for code in done.codes):
            assert self._content() == self.expected, where
            return "over before"
        assert all(code >= 0 or rank in (*victims, *done.ended) for rank, code in enumerate(done.codes)), where
        return self._becomes(done, where)

    def try_with_memory(self, memory_bytes: int) -> str:
        """With no more than so much beyond what a process has when it begins; what becomes of it, in a word. Fails as `try_at`. A C++
        library may abort where it finds none, or, as it is loaded, fall; and glibc ends a process that it has none for a thread's own
        data for. Nobody can catch these, and they are as good as a kill. Of several processes one says that there is none, and others that it has
        gone."""
        self._reset()
        done = self._again([], memory_bytes=memory_bytes)
        where = f"with {memory_bytes:,} bytes, {done.codes}: {done.said}"
        assert "Traceback" not in re.sub(r"(?m)^E\d{4} .*\n", "", done.said), where  # PyTorch logs its own
        if {-signal.SIGABRT, -signal.SIGSEGV} & {*done.codes} or (
            _NO_THREAD_DATA in done.codes and "thread-local data" in done.said
        ):
            return self._becomes(done, where)
        assert all(
            code in (0, 2) or (rank and code in (1, EXIT_CODE)) or rank in done.ended
            for rank, code in enumerate(done.codes)
        ), where
        if done.code:
            lines = done.said.strip().splitlines()
            assert any("emory" in line for line in (lines[-1:] if self.command.processes == 1 else lines)), where
        return self._becomes(done, where)

    def try_with_jumps(self) -> str:
        """While the clock of the day is set again and again; nothing comes of it."""
        self._reset()
        done = self._again([], clock=True)
        assert done.code == 0 and self._content() == self.expected, done.said
        return "as if nothing had been"

    def _becomes(self, done: Outcome, where: str) -> str:
        """It is called again, as a user would."""
        if done.code == 0 and self._content() == self.expected:
            return "as if nothing had been"
        was_whole = self._content() == self.expected
        again = self._again(self.command.again, allow=(0, 2))
        word = "whole when called again"
        if again.code == 2 and was_whole:  # killed behind its last file, such as while it gave the lock back
            assert "Traceback" not in again.said, f"{where}\n{again.said}"
            word = "whole already, and not written over"
        elif again.code == 2:
            line = again.said.strip().splitlines()[-1]
            remedies = {"--overwrite": [*self.command.again, "--overwrite"], "leave --resume out": []}
            remedy = next((words for said, words in remedies.items() if said in line), None)
            assert remedy is not None and "Traceback" not in again.said, f"{where}\n{again.said}"
            self._again(remedy)
            word = "whole with the remedy that is named"
        found = self._content()
        differing = {name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name)}
        assert not differing, f"{where}\ndiffers: {sorted(differing)}"
        return word
