"""What all processes hold, side by side on each of them."""

from __future__ import annotations

import torch
from torch.distributed.nn.functional import all_gather


def gathered(tensor: torch.Tensor, world_size: int) -> torch.Tensor:
    """The tensors of all processes, by rank, end to end along the first axis; each brings one of the same shape and type.

    Gradients flow back to whoever brought the part: a process's tensor gets the sum of what the losses of all processes say
    of it. Averaged over the processes, as a data-parallel training does, that is the gradient of their mean loss.
    """
    return torch.cat(all_gather(tensor)) if world_size > 1 else tensor
