"""What machines exchange in an update, and when: counted from the calls that training makes.

`gradients/before_step.py` runs on gradients of the meta device: the same groups, owners, ranks and order as in a training, at the
same moments of the backward pass, but nothing is sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dalle.cluster.topology import World
from dalle.gradients.before_step import BeforeStep
from dalle.gradients.exchange import Exchange
from dalle.gradients.partition import Give, Piece, Place, Shards, Take, Told, Whole
from dalle.planning.gathered import sub_groups
from dalle.planning.layout import META, Layout
from dalle.planning.meter import Meter


@dataclass(frozen=True)
class Call:
    """A collective.

    Args:
        after: resblocks whose backward pass had ended when it was begun; all and one more when the whole one had
        bytes: that a process sends to others, and gets from them, on average over the machines, which share out alike what they
            own (`gradients/ownership.py`)
    """

    after: int
    bytes: int


@dataclass(frozen=True)
class Exchanged:
    """Of one process and update.

    Args:
        calls: in their order
        error_bytes: of the error buffers
        fixed_bytes: of the matrices Q0, which stay as well
        working: bytes of P, Q and temporary tensors at most, by how many parts of the backward pass had ended; the last is of the
            time when all had, with what DeepSpeed's update copies
        flops: of the compression's products
    """

    calls: tuple[Call, ...]
    error_bytes: int
    fixed_bytes: int
    working: tuple[int, ...]
    flops: int

    @property
    def sent_bytes(self) -> int:
        return sum(call.bytes for call in self.calls)


def exchanged(layout: Layout) -> Exchanged:
    """Count one update's. Where DeepSpeed averages over all machines, below stage 3 without compression, there is nothing."""
    run = layout.run
    if run.compression is not None and run.compression.format == "1-6-9":
        # as many bytes, and on the meta device far quicker
        run = replace(run, compression=replace(run.compression, format="bf16"))
    calls: list[Call] = []
    backward = _Backward()
    shards = _whole(layout) if run.zero_stage == 0 else _Shards(layout)
    machines: Any = SimpleNamespace(
        count=layout.groups,
        number=0,
        ranks_per_machine=layout.shards,
        ordinal=0,
        replicas=SimpleNamespace(size=layout.groups, calls=calls, backward=backward),
    )
    world = _World(0, layout.processes, META, machines)
    flops = FlopCounterMode(display=False)
    matrices = layout.sizes.matrices if run.compression else {}
    step = BeforeStep(shards, world, run, layout.optimizer.clip_norm, None, matrices, _Counted)
    stacks = list(step.powersgd.stacks()) if step.powersgd else []
    meter = Meter([*shards.gradients().values(), *(t for stack in stacks for t in (stack.buffer_NSL, stack.q0_LK))])
    working = []
    with meter, flops, torch.no_grad():
        step.open()
        for names in layout.sizes.in_backward_order:
            meter.begin_anew()
            if isinstance(shards, _Shards):
                shards.arrive(names)
            working.append(meter.peak)
            backward.ended += 1
        meter.begin_anew()
        step()
        if isinstance(shards, _Shards):
            shards.update(layout)
        step.close()
        working.append(meter.peak)
    for p in shards.parameters.values():
        p.grad = None
    return Exchanged(
        tuple(calls),
        sum(stack.buffer_NSL.nbytes for stack in stacks),
        sum(stack.q0_LK.nbytes for stack in stacks),
        tuple(working),
        flops.get_total_flops(),
    )


class _World(World):
    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


class _Done:
    def wait(self) -> bool:
        return True


class _Counted(Exchange):
    """Sends nothing."""

    group: Any

    def __init__(self, group: Any, format: str = "fp32"):
        self.group, self.format, self.size, self.number = group, format, group.size, 0

    def sum_begun(self, values: torch.Tensor) -> Any:
        # a ring's, each way
        return self._note(2 * values.nbytes * (self.size - 1) // self.size)

    def send_begun(self, received: torch.Tensor, sent: torch.Tensor, got: list[int], given: list[int]) -> Any:
        # one of the two is the same for all processes, and what the other is on average
        whole = given if len(set(given)) > 1 else got
        return self._note(sum(whole) * (self.size - 1) // self.size)

    def _note(self, num_bytes: int) -> _Done:
        self.group.calls.append(Call(self.group.backward.ended, num_bytes))
        return _Done()


@dataclass
class _Backward:
    ended: int = 0
    """Parts of the backward pass that have ended"""


def _whole(layout: Layout) -> Shards:
    """The gradients of stage 0."""
    for p in layout.sizes.parameters.values():
        p.grad = torch.empty_like(p)
    return Whole(layout.sizes.prior, _optimizer())


def _optimizer() -> Any:
    """Which fused optimisers' attributes are set of."""
    return SimpleNamespace()


class _Shards(Shards):
    """A process's parts of gradients, which arrive as those of a backward pass do."""

    def __init__(self, layout: Layout):
        super().__init__(layout.sizes.prior, _optimizer())
        self._is_told = layout.run.zero_stage == 3 and layout.run.offload == "device"
        self._handed_over: frozenset[str] = frozenset()
        self.pieces = {name: Piece(tuple(p.shape), 0, layout.held[name]) for name, p in self.parameters.items()}
        self._gradients = {name: torch.empty(size, device=META) for name, size in layout.held.items()}
        self._told: Told = lambda names: None

    def arrive(self, names: list[str]) -> None:
        """The processes that shard have averaged gradients."""
        taken = [name for name in names if name in self._handed_over]
        # what came of a bucket is there as a whole
        for name, gradient in [(name, torch.empty(self.pieces[name].size, device=META)) for name in taken]:
            self._take(name, gradient)
        self._told(names)

    def update(self, layout: Layout) -> None:
        """Of the weights."""
        for names in sub_groups(layout) if self._is_told else ():  # else in main memory
            self._lay(names, layout.run.weights == "16-bit")

    def _lay(self, names: list[str], in_16_bits: bool) -> None:
        """Gradients end to end, as a sub-group's update wants them, and once more in the format of its weights."""
        sizes = [self.pieces[name].size for name in names]
        laid = torch.empty(sum(sizes), device=META)
        for name, part in zip(names, laid.split(sizes), strict=True):
            if name in self._handed_over:
                self._give(name, part)
        if in_16_bits:
            laid.to(torch.bfloat16)

    def gradients(self) -> dict[str, torch.Tensor]:
        return dict(self._gradients)

    def tell_reduced(self, told: Told) -> bool:
        if self._is_told:
            self._told = told
        return self._is_told

    def hand_over(self, names: frozenset[str], take: Take, give: Give) -> bool:
        if self._is_told:
            self._handed_over, self._take, self._give = names, take, give
            self._gradients = {name: t for name, t in self._gradients.items() if name not in names}
        return self._is_told

    def write_gradients(self, gradients: dict[str, torch.Tensor]) -> None:
        pass

    def places(self) -> dict[torch.Tensor, list[Place]]:
        return {}

    def moments(self, name: str) -> dict[str, torch.Tensor]:
        return {}

    def make_moments(self, step: int, dtypes: dict[str, dict[str, torch.dtype]]) -> None:
        pass
