"""What this process holds of each parameter and of its optimiser state, under every ZeRO stage.

    stage 0  everything, on every process
    stage 1  all weights, and gradients and moments of a contiguous run of all parameters laid end to end
    stage 2  the same
    stage 3  one m-th of every parameter, of its gradient and of its moments

DeepSpeed has no common door to these; this module is it, with `sharded.py` for stage 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dalle.checkpoints.checkpoint import Checkpoint

MOMENTS = ("exp_avg", "exp_avg_sq")

Told = Callable[[Collection[str]], None]
"""Hears of gradients, by name."""
Take = Callable[[str, torch.Tensor], None]
"""Takes the gradient of a micro-batch, by name."""
Give = Callable[[str, torch.Tensor], None]
"""Fills a tensor with the gradient that a parameter is to be updated with, by name."""


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of a parameter, be it sharded or not."""
    return tuple(parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape)


@dataclass(frozen=True)
class Piece:
    """A run of a flattened parameter.

    Args:
        shape: of the whole parameter
        start: where in the flattened parameter it begins
        size: number of elements, perhaps none
        shared: whether all processes hold it
    """

    shape: tuple[int, ...]
    start: int
    size: int
    shared: bool = False


@dataclass(frozen=True)
class Place:
    """Where in a tensor that the optimiser updates a piece of a parameter lies.

    Args:
        name: of the parameter
        offset: in the flattened tensor
        piece: what of the parameter it is
    """

    name: str
    offset: int
    piece: Piece


class Shards(ABC):
    """Doors to gradients and optimiser state, of the parameters that are trained.

    Args:
        model: whose parameters they belong to
        optimizer: the client's, whose state has the moments
    """

    pieces: dict[str, Piece]
    """This process's part of each parameter's gradient and moments."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.model, self.optimizer = model, optimizer
        # of any type, for what DeepSpeed hangs on to them
        self.parameters: dict[str, Any] = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def weights(self) -> dict[str, tuple[Piece, torch.Tensor]]:
        """What this process holds of the parameters and buffers: the very memory, of the whole tensor's shape or flat."""
        return {n: (Piece(tuple(t.shape), 0, t.numel(), shared=True), t) for n, t in self.model.state_dict().items()}

    @abstractmethod
    def gradients(self) -> dict[str, torch.Tensor]:
        """After the backward pass: this process's part of each gradient, averaged over the processes that shard."""

    def tell_reduced(self, told: Told) -> bool:
        """Whether it can be heard of gradients while the backward pass goes on, from now on in every one of them.

        Args:
            told: called with the names of those that the processes that shard have just averaged, and added to what
                earlier micro-batches of the update gave: what `gradients` gives has them then, in the stream of the call
        """
        return False

    def hand_over(self, names: frozenset[str], take: Take, give: Give) -> bool:
        """Whether gradients can be handed over as they come, from now on: then there is nothing of them in what `gradients` gives.

        Args:
            names: of their parameters
            take: called in every micro-batch with this process's part of a gradient, flat fp32, averaged over the processes that
                shard, and divided by the micro-batches. It may be written to, and is gone afterwards
            give: called just before a parameter is updated, not in updates that are skipped, with flat fp32 memory for this
                process's part of the gradient
        """
        return False

    @abstractmethod
    def write_gradients(self, gradients: dict[str, torch.Tensor]) -> None:
        """Make the optimiser see what was written into the tensors that `gradients` gave."""

    @abstractmethod
    def places(self) -> dict[torch.Tensor, list[Place]]:
        """By tensor that the optimiser updates, the parameters, or parts of them, that lie in it; what fills it up is left out."""

    @abstractmethod
    def moments(self, name: str) -> dict[str, torch.Tensor]:
        """This process's part of a parameter's moments, views: none before the first update."""

    def steps(self) -> torch.Tensor:
        """Updates that the optimiser has made, those that were skipped not counted: fp32 scalar."""
        counted = [state["step"] for state in self.optimizer.state.values() if "step" in state]
        return counted[0] if counted else torch.tensor(0.0)

    @abstractmethod
    def make_moments(self, step: int, dtypes: dict[str, dict[str, torch.dtype]]) -> None:
        """Optimiser state after `step` updates that were made, its moments, of the given formats by parameter and moment,
        yet empty. Where there is none it stays to be made at the first update."""


