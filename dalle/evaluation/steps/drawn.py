"""Candidates of every caption, drawn once: all scores are kept, and of the images those that are the best of the first
1, 2, 4, … candidates, so that one set gives the whole curve over N.

`samples/00000/` holds, beside what GenEval's layout has, `candidates.json` and `best/`, the images of the curve. A caption
whose `candidates.json` is there is not drawn again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dalle.config import plain_json
from dalle.data.shapes import Claim, read, shows
from dalle.evaluation.compositional.skills import SKILLS, is_right
from dalle.evaluation.layout import Prompted, prompt_folder, sample_path, write_prompt
from dalle.outputs.whole import replace_text
from dalle.sampling.candidates import Best, Part, Work
from dalle.sampling.drawing import Drawing, save_drawing

SAMPLES = "samples"
"""Folder of all captions, in that of the evaluation."""
_FILE = "candidates.json"


@dataclass(frozen=True)
class Candidates:
    """All candidates of a caption that differ, the first of equal ones standing for them; in the order of their seeds.

    Args:
        drawn: how many, equal ones counted
        numbers: from 0, of those that differ
        times: how often each was drawn
        scores: the reranker's; null without one
        right: whether each shows its caption, where that is one of the drawn data; null elsewhere
    """

    drawn: int
    numbers: list[int]
    times: list[int]
    scores: list[float] | None
    right: list[bool] | None

    def best_of(self, n: int) -> int:
        """The number of the best of the first n candidates: by score, and of equal ones the first."""
        among = [place for place, number in enumerate(self.numbers) if number < n]
        if self.scores is None:
            return self.numbers[among[0]]
        scores = self.scores
        return self.numbers[max(among, key=lambda place: (scores[place], -place))]

    def is_right(self, number: int) -> bool | None:
        return None if self.right is None else self.right[self.numbers.index(number)]


def curve_of(n: int) -> list[int]:
    """The numbers of candidates that the curve has: powers of two, and n itself."""
    return sorted({2**power for power in range(n.bit_length()) if 2**power <= n} | {n})


def seed_of(seed: int, number: int, n: int) -> int:
    """Of a caption's first candidate. No two captions share a seed: with the same random numbers for all, their images would
    have in common what no caption says, and a set of them would be less varied than the model is."""
    return seed + number * n


def draw_all(
    draw: Callable[[Work], Iterator[Part]],
    prompted: Sequence[Prompted],
    work: Work,
    keep: int,
    folder: Path,
    progress: Callable[[int], None],
) -> None:
    """Draw what is not there yet.

    Args:
        draw: draws, from `drawing_with`
        prompted: number, caption and what else is known of it
        work: what is drawn of each, without its captions
        keep: images of each that are written, the best first
        folder: of the samples
        progress: told how many candidates were drawn, or found to be there
    """
    todo = [each for each in prompted if not _is_whole(folder, each, work.n, keep)]
    progress(work.n * (len(prompted) - len(todo)))
    if not todo:
        return
    seeds = tuple(seed_of(work.seed, each.number, work.n) for each in todo)
    best: dict[int, Best] = {}
    drawn: dict[int, int] = {}
    # with keep = n none that differs is dropped
    for part in draw(replace(work, captions=tuple(each.prompt for each in todo), seeds=seeds, keep=work.n)):
        best.setdefault(part.caption, Best(work.n)).take(part)
        drawn[part.caption] = drawn.get(part.caption, 0) + part.drawn
        progress(part.drawn)
        if drawn[part.caption] == work.n:
            ranked = best.pop(part.caption).ranked()
            _write(todo[part.caption], ranked, work.n, seeds[part.caption], keep, folder)


def read_candidates(folder: Path, number: int) -> Candidates | None:
    """What was drawn for a caption; null where this is not known, as of images from elsewhere.

    Raises:
        ValueError: the file is damaged
    """
    path = _path(folder, number)
    if not path.is_file():
        return None
    try:
        found = plain_json.made(Candidates, plain_json.read(path), str(path))
        sound = (
            found.numbers[0] == 0 and sum(found.times) == found.drawn and sorted(set(found.numbers)) == found.numbers
        )
        lists = [each for each in (found.times, found.scores, found.right) if each is not None]
        sound = sound and all(len(each) == len(found.numbers) for each in lists)
    except (ValueError, TypeError, IndexError):
        sound = False
    if not sound:
        raise ValueError(f"{path}: is damaged: delete it, and its caption is drawn again")
    return found


def best_path(folder: Path, number: int, candidate: int) -> Path:
    """Where an image of the curve lies."""
    return prompt_folder(folder, number) / "best" / f"{candidate:04}.png"


def _is_whole(folder: Path, prompted: Prompted, n: int, keep: int) -> bool:
    """Whether all that is written of a caption is there."""
    try:
        found = read_candidates(folder, prompted.number)
    except ValueError:
        return False
    if found is None or found.drawn != n:
        return False
    paths = [sample_path(folder, prompted.number, place) for place in range(min(keep, n))]
    if found.scores is not None:
        paths += [best_path(folder, prompted.number, found.best_of(size)) for size in curve_of(n)]
    return all(path.is_file() for path in paths)


def _path(folder: Path, number: int) -> Path:
    return prompt_folder(folder, number) / _FILE


def _write(prompted: Prompted, ranked: list[Drawing], n: int, seed: int, keep: int, folder: Path) -> None:
    by_seed = sorted(ranked, key=lambda drawing: drawing.seed)
    scores = [drawing.score for drawing in by_seed if drawing.score is not None]
    assert len(scores) in (0, len(by_seed)), "all are ranked, or none"
    candidates = Candidates(
        drawn=n,
        numbers=[drawing.seed - seed for drawing in by_seed],
        times=[drawing.times for drawing in by_seed],
        scores=scores or None,
        right=_right(prompted, by_seed),
    )
    write_prompt(folder, prompted.number, prompted.metadata)
    # equal ones as often as they came, or a measure would take the model for more varied than it is
    repeated = itertools.chain.from_iterable(itertools.repeat(drawing, drawing.times) for drawing in ranked)
    for place, drawing in enumerate(itertools.islice(repeated, keep)):
        save_drawing(drawing, sample_path(folder, prompted.number, place))
    if candidates.scores is not None:
        on_curve = {candidates.best_of(size) for size in curve_of(n)}
        for number, drawing in zip(candidates.numbers, by_seed, strict=True):
            if number in on_curve:
                save_drawing(drawing, best_path(folder, prompted.number, number))
    # last: with it the caption is done
    replace_text(_path(folder, prompted.number), json.dumps(vars(candidates)))


def _right(prompted: Prompted, drawings: list[Drawing]) -> list[bool] | None:
    """What the checker sees in each: what the caption claims, or of a caption for one of GenEval's skills that alone."""
    metadata = prompted.metadata
    if not metadata.get("scene"):
        return None
    if metadata.get("tag") in SKILLS and "include" in metadata:
        return [is_right(read(drawing.picture), metadata) for drawing in drawings]
    claim = Claim.from_json(metadata["scene"])
    return [bool(shows(drawing.picture, claim)) for drawing in drawings]
