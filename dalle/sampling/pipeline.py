"""From a caption to ranked images: prior, dVAE and reranker together.

pipeline = dalle.load("demo")
for drawing in pipeline.generate("a red circle above a blue square", n=32, keep=4):
    drawing.image.save(f"{drawing.rank}.png"); print(drawing.score)

Axes: C captions, N candidates of each, R = C·N images, I codes of an image, E width of the reranker's embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from dalle.config import Precision, Sampling
from dalle.config.sampling import check_shortlist
from dalle.decoding.token_loop import TokenLoop, choose_chunk
from dalle.models.clip import CLIP
from dalle.models.dvae import DVAE
from dalle.models.likelihood import to_pixels
from dalle.models.prior import Prior
from dalle.sampling.candidates import Best, Candidates, Chunks, Reading, Work, draw
from dalle.sampling.drawing import Drawing, codes_of, machine_of, read_drawing
from dalle.sampling.model_set import Tuning, settle
from dalle.sampling.prompt import Prompt, encode_with, known_codes, make_prompt
from dalle.sampling.ranking.shortlist import Shortlist, Viewer
from dalle.sampling.ranking.viewer import check_scores, decode, embed_captions, score_codes, view
from dalle.text import Tokenizer, caption_tokens


class Pipeline:
    """Draws captions.

    Args:
        prior, dvae, tokenizer: the trained models
        clip: the reranker; null ranks nothing
        hashes: content hashes by name, recorded with every drawing
        tuning: how the prior wants to be drawn with; null where nothing says it
        read_prior: reads the prior again, for another precision than it is held for; null has one prior for all
        codes_clip: a reranker that reads codes, for shortlists; null makes none
    """

    def __init__(
        self,
        prior: Prior,
        dvae: DVAE,
        tokenizer: Tokenizer,
        clip: CLIP | None = None,
        hashes: dict[str, str] | None = None,
        tuning: Tuning | None = None,
        read_prior: Callable[[Precision], Prior] | None = None,
        codes_clip: CLIP | None = None,
    ):
        self.prior, self.dvae, self.tokenizer, self.clip, self.codes_clip = prior, dvae, tokenizer, clip, codes_clip
        self.hashes, self.tuning = hashes or {}, tuning or Tuning()
        self.device = prior.image_head.weight.device
        self._read_prior = read_prior
        self._loops: dict[tuple[str, bool], TokenLoop] = {}

    @overload
    def generate(
        self,
        caption: str | None = None,
        n: int = 32,
        keep: int | None = None,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        prompt_image: Image.Image | None = None,
        rows: int = 0,
        region: tuple[int, int, int, int] | None = None,
        variations_of: str | Path | None = None,
        progress: Callable[[int], None] = ...,
        shortlist: int | None = None,
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
        prompt_image: Image.Image | None = None,
        rows: int = 0,
        region: tuple[int, int, int, int] | None = None,
        variations_of: str | Path | None = None,
        progress: Callable[[int], None] = ...,
        shortlist: int | None = None,
        **options: Any,
    ) -> list[list[Drawing]]: ...

    def generate(
        self,
        caption: str | Sequence[str] | None = None,
        n: int = 32,
        keep: int | None = None,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        prompt_image: Image.Image | None = None,
        rows: int = 0,
        region: tuple[int, int, int, int] | None = None,
        variations_of: str | Path | None = None,
        progress: Callable[[int], None] = lambda done: None,
        shortlist: int | None = None,
        **options: Any,
    ) -> list[Drawing] | list[list[Drawing]]:
        """The best of n candidates, best first by the reranker (in order of their seeds without one). Candidates that came
        out the same are one drawing, whose `times` says how many they were.

        Args:
            caption: what to draw, or several of it, of which each gets a list of its own; null with `variations_of` means the
                drawing's own
            n: candidates drawn; candidate i has seed `seed + i` and is the same image whatever n is
            keep: how many are returned, where so many differ; null returns all that do
            seed: of the first candidate
            sampling: temperature, filters, guidance, chunk width, precision
            prompt_image: an image of which some is kept: its top rows, or all but a region
            rows: token rows (of the prior's grid) that are kept of it
            region: left, top, right, bottom in pixels of the image: what is drawn
            variations_of: a PNG of ours, in place of `prompt_image`
            progress: told how many candidates are done
            shortlist: how many that differ are decoded and ranked by the reranker, the best of all n by the reader of codes; null
                decodes all
            options: in place of single settings of `sampling`: `temperature=0.5`, `top_p=0.9`, `guidance=2`

        Raises:
            TypeError: an option that `Sampling` does not have
            ValueError: an empty caption, n or keep < 1, an image without rows or region, or either of them out of range, a
                shortlist of more than n, or without a reranker and a reader of codes
        """
        self._check_shortlist(shortlist, n)
        sampling = replace(sampling, **options)
        if caption is not None and not isinstance(caption, str):
            more = (n, keep, seed, sampling, prompt_image, rows, region, variations_of, progress, shortlist)
            return [self.generate(one, *more) for one in caption]
        known = None
        if variations_of is not None:
            origin = read_drawing(variations_of)
            caption = origin.caption if caption is None else caption
            prompt_image = origin.image
            size_px = self.dvae.config.image_size_px
            known = known_codes(variations_of, origin, codes_of(self.hashes), self.prior.config, size_px)
        prompt = None
        if prompt_image is not None or rows or region is not None:
            if prompt_image is None:
                raise ValueError("an image prompt needs an image beside rows or region; give prompt_image")
            prompt = self.prompt(prompt_image, rows, region, known)
        work = Work((caption or "",), n, n if keep is None else keep, seed, sampling, prompt, shortlist)
        best, parts = Best(work.keep), draw(self, work)
        for part in parts if shortlist is None else Shortlist(work, self.viewer().view).of(parts):
            best.take(part)
            progress(part.drawn)
        return best.ranked()

    __call__ = generate

    def candidates(
        self,
        captions: Sequence[str],
        n: int,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        prompt: Prompt | None = None,
    ) -> Iterator[Candidates]:
        """All candidates of captions that are drawn together, in one batch, chunk by chunk.

        A chunk is always drawn at its full width, and what is over is thrown away, so that a candidate does not depend
        on n. It does depend, in the last bits of its logits, on the number of captions drawn together.
        """
        return Chunks(self, sampling).draw(self.read(captions), range(n), seed, prompt)

    def prompt(
        self,
        image: Image.Image,
        rows: int = 0,
        region: tuple[int, int, int, int] | None = None,
        known_codes_I: np.ndarray | None = None,
    ) -> Prompt:
        """What is given of an image (`dalle.sampling.prompt`)."""
        grid, size_px = self.prior.config.grid, self.dvae.config.image_size_px
        return make_prompt(image, rows, region, grid, size_px, lambda im: encode_with(self.dvae, im), known_codes_I)

    def read(self, captions: Sequence[str], as_codes: bool = False) -> Reading:
        """Captions, ready to be drawn together. Raises ValueError for an empty one. as_codes: and not to be decoded."""
        text_CU = self.tokens(captions)
        clip, reader = (self.codes_clip, "reader of codes") if as_codes else (self.clip, "reranker")
        embeddings_CE = None if clip is None else embed_captions(clip, captions, self.device, reader)
        return Reading(captions, text_CU, embeddings_CE, as_codes)

    def viewer(self) -> Viewer:
        """What decodes a shortlist."""
        assert self.clip is not None, "a shortlist without a reranker was refused"
        return Viewer(self.dvae, self.clip, self.release)

    def _check_shortlist(self, shortlist: int | None, n: int) -> None:
        check_shortlist(shortlist, n)
        for model, option in ((self.clip, "rerank"), (self.codes_clip, "shortlist")):
            if shortlist is not None and model is None:
                raise ValueError(f"shortlist {shortlist}: load the models with {option}=True, which it needs")

    def settle(self, sampling: Sampling) -> Sampling:
        """The settings with the prior's own where they leave it open. Raises ValueError where they do not fit the models."""
        return settle(sampling, self.prior.config, self.tuning)

    def prior_for(self, precision: Precision) -> Prior:
        """The prior, for matrix products of a precision. One that was loaded holds its matrices in that alone, and is read
        again when another is asked for: fp32 would not be had from 16 bits, and both would not fit some devices."""
        held = "bf16" if self.prior.text_head.weight.dtype == torch.bfloat16 else "fp32"
        if self._read_prior is not None and held != precision:
            self._loops.clear()
            self.prior = self._read_prior(precision)
        return self.prior

    def check_prompt(self, prompt: Prompt) -> None:
        """Raises ValueError for a prompt that does not fit the prior."""
        prompt.check(self.prior.config)

    def chunk_width(self, sampling: Sampling) -> int:
        """Candidates of each caption that are drawn together, with the guidance that is asked for or the prior's own."""
        return choose_chunk(self._loop(sampling), self.tuning.complete(sampling))

    def chunk(
        self,
        reading: Reading,
        first_seed: int | np.ndarray,
        sampling: Sampling,
        prompt: Prompt | None = None,
        progress: Callable[[int], None] = lambda slot: None,
    ) -> Candidates:
        """The `sampling.chunk` candidates of each caption whose seeds begin with `first_seed`, one for all captions or one for
        each, int64 [C]. Each slot that was drawn is told.

        Raises:
            ValueError: a prompt that does not fit the prior, or logits or scores that are not finite
            torch.OutOfMemoryError: or, on a CPU, a RuntimeError that says so
        """
        if prompt is not None:
            self.check_prompt(prompt)
        captions, width = len(reading.captions), sampling.chunk
        assert width is not None, "settled by `Chunks`"
        seeds_CN = (torch.as_tensor(first_seed).reshape(-1, 1) + torch.arange(width)).expand(captions, -1)
        given = None if prompt is None else prompt.given(captions)
        codes_CNI = self._loop(sampling).codes(reading.text, seeds_CN, sampling, given, progress)
        codes_RI, texts_RE, images_CNYX3 = codes_CNI.flatten(0, 1), None, None
        scores_R: np.ndarray | None
        if reading.embeddings_CE is not None:
            texts_RE = reading.embeddings_CE.repeat_interleave(width, dim=0)
        if reading.as_codes:
            assert self.codes_clip is not None and texts_RE is not None, "`read` has embedded the captions with it"
            scores_R = score_codes(self.codes_clip, codes_RI, texts_RE)
            blamed = ("reader of codes", "draw without a shortlist, or name another (codes_clip)")
        else:
            images_RYX3, scores_R = view(self.dvae, self.clip, codes_RI, texts_RE, sampling.precision)
            images_CNYX3 = images_RYX3.reshape(captions, width, *images_RYX3.shape[1:])
            blamed = ("reranker", "draw without a reranker (rerank), or name another (clip)")
        if scores_R is not None:
            check_scores(scores_R, seeds_CN.flatten(), *blamed)
        return Candidates(
            reading.captions,
            images_CNYX3,
            codes_CNI.cpu().numpy(),
            seeds_CN.numpy(),
            None if scores_R is None else scores_R.reshape(captions, width),
            self._settings(sampling, captions, prompt),
        )

    def so_far(self, sampling: Sampling) -> np.ndarray:
        """Of a chunk that is being drawn with these settings, the codes int64 [C, N, I], for who is told its slots: those of the slots
        to come mean nothing."""
        return self._loop(sampling).so_far().numpy()

    def _settings(self, sampling: Sampling, captions: int, prompt: Prompt | None) -> dict[str, Any]:
        """All but seed and place in the chunk that decides the bits of an image."""
        machine = {**machine_of(self.device), "kernels": self._loop(sampling).kernels.name}
        given = {} if prompt is None else {"given": prompt.to_json()}
        return {**asdict(sampling), "captions_together": captions, **given, "models": self.hashes, **machine}

    def tokens(self, captions: Sequence[str]) -> torch.Tensor:
        """Caption tokens int64 [C, T − 1] (`dalle.text.caption_tokens`)."""
        return torch.from_numpy(caption_tokens(self.tokenizer, captions, self.prior.config.caption_tokens))

    def decode(self, codes_BI: torch.Tensor, precision: str) -> torch.Tensor:
        """Images in [0, 1], fp32 [B, 3, Y, X], of codes [B, I]."""
        return decode(self.dvae, codes_BI, precision)

    @torch.inference_mode()
    def reconstruct(self, images_BYX3: np.ndarray, precision: str) -> np.ndarray:
        """Images uint8 [B, Y, X, 3] after the dVAE's encoder, in fp32, and its decoder."""
        codes_BI = torch.from_numpy(np.stack([encode_with(self.dvae, image_YX3) for image_YX3 in images_BYX3]))
        return to_pixels(self.decode(codes_BI.to(self.device), precision))

    def release(self) -> None:
        """Give back the memory of the token loops; the next chunk makes its own."""
        self._loops.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _loop(self, sampling: Sampling) -> TokenLoop:
        key = (sampling.precision, sampling.compile)
        if key not in self._loops:
            self._loops[key] = TokenLoop(self.prior_for(sampling.precision), *key)
        return self._loops[key]
