"""Drawing N candidates of one full caption, in image tokens/s over all of them, against samplers of the same size.

Peers: a bare dense sampler with a static key-value cache (`dense_cache`), `generate` of transformers' GPT-2
(`transformers`) and DALLE-pytorch's `generate_images`, at most eight rows at a time (`dalle_pytorch`); the last two where
they are installed. The first two run in fp32 and in bf16 and the better one is compared; DALLE-pytorch runs in bf16. Ours
draws whole images; the peers make slices of steps at three places of one, from which their whole image is computed
(`peers_sample.py`). Both count reading the caption. Where a peer's caches do not fit into memory it is left out.

The limit is the larger of two times: the operations at the measured matrix-product rate, and the bytes at the measured
copy bandwidth (`work`). A case has besides: `images_per_s`; `first_token_s`, from the call to the first code of all
candidates of a chunk; `row_step_s`, the median step in each row of the image, and `growth`, the last of them over the
second; `cache_bytes` of a chunk, and `cache_fraction_of_dense` of as many candidates; and at the N nearest to 64 `rerank`,
what decoding and scoring take.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks import peers_sample, sides_sample
from benchmarks.sides import DEVICE, Side, case, running, seconds
from benchmarks.sides_sample import read_notes, work

_PROCESS_BYTES = 7 * 10**8
"""A side's libraries and weights."""
_RERANK_N = 64
_RERANK_REPEATS = 2
_SIZES = ("text_slots", "grid", "text_vocabulary", "codebook_size", "width", "depth", "heads")
_TINY = {"text_slots": 8, "grid": 4, "text_vocabulary": 50, "codebook_size": 40, "width": 32, "depth": 3, "heads": 2}
_QUICK = {**_TINY, "n": [2, 4], "repeats": 1, "peer_steps": 2, "rerank_batch": 2}
_MOST_TOGETHER = 512
_CHUNK = f"candidates that ours draws together; by default all, at most {_MOST_TOGETHER}, or on CUDA what it chooses"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--n", type=int, nargs="+", default=[8, 64, 512], help="candidates; a case for each")
    for name, default in zip(_SIZES, (256, 32, 16384, 8192, 512, 8, 8), strict=True):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--chunk", type=int, help=_CHUNK)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"), help="of ours and of the limit")
    parser.add_argument("--compile", action=switch, default=True, help="our step")
    parser.add_argument("--repeats", type=int, default=3, help="images of ours, and slices of each peer at each place")
    parser.add_argument("--peers", action=switch, default=True, help="compare with others")
    parser.add_argument("--peer_steps", type=int, default=8, help="of a slice; one of dalle_pytorch")
    parser.add_argument("--same_allocator", action="store_true", help="give the peers our allocator settings")
    parser.add_argument("--rerank", action=switch, default=True, help="time decoding and scoring too")
    parser.add_argument("--rerank_batch", type=int, default=8, help="images that are decoded and scored for it")
    parser.add_argument("--quick", action="store_true", help="see that it works: a tiny model")


def run(options: argparse.Namespace) -> list[dict]:
    """A case for each N."""
    from dalle.config import PriorModel

    if options.quick:
        vars(options).update(_QUICK)
    config = PriorModel(**{name: getattr(options, name) for name in _SIZES})
    reranked = min(options.n, key=lambda n: abs(n - _RERANK_N)) if options.rerank else None
    cases = []
    for n in options.n:
        result = _case(config, n, options)
        if n == reranked:
            result["rerank"] = _rerank(config, n, n / result["images_per_s"], options)
        cases.append(result)
        for name, why in result["settings"]["left_out"].items():
            print(f"{name} is left out at N = {n}: {why}", file=sys.stderr)
        if not options.json:
            _print(result)
    return cases


