"""What is read of captions: those that are longer are cut and counted here, whoever reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dalle.config.checks import warn
from dalle.text.tokenizer import Tokenizer
from dalle.text.words import beginning, clean

PAD = -1
"""Fills a caption up to a fixed length. No token: the prior has a pad embedding for each position."""


class CaptionWarning(UserWarning):
    """What of a caption is not read, or not known."""


def pad(ids: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Captions cut and filled with `PAD` to one length: int64 [B, length]."""
    padded = np.full((len(ids), length), PAD, dtype=np.int64)
    for row, caption in zip(padded, ids, strict=True):
        caption = caption[:length]
        row[: len(caption)] = caption
    return padded


@dataclass
class Cuts:
    """How many captions have lost their end so far.

    limit: the most tokens that are read
    """

    limit: int
    captions: int = 0
    cut: int = 0

    def add(self, were_cut: Iterable[bool]) -> None:
        """Captions that were read: whether each was cut."""
        for was_cut in were_cut:
            self.captions += 1
            self.cut += bool(was_cut)

    def __str__(self) -> str:
        return (
            f"{self.cut:,} of {self.captions:,} captions ({100 * self.cut / max(1, self.captions):.3g}%) were cut to the "
            f"{self.limit} tokens that are read"
        )


def check_captions(captions: Iterable[str]) -> None:
    """Raises ValueError for a caption to draw that is empty, or no text."""
    for caption in captions:
        if not caption.strip():
            raise ValueError("the caption is empty; say what to draw")
        if clean(caption) != caption:
            raise ValueError(
                f"the caption {beginning(caption)!r} is no text: it has bytes of another encoding than the terminal's, or half a "
                "character; type it as UTF-8"
            )


def caption_tokens(tokenizer: Tokenizer, captions: Sequence[str], limit: int) -> np.ndarray:
    """Tokens of captions to draw, int64 [C, limit], PAD after the end. One that is too long is cut, and a `CaptionWarning` shows what was
    lost, or of several captions how many lost something; another names the words that no training caption had.

    Raises:
        ValueError: a caption is empty, or no text
    """
    check_captions(captions)
    ids = [tokenizer.encode(" ".join(caption.split())) for caption in captions]
    if cut := [tokens for tokens in ids if len(tokens) > limit]:
        lost = beginning(tokenizer.decode(cut[0][limit:]))
        told = f"the caption has {len(cut[0])} tokens, {limit} are read; cut off: {lost!r}"
        if len(ids) > 1:
            told = f"{Cuts(limit, len(ids), len(cut))}; the first of them loses {lost!r}"
        warn(told, CaptionWarning)
    if tokenizer.words is not None and (unknown := tokenizer.words.unknown(captions)):
        warn(unknown, CaptionWarning)
    return pad(ids, limit)
