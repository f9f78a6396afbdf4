"""The one way in which a module's forward pass is changed from outside: its `forward` is replaced.

Autocast and recomputation have to span a whole call, which hooks cannot. A module around the module would, but it would put
its own name into the names of the parameters, and those are checkpoint keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint as recomputed


def wrap(module: nn.Module, around: Callable, *first: Any) -> None:
    """Have `around(*first, forward, *inputs)` called in place of a module's `forward(*inputs)`. The last wrapping is the
    outermost."""
    module.forward = partial(around, *first, module.forward)


def recompute_blocks(model: Any) -> None:
    """Let a model's `recomputable` parts be computed again in the backward pass. None of them draws random numbers."""
    for module in model.recomputable():
        wrap(module, partial(recomputed, use_reentrant=False, preserve_rng_state=False))
