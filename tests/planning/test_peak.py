"""The most that comes and goes in an update, beside sums by hand over its moments."""

import pytest

from dalle.planning.exchanged import Exchanged, exchanged
from dalle.planning.gathered import at_the_turn, at_work, gradients_at_work, sub_groups
from dalle.planning.plan import Machines, Planned
from tests.planning.small import MODEL, layout

MANY = 10**12


@pytest.mark.parametrize(
    ("ended", "layers", "works"),
    [(0, 2, True), (1, 2, True), (2, 2, True), (3, 1, True), (4, 1, True), (5, 0, True), (6, 0, False)],
)
def test_layers_are_freed_one_after_the_other_while_machines_exchange(ended, layers, works):
    """Of two layers: none is when the heads have ended, or the last layer's MLP; one when its attention has."""
    assert MODEL.depth == 2
    found = layout(2, 2, rank=8, zero_stage=3, recompute=True)
    planned = Planned(
        found, Machines.measured(1e12, 16e9), Exchanged((), 0, 0, tuple(MANY * (e == ended) for e in range(7)), 0)
    )
    kept = planned.activations(True)
    gathered = max(at_work(found), at_the_turn(found, ended))
    work = (kept.layer if ended else max(kept.layer, kept.heads)) + gathered + gradients_at_work(found)
    assert planned.comes_and_goes(True) == MANY + layers * kept.layers // 2 + works * work


def test_below_stage_3_machines_exchange_when_all_has_been_freed():
    found = layout(2, 2, rank=8, zero_stage=0)
    planned = Planned(found, Machines.measured(1e12, 16e9), Exchanged((), 0, 0, (0, 0, 0, 0, 0, 0, MANY), 0))
    assert planned.comes_and_goes(False) == MANY


def test_without_an_exchange_it_is_at_the_turn():
    found = layout(1, 2, zero_stage=3)
    planned = Planned(found, Machines.measured(1e12, 16e9), Exchanged((), 0, 0, (), 0))
    assert planned.comes_and_goes(False) == planned.activations(False).peak + at_the_turn(found)


def test_in_the_update_gradients_are_laid_end_to_end_sub_group_by_sub_group(monkeypatch):
    """In fp32, and once more in 16 bits where weights have them; at stage 3 alone."""
    whole = [name for names in sub_groups(layout(1, 2, zero_stage=3)) for name in names]
    assert whole == list(layout(1, 2, zero_stage=3).held)
    monkeypatch.setattr("dalle.training.deepspeed_adapter._SUB_GROUP", 10_000)
    for bits, weights in ((32, "fp32"), (48, "16-bit")):
        found = layout(1, 2, zero_stage=3, weights=weights)
        sizes = [sum(found.held[name] for name in names) for names in sub_groups(found)]
        assert len(sizes) > 3 and all(size >= 10_000 for size in sizes[:-1])
        assert exchanged(found).working[-1] == pytest.approx(bits // 8 * max(sizes), abs=100)  # and the norm
    assert list(sub_groups(layout(1, 2, zero_stage=2))) == []
