"""What follows from all images together, the order in which folders are read, and by which a changed source is known."""

import json
import os
import tarfile

import pytest

from dalle.config import Filters
from dalle.data.sources import write
from dalle.data.sources.ledger import Ledger
from dalle.data.sources.look import Looked
from dalle.data.sources.reading.item import Fate, Item
from dalle.data.sources.reading.walk import fingerprint, walk
from tests.data.sources.pictures import captioned, prepared


def _ledger(path, looked):
    ledger = Ledger(path)
    for number, one in enumerate(looked):
        assert ledger.add(Item("a", f"{number}\ud800", {"png": b""})) == number
        ledger.put(number, one, 0)
    return ledger


def _kept(number, captions=(("a", None),)):
    return Looked(list(captions), size=(40, 40), pixels_hash=b"%d" % number, bytes_hash=b"x")


@pytest.mark.parametrize(("share", "held"), [(1.0, 11), (1e-9, 1), (0.0, 0)])
def test_each_side_has_an_image_at_least(tmp_path, share, held):
    ledger = _ledger(tmp_path / "l", [_kept(n) for n in range(12)])
    ledger.settle(True, share)
    assert ledger.ask("SELECT SUM(valid) FROM images") == [(held,)]


def test_the_reason_of_an_image_without_captions_is_that_of_the_first_of_them(tmp_path):
    said = [("x", "second"), ("y", "first")]
    ledger = _ledger(tmp_path / "l", [_kept(1, said[:1]), _kept(1, said[1:]), _kept(2, said[::-1]), _kept(2, said[:1])])
    ledger.add_captions(0, [("z", "third")])
    ledger.settle(True, 0)
    assert [row.fate.reason for row in ledger.rows("first = number")] == ["caption second", "caption first"]


def test_captions_of_broken_images_are_not_counted(tmp_path):
    broken = Looked([("a", "short"), ("b", None)], fate=Fate("Broken", "image does not decode"))
    ledger = _ledger(tmp_path / "l", [broken, _kept(1, [("c", "short"), ("d", None)])])
    ledger.settle(True, 0)
    counts, captions = ledger.counts()
    assert (counts.read, counts.num_broken) == (2, 1)
    assert (captions.read, captions.filtered["short"].count) == (2, 1)
    assert ledger.captions(1) == ["d"] and ledger.all_captions(1) == ["c", "d"]


def test_captions_stand_in_the_order_of_their_rows(tmp_path):
    ledger = Ledger(tmp_path / "l")
    image = tmp_path / "1.png"
    assert ledger.add(Item("a", "1", {"png": image})) == 0 and ledger.add(Item("a", "1", {"png": image})) is None
    ledger.add_captions(0, [("second", None)])
    ledger.add_captions(0, [("third", None)])
    ledger.put(0, _kept(1, [("first", None)]), 0)  # what is found of an image may come after its further rows
    ledger.settle(True, 0)
    assert ledger.captions(0) == ["first", "second", "third"]


def test_what_this_program_wrote_is_not_read(tmp_path):
    captioned(tmp_path, 1, "one")
    for folder in ("out", "other", "mine"):
        captioned(tmp_path / folder, 2, "two")
    (tmp_path / "other/.dalle-tokenize").touch()
    assert [listing.folder for listing in walk(tmp_path, tmp_path / "out")] == ["", "mine"]
    assert [listing.folder for listing in walk(tmp_path, tmp_path / "elsewhere")] == ["", "mine", "out"]
    (tmp_path / ".dalle-tokenize").touch()  # what a person names is read
    assert next(listing.files for listing in walk(tmp_path)) == ["0001.png", "0001.txt"]


def test_folders_come_in_order_and_files_before_them(tmp_path):
    for name in ("b/2", "a/z/1", "a/c/0", "3", "a.d/4"):
        captioned(tmp_path, 1, None, name=name)
    assert [listing.folder for listing in walk(tmp_path)] == ["", "a", "a/c", "a/z", "a.d", "b"]


def test_a_source_is_known_by_names_sizes_and_times(tmp_path):
    def told(name="a", size=3, time_ns=10**18):
        path = tmp_path / name
        path.write_bytes(b"x" * size)
        os.utime(path, ns=(time_ns, time_ns))
        found = fingerprint(iter([path]), tmp_path)
        path.unlink()
        return found

    assert told() == told() and told()["files"] == 1 and told()["bytes"] == 3
    assert len({told()["hash"], told("b")["hash"], told(size=4)["hash"], told(time_ns=10**18 + 1)["hash"]}) == 4


def test_a_source_may_be_moved_within_a_folder_that_is_named_otherwise(tmp_path):
    captioned(tmp_path / "a", 1, "one")
    paths = [tmp_path / "a/0001.png"]
    before = fingerprint(iter(paths), tmp_path / "a")
    os.rename(tmp_path / "a", tmp_path / "b")
    assert fingerprint(iter([tmp_path / "b/0001.png"]), tmp_path / "b") == before
    prepared(tmp_path / "b", tmp_path / "out", Filters())


def test_shards_end_by_bytes_and_are_named_by_as_many_digits_as_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "SHARD_BYTES", 200)
    writer = write.ShardWriter(tmp_path, "train")
    for size in (60, 60, 200, 1):
        writer.add("png", b"x" * size, ["second", "first"], {"captions": "of before", "a": 1})
    writer.close()
    assert writer.names() == [f"train-{n:03d}.tar" for n in range(3)] and writer.spec() == "train-{000..002}.tar"
    with tarfile.open(tmp_path / "train-000.tar") as tar:
        assert tar.extractfile("000000001.txt").read() == b"second"
        assert json.load(tar.extractfile("000000001.json")) == {"captions": ["second", "first"], "a": 1}
    writer.shards = [f"train-{n:03d}.tar" for n in range(1001)]
    assert writer.names()[::1000] == ["train-0000.tar", "train-1000.tar"] and writer.spec() == "train-{0000..1000}.tar"
