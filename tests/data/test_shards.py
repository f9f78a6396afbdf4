"""Raw streams: what is refused, how the data is split, that a position resumes exactly."""

import itertools

import pytest

from dalle.data.shards import Position, ShardStream, Split, expand


def _keys(stream, count, start=Position()):  # noqa: B008
    return [(position, sample["__key__"]) for position, sample in itertools.islice(stream.iterate(start), count)]


def test_expand_knows_ranges_globs_and_lists(shapes_folder):
    first, second = f"{shapes_folder}/train-000.tar", f"{shapes_folder}/train-001.tar"
    for spec in (f"{shapes_folder}/train-{{000..001}}.tar", f"{shapes_folder}/train-*.tar", f"{first} {second}"):
        assert expand(spec) == [first, second]
    assert expand("pipe:cat some file.tar") == ["pipe:cat some file.tar"]


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


@pytest.mark.parametrize("count", [1, 2, 3])
def test_readers_share_an_epoch_without_overlap(shapes_folder, count):
    """Two shards: two readers take whole shards, three take samples in turn."""
    shards = expand(f"{shapes_folder}/train-*.tar")
    seen = []
    for index in range(count):
        stream = ShardStream(shards, seed=0, shuffle_buffer=10, split=Split(index, count))
        seen += [key for position, key in _keys(stream, 64) if position.epoch == 0]
    assert len(seen) == len(set(seen)) == 64


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
