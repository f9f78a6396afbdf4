"""The StackGAN's networks beside the document's tables."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dalle.config import StackGANModel
from dalle.models.stackgan.blocks import DoublingConv, ResBlock
from dalle.models.stackgan.discriminator import Discriminator
from dalle.models.stackgan.generators import generator

SMALL = StackGANModel(
    image_size_px=16, text_width=6, channels=4, discriminator_channels=4, noise_width=5, condition_width=8
)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _on_meta(config, make=generator):
    with torch.device("meta"):
        return make(config)


def test_stage_one_has_the_printed_parameters_part_by_part():
    model = _on_meta(StackGANModel())
    augmented = _count(model.conditioning) + _count(model.project) + _count(model.project_norm)
    assert augmented == 5_849_344 and (_count(model.project), _count(model.project_norm)) == (5_603_328, 49_152)
    # the document's 2,655,366 for the second is a slip: its own total needs 2,655,360
    assert [_count(block) for block in model.upsample] == [10_619_136, 2_655_360, 664_128, 166_176]
    assert _count(model.output) == 2_595
    assert _count(model) == 19_956_739


def test_stage_two_has_the_printed_parameters_part_by_part():
    model = _on_meta(StackGANModel(stage=2, image_size_px=256))
    assert [_count(each) for each in (model.down_1, model.down_2, model.down_3)] == [5_376, 1_180_800, 4_720_896]
    assert (_count(model.conditioning), _count(model.join)) == (196_864, 6_195_456)
    assert [_count(block) for block in model.resblocks] == 4 * [10_621_440]
    assert [_count(block) for block in model.upsample] == [2_655_360, 664_128, 166_176, 41_616]
    assert _count(model.output) == 1_299
    assert _count(model) == 58_313_731


@pytest.mark.parametrize(("stage", "size_px", "all_of_it"), [(1, 64, 7_003_041), (2, 256, 154_479_777)])
def test_a_discriminator_has_the_parameters_of_the_page(stage, size_px, all_of_it):
    config = StackGANModel(stage=stage, image_size_px=size_px, joint_kernel=1, text="compressed")
    model = _on_meta(config, Discriminator)
    assert (_count(model.text), _count(model.joint), _count(model.conditional)) == (98_432, 690_432, 12_289)
    assert _count(model) == all_of_it
    assert _count(_on_meta(replace(config, unconditional=True), Discriminator)) == all_of_it + 12_289


def test_features_by_averages_are_of_each_image_alone_and_teach_nothing():
    model = Discriminator(SMALL)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    model(images, torch.rand(4, SMALL.text_width))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    together = model.features_by_averages(images)
    alone = torch.cat([model.features_by_averages(image[None]) for image in images])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together, model.features(images))
    assert model.training and not torch.allclose(together[0], together[1])
    model.load_state_dict(before)
    model.features_by_averages(images)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    model.eval().features_by_averages(images)
    assert not model.training


@pytest.mark.parametrize(("stage", "size_px"), [(1, 64), (2, 256)])
def test_the_tables_output_shapes(stage, size_px):
    model = _on_meta(StackGANModel(stage=stage, image_size_px=size_px))
    seen = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: seen.update({name: tuple(getattr(o, "shape", ()))}))
    with torch.device("meta"):
        low = torch.empty(1, 3, 64, 64) if stage == 2 else None
        model.eval()(torch.empty(1, 768), torch.empty(1, 100), torch.empty(1, 128), low)
    if stage == 1:
        assert seen["project"] == (1, 24576)
        expected = {"upsample.0": (768, 8), "upsample.1": (384, 16), "upsample.2": (192, 32), "upsample.3": (96, 64)}
    else:
        expected = {"down_1": (192, 64), "down_2": (384, 32), "down_3": (768, 16), "join": (768, 16)}
        expected |= {f"resblocks.{n}": (768, 16) for n in range(4)}
        expected |= {"upsample.0": (384, 32), "upsample.1": (192, 64), "upsample.2": (96, 128), "upsample.3": (48, 256)}
    for name, (channels, side) in {**expected, "output": (3, size_px)}.items():
        assert seen[name] == (1, channels, side, side), name


def test_the_condition_is_mean_and_scaled_noise():
    model = generator(SMALL)
    nn.init.normal_(model.conditioning.fc.weight)
    text_BE, epsilon_BC = torch.randn(3, 6), torch.randn(3, 8)
    drawn_BC, mean_BC, log_variance_BC = model.conditioning.drawn(text_BE, epsilon_BC)
    both = (text_BE @ model.conditioning.fc.weight.T + model.conditioning.fc.bias).clamp(min=0)
    assert (both > 0).any() and (both == 0).any()
    torch.testing.assert_close(mean_BC, both[:, :8])
    torch.testing.assert_close(log_variance_BC, both[:, 8:])
    torch.testing.assert_close(drawn_BC, both[:, :8] + torch.sqrt(torch.exp(both[:, 8:])) * epsilon_BC)
    linear = generator(replace(SMALL, conditioning="linear"))
    nn.init.normal_(linear.conditioning.fc.weight)
    assert (linear.conditioning(text_BE)[0] < 0).any() and (linear.conditioning(text_BE)[1] < 0).any()


def test_stage_one_sees_caption_noise_and_condition_noise():
    torch.manual_seed(0)
    model = generator(SMALL).eval()
    inputs = [torch.randn(2, 6), torch.randn(2, 5), torch.randn(2, 8)]
    before = model(*inputs)[0]
    assert before.shape == (2, 3, 16, 16) and before.abs().max() < 1
    for n in range(3):
        other = [each + (i == n) for i, each in enumerate(inputs)]
        assert not torch.equal(model(*other)[0], before), n
    torch.testing.assert_close(model(*inputs)[0], before)


def test_stage_two_sees_stage_ones_image_and_the_caption():
    """That stage two ignores stage one is among the faults reported of the family."""
    torch.manual_seed(0)
    model = generator(replace(SMALL, stage=2, image_size_px=32)).eval()
    text, epsilon, low = torch.randn(2, 6), torch.zeros(2, 8), torch.rand(2, 3, 8, 8) * 2 - 1
    before = model(text, None, epsilon, low)[0]
    assert before.shape == (2, 3, 32, 32)
    assert not torch.equal(model(text, None, epsilon, -low)[0], before)
    assert not torch.equal(model(text + 1, None, epsilon, low)[0], before)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-13), (torch.bfloat16, 4e-3)])
def test_a_convolution_of_doubled_pixels_needs_no_doubled_map(dtype, within):
    """Against the two steps of the document, forward and backward, with an uneven side and in a layout of channels last; in bf16 by
    autocast, where a weight, a pixel and a sum are each rounded once, by 0.2% of themselves."""
    torch.manual_seed(0)
    conv = DoublingConv(5, 7, bias=True).double().to(memory_format=torch.channels_last)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    up = torch.randn(2, 7, 6, 8, dtype=torch.float64)
    wanted = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), conv.weight, conv.bias, padding=1)
    wanted = [wanted, *torch.autograd.grad(wanted, (x, conv.weight, conv.bias), up)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = conv.float()(x.float()) if dtype == torch.bfloat16 else conv(x)
    found = [found, *torch.autograd.grad(found, (x, conv.weight, conv.bias), up.to(found.dtype))]
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).norm() <= within * other.norm()
    assert [*conv.state_dict()] == ["weight", "bias"]


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, stage=2, image_size_px=32)])
def test_maps_keep_the_layout_that_convolutions_are_fast_in(config):
    model = generator(config).to(memory_format=torch.channels_last)
    seen = []
    for block in model.upsample:
        block.register_forward_hook(lambda m, i, o: seen.append(o.is_contiguous(memory_format=torch.channels_last)))
    low = torch.rand(2, 3, config.image_size_px // 4, config.image_size_px // 4) if config.stage == 2 else None
    model(torch.randn(2, 6), torch.randn(2, config.noise_width), torch.randn(2, config.condition_width), low)
    assert seen == [True] * len(model.upsample)


def test_a_resblock_adds_to_what_it_is_given():
    torch.manual_seed(0)
    block, x = ResBlock(4, biases=True).eval(), torch.randn(2, 4, 5, 5)
    inner = F.relu(F.conv2d(x, block.conv_1.weight, block.conv_1.bias, padding=1) / (1 + 1e-5) ** 0.5)
    added = F.conv2d(inner, block.conv_2.weight, block.conv_2.bias, padding=1) / (1 + 1e-5) ** 0.5
    # of running statistics that are yet 0 and 1
    torch.testing.assert_close(block(x), (x + added).clamp(min=0))


def test_every_switch_changes_the_networks():
    def sizes(**changes):
        config = replace(SMALL, **changes)
        return {
            name: sum(1 for m in _on_meta(config, make).modules() if isinstance(m, kind))
            for make in (generator, Discriminator)
            for name, kind in (
                (f"{make.__name__} transposed", nn.ConvTranspose2d),
                (f"{make.__name__} dropout", nn.Dropout),
                (f"{make.__name__} norm", nn.BatchNorm2d),
                (f"{make.__name__} linear", nn.Linear),
            )
        }

    plain = sizes()
    changed = sizes(upsample="transposed", dropout=0.1, discriminator_norm="none", text="shared-mean")
    assert plain == {
        **{"generator transposed": 0, "generator dropout": 0, "generator norm": 3, "generator linear": 2},
        **{
            "Discriminator transposed": 0,
            "Discriminator dropout": 0,
            "Discriminator norm": 2,
            "Discriminator linear": 1,
        },
    }
    assert changed == {
        **{"generator transposed": 2, "generator dropout": 2, "generator norm": 3, "generator linear": 2},
        **{
            "Discriminator transposed": 0,
            "Discriminator dropout": 0,
            "Discriminator norm": 0,
            "Discriminator linear": 0,
        },
    }
    kernels = [_on_meta(replace(SMALL, joint_kernel=k), Discriminator).joint[0].kernel_size for k in (1, 3)]
    assert kernels == [(1, 1), (3, 3)]
    for make in (generator, Discriminator):
        bare = _on_meta(replace(SMALL, biases=False), make)
        convs = [m for m in bare.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        assert sum(m.bias is not None for m in convs) == 1  # the one that makes the image, or the judgement
        assert all(m.bias is not None for m in _on_meta(SMALL, make).modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(("stage", "size_px", "last"), [(1, 64, 32), (2, 256, 32), (2, 64, 32)])
def test_a_discriminator_ends_in_one_number_for_an_image_and_a_caption(stage, size_px, last):
    config = replace(SMALL, stage=stage, image_size_px=size_px, unconditional=True)
    torch.manual_seed(0)
    model = Discriminator(config).eval()
    images, texts = torch.rand(2, 3, size_px, size_px), torch.randn(2, 6)
    features = model.features(images)
    assert features.shape == (2, last, 4, 4)
    judged = model.judge(features, texts)
    assert judged.shape == model.judge_image(features).shape == (2,) and judged.dtype == torch.float32
    torch.testing.assert_close(model(images, texts), judged)
    assert not torch.equal(model(images, texts.flip(0)), judged) and not torch.equal(
        model(images.flip(0), texts), judged
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"image_size_px": 48}, "image_size_px 48: must be a power of two"),
        ({"stage": 2, "image_size_px": 16}, "image_size_px 16: must be a power of two, at least 32 in stage 2"),
        ({"stage": 2, "image_size_px": 64, "channels": 5}, "channels 5: must be even"),
        ({"dropout": 1.0}, "dropout 1.0: must lie in"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        replace(SMALL, **changes)
