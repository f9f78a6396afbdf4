"""A training and the machines that it is planned for: who shards with whom, and what each process will hold.

Nothing is allocated: the prior is on PyTorch's meta device. What DeepSpeed decides, how it cuts parameters into shards, is told here
as `gradients/partition.py` reads it there; tests count the bytes of trainings against it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dalle.config import Optimizer, PriorModel, Run
from dalle.config.checks import require
from dalle.models.flops import attention_flops, prior_flops
from dalle.models.folder import Weightless
from dalle.models.prior import Prior
from dalle.optim.optimizer import orthogonalized
from dalle.training.deepspeed_adapter import communicated_in_16_bit, largest_resblock

META = torch.device("meta")


class Sizes:
    """A prior on the meta device, and what the training asks of it.

    Args:
        config: its sizes
    """

    def __init__(self, config: PriorModel):
        self.config = config
        with Weightless(), META:
            self.prior = Prior(config)
        self.parameters: dict[str, nn.Parameter] = dict(self.prior.named_parameters())
        self.matrices = self.prior.matrices()
        self.weights = sum(p.numel() for p in self.parameters.values())
        self.resblock = largest_resblock(self.prior)
        names = {id(p): name for name, p in self.parameters.items()}
        self.in_16_bit = {names[id(weight)] for weight in communicated_in_16_bit(self.prior)}

    @cached_property
    def in_backward_order(self) -> list[list[str]]:
        """Names of the parameters whose gradients come together: the heads' and the last norm's, each resblock's from the last
        to the first, the embeddings'."""
        names = {id(p): name for name, p in self.parameters.items()}
        blocks = [[names[id(p)] for p in block.parameters()] for block in self.prior.resblocks()]
        within = {name for block in blocks for name in block}
        outside = [name for name in names.values() if name not in within]
        last = [name for name in outside if "head" in name or name.startswith("norm")]
        return [last, *reversed(blocks), [name for name in outside if name not in last]]

    @property
    def blocks(self) -> list[list[str]]:
        """Names by resblock, from the first to the last."""
        return self.in_backward_order[-2:0:-1]

    @cached_property
    def forward_flops(self) -> list[int]:
        """Of a sample: of each resblock, from the first to the last, and of the heads."""
        products = [
            2 * self.config.slots * sum(self.parameters[name].numel() for name in names if name in self.matrices)
            for names in self.blocks
        ]
        for number, kind in enumerate(self.prior.kinds):
            products[2 * number] += attention_flops(kind, self.config)
        return [*products, prior_flops(self.config) // 3 - sum(products)]

    @cached_property
    def matrix_shapes(self) -> Counter[tuple[int, int]]:
        """How many matrices there are of each shape, q, k and v being three; the shorter side first."""
        shapes: Counter[tuple[int, int]] = Counter()
        for name, parts in self.matrices.items():
            short, long = sorted(self.parameters[name].shape)
            shapes[(long // parts, short) if parts > 1 else (short, long)] += parts
        return shapes

    @cached_property
    def muon_flops(self) -> int:
        """Of an update by Muon, which orthogonalises every matrix."""
        total = 0
        for shape, count in self.matrix_shapes.items():
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                orthogonalized(torch.empty(1, *shape, device=META))
            total += count * counter.get_total_flops()
        return total

    def wire_bytes(self, run: Run) -> dict[str, int]:
        """By name, bytes of a weight while processes that shard gather it, and of its gradient while they reduce it."""
        return {name: 2 if run.precision != "fp32" and name in self.in_16_bit else 4 for name in self.parameters}


@dataclass(frozen=True)
class Layout:
    """A training on machines.

    Args:
        sizes: of the prior
        run, optimizer: of the training
        machines: that take part
        gpus: of each, one process each
    """

    sizes: Sizes = field(repr=False, compare=False)
    run: Run
    optimizer: Optimizer
    machines: int
    gpus: int

    def __post_init__(self) -> None:
        self.run.micro_batch_size(self.processes)
        if self.run.compression is not None and self.run.zero_stage == 3:
            self.run.compression.rank_of_shard(self.shards)
        require(
            self.processes % self.shards == 0,
            f"run.ranks_per_machine {self.run.ranks_per_machine}: does not divide the {self.processes} processes; start as many "
            "on every machine",
        )

    @property
    def processes(self) -> int:
        return self.machines * self.gpus

    @property
    def shards(self) -> int:
        """m, the processes that shard among themselves, or that average before others do."""
        asked = self.gpus if self.run.ranks_per_machine is None else self.run.ranks_per_machine or self.processes
        return self.run.processes_together(asked, self.processes)

    @property
    def groups(self) -> int:
        """Groups of processes that shard, between which all is replicated."""
        return self.processes // self.shards

    @property
    def micro_batch(self) -> int:
        return self.run.micro_batch_size(self.processes)

    @cached_property
    def held(self) -> dict[str, int]:
        """Elements of each parameter whose gradient and moments a process holds, the most that one has."""
        return {name: self._share(size) for name, size in self.whole.items()}

    @cached_property
    def whole(self) -> dict[str, int]:
        """Elements of each parameter."""
        return {name: p.numel() for name, p in self.sizes.parameters.items()}

    def weight_bytes(self, elements: dict[str, int]) -> int:
        """Of so many weights of each parameter, as they are kept, and as they are gathered whole.

        Args:
            elements: `whole`, `held`, or of some parameters
        """
        narrow = self.sizes.matrices if self.run.weights == "16-bit" else ()
        return sum((2 if name in narrow else 4) * size for name, size in elements.items())

    def _share(self, elements: int) -> int:
        return elements if self.run.zero_stage == 0 else math.ceil(elements / self.shards)

    def with_run(self, **changes: Any) -> Layout:
        """The same with other settings of the run. Raises ValueError as a training would."""
        return replace(self, run=replace(self.run, **changes))
