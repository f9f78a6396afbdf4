"""What a CLIP says of samples and their captions: the score, and whether each finds the other among all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle.evaluation.report.section import Section, prose, table
from dalle.evaluation.retrieval import RECALLS, retrieval, same_captions
from dalle.evaluation.steps.quality import read_batches
from dalle.evaluation.steps.reference import Reference
from dalle.models.clip import CLIP


@dataclass(frozen=True)
class Judge:
    """A CLIP and what it is called in every table. chose: it is the reranker that chose the samples."""

    clip: CLIP
    name: str
    hash: str
    chose: bool

    @torch.inference_mode()
    def texts(self, captions: Sequence[str], together: int = 256) -> np.ndarray:
        """Unit vectors fp32 [N, E] of captions."""
        parts = [captions[first : first + together] for first in range(0, len(captions), together)]
        device = self.clip.mean.device
        return np.concatenate(
            [self.clip.embed_texts(self.clip.tokens(part).to(device)).cpu().numpy() for part in parts]
        )

    @torch.inference_mode()
    def images(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        """Unit vectors fp32 [N, E] of images, which come some at a time."""
        device = self.clip.mean.device
        return np.concatenate(
            [
                self.clip.embed_images(torch.tensor(images).permute(0, 3, 1, 2).to(device)).cpu().numpy()
                for images in batches
            ]
        )


def scores(images_NE: np.ndarray, texts_NE: np.ndarray) -> np.ndarray:
    """100 · max(cos, 0) of each pair, float64 [N], as torchmetrics has it (Hessel et al. 2021 have 2.5 · max(cos, 0))."""
    return 100 * np.maximum(0, (images_NE.astype(np.float64) * texts_NE.astype(np.float64)).sum(axis=1))


def scores_over_n(
    judge: Judge, winners: dict[int, list[Path]], texts_NE: np.ndarray, together: int
) -> dict[int, float]:
    """The mean CLIP score of the best of N, by N. An image that several N share is judged once."""
    unique = sorted({path for paths in winners.values() for path in paths})
    embedded = judge.images(read_batches(unique, together))
    place = {path: row for row, path in enumerate(unique)}
    return {
        n: float(scores(embedded[[place[path] for path in paths]], texts_NE).mean()) for n, paths in winners.items()
    }


def judged_section(
    judge: Judge,
    captions: Sequence[str],
    images_NE: np.ndarray,
    texts_NE: np.ndarray,
    reals: Sequence[int | None],
    reference: Reference | None,
    together: int,
    excluded: frozenset[int] = frozenset(),
) -> Section:
    """CLIP score and retrieval of the samples, beside those of the captions' own real images where they have any.

    Args:
        judge: the CLIP
        captions: of the samples
        images_NE, texts_NE: of samples and captions, by the judge
        reals: the number of each caption's own reference image, null where it has none
        reference: the real images
        together: images embedded at a time
        excluded: real images that are left out, with their captions, in rows of their own
    """
    ids_N = np.array(same_captions(captions))
    sets = {"samples": images_NE}
    known = [number for number in reals if number is not None]
    if reference is not None and len(known) == len(reals):
        there = sorted(set(known))  # in the order of the shards, as they are read
        real_NE = judge.images(reference.batches(together, there))
        sets["real images"] = real_NE[np.searchsorted(there, known)]
    rows = {name: _row(each_NE, texts_NE, ids_N) for name, each_NE in sets.items()}
    kept = [place for place, number in enumerate(reals) if number not in excluded]
    if len(kept) < len(captions):
        left_out = f"{len(captions) - len(kept)} left out"
        rows |= {
            f"{name}, {left_out}": _row(each_NE[kept], texts_NE[kept], ids_N[kept]) for name, each_NE in sets.items()
        }
    names = [f"{way}_r{k}" for way in ("image_to_caption", "caption_to_image") for k in RECALLS]
    header = ["", "CLIP score", *(f"{way} R@{k}" for way in ("image → caption", "caption → image") for k in RECALLS)]
    shown = table(header, [[name, row["clip_score"], *(row[each] for each in names)] for name, row in rows.items()])
    told = prose(
        f"By {judge.name}. The score is the mean of 100 · max(cos, 0); R@k is the share of images whose caption is among "
        f"the k closest of all {len(captions):,} captions, and the other way round. By chance R@1 would be "
        f"{1 / len(np.unique(ids_N)):.3g}. Scores of different CLIPs do not compare."
    )
    notes: tuple[str, ...] = ()
    if judge.chose:
        notes = (
            "The judge is the reranker that chose these samples: it favours what it chose. Name another with --judge.",
        )
    figures: dict[str, Any] = {"judge": judge.name, "hash": judge.hash, "judge_is_reranker": judge.chose, **rows}
    return Section("judged", "Captions found", told + shown, figures, notes)


def _row(images_NE: np.ndarray, texts_NE: np.ndarray, ids_N: np.ndarray) -> dict[str, float]:
    return {"clip_score": float(scores(images_NE, texts_NE).mean()), **retrieval(images_NE, texts_NE, ids_N.tolist())}
