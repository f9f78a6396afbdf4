"""A lock keeps a second process out, and nothing that was killed, copied or damaged keeps everybody out."""

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dalle.outputs import lock
from dalle.outputs.lock import locked
from tests.conftest import ROOT

HOLDS = """
import sys, time
from pathlib import Path
from dalle.outputs import lock
lock._BEAT_S = 0.05
with lock.locked(Path(sys.argv[1]), "output out", "dalle-train-dvae"):
    print("held", flush=True)
    time.sleep(60)
"""


def _started(script: str, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script, *arguments], env=environment, **streams)


@pytest.fixture
def holder(tmp_path):
    """A process that holds `lock` there for a minute."""
    process = _started(HOLDS, str(tmp_path / "lock"))
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "_SILENT_S", 0.5)
    monkeypatch.setattr(lock, "_LOOK_S", 0.05)


def _held(path: Path) -> None:
    with locked(path, "output out", "dalle-tokenize"):
        assert json.loads(path.read_text())["process"] == os.getpid()
    assert not list(path.parent.glob("lock*")), "nothing is left of it"


def _dead(path: Path) -> None:
    """A lock of a process of this machine that is gone."""
    process = 2**22 + 1  # one more than Linux gives out
    record = {"token": "x", "machine": lock._machine(), "process": process, "began": "1", "path": str(path.resolve())}
    path.write_text(json.dumps(record))


def _changed(file: Path, **values) -> None:
    """The same file says something else."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_second_process_is_refused_and_told_who_is_there(holder, tmp_path):
    told = rf"output out: dalle-train-dvae \(process {holder.pid} on .+\) is writing there"
    with pytest.raises(ValueError, match=told), locked(tmp_path / "lock", "output out", "dalle-tokenize"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_lock_is_free_after_its_block_also_after_an_error(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "lock", "output out", "dalle-tokenize"):
        with pytest.raises(ValueError, match="is writing there"):
            _held(tmp_path / "lock")
        raise KeyError
    _held(tmp_path / "lock")


def test_the_lock_of_a_killed_process_is_taken_over_at_once(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while lock._began(holder.pid) not in ("", None):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    _held(tmp_path / "lock")  # its parent, this process, has not asked how it ended: its number is still in use


def test_a_process_of_the_same_number_is_another_one(holder, tmp_path):
    _changed(tmp_path / "lock", began="1")
    _held(tmp_path / "lock")


@pytest.mark.parametrize("elsewhere", [{"machine": "another boot", "host": "node-7"}, {"machine": None}])
def test_one_elsewhere_is_refused_while_it_shows_life(holder, tmp_path, impatient, elsewhere, capsys):
    _changed(tmp_path / "lock", **elsewhere)
    with pytest.raises(ValueError, match=r"dalle-train-dvae .* is writing there"):
        _held(tmp_path / "lock")
    assert "looking for a sign of life" in capsys.readouterr().err
    holder.kill()
    holder.wait()
    _held(tmp_path / "lock")


def test_who_waits_says_so_at_every_look(tmp_path, impatient):
    """For whoever watches that this process moves."""
    (tmp_path / "lock").write_text("")
    moments_s = []
    with locked(tmp_path / "lock", "output out", "dalle-tokenize", lambda: moments_s.append(time.monotonic())):
        pass
    assert 3 <= len(moments_s) <= 10  # of 0.5 s in looks of 0.05 s, on a machine that may be busy
    with locked(tmp_path / "lock", "output out", "dalle-tokenize", lambda: moments_s.append(None)):
        assert None not in moments_s


def test_one_elsewhere_that_was_silent_for_long_is_not_waited_for(tmp_path, monkeypatch):
    _dead(tmp_path / "lock")
    _changed(tmp_path / "lock", machine="another boot", process=os.getpid())
    os.utime(tmp_path / "lock", (1, 1))
    monkeypatch.setattr(lock, "_LOOK_S", 1000.0)
    _held(tmp_path / "lock")


@pytest.mark.parametrize("content", ["", "[1]", '{"machine": ', '{"process": "x"}', "\0\xff"])
def test_a_damaged_lock_shuts_the_way_for_a_while_only(tmp_path, impatient, content):
    (tmp_path / "lock").write_text(content)
    began_s = time.monotonic()
    _held(tmp_path / "lock")
    assert time.monotonic() - began_s > 0.4


def test_a_link_that_leads_nowhere_is_said(tmp_path):
    (tmp_path / "lock").symlink_to("gone")
    with pytest.raises(ValueError, match="is a link, and no lock of ours"):
        _held(tmp_path / "lock")


def test_a_copied_lock_is_none(holder, tmp_path):
    (tmp_path / "copy").mkdir()
    shutil.copy2(tmp_path / "lock", tmp_path / "copy" / "lock")
    _held(tmp_path / "copy" / "lock")


def test_a_file_system_may_number_its_files_anew(holder, tmp_path):
    _changed(tmp_path / "lock", inode=1)
    with pytest.raises(ValueError, match="is writing there"):
        _held(tmp_path / "lock")


def test_a_moved_lock_is_one(holder, tmp_path):
    (tmp_path / "moved").mkdir()
    os.rename(tmp_path / "lock", tmp_path / "moved" / "lock")
    with pytest.raises(ValueError, match="is writing there"):
        _held(tmp_path / "moved" / "lock")


def test_whoever_finds_another_in_its_place_ends(holder, tmp_path):
    (tmp_path / "other").write_text(
        json.dumps({"token": "other", "command": "dalle-train-prior", "process": 1, "host": "x"})
    )
    os.replace(tmp_path / "other", tmp_path / "lock")
    _, said = holder.communicate(timeout=20)
    assert holder.returncode == 1
    assert (
        said == "dalle-train-dvae: output out: dalle-train-prior (process 1 on x) has taken it over: ending at once\n"
    )
    assert (tmp_path / "lock").exists()


def test_a_lock_that_was_deleted_comes_back(holder, tmp_path):
    (tmp_path / "lock").unlink()
    deadline = time.monotonic() + 10
    while not (tmp_path / "lock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(ValueError, match="is writing there"):
        _held(tmp_path / "lock")


def test_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def no_link(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_link)
    with locked(tmp_path / "lock", "output out", "dalle-tokenize"), pytest.raises(ValueError, match="is writing there"):
        _held(tmp_path / "lock")
    _held(tmp_path / "lock")
    _dead(tmp_path / "lock")
    _held(tmp_path / "lock")


TRIES = """
import sys, time
from pathlib import Path
from dalle.outputs.lock import locked
folder, until_s = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0.0, until_s - time.time()))
try:
    with locked(folder / "lock", "output out", "dalle-tokenize"):
        (folder / "inside").open("x").close()
        time.sleep(0.05)
        (folder / "inside").unlink()
        print("held")
