"""The sparse transformer over text and image tokens (appendix B.1).

Pre-layer-norm resblocks with the identity path in fp32; text and image slots have their own embeddings and their own
heads: text slots are scored over the text vocabulary, image slots over the codes. The paper leaves open, and we chose:
GELU, weights from N(0, 0.02) with residual projections scaled by 1/√(2L), a final layer norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from dalle.config import PriorModel
from dalle.masks import layer_kinds, predicting, row_and_column
from dalle.models.attention import MaskedAttention
from dalle.models.cross_entropy import cross_entropy, ln_p, logits

_STD = 0.02
"""Of the initial weights. Every module draws its own as it is made, so that an engine may shard it at once."""


class Linear(nn.Linear):
    """A linear map with weights from N(0, std) and no bias to begin with."""

    def __init__(self, num_inputs: int, num_outputs: int, std: float = _STD):
        self.std = std
        super().__init__(num_inputs, num_outputs)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        nn.init.zeros_(self.bias)


class InputMajorLinear(nn.Module):
    """A linear map whose weight is stored as [inputs, outputs], so that a run of its rows is a shard along its input axis
    (appendix E: the second matrix of the MLP is sharded so)."""

    def __init__(self, num_inputs: int, num_outputs: int, std: float = _STD):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_inputs, num_outputs))
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        nn.init.normal_(self.weight, std=std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class Embedding(nn.Embedding):
    """A table with entries from N(0, 0.02)."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=_STD)


class Cache(Protocol):
    """What takes the keys and values of a layer, [B, H, S, K] each: `decoding.caches.LayerCache`."""

    def write_given(self, k_BHSK: torch.Tensor, v_BHSK: torch.Tensor) -> None: ...


