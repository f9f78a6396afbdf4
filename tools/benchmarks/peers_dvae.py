"""The straightforward dVAE, as one writes it from appendix A: what `bench.py dvae` compares ours with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


class _Block(nn.Module):
    """Appendix A.1, word for word."""

    def __init__(self, n_in: int, n_out: int, kernels: tuple[int, ...], post_gain: float):
        super().__init__()
        widths = (n_in, *[n_out // 4] * 3, n_out)
        layers = []
        for i, kernel in enumerate(kernels):
            layers += [nn.ReLU(), nn.Conv2d(widths[i], widths[i + 1], kernel, padding=kernel // 2)]
        self.res_path = nn.Sequential(*layers)
        self.id_path = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.post_gain = post_gain

    def forward(self, x):
        return self.id_path(x) + self.post_gain * self.res_path(x)


class Straightforward(nn.Module):
    """Encoder and decoder of appendix A.1, word for word."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        widths = [config.encoder_width * m for m in config.width_multipliers]
        post_gain = 1 / (len(widths) * config.blocks_per_group) ** 2

        def groups(n_in: int, order: list[int], kernels: tuple[int, ...], resample: nn.Module) -> list[nn.Module]:
            layers: list[nn.Module] = []
            for i, width in enumerate(order):
                layers += [resample] if i else []
                for _ in range(config.blocks_per_group):
                    layers.append(_Block(n_in, width, kernels, post_gain))
                    n_in = width
            return layers

        # the first convolution, the groups, the last; codes are met in fp32 at both ends
        self.features = nn.Sequential(
            nn.Conv2d(3, widths[0], 7, padding=3), *groups(widths[0], widths, (3, 3, 3, 1), nn.MaxPool2d(2)), nn.ReLU()
        )
        self.to_logits = nn.Conv2d(widths[-1], config.codebook_size, 1)
        self.from_codes = nn.Conv2d(config.codebook_size, config.decoder_input_width, 1)
        drawn = groups(config.decoder_input_width, widths[::-1], (1, 3, 3, 3), nn.Upsample(scale_factor=2))
        self.drawing = nn.Sequential(*drawn, nn.ReLU(), nn.Conv2d(widths[0], 6, 1))

    def encoder(self, x):
        features = self.features(x).float()
        with torch.autocast(x.device.type, enabled=False):
            return self.to_logits(features)

    def decoder(self, z):
        with torch.autocast(z.device.type, enabled=False):
            codes = self.from_codes(z)
        return self.drawing(codes)


def calls(config, images_BCYX: torch.Tensor, codes_BYX: torch.Tensor, dtype: torch.dtype) -> dict[str, Callable]:
    """Training, encoding and decoding: upsampling where it stands, PyTorch's gumbel-softmax and AdamW, autocast for 16 bits.

    Args:
        config: sizes, a `DVAEModel` with the paper's options
        images_BCYX: uint8, to train on and to encode; they say the device
        codes_BYX: int64, to decode
        dtype: of the products, bfloat16 or float32
    """
    device = images_BCYX.device.type
    dvae = Straightforward(config).to(device)
    optimizer = torch.optim.AdamW(dvae.parameters(), lr=1e-4)
    products = partial(torch.autocast, device, torch.bfloat16, enabled=dtype == torch.bfloat16)

    def train() -> None:
        with products():
            x = 0.8 * images_BCYX.float() / 255 + 0.1
            logits = dvae.encoder(x)
            z = F.gumbel_softmax(logits.float(), tau=1.0, dim=1)
            mu, ln_b = dvae.decoder(z).float().chunk(2, dim=1)
            deviation = (torch.logit(x) - mu).abs() / ln_b.exp()
            reconstruction = (deviation + ln_b + torch.log(2 * x * (1 - x))).mean()
            q = logits.float().softmax(dim=1)
            kl = (q * (q.clamp_min(1e-10).log() + torch.log(torch.tensor(float(q.shape[1]))))).sum(dim=(1, 2, 3)).mean()
            loss = reconstruction + kl / x[0].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def encode() -> None:
        with torch.no_grad(), products():
            dvae.encoder(0.8 * images_BCYX.float() / 255 + 0.1).argmax(dim=1)

    def decode() -> None:
        with torch.no_grad(), products():
            one_hot = F.one_hot(codes_BYX, dvae.config.codebook_size).permute(0, 3, 1, 2).float()
            ((torch.sigmoid(dvae.decoder(one_hot)[:, :3].float()) - 0.1) / 0.8).clamp(0, 1)

    return {"train": train, "encode": encode, "decode": decode}
