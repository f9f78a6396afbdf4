"""PowerSGD between machines, on each process's own shards (section 2.5, appendix E).

What a machine has not yet sent of a gradient waits in its error buffer E, and there is no other place for gradients: as they
come, micro-batch by micro-batch, every process adds its shard's to its buffer, in the buffer's format. Then, with B = E + G for
what has come of them, for each matrix, with all machines,

    P = mean(B · Q₀),  Q₀ Gaussian and fixed     P ← orthonormal columns of P + 1e-6 · I
    Q = mean(Bᵀ · P)                             applied gradient P · Qᵀ,  E ← B − P · Qᵀ

so that P and Q, of rank r / m, are all that travels. Since every machine subtracts the mean that was applied, nothing
is lost but by rounding to the buffer's format: the sum of the buffers over the machines after an update, plus what was applied
times the number of machines, is the sum before it and of the gradients.

A gradient that is not finite is not added, and its update is skipped. A skipped update's P · Qᵀ is subtracted all the same,
wherever it is finite: so much of what waited and of what came is dropped as would have been applied, and the rest stays.
Left in the buffers, gradients of updates that are skipped one after another would come together, as one many times too large.

The mean of a P is on the machine that owns it alone, on its way to all: there it is orthogonalised, once, and all machines
have the same bits of it, rounded to the format of the wire. That it is then orthonormal but for that rounding costs nothing:
what is applied is P · Qᵀ of this very P, and so is what is subtracted.

Matrices travel in groups, resblock by resblock where the machines are few (`ownership.py`), so that what comes last in the
backward pass need not wait for what comes first (`overlap.py`).

Departures from the paper: matrices of one shape share Q₀ and are worked on together; gradients are means here, parts of
a sum there; every GPU of the paper's orthogonalises all P for itself.
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
    p_NSK: torch.Tensor | None = None  # once all know them, as they came: in the format of the wire, Q by its scale
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
        self._q_scale = torch.ones((), device=device)  # of this update, whose end changes `scales`
        self._largest = torch.zeros(2, device=device)  # of this update's P and Q
        self._places = {name: place for stack in self.stacks() for name, place in self._within(stack)}
        self._all_finite = torch.ones((), dtype=torch.bool, device=device)  # of what was added for this update
        self._subtracted: set[str] = set()  # in this update

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

    def _within(self, stack: _Stack) -> Iterator[tuple[str, tuple[_Stack, slice]]]:
        """By name, where in its stack a weight's matrices are."""
        first = 0
        for name in stack.names:
            parts = self.shapes[name][2]
            yield name, (stack, slice(first, first + parts))
            first += parts

    @torch.no_grad()
    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Add a gradient to what waits of it, rounded to the buffer's format.

        Args:
            name: of the weight
            gradient: flat fp32, this process's rows. A matrix with a number that is not finite is left out, and the update has to
                be skipped
        """
        stack, place = self._places[name]
        given = self._lying(gradient, name)
        finite = _finite(given)
        self._all_finite &= finite.all()
        buffer = stack.buffer_NSL[place]
        buffer.copy_(encode(decode(buffer, self.format) + given.where(finite, 0), self.format))

    def factorise(self, group: int) -> Steps:
        """Agree with the other machines on P and Q of what waits of one of `groups`. All machines take the groups in one order,
        and each group when all of its gradients were added.

        Args:
            group: its number
        """
        stacks, layout = self._stacks[group], self._layouts[group]
        p_NSK = [decode(stack.buffer_NSL, self.format) @ stack.q0_LK for stack in stacks]

        def orthogonalised(mean_N: torch.Tensor) -> torch.Tensor:
            """This machine's matrices, and the largest number that was sent to it."""
            largest = mean_N.abs().amax() if mean_N.numel() else mean_N.new_zeros(())
            mine = layout.of_owner(mean_N / self.scales[0], self.exchange.number)
            return torch.cat([*(orthonormal(matrices).flatten() for matrices in mine), largest[None]])

        sent_N = layout.laid(p_NSK) * self.scales[0]
        found = yield from self.exchange.owned(sent_N, layout.sizes(), orthogonalised, more=1)
        self._note(0, torch.stack([part[-1] for part in found]).amax())
        for stack, matrices in zip(stacks, layout.stacked([part[:-1] for part in found]), strict=True):
            stack.p_NSK = encode(matrices, self.format)

        q_NLK = [decode(stack.buffer_NSL, self.format).mT @ self._p(stack) for stack in stacks]
        self._q_scale = self.scales[1].clone()
        mean_N = yield from self.exchange.mean(torch.cat([q.flatten() for q in q_NLK]) * self._q_scale)
        self._note(1, mean_N.abs().amax())
        for stack, part, q in zip(stacks, mean_N.split([q.numel() for q in q_NLK]), q_NLK, strict=True):
            stack.q_NLK = encode(part.view_as(q), self.format)

    def _p(self, stack: _Stack, place: slice = slice(None)) -> torch.Tensor:
        """Fp32, of some of a stack's matrices."""
        return decode(_there(stack.p_NSK)[place], self.format)

    def _q(self, stack: _Stack, place: slice = slice(None)) -> torch.Tensor:
        """Fp32, of some of a stack's matrices."""
        return decode(_there(stack.q_NLK)[place], self.format) / self._q_scale

    def _note(self, which: int, largest: torch.Tensor) -> None:
        """Keep the largest of what was sent in this update, in its own size."""
        self._largest[which] = torch.maximum(self._largest[which], largest / self.scales[which])

    def squares(self) -> torch.Tensor:
        """When all groups are factorised: the square of the norm of what `applied` will give of all of this process's shards, which
        is that of Q, on the device; infinite when one of the gradients was not finite."""
        squares = torch.stack([self._q(stack).square().sum() for stack in self.stacks()]).sum()
        return squares.where(self._all_finite, torch.inf)

    def _next_scales(self) -> torch.Tensor:
        if self.format != "1-6-9":
            return self.scales
        largest = self._largest.clamp(min=torch.finfo(torch.float32).tiny)
        scales = torch.exp2(torch.floor(torch.log2(_LARGEST_SENT / largest))).clamp(2.0**-60, 2.0**60)
        return torch.where(scales.isfinite(), scales, self.scales)

    @torch.no_grad()
    def decide(self, takes_place: torch.Tensor) -> None:
        """Tell, when all groups are factorised, whether the update takes place, bool scalar on the device. If not, the scales of
        the wire stay as they are."""
        self.scales.copy_(torch.where(takes_place, self._next_scales(), self.scales))

    @torch.no_grad()
    def applied(self, name: str) -> torch.Tensor:
        """The decompressed gradient of this process's rows of a weight, which its error buffer loses: once an update. Where that is
        not finite the buffer stays as it is; a buffer that is not finite is emptied.

        Returns:
            fp32 [matrices side by side, rows, columns], before clipping
        """
        stack, place = self._places[name]
        sent = self._p(stack, place) @ self._q(stack, place).mT
        buffer = stack.buffer_NSL[place]
        waiting = decode(buffer, self.format)
        left = waiting - sent
        kept = waiting.where(_finite(waiting), 0)
        buffer.copy_(encode(left.where(_finite(left), kept), self.format))
        self._subtracted.add(name)
        return self._standing(sent, name)

    def close(self) -> None:
        """The update is over. The buffers of what was not asked for, since it was skipped, lose what would have been applied."""
        for name in self.shapes.keys() - self._subtracted:
            self.applied(name)
        for stack in self.stacks():
            stack.p_NSK = stack.q_NLK = None
        self._subtracted.clear()
        self._all_finite.fill_(True)
        self._largest.zero_()

    def stacks(self) -> Iterator[_Stack]:
        """Of all groups."""
        for stacks in self._stacks:
            yield from stacks

    def waiting(self, name: str) -> torch.Tensor:
        """What the error buffer has of this process's rows of a weight: a copy, flat, fp32."""
        stack, place = self._places[name]
        return self._standing(decode(stack.buffer_NSL[place], self.format), name).flatten().clone()

    def set_waiting(self, name: str, flat: torch.Tensor) -> None:
        """Have this in the error buffer, in its format, in place of what is there: `waiting`, undone."""
        stack, place = self._places[name]
        stack.buffer_NSL[place].copy_(encode(self._lying(flat, name), self.format))

    def _lying(self, flat: torch.Tensor, name: str) -> torch.Tensor:
        """This process's rows of a matrix, or of several, with the shorter side first: [parts, short, long]."""
        rows, columns, parts = self.shapes[name]
        matrices = flat.view(parts, rows // parts, columns)
        return matrices if rows // parts <= columns else matrices.mT

    def _standing(self, lying: torch.Tensor, name: str) -> torch.Tensor:
        """`_lying` undone: [parts, rows, columns]."""
        rows, columns, parts = self.shapes[name]
        return lying if rows // parts <= columns else lying.mT


def _finite(matrices_NSL: torch.Tensor) -> torch.Tensor:
    """Whether each matrix is finite, bool [N, 1, 1]: its sum is not otherwise. One pass without a temporary tensor."""
    return matrices_NSL.sum(dim=(1, 2), keepdim=True).isfinite()


def _batches(names: list[str], size: int) -> Iterator[list[str]]:
    for first in range(0, len(names), size):
        yield names[first : first + size]
