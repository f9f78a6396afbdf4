"""The most that comes and goes in an update, beside sums by hand over its moments."""

from dataclasses import replace

import pytest
import torch

from dalle.cluster.topology import World, grouped
from dalle.config import PriorModel, PriorObjective
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective as PriorLoss
from dalle.planning.exchanged import Exchanged, exchanged
from dalle.planning.gathered import at_the_turn, at_work, gradients_at_work, reduced_at_once, sub_groups
from dalle.planning.held import while_made
from dalle.planning.layout import Layout, Sizes
from dalle.planning.meter import Meter
from dalle.planning.plan import Machines, Planned
from dalle.training import deepspeed_library
from dalle.training.engine import Engine, sharded_construction
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
        found,
        Machines.measured(1e12, 1e12, 9e11, 16e9),
        Exchanged((), 0, 0, tuple(MANY * (e == ended) for e in range(7)), 0),
    )
    kept = planned.activations(True)
    gathered = max(at_work(found), at_the_turn(found, ended))
    gradients = gradients_at_work(found) + reduced_at_once(found)
    work = gathered + (kept.layer + gradients if ended else max(kept.layer + gradients, kept.heads))
    assert planned.comes_and_goes(True) == MANY + layers * kept.layers // 2 + works * work


def test_what_is_reduced_together_is_laid_end_to_end_as_it_travels():
    """Of 4 · 64² · 2 weights of an MLP, in 16 bits, with its biases and gains in fp32."""
    matrices = 2 * 4 * MODEL.width**2
    others = 4 * MODEL.width + MODEL.width + 2 * MODEL.width
    found = layout(2, 2, zero_stage=3, precision="bf16")
    assert reduced_at_once(found) == 2 * matrices + 4 * (sum(found.whole[n] for n in found.sizes.blocks[1]) - matrices)
    assert reduced_at_once(found) >= 2 * matrices + 4 * others
    assert reduced_at_once(layout(2, 2, zero_stage=3, precision="fp32")) == 2 * at_work(layout(2, 2, zero_stage=3)) // 4
    assert reduced_at_once(layout(2, 2, zero_stage=2)) == 0


def test_below_stage_3_machines_exchange_when_all_has_been_freed():
    found = layout(2, 2, rank=8, zero_stage=0)
    planned = Planned(
        found, Machines.measured(1e12, 1e12, 9e11, 16e9), Exchanged((), 0, 0, (0, 0, 0, 0, 0, 0, MANY), 0)
    )
    assert planned.comes_and_goes(False) == MANY


def test_without_an_exchange_it_is_at_the_turn():
    found = layout(1, 2, zero_stage=3)
    planned = Planned(found, Machines.measured(1e12, 1e12, 9e11, 16e9), Exchanged((), 0, 0, (), 0))
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


@pytest.mark.parametrize("weights", ["fp32", "16-bit"])
@pytest.mark.parametrize("rank", [None, 4])
def test_what_deepspeed_has_for_a_moment_while_it_takes_the_weights_over(weights, rank, monkeypatch):
    """Beside the allocations of a real engine. fp32 weights are not there a third time, error buffers not beside room for whole
    gradients, and 16-bit weights leave nothing of those before them."""

    def gather_of_one(output, tensor, group=None, async_op=False, **_):
        assert not async_op
        output.copy_(tensor)

    # gloo's threads let go of what they gathered when they get to it, which may be some parameters later
    monkeypatch.setattr("deepspeed.comm.all_gather_into_tensor", gather_of_one)
    small = layout(1, 1, rank=rank, zero_stage=3, weights=weights)
    model = PriorModel(6, 2, 40, 24, width=128, depth=6, heads=2)
    found = Layout(Sizes(model), small.run, small.optimizer, 1, 1)
    deepspeed_library.load()  # which lets processes meet, here one
    world = grouped(World(0, 1, torch.device("cpu")), found.run)
    with Meter() as meter:
        with sharded_construction(found.run, world):
            prior = Prior(model)
        engine = Engine(PriorLoss(prior, PriorObjective()), found.optimizer, found.run, world)
    assert while_made(found) == pytest.approx(meter.peak, rel=1e-3)
    kept = [t for _, t in engine.shards.weights().values()] + [engine._engine.optimizer.grad_partitions_flat_buffer]
    if powersgd := engine.before_step.powersgd:
        kept += [t for stack in powersgd.stacks() for t in (stack.buffer_NSL, stack.q0_LK)]
    buckets = [bucket.buffer for bucket in engine._engine.optimizer.ipg_buckets.values()]
    assert sum(t.nbytes for t in kept + buckets) == pytest.approx(meter.held, rel=0.05)


def test_a_plan_counts_what_is_there_before_the_first_update():
    small = layout(1, 2, zero_stage=3)
    planned = Planned(small, Machines.measured(1e12, 1e12, 9e11, 16e9))
    assert planned.peak_bytes > while_made(small) > 8 * sum(small.held.values())
    assert planned.figures()["peak_bytes"] == planned.peak_bytes
    planned = Planned(small, planned.machines, planned.sent)
    planned.stays = dict.fromkeys(planned.stays, 0)
    planned.comes_and_goes = lambda _: 0
    assert planned.peak_bytes == while_made(small)
    held, whole = (sum(each.values()) for each in (small.held, small.whole))
    matrices = sum(small.whole[name] for name in small.sizes.matrices)
    gathered = 4 * max(small.whole.values())
    assert while_made(small) == 8 * held + gathered + Planned(small, planned.machines).stays["buckets"]
    assert while_made(layout(1, 2, zero_stage=0)) == 4 * whole
    assert while_made(layout(1, 2, zero_stage=2)) == 4 * whole + 4 * held
    assert while_made(layout(1, 2, zero_stage=2, weights="16-bit")) == 4 * whole + 4 * held + 2 * matrices
    beside = while_made(small) - while_made(layout(1, 2, zero_stage=3, offload="cpu"))
    assert beside == 4 * held


def test_the_heads_have_their_most_before_a_resblock_s_gradients_come():
    """With a vocabulary that outweighs a resblock: when they have ended it counts no more."""
    many = replace(MODEL, text_vocabulary=8000)
    small = layout(2, 2, rank=8, zero_stage=3)
    found = Layout(Sizes(many), small.run, small.optimizer, 2, 2)
    planned = Planned(found, Machines.measured(1e12, 1e12, 9e11, 16e9), Exchanged((), 0, 0, (), 0))
    kept = planned.activations(False)
    resblock = kept.layer + gradients_at_work(found) + reduced_at_once(found)
    assert kept.heads > resblock
    for ended, (work, under_way) in enumerate(zip((kept.heads, resblock), planned._under_way(kept), strict=False)):
        gathered = max(at_work(found), at_the_turn(found, ended))
        assert under_way == kept.layers + gathered + work
