"""Token shards that several jobs make, each a part: all of them are the whole, and nothing less is taken for it."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from dalle.cli.data.tokenize import tokenize
from dalle.data.shards import read
from dalle.data.tokens import TokenShards
from tests.conftest import ROOT, clean_environment


def _pairs(shards: TokenShards) -> list[tuple[bytes, list[str]]]:
    places = [(shard, row) for shard, size in enumerate(shards.meta.shard_sizes) for row in range(size)]
    return sorted((codes_I.tobytes(), captions) for codes_I, captions in (shards.pair(*place) for place in places))


@pytest.fixture(scope="module")
def data(shapes_folder, tmp_path_factory) -> str:
    """Three shards: those of the drawn data."""
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("train-000.tar", "train-001.tar", "valid-000.tar")):
        shutil.copy(shapes_folder / name, folder / f"{number}.tar")
    return f"{folder}/{{0..2}}.tar"


@pytest.fixture(scope="module")
def whole(data, models, tmp_path_factory) -> TokenShards:
    output = tmp_path_factory.mktemp("whole") / "tokens"
    tokenize(["--data", data, "--dvae", f"{models}/dvae", "--output", str(output), "--pairs_per_shard", "20"])
    return TokenShards(output)


@pytest.fixture(scope="module")
def parts(data, models, tmp_path_factory):
    """Of two parts, made at the same time."""
    output = tmp_path_factory.mktemp("parts") / "tokens"
    given = ["--data", data, "--dvae", f"{models}/dvae", "--output", str(output), "--pairs_per_shard", "20"]
    code = "import sys; from dalle.cli.data.tokenize import tokenize; tokenize(sys.argv[1:])"
    commands = ([sys.executable, "-c", code, *given, "--part", part] for part in ("1/2", "2/2"))
    jobs = [subprocess.Popen(command, cwd=ROOT, env=clean_environment()) for command in commands]
    assert [job.wait(timeout=120) for job in jobs] == [0, 0]
    return output, given


def test_all_parts_are_the_whole(parts, whole):
    found = TokenShards(parts[0])
    assert _pairs(found) == _pairs(whole)
    assert found.meta.counts.read == whole.meta.counts.read and found.meta.dvae_hash == whole.meta.dvae_hash
    assert sum(found.meta.shard_sizes) == len(found) == len(whole)
    # the first and third shard of the data, then the second
    sizes = [len(TokenShards(parts[0] / name)) for name in ("part-00001-of-00002", "part-00002-of-00002")]
    assert sum(sizes) == len(whole) and sizes[0] > sizes[1]
    assert [path.split("/")[-2] for path in found.paths()] == sorted(path.split("/")[-2] for path in found.paths())


def test_a_part_takes_every_so_many_th_shard(data, models, tmp_path):
    names = [list(read([data.replace("{0..2}", str(number))])) for number in range(3)]
    tokenize(["--data", data, "--dvae", f"{models}/dvae", "--output", f"{tmp_path}/tokens", "--part", "3/3"])
    assert len(TokenShards(tmp_path / "tokens/part-00003-of-00003")) == len(names[2])


def test_less_than_all_is_no_whole(parts, tmp_path):
    output, _ = parts
    some = tmp_path / "some"
    shutil.copytree(output, some)
    (some / "part-00002-of-00002/meta.json").unlink()
    with pytest.raises(
        ValueError, match=r"lacks part 2/2 of its token shards: run dalle-tokenize --part 2/2 to its end first"
    ):
        TokenShards(some)
    shutil.rmtree(some / "part-00001-of-00002")
    with pytest.raises(
        ValueError, match=r"lacks part 1/2 of its token shards, and 1 more parts: run dalle-tokenize --part 1/2"
    ):
        TokenShards(some)
    shutil.copytree(output / "part-00001-of-00002", some / "part-00001-of-00002")
    shutil.rmtree(some / "part-00002-of-00002")
    for number in (1, 2, 3):  # whole, but for the one beside them
        shutil.copytree(output / "part-00001-of-00002", some / f"part-0000{number}-of-00003")
    with pytest.raises(ValueError, match="holds parts of 2 and of 3: leave those of one number there"):
        TokenShards(some)


def test_parts_of_other_codes_are_not_mixed(parts, tmp_path):
    output, _ = parts
    mixed = tmp_path / "mixed"
    shutil.copytree(output, mixed)
    meta = mixed / "part-00002-of-00002/meta.json"
    meta.write_text(meta.read_text().replace('"precision": "fp32"', '"precision": "bf16"'))
    told = r"part-00002-of-00002 was made with other settings than .*part-00001-of-00002; make one of them again"
    with pytest.raises(ValueError, match=told):
        TokenShards(mixed)


def test_parts_are_made_one_after_the_other_with_the_same_settings(parts, tmp_path):
    output, given = parts
    shutil.copytree(output / "part-00001-of-00002", tmp_path / "tokens/part-00001-of-00002")
    tokenize([*given, "--output", f"{tmp_path}/tokens", "--part", "2/2"])
    assert _pairs(TokenShards(tmp_path / "tokens")) == _pairs(TokenShards(output))
    tokenize([*given, "--output", f"{tmp_path}/tokens", "--part", "2/2", "--crops", "2", "--overwrite"])
    with pytest.raises(ValueError, match="was made with other settings than"):
        TokenShards(tmp_path / "tokens")
    with pytest.raises(
        ValueError, match=r"part 3/3: .*part-00001-of-00002 is of another number of parts; take that, or"
    ):
        tokenize([*given, "--output", f"{tmp_path}/tokens", "--part", "3/3"])
    more = ["--output", f"{tmp_path}/none", "--part", "2/2", "--images.min_caption_chars", "10000"]
    with pytest.raises(ValueError, match=r"^part 2/2: .*1\.tar: no sample can be used: .*; or take fewer parts$"):
        tokenize([*given, *more])


def test_what_a_part_is_refused_for(parts, whole, data, models, tmp_path):
    output, given = parts
    with pytest.raises(ValueError, match=r"part 4/4: data has 3 shards; take at most as many parts"):
        tokenize(["--data", data, "--dvae", f"{models}/dvae", "--output", f"{tmp_path}/t", "--part", "4/4"])
    for part in ("0/2", "3/2", "half", "1/100000", "1/2/3", "-1/2"):
        with pytest.raises(ValueError, match=f"part {part}: must be NUMBER/PARTS, from 1/16 to 16/16 of sixteen"):
            tokenize([*given, "--part", part])
    shutil.copytree(output / "part-00001-of-00002", tmp_path / "begun/part-00001-of-00002")
    begun = [*given, "--output", f"{tmp_path}/begun", "--part", "2/2", "--crops", "2"]
    told = r"part-00001-of-00002: holds token shards made with other settings \(crops was 1, is 2\)"
    with pytest.raises(ValueError, match=told):
        tokenize(begun)
    assert not (tmp_path / "begun/part-00002-of-00002").exists()
    with pytest.raises(ValueError, match="holds token shards that are no parts: name another --output"):
        tokenize(["--data", data, "--dvae", f"{models}/dvae", "--output", str(whole.folder), "--part", "1/2"])
    with pytest.raises(ValueError, match="is not empty"):
        tokenize(given)


def test_the_order_of_pairs_is_that_of_one_folder(parts):
    """Every pair once in an epoch, over the shards of all parts."""
    shards = TokenShards(parts[0])
    seen = [shards.place(number, seed=3)[1:] for number in range(len(shards))]
    assert len(set(seen)) == len(shards) and max(shard for shard, _ in seen) == len(shards.meta.shard_sizes) - 1
    assert all(isinstance(shards.pair(*place)[0], np.ndarray) for place in seen[:3])
