"""`--dry-run` of the training commands: what a training would take on this machine. Nothing is trained, and nothing written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dalle.cli.describe import described
from dalle.config import DVAEModel, TrainCLIP, TrainPrior

_STATE_BYTES = 20
"""Of a weight, at the most: itself, its gradient, two moments and its average, in fp32."""


def tell(kind: str, config: Any) -> None:
    """Print the plan of a training of a kind, by the settings of its command."""
    if os.environ.get("RANK", "0") != "0":
        return
    told = _of_prior(config) if isinstance(config, TrainPrior) else _of_others(kind, config)
    print("\n".join([*told, "dry run: nothing was trained, and nothing written"]))


def _of_prior(config: TrainPrior) -> list[str]:
    import torch

    from dalle.planning.layout import Layout, Sizes
    from dalle.planning.plan import Planned
    from dalle.planning.reached import this_machine
    from dalle.planning.told import lines
    from dalle.training import weights16

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(processes)))
    layout = Layout(Sizes(config.model), config.run, config.optimizer, max(1, processes // here), here)
    if config.run.weights == "16-bit":
        weights16.check(layout.sizes.prior, config.run, device)
    machines = this_machine(layout, device, _memory_bytes(on_gpu))
    plan = Planned(layout, machines)
    where = "" if on_gpu else "; of a GPU are the activations, a CPU's attention keeps more"
    told = (
        f"on this machine, at {machines.rates.flops / 1e12:.2f} TFLOP/s, which its layers and heads reach here{where}"
    )
    return [*lines(plan.figures()), told]


def _memory_bytes(on_gpu: bool) -> int:
    if on_gpu:
        import torch

        return torch.cuda.get_device_properties(0).total_memory
    from dalle.machine.memory import look_at_memory

    return look_at_memory().usable


def _of_others(kind: str, config: Any) -> list[str]:
    tokenizer = config.tokenizer if isinstance(config, TrainCLIP) else None
    found = described(kind, config.model, tokenizer if tokenizer and Path(tokenizer).is_file() else None)
    parameters, run = found["parameters"], config.run
    told = [
        f"{parameters:,} parameters, of which each takes {_STATE_BYTES} bytes at the most while it is trained: "
        f"{parameters * _STATE_BYTES / 1e9:.2f} GB, beside activations",
        f"{run.steps:,} updates of {run.batch_size:,} samples",
    ]
    if isinstance(config.model, DVAEModel):
        from dalle.models.flops import dvae_flops

        flops = dvae_flops(config.model)["train" if config.freeze is None else "train_decoder"] * run.batch_size
        told.append(f"{flops / 1e15:.3f} PFLOP an update, {flops * run.steps / 1e18:,.2f} EFLOP in all")
    return told
