"""The discrete VAE (appendix A.1): images to a grid of codes and back.

Parameter names are those of the released model (`blocks.group_1.block_1.res_path.conv_1`, …) with `weight` and `bias`
for its `w` and `b`. The two 1×1 convolutions at the boundary, the logits and the codebook, stay in fp32 under autocast.
Options that the paper does not have (`init: he`, `logit_norm_gain`, `code_prior: learned`, `min_ln_b`, another
`post_gain`) are off by default; those that it compares with (`boundary_kernel: 3`, `pool: average`, `likelihood: l2`) are
there for the comparison.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from dalle.config import DVAEModel
from dalle.models import likelihood
from dalle.models.likelihood import map_pixels, unit_range

_Four = tuple[int, int, int, int]


def _conv(n_in: int, n_out: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)


class ResBlock(nn.Module):
    """y = id_path(x) + post_gain · res_path(x), with four (ReLU, conv) at a quarter of the width.

    A block that stands behind a nearest-neighbour upsampling takes the small map and enlarges what its 1×1 convs make of
    it: the same numbers as published, since such convs and ReLUs see one pixel at a time, for a quarter of the work.

    Args:
        n_in, n_out: channels; a 1×1 conv carries the identity where they differ
        kernels: of the four convs
        post_gain: factor on the residual path
        upsample: whether x is to be enlarged by 2; the first kernel is then 1
    """

    def __init__(self, n_in: int, n_out: int, kernels: _Four, post_gain: float, upsample: bool):
        super().__init__()
        assert not upsample or kernels[0] == 1
        n_hidden = n_out // 4
        widths = (n_in, n_hidden, n_hidden, n_hidden, n_out)
        layers: list[tuple[str, nn.Module]] = []
        for i, kernel in enumerate(kernels):
            # the first must leave x as it is, for the identity
            layers.append((f"relu_{i + 1}", nn.ReLU(inplace=i > 0)))
            if i == 1 and upsample:
                layers.append(("upsample", nn.Upsample(scale_factor=2, mode="nearest")))
            layers.append((f"conv_{i + 1}", _conv(widths[i], widths[i + 1], kernel)))
        self.id_path = _conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.id_upsample = nn.Upsample(scale_factor=2, mode="nearest") if upsample else nn.Identity()
        self.res_path = nn.Sequential(OrderedDict(layers))
        self.post_gain = post_gain

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        # under autocast x is fp32, and 16 bits wide only where products want it: a residual of 1/64 would be lost in
        # the rounding of a 16-bit sum
        narrow_BCYX = _as_in_products(x_BCYX)
        identity_BCYX = x_BCYX if isinstance(self.id_path, nn.Identity) else self.id_path(narrow_BCYX)
        identity_BCYX = self.id_upsample(identity_BCYX)
        if identity_BCYX.dtype.itemsize < 4:
            identity_BCYX = identity_BCYX.float()
        return torch.add(identity_BCYX, self.res_path(narrow_BCYX), alpha=self.post_gain)


def _as_in_products(x_BCYX: torch.Tensor) -> torch.Tensor:
    """What autocast would make of it at the next convolution, made once for all that read it."""
    device = x_BCYX.device.type
    return x_BCYX.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x_BCYX


class _NarrowReLU(nn.Module):
    """A ReLU as wide as the products that read it, so that no fp32 copy is kept for the backward pass."""

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        return F.relu(_as_in_products(x_BCYX))


def _group(
    n_in: int, n_out: int, blocks: int, kernels: _Four, post_gain: float, *pool: nn.Module, upsample: bool = False
) -> nn.Sequential:
    layers: list[tuple[str, nn.Module]] = [
        (f"block_{i + 1}", ResBlock(n_out if i else n_in, n_out, kernels, post_gain, upsample and i == 0))
        for i in range(blocks)
    ]
    return nn.Sequential(OrderedDict(layers + [("pool", each) for each in pool]))


class _Float32Conv(nn.Conv2d):
    """A convolution that autocast leaves in fp32."""

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        x_BCYX = x_BCYX.to(self.weight.dtype)
        with torch.autocast(x_BCYX.device.type, enabled=False):
            if self.kernel_size == (1, 1):
                if x_BCYX.is_cuda:
                    return _pointwise_product(x_BCYX, self.weight, self.bias)
                return _PointwiseConv.apply(x_BCYX, self.weight, self.bias)
            return super().forward(x_BCYX)


def _pointwise_product(x_BCYX: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A 1×1 convolution as a matrix product: on a GPU convolutions are TF32 by default, with 10 bits, products are not."""
    return F.linear(x_BCYX.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class _PointwiseConv(torch.autograd.Function):
    """A 1×1 convolution whose weight gradient is a matrix product: oneDNN's fp32 kernel for it runs at half the rate."""

    @staticmethod
    def forward(ctx: Any, x_BCYX: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x_BCYX, weight)
        return F.conv2d(x_BCYX, weight, bias)

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, dy_BCYX: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        x_BCYX, weight = ctx.saved_tensors
        dx_BCYX = conv2d_input(x_BCYX.shape, weight, dy_BCYX) if ctx.needs_input_grad[0] else None
        # one row for each pixel
        x, dy = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (x_BCYX, dy_BCYX))
        return dx_BCYX, (dy.T @ x).view_as(weight), dy.sum(dim=0)


