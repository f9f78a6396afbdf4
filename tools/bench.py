"""Benchmarks: ours beside the peers and the machine's own limit, all in one run.

    python tools/bench.py NAME [--json] [--batch_size N] …

Each side is a process of its own, with the settings that it would have by itself. They take turns, a step each, and
medians are compared, so that a machine that slows down slows all of them. The last line is JSON: {"name", "unit", "ours",
"peers", "ratio", "limit", "fraction_of_limit", "peak_memory_bytes", "settings"}, or a list of these under "cases".
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

from dalle.cli.memory import keep_freed_memory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def seconds(sides: dict[str, Callable[[], float]], repeats: int, warmup: int = 1) -> dict[str, float]:
    """The median time of a call of each, in turns; each side says how long it took."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(warmup + repeats):
        for name, call in sides.items():
            took_s = call()
            if round_ >= warmup:
                times[name].append(took_s)
    return {name: statistics.median(values) for name, values in times.items()}


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
        build: makes the calls, {name: callable}; a function that another process can import
        keep_memory: with our allocator settings (`dalle.cli.memory`), in place of PyTorch's and glibc's own
    """

    def __init__(self, build: Callable[[], dict[str, Callable[[], Any]]], keep_memory: bool):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(build, keep_memory, theirs), daemon=True)
        self._process.start()

    def call(self, name: str) -> float:
        """Seconds that one call took."""
        self._pipe.send(name)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process, so that its memory is free again."""
        self._process.terminate()
        self._process.join()


def _serve(build: Callable[[], dict], keep_memory: bool, pipe) -> None:
    if keep_memory:
        keep_freed_memory()
    torch.manual_seed(0)
    calls = build()
    while True:
        pipe.send(timed(calls[pipe.recv()]))


def peak_memory_bytes(build: Callable[[], dict[str, Callable[[], Any]]], name: str) -> int:
    """What one call needs at most: of the GPU, or of a process of its own on a CPU."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_this_process, (build, name))


def _peak_of_this_process(build: Callable[[], dict], name: str) -> int:
    keep_freed_memory()
    call = build()[name]
    for _ in range(2):
        call()
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
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
    from dalle.models.dvae import DVAE

    config = DVAEModel(image_size_px=options.image_size_px)
    batch = options.batch_size or (32 if DEVICE == "cuda" else 1)
    ours = partial(_ours, config, batch, options.compile, options.recompute)
    peak = {what: peak_memory_bytes(ours, what) for what in _DVAE_CALLS}
    built = {
        "ours": Side(ours, keep_memory=True),
        "eager_16bit": Side(partial(_eager, config, batch, torch.bfloat16), options.same_allocator),
        "eager_fp32": Side(partial(_eager, config, batch, torch.float32), options.same_allocator),
    }
    # of one token's pixels, times the tokens: convolutions cost the same everywhere
    dvae, pixels = DVAE(config), torch.zeros(1, 3, config.downsampling, config.downsampling)
    encode_flops = _flops(dvae.encoder, pixels) * config.grid**2
    decode_flops = _flops(dvae.decoder, torch.zeros(1, config.codebook_size, 1, 1)) * config.grid**2
    flops = {"train": 3 * (encode_flops + decode_flops), "encode": encode_flops, "decode": decode_flops}
    rate = best_rate(*convolution(torch.bfloat16))
    cases = []
    for what in _DVAE_CALLS:
        taken_s = seconds({name: partial(side.call, what) for name, side in built.items()}, options.repeats)
        rate = max(rate, best_rate(*convolution(torch.bfloat16)))
        per_s = {name: batch / value for name, value in taken_s.items()}
        result = case(
            f"dvae {what}",
            "images/s",
            per_s.pop("ours"),
            per_s,
            rate / flops[what],
            {
                "image_size_px": config.image_size_px,
                "batch_size": batch,
                "flops_per_image": flops[what],
                "limit_flops_per_s": rate,
                "recompute": options.recompute,
                "compile": options.compile,
                "same_allocator": options.same_allocator,
            },
        )
        cases.append({**result, "peak_memory_bytes": peak[what]})
    for side in built.values():
        side.close()
    return cases


def _flops(module: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    return counter.get_total_flops()


def _dvae_inputs(config, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (batch, 3, config.image_size_px, config.image_size_px), device=DEVICE).byte()
    return images, torch.randint(0, config.codebook_size, (batch, config.grid, config.grid), device=DEVICE)


def _ours(config, batch: int, compile: bool, recompute: bool) -> dict[str, Callable]:
    """As the engine trains it: channels last, 16-bit products, fused AdamW."""
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


class _Block(nn.Module):
    """Appendix A.1, word for word."""

    def __init__(self, n_in: int, n_out: int, kernels: tuple[int, ...], post_gain: float):
        super().__init__()
        widths = (n_in, *[n_out // 4] * 3, n_out)
        layers = []
        for i, kernel in enumerate(kernels):
            layers += [nn.ReLU(), nn.Conv2d(widths[i], widths[i + 1], kernel, padding=kernel // 2)]
        self.res_path = nn.Sequential(*layers)
        self.id_path = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.post_gain = post_gain

    def forward(self, x):
        return self.id_path(x) + self.post_gain * self.res_path(x)


class _Straightforward(nn.Module):
    """Encoder and decoder of appendix A.1, word for word."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        widths = [config.encoder_width * m for m in config.width_multipliers]
        post_gain = 1 / (len(widths) * config.blocks_per_group) ** 2

        def groups(n_in: int, order: list[int], kernels: tuple[int, ...], resample: nn.Module) -> list[nn.Module]:
            layers: list[nn.Module] = []
            for i, width in enumerate(order):
                layers += [resample] if i else []
                for _ in range(config.blocks_per_group):
                    layers.append(_Block(n_in, width, kernels, post_gain))
                    n_in = width
            return layers

        # the first convolution, the groups, the last; codes are met in fp32 at both ends
        self.features = nn.Sequential(
            nn.Conv2d(3, widths[0], 7, padding=3), *groups(widths[0], widths, (3, 3, 3, 1), nn.MaxPool2d(2)), nn.ReLU()
        )
        self.to_logits = nn.Conv2d(widths[-1], config.codebook_size, 1)
        self.from_codes = nn.Conv2d(config.codebook_size, config.decoder_input_width, 1)
        drawn = groups(config.decoder_input_width, widths[::-1], (1, 3, 3, 3), nn.Upsample(scale_factor=2))
        self.drawing = nn.Sequential(*drawn, nn.ReLU(), nn.Conv2d(widths[0], 6, 1))

    def encoder(self, x):
        features = self.features(x).float()
        with torch.autocast(DEVICE, enabled=False):
            return self.to_logits(features)

    def decoder(self, z):
        with torch.autocast(DEVICE, enabled=False):
            codes = self.from_codes(z)
        return self.drawing(codes)


def _eager(config, batch: int, dtype: torch.dtype) -> dict[str, Callable]:
    """Straightforward code, as one writes it from appendix A: upsampling where it stands, PyTorch's gumbel-softmax and AdamW,
    autocast for 16 bits."""
    dvae = _Straightforward(config).to(DEVICE)
    images, codes = _dvae_inputs(config, batch)
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
    parser.add_argument("--recompute", action="store_true", help="resblocks, in the backward pass")
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
