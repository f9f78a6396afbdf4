"""The one way in which a module's forward pass is changed from outside: its `forward` is replaced.

Autocast and recomputation have to span a whole call, which hooks cannot. A module around the module would, but it would put
its own name into the names of the parameters, and those are checkpoint keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn


def wrap(module: nn.Module, around: Callable, *first: Any) -> None:
    """Have `around(*first, forward, *inputs)` called in place of a module's `forward(*inputs)`. The last wrapping is the
    outermost."""
    module.forward = partial(around, *first, module.forward)