except ValueError as error:
    print("refused")
"""


def test_of_many_that_find_a_stale_lock_one_takes_it_at_a_time(tmp_path):
    _dead(tmp_path / "lock")
    began_s = time.time() + 1
    tries = [_started(TRIES, str(tmp_path), str(began_s)) for _ in range(8)]
    told = [process.communicate(timeout=60) for process in tries]
    assert not [complaint for _, complaint in told if complaint]
    assert "held\n" in [out for out, _ in told]
    assert [path.name for path in tmp_path.iterdir()] == []


def _while_it_is_judged(monkeypatch, happens) -> None:
    """Let something happen once, after a stale lock has been found to be one and before it is taken over."""
    whole, calls = lock._is_gone, itertools.count()

    def judged(*arguments):
        gone = whole(*arguments)
        if next(calls) == 0:
            happens()
        return gone

    monkeypatch.setattr(lock, "_is_gone", judged)


def test_a_lock_that_another_took_over_meanwhile_is_left(tmp_path, monkeypatch):
    def happens():
        (tmp_path / "new").write_text("")
        _dead(tmp_path / "new")
        _changed(tmp_path / "new", process=os.getpid(), began=lock._began(os.getpid()), path=str(tmp_path / "lock"))
        os.replace(tmp_path / "new", tmp_path / "lock")

    _dead(tmp_path / "lock")
    _while_it_is_judged(monkeypatch, happens)
    with pytest.raises(ValueError, match="is writing there"):
        _held(tmp_path / "lock")


def test_while_one_judges_a_lock_another_waits(tmp_path, monkeypatch):
    told = []

    def second():
        try:
            with locked(tmp_path / "lock", "output out", "dalle-sample"):
                told.append("held")
        except ValueError:
            told.append("refused")

    thread = threading.Thread(target=second)

    def happens():
        thread.start()
        thread.join(0.5)
        assert not told

    _dead(tmp_path / "lock")
    _while_it_is_judged(monkeypatch, happens)
    with locked(tmp_path / "lock", "output out", "dalle-tokenize"):
        thread.join(10)
    assert told == ["refused"]


def test_threads_take_turns(tmp_path):
    """Of one process, too, as where a user's program trains in threads."""
    held = []

    def take():
        try:
            with locked(tmp_path / "lock", "output out", "dalle-tokenize"):
                held.append(1)
                time.sleep(0.2)
        except ValueError:
            pass

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held == [1]


def test_what_was_killed_while_asking_leaves_nothing_for_long(tmp_path):
    path, now_s = tmp_path / ".lock", time.time()
    for token, age_s in (("0123456789abcdef", 400), ("fedcba9876543210", 300), ("notes", 400)):
        (tmp_path / f".lock.{token}").touch()
        os.utime(tmp_path / f".lock.{token}", (now_s - age_s, now_s - age_s))
    with locked(path, "output x", "dalle-x"):
        assert sorted(os.listdir(tmp_path)) == [".lock", ".lock.fedcba9876543210", ".lock.notes"]
