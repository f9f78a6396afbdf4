"""What an evaluation is of: captions, models, real images, feature networks; all of it checked before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dalle.config import Evaluate, Images, Sampling
from dalle.config.checks import warn
from dalle.data.identity import identity
from dalle.data.images import header_size
from dalle.data.naming import expand
from dalle.evaluation.features.contract import Features
from dalle.evaluation.features.named import features
from dalle.evaluation.features.towers import check_reads_pixels
from dalle.evaluation.layout import Prompted, read_layout, sample_path
from dalle.evaluation.overlap.exclusions import exclusion_name, is_excluded, read_exclusions, unmatched
from dalle.evaluation.steps.judged import Judge
from dalle.evaluation.steps.reference import RESIZER, Reference, read_reference
from dalle.models.clip import load_clip
from dalle.models.folder import content_hash, read_header
from dalle.ready.names import find_clip
from dalle.sampling.captioning import read_prompts_file
from dalle.sampling.loading import Found, find

_FEW = 16
"""Candidates of a caption that are drawn by themselves: the width of a CPU's chunks, of which most would be thrown away, is
64, and 256 for a GAN of 64 px."""


@dataclass(frozen=True)
class Sources:
    """What an evaluation is of.

    Args:
        prompted: captions by number; their images may have yet to be drawn
        models: that draw; null where the images are there
        sampling: how they draw, settled
        networks: that distances compare by, in the order of asking
        judge: the CLIP of score and retrieval; null where there is none
        reference: real images; null where there are none
        reals: the number of each caption's own real image, null where it has none
        excluded: numbers of the real images that are left out
        train: shards of training images; none where they are not asked for
        notes: what is to be known
    """

    prompted: list[Prompted]
    models: Found | None
    sampling: Sampling
    networks: list[Features]
    judge: Judge | None
    reference: Reference | None
    reals: list[int | None]
    excluded: frozenset[int]
    train: list[str]
    notes: tuple[str, ...]

    def identities(self) -> dict[str, Any]:
        """Hashes of all that decides the figures, beside the captions."""
        found: dict[str, Any] = {} if self.models is None else {"models": dict(self.models.hashes)}
        found["features"] = [{"name": each.name, "hash": each.hash, "resizer": each.resizer} for each in self.networks]
        if self.judge is not None:
            found["judge"] = self.judge.hash
        if self.reference is not None:
            found["reference"] = {
                "pixels": self.reference.hash,
                "images": len(self.reference),
                "size_px": self.reference.size_px,
                "resizer": RESIZER,
            }
            found["excluded"] = sorted(self.excluded)
        if self.train:
            found["train"] = identity(self.train)
        return found


def find_sources(config: Evaluate, folder: Path, captions: list[dict[str, Any]] | None, device: str) -> Sources:
    """All sources.

    Args:
        config: what is asked for
        folder: that samples are drawn into
        captions: of a manifest, in place of those that the settings name
        device: of networks

    Raises:
        ValueError: something is missing, damaged, or does not belong together
    """
    networks = [features(spec, device) for spec in dict.fromkeys(config.features.split())]
    names = [each.name for each in networks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"features {config.features}: {twice[0]} is there twice; name each once")
    train = [] if config.train is None else expand(config.train)
    models = None
    if config.model is not None:
        parts = (config.dvae, config.prior, config.clip, config.rerank)
        models = find(config.model, *parts, text_encoder=config.text_encoder)
    prompted = [] if config.images is None else read_layout(config.images)[: config.most]
    size_px = _side(prompted) if models is None else models.image_size_px
    reference = None if config.reference is None else read_reference(config.reference, size_px, config.most)
    if models is not None:
        metadata = _captions(config, reference) if captions is None else captions
        keep = min(config.keep, config.drawn)
        prompted = [
            Prompted(number, each["prompt"], each, tuple(sample_path(folder, number, place) for place in range(keep)))
            for number, each in enumerate(metadata)
        ]
    notes: list[str] = []
    counts = [len(each.samples) for each in prompted]
    if fewer := [each for each in prompted if len(each.samples) < max(counts)]:
        notes.append(
            f"images {config.images}: {len(fewer):,} of {len(prompted):,} prompts have fewer than the {max(counts)} images of others, "
            f"{fewer[0].number:05} for one; see whether all of them are there"
        )
        warn(notes[-1])
    excluded = frozenset[int]()
    if config.exclude is not None:
        assert reference is not None, "`exclude` without one was refused"
        left_out = read_exclusions(config.exclude)
        places = list(zip(reference.shards, reference.keys, strict=True))
        excluded = frozenset(i for i, place in enumerate(places) if is_excluded(left_out, *place))
        if missing := unmatched(left_out, places):
            notes.append(
                f"{len(missing):,} of {len(left_out):,} names of the exclusion list are of no reference image."
            )
        if len(reference) - len(excluded) < 2:
            raise ValueError(
                f"exclude {config.exclude}: leaves {len(reference) - len(excluded)} reference images; leave it out, or name more --reference"
            )
    sampling = config.sampling if models is None else models.settle(config.sampling)
    if sampling.chunk is None and config.drawn <= _FEW:
        sampling = replace(sampling, chunk=config.drawn)
    judge = _judge(config, models, device)
    return Sources(
        prompted,
        models,
        sampling,
        networks,
        judge,
        reference,
        _reals(prompted, reference),
        excluded,
        train,
        tuple(notes),
    )


def _captions(config: Evaluate, reference: Reference | None) -> list[dict[str, Any]]:
    if config.captions is not None and not config.captions.endswith(".tar"):
        return read_prompts_file(config.captions)[: config.most]
    if config.captions is not None:
        reference = read_reference(config.captions, 32, config.most)
    assert reference is not None, "neither of them was refused"
    if bare := [key for key, caption in zip(reference.keys, reference.captions, strict=True) if not caption]:
        raise ValueError(
            f"{reference.spec}: {len(bare):,} images have no caption, {bare[0]} for one: give --captions FILE to draw others"
        )
    rows = zip(*(getattr(reference, name) for name in ("shards", "keys", "digests", "captions", "scenes")), strict=True)
    return [
        {
            "prompt": caption,
            "key": exclusion_name(shard, key),
            "real": digest,
            **({} if scene is None else {"scene": scene}),
        }
        for shard, key, digest, caption, scene in rows
    ]


def _reals(prompted: list[Prompted], reference: Reference | None) -> list[int | None]:
    if reference is None:
        return [None] * len(prompted)
    numbers = {digest: number for number, digest in enumerate(reference.digests)}
    return [numbers.get(each.metadata.get("real", "")) for each in prompted]


def _side(prompted: list[Prompted]) -> int:
    """Of all images, by their headers. Raises ValueError, with the names, where they are no squares of one size."""
    first: tuple[Path, int] | None = None
    for path in (each.samples[0] for each in prompted):
        try:
            width, height = header_size(path.read_bytes(), Images.max_pixels)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; take it out, or save it anew as PNG") from None
        if width != height:
            raise ValueError(f"{path}: is {width}×{height} px; bring it to a square, as real images are")
        first = first or (path, width)
        if width != first[1]:
            raise ValueError(
                f"images of mixed sizes: {first[0]} has {first[1]}×{first[1]} px, {path} has {width}×{width}; bring them to one "
                "size first"
            )
    if len(prompted) < 2 or first is None:
        raise ValueError(f"images: measures of a set need two or more, and there is {len(prompted)}; draw more")
    return first[1]


def _judge(config: Evaluate, models: Found | None, device: str) -> Judge | None:
    source = find_clip(config.judge) if config.judge else (models.clip if models is not None else None)
    if source is None:
        return None
    is_folder = Path(source).is_dir()
    clip = load_clip(source, device)
    check_reads_pixels(clip, f"judge {source}")
    known = read_header(source)["hash"] if is_folder else content_hash(clip.state_dict())
    chose = models is not None and config.drawn > 1 and models.hashes.get("clip") == (known if is_folder else source)
    # what it is, not where it lies
    return Judge(clip, f"clip:{known[:8]}" if is_folder else source, known, chose)


def device_here() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
