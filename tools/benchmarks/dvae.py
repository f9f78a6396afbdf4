"""Training, encoding and decoding of the published dVAE, against straightforward code of the same architecture."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import peers_dvae
from benchmarks.sides import DEVICE, Side, best_rate, case, convolution, peak_memory_bytes, running, seconds

CALLS = ("train", "encode", "decode")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that this benchmark alone has."""
    # the three sides hold their memory at the same time: 16 leaves room on 80 GB
    parser.add_argument("--batch_size", type=int, default=16 if DEVICE == "cuda" else 1)
    parser.add_argument("--image_size_px", type=int, default=256)


def run(options: argparse.Namespace) -> list[dict]:
    """A case for each call."""
    from dalle.config import DVAEModel
    from dalle.models.flops import dvae_flops

    config = DVAEModel(image_size_px=options.image_size_px)
    batch = options.batch_size
    builds = {
        "ours": partial(_ours, config, batch, options.compile, options.recompute),
        "eager_16bit": partial(_eager, config, batch, torch.bfloat16),
        "eager_fp32": partial(_eager, config, batch, torch.float32),
    }
    keep = options.same_allocator
    sides = {name: partial(Side, name, build, name == "ours" or keep) for name, build in builds.items()}
    peaks = {what: {"ours": peak_memory_bytes(sides["ours"], what)} for what in CALLS}
    # in training alone, which decides what fits: each takes a process and two calls
    peaks["train"] |= {name: peak_memory_bytes(side, "train") for name, side in sides.items() if name != "ours"}
    flops = dvae_flops(config)
    rate = best_rate(*convolution(torch.bfloat16))
    taken = ("image_size_px", "repeats", "recompute", "compile", "same_allocator")
    settings = {name: getattr(options, name) for name in taken}
    cases = []
    with running(sides) as built:
        for what in CALLS:
            taken_s = seconds({name: partial(side.call, what) for name, side in built.items()}, options.repeats)
            rate = max(rate, best_rate(*convolution(torch.bfloat16)))
            rates = {name: [batch / value for value in values] for name, values in taken_s.items()}
            now = {"batch_size": batch, "flops_per_image": flops[what], "limit_flops_per_s": rate}
            cases.append(case(f"dvae {what}", "images/s", rates, rate / flops[what], peaks[what], {**settings, **now}))
    return cases


def _inputs(config, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (batch, 3, config.image_size_px, config.image_size_px), device=DEVICE).byte()
    return images, torch.randint(0, config.codebook_size, (batch, config.grid, config.grid), device=DEVICE)


def _ours(config, batch: int, compile: bool, recompute: bool) -> dict[str, Callable]:
    """The bare step: no loader, no EMA, no DeepSpeed around it. Channels last, 16-bit products and AdamW as the engine sets
    them."""
    from dalle.config import Optimizer, Schedule
    from dalle.models.dvae import DVAE
    from dalle.models.wrapping import recompute_blocks
    from dalle.objectives.dvae import DVAEObjective, uniform_noise
    from dalle.optim import optimizer as optimizers

    dvae = DVAE(config).to(DEVICE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
    images, codes = _inputs(config, batch)
    images = images.to(memory_format=torch.channels_last)
    objective = DVAEObjective(dvae)
    optimizer = optimizers.build(objective, Optimizer(Schedule(1e-4, 1e-4)))
    if recompute:
        recompute_blocks(dvae)
    if compile:
        objective.compile()
    one = torch.ones((), device=DEVICE)

    def train() -> None:
        batch = {"images_BCYX": images, "temperature": one, "kl_weight": one, "noise_scale": one}
        batch["uniform_BYXK"] = uniform_noise(dvae.config, range(len(images)), images.device)
        with torch.autocast(DEVICE, torch.bfloat16):
            loss, _ = objective(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def inference(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
                call()

        return run

    return {
        "train": train,
        "encode": inference(lambda: dvae.encode(images)),
        "decode": inference(lambda: dvae.decode(codes)),
    }


def _eager(config, batch: int, dtype: torch.dtype) -> dict[str, Callable]:
    return peers_dvae.calls(config, *_inputs(config, batch), dtype)
