"""The mathematics of measures: sums against the whole, libraries' figures on the same features, and known answers."""

import contextlib
import io

import joblib
import numpy as np
import prdc
import pytest
import torch
from scipy.linalg import sqrtm

from dalle.evaluation.features.images import extra
from dalle.evaluation.measures.blur import blurred
from dalle.evaluation.measures.class_score import ClassScore
from dalle.evaluation.measures.distances import (
    KERNEL_SEED,
    frechet_distance,
    kernel_distance,
    kernel_subset_size,
    neighbourhoods,
)
from dalle.evaluation.measures.moments import Moments
from dalle.evaluation.measures.sample import Sample


def moments_of(features_NE: np.ndarray, batch: int = 7) -> Moments:
    moments = Moments(features_NE.shape[1])
    for first in range(0, len(features_NE), batch):
        moments.add(features_NE[first : first + batch])
    return moments


def with_moments(mean_E: np.ndarray, covariance_EE: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Features whose sample mean and covariance are exactly these."""
    raw_NE = np.random.default_rng(seed).normal(size=(count, len(mean_E)))
    raw_NE -= raw_NE.mean(axis=0)
    white_NE = raw_NE @ np.linalg.inv(np.linalg.cholesky(np.cov(raw_NE, rowvar=False))).T
    return mean_E + white_NE @ np.linalg.cholesky(covariance_EE).T


# ---- moments


def test_moments_are_those_of_numpy_far_from_zero():
    """Features near a million with a spread of a thousandth: plain sums of squares have no digit of the covariance left
    (10¹² · 2⁻⁵³ · N against 10⁻⁶). What is allowed is what the features themselves are rounded to, 10⁻¹⁰ of their spread of
    10⁻³, over a hundred of them."""
    features_NE = 1e6 + 1e-3 * np.random.default_rng(0).normal(size=(101, 5))
    moments = moments_of(features_NE)
    assert moments.count == 101
    np.testing.assert_allclose(moments.mean_E, features_NE.mean(axis=0), rtol=1e-15)
    expected_EE = np.cov(features_NE, rowvar=False)
    np.testing.assert_allclose(moments.covariance(), expected_EE, rtol=1e-6, atol=1e-12)
    squares_EE = features_NE.T @ features_NE - 101 * np.outer(features_NE.mean(axis=0), features_NE.mean(axis=0))
    assert not np.allclose(squares_EE / 100, expected_EE, rtol=0.1)  # so the test can tell


@pytest.mark.parametrize("batches", [(101,), (1,) * 101, (50, 1, 50), (3, 90, 8)])
def test_moments_are_additive(batches):
    features_NE = np.random.default_rng(1).normal(2, 3, size=(101, 4)).astype(np.float32)
    parts, first = [], 0
    for count in batches:
        part = Moments(4)
        part.add(features_NE[first : first + count])
        parts, first = [*parts, part], first + count
    whole = Moments(4)
    for part in reversed(parts):
        whole.merge(part)
    whole.merge(Moments(4))  # of a process that had no image
    # sums of a hundred numbers in float64
    np.testing.assert_allclose(whole.mean_E, features_NE.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(whole.covariance(), np.cov(features_NE.astype(np.float64), rowvar=False), rtol=1e-12)
    np.testing.assert_array_equal(whole.covariance(), whole.covariance().T)


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        moments_of(np.ones((1, 3))).covariance()


# ---- Fréchet distance


def test_frechet_distance_of_made_up_gaussians():
    """|μ₁ − μ₂|² + Σ (σ₁ − σ₂)² where the covariances are diagonal, and by the square root of a matrix where they are not.
    Eigenvalues of a product in float64 are good to about 10⁻¹², their roots to 10⁻⁶ where they are near 0: here none is."""
    mean_E, other_E = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
    sigma_E, other_sigma_E = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.5])
    first = moments_of(with_moments(mean_E, np.diag(sigma_E**2), 40, 0))
    second = moments_of(with_moments(other_E, np.diag(other_sigma_E**2), 60, 1))
    assert frechet_distance(first, second) == pytest.approx(10 + 5, rel=1e-9)
    root_EE = np.random.default_rng(2).normal(size=(3, 3))
    full_EE = root_EE @ root_EE.T + np.eye(3)
    third = moments_of(with_moments(other_E, full_EE, 50, 3))
    mixed_EE = sqrtm(np.diag(sigma_E) @ full_EE @ np.diag(sigma_E))
    expected = 10 + np.trace(np.diag(sigma_E**2) + full_EE - 2 * mixed_EE.real)
    assert frechet_distance(first, third) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(third, first) == pytest.approx(expected, rel=1e-9)


def features_pair() -> tuple[np.ndarray, np.ndarray]:
    """fp32 features of two sets, as networks give them."""
    rng = np.random.default_rng(4)
    first = rng.gamma(1.5, 1, size=(150, 8)).astype(np.float32)
    return first, rng.gamma(2.0, 0.8, size=(130, 8)).astype(np.float32)


def test_frechet_distance_is_that_of_torch_fidelity():
    """Which takes all features at once: the sums make a difference of float64's last digits only."""
    library = extra("torch_fidelity.metric_fid")
    first, second = features_pair()
    told = [library.fid_features_to_statistics(torch.from_numpy(x).double()) for x in (first, second)]
    expected = library.fid_statistics_to_metric(*told, verbose=False)[library.KEY_METRIC_FID]
    assert expected > 0.1
    assert frechet_distance(moments_of(first), moments_of(second)) == pytest.approx(expected, rel=1e-9)


# ---- kernel distance


def test_kernel_distance_is_that_of_torch_fidelity():
    library = extra("torch_fidelity.metric_kid")
    first, second = features_pair()
    pair = torch.from_numpy(first), torch.from_numpy(second)
    expected = library.kid_features_to_metric(*pair, kid_subset_size=130, verbose=False)  # its own defaults otherwise
    found = kernel_distance(first, second)
    assert found.mean == pytest.approx(expected[library.KEY_METRIC_KID_MEAN], rel=1e-6)
    assert found.std == pytest.approx(expected[library.KEY_METRIC_KID_STD], rel=1e-6)


def test_kernel_distance_is_the_unbiased_estimate():
    """By the definition, in float64, where each subset is the whole of both sets: fp32 sums over 130² kernels of about 10 leave
    some 10⁻⁶ of them."""
    first, second = (x[:130].astype(np.float64) for x in features_pair())
    kernel = [[(a @ b.T / 8 + 1) ** 3 for b in (first, second)] for a in (first, second)]
    apart = ~np.eye(130, dtype=bool)
    expected = kernel[0][0][apart].mean() + kernel[1][1][apart].mean() - 2 * kernel[0][1].mean()
    found = kernel_distance(first.astype(np.float32), second.astype(np.float32))
    assert found.mean == pytest.approx(expected, abs=1e-5 * kernel[0][1].mean())
    assert expected > 100 * 1e-5 * kernel[0][1].mean()


def test_subsets_of_the_kernel_distance_are_a_thousand_where_there_are_so_many():
    assert kernel_subset_size(5000, 3000) == 1000
    assert kernel_subset_size(999, 3000) == 999 and kernel_subset_size(3000, 2) == 2
    assert KERNEL_SEED == 2020  # torch-fidelity's default


# ---- precision, recall, density, coverage


def test_neighbourhoods_are_those_of_prdc_and_of_their_definitions():
    first, second = features_pair()
    with contextlib.redirect_stdout(io.StringIO()):
        expected = prdc.compute_prdc(real_features=second, fake_features=first, nearest_k=5)
    found = neighbourhoods(first, second)
    assert vars(found) == pytest.approx(expected, rel=1e-6)

    # by hand, with first beside second the images and the real ones
    def distances(a, b):
        return np.sqrt(((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(axis=-1))

    reach_real = np.sort(distances(second, second), axis=1)[:, 5]  # the nearest of all is oneself
    reach_fake = np.sort(distances(first, first), axis=1)[:, 5]
    apart = distances(first, second)
    within = apart < reach_real
    by_hand = {
        "precision": within.any(axis=1).mean(),
        "recall": (apart < reach_fake[:, None]).any(axis=0).mean(),
        "density": within.sum() / (5 * len(first)),
        "coverage": within.any(axis=0).mean(),
    }
    # an image on the edge of a reach may fall on either side: one in a hundred
    assert vars(found) == pytest.approx(by_hand, abs=0.011)
    assert len(set(by_hand.values())) == 4


def test_neighbourhoods_are_silent_and_take_seven_images(capsys):
    first, second = features_pair()
    assert neighbourhoods(first[:6], second) is None and neighbourhoods(first, second[:6]) is None
    assert neighbourhoods(first[:7], second[:7]) is not None
    assert capsys.readouterr().out == ""


def test_neighbourhoods_take_no_processes_of_their_own(monkeypatch):
    """Which the workers of a pool may not have, and whose number would show in the last digits."""
    seen = []
    figures = {"precision": 1, "recall": 1, "density": 1, "coverage": 1}
    monkeypatch.setattr(prdc, "compute_prdc", lambda *_, **__: seen.append(joblib.effective_n_jobs(8)) or figures)
    neighbourhoods(*features_pair())
    assert seen == [1]


# ---- class score


@pytest.mark.parametrize("count", [137, 100, 10])
def test_class_score_is_that_of_torch_fidelity(count):
    """In any order and batches, and in two halves. Its sums are float64 in another order."""
    logits_NK = np.random.default_rng(5).normal(0, 4, size=(count, 12)).astype(np.float32)
    expected = extra("torch_fidelity.metric_isc").isc_features_to_metric(torch.from_numpy(logits_NK))
    order = np.random.default_rng(6).permutation(count)
    halves = ClassScore(count, 12), ClassScore(count, 12)
    for number, first in enumerate(range(0, count, 9)):
        some = order[first : first + 9]
        halves[number % 2].add(some, logits_NK[some])
    halves[0].merge(halves[1])
    found = halves[0].score()
    assert found.mean == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert found.std == pytest.approx(expected["inception_score_std"], rel=1e-9, abs=1e-12)


def test_class_score_of_sure_and_of_clueless_classifiers():
    """As many as there are classes where each image has one of its own, and 1 where they all look alike: also where
    probabilities underflow to 0, of which torch-fidelity makes NaN."""
    sure = ClassScore(8, 4, splits=1)
    sure.add(np.arange(8), 2000 * np.eye(4)[np.arange(8) % 4])
    assert sure.score().mean == pytest.approx(4, rel=1e-12)
    never = ClassScore(8, 4, splits=1)
    never.add(np.arange(8), 2000 * np.eye(4)[np.zeros(8, dtype=int)])
    assert never.score().mean == pytest.approx(1, rel=1e-12)
    few = ClassScore(3, 4)  # fewer than ten splits
    few.add(np.arange(3), np.eye(4)[:3])
    assert few.score().mean == pytest.approx(1, rel=1e-12)  # each split is one image


# ---- sample


def test_the_sample_is_the_same_in_any_order_and_parts():
    features_NE = np.random.default_rng(7).normal(size=(50, 3)).astype(np.float32)
    straight, parts = Sample(50, 20, 3, seed=1), [Sample(50, 20, 3, seed=1) for _ in range(2)]
    straight.add(np.arange(50), features_NE)
    order = np.random.default_rng(8).permutation(50)
    for number, first in enumerate(range(0, 50, 8)):
        some = order[first : first + 8]
        parts[number % 2].add(some, features_NE[some])
    parts[0].merge(parts[1])
    np.testing.assert_array_equal(parts[0].features_ME, straight.features_ME)
    chosen = straight.chosen_M
    assert len(set(chosen)) == 20 and chosen.tolist() == sorted(chosen)
    np.testing.assert_array_equal(straight.features_ME, features_NE[chosen])
    assert Sample(50, 20, 3, seed=2).chosen_M.tolist() != chosen.tolist()


def test_every_image_is_as_likely_to_be_in_the_sample():
    """4,000 seeds, 5 of 20: each is chosen 1,000 times give or take 27; seven times that fails once in 10⁹ runs, and the seeds
    are fixed."""
    counts = np.zeros(20)
    for seed in range(4000):
        counts[Sample(20, 5, 1, seed).chosen_M] += 1
    assert counts.sum() == 20_000 and abs(counts - 1000).max() < 7 * 27.4


def test_a_sample_of_few_images_is_all_of_them():
    sample = Sample(6, 10_000, 2, seed=0)
    sample.add(np.arange(6), np.ones((6, 2)))
    assert sample.features_ME.shape == (6, 2) and sample.features_ME.all()


# ---- blur


@pytest.mark.parametrize("radius_px", [1.0, 2.0, 1.5])
def test_blur_is_a_gaussian_of_that_standard_deviation(radius_px):
    """By direct convolution over two axes of a picture that is mirrored at its edges, pixel by pixel."""
    images_BYX3 = np.random.default_rng(9).integers(0, 256, (2, 20, 13, 3), dtype=np.uint8)
    reach = int(4 * radius_px + 0.5)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / radius_px) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    padded = np.pad(images_BYX3.astype(np.float64), ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    expected = np.zeros(images_BYX3.shape)
    for y in range(20):
        for x in range(13):
            window = padded[:, y : y + 2 * reach + 1, x : x + 2 * reach + 1]
            expected[:, y, x] = np.einsum("byxc,yx->bc", window, kernel)
    found = blurred(images_BYX3, radius_px)
    assert found.dtype == np.uint8
    # rounded to the nearest: half a level, and the last digits of float64
    assert abs(found - expected).max() <= 0.5 + 1e-9


def test_blur_of_nothing_is_the_picture_itself():
    images_BYX3 = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    assert blurred(images_BYX3, 0.0) is images_BYX3
    white = np.full((1, 9, 9, 3), 255, dtype=np.uint8)
    np.testing.assert_array_equal(blurred(white, 8.0), white)
