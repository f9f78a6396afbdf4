"""What the first stage keeps of real images: how close its reconstructions are, and how much of the codebook it uses.

All of it is of the 8-bit pictures that a reconstruction would be saved as.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dalle.evaluation.features.contract import Features
from dalle.evaluation.features.images import check_images, extra
from dalle.evaluation.measures.collector import Collector
from dalle.evaluation.measures.comparison import Comparison, compare
from dalle.evaluation.measures.lpips import LEAST_PX, Lpips, find_lpips
from dalle.evaluation.report.section import Section, prose, table
from dalle.models.dvae import DVAE
from dalle.models.likelihood import to_uint8, unit_range
from dalle.objectives.dvae import code_counts, perplexity

_BATCH = 16
_MOST_PSNR_DB = 100.0
"""Of pictures that are equal, whose PSNR is infinite, as training has it."""


@dataclass(frozen=True)
class StageOne:
    """Figures of reconstructions beside the images that they are of.

    Args:
        num_images: that they are of
        psnr_db: mean over images, more is better
        ssim: mean over images (Wang et al. 2004, 11×11 Gaussian window), at most 1
        lpips: mean over images, less is better; null where its weights are missing
        lpips_trunk: the network of LPIPS, by which figures are named
        codes_used: different codes in all images
        perplexity: exp of the entropy of the codes' shares
        codebook_size: codes that there are
        distances: of the reconstructions from the images, among them the reconstruction FID
        notes: what to bear in mind
    """

    num_images: int
    psnr_db: float
    ssim: float
    lpips: float | None
    lpips_trunk: str | None
    codes_used: int
    perplexity: float
    codebook_size: int
    distances: Comparison
    notes: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "num_images": self.num_images,
            "psnr_db": self.psnr_db,
            "ssim": self.ssim,
            "lpips": self.lpips,
            "lpips_trunk": self.lpips_trunk,
            "codes_used": self.codes_used,
            "perplexity": self.perplexity,
            "codebook_size": self.codebook_size,
            "distances": self.distances.figures(),
        }


def stage_one(
    dvae: DVAE, batches: Iterable[np.ndarray], num_images: int, features: Features, sample: int = 10_000
) -> StageOne:
    """Reconstruct real images, each by the codes that inference takes, and compare. Memory is flat for any number.

    Args:
        dvae: in evaluation mode
        batches: of uint8 images [B, Y, X, 3] of one size, with sides that are multiples of the downsampling
        num_images: in all of them
        features: of the reconstruction FID
        sample: as `Collector` has it

    Raises:
        ValueError: there are fewer than 2 images or fewer than were said, or they are of another kind
    """
    real, back = (Collector(features, num_images, (0.0,), sample=sample) for _ in range(2))
    device = next(dvae.parameters()).device
    counts_K = torch.zeros(dvae.config.codebook_size, dtype=torch.int64, device=device)
    lpips, note = find_lpips(device)
    totals = {"psnr_db": 0.0, "ssim": 0.0, "lpips": 0.0}
    for images_BYX3 in batches:
        check_images(images_BYX3)
        if lpips is not None and min(images_BYX3.shape[1:3]) < LEAST_PX:
            lpips, note = None, f"LPIPS was left out: its network takes images of at least {LEAST_PX} px."
        for first in range(0, len(images_BYX3), _BATCH):
            part_BYX3 = images_BYX3[first : first + _BATCH]
            images_BCYX = torch.tensor(part_BYX3).permute(0, 3, 1, 2).contiguous().to(device)
            codes_BYX = dvae.encode(images_BCYX)
            back_BCYX = to_uint8(dvae.decode(codes_BYX))
            counts_K += code_counts(codes_BYX, dvae.config.codebook_size)
            for name, values_B in _closeness(back_BCYX, images_BCYX, lpips).items():
                totals[name] += float(values_B.double().sum())
            real.add(part_BYX3)
            back.add(back_BCYX.permute(0, 2, 3, 1).contiguous().cpu().numpy())
    distances = compare(back, real)
    means = {name: total / num_images for name, total in totals.items()}
    return StageOne(
        num_images=num_images,
        psnr_db=means["psnr_db"],
        ssim=means["ssim"],
        lpips=None if lpips is None else means["lpips"],
        lpips_trunk=None if lpips is None else lpips.trunk,
        codes_used=int((counts_K > 0).sum()),
        perplexity=float(perplexity(counts_K)),
        codebook_size=dvae.config.codebook_size,
        distances=distances,
        notes=(*distances.notes, *([note] if note else [])),
    )


@torch.inference_mode()
def _closeness(back_BCYX: torch.Tensor, images_BCYX: torch.Tensor, lpips: Lpips | None) -> dict[str, torch.Tensor]:
    """Of each pair of uint8 images, [B] each, by torchmetrics."""
    library = extra("torchmetrics.functional.image")
    pair = unit_range(back_BCYX), unit_range(images_BCYX)
    psnr_B = library.peak_signal_noise_ratio(*pair, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim_B = library.structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
    found = {"psnr_db": psnr_B.clamp(max=_MOST_PSNR_DB), "ssim": ssim_B.reshape(len(ssim_B))}
    return found if lpips is None else {**found, "lpips": lpips(*pair)}


def section(found: StageOne, key: str = "stage_one", title: str = "Stage one: reconstructions") -> Section:
    """The part of the report that these figures make.

    Args:
        found: the figures
        key: of them
        title: above them
    """
    at = found.distances.at[0]
    used = 100 * found.codes_used / found.codebook_size
    lpips_name = "LPIPS" if found.lpips_trunk is None else f"LPIPS ({found.lpips_trunk})"
    rows: list[list[Any]] = [
        ["PSNR, dB (more is better)", found.psnr_db],
        ["SSIM (more is better)", found.ssim],
        [f"{lpips_name} (less is better)", found.lpips],
        [f"{found.distances.frechet_name} of reconstructions (less is better)", at.frechet_distance],
        ["codes used", f"{found.codes_used:,} of {found.codebook_size:,} ({used:.3g}%)"],
        ["perplexity of the codes", found.perplexity],
    ]
    bits = math.log2(found.perplexity)
    intro = prose(
        f"{found.num_images:,} real images through the dVAE and back, as 8-bit pictures. A code tells {bits:.3g} bits of the "
        f"{math.log2(found.codebook_size):.3g} that it could."
    )
    return Section(key, title, intro + table(["figure", "value"], rows), found.figures(), found.notes)
