"""PowerSGD between machines, on each process's own shards (section 2.5, appendix E).

What a machine has not yet sent of a gradient waits in its error buffer E. At each update every process adds its shard's
gradient G, B = E + G, and for each matrix, with all machines,

    P = mean(B · Q₀),  Q₀ Gaussian and fixed     P ← orthonormal columns of P + 1e-6 · I (Householder)
    Q = mean(Bᵀ · P)                             applied gradient P · Qᵀ,  E ← B − P · Qᵀ

so that P and Q, of rank r / m, are all that travels. Since every machine subtracts the mean that was applied, nothing
is lost: the sum of the buffers over the machines after an update, plus what was applied times the number of machines,
is the sum before it and of the gradients. An update that is skipped changes no buffer: its gradient is dropped, as it is
without compression.

Departures from the paper: matrices of one shape share Q₀ and are worked on together; gradients are means here, parts of
a sum there; the gradient exists beside the buffer, where DeepSpeed collects it, so that B is made anew where it is
needed, and is never rounded to the buffer's format; a skipped update leaves the buffers alone, where the paper takes in
what was finite.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dalle.config import Compression
from dalle.gradients.exchange import Average, decode, encode

_IDENTITY = 1e-6
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
        average: over the machines, in the format of the wire
        device: of the buffers

    Raises:
        ValueError: the rank does not divide by m
    """

    def __init__(
        self,
        shapes: dict[str, tuple[int, int, int]],
        config: Compression,
        ranks_per_machine: int,
        average: Average,
        device: torch.device,
    ):
        self.rank = config.rank_of_shard(ranks_per_machine)
        self.format, self.average, self.shapes = config.format, average, shapes
        by_size: dict[tuple[int, int, int], list[str]] = defaultdict(list)
        for name, (rows, columns, parts) in shapes.items():
            short, long = sorted((rows // parts, columns))
            by_size[short, long, parts].append(name)
        self._stacks = [
            self._stack(some, size[:2], config.seed, device)
            for size, names in by_size.items()
            for some in _batches(names, max(1, _STACK_ELEMENTS // math.prod(size)))
        ]
        # powers of two that P and Q are multiplied with before they are sent; every process of a replica group derives
        # the same from the same averages
        self.scales = torch.ones(2, device=device)
        self._next_scales = self.scales.clone()
        self._gradients: dict[str, torch.Tensor] = {}  # between `factorise` and `apply`

    def _stack(self, names: list[str], size: tuple[int, int], seed: int, device: torch.device) -> _Stack:
        short, long = size
        # drawn on the CPU: the same on every machine whatever its device
        generator = torch.Generator().manual_seed(seed + 1_000_003 * short + long)
        q0_LK = torch.randn(long, min(self.rank, short), generator=generator).to(device)
        num_matrices = sum(self.shapes[name][2] for name in names)
        return _Stack(names, q0_LK, encode(torch.zeros(num_matrices, short, long, device=device), self.format))

    @torch.no_grad()
    def factorise(self, gradients: dict[str, torch.Tensor]) -> torch.Tensor:
        """Agree with the other machines on P and Q of buffers and gradients.

        Args:
            gradients: by name, flat fp32, this process's rows; they have to stay as they are until `apply` gives its own. A
                matrix with one that is not finite counts as zeros, and the update has to be skipped

        Returns:
            the square of the norm of what `apply` will give for this process's shards, which is that of Q, on the device;
            infinite when one of the gradients was not finite
        """
        self._gradients = gradients
        all_finite = [_finite(self._given(stack)).all() for stack in self._stacks]
        self._exchange("p_NSK", 0, lambda stack: self._waiting(stack) @ stack.q0_LK)
        for stack in self._stacks:
            assert stack.p_NSK is not None
            identity_SK = torch.eye(*stack.p_NSK.shape[1:], device=stack.p_NSK.device)
            # a matrix with a number that is not finite would end the process in some implementations of QR
            usable_N11 = _finite(stack.p_NSK)
            p_NSK = stack.p_NSK.where(usable_N11, 0) + _IDENTITY * identity_SK
            stack.p_NSK = torch.linalg.qr(p_NSK).Q.where(usable_N11, torch.nan)
        self._exchange("q_NLK", 1, lambda stack: self._waiting(stack).mT @ stack.p_NSK)
        squares = torch.stack([_there(stack.q_NLK).square().sum() for stack in self._stacks]).sum()
        return squares.where(torch.stack(all_finite).all(), torch.inf)

    def _given(self, stack: _Stack) -> torch.Tensor:
        """G of a stack's matrices."""
        return torch.cat([self._lying(self._gradients[name], name) for name in stack.names])

    def _waiting(self, stack: _Stack) -> torch.Tensor:
        """B of a stack's matrices."""
        given_NSL = self._given(stack)
        return given_NSL.where(_finite(given_NSL), 0).add_(decode(stack.buffer_NSL, self.format))

    def _exchange(self, name: str, which: int, compute) -> None:
        """Average a factor of all matrices in one call."""
        local = {id(stack): compute(stack) for stack in self._stacks}
        flat_N = torch.cat([tensor.flatten() for tensor in local.values()])
        mean_N = self.average(flat_N * self.scales[which]) / self.scales[which]
        for stack, part in zip(self._stacks, mean_N.split([t.numel() for t in local.values()]), strict=True):
            setattr(stack, name, part.view_as(local[id(stack)]))
        if self.format == "1-6-9":
            largest = mean_N.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
            scale = torch.exp2(torch.floor(torch.log2(_LARGEST_SENT / largest))).clamp(2.0**-60, 2.0**60)
            self._next_scales[which] = torch.where(scale.isfinite(), scale, self.scales[which])

    @torch.no_grad()
    def apply(self, applied: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The decompressed gradients, one stack at a time, while the error buffers lose them.

        Args:
            applied: bool scalar on the device: whether the update takes place. If not, all stays as it was before
                `factorise`; but a buffer that is not finite is emptied

        Yields:
            name and fp32 gradient of this process's rows, [matrices side by side, rows, columns], before clipping
        """
        self.scales.copy_(torch.where(applied, self._next_scales, self.scales))
        for stack in self._stacks:
            sent_NSL = _there(stack.p_NSK) @ _there(stack.q_NLK).mT
            left_NSL = torch.where(applied, self._waiting(stack) - sent_NSL, decode(stack.buffer_NSL, self.format))
            stack.buffer_NSL = encode(left_NSL.where(_finite(left_NSL), 0), self.format)
            yield from self._standing(stack, sent_NSL)
            stack.p_NSK = stack.q_NLK = None
        self._gradients = {}

    def buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and error buffer, flat fp32, of this process's rows of each matrix."""
        for stack in self._stacks:
            for name, standing in self._standing(stack, decode(stack.buffer_NSL, self.format)):
                yield name, standing.flatten()

    def load_buffers(self, buffers: dict[str, torch.Tensor]) -> None:
        """Restore what `buffers` gave."""
        for stack in self._stacks:
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
