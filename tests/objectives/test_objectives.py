"""The losses against computations by hand."""

import math

import pytest
import torch

from dalle.config import DVAEModel, PriorModel
from dalle.config import PriorObjective as PriorObjectiveConfig
from dalle.models.dvae import DVAE
from dalle.models.prior import Prior
from dalle.objectives.dvae import (
    DecoderObjective,
    DVAEObjective,
    negative_elb,
    perplexity,
    psnr_db,
    uniform_noise,
    validation_figures,
)
from dalle.objectives.prior import PriorObjective
from dalle.objectives.relaxation import relaxed_codes, relaxed_codes_reference
from dalle.text import PAD


def test_prior_loss_by_hand():
    config = PriorModel(text_slots=4, grid=2, text_vocabulary=5, codebook_size=7, width=8, depth=1, heads=1)
    torch.manual_seed(0)
    objective = PriorObjective(Prior(config), PriorObjectiveConfig())
    text = torch.tensor([[1, 2, PAD], [3, PAD, PAD]])
    codes = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]])
    loss, metrics = objective({"text_BU": text, "codes_BI": codes, "text_targets": torch.tensor(3.0)})
    with torch.no_grad():
        text_logits, image_logits = objective.model(text, codes)
    text_nats = -sum(text_logits[b, u].log_softmax(0)[text[b, u]] for b, u in ((0, 0), (0, 1), (1, 0))) / 3
    image_nats = -sum(image_logits[b, i].log_softmax(0)[codes[b, i]] for b in range(2) for i in range(4)) / 8
    assert loss.item() == pytest.approx((text_nats / 8 + 7 * image_nats / 8).item(), rel=1e-5)
    assert metrics["text_nats"].item() == pytest.approx(text_nats.item(), rel=1e-5)


def test_kl_weight_per_position_is_beta_over_192():
    """At 8× downsampling a position stands for 8·8·3 = 192 subpixels (A.2)."""
    model = DVAE(DVAEModel(image_size_px=16, codebook_size=10, encoder_width=4))
    images = torch.rand(2, 3, 16, 16)
    kl = torch.rand(2, 2, 2)
    mu = ln_b = torch.zeros(2, 3, 16, 16)
    zero, beta = (negative_elb(model, images, (mu, ln_b), kl, torch.tensor(b))[0] for b in (0.0, 6.6))
    assert (beta - zero).item() == pytest.approx(6.6 / 192 * kl.mean().item(), rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 1 / 16])
