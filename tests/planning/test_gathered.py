"""Gathered weights, beside those that DeepSpeed holds."""

import pytest
import torch

from dalle.cluster.topology import World, grouped
from dalle.config import Optimizer, PriorObjective, Run, Schedule
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective as PriorLoss
from dalle.planning.gathered import at_the_turn, at_work, bucket_elements
from dalle.training import deepspeed_adapter
from dalle.training.engine import Engine, sharded_construction
from tests.planning.small import MODEL, layout


@pytest.mark.parametrize("distance", [60_000, 10**9])
def test_weights_that_are_whole_between_the_passes(distance, monkeypatch):
    """Counted when the image head, the last, is about to work, in an update whose order DeepSpeed knows. It lets go of a resblock when it is
    further from the turn than half the distance; with the last one there are those that it has just fetched."""
    monkeypatch.setattr(deepspeed_adapter, "_KEPT_GATHERED", distance)
    run = Run(steps=3, batch_size=1, zero_stage=3)
    world = grouped(World(0, 1, torch.device("cpu")), run)
    with sharded_construction(run, world):
        prior = Prior(MODEL)
    engine = Engine(PriorLoss(prior, PriorObjective()), Optimizer(Schedule(1e-3, 1e-3)), run, world)
    found = []

    def count(*_):
        found.append(sum(p.data.nbytes for p in prior.parameters() if p.data.numel() == p.ds_numel))

    prior.image_head.register_forward_pre_hook(count)
    text, codes = torch.zeros(1, 7, dtype=torch.int64), torch.zeros(1, 16, dtype=torch.int64)
    for number in range(3):
        engine.update([{"text_BU": text, "codes_BI": codes, "text_targets": torch.tensor(7.0)}], number, 1e-3)
    planned = at_the_turn(layout(1, 1, zero_stage=3))
    # the embeddings are let go of or not, by a distance that only DeepSpeed's order tells
    assert planned == pytest.approx(found[-1], rel=0.1)


def test_elsewhere_two_resblocks_are():
    found = layout(2, 2, zero_stage=3)
    mlp = 8 * 64**2 + 64 + 4 * 64 + 2 * 64
    assert at_work(found) == 2 * 2 * mlp
    assert at_work(layout(2, 2, zero_stage=3, precision="fp32")) == 2 * 4 * mlp
    assert bucket_elements(found) == mlp
    assert at_work(layout(2, 2)) == at_the_turn(layout(2, 2)) == bucket_elements(layout(2, 2)) == 0
