"""The one shape of every text encoder: captions in, one vector each out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from dalle.models.weights import content_hash
from dalle.text.words import beginning, clean

_BATCH = 8
"""Captions that go through an encoder at a time, never more and never fewer: matrix products of another shape round differently,
so a caption's vector would depend on those that were read beside it, and a run that goes on on those that are known already. One
alone takes the time of all."""


@dataclass(frozen=True)
class TextEncoder:
    """Captions to vectors, with weights that stay as they are.

    Args:
        name: as it was asked for, such as "bert:distilbert-base-uncased"
        width: numbers of a caption's vector, E
        hash: SHA-256 over kind, weights and vocabulary, as hex: the same wherever the same files are opened
        device: where its weights are
        read: captions to vectors [B, E] on the device
        padded_length: to how many tokens a caption is filled up; only those of one length are read together
    """

    name: str
    width: int
    hash: str
    device: torch.device
    read: Callable[[Sequence[str]], torch.Tensor]
    padded_length: Callable[[str], int] = lambda caption: 0

    def encode(self, captions: Sequence[str]) -> torch.Tensor:
        """features_BE, fp32 [B, E], on the encoder's device, of any number of captions. Each has the same bits whichever are beside
        it, where a product rounds all its rows alike: so it was on CPUs with one and two threads, not of odd widths with three, and
        no GPU was tried. They need no gradient, and whoever reads them may have one: they are no inference tensors.

        Raises:
            ValueError: a vector is not finite
        """
        cleaned = [clean(caption) for caption in captions]
        features_BE = torch.zeros(len(captions), self.width, device=self.device)
        by_length: dict[int, list[int]] = {}
        for row, caption in enumerate(cleaned):
            by_length.setdefault(self.padded_length(caption), []).append(row)
        # 16-bit products would make another encoder of it
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for rows in by_length.values():
                for first in range(0, len(rows), _BATCH):
                    some = rows[first : first + _BATCH]
                    filled = [cleaned[row] for row in some] + [cleaned[some[-1]]] * (_BATCH - len(some))
                    features_BE[some] = self.read(filled).float()[: len(some)]
        if not bool(features_BE.isfinite().all()):
            at = int((~features_BE.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(
                f"text encoder {self.name}: not finite for the caption {beginning(cleaned[at])!r}: it is broken; take another"
            )
        return features_BE

    def check_width(self, width: int, reader: str) -> None:
        """Raises ValueError unless its vectors have so many numbers. reader: what takes them, as a message begins with it."""
        if self.width != width:
            raise ValueError(
                f"{reader} reads {width} numbers of a caption, and the text encoder {self.name} gives {self.width}: name the "
                "encoder that it was trained with"
            )


def encoder_hash(kind: str, weights: Mapping[str, torch.Tensor], vocabulary: object) -> str:
    """What an encoder is known by, as 64 hex digits.

    Args:
        kind: what is done with the weights, with all that changes the vectors beside them, such as the pooling
        weights: those that take part, by name
        vocabulary: how text becomes tokens, JSON-able
    """
    told = json.dumps([kind, content_hash(weights), vocabulary], ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
