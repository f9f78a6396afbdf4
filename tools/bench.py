"""Benchmarks: ours beside the peers and the machine's own limit, all in one run.

    python tools/bench.py NAME [--json] …        # its options: python tools/bench.py NAME --help

Each side is a process of its own (of `link` several), with the settings that it would have by itself. They take turns, a
step or a few each, and medians are compared, so that a machine that slows down slows all of them. The last line is JSON:
{"name", "unit", "ours", "peers", "ratio", "limit", "fraction_of_limit", "spread", "peak_memory_bytes",
"peers_peak_memory_bytes", "settings"}, or a list of these under "cases". `compress` adds "rates", `link` "loss" and
figures by rank, `sample` and `rerank` what their own help says, `measures` memory by images, `ready` seconds; of memory the
first two say what they can.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that it runs without an installation

from benchmarks import compress, dvae, link, measures, plan, prior, ready, rerank, sample, stackgan, synced

BENCHMARKS = {
    "dvae": dvae,
    "prior": prior,
    "compress": compress,
    "link": link,
    "sample": sample,
    "rerank": rerank,
    "measures": measures,
    "plan": plan,
    "ready": ready,
    "stackgan": stackgan,
    "synced": synced,
}
_STEPS = ("dvae", "prior", "stackgan")
"""Of one process, timed in turns with peers'; the others have options of their own."""


def main() -> None:
    """Parse, run, print."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    names = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, module in BENCHMARKS.items():
        summary = (module.__doc__ or "").partition("\n\n")[0]
        own = names.add_parser(name, help=summary, description=module.__doc__, formatter_class=form)
        own.add_argument("--json", action="store_true", help="print the last line alone")
        if name in _STEPS:
            _add_shared_options(own)
        module.add_options(own)
    options = parser.parse_args()
    torch.manual_seed(0)
    cases = BENCHMARKS[options.name].run(options)
    for result in cases if not options.json else []:
        reached = f"{_rounded(result['ours'])} {result['unit']}, {result['fraction_of_limit']:.0%} of the limit"
        print(f"{result['name']}: {reached}")
        for peer, ratio in result["ratio"].items():
            print(f"  {ratio:.2f} × {peer} ({_rounded(result['peers'][peer])})")
    print(json.dumps({"cases": cases} if len(cases) > 1 else cases[0]))


def _add_shared_options(parser: argparse.ArgumentParser) -> None:
    """Those of every benchmark of steps; each may set another default."""
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--repeats", type=int, default=5, help="calls of each side that are counted")
    parser.add_argument("--compile", action=switch, default=False, help="ours; what a peer does is its own")
    parser.add_argument("--recompute", action="store_true", help="our activations, in the backward pass")
    parser.add_argument("--same_allocator", action="store_true", help="give the peers our allocator settings")


def _rounded(value: float) -> str:
    """Three digits, without an exponent where a reader needs none."""
    return f"{float(f'{value:.3g}'):g}"


if __name__ == "__main__":
    main()
