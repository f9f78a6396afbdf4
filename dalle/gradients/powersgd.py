"""PowerSGD between machines, on each process's own shards (section 2.5, appendix E).

What a machine has not yet sent of a gradient waits in its error buffer E. At each update every process adds its shard's
gradient G, B = E + G, and for each matrix, with all machines,

    P = mean(B · Q₀),  Q₀ Gaussian and fixed     P ← orthonormal columns of P + 1e-6 · I
    Q = mean(Bᵀ · P)                             applied gradient P · Qᵀ,  E ← B − P · Qᵀ

so that P and Q, of rank r / m, are all that travels. Since every machine subtracts the mean that was applied, nothing
is lost: the sum of the buffers over the machines after an update, plus what was applied times the number of machines,
is the sum before it and of the gradients. An update that is skipped changes no buffer: its gradient is dropped, as it is
without compression.

The mean of a P is on the machine that owns it alone, on its way to all: there it is orthogonalised, once, and all machines
have the same bits of it, rounded to the format of the wire. That it is then orthonormal but for that rounding costs nothing:
what is applied is P · Qᵀ of this very P, and so is what is subtracted.

Matrices travel in groups, resblock by resblock where the machines are few (`ownership.py`), so that what comes last in the
backward pass need not wait for what comes first (`overlap.py`).

Departures from the paper: matrices of one shape share Q₀ and are worked on together; gradients are means here, parts of
a sum there; the gradient exists beside the buffer, where DeepSpeed collects it, so that B is made anew where it is
needed, and is never rounded to the buffer's format; a skipped update leaves the buffers alone, where the paper takes in
what was finite; every GPU of the paper's orthogonalises all P for itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dalle.config import Compression
from dalle.gradients.exchange import Exchange, Steps, decode, encode
from dalle.gradients.orthogonal import orthonormal
from dalle.gradients.ownership import Layout, shares, together

_LARGEST_SENT = 2.0**-6
"""Near which the largest of P and Q is kept, by powers of two: a thousandth of 1-6-9's largest, and 2⁵³ times its
smallest normal number."""
_STACK_ELEMENTS = 2**26
"""Matrices worked on together have no more elements than this, for the sake of temporary memory, unless one has."""


@dataclass
class _Stack:
    """Matrices of one shape, lying down: [N, short, long]."""

    names: list[str]
    q0_LK: torch.Tensor
    buffer_NSL: torch.Tensor  # in the buffers' format
    p_NSK: torch.Tensor | None = None
    q_NLK: torch.Tensor | None = None


def _there(exchanged: torch.Tensor | None) -> torch.Tensor:
    assert exchanged is not None
    return exchanged


class PowerSGD:
    """Compresses the gradients of matrices.

    A process holds rows of each matrix. Rows of a fused q·k·v weight count as three matrices of a third of them each: over
    the m processes those thirds are exactly the shards of q, k and v.

    Args:
        shapes: by name, what this process holds of each matrix: (rows, columns, number of matrices side by side in the rows)
        config: rank (of no more than a shard's shorter side, where it is larger), format, seed
        ranks_per_machine: m, the shards of a matrix
        ordinal: this process's number among them
        exchange: between the machines
        device: of the buffers
        blocks: names of each resblock's matrices, in the order in which their gradients come; None takes all together

    Raises:
        ValueError: the rank does not divide by m
    """

    def __init__(
        self,
        shapes: dict[str, tuple[int, int, int]],
        config: Compression,
        ranks_per_machine: int,
        ordinal: int,
        exchange: Exchange,
        device: torch.device,
        blocks: Sequence[Sequence[str]] | None = None,
    ):
        self.rank = config.rank_of_shard(ranks_per_machine)
        self.format, self.exchange, self.shapes = config.format, exchange, shapes
        sent = {name: (shapes[name][2], math.prod(self._p_shape(name))) for name in shapes}
        self.groups = together(blocks or [list(shapes)], sent, exchange.size, ranks_per_machine)
        """Names of the matrices that travel together"""
        self._stacks = [self._stacked(names, config.seed, device) for names in self.groups]
        place = (ranks_per_machine, ordinal)
        self._layouts = [self._layout(stacks, number, *place) for number, stacks in enumerate(self._stacks)]
        # powers of two that P and Q are multiplied with before they are sent; every process of a replica group derives
        # the same from the same averages
        self.scales = torch.ones(2, device=device)
        self._largest = torch.zeros(2, device=device)  # of this update's P and Q
        self._all_finite: list[torch.Tensor] = []
        self._gradients: dict[str, torch.Tensor] = {}  # between `factorise` and `apply`

    def _sides(self, name: str) -> tuple[int, int]:
        """Of a matrix lying down: short, long."""
        rows, columns, parts = self.shapes[name]
        short, long = sorted((rows // parts, columns))
        return short, long

    def _p_shape(self, name: str) -> tuple[int, int]:
        short, _ = self._sides(name)
        return short, min(self.rank, short)

    def _stacked(self, names: list[str], seed: int, device: torch.device) -> list[_Stack]:
        """The stacks of a group."""
        by_size: dict[tuple[int, int, int], list[str]] = defaultdict(list)
        for name in names:
            short, long = self._sides(name)
            by_size[short, long, self.shapes[name][2]].append(name)
        return [
            self._stack(some, seed, device)
            for size, of_size in by_size.items()
            for some in _batches(of_size, max(1, _STACK_ELEMENTS // math.prod(size)))
        ]

    def _stack(self, names: list[str], seed: int, device: torch.device) -> _Stack:
        short, long = self._sides(names[0])
        # drawn on the CPU: the same on every machine whatever its device
        generator = torch.Generator().manual_seed(seed + 1_000_003 * short + long)
        q0_LK = torch.randn(long, min(self.rank, short), generator=generator).to(device)
        num_matrices = sum(self.shapes[name][2] for name in names)
        return _Stack(names, q0_LK, encode(torch.zeros(num_matrices, short, long, device=device), self.format))

    def _layout(self, stacks: list[_Stack], number: int, ordinals: int, ordinal: int) -> Layout:
        """A group's P, shared out among the machines."""
        counts = [len(stack.buffer_NSL) for stack in stacks]
        shapes = [self._p_shape(stack.names[0]) for stack in stacks]
        sizes = [math.prod(shape) for shape in shapes]
        return Layout(shapes, shares(counts, sizes, self.exchange.size, ordinals, number)[ordinal])

    def factorise(self, group: int, gradients: dict[str, torch.Tensor]) -> Steps:
        """Agree with the other machines on P and Q of the buffers and gradients of one of `groups`. All machines take the
        groups in one order.

        Args:
            group: its number
            gradients: by name, flat fp32, this process's rows; they have to stay as they are until `apply` gives its own. A
                matrix with one that is not finite counts as zeros, and the update has to be skipped
        """
        self._gradients |= gradients
        stacks, layout = self._stacks[group], self._layouts[group]
        self._all_finite += [_finite(self._given(stack)).all() for stack in stacks]
        p_NSK = [self._waiting(stack) @ stack.q0_LK for stack in stacks]

        def orthogonalised(mean_N: torch.Tensor) -> torch.Tensor:
            """This machine's matrices, and the largest number that was sent to it."""
            largest = mean_N.abs().amax() if mean_N.numel() else mean_N.new_zeros(())
            mine = layout.of_owner(mean_N / self.scales[0], self.exchange.number)
            return torch.cat([*(orthonormal(matrices).flatten() for matrices in mine), largest[None]])

        sent_N = layout.laid(p_NSK) * self.scales[0]
        found = yield from self.exchange.owned(sent_N, layout.sizes(), orthogonalised, more=1)
        self._note(0, torch.stack([part[-1] for part in found]).amax())
        for stack, matrices in zip(stacks, layout.stacked([part[:-1] for part in found]), strict=True):
            stack.p_NSK = matrices

        q_NLK = [self._waiting(stack).mT @ _there(stack.p_NSK) for stack in stacks]
        mean_N = yield from self.exchange.mean(torch.cat([q.flatten() for q in q_NLK]) * self.scales[1])
        self._note(1, mean_N.abs().amax())
        mean_N = mean_N / self.scales[1]
        for stack, part, q in zip(stacks, mean_N.split([q.numel() for q in q_NLK]), q_NLK, strict=True):
            stack.q_NLK = part.view_as(q)

    def _note(self, which: int, largest: torch.Tensor) -> None:
        """Keep the largest of what was sent in this update, in its own size."""
        self._largest[which] = torch.maximum(self._largest[which], largest / self.scales[which])

    def squares(self) -> torch.Tensor:
        """When all groups are factorised: the square of the norm of what `apply` will give for this process's shards, which is
        that of Q, on the device; infinite when one of the gradients was not finite."""
        squares = torch.stack([_there(stack.q_NLK).square().sum() for stacks in self._stacks for stack in stacks]).sum()
        return squares.where(torch.stack(self._all_finite).all(), torch.inf)

    def _given(self, stack: _Stack) -> torch.Tensor:
        """G of a stack's matrices."""
        return torch.cat([self._lying(self._gradients[name], name) for name in stack.names])

    def _waiting(self, stack: _Stack) -> torch.Tensor:
        """B of a stack's matrices."""
        given_NSL = self._given(stack)
        return given_NSL.where(_finite(given_NSL), 0).add_(decode(stack.buffer_NSL, self.format))

    def _next_scales(self) -> torch.Tensor:
        if self.format != "1-6-9":
            return self.scales
        largest = self._largest.clamp(min=torch.finfo(torch.float32).tiny)
        scales = torch.exp2(torch.floor(torch.log2(_LARGEST_SENT / largest))).clamp(2.0**-60, 2.0**60)
        return torch.where(scales.isfinite(), scales, self.scales)

    @torch.no_grad()
    def apply(self, applied: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The decompressed gradients, one stack at a time, while the error buffers lose them.

        Args:
            applied: bool scalar on the device: whether the update takes place. If not, all stays as it was before
                `factorise`; but a buffer that is not finite is emptied

        Yields:
            name and fp32 gradient of this process's rows, [matrices side by side, rows, columns], before clipping
        """
        self.scales.copy_(torch.where(applied, self._next_scales(), self.scales))
        for stack in self.stacks():
            sent_NSL = _there(stack.p_NSK) @ _there(stack.q_NLK).mT
            left_NSL = torch.where(applied, self._waiting(stack) - sent_NSL, decode(stack.buffer_NSL, self.format))
            stack.buffer_NSL = encode(left_NSL.where(_finite(left_NSL), 0), self.format)
            yield from self._standing(stack, sent_NSL)
            stack.p_NSK = stack.q_NLK = None
        self._gradients, self._all_finite = {}, []
        self._largest.zero_()

    def stacks(self) -> Iterator[_Stack]:
        """Of all groups."""
        for stacks in self._stacks:
            yield from stacks

    def buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and error buffer, flat fp32, of this process's rows of each matrix."""
        for stack in self.stacks():
            for name, standing in self._standing(stack, decode(stack.buffer_NSL, self.format)):
                yield name, standing.flatten()

    def load_buffers(self, buffers: dict[str, torch.Tensor]) -> None:
        """Restore what `buffers` gave."""
        for stack in self.stacks():
            stack.buffer_NSL = encode(torch.cat([self._lying(buffers[n], n) for n in stack.names]), self.format)

    def _lying(self, flat: torch.Tensor, name: str) -> torch.Tensor:
        """This process's rows of a matrix, or of several, with the shorter side first: [parts, short, long]."""
        rows, columns, parts = self.shapes[name]
        matrices = flat.view(parts, rows // parts, columns)
        return matrices if rows // parts <= columns else matrices.mT

    def _standing(self, stack: _Stack, lying_NSL: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """`_lying` undone for all matrices of a stack."""
        parts_by_name = lying_NSL.split([self.shapes[name][2] for name in stack.names])
        for name, matrices in zip(stack.names, parts_by_name, strict=True):
            rows, columns, parts = self.shapes[name]
            yield name, matrices if rows // parts <= columns else matrices.mT


def _finite(matrices_NSL: torch.Tensor) -> torch.Tensor:
    """Whether each matrix is finite, bool [N, 1, 1]: its sum is not otherwise. One pass without a temporary tensor."""
    return matrices_NSL.sum(dim=(1, 2), keepdim=True).isfinite()


def _batches(names: list[str], size: int) -> Iterator[list[str]]:
    for first in range(0, len(names), size):
        yield names[first : first + size]
