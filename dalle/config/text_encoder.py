"""The char-CNN-RNN: captions read letter by letter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dalle.config.checks import at_least, require

_KERNEL = 4


@dataclass(frozen=True)
class CharCNNRNNModel:
    """A char-CNN-RNN (Reed et al., 2016, "Learning Deep Representations of Fine-Grained Visual Descriptions"). The defaults are
    its published variant of that paper, cvpr2016; the two of "Generative Adversarial Text to Image Synthesis" are
    `configs/text-encoder/flowers.yaml` and `birds.yaml`.

    Args:
        channels: C, of the last convolution and of the hidden state
        third_pool: pool after the last convolution, 3 wide in steps of 2
        recurrent: over the places that are left: "rnn" with ReLU, or "gru"
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
        require(
            len(self.first_widths) == 2 and min(self.first_widths) >= 1,
            f"first_widths {list(self.first_widths)}: must be two positive numbers",
        )
        require(self.image_width is None or self.image_width >= 1, f"image_width {self.image_width}: must be positive")
        require(self.steps >= 1, f"caption_chars {self.caption_chars}: too few for three convolutions and their pools")

    @property
    def steps(self) -> int:
        """Places that are left for the recurrence: 8 of 201 letters, or 18 without the third pool."""
        places = self.caption_chars
        for _ in range(2):
            places = (places - _KERNEL + 1) // 3
        places -= _KERNEL - 1
        return (places - 3) // 2 + 1 if self.third_pool else places
