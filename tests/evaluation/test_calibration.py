"""Calibration against counts by hand, and known answers."""

import json

import numpy as np
import pytest

from dalle.evaluation.calibration import calibration, section


def _drawn(captions: int, candidates: int, seed: int = 0):
    """Scores and whether they are right: with a probability of 1 / (1 + exp(2 − 8 score)), captions of other ease."""
    generator = np.random.default_rng(seed)
    scores = [generator.normal(0.3 + generator.normal(0, 0.1), 0.1, candidates) for _ in range(captions)]
    right = [generator.random(candidates) < 1 / (1 + np.exp(2 - 8 * s)) for s in scores]
    return scores, right


def _auc_by_hand(pairs) -> float:
    """Pair by pair."""
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]
    return sum(won) / len(won)


def test_areas_are_counts_of_pairs():
    scores, right = _drawn(12, 7)
    scores = [s.round(1) for s in scores]  # with ties
    right[3][:], right[4][:] = True, False  # of which no pair tells anything within the caption
    found = calibration(scores, right)
    every = [(s, bool(r)) for part in zip(scores, right, strict=True) for s, r in zip(*part, strict=True)]
    assert found.auc == pytest.approx(_auc_by_hand([(a, b) for a, p in every for b, q in every if p and not q]))
    within = [
        (a, b)
        for s, r in zip(scores, right, strict=True)
        for a, p in zip(s, r, strict=True)
        for b, q in zip(s, r, strict=True)
        if p and not q
    ]
    assert found.auc_within_captions == pytest.approx(_auc_by_hand(within))
    assert found.auc != pytest.approx(found.auc_within_captions, abs=1e-3)
    assert (found.pairs_within_captions, found.captions, found.candidates) == (len(within), 12, 84)
    assert found.share_right == pytest.approx(np.concatenate(right).mean())


def test_a_score_of_the_captions_ease_alone_is_worth_nothing_within_them():
    """What a reranker must not be praised for: knowing which captions are easy."""
    scores = [np.full(4, 0.1 * i) for i in range(6)]
    right = [np.arange(4) < (4 if i > 4 else i // 2 + 1) for i in range(6)]
    found = calibration(scores, right)
    assert found.auc > 0.65 and found.auc_within_captions == 0.5


def test_bins_hold_as_many_candidates_each_and_are_sorted():
    scores, right = _drawn(9, 5)
    found = calibration(scores, right, bins=4)
    every = sorted(zip(np.concatenate(scores), np.concatenate(right), strict=True))
    sizes = [12, 11, 11, 11]
    for k, size in enumerate(sizes):
        part = every[sum(sizes[:k]) :][:size]
        assert found.score_K[k] == pytest.approx(np.mean([s for s, _ in part]))
        assert found.right_K[k] == pytest.approx(np.mean([r for _, r in part]))


def test_the_logistic_fit_finds_the_law_that_was_drawn_from():
    """Of 40,000 draws; the fit's slope is then known to about 1%, its probabilities to less, and the share of a bin of 4,000 has
    a standard deviation of 0.008."""
    scores, right = _drawn(800, 50)
    found = calibration(scores, right)
    law = 1 / (1 + np.exp(2 - 8 * np.concatenate(scores)))
    order = np.array_split(np.argsort(np.concatenate(scores), kind="stable"), 10)
    assert found.predicted_K == pytest.approx([law[part].mean() for part in order], abs=0.01)
    assert found.predicted_K == pytest.approx(found.right_K, abs=0.03)
    assert found.expected_error < 0.012


def test_the_error_is_that_of_other_captions():
    """Two kinds of captions that take turns, of opposite meaning of the score: a fit that is asked about captions it has seen
    would be half wrong on both; here each fold has one kind, and the fit to the other is all wrong about it."""
    scores = [np.linspace(0, 1, 50)] * 2
    right = [scores[0] > 0.5, scores[0] < 0.5]
    assert calibration(scores, right).expected_error > 0.9
    assert calibration(scores, [right[0]] * 2).expected_error < 0.01
    assert calibration(scores[:1], right[:1]).expected_error is None


def test_expected_error_by_hand():
    """Fits of two captions, each to the other, of two scores: the fit gives the shares that are right there."""
    scores = [np.array([0.0] * 4 + [1.0] * 4)] * 2
    right = [np.array([1, 0, 0, 0, 1, 1, 0, 0], bool), np.array([1, 1, 0, 0, 1, 1, 1, 0], bool)]
    # of caption 0 predicted 1/2 and 3/4, of caption 1 predicted 1/4 and 1/2. In order: 1/4, 1/2, 1/2, 3/4, four of each
    assert calibration(scores, right, bins=4).expected_error == pytest.approx(
        (1 / 4 + 1 / 4 + 1 / 4 + 1 / 4) / 4, abs=1e-4
    )


@pytest.mark.parametrize("kind", [True, False])
def test_where_all_are_right_or_none_is_nothing_can_be_told(kind):
    found = calibration([np.arange(3.0)], [np.full(3, kind)])
    assert (found.auc, found.auc_within_captions, found.expected_error, found.predicted_K) == (None,) * 4
    (note,) = section(found).notes
    assert ("right" if kind else "wrong") in note


def test_bad_input_is_said():
    with pytest.raises(ValueError, match="there are none"):
        calibration([], [])
    with pytest.raises(ValueError, match="score nan: not finite"):
        calibration([np.array([0.1, np.nan])], [np.array([True, False])])


def test_the_section_has_curve_table_and_figures_for_machines():
    found = calibration(*_drawn(20, 8))
    shown = section(found)
    assert shown.key == "calibration" and not shown.notes
    assert json.loads(json.dumps(shown.figures))["auc_within_captions"] == found.auc_within_captions
    page = shown.html()
    assert "<svg" in page and f"{found.auc_within_captions:.4g}" in page and "160 candidates of 20 captions" in page
