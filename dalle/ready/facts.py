"""What a model's folder tells of it: sizes from the headers of its weights, the rest from its card."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalle.config import plain_yaml
from dalle.models.folder import read_config
from dalle.models.weights import WeightsFile
from dalle.outputs.run_files import WEIGHTS
from dalle.ready.files import CARD, model_files, parts_of
from dalle.ready.names import ready_names, weights_folder

NO_LICENCE = "unknown"
"""As the Hub has it."""
FIGURES = "## Figures\n"
"""Heading of a card's section."""


@dataclass(frozen=True)
class Card:
    """What a card says of a model, of what is asked again and again.

    Args:
        about: what it draws, in a line; empty where nobody says it
        licence: by the Hub's name for it, such as mit
        example: a caption to try
        hardware: that it was trained on
        figures: of its trainings and evaluation, as tables
        front: all of its front matter
    """

    about: str = ""
    licence: str = NO_LICENCE
    example: str = ""
    hardware: str = ""
    figures: str = ""
    front: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """Of a model that comes with the package.

    Args:
        name, folder: what it is called and where it lies
        card: what its card says
        image_size_px: side of what it draws
        num_weights: by part
        num_bytes: on disk
    """

    name: str
    folder: Path
    card: Card
    image_size_px: int
    num_weights: dict[str, int]
    num_bytes: int

    def lines(self) -> list[str]:
        """For a person."""
        weights = ", ".join(f"{part} {in_millions(count)}" for part, count in self.num_weights.items())
        total = in_millions(sum(self.num_weights.values()))
        return [
            f"{self.name}: {self.card.about or 'no card says what it draws'}",
            f"  size     {self.image_size_px}×{self.image_size_px} px, {total} weights ({weights}), {self.num_bytes / 1e6:.1f} MB",
            f"  licence  {self.card.licence}",
            f"  folder   {self.folder}",
            f"  example  {drawing_line(self.name, self.card.example)}",
        ]


def ready_facts() -> list[Facts]:
    """Of all models that come with the package, by name. Raises ValueError where one is damaged."""
    return [facts_of(name, weights_folder() / name) for name in ready_names()]


def facts_of(name: str, folder: Path) -> Facts:
    """Of a whole model. Raises ValueError where its headers cannot be read."""
    return Facts(
        name,
        folder,
        read_card(folder / CARD),
        read_config(folder / "dvae", "dvae").image_size_px,
        {part: num_weights(folder / part) for part in parts_of(folder)},
        sum((folder / file).stat().st_size for file in model_files(folder)),
    )


def num_weights(part: Path) -> int:
    """Of a single model. Raises ValueError where its header cannot be read."""
    with WeightsFile(part / WEIGHTS) as file:
        return sum(math.prod(stored.shape) for stored in file.tensors.values())


def read_card(path: Path) -> Card:
    """What a card says; of one that is missing, or says it otherwise than the Hub's cards do, what can be understood."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return Card()
    front: Any = {}
    body = text
    if text.startswith("---\n") and "\n---\n" in text[3:]:
        told, _, body = text[4:].partition("\n---\n")
        try:
            front = plain_yaml.load(told, str(path))
        except ValueError:
            front = {}
    front = front if isinstance(front, dict) else {}
    widget = front.get("widget")
    first = widget[0] if isinstance(widget, list) and widget and isinstance(widget[0], dict) else {}
    licence, example = (" ".join(str(each or "").split()) for each in (front.get("license"), first.get("text")))
    figures = body.partition(FIGURES)[2].partition("\n## ")[0]
    tables = re.sub(
        r"\n{3,}", "\n\n", "\n".join(line for line in figures.split("\n") if line.startswith("|") or not line)
    )
    hardware = re.search(r"(?m)^Trained on (.*)\.$", figures)
    return Card(
        _first_line(body), licence or NO_LICENCE, example, hardware[1] if hardware else "", tables.strip("\n"), front
    )


def _first_line(body: str) -> str:
    """The first paragraph, which says what is drawn, in one line."""
    paragraphs = [" ".join(each.split()) for each in body.split("\n\n")]
    return next((each for each in paragraphs if each and not each.startswith(("#", "<", "!", "|"))), "")


def drawing_line(name: str, caption: str) -> str:
    """The command that draws a caption with a model, as a shell takes it, whatever is in the two."""
    caption = caption or "a caption"
    quoted = f'"{caption}"' if not re.search(r'["\\$`!]', caption) else shlex.quote(caption)
    return f"dalle-sample --model {shlex.quote(name)} {quoted}"


def in_millions(count: int) -> str:
    """A count of weights, as one says it."""
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
