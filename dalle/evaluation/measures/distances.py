"""Distances of two sets of features. The mathematics is torch-fidelity's and prdc's; here are their settings."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import numpy as np
import torch

from dalle.evaluation.features.images import extra
from dalle.evaluation.measures.class_score import Spread
from dalle.evaluation.measures.moments import Moments

KERNEL_SUBSETS, KERNEL_SUBSET_SIZE, KERNEL_SEED = 100, 1000, 2020
"""torch-fidelity's."""
NEAREST_K = 5
"""As in Naeem et al. 2020, whose library prdc is."""


@dataclass(frozen=True)
class Neighbourhoods:
    """Shares of images that lie among the others' (Kynkäänniemi et al. 2019; Naeem et al. 2020).

    precision: of images within reach of a reference image. recall: of reference images within reach of an image. density:
    reference images in whose reach an image is, over k; can exceed 1. coverage: of reference images that have an image in reach.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def frechet_distance(images: Moments, reference: Moments) -> float:
    """That of the Gaussians of both sets (Heusel et al. 2017), by torch-fidelity: FID where the features are Inception's."""
    library = extra("torch_fidelity.metric_fid")
    told = [{"mu": moments.mean_E, "sigma": moments.covariance()} for moments in (images, reference)]
    return library.fid_statistics_to_metric(*told, verbose=False)[library.KEY_METRIC_FID]


def kernel_subset_size(num_images: int, num_reference: int) -> int:
    """Images of each set in a subset of `kernel_distance`: a thousand, or all of the smaller set."""
    return min(KERNEL_SUBSET_SIZE, num_images, num_reference)


def kernel_distance(images_ME: np.ndarray, reference_ME: np.ndarray) -> Spread:
    """The unbiased squared MMD under a cubic kernel (Bińkowski et al. 2018), over subsets, by torch-fidelity: KID where the
    features are Inception's."""
    library = extra("torch_fidelity.metric_kid")
    told = library.kid_features_to_metric(
        torch.from_numpy(images_ME),
        torch.from_numpy(reference_ME),
        kid_subsets=KERNEL_SUBSETS,
        kid_subset_size=kernel_subset_size(len(images_ME), len(reference_ME)),
        rng_seed=KERNEL_SEED,
        verbose=False,
    )
    return Spread(told[library.KEY_METRIC_KID_MEAN], told[library.KEY_METRIC_KID_STD])


def neighbourhoods(images_ME: np.ndarray, reference_ME: np.ndarray) -> Neighbourhoods | None:
    """By prdc; null where a set is too small to have a fifth neighbour."""
    if min(len(images_ME), len(reference_ME)) < NEAREST_K + 2:  # what prdc's partition takes
        return None
    library, joblib = extra("prdc"), extra("joblib")
    # It prints how many there are. Its eight jobs would cut products differently by where they may run at all; the products
    # themselves have threads.
    with contextlib.redirect_stdout(io.StringIO()), joblib.parallel_config(backend="sequential"):
        told = library.compute_prdc(reference_ME, images_ME, nearest_k=NEAREST_K)
    return Neighbourhoods(**{name: float(value) for name, value in told.items()})
