"""What this process holds at ZeRO stage 3: one m-th of every parameter, of its gradient and of its moments.

DeepSpeed adds the gradients of micro-batches up in one fp32 buffer, and its step reads them there. Those that are handed over have
no place in it: they are taken as each bucket has been reduced, and asked for as each of its sub-groups is about to be updated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dalle.gradients.partition import Flat, Give, Piece, Take, Told


class Sharded(Flat):
    """Doors to all of it.

    Args:
        zero: DeepSpeed's optimiser around the client's
        set_gradient: DeepSpeed's `safe_set_local_grad`
        ordinal: this process's number among those that shard
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        zero: Any,
        set_gradient: Callable[[nn.Parameter, torch.Tensor], None],
        ordinal: int,
    ):
        super().__init__(model, optimizer, zero, zero.fp32_partitioned_groups_flat, zero.fp16_groups)
        self._set = set_gradient
        self.pieces = {}
        for name, p in self.parameters.items():
            share = p.ds_tensor.ds_numel  # the last shards may be shorter, or empty
            start = min(ordinal * share, p.ds_numel)
            self.pieces[name] = Piece(tuple(p.ds_shape), start, min(share, p.ds_numel - start))
        sizes = [size for group in self._groups for size in _sizes(group)]
        self._held = {} if zero.offload_optimizer else self._views(zero.grad_partitions_flat_buffer, sizes)

    def _views(self, flat: torch.Tensor, sizes: list[int]) -> dict[str, torch.Tensor]:
        """By name, this process's gradients, which DeepSpeed adds up in one tensor; in it each has so many elements, or none."""
        names = [self._names[id(p)] for group in self._groups for p in group]
        parts = zip(names, flat.split(sizes), strict=True)
        found = {name: part[: self.pieces[name].size] for name, part in parts if part.numel()}
        return {name: found[name] for name in self.parameters if name in found}

    def hand_over(self, names: frozenset[str], take: Take, give: Give) -> bool:
        if self.zero.offload_optimizer:  # then DeepSpeed copies them to main memory, whole
            return False
        self._shrink_buffer(names)
        keep, prepare = self.zero.partition_grads, self.zero._prepare_fp32_grad_for_sub_group

        def partition_grads(parameters: list[Any], partitions: list[torch.Tensor]) -> list[torch.Tensor]:
            kept = []
            for p, partition in zip(parameters, partitions, strict=True):
                if (name := self._names[id(p)]) not in names:
                    kept.append((p, partition))
                    continue
                take(name, partition)
                if p.grad.is_cuda:  # made in another stream than this one, as DeepSpeed has it
                    p.grad.record_stream(torch.cuda.current_stream())
                p.grad = None
            return keep([p for p, _ in kept], [partition for _, partition in kept])

        def prepare_sub_group(number: int) -> None:
            if names.isdisjoint(self._names[id(p)] for p in self._groups[number]):
                prepare(number)
            else:
                self._lay(number, names, give)

        self.zero.partition_grads = partition_grads
        self.zero._prepare_fp32_grad_for_sub_group = prepare_sub_group
        return True

    def _shrink_buffer(self, names: frozenset[str]) -> None:
        """Of what is handed over nothing is left in DeepSpeed's buffer, in its table of places in it, and in its norm."""
        parameters: list[Any] = [p for group in self._groups for p in group]
        sizes = [0 if self._names[id(p)] in names else p.partition_numel() for p in parameters]
        flat = self.zero.grad_partitions_flat_buffer.new_zeros(sum(sizes))
        self.zero.grad_partitions_flat_buffer = flat
        places = self.zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
        places.update({p.ds_id: part for p, part in zip(parameters, flat.split(sizes), strict=True)})
        self._held = self._views(flat, sizes)

    def _lay(self, number: int, names: frozenset[str], give: Give) -> None:
        """The gradients of one of DeepSpeed's sub-groups, end to end, as its step wants them: a copy that goes when the sub-group
        is updated."""
        flat, in_16_bits = self._flats[number], self._flats[number].dtype != torch.float32
        optimizer: Any = self.optimizer
        if in_16_bits:
            optimizer.gradients = {}  # of the sub-group before
        laid = torch.empty(flat.numel(), device=flat.device)
        parts, found = laid.split(_sizes(self._groups[number])), {}
        for p, part, held in zip(self._groups[number], parts, self.zero.averaged_gradients[number], strict=True):
            name = self._names[id(p)]
            if name in names:
                give(name, part)
                found[name] = part
            else:
                part.copy_(held)
        if in_16_bits:  # all of them are
            optimizer.gradients = found
        flat.grad = laid.to(flat.dtype)
        self.zero.averaged_gradients[number] = None

    def tell_reduced(self, told: Told) -> bool:
        if self.zero.offload_optimizer:  # then they are not on the device that computes
            return False
        plain = self.zero.partition_grads

        def partition_grads(parameters: list[nn.Parameter], partitions: list[torch.Tensor]) -> list[torch.Tensor]:
            held = plain(parameters, partitions)
            told([self._names[id(p)] for p in parameters])
            return held

        self.zero.partition_grads = partition_grads
        return True

    def weights(self) -> dict[str, tuple[Piece, torch.Tensor]]:
        held = {
            name: (self.pieces[name], p.ds_tensor.data[: self.pieces[name].size]) for name, p in self.parameters.items()
        }
        return super().weights() | held

    def gradients(self) -> dict[str, torch.Tensor]:
        if not self.zero.offload_optimizer:
            return dict(self._held)
        held = self.zero.get_fp32_grad_partitions()
        found = {}
        for group, parameters in enumerate(self._groups):
            for number, p in enumerate(parameters):
                name = self._names[id(p)]
                found[name] = held[group][number].flatten()[: self.pieces[name].size].to(p.device)
        return {name: found[name] for name in self.parameters}

    def write_gradients(self, gradients: dict[str, torch.Tensor]) -> None:
        if self.zero.offload_optimizer:  # only then are they copies
            for name, gradient in gradients.items():
                p = self.parameters[name]
                self._set(p, nn.functional.pad(gradient, (0, p.ds_tensor.ds_numel - gradient.numel())))

    def _place(self, name: str) -> tuple[int, int]:
        group, offset, _ = self.zero.grad_position[self.zero.get_param_id(self.parameters[name])]
        return group, offset


def _sizes(parameters: list[Any]) -> list[int]:
    """Of this process's parts, as DeepSpeed pads them."""
    return [parameter.partition_numel() for parameter in parameters]