def _boundary_conv(n_in: int, n_out: int, config: DVAEModel) -> _Float32Conv:
    return _Float32Conv(n_in, n_out, config.boundary_kernel, padding=config.boundary_kernel // 2)


_POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class Encoder(nn.Module):
    """Mapped pixels [B, 3, Y, X] to logits over codes [B, K, Y/f, X/f], fp32."""

    def __init__(self, config: DVAEModel):
        super().__init__()
        widths = [config.encoder_width * m for m in config.width_multipliers]
        post_gain = _post_gain(config, config.blocks_per_group)
        layers: list[tuple[str, nn.Module]] = [("input", _conv(3, widths[0], 7))]
        for i, width in enumerate(widths):
            pool = [_POOLS[config.pool](2)] if i < len(widths) - 1 else []
            group = _group(widths[max(0, i - 1)], width, config.blocks_per_group, (3, 3, 3, 1), post_gain, *pool)
            layers.append((f"group_{i + 1}", group))
        head = [("relu", nn.ReLU()), ("conv", _boundary_conv(widths[-1], config.codebook_size, config))]
        layers.append(("output", nn.Sequential(OrderedDict(head))))
        self.blocks = nn.Sequential(OrderedDict(layers))

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        return self.blocks(x_BCYX)


class Decoder(nn.Module):
    """(Relaxed) one-hot codes [B, K, Y/f, X/f] to six maps [B, 6, Y, X]: μ of RGB, then ln b of RGB."""

    def __init__(self, config: DVAEModel):
        super().__init__()
        first = config.encoder_width if config.decoder_width is None else config.decoder_width
        widths = [first * m for m in reversed(config.width_multipliers)]
        blocks = config.blocks_per_group if config.decoder_blocks_per_group is None else config.decoder_blocks_per_group
        post_gain = _post_gain(config, blocks)
        layers: list[tuple[str, nn.Module]] = []
        layers.append(("input", _boundary_conv(config.codebook_size, config.decoder_input_width, config)))
        for i, width in enumerate(widths):
            n_in = widths[i - 1] if i else config.decoder_input_width
            layers.append((f"group_{i + 1}", _group(n_in, width, blocks, (1, 3, 3, 3), post_gain, upsample=i > 0)))
        head = [("relu", _NarrowReLU()), ("conv", _conv(widths[-1], 6, 1))]
        layers.append(("output", nn.Sequential(OrderedDict(head))))
        self.blocks = nn.Sequential(OrderedDict(layers))

    def forward(self, z_BKYX: torch.Tensor) -> torch.Tensor:
        return self.blocks(z_BKYX)

    def from_codes(self, codes_BYX: torch.Tensor) -> torch.Tensor:
        """The maps of hard codes, int64 [B, Y/f, X/f]: the 1×1 conv of a one-hot is a table of codes."""
        conv = self.blocks[0]
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        if conv.kernel_size == (1, 1):
            rows_BYXC = F.embedding(codes_BYX, conv.weight[:, :, 0, 0].T) + conv.bias
            x_BCYX = rows_BYXC.permute(0, 3, 1, 2)
        else:
            x_BCYX = conv(F.one_hot(codes_BYX, conv.in_channels).permute(0, 3, 1, 2).to(conv.weight.dtype))
        return self.blocks[1:](x_BCYX)


def _post_gain(config: DVAEModel, blocks_per_group: int) -> float:
    if config.post_gain is not None:
        return config.post_gain
    return 1 / (len(config.width_multipliers) * blocks_per_group) ** 2


def is_of_decoder(name: str) -> bool:
    """Whether a weight of a dVAE, by its name, is of what makes pixels of codes; the others make codes of pixels."""
    return name.startswith("decoder.") or name == "ln_sigma"


class DVAE(nn.Module):
    """Encoder and decoder of stage one.

    Args:
        config: sizes
    """

    def __init__(self, config: DVAEModel):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        learned = config.code_prior == "learned"
        self.logit_norm = None
        if config.logit_norm_gain is not None:
            # zero mean and unit variance alone would make every code about equally common
            self.logit_norm = nn.BatchNorm2d(config.codebook_size, affine=learned)
        self.code_prior_K = nn.Parameter(torch.zeros(config.codebook_size)) if learned else None
        # the trained scale of l2, at first that of images whose pixels are a fifth of the range off
        self.ln_sigma = nn.Parameter(torch.full((1,), math.log(0.2))) if config.likelihood == "l2" else None
        self.encoder_is_frozen = False
        self.apply(self._init)

    def freeze_encoder(self) -> None:
        """Leave what decides over codes as it is from here on: the encoder, the statistics of its logits and the codes' prior
        are not trained, and compute as in evaluation whatever mode the model is in."""
        self.encoder_is_frozen = True
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(is_of_decoder(name))
        self.train(self.training)

    def train(self, mode: bool = True) -> DVAE:
        """As for any module, but that what is frozen stays in evaluation."""
        super().train(mode)
        if self.encoder_is_frozen:
            for part in (self.encoder, self.logit_norm):
                if part is not None:
                    part.eval()
        return self

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            std = math.sqrt((2 if self.config.init == "he" else 1) / fan_in)
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.get_parameter("bias"))

    def recomputable(self) -> list[nn.Module]:
        """What may be computed again in the backward pass in place of being remembered: the groups. Their inputs are kept,
        which are fp32, so single resblocks would save little."""
        children = [*self.encoder.blocks.named_children(), *self.decoder.blocks.named_children()]
        return [module for name, module in children if name.startswith("group")]

    def logits(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """Logits over codes [B, K, G, G], fp32.

        Args:
            images_BCYX: [B, 3, Y, X], uint8 or floats in [0, 1]

        Raises:
            ValueError: a side is no multiple of the downsampling
        """
        if any(side % self.config.downsampling for side in images_BCYX.shape[2:]):
            raise ValueError(
                f"images of {images_BCYX.shape[3]}×{images_BCYX.shape[2]} px: both sides must be multiples of "
                f"{self.config.downsampling}, the downsampling of this dVAE"
            )
        logits_BKYX = self.encoder(map_pixels(images_BCYX))
        if self.logit_norm is not None:
            logits_BKYX = self.config.logit_norm_gain * self.logit_norm(logits_BKYX)
        return logits_BKYX

    def log_code_prior_K(self) -> torch.Tensor:
        """ln p of every code, [K] fp32: what the codes' KL is taken against."""
        if self.code_prior_K is None:
            K = self.config.codebook_size
            return torch.full((K,), -math.log(K), device=next(self.encoder.parameters()).device)
        return self.code_prior_K.float().log_softmax(dim=0)

    def likelihood_maps(self, z_BKYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """μ and ln b, each [B, 3, Y, X] in fp32, of (relaxed) one-hot codes; with `likelihood: l2` they are the mean in
        pixels and ln σ."""
        return self._maps(self.decoder(z_BKYX))

    def likelihood_maps_of_codes(self, codes_BYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`likelihood_maps` of hard codes, int64 [B, G, G]."""
        return self._maps(self.decoder.from_codes(codes_BYX))

    def _maps(self, maps_BCYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mu_BCYX, ln_b_BCYX = maps_BCYX.float().chunk(2, dim=1)
        if self.ln_sigma is not None:
            return mu_BCYX, self.ln_sigma.float().expand_as(mu_BCYX)
        if self.config.min_ln_b is not None:
            # a soft floor, so that the gradient never dies
            ln_b_BCYX = self.config.min_ln_b + F.softplus(ln_b_BCYX - self.config.min_ln_b)
        return mu_BCYX, ln_b_BCYX

    def log_likelihood(self, images_BCYX: torch.Tensor, mu_BCYX: torch.Tensor, ln_b_BCYX: torch.Tensor) -> torch.Tensor:
        """ln of the density of the mapped pixels, elementwise [B, 3, Y, X] fp32."""
        if self.ln_sigma is not None:
            density_BCYX = likelihood.gaussian_log_likelihood(unit_range(images_BCYX), mu_BCYX, ln_b_BCYX)
            # mapping makes the range of pixels narrower, and their density higher
            return density_BCYX - math.log(1 - 2 * likelihood.EPSILON)
        return likelihood.log_likelihood(map_pixels(images_BCYX), mu_BCYX, ln_b_BCYX)

    def reconstruction(self, mu_BCYX: torch.Tensor) -> torch.Tensor:
        """The image in [0, 1] that the decoder's μ stands for."""
        return mu_BCYX.float().clamp(0, 1) if self.ln_sigma is not None else likelihood.reconstruction(mu_BCYX)

    @torch.no_grad()
    def encode(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """Codes int64 [B, G, G]: the argmax of the logits, no noise (section 2.2)."""
        return self.logits(images_BCYX).argmax(dim=1)

    @torch.no_grad()
    def decode(self, codes_BYX: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1], float32 [B, 3, Y, X], of codes int64 [B, G, G]."""
        return self.reconstruction(self.likelihood_maps_of_codes(codes_BYX)[0])
