"""Schedules and the combinations that a configuration refuses."""

import math

import pytest

from dalle.config import (
    CLIPModel,
    DVAEModel,
    DVAEObjective,
    Optimizer,
    PriorModel,
    Run,
    Schedule,
    TrainCLIP,
    TrainDVAE,
    TrainPrior,
)


def test_cosine_schedule_of_the_paper():
    kl_weight = Schedule(0.0, 6.6, end_step=5000)
    assert kl_weight(0) == 0
    assert kl_weight(2500) == pytest.approx(3.3)
    assert kl_weight(1250) == pytest.approx(6.6 * 0.5 * (1 - math.cos(math.pi / 4)))
    assert kl_weight(5000) == kl_weight(10**9) == pytest.approx(6.6)


def test_linear_schedule_with_a_start_and_warmup():
    schedule = Schedule(1.0, 0.0, begin_step=10, end_step=20, shape="linear", warmup_steps=4)
    assert [schedule(step) for step in (0, 3, 10, 15, 20)] == [0.25, 1.0, 1.0, 0.5, 0.0]


def test_a_schedule_that_would_never_reach_its_end_is_refused():
    assert Schedule(1.0, 1.0)(10**6) == 1.0
    with pytest.raises(ValueError, match=r"end 6\.6"):
        Schedule(0.0, 6.6)


@pytest.mark.parametrize(
    ("cls", "values", "key"),
    [
        (DVAEModel, {"image_size_px": 100}, "image_size_px"),
        (DVAEModel, {"encoder_width": 6}, "encoder_width"),
        (DVAEModel, {"codebook_size": 1}, "codebook_size"),
        (PriorModel, {"heads": 7}, "heads"),
        (PriorModel, {"conv_kernel": 4}, "conv_kernel"),
        (PriorModel, {"width": -64}, "width"),
        (CLIPModel, {"patch_px": 0}, "patch_px"),
        (CLIPModel, {"text_width": 0}, "text_width"),
        (Optimizer, {"step_size": Schedule(1.0, 1.0), "beta1": 2.0}, "beta1"),
        (Optimizer, {"step_size": Schedule(1.0, 1.0), "clip_norm": -1.0}, "clip_norm"),
        (DVAEObjective, {"temperature": Schedule(1.0, 0.0, end_step=10)}, "temperature"),
        (Run, {"steps": 0, "batch_size": 8}, "steps"),
        (Optimizer, {"step_size": Schedule(1.0, 1.0), "muon_step_size_factor": -1.0}, "muon_step_size_factor"),
        (Run, {"steps": 1, "batch_size": 8, "accumulation_steps": 3}, "accumulation_steps"),
    ],
)
def test_impossible_values_are_named(cls, values, key):
    with pytest.raises(ValueError, match=key):
        cls(**values)


def test_batch_has_to_divide():
    run = Run(steps=1, batch_size=12, accumulation_steps=2)
    assert run.micro_batch_size(3) == 2
    with pytest.raises(ValueError, match="batch_size 12"):
        run.micro_batch_size(4)


@pytest.mark.parametrize(("batch_size", "accumulation_steps"), [(1, 1), (4, 4)])
def test_contrast_takes_two_pairs(batch_size, accumulation_steps):
    """With one pair the loss is 0 and nothing is learned."""
    optimizer = Optimizer(Schedule(1.0, 1.0))
    with pytest.raises(ValueError, match=rf"run\.batch_size {batch_size}: .*two pairs"):
        TrainCLIP("data", "output", optimizer, Run(1, batch_size, accumulation_steps))
    TrainCLIP("data", "output", optimizer, Run(1, 2 * batch_size, accumulation_steps))


def test_muon_is_refused_with_sharding():
    muon, run = Optimizer(Schedule(1.0, 1.0), muon_step_size_factor=10.0), Run(steps=1, batch_size=8, zero_stage=1)
    with pytest.raises(ValueError, match=r"run\.zero_stage 1"):
        TrainPrior("data", "dvae", "tokenizer", "output", muon, run)


def test_muon_is_refused_for_a_dvae():
    with pytest.raises(ValueError, match=r"optimizer\.muon_step_size_factor 10\.0"):
        TrainDVAE("data", "output", Optimizer(Schedule(1.0, 1.0), muon_step_size_factor=10.0), Run(1, 8))
