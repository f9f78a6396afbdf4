"""Captions of raw samples, filtering, counting what cannot be used, one pass after another."""

import shutil

import numpy as np
import pytest

from dalle.config import Images
from dalle.data.captions import read_captions
from dalle.data.loading import load
from dalle.data.pairs import PairPasses
from dalle.data.samples import Counts, Decoder, read_pairs
from dalle.data.shards import read
from tests.data.pictures import encoded, gradient, write_shard


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"txt": b"   "}, "no caption"),
        ({}, "no caption"),
        ({"txt": b"\xff\xfe\xfa"}, "caption is not text"),
        ({"json": b"{bad"}, "caption is not text"),
        ({"json": b'{"captions": [1, 2]}'}, "caption is not text"),
        ({"json": b'{"captions": []}', "txt": b"x"}, "no caption"),
    ],
)
def test_bad_captions(files, reason):
    """With 0 characters no caption is as good as any, but what is no text stays bad."""
    sample = {"__key__": "0", "__url__": "u", "png": encoded(gradient()), **files}
    for least in (0, 1, 2):
        decoder = Decoder(Images(min_caption_chars=least), 16, seed=0)
        if least == 0 and reason == "no caption":
            assert decoder.captions(sample) == ([""], None)
            assert decoder.counts.bad == {}
        else:
            assert decoder.captions(sample) is None
            assert decoder.counts.bad == {reason: 1}


def test_captions_of_the_json_come_first():
    sample = {"json": b'{"captions": [" a  b ", "c"]}', "txt": b"d"}
    assert read_captions(sample)[0] == ["a b", "c"]
    assert read_captions({"json": b"{}", "txt": "ä".encode()})[0] == ["ä"]


def test_bad_samples_are_skipped_and_counted_up_to_the_limit(tmp_path):
    good = {"png": encoded(gradient()), "txt": b"fine"}
    wide = {"png": encoded(gradient(100, 40)), "txt": b"wide"}
    bad = {"png": b"broken", "txt": b"bad"}
    write_shard(tmp_path / "some.tar", [good] * 50 + [bad] * 2 + [wide] + [{"txt": b"no image"}] + [good] * 50)
    decoder = Decoder(Images(augmentation="none"), 16, seed=0)
    pairs = [pair for s in read([str(tmp_path / "some.tar")]) if (pair := decoder(s, 0))]
    assert len(pairs) == 100
    assert decoder.counts.filtered == 1
    assert decoder.counts.bad == {"image does not decode": 2, "no image": 1}
    write_shard(tmp_path / "many.tar", [good, bad] * 100)
    with pytest.raises(ValueError, match=r"cannot be used .*image does not decode.*max_bad_fraction"):
        list(read_pairs(str(tmp_path / "many.tar"), Images(), 16))
    write_shard(tmp_path / "all.tar", [bad] * 30)
    with pytest.raises(ValueError, match="20 of 20 samples"):
        list(read_pairs(str(tmp_path / "all.tar"), Images(), 16))


def test_passes_in_a_worker_keep_order_and_counts(tmp_path, shapes_folder):
    wide = {"png": encoded(gradient(100, 40)), "txt": b"wide"}
    write_shard(tmp_path / "last.tar", [{"png": b"broken", "txt": b"bad"}, *[wide] * 3])
    spec, config = f"{shapes_folder}/train-*.tar {tmp_path}/last.tar", Images(augmentation="prior")
    *batches, counts = load(PairPasses(spec, config, 32, batch_size=48, passes=2, seed=1), workers=1)
    expected = [pair for epoch in range(2) for pair in read_pairs(spec, config, 32, seed=1, epoch=epoch)]
    assert [len(batch["captions"]) for batch in batches] == [48, 48, 32]
    assert [c for batch in batches for c in batch["captions"]] == [pair.captions for pair in expected]
    images = np.concatenate([batch["images_BCYX"] for batch in batches])
    assert np.array_equal(images, np.stack([pair.image.transpose(2, 0, 1) for pair in expected]))
    assert counts == Counts(read=136, filtered=6, bad={"image does not decode": 2})


def test_moving_the_data_changes_no_crop(tmp_path, shapes_folder):
    shutil.copy(shapes_folder / "train-000.tar", tmp_path)
    crops = [
        np.stack([pair.image for pair in read_pairs(f"{folder}/train-000.tar", Images(augmentation="prior"), 16)])
        for folder in (shapes_folder, tmp_path)
    ]
    assert np.array_equal(*crops)
