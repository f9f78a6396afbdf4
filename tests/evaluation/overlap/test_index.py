"""Features on disk: the same bytes however often the work is interrupted, and never those of something else."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from dalle.config import EVERY_IMAGE
from dalle.data.naming import expand
from dalle.evaluation.overlap.index import FEATURES, HEADER, PLACES, embed
from dalle.evaluation.overlap.stream import pictures
from tests.data.pictures import encoded, write_shard
from tests.evaluation.overlap.tiny import Tiny, drawing

LENIENT = replace(EVERY_IMAGE, max_bad_fraction=0.5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three, with images that need no captions, broken ones at the beginning, in the middle and at the end, and one file of
    another kind."""
    folder = tmp_path_factory.mktemp("shards")
    broken = {"png": b"broken"}
    for number in range(3):
        good = [{"png": encoded(drawing(100 * number + i))} for i in range(11)]
        good[3]["txt"] = f"picture {number}".encode()
        write_shard(folder / f"{number}.tar", [broken, *good[:6], broken, {"txt": b"no image"}, *good[6:], broken])
    return expand(f"{folder}/*.tar")


def _bytes(folder):
    return {name: (folder / name).read_bytes() for name in (FEATURES, PLACES, HEADER)}


def _embed(folder, shards, features=None, **options):
    options = {"size_px": 32, "images": LENIENT, "batch_size": 4, **options}
    return embed(folder, shards, features or Tiny(), **options)


def test_rows_places_and_counts(shards, tmp_path):
    index = _embed(tmp_path / "index", shards)
    assert index.rows_NE.shape == (33, 192) and index.rows_NE.dtype == np.float16
    assert index.counts.read == 45 and index.counts.num_broken == 12
    assert index.counts.broken["image does not decode"].count == 9
    places = index.places(range(33))
    assert [places[row].shard for row in range(33)] == [0] * 11 + [1] * 11 + [2] * 11
    # what has a caption waits for none, and comes first of its shard
    assert places[11].captions == ("picture 1",) and places[12].captions == ()
    images = dict(pictures(index.shards, index.images, 32, places.values()))
    rows = Tiny()(np.stack([images[places[row]] for row in range(33)])).features_BE.astype(np.float64)
    # each to half a step of float16 below 1, 2^-12
    assert np.allclose(index.rows_NE, rows / np.linalg.norm(rows, axis=1)[:, None], rtol=0, atol=2.0**-12)
    assert np.array_equal(np.concatenate(list(index.blocks(10))), index.rows_NE)
    assert [len(block) for block in index.blocks(10)] == [10, 10, 10, 3]


@pytest.mark.parametrize("fails_at", [1, 9, 14, 29, 33])
def test_interrupted_and_gone_on_with_gives_the_same_bytes(shards, tmp_path, fails_at):
    whole, features = Tiny(), Tiny(fails_at=fails_at)
    _embed(tmp_path / "whole", shards, whole)
    with pytest.raises(KeyboardInterrupt):
        _embed(tmp_path / "cut", shards, features, commit_s=0)
    header = json.loads((tmp_path / "cut" / HEADER).read_text())
    assert header["rows"] == (fails_at - 1) // 4 * 4 and not header["finished"]
    # what a step has written before the machine died
    for name in (FEATURES, PLACES):
        with open(tmp_path / "cut" / name, "ab") as file:
            file.write(b"half a row")
    rest = Tiny()
    _embed(tmp_path / "cut", shards, rest, commit_s=0, batch_size=7)
    assert _bytes(tmp_path / "cut") == _bytes(tmp_path / "whole")
    assert rest.calls == whole.calls[header["rows"] // 4 :], "what was whole is not done again, in batches as before"


def test_interrupted_behind_the_last_batch(shards, tmp_path, monkeypatch):
    """The samples that were left out behind the last image are counted once."""
    _embed(tmp_path / "whole", shards)

    def die(rows):
        if rows == 33:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _embed(tmp_path / "cut", shards, commit_s=0, told=die)
    _embed(tmp_path / "cut", shards, commit_s=0)
    assert _bytes(tmp_path / "cut") == _bytes(tmp_path / "whole")


def test_a_finished_index_is_opened_and_not_made_again(shards, tmp_path):
    _embed(tmp_path, shards)
    before, features = _bytes(tmp_path), Tiny()
    assert len(_embed(tmp_path, shards, features).rows_NE) == 33
    assert features.calls == [] and _bytes(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": Tiny(width=100)}, "features: width was 192, is 100"),
        ({"features": Tiny("cd" * 32)}, "features: hash was"),
        ({"size_px": 16}, "images: size_px was 32, is 16"),
        ({"images": replace(LENIENT, max_aspect_ratio=2.0)}, "max_aspect_ratio was Infinity, is 2.0"),
        ({"dtype": "float32"}, "dtype was float16, is float32"),
    ],
)
def test_an_index_of_another_making_is_refused_or_written_over(shards, tmp_path, change, words):
    _embed(tmp_path, shards)
    before = _bytes(tmp_path)
    with pytest.raises(ValueError, match=words) as error:
        _embed(tmp_path, shards, **change)
    assert "--overwrite" in str(error.value) and _bytes(tmp_path) == before
    index = _embed(tmp_path, shards, **change, overwrite=True)
    fresh = _embed(tmp_path / "fresh", shards, **change)
    assert np.array_equal(index.rows_NE, fresh.rows_NE) and _bytes(tmp_path) == _bytes(tmp_path / "fresh")


