"""Batch normalisation with the statistics of all processes, so that several of them are one with their whole batch.

PyTorch's own `SyncBatchNorm` is for GPUs alone. Running statistics change in a forward pass, before anybody knows whether the
update takes place: `Statistics` puts back those of one that did not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.nn.functional import all_reduce

from dalle.cluster.topology import World


def synchronised(norm: nn.BatchNorm2d, world: World) -> nn.BatchNorm2d:
    """The same layer with the same parameters and names; with one process, the layer itself."""
    if world.size == 1:
        return norm
    synchronised_norm = SynchronisedBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, world=world)
    synchronised_norm.load_state_dict(norm.state_dict())
    return synchronised_norm


def synchronise_all(model: nn.Module, world: World) -> None:
    """Every batch normalisation of a model over the batches of all processes."""
    for part in list(model.modules()):
        for name, norm in list(part.named_children()):
            if type(norm) is nn.BatchNorm2d:
                part.register_module(name, synchronised(norm, world))


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the batches of all processes, each of which brings as many samples."""

    def __init__(self, *arguments: Any, world: World) -> None:
        super().__init__(*arguments)
        self.world_size = world.size

    def forward(self, x_BCYX: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x_BCYX)
        # about a value near the mean, or the difference of squares would lose digits
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        centre_C = self.running_mean.detach().clone()
        centred_BCYX = x_BCYX - centre_C[:, None, None]
        moments_2C = torch.stack([centred_BCYX.mean(dim=(0, 2, 3)), centred_BCYX.square().mean(dim=(0, 2, 3))])
        mean_C, square_C = all_reduce(moments_2C) / self.world_size
        variance_C = square_C - mean_C**2
        with torch.no_grad():
            count = self.world_size * x_BCYX.numel() // x_BCYX.shape[1]
            self.running_mean.lerp_(mean_C + centre_C, self.momentum)
            self.running_var.lerp_(variance_C * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale_C = torch.rsqrt(variance_C + self.eps)
        normalised_BCYX = (centred_BCYX - mean_C[:, None, None]) * scale_C[:, None, None]
        if not self.affine:
            return normalised_BCYX
        return normalised_BCYX * self.weight[:, None, None] + self.bias[:, None, None]


class Statistics:
    """Running means and variances of a model's batch normalisations, as they were after the last update that took place. What is not
    finite would never leave them again, nor, with several processes, what is normalised.

    Args:
        model: whose buffers stay the same tensors from now on
    """

    def __init__(self, model: nn.Module):
        norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        self._held = [b for norm in norms for b in norm.buffers(recurse=False) if b.is_floating_point()]
        self._kept = [torch.empty_like(buffer) for buffer in self._held]
        self.keep()

    @torch.no_grad()
    def keep(self) -> None:
        """What they are now is what a skipped update leaves."""
        for kept, held in zip(self._kept, self._held, strict=True):
            kept.copy_(held)

    @torch.no_grad()
    def settle(self, skipped: torch.Tensor) -> None:
        """The update is over. skipped: 1 if it did not take place, else 0; a scalar on the device, which nothing waits for."""
        for kept, held in zip(self._kept, self._held, strict=True):
            held.copy_(kept.where(skipped > 0, held))
        self.keep()
