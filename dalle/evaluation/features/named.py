"""Feature networks by name."""

from __future__ import annotations

import torch

from dalle.evaluation.features.contract import Features
from dalle.evaluation.features.efficientnet import efficientnet_lite0
from dalle.evaluation.features.inception import inception
from dalle.evaluation.features.towers import open_clip_tower, trained_tower

SPECS = "efficientnet-lite0, inception, inception:FILE, open_clip:ARCHITECTURE[:TAG_OR_FILE], clip:FOLDER"


def features(spec: str = "efficientnet-lite0", device: str | torch.device = "cpu") -> Features:
    """A feature network, ready to be called.

    Args:
        spec: one of `SPECS`: ImageNet features that come with the extra `eval`; those of published FID; those of a CLIP
        device: where it runs

    Raises:
        ValueError: there is no such network, its packages or weights are missing, or the weights are another network's
    """
    kind, _, rest = spec.partition(":")
    if spec == "efficientnet-lite0":
        return efficientnet_lite0(device)
    if spec == "inception" or (kind == "inception" and rest):
        return inception(rest or None, device)
    if kind == "open_clip" and rest:
        return open_clip_tower(rest, device)
    if kind == "clip" and rest:
        return trained_tower(rest, device)
    raise ValueError(f"features {spec!r}: no such network; allowed are {SPECS}")
