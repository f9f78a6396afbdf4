"""Samples that are training images are told from those that are not."""

import re

import numpy as np
import pytest

from dalle.config import EVERY_IMAGE
from dalle.evaluation.overlap.index import embed
from dalle.evaluation.overlap.memorised import memorised
from tests.data.pictures import encoded, write_shard
from tests.evaluation.overlap.tiny import Tiny, drawing

pytest.importorskip("faiss")
COPIED = {2: 30, 5: 7, 11: 7}
"""Samples that are training images, with a little noise."""


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    write_shard(folder / "t.tar", [{"png": encoded(drawing(i)), "txt": f"number {i}".encode()} for i in range(50)])
    return embed(folder / "index", [str(folder / "t.tar")], Tiny(), 64, EVERY_IMAGE)


def _images(seeds):
    return [np.asarray(drawing(seed)) for seed in seeds]


def _samples():
    samples = _images(range(5000, 5020))
    for number, seed in COPIED.items():
        noise = np.random.default_rng(number).integers(-number, number + 1, (64, 64, 3))
        samples[number] = np.clip(_images([seed])[0].astype(int) + noise, 0, 255).astype(np.uint8)
    return samples


def _memorised(train, tmp_path, samples=None, real=None, **options):
    samples = _samples() if samples is None else samples
    real = _images(range(9000, 9120)) if real is None else real
    captions = [f"caption <{i}>" for i in range(len(samples))]
    return memorised(samples, captions, train, real, Tiny(), tmp_path / "memorised", tmp_path, **options)


def test_figures_are_those_of_all_distances(train, tmp_path):
    found = _memorised(train, tmp_path, batch_size=7)
    rows = [
        Tiny()(np.stack(images)).features_BE.astype(np.float64) for images in (_samples(), _images(range(9000, 9120)))
    ]
    units = [r / np.linalg.norm(r, axis=1)[:, None] for r in rows]
    trained = train.rows_NE.astype(np.float64)
    trained /= np.linalg.norm(trained, axis=1)[:, None]
    ours, real = (1 - (u @ trained.T).max(axis=1) for u in units)
    # unit vectors in fp32 are off by 2^-25 a number, so their cosine by less than 1e-7
    assert np.allclose(found.distances_N, ours, rtol=0, atol=1e-7)
    assert np.allclose(found.real_distances_M, real, rtol=0, atol=1e-7)
    assert {i: int(found.rows_N[i]) for i in COPIED} == COPIED
    figures = found.section.figures
    assert figures["share_nearer"] == 3 / 20
    order = np.sort(real)
    # numpy's definition by hand: place 0.01 · 119 among the sorted
    assert abs(figures["real_first_percentile"] - (order[1] + 0.19 * (order[2] - order[1]))) < 1e-7
    assert abs(figures["sample_median"] - np.median(ours)) < 1e-7 and abs(figures["real_mean"] - real.mean()) < 1e-7
    assert (figures["samples"], figures["real_images"], figures["training_images"]) == (20, 120, 50)
    assert (figures["features"], figures["features_hash"]) == ("tiny", "ab" * 32)
    assert found.section.notes == ()


def test_the_section_shows_the_nearest_first_and_some_at_random(train, tmp_path):
    section = _memorised(train, tmp_path, shown=4, seed=1).section
    page = section.html()
    nearest, chosen = page.split("Of all samples, at random")
    titles = re.findall(r"distance ([0-9.]+)", nearest)
    assert len(titles) == 4 and titles == sorted(titles)
    sources = re.findall(r'src="([^"]*)"', nearest)
    assert sources[:6] == [
        *("memorised/sample-000002.png", "memorised/train-00000030.png"),
        *("memorised/sample-000005.png", "memorised/train-00000007.png"),
        *("memorised/sample-000011.png", "memorised/train-00000007.png"),
    ]
    assert all((tmp_path / source).is_file() for source in re.findall(r'src="([^"]*)"', page))
    assert "caption &lt;2&gt;" in nearest and "number 30" in nearest
    picked = re.findall(r"sample-(\d+)\.png\" alt", chosen)
    assert len(set(picked)) == 4
    again = _memorised(train, tmp_path, shown=4, seed=1).section
    assert again.html() == page
    assert _memorised(train, tmp_path, shown=4, seed=2).section.html() != page


def test_few_real_images_and_other_sizes_are_said(train, tmp_path):
    small = [image[::2, ::2] for image in _images(range(9000, 9030))]
    notes = _memorised(train, tmp_path, real=iter(small)).section.notes
    assert len(notes) == 2 and "Only 30 held-out" in notes[0] and "32×32" in notes[1]
    notes = _memorised(train, tmp_path, real=small, samples=small[:3]).section.notes
    assert len(notes) == 2 and "embedded at 64" in notes[1]
    assert _memorised(train, tmp_path, real=_images(range(9000, 9100))).section.notes == ()
    assert len(_memorised(train, tmp_path, real=_images(range(9000, 9099))).section.notes) == 1


def test_what_cannot_be_compared_is_refused(train, tmp_path):
    with pytest.raises(ValueError, match="samples: there are none"):
        _memorised(train, tmp_path, samples=[])
    with pytest.raises(ValueError, match="held-out real images: there are none"):
        _memorised(train, tmp_path, real=[])
    mixed = [*_images([1]), np.zeros((32, 48, 3), np.uint8)]
    with pytest.raises(ValueError, match=r"samples: of different sizes \(48×32, 64×64 px\)"):
        _memorised(train, tmp_path, samples=mixed)
    with pytest.raises(ValueError, match="of another hash"):
        memorised(mixed, ["", ""], train, mixed, Tiny("00" * 32), tmp_path / "m", tmp_path)
    assert not (tmp_path / "memorised").exists() and not (tmp_path / "m").exists()
