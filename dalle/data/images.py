"""Bytes to RGB images, and the crops of the paper (appendices A.2 and B.2)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
_BOX = Image.Resampling.BOX


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation of EXIF."""
_KEY_FACTORS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""By the raw mode of a PNG: from its transparent colour, which Pillow leaves as the file has it, to the 8 bits of the pixels."""


def decode(data: bytes) -> Image.Image:
    """An RGB image as a person sees it: rotated by its EXIF tag, transparency over white, 16-bit greys scaled to 8,
    the first frame of an animation. Raises ValueError when the bytes are no image, or one that `to_rgb` refuses."""
    with _opened(data) as file:
        _scale_transparent_colour(file)
        file.load()
        return to_rgb(_upright(file))


def header_size(data: bytes) -> tuple[int, int]:
    """The two sides in the order of the image's header; reads no pixels. Raises ValueError where `decode` would at once."""
    with _opened(data) as file:
        return file.size


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as file:
                yield file
    except Exception as error:  # Pillow's decoders raise many kinds; all of them mean the same here
        raise ValueError(f"image does not decode: {error}") from error


def _scale_transparent_colour(file: Image.Image) -> None:
    key = file.info.get("transparency")
    if file.format != "PNG" or key is None or not file.tile:
        return
    factor = _KEY_FACTORS.get(file.tile[0][3])
    if factor is not None:
        scaled = tuple(int(value * factor) for value in np.atleast_1d(key))
        file.info["transparency"] = scaled if len(scaled) > 1 else scaled[0]


def _upright(image: Image.Image) -> Image.Image:
    # not Pillow's exif_transpose, which writes the other tags anew and fails on those that it cannot
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the pixels are whole: a broken tag turns nothing
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, 8 bits a channel; transparency is laid over white. Raises ValueError for pixels whose black and white are not
    known: floating-point ones, and integers beyond 16 bits."""
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose white is not known: convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        return _grey_to_rgb(np.asarray(image), image.info.get("transparency"))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _grey_to_rgb(grey: np.ndarray, transparent: int | None) -> Image.Image:
    """Greys in [0, 65535], of either byte order; one of them may be transparent."""
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"greys from {grey.min()} to {grey.max()}, beyond 16 bits: convert it to 8 or 16 bits")
    if transparent is not None:
        grey = np.where(grey == transparent, 65535, grey)
    return Image.fromarray(np.uint8(grey / np.float32(65535) * 255 + 0.5)).convert("RGB")


def shrink(image: Image.Image, short_side_px: int) -> Image.Image:
    """The image with its short side reduced to `short_side_px` by area; a smaller image is left as it is."""
    short = min(image.size)
    if short <= short_side_px:
        return image
    scale = short_side_px / short
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), _BOX)


def centre_crop(image: Image.Image, size_px: int) -> Image.Image:
    """The short side to `size_px`, then the central square: what inference uses (A.2)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return _resize(image.crop((left, top, left + side, top + side)), size_px)


def dvae_crop(image: Image.Image, size_px: int, generator: np.random.Generator, flip: bool = True) -> Image.Image:
    """Stage one's augmentation (A.2): a random square of the short side, a size uniform in
    [min(s, 1.125 t), min(s, 1.5 t)] (288 and 384 for t = 256), a random crop, a random flip. An image smaller than
    the crop is enlarged."""
    side = min(image.size)
    left = int(generator.integers(image.width - side + 1))
    top = int(generator.integers(image.height - side + 1))
    low = max(size_px, min(side, round(1.125 * size_px)))
    high = max(size_px, min(side, round(1.5 * size_px)))
    square = _resize(image.crop((left, top, left + side, top + side)), int(generator.integers(low, high + 1)))
    image = _random_crop(square, size_px, generator)
    if flip and generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def prior_crop(image: Image.Image, size_px: int, generator: np.random.Generator) -> Image.Image:
    """Stage two's augmentation (B.2): a square whose offsets are uniform in the middle quarter of the free range, a
    size uniform in [t, min(s, 1.125 t)], a random crop; no flip, since images hold text. An image smaller than the
    crop is enlarged."""
    side = min(image.size)
    left, top = (_central_offset(dimension - side, generator) for dimension in image.size)
    high = max(size_px, min(side, round(1.125 * size_px)))
    square = _resize(image.crop((left, top, left + side, top + side)), int(generator.integers(size_px, high + 1)))
    return _random_crop(square, size_px, generator)


def _central_offset(free: int, generator: np.random.Generator) -> int:
    low = 3 * free // 8
    return int(generator.integers(low, max(low + 1, 5 * free // 8)))


def _random_crop(image: Image.Image, size_px: int, generator: np.random.Generator) -> Image.Image:
    left = int(generator.integers(image.width - size_px + 1))
    top = int(generator.integers(image.height - size_px + 1))
    return image.crop((left, top, left + size_px, top + size_px))


def _resize(square: Image.Image, size_px: int) -> Image.Image:
    if square.width == size_px:
        return square
    # by area when it shrinks, as published; BOX enlarges in blocks, so the other way is bicubic
    return square.resize((size_px, size_px), _BOX if square.width > size_px else Image.Resampling.BICUBIC)
