"""Raw streams: what is refused, how the data is split, that a position resumes exactly."""

import gzip
import io
import itertools
import tarfile

import pytest

from dalle.data.naming import expand
from dalle.data.shards import Position, ShardStream, Split, num_streams, read


def _keys(stream, count, start=Position()):  # noqa: B008
    return [(position, sample["__key__"]) for position, sample in itertools.islice(stream.iterate(start), count)]


@pytest.mark.parametrize("damage", ["cut", "cut between files", "cut.gz", "garbage", "zeros", "bits.gz"])
def test_damage_is_one_line_and_never_a_shorter_shard(tmp_path, shapes_folder, damage):
    source = shapes_folder / "train-000.tar"
    with tarfile.open(source) as tar:
        header = tar.getmembers()[40].offset
    good, path = source.read_bytes(), tmp_path / f"{damage}.tar"
    packed = gzip.compress(good)
    middle = len(packed) // 2
    path.write_bytes(
        {
            "cut": good[: len(good) // 2],
            "cut between files": good[:header],
            "cut.gz": packed[:middle],
            "garbage": good[:header] + b"garbage!" * 64 + good[header + 512 :],
            "zeros": good[:header] + bytes(512) + good[header + 512 :],
            "bits.gz": packed[:middle] + b"\xff" * 8 + packed[middle + 8 :],
        }[damage]
    )
    with pytest.raises(ValueError) as raised:
        list(read([str(path)]))
    assert str(raised.value).startswith(f"{path} is damaged or cut off (")
    assert "\n" not in str(raised.value)


def test_a_command_that_fails_is_named(shapes_folder):
    good = shapes_folder / "train-000.tar"
    assert len(list(read([f"pipe:cat {good}", f"pipe:gzip -c {good}"]))) == 64
    with pytest.raises(ValueError, match=r"^pipe:cat .* && false cannot be read: "):
        list(read([f"pipe:cat {good} && false"]))


@pytest.mark.parametrize("count", [1, 2])
def test_streams_share_an_epoch_without_overlap(shapes_folder, count):
    shards = expand(f"{shapes_folder}/train-*.tar")
    seen = []
    for index in range(count):
        stream = ShardStream(shards, seed=0, shuffle_buffer=10, split=Split(index, count))
        keys = [key for position, key in _keys(stream, 64) if position.epoch == 0]
        assert len(keys) == 64 // count
        seen += keys
    assert len(set(seen)) == 64


@pytest.mark.parametrize(
    ("num_shards", "batch_size", "most", "expected"),
    [
        (1, 64, 64, 1),
        (7, 64, 64, 1),
        (7, 56, 64, 7),
        (16, 64, 64, 16),
        (16, 24, 64, 8),
        (64, 512, 64, 64),
        (64, 512, 100, 64),
        (100, 64, 64, 8),  # 16 would leave six shards to some and seven to others
        (511, 64, 64, 32),
        (512, 96, 64, 48),
        (1000, 7, 64, 7),
        (1000, 64, 5, 4),
    ],
)
def test_streams_are_as_many_as_batch_and_shards_allow(num_shards, batch_size, most, expected):
    assert num_streams(num_shards, batch_size, most) == expected


def test_order_changes_with_the_epoch_and_repeats_with_the_seed(shapes_folder):
    shards = expand(f"{shapes_folder}/train-*.tar")
    keys = [key for _, key in _keys(ShardStream(shards, 0, 16), 128)]
    assert keys[:64] != keys[64:]
    assert sorted(keys[:64]) == sorted(keys[64:])
    assert keys == [key for _, key in _keys(ShardStream(shards, 0, 16), 128)]
    assert keys != [key for _, key in _keys(ShardStream(shards, 1, 16), 128)]


@pytest.mark.parametrize("at", [5, 63, 64, 100])
def test_a_position_resumes_exactly(shapes_folder, at):
    shards = expand(f"{shapes_folder}/train-*.tar")
    whole = _keys(ShardStream(shards, 3, 16), 140)
    position = whole[at - 1][0]
    assert _keys(ShardStream(shards, 3, 16), 140 - at, position) == whole[at:]


def test_a_stream_without_a_sample_is_an_error(tmp_path):
    (tmp_path / "none.tar.gz").write_bytes(gzip.compress(bytes(10240)))
    with pytest.raises(ValueError, match=r"none\.tar\.gz … holds no sample"):
        next(ShardStream(expand(f"{tmp_path}/none.tar.gz"), 0, 0).iterate())


def _write(path, members):
    """A tar of these files, in this order; a name that is no bytes is a link."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "elsewhere.png"
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))


def _read(path, **options):
    """Each sample's key with its files, and its marks where it has any."""
    found = []
    for sample in read([str(path)], **options):
        files = {name: data for name, data in sample.items() if not name.startswith("__")}
        marks = {name: value for name, value in sample.items() if name.startswith("__")}
        assert marks.pop("__url__") == str(path)
        found.append((marks.pop("__key__"), files, marks))
    return found


def test_a_dot_in_a_name_is_a_part_of_it(tmp_path):
    bases = ("pic1", "pic1.edit", "2024.01", "2024.02", "v1.0/a", "v1.0/b.c", "./x")
    _write(tmp_path / "x.tar", [(f"{base}.{kind}", base.encode()) for base in bases for kind in ("PNG", "txt")])
    assert _read(tmp_path / "x.tar") == [(base, {"png": base.encode(), "txt": base.encode()}, {}) for base in bases]


ORDERS = {
    "images first": [f"{i}.png" for i in range(5)] + [f"{i}.txt" for i in range(5)],
    "captions first": [f"{i}.json" for i in range(5)] + [f"{i}.png" for i in (3, 1, 4, 0, 2)],
    "one far away": ["0.txt", "1.png", "1.txt", "2.png", "2.txt", "3.png", "3.txt", "4.png", "4.txt", "0.png"],
    "woven": ["0.png", "1.png", "0.txt", "2.png", "1.txt", "3.png", "2.txt", "4.png", "3.txt", "4.txt"],
}


@pytest.mark.parametrize("caption", [b"{}", b'{"caption": null}', b'{"caption" : ""}', b'{"captions": [ ]}'])
def test_a_json_without_a_caption_leaves_the_image_waiting_for_its_txt(tmp_path, caption):
    kinds = {"png": b"1", "json": caption, "txt": b"x"}
    _write(tmp_path / "x.tar", [(f"{i}.{kind}", data) for kind, data in kinds.items() for i in range(3)])
    assert _read(tmp_path / "x.tar") == [(str(i), kinds, {}) for i in range(3)]


@pytest.mark.parametrize("order", ORDERS)
def test_files_of_a_pair_need_not_be_neighbours(tmp_path, order):
    _write(tmp_path / "x.tar", [(name, b'%s {"caption": "a"}' % name.encode()) for name in ORDERS[order]])
    found = _read(tmp_path / "x.tar")
    assert sorted(key for key, _, _ in found) == list("01234")
    for key, files, marks in found:
        assert len(files) == 2 and {name.decode()[0] for name in files.values()} == {key} and not marks
    if order == "images first":
        assert [key for key, _, _ in found] == list("01234")


def test_the_window_of_what_waits_is_bounded_and_leaving_it_is_marked(tmp_path):
    _write(tmp_path / "x.tar", [(f"{i}.png", bytes(100)) for i in range(5)] + [(f"{i}.txt", b"x") for i in range(5)])
    found = _read(tmp_path / "x.tar", apart_bytes=310)
    whole = {key for key, files, marks in found if len(files) == 2 and not marks}
    apart = [(key, list(files)) for key, files, marks in found if marks == {"__apart__": True}]
    assert whole == {"2", "3", "4"}  # captions of the others do not drive these out
    assert apart == [("0", ["png"]), ("1", ["png"]), ("0 (2)", ["txt"]), ("1 (2)", ["txt"])]


def test_a_window_holds_no_more_than_its_bytes(tmp_path):
    """Images without a caption wait, but no more of them than fit, and in their order."""
    _write(tmp_path / "x.tar", [(f"{i:02d}.png", bytes(1000)) for i in range(50)])
    stream, opened = read([str(tmp_path / "x.tar")], 3500), []
    assert next(stream)["__key__"] == "00"
    gathering = stream.gi_frame.f_locals["gathering"]
    for sample in stream:
        opened.append(sample["__key__"])
        assert gathering.num_bytes <= 3500
    assert opened == [f"{i:02d}" for i in range(1, 50)]


def test_keys_that_come_again_are_samples_of_their_own(tmp_path):
    """As in a tar that others were appended to; their names differ, since caches and crops go by them."""
    pair = [("a.png", b"1"), ("a.txt", b"1")]
    _write(tmp_path / "x.tar", [*pair, ("a.png", b"2"), ("a.txt", b"2"), ("b.png", b"3"), ("b.txt", b"3"), *pair])
    assert [(key, files["png"]) for key, files, _ in _read(tmp_path / "x.tar")] == [
        *(("a", b"1"), ("a (2)", b"2"), ("b", b"3"), ("a (3)", b"1"))
    ]


def test_a_file_that_is_there_twice_is_marked(tmp_path):
    _write(tmp_path / "x.tar", [("a.png", b"1"), ("a.PNG", b"2"), ("a.txt", b"x")])
    assert _read(tmp_path / "x.tar") == [("a", {"png": b"1", "txt": b"x"}, {"__twice__": "png"})]


def test_a_second_image_beside_a_whole_sample_is_marked(tmp_path):
    names = ("a.depth.png", "a.jpg", "a.seg.png", "a.txt", "b.x.jpg", "b.x.txt", "c.png")
    _write(tmp_path / "x.tar", [(name, b"1") for name in names])
    marks = {key: marks for key, _, marks in _read(tmp_path / "x.tar")}
    beside = {"__beside__": "a"}
    assert marks == {"a": {}, "a.depth": beside, "a.seg": beside, "b.x": {}, "c": {}}
    _write(tmp_path / "x.tar", [(name, b"1") for name in ("a.depth.png", "a.jpg", "a.txt")])
    assert [(key, marks) for key, _, marks in _read(tmp_path / "x.tar")] == [("a", {}), ("a.depth", beside)]


def test_files_of_other_kinds_are_no_samples_and_not_dropped(tmp_path):
    names = ("README", "a.png", "a.npy", "a.txt", "._a.png", "b.avif", "dir/.hidden/b.txt", "txt", "__meta__/x.txt")
    _write(tmp_path / "x.tar", [*((name, b"1") for name in names), ("c.png", None)])
    found = _read(tmp_path / "x.tar")
    assert {key: marks["__other__"] for key, _, marks in found if marks} == {
        **dict.fromkeys(("README", "a.npy", "._a.png", "b.avif", "txt"), "other"),
        "c.png": "link",
    }
    assert {key: set(files) for key, files, marks in found if not marks} == {
        "a": {"png", "txt"},
        "dir/.hidden/b": {"txt"},
    }


def test_streams_share_the_bytes_that_wait(tmp_path, monkeypatch):
    for shard in range(4):
        names = [f"{i}.{kind}" for kind in ("png", "txt") for i in range(11)]
        _write(tmp_path / f"{shard}.tar", [(name, bytes(100)) for name in names])
    shards = expand(f"{tmp_path}/*.tar")
    monkeypatch.setattr("dalle.data.shards.APART_BYTES", 4000)
    for count, num_apart in ((1, 0), (4, 4 * 4)):  # of 1,100 bytes of images two are handed on, and their captions
        streams = [ShardStream(shards, 0, 0, Split(index, count)) for index in range(count)]
        samples = [sample for stream in streams for sample in stream._epoch(0)]
        assert sum("__apart__" in sample for sample in samples) == num_apart


def test_a_position_resumes_exactly_where_files_lie_apart(tmp_path):
    for shard in range(2):
        names = [f"{i}.{kind}" for kind in ("png", "txt") for i in range(20)]
        _write(tmp_path / f"{shard}.tar", [("x.npy", b""), *((name, bytes(100)) for name in names)])
    shards = expand(f"{tmp_path}/*.tar")
    whole = _keys(ShardStream(shards, 3, 7), 100)
    for at in (5, 42, 60):
        assert _keys(ShardStream(shards, 3, 7), 100 - at, whole[at - 1][0]) == whole[at:]
