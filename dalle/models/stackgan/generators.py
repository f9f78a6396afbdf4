"""The generators of both stages, as the document's tables print them (figures 4 to 6).

Every part is named as in those tables, and has their count of parameters at 768 numbers of text; `docs/stackgan.md` sets them side by
side, and says what was decided where the document contradicts itself.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F

from dalle.config import StackGANModel
from dalle.models.stackgan.blocks import (
    SLOPE,
    ConditioningAugmentation,
    Downsample,
    ResBlock,
    Upsample,
    init_family,
    with_text,
)

_START_PX = 4


class StageOneGenerator(nn.Module):
    """From a caption's embedding and noise to a small image.

    Args:
        config: sizes, of stage 1
    """

    def __init__(self, config: StackGANModel):
        super().__init__()
        assert config.stage == 1
        self.config = config
        num_blocks = int(math.log2(config.image_size_px // _START_PX))
        widths = [config.channels * 2**n for n in range(num_blocks, -1, -1)]
        self._start = (widths[0], _START_PX, _START_PX)
        values = math.prod(self._start)
        self.conditioning = ConditioningAugmentation(config)
        # the printed module reads 256 numbers; its printed count is that of 128 + 100
        self.project = nn.Linear(config.condition_width + config.noise_width, values, bias=False)
        # of one dimension in the document: the same layer, over maps of one pixel
        self.project_norm = nn.BatchNorm2d(values)
        self.upsample = nn.ModuleList(Upsample(a, b, config) for a, b in itertools.pairwise(widths))
        self.output = nn.Conv2d(widths[-1], 3, 3, padding=1)
        init_family(self)

    def forward(
        self, text_BE: torch.Tensor, noise_BZ: torch.Tensor, epsilon_BC: torch.Tensor, low_BCYX: None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images fp32 [B, 3, Y, X] in [−1, 1], and the mean and log variance [B, C] of the condition.

        Args:
            text_BE: embeddings of captions
            noise_BZ: standard normal numbers
            epsilon_BC: standard normal numbers of the condition; zeros take its mean
            low_BCYX: of stage 2 alone
        """
        condition_BC, mean_BC, log_variance_BC = self.conditioning.drawn(text_BE, epsilon_BC)
        flat = self.project(torch.cat([condition_BC, noise_BZ], dim=1))[:, :, None, None]
        # the layout that the engine gives to kernels: convolutions are faster where all maps behind it have it too
        maps_BCYX = F.relu(self.project_norm(flat)).view(-1, *self._start).to(memory_format=torch.channels_last)
        for block in self.upsample:
            maps_BCYX = block(maps_BCYX)
        return self.output(maps_BCYX).float().tanh(), mean_BC, log_variance_BC

    def recomputable(self) -> list[nn.Module]:
        """What may be computed again in the backward pass: nothing, for batch normalisation would take in its batch twice."""
        return []


class StageTwoGenerator(nn.Module):
    """From a caption's embedding and stage one's image to one of four times the side. It has no noise of its own but the condition's.

    Args:
        config: sizes, of stage 2
    """

    def __init__(self, config: StackGANModel):
        super().__init__()
        assert config.stage == 2
        self.config = config
        first, second, third = (config.channels * n for n in (2, 4, 8))
        self.conditioning = ConditioningAugmentation(config)
        # the document's "Downsample-1" keeps the side, and has no normalisation
        self.down_1 = nn.Sequential(nn.Conv2d(3, first, 3, padding=1), nn.LeakyReLU(SLOPE))
        self.down_2 = Downsample(first, second, config.biases)
        self.down_3 = Downsample(second, third, config.biases)
        joint = nn.Conv2d(third + config.condition_width, third, 3, padding=1, bias=config.biases)
        self.join = nn.Sequential(joint, nn.BatchNorm2d(third), nn.LeakyReLU(SLOPE))
        self.resblocks = nn.ModuleList(ResBlock(third, config.biases) for _ in range(config.resblocks))
        widths = [third, second, first, config.channels, config.channels // 2]
        self.upsample = nn.ModuleList(Upsample(a, b, config) for a, b in itertools.pairwise(widths))
        self.output = nn.Conv2d(widths[-1], 3, 3, padding=1)
        init_family(self)

    def forward(
        self, text_BE: torch.Tensor, noise_BZ: torch.Tensor | None, epsilon_BC: torch.Tensor, low_BCYX: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images fp32 [B, 3, Y, X] in [−1, 1], and the mean and log variance [B, C] of the condition.

        Args:
            text_BE: embeddings of captions
            noise_BZ: of stage 1 alone, not used
            epsilon_BC: standard normal numbers of the condition; zeros take its mean
            low_BCYX: stage one's images of these captions, in [−1, 1], of a quarter of the side
        """
        condition_BC, mean_BC, log_variance_BC = self.conditioning.drawn(text_BE, epsilon_BC)
        maps_BCYX = self.down_3(self.down_2(self.down_1(low_BCYX)))
        maps_BCYX = self.join(with_text(maps_BCYX, condition_BC))
        for block in (*self.resblocks, *self.upsample):
            maps_BCYX = block(maps_BCYX)
        return self.output(maps_BCYX).float().tanh(), mean_BC, log_variance_BC

    def recomputable(self) -> list[nn.Module]:
        """What may be computed again in the backward pass: nothing, for batch normalisation would take in its batch twice."""
        return []


Generator = StageOneGenerator | StageTwoGenerator


def generator(config: StackGANModel) -> Generator:
    """The generator of a stage."""
    return (StageOneGenerator if config.stage == 1 else StageTwoGenerator)(config)
