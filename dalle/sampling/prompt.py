"""Image prompts: which codes of an image are given, and which are drawn.

Codes are drawn in raster order, and each sees only what lies before it: the rows above, and what is left of it in its
own row. Of an image whose top rows are given, everything that is drawn sees them. Of an image with a hole, what lies
right of or below the hole is kept, and is not seen by what is drawn into it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dalle.config import Images, PriorModel
from dalle.config.checks import Cause, warn
from dalle.data.images import centre_crop, decode, to_rgb
from dalle.decoding.token_loop import Given
from dalle.models.dvae import DVAE
from dalle.sampling.drawing import Drawing, codes_of, pack_codes, unpack_codes


@dataclass(frozen=True)
class Prompt:
    """What is given of an image. In NumPy, so that it goes to other processes and into files.

    codes_I: int64 [I] in raster order; those that are not kept mean nothing. kept_I: bool [I].
    """

    codes_I: np.ndarray
    kept_I: np.ndarray

    def given(self, captions: int) -> Given:
        """The same codes for each of some captions."""
        codes_I = np.where(self.kept_I, self.codes_I, 0)
        return Given(torch.from_numpy(codes_I).expand(captions, -1), torch.from_numpy(self.kept_I))

    def to_json(self) -> dict[str, Any]:
        """In a few bytes for each code, for metadata. Codes that are not kept are left out."""
        kept = base64.b64encode(np.packbits(self.kept_I).tobytes()).decode()
        return {"codes": pack_codes(np.where(self.kept_I, self.codes_I, 0)), "kept": kept}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Prompt:
        """What `to_json` wrote. Raises ValueError when it is something else."""
        try:
            codes_I = unpack_codes(values["codes"])
            bits = np.frombuffer(base64.b64decode(values["kept"], validate=True), np.uint8)
            kept_I = np.unpackbits(bits).astype(bool)[: len(codes_I)]  # the last byte is filled up
        except (KeyError, TypeError, ValueError):
            raise Cause("the given codes in the metadata cannot be read") from None
        if kept_I.shape != codes_I.shape or len(bits) != math.ceil(len(codes_I) / 8):
            raise Cause("the given codes in the metadata cannot be read")
        return cls(codes_I, kept_I)

    def check(self, config: PriorModel) -> None:
        """Raises ValueError unless these are codes of such a prior."""
        if self.kept_I.shape != self.codes_I.shape:
            raise ValueError(
                f"{len(self.codes_I)} codes are given, and of {len(self.kept_I)} whether they are kept; say it of each"
            )
        check_codes(np.where(self.kept_I, self.codes_I, 0), config)


def check_codes(codes_I: np.ndarray, config: PriorModel) -> None:
    """Raises ValueError unless these are the codes of an image of such a prior. On a GPU one that is none ends the process."""
    if codes_I.shape != (config.image_slots,):
        raise Cause(f"{codes_I.size} codes, where an image of this prior has {config.image_slots}")
    if not np.issubdtype(codes_I.dtype, np.integer):
        raise Cause(f"codes of type {codes_I.dtype}, where this prior takes whole numbers")
    if codes_I.min() < 0 or codes_I.max() >= config.codebook_size:
        wrong = codes_I[(codes_I < 0) | (codes_I >= config.codebook_size)][0]
        raise Cause(f"code {wrong}, where this prior has codes 0 to {config.codebook_size - 1}")


def read_image(path: str | Path, option: str) -> Image.Image:
    """An image file as RGB. Raises ValueError, with the option that named it, when it cannot be read."""
    try:
        return decode(Path(path).read_bytes(), Images.max_pixels)
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror}; name an image that can be read") from None
    except ValueError as error:
        raise ValueError(f"{option} {path}: {error}; name another image") from None


def make_prompt(
    image: Image.Image,
    rows: int,
    region: tuple[int, int, int, int] | None,
    grid: int,
    size_px: int,
    encode: Callable[[np.ndarray], np.ndarray],
    known_codes_I: np.ndarray | None = None,
) -> Prompt:
    """The codes of an image, and which of them are kept. Warns when the image is cropped or resized, and when the region
    is not made of whole cells.

    Args:
        image: of any size; brought to the models' size by a centre crop, as in training
        rows: rows of tokens kept from the top, 1 … grid − 1; 0 where there is a region
        region: left, top, right, bottom in pixels of `image`; what lies in it is drawn, all else is kept
        grid: rows of tokens
        size_px: side of the models' images
        encode: from uint8 [Y, X, 3] of that size to codes int64 [I]
        known_codes_I: the codes, where they are known, in place of `encode`

    Raises:
        ValueError: neither or both of rows and region, or one that leaves nothing to keep or to draw
    """
    if (rows == 0) == (region is None):
        raise ValueError(
            "rows and region: give one of them, the number of token rows to keep (at least 1) or a region to draw"
        )
    if region is None:
        if not 0 < rows < grid:
            raise ValueError(f"rows {rows}: must lie between 1 and {grid - 1}, for the image has {grid} rows of tokens")
        kept_I = np.arange(grid**2) < rows * grid
    else:
        kept_I = _outside(region, image.size, grid)
    if known_codes_I is not None:
        return Prompt(known_codes_I, kept_I)
    if image.size != (size_px, size_px):
        warn(
            f"the image prompt has {image.width}×{image.height} px: its central square was brought to {size_px}×{size_px}"
        )
    return Prompt(encode(central_square(image, size_px)), kept_I)


def _outside(region: tuple[int, int, int, int], size: tuple[int, int], grid: int) -> np.ndarray:
    """Which cells lie outside a region, bool [I]: those it touches are inside."""
    x0, y0, x1, y1 = region
    shown = ",".join(map(str, region))
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"region {shown}: is empty; give left,top,right,bottom in pixels")
    if x0 < 0 or y0 < 0 or x1 > size[0] or y1 > size[1]:
        raise ValueError(
            f"region {shown}: leaves the prompt image, which has {size[0]}×{size[1]} px; give one within it"
        )
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2  # of the centre crop
    first_column, first_row = (max(0, (at - offset) * grid // side) for at, offset in ((x0, left), (y0, top)))
    end_column, end_row = (min(grid, -((offset - at) * grid // side)) for at, offset in ((x1, left), (y1, top)))
    if first_column >= end_column or first_row >= end_row:
        raise ValueError(
            f"region {shown}: lies in what the centre crop of {side}×{side} px cuts off; give one that reaches into it"
        )
    drawn_YX = np.zeros((grid, grid), bool)
    drawn_YX[first_row:end_row, first_column:end_column] = True
    if drawn_YX.all():
        raise ValueError(f"region {shown}: is the whole image, so nothing is given; leave the image prompt out")
    cells = (first_column, left), (first_row, top), (end_column, left), (end_row, top)
    snapped = ",".join(str(offset + round(cell * side / grid)) for cell, offset in cells)
    if snapped != shown:
        warn(f"region {shown}: drawn are whole cells of tokens, {snapped} of the prompt image")
    return ~drawn_YX.flatten()


def known_codes(
    path: str | Path, drawing: Drawing, codes: str | None, config: PriorModel, size_px: int
) -> np.ndarray | None:
    """The codes that a drawing's file carries, where they are those of this dVAE and of the file's pixels; else None. Warns
    where its pixels were edited. Raises ValueError when they should be, and are none of this prior.

    Args:
        path: of the file
        drawing: what it holds
        codes: what the dVAE's codes are known by (`codes_of`)
        config: sizes of the prior
        size_px: side of the models' images; of another one, a file was resized or cropped
    """
    if drawing.edited:
        warn(f"{path}: its pixels are not those that were drawn; they are encoded anew")
    if drawing.codes_I is None or codes is None or codes_of(drawing.settings.get("models", {})) != codes:
        return None
    if drawing.picture.size != (size_px, size_px):
        return None
    try:
        check_codes(drawing.codes_I, config)
    except ValueError as error:
        raise ValueError(f"{path}: its metadata are damaged: {error}; take another copy") from None
    return drawing.codes_I


def central_square(image: Image.Image, size_px: int) -> np.ndarray:
    """What the models see of an image: uint8 [Y, X, 3] of the given side."""
    return np.array(centre_crop(to_rgb(image), size_px))


@torch.inference_mode()
def encode_with(dvae: DVAE, image_YX3: np.ndarray) -> np.ndarray:
    """Codes int64 [I] of an image uint8 [Y, X, 3], in fp32."""
    device = next(dvae.parameters()).device
    image_BCYX = torch.from_numpy(image_YX3.copy()).permute(2, 0, 1)[None].to(device)
    with torch.autocast(device.type, enabled=False):
        return dvae.encode(image_BCYX)[0].flatten().cpu().numpy()
