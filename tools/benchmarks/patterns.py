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
            for codes_I, several in zip(_nearest(patches_NIE, patterns_KE).numpy(), of_split, strict=True):
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
    """K patterns, fp32 [K, E], by k-means from the most common patches: the plain ones."""
    distinct, counts = patches_NE.unique(dim=0, return_counts=True)
    patterns_KE = distinct[counts.argsort(descending=True, stable=True)[:CODEBOOK_SIZE]]
    for _ in range(_ITERATIONS):
        # of distinct patches each counts once: otherwise the plain ones would be all that patterns are for
        codes_N = torch.cdist(distinct, patterns_KE).argmin(dim=1)
        counts_K = torch.bincount(codes_N, minlength=CODEBOOK_SIZE)
        sums_KE = torch.zeros_like(patterns_KE).index_add_(0, codes_N, distinct)
        patterns_KE = torch.where(counts_K[:, None] > 0, sums_KE / counts_K[:, None].clamp(min=1), patterns_KE)
    return patterns_KE


def _nearest(patches_NIE: torch.Tensor, patterns_KE: torch.Tensor) -> torch.Tensor:
    """Codes int64 [N, I]."""
    return torch.stack([torch.cdist(patches_IE, patterns_KE).argmin(dim=1) for patches_IE in patches_NIE])
