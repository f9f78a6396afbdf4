"""From codes to pictures and scores, some at a time, in batches of one width: the shape of a batch decides the last bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from dalle.config.checks import warn
from dalle.models.clip import CLIP
from dalle.models.dvae import DVAE
from dalle.models.likelihood import to_uint8
from dalle.text import Cuts

_PIXELS_TOGETHER = 8 * 256**2
"""Pixels that the dVAE decodes and the reranker looks at in one go. The published dVAE's widest maps take 64 MB an image of
256² in fp32, and some of them stand side by side. A constant, as is the next, for the sake of the last bits."""

_PATCHES_TOGETHER = 2**14
"""Patches of codes that a reader of codes looks at in one go: 64 images of 256. In its MLPs they take 64 MB at width 256."""


@torch.inference_mode()
def embed_captions(clip: CLIP, captions: Sequence[str], device: torch.device, reader: str) -> torch.Tensor:
    """Captions as a reranker reads them, fp32 [C, E]. Warns of those that are cut.

    Args:
        reader: what the warning calls it
    """
    cuts = Cuts(clip.caption_tokens)
    with torch.autocast(device.type, enabled=False):
        embeddings_CE = clip.embed_texts(clip.tokens(captions, cuts).to(device))
    if cuts.cut:
        told = f"the {reader} reads only the beginning of {captions[0][:60]!r}"
        warn(told if len(captions) == 1 else f"the {reader} reads only the beginning: {cuts}")
    return embeddings_CE


@torch.inference_mode()
def decode(dvae: DVAE, codes_BI: torch.Tensor, precision: str) -> torch.Tensor:
    """Images in [0, 1], fp32 [B, 3, Y, X], of codes [B, I]."""
    grid = math.isqrt(codes_BI.shape[1])
    with torch.autocast(codes_BI.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return dvae.decode(codes_BI.reshape(-1, grid, grid))


@torch.inference_mode()
def view(
    dvae: DVAE,
    clip: CLIP | None,
    codes_RI: torch.Tensor,
    texts_RE: torch.Tensor | None,
    precision: str,
    together: int | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Images uint8 [R, Y, X, 3] of codes, and their scores [R] where there is a reranker. One transfer to the host for all.

    Args:
        texts_RE: the caption of each row, embedded by the reranker
        precision: of the dVAE's products
        together: how many rows were drawn together, where these are only some of them: the batches are as wide as for those
    """
    most = max(1, _PIXELS_TOGETHER // dvae.config.image_size_px**2)
    pixels: list[torch.Tensor] = []

    def see(codes_BI: torch.Tensor) -> torch.Tensor:
        images_BCYX = to_uint8(decode(dvae, codes_BI, precision))
        pixels.append(images_BCYX)
        return images_BCYX if clip is None else _look(clip, images_BCYX)

    seen = _in_batches(see, codes_RI, min(together or len(codes_RI), most))
    scores_R = None
    if clip is not None:
        assert texts_RE is not None
        scores_R = _scores(seen, texts_RE)
    return torch.cat(pixels)[: len(codes_RI)].permute(0, 2, 3, 1).cpu().numpy(), scores_R


@torch.inference_mode()
def score_images(clip: CLIP, images_RCYX: torch.Tensor, texts_RE: torch.Tensor) -> np.ndarray:
    """Scores [R] of images uint8 [R, 3, Y, X]. texts_RE: the caption of each row, embedded by the reranker."""
    width = min(len(images_RCYX), max(1, _PIXELS_TOGETHER // images_RCYX.shape[-1] ** 2))
    return _scores(_in_batches(lambda images_BCYX: _look(clip, images_BCYX), images_RCYX, width), texts_RE)


@torch.inference_mode()
def score_codes(clip: CLIP, codes_RI: torch.Tensor, texts_RE: torch.Tensor) -> np.ndarray:
    """Scores [R] by a reader of codes. texts_RE: the caption of each row, embedded by it."""
    patches = (clip.config.image_size_px // clip.config.patch_px) ** 2
    width = min(len(codes_RI), max(1, _PATCHES_TOGETHER // patches))
    with torch.autocast(codes_RI.device.type, enabled=False):
        return _scores(_in_batches(clip.embed_codes, codes_RI, width), texts_RE)


def _look(clip: CLIP, images_BCYX: torch.Tensor) -> torch.Tensor:
    """Embeddings [B, E] of images uint8 [B, 3, Y, X]: of what is saved, so that a last bit of a decoder seldom shows in a score; in fp32
    whatever else is not, for the best of some that are close is another one in bf16."""
    with torch.autocast(images_BCYX.device.type, enabled=False):
        return clip.embed_images(images_BCYX)


def _in_batches(call: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor, width: int) -> torch.Tensor:
    """What it makes of all rows, batch by batch, the last filled up."""
    rows = len(given)
    given = torch.cat([given, given[-1:].expand(-rows % width, *given.shape[1:])])
    return torch.cat([call(batch) for batch in given.split(width)])[:rows]


def _scores(images_RE: torch.Tensor, texts_RE: torch.Tensor) -> np.ndarray:
    """Not by a matrix product, which would round by the shape of the batch."""
    return (images_RE * texts_RE).sum(dim=1).cpu().numpy()


def check_scores(scores_R: np.ndarray, seeds_R: Sequence[int] | torch.Tensor, reader: str, remedy: str) -> None:
    """Raises ValueError, with the remedy, where a score is not finite."""
    finite_R = np.isfinite(scores_R)
    if not finite_R.all():
        seed = int(seeds_R[int(np.argmin(finite_R))])
        raise ValueError(
            f"the {reader} gives scores that are not finite (first for seed {seed}): it is broken; {remedy}"
        )
