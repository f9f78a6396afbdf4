"""Figures over N from candidates whose scores and rightness are given."""

from __future__ import annotations

import pytest

from dalle.evaluation.steps.drawn import Candidates
from dalle.evaluation.steps.ranking import accuracy_over_n, tapers_at

# of four candidates the second came twice; the reranker prefers the wrong last one
ONE = Candidates(4, [0, 1, 3], [1, 2, 1], [0.1, 0.5, 0.9], [False, True, False])
OTHER = Candidates(4, [0, 1, 2, 3], [1, 1, 1, 1], [0.4, 0.3, 0.2, 0.1], [True, False, False, False])


def test_shares_over_n_are_of_the_first_n_candidates_equal_ones_counted():
    found = accuracy_over_n([ONE, OTHER], 4)
    assert found["reranked"] == {1: 0.5, 2: 1.0, 4: 0.5}
    assert found["any_right"] == {1: 0.5, 2: 1.0, 4: 1.0}
    assert found["unranked"] == {1: pytest.approx((2 / 4 + 1 / 4) / 2)}


@pytest.mark.parametrize(
    ("values", "least", "at"),
    [
        ({1: 0.0, 2: 0.985, 4: 0.995, 8: 1.0}, False, 4),
        ({1: 20.0, 2: 11.0, 4: 10.05, 8: 10.0}, True, 4),
        ({1: 0.5, 2: 0.5}, False, 1),
    ],
)
def test_a_curve_tapers_where_hardly_anything_is_left_to_gain(values, least, at):
    assert tapers_at(values, least) == at
