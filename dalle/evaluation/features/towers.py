"""The image tower of a CLIP as a feature network: any of open_clip's, or one that this project trained."""

from __future__ import annotations

from pathlib import Path

import torch

from dalle.config import CLIPModel
from dalle.evaluation.features.images import RESIZER, Network
from dalle.models.clip import CLIP, load_clip
from dalle.models.folder import content_hash, read_header
from dalle.ready.names import find_part


def trained_tower(folder: str, device: str | torch.device = "cpu") -> Network:
    """Unit vectors of a CLIP of `dalle-train-clip`.

    Raises:
        ValueError: there is no such folder, ready model or repository, it holds none, or it is damaged
    """
    try:
        found = find_part(folder, "clip")
    except ValueError as error:
        raise ValueError(f"features clip:{folder}: {error}") from None
    known = read_header(found)["hash"]
    clip = load_clip(found)
    check_reads_pixels(clip, f"features clip:{found}")
    # what it is, not where it lay or how that was called
    return _tower(f"clip:{known[:8]}", known, clip, device)


def check_reads_pixels(clip: CLIP, named: str) -> None:
    """Raises ValueError for one that reads codes."""
    if clip.config.reads == "codes":
        raise ValueError(f"{named}: reads codes of a dVAE, not pictures; name a CLIP that was trained on pixels")


def open_clip_tower(model: str, device: str | torch.device = "cpu") -> Network:
    """Unit vectors of an architecture of open_clip.

    Args:
        model: ARCHITECTURE:TAG_OR_FILE; without weights they are drawn, always the same ones, and the name says so
        device: where it runs

    Raises:
        ValueError: open_clip cannot make it
    """
    architecture, _, weights = model.partition(":")
    try:
        if weights:
            clip = load_clip(model)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                clip = CLIP(CLIPModel(architecture=architecture)).eval().requires_grad_(False)
    except ValueError as error:
        reason = " ".join(str(error).split())[:400]
        if "weights_only" in reason:  # PyTorch's advice here is to run what is in the file
            reason = "the file holds no weights that can be read safely; name another"
        raise ValueError(f"features open_clip:{model}: {reason}") from error
    named = f"{architecture}:{Path(weights).name}" if weights else f"{architecture} (random weights)"
    return _tower(f"open_clip:{named}", content_hash(clip.net.visual.state_dict()), clip, device)


def _tower(name: str, weights_hash: str, clip: CLIP, device: str | torch.device) -> Network:
    clip = clip.to(device)
    side_px = clip.image_size_px
    with torch.inference_mode():
        width = clip.embed_images(torch.zeros(1, 3, side_px, side_px, device=device)).shape[1]
    resizer = f"to {side_px}², {RESIZER}"

    def see(images_BCYX: torch.Tensor) -> tuple[torch.Tensor, None]:
        return clip.embed_images(images_BCYX), None  # which resizes by the same filter

    return Network(name, weights_hash, width, resizer, torch.device(device), see)
