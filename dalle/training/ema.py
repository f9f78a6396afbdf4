"""Exponentially weighted averages of the weights: what inference loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class EMA:
    """Averages of a model's parameters and floating-point buffers; other buffers are copied.

    The decay warms up as (1 + t) / (10 + t), so that a short run is not an average with its random start.

    Args:
        model: whose weights are averaged
        decay: final decay per update
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._live = _state(model)
        self.averages = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        floating = [name for name, tensor in self._live.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.averages[n] for n in floating], [self._live[n] for n in floating], 1 - decay)
        for name, tensor in self._live.items():
            if not tensor.is_floating_point():
                self.averages[name].copy_(tensor)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, live in self._live.items():
            kept = live.clone()
            live.copy_(self.averages[name])
            self.averages[name].copy_(kept)


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's own tensors (not copies) by checkpoint name."""
    return model.state_dict(keep_vars=False)
