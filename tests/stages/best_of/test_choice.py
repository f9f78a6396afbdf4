"""Which captions are drawn for, and which of their candidates are kept."""

import json

import numpy as np
import pytest

from dalle.config import BestOf, Images
from dalle.data.samples import read_pairs
from dalle.data.shapes import Claim
from dalle.data.tokens import Meta, TokenShards, TokenWriter
from dalle.stages.best_of.judging import Judged, keep_best
from dalle.stages.best_of.prompts import choose_captions, claims, first_seed
from dalle.stages.best_of.results import agreement, entropy_bits, statistics


def _shards(folder, captions: list[list[str]]) -> TokenShards:
    with TokenWriter(folder, Meta(grid=2, codebook_size=9, dvae_hash="abc"), pairs_per_shard=4) as writer:
        for each in captions:
            writer.add(np.zeros(4), each)
        writer.close()
    return TokenShards(folder)


def test_captions_of_a_pair_come_in_rotation(tmp_path):
    shards = _shards(tmp_path, [[f"{pair} {i}" for i in range(3)] for pair in range(10)])
    chosen = choose_captions(shards, 30, seed=4)
    assert len(set(chosen)) == 30, "in three epochs each of three captions once"
    for epoch in range(3):
        assert {caption.split()[0] for caption in chosen[10 * epoch : 10 * epoch + 10]} == {str(i) for i in range(10)}
    assert {caption.split()[1] for caption in chosen[:10]} != {"0"}, "not the first caption of each"
    assert choose_captions(shards, 13, seed=4) == chosen[:13] != choose_captions(shards, 13, seed=5)


def test_pairs_without_a_caption_are_passed_over(tmp_path):
    shards = _shards(tmp_path / "some", [[""], ["a"], ["  "], ["b", ""]])
    assert sorted(choose_captions(shards, 4, seed=0)) == ["a", "a", "b", "b"]
    with pytest.raises(ValueError, match=r"no pair of .* has a caption"):
        choose_captions(_shards(tmp_path / "none", [[""], [" "]]), 1, seed=0)


def test_no_two_candidates_share_a_seed():
    seeds = [first_seed(seed, number, 5) + i for seed in (0, 1, 2) for number in range(7) for i in range(5)]
    assert len(set(seeds)) == len(seeds)
    largest = BestOf(model="x", seed=2**24 - 1)
    assert first_seed(largest.seed, 10**9, 200) + 200 < 2**62


def test_claims_are_those_of_the_captions_scenes(shapes_folder):
    spec = f"{shapes_folder}/train-*.tar"
    pairs = list(read_pairs(spec, Images(augmentation="none"), 32))
    captions = [pair.captions[-1] for pair in pairs[::-3]]
    assert claims(spec, captions) == [Claim.from_json(pair.scene) for pair in pairs[::-3]]
    with pytest.raises(ValueError, match="says nothing of 1 of 2 captions, such as 'a cat'"):
        claims(spec, [captions[0], "a cat"])


def _brute_force(judged: Judged, keep: int, least: float) -> list[tuple[int, int]]:
    """By repeated search for the best that is left."""
    kept = []
    for caption in range(len(judged.scores_CN)):
        left = dict(enumerate(judged.scores_CN[caption].tolist()))
        for _ in range(keep):
            left = {i: score for i, score in left.items() if score >= least}
            if not left:
                break
            best = max(left, key=lambda i: (left[i], -i))
            kept.append((caption, best))
            codes = judged.codes_CNI[caption].tolist()
            left = {i: score for i, score in left.items() if codes[i] != codes[best]}
    return kept


