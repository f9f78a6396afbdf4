"""Folders of images in GenEval's layout, and answers to a study as its page would save them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dalle.evaluation.study.design import Design, Shown

CAPTIONS = [f"caption {number}" for number in range(12)]


def write_images(folder: Path, captions: list[str] = CAPTIONS, size_px: int = 16, seed: int = 0) -> str:
    """One image a caption, whose metadata tell who drew it."""
    random = np.random.default_rng(seed)
    for number, caption in enumerate(captions):
        samples = folder / f"{number:05}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps({"prompt": caption}) + "\n")
        told = PngInfo()
        told.add_text("drawn by", f"the model {folder.name}")
        image = Image.fromarray(random.integers(0, 256, (size_px, size_px, 3), np.uint8))
        image.save(samples / "0000.png", pnginfo=told)
    return str(folder)


def by_model(design: Design, preferred: str) -> Callable[[Shown], dict]:
    """A careful worker who always prefers one model, and knows the catch trials."""

    def answer(shown: Shown) -> dict:
        trial = design.trials[shown.trial]
        if trial.right is not None:
            return {question: (trial.right[question] or trial.images)[0] for question in ("realistic", "matches")}
        image = next(image for image in trial.images if design.pictures[image].model == preferred)
        return {"realistic": image, "matches": image}

    return answer


def saved(design: Design, worker: int, answer: Callable[[Shown], dict], seconds: float = 8, name: str = "") -> dict:
    """A worker's file. answer: what is given to each trial, image ids by question."""
    answers = [
        {"trial": shown.trial, "left": shown.left, **answer(shown), "ms": 1000 * seconds}
        for shown in design.workers[worker - 1]
    ]
    return {"format": 1, "study": design.hash, "worker": worker, "name": name, "answers": answers}


def save(folder: Path, name: str, values: object) -> Path:
    """A file of answers."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(values if isinstance(values, str) else json.dumps(values))
    return folder / name


def embedded(folder: Path) -> dict:
    """What a study's page holds."""
    page = (folder / "index.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', page, re.S)[1])
