"""Updates per second of a prior, planned and trained: what `--dry-run` tells of this machine, beside real updates by the same settings.

The plan times a layer of each kind and the heads, the training whole updates; they take turns. "ours" is the plan's. The limit is the
model's operations at the rate of large matrix products.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.sides import DEVICE, case
from dalle.cli.allocator import keep_freed_memory
from dalle.reporting.machine_limit import matrix_flops_per_s, peak_memory_bytes

_CONFIGS = ["demo/prior", "shapes/prior", "emoji/prior", "icons/prior"]
_NAMED = ("data", "dvae", "tokenizer", "output")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is planned and trained."""
    parser.add_argument("--configs", nargs="+", default=_CONFIGS, help="of dalle-train-prior")
    parser.add_argument("--seconds", type=float, default=10.0, help="of real updates in each round, three at the least")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--more", default="", help="further settings of the training, as on its own command line")


def run(options: argparse.Namespace) -> list[dict]:
    """A case for each configuration."""
    from dalle.cli import arguments
    from dalle.cluster.topology import joined
    from dalle.config import TrainPrior
    from dalle.models.flops import prior_flops
    from dalle.own.measure import update_s
    from dalle.planning.layout import Layout, Sizes
    from dalle.planning.plan import Planned
    from dalle.planning.reached import this_machine

    keep_freed_memory()
    device, cases = torch.device(DEVICE), []
    for name in options.configs:
        words = ["--config", name, *(f"--{each}=none" for each in _NAMED), *options.more.split()]
        config = arguments.parse(TrainPrior, "dalle-train-prior", words)
        layout = Layout(Sizes(config.model), config.run, config.optimizer, 1, 1)
        rates: dict[str, list[float]] = {"ours": [], "trained": []}
        for _ in range(options.repeats):
            rates["ours"].append(1 / Planned(layout, this_machine(layout, device, 1e12)).update.seconds)
            with joined() as world:
                rates["trained"].append(1 / update_s("prior", config, world, options.seconds))
        flops = prior_flops(config.model) * config.run.batch_size
        limit = matrix_flops_per_s(device, config.run.precision) / flops
        settings = {"config": name, "more": options.more, "seconds": options.seconds, "repeats": options.repeats}
        cases.append(case(f"plan {name}", "updates/s", rates, limit, {"ours": peak_memory_bytes(device)}, settings))
    return cases
