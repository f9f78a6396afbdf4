"""Candidates of some captions, drawn together and scored by the judge that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dalle.config import BestOf, Sampling
from dalle.data.shapes import Claim, shows
from dalle.sampling.candidates import Candidates, Chunks
from dalle.sampling.drawing import fingerprint
from dalle.sampling.loading import load_transformer
from dalle.sampling.pipeline import Pipeline

_YES = 1.0
"""The checker's score of a candidate that shows its caption; of others it is 0."""


def load_judged(best_of: BestOf, device: torch.device) -> Pipeline:
    """The models that draw, with the judge where that is one."""
    return load_transformer(
        best_of.model,
        rerank=best_of.judge == "clip",
        device=device,
        precision=best_of.sampling.precision,
        shortlist=best_of.judge == "codes-clip",
    )


@dataclass(frozen=True)
class Judged:
    """Candidates of a few captions: codes uint16 [C, N, I] and the judge's scores fp32 [C, N]."""

    codes_CNI: np.ndarray
    scores_CN: np.ndarray


class Judge:
    """Draws and scores.

    Args:
        pipeline: from `load_judged`
        best_of: who judges, and how many candidates are drawn
        rows: candidates of several captions that are drawn together, or of one caption, where that has more
    """

    def __init__(self, pipeline: Pipeline, best_of: BestOf, rows: int):
        self.pipeline, self.best_of = pipeline, best_of
        self.captions_together = max(1, rows // best_of.candidates)
        sampling: Sampling = replace(best_of.sampling, chunk=min(rows, best_of.candidates))
        self._chunks = Chunks(pipeline, sampling)

    def draw(
        self,
        captions: Sequence[str],
        seeds: Sequence[int],
        claims: Sequence[Claim] | None = None,
        progress: Callable[[int], None] = lambda captions: None,
    ) -> Judged:
        """All candidates of captions. Which are drawn together decides the last bits, so a last batch that has too few is
        filled up, and what is over thrown away.

        Args:
            captions, seeds: any number of them, each with the seed of its first candidate
            claims: of each caption, for the checker
            progress: told how many captions each batch had
        """
        parts: list[Judged] = []
        for first in range(0, len(captions), self.captions_together):
            here = slice(first, first + self.captions_together)
            parts.append(self._draw(captions[here], seeds[here], claims[here] if claims else None))
            progress(len(captions[here]))
        return Judged(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("codes_CNI", "scores_CN")))

    def _draw(self, captions: Sequence[str], seeds: Sequence[int], claims: Sequence[Claim] | None) -> Judged:
        lacking = self.captions_together - len(captions)
        filled = [*captions, *[captions[-1]] * lacking]
        reading = self.pipeline.read(filled, as_codes=self.best_of.judge == "codes-clip")
        seeds_C = np.array([*seeds, *[seeds[-1]] * lacking], dtype=np.int64)
        chunks = list(self._chunks.draw(reading, range(self.best_of.candidates), seeds_C, None))
        count = len(captions)
        codes_CNI = np.concatenate([chunk.codes_CNI for chunk in chunks], axis=1)[:count].astype(np.uint16)
        scores = [np.asarray(chunk.scores_CN) if claims is None else _check(chunk, claims) for chunk in chunks]
        return Judged(codes_CNI, np.concatenate([each[:count] for each in scores], axis=1).astype(np.float32))


def _check(chunk: Candidates, claims: Sequence[Claim]) -> np.ndarray:
    """The checker's scores [C, N] of the first captions of a chunk, each picture being read once."""
    scores = []
    assert chunk.codes_CNI is not None and chunk.images_CNYX3 is not None
    for claim, codes_NI, images_NYX3 in zip(claims, chunk.codes_CNI, chunk.images_CNYX3, strict=False):
        known: dict[bytes, float] = {}
        for codes_I, image_YX3 in zip(codes_NI, images_NYX3, strict=True):
            key = fingerprint(codes_I)
            if key not in known:
                known[key] = _YES if shows(image_YX3, claim) else 0.0
            scores.append(known[key])
    return np.array(scores).reshape(len(claims), -1)


def keep_best(judged: Judged, best_of: BestOf) -> list[tuple[int, int]]:
    """(caption, candidate) of those that are kept, caption by caption, the best first; of equally good ones the first drawn.
    No two of a caption have the same codes."""
    least = _YES if best_of.judge == "checker" else best_of.threshold
    kept: list[tuple[int, int]] = []
    for caption, (codes_NI, scores_N) in enumerate(zip(judged.codes_CNI, judged.scores_CN, strict=True)):
        seen: set[bytes] = set()
        for candidate in np.argsort(-scores_N, kind="stable").tolist():
            if len(seen) == best_of.keep or (least is not None and scores_N[candidate] < least):
                break
            key = fingerprint(codes_NI[candidate])
            if key not in seen:
                seen.add(key)
                kept.append((caption, candidate))
    return kept
