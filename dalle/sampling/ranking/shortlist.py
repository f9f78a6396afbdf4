"""Ranking before drawing: candidates are ranked by their codes, and only the best of a caption are decoded and ranked by their
pixels. Ours, not the paper's.

Candidates come here as codes, with the scores of a CLIP that reads these; they leave as pictures, with those of one that
reads pixels. They are decoded in this process alone, whoever drew them: so what is decoded are the best of all candidates,
however many processes draw, and a draw that is ended early is decoded as far as it came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image

from dalle.config.checks import out_of_memory
from dalle.models.clip import CLIP
from dalle.models.dvae import DVAE
from dalle.sampling.candidates import Best, Part, Work
from dalle.sampling.drawing import Drawing
from dalle.sampling.ranking.viewer import check_scores, embed_captions, view


class Viewer:
    """Decodes drawings of which only the codes are known, and scores their pictures.

    Args:
        dvae, clip: the models, on one device
        release: gives back what memory it can, when there is too little
    """

    def __init__(self, dvae: DVAE, clip: CLIP, release: Callable[[], None] = lambda: None):
        self.dvae, self.clip, self.release = dvae, clip, release
        self.device = clip.logit_scale.device

    def view(self, drawings: list[Drawing]) -> list[Drawing]:
        """Drawings of one caption, with their pictures and the scores of these: to the bit what they would have got where
        they were drawn, for the batches are as wide, and on a CPU as many threads share the work.

        Raises:
            ValueError: scores that are not finite, or too little memory
        """
        viewed: list[Drawing] = []
        with _as_many_threads(drawings[0].settings):
            text_1E = embed_captions(self.clip, [drawings[0].caption], self.device, "reranker")
            for chunk, group in groupby(sorted(drawings, key=_chunk), key=_chunk):
                viewed += self._view_alike(list(group), text_1E, chunk)
        return viewed

    def _view_alike(self, drawings: list[Drawing], text_1E: torch.Tensor, chunk: int) -> Iterator[Drawing]:
        """Those of one chunk width."""
        known = [drawing.codes_I for drawing in drawings if drawing.codes_I is not None]
        assert len(known) == len(drawings), "a prior's drawings have codes"
        codes_RI = torch.from_numpy(np.stack(known)).to(self.device)
        given = (codes_RI, text_1E.expand(len(drawings), -1), drawings[0].settings["precision"], chunk)
        seen = self._try(*given)
        if seen is None:
            self.release()
            seen = self._try(*given)
        if seen is None:
            raise ValueError("out of memory as the shortlist was decoded: give a smaller sampling.chunk")
        images, scores = seen
        assert scores is not None
        seeds = [drawing.seed for drawing in drawings]
        check_scores(scores, seeds, "reranker", "draw without a reranker (rerank), or name another (clip)")
        for drawing, image_YX3, score in zip(drawings, images, scores, strict=True):
            yield replace(drawing, image=Image.fromarray(image_YX3), score=float(score))

    def _try(self, *given: Any) -> tuple[np.ndarray, np.ndarray | None] | None:
        """None when there was no memory for it. What is done then is done outside, where no error holds on to tensors."""
        try:
            return view(self.dvae, self.clip, *given)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None


def _chunk(drawing: Drawing) -> int:
    """How many were drawn together with it: fewer from where memory ran out."""
    return drawing.settings["chunk"]


@contextmanager
def _as_many_threads(settings: dict) -> Iterator[None]:
    """As the process had that drew it; on CUDA it does not matter, and nothing is noted."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings.get("threads", before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Shortlist:
    """Takes what is drawn as codes, and hands it on with the pictures of the best.

    Args:
        work: what is drawn; its `shortlist` is how many that differ are decoded of each caption
        view: decodes them: a `Viewer`'s
    """

    def __init__(self, work: Work, view: Callable[[list[Drawing]], list[Drawing]]):
        self.work, self.view = work, view
        self._best: dict[int, Best] = {}
        self._drawn: Counter[int] = Counter()
        self._unsaid: dict[int, list[bytes]] = {}

    def take(self, part: Part) -> Part:
        """The same part, with no drawings; the last of a caption has those of its shortlist, decoded."""
        assert self.work.shortlist is not None
        best = self._best.setdefault(part.caption, Best(self.work.shortlist))
        best.add(part.drawings)
        self._drawn[part.caption] += part.drawn
        if self._drawn[part.caption] < self.work.n:
            return replace(part, drawings=[])
        self._unsaid[part.caption] = part.fingerprints  # should what follows be interrupted
        return self._decoded(part.caption)

    def rest(self) -> Iterator[Part]:
        """What was begun and did not come to its end: the shortlist of each caption so far."""
        for caption in list(self._best):
            yield self._decoded(caption)

    def of(self, parts: Iterable[Part]) -> Iterator[Part]:
        """All parts of a draw, taken one after another."""
        return map(self.take, parts)

    def _decoded(self, caption: int) -> Part:
        noted = {"shortlist": self.work.shortlist}
        sketches = [replace(d, settings={**d.settings, **noted}) for d in self._best[caption].ranked()]
        drawings = self.view(sketches)
        del self._best[caption]
        return Part(caption, self._unsaid.pop(caption, []), drawings)
