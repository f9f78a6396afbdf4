"""Where fp16 training dies of underflow: one scale for all resblocks against a scale for each (appendix D).

    python tools/underflow.py                      # ten minutes on two CPU cores
    python tools/underflow.py --device cuda --depth 64 --width 1024 --grid 16 --steps 3000 --replicas 1024

Trains the same deep, narrow prior on the same drawn data in fp32, in fp16 with a scale for each resblock, with the usual
dynamic scale, and with static ones. A caption is a row of colours, the image shows them in diagonal stripes: learning to
look at the right word takes the gradients of queries and keys, which are the smallest.

The loss is divided by the overall batch of `--replicas` processes, as in the paper; one of them is simulated, and the
others are taken to have the same batch. A static scale is what the loss is multiplied by besides.

Shares of underflow are of the gradients that leave or come out of fp16 matrix products, exactly zero or below fp16's least
normal number, 2^-14: of activations, and of the matrices themselves. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that it runs without an installation

from dalle.config import PriorModel, PriorObjective
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective as PriorLoss
from dalle.training.gradient_scaling import GradientScales, static

COLOURS = 8
LEAST_NORMAL = 2.0**-14
CLIP_NORM = 4.0
WARM_UP_STEPS = 30


def main() -> None:
    """Parse, train each, print a table."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--depth", type=int, default=24, help="layers")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--grid", type=int, default=3, help="G: image tokens along one side, and words of a caption")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--step_size", type=float, default=1.5e-3)
    parser.add_argument("--replicas", type=int, default=8192, help="M, that the loss is divided by")
    parser.add_argument("--static", type=int, nargs="*", default=[0, 7, 13, 20, 27], help="log2 of the static scales")
    parser.add_argument("--only", nargs="*", choices=["fp32", "per-block", "dynamic", "static"], help="of the trainings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print the last line alone")
    options = parser.parse_args()
    results = []
    for name in ["fp32", "per-block", "dynamic", *(f"static 2^{power}" for power in options.static)]:
        if options.only and name.split()[0] not in options.only:
            continue
        result = train(name, options)
        results.append(result)
        if not options.json:
            print(describe(result), flush=True)
    settings = {key: value for key, value in vars(options).items() if key not in ("json", "only")}
    print(json.dumps({"name": "underflow", "unit": "nats per code", "trainings": results, "settings": settings}))


def train(name: str, options: argparse.Namespace) -> dict:
    """One training: its losses, skipped updates, and shares of underflow in the resblocks, first to last."""
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    grid, width = options.grid, options.width
    objective = PriorLoss(
        Prior(
            PriorModel(
                text_slots=grid + 1,
                grid=grid,
                text_vocabulary=COLOURS,
                codebook_size=COLOURS,
                width=width,
                depth=options.depth,
                heads=max(4, width // 64),
            )
        ),
        PriorObjective(),
    ).to(device)
    blocks = objective.model.resblocks()
    scales = _scales(name, objective, blocks, options.replicas, device)
    optimizer = torch.optim.AdamW(objective.parameters(), betas=(0.9, 0.96), weight_decay=4.5e-2)
    shares = Shares(blocks)
    draw = torch.Generator().manual_seed(options.seed)
    losses, skipped, began_s = [], 0, time.monotonic()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.step_size * min(1, (step + 1) / WARM_UP_STEPS)
        shares.counting = (options.steps - 1 - step) % 10 == 0
        loss, metrics = objective(batch(options.batch_size, grid, draw, device))
        scales.scaled(loss).backward()
        shares.count_matrices()
        finite = scales.unscale((p, p.grad) for p in objective.parameters())
        if scales.update(finite):
            nn.utils.clip_grad_norm_(objective.parameters(), CLIP_NORM)
            optimizer.step()
        else:
            skipped += 1
        optimizer.zero_grad()
        losses.append(metrics["image_nats"].item())
    return {
        "name": name,
        "losses": [sum(losses[i : i + 10]) / len(losses[i : i + 10]) for i in range(0, len(losses), 10)],
        "final_loss": sum(losses[-20:]) / 20,
        "skipped_updates": skipped,
        "underflow_activations": shares.of("activations"),
        "underflow_matrices": shares.of("matrices"),
        "log2_scales": scales.scales.log2().tolist(),
        "seconds": time.monotonic() - began_s,
    }


def _scales(name: str, objective: nn.Module, blocks: list, replicas: int, device: torch.device) -> GradientScales:
    if name == "fp32":
        return GradientScales([], static(1), replicas, device)
    if name == "per-block":
        return GradientScales.per_block(blocks, replicas, device)
    if name == "dynamic":
        return GradientScales.overall(objective, replicas, device)
    # a scale of the loss, whatever M is: the class multiplies by M
    return GradientScales.overall(objective, replicas, device, rule=static(2.0 ** int(name.split("^")[1]) / replicas))


def batch(size: int, grid: int, draw: torch.Generator, device: torch.device) -> dict[str, torch.Tensor]:
    """Captions of `grid` colours, and images whose code at (row, column) is colour number row + column, modulo `grid`."""
    text_BU = torch.randint(COLOURS, (size, grid), generator=draw)
    places = torch.arange(grid)
    codes_BI = text_BU[:, (places[:, None] + places) % grid].flatten(1)
    return {
        "text_BU": text_BU.to(device),
        "codes_BI": codes_BI.to(device),
        "text_targets": torch.tensor(float(text_BU.numel()), device=device),
    }


class Shares:
    """Counts what has underflowed in each resblock. The counts stay on the device."""

    def __init__(self, blocks: list[nn.Module]):
        self.counting = False
        self._counts = defaultdict(lambda: [0, 0])
        self._num_blocks = len(blocks)
        self._matrices = []
        for number, block in enumerate(blocks):
            for module in block.modules():
                matrices = [p for p in module.parameters(recurse=False) if p.ndim > 1]
                if matrices:
                    self._matrices += [(number, p) for p in matrices]
                    module.register_forward_hook(self._watch(number))

    def _watch(self, number: int):
        def hook(module, inputs, output):
            output.register_hook(lambda gradient: self._count("activations", number, gradient))

        return hook

    def count_matrices(self) -> None:
        for number, parameter in self._matrices:
            self._count("matrices", number, parameter.grad)

    def _count(self, kind: str, number: int, gradient: torch.Tensor) -> None:
        if self.counting:
            counts = self._counts[kind, number]
            counts[0] = counts[0] + (gradient.abs() < LEAST_NORMAL).sum()
            counts[1] += gradient.numel()

    def of(self, kind: str) -> list[float]:
        """The share in each resblock."""
        return [float(few) / total for few, total in (self._counts[kind, n] for n in range(self._num_blocks))]


def describe(result: dict) -> str:
    """One training in three lines."""
    lines = [
        f"{result['name']:12} {result['final_loss']:8.4f} nats per code at the end, {result['skipped_updates']} updates skipped,"
        f" {result['seconds']:.0f} s"
    ]
    for kind in ("activations", "matrices"):
        shares = result[f"underflow_{kind}"]
        eighths = [shares[i * (len(shares) - 1) // 7] for i in range(8)]
        lines.append(f"    underflow of {kind:11}, first to last: " + " ".join(f"{s:4.0%}" for s in eighths))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
