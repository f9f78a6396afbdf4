"""A set as sums, and two of them compared: additive, deterministic, flat in memory, and honest in its names."""

import json
import pickle

import numpy as np
import pytest
import torch

from dalle.evaluation.features.images import extra
from dalle.evaluation.measures.blur import blurred
from dalle.evaluation.measures.collector import Collector
from dalle.evaluation.measures.comparison import compare
from dalle.evaluation.measures.section import section
from tests.evaluation.tiny_features import TinyFeatures, pictures

RADII = (0.0, 1.0)


def collected(images, features=None, batch=8, radii=RADII, **settings) -> Collector:
    collector = Collector(features or TinyFeatures(classes=5), len(images), radii, **settings)
    for first in range(0, len(images), batch):
        collector.add(images[first : first + batch])
    return collector


REAL, DRAWN = pictures(40, seed=0), pictures(30, seed=1, shade=10)


def test_figures_are_those_of_all_features_at_once():
    """Through torch-fidelity from features of whole sets, at each radius, so a radius that is left out or taken twice shows."""
    network, comparison = TinyFeatures(classes=5), compare(collected(DRAWN), collected(REAL))
    fid, isc = extra("torch_fidelity.metric_fid"), extra("torch_fidelity.metric_isc")
    for at in comparison.at:
        drawn, real = (network(blurred(images, at.radius_px)) for images in (DRAWN, REAL))
        told = [fid.fid_features_to_statistics(torch.from_numpy(x.features_BE).double()) for x in (drawn, real)]
        expected = fid.fid_statistics_to_metric(*told, verbose=False)[fid.KEY_METRIC_FID]
        # eigenvalues of a product of covariances whose condition is some 10³
        assert at.frechet_distance == pytest.approx(expected, rel=1e-6)
        for seen, score in ((drawn, at.class_score), (real, at.class_score_reference)):
            expected = isc.isc_features_to_metric(torch.from_numpy(seen.logits_BK))["inception_score_mean"]
            assert score.mean == pytest.approx(expected, rel=1e-6)
    assert [at.radius_px for at in comparison.at] == [0, 1]
    assert comparison.at[0].frechet_distance != comparison.at[1].frechet_distance
    assert (comparison.num_images, comparison.num_reference) == (30, 40)


def test_the_same_images_give_the_same_digits():
    first, second = (compare(collected(DRAWN), collected(REAL)).figures() for _ in range(2))
    assert json.dumps(first) == json.dumps(second)


def test_halves_of_two_processes_are_the_whole_in_any_order():
    """Which crosses a pipe without the network. Sums of float64 in another order."""
    halves = [Collector(TinyFeatures(classes=5), 40, RADII, sample=25) for _ in range(3)]
    order = np.random.default_rng(0).permutation(40)
    for number, first in enumerate(range(0, 40, 7)):
        some = order[first : first + 7]
        halves[number % 2].add(REAL[some], some)
    whole = pickle.loads(pickle.dumps(halves[2].collected))  # of a process that had none
    for half in halves[:2]:
        whole.merge(pickle.loads(pickle.dumps(half.collected)))
    straight = collected(REAL, sample=25).collected
    for radius, sums in straight.at.items():
        np.testing.assert_array_equal(whole.at[radius].sample.features_ME, sums.sample.features_ME)
        np.testing.assert_allclose(whole.at[radius].moments.covariance(), sums.moments.covariance(), rtol=1e-9)
        assert whole.at[radius].classes.score().mean == pytest.approx(sums.classes.score().mean, rel=1e-12)
    halves[0].merge(halves[1])
    drawn = collected(DRAWN, sample=25)
    assert compare(drawn, halves[0]).at[0].frechet_distance == pytest.approx(
        compare(drawn, straight).at[0].frechet_distance, rel=1e-9
    )


def test_what_was_merged_goes_on_apart():
    half, other = (Collector(TinyFeatures(classes=5), 40, RADII) for _ in range(2))
    other.add(REAL[:10])
    kept = pickle.dumps(other.collected)
    half.merge(other)
    half.add(REAL[10:], range(10, 40))
    assert pickle.dumps(other.collected) == kept


def test_memory_does_not_grow_with_images():
    """All that is held, as bytes: but for a byte an image that says which were seen, and one at each radius for its split."""
    few, many = (len(pickle.dumps(collected(pictures(count), sample=50).collected)) for count in (200, 2200))
    grown = 2000 * (1 + len(RADII))
    assert grown <= many - few <= grown + 200  # bytes of pickle's own, such as longer numbers


def test_the_sample_is_bounded_and_said():
    comparison = compare(collected(DRAWN, sample=12, seed=3), collected(REAL, sample=12, seed=3))
    assert (comparison.num_sampled, comparison.num_sampled_reference) == (12, 12)
    told = " ".join(comparison.notes)
    assert "12 images, drawn uniformly from 30 with seed 3" in told
    assert "12 reference images, drawn uniformly from 40" in told
    assert "subsets of 12 images" in told
    assert comparison.figures()["kernel_subset_size"] == 12
    whole = compare(collected(DRAWN), collected(REAL))
    assert "drawn uniformly" not in " ".join(whole.notes)
    assert whole.at[0].kernel_distance != comparison.at[0].kernel_distance


def test_too_few_images_are_said_with_the_bias():
    assert "biased" not in " ".join(compare(collected(DRAWN), collected(REAL)).notes)
    wide = TinyFeatures(width=30)
    (note,) = [n for n in compare(collected(DRAWN, wide), collected(REAL, wide)).notes if "biased" in n]
    assert note.startswith("30 images for 30 features") and "upwards" in note
    few = compare(collected(DRAWN[:6]), collected(REAL))
    assert few.at[0].neighbourhoods is None and few.figures()["by_radius"][0]["recall"] is None
    assert "they take 7" in " ".join(few.notes)


