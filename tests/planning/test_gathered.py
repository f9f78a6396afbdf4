"""Which gathered weights are there, by DeepSpeed's rule; `test_held.py` counts them in trainings small enough that all are."""

from itertools import pairwise

import pytest

from dalle.planning.gathered import at_the_turn, at_work, bucket_elements
from dalle.training import deepspeed_adapter
from tests.planning.small import MODEL, layout

HEADS = (40 + 24) * 65 + 2 * 64
MLP, ATTENTION = 8 * 64**2 + (4 + 1 + 2) * 64, 4 * 64**2 + (3 + 1 + 2) * 64
MLP_BYTES, ATTENTION_BYTES = 4 * MLP, 4 * ATTENTION


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (1, 4 * HEADS),
        (2 * HEADS, 4 * HEADS),
        (2 * HEADS + 1, 4 * HEADS + MLP_BYTES),
        (2 * (HEADS + MLP) + 1, 4 * HEADS + MLP_BYTES + ATTENTION_BYTES),
        (2 * (HEADS + MLP + ATTENTION) + 1, 4 * HEADS + 2 * MLP_BYTES + ATTENTION_BYTES),
    ],
)
def test_what_comes_again_within_the_distance_stays(distance, expected, monkeypatch):
    """There and back, from the last; fp32, in which DeepSpeed holds what it gathered in 16 bits."""
    monkeypatch.setattr(deepspeed_adapter, "_KEPT_GATHERED", distance)
    assert at_the_turn(layout(1, 2, zero_stage=3)) == expected


def test_of_those_at_the_turn_what_has_been_used_again_goes():
    found = layout(1, 2, zero_stage=3)
    least = [at_the_turn(found, ended) for ended in range(7)]
    assert [before - after for before, after in pairwise(least)][:5] == [
        4 * HEADS,
        MLP_BYTES,
        ATTENTION_BYTES,
        MLP_BYTES,
        ATTENTION_BYTES,
    ]
    assert least[6] == 0


def test_elsewhere_two_resblocks_are():
    found = layout(2, 2, zero_stage=3)
    assert at_work(found) == 2 * 4 * MLP
    assert at_work(layout(2, 2, zero_stage=3, precision="fp32")) == 2 * 4 * MLP
    assert at_work(layout(2, 2, zero_stage=3, weights="16-bit")) == 2 * (4 * MLP - 2 * 8 * 64**2)
    assert bucket_elements(found) == MLP
    assert at_work(layout(2, 2)) == at_the_turn(layout(2, 2)) == bucket_elements(layout(2, 2)) == 0
    assert MODEL.depth == 2
