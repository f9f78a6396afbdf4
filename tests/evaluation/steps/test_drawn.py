"""Candidates that are drawn once: what is kept of them, beside plain loops over all."""

import json

import numpy as np
import pytest
from PIL import Image

from dalle.config import Sampling
from dalle.data.shapes import Claim, ClaimedObject, SceneObject, draw
from dalle.data.shapes.scene import Scene
from dalle.evaluation.layout import Prompted, read_layout
from dalle.evaluation.steps.drawn import Candidates, best_path, curve_of, draw_all, read_candidates, seed_of
from dalle.evaluation.steps.ranking import accuracy_over_n, tapers_at, winners
from dalle.sampling.candidates import Part, Work
from dalle.sampling.drawing import Drawing, fingerprint, read_drawing

CODES = [[3, 1, 3, 2, 1, 5], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]]
SCORES = [[0.2, 0.5, 0.2, 0.9, 0.5, 0.9], [0.1] * 6, [0.0, -0.5, 0.3, 0.3, 0.2, 0.8]]
"""Equal codes have equal scores; the first caption's best, 0.9, comes twice with other codes."""
N = 6
WORK = Work((), N, N, 100, Sampling())


def _red_circle(colour="red") -> Image.Image:
    thing = SceneObject("circle", colour, "large", False, 0.5, 0.5, 0.5)
    return Image.fromarray(np.asarray(draw(Scene((thing,), "alone", "centre", False, "white"), 32)))


RIGHT = [[0, 1, 0, 1, 1, 0], [1] * 6, [0, 0, 0, 1, 0, 1]]
CLAIM = Claim((ClaimedObject("circle", "red"),))
PROMPTED = [
    Prompted(number, f"caption {number}", {"prompt": f"caption {number}", "scene": CLAIM.to_json()}, ())
    for number in range(3)
]


class _Source:
    """Draws in chunks of two, and counts what it drew. stop_after: parts after which it is interrupted."""

    def __init__(self, scored=True, stop_after=None):
        self.scored, self.stop_after, self.works = scored, stop_after, []

    def __call__(self, work):
        self.works.append(work)
        told = 0
        for place, caption in enumerate(work.captions):
            number = int(caption.split()[1])
            assert work.seeds[place] == seed_of(100, number, N)
            for first in range(0, N, 2):
                if told == self.stop_after:
                    raise KeyboardInterrupt
                drawings = [self._drawing(number, i, work.seeds[place]) for i in (first, first + 1)]
                yield Part(place, [fingerprint(d.codes_I) for d in drawings], drawings)
                told += 1

    def _drawing(self, number, i, seed):
        image = _red_circle("red" if RIGHT[number][i] else "blue")
        score = SCORES[number][i] if self.scored else None
        return Drawing(image, f"caption {number}", score, seed + i, 0, {}, np.array([CODES[number][i]]))


def _drawn(folder, source, keep=2):
    told = []
    draw_all(source, PROMPTED, WORK, keep, folder, told.append)
    return told


def test_seeds_of_captions_do_not_overlap():
    seeds = [seed_of(7, number, N) + i for number in range(50) for i in range(N)]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == 7


def test_the_curve_is_powers_of_two_and_the_end():
    assert curve_of(1) == [1]
    assert curve_of(6) == [1, 2, 4, 6]
    assert curve_of(512) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def test_the_best_of_the_first_n_is_that_of_a_plain_loop(tmp_path):
    assert sum(_drawn(tmp_path, _Source())) == 3 * N
    for number in range(3):
        found = read_candidates(tmp_path, number)
        assert found.drawn == N and sum(found.times) == N
        for n in curve_of(N):
            best = max(range(n), key=lambda i: (SCORES[number][i], -i))
            assert found.best_of(n) == best
            drawing = read_drawing(best_path(tmp_path, number, best))
            assert drawing.seed == seed_of(100, number, N) + best
            assert found.is_right(best) == bool(RIGHT[number][best])


def test_equal_drawings_count_as_often_as_they_came(tmp_path):
    _drawn(tmp_path, _Source())
    assert read_candidates(tmp_path, 1).numbers == [0] and read_candidates(tmp_path, 1).times == [N]
    assert read_candidates(tmp_path, 0).numbers == [0, 1, 3, 5]
    assert read_candidates(tmp_path, 0).times == [2, 2, 1, 1]


