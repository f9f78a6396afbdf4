"""Files are there whole or not at all, with the permissions of all others, and what forbids it is said by their names."""

import errno
import os
import stat
import subprocess

import pytest
from PIL import Image

from dalle.outputs import whole
from dalle.outputs.ownership import claimed, claimed_file
from dalle.outputs.whole import (
    copy_file,
    naming,
    put_in_place,
    replace_bytes,
    replace_text,
    save_picture,
    when_there_is_room,
)
from dalle.outputs.whole import whole_file as opened


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("NOT TESTED: a full disk. It takes the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    replace_text(path, "first")
    replace_text(path, "half of a character \ud800 and ü")
    assert path.read_text(encoding="utf-8") == "half of a character ? and ü"
    assert os.listdir(tmp_path) == ["page.html"]

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        replace_text(path, "second")
    assert "half of" in path.read_text(encoding="utf-8") and os.listdir(tmp_path) == ["page.html"]


def test_a_copy_that_is_cut_off_is_nowhere(tmp_path, monkeypatch):
    (tmp_path / "one").write_bytes(b"x" * 100_000)
    copy_file(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == b"x" * 100_000

    def cut_off(content, file):
        file.write(content.read(10))
        raise KeyboardInterrupt

    monkeypatch.setattr(whole.shutil, "copyfileobj", cut_off)
    (tmp_path / "one").write_bytes(b"y")
    for name in ("other", "new"):
        with pytest.raises(KeyboardInterrupt):
            copy_file(tmp_path / "one", tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["one", "other"] and (tmp_path / "other").stat().st_size == 100_000


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, real=real: (done.append(name), real(*given)))
    with opened(tmp_path / "file") as file:
        file.write(b"x" * 100)
        assert not (tmp_path / "file").exists()
    assert done == ["fsync", "replace"] and (tmp_path / "file").read_bytes() == b"x" * 100


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_permissions_are_those_that_the_user_has_asked_for(tmp_path, mask):
    before = os.umask(mask)
    try:
        replace_bytes(tmp_path / "file", b"x")
        save_picture(Image.new("RGB", (2, 2)), tmp_path / "picture.png")
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_link_is_replaced_and_what_it_leads_to_is_left(tmp_path):
    (tmp_path / "theirs").write_text("mine")
    (tmp_path / "link").symlink_to("theirs")
    replace_text(tmp_path / "link", "new")
    assert (tmp_path / "theirs").read_text() == "mine" and (tmp_path / "link").read_text() == "new"


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_device_does_not_become_a_file(tmp_path, overwrite):
    """As root a rename puts a file in the place of /dev/null."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        told = "is a folder or a device; name a file" if overwrite else "is there already"
        with pytest.raises(ValueError, match=told), claimed_file(path, "dalle-x", overwrite):
            raise AssertionError("the work began")
        with pytest.raises(OSError, match=f"something else than a file: move it away: '{path}'"):
            replace_bytes(path, b"x")
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_full_disk_is_told_by_the_name_of_the_file(small_disk):
    replace_text(small_disk / "page", "old")
    with pytest.raises(OSError) as error:
        replace_bytes(small_disk / "page", bytes(1 << 17))
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(small_disk / "page"))
    assert (small_disk / "page").read_text() == "old" and os.listdir(small_disk) == ["page"]


def test_an_error_names_what_a_person_knows(tmp_path):
    for given, told in (
        ((errno.EIO, "bad"), "output"),
        ((errno.EIO, "bad", str(tmp_path / "other")), "other"),
        ((errno.EIO, "bad", str(tmp_path / ".file.0123abcd.partial")), "output"),
    ):
        with pytest.raises(OSError) as error, naming(tmp_path / "output"):
            raise OSError(*given)
        assert error.value.filename == str(tmp_path / told) and error.value.errno == errno.EIO


def test_work_is_not_lost_to_a_disk_that_is_full_for_a_while(small_disk, monkeypatch, capsys):
    monkeypatch.setattr(whole, "_ASK_EVERY_S", 0.0)
    (small_disk / "filler").write_bytes(bytes(60_000))
    tried = []

    def write():
        if len(tried) == 3:
            (small_disk / "filler").unlink()
        tried.append(1)
        replace_bytes(small_disk / "work", bytes(30_000))
        return "done"

    assert when_there_is_room("dalle-x", write) == "done" and len(tried) == 4
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith(f"dalle-x: {small_disk}/work: No space left on device: make room")
    assert (small_disk / "work").stat().st_size == 30_000


@pytest.mark.parametrize(("number", "times"), [(errno.EIO, 1), (errno.ENOSPC, 3), (errno.EDQUOT, 3)])
def test_patience_has_an_end_and_is_for_full_disks(monkeypatch, number, times):
    clock = iter([0.0, 1.0, 2.0, 3600.0])
    monkeypatch.setattr(whole.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(whole.time, "sleep", lambda _: None)
    tried = []

    def write():
        tried.append(1)
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError):
        when_there_is_room("dalle-x", write)
    assert len(tried) == times


@pytest.mark.parametrize("cut_at", range(9))
def test_files_are_put_in_place_all_or_none(tmp_path, monkeypatch, cut_at):
    """Cut off at any step, the index and all that it names are of one making; called again, it comes to its end."""
    for folder, making, names in (("out", "old", ("a-0", "b-0")), ("new", "new", ("a", "b"))):
        (tmp_path / folder).mkdir()
        for name in (*names, "index"):
            (tmp_path / folder / name).write_text(making)
    (tmp_path / "out/theirs").write_text("mine")
    calls = []

    def put() -> None:
        given = {"a": "a-1", "b": "b-1", "index": "index"}
        put_in_place(tmp_path / "new", tmp_path / "out", given, r"[ab]-\d")

    def counted(real):
        def one_more(*given, **options):
            if len(calls) == cut_at:
                raise OSError(errno.ENOSPC, "full")
            calls.append(1)
            return real(*given, **options)

        return one_more

    with monkeypatch.context() as cut:
        for name in ("replace", "unlink", "fsync", "rmdir"):
            cut.setattr(os, name, counted(getattr(os, name)))
        try:
            put()
        except OSError:
            pass
        else:
            assert len(calls) <= cut_at
    making = (tmp_path / "out/index").read_text()
    for name in ("a", "b"):
        assert (tmp_path / f"out/{name}-{int(making == 'new')}").read_text() == making
    if (tmp_path / "new").exists():
        put()
    assert sorted(os.listdir(tmp_path / "out")) == ["a-1", "b-1", "index", "theirs"]


def test_a_claim_removes_what_a_kill_left_of_files(tmp_path):
    left, theirs = (".page.html.0123abcd.partial", ".tokenizer.json.0123abcd.partial"), ("x.partial", ".y.partial")
    for name in (*left, *theirs):
        (tmp_path / name).touch()
    with claimed_file(tmp_path / "tokenizer.json", "dalle-x", False):
        assert sorted(set(left) & set(os.listdir(tmp_path))) == [left[0]]
    with claimed(tmp_path, "dalle-x", writes=("index.html",)):
        assert not set(left) & set(os.listdir(tmp_path)) and set(theirs) < set(os.listdir(tmp_path))
        replace_text(tmp_path / "index.html", "x")
    below = [tmp_path / "images/0" / left[0], tmp_path / "model" / left[0], tmp_path / "model/pictures" / left[0]]
    for path in below:
        path.parent.mkdir(parents=True)
        path.touch()
    with claimed(tmp_path / "model", "dalle-y", writes=()), claimed(tmp_path, "dalle-x", writes=("index.html",)):
        assert [path.exists() for path in below] == [False, False, True], (
            "the third is in a folder that another has claimed"
        )


def test_a_place_without_room_is_refused_before_the_work(small_disk):
    (small_disk / "filler").write_bytes(bytes(60_000))
    for claim in (claimed(small_disk / "out", "dalle-x"), claimed_file(small_disk / "file", "dalle-x", False)):
        with (
            pytest.raises(
                ValueError, match=r"^output \S+ is not writable: No space left on device; name another --output$"
            ),
            claim,
        ):
            raise AssertionError("the work began")
    assert os.listdir(small_disk) == ["filler"]


def test_a_link_to_nowhere_is_refused_before_the_work(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    claim, told = claimed(tmp_path / "link", "dalle-x"), "it is a link to nowhere, which is not there"
    with pytest.raises(ValueError, match=f"link is not writable: {told}"), claim:
        raise AssertionError("the work began")
    assert os.listdir(tmp_path) == ["link"]
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to("real")
    with claimed(tmp_path / "folder", "dalle-x") as folder:
        replace_text(folder / "page", "x")
    assert (tmp_path / "real/page").is_file()
