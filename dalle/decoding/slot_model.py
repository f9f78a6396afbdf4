"""The prior for one image slot of every row: its weights in the precision of sampling, laid out once for such small batches.

Axes: R rows of the batch, D width, H heads, K head width, V codes, I image slots.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from dalle.decoding.caches import LayerCache
from dalle.decoding.kernels import Kernels
from dalle.models.cross_entropy import logits
from dalle.models.prior import Layer, Prior


class Product:
    """x·wᵀ + b, then GELU where asked. On a CPU in bf16 the weight is laid out once as oneDNN wants it, which otherwise it
    does in every product.

    Args:
        weight_OI: [outputs, inputs]
        bias_O: likewise
        dtype: of the product
        gelu: whether GELU follows
    """

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor, dtype: torch.dtype, gelu: bool = False):
        self.gelu = gelu
        self.weight, self.bias = weight_OI.detach().to(dtype), bias_O.detach().to(dtype)
        on_cpu = self.weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        # oneDNN has no such products for processors without AVX-512
        self.packed = dtype == torch.bfloat16 and on_cpu and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())

    def __call__(self, x_RD: torch.Tensor) -> torch.Tensor:
        if self.packed:
            unary = "gelu" if self.gelu else "none"
            return torch.ops.mkldnn._linear_pointwise(x_RD, self.weight, self.bias, unary, [], "none")
        y_RO = F.linear(x_RD, self.weight, self.bias)
        return F.gelu(y_RO) if self.gelu else y_RO


class SlotLayer:
    """A layer's two resblocks.

    Args:
        layer: its weights
        dtype: of the products
    """

    def __init__(self, layer: Layer, dtype: torch.dtype):
        attention, mlp = layer.attention, layer.mlp
        self.heads = attention.heads
        self.attention_norm, self.mlp_norm = attention.norm, mlp.norm
        self.qkv = Product(attention.qkv.weight, attention.qkv.bias, dtype)
        self.project = Product(attention.project.weight, attention.project.bias, dtype)
        self.widen = Product(mlp.widen.weight, mlp.widen.bias, dtype, gelu=True)
        self.narrow = Product(mlp.project.weight.t(), mlp.project.bias, dtype)


class SlotModel:
    """The whole prior, from what a slot holds to the logits of what comes next.

    Args:
        prior: its weights
        dtype: of the products
        kernels: of what lies between them
    """

    def __init__(self, prior: Prior, dtype: torch.dtype, kernels: Kernels):
        self.kinds, self.tokens, self.norm = prior.kinds, prior.image_tokens, prior.norm
        self.dtype, self.kernels = dtype, kernels
        grid = prior.config.grid
        rows_ID = prior.image_rows.weight.detach().repeat_interleave(grid, dim=0)
        self.places_ID = rows_ID + prior.image_columns.weight.detach().repeat(grid, 1)
        self.layers = [SlotLayer(layer, dtype) for layer in prior.layers]
        self.head = Product(prior.image_head.weight, prior.image_head.bias, dtype)

    def logits(self, held_R: torch.Tensor, slot_1: torch.Tensor, caches: list[LayerCache]) -> torch.Tensor:
        """fp32 [R, V].

        Args:
            held_R: what the slot holds, int64
            slot_1: its number, int64 [1]
            caches: of the layers; the slot's keys and values are written to them
        """
        places = {kind: cache.places for kind, cache in zip(self.kinds, caches, strict=True)}
        sights = {kind: of_kind.sight(slot_1) for kind, of_kind in places.items()}  # once for all layers of a kind
        add_norm, attend, dtype = self.kernels.add_norm, self.kernels.attend, self.dtype
        x_RD = self.tokens(held_R) + self.places_ID[slot_1]  # the identity path, fp32, to which each resblock adds
        change_RD = None
        for kind, layer, cache in zip(self.kinds, self.layers, caches, strict=True):
            qkv_RzHK = layer.qkv(add_norm(x_RD, change_RD, layer.attention_norm, dtype)).unflatten(
                -1, (3, layer.heads, -1)
            )
            values_RHK = attend(qkv_RzHK, cache, slot_1, *sights[kind])
            change_RD = layer.project(values_RHK.flatten(1))
            change_RD = layer.narrow(layer.widen(add_norm(x_RD, change_RD, layer.mlp_norm, dtype)))
        x_RD = add_norm(x_RD, change_RD, self.norm, dtype)
        if self.head.packed:
            return self.head(x_RD).float()
        return logits(x_RD, self.head.weight, self.head.bias)  # on a GPU the sums of 16-bit products stay fp32
