"""The Inception network of published FID and Inception Scores, as torch-fidelity has it, from a file. Nothing is fetched."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import torch

from dalle.evaluation.features.images import Network, extra
from dalle.models.weights import check_finite

FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""As torch-fidelity and pytorch-fid leave them in torch hub's folder."""
_PUBLISHED = "6726825d"
"""What the SHA-256 of the published file begins with: torch hub's names end so."""
_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/" + FILES[0]


def inception(file: str | None, device: str | torch.device = "cpu") -> Network:
    """2,048 pooled features, and logits without their bias, which torch-fidelity's Inception Score is made of.

    Args:
        file: of the weights; null looks in torch hub's folder
        device: where it runs

    Raises:
        ValueError: a package of the extra `eval` is missing, the file is, or it holds another network
    """
    path = _in_hub() if file is None else Path(file)
    if not path.is_file():
        raise ValueError(f"features inception:{path}: no such file; take it from {_URL}")
    held = path.read_bytes()
    sha256 = hashlib.sha256(held).hexdigest()
    try:
        tensors = torch.load(io.BytesIO(held), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} holds no weights of the FID Inception network: it is no file of tensors; take {FILES[0]}"
        ) from error
    network = _network(tensors, path).to(device)
    check_finite(network, f"the Inception network of {path}")

    def see(images_BCYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return network(images_BCYX)

    # other weights may be the same converted anew, or not: their figures must not pass for the published ones
    name = "inception" if sha256.startswith(_PUBLISHED) else f"inception (weights {sha256[:8]})"
    resizer = "to 299², bilinear without antialiasing as in TensorFlow 1.x, in fp32 (torch-fidelity)"
    return Network(name, sha256, 2048, resizer, torch.device(device), see)


def _in_hub() -> Path:
    """The weights where libraries leave them."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        f"features inception: the weights are missing; put {FILES[0]} (from {_URL}) into {folder}, or name the file as "
        "inception:FILE"
    )


def _network(tensors: dict[str, torch.Tensor], path: Path) -> torch.nn.Module:
    """torch-fidelity's network with these weights."""
    library = extra("torch_fidelity.feature_extractor_inceptionv3")
    # It reads weights in a way that may run a file's code, so it is given what was read safely, written anew.
    safe = io.BytesIO()
    torch.save(tensors, safe)
    safe.seek(0)
    try:
        return library.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=safe
        )
    except (RuntimeError, TypeError, AttributeError) as error:  # names or shapes that differ, or no dict
        raise ValueError(
            f"{path} holds the weights of another network: the FID Inception network is that of {FILES[0]}, whose last "
            "layer has 1,008 classes (torchvision's has 1,000): take that"
        ) from error
