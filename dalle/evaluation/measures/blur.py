"""Images blurred as for Figure 9 of the paper, where distances of blurred images show whether only fine detail is lacking."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

RADII_PX = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Figure 9's, of images at 256 px."""
DEFINITION = (
    "Gaussian of standard deviation r pixels, cut off at 4r, over rows and columns of each colour, edges mirrored, rounded to "
    "8 bits (scipy.ndimage.gaussian_filter)"
)


def blurred(images_BYX3: np.ndarray, radius_px: float) -> np.ndarray:
    """uint8 images [B, Y, X, 3] under a spherical Gaussian of standard deviation `radius_px`; 0 returns them as they are."""
    if radius_px == 0:
        return images_BYX3
    sigma = (0, radius_px, radius_px, 0)
    smooth_BYX3 = gaussian_filter(images_BYX3, sigma, output=np.float64, mode="reflect", truncate=4.0)
    return np.rint(smooth_BYX3).clip(0, 255).astype(np.uint8)