def test_relaxed_codes_are_the_plain_formula(temperature):
    """Both results and all gradients, in double precision."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 3, 3, 11)).double().requires_grad_()
    prior = torch.randn(11).double().log_softmax(0).requires_grad_()
    uniform = torch.rand(2, 3, 3, 11).double()
    weights = torch.randn(2, 3, 3, 11).double()
    kept = uniform.clone()
    found = []
    for function in (relaxed_codes, relaxed_codes_reference):
        z, kl = function(logits, uniform, torch.tensor(temperature), torch.tensor(0.7), prior)
        found.append((z, kl, *torch.autograd.grad((z * weights).sum() + (kl * weights[..., 0]).sum(), (logits, prior))))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)
    assert torch.equal(uniform, kept)
    p = logits.detach().softmax(-1)
    torch.testing.assert_close(found[0][1], (p * (p.log() - prior.detach())).sum(-1))


@pytest.mark.parametrize("compiled", [False, True])
def test_relaxed_codes_are_fp32_under_autocast(compiled):
    """Sums over codes in 16 bits would be wrong by percents."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 3, 3, 500)).requires_grad_()
    uniform, weights = torch.rand(2, 3, 3, 500), torch.randn(2, 3, 3, 500)
    inputs = (uniform, torch.tensor(0.5), torch.tensor(1.0), torch.full((500,), -math.log(500)))
    function = torch.compile(relaxed_codes, backend="aot_eager") if compiled else relaxed_codes
    found = []
    for call, narrow in ((function, True), (relaxed_codes_reference, False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            z, kl = call(logits, *inputs)
        found.append((z, kl, torch.autograd.grad((z * weights).sum() + kl.sum(), logits)[0]))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)  # fp32 sums over 500 codes, in another order


def test_relaxed_codes_keep_two_tensors_of_logits_size():
    logits = torch.randn(1, 4, 4, 100, requires_grad=True)
    inputs = (torch.rand_like(logits).detach(), torch.tensor(1.0), torch.tensor(1.0), torch.zeros(100))
    kept = {}

    def remember(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    sizes, results = [], None
    for function in (relaxed_codes, relaxed_codes_reference):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda t: t):
            results = function(logits, *inputs)  # held, or what it keeps may be freed and its place taken
        sizes.append(sum(n == logits.numel() for n in kept.values()))
        assert results
    assert sizes[0] == 2 < sizes[1]


def test_noise_is_each_images_own():
    config = DVAEModel(image_size_px=8, codebook_size=50, encoder_width=4, width_multipliers=(1, 1))
    both = uniform_noise(config, [5, 2**62], torch.device("cpu"))
    torch.testing.assert_close(uniform_noise(config, [2**62], torch.device("cpu"))[0], both[1], rtol=0, atol=0)
    assert not torch.equal(both[0], both[1])
    assert 0 < both.min() < 0.02
    assert 0.98 < both.max() < 1


def test_a_learned_code_prior_becomes_the_use_of_the_codes():
    """KL(q‖p) over p alone is least where p is the mean of q: its gradient vanishes there."""
    config = DVAEModel(
        image_size_px=8, codebook_size=6, encoder_width=8, width_multipliers=(1, 2), blocks_per_group=1,
        logit_norm_gain=3.0, code_prior="learned",
    )  # fmt: skip
    torch.manual_seed(0)
    model = DVAE(config)
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    model.logit_norm.bias.data = torch.tensor([3.0, 1.0, 0.0, 0.0, -1.0, -2.0])
    use_K = model.logits(images).softmax(1).mean((0, 2, 3)).detach()
    assert use_K.max() > 3 * use_K.min()
    gradients = []
    for prior_K in (torch.zeros(6), use_K.log()):
        model.code_prior_K.data = prior_K
        batch = {"images_BCYX": images} | {n: torch.tensor(1.0) for n in ("kl_weight", "temperature", "noise_scale")}
        batch["uniform_BYXK"] = uniform_noise(config, range(16), images.device)
        model.zero_grad()
        DVAEObjective(model)(batch)[0].backward()
        gradients.append(model.code_prior_K.grad.abs().max())
    assert gradients[1] < 1e-5 < 1e-3 < gradients[0]


def test_validation_by_hand():
    """The true bound takes drawn codes, to which the relaxed ones come down as the temperature falls; pictures and PSNR take
    the argmax."""
    config = DVAEModel(
        image_size_px=8, codebook_size=6, encoder_width=8, width_multipliers=(1, 2), init="he", post_gain=1.0
    )
    torch.manual_seed(0)
    model = DVAE(config).eval()
    model.encoder.blocks.output.conv.weight.data *= 5
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    noise = uniform_noise(config, range(4), images.device)
    metrics, counts = validation_figures(model, images, noise, torch.tensor(1e-3))
    with torch.no_grad():
        logits = model.logits(images)
        drawn = (logits.permute(0, 2, 3, 1) - (-noise.log()).log()).argmax(-1)
        p = logits.softmax(1)
        kl = (p * (6 * p).log()).sum(1)
        likelihood = model.log_likelihood(images, *model.likelihood_maps_of_codes(drawn))
        decoded = model.decode(logits.argmax(1))
    assert not torch.equal(drawn, logits.argmax(1))
    assert metrics["elb"].item() == pytest.approx(likelihood.mean().item() - kl.sum().item() / (4 * 192), rel=1e-4)
    assert metrics["relaxed_elb"].item() == pytest.approx(metrics["elb"].item(), abs=1e-3)
    assert metrics["psnr_db"].item() == pytest.approx(psnr_db(images, decoded).item(), rel=1e-4)
    assert torch.equal(counts, torch.bincount(logits.argmax(1).flatten(), minlength=6))


def test_gumbel_softmax_draws_the_categorical():
    """The argmax of logits plus gumbel noise has the probabilities of the softmax. Chi-squared over 40,000 draws with
    4 degrees of freedom: a right sampler passes 23.5 once in 10,000 seeds."""
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5]).expand(40_000, 1, 1, 5)
    uniform, prior = torch.rand(40_000, 1, 1, 5), torch.zeros(5)
    z, _ = relaxed_codes(logits, uniform, torch.tensor(1 / 16), torch.tensor(1.0), prior)
    torch.testing.assert_close(z.sum(-1), torch.ones(40_000, 1, 1))
    expected = 40_000 * logits[0].flatten().softmax(0)
    counts = torch.bincount(z.argmax(-1).flatten(), minlength=5)
    assert ((counts - expected) ** 2 / expected).sum() < 23.5
    still, _ = relaxed_codes(logits[:1], uniform[:1], torch.tensor(1.0), torch.tensor(0.0), prior)
    torch.testing.assert_close(still, logits[:1].softmax(-1))


