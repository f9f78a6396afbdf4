"""Exchanges between machines that are under way while the backward pass goes on (appendix E: steps 3 to 8 of later resblocks
run while earlier ones are still to come).

A group's exchange begins when the last of its gradients is final, which DeepSpeed's reduction within the machine tells,
resblock by resblock, from the last to the first. An exchange is several collectives with arithmetic between them. Whenever
one begins, those before it are brought one collective further: what they wait for had a resblock's backward pass for its way.
The order in which all of this happens is that of the groups, never that of arrival on the wire: so all processes begin the
same collectives in one order, as they have to, and none can wait in a circle.

On a CPU the collectives run in threads of gloo's, on CUDA in a stream of NCCL's, and the arithmetic in one beside the backward
pass, where waiting for a collective does not hold up the host. The code is the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist

from dalle.gradients.exchange import Steps


class Overlap:
    """Begins exchanges in a fixed order, each as soon as it can, and sees them to their end.

    Args:
        groups: names of the gradients that each exchange needs
        begin: from a group's number to its exchange
        device: where they are computed
    """

    def __init__(self, groups: Sequence[Collection[str]], begin: Callable[[int], Steps], device: torch.device):
        self.groups, self._begin = groups, begin
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._is_open = False
        self._missing: list[set[str]] = []
        self._next = 0
        self._under_way: deque[tuple[Steps, dist.Work]] = deque()

    def open(self) -> None:
        """Gradients that arrive from now on are final: the last backward pass of an update begins."""
        self._is_open = True
        self._missing = [set(group) for group in self.groups]

    @torch.no_grad()
    def arrived(self, names: Collection[str]) -> None:
        """Gradients are there, in the stream that this is called in."""
        if not self._is_open:
            return
        for missing in self._missing[self._next :]:
            missing.difference_update(names)
        with self._aside():
            while self._next < len(self.groups) and not self._missing[self._next]:
                self._begin_next()

    @torch.no_grad()
    def finish(self) -> None:
        """All gradients are there: begin what is not under way and see everything to its end."""
        with self._aside():
            while self._next < len(self.groups):
                self._begin_next()
            while self._under_way:
                self._advance()
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        self._is_open, self._next = False, 0

    def _begin_next(self) -> None:
        self._advance()
        self._go_on(self._begin(self._next))
        self._next += 1

    def _advance(self) -> None:
        """Each exchange one collective further, the oldest first."""
        for _ in range(len(self._under_way)):
            steps, work = self._under_way.popleft()
            work.wait()
            self._go_on(steps)

    def _go_on(self, steps: Steps) -> None:
        work = next(steps, None)
        if work is not None:
            self._under_way.append((steps, work))

    def _aside(self) -> AbstractContextManager:
        """What is done within the block begins when the gradients are there, and holds up nothing that comes after it. Its
        memory is used elsewhere only after `finish`, and again here only after the next update's gradients."""
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(self._stream)
