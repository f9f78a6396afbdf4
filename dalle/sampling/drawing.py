"""One drawing, and the PNG that holds it: its pixels, and in text chunks all that is needed to draw it again.

Every PNG carries its caption and how it was drawn as iTXt chunks, so that a picture that was passed on alone still
tells them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from dalle.config import Images, plain_json
from dalle.config.checks import Cause
from dalle.data.images import as_seen, opened
from dalle.outputs.whole import replace_bytes

_SHOWN_PX = 256
_MAX_UNPACKED_BYTES = 2**24


@dataclass(frozen=True)
class Drawing:
    """One image that was drawn for a caption.

    image: None while only the codes are known, where a shortlist decides whether they are decoded. score: the reranker's,
    higher is better; None when there was none. seed: what draws it again. rank: its place among its caption's candidates
    that differ; 0 before they are ranked. settings: how it was drawn; must be writable as JSON. codes_I: the image's codes
    in raster order, int64 [I]; None where they are not known. times: how many of the candidates had these very codes; the
    one of the lowest seed stands for them. edited: of a file whose pixels are no longer those that were drawn, so that its codes
    are not known.
    """

    image: Image.Image | None
    caption: str
    score: float | None
    seed: int
    rank: int
    settings: dict[str, Any]
    codes_I: np.ndarray | None = field(default=None, compare=False, repr=False)
    times: int = 1
    edited: bool = False

    @property
    def picture(self) -> Image.Image:
        """The image of a drawing that was decoded: of any but those that a shortlist is made of."""
        assert self.image is not None
        return self.image

    def fingerprint(self) -> bytes:
        """16 bytes, the same for drawings of the same codes, or, where these are not known, of the same pixels, and for no
        others."""
        if self.codes_I is not None:
            return fingerprint(self.codes_I)
        return _pixels_digest(self.picture)

    def _repr_png_(self) -> bytes:
        """What a notebook shows: small images enlarged by whole factors, their pixels sharp."""
        image = self.picture
        factor = max(1, _SHOWN_PX // max(image.size))
        shown = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
        buffer = io.BytesIO()
        shown.save(buffer, format="PNG")
        return buffer.getvalue()


def fingerprint(codes_I: np.ndarray) -> bytes:
    """Of codes, 16 bytes: the same for equal ones, and for no others."""
    return hashlib.blake2b(codes_I.astype("<i8").tobytes(), digest_size=16).digest()


def _pixels_digest(image: Image.Image) -> bytes:
    """16 bytes of RGB."""
    return hashlib.blake2b(image.convert("RGB").tobytes(), digest_size=16).digest()


def machine_of(device: torch.device) -> dict[str, Any]:
    """Of this machine, what decides how it rounds."""
    found = {"device": device.type, "torch": str(torch.__version__)}
    if device.type == "cuda":
        return {**found, "processor": torch.cuda.get_device_name(device)}
    return {**found, "processor": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}


def codes_of(hashes: Mapping[str, str]) -> str | None:
    """What the codes of a drawing's dVAE are known by, of the hashes of its models; None where they name none. Another dVAE
    of the same decodes them, perhaps to other pixels."""
    return hashes.get("codes", hashes.get("dvae"))


@overload
def finite_score(drawing: Drawing, missing: float) -> float: ...


@overload
def finite_score(drawing: Drawing, missing: None = None) -> float | None: ...


def finite_score(drawing: Drawing, missing: float | None = None) -> float | None:
    """The score; `missing` where there is none, or none that is finite."""
    return drawing.score if drawing.score is not None and math.isfinite(drawing.score) else missing


def best_first(drawings: Sequence[Drawing]) -> list[Drawing]:
    """Highest score first; those without a finite score last; ties by rank."""
    return sorted(drawings, key=lambda drawing: (-finite_score(drawing, -math.inf), drawing.rank))


def facts(drawing: Drawing) -> dict[str, Any]:
    """Seed, rank, score, times and settings, as they are written into files."""
    score = finite_score(drawing)
    return {
        "seed": drawing.seed,
        "rank": drawing.rank,
        "score": None if score is None else float(score),
        "times": drawing.times,
        "settings": drawing.settings,
    }


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def save_drawing(drawing: Drawing, path: Path) -> None:
    """Writes one PNG, whole or not at all, with the text chunks "caption" and "dalle" (JSON: seed, rank, score,
    times, settings, a hash of the pixels, and the codes where they are known)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, png_of(drawing))


