"""From a caption to ranked images: prior, dVAE and reranker together.

pipeline = dalle.load("demo")
for drawing in pipeline.generate("a red circle above a blue square", n=32, keep=4):
    drawing.image.save(f"{drawing.rank}.png"); print(drawing.score)
"""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dalle.config import Sampling
from dalle.data.images import centre_crop, to_rgb
from dalle.models.clip import CLIP, load_clip
from dalle.models.dvae import DVAE
from dalle.models.folder import check_links, load_dvae, load_prior, read_config, read_header
from dalle.models.prior import Prior
from dalle.sampling.decode import TokenLoop
from dalle.sampling.gallery import Drawing
from dalle.text import Tokenizer, pad


@dataclass
class Candidates:
    """Some candidates of a few captions: images uint8 [C, N, Y, X, 3], codes [C, N, I], seeds [C, N], and scores
    [C, N] of the reranker, null without one."""

    images_CNYX3: np.ndarray
    codes_CNI: np.ndarray
    seeds_CN: np.ndarray
    scores_CN: np.ndarray | None


class Pipeline:
    """Draws captions.

    Args:
        prior, dvae, tokenizer: the trained models
        clip: the reranker; null ranks nothing
        hashes: content hashes by name, recorded with every drawing
    """

    def __init__(
        self,
        prior: Prior,
        dvae: DVAE,
        tokenizer: Tokenizer,
        clip: CLIP | None = None,
        hashes: dict[str, str] | None = None,
    ):
        self.prior, self.dvae, self.tokenizer, self.clip = prior, dvae, tokenizer, clip
        self.hashes = hashes or {}
        self.device = prior.image_head.weight.device
        self._loops: dict[str, TokenLoop] = {}

    def generate(
        self,
        caption: str,
        n: int = 32,
        keep: int | None = None,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        prompt_image: Image.Image | None = None,
        rows: int = 0,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Drawing]:
        """The best of n candidates, best first by the reranker (in order of their seeds without one).

        Args:
            caption: what to draw
            n: candidates drawn; candidate i has seed `seed + i` and is the same image whatever n is
            keep: how many are returned; null returns all
            seed: of the first candidate
            sampling: temperature, filters, chunk width, precision
            prompt_image: an image whose top part is kept
            rows: token rows (of the prior's grid) that are kept of it
            progress: told how many candidates are done

        Raises:
            ValueError: an empty caption, n < 1, or rows outside 0 … grid − 1
        """
        if n < 1:
            raise ValueError(f"n {n}: must be at least 1")
        keep = n if keep is None else keep
        if keep < 1:
            raise ValueError(f"keep {keep}: must be at least 1")
        settings = {**asdict(sampling), "rows": rows, "models": self.hashes}
        best: list[tuple[float, int, np.ndarray]] = []
        for chunk in self.candidates([caption], n, seed, sampling, prompt_image, rows):
            scores = -chunk.seeds_CN[0].astype(float) if chunk.scores_CN is None else chunk.scores_CN[0]
            for image, number, score in zip(chunk.images_CNYX3[0], chunk.seeds_CN[0], scores, strict=True):
                entry = (float(score), -int(number), image)
                if len(best) < keep:
                    heapq.heappush(best, entry)
                elif entry[:2] > best[0][:2]:
                    heapq.heapreplace(best, entry)
            progress(len(chunk.seeds_CN[0]))
        ranked = sorted(best, key=lambda entry: entry[:2], reverse=True)
        return [
            Drawing(Image.fromarray(image), caption, None if self.clip is None else score, -number, rank, settings)
            for rank, (score, number, image) in enumerate(ranked, 1)
        ]

    def candidates(
        self,
        captions: Sequence[str],
        n: int,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        prompt_image: Image.Image | None = None,
        rows: int = 0,
    ) -> Iterator[Candidates]:
        """All candidates, chunk by chunk of at most `sampling.chunk` for each caption.

        A chunk is always drawn at its full width, and what is over is thrown away, so that a candidate does not depend
        on n. It does depend, in the last bits of its logits, on the number of captions drawn together.
        """
        text_CU = self.tokens(captions)
        given_CG = self._given(len(captions), prompt_image, rows)
        loop = self._loop(sampling.precision)
        text_embeddings = self._embed(captions) if self.clip is not None else None
        for first in range(0, n, sampling.chunk):
            seeds = torch.arange(seed + first, seed + first + sampling.chunk).expand(len(captions), -1)
            wanted = min(sampling.chunk, n - first)
            codes_CNI = loop.codes(text_CU, seeds, sampling, given_CG)
            images_RCYX = self.decode(codes_CNI.flatten(0, 1), sampling.precision)
            scores_CN = None
            if text_embeddings is not None:
                images_RE = self._embed_images(images_RCYX, sampling.precision)
                images_CNE = images_RE.view(*seeds.shape, -1)
                scores_CN = torch.einsum("CNE,CE->CN", images_CNE, text_embeddings).cpu().numpy()
            pixels = to_pixels(images_RCYX)
            # only now is what is over thrown away: decoder and reranker round by the shape of their batch as well
            yield Candidates(
                pixels.reshape(*seeds.shape, *pixels.shape[1:])[:, :wanted],
                codes_CNI[:, :wanted].cpu().numpy(),
                seeds[:, :wanted].numpy(),
                None if scores_CN is None else scores_CN[:, :wanted],
            )

    def tokens(self, captions: Sequence[str]) -> torch.Tensor:
        """Caption tokens int64 [C, T − 1]; a caption that is too long is cut, with a warning that shows what was lost.
        Raises ValueError for an empty one."""
        limit = self.prior.config.caption_tokens
        ids = []
        for caption in captions:
            if not caption.strip():
                raise ValueError("the caption is empty")
            tokens = self.tokenizer.encode(" ".join(caption.split()))
            if len(tokens) > limit:
                lost = self.tokenizer.decode(tokens[limit:])
                warnings.warn(
                    f"the caption has {len(tokens)} tokens, {limit} are read; cut off: {lost!r}", stacklevel=2
                )
            ids.append(tokens)
        return torch.from_numpy(pad(ids, limit))

    @torch.inference_mode()
    def decode(self, codes_BI: torch.Tensor, precision: str) -> torch.Tensor:
        """Images in [0, 1], fp32 [B, 3, Y, X], of codes [B, I]."""
        grid = self.prior.config.grid
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return self.dvae.decode(codes_BI.view(-1, grid, grid))

    @torch.inference_mode()
    def reconstruct(self, images_BYX3: np.ndarray, precision: str) -> np.ndarray:
        """Images uint8 [B, Y, X, 3] after the dVAE's encoder and decoder."""
        images_BCYX = torch.from_numpy(images_BYX3).permute(0, 3, 1, 2).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return to_pixels(self.dvae.decode(self.dvae.encode(images_BCYX)))

    @torch.inference_mode()
    def _embed(self, captions: Sequence[str]) -> torch.Tensor:
        return self.clip.embed_texts(self.clip.tokens(captions).to(self.device))

    @torch.inference_mode()
    def _embed_images(self, images_BCYX: torch.Tensor, precision: str) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return self.clip.embed_images(images_BCYX)

    def _given(self, num_captions: int, prompt_image: Image.Image | None, rows: int) -> torch.Tensor | None:
        grid = self.prior.config.grid
        if (prompt_image is None) != (rows == 0):
            raise ValueError("an image prompt needs both an image and the number of rows to keep (at least 1)")
        if prompt_image is None:
            return None
        if not 0 < rows < grid:
            raise ValueError(f"rows {rows}: must lie between 1 and {grid - 1}, for the image has {grid} rows of tokens")
        pixels = np.array(centre_crop(to_rgb(prompt_image), self.dvae.config.image_size_px))
        codes_YX = self.dvae.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.device))[0]
        return codes_YX[:rows].flatten().expand(num_captions, -1)

    def _loop(self, precision: str) -> TokenLoop:
        if precision not in self._loops:
            self._loops[precision] = TokenLoop(self.prior, precision)
        return self._loops[precision]


