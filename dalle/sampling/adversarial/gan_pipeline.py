"""From a caption to ranked images by a GAN: text encoder, generators and reranker together.

It draws what a `dalle.sampling.pipeline.Pipeline` draws, in the same chunks: candidate i has seed `seed + i`, which gives its noise,
and is the same image whatever n is. There are no codes, so there are no image prompts, variations or shortlists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, overload

import numpy as np
import torch

from dalle.config import Sampling
from dalle.models.clip import CLIP
from dalle.models.likelihood import to_uint8
from dalle.models.stackgan.generators import Generator
from dalle.models.stackgan.noise import noise
from dalle.models.text_encoders import TextEncoder
from dalle.sampling.adversarial.gan_set import KERNELS, settle
from dalle.sampling.candidates import Best, Candidates, Reading, Work, draw
from dalle.sampling.drawing import Drawing, machine_of
from dalle.sampling.prompt import Prompt
from dalle.sampling.ranking.viewer import check_scores, embed_captions, score_images
from dalle.text import check_captions

_PIXELS_TOGETHER = 16 * 256**2
"""Pixels that are drawn in one go. The widest maps of the document's stage II, 96 of 128² and 48 of 256², take 20 MB an image in fp32."""


class GANPipeline:
    """Draws captions.

    Args:
        generators: stage I, and II where there is one, on one device
        encoder: makes numbers of captions
        clip: the reranker; null ranks nothing
        hashes: content hashes by name, recorded with every drawing
    """

    def __init__(
        self,
        generators: Sequence[Generator],
        encoder: TextEncoder,
        clip: CLIP | None = None,
        hashes: dict[str, str] | None = None,
    ):
        self.generators, self.encoder, self.clip, self.hashes = tuple(generators), encoder, clip, hashes or {}
        self.device = self.generators[0].output.weight.device

    @overload
    def generate(
        self,
        caption: str,
        n: int = 32,
        keep: int | None = None,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        progress: Callable[[int], None] = ...,
        **options: Any,
    ) -> list[Drawing]: ...

    @overload
    def generate(
        self,
        caption: list[str] | tuple[str, ...],
        n: int = 32,
        keep: int | None = None,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        progress: Callable[[int], None] = ...,
        **options: Any,
    ) -> list[list[Drawing]]: ...

    def generate(
        self,
        caption: str | Sequence[str],
        n: int = 32,
        keep: int | None = None,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        progress: Callable[[int], None] = lambda done: None,
        **options: Any,
    ) -> list[Drawing] | list[list[Drawing]]:
        """The best of n candidates, best first by the reranker (in order of their seeds without one).

        Args:
            caption: what to draw, or several of it, of which each gets a list of its own
            n: candidates drawn
            keep: how many are returned; null returns all
            seed: of the first candidate
            sampling: chunk width and precision; what is about codes has to be as it is by default
            progress: told how many candidates are done
            options: in place of single settings of `sampling`

        Raises:
            TypeError: an option that `Sampling` does not have
            ValueError: an empty caption, n or keep < 1, or a setting that is about codes
        """
        sampling = replace(sampling, **options)
        if not isinstance(caption, str):
            return [self.generate(one, n, keep, seed, sampling, progress) for one in caption]
        work = Work((caption,), n, n if keep is None else keep, seed, sampling)
        best = Best(work.keep)
        for part in draw(self, work):
            best.take(part)
            progress(part.drawn)
        return best.ranked()

    __call__ = generate

    def read(self, captions: Sequence[str], as_codes: bool = False) -> Reading:
        """Captions, ready to be drawn together. Raises ValueError for an empty one, or where codes are asked for."""
        check_captions(captions)
        if as_codes:
            raise ValueError("shortlist: reads codes, and this model is a GAN, which has none; leave it out")
        embeddings_CE = None
        if self.clip is not None:
            embeddings_CE = embed_captions(self.clip, captions, self.device, "reranker")
        return Reading(captions, self.encoder.encode(captions).to(self.device), embeddings_CE)

    def settle(self, sampling: Sampling) -> Sampling:
        """The settings. Raises ValueError for those that are about codes."""
        return settle(sampling)

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises ValueError: there is no prompt that fits."""
        raise ValueError("an image prompt is made of codes, and this model is a GAN, which has none; leave it out")

    def chunk_width(self, sampling: Sampling) -> int:
        """Candidates of each caption that are drawn together."""
        return max(1, _PIXELS_TOGETHER // self.generators[-1].config.image_size_px ** 2)

    def chunk(
        self,
        reading: Reading,
        first_seed: int | np.ndarray,
        sampling: Sampling,
        prompt: Prompt | None = None,
        progress: Callable[[int], None] = lambda step: None,
    ) -> Candidates:
        """The `sampling.chunk` candidates of each caption whose seeds begin with `first_seed`, one for all captions or one for each,
        int64 [C].

        Raises:
            ValueError: a prompt, or scores that are not finite
            torch.OutOfMemoryError: or, on a CPU, a RuntimeError that says so
        """
        if prompt is not None:
            self.check_prompt(prompt)
        captions, width = len(reading.captions), sampling.chunk
        assert width is not None, "settled by `Chunks`"
        seeds_CN = (torch.as_tensor(first_seed).reshape(-1, 1) + torch.arange(width)).expand(captions, -1)
        together = self.chunk_width(sampling)
        texts_RE = reading.text.repeat_interleave(width, dim=0)
        seeds_R = seeds_CN.flatten().tolist()
        batches = (slice(first, first + together) for first in range(0, len(seeds_R), together))
        images_RCYX = torch.cat([self._draw(texts_RE[rows], seeds_R[rows], sampling.precision) for rows in batches])
        scores_R = None
        if reading.embeddings_CE is not None:
            assert self.clip is not None
            scores_R = score_images(self.clip, images_RCYX, reading.embeddings_CE.repeat_interleave(width, dim=0))
            check_scores(scores_R, seeds_R, "reranker", "draw without a reranker (rerank), or name another (clip)")
        progress(0)
        images_RYX3 = images_RCYX.permute(0, 2, 3, 1).cpu().numpy()
        return Candidates(
            reading.captions,
            images_RYX3.reshape(captions, width, *images_RYX3.shape[1:]),
            None,
            seeds_CN.numpy(),
            None if scores_R is None else scores_R.reshape(captions, width),
            {
                **asdict(sampling),
                "captions_together": captions,
                "models": self.hashes,
                "kernels": KERNELS,
                **machine_of(self.device),
            },
        )

    def release(self) -> None:
        """Give back memory that is held for the next chunk."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _draw(self, texts_BE: torch.Tensor, seeds: Sequence[int], precision: str) -> torch.Tensor:
        """Images uint8 [B, 3, Y, X]."""
        images_BCYX: torch.Tensor | None = None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            for generator in self.generators:
                made = {name: value.to(self.device) for name, value in noise(generator.config, seeds).items()}
                images_BCYX = generator(texts_BE, made["noise_BZ"], made["epsilon_BC"], images_BCYX)[0]
        assert images_BCYX is not None
        return to_uint8((images_BCYX + 1) / 2)
