"""The whole of an evaluation: what is drawn, then every figure that its sources allow.

Each part is a `Section`: what stands in `metrics.json` under its key, and what the page shows. Only drawing and the index of
training images take up where they were interrupted; figures are made anew, to the same digits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from dalle.config import EVERY_IMAGE, Evaluate
from dalle.evaluation import calibration, stage_one, stage_two
from dalle.evaluation.compositional.results import judge
from dalle.evaluation.compositional.section import compositional_section
from dalle.evaluation.held_out_pairs import Batch, image_pairs
from dalle.evaluation.layout import read_image
from dalle.evaluation.measures.collector import Collected
from dalle.evaluation.measures.comparison import compare
from dalle.evaluation.overlap.index import embed
from dalle.evaluation.overlap.memorised import memorised
from dalle.evaluation.report.section import Section
from dalle.evaluation.steps.drawn import SAMPLES, Candidates, curve_of, read_candidates
from dalle.evaluation.steps.judged import judged_section, scores, scores_over_n
from dalle.evaluation.steps.quality import (
    Settings,
    collect,
    distance_section,
    distances_over_n,
    read_batches,
    real_sets,
)
from dalle.evaluation.steps.ranking import accuracy_over_n, ranking_section, winners
from dalle.evaluation.steps.shown import samples_section
from dalle.evaluation.steps.sources import Sources, device_here
from dalle.models.folder import load_dvae
from dalle.ready.names import find_part
from dalle.sampling.model_set import Models


class Evaluation:
    """The figures of samples that are there.

    Args:
        config: what is asked for
        sources: what it is of
        folder: of the evaluation
        say: is told what is being done
    """

    def __init__(self, config: Evaluate, sources: Sources, folder: Path, say: Callable[[str], None]):
        self.config, self.sources, self.folder, self.say = config, sources, folder, say
        self.prompted = sources.prompted
        self.firsts = [each.samples[0] for each in self.prompted]
        self.settings = Settings(config.batch_size, config.blur_radii, config.seed)
        self.samples = Path(config.images) if config.images is not None else folder / SAMPLES
        self.candidates = self._candidates()
        self.ranking: dict[str, dict[int, float]] = {}

    def sections(self) -> list[Section]:
        """All parts, in the order of the page."""
        judged, scores_N = self._judged()
        distances = list(self._distances())
        parts = [*distances, *judged, *self._drawn_data()]
        if self.ranking:
            parts.insert(len(distances), ranking_section(self.ranking, len(self.prompted)))
        parts += [*self._memorised(), *self._stages()]
        reference = self.sources.reference
        shown = samples_section(self.prompted, self.sources.reals, scores_N, reference, self.folder, self.config.keep)
        return [shown, *parts]

    def sample_hash(self) -> str:
        """SHA-256 of the pixels of all first images, in order."""
        digest = hashlib.sha256()
        for path in self.firsts:
            digest.update(read_image(path).tobytes())
        return digest.hexdigest()

    def _candidates(self) -> list[Candidates] | None:
        """Of all captions; null unless the candidates of each are known and were ranked."""
        read = [read_candidates(self.samples, each.number) for each in self.prompted]
        found = [each for each in read if each is not None and each.scores is not None and each.drawn > 1]
        return found if len(found) == len(read) else None

    @cached_property
    def _winners(self) -> dict[int, list[Path]]:
        assert self.candidates is not None
        n = min(each.drawn for each in self.candidates)
        return {size: winners(self.prompted, self.candidates, self.samples, size) for size in curve_of(n)}

    def _judged(self) -> tuple[list[Section], np.ndarray | None]:
        judge = self.sources.judge
        if judge is None:
            return [], None
        self.say(f"captions found, by {judge.name}")
        captions, together = [each.prompt for each in self.prompted], self.config.batch_size
        texts_NE = judge.texts(captions)
        images_NE = judge.images(read_batches(self.firsts, together))
        if self.candidates is not None:
            self.ranking["clip_score"] = scores_over_n(judge, self._winners, texts_NE, together)
        sources = self.sources
        part = judged_section(
            judge, captions, images_NE, texts_NE, sources.reals, sources.reference, together, sources.excluded
        )
        return [part], scores(images_NE, texts_NE)

    def _distances(self) -> Iterator[Section]:
        sources = self.sources
        if sources.reference is None:
            return
        for network in sources.networks:
            self.say(f"distances from {len(sources.reference):,} real images, by {network.name}")
            real, kept_real = real_sets(network, sources.reference, set(sources.excluded), self.settings)
            yield distance_section(compare(self._collected(network, self.firsts), real))
            if kept_real is not None:
                kept = [
                    path for path, own in zip(self.firsts, sources.reals, strict=True) if own not in sources.excluded
                ]
                yield distance_section(compare(self._collected(network, kept), kept_real), len(sources.excluded))
            if self.candidates is not None:
                name = f"frechet_distance ({network.name})"
                self.ranking[name] = distances_over_n(network, self._winners, real, self.settings)

    def _collected(self, network: Any, paths: Sequence[Path]) -> Collected:
        return collect(network, read_batches(paths, self.config.batch_size), len(paths), self.settings)

    def _drawn_data(self) -> Iterator[Section]:
        """What the checker sees, where all captions are of the drawn data."""
        if not all(each.metadata.get("scene") for each in self.prompted):
            return
        self.say("what the checker sees")
        judged = self.prompted
        if self.candidates is not None:
            self.ranking |= accuracy_over_n(self.candidates, min(each.drawn for each in self.candidates))
            scores = [np.repeat(np.array(each.scores), each.times) for each in self.candidates]
            right = [np.repeat(np.array(each.right), each.times) for each in self.candidates]
            yield calibration.section(calibration.calibration(scores, right))
            judged = [replace(each, samples=each.samples[:1]) for each in self.prompted]  # the reranker's choice
        yield compositional_section(judge(judged), self.folder)

    def _memorised(self) -> Iterator[Section]:
        sources, config = self.sources, self.config
        if not sources.train:
            return
        reference = sources.reference
        assert reference is not None, "`train` without one was refused"
        network, side_px = sources.networks[0], reference.size_px
        self.say(f"the nearest training images, by {network.name}")
        index = embed(self.folder / "train-index", sources.train, network, side_px, batch_size=config.batch_size)
        kept = [number for number in range(len(reference)) if number not in sources.excluded]
        found = memorised(
            _Images(self.firsts),
            [each.prompt for each in self.prompted],
            index,
            (image for _, image in reference.images(kept)),
            network,
            self.folder / "nearest",
            self.folder,
            seed=config.seed,
            batch_size=config.batch_size,
        )
        yield found.section

    def _stages(self) -> Iterator[Section]:
        """The two stages by themselves, on the reference's images."""
        sources = self.sources
        if not isinstance(sources.models, Models) or sources.reference is None:
            return
        network = sources.networks[0]
        self.say("stage one: reconstructions")
        dvae = load_dvae(sources.models.dvae, device_here())
        batches = sources.reference.batches(self.config.batch_size)
        yield stage_one.section(stage_one.stage_one(dvae, batches, len(sources.reference), network))
        if not all(sources.reference.captions):
            return
        self.say("stage two: held-out loss")
        pairs = image_pairs(sources.reference.spec, sources.models.dvae, EVERY_IMAGE)
        pairs = replace(pairs, source="the reference", batches=partial(_first, pairs.batches, len(sources.reference)))
        others = [find_part(name, "prior") for name in (self.config.priors or "").split()]
        priors = [sources.models.prior, *others]
        losses = stage_two.held_out_losses(priors, pairs)
        # by what they are: figures do not depend on where things lie
        yield stage_two.section([replace(each, name=f"prior:{each.prior_hash[:8]}") for each in losses])


@dataclass(frozen=True)
class _Images(Sequence):
    """Images of files, read when they are asked for."""

    paths: list[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> np.ndarray:  # type: ignore[override]  # of slices none is asked for
        return read_image(self.paths[place])


def _first(batches: Callable[[], Iterator[Batch]], count: int) -> Iterator[Batch]:
    """The first pairs of batches."""
    for codes_BI, captions in batches():
        yield codes_BI[:count], captions[:count]
        count -= len(captions)
        if count <= 0:
            return
