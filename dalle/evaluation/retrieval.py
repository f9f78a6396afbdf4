"""Zero-shot retrieval: how often a held-out image finds its caption among all held-out captions, and the other way round.

Recall at 1, 5 and 10 as CLIP and open_clip report it, on one caption of each image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RECALLS = (1, 5, 10)
_SCORES_TOGETHER = 2**24
"""Similarities that are in memory at a time, 64 MB, however many candidates there are."""


def same_captions(captions: Sequence[str]) -> list[int]:
    """Numbers [N] that equal captions share. Two that differ in capitals or spaces are one to whoever reads them."""
    normal = [" ".join(caption.lower().split()) for caption in captions]
    numbers = {caption: number for number, caption in enumerate(normal)}
    return [numbers[caption] for caption in normal]


def retrieval(images_NE: np.ndarray, texts_NE: np.ndarray, same_caption_ids: Sequence[int]) -> dict[str, float]:
    """Shares in [0, 1] by name, `image_to_caption_r1`, … `caption_to_image_r10`, and `candidates`, N.

    A query is counted as right at K where fewer than K wrong candidates are at least as close as the closest right one: a
    tie with a wrong one counts as lost, so that a model that says the same of everything finds nothing. Products are fp32.

    Args:
        images_NE, texts_NE: unit vectors of N pairs
        same_caption_ids: integers [N]; pairs of the same number have equal captions, and each is right for the other
    """
    ids_N = np.asarray(same_caption_ids)
    images_NE, texts_NE = (np.asarray(x, np.float32) for x in (images_NE, texts_NE))
    found: dict[str, float] = {}
    for name, queries_NE, candidates_NE in (
        ("image_to_caption", images_NE, texts_NE),
        ("caption_to_image", texts_NE, images_NE),
    ):
        ahead_N = np.concatenate(
            [_ahead(queries_NE[part] @ candidates_NE.T, ids_N[part, None] == ids_N) for part in _parts(len(queries_NE))]
        )
        found |= {f"{name}_r{k}": float((ahead_N < k).mean()) for k in RECALLS}
    return found | {"candidates": float(len(ids_N))}


def _parts(count: int) -> list[slice]:
    queries = max(1, _SCORES_TOGETHER // count)
    return [slice(first, first + queries) for first in range(0, count, queries)]


def _ahead(scores_QN: np.ndarray, right_QN: np.ndarray) -> np.ndarray:
    """Of each query, the wrong candidates that are at least as close as the closest right one."""
    best_Q = np.where(right_QN, scores_QN, -np.inf).max(axis=1)
    # not >=: of what is not a number nothing is found
    return (~right_QN & ~(scores_QN < best_Q[:, None])).sum(axis=1)
