"""Decoding what people have as they see it, and the crops of the paper."""

import io
import os
import struct
import warnings
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp

from dalle.config import Images
from dalle.data import images
from dalle.data.counts import Filtered
from dalle.data.samples import Decoder, read_pairs
from dalle.models.clip import ready_torchvision
from dalle.sampling.drawing import Drawing, read_drawing
from dalle.sampling.gallery import Gallery
from dalle.sampling.prompt import read_image
from tests.data.pictures import check_enlarged_ramp, encoded, flat, gradient, raw_png, small_ramp, write_shard


def _decoded(data: bytes) -> np.ndarray:
    image = images.decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def _row(data: bytes) -> list[list[int]]:
    """The pixels of an image one pixel high."""
    (row,) = _decoded(data).tolist()
    return row


WHITE = [255] * 3
SIXTEEN_BITS = np.array([[0, 0x0A50, 0x8020, 65535]], np.uint16)  # which the wrong byte order makes others
AS_EIGHT = [[0] * 3, [10] * 3, [128] * 3, WHITE]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_grey_palette_and_bits_become_rgb(mode, kind):
    pixels = np.array([[[255] * 3, [0] * 3]] if mode != "P" else [[[250, 10, 40], [10, 200, 90]]], np.uint8)
    source = Image.fromarray(pixels)
    source = source.quantize(2) if mode == "P" else source.convert(mode)
    assert source.mode == mode
    assert _row(encoded(source, kind)) == pixels[0].tolist()
    if mode == "L":
        assert _row(encoded(Image.fromarray(np.array([[7, 99]], np.uint8)), kind)) == [[7] * 3, [99] * 3]


@pytest.mark.parametrize(("dtype", "mode"), [("<u2", "I;16"), (">u2", "I;16B")])
def test_sixteen_bit_grey_is_scaled_in_both_byte_orders(dtype, mode):
    source = Image.fromarray(SIXTEEN_BITS.astype(dtype))
    assert source.mode == mode
    data = encoded(source, "TIFF")
    assert data[:2] == {"<": b"II", ">": b"MM"}[dtype[0]]
    assert _row(data) == _row(encoded(source, "PNG")) == AS_EIGHT


def test_sixteen_bit_grey_as_32_bit_integers_is_scaled():
    assert _row(encoded(Image.fromarray(SIXTEEN_BITS.astype(np.int32)), "TIFF")) == AS_EIGHT
    assert _row(encoded(Image.fromarray(SIXTEEN_BITS), "PPM")) == AS_EIGHT


def test_other_sixteen_bit_pngs_keep_their_high_bits():
    colours = np.array([[[65535, 0, 0], [10 * 256 + 255, 200 * 256, 128 * 256]]])
    assert _row(raw_png(colours, 16, 2)) == [[255, 0, 0], [10, 200, 128]]
    alpha = np.array([[65535, 0, 32768]])[..., None]
    # over white: all of the colour, nothing, half
    assert _row(raw_png(np.concatenate([alpha * 0 + [65535, 0, 0], alpha], 2), 16, 6)) == [
        [255, 0, 0],
        WHITE,
        [255, 127, 127],
    ]
    assert _row(raw_png(np.concatenate([alpha * 0, alpha], 2), 16, 4)) == [[0] * 3, WHITE, [127] * 3]


