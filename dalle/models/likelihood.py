"""The logit-Laplace likelihood of pixels (appendix A.3), and a Gaussian to compare it with."""

from __future__ import annotations

import math

import numpy as np
import torch

EPSILON = 0.1
"""`map_pixels` keeps pixels this far from 0 and 1, where the logit is infinite (A.3)."""


def unit_range(images: torch.Tensor) -> torch.Tensor:
    """Pixels as floats in [0, 1]: uint8 is divided by 255, floats are in it already. Any shape."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def to_uint8(images_BCYX: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as uint8 [B, 3, Y, X], rounded."""
    return (images_BCYX * 255).round().to(torch.uint8)


def to_pixels(images_BCYX: torch.Tensor) -> np.ndarray:
    """Images in [0, 1] as uint8 [B, Y, X, 3]."""
    return to_uint8(images_BCYX).permute(0, 2, 3, 1).cpu().numpy()


def map_pixels(images: torch.Tensor) -> torch.Tensor:
    """φ(x) = (1 − 2ε)·x + ε: pixels in [0, 1] to [ε, 1 − ε]. Any shape; uint8 is divided by 255 first."""
    return (1 - 2 * EPSILON) * unit_range(images) + EPSILON


def unmap_pixels(mapped: torch.Tensor) -> torch.Tensor:
    """φ⁻¹, clamped to [0, 1]."""
    return ((mapped - EPSILON) / (1 - 2 * EPSILON)).clamp(0, 1)


def log_likelihood(x: torch.Tensor, mu: torch.Tensor, ln_b: torch.Tensor) -> torch.Tensor:
    """ln f(x | μ, b) of f = exp(−|logit x − μ| / b) / (2 b x (1 − x)), elementwise, in fp32.

    Args:
        x: mapped pixels in (0, 1)
        mu: location in logit space
        ln_b: logarithm of the scale
    """
    x, mu, ln_b = x.float(), mu.float(), ln_b.float()
    return -(torch.logit(x) - mu).abs() * torch.exp(-ln_b) - ln_b - torch.log(2 * x * (1 - x))


def gaussian_log_likelihood(x: torch.Tensor, mu: torch.Tensor, ln_sigma: torch.Tensor) -> torch.Tensor:
    """ln N(x | μ, σ²), elementwise, in fp32; x are pixels in [0, 1]."""
    x, mu, ln_sigma = x.float(), mu.float(), ln_sigma.float()
    return -0.5 * ((x - mu) * torch.exp(-ln_sigma)) ** 2 - ln_sigma - 0.5 * math.log(2 * math.pi)


def reconstruction(mu: torch.Tensor) -> torch.Tensor:
    """The image that a decoder output stands for: φ⁻¹(sigmoid μ) in [0, 1]; ln b is ignored (A.3)."""
    return unmap_pixels(torch.sigmoid(mu.float()))
