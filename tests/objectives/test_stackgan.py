"""The players' losses beside plain references."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from dalle.config import StackGANModel, StackGANObjective
from dalle.models.stackgan.discriminator import Discriminator
from dalle.models.stackgan.generators import generator
from dalle.objectives.stackgan import (
    DiscriminatorObjective,
    GeneratorObjective,
    draw,
    gradient_penalty,
    kl_divergence,
    spread,
)

SIZES = StackGANModel(
    image_size_px=8, text_width=6, channels=4, discriminator_channels=4, noise_width=5, condition_width=8
)
HINGE = StackGANObjective(loss="hinge", kl_weight=0.5, penalty_weight=2.0)


def _players(config=SIZES):
    torch.manual_seed(0)
    players = generator(config), Discriminator(config)
    for player in players:
        for p in player.parameters():
            nn.init.normal_(p, std=0.3)  # of the family's own init all logits would be all but 0
    return players


def _batch(rows=4):
    generator = torch.Generator().manual_seed(1)
    return {
        "images_BCYX": torch.randint(0, 256, (rows, 3, 8, 8), dtype=torch.uint8, generator=generator),
        "text_BE": torch.randn(rows, 6, generator=generator),
        "wrong_text_BE": torch.randn(rows, 6, generator=generator),
        "has_wrong_B": torch.tensor([1.0, 1.0, 0.0, 1.0]),
        "noise_BZ": torch.randn(rows, 5, generator=generator),
        "epsilon_BC": torch.randn(rows, 8, generator=generator),
        "real_labels_B": torch.tensor([1.0, 0.9, 0.95, 0.1]),
        "wrong_labels_B": torch.tensor([0.0, 0.1, 0.15, 0.1]),
        "fake_labels_B": torch.tensor([0.0, 0.15, 0.1, 0.9]),
    }


def _cross_entropy(logits, labels):
    """−y·ln D − (1 − y)·ln(1 − D), in double precision with its own sigmoid."""
    d = 1 / (1 + np.exp(-logits.detach().numpy().astype(np.float64)))
    y = labels.numpy().astype(np.float64)
    return -(y * np.log(d) + (1 - y) * np.log(1 - d))


def _judged(players, batch, shared=False):
    """Logits of right pairs, wrong pairs and fakes, and of real and drawn images alone, by the networks' own forward passes."""
    g, d = players
    real = batch["images_BCYX"].float() / 255 * 2 - 1
    with torch.no_grad():
        fake, mean, log_variance = g(batch["text_BE"], batch["noise_BZ"], batch["epsilon_BC"])
        texts = [batch["text_BE"], batch["wrong_text_BE"]]
        if shared:
            texts = [g.conditioning(text)[0] for text in texts]
        logits = [d(real, texts[0]), d(real, texts[1]), d(fake, texts[0])]
        if d.unconditional is not None:
            logits += [d.judge_image(d.features(real)), d.judge_image(d.features(fake))]
    return logits, mean, log_variance


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("unconditional", [False, True])
def test_cross_entropies_are_those_of_equations_3_and_4(shared, unconditional):
    config = replace(SIZES, text="shared-mean" if shared else "compressed", unconditional=unconditional)
    players, batch = _players(config), _batch()
    settings = StackGANObjective(kl_weight=2.0, unconditional_weight=0.7)
    (right, wrong, fake, *alone), mean, log_variance = _judged(players, batch, shared)
    expected = _cross_entropy(right, batch["real_labels_B"]).mean()
    expected += 0.5 * (_cross_entropy(wrong, batch["wrong_labels_B"]) * batch["has_wrong_B"].numpy()).mean()
    expected += 0.5 * _cross_entropy(fake, batch["fake_labels_B"]).mean()
    ones = torch.ones(4)
    of_generator = _cross_entropy(fake, ones).mean() + 2.0 * kl_divergence(mean, log_variance).item()
    if unconditional:
        on_images = [
            _cross_entropy(a, batch[f"{n}_labels_B"]).mean() for a, n in zip(alone, ("real", "fake"), strict=True)
        ]
        expected += 0.7 * sum(on_images)
        of_generator += 0.7 * _cross_entropy(alone[1], ones).mean()
    loss, metrics = DiscriminatorObjective(players[1], players[0], settings)(batch)
    # fp32 forward passes against double precision from the same logits
    assert loss.item() == pytest.approx(expected, rel=1e-5) and metrics["loss"].item() == loss.item()
    loss, metrics = GeneratorObjective(players[0], players[1], settings)(batch)
    assert loss.item() == pytest.approx(of_generator, rel=1e-5)
    assert metrics["kl"].item() > 0 and metrics["spread"].item() > 0


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_drawn_once_for_both_moves_is_what_each_would_draw(shared):
    config = replace(SIZES, text="shared-mean" if shared else "compressed")
    (g, d), batch = _players(config), _batch()
    found = {}
    for once in (False, True):
        given = batch | ({"drawn": draw(g, batch)} if once else {})
        gradients = []
        for objective, other in (
            (DiscriminatorObjective(d, g, StackGANObjective()), g),
            (GeneratorObjective(g, d, StackGANObjective()), d),
        ):
            other.requires_grad_(False)
            objective(given)[0].backward()
            other.requires_grad_(True)
            held = [p.grad.clone() for p in objective.parameters()]
            assert all(p.grad is None for p in other.parameters())
            objective.zero_grad()
            gradients += held
        found[once] = gradients
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)
    assert sum(gradient.abs().sum() for gradient in found[True]) > 0


