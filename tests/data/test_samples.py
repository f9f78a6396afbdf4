"""Filtering, counting what cannot be used, one pass after another."""

import io
import shutil
import tarfile

import numpy as np
import pytest

from dalle.config import Images
from dalle.data.counts import Counts, Reason
from dalle.data.loading import load
from dalle.data.pairs import PairPasses
from dalle.data.samples import read_pairs
from tests.data.pictures import encoded, gradient, write_shard


def test_bad_samples_are_skipped_and_counted_up_to_the_limit(tmp_path):
    good = {"png": encoded(gradient()), "txt": b"fine"}
    wide = {"png": encoded(gradient(100, 40)), "txt": b"wide"}
    bad = {"png": b"broken", "txt": b"bad"}
    write_shard(tmp_path / "some.tar", [good] * 50 + [bad] * 2 + [wide] + [{"txt": b"no image"}] + [good] * 50)
    path, counts = str(tmp_path / "some.tar"), Counts()
    pairs = list(read_pairs(path, Images(augmentation="none"), 16, counts=counts))
    assert len(pairs) == 100 and counts.read == 104
    aspect = "longer than images.max_aspect_ratio 2 times its shorter side"
    assert counts.filtered == {aspect: Reason(1, [(path, "0052", "100×40")])}
    undecodable = [(path, key, "no image in PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM") for key in ("0050", "0051")]
    assert counts.broken == {
        "image does not decode": Reason(2, undecodable),
        "no image": Reason(1, [(path, "0053", "")]),
    }
    write_shard(tmp_path / "many.tar", [good, bad] * 100)
    with pytest.raises(ValueError, match=r"cannot be used .*image does not decode.*max_bad_fraction"):
        list(read_pairs(str(tmp_path / "many.tar"), Images(), 16))
    write_shard(tmp_path / "all.tar", [bad] * 30)
    with pytest.raises(ValueError, match="20 of 20 samples"):
        list(read_pairs(str(tmp_path / "all.tar"), Images(), 16))


def test_that_nothing_can_be_used_is_refused_with_its_reasons(tmp_path):
    wide = {"png": encoded(gradient(100, 40)), "txt": b"wide"}
    write_shard(tmp_path / "wide.tar", [wide] * 3)
    with pytest.raises(
        ValueError, match=r"no sample can be used: of 3 samples .*3 filtered out.*max_aspect_ratio 2.*0000"
    ):
        list(read_pairs(str(tmp_path / "wide.tar"), Images(), 16))


def test_two_images_of_one_name_are_broken(tmp_path):
    """A png beside a jpg may be its mask: nothing says which one the caption is of."""
    good = {"png": encoded(gradient()), "txt": b"fine"}
    write_shard(tmp_path / "some.tar", [good, {**good, "jpg": encoded(gradient(), "JPEG")}])
    counts = Counts()
    list(read_pairs(str(tmp_path / "some.tar"), Images(max_bad_fraction=0.9), 16, counts=counts))
    assert counts.broken["two images of one name"].first[0][1:] == ("0001", "png, jpg")


def test_names_that_are_no_text_are_seeds_and_names_all_the_same(tmp_path):
    path = tmp_path / "some.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in (("a\udcff.png", encoded(gradient())), ("a\udcff.txt", b"x"), ("b\x1b[2J.txt", b"y")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    counts = Counts()
    config = Images(augmentation="dvae", max_bad_fraction=0.9)
    assert [pair.captions for pair in read_pairs(str(path), config, 16, counts=counts)] == [["x"]]
    assert "\\x1b" in counts.line() and counts.line().isprintable()


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
    assert (counts.read, counts.num_filtered, counts.num_broken) == (68, 3, 1), "of one pass"


def test_moving_the_data_changes_no_crop(tmp_path, shapes_folder):
    shutil.copy(shapes_folder / "train-000.tar", tmp_path)
    crops = [
        np.stack([pair.image for pair in read_pairs(f"{folder}/train-000.tar", Images(augmentation="prior"), 16)])
        for folder in (shapes_folder, tmp_path)
    ]
    assert np.array_equal(*crops)
