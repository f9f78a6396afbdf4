"""What is killed, runs into a full disk or meets another call leaves nothing that could be taken for a result, and the next call
writes what an undisturbed one does. Processes are real, and so are the signals and the limits."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dalle.data.sources import make, prepare
from dalle.data.sources.prepare import read_prepared
from tests.data.sources.pictures import captioned, prepared

_SHARE = 0.2


def _folder(path, number):
    for n in range(number):
        captioned(path, n, f"number {n} of all")
    return path


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".dalle-lock"}


def _forked(work):
    """The exit status of a process that does something; negative for the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except ValueError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            os.write(2, f"{error}\n".encode(errors="replace"))
            os._exit(2)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(step, at):
    """Patches, in a process that was forked, so that it is killed in a pass of its work."""
    if step in ("read", "write"):
        return lambda what, number: _die() if (what, number) == (step, at) else None
    if step == "page":
        make.write_page = _die
    elif step == "mark":
        prepare.write_mark = _die
    else:
        replace, done = os.replace, []

        def counted(old, new):
            done.append(new)
            if Path(new).parent.name == "out" and len([p for p in done if Path(p).parent.name == "out"]) == at:
                _die()
            replace(old, new)

        prepare.os.replace = counted
    return lambda what, number: None


@pytest.mark.parametrize(
    ("step", "at"),
    [
        ("read", 1),
        ("read", 12),
        ("write", 1),
        ("write", 7),
        ("page", 0),
        ("mark", 0),
        *(("in place", n) for n in (1, 2, 4)),
    ],
)
@pytest.mark.parametrize("is_anew", [False, True])
def test_killed_in_any_pass_the_next_call_makes_the_same(tmp_path, step, at, is_anew):
    source, output = _folder(tmp_path / "in", 12), tmp_path / "out"
    prepared(source, tmp_path / "whole/out", share=_SHARE)
    if is_anew:  # over one of another seed
        prepared(source, output, share=_SHARE, seed=1)
        before = _contents(output)
    settings = {"share": _SHARE, "overwrite": is_anew}
    assert _forked(lambda: prepared(source, output, told=_die_at(step, at), **settings)) == -signal.SIGKILL
    if is_anew and step not in ("mark", "in place"):
        assert {name: data for name, data in _contents(output).items() if name in before} == before
    else:
        assert read_prepared(output) is None
    prepared(source, output, **settings)
    assert _contents(output) == _contents(tmp_path / "whole/out")
    times = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    prepared(source, output, share=_SHARE)
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == times


_WITH_WORKERS = """
import sys, time
from pathlib import Path
from dalle.config import Filters
from dalle.data.sources import look, prepare
look._IN_ONE_PROCESS, look._CHUNK = 4, 1
if __name__ == "__main__":
    def told(what, number):
        print(what, number, flush=True)
        time.sleep(60)
    prepare.prepare(sys.argv[1], Path(sys.argv[2]), Filters(), 0.0, workers=2, told=told)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="children are found in Linux's /proc")
def test_workers_end_with_a_caller_that_is_killed(tmp_path):
    (tmp_path / "run.py").write_text(_WITH_WORKERS)
    source = _folder(tmp_path / "in", 8)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "run.py", source, tmp_path / "out"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "read 1\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2  # the workers, and the process that watches over shared things
    process.kill()
    process.wait()
    process.stdout.close()
    until = time.monotonic() + 30  # they end within a moment; a busy machine may take longer
    while (left := [c for c in children if _runs(c)]) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []


def _runs(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_two_at_once_of_which_the_second_is_refused(tmp_path, capfd):
    source, output = _folder(tmp_path / "in", 3), tmp_path / "out"
    there, go = os.pipe(), os.pipe()

    def waits(what, number):
        if (what, number) == ("write", 1):
            os.write(there[1], b"x")
            os.read(go[0], 1)

    first = os.fork()
    if first == 0:
        try:
            prepared(source, output, told=waits)
            os._exit(0)
        finally:
            os._exit(1)
    os.read(there[0], 1)
    assert _forked(lambda: prepared(source, output)) == 2
    assert "is writing there" in capfd.readouterr().err and read_prepared(output) is None
    os.write(go[1], b"x")
    assert os.waitpid(first, 0)[1] == 0 and read_prepared(output).num_train == 3


@pytest.mark.parametrize("most_bytes", [0, 1_000, 5_000, 12_000, 20_000, 30_000, 100_000])
def test_wherever_writing_fails_it_is_one_line_and_nothing_is_left(tmp_path, most_bytes, capfd):
    source, output = _folder(tmp_path / "in", 12), tmp_path / "out"
    before = _contents(source)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
        prepared(source, output, share=_SHARE)

    status, said = _forked(limited), capfd.readouterr().err
    if most_bytes == 100_000:  # what is needed
        assert status == 0
        return
    assert status == 2 and said.count("\n") == 1, said
    assert "is not writable" in said or "make room there" in said
    assert not output.exists() or [p.name for p in output.iterdir() if p.name != ".dalle-lock"] in (
        [],
        [".dalle-filter"],
    )
    assert _contents(source) == before
    prepared(source, output, share=_SHARE)


def _mounted(kind, place, *options):
    done = subprocess.run(["mount", *options, kind, place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("nothing can be mounted here")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_source_that_cannot_be_written_and_an_output_that_is_full(tmp_path):
    source = _folder(tmp_path / "in", 12)
    (tmp_path / "read-only").mkdir()
    (tmp_path / "small").mkdir()
    _mounted(source, tmp_path / "read-only", "--bind", "-o", "ro")
    try:
        assert prepared(tmp_path / "read-only", tmp_path / "out", share=_SHARE).num_train > 8
        with pytest.raises(ValueError, match=r"read-only/out is not writable: Read-only file system"):
            prepared(tmp_path / "read-only", tmp_path / "read-only/out")
        _mounted("tmpfs", tmp_path / "small", "-t", "tmpfs", "-o", "size=48k")
        try:
            with pytest.raises(ValueError, match=r"cannot be written \(.*(full|space).*\): make room") as error:
                prepared(source, tmp_path / "small/out")
            assert "\n" not in str(error.value)
            subprocess.run(["mount", "-o", "remount,size=1m", tmp_path / "small"], check=True)
            prepared(source, tmp_path / "small/out", share=_SHARE)
            assert _contents(tmp_path / "small/out").keys() == _contents(tmp_path / "out").keys()
        finally:
            subprocess.run(["umount", tmp_path / "small"], check=True)
    finally:
        subprocess.run(["umount", tmp_path / "read-only"], check=True)