class Attention(nn.Module):
    """The attention resblock without its identity path: layer norm, fused q·k·v, attention, projection."""

    def __init__(self, width: int, heads: int, residual_std: float):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.project = Linear(width, width, residual_std)

    def split(self, x_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v of each slot, each [B, H, S, K]."""
        qkv_BSzHK = self.qkv(self.norm(x_BSD)).unflatten(-1, (3, self.heads, -1))
        # taken apart where they lie, so that their gradients are put together in one copy
        return tuple(x_BSHK.transpose(1, 2) for x_BSHK in qkv_BSzHK.unbind(2))

    def merge(self, values_BHSK: torch.Tensor) -> torch.Tensor:
        return self.project(rearrange(values_BHSK, "B H S K -> B S (H K)"))

    def forward(self, x_BSD: torch.Tensor, masked: MaskedAttention, cache: Cache | None = None) -> torch.Tensor:
        q_BHSK, k_BHSK, v_BHSK = self.split(x_BSD)
        if cache is not None:
            cache.write_given(k_BHSK, v_BHSK)
        return self.merge(masked(q_BHSK, k_BHSK, v_BHSK))


class MLP(nn.Module):
    """The MLP resblock without its identity path: layer norm, widen by four, GELU, narrow."""

    def __init__(self, width: int, residual_std: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = Linear(width, 4 * width)
        self.project = InputMajorLinear(4 * width, width, residual_std)

    def forward(self, x_BSD: torch.Tensor) -> torch.Tensor:
        return self.project(F.gelu(self.widen(self.norm(x_BSD))))


class Layer(nn.Module):
    """Two resblocks."""

    def __init__(self, width: int, heads: int, residual_std: float):
        super().__init__()
        self.attention = Attention(width, heads, residual_std)
        self.mlp = MLP(width, residual_std)

    def forward(self, x_BSD: torch.Tensor, masked: MaskedAttention, cache: Cache | None = None) -> torch.Tensor:
        x_BSD = x_BSD + self.attention(x_BSD, masked, cache).float()
        return x_BSD + self.mlp(x_BSD).float()


class Head(Linear):
    """An unembedding."""

    def forward(self, x_ND: torch.Tensor, targets_N: torch.Tensor | None = None) -> torch.Tensor:
        """Logits fp32 [..., V]; or, given the targets [...], the sum of their cross-entropies without holding all logits."""
        if targets_N is None:
            return logits(x_ND.flatten(0, -2), self.weight, self.bias).unflatten(0, x_ND.shape[:-1])
        return cross_entropy(x_ND.flatten(0, -2), self.weight, self.bias, targets_N.flatten())

    def ln_p(self, x_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """ln softmax(logits)[target] fp32 [...], 0 for PAD, without holding all logits and without gradients."""
        return ln_p(x_ND.flatten(0, -2), self.weight, self.bias, targets_N.flatten()).view_as(targets_N)


class Prior(nn.Module):
    """The transformer of stage two.

    Args:
        config: sizes
    """

    def __init__(self, config: PriorModel):
        super().__init__()
        self.config = config
        width = config.width
        # the last row of each token table is the start token
        self.text_tokens = Embedding(config.text_vocabulary + 1, width)
        self.text_positions = Embedding(config.text_slots, width)
        self.text_pads = Embedding(config.text_slots, width)
        self.image_tokens = Embedding(config.codebook_size + 1, width)
        self.image_rows = Embedding(config.grid, width)
        self.image_columns = Embedding(config.grid, width)
        residual_std = _STD / math.sqrt(2 * config.depth)
        layers = nn.ModuleList(Layer(width, config.heads, residual_std) for _ in range(config.depth))
        self.layers = cast("Sequence[Layer]", layers)  # whose own type forgets what it holds
        self.norm = nn.LayerNorm(width)
        self.text_head = Head(width, config.text_vocabulary)
        self.image_head = Head(width, config.codebook_size)
        self.kinds = layer_kinds(config)
        self.masked = nn.ModuleDict(
            {
                kind: MaskedAttention(kind, config.text_slots, config.grid, config.conv_kernel)
                for kind in sorted(set(self.kinds))
            }
        )

    def recomputable(self) -> list[nn.Module]:
        """What may be computed again in the backward pass in place of being remembered: the layers."""
        return list(self.layers)

    def resblocks(self) -> list[nn.Module]:
        """The resblocks without their identity paths, from the first to the last: two in each layer."""
        return [block for layer in self.layers for block in (layer.attention, layer.mlp)]

    def matrices(self) -> dict[str, int]:
        """Names of the resblocks' matrices, and how many stand side by side in the rows of each: q, k and v are three."""
        return {
            f"layers.{number}.{name}.weight": count
            for number in range(self.config.depth)
            for name, count in {"attention.qkv": 3, "attention.project": 1, "mlp.widen": 1, "mlp.project": 1}.items()
        }

    def hold_matrices(self, dtype: torch.dtype) -> None:
        """Hold the matrices of all products, those of the heads too, in the dtype of the products, which autocast would
        convert them to in each. Embeddings, layer norms and biases stay fp32: what they make is added to the fp32 identity
        path, or to sums, and they are a hundredth of the weights."""
        for module in self.modules():
            if isinstance(module, Linear | InputMajorLinear):
                module.weight = nn.Parameter(module.weight.detach().to(dtype), module.weight.requires_grad)

    def embed_text(self, text_BU: torch.Tensor) -> torch.Tensor:
        """The T text slots' embeddings [B, T, D], fp32: start-of-text, then the caption with PAD where it has ended."""
        start_B1 = text_BU.new_full((text_BU.shape[0], 1), self.config.text_vocabulary)
        held_BT = torch.cat([start_B1, text_BU], dim=1)
        positions_T = torch.arange(held_BT.shape[1], device=held_BT.device)
        tokens_BTD = self.text_tokens(held_BT.clamp(min=0)) + self.text_positions(positions_T)
        return torch.where((held_BT >= 0)[..., None], tokens_BTD, self.text_pads(positions_T))

    def embed_image(self, held_BN: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Embeddings [B, N, D], fp32, of the image slots number `first` … `first` + N − 1.

        Args:
            held_BN: what those slots hold: a code, or `codebook_size` for the start-of-image token
            first: number of the first of these slots within the image
        """
        slots_N = torch.arange(first, first + held_BN.shape[1], device=held_BN.device)
        rows_N, columns_N = row_and_column(slots_N, self.config.grid)
        return self.image_tokens(held_BN) + self.image_rows(rows_N) + self.image_columns(columns_N)

    def start_of_image(self, batch: int) -> torch.Tensor:
        """What image slot 0 holds: int64 [B, 1]."""
        return torch.full((batch, 1), self.config.codebook_size, device=self.image_tokens.weight.device)

    def states(self, text_BU: torch.Tensor, codes_BI: torch.Tensor) -> torch.Tensor:
        """The final states of all slots [B, S, D], fp32. The last code is predicted, never seen."""
        held_BI = torch.cat([self.start_of_image(len(codes_BI)), codes_BI[:, :-1]], dim=1)
        return self.norm(self.run_layers(text_BU, held_BI))

    def run_layers(
        self, text_BU: torch.Tensor, held_BN: torch.Tensor, caches: Sequence[Cache | None] | None = None
    ) -> torch.Tensor:
        """The identity path behind the last layer, fp32 [B, T + N, D].

        Args:
            text_BU: caption tokens int64 [B, T − 1], PAD after the end
            held_BN: what the first N image slots hold
            caches: of each layer, which keep the keys and values of these slots; null keeps none
        """
        x_BSD = torch.cat([self.embed_text(text_BU), self.embed_image(held_BN)], dim=1)
        for kind, layer, cache in zip(self.kinds, self.layers, caches or [None] * len(self.layers), strict=True):
            x_BSD = layer(x_BSD, self.masked[kind], cache)
        return x_BSD

    def forward(self, text_BU: torch.Tensor, codes_BI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of every caption token and every code, fp32: [B, T − 1, text vocabulary] and [B, I, K].

        Args:
            text_BU: caption tokens int64 [B, T − 1], PAD after the end
            codes_BI: image codes int64 [B, I] in raster order
        """
        text_BUD, image_BID = predicting(self.states(text_BU, codes_BI), self.config.text_slots)
        return self.text_head(text_BUD), self.image_head(image_BID)

    def nats(self, text_BU: torch.Tensor, codes_BI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums of −ln p over all caption tokens, pads left out, and over all codes: fp32 scalars.

        Args:
            text_BU: caption tokens int64 [B, T − 1], PAD after the end
            codes_BI: image codes int64 [B, I] in raster order
        """
        text_BUD, image_BID = predicting(self.states(text_BU, codes_BI), self.config.text_slots)
        return self.text_head(text_BUD, text_BU), self.image_head(image_BID, codes_BI)

    def ln_p(self, text_BU: torch.Tensor, codes_BI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ln p of each caption token, 0 for a pad, and of each code: fp32 [B, T − 1] and [B, I], without gradients.

        Args:
            text_BU: caption tokens int64 [B, T − 1], PAD after the end
            codes_BI: image codes int64 [B, I] in raster order
        """
        text_BUD, image_BID = predicting(self.states(text_BU, codes_BI), self.config.text_slots)
        return self.text_head.ln_p(text_BUD, text_BU), self.image_head.ln_p(image_BID, codes_BI)