class Whole(Shards):
    """Stage 0."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        super().__init__(model, optimizer)
        self.pieces = {n: Piece(tuple(p.shape), 0, p.numel(), shared=True) for n, p in self.parameters.items()}

    def gradients(self) -> dict[str, torch.Tensor]:
        return {name: p.grad for name, p in self.parameters.items() if p.grad is not None}

    def write_gradients(self, gradients: dict[str, torch.Tensor]) -> None:
        pass  # they are the optimiser's own

    def places(self) -> dict[torch.Tensor, list[Place]]:
        return {p: [Place(name, 0, self.pieces[name])] for name, p in self.parameters.items()}

    def moments(self, name: str) -> dict[str, torch.Tensor]:
        state = self.optimizer.state.get(self.parameters[name], {})
        return {moment: state[moment] for moment in MOMENTS if moment in state}

    def make_moments(self, step: int, dtypes: dict[str, dict[str, torch.dtype]]) -> None:
        for name, p in self.parameters.items():
            # in the parameter's own memory format, which the fused optimiser takes for granted
            moments = {moment: torch.zeros_like(p, dtype=dtype) for moment, dtype in dtypes.get(name, {}).items()}
            if moments:
                self.optimizer.state[p] = {"step": torch.tensor(float(step), device=p.device), **moments}


class Flat(Shards):
    """Moments of parameters that the client's optimiser sees laid end to end.

    Args:
        zero: DeepSpeed's optimiser around the client's
        flats: what the client's optimiser sees
        groups: the parameters in each of them
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        zero: Any,
        flats: list[torch.Tensor],
        groups: list[list[nn.Parameter]],
    ):
        super().__init__(model, optimizer)
        self.zero, self._flats, self._groups = zero, flats, groups
        self._names = {id(p): name for name, p in self.parameters.items()}

    def places(self) -> dict[torch.Tensor, list[Place]]:
        found: dict[torch.Tensor, list[Place]] = {flat: [] for flat in self._flats}
        for name, piece in self.pieces.items():
            if piece.size:
                number, offset = self._place(name)
                found[self._flats[number]].append(Place(name, offset, piece))
        return found

    @abstractmethod
    def _place(self, name: str) -> tuple[int, int]:
        """Of a parameter of which something is held here: the number of the flat tensor, and the offset in it."""

    def moments(self, name: str) -> dict[str, torch.Tensor]:
        size = self.pieces[name].size
        if not size:
            return {}
        number, offset = self._place(name)
        state = self.optimizer.state.get(self._flats[number], {})
        return {moment: state[moment].narrow(0, offset, size) for moment in MOMENTS if moment in state}

    def make_moments(self, step: int, dtypes: dict[str, dict[str, torch.dtype]]) -> None:
        for flat, group in zip(self._flats, self._groups, strict=True):
            # all parameters of a group have moments of the same formats
            first = dtypes[self._names[id(group[0])]]
            moments = {
                moment: torch.zeros_like(flat, dtype=dtype, requires_grad=False) for moment, dtype in first.items()
            }
            if moments:
                self.optimizer.state[flat] = {"step": torch.tensor(float(step), device=flat.device), **moments}


class Partitioned(Flat):
    """Stages 1 and 2.

    Args:
        zero: DeepSpeed's optimiser around the client's
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, zero: Any):
        super().__init__(model, optimizer, zero, zero.single_partition_of_fp32_groups, zero.bit16_groups)
        self.pieces = {}
        for name, p in self.parameters.items():
            link = p._hp_mapping
            place = link.lp_fragment_address if link else None
            start, size = (place.start, place.numel) if place else (0, 0)
            self.pieces[name] = Piece(tuple(p.shape), start, size)

    def gradients(self) -> dict[str, torch.Tensor]:
        found = {}
        for group, parameters in enumerate(self.zero.params_in_partition):
            # what follows the last parameter's fills the partition
            for p, gradient in zip(parameters, self.zero.averaged_gradients[group], strict=False):
                found[self._names[id(p)]] = gradient
        return found

    def write_gradients(self, gradients: dict[str, torch.Tensor]) -> None:
        pass  # they are the optimiser's own

    def _place(self, name: str) -> tuple[int, int]:
        link = self.parameters[name]._hp_mapping
        return link.param_group_index, link.hp_fragment_address.start


def moment_dtypes(checkpoint: Checkpoint, names: list[str]) -> dict[str, dict[str, torch.dtype]]:
    """The formats of the moments that a checkpoint has, by parameter."""
    found = {}
    for name in names:
        kept = [moment for moment in MOMENTS if f"{moment}/{name}" in checkpoint.shapes]  # Muon has but the first
        found[name] = {moment: checkpoint.dtype(f"{moment}/{name}") for moment in kept}
    return found
