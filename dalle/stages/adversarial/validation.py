"""What a generator does of held-out captions: pictures, and how much they differ by caption and by noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from dalle.config import TrainStackGAN
from dalle.data.counts import Counts
from dalle.data.pairs import to_tensor
from dalle.data.samples import Pair, read_pairs
from dalle.models.likelihood import to_pixels
from dalle.models.stackgan.generators import Generator
from dalle.models.stackgan.noise import noise
from dalle.objectives.stackgan import signed, spread

_MOST_CAPTIONS = 64
_PICTURES, _NOISES, _VARIED = 8, 8, 8
"""Captions that are shown; noises, for each of as many captions, over which images of one caption are compared."""

Embed = Callable[[list[str]], torch.Tensor]
Low = Callable[[torch.Tensor, list[int]], dict[str, torch.Tensor]]


class Validation:
    """Held-out pairs, of different captions, and fixed noise. Without held-out shards some training pairs.

    Args:
        config: of the training
        model: the generator, which has the averaged weights whenever this is asked
        embed: from captions to embeddings
        low: from embeddings and seeds to what stage two is given beside them; {} in stage one
        features: of images in [−1, 1], in which they are compared
        device: of the model
        keep: takes the figures
    """

    def __init__(
        self,
        config: TrainStackGAN,
        model: Generator,
        embed: Embed,
        low: Low,
        features: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
        keep: Callable[[dict[str, float]], None],
    ):
        self.model, self.device, self._low, self._keep = model, device, low, keep
        self._features = features
        count = min(_MOST_CAPTIONS, config.run.validation_batches * config.run.batch_size)
        images = replace(config.images, augmentation="none", cache_bytes=0)
        counts = Counts()
        pairs = read_pairs(config.valid_data or config.data, images, config.model.image_size_px, counts=counts)
        by_caption: dict[str, Pair] = {}
        for pair in pairs:
            by_caption.setdefault(pair.captions[0], pair)
            if len(by_caption) == count:
                break
        self.captions, found = list(by_caption), list(by_caption.values())
        self.images = [pair.image for pair in found]
        self.samples = {"valid_data": counts} if config.valid_data else {}
        self.text_BE = embed(self.captions)

    def _drawn(self, text_BE: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        """Images in [−1, 1] of embeddings, each with the noise of a seed."""
        drawn = []
        for first in range(0, len(seeds), _PICTURES):
            rows = slice(first, first + _PICTURES)
            text = text_BE[rows].to(self.device)
            given = {name: value.to(self.device) for name, value in noise(self.model.config, seeds[rows]).items()}
            drawn.append(self.model(text, given["noise_BZ"], given["epsilon_BC"], **self._low(text, seeds[rows]))[0])
        return torch.cat(drawn)

    def _spread(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        return spread(torch.cat([self._features(some) for some in images_BCYX.split(_PICTURES)]))

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """`caption_spread`, of images of different captions with one noise, and `noise_spread`, of images of one caption with different
        noises: shares of the spread of as many real images, 1 where they differ as much. All in the space of `features`."""
        real = self._spread(signed(to_tensor(self.images)).to(self.device)).clamp(min=1e-8)
        by_caption = self._spread(self._drawn(self.text_BE, [0] * len(self.captions)))
        of_one = [
            self._spread(self._drawn(text_E.expand(_NOISES, -1), list(range(_NOISES))))
            for text_E in self.text_BE[:_VARIED]
        ]
        found = {
            "caption_spread": (by_caption / real).item(),
            "noise_spread": (torch.stack(of_one).mean() / real).item(),
        }
        self._keep(found)
        return found

    @torch.no_grad()
    def pictures(self) -> dict[str, Image.Image]:
        """Real images above those drawn of their captions, with two noises."""
        shown = min(_PICTURES, len(self.captions))
        rows = [np.hstack(self.images[:shown])]
        for seed in range(2):
            drawn_BCYX = self._drawn(self.text_BE[:shown], [seed] * shown)
            rows.append(np.hstack(list(to_pixels((drawn_BCYX + 1) / 2))))
        return {"samples": Image.fromarray(np.vstack(rows))}
