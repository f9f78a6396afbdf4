"""Weights as they are written anew, perhaps in another precision: of a checkpoint, or of a file of finished ones. Each is read when it
is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from dalle.checkpoints.checkpoint import Checkpoint
from dalle.models.weights import WeightsFile, is_finite


class CheckpointWeights(Mapping):
    """The weights by their names in the model, each read when it is asked for.

    Args:
        checkpoint: open
        source: "averaged" or "trained"; null means averaged where the checkpoint holds averages
        dtype: to which floating-point weights are converted
    """

    def __init__(self, checkpoint: Checkpoint, source: str | None, dtype: str):
        averaged = any(name.startswith("ema/") for name in checkpoint.shapes)
        if source == "averaged" and not averaged:
            raise ValueError(
                f"weights averaged: checkpoint {checkpoint.path} holds trained ones only; leave weights out, or train with run.ema_decay"
            )
        self.source = source or ("averaged" if averaged else "trained")
        self._checkpoint, self._dtype = checkpoint, dtype
        self._names = [name.removeprefix("model/") for name in checkpoint.shapes if name.startswith("model/")]
        self.count = sum(math.prod(checkpoint.shapes[f"model/{name}"]) for name in self._names)

    @property
    def converts(self) -> bool:
        """Whether a weight is written in another precision than it has."""
        return any(
            each.dtype != self._checkpoint.read(self._key(name), 0, 0).dtype for name, each in self.like().items()
        )

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> torch.Tensor:
        key = self._key(name)
        tensor = self._checkpoint.read(key).view(self._checkpoint.shapes[key])
        return _converted(tensor, self._dtype, name)

    def like(self) -> dict[str, torch.Tensor]:
        """Tensors of the same dtypes and shapes, without values."""
        kinds = {name: _stored_dtype(self._checkpoint.read(self._key(name), 0, 0).dtype, self._dtype) for name in self}
        return {
            name: torch.empty(self._checkpoint.shapes[self._key(name)], dtype=dtype, device="meta")
            for name, dtype in kinds.items()
        }

    def _key(self, name: str) -> str:
        """Of the tensor in the checkpoint; what counts has no average."""
        key = f"model/{name}"
        averaged = f"ema/{name}" in self._checkpoint.shapes or self._checkpoint.read(key, 0, 0).is_floating_point()
        return f"ema/{name}" if self.source == "averaged" and averaged else key


class FinishedWeights(Mapping):
    """The same of a file of finished weights.

    Args:
        file: open
        dtype: to which floating-point weights are converted
    """

    def __init__(self, file: WeightsFile, dtype: str):
        self._file, self._dtype = file, dtype
        self.count = sum(math.prod(stored.shape) for stored in file.tensors.values())

    @property
    def converts(self) -> bool:
        """Whether a weight is written in another precision than it has."""
        return any(each.dtype != self._file.tensors[name].dtype for name, each in self.like().items())

    def __len__(self) -> int:
        return len(self._file.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.tensors)

    def __getitem__(self, name: str) -> torch.Tensor:
        stored = self._file.tensors[name]
        tensor = torch.empty(stored.shape, dtype=stored.dtype)
        self._file.read(name, tensor)
        return _converted(tensor, self._dtype, name)

    def like(self) -> dict[str, torch.Tensor]:
        """Tensors of the same dtypes and shapes, without values."""
        return {
            name: torch.empty(stored.shape, dtype=_stored_dtype(stored.dtype, self._dtype), device="meta")
            for name, stored in self._file.tensors.items()
        }


def _converted(tensor: torch.Tensor, dtype: str, name: str) -> torch.Tensor:
    """A weight as it is written. Raises ValueError where that cannot hold it, and for one that is not finite."""
    converted = tensor.to(_stored_dtype(tensor.dtype, dtype))
    if not is_finite(tensor):
        raise ValueError(
            f"the weights {name} are not finite: the model is broken; export an earlier checkpoint, or train it again"
        )
    if not is_finite(converted):
        raise ValueError(f"dtype {dtype}: {name} has values beyond its range: take fp32")
    return converted


def _stored_dtype(found: torch.dtype, dtype: str) -> torch.dtype:
    """What is written of a tensor: numbers that are no weights stay what they are."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return dtypes[dtype] if found.is_floating_point else found
