"""Noise of a GAN as a function of seeds, drawn on the CPU: the same on every device, and the same in training as in sampling."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dalle.config.stackgan import StackGANModel


def noise(config: StackGANModel, seeds: Iterable[int]) -> dict[str, torch.Tensor]:
    """`noise_BZ` and `epsilon_BC`, standard normal, fp32. Both stages are given the same seeds, and draw other numbers.

    Args:
        config: stage and widths
        seeds: one for each row, int64
    """
    generator = torch.Generator()
    width = config.noise_width + config.condition_width
    # numbers of one seed alone would be the same in both stages, whose conditions are to be drawn independently
    offset = (config.stage - 1) << 62
    both = torch.stack([torch.randn(width, generator=generator.manual_seed(seed ^ offset)) for seed in seeds])
    noise_BZ, epsilon_BC = both.split([config.noise_width, config.condition_width], dim=1)
    return {"noise_BZ": noise_BZ, "epsilon_BC": epsilon_BC}