def test_other_data_are_refused(shards, tmp_path):
    _embed(tmp_path, shards)
    with pytest.raises(ValueError, match=r"of other data: 3 files .* then, 2 files"):
        _embed(tmp_path, shards[:2])


def test_overwriting_goes_on_where_it_is_of_the_same_making(shards, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _embed(tmp_path, shards, Tiny(fails_at=20), commit_s=0)
    features = Tiny()
    _embed(tmp_path, shards, features, overwrite=True)
    assert sum(features.calls) == 33 - 16


@pytest.mark.parametrize("damage", ["cut rows", "cut places", "no json", "no version"])
def test_damaged_files_are_refused(shards, tmp_path, damage):
    _embed(tmp_path, shards)
    if damage.startswith("cut"):
        path = tmp_path / (FEATURES if "rows" in damage else PLACES)
        path.write_bytes(path.read_bytes()[:-1])
    else:
        (tmp_path / HEADER).write_text("{" if damage == "no json" else "{}")
    with pytest.raises(ValueError, match=r"is damaged.*remove"):
        _embed(tmp_path, shards)


def test_what_no_features_can_be_made_of(shards, tmp_path):
    write_shard(tmp_path / "none.tar", [{"png": b"broken"}])
    with pytest.raises(ValueError, match="1 of 1 samples cannot be used"):
        _embed(tmp_path / "a", [str(tmp_path / "none.tar")])
    with pytest.raises(ValueError, match="no image can be used: of 45 samples 0 were used"):
        _embed(tmp_path / "b", shards, images=replace(LENIENT, min_caption_chars=100, max_bad_fraction=1.0))

    class Infinite(Tiny):
        def __call__(self, images_BYX3):
            seen = super().__call__(images_BYX3)
            seen.features_BE[1, 5] = math.nan
            return seen

    with pytest.raises(ValueError, match="numbers of image 0001 are not finite"):
        _embed(tmp_path / "c", shards, Infinite())

    class Wide(Tiny):
        def __call__(self, images_BYX3):
            return Tiny(width=193)(images_BYX3)

    with pytest.raises(ValueError, match="193 numbers for an image, where it says 192"):
        _embed(tmp_path / "d", shards, Wide())


def test_pictures_of_a_shard_that_was_changed(shards, tmp_path):
    index = _embed(tmp_path, shards)
    places = index.places([0, 20]).values()
    with pytest.raises(ValueError, match="has no image 0004 any more"):
        list(pictures([shards[0].replace("0.tar", "1.tar")] * 3, replace(LENIENT, max_pixels=1), 32, places))


def test_equal_keys_in_one_shard_are_two_images(tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for seed in (1, 2):
            for kind, data in (("png", encoded(drawing(seed))), ("txt", b"same")):
                info = tarfile.TarInfo(f"same.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    index = _embed(tmp_path / "index", [str(tmp_path / "twice.tar")])
    places = index.places([0, 1])
    assert [places[row].key for row in (0, 1)] == ["same", "same (2)"]
    images = dict(pictures(index.shards, index.images, 32, places.values()))
    assert not np.array_equal(images[places[0]], images[places[1]])
