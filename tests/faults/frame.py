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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dalle.cluster.watch import EXIT_CODE
from tests.conftest import ROOT, TINY_CLIP, TINY_DVAE, TINY_PRIOR, clean_environment

KILL = 0
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
_NO_THREAD_DATA = 127
"""The exit code of glibc's dynamic loader for an error that it cannot go on from."""
_SHIM = Path(__file__).with_name("shim.c")
_VOLATILE = ("metrics.jsonl", "run.json", "report.html", ".dalle-lock")
"""Of a training, what tells of the clock; the same lines are there for other times. And a lock that somebody was killed while
asking for, which goes some minutes later; and `previous-1`, where a training puts what one left that had no checkpoint yet."""


@dataclass
class Command:
    """What is tried.

    main: `module:function` of its console script. arguments: without the output. made: from the output to the state to begin
    from, such as of an earlier making; null for nothing. again: arguments that a user adds to call it again. overwrites: the
    remedy that its refusal names is `--overwrite`. output: what is written, below the folder whose changes are counted. processes:
    as many as a launcher starts.
    """

    main: str
    arguments: list[str]
    made: Callable[[Path], None] | None = None
    again: list[str] = field(default_factory=list)
    output: str = "out"
    processes: int = 1


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
    """Runs commands, with faults: see `server`."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        compiler = os.environ.get("CXX") or shutil.which("gcc") or shutil.which("cc") or shutil.which("g++")
        if not sys.platform.startswith("linux") or compiler is None:
            pytest.skip("NOT TESTED: faults at every write. It takes Linux and a C compiler")
        shim = folder / "shim.so"
        subprocess.run([compiler, "-x", "c", "-O1", "-shared", "-fPIC", "-o", shim, _SHIM, "-ldl"], check=True)
        environment = {**clean_environment(), "LD_PRELOAD": str(shim), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= {"XDG_CACHE_HOME": str(folder / "cache")}
        modules = ["dalle.cli.train", "dalle.cli.sample", "dalle.cli.data.tokenize", "dalle.cli.export", "deepspeed"]
        modules += ["dalle.training.loop", "dalle.stages.dvae", "dalle.stages.prior", "dalle.stages.clip"]
        modules += ["dalle.sampling.loading", "dalle.sampling.workers", "dalle.evaluation.layout_gallery", "pyarrow"]
        modules += [
            "dalle.cli.data.filter",
            "dalle.cli.data.train_tokenizer",
            "dalle.sampling.output",
            "dalle.data.pairs",
        ]
        self._errors = (folder / "server").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server", *modules],
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


def content(folder: Path) -> dict[str, str]:
    """All files below a folder that the clock does not change, by what they hold, and their folders."""
    found = {}
    last = max((path.name for path in folder.glob("out/checkpoints/step-*")), default="")
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in _VOLATILE or ".dalle-lock." in path.name or name.startswith("out/previous-"):
            continue
        if "/pictures" in name or ("/step-" in name and last not in name):
            continue  # a run does without them, and says so
        if path.is_dir():
            found[name] = "folder"
        elif path.name == "state.json":
            found[name] = "there"  # a checkpoint's index tells of the clock, too
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


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
        self.expected = content(self.place)

    def _reset(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.before, self.place)

    def _again(self, more: list[str], allow: Sequence[int] = (0,), **fault) -> Outcome:
        words = [*self.command.arguments, "--output", str(self.place / self.command.output), *more]
        done = self.server.run(self.command.main, words, self.place, self.command.processes, **fault)
        if not fault:
            assert all(code in allow for code in done.codes), done.said
        return done

    def try_at(self, at: int, error: int = KILL) -> str:
        """A fault at one call, and what becomes of it, in a word. Fails where something is lost, mixed or a dead end."""
        self._reset()
        done = self._again([], at=at, error=error)
        where = f"call {at} of {self.calls}, {errno.errorcode.get(error, 'a kill')}: {done.said}"
        if error == KILL:
            assert -9 in done.codes or content(self.place) == self.expected, where
        else:
            assert "Traceback" not in done.said, where
            assert done.code in (0, 2), where
            if done.code:
                last = done.said.strip().splitlines()[-1]
                assert str(self.place) in last, where
                in_sqlites_words = "disk is full|disk I/O error|unable to open database file"
                assert re.search(f"{os.strerror(error)}|{in_sqlites_words}", last), where
        return self._becomes(done, where)

    def try_after(self, after_s: float, victims: Sequence[int]) -> str:
        """Some of its processes killed at a moment, and what becomes of it, in a word. Fails as `try_at`, and where another process
        ends by a signal that nobody sent."""
        self._reset()
        done = self._again([], after_s=after_s, victims=[*victims])
        where = f"killed {[*victims]} after {after_s:.3f} of {self.took_s:.3f} s, {done.codes}: {done.said}"
        if all(code == 0 for code in done.codes):
            assert content(self.place) == self.expected, where
            return "over before"
        assert all(code >= 0 or rank in (*victims, *done.ended) for rank, code in enumerate(done.codes)), where
        return self._becomes(done, where)

    def try_with_memory(self, memory_bytes: int) -> str:
        """With no more than so much beyond what a process has when it begins; what becomes of it, in a word. Fails as `try_at`. A C++
        library may abort where it finds none, and glibc ends a process that it has none for a thread's own data for; nobody can
        catch either, and they are as good as a kill. Of several processes one says that there is none, and others that it has
        gone."""
        self._reset()
        done = self._again([], memory_bytes=memory_bytes)
        where = f"with {memory_bytes:,} bytes, {done.codes}: {done.said}"
        assert "Traceback" not in done.said, where
        if -signal.SIGABRT in done.codes or (_NO_THREAD_DATA in done.codes and "thread-local data" in done.said):
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
        assert done.code == 0 and content(self.place) == self.expected, done.said
        return "as if nothing had been"

    def _becomes(self, done: Outcome, where: str) -> str:
        """It is called again, as a user would."""
        if done.code == 0 and content(self.place) == self.expected:
            return "as if nothing had been"
        was_whole = content(self.place) == self.expected
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
        found = content(self.place)
        differing = {name for name in {*found, *self.expected} if found.get(name) != self.expected.get(name)}
        assert not differing, f"{where}\ndiffers: {sorted(differing)}"
        return word


def commands(models: Path, shapes: Path, tokenizer: Path, folder: Path) -> dict[str, Command]:
    """All commands that write, on tiny models; with `again` of a making that is there already."""
    data = ["--data", f"{shapes}/train-000.tar"]
    inputs = ["--dvae", f"{models}/dvae", "--tokenizer", str(tokenizer)]
    draw = ["--model", str(models), "--n", "2", "--sampling.chunk", "2", "--sampling.precision", "fp32"]
    (folder / "captions.txt").write_text("a red circle\na blue cross\n")
    pictures = folder / "pictures"
    pictures.mkdir()
    from PIL import Image

    for i in range(6):
        Image.new("RGB", (40, 40), (40 * i, 20, 90)).save(pictures / f"a picture of number {i}.png")

    def older_tokens(output: Path) -> None:
        shutil.copytree(models / "tokens/train", output)

    def older_tokenizer(output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tokenizer, output)

    steps = ["--run.steps", "3", "--run.checkpoint_every_minutes", "1e-6"]  # one after each update
    train, sharded = {"again": ["--resume"]}, ["--run.zero_stage", "3"]
    tokenize = [*data, "--dvae", f"{models}/dvae", "--pairs_per_shard", "12"]
    bpe = [*data, "--vocabulary", "280"]
    return {
        "train-tokenizer": Command("dalle.cli.data.train_tokenizer:main", bpe, output="tokenizer.json"),
        "train-tokenizer over": Command(
            "dalle.cli.data.train_tokenizer:main", [*bpe, "--overwrite"], older_tokenizer, output="tokenizer.json"
        ),
        "tokenize": Command("dalle.cli.data.tokenize:main", tokenize),
        "tokenize over": Command("dalle.cli.data.tokenize:main", [*tokenize, "--overwrite"], older_tokens),
        "filter": Command("dalle.cli.data.filter:main", [str(pictures), "--valid_share", "0.3", "--workers", "1"]),
        "export": Command("dalle.cli.export:main", [f"{models}/dvae"]),
        "sample": Command("dalle.cli.sample:main", [*draw, "a red circle"]),
        "sample many": Command("dalle.cli.sample:main", [*draw, "--captions", f"{folder}/captions.txt"]),
        "train-dvae": Command("dalle.cli.train:train_dvae", [*TINY_DVAE, *steps, *data], **train),
        "train-prior": Command(
            "dalle.cli.train:train_prior", [*TINY_PRIOR, *steps, "--data", f"{models}/tokens/train", *inputs], **train
        ),
        "train-clip": Command("dalle.cli.train:train_clip", [*TINY_CLIP, *steps, *data, *inputs], **train),
        "train-prior, two processes": Command(
            "dalle.cli.train:train_prior",
            [*TINY_PRIOR, *steps, *sharded, "--data", f"{models}/tokens/train", *inputs],
            **train,
            processes=2,
        ),
        "train-dvae, two processes": Command(
            "dalle.cli.train:train_dvae", [*TINY_DVAE, *steps, *data], **train, processes=2
        ),
    }
