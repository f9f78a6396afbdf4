"""Bytes to RGB images, and the crops of the paper (appendices A.2 and B.2)."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from dalle.config import Images
from dalle.config.checks import Cause
from dalle.config.training import MOST_PIXELS
from dalle.data import area

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is opened, whatever a file is called. Pillow would take fifty more, among them PostScript, for which it starts
Ghostscript on the file."""

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
_CLIP_AREA, _CLIP_RATIO = (0.9, 1.0), 4 / 3
_KEY_FACTORS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""By the raw mode of a PNG: from its transparent colour, which Pillow leaves as the file has it, to the 8 bits of the pixels."""


class TooManyPixels(ValueError):
    """An image over the limit; `size` are its sides, in words."""

    def __init__(self, size: str, max_pixels: int):
        super().__init__(f"image of {size} pixels: over the limit of {max_pixels:,}, so make it smaller")
        self.size = size


def decode(data: bytes, max_pixels: int = MOST_PIXELS) -> Image.Image:
    """An RGB image as a person sees it: rotated by its EXIF tag, transparency over white, 16-bit greys scaled to 8,
    the first frame of an animation.

    Raises:
        TooManyPixels: by its header, before any is decoded
        ValueError: the bytes are no image of `FORMATS`, or one that `to_rgb` refuses
    """
    with opened(data, max_pixels) as file:
        return as_seen(file)


def as_seen(file: ImageFile.ImageFile) -> Image.Image:
    """The pixels of an `opened` file, as `decode` has them."""
    _scale_transparent_colour(file)
    file.load()
    return to_rgb(_upright(file))


def header_size(data: bytes, max_pixels: int = Images.max_pixels) -> tuple[int, int]:
    """The two sides in the order of the image's header; reads no pixels. Raises ValueError where `decode` would at once."""
    with opened(data, max_pixels) as file:
        return file.size


@contextmanager
def opened(
    data: bytes, max_pixels: int = Images.max_pixels, formats: tuple[str, ...] = FORMATS
) -> Iterator[ImageFile.ImageFile]:
    """An image of which the header is read and the pixels are not. Raises ValueError, also for what Pillow raises within the
    block, and TooManyPixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at Pillow's limit; here is ours
            with Image.open(io.BytesIO(data), formats=formats) as file:
                if file.width * file.height > max_pixels:
                    raise TooManyPixels(f"{file.width}×{file.height}", max_pixels)
                yield file
    except TooManyPixels:
        raise
    except Image.DecompressionBombError:
        raise TooManyPixels(f"over {MOST_PIXELS:,}", max_pixels) from None
    except UnidentifiedImageError:
        raise Cause(f"image does not decode: no image in {', '.join(formats)}") from None
    except Exception as error:  # Pillow's decoders raise many kinds; all of them mean the same here
        raise Cause(f"image does not decode: {error}") from error


def _scale_transparent_colour(file: ImageFile.ImageFile) -> None:
    key = file.info.get("transparency")
    if file.format != "PNG" or key is None or not file.tile:
        return
    factor = _KEY_FACTORS.get(str(file.tile[0][3]))
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
        raise Cause("floating-point pixels, whose white is not known: convert it to 8 or 16 bits")
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
        raise Cause(f"greys from {grey.min()} to {grey.max()}, beyond 16 bits: convert it to 8 or 16 bits")
    if transparent is not None:
        grey = np.where(grey == transparent, 65535, grey)
    return Image.fromarray(np.uint8(grey / np.float32(65535) * 255 + 0.5)).convert("RGB")


def shrink(image: Image.Image, short_side_px: int) -> Image.Image:
    """The image with its short side reduced to `short_side_px` by area; a smaller image is left as it is."""
    short = min(image.size)
    if short <= short_side_px:
        return image
    scale = short_side_px / short
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return area.resize(image, (0, 0, *image.size), size)


def centre_crop(image: Image.Image, size_px: int) -> Image.Image:
    """The short side to `size_px`, then the central square: what inference uses (A.2)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return _resize(image, (left, top, left + side, top + side), size_px, (0, 0, size_px, size_px))


def dvae_crop(image: Image.Image, size_px: int, generator: np.random.Generator, flip: bool = True) -> Image.Image:
    """Stage one's augmentation (A.2): a random square of the short side, a size uniform in
    [min(s, 1.125 t), min(s, 1.5 t)] (288 and 384 for t = 256), a random crop, a random flip. An image smaller than
    the crop is enlarged."""
    side = min(image.size)
    left = int(generator.integers(image.width - side + 1))
    top = int(generator.integers(image.height - side + 1))
    low = max(size_px, min(side, round(1.125 * size_px)))
    high = max(size_px, min(side, round(1.5 * size_px)))
    image = _resized_crop(image, (left, top, left + side, top + side), (low, high), size_px, generator)
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
    return _resized_crop(image, (left, top, left + side, top + side), (size_px, high), size_px, generator)


def clip_crop(image: Image.Image, size_px: int, generator: np.random.Generator) -> Image.Image:
    """The reranker's augmentation, open_clip's: a rectangle of 90 to 100% of the image's area whose ratio of sides is
    log-uniform in [3/4, 4/3], anywhere, brought to a square; no flip, no change of colours. Where ten tries find none that fits,
    the central one of the most even ratio that is allowed."""
    box = _fitting_box(image.size, generator)
    width, height = box[2] - box[0], box[3] - box[1]
    if min(width, height) > size_px:
        return area.resize(image, box, (size_px, size_px))
    return image.crop(box).resize((size_px, size_px), Image.Resampling.BICUBIC)


def _fitting_box(size: tuple[int, int], generator: np.random.Generator) -> area.Box:
    for _ in range(10):
        pixels = size[0] * size[1] * generator.uniform(*_CLIP_AREA)
        ratio = math.exp(generator.uniform(-math.log(_CLIP_RATIO), math.log(_CLIP_RATIO)))
        width, height = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < width <= size[0] and 0 < height <= size[1]:
            left, top = (
                int(generator.integers(whole - part + 1)) for whole, part in zip(size, (width, height), strict=True)
            )
            return left, top, left + width, top + height
    width = min(size[0], max(1, round(size[1] * _CLIP_RATIO)))
    height = min(size[1], max(1, round(size[0] * _CLIP_RATIO)))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _central_offset(free: int, generator: np.random.Generator) -> int:
    low = 3 * free // 8
    return int(generator.integers(low, max(low + 1, 5 * free // 8)))


def _resized_crop(
    image: Image.Image, square: area.Box, sizes_px: tuple[int, int], size_px: int, generator: np.random.Generator
) -> Image.Image:
    """Of a square of the image, brought to a size within `sizes_px`, a crop of `size_px`, all places equally likely."""
    resized_px = int(generator.integers(sizes_px[0], sizes_px[1] + 1))
    left = int(generator.integers(resized_px - size_px + 1))
    top = int(generator.integers(resized_px - size_px + 1))
    return _resize(image, square, resized_px, (left, top, left + size_px, top + size_px))


def _resize(image: Image.Image, square: area.Box, size_px: int, window: area.Box) -> Image.Image:
    """What is in the window of a square of the image, once that has the size."""
    side = square[2] - square[0]
    if side > size_px:
        return area.resize(image, square, (size_px, size_px), window)  # as published
    square_image = image.crop(square)
    if side < size_px:  # the published code has no such images; by area they would be blocks
        square_image = square_image.resize((size_px, size_px), Image.Resampling.BICUBIC)
    return square_image.crop(window)
