"""A model as a folder: `config.yaml` (how it was trained) and `model.safetensors`, whose header holds what loading
needs: the kind of model, its sizes, the content hash of its weights, and the hashes of the models it was trained with.
Loading runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dalle.config import CLIPModel, DVAEModel, PriorModel
from dalle.models.dvae import DVAE
from dalle.models.prior import Prior
from dalle.text import Tokenizer

_WEIGHTS = "model.safetensors"
_CONFIGS = {"dvae": DVAEModel, "prior": PriorModel, "clip": CLIPModel}


def content_hash(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, as 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_weights(folder: Path, kind: str, tensors: dict[str, torch.Tensor], model_config, links: dict[str, str]) -> str:
    """Write `model.safetensors`, whole or not at all, and return the content hash.

    Args:
        folder: the model's folder
        kind: "dvae", "prior" or "clip"
        tensors: the weights by name
        model_config: the sizes, a dataclass
        links: hashes of what it was trained with, such as {"dvae_hash": …}
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    digest = content_hash(tensors)
    header = {"kind": kind, "hash": digest, "config": json.dumps(asdict(model_config)), **links}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (_WEIGHTS + ".partial")
    save_file(tensors, partial, metadata=header)
    os.replace(partial, folder / _WEIGHTS)
    return digest


def read_header(folder: str | Path) -> dict[str, str]:
    """The header of a folder's weights. Raises ValueError when the folder holds no model."""
    path = Path(folder) / _WEIGHTS
    if not path.is_file():
        raise ValueError(f"{folder} holds no trained model (no {_WEIGHTS})")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if header.get("kind") not in _CONFIGS:
        raise ValueError(f"{path} was not written by this program: its header names no kind of model")
    return header


def read_config(folder: str | Path, kind: str):
    """The sizes of a model. Raises ValueError when the folder holds another kind."""
    header = read_header(folder)
    if header["kind"] != kind:
        raise ValueError(f"{folder} holds a {header['kind']}, not a {kind}")
    values = json.loads(header["config"])
    known = {f.name for f in fields(_CONFIGS[kind])}
    if unknown := set(values) - known:
        raise ValueError(f"{folder} was written by another version: unknown sizes {sorted(unknown)}")
    return _CONFIGS[kind](**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def load_dvae(folder: str | Path, device: str | torch.device = "cpu") -> DVAE:
    """The dVAE of a folder, in evaluation mode."""
    return load_into(DVAE(read_config(folder, "dvae")), folder, device)


def load_prior(folder: str | Path, device: str | torch.device = "cpu") -> Prior:
    """The prior of a folder, in evaluation mode."""
    return load_into(Prior(read_config(folder, "prior")), folder, device)


def load_into(model: nn.Module, folder: str | Path, device: str | torch.device) -> nn.Module:
    model.load_state_dict(load_file(Path(folder) / _WEIGHTS))
    return model.to(device).eval().requires_grad_(False)


def check_links(prior: str | Path, dvae: str | Path, tokenizer: Tokenizer) -> None:
    """Refuse a dVAE or tokenizer other than those the prior was trained with, both hashes shown."""
    header = read_header(prior)
    if header["kind"] != "prior":
        raise ValueError(f"{prior} holds a {header['kind']}, not a prior")
    check_link(f"the prior {prior} was trained with another dVAE", header["dvae_hash"], read_header(dvae)["hash"])
    check_link(f"the prior {prior} was trained with another tokenizer", header["tokenizer_hash"], tokenizer.hash)


def check_link(complaint: str, expected: str, found: str) -> None:
    """Raises ValueError when two hashes differ."""
    if expected != found:
        raise ValueError(f"{complaint}: expected {expected[:16]}…, found {found[:16]}…")
