"""The models that may be chosen, each with what the page has to know of it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalle.config import Sampling, Serve
from dalle.config.checks import out_of_memory, warn
from dalle.models.likelihood import to_pixels
from dalle.ready.facts import read_card
from dalle.ready.files import CARD
from dalle.ready.names import find_model
from dalle.sampling.adversarial.gan_set import is_gan
from dalle.sampling.loading import load_models
from dalle.sampling.model_set import Models, find_models
from dalle.sampling.pipeline import Pipeline

_BYTES_A_PIXEL = 4
"""Of a PNG that does not get smaller, in base64."""


@dataclass
class Shelved:
    """A model, by the name that those who ask give it.

    found: what its headers tell, for any thread. pipeline, colours_K3: the loaded model, and a colour uint8 of each code; of the
    thread that draws alone.
    """

    name: str
    folder: Path
    found: Models
    pipeline: Pipeline
    colours_K3: np.ndarray

    def facts(self) -> dict[str, Any]:
        """What the page shows of it."""
        card = read_card(self.folder / CARD)
        return {
            "name": self.name,
            "about": card.about,
            "example": card.example,
            "size_px": self.found.image_size_px,
            "grid": self.found.prior_config.grid,
            "ranks": self.found.clip is not None,
            "guidance": self.found.tuning.guidance if self.found.tuning.caption_dropout != 0 else None,
            "temperature": self.found.tuning.temperature,
        }


def load_shelf(config: Serve) -> dict[str, Shelved]:
    """The models that are named, by the names that are shown: as they were given, but of an absolute path the last part alone, for
    where things lie on this machine is nobody's business. Raises ValueError where one is missing or damaged, or two have one name."""
    shelf: dict[str, Shelved] = {}
    for given in config.models:
        folder = find_model(given)
        path = Path(given).expanduser()
        name = path.name if path.is_absolute() or ".." in path.parts else given
        if name in shelf:
            raise ValueError(
                f"model {given}: is called {name} on the page, as is another one; name it from its own folder"
            )
        if is_gan(folder):
            raise ValueError(f"model {given}: is a GAN, and the page draws codes; draw with it by dalle-sample")
        # what was found is loaded, so that a name of the Hub is looked up once
        found = find_models(folder, rerank=config.rerank)
        pipeline = load_models(found, precision=config.precision)
        _warm(pipeline, Sampling(chunk=config.chunk, precision=config.precision))
        shelf[name] = Shelved(name, folder, found, pipeline, code_colours(pipeline))
        _check_limits(config, found.image_size_px)
    return shelf


def _check_limits(config: Serve, size_px: int) -> None:
    """Warn where all that the page may show at once cannot be sent back to be a grid or a zip."""
    pixels = config.most_n * size_px**2
    megabytes, megapixels = _BYTES_A_PIXEL * pixels / 1e6, pixels / 1e6
    if megabytes > config.upload_mb or megapixels > config.upload_megapixels:
        warn(
            f"most_n {config.most_n}: so many drawings of {size_px} px may be too much for one picture or zip of them; "
            f"set --upload_mb {math.ceil(megabytes)} --upload_megapixels {math.ceil(megapixels)} where they are wanted"
        )


class _Warm(Exception):
    """A slot was drawn."""


def _warm(pipeline: Pipeline, sampling: Sampling) -> None:
    """Draw one slot, so that kernels are compiled and caches made before anybody waits for them."""

    def enough(slot: int) -> None:
        raise _Warm

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is said of the caption
            pipeline.chunk(pipeline.read(["a"]), 0, pipeline.settle(sampling), None, enough)
    except _Warm:
        pass
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        pipeline.release()  # fewer will be drawn together


@torch.inference_mode()
def code_colours(pipeline: Pipeline) -> np.ndarray:
    """A colour for each code, uint8 [K, 3]: the mean of what the dVAE makes of four of it in a square, which is near that of its cell
    in a picture. One alone would be mostly border."""
    codes_K4 = torch.arange(pipeline.prior.config.codebook_size, device=pipeline.device)[:, None].expand(-1, 4)
    means = [
        pipeline.decode(codes_B4, "fp32").mean(dim=(2, 3), keepdim=True) for codes_B4 in codes_K4.split(_CODES_TOGETHER)
    ]
    return to_pixels(torch.cat(means))[:, 0, 0]


_CODES_TOGETHER = 256