@pytest.mark.parametrize(
    "pixels",
    [np.array([[0, 0.5, 1]], np.float32), np.array([[-1, 9]], np.int32), np.array([[0, 65536]], np.int32)],
)
def test_pixels_whose_white_is_not_known_are_refused(pixels):
    """They would come out black, or nearly."""
    with pytest.raises(ValueError, match=r"does not decode: (floating-point pixels|greys from .* beyond 16 bits)"):
        images.decode(encoded(Image.fromarray(pixels), "TIFF"))
    with pytest.raises(ValueError, match="convert it to 8 or 16 bits"):
        images.to_rgb(Image.fromarray(pixels))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_laid_over_white(kind):
    pixels = np.array([[[200, 0, 40, 255], [200, 0, 40, 0], [200, 0, 40, 128]]], np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    # 128 / 255 of the colour, the rest white: 227.4, 127, 147.1
    assert _row(encoded(Image.fromarray(pixels), kind, **options)) == [[200, 0, 40], WHITE, [227, 127, 147]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_alpha_is_laid_over_white(kind):
    source = Image.merge("LA", [Image.new("L", (3, 1), 60), Image.fromarray(np.array([[255, 0, 128]], np.uint8))])
    assert _row(encoded(source, kind)) == [[60] * 3, WHITE, [157] * 3]


def test_transparent_palette_entries_are_laid_over_white():
    source = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    source.putpalette([255, 0, 0, 0, 200, 0, 0, 0, 180])
    assert _row(encoded(source)) == [[255, 0, 0], [0, 200, 0], [0, 0, 180]]
    assert _row(encoded(source, transparency=1)) == [[255, 0, 0], WHITE, [0, 0, 180]]
    assert _row(encoded(source, "GIF", transparency=2)) == [[255, 0, 0], [0, 200, 0], WHITE]
    # of the half transparent green: 200 * 128 / 255 + 127
    assert _row(encoded(source, transparency=b"\x00\x80")) == [WHITE, [127, 227, 127], [0, 0, 180]]


@pytest.mark.parametrize(
    ("depth", "colour_type", "pixels", "key", "expected"),
    [
        (8, 2, [[200, 0, 40], [200, 0, 41]], [200, 0, 40], [WHITE, [200, 0, 41]]),
        # the low byte, 0xff, would make red the transparent colour
        (16, 2, [[0x0AFF, 0xC800, 0x8000], [0xFFFF, 0, 0]], [0x0AFF, 0xC800, 0x8000], [WHITE, [255, 0, 0]]),
        (16, 2, [[0, 0, 0x00C8], [0, 0, 0xC800]], [0, 0, 0x00C8], [WHITE, [0, 0, 200]]),
        (16, 0, [10 * 257, 100 * 257], [10 * 257], [WHITE, [100] * 3]),
        (8, 0, [10, 100], [10], [WHITE, [100] * 3]),
        (4, 0, [3, 5], [3], [WHITE, [85] * 3]),
        (2, 0, [1, 2, 0, 3], [1], [WHITE, [170] * 3, [0] * 3, WHITE]),
        (1, 0, [0, 1] * 4, [0], [WHITE] * 8),
    ],
)
def test_the_transparent_colour_of_a_png_is_laid_over_white(depth, colour_type, pixels, key, expected):
    data = raw_png(np.array([pixels]), depth, colour_type, tRNS=struct.pack(f">{len(key)}H", *key))
    assert _row(data) == expected


CMYK = [((255, 0, 0, 0), (0, 255, 255)), ((0, 51, 255, 0), (255, 204, 0)), ((0, 102, 0, 51), (204, 122, 204))]
"""Inks, and (1 − ink) (1 − black) of each."""


@pytest.mark.parametrize(("inks", "expected"), CMYK)
def test_cmyk_becomes_rgb(inks, expected):
    assert (_decoded(encoded(flat(inks, "CMYK"), "TIFF")) == expected).all()
    jpeg = encoded(flat(inks, "CMYK"), "JPEG", quality=100)
    assert b"Adobe" in jpeg  # whose inks are inverted
    # a flat block has its mean alone, which quality 100 rounds to 1/8
    assert np.abs(_decoded(jpeg) - expected).max() <= 1


def test_the_other_cmyk_of_adobe_becomes_rgb():
    """YCCK: the same bytes, of which three are said to be YCbCr. Those are (0, 255, 255) here, for inverted cyan."""
    jpeg = bytearray(encoded(flat((255, 0, 0, 0), "CMYK"), "JPEG", quality=100))
    jpeg[jpeg.index(b"Adobe") + 11] = 2
    red, green, blue = 1.402 * 127, -0.344 * 127 - 0.714 * 127, 1.772 * 127  # no luma; the file has 255 less each
    expected = np.clip(np.array([255 - red, 255 - green, 255 - blue]), 0, 255)
    # as above, twice 1 for chroma
    assert np.abs(_decoded(bytes(jpeg)) - expected).max() <= 3


SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
"""By EXIF orientation: the sides of the picture as seen that are the first row and the first column of the file."""


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", SIDES)
def test_exif_rotation_is_applied(orientation, kind):
    colours = [[[250, 10, 10], [10, 250, 10], [10, 10, 250]], [[240, 240, 10], [10, 240, 240], [20, 20, 20]]]
    # blocks of 16, so that JPEG keeps the colours
    seen = np.array(colours, np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    first_row, first_column = SIDES[orientation]
    stored = seen.transpose(1, 0, 2) if first_row in ("left", "right") else seen
    stored = stored[::-1] if first_row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if first_column in ("bottom", "right") else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    assert images.header_size(data) in ((48, 32), (32, 48))
    decoded = _decoded(data)
    assert decoded.shape == seen.shape
    # rounding of YCbCr and back
    assert np.abs(decoded - seen).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_broken_exif_tag_leaves_the_picture_as_it_is(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    plain, broken = (encoded(gradient(24, 16), kind, **options, **exif) for exif in ({}, {"exif": b"Exif\0\0garbage"}))
    assert b"garbage" in broken
    assert np.array_equal(_decoded(broken), _decoded(plain))


def test_of_an_animation_the_first_frame_is_taken():
    data = encoded(flat((250, 0, 0)), "GIF", save_all=True, append_images=[flat((0, 0, 250))])
    assert (_decoded(data) == [250, 0, 0]).all()


@pytest.mark.parametrize("data", [b"", b"not an image", encoded(gradient(200, 200))[:150]])
def test_what_does_not_decode_is_one_error(data):
    with pytest.raises(ValueError, match="does not decode"):
        images.decode(data)


OTHERS = ["EPS", "ICO", "ICNS", "TGA", "PCX", "SGI", "DDS", "SPIDER", "JPEG2000", "AVIF", "BLP", "MSP", "XBM"]
"""Formats that Pillow writes and, unless told otherwise, opens."""


@pytest.mark.parametrize("kind", OTHERS)
def test_formats_that_we_do_not_name_are_not_opened(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    mode = {"MSP": "1", "XBM": "1", "BLP": "P", "SPIDER": "F"}.get(kind, "RGB")
    data = encoded(flat(1, "L", side=32).convert(mode), kind)
    Image.open(io.BytesIO(data)).close()  # which Pillow does
    for opens in (images.decode, images.header_size):
        with pytest.raises(ValueError, match="does not decode: no image in PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM"):
            opens(data)


def test_ghostscript_is_never_started(tmp_path, monkeypatch):
    """PostScript under the names of pictures, where pictures are read."""
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch '{ran}'\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # not looked for yet
    data = encoded(gradient(), "EPS")
    file = tmp_path / "picture.png"
    file.write_bytes(data)
    for read in (
        lambda: images.decode(data),
        lambda: read_image(file, "prompt_image"),
        lambda: read_drawing(file),
    ):
        with pytest.raises(ValueError, match="does not decode"):
            read()
        assert not ran.exists()
    write_shard(tmp_path / "one.tar", [{"jpg": data, "txt": b"a"}])
    with pytest.raises(ValueError, match="cannot be used"):
        list(read_pairs(str(tmp_path / "one.tar"), Images(), 16))
    assert not ran.exists()
    with pytest.raises(OSError), Image.open(io.BytesIO(data)) as opened:
        opened.load()
    assert ran.exists()  # so the trap works


@pytest.mark.parametrize("kind", ["EPS", "JPEG"])
def test_of_our_own_pictures_pngs_alone_are_opened(tmp_path, kind):
    gallery = Gallery(tmp_path, "title")
    gallery.put("a cat", [Drawing(gradient(), "a cat", None, seed=0, rank=1, settings={})], candidates=1)
    gallery.write()
    assert Gallery(tmp_path, "title").resume(1) == {"a cat"}
    (file,) = (tmp_path / "images").iterdir()
    file.write_bytes(encoded(gradient(), kind))
    with pytest.raises(ValueError, match="is damaged"):
        Gallery(tmp_path, "title").resume(1)
    with pytest.raises(ValueError, match=r"\.png: image does not decode: no image in PNG; name a PNG of dalle-sample$"):
        read_drawing(file)


def test_a_jpeg_of_several_pictures_is_a_jpeg():
    """As telephones write them, with a second one for depth or at low size."""
    data = encoded(gradient(), "MPO", save_all=True, append_images=[flat(0)])
    with images.opened(data) as file:
        assert file.format == "MPO"
    # quality 75 of a smooth ramp
    assert np.abs(_decoded(data) - np.asarray(gradient()).astype(int)).max() < 20


def _header_alone(width: int, height: int) -> bytes:
    """A PNG that says its sides and has one pixel."""
    png = raw_png(np.zeros((1, 1, 3), np.uint8), 8, 2)
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


@pytest.mark.parametrize("opens", [images.decode, images.header_size])
def test_too_many_pixels_are_refused_by_the_header(opens):
    with pytest.raises(images.TooManyPixels, match=r"40×30 pixels: over the limit of 1,199"):
        opens(_header_alone(40, 30), 1199)
    # beyond what Pillow opens
    with pytest.raises(images.TooManyPixels, match=r"image of over 178,956,970 pixels: over the limit of 178,956,970"):
        opens(_header_alone(200_000, 200_000), 178_956_970)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor does Pillow warn of what is allowed
        assert images.header_size(_header_alone(10_000, 9_000), 90_000_000) == (10_000, 9_000)
    assert images.decode(encoded(gradient(40, 30)), 1200).size == (40, 30)


def test_the_limit_of_pixels_has_a_name(tmp_path):
    """In shards it is a setting, and a prompt has the setting's default."""
    large = {"__key__": "0", "__url__": "u", "png": _header_alone(10_000, 9_000), "txt": b"a wall"}
    for config in (Images(), Images(max_pixels=5_000)):
        decoder = Decoder(config, 16, seed=0)
        with pytest.raises(Filtered, match=f"the limit, images.max_pixels {config.max_pixels}: 10000×9000"):
            decoder.captions(large)
    fine = {**large, "png": encoded(gradient(60, 50))}
    assert Decoder(Images(max_pixels=3_000), 16, seed=0)(fine, 0).image.shape == (16, 16, 3)
    with pytest.raises(Filtered, match=r"images.max_pixels 2999: 60×50"):
        Decoder(Images(max_pixels=2_999), 16, seed=0)(fine, 0)
    (tmp_path / "large.png").write_bytes(large["png"])
    for read in (partial(read_image, option="prompt_image"), read_drawing):
        with pytest.raises(ValueError, match=r"large.png: image of 10000×9000 pixels: over the limit of 89,478,485"):
            read(tmp_path / "large.png")
    for wrong in (0, 178_956_971):
        with pytest.raises(ValueError, match=f"max_pixels {wrong}: must lie between 1 and 178956970"):
            Images(max_pixels=wrong)


def test_dvae_crop_sizes_and_flip():
    """A.2 for t = 32: squares between 1.125 and 1.5 times the crop, so a crop shows 2/3 to 8/9 of the side."""
    picture = gradient(300, 200)
    spans, flips = [], 0
    for seed in range(200):
        crop = np.asarray(images.dvae_crop(picture, 32, np.random.default_rng(seed))).astype(int)
        assert crop.shape == (32, 32, 3)
        spans.append((crop[-1, 0, 1] - crop[0, 0, 1]) / 255)
        flips += crop[0, 0, 0] > crop[0, -1, 0]
    assert 2 / 3 - 0.06 < min(spans) < 0.72
    assert 0.82 < max(spans) < 8 / 9 + 0.02
    # binomial(200, 1/2): outside 70..130 once in 30,000 seeds; these seeds are fixed
    assert 70 < flips < 130
    never = [images.dvae_crop(picture, 32, np.random.default_rng(s), flip=False) for s in range(20)]
    assert all(np.asarray(c)[0, 0, 0] < np.asarray(c)[0, -1, 0] for c in never)


def test_prior_crop_stays_central_and_never_flips():
    """B.2: the square's offset lies in [3Δ/8, 5Δ/8)."""
    picture = gradient(400, 200)
    for seed in range(100):
        crop = np.asarray(images.prior_crop(picture, 32, np.random.default_rng(seed))).astype(int)
        middle = (crop[:, 15, 0].mean() + crop[:, 16, 0].mean()) / 2 / 255
        assert crop[0, 0, 0] < crop[0, -1, 0]
        assert 0.5 - 200 / 8 / 400 - 0.04 < middle < 0.5 + 200 / 8 / 400 + 0.04


@pytest.mark.parametrize("size", [(256, 256), (240, 300), (400, 300), (390, 200), (150, 300)])
def test_clip_crop_is_open_clips(size):
    """The rectangles of torchvision's RandomResizedCrop with open_clip's settings, from 2,000 draws of each, in five sizes: where
    all that are tried fit, some, and none. Of what Kolmogorov and Smirnov find as far apart as one in 10,000 is, none."""
    ready_torchvision()
    from torchvision.transforms import RandomResizedCrop

    blank = torch.empty(3, size[1], size[0])
    torch.manual_seed(0)
    top, left, height, width = zip(
        *(RandomResizedCrop.get_params(blank, [0.9, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)), strict=True
    )
    theirs = np.stack([left, top, np.add(left, width), np.add(top, height)], axis=1)
    generator = np.random.default_rng(0)
    ours = np.array([images._fitting_box(size, generator) for _ in range(2000)])
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] <= size).all()
    for found, expected in zip(_told(ours), _told(theirs), strict=True):
        assert ks_2samp(found, expected).pvalue > 1e-4


def _told(boxes: np.ndarray) -> list[np.ndarray]:
    """Places, sides, areas and ratios of boxes."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return [*boxes.T, width, height, width * height, width / height]


def test_clip_crop_squashes_what_it_cuts_and_never_flips():
    """Of a picture of 3 : 2 nine tenths or more are seen, in both directions."""
    picture = gradient(300, 200)
    for size_px in (32, 400):
        for seed in range(20):
            crop = np.asarray(images.clip_crop(picture, size_px, np.random.default_rng(seed))).astype(int)
            assert crop.shape == (size_px, size_px, 3)
            across, down = crop[0, -1, 0] - crop[0, 0, 0], crop[-1, 0, 1] - crop[0, 0, 1]
            assert min(across, down) > 255 * (8 / 9 - 2 / 32) and max(across, down) <= 255


CROPS = {
    "dvae": partial(images.dvae_crop, flip=False),
    "prior": images.prior_crop,
    "centre": lambda image, size_px, generator: images.centre_crop(image, size_px),
}


@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS)
def test_small_images_are_enlarged(crop):
    for seed in range(5):
        check_enlarged_ramp(np.asarray(crop(small_ramp(), 8, np.random.default_rng(seed))))
        assert crop(gradient(10, 12), 32, np.random.default_rng(seed)).size == (32, 32)
        # enough for the crop, too little for the sizes that one is cut from
        assert crop(gradient(33, 34), 32, np.random.default_rng(seed)).size == (32, 32)
