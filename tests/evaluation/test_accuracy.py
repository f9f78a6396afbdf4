"""Caption accuracy, with a stand-in for the pipeline whose candidates are known to be right or wrong."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from dalle.data.shapes import write_shards
from dalle.evaluation import accuracy
from dalle.sampling.candidates import Candidates

RIGHT = [[False, True, False], [True, False, False], [False, False, False], [False, True, True], [True, True, True]]
# another best in each row
SCORES = [[0.1, 0.9, 0.5], [0.2, 0.9, 0.3], [0.9, 0.1, 0.2], [0.1, 0.2, 0.9], [0.5, 0.5, 0.5]]
CODES = [[1, 2, 3], [1, 2, 3], [4, 4, 5], [6, 7, 7], [8, 8, 8]]  # some came twice or three times


@dataclass
class _Pipeline:
    """Draws the pair's own image where `RIGHT` says so, and nothing at all elsewhere."""

    pairs: list
    dvae = SimpleNamespace(config=SimpleNamespace(image_size_px=32))

    def candidates(self, captions, n, seed, sampling):
        place = {pair.captions[0]: i for i, pair in enumerate(self.pairs)}
        rows = [place[caption] for caption in captions]
        blank = np.full((32, 32, 3), 240, np.uint8)
        images = np.array([[self.pairs[row].image if RIGHT[row][i] else blank for i in range(n)] for row in rows])
        seeds = np.tile(np.arange(seed, seed + n), (len(rows), 1))
        scores = np.array([SCORES[row] for row in rows], np.float32)
        all_codes = np.array([CODES[row] for row in rows])[..., None]
        for part in (slice(0, 2), slice(2, n)):  # chunk by chunk
            settings = {"chunk": sampling.chunk, "first": part.start}
            arrays = (array[:, part] for array in (images, all_codes, seeds, scores))
            yield Candidates(captions, *arrays, settings)

    def reconstruct(self, images_BYX3, precision):
        return images_BYX3


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawings")
    write_shards(folder, 0, 30, size_px=32)
    return f"{folder}/valid-*.tar"


def test_shares_are_those_of_the_candidates(shards):
    pairs = accuracy.distinct(shards, 32, len(RIGHT))
    judgements = list(accuracy.judge(_Pipeline(pairs), pairs, candidates=3, seed=7, keep=2))
    assert dict(accuracy.figures(judgements)) == pytest.approx(
        {
            "reranked": 3 / 5,
            "unranked": 2 / 5,
            "candidates": 7 / 15,
            "any_right": 4 / 5,
            "reconstructed": 1.0,
            "real": 1.0,
        }
    )
    best, second = judgements[0].drawings
    assert (best.seed, best.rank, second.seed, second.rank) == (8, 1, 9, 2)
    assert best.score == pytest.approx(0.9)
    assert np.array_equal(np.asarray(best.image), pairs[0].image)
    kept = [[(d.seed, d.rank, d.times) for d in judgement.drawings] for judgement in judgements[1:]]
    assert kept == [[(8, 1, 1), (9, 2, 1)], [(7, 1, 2), (9, 2, 1)], [(9, 1, 2), (7, 2, 1)], [(7, 1, 3)]]
    assert np.array_equal([judgement.scores_N for judgement in judgements], np.float32(SCORES))
    assert np.array_equal([judgement.right_N for judgement in judgements], RIGHT)
    assert best.settings == {"chunk": 3, "first": 0, "place": 1}
    assert second.settings == {"chunk": 3, "first": 2, "place": 0}


def test_captions_are_distinct_and_enough(shards):
    assert len({pair.captions[0] for pair in accuracy.distinct(shards, 32, 20)}) == 20
    with pytest.raises(ValueError, match="captions 1000"):
        accuracy.distinct(shards, 32, 1000)
