"""What `dalle-filter` is asked for, what is filtered out of a person's own pictures, and what `dalle-tokenize` is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from dalle.config.checks import MOST_PROCESSES, at_least, at_most, require
from dalle.config.training import Images, Precision


@dataclass(frozen=True)
class Filters:
    """What is left out (appendix C, which gives no thresholds but that of the aspect ratio). Null switches a filter off. Those of
    captions leave out one caption; an image goes when none is left.

    Args:
        min_caption_chars: characters that a caption has at least
        max_caption_chars: characters that a caption has at most
        language: keep captions of this language alone, by its two letters (ISO 639-1) such as en; needs the extra `data`
        language_confidence: a caption is left out only where the detector is at least so sure that it is in another language. At
            the default none of 1,200 short English captions went (docs/filtering.md); lower, more of other languages go, and
            English ones too
        language_min_chars: shorter captions are kept whatever the detector says
        boilerplate: captions that say nothing of the picture, such as "photographed on 3 May 2014" or "IMG_1234.jpg", are left
            out; and those that one of these regular expressions matches as a whole, whatever the case
        max_aspect_ratio: images with a longer side over this many shorter sides are left out, as the trainings do
        min_side_px: shorter side that an image has at least, in pixels
        duplicates: "join" keeps the first of images whose pixels are equal, with the captions of all
    """

    min_caption_chars: int | None = None
    max_caption_chars: int | None = 2000
    language: str | None = None
    language_confidence: float = 0.999
    language_min_chars: int = 4
    boilerplate: tuple[str, ...] | None = ()
    max_aspect_ratio: float | None = Images.max_aspect_ratio
    min_side_px: int | None = 32
    duplicates: Literal["join"] | None = "join"

    def __post_init__(self) -> None:
        for name in ("min_caption_chars", "max_caption_chars", "min_side_px", "max_aspect_ratio"):
            if getattr(self, name) is not None:
                at_least(self, 1, name)
        if self.min_caption_chars is not None and self.max_caption_chars is not None:
            require(
                self.min_caption_chars <= self.max_caption_chars,
                f"min_caption_chars {self.min_caption_chars}: is over max_caption_chars {self.max_caption_chars}; lower one, or raise the other",
            )
        require(
            self.language is None or re.fullmatch("[a-z]{2}", self.language) is not None,
            f"language {self.language}: must be two small letters of ISO 639-1, such as en",
        )
        require(
            0 <= self.language_confidence <= 1, f"language_confidence {self.language_confidence}: must lie in [0, 1]"
        )
        at_least(self, 0, "language_min_chars")
        at_most(self, 2**31, "min_caption_chars", "max_caption_chars", "language_min_chars")
        at_most(self, 2**20, "min_side_px")
        for pattern in self.boilerplate or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"boilerplate {pattern!r}: is no regular expression ({error}); write it as Python's re does"
                ) from None


@dataclass(frozen=True)
class Filter:
    """Look at a person's own pictures and captions, leave out what a training cannot use, and write shards with a page that shows
    what was found.

    Args:
        source: a folder of images with captions, a table (.csv, .tsv, .json, .jsonl, .parquet) that names images and captions, or
            shards (.tar). Nothing in it is changed
        output: folder of the shards (train-000.tar, valid-000.tar), prepared.json and report.html
        filters: what is left out
        valid_share: share of the images that is held out for validation. It is drawn by their pixels, so equal images stay
            together, and more pictures move none of those that were there
        seed: seed of the held-out draw
        workers: processes that decode
        captions: where captions are: "files" beside the images, a "table", the images' "names" or their "folders"; null looks
        image_column: column of a table that names the image files; null looks for the usual names
        caption_column: column of a table that holds the captions; null looks for the usual names
        overwrite: write over shards made with other settings, or files of something else, that the folder holds
    """

    source: str
    output: str
    filters: Filters = field(default_factory=Filters)
    valid_share: float = 0.05
    seed: int = 0
    workers: int = 2
    captions: Literal["files", "table", "names", "folders"] | None = None
    image_column: str | None = None
    caption_column: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.valid_share <= 0.5, f"valid_share {self.valid_share}: must lie in [0, 0.5]")
        at_least(self, 1, "workers", most=MOST_PROCESSES)
        at_least(self, 0, "seed")


@dataclass(frozen=True)
class Tokenize:
    """Run the dVAE's encoder over image-text shards once and write token shards.

    Args:
        data: image-text shards
        dvae: folder of the trained dVAE
        output: folder of the token shards
        batch_size: images per encoder batch
        precision: precision of the encoder's matrix products; bf16 finds another code at one or two of 100 places. It is noted in
            `meta.json`
        crops: how many times each image is encoded, each time with another crop; 1 takes the centre
        images: which pairs are kept, and the augmentation when crops > 1
        pairs_per_shard: pairs in one token shard
        seed: seed of the crops
        part: NUMBER/PARTS, such as 3/16: encode every 16th shard from the third on, and write into a folder of its own in `output`,
            which is read as one when all parts are there; so that several jobs share the work. null encodes all
        overwrite: write over token shards made with other settings, or files of their names, that the folder holds; what has other
            names stays
    """

    data: str
    dvae: str
    output: str
    batch_size: int = 64
    precision: Precision = "fp32"
    crops: int = 1
    images: Images = field(default_factory=lambda: Images(augmentation="prior"))
    pairs_per_shard: int = 16384
    seed: int = 0
    part: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "crops", "pairs_per_shard", most=2**24)
        number, parts = self.share
        require(
            1 <= number <= parts < 10**5,
            f"part {self.part}: must be NUMBER/PARTS, from 1/16 to 16/16 of sixteen",
        )

    @property
    def share(self) -> tuple[int, int]:
        """Which part, counted from 1, of how many; 0 of 0 where it is no such thing."""
        found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", self.part or "1/1")
        return (int(found[1]), int(found[2])) if found else (0, 0)
