"""What generators and discriminators are made of.

Images lie in [−1, 1], as tanh gives them. The family's inits (normal with std 0.02 for kernels and matrices, gains normal around 1)
are kept: at PyTorch's own a batch-normalised GAN of this depth begins with much larger steps.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dalle.config import StackGANModel

SLOPE = 0.2
"""Of LeakyReLU below 0, in the family."""


class ConditioningAugmentation(nn.Module):
    """From a caption's embedding to a Gaussian around its condition: one linear layer, whose halves are mean and log variance.

    The document speaks of "μ and σ", and prints a ReLU behind the layer. Read as σ itself, the half behind a ReLU could be 0, where
    the KL divergence is infinite: it is the logarithm of σ², as in the family's public code.

    Args:
        config: widths
    """

    def __init__(self, config: StackGANModel):
        super().__init__()
        self.fc = nn.Linear(config.text_width, 2 * config.condition_width)
        self._relu = config.conditioning == "relu"

    def forward(self, text_BE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance [B, C], fp32."""
        found_BC = self.fc(text_BE).float()
        mean_BC, log_variance_BC = (found_BC.relu() if self._relu else found_BC).chunk(2, dim=1)
        return mean_BC, log_variance_BC

    def drawn(self, text_BE: torch.Tensor, epsilon_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """ĉ = μ + σ⊙ε with μ and log σ², each [B, C]. Without noise (zeros) ĉ is μ."""
        mean_BC, log_variance_BC = self(text_BE)
        return mean_BC + (0.5 * log_variance_BC).exp() * epsilon_BC, mean_BC, log_variance_BC


class DoublingConv(nn.Conv2d):
    """A 3×3 convolution of a map whose pixels are doubled, without the doubled map.

    Of the nine products for an output pixel several read the same input pixel. Their weights are added first, into a transposed
    convolution 4×4 of stride 2, which has four: the same numbers for 4/9 of the work, and a quarter of the map to keep for the backward
    pass, beside a kernel 16/9 as large. They are added as they are kept, so that autocast rounds once, as ever.

    Args:
        inputs, outputs: channels
        bias: whether there is one
    """

    def __init__(self, inputs: int, outputs: int, bias: bool):
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        """[B, C, Y, X] to [B, O, 2Y, 2X]."""
        kernel = self.weight.permute(2, 3, 1, 0)
        for dim in (0, 1):
            first, second, third = kernel.unbind(dim)
            kernel = torch.stack([third, second + third, first + second, first], dim)
        return F.conv_transpose2d(x_BCYX, kernel.permute(2, 3, 0, 1), self.bias, stride=2, padding=1)


class Upsample(nn.Sequential):
    """Twice the side: doubled pixels and a 3×3 convolution, or a transposed 4×4 one of stride 2; then batch normalisation, ReLU and,
    where asked for, dropout."""

    def __init__(self, inputs: int, outputs: int, config: StackGANModel):
        conv: nn.Module
        if config.upsample == "scale":
            conv = DoublingConv(inputs, outputs, config.biases)
        else:
            conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=config.biases)
        dropout = [nn.Dropout(config.dropout)] if config.dropout else []
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU(), *dropout)


class Downsample(nn.Sequential):
    """Half the side: a 4×4 convolution of stride 2, batch normalisation where asked for, LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, biases: bool, norm: bool = True):
        conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=biases)
        super().__init__(conv, *([nn.BatchNorm2d(outputs)] if norm else []), nn.LeakyReLU(SLOPE))


class ResBlock(nn.Module):
    """Two 3×3 convolutions with batch normalisation beside the identity, ReLU between them and after the sum."""

    def __init__(self, channels: int, biases: bool):
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1, bias=biases)
        self.norm_1 = nn.BatchNorm2d(channels)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1, bias=biases)
        self.norm_2 = nn.BatchNorm2d(channels)

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        inner_BCYX = F.relu(self.norm_1(self.conv_1(x_BCYX)))
        return F.relu(x_BCYX + self.norm_2(self.conv_2(inner_BCYX)))


def with_text(maps_BCYX: torch.Tensor, text_BC: torch.Tensor) -> torch.Tensor:
    """Maps with a caption's numbers as more of them, the same at every place."""
    text_BCYX = text_BC.to(maps_BCYX.dtype)[:, :, None, None].expand(-1, -1, *maps_BCYX.shape[2:])
    return torch.cat([maps_BCYX, text_BCYX], dim=1)


@torch.no_grad()
def init_family(model: nn.Module) -> None:
    """The family's init: kernels and matrices N(0, 0.02²), gains N(1, 0.02²), biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.normal_(1.0, 0.02)
        else:
            continue
        if module.bias is not None:
            module.bias.zero_()
