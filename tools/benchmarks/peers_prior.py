"""What `bench.py prior` compares ours with: a straightforward dense GPT of the same sizes, and DALLE-pytorch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional as F


class _Layer(nn.Module):
    """Two pre-layer-norm resblocks."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x_BSD):
        batch, slots, width = x_BSD.shape
        qkv = self.qkv(self.attention_norm(x_BSD)).view(batch, slots, 3, self.heads, width // self.heads)
        q_BHSK, k_BHSK, v_BHSK = qkv.permute(2, 0, 3, 1, 4)
        values_BHSK = F.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK, is_causal=True)
        x_BSD = x_BSD + self.project(values_BHSK.transpose(1, 2).reshape(batch, slots, width))
        return x_BSD + self.narrow(F.gelu(self.widen(self.mlp_norm(x_BSD))))


class GPT(nn.Module):
    """Our prior with `attention: dense` as one writes it plainly: the same embeddings, layers, heads and loss.

    Args:
        config: sizes, a `PriorModel`
    """

    def __init__(self, config):
        super().__init__()
        self.config, width = config, config.width
        self.text_tokens = nn.Embedding(config.text_vocabulary + 1, width)
        self.text_positions = nn.Embedding(config.text_slots, width)
        self.text_pads = nn.Embedding(config.text_slots, width)
        self.image_tokens = nn.Embedding(config.codebook_size + 1, width)
        self.image_rows = nn.Embedding(config.grid, width)
        self.image_columns = nn.Embedding(config.grid, width)
        self.layers = nn.ModuleList(_Layer(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.text_head = nn.Linear(width, config.text_vocabulary)
        self.image_head = nn.Linear(width, config.codebook_size)

    def forward(self, text_BU: torch.Tensor, codes_BI: torch.Tensor) -> torch.Tensor:
        """The loss: 1/8 of the text's mean cross-entropy and 7/8 of the image's. Pads are −1."""
        text_BT = F.pad(text_BU, (1, 0), value=self.config.text_vocabulary)
        text_BTD = self.text_tokens(text_BT.clamp(min=0)) + self.text_positions.weight
        text_BTD = torch.where((text_BT >= 0)[..., None], text_BTD, self.text_pads.weight)
        image_BID = self.image_tokens(F.pad(codes_BI[:, :-1], (1, 0), value=self.config.codebook_size))
        places_YXD = self.image_rows.weight[:, None] + self.image_columns.weight[None, :]
        x_BSD = torch.cat([text_BTD, image_BID + places_YXD.flatten(0, 1)], dim=1)
        for layer in self.layers:
            x_BSD = layer(x_BSD)
        x_BSD = self.norm(x_BSD)
        text_logits_BUV = self.text_head(x_BSD[:, : self.config.text_slots - 1]).float()
        image_logits_BIV = self.image_head(x_BSD[:, self.config.text_slots :]).float()
        text_nats = F.cross_entropy(text_logits_BUV.flatten(0, 1), text_BU.flatten(), ignore_index=-1)
        return text_nats / 8 + F.cross_entropy(image_logits_BIV.flatten(0, 1), codes_BI.flatten()) * 7 / 8


# ---- DALLE-pytorch

_ITS_KINDS = {"row": "axial_row", "column": "axial_col", "conv": "conv_like"}


def why_no_dalle_pytorch(config) -> str | None:
    """What keeps DALLE-pytorch from a run at these sizes; None where nothing does."""
    if not all(importlib.util.find_spec(name) for name in ("dalle_pytorch", "rotary_embedding_torch")):
        return "pip install --no-deps dalle-pytorch==1.6.6 rotary-embedding-torch==0.3.0"
    if config.grid & (config.grid - 1):
        return "its grids are powers of two"
    return None


class DALLEPytorch(nn.Module):
    """DALLE-pytorch's transformer with our layer kinds, and its own defaults otherwise: rotary embeddings, shifted tokens,
    a gated MLP (half as many weights again), a 5×5 convolution, logits over text and codes at every slot.

    Args:
        config: sizes, a `PriorModel` that `why_no_dalle_pytorch` has nothing against
    """

    def __init__(self, config):
        super().__init__()
        from dalle.masks import layer_kinds

        with _stand_ins():
            from dalle_pytorch import DALLE, DiscreteVAE
        # says the grid and the number of codes; never called, for it is given codes
        dvae = DiscreteVAE(
            image_size=8 * config.grid, num_tokens=config.codebook_size, codebook_dim=1, num_layers=3, hidden_dim=1
        )
        self.dalle = DALLE(
            vae=dvae,
            dim=config.width,
            depth=config.depth,
            heads=config.heads,
            dim_head=config.width // config.heads,
            num_text_tokens=config.text_vocabulary,
            text_seq_len=config.text_slots,
            attn_types=tuple(_ITS_KINDS[kind] for kind in layer_kinds(config)),
        )

    def forward(self, text_BU: torch.Tensor, codes_BI: torch.Tensor) -> torch.Tensor:
        """Its loss. Token 0 is its pad; one fills its last text slot, which ours has no caption token for."""
        return self.dalle(F.pad(text_BU, (0, 1)), codes_BI, return_loss=True)


# what its modules import and its training does not use
_UNUSED = ("axial_positional_embedding", "omegaconf", "pkg_resources", "taming.models.vqgan")


@contextmanager
def _stand_ins() -> Iterator[None]:
    """In this block those of the unused modules that cannot be imported are empty ones."""
    added = []
    for name in _UNUSED:
        try:
            importlib.import_module(name)
        except Exception:  # old packages fail in many ways on a current Python
            sys.modules[name] = _Anything(name)
            added.append(name)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


class _Anything(ModuleType):
    """A module that has a class of any name."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
