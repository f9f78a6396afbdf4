"""The prior for one image slot of every row, and the products that it shares with the pass over a prompt: its weights in the
precision of sampling, laid out once for such small batches.

Axes: R rows of the batch, D width, H heads, K head width, V codes, I image slots.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dalle.decoding.caches import LayerCache
from dalle.decoding.kernels import Kernels
from dalle.models.cross_entropy import ln_p, logits
from dalle.models.prior import Head, Layer, Prior
from dalle.models.weights import room_for


class Product(nn.Module):
    """x·wᵀ + b, then GELU where asked. On a CPU in bf16 the weight is laid out once as oneDNN wants it, which otherwise it
    does in every product; the numbers are the same.

    Args:
        weight_OI: [outputs, inputs]; kept as it is where it is of the dtype already
        bias_O: likewise
        dtype: of the product
        gelu: whether GELU follows
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor, dtype: torch.dtype, gelu: bool = False):
        super().__init__()
        self.dtype, self.gelu = dtype, gelu
        weight, bias = weight_OI.detach().to(dtype), bias_O.detach().to(dtype)
        on_cpu = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        # oneDNN has no such products for processors without AVX-512
        self.packed = dtype == torch.bfloat16 and on_cpu and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if self.packed:
            if not weight.is_contiguous():
                weight = room_for(weight, weight.device).copy_(weight)
            weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def with_gelu(self) -> Product:
        """The same product, and GELU of it."""
        other = copy.copy(self)
        other.gelu = True
        return other

    def forward(self, x_RD: torch.Tensor) -> torch.Tensor:
        x_RD = x_RD.to(self.dtype)
        if self.packed:
            unary = "gelu" if self.gelu else "none"
            return torch.ops.mkldnn._linear_pointwise(x_RD, self.weight, self.bias, unary, [], "none")
        y_RO = F.linear(x_RD, self.weight, self.bias)
        return F.gelu(y_RO) if self.gelu else y_RO


class HeadProduct(Product):
    """A head, which scores captions too.

    Args:
        head: its weights
        dtype: of the product
    """

    exact_bias: torch.Tensor

    def __init__(self, head: Head, dtype: torch.dtype):
        super().__init__(head.weight, head.bias, dtype)
        self.register_buffer("exact_bias", head.bias.detach(), persistent=False)

    def ln_p(self, x_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """As of `Head`."""
        weight_VD = self.weight.to_dense() if self.packed else self.weight
        return ln_p(x_ND.flatten(0, -2), weight_VD, self.exact_bias, targets_N.flatten()).view_as(targets_N)


def with_products(prior: Prior, dtype: torch.dtype) -> Prior:
    """The prior with a `Product` for each of its matrices but that of the text's head. Its passes run as they are.

    A prior that holds its matrices in 16 bits, as `load_prior` makes it for such products, is changed as it stands, one
    matrix after the other, so that none but that one is ever there twice. Any other is left alone, for it may be training:
    the new one shares with it what is no matrix, and matrices that are of the dtype already.
    """
    if isinstance(prior.image_head, Product):
        return prior
    taken_over = dtype != torch.float32 and prior.image_head.weight.dtype == dtype
    model: Any = prior if taken_over else _twin(prior)  # whose products become others
    for layer in model.layers:
        attention, mlp = layer.attention, layer.mlp
        attention.qkv = Product(attention.qkv.weight, attention.qkv.bias, dtype)
        attention.project = Product(attention.project.weight, attention.project.bias, dtype)
        mlp.widen = Product(mlp.widen.weight, mlp.widen.bias, dtype)
        mlp.project = Product(mlp.project.weight.t(), mlp.project.bias, dtype)
    model.image_head = HeadProduct(model.image_head, dtype)
    return model


def _twin(module: nn.Module) -> nn.Module:
    """A module of its own with the same parameters and buffers."""
    twin = copy.copy(module)
    twin._modules = {name: _twin(child) for name, child in module.named_children()}
    return twin


class SlotLayer:
    """A layer's two resblocks.

    Args:
        layer: of a prior with products
    """

    def __init__(self, layer: Layer):
        attention, mlp = layer.attention, layer.mlp
        self.heads = attention.heads
        self.attention_norm, self.mlp_norm = attention.norm, mlp.norm
        self.qkv, self.project, self.narrow = attention.qkv, attention.project, mlp.project
        assert isinstance(mlp.widen, Product)
        self.widen: Product = mlp.widen.with_gelu()


class SlotModel:
    """The whole prior, from what a slot holds to the logits of what comes next.

    Args:
        prior: with products (`with_products`)
        dtype: of the products
        kernels: of what lies between them
    """

    def __init__(self, prior: Prior, dtype: torch.dtype, kernels: Kernels):
        self.kinds, self.tokens, self.norm = prior.kinds, prior.image_tokens, prior.norm
        self.dtype, self.kernels = dtype, kernels
        grid = prior.config.grid
        rows_ID = prior.image_rows.weight.detach().repeat_interleave(grid, dim=0)
        self.places_ID = rows_ID + prior.image_columns.weight.detach().repeat(grid, 1)
        self.layers = [SlotLayer(layer) for layer in prior.layers]
        self.head = prior.image_head

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
