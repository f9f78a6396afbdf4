"""Images resized by area, exactly (appendices A.2 and B.2): a new pixel is the mean of what its square covers of the old ones.

Along an axis of n old and m new pixels, 1/m of an old pixel is a unit in which all borders are whole numbers: an old pixel
is m units long, a new one n, and what they share is at most that. So the sums along both axes are sums of whole numbers,
those along the first below 2²⁴ and so exact in fp32, those along both below 2⁵³ and so exact in fp64. Only the last step
rounds, half up: the result is the same on every machine, whichever way its products add up. Pillow's BOX takes whole
pixels alone, which at a ratio like 400 : 288 is nearly nearest-neighbour.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

_BAND = 8
"""New pixels whose old ones are multiplied together: of 8 and 1.5 times as many, few of the shares are zeros."""
_SMALL = 2**18
"""Multiplications up to which OpenBLAS does not wake other threads. In loader workers, each of which would have as many as
the machine has cores, waking them costs many times what they save."""

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels."""
_Band = tuple[int, int, np.ndarray]
"""First old pixel, end of the old pixels, and the units that each of some new pixels shares with each of these [new, old]."""


def resize(image: Image.Image, box: Box, size: tuple[int, int], window: Box | None = None) -> Image.Image:
    """Part of an image at another size, by area. Enlarged, the old pixels are blocks, mixed where a new one lies across
    a border.

    Args:
        image: RGB
        box: the part of it
        size: width and height that the part gets
        window: what is wanted of those; no more is computed. All when None
    """
    left, top, right, bottom = window or (0, 0, *size)
    width, height = box[2] - box[0], box[3] - box[1]
    # of heights that no picture of a sane shape has, the sums are too large for fp32
    rows = _bands(height, size[1], np.float32 if 255 * height <= 2**24 else np.float64)
    rows = rows[top // _BAND : -(-bottom // _BAND)]
    columns = _bands(width, size[0], np.float64)[left // _BAND : -(-right // _BAND)]
    y, x = rows[0][0], columns[0][0]
    pixels_YXC = np.asarray(image)[box[1] + y : box[1] + rows[-1][1], box[0] + x : box[0] + columns[-1][1]]
    sums_CYX = _sum_rows(pixels_YXC, rows).transpose(2, 0, 1)
    new_YXC = np.empty((sums_CYX.shape[1], sum(len(shares) for _, _, shares in columns), 3), np.uint8)
    for number, (begin, end, shares) in enumerate(columns):
        step = max(1, _SMALL // shares.size)
        for at in range(0, len(new_YXC), step):
            some_CYX = sums_CYX[:, at : at + step, begin - x : end - x].astype(shares.dtype, order="C")
            means_CYX = np.matmul(some_CYX, shares.T)
            means_CYX += width * height / 2
            means_CYX /= width * height
            new_YXC[at : at + step, number * _BAND :][:, : len(shares)] = means_CYX.transpose(1, 2, 0)
    wanted_YXC = new_YXC[top % _BAND :, left % _BAND :][: bottom - top, : right - left]
    return Image.fromarray(np.ascontiguousarray(wanted_YXC))


def _sum_rows(pixels_YXC: np.ndarray, bands: list[_Band]) -> np.ndarray:
    """Sums over the old pixels of the bands, of which the first row is given first [new Y, X, C]."""
    rows_YN = np.ascontiguousarray(pixels_YXC).reshape(len(pixels_YXC), -1)
    sums_YN = np.empty((sum(len(shares) for _, _, shares in bands), rows_YN.shape[1]), bands[0][2].dtype)
    for number, (begin, end, shares) in enumerate(bands):
        sums, rows = sums_YN[number * _BAND :][: len(shares)], rows_YN[begin - bands[0][0] : end - bands[0][0]]
        step = max(1, _SMALL // shares.size)
        for at in range(0, rows.shape[1], step):
            np.matmul(shares, rows[:, at : at + step].astype(shares.dtype), out=sums[:, at : at + step])
    return sums_YN.reshape(len(sums_YN), *pixels_YXC.shape[1:])


@lru_cache(maxsize=512)  # tens of kB each; a side has up to 97 sizes (A.2)
def _bands(old: int, new: int, dtype: type) -> list[_Band]:
    """All new pixels of an axis."""
    bands = []
    for first in range(0, new, _BAND):
        last = min(first + _BAND, new)
        begin, end = first * old // new, -(-last * old // new)
        borders_new = np.arange(first, last + 1)[:, None] * old
        borders_old = np.arange(begin, end + 1) * new
        shared = np.minimum(borders_new[1:], borders_old[1:]) - np.maximum(borders_new[:-1], borders_old[:-1])
        bands.append((begin, end, np.maximum(shared, 0).astype(dtype)))
    return bands
