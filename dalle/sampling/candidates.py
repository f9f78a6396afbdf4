"""Candidates as a stream: drawn in chunks of one width, of which only the best are kept.

A candidate is the same whatever n is and wherever it is drawn, so the work can be cut anywhere: into chunks for the
memory, and among processes (`workers`). It is always done at the full width of a chunk, and what is over is thrown away.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from dalle.config import Sampling
from dalle.config.checks import at_least, out_of_memory, warn
from dalle.sampling.drawing import Drawing
from dalle.sampling.prompt import Prompt


@dataclass
class Reading:
    """Captions as the models read them: what draws reads tokens int64 [C, T − 1], or, of a GAN, embeddings [C, E], and a reranker,
    where there is one, embeddings [C, E] of its own.

    as_codes: their candidates are not decoded, and the embeddings and scores are those of a reader of codes.
    """

    captions: Sequence[str]
    text: torch.Tensor
    embeddings_CE: torch.Tensor | None
    as_codes: bool = False


@dataclass
class Candidates:
    """Some candidates of a few captions: images uint8 [C, N, Y, X, 3], null where they are not decoded, codes [C, N, I], null of a
    model without any, seeds [C, N], and scores [C, N] of the reranker, null without one. settings: how they were drawn."""

    captions: Sequence[str]
    images_CNYX3: np.ndarray | None
    codes_CNI: np.ndarray | None
    seeds_CN: np.ndarray
    scores_CN: np.ndarray | None
    settings: dict[str, Any]

    def first(self, count: int) -> Candidates:
        """The first candidates of each caption."""
        arrays = (self.images_CNYX3, self.codes_CNI, self.scores_CN)
        images_CNYX3, codes_CNI, scores_CN = (a if a is None else a[:, :count] for a in arrays)
        return Candidates(self.captions, images_CNYX3, codes_CNI, self.seeds_CN[:, :count], scores_CN, self.settings)

    def drawing(self, caption: int, place: int, rank: int = 0) -> Drawing:
        """One of them, by the numbers of its caption and of its place in the chunk."""
        return Drawing(
            None if self.images_CNYX3 is None else Image.fromarray(self.images_CNYX3[caption, place]),
            self.captions[caption],
            None if self.scores_CN is None else float(self.scores_CN[caption, place]),
            int(self.seeds_CN[caption, place]),
            rank,
            {**self.settings, "place": place},
            # a view would keep the whole chunk
            None if self.codes_CNI is None else self.codes_CNI[caption, place].copy(),
        )

    def part(self, caption: int) -> Part:
        """All of a caption's."""
        places = range(self.seeds_CN.shape[1])
        drawings = [self.drawing(caption, place) for place in places]
        return Part(caption, [drawing.fingerprint() for drawing in drawings], drawings)


@dataclass(frozen=True)
class Work:
    """What is to be drawn: n candidates of each caption, one caption after another, each alone in its batch.

    keep: how many of the best of a caption are kept. seed: of each caption's first candidate. prompt: of all captions.
    shortlist: how many of a caption are decoded, the best by a reader of codes; null decodes all. seeds: in place of `seed`
    one for each caption, so that no two share their random numbers.

    Raises:
        ValueError: n or keep is below 1
    """

    captions: tuple[str, ...]
    n: int
    keep: int
    seed: int = 0
    sampling: Sampling = Sampling()
    prompt: Prompt | None = None
    shortlist: int | None = None
    seeds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "n", "keep")


class Source(Protocol):
    """What draws a chunk: a `pipeline.Pipeline`, whose methods say more, or an `adversarial.gan_pipeline.GANPipeline`. It is described
    here, not imported, since their `generate` stands on this file."""

    device: torch.device

    def read(self, captions: Sequence[str], as_codes: bool = False) -> Reading: ...

    def settle(self, sampling: Sampling) -> Sampling: ...

    def check_prompt(self, prompt: Prompt) -> None: ...

    def chunk_width(self, sampling: Sampling) -> int: ...

    def chunk(
        self,
        reading: Reading,
        first_seed: int | np.ndarray,
        sampling: Sampling,
        prompt: Prompt | None = None,
        progress: Callable[[int], None] = ...,
    ) -> Candidates: ...

    def release(self) -> None: ...


@dataclass(frozen=True)
class Part:
    """Of what was drawn last: of which caption (its number), the fingerprints of all candidates, and those of the drawings that
    were among the best so far."""

    caption: int
    fingerprints: list[bytes]
    drawings: list[Drawing]

    @property
    def drawn(self) -> int:
        """How many candidates these are."""
        return len(self.fingerprints)


