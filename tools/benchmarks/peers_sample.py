"""What `bench.py sample` compares ours with: a dense sampler with a static cache, GPT-2 of transformers, and DALLE-pytorch.

A whole image takes them minutes. So each makes a few steps at the start, in the middle and at the end of one, and the
steps between are those of the parabola through the three means: exact where a step's time grows by the slots before it
or by their square.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import peers_prior
from benchmarks.sides import DEVICE

PLACES = ("start", "middle", "end")
"""Of an image, where a peer makes its slices."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_DALLE_PYTORCH_ROWS = 8
"""It computes every slot and all its logits again at every step: more rows than these gain it nothing."""


@dataclass(frozen=True)
class Peer:
    """One peer in one precision.

    Args:
        build: makes its calls: "read" for the caption, and for each place "prepare PLACE", whose time does not count,
            then PLACE
        rows: candidates that it draws together
        steps: of a slice
        slots: of the image, those that its steps decode; reading has done the others
        held_bytes: what it holds beside its weights
    """

    build: Callable[[], dict[str, Callable]]
    rows: int
    steps: int
    slots: range
    held_bytes: int


def peers(config, candidates: int, steps: int) -> tuple[dict[str, dict[str, Peer]], dict[str, str]]:
    """Those that can run here, by name and precision; and why the others cannot."""
    found: dict[str, dict[str, Peer]] = {"dense_cache": {}}
    missing = {}
    if why := why_no_transformers():
        missing["transformers"] = why
    else:
        found["transformers"] = {}
    if why := peers_prior.why_no_dalle_pytorch(config):
        missing["dalle_pytorch"] = why
    else:
        found["dalle_pytorch"] = {}
    slots = range(config.image_slots)
    for precision, dtype in _DTYPES.items():
        cache_bytes = dense_cache_bytes(config, candidates, dtype.itemsize)
        build = partial(_dense, config, candidates, dtype, steps)
        found["dense_cache"][precision] = Peer(build, candidates, steps, slots, cache_bytes)
        if "transformers" in found:
            grown_bytes = cache_bytes + cache_bytes // config.depth  # a layer's cache is copied as it grows
            build = partial(_transformers, config, candidates, dtype, steps)
            found["transformers"][precision] = Peer(build, candidates, steps, slots[1:], grown_bytes)
        if "dalle_pytorch" in found and precision == "bf16":  # a step of seconds is bound by products: fp32 is no match
            rows = min(candidates, _DALLE_PYTORCH_ROWS)
            logits_bytes = rows * config.slots * (config.text_vocabulary + config.text_slots + config.codebook_size) * 4
            build = partial(_dalle_pytorch, config, rows)
            found["dalle_pytorch"][precision] = Peer(build, rows, 1, slots, logits_bytes)
    return found, missing


def dense_cache_bytes(config, rows: int, itemsize: int) -> int:
    """The keys and values of every slot, caption and image, for every row and layer."""
    return 2 * rows * config.depth * config.slots * config.width * itemsize


# ---- slices


