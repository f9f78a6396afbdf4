"""What `dalle-train` asks of the preparation: made anew only when it has to be, known by all that is in it, and few held out."""

import os

import pytest

from dalle.config import Filters
from tests.data.sources.pictures import captioned, picture, prepared, written


def _stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix in (".tar", ".json")}


def test_only_what_is_another_is_made_anew(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for n in range(20):
        captioned(source, n, f"number {n} of all")
    first = prepared(source, out, share=0.2, renew=True)
    stamps = _stamps(out)
    assert prepared(source, out, share=0.2, renew=True) == first and _stamps(out) == stamps
    with pytest.raises(ValueError, match=r"valid_share was 0\.2, is 0\.3"):
        prepared(source, out, share=0.3)
    again = prepared(source, out, Filters(min_caption_chars=3), share=0.2, renew=True)
    assert _stamps(out) != stamps and again.inspection["hash"] == first.inspection["hash"]  # nothing was left out by it


def test_data_are_known_by_each_byte_of_them(tmp_path):
    """A picture in the midst is another, of as many bytes; one that was only touched is not."""
    source = tmp_path / "in"
    for n in range(20):
        path = captioned(source, n, f"number {n} of all").with_suffix(".bmp")
        picture(n).save(path)
        path.with_suffix(".png").unlink()
    hashes = [prepared(source, tmp_path / "out", renew=True).inspection["hash"]]
    os.utime(source / "0007.bmp", (1, 1))
    hashes.append(prepared(source, tmp_path / "out", renew=True).inspection["hash"])
    picture(99).save(source / "0007.bmp")
    hashes.append(prepared(source, tmp_path / "out", renew=True).inspection["hash"])
    (source / "0007.txt").write_text("number 8 of all")
    hashes.append(prepared(source, tmp_path / "out", renew=True).inspection["hash"])
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3
    # who holds others out trains on other data
    assert prepared(source, tmp_path / "other", share=0.3).inspection["hash"] not in hashes


def test_no_more_are_held_out_than_asked_for(tmp_path):
    source = tmp_path / "in"
    for n in range(80):
        captioned(source, n, f"number {n} of all")
    free = prepared(source, tmp_path / "free", share=0.5)
    few = prepared(source, tmp_path / "few", share=0.5, most_valid=15)
    assert free.num_valid > 30 and few.num_train + few.num_valid == 80
    # half of the share is still too much, about 20 of 80; a quarter is not
    assert 1 <= few.num_valid <= 15 and "a share of 0.125, since they are no more than 15" in few.notes[-1]
    assert set(written(tmp_path / "few", "valid")) < set(written(tmp_path / "free", "valid"))
    loose = prepared(source, tmp_path / "loose", share=0.5, most_valid=free.num_valid)
    assert loose.num_valid == free.num_valid and "share" not in loose.notes[-1]
