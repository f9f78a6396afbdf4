"""A small picture of as many bits as the codes."""

import math

import torch

from dalle.evaluation.bicubic import bicubic_of_equal_size


def test_levels_fill_the_bits():
    """512 codes on 16×16 positions are three bits for each of the 16×16×3 values."""
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    coarse = bicubic_of_equal_size(images, 64, 3 * math.log2(512) / 3)  # one value a colour, 3 bits each
    assert coarse.shape == (2, 3, 64, 64)
    levels = coarse[:, :, 0, 0] * 7
    torch.testing.assert_close(levels, levels.round())
    assert bicubic_of_equal_size(images, 4, 16 * 16 * math.log2(7)) is None  # not even two levels


def test_a_flat_image_of_a_level_stays():
    images = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    torch.testing.assert_close(bicubic_of_equal_size(images, 4, 4 * 4 * 9), torch.ones(1, 3, 16, 16))


def test_more_bits_are_nearer():
    images = torch.arange(256, dtype=torch.uint8).repeat(1, 3, 16, 1)[..., ::16]
    errors = [(bicubic_of_equal_size(images, 4, 48 * bits) - images / 255).square().mean() for bits in (1, 2, 3, 99)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 3 * errors[3]
