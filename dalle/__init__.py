"""DALL·E-style text-to-image models: a discrete VAE, a sparse transformer over text and image tokens, CLIP reranking.

The public face, loaded when first used so that configuration errors and worker processes do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # so that a type checker knows what `__getattr__` gives
    from dalle.models.dvae import DVAE
    from dalle.models.prior import Prior
    from dalle.sampling.loading import load
    from dalle.sampling.pipeline import Pipeline
    from dalle.text import Tokenizer

__version__ = "0.1.0"

_HOMES = {
    "DVAE": "dalle.models.dvae",
    "Prior": "dalle.models.prior",
    "Tokenizer": "dalle.text",
    "Pipeline": "dalle.sampling.pipeline",
    "load": "dalle.sampling.loading",
}
__all__ = ["DVAE", "Pipeline", "Prior", "Tokenizer", "load"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dalle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