class Best:
    """The best of a caption: by score, and of equal ones, or without a reranker, those of the lowest seeds. Candidates with
    the same codes, or pixels where there are no codes, are one drawing, which is counted.

    Args:
        keep: how many that differ
    """

    def __init__(self, keep: int):
        self.keep = keep
        self._kept: dict[bytes, Drawing] = {}
        self._worst: bytes | None = None  # of those kept; null when it has to be found anew
        self._times: Counter[bytes] = Counter()

    @property
    def differing(self) -> int:
        """How many different drawings were taken in, kept or not."""
        return len(self._times)

    def take(self, part: Part) -> None:
        """Take in what was drawn, and count it."""
        self._times.update(part.fingerprints)
        self.add(part.drawings)

    def add(self, drawings: Iterable[Drawing]) -> list[Drawing]:
        """Take in drawings uncounted, and return those of them that are now among the best."""
        entered = {}
        for drawing in drawings:
            key = drawing.fingerprint()
            if key in self._kept:
                if _order(drawing) < _order(self._kept[key]):
                    continue
            elif len(self._kept) == self.keep:
                if self._worst is None:
                    self._worst = min(self._kept, key=lambda key: _order(self._kept[key]))
                if _order(drawing) < _order(self._kept[self._worst]):
                    continue
                del self._kept[self._worst]
            self._kept[key] = entered[key] = drawing
            self._worst = None
        return [drawing for key, drawing in entered.items() if self._kept.get(key) is drawing]

    def ranked(self) -> list[Drawing]:
        """The best first, with their ranks from 1, and how often each was drawn."""
        ordered = sorted(self._kept.items(), key=lambda item: _order(item[1]), reverse=True)
        return [
            replace(drawing, rank=rank, times=max(1, self._times[key]))
            for rank, (key, drawing) in enumerate(ordered, 1)
        ]


def _order(drawing: Drawing) -> tuple[float, int]:
    """Greater is better; no two have one seed."""
    return (0.0 if drawing.score is None else drawing.score, -drawing.seed)


class Chunks:
    """Draws candidates in chunks of one width, which is halved for good when memory runs out.

    Args:
        source: the models
        sampling: its chunk, where it has one, is the width to begin with
        progress: told each slot of a chunk that was drawn

    Raises:
        ValueError: the sampling does not fit the models
    """

    def __init__(self, source: Source, sampling: Sampling, progress: Callable[[int], None] = lambda slot: None):
        self.source, self.sampling, self.progress = source, source.settle(sampling), progress
        self.width = sampling.chunk or source.chunk_width(sampling)

    def draw(
        self, reading: Reading, numbers: range, seed: int | np.ndarray, prompt: Prompt | None
    ) -> Iterator[Candidates]:
        """The candidates of these numbers, of all captions read; candidate i has seed `seed + i`. seed: one for all captions, or
        one for each, int64 [C].

        Raises:
            ValueError: there is no memory for one candidate at a time
        """
        first = numbers.start
        while first < numbers.stop:
            chunk = self._try(reading, seed + first, prompt)
            if chunk is None:
                self._halve(int(np.min(seed)) + first)
                continue
            chunk = chunk.first(numbers.stop - first)
            yield chunk
            first += chunk.seeds_CN.shape[1]

    def _try(self, reading: Reading, first_seed: int | np.ndarray, prompt: Prompt | None) -> Candidates | None:
        """A chunk; None when there was no memory for it. Not halved here, where the error still holds on to tensors."""
        try:
            sampling = replace(self.sampling, chunk=self.width)
            return self.source.chunk(reading, first_seed, sampling, prompt, self.progress)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None

    def _halve(self, seed: int) -> None:
        self.source.release()
        if self.width == 1:
            raise ValueError(
                "out of memory even with one candidate at a time: this model needs more; take a larger machine"
            )
        warn(f"out of memory with {self.width} candidates at a time; from seed {seed} on {self.width // 2} at a time")
        self.width //= 2


def draw(
    source: Source,
    work: Work,
    numbers: Iterable[int] | None = None,
    progress: Callable[[int], None] = lambda slot: None,
) -> Iterator[Part]:
    """Draw, and hand on what may be among the best, chunk by chunk. Of work with a shortlist these are drawings without an
    image, for a `ranking.shortlist.Shortlist`, which needs so many of the best.

    Args:
        source: the models
        work: what is drawn; it is numbered in blocks of one chunk, caption by caption
        numbers: of the blocks to draw, ascending, those beyond the last are ignored; null draws all
        progress: told each slot of a chunk that was drawn
    """
    chunks = Chunks(source, work.sampling, progress)
    width = chunks.width  # of the blocks, whatever becomes of that of the chunks
    if work.sampling.chunk is None and 4 * work.n <= width:
        told = f"{width} candidates are drawn together, {work.n} are asked for: sampling.chunk {work.n} is quicker"
        warn(f"{told}, though it draws other pictures")
    blocks = math.ceil(work.n / width)
    current = None
    for number in itertools.count() if numbers is None else numbers:
        caption, block = divmod(number, blocks)
        if caption >= len(work.captions):
            return
        if caption != current:
            current, best = caption, Best(work.shortlist or work.keep)
            reading = source.read([work.captions[caption]], as_codes=work.shortlist is not None)
            seed = work.seed if work.seeds is None else work.seeds[caption]
        candidates = range(block * width, min(work.n, (block + 1) * width))
        for chunk in chunks.draw(reading, candidates, seed, work.prompt):
            part = chunk.part(0)
            yield Part(caption, part.fingerprints, best.add(part.drawings))
