"""A plan: memory of a GPU, traffic and time of an update, and what all of the training comes to, as plain figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, repeat
from typing import Any

from dalle.config import Plan
from dalle.models.flops import prior_flops
from dalle.planning.activations import Activations, activations
from dalle.planning.exchanged import Exchanged, exchanged
from dalle.planning.gathered import at_the_turn, at_work, gradients_at_work, reduced_at_once
from dalle.planning.held import checkpoint_bytes, in_main_memory, stays, while_made
from dalle.planning.layout import Layout
from dalle.planning.timing import Rates, Update, update


@dataclass(frozen=True)
class Machines:
    """What the machines can do.

    Args:
        memory_bytes: of a GPU
        rates: of computing and of the ways
        disk: bytes/s that a machine writes
        price: of a GPU for an hour; null tells no cost
    """

    memory_bytes: float
    rates: Rates
    disk: float
    price: float | None

    @classmethod
    def of(cls, config: Plan) -> Machines:
        rates = Rates(
            flops=1e12 * config.tflops * config.achieved,
            muon=1e12 * config.tflops * config.achieved,
            link=1e9 * config.link / 8,
            inside=1e9 * config.inside,
            memory=1e9 * config.bandwidth,
        )
        return cls(2**30 * config.memory, rates, 1e9 * config.disk, config.price)

    @classmethod
    def measured(cls, flops: float, muon: float, bandwidth: float, memory_bytes: float) -> Machines:
        """Machines of which operations/s of passes and of Muon, bytes/s of the memory and its size are known; all else is
        what `dalle-plan` takes for granted."""
        rates = Rates(flops, muon, 1e9 * Plan.link / 8, 1e9 * Plan.inside, bandwidth)
        return cls(memory_bytes, rates, 1e9 * Plan.disk, None)


class Planned:
    """All that is known of a training on machines.

    Args:
        layout: the training
        machines: what they can do
        sent: what they exchange, where it is known already
    """

    def __init__(self, layout: Layout, machines: Machines, sent: Exchanged | None = None):
        self.layout, self.machines = layout, machines
        self.sent = exchanged(layout) if sent is None else sent

    @cached_property
    def stays(self) -> dict[str, int]:
        """Bytes from update to update, by kind."""
        return stays(self.layout, self.sent)

    def activations(self, recompute: bool, with_copies: bool = True) -> Activations:
        """Of a micro-batch, with autocast's 16-bit copies of weights that are fp32, or as if they had 16 bits."""
        config, run = self.layout.sizes.config, self.layout.run
        in_16_bit = run.weights == "16-bit" or not with_copies
        gathered = run.zero_stage == 3
        return activations(config, run.precision, self.layout.micro_batch, recompute, in_16_bit, gathered)

    def comes_and_goes(self, recompute: bool) -> int:
        """Bytes beside what stays, at the most: between forward and backward pass, or when machines exchange, which at stage 3
        goes on while the backward pass frees one layer's activations after the other."""
        found, run = self.activations(recompute), self.layout.run
        turn = found.peak + at_the_turn(self.layout)
        beside = self._under_way(found) if run.zero_stage == 3 and run.offload == "device" else []
        exchanging = (
            working + more for working, more in zip(self.sent.working, chain(beside, repeat(0)), strict=False)
        )
        return max([turn, *exchanging])

    def _under_way(self, found: Activations) -> Iterator[int]:
        """Bytes of a backward pass at stage 3, of which none, one, two … parts have ended: the heads end first, then the resblocks,
        then the embeddings, and then there is nothing to work on."""
        layout, layers = self.layout, len(self.layout.sizes.prior.kinds)
        at_hand = found.layer + gradients_at_work(layout) + reduced_at_once(layout)
        gathered = at_work(layout)
        for ended in range(len(layout.sizes.blocks) + 2):
            left = min(layers, layers - (ended - 1) // 2)  # two resblocks each
            # what the heads need has their gradients in it, and goes before those of a resblock come
            most = at_hand if ended else max(at_hand, found.heads)
            yield found.layers * left // layers + most + max(gathered, at_the_turn(layout, ended))

    @cached_property
    def peak_bytes(self) -> int:
        in_updates = sum(self.stays.values()) + self.comes_and_goes(self.layout.run.recompute)
        return max(in_updates, while_made(self.layout))

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.machines.memory_bytes

    @cached_property
    def update(self) -> Update:
        state = sum(self.stays[kind] for kind in ("weights", "gradients", "moments", "error buffers"))
        return update(self.layout, self.sent, state, self.machines.rates)

    def figures(self) -> dict[str, Any]:
        """All of it; bytes, seconds, operations."""
        layout, run, sizes = self.layout, self.layout.run, self.layout.sizes
        seconds, checkpoint = self.update.seconds, checkpoint_bytes(layout, self.sent)
        hours = seconds * run.steps / 3600
        flops = prior_flops(sizes.config) * run.batch_size
        found, without = (self.activations(run.recompute, with_copies) for with_copies in (True, False))
        return {
            "parameters": sizes.weights,
            "settings": settings(layout),
            "stays_bytes": self.stays,
            "comes_and_goes_bytes": {
                "gathered weights": at_the_turn(layout),
                "activations": self.activations(False, with_copies=False).layers,
                "activations, recomputed": self.activations(True, with_copies=False).layers,
                "16-bit copies of weights": found.layers + found.copies - without.layers,
                "a layer at work": found.layer,
                "whole gradients, and sent": gradients_at_work(layout) + reduced_at_once(layout),
                "heads and their logits": found.heads,
                "compression and exchange": max(self.sent.working),
            },
            "stay_bytes": sum(self.stays.values()),
            "while_made_bytes": while_made(layout),
            "peak_bytes": self.peak_bytes,
            "memory_bytes": int(self.machines.memory_bytes),
            "fits": self.fits,
            "main_memory_bytes": in_main_memory(layout),
            "traffic_bytes": {
                "with those that shard": round(self.update.shared_bytes),
                "between replicas": self.sent.sent_bytes,
            },
            "flops": flops,
            "seconds": {
                "update": seconds,
                "computing": self.update.earlier_s + sum(end - begin for _, begin, end in self.update.compute.done),
                "exposed exchange": self.update.exposed_s,
            },
            "utilisation": flops / (seconds * layout.processes * self.machines.rates.flops),
            "checkpoint_bytes": checkpoint,
            "checkpoint_seconds": checkpoint / (layout.machines * self.machines.disk),
            "updates": run.steps,
            "days": hours / 24,
            "gpu_hours": hours * layout.processes,
            "cost": None if self.machines.price is None else hours * layout.processes * self.machines.price,
        }


def settings(layout: Layout) -> dict[str, Any]:
    """Those that a search varies, as options name them."""
    run = layout.run
    return {
        "machines": layout.machines,
        "gpus": layout.gpus,
        "run.zero_stage": run.zero_stage,
        "run.ranks_per_machine": run.ranks_per_machine,
        "run.compression": run.compression and asdict(run.compression),
        "run.wire": run.wire,
        "run.accumulation_steps": run.accumulation_steps,
        "micro_batch": layout.micro_batch,
        "run.recompute": run.recompute,
    }