def test_dvae_objective_reaches_every_parameter():
    torch.manual_seed(0)
    config = DVAEModel(image_size_px=8, codebook_size=6, encoder_width=8, width_multipliers=(1, 2), blocks_per_group=1)
    objective = DVAEObjective(DVAE(config))
    batch = {"images_BCYX": torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)}
    batch |= {name: torch.tensor(1.0) for name in ("temperature", "kl_weight", "noise_scale")}
    batch["uniform_BYXK"] = uniform_noise(config, range(2), torch.device("cpu"))
    loss, metrics = objective(batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    assert {"loss", "psnr_db", "kl_per_position_nats", "relaxed_elb"} <= set(metrics)
    assert metrics["code_use_K"].sum().item() == pytest.approx(1)


def test_small_figures():
    assert perplexity(torch.tensor([5, 5, 5, 5, 0])).item() == pytest.approx(4)
    assert perplexity(torch.tensor([9, 0])).item() == pytest.approx(1)
    images = torch.full((1, 3, 2, 2), 128, dtype=torch.uint8)
    assert psnr_db(images, images.float() / 255 + 0.1).item() == pytest.approx(20, rel=1e-4)
    both = torch.cat([images, images]), torch.cat([images.float() / 255 + 0.1, images.float() / 255 + 0.01])
    assert psnr_db(*both).item() == pytest.approx(30, rel=1e-3)  # 20 and 40 dB: of each image, then the mean
    assert psnr_db(images, images / 255).item() == pytest.approx(100)


def test_the_decoder_alone_learns_from_the_codes_of_inference():
    """Against the book: logit-Laplace of the maps of a one-hot, and a step along each weight."""
    torch.manual_seed(0)
    config = DVAEModel(
        image_size_px=8, codebook_size=6, encoder_width=4, width_multipliers=(1, 2), blocks_per_group=1,
        decoder_input_width=4, init="he", logit_norm_gain=3.0, code_prior="learned", min_ln_b=-1.0,
    )  # fmt: skip
    model = DVAE(config).double()
    images_BCYX = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(3):  # statistics of the logits that are not those of a batch
            model.train().logits(torch.rand(9, 3, 8, 8, dtype=torch.float64))
    model.freeze_encoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss, metrics = DecoderObjective(model.train())({"images_BCYX": images_BCYX})
    loss.backward()

    with torch.no_grad():
        raw_BKYX = model.encoder(0.8 * images_BCYX + 0.1)
        mean_K, variance_K = model.logit_norm.running_mean, model.logit_norm.running_var
        normal_BKYX = (raw_BKYX - mean_K[:, None, None]) / (variance_K[:, None, None] + 1e-5).sqrt()
        logits_BKYX = 3 * (normal_BKYX * model.logit_norm.weight[:, None, None] + model.logit_norm.bias[:, None, None])
        codes_BYX = logits_BKYX.argmax(dim=1)
        one_hot_BKYX = torch.nn.functional.one_hot(codes_BYX, 6).permute(0, 3, 1, 2).double()

    def by_the_book() -> torch.Tensor:
        mu_BCYX, raw_BCYX = model.decoder(one_hot_BKYX).chunk(2, dim=1)
        ln_b_BCYX = -1 + torch.log1p(torch.exp(raw_BCYX + 1))
        x = 0.8 * images_BCYX + 0.1
        deviation = (torch.log(x / (1 - x)) - mu_BCYX).abs() / ln_b_BCYX.exp()
        return -(-torch.log(2 * ln_b_BCYX.exp() * x * (1 - x)) - deviation).mean()

    expected = by_the_book()
    # the maps are fp32
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-6)
    assert metrics["loss"] == metrics["reconstruction_nats"] == loss
    decoder = {name: p for name, p in model.named_parameters() if name.startswith("decoder.")}
    gradients = torch.autograd.grad(expected, list(decoder.values()))
    for (name, p), gradient in zip(decoder.items(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(decoder)
    counts_K = torch.bincount(codes_BYX.flatten(), minlength=6)
    torch.testing.assert_close(metrics["code_use_K"].double(), counts_K.double() / codes_BYX.numel(), rtol=0, atol=1e-6)
    assert (counts_K > 0).sum() > 1  # or the codes would say nothing
    # neither the pass nor the mode has changed anything, be it a statistic
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and model.decoder.training and not model.encoder.training and not model.logit_norm.training
