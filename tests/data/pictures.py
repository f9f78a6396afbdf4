"""Pictures for the tests, encoded as people have them, and shards of them."""

import io
import struct
import zlib

import numpy as np
import webdataset as wds
from PIL import Image


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def raw_png(pixels: np.ndarray, depth: int, colour_type: int, **chunks: bytes) -> bytes:
    """A PNG of a kind that Pillow reads but does not write.

    Args:
        pixels: [Y, X] or [Y, X, C], of at most `depth` bits; rows of whole bytes
        depth: bits a channel
        colour_type: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA
        chunks: more of them, by name
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    bits = (pixels.reshape(height, -1, 1).astype(np.int64) >> np.arange(depth)[::-1]) & 1
    rows = [b"\0" + np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in bits]
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)),
            *(chunk(name.encode(), data) for name, data in chunks.items()),
            chunk(b"IDAT", zlib.compress(b"".join(rows))),
            chunk(b"IEND", b""),
        ]
    )


def flat(colour: tuple[int, ...] | int, mode="RGB", side=16) -> Image.Image:
    return Image.new(mode, (side, side), colour)


def gradient(width=40, height=40) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, x * 0 + 80], -1).astype(np.uint8))


def small_ramp() -> Image.Image:
    """4 × 4 pixels: red grows to the right and green downwards, by 80 a pixel."""
    y, x = np.mgrid[:4, :4]
    return Image.fromarray(np.stack([x * 80, y * 80, x * 0 + 120], -1).astype(np.uint8))


def check_enlarged_ramp(image: np.ndarray) -> None:
    """That [8, 8, 3] shows all of `small_ramp` at twice the size. Between the pixels' centres lie 40 a pixel, and the
    outermost are the first and the last; with a margin of any kind, the middle would have 80 a pixel."""
    assert image.shape == (8, 8, 3)
    image = image.astype(int)
    for ramp in (image[:, :, 0], image[:, :, 1].T):
        assert (ramp == ramp[0]).all()
        # bicubic is exact on a ramp but where its 4 pixels reach over the edge: by less than 8 of 80 then
        assert np.abs(ramp[0, 2:6] - [60, 100, 140, 180]).max() < 8
        assert ramp[0, 0] < 20 and ramp[0, 7] > 220
    assert (image[:, :, 2] == 120).all()


def write_shard(path, samples: list[dict[str, bytes]]) -> None:
    with wds.TarWriter(str(path)) as tar:
        for i, files in enumerate(samples):
            tar.write({"__key__": f"{i:04d}", **files})