@pytest.mark.parametrize(("keep", "threshold"), [(1, None), (3, None), (3, 0.5), (12, 0.2)])
def test_the_best_that_differ_are_kept(keep, threshold):
    rng = np.random.default_rng(keep)
    # few codes and few scores: many are equal
    judged = Judged(
        rng.integers(0, 2, (20, 12, 3)).astype(np.uint16), (rng.integers(0, 5, (20, 12)) / 4).astype(np.float32)
    )
    best_of = BestOf(model="x", candidates=12, keep=keep, threshold=threshold)
    found = keep_best(judged, best_of)
    assert found == _brute_force(judged, keep, -1.0 if threshold is None else threshold)
    assert threshold is None or len(found) < 20 * keep


def test_of_what_the_checker_accepts_the_first_is_kept_and_nothing_else():
    scores_CN = np.array([[0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1]], np.float32)
    codes_CNI = np.arange(24).reshape(3, 4, 2).astype(np.uint16)
    best_of = BestOf(model="x", candidates=4, keep=2, judge="checker", scenes="x.tar")
    assert keep_best(Judged(codes_CNI, scores_CN), best_of) == [(0, 1), (0, 2), (2, 0), (2, 3)]


def test_agreement_is_over_all_pairs_of_candidates():
    rng = np.random.default_rng(0)
    codes_NI = rng.integers(0, 3, (7, 5))
    pairs = [(i, j) for i in range(7) for j in range(i)]
    expected = np.mean([codes_NI[i] == codes_NI[j] for i, j in pairs])
    assert agreement(codes_NI) == pytest.approx(expected)
    assert agreement(np.ones((4, 5), int)) == 1 and agreement(codes_NI[:1]) == 0


def test_shown_are_the_best_kept_beside_the_worst_where_there_is_a_worse_one():
    scores_CN = np.full((30, 4), 0.5, np.float32)
    scores_CN[::2] = [0.4, 0.7, 0.1, 0.9]  # captions of odd numbers have only equally good ones
    scores_CN[4] = [0.1, 0.2, 0.2, 0.2]  # of this one nothing is good enough
    codes_CNI = np.arange(30 * 4 * 2).reshape(30, 4, 2).astype(np.uint16)
    judged = Judged(codes_CNI, scores_CN)
    kept = keep_best(judged, BestOf(model="x", candidates=4, keep=2, threshold=0.3))
    found = statistics([f"caption {i}" for i in range(30)], judged, kept)
    numbers = [0, 2, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24]
    assert json.loads(found["shown_utf8"].tobytes()) == [f"caption {i}" for i in numbers]
    assert np.array_equal(found["shown_S2I"], codes_CNI[numbers][:, [3, 2]])
    assert np.allclose(found["shown_scores_S2"], [[0.9, 0.1]] * 12)
    assert found["kept_K2"].tolist() == [list(each) for each in kept]
    assert (found["differing_C"] == 4).all() and len(found["agreement_C"]) == 30
    counts = np.bincount([c for i, n in kept for c in codes_CNI[i, n]], minlength=240)
    assert np.array_equal(found["code_counts_2V"], [np.ones(240), counts])
    none = statistics(["a"], Judged(codes_CNI[1:2], scores_CN[1:2]), [(0, 0)])
    assert none["shown_S2I"].shape == (0, 2, 2) and none["shown_utf8"].tobytes() == b"[]"


def test_entropy_is_in_bits():
    assert entropy_bits(np.array([4, 0, 4, 4, 4])) == 2
    assert entropy_bits(np.array([9, 0])) == 0
    assert entropy_bits(np.array([3, 1])) == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"keep": 33}, "best_of.keep 33"),
        ({"share": 0.0}, "best_of.share 0.0"),
        ({"share": 1.1}, "best_of.share 1.1"),
        ({"captions": 0}, "captions 0"),
        ({"seed": 2**24}, "best_of.seed"),
        ({"judge": "checker"}, "best_of.scenes None"),
        ({"scenes": "x.tar"}, "best_of.scenes x.tar with best_of.judge clip"),
        ({"judge": "checker", "scenes": "x.tar", "threshold": 0.5}, "best_of.threshold 0.5"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(settings, told):
    with pytest.raises(ValueError, match=told):
        BestOf(model="x", **settings)
