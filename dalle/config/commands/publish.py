"""What `dalle-publish` and `dalle-export` are asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from dalle.config.checks import require


@dataclass(frozen=True)
class Publish:
    """Check a model as loading does, write its model card, list what would leave this machine, and upload it to the Hugging Face
    Hub.

    Args:
        folder: folder of the model, with `prior/` and `dvae/` in it
        repo: `owner/name` on the Hub; null writes the card and uploads nothing
        private: make the repository private
        overwrite: write over the model of a repository that is there
        dry_run: tell what would leave, and write and upload nothing
        card: "keep" a README.md that a person wrote or changed, or "overwrite" it; one that is as this command wrote it is
            written anew
        licence: licence of the weights, by the Hub's name for it, such as mit, apache-2.0 or cc-by-4.0; null leaves what the card says
        about: what the model draws, in a line; null leaves what the card says
        example: a caption to try; null leaves what the card says
        runs: folder of the trainings, whose hours and figures the card tells; null means `folder`, and where it has none, what
            the card says
        hardware: hardware the runs used, for the card; null leaves what the card says
    """

    folder: str
    repo: str | None = None
    private: bool = False
    overwrite: bool = False
    dry_run: bool = False
    card: Literal["keep", "overwrite"] = "keep"
    licence: str | None = None
    about: str | None = None
    example: str | None = None
    runs: str | None = None
    hardware: str | None = None

    def __post_init__(self) -> None:
        require(
            self.repo is None or re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo, re.ASCII) is not None,
            f"repo {self.repo}: must be owner/name, of letters, digits, -, _ and .",
        )
        require(
            self.repo is not None or not self.private, "private: is of a repository; name it with --repo owner/name"
        )
        for name in ("licence", "about", "example", "hardware"):
            said = getattr(self, name)
            require(
                said is None or (bool(said.strip()) and "\n" not in said), f"{name}: must be one line of text, or null"
            )


@dataclass(frozen=True)
class Export:
    """Turn a checkpoint of a run into a model folder with one `model.safetensors`, or write a finished model in another precision.

    Args:
        run: a run's folder, of whose checkpoints the newest is taken; one checkpoint; a finished model without checkpoints; or a whole
            one, with finished `prior/`, `dvae/` and perhaps `clip/` in it, all of which are converted, by its folder or name
        output: folder of the model, new or empty
        weights: averaged or trained ones; null means averaged where the checkpoint holds them
        dtype: format of the weights on disk; they are fp32 again when they are loaded
    """

    run: str
    output: str
    weights: Literal["averaged", "trained"] | None = None
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
