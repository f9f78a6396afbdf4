"""Where fp16 training dies of underflow: one scale for all resblocks against a scale for each (appendix D).

    python tools/underflow.py                      # five minutes on a free core
    python tools/underflow.py --device cuda --depth 64 --width 1024 --steps 2000

Trains the same deep, narrow prior on the same drawn data in fp32, in fp16 with a scale for each resblock, with the usual
dynamic scale, and with static ones. A caption is a few colours, and the image has as many rows in these colours: the model
has to look at the right word, which takes the gradients of queries and keys, and these are the smallest.

The loss is divided by the overall batch of `--replicas` processes, as the paper does; one of them is run here, as if all
had the same batch. By default they make a batch of 2^20 codes, as 1,024 images of the paper do. A static scale is what
this loss is multiplied by.

The share of underflow is of the gradients in fp16 (of activations as they enter a matrix product from behind, and of
matrices): what is zero or below 2^-14, the least normal number. From the fp32 training comes the range of static scales
that would have kept, in all resblocks and at all times, at least half of the activations' gradients normal and the
largest gradient below fp16's limit. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that it runs without an installation

from dalle.config import PriorModel, PriorObjective
from dalle.gradients.scaling import GradientScales, static
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective as PriorLoss

COLOURS = 8
CLIP_NORM = 4.0
WARM_UP_STEPS = 30
EVERY_STEPS = 10
"""Gradients are looked at, and losses averaged, once in so many updates."""


def main() -> None:
    """Parse, train each, print."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--depth", type=int, default=24, help="layers")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--grid", type=int, default=4, help="image tokens along one side, and words of a caption")
    parser.add_argument("--batch_size", type=int, default=8, help="of the process that is run")
    parser.add_argument("--replicas", type=int, default=8192, help="M")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--step_size", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--static", type=int, nargs="*", default=[0, 4, 7, 20, 36], help="log2 of the static scales")
    parser.add_argument(
        "--only", nargs="*", choices=["fp32", "per-block", "dynamic", "static"], help="of the trainings"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true", help="print the last line alone")
    options = parser.parse_args()
    results = []
    for name in ["fp32", "per-block", "dynamic", *(f"static 2^{power}" for power in options.static)]:
        if options.only is None or name.split()[0] in options.only:
            results.append(train(name, options))
            if not options.json:
                print(describe(results[-1]), flush=True)
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "only", "static")}
    print(json.dumps({"name": "underflow", "unit": "nats per code", "trainings": results, "settings": settings}))


