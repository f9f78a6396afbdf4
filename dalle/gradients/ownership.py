"""Which machine orthogonalises which matrices, and which matrices travel together.

A matrix's P is orthogonalised by one machine for all. So what travels together has to be matrices enough for every machine, or
some would receive and send more than others. The m processes of a machine compress their shards each for itself, so what
counts is what all of them own: with two machines the matrices of a resblock are enough, with the paper's 128 of 8 processes
those of ten resblocks of its 128. The fewer travel together, the more of the exchange the backward pass hides.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_UNEVEN = 1.1
"""How much larger than the average the largest share may be."""


def shares(
    counts: Sequence[int], sizes: Sequence[int], owners: int, ordinals: int = 1, first: int = 0
) -> list[list[list[int]]]:
    """How many matrices of each kind each machine owns: always the next largest goes to the one that has least so far.

    Args:
        counts: matrices of each kind
        sizes: elements of each
        owners: machines
        ordinals: processes of a machine, which have as many matrices each
        first: of machines that have equally little this one, or else the next after it, comes first

    Returns:
        by ordinal and kind one number a machine
    """
    loads = [(0, place, (first + place) % owners) for place in range(owners)]
    found = [[[0] * owners for _ in counts] for _ in range(ordinals)]
    for kind in sorted(range(len(counts)), key=lambda kind: -sizes[kind]):
        for of_ordinal in found:
            for _ in range(counts[kind]):
                load, place, owner = loads[0]
                heapq.heapreplace(loads, (load + sizes[kind], place, owner))
                of_ordinal[kind][owner] += 1
    return found


@dataclass(frozen=True)
class Layout:
    """Stacks of matrices, laid end to end owner by owner: the first matrices of each stack are the first owner's.

    Args:
        shapes: (rows, columns) of each stack's
        owned: matrices that each owner has, by stack
    """

    shapes: list[tuple[int, int]]
    owned: list[list[int]]

    def sizes(self) -> list[int]:
        """Elements of each owner's."""
        return [sum(self._widths(owner)) for owner in range(len(self.owned[0]))]

    def _widths(self, owner: int) -> list[int]:
        return [row[owner] * math.prod(shape) for row, shape in zip(self.owned, self.shapes, strict=True)]

    def laid(self, stacks: Sequence[torch.Tensor]) -> torch.Tensor:
        """From [matrices, rows, columns] of each stack to all of them, flat."""
        by_stack = [stack.split(row) for stack, row in zip(stacks, self.owned, strict=True)]
        return torch.cat([matrices.flatten() for of_owner in zip(*by_stack, strict=True) for matrices in of_owner])

    def of_owner(self, part: torch.Tensor, owner: int) -> list[torch.Tensor]:
        """An owner's matrices, [matrices, rows, columns] of each stack, from its part of what `laid` gives."""
        pieces = part.split(self._widths(owner))
        return [piece.view(-1, *shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def stacked(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """`laid` undone: [matrices, rows, columns] of each stack, from the parts of all owners."""
        by_owner = [self.of_owner(part, owner) for owner, part in enumerate(parts)]
        return [torch.cat(matrices) for matrices in zip(*by_owner, strict=True)]


def together(
    blocks: Sequence[Sequence[str]], sizes: dict[str, tuple[int, int]], owners: int, ordinals: int = 1
) -> list[list[str]]:
    """Names that travel together: as few whole resblocks as can be shared out evenly.

    Args:
        blocks: names of the matrices of each resblock, in the order in which their gradients come
        sizes: by name, matrices side by side under it, and elements of P of each
        owners, ordinals: see `shares`

    Returns:
        names by group, in the order of the resblocks; what is left over at the end, and uneven, is a group all the same: it is
        the one that nothing hides
    """
    groups: list[list[str]] = []
    waiting: list[str] = []
    for block in blocks:
        waiting = [*waiting, *block]
        if _is_even([sizes[name] for name in waiting], owners, ordinals):
            groups.append(waiting)
            waiting = []
    return [*groups, waiting] if waiting else groups


def _is_even(matrices: list[tuple[int, int]], owners: int, ordinals: int) -> bool:
    counts, sizes = zip(*matrices, strict=True)
    loads = [0] * owners
    for of_ordinal in shares(counts, sizes, owners, ordinals):
        for row, size in zip(of_ordinal, sizes, strict=True):
            loads = [load + count * size for load, count in zip(loads, row, strict=True)]
    return max(loads) * owners <= _UNEVEN * sum(loads)
