"""Raw streams: what is refused, how the data is split, that a position resumes exactly."""

import gzip
import itertools
import shutil
import tarfile

import pytest

from dalle.data.naming import escape, expand
from dalle.data.shards import Position, ShardStream, Split, num_streams, read


def _keys(stream, count, start=Position()):  # noqa: B008
    return [(position, sample["__key__"]) for position, sample in itertools.islice(stream.iterate(start), count)]


def test_expand_knows_ranges_globs_and_lists(shapes_folder):
    first, second = f"{shapes_folder}/train-000.tar", f"{shapes_folder}/train-001.tar"
    for spec in (f"{shapes_folder}/train-{{000..001}}.tar", f"{shapes_folder}/train-*.tar", f"{first} {second}"):
        assert expand(spec) == [first, second]
    assert expand("pipe:cat some file.tar") == ["pipe:cat some file.tar"]


def test_paths_may_hold_what_a_specification_gives_a_meaning(tmp_path, shapes_folder):
    folder = tmp_path / "my [demo], {1}"
    shutil.copytree(shapes_folder, folder)
    first, second = f"{folder}/train-000.tar", f"{folder}/train-001.tar"
    assert expand(first) == [first], "one existing file is taken as it stands"
    assert expand(f"{escape(folder)}/train-*.tar") == [first, second]
    assert expand(f"{escape(first)} {escape(second)}") == [first, second]


def test_what_is_no_shard_is_refused(tmp_path, shapes_folder):
    good = (shapes_folder / "train-000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.tar").write_bytes(b"\0" * 10240)
    (tmp_path / "nothing.tar").write_bytes(b"")
    (tmp_path / "text.tar").write_bytes(b"hello" * 300)
    for name, message in (
        ("cut.tar", "cut off"),
        ("empty.tar", "empty tar"),
        ("nothing.tar", "empty tar"),
        ("text.tar", "not a tar"),
        ("missing.tar", "no such shard"),
        ("*.zip", "no shard matches"),
    ):
        with pytest.raises(ValueError, match=message):
            expand(str(tmp_path / name))
    with pytest.raises(ValueError, match="is a folder"):
        expand(str(tmp_path))


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
