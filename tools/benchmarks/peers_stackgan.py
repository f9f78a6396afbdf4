"""The straightforward StackGAN, as the family's public code has it: what `bench.py stackgan` compares ours with.

Networks of the document's tables, PyTorch's Adam, one update of the discriminator and one of the generator, for which the generator
draws once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F


def _up(n_in: int, n_out: int) -> nn.Sequential:
    conv = nn.Conv2d(n_in, n_out, 3, padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv, nn.BatchNorm2d(n_out), nn.ReLU(True))


def _down(n_in: int, n_out: int, norm: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(n_in, n_out, 4, 2, 1), *([nn.BatchNorm2d(n_out)] if norm else []), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers)


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.block = nn.Sequential(
            *(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(True)),
            *(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)),
        )

    def forward(self, x):
        return F.relu(x + self.block(x))


class Generator(nn.Module):
    """Of either stage."""

    def __init__(self, config):
        super().__init__()
        n, self.config = config.channels, config
        self.fc = nn.Linear(config.text_width, 2 * config.condition_width)
        if config.stage == 1:
            doublings = (config.image_size_px // 4).bit_length() - 1
            self.width = n * 2**doublings
            flat = self.width * 16
            self.project = nn.Sequential(
                nn.Linear(config.condition_width + config.noise_width, flat, bias=False),
                nn.BatchNorm1d(flat),
                nn.ReLU(True),
            )
            self.up = nn.Sequential(*(_up(n * 2**i, n * 2 ** (i - 1)) for i in range(doublings, 0, -1)))
            self.image = nn.Sequential(nn.Conv2d(n, 3, 3, padding=1), nn.Tanh())
            return
        self.encode = nn.Sequential(
            *(nn.Conv2d(3, 2 * n, 3, padding=1), nn.LeakyReLU(0.2, True)), _down(2 * n, 4 * n), _down(4 * n, 8 * n)
        )
        self.join = nn.Sequential(
            nn.Conv2d(8 * n + config.condition_width, 8 * n, 3, padding=1),
            nn.BatchNorm2d(8 * n),
            nn.LeakyReLU(0.2, True),
        )
        self.residual = nn.Sequential(*(_Residual(8 * n) for _ in range(config.resblocks)))
        self.up = nn.Sequential(_up(8 * n, 4 * n), _up(4 * n, 2 * n), _up(2 * n, n), _up(n, n // 2))
        self.image = nn.Sequential(nn.Conv2d(n // 2, 3, 3, padding=1), nn.Tanh())

    def forward(self, text, noise, epsilon, low=None):
        mean, log_variance = F.relu(self.fc(text)).chunk(2, 1)
        condition = mean + epsilon * torch.exp(0.5 * log_variance)
        if self.config.stage == 1:
            maps = self.project(torch.cat([condition, noise], 1)).view(-1, self.width, 4, 4)
            return self.image(self.up(maps)), mean, log_variance
        maps = self.encode(low)
        spread = condition[:, :, None, None].repeat(1, 1, maps.shape[2], maps.shape[3])
        maps = self.residual(self.join(torch.cat([maps, spread], 1)))
        return self.image(self.up(maps)), mean, log_variance


class Discriminator(nn.Module):
    """Of either stage."""

    def __init__(self, config):
        super().__init__()
        n = config.discriminator_channels
        doublings = (config.image_size_px // 4).bit_length() - 1
        widest = 8 if config.stage == 1 else 32
        widths = [3, *(n * min(widest, 2**i) for i in range(doublings))]
        layers = [_down(a, b, norm=i > 0) for i, (a, b) in enumerate(pairwise(widths))]
        last = widths[-1]
        while last > 8 * n:
            layers.append(self._conv(last, last // 2, 3))
            last //= 2
        self.features = nn.Sequential(*layers)
        self.text = nn.Linear(config.text_width, config.condition_width)
        self.joint = self._conv(last + config.condition_width, last, config.joint_kernel)
        self.logit = nn.Conv2d(last, 1, 4)

    def _conv(self, n_in: int, n_out: int, kernel: int) -> nn.Sequential:
        conv = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)
        return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2, True))

    def judge(self, features, text):
        spread = self.text(text)[:, :, None, None].repeat(1, 1, 4, 4)
        return self.logit(self.joint(torch.cat([features, spread], 1))).flatten()


def calls(config, batch: dict[str, torch.Tensor], kl_weight: float, dtype: torch.dtype) -> dict[str, Callable]:
    """An update of both players, and drawing.

    Args:
        config: sizes, a `StackGANModel` with the document's options
        batch: `images_BCYX` uint8, `text_BE`, `wrong_text_BE`, `noise_BZ`, `epsilon_BC` and, of stage II, `low_BCYX`
        kl_weight: λ
        dtype: of the products, bfloat16 or float32
    """
    device = batch["images_BCYX"].device.type
    generator, discriminator = Generator(config).to(device), Discriminator(config).to(device)
    optimizers = [
        torch.optim.Adam(each.parameters(), lr=2e-4, betas=(0.5, 0.999)) for each in (generator, discriminator)
    ]
    given = (batch["text_BE"], batch["noise_BZ"], batch["epsilon_BC"], batch.get("low_BCYX"))
    ones = torch.ones(len(batch["text_BE"]), device=device)

    def loss(logits, labels):
        return F.binary_cross_entropy_with_logits(logits.float(), labels)

    def autocast():
        return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)

    def train() -> None:
        text, wrong = batch["text_BE"], batch["wrong_text_BE"]
        with autocast():
            fake, mean, log_variance = generator(*given)
            real_features = discriminator.features(batch["images_BCYX"].float() / 127.5 - 1)
            fake_features = discriminator.features(fake.detach())
            right = loss(discriminator.judge(real_features, text), ones)
            others = loss(discriminator.judge(real_features, wrong), 0 * ones)
            others = others + loss(discriminator.judge(fake_features, text), 0 * ones)
            total = right + 0.5 * others
        optimizers[1].zero_grad()
        total.backward()
        optimizers[1].step()
        with autocast():
            believed = loss(discriminator.judge(discriminator.features(fake), text), ones)
            mean, log_variance = mean.float(), log_variance.float()
            kl = 0.5 * (mean.pow(2) + log_variance.exp() - 1 - log_variance).mean()
            total = believed + kl_weight * kl
        optimizers[0].zero_grad()
        total.backward()
        optimizers[0].step()

    def draw() -> None:
        generator.eval()
        with torch.no_grad(), autocast():
            generator(*given)
        generator.train()

    return {"train": train, "draw": draw}