def _print(result: dict) -> None:
    """What a case has beside its rate."""
    print(
        f"{result['name']}: {result['images_per_s']:.3g} images/s, first token {result['first_token_s']:.3g} s, growth "
        f"{result['growth']:.3f}, peak {result['peak_memory_bytes'] / 1e9:.2f} GB, caches {result['cache_bytes'] / 1e9:.3g} GB "
        f"({result['cache_fraction_of_dense']:.0%} of dense)"
    )
    if "rerank" in result:
        rerank = result["rerank"]
        print(f"  decoding {rerank['decode_s']:.3g} s, scoring {rerank['score_s']:.3g} s: {rerank['share']:.0%} of all")


# ---- a case


def _case(config, n: int, options: argparse.Namespace) -> dict:
    itemsize = 2 if options.precision == "bf16" else 4
    dense_bytes = partial(peers_sample.dense_cache_bytes, config, itemsize=itemsize)
    found, left_out = peers_sample.peers(config, n, options.peer_steps) if options.peers else ({}, {})
    # ours may take half of a dense cache
    fitting, too_large = _fitting(found, _available_bytes() - dense_bytes(n) // 2 - 2 * _PROCESS_BYTES)
    peers = {f"{name} {precision}": peer for name, both in fitting.items() for precision, peer in both.items()}
    with tempfile.TemporaryDirectory() as folder:
        taken_s, peaks, chunks, machine = _measured(config, n, options, peers, Path(folder))
    by_precision = {name: _rates(peer, name, config, taken_s) for name, peer in peers.items()}
    best = {
        name: max((f"{name} {precision}" for precision in both), key=lambda side: statistics.median(by_precision[side]))
        for name, both in fitting.items()
    }
    asked, together = work(config, n, itemsize), chunks[0]
    reached = {name: max(record[name] for record in machine) for name in ("flops_per_s", "bytes_per_s")}
    limit_s = {"products": asked["flops"] / reached["flops_per_s"], "bytes": asked["bytes"] / reached["bytes_per_s"]}
    tokens = n * config.image_slots
    result = case(
        f"sample N={n}",
        "tokens/s",
        {"ours": [tokens / s for s in taken_s["ours"]], **{name: by_precision[side] for name, side in best.items()}},
        tokens / max(limit_s.values()),
        {"ours": peaks["ours"], **{name: peaks[side] for name, side in best.items()}},
        {
            "n": n,
            "chunk": together["chunk"],
            **{name: getattr(config, name) for name in (*_SIZES, "conv_kernel")},
            **{name: getattr(options, name) for name in ("precision", "compile", "repeats", "same_allocator")},
            **asked,
            **{f"limit_{name}": value for name, value in reached.items()},
            "limit_s": limit_s,
            "peer_precisions": {side: statistics.median(values) for side, values in by_precision.items()},
            "peer_rows": {name: peers[side].rows for name, side in best.items()},
            "peer_steps": {
                name: {"steps": peers[side].steps, **peers_sample.places(config.image_slots, peers[side].steps)}
                for name, side in best.items()
            },
            "peers_made_whole": "seconds to read the caption, and the parabola through the slices' mean steps",
            "left_out": {**left_out, **too_large},
        },
    )
    row_s = _row_step_s([chunk["step_s"] for chunk in chunks], config.grid)
    return result | {
        "images_per_s": result["ours"] / config.image_slots,
        "first_token_s": statistics.median(chunk["step_s"][0] for chunk in chunks),
        "growth": row_s[-1] / row_s[1],
        "row_step_s": row_s,
        "cache_bytes": together["cache_bytes"],
        "cache_fraction_of_dense": together["cache_bytes"] / dense_bytes(together["chunk"]),
    }


def _measured(
    config, n: int, options: argparse.Namespace, peers: dict[str, peers_sample.Peer], folder: Path
) -> tuple[dict[str, list[float]], dict[str, int], list[dict], list[dict]]:
    """All sides in turn: seconds of their calls, their peaks, and what ours and the machine noted."""
    from dalle.config import Sampling

    chunk = options.chunk or (min(n, _MOST_TOGETHER) if DEVICE == "cpu" else None)
    sampling = Sampling(chunk=chunk, precision=options.precision, compile=options.compile)
    notes, machine_notes = folder / "ours.jsonl", folder / "machine.jsonl"
    builds: dict[str, Callable] = {
        "ours": partial(sides_sample.ours, config, n, sampling, notes),
        "machine": partial(sides_sample.machine, options.precision, machine_notes),
        **{name: peer.build for name, peer in peers.items()},
    }
    keep = options.same_allocator
    sides = {name: partial(Side, name, build, name not in peers or keep) for name, build in builds.items()}
    with running(sides) as built:
        calls = {"ours": partial(built["ours"].call, "image"), "machine": partial(built["machine"].call, "rates")}
        for name in peers:
            calls[f"{name} read"] = partial(built[name].call, "read")
            for place in peers_sample.PLACES:
                calls[f"{name} {place}"] = partial(_prepared, built[name], place)
        # a whole image would take long to warm up with
        seconds({**calls, "ours": partial(built["ours"].call, "warmup")}, repeats=0)
        taken_s = seconds(calls, options.repeats, warmup=0)
        peaks = {name: side.peak_memory_bytes for name, side in built.items()}
    return taken_s, peaks, read_notes(notes), read_notes(machine_notes)


def _prepared(side: Side, place: str) -> float:
    side.call(f"prepare {place}")
    return side.call(place)


def _rates(peer: peers_sample.Peer, name: str, config, taken_s: dict[str, list[float]]) -> list[float]:
    """Tokens/s of a peer's whole images, one for each round of its slices."""
    firsts = peers_sample.places(config.image_slots, peer.steps)
    rates = []
    for round_, read_s in enumerate(taken_s[f"{name} read"]):
        slices_s = {place: taken_s[f"{name} {place}"][round_] for place in firsts}
        image_s = read_s + peers_sample.whole_s(slices_s, config.image_slots, peer.steps, peer.slots)
        rates.append(peer.rows * config.image_slots / image_s)
    return rates


def _row_step_s(step_s: list[list[float]], grid: int) -> list[float]:
    """The median step of each row of the image, over several images."""
    return [statistics.median(s for of_one in step_s for s in of_one[y * grid : (y + 1) * grid]) for y in range(grid)]


def _fitting(found: dict[str, dict], room_bytes: int) -> tuple[dict[str, dict], dict[str, str]]:
    """Those of the peers that fit beside one another; of one of which a precision does not, neither is run, for which is
    better would not be known. And why not the others."""
    fitting, too_large = {}, {}
    for name, both in found.items():
        needed_bytes = sum(peer.held_bytes + _PROCESS_BYTES for peer in both.values())
        if needed_bytes > room_bytes:
            too_large[name] = f"it needs {needed_bytes / 1e9:.1f} GB, there are {max(0, room_bytes) / 1e9:.1f}"
        else:
            fitting[name] = both
            room_bytes -= needed_bytes
    return fitting, too_large


def _available_bytes() -> int:
    """Memory that the sides can take."""
    if DEVICE == "cuda":
        return torch.cuda.mem_get_info()[0]
    told = Path("/proc/meminfo")
    if told.exists():
        lines = dict(line.split(":") for line in told.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# ---- reranking


def _rerank(config, n: int, sampling_s: float, options: argparse.Namespace) -> dict:
    """Seconds of decoding N images and scoring them, from a batch of them, and their share of all."""
    batch = min(n, options.rerank_batch)
    side = partial(
        Side, "rerank", partial(sides_sample.reranking, config, batch, options.precision, options.quick), True
    )
    with running({"rerank": side}) as built:
        calls = {what: partial(built["rerank"].call, what) for what in ("decode", "score")}
        taken_s = seconds(calls, min(options.repeats, _RERANK_REPEATS))
    whole_s = {f"{what}_s": statistics.median(values) * n / batch for what, values in taken_s.items()}
    reranking_s = sum(whole_s.values())
    return {**whole_s, "share": reranking_s / (reranking_s + sampling_s), "images_timed": batch}