def test_names_are_kept_for_inception():
    other, own = (TinyFeatures(classes=5, name=name) for name in ("efficientnet-lite0", "inception"))
    by_other, by_own = (compare(collected(DRAWN, f), collected(REAL, f)) for f in (other, own))
    assert by_other.frechet_name == "Fréchet distance (efficientnet-lite0)"
    assert by_other.kernel_name == "kernel distance (efficientnet-lite0)"
    assert (by_own.frechet_name, by_own.kernel_name) == ("FID", "KID")
    keys = [set(c.figures()["by_radius"][0]) for c in (by_other, by_own)]
    assert {"class_score (efficientnet-lite0)", "class_score (efficientnet-lite0) of the reference"} <= keys[0]
    assert {"inception_score", "inception_score of the reference"} <= keys[1]
    assert not any("inception" in key for key in keys[0])
    without = TinyFeatures()
    unscored = compare(collected(DRAWN, without), collected(REAL, without))
    assert not any("score" in key for key in unscored.figures()["by_radius"][0])
    assert "score" not in section(unscored).body


def test_the_section_has_a_row_a_radius_the_curve_and_the_source():
    comparison = compare(collected(DRAWN), collected(REAL))
    found = section(comparison)
    assert found.figures == json.loads(json.dumps(comparison.figures()))  # numbers, strings, lists and dicts alone
    assert found.notes == comparison.notes
    for text in ("tiny", "0" * 16, "<svg", "30 images beside 40", "not at all", "standard deviation r pixels"):
        assert text in found.html()
    for at in comparison.at:
        near, kernel, score = at.neighbourhoods, at.kernel_distance, at.class_score
        shares = near.precision, near.recall, near.density, near.coverage
        scores = score.mean, score.std, at.class_score_reference.mean
        cells = at.frechet_distance, 1000 * kernel.mean, 1000 * kernel.std, *shares, *scores
        row = "".join(f"<td>{cell:.4g}</td>" for cell in cells)
        assert f'<th scope="row">{at.radius_px:g}</th>{row}' in found.body
    one = section(compare(collected(DRAWN, radii=(0.0,)), collected(REAL, radii=(0.0,))))
    assert "<svg" not in one.body  # of one point there is no curve


def add(collector, images, indices=None):
    return lambda: collector.add(images, indices)


REFUSED = [
    (lambda: Collector(TinyFeatures(), 1), "1 images: measures of a set need at least 2"),
    (lambda: Collector(TinyFeatures(), 4, (0, -1)), "blur radii"),
    (lambda: Collector(TinyFeatures(), 4, (1, 1)), "blur radii"),
    (lambda: Collector(TinyFeatures(), 4, ()), "blur radii"),
    (lambda: Collector(TinyFeatures(), 4, sample=1), "sample 1"),
    (add(Collector(TinyFeatures(), 4), REAL[:2].astype(np.float32)), "float32: they must be uint8"),
    (add(Collector(TinyFeatures(), 4), REAL[0]), "must be \\[B, Y, X, 3\\]"),
    (add(Collector(TinyFeatures(), 4), REAL[:0]), "at least one"),
    (add(Collector(TinyFeatures(), 4), [REAL[0], pictures(1, side_px=12)[0]]), "different sizes cannot be in one"),
    (add(collected(REAL[:4], radii=(0,)), REAL[:1]), "images 4 to 4 of 4"),
    (add(Collector(TinyFeatures(), 4), REAL[:2], [1, 1]), "they must differ"),
    (add(Collector(TinyFeatures(), 4), REAL[:2], [-1, 1]), "they must differ"),
    (add(Collector(TinyFeatures(), 4), REAL[:2], [1]), "1 indices of 2 images"),
    (add(collected(REAL[:4], radii=(0,)), REAL[:1], [2]), "image 2 was added twice"),
    (add(collected(REAL[:4], radii=(0,)), pictures(1, side_px=12), [2]), "images of 12×12 px after some of 8×8 px"),
    (lambda: collected(REAL).merge(collected(REAL)), "image 0 was added twice"),
    (lambda: collected(REAL).merge(Collector(TinyFeatures(hash="1" * 64), 40, RADII)), "cannot join"),
    (lambda: collected(REAL).merge(Collector(TinyFeatures(classes=5), 40, RADII, sample=7)), "cannot join"),
    (lambda: compare(Collector(TinyFeatures(), 4), collected(REAL)), "images: only 0 of 4 images were added"),
    (lambda: compare(collected(DRAWN), collected(REAL, TinyFeatures(name="other"))), "figures need one network"),
    (lambda: compare(collected(DRAWN), collected(REAL, radii=(0,))), "blur radii"),
    (lambda: compare(collected(DRAWN), collected(pictures(9, side_px=12))), "images are 8×8 px, the reference 12×12"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=range(len(REFUSED)))
def test_bad_sets_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_sets_of_different_sizes_compare_without_blur():
    compare(collected(DRAWN, radii=(0,)), collected(pictures(9, side_px=12), radii=(0,)))


def test_a_network_that_is_broken_is_named():
    class Broken(TinyFeatures):
        def __call__(self, images_BYX3):
            seen = super().__call__(images_BYX3)
            seen.features_BE[0, 0] = np.nan
            return seen

    with pytest.raises(ValueError, match="tiny gives features that are not finite"):
        collected(DRAWN, Broken())
