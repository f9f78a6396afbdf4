"""The models of a GAN's folder: where they lie, and whether they belong together, which their headers tell before any weights
are read.

The folder is the one that `dalle-train-stackgan` left: a stage I, or a stage II, whose `stage_one/` holds the first. `clip/` in
it is its reranker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dalle.config import Sampling
from dalle.config.checks import require
from dalle.config.stackgan import StackGANModel
from dalle.models.folder import check_link, read_config, read_header
from dalle.outputs.run_files import WEIGHTS
from dalle.ready.files import STAGE_ONE
from dalle.text import check_captions

KERNELS = "pytorch"
"""What computes between the matrix products, as drawings record it."""


@dataclass(frozen=True)
class GANModels:
    """Models that belong together.

    first: folder of stage I. second: of stage II; None where stage I draws alone. text_encoder: its name, for
    `open_text_encoder`. clip: a folder, or ARCHITECTURE:PRETRAINED of open_clip; None without a reranker. sizes: of what draws last.
    hashes: content hashes by name, recorded with every drawing.
    """

    first: Path
    second: Path | None
    text_encoder: str
    clip: str | None
    sizes: StackGANModel
    hashes: dict[str, str]

    @property
    def image_size_px(self) -> int:
        """Side of what is drawn."""
        return self.sizes.image_size_px

    @property
    def steps(self) -> tuple[int, int]:
        """How many steps a chunk is drawn in, and after how many of them that is worth telling."""
        return 1, 1

    def settle(self, sampling: Sampling) -> Sampling:
        """The settings. Raises ValueError for those that are about codes."""
        return settle(sampling)

    def check(self, captions: Sequence[str]) -> None:
        """Raises ValueError for captions that cannot be drawn."""
        check_captions(captions)

    def kernels(self, device: str, compiled: bool) -> str:
        """What computes between the matrix products, as drawings record it."""
        return KERNELS


def settle(sampling: Sampling) -> Sampling:
    """The settings. Raises ValueError for those that are about codes, which a GAN has none of."""
    for name, none in (("temperature", None), ("top_k", None), ("top_p", None), ("guidance", 1)):
        found = getattr(sampling, name)
        require(
            found is None or found == none,
            f"sampling.{name} {found}: is for a prior's codes, and this model is a GAN, which has none; leave it out",
        )
    return sampling


def is_gan(folder: Path) -> bool:
    """Whether a folder holds a GAN that draws."""
    return (folder / WEIGHTS).is_file() and read_header(folder)["kind"] == "stackgan"


def find_gan(folder: Path, text_encoder: str | None = None) -> GANModels:
    """The models of a GAN's folder, without a reranker.

    Args:
        folder: of a stage I, or of a stage II with its `stage_one/`
        text_encoder: where it lies now, in place of the name that it was trained with

    Raises:
        ValueError: a part is missing or of another kind, or stage II was trained with another stage I
    """
    sizes, header = read_config(folder, "stackgan"), read_header(folder)
    first, second = folder, None
    hashes = {"stage_one": header["hash"], "text_encoder": header["text_encoder_hash"]}
    if sizes.stage == 2:
        first, second = folder / STAGE_ONE, folder
        try:
            kind = read_config(first, "stackgan")
        except ValueError as error:
            raise ValueError(
                f"model {folder}: is a stage II, which begins with stage I's images ({error}): put that there"
            ) from None
        require(
            kind.stage == 1,
            f"model {folder}: its {STAGE_ONE}/ holds a stage {kind.stage}, not a stage 1; put one there",
        )
        hashes |= {"stage_one": read_header(first)["hash"], "stage_two": header["hash"]}
        check_link(f"model {folder}: was trained with another stage I", header["stage_one_hash"], hashes["stage_one"])
    return GANModels(first, second, text_encoder or header["text_encoder"], None, sizes, hashes)
