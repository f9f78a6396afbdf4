"""Noise of a GAN as a function of seeds, drawn on the CPU: the same on every device, and the same in training as in sampling."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from dalle.config import StackGANModel


def noise(config: StackGANModel, seeds: Iterable[int]) -> dict[str, torch.Tensor]:
    """`noise_BZ` and `epsilon_BC`, standard normal, fp32. Both stages may be given the same seeds: they draw other numbers.

    Args:
        config: stage and widths
        seeds: one for each row, each within 64 bits, of which all count (PyTorch's generator would take 32 of them)
    """
    width = config.noise_width + config.condition_width
    generators = (np.random.default_rng([config.stage, seed % 2**64]) for seed in seeds)
    both = torch.from_numpy(np.stack([each.standard_normal(width, dtype=np.float32) for each in generators]))
    noise_BZ, epsilon_BC = both.split([config.noise_width, config.condition_width], dim=1)
    return {"noise_BZ": noise_BZ, "epsilon_BC": epsilon_BC}
