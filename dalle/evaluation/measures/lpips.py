"""LPIPS (Zhang et al. 2018) by torchmetrics, where the weights of its trunk lie in torch hub's folder. Nothing is fetched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dalle.evaluation.features.images import extra

FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
"""torchvision's, in the order of choice. A name ends with the first digits of the file's SHA-256; the layers on top come with
torchmetrics."""
LEAST_PX = 32
"""What the trunks' poolings leave something of."""


@dataclass(frozen=True)
class Lpips:
    """A perceptual distance of two pictures; less is closer.

    Args:
        trunk: its network, as figures are named by it: "alex", "vgg" or "squeeze"
        network: torchmetrics'
    """

    trunk: str
    network: nn.Module

    @torch.inference_mode()
    def __call__(self, images_BCYX: torch.Tensor, others_BCYX: torch.Tensor) -> torch.Tensor:
        """Distances [B] of images in [0, 1], float [B, 3, Y, X]."""
        return self.network(images_BCYX, others_BCYX, normalize=True).flatten(1).mean(dim=1)


def find_lpips(device: str | torch.device = "cpu") -> tuple[Lpips | None, str]:
    """The first trunk whose weights are there; and where none are, null and a note that says which file to put where.

    Raises:
        ValueError: a file is not the published one
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for trunk, name in FILES.items():
        if not (folder / name).is_file():
            continue
        found = _digits(folder / name)
        # its trunk is unpickled by torchvision: nothing but the published file may come so far
        if found != Path(name).stem.rpartition("-")[2]:
            raise ValueError(
                f"{folder / name} is damaged: its SHA-256 begins with {found}, not with what its name says; delete it, and fetch it anew"
            )
        library = extra("torchmetrics.image.lpip")
        return Lpips(trunk, library.LearnedPerceptualImagePatchSimilarity(trunk).net.to(device)), ""
    return (
        None,
        f"LPIPS was left out: the weights of its network are missing; put {FILES['alex']} of torchvision into {folder}.",
    )


def _digits(path: Path) -> str:
    """What torch hub puts at the end of a file's name."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()[:8]
