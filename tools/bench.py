"""Benchmarks: ours beside the peers and the machine's own limit, all in one run.

    python tools/bench.py NAME [--json] [--batch_size N] …

Each side is a process of its own, with the settings that it would have by itself. They take turns, a step each, and
medians are compared, so that a machine that slows down slows all of them. The last line is JSON: {"name", "unit", "ours",
"peers", "ratio", "limit", "fraction_of_limit", "spread", "peak_memory_bytes", "peers_peak_memory_bytes", "settings"}, or
a list of these under "cases".
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

import peers_dvae

from dalle.cli.memory import keep_freed_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds(sides: dict[str, Callable[[], float]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """The times of the calls of each, made in turns; each side says how long it took. The first `warmup` are left out."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(warmup + repeats):
        for name, call in sides.items():
            took_s = call()
            if round_ >= warmup:
                times[name].append(took_s)
    return times


def timed(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    _wait()
    began_s = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - began_s


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


class Side:
    """Calls by name, made and timed in a process of their own.

    Args:
        name: what an error calls it
        build: makes the calls, {name: callable}; a function that another process can import
        keep_memory: with our allocator settings (`dalle.cli.memory`), in place of PyTorch's and glibc's own
    """

    def __init__(self, name: str, build: Callable[[], dict[str, Callable[[], Any]]], keep_memory: bool):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(build, keep_memory, theirs), daemon=True)
        self._process.start()
        theirs.close()  # theirs alone now, so that it ends with them and `recv` does not wait for ever

    def call(self, what: str) -> float:
        """Seconds that one call took. Raises RuntimeError when the process has died."""
        return self._call(what)[0]

    def peak_memory_bytes(self, what: str) -> int:
        """The most that the process, or on CUDA its part of the GPU, has held after two calls: the second has the
        optimizer's state beside it. Raises RuntimeError when the process has died."""
        return max(self._call(what)[1] for _ in range(2))

    def _call(self, what: str) -> tuple[float, int]:
        try:
            self._pipe.send(what)
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(
                f"{self.name} died in {what!r} with exit code {code} (-9: often out of memory)"
            ) from None

    def close(self) -> None:
        """End the process, so that its memory is free again."""
        self._process.terminate()
        self._process.join()
        self._pipe.close()


def _serve(build: Callable[[], dict], keep_memory: bool, pipe) -> None:
    if keep_memory:
        keep_freed_memory()
    torch.manual_seed(0)
    calls = build()
    while True:
        pipe.send((timed(calls[pipe.recv()]), _peak_bytes()))


def _peak_bytes() -> int:
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_memory_bytes(side: Callable[[], Side], what: str) -> int:
    """`Side.peak_memory_bytes` of a process that does nothing else.

    Ask before this process holds much itself: to Linux, its resident memory is a new process's first peak (`ru_maxrss`).
    """
    alone = side()
    try:
        return alone.peak_memory_bytes(what)
    finally:
        alone.close()


def case(name: str, unit: str, rates: dict[str, list[float]], limit: float, settings: dict) -> dict:
    """One result, in the form that every benchmark has.

    Args:
        rates: by side, of which one is "ours", what each call reached; more is faster
        limit: the rate that the machine allows
    """
    peers = {side: statistics.median(values) for side, values in rates.items()}
    ours = peers.pop("ours")
    return {
        "name": name,
        "unit": unit,
        "ours": ours,
        "peers": peers,
        "ratio": {peer: ours / value for peer, value in peers.items()},
        "limit": limit,
        "fraction_of_limit": ours / limit,
        "spread": {side: [max(values), min(values)] for side, values in rates.items()},
        "settings": {"device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu", **settings},
    }


# ---- the machine's limit


