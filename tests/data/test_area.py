"""Resizing by area against the integral itself, at ratios that are no whole numbers."""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from dalle.config import Images
from dalle.data import area, images
from dalle.data.samples import read_pairs
from dalle.sampling.prompt import central_square
from tests.data.pictures import encoded, write_shard


def integral(pixels_YXC: np.ndarray, width: int, height: int) -> np.ndarray:
    """The means of squares of the image, rounded half up: each pixel repeated until the new borders fall on borders, and
    the copies counted. Whole numbers throughout."""
    many = pixels_YXC.astype(np.int64)
    old_height, old_width = many.shape[:2]
    many = many.repeat(height, axis=0).reshape(height, old_height, old_width, -1).sum(1)
    many = many.repeat(width, axis=1).reshape(height, width, old_width, -1).sum(2)
    return ((2 * many + old_width * old_height) // (2 * old_width * old_height)).astype(np.uint8)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """No two places are alike, and all values occur."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_integral_of_the_tests_is_right():
    row = np.array([[[0], [90], [250]]], np.uint8)
    # two pixels of 1.5: (0 + 90 / 2) / 1.5 and (90 / 2 + 250) / 1.5
    assert integral(row, 2, 1)[..., 0].tolist() == [[30, 197]]
    # five of 0.6: the second is all of what the first pixel has left, and a third of the next
    assert integral(row, 5, 1)[..., 0].tolist() == [[0, 30, 90, 197, 250]]


SIZES = [
    (128, 112),
    (100, 72),
    (64, 57),
    (37, 36),
    (90, 17),
    (97, 8),
    (61, 1),
    (48, 24),  # whole ratios, too
    (40, 40),
    (36, 37),
    (17, 90),
    (5, 7),
    (1, 9),
]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_every_pixel_is_the_rounded_integral(old, new):
    """Up and down, equal and not in both directions, noise and flat white: to the last bit, for all but the last step is
    exact."""
    for width, height, new_width, new_height in ((old, old, new, new), (old, 30, new, 22), (30, old, 40, new)):
        for picture in (noise(width, height), Image.new("RGB", (width, height), "white")):
            found = np.asarray(area.resize(picture, (0, 0, width, height), (new_width, new_height)))
            assert np.array_equal(found, integral(np.asarray(picture), new_width, new_height))


@pytest.mark.parametrize("method", ["NEAREST", "BOX", "BILINEAR", "HAMMING", "BICUBIC"])
def test_no_filter_of_pillow_passes_for_the_integral(method):
    picture = noise(100, 100)
    for size in (72, 112):
        found = np.asarray(picture.resize((size, size), Image.Resampling[method])).astype(int)
        # by tens of levels, where ours has none: no tolerance of a level or two could hide it
        assert np.abs(found - integral(np.asarray(picture), size, size)).max() > 10


def test_only_a_window_of_part_of_the_image():
    picture = noise(50, 41)
    whole = integral(np.asarray(picture)[3:38, 9:45], 31, 29)
    for window in ((0, 0, 31, 29), (8, 16, 24, 24), (7, 3, 8, 29), (13, 9, 31, 10), (30, 28, 31, 29)):
        left, top, right, bottom = window
        found = np.asarray(area.resize(picture, (9, 3, 45, 38), (31, 29), window))
        assert np.array_equal(found, whole[top:bottom, left:right])


def test_halves_are_rounded_up():
    """Means of k + 1/2 throughout: cut they would be k, and rounded to even every other one."""
    column = np.arange(255).repeat(2)
    column[1::2] += 1
    picture = Image.fromarray(np.stack([column[:, None]] * 3, 2).astype(np.uint8))
    found = np.asarray(area.resize(picture, (0, 0, 1, 510), (1, 255)))
    assert np.array_equal(found[:, 0, 0], np.arange(1, 256))


def test_wide_images_are_cut_into_several_products():
    picture = noise(1000, 40)
    assert np.array_equal(area.resize(picture, (0, 0, 1000, 40), (8, 33)), integral(np.asarray(picture), 8, 33))


@pytest.mark.parametrize("across", [False, True])
def test_sums_are_exact_beyond_fp32(across):
    """Along each axis: means that are above 254.5 by half a unit, of sums of 17,816,273. In fp32 none of these is there, and
    of 20 orders of the same pixels some come out below."""
    lines = np.full((70_005, 20, 3), 254, np.uint8)
    lines[:35_003] = 255
    lines = np.random.default_rng(0).permuted(lines, axis=0)
    lines = lines.transpose(1, 0, 2) if across else lines
    height, width = lines.shape[:2]
    size = (1, 20) if across else (20, 1)
    assert (np.asarray(area.resize(Image.fromarray(lines), (0, 0, width, height), size)) == 255).all()


def test_products_stay_small(monkeypatch):
    """OpenBLAS has other threads join larger ones, which in loader workers costs many times what it saves."""
    found, matmul = [], np.matmul

    def watched(one, other, **options):
        found.append(one.shape[-2] * one.shape[-1] * other.shape[-1])
        return matmul(one, other, **options)

    monkeypatch.setattr(area.np, "matmul", watched)
    area.resize(noise(1200, 900), (0, 0, 1200, 900), (96, 600))
    assert len(found) > 75 + 12  # bands of rows and of columns
    assert max(found) <= 2**18


def _central(pixels_YXC: np.ndarray) -> np.ndarray:
    side = min(pixels_YXC.shape[:2])
    top, left = ((length - side) // 2 for length in pixels_YXC.shape[:2])
    return pixels_YXC[top : top + side, left : left + side]


def test_what_inference_sees_is_the_integral_of_the_central_square(tmp_path):
    """Tokenising and validation, and prompts and captioning."""
    picture = noise(53, 41)
    expected = integral(_central(np.asarray(picture)), 16, 16)
    assert np.array_equal(images.centre_crop(picture, 16), expected)
    assert np.array_equal(central_square(picture, 16), expected)
    write_shard(tmp_path / "one.tar", [{"png": encoded(picture), "txt": b"noise"}])
    (pair,) = read_pairs(str(tmp_path / "one.tar"), Images(augmentation="none"), 16)
    assert np.array_equal(pair.image, expected)


def test_the_cache_holds_integrals(tmp_path):
    """Both sides by the same ratio, to 1.5 times the size."""
    picture = noise(53, 41)
    small = integral(np.asarray(picture), 31, 24)  # 53 · 24 / 41 = 31.02
    assert np.array_equal(images.shrink(picture, 24), small)
    assert images.shrink(picture, 41) is picture
    write_shard(tmp_path / "one.tar", [{"png": encoded(picture), "txt": b"noise"}])
    config = Images(augmentation="none", cache_bytes=10**6)
    (pair,) = read_pairs(str(tmp_path / "one.tar"), config, 16)
    assert np.array_equal(pair.image, integral(_central(small), 16, 16))
    (pair,) = read_pairs(str(tmp_path / "one.tar"), replace(config, cache_bytes=0), 16)
    assert np.array_equal(pair.image, integral(_central(np.asarray(picture)), 16, 16))


def _sizes_of_crops(crop, side: int, size_px: int, most_px: int, seeds: int) -> set[int]:
    """To which sizes a square image was brought before it was cropped: by looking each crop up among all places of its
    integrals at all sizes. One that is in none of them fails."""
    picture = noise(side, side)
    windows = {}
    for resized_px in range(size_px, most_px + 1):
        whole = integral(np.asarray(picture), resized_px, resized_px)
        for top, left in itertools.product(range(resized_px - size_px + 1), repeat=2):
            windows[whole[top : top + size_px, left : left + size_px].tobytes()] = resized_px
    return {windows[np.asarray(crop(picture, size_px, np.random.default_rng(seed))).tobytes()] for seed in range(seeds)}


@pytest.mark.parametrize(
    ("crop", "side", "sizes"),
    [
        # for t = 24: t to 1.125 t, and 1.125 t to 1.5 t, none above the side
        (images.prior_crop, 50, range(24, 28)),
        (images.prior_crop, 26, range(24, 27)),
        (partial(images.dvae_crop, flip=False), 50, range(27, 37)),
        (partial(images.dvae_crop, flip=False), 30, range(27, 31)),
        (partial(images.dvae_crop, flip=False), 26, range(26, 27)),
    ],
)
def test_augmentations_crop_integrals_of_the_papers_sizes(crop, side, sizes):
    # of 10 sizes, one is missed by 150 fixed seeds with a chance of 10 · 0.9^150 = 1e-6
    assert _sizes_of_crops(crop, side, 24, 45, seeds=150) == set(sizes)


@pytest.mark.parametrize("crop", [images.prior_crop, images.dvae_crop])
def test_crops_of_the_papers_size(crop):
    """256 px: 256 to 288 for the prior, 288 to 384 for the dVAE. A ramp of 1 a pixel tells the size by what a crop spans."""
    x = np.arange(600, dtype=np.float64)
    ramp = Image.fromarray(np.stack([np.rint(x * 255 / 599)[None].repeat(600, 0)] * 3, 2).astype(np.uint8))
    spans = []
    for seed in range(60):
        row = np.asarray(crop(ramp, 256, np.random.default_rng(seed)))[0, :, 0].astype(int)
        spans.append(abs(row[-1] - row[0]) / 255)
    # 255 of the 256 pixels' steps, of sizes of which the extremes are met within a few pixels: 255 / size ± 2 levels
    least, most = {images.prior_crop: (256, 288), images.dvae_crop: (288, 384)}[crop]
    assert 255 / most - 2 / 255 <= min(spans) < 255 / (most - 9) + 2 / 255
    assert 255 / (least + 9) - 2 / 255 < max(spans) <= 255 / least + 2 / 255


def test_enlarging_is_bicubic():
    """Beside a step, a bicubic curve goes lower and higher than the image; by area, nearest and linear it cannot."""
    step = np.full((8, 8, 3), 60, np.uint8)
    step[:, 4:] = 180
    row = np.asarray(images.centre_crop(Image.fromarray(step), 20))[10, :, 0].astype(int)
    assert row.min() < 55 and row.max() > 185
    # new pixel 9 has its centre at 9.5 · 8 / 20 = 3.8: 0.3 and 0.7 from those of pixels 3 and 4, 1.3 and 1.7 from 2 and 5;
    # the cubic is Keys' with a = −1/2
    near = [1.5 * d**3 - 2.5 * d**2 + 1 for d in (0.3, 0.7)]
    far = [-0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 for d in (1.3, 1.7)]
    assert sum(near + far) == pytest.approx(1)
    assert row[9] == round(60 * (near[0] + far[0]) + 180 * (near[1] + far[1]))
