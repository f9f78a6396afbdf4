"""What this machine reaches in a prior's own work: a layer of each kind and the heads, run and timed, in place of large matrix products,
whose rate no training has."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch

from dalle.config import PriorModel
from dalle.gradients.scaling import GradientScales
from dalle.masks import layer_kinds
from dalle.models.attention import MaskedAttention
from dalle.models.flops import prior_flops
from dalle.models.prior import Head, Layer
from dalle.optim.optimizer import orthogonalized
from dalle.planning.activations import autocast
from dalle.planning.layout import Layout, Sizes
from dalle.planning.plan import Machines
from dalle.reporting.machine_limit import matrix_flops_per_s, seconds_of

_PASS_S = 0.5
"""At the rate of matrix products, of all layers' passes by so many samples at a time; real ones take two or three times as long."""
_ELEMENTS = 2**26
"""Numbers of fp32 that are copied, or orthogonalised, at once: more than caches hold."""


def flops_per_s(config: PriorModel, precision: str, micro_batch: int, device: torch.device) -> float:
    """Operations, as `prior_flops` counts them, by the seconds of forward and backward passes of every layer and the heads, without
    recomputation, without code that is compiled, and without other processes. It allocates one layer.

    Args:
        config: sizes of the prior
        precision: of the run
        micro_batch: samples; fewer are timed where all would take long
        device: of this process
    """
    flops = prior_flops(config)
    samples = max(1, min(micro_batch, int(_PASS_S * matrix_flops_per_s(device, precision) * config.depth / flops)))
    counts = Counter(layer_kinds(config))
    passes = {kind: _layer(config, kind, precision, samples, device) for kind in counts}
    took_s = sum(count * median(seconds_of(passes[kind], device)) for kind, count in counts.items())
    return samples * flops / (took_s + median(seconds_of(_heads(config, precision, samples, device), device)))


def muon_flops_per_s(sizes: Sizes, device: torch.device) -> float:
    """Operations, as `Sizes.muon_flops` counts them, by the seconds that all matrices take to be orthogonalised, those of one shape
    together. A few of them are timed where all are large."""
    took_s = 0.0
    for shape, count in sizes.matrix_shapes.items():
        some = max(1, min(count, _ELEMENTS // math.prod(shape)))
        matrices_NRC = torch.randn(some, *shape, device=device)
        took_s += count / some * median(seconds_of(partial(orthogonalized, matrices_NRC), device))
    return sizes.muon_flops / took_s


def this_machine(layout: Layout, device: torch.device, memory_bytes: float) -> Machines:
    """This machine, as the training of a layout meets it."""
    flops = flops_per_s(layout.sizes.config, layout.run.precision, layout.micro_batch, device)
    muon = muon_flops_per_s(layout.sizes, device) if layout.optimizer.muon_step_size_factor else flops
    return Machines.measured(flops, muon, copied_bytes_per_s(device), memory_bytes)


def copied_bytes_per_s(device: torch.device) -> float:
    """Bytes that a copy within the memory reads and writes."""
    source = torch.zeros(_ELEMENTS, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median(seconds_of(lambda: target.copy_(source), device))


def _layer(config: PriorModel, kind: Any, precision: str, samples: int, device: torch.device) -> Callable[[], None]:
    with device:
        layer = Layer(config.width, config.heads, 0.02)
        masked = MaskedAttention(kind, config.text_slots, config.grid, config.conv_kernel)
        x_BSD = torch.randn(samples, config.slots, config.width, requires_grad=True)
    if precision == "fp16-per-block":
        GradientScales.per_block([layer.attention, layer.mlp], 1, device)

    def passes() -> None:
        with autocast(precision, device):
            out_BSD = layer(x_BSD, masked)
        out_BSD.backward(torch.ones_like(out_BSD))

    return passes


def _heads(config: PriorModel, precision: str, samples: int, device: torch.device) -> Callable[[], None]:
    given = []
    for vocabulary, slots in (
        (config.text_vocabulary, config.caption_tokens),
        (config.codebook_size, config.image_slots),
    ):
        with device:
            x_ND = torch.randn(samples * slots, config.width, requires_grad=True)
            given.append((Head(config.width, vocabulary), x_ND, torch.randint(vocabulary, (samples * slots,))))

    def passes() -> None:
        with autocast(precision, device):
            nats = sum(head(x_ND, targets_N) for head, x_ND, targets_N in given)
        nats.backward()

    return passes