def best_rate(call: Callable[[], Any], work: float) -> float:
    """The most work per second that a call reached: what limits is the machine, not its hiccups."""
    keep_freed_memory()
    call()
    return work / min(timed(call) for _ in range(20))


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

    config = DVAEModel(image_size_px=options.image_size_px)
    # the three sides hold their memory at the same time: 16 leaves room on 80 GB
    batch = options.batch_size or (16 if DEVICE == "cuda" else 1)
    builds = {
        "ours": partial(_ours, config, batch, options.compile, options.recompute),
        "eager_16bit": partial(_eager, config, batch, torch.bfloat16),
        "eager_fp32": partial(_eager, config, batch, torch.float32),
    }
    keep = options.same_allocator
    sides = {name: partial(Side, name, build, name == "ours" or keep) for name, build in builds.items()}
    peak = {what: peak_memory_bytes(sides["ours"], what) for what in _DVAE_CALLS}
    # in training alone, which decides what fits: each takes a process and two calls
    peers_peak = {name: peak_memory_bytes(side, "train") for name, side in sides.items() if name != "ours"}
    flops = _dvae_flops(config)
    rate = best_rate(*convolution(torch.bfloat16))
    built = {name: side() for name, side in sides.items()}
    taken = ("image_size_px", "repeats", "recompute", "compile", "same_allocator")
    settings = {name: getattr(options, name) for name in taken}
    cases = []
    for what in _DVAE_CALLS:
        taken_s = seconds({name: partial(side.call, what) for name, side in built.items()}, options.repeats)
        rate = max(rate, best_rate(*convolution(torch.bfloat16)))
        result = case(
            f"dvae {what}",
            "images/s",
            {name: [batch / value for value in values] for name, values in taken_s.items()},
            rate / flops[what],
            {**settings, "batch_size": batch, "flops_per_image": flops[what], "limit_flops_per_s": rate},
        )
        peers_now = peers_peak if what == "train" else {}
        cases.append({**result, "peak_memory_bytes": peak[what], "peers_peak_memory_bytes": peers_now})
    for side in built.values():
        side.close()
    return cases


def _dvae_flops(config) -> dict[str, int]:
    """Floating-point operations of an image, by call."""
    from dalle.models.dvae import DVAE

    # of one token's pixels, times the tokens: convolutions cost the same everywhere
    dvae, pixels = DVAE(config), torch.zeros(1, 3, config.downsampling, config.downsampling)
    encode = _flops(dvae.encoder, pixels) * config.grid**2
    draw = _flops(dvae.decoder, torch.zeros(1, config.codebook_size, 1, 1)) * config.grid**2
    # hard codes look up what relaxed ones need a product for
    lookup = 2 * config.codebook_size * config.decoder_input_width * config.grid**2
    return {"train": 3 * (encode + draw), "encode": encode, "decode": draw - lookup}


def _flops(module: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops()


def _dvae_inputs(config, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (batch, 3, config.image_size_px, config.image_size_px), device=DEVICE).byte()
    return images, torch.randint(0, config.codebook_size, (batch, config.grid, config.grid), device=DEVICE)


def _ours(config, batch: int, compile: bool, recompute: bool) -> dict[str, Callable]:
    """The bare step: no loader, no EMA, no DeepSpeed around it. Channels last, 16-bit products and AdamW as the engine sets
    them."""
    from dalle.config import Optimizer, Schedule
    from dalle.models.dvae import DVAE
    from dalle.objectives.dvae import DVAEObjective, uniform_noise
    from dalle.training import optimizer as optimizers
    from dalle.training.engine import recompute_blocks

    dvae = DVAE(config).to(DEVICE).to(memory_format=torch.channels_last)
    images, codes = _dvae_inputs(config, batch)
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
    return peers_dvae.calls(config, *_dvae_inputs(config, batch), dtype)


BENCHMARKS = {"dvae": bench_dvae}


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--json", action="store_true", help="print the last line alone")
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--image_size_px", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recompute", action="store_true", help="activations, in the backward pass")
    parser.add_argument("--same_allocator", action="store_true", help="give the peers our allocator settings")
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
