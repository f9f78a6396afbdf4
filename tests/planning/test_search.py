"""The search, beside planning every layout in full."""

import pytest

from dalle.planning.exchanged import exchanged
from dalle.planning.plan import Machines, Planned
from dalle.planning.search import _NOTHING, _in_full, layouts, search
from dalle.planning.timing import Rates
from tests.planning.small import layout

RATES = Rates(1e9, 1e9, 2e7, 1e9, 1e10)


def _machines(memory: float) -> Machines:
    return Machines(memory, RATES, 1e9, None)


def _all(asked) -> list[Planned]:
    """In full, but for what machines exchange, which is the same of all that shard alike."""
    found, known = [], {}
    for each in layouts(asked):
        run = each.run
        alike = (each.machines, run.zero_stage, run.ranks_per_machine, run.compression, run.wire)
        try:
            if alike not in known:
                known[alike] = exchanged(each)
        except ValueError:  # a matrix that such compression cannot cut
            continue
        found.append(Planned(each, _machines(1.0), known[alike]))
    return found


def test_the_fastest_that_fits_is_found():
    """Where little fits, and where half does; and what needs least where nothing fits."""
    asked = layout(2, 1, rank=8, zero_stage=3, batch_size=2)
    every = _all(asked)
    peaks = sorted(plan.peak_bytes for plan in every)
    assert len({(p.layout.run, p.layout.machines) for p in every}) == len(every) > 20
    chosen = set()
    for memory in (peaks[0], peaks[len(peaks) // 2]):
        found = search(asked, _machines(memory))
        best = min(plan.update.seconds for plan in every if plan.peak_bytes <= memory)
        assert found.fastest is not None and found.fastest.fits
        assert found.fastest.update.seconds == pytest.approx(best)
        chosen.add(found.fastest.layout.run)
    assert len(chosen) > 1
    nothing = search(asked, _machines(peaks[0] - 1))
    assert nothing.fastest is None and nothing.least.peak_bytes == peaks[0]


def test_each_wire_is_planned_for_itself():
    known: dict = {}
    sent = {}
    for wire in ("fp32", "bf16"):
        bound = Planned(layout(2, 2, zero_stage=3, wire=wire), _machines(1e9), _NOTHING)
        sent[wire] = _in_full(bound, known).sent.sent_bytes
    assert sent["bf16"] == pytest.approx(sent["fp32"] / 2, rel=1e-3) and len(known) == 2


def test_what_is_looked_at():
    """All of the batch of 8, on one machine too; of a Muon training nothing is sharded."""
    every = list(layouts(layout(2, 2, rank=8, zero_stage=3)))
    assert {each.machines for each in every} == {1, 2}
    assert {each.micro_batch for each in every} == {1, 2, 4}
    assert {each.run.zero_stage for each in every} == {0, 1, 2, 3}
    assert {each.run.recompute for each in every} == {True, False}
    sent = {(each.machines, each.run.compression is None, each.run.zero_stage, each.run.wire) for each in every}
    # a wire of 16 bits where machines are several and it saves something; with compression the one that is asked for
    assert {key for key in sent if key[3] != "fp32"} == {(2, True, stage, "bf16") for stage in (1, 2, 3)}
    asked = list(layouts(layout(2, 1, rank=8, zero_stage=3, wire="bf16-ring")))
    assert {each.run.wire for each in asked if each.run.compression} == {"bf16-ring"}
    assert {each.run.wire for each in asked if each.machines == 2} == {"bf16-ring", "fp32"}
    assert {each.run.compression and each.run.compression.rank for each in every} == {None, 8, 16}
    assert all(each.run.batch_size == 8 for each in every)
    muon = layouts(layout(2, 1, optimizer={"muon_step_size_factor": 10.0}))
    assert {each.run.zero_stage for each in muon} == {0}
