"""What `bench.py sample` runs beside its peers: our token loop, the machine's rates and what they allow, and reranking."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.sides import DEVICE, best_rate, matrix_product

# ---- ours


def ours(config, n: int, sampling, notes: Path) -> dict[str, Callable]:
    """Calls: "image" draws N whole images, chunk by chunk, and notes the time of every step; "warmup" ends after the first
    row of slots.

    Args:
        sampling: a `Sampling`; a chunk is no wider than N, where `dalle-sample` would throw away what is over
    """
    from dalle.decoding.token_loop import TokenLoop, choose_chunk
    from dalle.models.prior import Prior

    loop = TokenLoop(Prior(config).to(DEVICE).eval().requires_grad_(False), sampling.precision, sampling.compile)
    chunk = min(n, choose_chunk(loop, sampling))
    text_1U = torch.randint(0, config.text_vocabulary, (1, config.caption_tokens), device=DEVICE)

    def draw(first: int, progress: Callable[[int], None]) -> torch.Tensor:
        return loop.codes(text_1U, torch.arange(first, first + chunk)[None], sampling, progress=progress)

    def image() -> None:
        for first in range(0, n, chunk):
            clock = _Clock()
            codes_1NI = draw(first, clock.mark)
            assert codes_1NI.shape == (1, chunk, config.image_slots)
            record = {"step_s": clock.step_s(), "chunk": chunk, "cache_bytes": loop.cache_bytes(1, chunk, False)}
            _note(notes, record)

    def warmup() -> None:
        def end(slot: int) -> None:
            if slot + 1 == config.grid:
                raise _Ended

        with contextlib.suppress(_Ended):
            draw(0, end)

    return {"image": image, "warmup": warmup}


class _Ended(Exception):
    """Ends an image early."""


class _Clock:
    """When each step of an image was done: on CUDA by events in its queue, so that nothing waits for them."""

    def __init__(self):
        self._marks = [_now()]

    def mark(self, slot: int) -> None:
        self._marks.append(_now())

    def step_s(self) -> list[float]:
        """Seconds of each step; what comes before the first is part of it."""
        if DEVICE == "cuda":
            torch.cuda.synchronize()
            return [before.elapsed_time(after) / 1e3 for before, after in pairwise(self._marks)]
        return [after - before for before, after in pairwise(self._marks)]


def _now():
    if DEVICE != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _note(notes: Path, record: dict) -> None:
    """Calls return seconds alone; what else is to be known goes through a file, a line for each call."""
    with notes.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_notes(notes: Path) -> list[dict]:
    return [json.loads(line) for line in notes.read_text().splitlines()]


# ---- the limit


def work(config, candidates: int, itemsize: int) -> dict[str, int]:
    """What drawing N candidates of one caption asks for: {"flops", "bytes"}.

    Operations, a multiply-add being two: the caption once (of its last layer the keys and values alone), and for each
    candidate and image slot the resblocks' 12 D² weights a layer, the image head, and 4 D for each key that the slot sees,
    in the caption and in the image by the layer's mask. Bytes: at each step the weights once, the caption's keys and values
    once for all candidates, and of each candidate those that its slot sees. What stays in a processor's cache from one step
    to the next is not taken off, so the second limit is a soft one where N is small.

    Args:
        itemsize: bytes of a weight, and of a key's element
    """
    from dalle.masks import layer_kinds
    from dalle.models.flops import image_pairs

    width, depth, text, slots = config.width, config.depth, config.text_slots, config.image_slots
    pairs = sum(image_pairs(kind, config) for kind in layer_kinds(config))
    weights = 12 * width**2 * depth + width * config.codebook_size
    text_pairs = (depth - 1) * text * (text + 1) // 2
    caption_flops = text * (24 * width**2 * (depth - 1) + 4 * width**2) + 4 * width * text_pairs
    candidate_flops = 2 * weights * slots + 4 * width * (depth * text * slots + pairs)
    keys = depth * text * slots + candidates * pairs
    return {
        "flops": caption_flops + candidates * candidate_flops,
        "bytes": itemsize * (slots * weights + 2 * width * keys),
    }


def machine(precision: str, notes: Path) -> dict[str, Callable]:
    """Its rates, in a process of their own: what the buffers take would count as the other sides' memory."""
    product = matrix_product(torch.bfloat16 if precision == "bf16" else torch.float32)
    source = torch.ones(2**30 if DEVICE == "cuda" else 2**28, dtype=torch.uint8, device=DEVICE)
    target = torch.zeros_like(source)
    copy = (partial(target.copy_, source), 2 * source.numel())  # it is read, and it is written
    return {"rates": lambda: _note(notes, {"flops_per_s": best_rate(*product), "bytes_per_s": best_rate(*copy)})}


# ---- reranking


def reranking(config, batch: int, precision: str, quick: bool) -> dict[str, Callable]:
    """A dVAE of the paper's size at the grid, and a ViT-B/32; their weights are random."""
    from dalle.config import CLIPModel, DVAEModel
    from dalle.models.clip import CLIP
    from dalle.models.dvae import DVAE
    from dalle.text import Tokenizer

    narrow: dict[str, Any] = {"encoder_width": 8, "decoder_input_width": 8} if quick else {}
    dvae = (
        DVAE(DVAEModel(image_size_px=8 * config.grid, codebook_size=config.codebook_size, **narrow)).to(DEVICE).eval()
    )
    if quick:
        small = CLIPModel(vision_width=64, vision_layers=1, text_width=64, text_layers=1, embedding_width=16)
        clip = CLIP(small, Tokenizer.train(["a red circle"], vocabulary=260))
    else:
        clip = CLIP(CLIPModel(architecture="ViT-B-32"))
    clip = clip.to(DEVICE).eval()
    codes_BYX = torch.randint(0, config.codebook_size, (batch, config.grid, config.grid), device=DEVICE)
    size = dvae.config.image_size_px
    images_BCYX = torch.rand(batch, 3, size, size, device=DEVICE)

    def inference(call: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
                call()

        return run

    return {
        "decode": inference(lambda: dvae.decode(codes_BYX)),
        "score": inference(lambda: clip.embed_images(images_BCYX)),
    }
