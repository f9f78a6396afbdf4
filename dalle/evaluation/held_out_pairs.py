"""Held-out pairs as codes and captions, which losses of stage two are measured on: of token shards, or of image-text shards and
the dVAE. They are read a batch at a time and in order, each with its first caption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from dalle.config import Images
from dalle.data.counts import Counts
from dalle.data.loading import load
from dalle.data.pairs import PairPasses
from dalle.data.tokens import WRITTEN_BY, TokenShards
from dalle.models.folder import codes_hash, load_dvae, read_config
from dalle.outputs.ownership import read_mark

_ENCODED_TOGETHER = 64
"""Images in a batch of the encoder, as `dalle-tokenize` has it."""

Batch = tuple[np.ndarray, list[str]]
"""Codes int64 [B, I], and a caption of each."""


@dataclass(frozen=True)
class Pairs:
    """Held-out pairs as codes and captions, which may be gone through again and again.

    Args:
        source: the shards, as they were named
        dvae_hash: what their codes are known by (`codes_hash` of their dVAE)
        batches: codes int64 [B, I] with the first caption of each, the whole data in order
        notes: what a reader of the figures should know of them
    """

    source: str
    dvae_hash: str
    batches: Callable[[], Iterator[Batch]] = field(repr=False)
    notes: tuple[str, ...] = ()


def token_pairs(folder: str | Path) -> Pairs:
    """The pairs of a folder of token shards. Raises ValueError when there are none, or a shard is missing."""
    shards = TokenShards(folder)
    if not len(shards):
        raise ValueError(f"{folder} holds no pair; name a folder of token shards that does")

    def batches() -> Iterator[Batch]:
        for shard, size in enumerate(shards.meta.shard_sizes):
            for first in range(0, size, _ENCODED_TOGETHER):
                rows = range(first, min(first + _ENCODED_TOGETHER, size))
                codes, captions = zip(*(shards.pair(shard, row) for row in rows), strict=True)
                yield np.stack(codes).astype(np.int64), [each[0] for each in captions]

    notes = []
    if shards.meta.precision not in (None, "fp32"):
        notes.append(f"the codes were found in {shards.meta.precision}: some are others than in fp32")
    crops = (read_mark(Path(folder), WRITTEN_BY) or {}).get("crops", 1)
    if crops != 1:
        notes.append(
            f"the token shards hold {crops} crops of each image, which count as images of their own: the standard errors "
            "are too small"
        )
    return Pairs(str(folder), shards.meta.dvae_hash, batches, tuple(notes))


def image_pairs(
    spec: str,
    dvae: str | Path,
    images: Images | None = None,
    device: str | torch.device | None = None,
    workers: int = 1,
) -> Pairs:
    """The pairs of image-text shards, whose central squares are encoded in fp32, as `dalle-tokenize` does it, each time
    that they are gone through.

    Args:
        spec: the shards
        dvae: folder of the dVAE
        images: which pairs are kept, whose augmentation is not used; null has the defaults
        device: of the encoder; null takes a GPU where there is one
        workers: processes that decode images, at most 1

    Raises:
        ValueError: no dVAE is there; and when the pairs are gone through, it or the shards cannot be used
    """
    config, made_by = read_config(dvae, "dvae"), codes_hash(dvae)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    images = replace(images or Images(), augmentation="none")

    def batches() -> Iterator[Batch]:
        passes = PairPasses(spec, images, config.image_size_px, _ENCODED_TOGETHER, passes=1, seed=0)
        found = load(passes, workers, **({"prefetch_factor": 2} if workers else {}))
        model = load_dvae(dvae, device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        for batch in found:
            if isinstance(batch, Counts):
                continue
            with torch.inference_mode(), torch.autocast(device.type, enabled=False):
                codes_BYX = model.encode(batch["images_BCYX"].to(device))
            yield codes_BYX.flatten(1).cpu().numpy().astype(np.int64), [each[0] for each in batch["captions"]]

    return Pairs(spec, made_by, batches)
