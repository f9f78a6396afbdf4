"""Benchmarks: ours beside the peers and the machine's own limit, all in one run.

    python tools/bench.py NAME [--json] [--batch_size N] …

The sides take turns, a step each, and medians are compared, so that a machine that slows down slows all of them. The
last line is JSON: {"name", "unit", "ours", "peers", "ratio", "limit", "fraction_of_limit", "peak_memory_bytes",
"settings"}, or a list of these under "cases".
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that it runs without an installation

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds(sides: dict[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> dict[str, float]:
    """The median time of a call of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(warmup + repeats):
        for name, call in sides.items():
            _wait()
            began_s = time.perf_counter()
            call()
            _wait()
            if round_ >= warmup:
                times[name].append(time.perf_counter() - began_s)
    return {name: statistics.median(values) for name, values in times.items()}


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak_memory_bytes(build: Callable[[], Callable[[], Any]]) -> int:
    """What a call of what `build` makes needs at most: of the GPU, or of a process of its own on a CPU.

    Args:
        build: a function that another process can import
    """
    if DEVICE == "cuda":
        call = build()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_this_process, (build,))


def _peak_of_this_process(build: Callable[[], Callable[[], Any]]) -> int:
    build()()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def case(name: str, unit: str, ours: float, peers: dict[str, float], limit: float, settings: dict) -> dict:
    """One result, in the form that every benchmark has."""
    return {
        "name": name,
        "unit": unit,
        "ours": ours,
        "peers": peers,
        "ratio": {peer: ours / value for peer, value in peers.items()},
        "limit": limit,
        "fraction_of_limit": ours / limit,
        "settings": {"device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu", **settings},
    }


# ---- the machine's limit


def convolution(dtype: torch.dtype) -> tuple[Callable[[], Any], float]:
    """The dVAE's heaviest kind of convolution, 3×3 on 512 channels, and its floating-point operations."""
    batch, side, width = (32, 128, 512) if DEVICE == "cuda" else (1, 64, 512)
    x = torch.randn(batch, width, side, side, device=DEVICE, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randn(width, width, 3, 3, device=DEVICE, dtype=dtype).to(memory_format=torch.channels_last)
    return lambda: F.conv2d(x, w, padding=1), 2 * batch * side**2 * width**2 * 9


# ---- stage one

_DVAE_CALLS = ("train", "encode", "decode")


def bench_dvae(options: argparse.Namespace) -> list[dict]:
    """Training, encoding and decoding of the published dVAE, against straightforward code of the same architecture."""
    from dalle.config import DVAEModel
    from dalle.models.dvae import DVAE

    config = DVAEModel(image_size_px=options.image_size_px)
    batch = options.batch_size or (32 if DEVICE == "cuda" else 1)
    peak = {what: peak_memory_bytes(partial(_our_call, config, batch, options.compile, what)) for what in _DVAE_CALLS}
    images, codes = _dvae_inputs(config, batch)
    dvae = DVAE(config)
    # of one token's pixels, times the tokens: convolutions cost the same everywhere
    pixels = torch.zeros(1, 3, config.downsampling, config.downsampling)
    encode_flops = _flops(dvae.encoder, pixels) * config.grid**2
    decode_flops = _flops(dvae.decoder, torch.zeros(1, config.codebook_size, 1, 1)) * config.grid**2
    flops = {"train": 3 * (encode_flops + decode_flops), "encode": encode_flops, "decode": decode_flops}
    built = {
        "ours": _ours(dvae, images, codes, options.compile),
        "eager_16bit": _eager(DVAE(config), images, codes, torch.bfloat16),
        "eager_fp32": _eager(DVAE(config), images, codes, torch.float32),
    }
    call, work = convolution(torch.bfloat16)
    cases = []
    for what in _DVAE_CALLS:
        timed = seconds({name: calls[what] for name, calls in built.items()} | {"limit": call}, options.repeats)
        rate = work / timed.pop("limit")
        per_s = {name: batch / value for name, value in timed.items()}
        result = case(
            f"dvae {what}",
            "images/s",
            per_s.pop("ours"),
            per_s,
            rate / flops[what],
            {"image_size_px": config.image_size_px, "batch_size": batch, "flops_per_image": flops[what]},
        )
        cases.append({**result, "peak_memory_bytes": peak[what]})
    return cases


def _flops(module: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops()


def _dvae_inputs(config, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (batch, 3, config.image_size_px, config.image_size_px), device=DEVICE).byte()
    return images, torch.randint(0, config.codebook_size, (batch, config.grid, config.grid), device=DEVICE)


def _our_call(config, batch: int, compile: bool, what: str) -> Callable[[], Any]:
    from dalle.models.dvae import DVAE

    return _ours(DVAE(config), *_dvae_inputs(config, batch), compile)[what]


def _ours(dvae: nn.Module, images, codes, compile: bool) -> dict[str, Callable]:
    """As the engine trains it: channels last, 16-bit products, fused AdamW."""
    from dalle.objectives.dvae import DVAEObjective

    dvae = dvae.to(DEVICE).to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    objective = DVAEObjective(dvae)
    if compile:
        objective.compile()
    optimizer = torch.optim.AdamW(dvae.parameters(), lr=1e-4, fused=True)
    one = torch.ones((), device=DEVICE)

    def train() -> None:
        batch = {"images_BCYX": images, "temperature": one, "kl_weight": one, "noise_scale": one}
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


def _eager(dvae: nn.Module, images, codes, dtype: torch.dtype) -> dict[str, Callable]:
    """Straightforward code: the module as it is, PyTorch's gumbel-softmax and AdamW, autocast for 16 bits."""
    dvae = dvae.to(DEVICE)
    optimizer = torch.optim.AdamW(dvae.parameters(), lr=1e-4)

    def train() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
            x = 0.8 * images.float() / 255 + 0.1
            logits = dvae.encoder(x)
            z = F.gumbel_softmax(logits.float(), tau=1.0, dim=1)
            mu, ln_b = dvae.decoder(z).float().chunk(2, dim=1)
            deviation = (torch.logit(x) - mu).abs() / ln_b.exp()
            reconstruction = (deviation + ln_b + torch.log(2 * x * (1 - x))).mean()
            q = logits.float().softmax(dim=1)
            kl = (q * (q.clamp_min(1e-10).log() + torch.log(torch.tensor(float(q.shape[1]))))).sum(dim=(1, 2, 3)).mean()
            loss = reconstruction + kl / x[0].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def encode() -> None:
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
            dvae.encoder(0.8 * images.float() / 255 + 0.1).argmax(dim=1)

    def decode() -> None:
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
            one_hot = F.one_hot(codes, dvae.config.codebook_size).permute(0, 3, 1, 2).float()
            ((torch.sigmoid(dvae.decoder(one_hot)[:, :3].float()) - 0.1) / 0.8).clamp(0, 1)

    return {"train": train, "encode": encode, "decode": decode}


BENCHMARKS = {"dvae": bench_dvae}


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--json", action="store_true", help="print the last line alone")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--image_size_px", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    cases = BENCHMARKS[options.name](options)
    for result in cases if not options.json else []:
        print(
            f"{result['name']}: {result['ours']:.3g} {result['unit']}, {result['fraction_of_limit']:.0%} of the limit"
        )
        for peer, ratio in result["ratio"].items():
            print(f"  {ratio:.2f} × {peer} ({result['peers'][peer]:.3g})")
    print(json.dumps({"cases": cases} if len(cases) > 1 else cases[0]))


if __name__ == "__main__":
    main()
