"""Caption accuracy on the drawn data set: how often the checker sees in a picture what its caption says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dalle.config import Images, Sampling
from dalle.data.samples import Pair, read_pairs
from dalle.data.shapes import Claim, shows
from dalle.sampling.candidates import Best
from dalle.sampling.drawing import Drawing
from dalle.sampling.pipeline import Pipeline

_CAPTIONS_TOGETHER = 4
_CANDIDATES_TOGETHER = 32


@dataclass(frozen=True)
class Judgement:
    """What was seen of one caption.

    Args:
        caption: what was to be drawn
        shares: right pictures in [0, 1], by name: of the `reranked` best; the `unranked` first; all `candidates`, which
            is the expectation of an unranked pick with less noise; `any_right`, the most that reranking could reach;
            `reconstructed`, the real drawing after the dVAE; `real`, the drawing itself, the checker's own limit
        drawings: the best that differ, best first
        scores_N: of all candidates, in the order of their seeds
        right_N: bool, whether the checker sees the caption in each
    """

    caption: str
    shares: dict[str, float]
    drawings: list[Drawing]
    scores_N: np.ndarray
    right_N: np.ndarray


def figures(judgements: list[Judgement]) -> Iterator[tuple[str, float]]:
    """(name, value) pairs: each share, averaged over the captions."""
    for name in judgements[0].shares:
        yield name, float(np.mean([judgement.shares[name] for judgement in judgements]))


def judge(
    pipeline: Pipeline,
    pairs: list[Pair],
    candidates: int,
    seed: int = 0,
    sampling: Sampling = Sampling(),
    keep: int = 4,
) -> Iterator[Judgement]:
    """Draw and judge the first caption of each pair.

    Args:
        pipeline: with a reranker
        pairs: of the drawn data set, from `distinct`
        candidates: drawn for each
        seed: of the first candidate
        sampling: how they are drawn
        keep: how many drawings of each caption are returned, where so many differ
    """
    # one chunk for all candidates where they are few: none is drawn to be thrown away, and all are compared alike
    sampling = replace(sampling, chunk=sampling.chunk or min(candidates, _CANDIDATES_TOGETHER))
    for first in range(0, len(pairs), _CAPTIONS_TOGETHER):
        batch = pairs[first : first + _CAPTIONS_TOGETHER]
        chunks = list(pipeline.candidates([p.captions[0] for p in batch], candidates, seed, sampling))
        images = np.concatenate([c.images_CNYX3 for c in chunks], axis=1)
        scores = np.concatenate([c.scores_CN for c in chunks], axis=1)
        back = pipeline.reconstruct(np.stack([p.image for p in batch]), sampling.precision)
        for row, (pair, images_NYX3, scores_N, back_YX3) in enumerate(zip(batch, images, scores, back, strict=True)):
            assert pair.scene is not None, "of `distinct`"
            claim = Claim.from_json(pair.scene)
            right_N = np.array([shows(image, claim) for image in images_NYX3])
            order_N = np.argsort(-scores_N, kind="stable")
            shares = {
                "reranked": right_N[order_N[0]],
                "unranked": right_N[0],
                "candidates": right_N.mean(),
                "any_right": right_N.any(),
                "reconstructed": shows(back_YX3, claim),
                "real": shows(pair.image, claim),
            }
            best = Best(keep)
            for chunk in chunks:
                best.take(chunk.part(row))
            shares = {name: float(share) for name, share in shares.items()}
            yield Judgement(pair.captions[0], shares, best.ranked(), scores_N, right_N)


def distinct(shards: str, size_px: int, count: int) -> list[Pair]:
    """The first `count` pairs of the shards whose first captions differ, their images at `size_px`.

    Raises:
        ValueError: there are too few, or the shards hold no scenes
    """
    found: dict[str, Pair] = {}
    for pair in itertools.islice(read_pairs(shards, Images(augmentation="none"), size_px), 20 * count):
        if pair.scene is None:
            raise ValueError(
                f"sample {pair.key} says nothing of its scene: accuracy needs the drawn data set; name its shards"
            )
        found.setdefault(pair.captions[0], pair)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"captions {count}: the shards hold only {len(found)} different ones; lower it to so many")
