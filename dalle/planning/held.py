"""Bytes that a process holds from update to update, by kind."""

from __future__ import annotations

import re
from functools import cache

import torch

from dalle.config import Optimizer, PriorModel
from dalle.models.prior import Prior
from dalle.optim import optimizer as optimizers
from dalle.planning.exchanged import Exchanged
from dalle.planning.gathered import bucket_elements
from dalle.planning.layout import Layout

KINDS = ("weights", "gradients", "moments", "error buffers", "averages", "buckets")


def stays(layout: Layout, exchanged: Exchanged) -> dict[str, int]:
    """Of a GPU, at the most in an update; `error buffers` with the fixed matrices that go with them."""
    return {
        "weights": _weights(layout),
        "gradients": 4 * _gradients(layout),
        "moments": 0 if layout.run.offload == "cpu" else _moments(layout),
        "error buffers": exchanged.error_bytes + exchanged.fixed_bytes,
        "averages": _averages(layout) if layout.run.ema_every_steps == 1 else 0,
        "buckets": _buckets(layout),
    }


def while_made(layout: Layout) -> int:
    """Bytes of a GPU at the most while DeepSpeed takes the weights over, before the first update: all are fp32, and 16-bit copies are
    made beside them. At stage 3 it has made room by then for the gradients of all of them, of which those that are compressed need
    none; and it gathers one parameter after the other to hook into its gradient."""
    run, held, whole = layout.run, layout.held, layout.whole
    in_16_bits = run.weights == "16-bit"
    if run.zero_stage == 0:
        return 4 * sum(whole.values())
    if run.zero_stage < 3:
        copies = 2 * sum(whole[name] for name in layout.sizes.matrices) if in_16_bits else 0
        return 4 * (sum(whole.values()) + sum(held.values())) + copies
    gradients = 0 if run.offload == "cpu" else 4 * sum(held.values())
    copies = layout.weight_bytes(held) if in_16_bits else 0
    gathered = 4 * max(whole.values())
    return 4 * sum(held.values()) + gradients + max(copies, gathered) + _buckets(layout)


def in_main_memory(layout: Layout) -> int:
    """Bytes of a process beside the GPU: averages with the copies that they are made from, or moments and fp32 weights with their
    gradients where they are offloaded."""
    run = layout.run
    averages = 0
    if run.ema_every_steps > 1 and run.ema_decay is not None:
        averages = _averages(layout) + layout.weight_bytes(layout.held if run.zero_stage == 3 else layout.whole)
    offloaded = _moments(layout) + 8 * sum(layout.held.values()) if run.offload == "cpu" else 0
    return averages + offloaded


def checkpoint_bytes(layout: Layout, exchanged: Exchanged) -> int:
    """On disk, of all processes together: weights, moments, averages, the sum of the error buffers in fp32."""
    whole = layout.with_run(zero_stage=0, compression=None, wire="fp32")
    averages = _averages(whole) if layout.run.ema_decay is not None else 0
    waiting = 4 * sum(layout.whole[name] for name in layout.sizes.matrices) if exchanged.error_bytes else 0
    return layout.weight_bytes(layout.whole) + _moments(whole) + averages + waiting


def _gradients(layout: Layout) -> int:
    """How many are kept: at stage 3 those that are compressed wait in the error buffers alone."""
    run = layout.run
    if run.zero_stage < 2:
        return layout.sizes.weights
    elsewhere = layout.sizes.matrices if run.compression and run.zero_stage == 3 and run.offload == "device" else ()
    return sum(size for name, size in layout.held.items() if name not in elsewhere)


def _weights(layout: Layout) -> int:
    run = layout.run
    if run.zero_stage in (0, 3):
        return layout.weight_bytes(layout.held)
    # below stage 3 DeepSpeed updates a second copy of its part; what is in 16 bits is updated where it is
    twice = (size for name, size in layout.held.items() if run.weights == "fp32" or name not in layout.sizes.matrices)
    return layout.weight_bytes(layout.whole) + 4 * sum(twice)


def _averages(layout: Layout) -> int:
    """Of what a process holds of the weights."""
    if layout.run.ema_decay is None:
        return 0
    return 4 * (sum(layout.held.values()) if layout.run.zero_stage == 3 else layout.sizes.weights)


def _moments(layout: Layout) -> int:
    by_name = _moment_bytes(layout.optimizer)
    return sum(size * by_name[re.sub(r"^layers\.\d+\.", "layers.0.", name)] for name, size in layout.held.items())


@cache
def _moment_bytes(config: Optimizer) -> dict[str, int]:
    """Bytes of a weight's moments, by name in the first layer: of the smallest prior, which the training's optimiser updates."""
    prior = Prior(PriorModel(2, 2, 2, 2, width=2, depth=1, heads=1))
    optimizer = optimizers.build(prior, config)
    for p in prior.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    found = {}
    for name, p in prior.named_parameters():
        moments = {kind: value for kind, value in optimizer.state[p].items() if kind != "step"}
        found[name] = sum(value.element_size() for value in moments.values())
    return found


def _buckets(layout: Layout) -> int:
    """DeepSpeed's for reducing gradients, of a resblock each: one for every format of communication. Below stage 3 they are fp32."""
    elements = bucket_elements(layout)
    formats = set(layout.sizes.wire_bytes(layout.run).values())
    bytes_a_weight = sum(formats) if layout.run.zero_stage == 3 else 4 * len(formats)
    return bytes_a_weight * elements
