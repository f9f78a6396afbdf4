"""Megabytes that a GPU hands over for averaging between machines, per update, at the paper's three sizes (Table 1).

They are counted from the calls that the compressor makes in an update of which only the shapes are real: model, gradients
and error buffers are on PyTorch's meta device. `rates` are the paper's: the share of the elements of the matrices' gradients
that is not sent, at the paper's ranks with the 8 GPUs of its machines. Whatever is handed over a ring sends twice, less the
part that is one's own, compressed or not.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import yaml

RANKS = {"2b8": 512, "5b6": 640, "12b": 896}
_GPUS = 8
_FORMATS = ("fp32", "bf16", "1-6-9")
_CONFIGS = Path(__file__).parents[2] / "configs" / "paper"


def add_options(parser: argparse.ArgumentParser) -> None:
    """None: the sizes are the paper's."""


def run(options: argparse.Namespace) -> list[dict]:
    """One case with all sizes; `ours`, in the paper's format, and its peers are of the largest."""
    sizes = {name: _megabytes(**elements(name, rank)) for name, rank in RANKS.items()}
    if not options.json:
        _print_table(sizes)
    largest = sizes["12b"]
    ours, peers = largest["1-6-9"], {name: largest[f"uncompressed {name}"] for name in ("fp32", "bf16")}
    return [
        {
            "name": "compress",
            "unit": "MB/update/GPU",
            "ours": ours,
            "peers": peers,
            "ratio": {name: ours / peer for name, peer in peers.items()},
            "limit": largest["limit"],
            "fraction_of_limit": ours / largest["limit"],
            "rates": {name: of_size["rate"] for name, of_size in sizes.items()},
            "sizes": sizes,
            "settings": {"gpus_per_machine": _GPUS, "ranks": RANKS, "device": "meta"},
        }
    ]


def elements(name: str, rank: int) -> dict[str, int]:
    """Of one GPU and one update: elements of its shards of the matrices' gradients, of what the compressor has averaged in
    their place, of what is never compressed, and of P and Q by the table of appendix E."""
    from dalle.config import Compression, PriorModel
    from dalle.models.prior import Prior
    from dalle.training.engine import _matrices
    from dalle.training.powersgd import PowerSGD

    config = PriorModel(**yaml.safe_load((_CONFIGS / f"{name}.yaml").read_text())["model"])
    meta = torch.device("meta")
    with meta:
        prior = Prior(config)
    parameters, parts = dict(prior.named_parameters()), _matrices(prior)
    shapes = {name: (parameters[name].shape[0] // _GPUS, parameters[name].shape[1], parts[name]) for name in parts}
    averaged: list[int] = []

    def average(values_N: torch.Tensor) -> torch.Tensor:
        averaged.append(values_N.numel())
        return values_N

    # as many elements in every format, and on the meta device this one is quick
    compressor = PowerSGD(shapes, Compression(rank, "fp32"), _GPUS, average, meta)
    compressor.factorise({name: torch.empty(rows * columns, device=meta) for name, (rows, columns, _) in shapes.items()})
    width = config.width
    return {
        "matrices": sum(rows * columns for rows, columns, _ in shapes.values()),
        "averaged": sum(averaged),
        "rest": sum(math.ceil(p.numel() / _GPUS) for name, p in parameters.items() if name not in shapes),
        "table": config.depth * 6 * width * (rank // _GPUS) * (_GPUS + 2) // _GPUS,
    }


def _megabytes(matrices: int, averaged: int, rest: int, table: int) -> dict[str, float]:
    """By format, the uncompressed rest included, which is fp32; `limit` is what P and Q of 16 bits take by the table."""
    from dalle.training.exchange import encode

    size_mb = {name: encode(torch.zeros(1), name).element_size() / 1e6 for name in _FORMATS}
    rest_mb = size_mb["fp32"] * rest
    return {
        "rate": 1 - averaged / matrices,
        "rest": rest_mb,
        **{name: averaged * size_mb[name] + rest_mb for name in _FORMATS},
        **{f"uncompressed {name}": matrices * size_mb[name] + rest_mb for name in ("fp32", "bf16")},
        "limit": table * size_mb["1-6-9"] + rest_mb,
    }


def _print_table(sizes: dict[str, dict[str, float]]) -> None:
    names = [name for name in sizes["12b"] if name not in ("rate", "limit")]
    print("MB a GPU and update".ljust(24) + "".join(f"{name:>20}" for name in names))
    for size, of_size in sizes.items():
        row = f"{size}, rank {RANKS[size]}: {of_size['rate']:.1%} less"
        print(row.ljust(24) + "".join(f"{of_size[name]:>20,.1f}" for name in names))
