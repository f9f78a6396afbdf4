"""The discriminator of both stages: of the family, since the document prints none.

What the document says of it: the text is compressed by a linear layer of its own (from experiment C on), joined to the image's features by
a 1×1 convolution (from experiment F on; 3×3 before, as in the family), "similar structure" in both stages "with few extra
downsampling layers" in stage II, and in experiment B a judgement of images alone. What it leaves open is StackGAN's public code: 4×4
convolutions of stride 2 down to a map of 4×4, LeakyReLU of slope 0.2, batch normalisation behind all of them but the first, and in
stage II two 3×3 convolutions that bring the channels back to eight times the first map's. A judgement is a 4×4 convolution over the whole
map, to one number.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn

from dalle.config import StackGANModel
from dalle.models.stackgan.blocks import SLOPE, Downsample, init_family, with_text

_END_PX = 4
_WIDEST = 8


class Discriminator(nn.Module):
    """Judges whether an image is real and belongs to a caption.

    Args:
        config: sizes
    """

    def __init__(self, config: StackGANModel):
        super().__init__()
        self.config = config
        norm, first = config.discriminator_norm == "batch", config.discriminator_channels
        num_blocks = int(math.log2(config.image_size_px // _END_PX))
        widest = _WIDEST if config.stage == 1 else 4 * _WIDEST
        widths = [3, *(first * min(widest, 2**n) for n in range(num_blocks))]
        blocks: list[nn.Module] = [
            Downsample(a, b, config.biases, norm=norm and number > 0)
            for number, (a, b) in enumerate(itertools.pairwise(widths))
        ]
        last = widths[-1]
        while last > _WIDEST * first:
            blocks.append(self._conv(last, last // 2, 3))
            last //= 2
        self.image = nn.Sequential(*blocks)
        self.text = nn.Linear(config.text_width, config.condition_width) if config.text == "compressed" else None
        self.joint = self._conv(last + config.condition_width, last, config.joint_kernel)
        self.conditional = nn.Conv2d(last, 1, _END_PX)
        self.unconditional = nn.Conv2d(last, 1, _END_PX) if config.unconditional else None
        init_family(self)

    def _conv(self, inputs: int, outputs: int, kernel: int) -> nn.Sequential:
        config = self.config
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=config.biases)
        norm = [nn.BatchNorm2d(outputs)] if config.discriminator_norm == "batch" else []
        return nn.Sequential(conv, *norm, nn.LeakyReLU(SLOPE))

    def features(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """Maps [B, C, 4, 4] of images in [−1, 1]."""
        return self.image(images_BCYX)

    def features_by_averages(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """The same of each image by itself: batch normalisation takes what it has averaged so far in place of the batch's own, and
        learns nothing of them."""
        was_training = self.training
        self.eval()
        try:
            return self.features(images_BCYX)
        finally:
            self.train(was_training)

    def judge(self, features_BCYX: torch.Tensor, text_BE: torch.Tensor) -> torch.Tensor:
        """A logit [B], fp32: is the image real, and of this caption?

        Args:
            features_BCYX: of the images
            text_BE: embeddings of captions; with text "shared-mean", [B, C], the generator's means of them
        """
        text_BC = text_BE if self.text is None else self.text(text_BE)
        return self.conditional(self.joint(with_text(features_BCYX, text_BC))).float().flatten()

    def judge_image(self, features_BCYX: torch.Tensor) -> torch.Tensor:
        """A logit [B], fp32: is the image real?"""
        assert self.unconditional is not None
        return self.unconditional(features_BCYX).float().flatten()

    def forward(self, images_BCYX: torch.Tensor, text_BE: torch.Tensor) -> torch.Tensor:
        """`judge` of images in [−1, 1]."""
        return self.judge(self.features(images_BCYX), text_BE)

    def recomputable(self) -> list[nn.Module]:
        """What may be computed again in the backward pass: nothing, for batch normalisation would take in its batch twice."""
        return []
