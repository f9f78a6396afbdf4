"""Two sets compared: every distance at every blur radius, with what it was computed from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from dalle.evaluation.measures import distances
from dalle.evaluation.measures.blur import DEFINITION
from dalle.evaluation.measures.class_score import Spread
from dalle.evaluation.measures.collector import Collected, Collector, Source, Sums
from dalle.evaluation.measures.distances import Neighbourhoods

_MANY = 5_000
"""Images from which class scores are usually given (Salimans et al. 2016 take 50,000, the paper 30,000)."""


@dataclass(frozen=True)
class AtRadius:
    """Figures of both sets blurred at one radius.

    Args:
        radius_px: of the blur, on both sets
        frechet_distance: FID where the features are Inception's
        kernel_distance: KID where they are; mean and spread over subsets
        neighbourhoods: precision, recall, density, coverage; null of fewer than 7 images
        class_score: of the images; null where the network is no classifier
        class_score_reference: of the reference
    """

    radius_px: float
    frechet_distance: float
    kernel_distance: Spread
    neighbourhoods: Neighbourhoods | None
    class_score: Spread | None
    class_score_reference: Spread | None


@dataclass(frozen=True)
class Comparison:
    """What was found of images beside a reference.

    Args:
        source: the features
        num_images, num_reference: that mean, covariance and class score are of
        num_sampled, num_sampled_reference: that the kernel distance and the neighbourhoods are of
        at: figures by radius, in the order of collecting
        notes: what to bear in mind, in words
    """

    source: Source
    num_images: int
    num_reference: int
    num_sampled: int
    num_sampled_reference: int
    at: tuple[AtRadius, ...]
    notes: tuple[str, ...]

    @property
    def class_score_name(self) -> str:
        """The Inception Score's name is kept for the Inception network."""
        return "inception_score" if self.source.name == "inception" else f"class_score ({self.source.name})"

    @property
    def frechet_name(self) -> str:
        """FID is the name of the Fréchet distance by Inception's features alone."""
        return "FID" if self.source.name == "inception" else f"Fréchet distance ({self.source.name})"

    @property
    def kernel_name(self) -> str:
        """KID likewise."""
        return "KID" if self.source.name == "inception" else f"kernel distance ({self.source.name})"

    def figures(self) -> dict[str, Any]:
        """For metrics.json: numbers, strings, lists and dicts alone."""
        subset = distances.kernel_subset_size(self.num_sampled, self.num_sampled_reference)
        return {
            "features": asdict(self.source),
            "num_images": self.num_images,
            "num_reference": self.num_reference,
            "num_sampled": self.num_sampled,
            "num_sampled_reference": self.num_sampled_reference,
            "kernel_subsets": distances.KERNEL_SUBSETS,
            "kernel_subset_size": subset,
            "nearest_k": distances.NEAREST_K,
            "blur": DEFINITION,
            "by_radius": [self._figures_at(at) for at in self.at],
        }

    def _figures_at(self, at: AtRadius) -> dict[str, Any]:
        near = at.neighbourhoods
        figures = {
            "radius_px": at.radius_px,
            "frechet_distance": at.frechet_distance,
            "kernel_distance_mean": at.kernel_distance.mean,
            "kernel_distance_std": at.kernel_distance.std,
            **(dict.fromkeys(("precision", "recall", "density", "coverage")) if near is None else asdict(near)),
        }
        for name, score in (("", at.class_score), (" of the reference", at.class_score_reference)):
            if score is not None:
                figures[self.class_score_name + name] = asdict(score)
        return figures


def compare(images: Collected | Collector, reference: Collected | Collector) -> Comparison:
    """Images beside a reference, at every radius that both were collected at.

    Raises:
        ValueError: a set is not complete, or they differ in features, radii, or, where they are blurred, size
    """
    images, reference = (each.collected if isinstance(each, Collector) else each for each in (images, reference))
    _check_alike(images, reference)
    at = tuple(_at(radius, sums, reference.at[radius]) for radius, sums in images.at.items())
    first, first_reference = next(iter(images.at.values())), next(iter(reference.at.values()))
    num_sampled, num_reference = len(first.sample.chosen_M), len(first_reference.sample.chosen_M)
    notes = tuple(_notes(images, reference, num_sampled, num_reference))
    return Comparison(
        images.source, images.num_images, reference.num_images, num_sampled, num_reference, at=at, notes=notes
    )


def _check_alike(images: Collected, reference: Collected) -> None:
    for name, collected in (("images", images), ("reference", reference)):
        try:
            collected.check_complete()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if images.source != reference.source:
        told = [f"{c.source.name} ({c.source.hash[:16]}…)" for c in (images, reference)]
        raise ValueError(
            f"images were seen by {told[0]}, the reference by {told[1]}: figures need one network; take the same for both"
        )
    if list(images.at) != list(reference.at):
        raise ValueError(
            f"images have blur radii {list(images.at)}, the reference {list(reference.at)}; take the same for both"
        )
    ours, theirs = images.image_size, reference.image_size
    if max(images.at) > 0 and ours != theirs:
        assert ours is not None and theirs is not None, "of complete ones"
        sizes = [f"{x}×{y}" for y, x in (ours, theirs)]
        raise ValueError(
            f"images are {sizes[0]} px, the reference {sizes[1]}: blur radii are in pixels, so resize one, or take radius 0 alone"
        )


def _at(radius: float, images: Sums, reference: Sums) -> AtRadius:
    samples = images.sample.features_ME, reference.sample.features_ME
    return AtRadius(
        radius_px=radius,
        frechet_distance=distances.frechet_distance(images.moments, reference.moments),
        kernel_distance=distances.kernel_distance(*samples),
        neighbourhoods=distances.neighbourhoods(*samples),
        class_score=None if images.classes is None else images.classes.score(),
        class_score_reference=None if reference.classes is None else reference.classes.score(),
    )


def _notes(images: Collected, reference: Collected, num_sampled: int, num_sampled_reference: int) -> Iterator[str]:
    width = images.source.width
    for name, count in (("images", images.num_images), ("reference images", reference.num_images)):
        if count <= width:
            yield (
                f"{count:,} {name} for {width:,} features: their covariance is singular, and the Fréchet distance is biased "
                "upwards, the more the fewer they are. Compare it with figures of as many images alone."
            )
    subset = distances.kernel_subset_size(num_sampled, num_sampled_reference)
    if subset < distances.KERNEL_SUBSET_SIZE:
        yield (
            f"The kernel distance is over subsets of {subset:,} images, the smaller set, in place of "
            f"{distances.KERNEL_SUBSET_SIZE:,}: its spread says less than usual."
        )
    if next(iter(images.at.values())).classes is not None and min(images.num_images, reference.num_images) < _MANY:
        yield (
            f"The class score grows with the number of images, {images.num_images:,} here and {reference.num_images:,} of the "
            "reference: compare it with figures of as many images alone."
        )
    if min(num_sampled, num_sampled_reference) < distances.NEAREST_K + 2:
        yield f"Too few images for precision, recall, density and coverage: they take {distances.NEAREST_K + 2}."
    for name, collected, sampled in (
        ("images", images, num_sampled),
        ("reference images", reference, num_sampled_reference),
    ):
        if sampled < collected.num_images:
            yield (
                f"Kernel distance, precision, recall, density and coverage are of {sampled:,} {name}, drawn uniformly from "
                f"{collected.num_images:,} with seed {collected.seed}."
            )
