"""How many captions of a training are cut, said in its log and at its end, for each stage that reads captions."""

from __future__ import annotations

import torch

from dalle.cluster.topology import World
from dalle.text import Cuts


class CutCaptions:
    """Says how many captions all processes have cut. Both methods are called by all of them at once.

    Args:
        cuts: of this process, as they are counted
        world: the processes
    """

    def __init__(self, cuts: Cuts, world: World):
        self.cuts, self.world = cuts, world
        self._told = 0

    def check(self, step: int, values: dict[str, float]) -> list[str]:
        """For the training loop: says it when the first are cut, and whenever they have doubled."""
        total = self._total()
        if total.cut < max(1, 2 * self._told):
            return []
        self._told = total.cut
        return [str(total)]

    def conclude(self) -> list[str]:
        """The same at the end, where any were."""
        total = self._total()
        return [str(total)] if total.cut else []

    def _total(self) -> Cuts:
        counts = torch.tensor([self.cuts.captions, self.cuts.cut], device=self.world.device)
        return Cuts(self.cuts.limit, *self.world.sum(counts).tolist())
