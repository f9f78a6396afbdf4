"""Which process orthogonalises which matrices, and which matrices travel together.

A matrix's P is orthogonalised by one machine for all. So what travels together has to be matrices enough for every machine,
or some would receive and send more than others: with two machines a resblock is enough, with the paper's 128 it takes the
whole model of 384. The fewer matrices travel together, the more of the exchange the backward pass hides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_UNEVEN = 1.1
"""How much larger than the average the largest share may be."""


def shares(counts: Sequence[int], sizes: Sequence[int], owners: int, first: int = 0) -> list[list[int]]:
    """How many matrices of each kind each process owns: always the next largest to the one that has least so far.

    Args:
        counts: matrices of each kind
        sizes: elements of each
        owners: processes
        first: of those that have equally little this one, or else the next after it, comes first

    Returns:
        for each kind one number a process
    """
    loads, found = [0] * owners, [[0] * owners for _ in counts]
    order = [(first + number) % owners for number in range(owners)]
    for kind in sorted(range(len(counts)), key=lambda kind: -sizes[kind]):
        for _ in range(counts[kind]):
            owner = min(order, key=loads.__getitem__)
            loads[owner] += sizes[kind]
            found[kind][owner] += 1
    return found


@dataclass(frozen=True)
class Layout:
    """Stacks of matrices, laid end to end owner by owner: the first matrices of each stack are the first owner's.

    Args:
        shapes: (rows, columns) of each stack's
        owned: `shares`, by stack
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


def together(blocks: Sequence[Sequence[str]], sizes: dict[str, tuple[int, int]], owners: int) -> list[list[str]]:
    """Names that travel together: as few whole resblocks as can be shared out evenly.

    Args:
        blocks: names of the matrices of each resblock, in the order in which their gradients come
        sizes: by name, matrices side by side under it, and elements of P of each
        owners: processes that share a group's

    Returns:
        names by group, in the order of the resblocks; what is left over at the end, and uneven, belongs to the last group
    """
    groups: list[list[str]] = []
    waiting: list[str] = []
    for block in blocks:
        waiting = [*waiting, *block]
        if _even([sizes[name] for name in waiting], owners):
            groups.append(waiting)
            waiting = []
    if waiting:
        groups = [*groups[:-1], [*groups[-1], *waiting]] if groups else [waiting]
    return groups


def _even(matrices: list[tuple[int, int]], owners: int) -> bool:
    counts, sizes = zip(*matrices, strict=True)
    found = shares(counts, sizes, owners)
    loads = [sum(row[owner] * size for row, size in zip(found, sizes, strict=True)) for owner in range(owners)]
    return max(loads) * owners <= _UNEVEN * sum(loads)
