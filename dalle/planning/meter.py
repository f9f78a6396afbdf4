"""Bytes that operations allocate, counted while they run on tensors without memory (meta or fake ones), or on any others."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Within the block all that operations make is counted until it is freed.

    Args:
        known: tensors that are there before, whose memory does not count
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.held = 0
        """Bytes that are there now"""
        self.peak = 0
        """The most that were there at once"""
        self._seen: dict[int, Any] = {}
        for tensor in known:
            self._note(tensor, counted=False)

    def begin_anew(self) -> None:
        """From now on `peak` is of what is there from now on."""
        self.peak = self.held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self._note(each)
        return made

    def _note(self, tensor: torch.Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place in self._seen:
            return
        size = storage.nbytes() if counted else 0

        def freed(_: Any) -> None:
            self._seen.pop(place, None)
            self.held -= size

        self._seen[place] = weakref.ref(storage, freed)
        self.held += size
        self.peak = max(self.peak, self.held)