def test_what_is_written_is_the_layout_with_the_best_first(tmp_path):
    _drawn(tmp_path, _Source())
    (tmp_path / "request.json").write_text("{}")  # which an evaluation has there
    read = read_layout(tmp_path)
    assert [each.prompt for each in read] == ["caption 0", "caption 1", "caption 2"]
    assert [len(each.samples) for each in read] == [2, 2, 2]
    assert len({path.read_bytes() for path in read[1].samples}) == 1  # of a caption whose candidates are all equal
    assert [read_drawing(path).score for path in read[2].samples] == [0.8, 0.3]


def test_an_interrupted_drawing_goes_on_with_the_next_caption(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _drawn(tmp_path, _Source(stop_after=4))  # the second caption is half done
    assert read_candidates(tmp_path, 0) and not read_candidates(tmp_path, 1)
    source = _Source()
    assert sum(_drawn(tmp_path, source)) == 3 * N
    assert source.works[0].captions == ("caption 1", "caption 2")
    whole = tmp_path / "whole"
    _drawn(whole, _Source())
    for number in range(3):
        assert read_candidates(whole, number) == read_candidates(tmp_path, number)
    again = _Source()
    _drawn(tmp_path, again)
    assert again.works == []


@pytest.mark.parametrize("lost", ["samples/0001.png", "best/0005.png", "candidates.json"])
def test_what_was_lost_of_a_caption_is_drawn_anew(lost, tmp_path):
    _drawn(tmp_path, _Source())
    whole = {path: path.read_bytes() for path in (tmp_path / "00002").rglob("*") if path.is_file()}
    (tmp_path / "00002" / lost).unlink()
    source = _Source()
    _drawn(tmp_path, source)
    assert source.works[0].captions == ("caption 2",)
    assert {path: path.read_bytes() for path in (tmp_path / "00002").rglob("*") if path.is_file()} == whole


def test_without_a_reranker_the_first_counts_and_there_is_no_curve(tmp_path):
    _drawn(tmp_path, _Source(scored=False), keep=3)
    found = read_candidates(tmp_path, 0)
    assert found.scores is None and found.best_of(4) == 0
    assert not (tmp_path / "00000" / "best").exists()
    assert [read_drawing(p).seed - 100 for p in read_layout(tmp_path)[0].samples] == [0, 0, 1]  # code 3 came twice


def test_a_damaged_file_is_named(tmp_path):
    _drawn(tmp_path, _Source())
    path = tmp_path / "00001" / "candidates.json"
    sound = json.loads(path.read_text())
    lacking = {**sound, "numbers": [1, *sound["numbers"][1:]]}
    shorter = {**sound, "scores": []}
    for damaged in ("", "{}", json.dumps([1]), json.dumps(lacking), json.dumps(shorter)):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"00001.candidates\.json: is damaged"):
            read_candidates(tmp_path, 1)


def test_accuracy_over_n_is_that_of_a_plain_loop(tmp_path):
    _drawn(tmp_path, _Source())
    found = accuracy_over_n([read_candidates(tmp_path, number) for number in range(3)], N)
    for n in curve_of(N):
        best = [max(range(n), key=lambda i, s=scores: (s[i], -i)) for scores in SCORES]
        assert found["reranked"][n] == pytest.approx(np.mean([r[b] for r, b in zip(RIGHT, best, strict=True)]))
        assert found["any_right"][n] == pytest.approx(np.mean([any(r[:n]) for r in RIGHT]))
    # equal codes are one picture, judged once: that of the first
    one = [[RIGHT[c][CODES[c].index(code)] for code in CODES[c]] for c in range(3)]
    assert found["unranked"] == {1: pytest.approx(np.mean(one))}


def test_winners_are_files_that_are_there(tmp_path):
    _drawn(tmp_path, _Source())
    candidates = [read_candidates(tmp_path, number) for number in range(3)]
    for n in curve_of(N):
        assert all(path.is_file() for path in winners(PROMPTED, candidates, tmp_path, n))


@pytest.mark.parametrize(
    ("values", "least", "where"),
    [
        ({1: 0.5, 2: 0.8, 4: 0.9, 8: 0.9, 16: 0.9}, False, 4),
        ({1: 0.5, 2: 0.8, 4: 0.85, 8: 0.9}, False, 8),
        ({1: 60.0, 2: 40.0, 4: 39.9, 8: 39.95}, True, 2),
        ({1: 0.5, 2: 0.5}, False, 1),
    ],
)
def test_where_a_curve_tapers(values, least, where):
    assert tapers_at(values, least) == where


def test_candidates_know_the_first_of_equal_scores():
    found = Candidates(4, [0, 1, 3], [1, 2, 1], [0.5, 0.5, 0.5], None)
    assert found.best_of(4) == 0 and found.is_right(0) is None