def test_hinge_and_penalty_are_df_gans():
    config = replace(SIZES, discriminator_norm="none")
    players, batch = _players(config), _batch()
    batch |= {"real_labels_B": torch.ones(4), "wrong_labels_B": torch.zeros(4), "fake_labels_B": torch.zeros(4)}
    (right, wrong, fake), mean, log_variance = _judged(players, batch)
    penalty = _penalty_by_hand(players[1], batch["images_BCYX"].float() / 127.5 - 1, batch["text_BE"], 6)
    expected = (1 - right).clamp(min=0).mean() + 2.0 * penalty
    expected += 0.5 * ((1 + wrong).clamp(min=0) * batch["has_wrong_B"]).mean() + 0.5 * (1 + fake).clamp(min=0).mean()
    loss, metrics = DiscriminatorObjective(players[1], players[0], HINGE)(batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["penalty"].item() == pytest.approx(penalty, rel=1e-5)
    loss, _ = GeneratorObjective(players[0], players[1], HINGE)(batch)
    of_generator = -fake.mean() + 0.5 * kl_divergence(mean, log_variance)
    assert loss.item() == pytest.approx(of_generator.item(), rel=1e-5)


def _penalty_by_hand(model, images, texts, exponent):
    """A row at a time, by pixels and by text apart."""
    norms = []
    for image, text in zip(images, texts, strict=True):
        image, text = image[None].clone().requires_grad_(), text[None].clone().requires_grad_()
        model(image, text).sum().backward()
        norms.append(float(torch.sqrt(image.grad.square().sum() + text.grad.square().sum())))
    model.zero_grad()
    return float(np.mean(np.array(norms) ** exponent))


@pytest.mark.parametrize("exponent", [2, 6])
def test_the_penalty_is_of_gradients_at_real_pairs(exponent):
    model = _players(replace(SIZES, discriminator_norm="none"))[1]
    images, texts = torch.rand(3, 3, 8, 8) * 2 - 1, torch.randn(3, 6)
    found = gradient_penalty(model, images, texts, exponent)
    assert found.item() == pytest.approx(_penalty_by_hand(model, images, texts, exponent), rel=1e-5)
    # its gradient, by a finite difference along a direction, in double precision
    model, images, texts = model.double(), images.double(), texts.double()

    def penalty():
        squares = 0
        x, t = images.clone().requires_grad_(), texts.clone().requires_grad_()
        for g in torch.autograd.grad(model(x, t).double().sum(), (x, t), create_graph=True):
            squares = squares + g.flatten(1).square().sum(dim=1)
        return (squares ** (exponent / 2)).mean()

    weight = model.joint[0].weight
    gradient = torch.autograd.grad(penalty(), weight)[0]
    direction, step, values = torch.randn_like(weight), 1e-5, []
    for moved in (step, -2 * step):
        with torch.no_grad():
            weight.add_(moved * direction)
        values.append(penalty().item())
    # central differences leave an error of step² against a derivative of order 1; LeakyReLU's kinks are not met
    assert float((gradient * direction).sum()) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


def test_the_penalty_is_fp32_and_moves_the_discriminator_under_autocast():
    model = _players(replace(SIZES, discriminator_norm="none"))[1]
    images, texts = torch.rand(3, 3, 8, 8) * 2 - 1, torch.randn(3, 6)
    exact = gradient_penalty(model, images, texts, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert gradient_penalty(model, images, texts, 6).item() == exact.item()
    exact.backward()
    assert model.image[0][0].weight.grad.abs().sum() > 0 and model.text.weight.grad.abs().sum() > 0


def test_kl_is_torchs():
    mean, log_variance = torch.randn(5, 8), torch.randn(5, 8)
    expected = reference_kl(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)
    assert kl_divergence(torch.zeros(2, 8), torch.zeros(2, 8)).item() == 0


def test_each_player_learns_from_its_own_loss():
    """No gradient goes from the discriminator's loss to the generator, nor from the shared mean's use to the conditioning."""
    players, batch = _players(replace(SIZES, text="shared-mean")), _batch()
    loss, _ = DiscriminatorObjective(players[1], players[0], StackGANObjective())(batch)
    loss.backward()
    assert all(p.grad is None for p in players[0].parameters())
    assert all(p.grad is not None for p in players[1].parameters())
    for objective, own in ((DiscriminatorObjective, players[1]), (GeneratorObjective, players[0])):
        other = players[0] if own is players[1] else players[1]
        held = {id(p) for p in objective(own, other, StackGANObjective()).parameters()}
        assert held == {id(p) for p in own.parameters()}


def test_a_shared_mean_moves_the_conditioning_through_the_image_alone():
    players, batch = _players(replace(SIZES, text="shared-mean")), _batch()
    weight = players[0].conditioning.fc.weight
    fake, mean, _ = players[0](batch["text_BE"], batch["noise_BZ"], batch["epsilon_BC"])
    fixed, free = (nn.functional.softplus(-players[1](fake, text)).mean() for text in (mean.detach(), mean))
    expected, other = (torch.autograd.grad(each, weight, retain_graph=True)[0] for each in (fixed, free))
    loss, _ = GeneratorObjective(*players, StackGANObjective(kl_weight=0.0))(batch)
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], expected)
    assert not torch.allclose(expected, other)


