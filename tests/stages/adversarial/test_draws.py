"""Noise and labels, each row's its own."""

import torch

from dalle.config import StackGANModel, StackGANObjective
from dalle.models.stackgan.noise import noise
from dalle.stages.adversarial.draws import labels, row_seeds

SIZES = StackGANModel(image_size_px=8, noise_width=5, condition_width=8)
SOFT = StackGANObjective(real_labels=(0.9, 0.95), fake_labels=(0.1, 0.15), flipped=0.2)


def test_a_row_has_its_noise_and_labels_whoever_trains_on_it():
    seeds = row_seeds(3, 7, range(8))
    assert seeds != row_seeds(3, 8, range(8)) and seeds != row_seeds(4, 7, range(8))
    for draw in (lambda s: noise(SIZES, s), lambda s: labels(SOFT, s)):
        whole, halves = draw(seeds), [draw(row_seeds(3, 7, rows)) for rows in (range(4), range(4, 8))]
        for name, value in whole.items():
            assert torch.equal(value, torch.cat([half[name] for half in halves])), name


def test_noise_is_standard_normal_and_that_of_the_condition_is_another():
    found = noise(SIZES, range(4000))
    assert found["noise_BZ"].shape == (4000, 5) and found["epsilon_BC"].shape == (4000, 8)
    together = torch.cat(list(found.values()), dim=1)
    # of 4,000 draws a mean is off by 0.016 and a deviation by 0.011: six of these of one of 13 columns fail once in 10⁷
    assert together.mean(dim=0).abs().max() < 0.095 and (together.std(dim=0) - 1).abs().max() < 0.07
    assert (torch.corrcoef(together.T) - torch.eye(13)).abs().max() < 0.1


def test_labels_are_drawn_from_the_lists_and_a_share_is_flipped():
    found = labels(SOFT, range(5000))
    real, wrong, fake = (found[f"{kind}_labels_B"] for kind in ("real", "wrong", "fake"))
    flipped = real < 0.5
    # 20% of 5,000, whose deviation is 28: six of them fail once in 10⁸
    assert abs(int(flipped.sum()) - 1000) < 170
    assert torch.equal(flipped, fake > 0.5), "real and drawn image of a row change places together"
    assert set(wrong.tolist()) == set(torch.tensor([0.1, 0.15]).tolist()), "wrong pairs keep their side"
    for labels_B, allowed in (
        (real[~flipped], (0.9, 0.95)),
        (real[flipped], (0.1, 0.15)),
        (fake[~flipped], (0.1, 0.15)),
    ):
        values, counts = labels_B.unique(return_counts=True)
        assert torch.equal(values, torch.tensor(allowed))
        assert (counts / len(labels_B) - 0.5).abs().max() < 0.1  # each as likely: six deviations of 0.016 at the least
    # which of two a row has is drawn apart for real and drawn image
    both = torch.stack([real[~flipped] == 0.9, fake[~flipped] == 0.1]).float()
    assert torch.corrcoef(both)[0, 1].abs() < 0.1


def test_plain_labels_are_one_and_nothing():
    found = labels(StackGANObjective(), range(50))
    assert (
        found["real_labels_B"].eq(1).all()
        and found["wrong_labels_B"].eq(0).all()
        and found["fake_labels_B"].eq(0).all()
    )
