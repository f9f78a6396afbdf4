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
    unreached_schedules,
)


def test_cosine_schedule_of_the_paper():
    kl_weight = Schedule(0.0, 6.6, end_step=5000)
    assert kl_weight(0) == 0
    assert kl_weight(2500) == pytest.approx(3.3)
    assert kl_weight(1250) == pytest.approx(6.6 * 0.5 * (1 - math.cos(math.pi / 4)))
    assert kl_weight(5000) == kl_weight(10**9) == pytest.approx(6.6)


def test_exponential_schedule():
    """× 0.98 an epoch of 150 updates, for 300 epochs."""
    schedule = Schedule(7e-4, 7e-4 * 0.98**300, end_step=45_000, shape="exponential", warmup_steps=2)
    for epoch in (1, 2, 150, 300):
        assert schedule(150 * epoch) == pytest.approx(7e-4 * 0.98**epoch)
    assert schedule(0) == 3.5e-4 and schedule(10**6) == schedule(45_000)
    for start, end in ((1.0, 0.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="both must be positive for an exponential shape"):
            Schedule(start, end, end_step=5, shape="exponential")


def test_linear_schedule_with_a_start_and_warmup():
    schedule = Schedule(1.0, 0.0, begin_step=10, end_step=20, shape="linear", warmup_steps=4)
    assert [schedule(step) for step in (0, 3, 10, 15, 20)] == [0.25, 1.0, 1.0, 0.5, 0.0]


def test_a_halving_schedule_is_halved_at_equal_intervals():
    """Of 8e-4 to 1e-4 over 30 updates, three times."""
    schedule = Schedule(8e-4, 1e-4, begin_step=10, end_step=40, shape="halving", warmup_steps=2)
    expected = {0: 4e-4, 9: 8e-4, 19: 8e-4, 20: 4e-4, 29: 4e-4, 30: 2e-4, 39: 2e-4, 40: 1e-4, 1000: 1e-4}
    assert {step: schedule(step) for step in expected} == pytest.approx(expected)
    shares = Schedule(2e-4, 5e-5, end_step="100%", shape="halving").over(100)
    assert [shares(step) for step in (49, 50, 99, 100)] == pytest.approx([2e-4, 1e-4, 1e-4, 5e-5])
    for start, end in ((3e-4, 1e-4), (1e-4, 2e-4), (1e-4, 0.0)):
        with pytest.raises(ValueError, match="halved a whole number of times"):
            Schedule(start, end, end_step=10, shape="halving")


def test_a_schedule_that_would_never_reach_its_end_is_refused():
    assert Schedule(1.0, 1.0)(10**6) == 1.0
    with pytest.raises(ValueError, match=r"end 6\.6"):
        Schedule(0.0, 6.6)


def test_shares_follow_the_run():
    """The same values at the same share of any run; a ramp in updates stays where it is."""
    kl_weight = Schedule(0.0, 1.0, begin_step="20%", end_step="50%", shape="linear", warmup_steps="10%")
    for steps in (20, 300, 2000):
        values = [kl_weight.over(steps)(round(share * steps)) for share in (0, 0.2, 0.35, 0.5, 1)]
        assert values == pytest.approx([0, 0, 0.5, 1, 1])
        assert kl_weight.over(steps).warmup_steps == steps / 10
        assert kl_weight.unreached(steps) is None
    assert kl_weight.over(1)(1) == 1  # a run too short for a ramp has a step
    fixed = Schedule(0.0, 1.0, begin_step=4, end_step=10)
    assert fixed.over(300) == fixed
    assert Schedule(0.0, 1.0, end_step="33.5%").over(1000).end_step == 335


@pytest.mark.parametrize(
    "ramp",
    [
        {"begin_step": "60%", "end_step": "50%"},
        {"begin_step": "50%", "end_step": "50%"},
        {"end_step": "110%"},
        {"end_step": "100.5%"},
        {"end_step": "70"},
        {"end_step": "-5%"},
        {"end_step": "0%"},
        {"end_step": 10, "warmup_steps": -1},
    ],
)
def test_a_ramp_that_makes_no_sense_is_refused(ramp):
    with pytest.raises(ValueError, match=r"end_step|warmup_steps"):
        Schedule(0.0, 1.0, **ramp)


def test_a_schedule_beyond_the_end_of_the_run_is_named():
    temperature = Schedule(1.0, 1 / 16, end_step=150_000)
    objective = DVAEObjective(temperature=temperature)
    optimizer = Optimizer(Schedule(1e-3, 1e-3, warmup_steps=400))

    def said(steps):
        return unreached_schedules(TrainDVAE("data", "output", optimizer, Run(steps, 8), objective=objective))

    step_size, kl_weight, of_temperature = said(300)
    assert step_size.startswith("optimizer.step_size: the warm-up takes 400 updates; this run ends at 300")
    assert kl_weight.startswith("objective.kl_weight: end 6.6 would be reached at update 5000")
    assert "150000; this run ends at 300 with 1:" in of_temperature
    assert said(150_000) == []
    assert len(said(149_999)) == 1


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
