"""The discrete VAE (appendix A.1): images to a grid of codes and back.

Parameter names are those of the released model (`blocks.group_1.block_1.res_path.conv_1`, …) with `weight` and `bias`
for its `w` and `b`. The two 1×1 convolutions at the boundary, the logits and the codebook, stay in fp32 under autocast.
Options that the paper does not have (`init: he`, `logit_norm_gain`, `code_prior: learned`, `min_ln_b`, another
`post_gain`) are off by default.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from dalle.config import DVAEModel
from dalle.models.likelihood import map_pixels, reconstruction


def _conv(n_in: int, n_out: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)


class ResBlock(nn.Module):
    """y = id_path(x) + post_gain · res_path(x), with four (ReLU, conv) at a quarter of the width.

    Args:
        n_in, n_out: channels; a 1×1 conv carries the identity where they differ
        kernels: of the four convs
        post_gain: factor on the residual path
    """

    def __init__(self, n_in: int, n_out: int, kernels: tuple[int, int, int, int], post_gain: float):
        super().__init__()
        n_hidden = n_out // 4
        widths = (n_in, n_hidden, n_hidden, n_hidden, n_out)
        layers: list[tuple[str, nn.Module]] = []
        for i, kernel in enumerate(kernels):
            layers += [(f"relu_{i + 1}", nn.ReLU()), (f"conv_{i + 1}", _conv(widths[i], widths[i + 1], kernel))]
        self.id_path = _conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.res_path = nn.Sequential(OrderedDict(layers))
        self.post_gain = post_gain

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        return self.id_path(x_BCYX) + self.post_gain * self.res_path(x_BCYX)


def _group(n_in: int, n_out: int, blocks: int, kernels, post_gain: float, resample: tuple[str, nn.Module] | None):
    layers: list[tuple[str, nn.Module]] = [
        (f"block_{i + 1}", ResBlock(n_in if i == 0 else n_out, n_out, kernels, post_gain)) for i in range(blocks)
    ]
    return nn.Sequential(OrderedDict(layers + ([resample] if resample else [])))


class _Float32Conv(nn.Conv2d):
    """A convolution that autocast leaves in fp32."""

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x_BCYX.device.type, enabled=False):
            return super().forward(x_BCYX.float())


class Encoder(nn.Module):
    """Mapped pixels [B, 3, Y, X] to logits over codes [B, K, Y/f, X/f], fp32."""

    def __init__(self, config: DVAEModel):
        super().__init__()
        widths = [config.encoder_width * m for m in config.width_multipliers]
        post_gain = _post_gain(config)
        layers: list[tuple[str, nn.Module]] = [("input", _conv(3, widths[0], 7))]
        for i, width in enumerate(widths):
            pool = ("pool", nn.MaxPool2d(2)) if i < len(widths) - 1 else None
            n_in = widths[max(0, i - 1)]
            layers.append(
                (f"group_{i + 1}", _group(n_in, width, config.blocks_per_group, (3, 3, 3, 1), post_gain, pool))
            )
        head = [("relu", nn.ReLU()), ("conv", _Float32Conv(widths[-1], config.codebook_size, 1))]
        layers.append(("output", nn.Sequential(OrderedDict(head))))
        self.blocks = nn.Sequential(OrderedDict(layers))

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        return self.blocks(x_BCYX)


class Decoder(nn.Module):
    """(Relaxed) one-hot codes [B, K, Y/f, X/f] to six maps [B, 6, Y, X]: μ of RGB, then ln b of RGB."""

    def __init__(self, config: DVAEModel):
        super().__init__()
        widths = [config.encoder_width * m for m in reversed(config.width_multipliers)]
        post_gain = _post_gain(config)
        layers: list[tuple[str, nn.Module]] = [
            ("input", _Float32Conv(config.codebook_size, config.decoder_input_width, 1))
        ]
        for i, width in enumerate(widths):
            upsample = ("upsample", nn.Upsample(scale_factor=2, mode="nearest")) if i < len(widths) - 1 else None
            n_in = widths[i - 1] if i else config.decoder_input_width
            layers.append(
                (f"group_{i + 1}", _group(n_in, width, config.blocks_per_group, (1, 3, 3, 3), post_gain, upsample))
            )
        head = [("relu", nn.ReLU()), ("conv", _conv(widths[-1], 6, 1))]
        layers.append(("output", nn.Sequential(OrderedDict(head))))
        self.blocks = nn.Sequential(OrderedDict(layers))

    def forward(self, z_BKYX: torch.Tensor) -> torch.Tensor:
        return self.blocks(z_BKYX)


def _post_gain(config: DVAEModel) -> float:
    if config.post_gain is not None:
        return config.post_gain
    return 1 / (len(config.width_multipliers) * config.blocks_per_group) ** 2


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
        self.apply(self._init)

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            std = math.sqrt((2 if self.config.init == "he" else 1) / fan_in)
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)

    def logits(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """Logits over codes [B, K, G, G], fp32.

        Args:
            images_BCYX: [B, 3, Y, X], uint8 or floats in [0, 1]; sides are multiples of the downsampling
        """
        logits_BKYX = self.encoder(map_pixels(images_BCYX))
        if self.logit_norm is not None:
            logits_BKYX = self.config.logit_norm_gain * self.logit_norm(logits_BKYX)
        return logits_BKYX

    def log_code_prior_K(self) -> torch.Tensor:
        """ln p of every code, [K] fp32: what the codes' KL is taken against."""
        if self.code_prior_K is None:
            K = self.config.codebook_size
            return torch.full((K,), -math.log(K), device=self.encoder.blocks.input.weight.device)
        return self.code_prior_K.float().log_softmax(dim=0)

    def likelihood_maps(self, z_BKYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """μ and ln b, each [B, 3, Y, X] in fp32, of (relaxed) one-hot codes."""
        mu_BCYX, ln_b_BCYX = self.decoder(z_BKYX).float().chunk(2, dim=1)
        if self.config.min_ln_b is not None:
            # a soft floor, so that the gradient never dies
            ln_b_BCYX = self.config.min_ln_b + F.softplus(ln_b_BCYX - self.config.min_ln_b)
        return mu_BCYX, ln_b_BCYX

    @torch.no_grad()
    def encode(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """Codes int64 [B, G, G]: the argmax of the logits, no noise (section 2.2)."""
        return self.logits(images_BCYX).argmax(dim=1)

    @torch.no_grad()
    def decode(self, codes_BYX: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1], float32 [B, 3, Y, X], of codes int64 [B, G, G]."""
        return reconstruction(self.likelihood_maps(self.one_hot(codes_BYX))[0])

    def one_hot(self, codes_BYX: torch.Tensor) -> torch.Tensor:
        """[B, K, G, G] float32."""
        return F.one_hot(codes_BYX, self.config.codebook_size).permute(0, 3, 1, 2).float()
