"""The StackGAN of "Generating Text-Conditional Images using Deep Convolutional GANs": its sizes and its losses, and the text encoder
that is trained for it.

Defaults are what the document prints: stage I with DistilBERT's 768 numbers has 19,956,739 parameters in its generator, and
stage II 58,313,731.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dalle.config.checks import at_least, at_most, require
from dalle.config.models import MOST_LAYERS, MOST_SIDE_PX, MOST_SLOTS, MOST_WIDTH

_KERNEL = 4
"""Of the text encoder's convolutions."""


@dataclass(frozen=True)
class StackGANModel:
    """One stage's generator and discriminator. What the document leaves open is as in the family's public code.

    Args:
        stage: 1 draws small images of a caption and noise, 2 large ones of a caption and a small image
        image_size_px: side of the images that it draws, a power of two: 64 in stage 1 and 256 in stage 2, whose input has a
            quarter of it
        text_width: numbers of a caption's embedding; 768 is DistilBERT's
        channels: channels of the last maps in stage 1, and of the last but one in stage 2; all other widths are multiples of it
        discriminator_channels: channels of the discriminator's first maps
        noise_width: numbers of noise, in stage 1
        condition_width: numbers of the condition ĉ that is drawn around the caption's mean, and of the discriminator's own
            compression of the embedding
        conditioning: what follows the linear layer whose halves are mean and log variance: "relu", as the document prints it
            and the family has it, or "linear" (ours), which lets both be negative
        resblocks: number of resblocks in stage 2
        biases: biases of the convolutions that batch normalisation follows (and of all of the discriminator's)
        upsample: "scale" (doubled pixels, then a 3×3 convolution) or "transposed" (a transposed 4×4 convolution of stride 2)
        dropout: dropout probability in the upsample blocks
        text: what the discriminator sees of a caption: "compressed" by a linear layer of its own, or the generator's "shared-mean"
        joint_kernel: kernel size of the convolution that joins image and caption in the discriminator: 1, or 3
        unconditional: whether the discriminator judges images without a caption, too
        discriminator_norm: normalisation in the discriminator: "batch", or "none", which a gradient penalty needs
    """

    stage: Literal[1, 2] = 1
    image_size_px: int = 64
    text_width: int = 768
    channels: int = 96
    discriminator_channels: int = 96
    noise_width: int = 100
    condition_width: int = 128
    conditioning: Literal["relu", "linear"] = "relu"
    resblocks: int = 4
    biases: bool = True
    upsample: Literal["scale", "transposed"] = "scale"
    dropout: float = 0.0
    text: Literal["compressed", "shared-mean"] = "compressed"
    joint_kernel: Literal[1, 3] = 1
    unconditional: bool = False
    discriminator_norm: Literal["batch", "none"] = "batch"

    def __post_init__(self) -> None:
        at_least(self, 1, "text_width", "channels", "discriminator_channels", "noise_width", "condition_width")
        at_least(self, 0, "resblocks", most=MOST_LAYERS)
        at_most(self, MOST_WIDTH, "text_width", "channels", "discriminator_channels", "noise_width", "condition_width")
        at_most(self, MOST_SIDE_PX, "image_size_px")
        least = 8 if self.stage == 1 else 32
        require(
            self.image_size_px >= least and self.image_size_px & (self.image_size_px - 1) == 0,
            f"image_size_px {self.image_size_px}: must be a power of two, at least {least} in stage {self.stage}",
        )
        require(
            self.stage == 1 or self.channels % 2 == 0,
            f"channels {self.channels}: must be even in stage 2, whose last maps have half as many",
        )
        # of the maps of 4 × 4 that stage 1 begins with; stage 2's resblocks have eight times as many
        widest = self.channels * (self.image_size_px // 4 if self.stage == 1 else 8)
        require(
            widest <= MOST_WIDTH,
            f"channels {self.channels} with image_size_px {self.image_size_px}: makes maps of {widest:,} channels, of which a layer has "
            f"at most {MOST_WIDTH:,}; lower one of them",
        )
        require(0 <= self.dropout < 1, f"dropout {self.dropout}: must lie in [0, 1)")

    @property
    def low_px(self) -> int:
        """Side of the images that stage 2 is given."""
        return self.image_size_px // 4


@dataclass(frozen=True)
class StackGANObjective:
    """Equations 3 to 6, with what experiments A to H and DF-GAN's recipe change of them.

    Args:
        loss: "cross-entropy" of right and wrong (the document), or "hinge" (DF-GAN)
        kl_weight: λ, of the conditioning's KL divergence in the generator's loss; 2 in the family
        real_labels: labels of real pairs; each pair has one of these, drawn at random. 0.9 and 0.95 in experiment F
        fake_labels: labels of wrong and drawn pairs, likewise; 0.1 and 0.15
        flipped: share of a batch whose labels of real and drawn images change places (5 to 10% in experiments F to H)
        unconditional_weight: weight of the loss on images alone, where the model is `unconditional`
        penalty_weight: weight of the matching-aware zero-centred gradient penalty on real images with their captions: 2 in DF-GAN;
            0 has none
        penalty_exponent: exponent of the gradient's norm in that penalty: 6 in DF-GAN
    """

    loss: Literal["cross-entropy", "hinge"] = "cross-entropy"
    kl_weight: float = 2.0
    real_labels: tuple[float, ...] = (1.0,)
    fake_labels: tuple[float, ...] = (0.0,)
    flipped: float = 0.0
    unconditional_weight: float = 1.0
    penalty_weight: float = 0.0
    penalty_exponent: float = 6.0

    def __post_init__(self) -> None:
        for name in ("kl_weight", "unconditional_weight", "penalty_weight"):
            found = getattr(self, name)
            require(0 <= found < math.inf, f"{name} {found}: must be at least 0 and finite")
        require(self.penalty_exponent >= 1, f"penalty_exponent {self.penalty_exponent}: must be at least 1")
        for name in ("real_labels", "fake_labels"):
            labels = getattr(self, name)
            require(
                len(labels) > 0 and all(0 <= label <= 1 for label in labels),
                f"{name} {list(labels)}: must be one number or more in [0, 1]",
            )
        require(0 <= self.flipped < 0.5, f"flipped {self.flipped}: must lie in [0, 0.5)")
        plain = self.real_labels == (1.0,) and self.fake_labels == (0.0,) and self.flipped == 0
        require(
            self.loss == "cross-entropy" or plain,
            "loss hinge: knows no soft or flipped labels; leave real_labels, fake_labels and flipped as they are",
        )


@dataclass(frozen=True)
class CharCNNRNNModel:
    """A char-CNN-RNN (Reed et al., 2016, "Learning Deep Representations of Fine-Grained Visual Descriptions"). The defaults are
    its published variant of that paper, cvpr2016; the two of "Generative Adversarial Text to Image Synthesis" are
    `configs/text-encoder/flowers.yaml` and `birds.yaml`.

    Args:
        channels: C, channels of the last convolution and of the hidden state
        third_pool: pool after the last convolution, 3 wide in steps of 2
        recurrent: recurrence over the places that are left: "rnn" with ReLU, or "gru"
        first_widths: channels of the first two convolutions, each followed by a pool of 3
        embedding_width: numbers of a caption's vector
        caption_chars: letters that are read of a caption
        image_width: numbers of an image's features, which a linear layer brings to `embedding_width` in training; set by the
            training. Null takes them as they are, as published
    """

    channels: int = 256
    third_pool: bool = True
    recurrent: Literal["rnn", "gru"] = "rnn"
    first_widths: tuple[int, int] = (384, 512)
    embedding_width: int = 1024
    caption_chars: int = 201
    image_width: int | None = None

    def __post_init__(self) -> None:
        at_least(self, 1, "channels", "embedding_width", "caption_chars")
        at_most(self, MOST_WIDTH, "channels", "embedding_width", "image_width")
        at_most(self, MOST_SLOTS, "caption_chars")
        require(
            len(self.first_widths) == 2 and all(1 <= width <= MOST_WIDTH for width in self.first_widths),
            f"first_widths {list(self.first_widths)}: must be two positive numbers, each at most {MOST_WIDTH:,}",
        )
        require(self.image_width is None or self.image_width >= 1, f"image_width {self.image_width}: must be positive")
        require(
            self.steps >= 1,
            f"caption_chars {self.caption_chars}: too few for three convolutions and their pools; give more",
        )

    @property
    def steps(self) -> int:
        """Places that are left for the recurrence: 8 of 201 letters, or 18 without the third pool."""
        places = self.caption_chars
        for _ in range(2):
            places = (places - _KERNEL + 1) // 3
        places -= _KERNEL - 1
        return (places - 3) // 2 + 1 if self.third_pool else places
