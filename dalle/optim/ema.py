"""Exponentially weighted averages of the weights: what inference loads.

The paper keeps them in main memory, copies the weights there every 25 updates while the GPU goes on, and has decay 0.99
(appendix B.2). A process averages what it holds: its shards at ZeRO stage 3, else the whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import torch

from dalle.gradients.partition import Piece
from dalle.outputs.threads import Workers


class EMA:
    """Averages of floating-point weights and buffers, fp32 for those of 16 bits; other buffers are copied.

    The decay warms up as (1 + t) / (10 + t), t being the number of steps of the average, so that a short run is not an
    average with its random start.

    Args:
        weights: what `Shards.weights` gives
        decay: final decay per step of the average
        every_steps: updates between two steps; above 1 the averages are kept in main memory
    """

    def __init__(self, weights: dict[str, tuple[Piece, torch.Tensor]], decay: float, every_steps: int = 1):
        self.decay, self.every_steps = decay, every_steps
        self.pieces = {name: piece for name, (piece, _) in weights.items()}
        self._live = {name: tensor for name, (_, tensor) in weights.items()}
        self._away = every_steps > 1 and any(tensor.is_cuda for tensor in self._live.values())
        self._averages = {name: self._here(tensor) for name, tensor in self._live.items()}
        self._copies = (
            {n: torch.empty_like(t, device="cpu").pin_memory() for n, t in self._live.items()} if self._away else {}
        )
        self._worker = Workers() if self._away else None
        self._stream = torch.cuda.Stream() if self._away else None
        self._copied: torch.cuda.Event | None = None
        self._pending: Future | None = None

    def _here(self, tensor: torch.Tensor) -> torch.Tensor:
        kept = tensor.detach().cpu() if self._away else tensor.detach().clone()
        return kept.float() if _is_short(kept) else kept

    @property
    def averages(self) -> dict[str, torch.Tensor]:
        """By name, of the same shapes as the weights."""
        self._wait()
        return self._averages

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update `step`, counted from 0, if it is the turn."""
        if (step + 1) % self.every_steps:
            return
        number = step // self.every_steps
        weight = 1 - min(self.decay, (1 + number) / (10 + number))
        if not self._away:
            _lerp(self._averages, self._live, weight)
            return
        assert self._stream is not None and self._worker is not None
        self._wait()  # long done, 25 updates later
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for name, tensor in self._live.items():
                self._copies[name].copy_(tensor, non_blocking=True)
        copied = self._copied = self._stream.record_event()

        def average() -> None:
            copied.synchronize()
            _lerp(self._averages, self._copies, weight)

        self._pending = self._worker.begin(average)

    def hold(self) -> None:
        """Let the GPU wait, before it changes the weights, until they have been copied."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
            self._copied = None

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within the block the model has the averaged weights; in 16 bits they are rounded to the nearest."""
        self._wait()
        # from 16 bits an average would not come back, so the weights are kept beside it
        short = {name: live.clone() for name, live in self._live.items() if _is_short(live)}
        self._swap(short)
        for name in short:
            self._live[name].copy_(self._averages[name])
        try:
            yield
        finally:
            self._swap(short)
            for name, kept in short.items():
                self._live[name].copy_(kept)

    @torch.no_grad()
    def _swap(self, but: Collection[str]) -> None:
        for name in self._live.keys() - but:
            live, average = self._live[name], self._averages[name]
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)


@torch.no_grad()
def _lerp(averages: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], weight: float) -> None:
    floating = [name for name, tensor in weights.items() if tensor.is_floating_point()]
    short = [name for name in floating if _is_short(weights[name])]
    alike = [name for name in floating if name not in short]
    if alike:
        torch._foreach_lerp_([averages[n] for n in alike], [weights[n] for n in alike], weight)
    for name in short:
        averages[name].lerp_(weights[name].float(), weight)
    for name in weights.keys() - set(floating):
        averages[name].copy_(weights[name])


def _is_short(tensor: torch.Tensor) -> bool:
    """Whether it has 16 bits, in which an average that moves by less than a last bit would not move."""
    return tensor.is_floating_point() and tensor.element_size() == 2
