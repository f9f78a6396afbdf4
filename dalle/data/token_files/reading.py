"""`meta.json` and the shards of a folder of tokens: what they say is looked at before anything is trained on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from dalle.config import plain_json
from dalle.data.counts import Counts
from dalle.text import clean

META = "meta.json"
"""Of a folder of tokens; it comes last, so that without it nobody takes the folder for one."""


@dataclass(frozen=True)
class Meta:
    """What the codes mean. `dvae_hash` is what the dVAE's codes are known by, the content hash of the first that made them
    (`dalle.models.folder.codes_hash`); `precision` that of the encoder's products, null where an earlier version wrote the
    folder; `samples`, what became of the samples of the image-text shards, as `Counts.to_json` has it, {} where that was not
    told; `making`, 0 or 1 in turn, tells the names of shards from those in whose place they were put."""

    grid: int
    codebook_size: int
    dvae_hash: str
    shard_sizes: tuple[int, ...] = ()
    precision: str | None = None
    samples: dict = field(default_factory=dict)
    making: int = 0

    def shard_name(self, number: int) -> str:
        """Of a shard's file in its folder."""
        return f"tokens-{number:05d}{'-1' if self.making else ''}.safetensors"

    @property
    def counts(self) -> Counts | None:
        """The samples, counted; null where that was not told."""
        return Counts.from_json(self.samples) if self.samples else None


def read_meta(path: Path) -> Meta:
    """What a `meta.json` says. Raises ValueError, with its name, where it is damaged."""
    meta = plain_json.made(Meta, plain_json.read(path), str(path))
    if not (1 <= meta.grid < 2**12 and 2 <= meta.codebook_size <= 2**16):
        raise ValueError(
            f"{path} is damaged: it has grid {meta.grid} and codebook_size {meta.codebook_size}; make it again with dalle-tokenize"
        )
    if sum(meta.shard_sizes) < 1 or min(meta.shard_sizes) < 0:
        raise ValueError(
            f"{path} is damaged: its shards are of {list(meta.shard_sizes)[:9]} pairs; make it again with dalle-tokenize"
        )
    if meta.samples:
        try:
            Counts.from_json(meta.samples).line()
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(
                f"{path} is damaged: its samples are no counts; make it again with dalle-tokenize"
            ) from None
    return meta


def look_at_shard(path: Path, meta: Meta, shard: int) -> tuple[Any, Any]:
    """A shard, opened, of which the header alone was read, and its codes. Raises ValueError, with its name, where it is missing, or
    not of the shapes that `meta` tells."""
    rows, slots = meta.shard_sizes[shard], meta.grid**2
    try:
        file = safe_open(path, framework="numpy")
        found = {name: file.get_slice(name) for name in ("codes_NI", "captions_utf8", "caption_ends_N")}
    except FileNotFoundError:
        raise ValueError(f"token shard {path} is missing; make it again with dalle-tokenize") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"token shard {path} cannot be read ({error}): make it again") from None
    for name, dtype, shape in (("codes_NI", "U16", [rows, slots]), ("caption_ends_N", "I64", [rows])):
        if found[name].get_dtype() != dtype or found[name].get_shape() != shape:
            told = (
                f"{name} {found[name].get_dtype()} {found[name].get_shape()}, where meta.json speaks of {dtype} {shape}"
            )
            raise ValueError(f"token shard {path} has {told}: make it again")
    if found["captions_utf8"].get_dtype() != "U8" or len(found["captions_utf8"].get_shape()) != 1:
        raise ValueError(f"token shard {path} has captions that are no text: make it again")
    return file, found["codes_NI"]


def load_shard(path: Path, meta: Meta, shard: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Codes uint16 [N, I], left on disk, the captions' bytes, and where those of each pair end, int64 [N]. Raises ValueError as
    `look_at_shard`, and where the captions do not end where they should."""
    file, codes_NI = look_at_shard(path, meta, shard)
    try:
        text, ends_N = file.get_tensor("captions_utf8"), file.get_tensor("caption_ends_N")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"token shard {path} cannot be read ({error}): make it again") from None
    if len(ends_N) and not (ends_N[0] >= 0 and (np.diff(ends_N) >= 0).all() and ends_N[-1] == len(text)):
        raise ValueError(f"token shard {path} is damaged: its captions do not end where they should; make it again")
    return codes_NI, text, ends_N


def read_pair(
    codes_NI: Any, text: np.ndarray, ends_N: np.ndarray, row: int, codebook_size: int, where: str
) -> tuple[np.ndarray, list[str]]:
    """One pair of what `load_shard` found: codes uint16 [I], and captions, of which halves of characters are cleaned. Raises ValueError,
    which begins with `where`, for codes beyond the codebook, and captions that are none."""
    codes_I = codes_NI[row : row + 1][0]
    if codes_I.max() >= codebook_size:
        raise ValueError(
            f"{where} is damaged: it has code {codes_I.max()}, and the codebook {codebook_size:,}; make it again"
        )
    start = int(ends_N[row - 1]) if row else 0
    captions = plain_json.load(text[start : int(ends_N[row])].tobytes(), where, halves=True)
    if not captions or not plain_json.is_a(captions, list[str]):
        raise ValueError(f"{where} is damaged: its captions are none; make it again")
    return codes_I, [clean(caption) for caption in captions]