def test_spread_is_a_variance_over_the_batch():
    images = torch.rand(6, 3, 16, 16)
    small = images.numpy().reshape(6, 3, 8, 2, 8, 2).mean(axis=(3, 5))
    assert spread(images).item() == pytest.approx(small.var(axis=0).mean(), rel=1e-5)
    assert spread(images[:1].expand(4, -1, -1, -1)).item() == 0


@pytest.mark.parametrize("settings", [StackGANObjective(kl_weight=0.1), HINGE], ids=["cross-entropy", "hinge"])
def test_a_generator_learns_to_draw_what_the_caption_says(settings):
    """Of "white" and "black", by both losses: the sign of every term shows."""
    torch.manual_seed(0)
    norm = "batch" if settings.loss == "cross-entropy" else "none"
    config = replace(SIZES, channels=8, discriminator_channels=8, conditioning="linear", discriminator_norm=norm)
    g, d = generator(config), Discriminator(config)
    opponents = [(DiscriminatorObjective(d, g, settings), d, 4e-3), (GeneratorObjective(g, d, settings), g, 2e-3)]
    adams = [torch.optim.Adam(model.parameters(), lr=size, betas=(0.0, 0.9)) for _, model, size in opponents]
    texts = torch.tensor([[1.0, -1, 1, -1, 1, -1], [-1.0, 1, -1, 1, -1, 1]])
    is_white = torch.arange(16) % 2
    batch = {
        "images_BCYX": (is_white * 160 + 40).to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8),
        **{"text_BE": texts[is_white], "wrong_text_BE": texts[1 - is_white], "has_wrong_B": torch.ones(16)},
        **{"real_labels_B": torch.ones(16), "wrong_labels_B": torch.zeros(16), "fake_labels_B": torch.zeros(16)},
    }
    means = torch.zeros(2)
    for step in range(150):
        for (objective, model, _), adam in zip(opponents, adams, strict=True):
            torch.manual_seed(step)
            noise = {"noise_BZ": torch.randn(16, 5), "epsilon_BC": torch.randn(16, 8)}
            model.zero_grad()
            objective(batch | noise)[0].backward()
            adam.step()
        if step >= 100:  # a game goes round its end: the mean over its last third
            with torch.no_grad():
                drawn = g(batch["text_BE"], torch.randn(16, 5), torch.randn(16, 8))[0]
            means += torch.stack([drawn[is_white == n].mean() for n in range(2)]) / 50
    # white is 0.57 and black −0.69; of four seeds each 0.84 to 1.5 lay between what was drawn of them
    assert means[1] - means[0] > 0.4, means


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"real_labels": ()}, "real_labels"),
        ({"fake_labels": (0.0, 1.1)}, "fake_labels"),
        ({"flipped": 0.5}, "flipped 0.5"),
        ({"loss": "hinge", "flipped": 0.1}, "hinge"),
        ({"kl_weight": -1.0}, "kl_weight -1.0"),
        ({"penalty_exponent": 0.5}, "penalty_exponent"),
    ],
)
def test_losses_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        StackGANObjective(**changes)