def png_of(drawing: Drawing) -> bytes:
    """The file that `save_drawing` writes."""
    codes = {} if drawing.codes_I is None else {"codes": pack_codes(drawing.codes_I)}
    text = PngInfo()
    text.add_itxt("caption", drawing.caption)
    pixels = _pixels_digest(drawing.picture).hex()
    text.add_itxt("dalle", to_json({**facts(drawing), "pixels": pixels, **codes}))
    buffer = io.BytesIO()
    drawing.picture.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def read_drawing(path: str | Path) -> Drawing:
    """The drawing of a PNG that `save_drawing` wrote.

    Raises:
        ValueError: the file is missing, no PNG, not one of ours, damaged, or a grid of several drawings
    """
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; name a PNG that can be read") from None
    return drawing_of(data, path)


def drawing_of(data: bytes, path: str | Path, max_pixels: int = Images.max_pixels) -> Drawing:
    """The drawing of a PNG's bytes. path: what it is called in what is said. Raises ValueError as `read_drawing`, and for an image of
    more pixels."""
    try:
        with opened(data, max_pixels, formats=("PNG",)) as file:
            assert isinstance(file, PngImageFile)  # the one format that was asked for
            image = as_seen(file)  # what was erased is another pixel too, though its colour is there still
            text = dict(file.text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; name a PNG of dalle-sample") from None
    if "captions" in text:
        raise ValueError(f"{path}: is a picture of several drawings; name one of those in images/ beside it")
    try:
        known = plain_json.load(text["dalle"], str(path))
        caption, score, seed, rank = text["caption"], known["score"], known["seed"], known["rank"]
        settings, packed = known["settings"], known.get("codes")
        times, pixels = known.get("times", 1), known.get("pixels")  # which earlier versions did not tell
    except (KeyError, TypeError, ValueError):
        what = "does not say how it was drawn: it is no PNG of dalle-sample, or its text was lost; name one"
        raise ValueError(f"{path}: {what}") from None
    sound = type(seed) is type(rank) is type(times) is int and abs(seed) < 2**62
    sound = sound and type(score) in (int, float, type(None)) and type(pixels) in (str, type(None))
    if not (sound and isinstance(settings, dict) and isinstance(settings.get("models", {}), dict)):
        raise ValueError(f"{path}: its metadata are damaged; take another copy")
    if not caption.strip():
        raise ValueError(f"{path}: its metadata are damaged: its caption is empty; take another copy")
    try:
        codes_I = None if packed is None else unpack_codes(packed)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: its metadata are damaged: its codes cannot be unpacked; take another copy") from None
    edited = pixels is not None and pixels != _pixels_digest(image).hex()
    return Drawing(image, caption, score, seed, rank, settings, None if edited else codes_I, times, edited)


def pack_codes(codes_I: np.ndarray) -> str:
    """Codes as text: base64 of deflated little-endian 32-bit numbers."""
    return base64.b64encode(zlib.compress(codes_I.astype("<u4").tobytes(), 9)).decode()


def unpack_codes(text: str) -> np.ndarray:
    """What `pack_codes` packed: int64 [I]. Raises ValueError or TypeError when it is something else, or a part of it."""
    inflate = zlib.decompressobj()
    try:
        unpacked = inflate.decompress(base64.b64decode(text, validate=True), _MAX_UNPACKED_BYTES)
    except zlib.error as error:
        raise Cause(f"no packed codes: {error}") from None
    if not inflate.eof or inflate.unused_data:
        raise Cause("no packed codes: they do not end where they should")
    return np.frombuffer(unpacked, "<u4").astype(np.int64)
