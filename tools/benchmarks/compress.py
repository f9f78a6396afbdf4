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
from typing import Any

import torch

from dalle.config import plain_yaml

RANKS = {"2b8": 512, "5b6": 640, "12b": 896}
_GPUS = 8
_FORMATS = ("fp32", "bf16", "1-6-9")
_CONFIGS = Path(__file__).parents[2] / "configs" / "paper"


def add_options(parser: argparse.ArgumentParser) -> None:
    """None: the sizes are the paper's."""


def run(options: argparse.Namespace) -> list[dict]:
    """One case with all sizes; `ours`, in the paper's format, and its peers are of the largest, with the rest."""
    counts = {name: elements(name, rank) for name, rank in RANKS.items()}
    sizes = {name: _megabytes(**of_size) for name, of_size in counts.items()}
    if not options.json:
        _print_table(sizes)
    largest = sizes["12b"]
    ours = largest["compressed"]["1-6-9"] + largest["rest"]
    limit = largest["table"] + largest["rest"]
    matrices = {"uncompressed": largest["matrices"]["fp32"], "uncompressed_bf16": largest["matrices"]["bf16"]}
    peers = {name: megabytes + largest["rest"] for name, megabytes in matrices.items()}
    return [
        {
            "name": "compress",
            "unit": "MB/update/GPU",
            "ours": ours,
            "peers": peers,
            "ratio": {name: ours / peer for name, peer in peers.items()},
            "limit": limit,
            "fraction_of_limit": ours / limit,
            "rates": {name: 1 - of_size["averaged"] / of_size["matrices"] for name, of_size in counts.items()},
            "sizes": sizes,
            "settings": {"gpus_per_machine": _GPUS, "ranks": RANKS, "device": "meta"},
        }
    ]


class _Counted:
    """In place of `Exchange`: one machine, of which nothing is sent but counted."""

    size, number = 1, 0

    def __init__(self):
        self.elements = 0

    def mean(self, values_N: torch.Tensor):
        self.elements += values_N.numel()
        return values_N
        yield

    def owned(self, values_N: torch.Tensor, sizes: list[int], compute, more: int = 0):
        self.elements += values_N.numel()
        return [values_N.new_empty(sizes[0] + more)]
        yield


def elements(name: str, rank: int) -> dict[str, int]:
    """Of one GPU and one update: elements of its shards of the matrices' gradients, of what the compressor has averaged in
    their place, of what is never compressed, and of P and Q by the table of appendix E."""
    from dalle.config import Compression, PriorModel
    from dalle.gradients.exchange import finished
    from dalle.gradients.powersgd import PowerSGD
    from dalle.models.prior import Prior

    config = PriorModel(**plain_yaml.read_mapping(_CONFIGS / f"{name}.yaml")["model"])
    meta = torch.device("meta")
    with meta:
        prior = Prior(config)
    parameters, parts = dict(prior.named_parameters()), prior.matrices()
    shapes = {name: (parameters[name].shape[0] // _GPUS, parameters[name].shape[1], parts[name]) for name in parts}
    wire: Any = _Counted()
    # as many elements in every format, and on the meta device this one is quick
    compressor = PowerSGD(shapes, Compression(rank, "fp32"), _GPUS, 0, wire, meta)
    for group in range(len(compressor.groups)):
        finished(compressor.factorise(group))
    width = config.width
    return {
        "matrices": sum(rows * columns for rows, columns, _ in shapes.values()),
        "averaged": wire.elements,
        "rest": sum(math.ceil(p.numel() / _GPUS) for name, p in parameters.items() if name not in shapes),
        "table": config.depth * 6 * width * (rank // _GPUS) * (_GPUS + 2) // _GPUS,
    }


def _megabytes(matrices: int, averaged: int, rest: int, table: int) -> dict:
    """Of the matrices' gradients and of what is sent in their place, by format; of the rest, which is fp32; and of P and Q
    by the table, in the paper's 16 bits."""
    from dalle.gradients.exchange import encode

    size_mb = {name: encode(torch.zeros(1), name).element_size() / 1e6 for name in _FORMATS}
    return {
        "matrices": {name: matrices * size_mb[name] for name in ("fp32", "bf16")},
        "compressed": {name: averaged * size_mb[name] for name in _FORMATS},
        "rest": rest * size_mb["fp32"],
        "table": table * size_mb["1-6-9"],
    }


def _print_table(sizes: dict[str, dict]) -> None:
    parts = {"matrices": ("fp32", "bf16"), "compressed": _FORMATS}
    names = [f"{part}, {format}" for part, formats in parts.items() for format in formats]
    print(f"| MB a GPU and update | {' | '.join(names)} | never compressed, fp32 |")
    print("|" + " --- |" * (len(names) + 2))
    for name, of_size in sizes.items():
        megabytes = [of_size[part][format] for part, formats in parts.items() for format in formats]
        cells = " | ".join(f"{value:,.1f}" for value in (*megabytes, of_size["rest"]))
        print(f"| {name}, rank {RANKS[name]} | {cells} |")