def places(slots: int, steps: int) -> dict[str, int]:
    """The first slot of each slice."""
    return dict(zip(PLACES, (0, (slots - steps) // 2, slots - steps), strict=True))


def whole_s(slices_s: dict[str, float], image_slots: int, steps: int, counted: range) -> float:
    """Seconds of the counted slots' steps, from those of the slices: the sum over the parabola through their means.

    Args:
        slices_s: by place, seconds of `steps` steps together
        image_slots: of the whole image
    """
    firsts = places(image_slots, steps)
    middles = [firsts[place] + (steps - 1) / 2 for place in slices_s]
    parabola = np.polyfit(middles, [value / steps for value in slices_s.values()], len(slices_s) - 1)
    return float(np.polyval(parabola, np.array(counted)).sum())


def _calls(config, steps: int, read: Callable, step: Callable, prepare: Callable = lambda first: None) -> dict:
    """A peer's calls; `step` and `prepare` take the first slot of a slice."""
    calls = {"read": read}
    for place, first in places(config.image_slots, steps).items():
        calls |= {f"prepare {place}": partial(prepare, first), place: partial(step, first)}
    return calls


def _nothing() -> None:
    """Reading the caption, where every step does it again."""


# ---- dense, with a static cache


class DenseSampler:
    """A dense GPT's token loop as one writes it plainly: a cache of every slot for every row, and PyTorch's attention
    over its filled part.

    Args:
        gpt: whole in the dtype
        rows: R, candidates of the one caption; each has a copy of its keys and values
    """

    def __init__(self, gpt: peers_prior.GPT, rows: int, dtype: torch.dtype):
        self.gpt: Any = gpt.to(DEVICE, dtype).eval()
        config = self.config = gpt.config
        shape = (config.depth, rows, config.heads, config.slots, config.width // config.heads)
        # random, so that slices in the middle of an image attend to something
        self.k_LRHSK, self.v_LRHSK = (torch.randn(shape, dtype=dtype, device=DEVICE) for _ in "kv")

    @torch.inference_mode()
    def read(self, text_1U: torch.Tensor) -> None:
        """Encode the caption once, and copy its keys and values for every row."""
        gpt, slots = self.gpt, self.config.text_slots
        held_1T = F.pad(text_1U, (1, 0), value=self.config.text_vocabulary)
        x_1TD = gpt.text_tokens(held_1T.clamp(min=0)) + gpt.text_positions.weight
        x_1TD = torch.where((held_1T >= 0)[..., None], x_1TD, gpt.text_pads.weight)
        for layer, k_RHSK, v_RHSK in zip(gpt.layers, self.k_LRHSK, self.v_LRHSK, strict=True):
            qkv_1TzHK = layer.qkv(layer.attention_norm(x_1TD)).unflatten(-1, (3, layer.heads, -1))
            q_1HTK, k_1HTK, v_1HTK = qkv_1TzHK.permute(2, 0, 3, 1, 4)
            k_RHSK[:, :, :slots], v_RHSK[:, :, :slots] = k_1HTK, v_1HTK
            values_1HTK = F.scaled_dot_product_attention(q_1HTK, k_1HTK, v_1HTK, is_causal=True)
            x_1TD = x_1TD + layer.project(values_1HTK.transpose(1, 2).flatten(2))
            x_1TD = x_1TD + layer.narrow(F.gelu(layer.widen(layer.mlp_norm(x_1TD))))

    @torch.inference_mode()
    def logits(self, held_R: torch.Tensor, slot: int) -> torch.Tensor:
        """Logits fp32 [R, V] of an image slot, which holds `held_R`."""
        gpt, grid, place = self.gpt, self.config.grid, self.config.text_slots + slot
        x_RD = gpt.image_tokens(held_R) + gpt.image_rows.weight[slot // grid] + gpt.image_columns.weight[slot % grid]
        for layer, k_RHSK, v_RHSK in zip(gpt.layers, self.k_LRHSK, self.v_LRHSK, strict=True):
            qkv_RzHK = layer.qkv(layer.attention_norm(x_RD)).unflatten(-1, (3, layer.heads, -1))
            q_RHK, k_RHSK[:, :, place], v_RHSK[:, :, place] = qkv_RzHK.unbind(1)
            filled = (k_RHSK[:, :, : place + 1], v_RHSK[:, :, : place + 1])
            values_RH1K = _attend(q_RHK[:, :, None], *filled)
            x_RD = x_RD + layer.project(values_RH1K.flatten(1))
            x_RD = x_RD + layer.narrow(F.gelu(layer.widen(layer.mlp_norm(x_RD))))
        return gpt.image_head(gpt.norm(x_RD)).float()

    @torch.inference_mode()
    def draw(self, first: int, steps: int) -> torch.Tensor:
        """Codes int64 [R, steps] of the image slots from number `first` on, as if the one before were the start."""
        held_R = torch.full((self.k_LRHSK.shape[1],), self.config.codebook_size, device=DEVICE)
        codes_RN = torch.empty(len(held_R), steps, dtype=torch.int64, device=DEVICE)
        for number in range(steps):
            logits_RV = self.logits(held_R, first + number)
            held_R = codes_RN[:, number] = torch.multinomial(logits_RV.softmax(dim=-1), 1)[:, 0]
        return codes_RN


def _attend(q_RH1K: torch.Tensor, k_RHMK: torch.Tensor, v_RHMK: torch.Tensor) -> torch.Tensor:
    """Attention of one slot, in the form that is faster: on a CPU in fp32, plain products take two thirds of the time of
    PyTorch's fused kernel; in bf16 they take longer."""
    if q_RH1K.is_cuda or q_RH1K.dtype != torch.float32:
        return F.scaled_dot_product_attention(q_RH1K, k_RHMK, v_RHMK)
    return (q_RH1K * q_RH1K.shape[-1] ** -0.5 @ k_RHMK.mT).softmax(dim=-1) @ v_RHMK


def _dense(config, rows: int, dtype: torch.dtype, steps: int) -> dict[str, Callable]:
    sampler = DenseSampler(peers_prior.GPT(config), rows, dtype)
    text_1U = torch.randint(0, config.text_vocabulary, (1, config.caption_tokens), device=DEVICE)
    return _calls(config, steps, partial(sampler.read, text_1U), lambda first: sampler.draw(first, steps))


# ---- transformers


def why_no_transformers() -> str | None:
    """What keeps GPT-2 of transformers from a run; None where it is installed."""
    return None if importlib.util.find_spec("transformers") else "pip install transformers"


def _transformers(config, rows: int, dtype: torch.dtype, steps: int) -> dict[str, Callable]:
    """GPT-2 with a vocabulary of codes alone, a prompt of T of them, and its default cache. `generate` sets itself up for
    some milliseconds in every call; they are counted."""
    with _without("torchvision"):
        from transformers import GPT2Config, GPT2LMHeadModel

    sizes = GPT2Config(
        vocab_size=config.codebook_size,
        n_positions=config.slots,
        n_embd=config.width,
        n_layer=config.depth,
        n_head=config.heads,
        bos_token_id=None,
        eos_token_id=None,  # so that no row ends early
    )
    gpt2: Any = GPT2LMHeadModel(sizes)
    gpt2 = gpt2.to(DEVICE, dtype).eval()
    held_RS = torch.randint(0, config.codebook_size, (1, config.slots), device=DEVICE).repeat(rows, 1)
    caches: list[Any] = []

    def generate(num_held: int, tokens: int, **more) -> None:
        held_RN = held_RS[:, :num_held]
        # without its default of the 50 likeliest, since the other sides have no filter
        sampling = {"do_sample": True, "top_k": 0, "max_new_tokens": tokens, "pad_token_id": 0}
        out_RN = gpt2.generate(held_RN, attention_mask=torch.ones_like(held_RN), **sampling, **more)
        assert out_RN.shape == (rows, num_held + tokens)

    @torch.no_grad()
    def prepare(first: int) -> None:
        """A cache of all slots before the one that the next step reads."""
        caches.clear()  # before the next one is made
        cache = gpt2(held_RS[:1, : config.text_slots + first - 1], use_cache=True).past_key_values
        cache.batch_repeat_interleave(rows)
        caches.append(cache)

    def step(first: int) -> None:
        generate(config.text_slots + first, steps, past_key_values=caches.pop())

    return _calls(config, steps, lambda: generate(config.text_slots, 1), step, prepare)


@contextmanager
def _without(name: str) -> Iterator[None]:
    """In this block a package looks as if it was not installed: transformers imports torchvision where it finds it, and
    one that was built for CUDA cannot be imported beside a PyTorch for the CPU."""
    before = sys.modules.pop(name, None)
    modules: dict[str, Any] = sys.modules
    modules[name] = None
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


# ---- DALLE-pytorch


def _dalle_pytorch(config, rows: int) -> dict[str, Callable]:
    """Its `generate_images`, told that an image ends after the slice and begun from an image prompt. At its default
    guidance it drops the cache that it is asked for."""
    dalle = peers_prior.DALLEPytorch(config).to(DEVICE).dalle
    text_RT = torch.randint(1, config.text_vocabulary, (rows, config.text_slots), device=DEVICE)  # 0 is its pad
    codes_RI = torch.randint(0, config.codebook_size, (rows, config.image_slots), device=DEVICE)
    size = dalle.vae.image_size
    prompt_RCYX = torch.zeros(1, 1, 1, 1, device=DEVICE).expand(rows, 3, size, size)
    # the dVAE is no part of what is compared
    dalle.vae.get_codebook_indices = lambda images: codes_RI
    dalle.vae.decode = lambda codes: codes

    def step(first: int) -> None:
        dalle.image_seq_len = first + 1
        with torch.autocast(DEVICE, torch.bfloat16):
            out_RN = dalle.generate_images(text_RT, img=prompt_RCYX, num_init_img_tokens=first, use_cache=True)
        assert out_RN.shape == (rows, first + 1)

    return _calls(config, 1, _nothing, step)
