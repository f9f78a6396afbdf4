"""The token loop: from captions to image codes, with a key-value cache.

A caption, and the given first codes of an image with it, is read in one pass for all of its candidates. Then every step is
the same work on the same tensors, whatever the slot: nothing waits for the host, and on CUDA a step is one graph.

Axes: C captions, N candidates of each, X = C·N candidates in all, R rows of the batch, which are X or with guidance twice
that (B = R / N captions), T text slots, U caption tokens (T − 1), I image slots, G given ones, V codes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dalle.config import Sampling
from dalle.decoding.caches import LayerCache
from dalle.decoding.choice import choose, num_uniform, uniform_numbers
from dalle.decoding.kernels import kernels
from dalle.decoding.slot_model import SlotModel, with_products
from dalle.masks import cache_places
from dalle.models.prior import Prior
from dalle.text import PAD

_MOST_TOGETHER = {"cpu": 64, "cuda": 512}
"""Candidates of a chunk where there is memory enough: docs/LOG.md has the products of other widths."""


@dataclass(frozen=True)
class Given:
    """Codes that are there from the start.

    Args:
        codes_CI: int64
        kept_I: bool, which of them are kept; the others are drawn, and each sees only what lies before it in raster order
    """

    codes_CI: torch.Tensor
    kept_I: torch.Tensor


class TokenLoop:
    """Decodes image codes with a prior.

    Args:
        prior: one that holds its matrices in the 16 bits of the precision is taken over (`slot_model.with_products`); the
            matrices of another are converted once, and it may be let go
        precision: "fp32" or "bf16"
        compile: compiled kernels between the matrix products, in place of PyTorch's own operations
    """

    def __init__(self, prior: Prior, precision: str, compile: bool = True):
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.device = prior.image_head.weight.device
        config = prior.config
        self.kernels = kernels(self.device, compile, config.width // config.heads)
        with torch.inference_mode():
            self.prior = with_products(prior, self.dtype)
            self._model = SlotModel(self.prior, self.dtype, self.kernels)
        self._places = {k: cache_places(k, config.grid, config.conv_kernel).to(self.device) for k in set(prior.kinds)}
        self._batch: _Batch | None = None
        self._step: tuple[Sampling, Callable[[], None]] | None = None

    @torch.inference_mode()
    def codes(
        self,
        text_CU: torch.Tensor,
        seeds_CN: torch.Tensor,
        sampling: Sampling,
        given: Given | None = None,
        progress: Callable[[int], None] = lambda slot: None,
    ) -> torch.Tensor:
        """Sampled codes int64 [C, N, I].

        Args:
            text_CU: caption tokens int64, PAD after the end
            seeds_CN: one seed for each candidate int64; the same seed draws the same codes, in any place of the batch
            sampling: temperature (null is 1), filters, guidance (null is 1, none)
            given: codes that are kept as they are
            progress: told each slot whose step was issued

        Raises:
            ValueError: the prior's logits are not finite
        """
        captions, candidates = seeds_CN.shape
        if given is None:
            slots = self.prior.config.image_slots
            given = Given(torch.zeros(captions, slots, dtype=torch.int64), torch.zeros(slots, dtype=torch.bool))
        codes_CI = given.codes_CI.to(self.device)
        drawn = (~given.kept_I).nonzero().flatten().tolist()
        if not drawn:
            return codes_CI[:, None].repeat(1, candidates, 1)
        guided = _guidance(sampling) != 1
        batch = self._batch_of(captions, candidates, guided)
        step = self._step_of(batch, sampling)
        batch.finite_X.fill_(True)
        batch.seeds_X.copy_(seeds_CN.flatten())
        batch.kept_I.copy_(given.kept_I)
        batch.codes_IX.copy_(codes_CI.T.repeat_interleave(candidates, dim=1))
        text_BU = torch.cat([text_CU, torch.full_like(text_CU, PAD)]) if guided else text_CU
        self._read_given(batch, text_BU.to(self.device), codes_CI[:, : drawn[0]].repeat(1 + guided, 1))
        for slot in range(drawn[0], drawn[-1] + 1):
            step()
            progress(slot)
        if not batch.finite_X.all():
            raise ValueError(
                f"the prior's logits are not finite: its weights are broken, or no match for precision {self.dtype}; "
                "try precision fp32, or train it again"
            )
        return batch.codes_IX.T.clone(memory_format=torch.contiguous_format).view(captions, candidates, -1)

    @torch.inference_mode()
    def logits(self, text_CU: torch.Tensor, codes_CNI: torch.Tensor, num_given: int = 0) -> Iterator[torch.Tensor]:
        """Logits fp32 [C, N, V] of each image slot in turn, from slot number `num_given` on, after the codes before it.

        Args:
            text_CU: caption tokens int64, PAD after the end
            codes_CNI: int64
            num_given: how many of the first codes are read in one pass, the same for all candidates of a caption
        """
        captions, candidates, slots = codes_CNI.shape
        batch = self._batch_of(captions, candidates, False)
        codes_CNI = codes_CNI.to(self.device)
        self._read_given(batch, text_CU.to(self.device), codes_CNI[:, 0, :num_given])
        for slot in range(num_given, slots):
            yield self._model.logits(batch.held_R, batch.slot_1, batch.caches).view(captions, candidates, -1)
            batch.hold(codes_CNI[:, :, slot].flatten())

    def so_far(self) -> torch.Tensor:
        """The codes that are being drawn, int64 [C, N, I] on the CPU, to be asked for from within `progress`: of the slots to come
        they mean nothing. On a GPU it waits for the steps that were issued."""
        assert self._batch is not None, "nothing is being drawn"
        captions, candidates, _ = self._batch.shape
        return self._batch.codes_IX.T.reshape(captions, candidates, -1).cpu()

    def cache_bytes(self, captions: int, candidates: int, guided: bool = False) -> int:
        """What the key-value caches of a batch take."""
        config = self.prior.config
        places = sum(config.text_slots + candidates * self._places[kind].size for kind in self.prior.kinds)
        return captions * (1 + guided) * places * 2 * config.width * self.dtype.itemsize

    def weight_bytes(self) -> int:
        """What the prior's weights take, once for prompts and steps."""
        tensors = [*self.prior.parameters(), *self.prior.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _read_given(self, batch: _Batch, text_BU: torch.Tensor, codes_BG: torch.Tensor) -> None:
        """Fill the caches in one pass over the text slots and the first G image slots; slot G is then next."""
        start_B1 = self.prior.start_of_image(len(text_BU))
        held_BH = torch.cat([start_B1, codes_BG], dim=1)  # what slots 0 … G hold
        given = codes_BG.shape[1]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            self.prior.run_layers(text_BU, held_BH[:, :given], batch.caches)
        batch.slot_1.fill_(given)
        batch.held_R.copy_(held_BH[:, given].repeat_interleave(len(batch.held_R) // len(text_BU)))

    def _batch_of(self, captions: int, candidates: int, guided: bool) -> _Batch:
        """The tensors for such a batch: those of the call before, where they fit."""
        shape = (captions, candidates, guided)
        if self._batch is None or self._batch.shape != shape:
            self._batch = self._step = None  # given back before others are taken
            self._batch = _Batch(shape, self._new_caches(captions * (1 + guided), candidates), self.prior)
        return self._batch

    def _step_of(self, batch: _Batch, sampling: Sampling) -> Callable[[], None]:
        """What draws the next codes: that of the call before, where it fits. Not kept by the batch, which would then not be
        freed with its last use."""
        if self._step is None or self._step[0] != sampling:
            self._step = None
            self._step = (sampling, _stepper(self._model, batch, sampling))
        return self._step[1]

    def _new_caches(self, captions: int, candidates: int) -> list[LayerCache]:
        config = self.prior.config
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        heads, width, text = config.heads, config.width // config.heads, config.text_slots
        return [
            LayerCache(
                self._places[kind],
                torch.zeros(captions, heads, width, text, **options),
                torch.zeros(captions, heads, text, width, **options),
                *(torch.zeros(captions * candidates, heads, self._places[kind].size, width, **options) for _ in "kv"),
            )
            for kind in self.prior.kinds
        ]


class _Batch:
    """All that a step reads and writes: nothing else is allocated for it on a GPU.

    Args:
        shape: captions, candidates of each, and whether their rows are there again without the captions
        caches: of the layers
        prior: for its sizes and device
    """

    def __init__(self, shape: tuple[int, int, bool], caches: list[LayerCache], prior: Prior):
        captions, candidates, guided = self.shape = shape
        self.caches = caches
        slots = prior.config.image_slots
        options: dict[str, Any] = {"device": prior.image_head.weight.device, "dtype": torch.int64}
        self.slot_1 = torch.zeros(1, **options)
        self.held_R = torch.zeros(captions * candidates * (1 + guided), **options)
        self.seeds_X = torch.zeros(captions * candidates, **options)
        self.codes_IX = torch.zeros(slots, captions * candidates, **options)
        self.kept_I = torch.zeros(slots, device=self.slot_1.device, dtype=torch.bool)
        self.finite_X = torch.ones(captions * candidates, device=self.slot_1.device, dtype=torch.bool)

    def hold(self, codes_X: torch.Tensor) -> None:
        """The next slot holds these codes."""
        self.held_R.view(-1, len(codes_X)).copy_(codes_X)
        self.slot_1.add_(1)


def _stepper(model: SlotModel, batch: _Batch, sampling: Sampling) -> Callable[[], None]:
    """Draws the next slot's codes; on CUDA a captured graph of that."""
    guidance = _guidance(sampling)

    def step() -> None:
        logits_RV = model.logits(batch.held_R, batch.slot_1, batch.caches)
        if batch.shape[2]:
            captioned_XV, free_XV = logits_RV.chunk(2)
            logits_RV = free_XV + guidance * (captioned_XV - free_XV)
        uniform_XU = uniform_numbers(batch.seeds_X, batch.slot_1, num_uniform(logits_RV.shape[-1]))
        drawn_X, finite_X = choose(logits_RV, uniform_XU, sampling)
        batch.finite_X.logical_and_(finite_X)
        code_1X = torch.where(batch.kept_I[batch.slot_1][:, None], batch.codes_IX[batch.slot_1], drawn_X)
        batch.codes_IX.index_copy_(0, batch.slot_1, code_1X)
        batch.hold(code_1X[0])

    if batch.slot_1.device.type != "cuda":
        return step
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(batch.slot_1.device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # what is made at first use is not part of the graph
                batch.slot_1.zero_()
                step()
        torch.cuda.current_stream().wait_stream(side)
        batch.slot_1.zero_()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may train meanwhile
            step()
    return graph.replay


def choose_chunk(loop: TokenLoop, sampling: Sampling) -> int:
    """How many candidates are decoded together: as asked for, or the largest power of two whose caches fit half of the memory
    that the weights leave. Of all memory, not of what is free at the moment: the width decides the last bits of an image."""
    if sampling.chunk is not None:
        return sampling.chunk
    room = (_memory_bytes(loop.device) - loop.weight_bytes()) / 2
    width = _MOST_TOGETHER[loop.device.type]
    while width > 1 and loop.cache_bytes(1, width, _guidance(sampling) != 1) > room:
        width //= 2
    return width


def _guidance(sampling: Sampling) -> float:
    """Its scale; where nothing says it there is none."""
    return 1.0 if sampling.guidance is None else sampling.guidance


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))  # of a container
    except (OSError, ValueError):
        return physical
