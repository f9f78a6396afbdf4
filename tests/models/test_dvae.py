"""The dVAE against an independent functional computation of appendix A.1, its published sizes, and its likelihood
against numerical integration."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dalle.config import DVAEModel
from dalle.models.dvae import DVAE, ResBlock, _pointwise_product
from dalle.models.likelihood import log_likelihood, map_pixels, reconstruction, unmap_pixels

SMALL = DVAEModel(
    image_size_px=16, codebook_size=10, encoder_width=8, width_multipliers=(1, 2, 4), blocks_per_group=2,
    decoder_input_width=12,
)  # fmt: skip


def _block(x, weights, prefix, kernels, gain):
    y = x
    for i, kernel in enumerate(kernels, 1):
        w, b = weights[f"{prefix}.res_path.conv_{i}.weight"], weights[f"{prefix}.res_path.conv_{i}.bias"]
        y = F.conv2d(F.relu(y), w, b, padding=kernel // 2)
    if f"{prefix}.id_path.weight" in weights:
        x = F.conv2d(x, weights[f"{prefix}.id_path.weight"], weights[f"{prefix}.id_path.bias"])
    return x + gain * y


def _by_the_book(x, weights, part, groups, blocks, kernels, resample):
    gain = 1 / (groups * blocks) ** 2
    x = F.conv2d(x, weights[f"{part}.blocks.input.weight"], weights[f"{part}.blocks.input.bias"], padding="same")
    for group in range(1, groups + 1):
        for block in range(1, blocks + 1):
            x = _block(x, weights, f"{part}.blocks.group_{group}.block_{block}", kernels, gain)
        if group < groups:
            x = resample(x)
    weight, bias = (weights[f"{part}.blocks.output.conv.{name}"] for name in ("weight", "bias"))
    return F.conv2d(F.relu(x), weight, bias)


def test_both_halves_are_appendix_a1():
    torch.manual_seed(0)
    model = DVAE(SMALL).double()  # so that only a wrong formula can differ
    weights = {name: 4 * tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights)
    x = torch.rand(2, 3, 16, 16).double()
    expected = _by_the_book(x, weights, "encoder", 3, 2, (3, 3, 3, 1), lambda t: F.max_pool2d(t, 2))
    torch.testing.assert_close(model.encoder(x), expected)
    z = torch.rand(2, 10, 4, 4).double()
    double = lambda t: t.repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    expected = _by_the_book(z, weights, "decoder", 3, 2, (1, 3, 3, 3), double)
    torch.testing.assert_close(model.decoder(z), expected)


def test_published_sizes_and_names():
    """Counts of appendix A.1, on the meta device."""
    with torch.device("meta"):
        model = DVAE(DVAEModel())
    encoder, decoder = model.encoder.state_dict(), model.decoder.state_dict()
    assert (len(encoder), sum(t.numel() for t in encoder.values())) == (74, 53_786_240)
    assert (len(decoder), sum(t.numel() for t in decoder.values())) == (76, 43_829_766)
    assert encoder["blocks.input.weight"].shape == (256, 3, 7, 7)
    assert encoder["blocks.output.conv.weight"].shape == (8192, 2048, 1, 1)
    assert decoder["blocks.input.weight"].shape == (128, 8192, 1, 1)
    assert decoder["blocks.output.conv.weight"].shape == (6, 256, 1, 1)
    assert {n for n in encoder if "id_path" in n} == {
        f"blocks.group_{g}.block_1.id_path.{t}" for g in (2, 3, 4) for t in ("weight", "bias")
    }
    assert model.encoder.blocks.group_1.block_1.post_gain == 1 / 64


def test_init_is_the_papers():
    torch.manual_seed(0)
    weight = DVAE(DVAEModel(encoder_width=64, codebook_size=32)).encoder.blocks.group_4.block_1.res_path.conv_1.weight
    fan_in = weight[0].numel()
    # the standard error of a standard deviation from n draws is 1/√(2n) of it; five of them
    assert weight.std().item() == pytest.approx(1 / math.sqrt(fan_in), rel=5 / math.sqrt(2 * weight.numel()))


def test_boundary_convolutions_stay_fp32_under_autocast():
    model = DVAE(SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.logits(torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8))
        codebook = model.decoder.blocks.input(torch.rand(1, 10, 4, 4))
        inner = model.encoder.blocks.input(torch.rand(1, 3, 8, 8))
    assert logits.dtype == codebook.dtype == torch.float32
    assert inner.dtype == torch.bfloat16


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_code_is_a_row_of_a_table(kernel):
    torch.manual_seed(0)
    model = DVAE(replace(SMALL, boundary_kernel=kernel)).eval()
    codes = torch.randint(0, 10, (2, 4, 4))
    one_hot = F.one_hot(codes, 10).permute(0, 3, 1, 2).float()
    for ours, plain in zip(model.likelihood_maps_of_codes(codes), model.likelihood_maps(one_hot), strict=True):
        torch.testing.assert_close(ours, plain)


def test_the_logits_convolution_has_the_gradients_of_pytorchs():
    torch.manual_seed(0)
    model = DVAE(SMALL)
    conv = model.encoder.blocks.output.conv
    x = torch.rand(2, 32, 5, 3).to(memory_format=torch.channels_last).requires_grad_()
    inputs = (x, conv.weight, conv.bias)
    weights = torch.randn(2, 10, 5, 3)
    ours, plain = (
        torch.autograd.grad((y * weights).sum(), inputs) for y in (conv(x), F.conv2d(x, conv.weight, conv.bias))
    )
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_the_papers_comparisons():
    """3×3 boundary convs, average pooling and l2 are what their names say."""
    model = DVAE(replace(SMALL, boundary_kernel=3, pool="average", likelihood="l2"))
    assert model.encoder.blocks.output.conv.weight.shape[-1] == model.decoder.blocks.input.weight.shape[-1] == 3
    x = torch.rand(1, 8, 4, 4)
    torch.testing.assert_close(model.encoder.blocks.group_1.pool(x), x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    mu, ln_sigma = model.likelihood_maps_of_codes(torch.randint(0, 10, (2, 4, 4)))
    # a density of mapped pixels, whose range is 0.8 times as wide
    expected = torch.distributions.Normal(mu, 0.2).log_prob(images / 255) - math.log(0.8)
    torch.testing.assert_close(model.log_likelihood(images, mu, ln_sigma), expected)
    assert torch.equal(model.reconstruction(mu), mu.clamp(0, 1))


def test_a_small_residual_survives_16_bits():
    """The published gain is 1/64: a sum with 8 bits of significand would swallow most of it."""
    torch.manual_seed(0)
    block = ResBlock(64, 64, (3, 3, 3, 1), 1 / 64, upsample=False)
    x = torch.randn(1, 64, 8, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    assert y.dtype == torch.float32
    expected = block.res_path(x) / 64
    assert ((y - x) - expected).norm() < 0.05 * expected.norm()  # what 16-bit products alone lose


def test_a_matrix_product_is_the_pointwise_convolution():
    """What a GPU runs in place of a TF32 convolution."""
    torch.manual_seed(0)
    conv = DVAE(SMALL).encoder.blocks.output.conv
    x = torch.rand(2, 32, 5, 3)
    torch.testing.assert_close(_pointwise_product(x, conv.weight, conv.bias), F.conv2d(x, conv.weight, conv.bias))


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"images of 18×16 px: both sides must be multiples of 4, the downsampling"):
        DVAE(SMALL).encode(torch.zeros(1, 3, 16, 18))


def test_encode_decode_shapes():
    model = DVAE(SMALL).eval()
    codes = model.encode(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8))
    assert codes.shape == (2, 4, 4)
    assert codes.dtype == torch.int64
    images = model.decode(codes)
    assert images.shape == (2, 3, 16, 16)
    assert 0 <= images.min() <= images.max() <= 1


def test_likelihood_integrates_to_one_and_pixels_map_back():
    x = torch.linspace(1e-5, 1 - 1e-5, 200_001, dtype=torch.float64)
    for mu, ln_b in ((0.0, -1.0), (1.5, 0.3), (-2.0, -0.5)):
        density = log_likelihood(x, torch.tensor(mu), torch.tensor(ln_b)).exp().double()
        # the trapezoid rule on 2·10⁵ points; the tails beyond the ends hold less than 1e-4 for these scales
        assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=2e-3)
    pixels = torch.arange(256, dtype=torch.uint8)
    assert map_pixels(pixels).min().item() == pytest.approx(0.1)
    torch.testing.assert_close(unmap_pixels(map_pixels(pixels)), pixels / 255)
    torch.testing.assert_close(reconstruction(torch.logit(map_pixels(pixels))), pixels / 255, atol=1e-6, rtol=1e-5)
