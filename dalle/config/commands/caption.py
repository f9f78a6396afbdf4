"""How captions are scored for an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dalle.config.checks import at_least, at_most
from dalle.config.sampling import DEFAULT_MODEL
from dalle.config.training import Precision

RankBy = Literal["image", "joint"]


@dataclass(frozen=True)
class Caption:
    """Score given captions for an image by the joint model, best first.

    Args:
        image: an image file; its central square is read
        captions: what is scored: a text file with one caption a line, or a .jsonl file of objects that have a "caption"
        model: a ready model by its name, such as icons; a folder with `prior/` and `dvae/` in it; or `owner/name[@revision]` of
            the Hugging Face Hub
        dvae: dVAE in place of the model's: its folder, or a model by name, whose dVAE is meant
        prior: prior in place of the model's: its folder, or a model by name
        rank_by: "image" ranks by ln p(image | caption), all captions being as likely beforehand; "joint" by
            ln p(caption, image), where what the prior thinks of the text counts as well and short captions win easily
        batch_size: captions scored together; fewer need less memory
        precision: precision of the prior's matrix products
        json: print JSON in place of a table
    """

    image: str
    captions: str
    model: str = DEFAULT_MODEL
    dvae: str | None = None
    prior: str | None = None
    rank_by: RankBy = "image"
    batch_size: int = 16
    precision: Precision = "fp32"
    json: bool = False

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        at_most(self, 2**20, "batch_size")
