"""A checkpoint read by all processes of a run together.

Of all processes that hold the same piece of a tensor one reads it and sends it to the others, so that storage is read once
for a run, not once for each machine: at 128 machines and 200 GB that is the difference between 200 GB and 25 TB. Nor is it read
twice: what is read is compared with its checksums there and then. Who finds damage goes on, so that nobody waits for it, and
before anything is used all of them hear of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from dalle.checkpoints.checkpoint import Checkpoint
from dalle.cluster.topology import World
from dalle.config.checks import SaidByAll


class Restoring:
    """Reads an open checkpoint. All processes ask for the same tensors in the same order. What was filled is known to be what was
    written when the block ends: only then is it to be used.

    Args:
        checkpoint: what `verify` gave, on every process
        world: the processes, in machines if there are several
        mark: called before each tensor, for whoever watches that all of them move

    Raises:
        ValueError: at the end of the block, on all processes: what one of them has read is damaged
    """

    def __init__(self, checkpoint: Checkpoint, world: World, mark: Callable[[], None] = lambda: None):
        self.checkpoint, self.world, self.mark = checkpoint, world, mark
        self._complaint: ValueError | None = None

    def __enter__(self) -> Restoring:
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is None:
            self._agree()

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint.shapes

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor, on every process, on its device, to be used at once.

        Raises:
            ValueError: on all processes: no such tensor, or what was read so far is damaged
        """
        values = torch.empty(
            self.checkpoint.shapes.get(name, ()), dtype=self.checkpoint.dtype(name), device=self.world.device
        )
        self.fill(name, values)
        self._agree()
        return values

    def fill(self, name: str, into: torch.Tensor, start: int = 0, shared: bool = True) -> None:
        """Copy a piece of a tensor into memory.

        Args:
            name: of the tensor
            into: as many elements as the piece has, of any shape, dtype and device; perhaps none
            start: where in the flattened tensor the piece begins
            shared: whether all processes hold this piece; otherwise those of equal ordinal on all machines do

        Raises:
            ValueError: no such tensor, on all processes
        """
        self.mark()
        dtype = self.checkpoint.dtype(name)
        if not into.numel():
            return
        group, size, number = self._holders(shared)
        reader = zlib.crc32(name.encode()) % size  # all take their turns
        values = torch.empty(into.numel(), dtype=dtype, device=self.world.device)
        if number == reader:
            try:
                values.copy_(self.checkpoint.read(name, start, start + into.numel()))
            except ValueError as error:
                self._complaint = self._complaint or error
        if size > 1:  # bytes: no library sends every dtype
            dist.broadcast(values.view(torch.uint8), group=group, group_src=reader)
        into.copy_(values.view_as(into))

    def _agree(self) -> None:
        complaints = self.world.gather(None if self._complaint is None else str(self._complaint))
        if found := next(filter(None, complaints), None):
            raise SaidByAll(found) from self._complaint

    def _holders(self, shared: bool) -> tuple[dist.ProcessGroup | None, int, int]:
        """Who holds the same, how many they are, and which of them this process is."""
        if shared:
            return None, self.world.size, self.world.rank
        if self.world.machines is None:
            return None, 1, 0
        return self.world.machines.replicas, self.world.machines.count, self.world.machines.number