def train(name: str, options: argparse.Namespace) -> dict:
    """One training: its losses, skipped updates, and what became of the gradients in the resblocks, first to last."""
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    sizes: dict[str, Any] = {"width": options.width, "depth": options.depth, "heads": max(2, options.width // 64)}
    tokens: dict[str, Any] = {"text_vocabulary": COLOURS, "codebook_size": COLOURS}
    model = Prior(PriorModel(text_slots=options.grid + 1, grid=options.grid, **tokens, **sizes))
    objective = PriorLoss(model, PriorObjective()).to(device)
    scales = _scales(name, objective, options.replicas, device)
    watch = Watch(model.resblocks())
    optimizer = torch.optim.AdamW(objective.parameters(), betas=(0.9, 0.96), weight_decay=4.5e-2)
    draw = torch.Generator().manual_seed(options.seed)
    nats, applied = [], []
    began_s = time.monotonic()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.step_size * min(1, (step + 1) / WARM_UP_STEPS)
        watch.looking = step % EVERY_STEPS == 0
        loss, metrics = objective(batch(options.batch_size, options.grid, draw, device))
        scales.scaled(loss).backward()
        watch.look_at_matrices()
        finite = scales.unscale((p, p.grad) for p in objective.parameters() if p.grad is not None)
        applied.append(bool(scales.update(finite)))
        if applied[-1]:
            nn.utils.clip_grad_norm_(objective.parameters(), CLIP_NORM)
            optimizer.step()
        optimizer.zero_grad()
        nats.append(metrics["image_nats"])
    losses = [part.mean().item() for part in torch.stack(nats).split(EVERY_STEPS)]
    fp32 = {"static_scales": watch.static_scales()} if name == "fp32" else {"underflow": watch.underflow()}
    return {
        "name": name,
        "loss": sum(losses[-2:]) / len(losses[-2:]),
        "losses": losses,
        "skipped_updates": applied.count(False),
        "log2_scales": scales.scales.log2().tolist(),
        **fp32,
        "seconds": time.monotonic() - began_s,
    }


def _scales(name: str, objective: PriorLoss, replicas: int, device: torch.device) -> GradientScales:
    if name == "fp32":
        return GradientScales([], static(1), replicas, device)
    if name == "per-block":
        return GradientScales.per_block(objective.model.resblocks(), replicas, device)
    if name == "dynamic":
        return GradientScales.overall(objective, replicas, device)
    # of this loss, whatever M is; the class takes a scale for one replica
    return GradientScales.overall(objective, replicas, device, rule=static(2.0 ** int(name.split("^")[1]) / replicas))


def batch(size: int, grid: int, draw: torch.Generator, device: torch.device) -> dict[str, torch.Tensor]:
    """Captions of G = `grid` colours, and images of as many rows in these colours."""
    text_BU = torch.randint(COLOURS, (size, grid), generator=draw)
    codes_BI = text_BU.repeat_interleave(grid, dim=1)
    text_targets = torch.tensor(float(text_BU.numel()), device=device)
    return {"text_BU": text_BU.to(device), "codes_BI": codes_BI.to(device), "text_targets": text_targets}


class Watch:
    """Looks at the gradients of each resblock's activations and matrices. What it finds stays on the device."""

    def __init__(self, blocks: list[nn.Module]):
        self.looking = False
        self._num_blocks, self._matrices = len(blocks), []
        # by kind and resblock, of each gradient: share of underflow, median, largest
        self._found: dict[tuple[str, int], list[torch.Tensor]] = defaultdict(list)
        for number, block in enumerate(blocks):
            for module in block.modules():
                if matrices := [p for p in module.parameters(recurse=False) if p.ndim > 1]:
                    self._matrices += [(number, matrix) for matrix in matrices]
                    module.register_forward_hook(self._watch_output(number))

    def _watch_output(self, number: int):
        def hook(module, inputs, output):
            output.register_hook(lambda gradient: self._look("activations", number, gradient))

        return hook

    def look_at_matrices(self) -> None:
        for number, matrix in self._matrices:
            assert matrix.grad is not None
            self._look("matrices", number, matrix.grad)

    def _look(self, kind: str, number: int, gradient: torch.Tensor) -> None:
        if self.looking:
            sizes = gradient.float().abs().flatten()
            share = (sizes < torch.finfo(torch.float16).tiny).float().mean()
            self._found[kind, number].append(torch.stack([share, sizes.median(), sizes.max()]))

    def underflow(self) -> dict[str, list[float]]:
        """The mean share in each resblock."""
        return {
            kind: [torch.stack(self._found[kind, number])[:, 0].mean().item() for number in range(self._num_blocks)]
            for kind in ("activations", "matrices")
        }

    def static_scales(self) -> dict[str, list[float]]:
        """log2 of the least and the greatest static scale that would have done for each resblock all the time."""
        half = torch.finfo(torch.float16)
        least, greatest = [], []
        for number in range(self._num_blocks):
            activations = torch.stack(self._found["activations", number])
            largest = torch.cat([activations, torch.stack(self._found["matrices", number])])[:, 2].max()
            least.append(math.log2(half.tiny / activations[:, 1].min()))
            greatest.append(math.log2(half.max / largest))
        return {"log2_least": least, "log2_greatest": greatest}


def describe(result: dict) -> str:
    """One training in a few lines."""
    text = (
        f"{result['name']:12} {result['loss']:7.4f} nats per code at the end, {result['skipped_updates']} updates skipped, "
        f"{result['seconds']:.0f} s"
    )
    for kind, shares in result.get("underflow", {}).items():
        some = [shares[number * (len(shares) - 1) // 7] for number in range(8)]
        text += f"\n    underflow of {kind:11}, first to last: " + " ".join(f"{share:4.0%}" for share in some)
    if ranges := result.get("static_scales"):
        least, greatest = ranges["log2_least"], ranges["log2_greatest"]
        text += (
            f"\n    static scales for all: 2^{max(least):.1f} to 2^{min(greatest):.1f}; each resblock by itself: from "
        )
        text += f"2^{min(least):.1f} … 2^{max(least):.1f} to 2^{min(greatest):.1f} … 2^{max(greatest):.1f}"
    return text


if __name__ == "__main__":
    main()
