"""Disks that are full or closed, and limits that are low."""

import errno
import os
import resource
from types import SimpleNamespace

import pytest

from dalle.machine import places
from dalle.machine.places import folder_finding, open_files_finding, shared_memory_finding

GB = 10**9


@pytest.fixture
def disk(monkeypatch):
    """Sets how much is free, and for how many names there is room."""

    def is_so(free, names_left=10**6, names=10**7):
        monkeypatch.setattr(places.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        monkeypatch.setattr(places.os, "statvfs", lambda path: SimpleNamespace(f_files=names, f_favail=names_left))

    return is_so


@pytest.mark.parametrize(
    ("free", "names_left", "names", "verdict", "words"),
    [
        (100 * GB, 10**6, 10**7, "ok", "100.0 GB free"),
        (5 * GB, 10**6, 10**7, "warn", "make room"),
        (GB // 4, 10**6, 10**7, "fail", "250 MB free"),
        (100 * GB, 500, 10**7, "warn", "with room for 500 more files"),
        (100 * GB, 0, 0, "ok", "100.0 GB free"),
    ],
)
def test_a_disk_that_fills(disk, tmp_path, free, names_left, names, verdict, words):
    disk(free, names_left, names)
    found = folder_finding("disk", tmp_path, GB // 2, 20 * GB, "make room")
    assert found.verdict == verdict and words in found.line()
    assert bool(found.advice) == (verdict != "ok")


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_around_it(disk, tmp_path, monkeypatch):
    asked = []
    disk(100 * GB)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=100 * GB))
    monkeypatch.chdir(tmp_path)
    found = folder_finding("disk", tmp_path / "runs/mine", 1, 1, "")
    assert asked == [tmp_path] and "runs/mine" in found.fact and not (tmp_path / "runs").exists()
    folder_finding("disk", type(tmp_path)("runs/relative"), 1, 1, "")
    assert os.path.samefile(asked[-1], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_says_it_has_room_and_has_none(disk, tmp_path, monkeypatch):
    """Quotas are not in its figures."""
    disk(100 * GB)

    class Full:
        def __init__(self, dir):
            pass

        def __enter__(self):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(places.tempfile, "TemporaryFile", Full)
    found = folder_finding("disk", tmp_path, GB, GB, "make room")
    assert (found.verdict, found.advice) == ("fail", "make room") and os.strerror(errno.EDQUOT) in found.fact


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "it").touch()
    found = folder_finding("disk", tmp_path / "it", 1, 1, "name another")
    assert found.verdict == "fail" and "Not a directory" in found.fact


def test_shared_memory_of_a_container(disk, tmp_path):
    disk(64_000_000)
    found = shared_memory_finding(tmp_path)
    assert found.verdict == "warn" and "--shm-size" in found.advice and "64 MB" in found.fact
    assert shared_memory_finding(tmp_path / "none").verdict == "warn"
    disk(8 * GB)
    assert shared_memory_finding(tmp_path).verdict == "ok"


@pytest.mark.parametrize(
    ("limits", "verdict", "advice"),
    [
        ((1024, 1_000_000), "ok", ""),
        ((1023, 4096), "warn", "ulimit -n 4096"),
        ((512, resource.RLIM_INFINITY), "warn", "ulimit -n 65536"),
        ((512, 512), "warn", "raise nofile in /etc/security/limits.conf"),
        ((255, 1_000_000), "fail", "ulimit -n 65536"),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), "ok", ""),
    ],
)
def test_open_files(limits, verdict, advice):
    found = open_files_finding(limits)
    assert (found.verdict, found.advice) == (verdict, advice)
