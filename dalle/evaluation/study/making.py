"""From folders of images to a study: its design, and the images as the page holds them."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from dalle.config import Study
from dalle.evaluation.layout import read_image
from dalle.evaluation.study.design import NEITHER, Design, Picture, Trial, make_design
from dalle.evaluation.study.folders import first_images, model_names, same_captions


@dataclass(frozen=True)
class Made:
    """A study that can be written.

    Args:
        design: which trials there are, and who sees them
        images: data URLs by the pictures' ids
        sizes: sides in pixels, "width x height", of all models' images
    """

    design: Design
    images: dict[str, str]
    sizes: tuple[str, ...]


def make(config: Study, folders: list[str]) -> Made:
    """Read the images, draw catch trials, deal.

    Args:
        config: of the study
        folders: one for each model

    Raises:
        ValueError: fewer than two folders, one that cannot be read or has other captions, or too few real images
    """
    if len(folders) < 2:
        raise ValueError(f"images {config.images}: names one folder; name two or more, which a study compares")
    names = model_names(folders, "images")
    models = {name: first_images(folder, "images") for name, folder in zip(names, folders, strict=True)}
    real = {} if config.real is None else first_images(config.real, "real")
    if config.real is not None and len(real) < 2:
        raise ValueError(
            f"real {config.real}: holds one caption, and a catch trial takes the images of two; add another"
        )
    captions = same_captions(models, "images")
    random = Random(f"{config.seed}: which captions")
    if len(captions) > config.captions:
        captions = random.sample(captions, config.captions)
    page = _Page(config.jpeg_quality, f"{config.seed} {' '.join(models)} {len(captions)}")
    for name, paths in models.items():
        for caption in captions:
            page.add(Picture(name, caption), read_image(paths[caption]))
    sizes = tuple(sorted(page.sizes))
    page.settle()
    catch = _catch_trials(config.catch_trials, models, real, captions, page, Random(f"{config.seed}: catch trials"))
    pairs_per_worker = config.pairs_per_worker
    design = make_design(
        tuple(models), page.pictures, catch, config.votes, pairs_per_worker, config.repeats, config.seed
    )
    return Made(design, dict(sorted(page.images.items())), sizes)


class _Page:
    """The images of a page by ids that tell nothing to those who have not got the images' folders."""

    def __init__(self, jpeg_quality: int | None, request: str):
        self.jpeg_quality = jpeg_quality
        self.sizes: set[str] = set()
        self.pictures: dict[str, Picture] = {}
        self.images: dict[str, str] = {}
        self._contents = hashlib.sha256(request.encode())
        self._waiting: list[tuple[Picture, str]] = []

    def add(self, picture: Picture, image_YX3: np.ndarray) -> None:
        """Take in an image of a model. Its id is known once all are there."""
        self._contents.update(np.ascontiguousarray(image_YX3).data)
        self.sizes.add(f"{image_YX3.shape[1]} x {image_YX3.shape[0]}")
        self._waiting.append((picture, self._data_url(image_YX3)))

    def settle(self) -> None:
        """Name them all."""
        for number, (picture, url) in enumerate(self._waiting):
            self._put(str(number), picture, url)
        self._waiting.clear()

    def extra(self, what: str, caption: str, image_YX3: np.ndarray) -> str:
        """Take in an image for a catch trial; returns its id."""
        return self._put(what, Picture(None, caption), self._data_url(image_YX3))

    def _put(self, what: str, picture: Picture, url: str) -> str:
        name = hashlib.sha256(f"{self._contents.hexdigest()} {what}".encode()).hexdigest()[:12]
        self.pictures[name], self.images[name] = picture, url
        return name

    def _data_url(self, image_YX3: np.ndarray) -> str:
        """Encoded anew from its pixels alone: a file of ours would tell in its metadata which model drew it."""
        buffer = io.BytesIO()
        if self.jpeg_quality is None:
            Image.fromarray(image_YX3).save(buffer, "PNG")
        else:
            Image.fromarray(image_YX3).save(buffer, "JPEG", quality=self.jpeg_quality, subsampling=0)
        kind = "png" if self.jpeg_quality is None else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _catch_trials(
    count: int,
    models: dict[str, dict[str, Path]],
    real: dict[str, Path],
    captions: list[str],
    page: _Page,
    random: Random,
) -> list[Trial]:
    """Pairs whose answer is known, the two kinds by turns where there are real images."""
    sources = [real] if real else list(models.values())
    trials = []
    for number in range(count):
        asked = list(real) if real else captions
        if real and number % 2:
            caption, other = random.sample(asked, 2)
            right, wrong = (page.extra(f"real {number} {c}", c, read_image(real[c])) for c in (caption, other))
            trials.append(Trial(caption, (right, wrong), {"realistic": (), "matches": (right,)}))
            continue
        caption = random.choice(asked)
        image = read_image(random.choice(sources)[caption])
        whole = page.extra(f"whole {number}", caption, image)
        noise = page.extra(f"noise {number}", caption, _scrambled(image, random))
        # a model's image may be of something else, and then "neither" is as right
        trials.append(Trial(caption, (whole, noise), {"realistic": (whole,), "matches": (whole, NEITHER)}))
    return trials


def _scrambled(image_YX3: np.ndarray, random: Random) -> np.ndarray:
    """The same pixels in random order: no other colours, and nothing to see."""
    flat = image_YX3.reshape(-1, 3)
    order = list(range(len(flat)))
    random.shuffle(order)
    return flat[order].reshape(image_YX3.shape)
