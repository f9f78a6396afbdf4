"""When the step size is lowered: the training loss has stopped falling (appendix B.2; the rule is ours, for the paper's
eye). Plain arithmetic on the logged losses, which are the same on every rank."""

from __future__ import annotations

from typing import Any

from dalle.config import Plateau


class PlateauRule:
    """What the step size is multiplied by, given the losses so far.

    Args:
        config: the rule
        warmup_steps: updates that are left out at the start
    """

    def __init__(self, config: Plateau, warmup_steps: int):
        self.config, self.warmup_steps = config, warmup_steps
        self.reductions = 0
        self._best: float | None = None
        self._windows_since = 0  # since the best window, or since the last reduction
        self._sum, self._count = 0.0, 0  # of the window that is being filled

    @property
    def factor(self) -> float:
        """What the schedule's step size is multiplied by from now on."""
        return self.config.factor**self.reductions

    def take(self, loss: float, num_updates: int, step: int) -> float:
        """Take in a mean loss and give the factor.

        A window ends in the middle of a mean if need be, whose updates count alike. So windows have the same places
        however often means are logged.

        Args:
            loss: mean of the training loss, finite, over all ranks
            num_updates: updates it is the mean of
            step: updates done, the mean's included
        """
        remaining = min(num_updates, step - self.warmup_steps)
        while remaining > 0:
            taken = min(remaining, self.config.window_steps - self._count)
            self._sum, self._count = self._sum + taken * loss, self._count + taken
            remaining -= taken
            if self._count == self.config.window_steps:
                self._close(self._sum / self._count)
                self._sum, self._count = 0.0, 0
        return self.factor

    def state_dict(self) -> dict[str, float | int | None]:
        """All that later factors depend on; JSON-able."""
        return {
            "reductions": self.reductions,
            "best": self._best,
            "windows_since": self._windows_since,
            "sum": self._sum,
            "count": self._count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.reductions, self._best, self._windows_since = state["reductions"], state["best"], state["windows_since"]
        self._sum, self._count = state["sum"], state["count"]

    def _close(self, loss: float) -> None:
        """A window has ended. With a new best the wait begins anew, as it does with a reduction, which takes its time to
        show."""
        # a dVAE's loss may be negative, and lies below then by that share of its size
        if self._best is None or loss < self._best - self.config.threshold * abs(self._best):
            self._best, self._windows_since = loss, 0
            return
        self._windows_since += 1
        if self._windows_since >= self.config.patience_windows and self.reductions < self.config.max_reductions:
            self.reductions, self._windows_since = self.reductions + 1, 0
