"""The use of a codebook as a picture: which codes occur, and how often."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

_WIDTH_PX = 512
_NEVER, _SELDOM, _OFTEN = (24, 26, 33), (64, 66, 150), (255, 196, 92)
"""Colours of a code that does not occur, of the least used one and of the most used one."""


def codebook_picture(use_K: np.ndarray) -> Image.Image:
    """A cell for each code, in rows of about twice as many as there are rows, in the order of the codebook; by the logarithm of how
    often it occurs, so that one that is rare is told from one that never occurs.

    use_K: counts, or shares; what is no code at the end of the last row has the page's colour
    """
    columns = math.ceil(math.sqrt(2 * len(use_K)))
    rows = math.ceil(len(use_K) / columns)
    cells = np.zeros((rows * columns, 4))
    cells[: len(use_K)] = (*_NEVER, 255)
    used = use_K > 0
    if used.any():
        logs = np.log(use_K[used])
        height = (logs - logs.min()) / max(np.ptp(logs), 1e-9) if np.ptp(logs) > 0 else np.ones(len(logs))
        colours = np.array(_SELDOM) + height[:, None] * (np.array(_OFTEN) - np.array(_SELDOM))
        cells[: len(use_K)][used, :3] = colours
    side = max(1, _WIDTH_PX // columns)
    picture = cells.round().astype(np.uint8).reshape(rows, columns, 4)
    return Image.fromarray(picture.repeat(side, axis=0).repeat(side, axis=1))
