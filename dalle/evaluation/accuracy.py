"""Caption accuracy on the drawn data set: how often the checker sees in a picture what its caption says."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
from PIL import Image

from dalle.config import Images, Sampling
from dalle.data.pairs import Pair, read_pairs
from dalle.data.shapes import Claim, shows
from dalle.sampling.gallery import Drawing
from dalle.sampling.pipeline import Pipeline

_CAPTIONS_TOGETHER = 4


@dataclass
class Accuracy:
    """Shares of right pictures in [0, 1], and the pictures.

    Args:
        reranked: the reranker's best of all candidates
        unranked: the first candidate
        candidates: all candidates, which is the expectation of an unranked pick with less noise
        any_right: captions with at least one right candidate, the most that reranking could reach
        reconstructed: real drawings after the dVAE
        real: real drawings, the checker's own limit
        drawings: by caption, best first
        right: for each caption whether the best was right
    """

    reranked: float = 0.0
    unranked: float = 0.0
    candidates: float = 0.0
    any_right: float = 0.0
    reconstructed: float = 0.0
    real: float = 0.0
    drawings: dict[str, list[Drawing]] = field(default_factory=dict)
    right: dict[str, bool] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """The shares by name."""
        return {k: v for k, v in vars(self).items() if isinstance(v, float)}


def run(
    pipeline: Pipeline,
    shards: str,
    captions: int,
    candidates: int,
    seed: int = 0,
    sampling: Sampling = Sampling(),  # noqa: B008
    keep: int = 4,
    progress: Callable[[int], None] = lambda done: None,
) -> Accuracy:
    """Draw and judge captions of a drawn data set.

    Args:
        pipeline: with a reranker
        shards: of the drawn data set, with a `scene` in each json
        captions: how many, from the first
        candidates: drawn for each
        seed: of the first candidate
        sampling: how they are drawn
        keep: how many drawings of each caption are returned
        progress: told how many captions are done

    Raises:
        ValueError: the shards hold no scenes, or too few pairs
    """
    size_px = pipeline.dvae.config.image_size_px
    pairs = distinct(read_pairs(shards, Images(augmentation="none"), size_px), captions)
    settings = {**asdict(sampling), "models": pipeline.hashes}
    result = Accuracy()
    for first in range(0, len(pairs), _CAPTIONS_TOGETHER):
        batch = pairs[first : first + _CAPTIONS_TOGETHER]
        chunks = list(pipeline.candidates([p.captions[0] for p in batch], candidates, seed, sampling))
        images = np.concatenate([c.images_CNYX3 for c in chunks], axis=1)
        scores = np.concatenate([c.scores_CN for c in chunks], axis=1)
        back = pipeline.reconstruct(np.stack([p.image for p in batch]), sampling.precision)
        for pair, images_NYX3, scores_N, back_YX3 in zip(batch, images, scores, back, strict=True):
            claim = Claim.from_json(pair.scene)
            right_N = np.array([shows(image, claim) for image in images_NYX3])
            order = np.argsort(-scores_N, kind="stable")
            shares = {
                "reranked": right_N[order[0]],
                "unranked": right_N[0],
                "candidates": right_N.mean(),
                "any_right": right_N.any(),
                "reconstructed": shows(back_YX3, claim),
                "real": shows(pair.image, claim),
            }
            for name, share in shares.items():
                setattr(result, name, getattr(result, name) + float(share) / len(pairs))
            caption = pair.captions[0]
            result.right[caption] = bool(right_N[order[0]])
            result.drawings[caption] = [
                Drawing(Image.fromarray(images_NYX3[i]), caption, float(scores_N[i]), seed + int(i), rank, settings)
                for rank, i in enumerate(order[:keep], 1)
            ]
        progress(min(first + _CAPTIONS_TOGETHER, len(pairs)))
    return result


def distinct(pairs, count: int) -> list[Pair]:
    """The first `count` pairs whose first captions differ. Raises ValueError when there are too few, or no scenes."""
    found: dict[str, Pair] = {}
    for pair in itertools.islice(pairs, 20 * count):
        if pair.scene is None:
            raise ValueError(f"sample {pair.key} says nothing of its scene: accuracy needs the drawn data set")
        found.setdefault(pair.captions[0], pair)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"captions {count}: the shards hold only {len(found)} different ones")
