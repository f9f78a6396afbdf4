"""Token shards in seconds and without a dVAE: drawn, captioned scenes whose patches are named by the nearest of K patterns.

A real data set for a prior that only has to be measured, not shown: the captions say what is drawn, the codes say what is
where, and the held-out scenes hold combinations that training never shows. The loader is the one that every training has.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dalle.config import DVAEModel
from dalle.data.shapes import captions, draw, sample_scene
from dalle.data.tokens import Meta, TokenWriter
from dalle.models.dvae import DVAE
from dalle.models.folder import save_weights
from dalle.text import Tokenizer

GRID = 8
CODEBOOK_SIZE = 128
TEXT_VOCABULARY = 384
"""Small, since embeddings are never compressed; a caption of at most 14 words then has at most 31 tokens."""
_PATCH_PX = 4
_FIT_IMAGES = 1000
_ITERATIONS = 10
_TOGETHER = 2**16
"""Patches that are compared at a time, for the sake of memory."""


def write(folder: Path, num_train: int, num_valid: int, seed: int = 0) -> None:
    """Token shards in `train/` and `valid/`, `tokenizer.json`, and `dvae/`, whose hash a training compares with the shards':
    untrained, of the codes' shape, and not what made them."""
    texts, patches = _drawn(num_train, np.random.default_rng([seed, 0]), held_out=False)
    valid_texts, valid_patches = _drawn(num_valid, np.random.default_rng([seed, 1]), held_out=True)
    tokenizer = Tokenizer.train((text for several in texts for text in several), TEXT_VOCABULARY)
    tokenizer.save(folder / "tokenizer.json")
    patterns_KE = _fit(patches[:_FIT_IMAGES].flatten(0, 1))
    sizes = DVAEModel(GRID * _PATCH_PX, CODEBOOK_SIZE, encoder_width=4, width_multipliers=(1, 1, 1))
    meta = Meta(GRID, CODEBOOK_SIZE, save_weights(folder / "dvae", "dvae", DVAE(sizes).state_dict(), sizes, {}))
    for name, of_split, patches_NIE in (("train", texts, patches), ("valid", valid_texts, valid_patches)):
        with TokenWriter(folder / name, meta, pairs_per_shard=len(patches_NIE)) as writer:
            codes_NI = _nearest(patches_NIE.flatten(0, 1), patterns_KE).view(len(patches_NIE), -1)
            for codes_I, several in zip(codes_NI.numpy(), of_split, strict=True):
                writer.add(codes_I, several)
            writer.close()


def _drawn(number: int, rng: np.random.Generator, held_out: bool) -> tuple[list[list[str]], torch.Tensor]:
    """Captions of each scene, and its patches in raster order, fp32 [N, I, E] in [0, 1]."""
    texts, images = [], []
    for _ in range(number):
        scene = sample_scene(rng, held_out)
        texts.append(captions(scene, rng))
        images.append(np.asarray(draw(scene, GRID * _PATCH_PX)))
    cells = torch.from_numpy(np.stack(images)).unflatten(2, (GRID, _PATCH_PX)).unflatten(1, (GRID, _PATCH_PX))
    return texts, cells.movedim(3, 2).flatten(3).flatten(1, 2).float() / 255


def _fit(patches_NE: torch.Tensor) -> torch.Tensor:
    """K patterns, fp32 [K, E], by k-means from the most common patches."""
    distinct_NE, counts_N = patches_NE.unique(dim=0, return_counts=True)
    patterns_KE = distinct_NE[counts_N.argsort(descending=True, stable=True)[:CODEBOOK_SIZE]]
    # the plain patches weigh so much that their patterns stay what they are
    weights_N = counts_N.float()
    for _ in range(_ITERATIONS):
        codes_N = _nearest(distinct_NE, patterns_KE)
        weights_K = torch.bincount(codes_N, weights_N, minlength=CODEBOOK_SIZE)
        sums_KE = torch.zeros_like(patterns_KE).index_add_(0, codes_N, distinct_NE * weights_N[:, None])
        patterns_KE = torch.where(weights_K[:, None] > 0, sums_KE / weights_K[:, None].clamp(min=1), patterns_KE)
    return patterns_KE


def _nearest(patches_NE: torch.Tensor, patterns_KE: torch.Tensor) -> torch.Tensor:
    """Codes int64 [N]."""
    return torch.cat([torch.cdist(some_NE, patterns_KE).argmin(dim=1) for some_NE in patches_NE.split(_TOGETHER)])
