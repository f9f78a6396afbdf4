"""The ends of a GAN that the document names are noticed, told once, and end a run that asks for it."""

import math

import pytest
import torch

from dalle.cluster.topology import World
from dalle.config import StackGANObjective
from dalle.stages.adversarial.collapse import Collapse, bounds

ALONE = World(0, 1, torch.device("cpu"))
SOUND = {"discriminator_loss": 1.2, "adversarial": 0.9, "spread": 0.6}
HINGE = StackGANObjective(loss="hinge", penalty_weight=2.0)


def _watch(objective=None, stops=True, steps=2000):
    return Collapse(objective or StackGANObjective(), False, steps, stops, ALONE)


def test_bounds_are_those_of_a_discriminator_that_knows_all_or_nothing():
    assert bounds(StackGANObjective(), False) == (0.0, pytest.approx(2 * math.log(2)))
    assert bounds(StackGANObjective(), True)[1] == pytest.approx(4 * math.log(2))
    assert bounds(HINGE, False) == (0.0, 2.0)
    soft = StackGANObjective(real_labels=(0.9,), fake_labels=(0.1, 0.2), flipped=0.1)
    # the least cross-entropy by trying all answers
    d = torch.linspace(0.001, 0.999, 4000, dtype=torch.float64)
    least = 0.0
    for weight, label in ((1.0, 0.9 * 0.9 + 0.1 * 0.15), (0.5, 0.15), (0.5, 0.9 * 0.15 + 0.1 * 0.9)):
        least += weight * (-label * d.log() - (1 - label) * (1 - d).log()).min().item()
    assert bounds(soft, False)[0] == pytest.approx(least, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"discriminator_loss": 0.01}, "the discriminator has won"),
        ({"adversarial": 9.0}, "the generator is lost"),
        ({"spread": 0.01}, "all images are alike"),
    ],
)
def test_each_end_is_told_and_told_again_only_after_twice_as_long(change, said):
    watch = _watch(stops=False)
    bad = {**SOUND, **change}
    assert watch.check(100, bad) == [] and watch.check(120, SOUND) == []
    (warning,) = watch.check(140, bad)
    assert warning.startswith(said) and len(warning.splitlines()) == 1
    assert watch.check(160, bad) == watch.check(279, bad) == []
    assert len(watch.check(280, bad)) == 1
    assert watch.check(300, SOUND) == []
    assert len(watch.check(320, bad)) == 1, "what comes back is told at once"
    assert watch.give_up() is None


def test_a_hinge_discriminator_is_judged_without_its_penalty():
    watch = _watch(HINGE)
    assert watch.check(200, {**SOUND, "discriminator_loss": 1.0, "discriminator_penalty": 0.1}) == []
    (warning,) = watch.check(220, {**SOUND, "discriminator_loss": 0.22, "discriminator_penalty": 0.1})
    assert warning.startswith("the discriminator has won")
    assert watch.check(240, {**SOUND, "adversarial": 20.0, "discriminator_penalty": 0.0}) == []


def test_smoothed_labels_leave_a_loss_that_is_no_zero():
    soft = StackGANObjective(real_labels=(0.9,), fake_labels=(0.1,))
    least = bounds(soft, False)[0]
    assert least == pytest.approx(0.650, abs=1e-3)
    assert _watch(soft).check(200, {**SOUND, "discriminator_loss": least + 0.005})
    assert not _watch(soft).check(200, {**SOUND, "discriminator_loss": least + 0.1})


def test_a_discriminator_that_comes_and_goes_near_its_end_has_won():
    """Losses of experiment F on drawn shapes, updates 1,000 to 2,900, none of whose drawings was believed by then; the least is 0.643."""
    soft = StackGANObjective(real_labels=(0.9, 0.95), fake_labels=(0.1, 0.15))
    losses = (0.670, 0.655, 0.664, 0.654, 0.669, 0.661, 0.658, 0.663, 0.654, 0.659)
    watch = _watch(soft, steps=4000)
    for number in range(20):
        watch.check(1000 + 100 * number, {**SOUND, "discriminator_loss": losses[number % 10]})
    assert "the discriminator has won since update 1000" in watch.give_up()
    assert not _watch(soft).check(600, {**SOUND, "discriminator_loss": 0.70})


def test_images_that_do_not_follow_the_caption_are_noticed_at_validation():
    watch = _watch()
    watch.validated.update({"caption_spread": 0.005, "noise_spread": 0.5})
    (warning,) = watch.check(200, SOUND)
    assert warning.startswith("all images of different captions are alike: their spread is 0.5%")


def test_images_that_do_not_follow_the_noise_are_noticed_at_validation():
    """Experiment B on drawn shapes, after 4,000 updates: one image for a caption."""
    watch = _watch()
    watch.validated.update({"caption_spread": 0.554, "noise_spread": 0.0433})
    (warning,) = watch.check(200, SOUND)
    assert warning.startswith("all images of one caption are alike: their spread is 4.3%")
    # experiment H's, whose images of a caption are few, but not one
    watch.validated.update({"caption_spread": 0.542, "noise_spread": 0.0766})
    assert watch.check(300, SOUND) == []


def test_a_run_ends_when_it_has_gone_on_for_a_tenth():
    watch = _watch()
    bad = {**SOUND, "spread": 0.001}
    for step in range(120, 320, 20):
        watch.check(step, bad)
        assert watch.give_up() is None
    watch.check(320, bad)
    why = watch.give_up()
    assert why.startswith("stop_on_collapse: all images are alike since update 120") and len(why.splitlines()) == 1
    watch.check(340, SOUND)
    assert watch.give_up() is None