def to_uint8(images_BCYX: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as uint8 [B, 3, Y, X], rounded."""
    return (images_BCYX * 255).round().to(torch.uint8)


def to_pixels(images_BCYX: torch.Tensor) -> np.ndarray:
    """Images in [0, 1] as uint8 [B, Y, X, 3]."""
    return to_uint8(images_BCYX).permute(0, 2, 3, 1).cpu().numpy()


def load(
    folder: str | Path,
    dvae: str | Path | None = None,
    prior: str | Path | None = None,
    clip: str | Path | None = None,
    rerank: bool = True,
    device: str | torch.device | None = None,
) -> Pipeline:
    """The models of a folder that has `prior/`, `dvae/` and, for reranking, `clip/` in it.

    Args:
        folder: the folder
        dvae, prior: folders of single models that stand in for those in `folder`
        clip: likewise, or `ARCHITECTURE:PRETRAINED` of open_clip
        rerank: load the reranker
        device: null takes a GPU where there is one

    Raises:
        ValueError: a model is missing, or the prior was trained with another dVAE or tokenizer
    """
    folder = Path(folder)
    prior, dvae = Path(prior or folder / "prior"), Path(dvae or folder / "dvae")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    read_config(prior, "prior")  # names what is wrong with the folder before anything else does
    tokenizer = Tokenizer.load(prior / "tokenizer.json")
    check_links(prior, dvae, tokenizer)
    hashes = {"prior": read_header(prior)["hash"], "dvae": read_header(dvae)["hash"], "tokenizer": tokenizer.hash}
    reranker = load_clip(clip or folder / "clip", device) if rerank else None
    return Pipeline(load_prior(prior, device), load_dvae(dvae, device), tokenizer, reranker, hashes)
