"""`dalle-export RUN --output DIR`: one `model.safetensors` out of a checkpoint that many processes wrote.

One process does it, also while the run goes on. A tensor at a time is read from the checkpoint and written.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dalle.cli import arguments
from dalle.config import CLIPModel, DVAEModel, Export, PriorModel
from dalle.outputs.ownership import claimed, read_mark, remove_mark, unfinished

if TYPE_CHECKING:
    import torch

    from dalle.checkpoints.checkpoint import Checkpoint

_COMMAND = "dalle-export"
_MODELS = {"dvae": DVAEModel, "prior": PriorModel, "clip": CLIPModel}
_FILES = ("config.yaml", "tokenizer.json", "tokenizer.words.json")
"""What a run's folder holds, beside its weights, that its model needs."""


def main() -> None:
    """Console script."""
    arguments.run(export, _COMMAND)


def export(argv: list[str] | None = None) -> None:
    """Parse, check, read every file of the checkpoint for its hash, write."""
    config = arguments.parse(Export, _COMMAND, argv, positional="run")
    if (Path(config.output) / "model.safetensors").exists() and read_mark(config.output, _COMMAND) is None:
        raise ValueError(f"output {config.output} is not empty: it holds a model already; name another --output")
    with claimed(config.output, _COMMAND) as output:
        _export(config, output)
        remove_mark(output, _COMMAND)  # a model that is whole is not written over


def _export(config: Export, output: Path) -> None:
    import torch

    from dalle.checkpoints.checkpoint import open_checkpoint, verify
    from dalle.cluster.topology import World
    from dalle.models.folder import save_weights

    checkpoint = open_checkpoint(_find(Path(config.run)))
    kind, sizes, links = _identity(checkpoint)
    weights = _Weights(checkpoint, config.weights, config.dtype)
    verify(checkpoint.path, World(0, 1, torch.device("cpu")))
    folder = checkpoint.path.absolute().parent.parent
    partial = unfinished(output)
    try:
        save_weights(partial, kind, weights, sizes, links, weights.like())
        for name in _FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
        for path in sorted(partial.iterdir()):  # config.yaml, model.safetensors, tokenizer.json
            os.replace(path, output / path.name)
    except BaseException as error:
        if isinstance(error, OSError):  # a full disk
            raise ValueError(f"output {output} was not written: {error}") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(
        f"{kind}, {weights.source} weights after {checkpoint.step:,} updates, {weights.count:,} numbers in {config.dtype}: "
        f"{output / 'model.safetensors'}"
    )


def _find(path: Path) -> Path:
    """The checkpoint that was named, or the newest of the run that was."""
    from dalle.checkpoints.checkpoint import latest

    if not path.is_dir():
        raise ValueError(f"run {path}: no such folder")
    if path.parent.name == "checkpoints" or (path / "state.json").is_file():
        return path
    found = latest(path)
    if found is None:
        raise ValueError(f"{path} holds no complete checkpoint, nor is it one")
    return found


def _identity(checkpoint: Checkpoint) -> tuple[str, DVAEModel | PriorModel | CLIPModel, dict[str, str]]:
    """Kind, sizes and links of the model that the checkpoint is of."""
    identity = checkpoint.values.get("export")
    if identity is None:
        raise ValueError(f"checkpoint {checkpoint.path} does not say what model it is of: another version wrote it")
    kind = identity["kind"]
    if kind not in _MODELS:
        raise ValueError(f"checkpoint {checkpoint.path} is of a model of kind {kind}: known are {', '.join(_MODELS)}")
    sizes = arguments.parse_model(_MODELS[kind], identity["config"], f"checkpoint {checkpoint.path}: ")
    return kind, sizes, identity["links"]


class _Weights(Mapping):
    """The weights by their names in the model, each read when it is asked for.

    Args:
        checkpoint: open
        source: "averaged" or "trained"; null means averaged where the checkpoint holds averages
        dtype: to which floating-point weights are converted
    """

    def __init__(self, checkpoint: Checkpoint, source: str | None, dtype: str):
        averaged = any(name.startswith("ema/") for name in checkpoint.shapes)
        if source == "averaged" and not averaged:
            raise ValueError(f"weights averaged: checkpoint {checkpoint.path} holds trained ones only")
        self.source = source or ("averaged" if averaged else "trained")
        self._checkpoint, self._dtype = checkpoint, dtype
        self._names = [name.removeprefix("model/") for name in checkpoint.shapes if name.startswith("model/")]
        self.count = sum(math.prod(checkpoint.shapes[f"model/{name}"]) for name in self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> torch.Tensor:
        key = self._key(name)
        tensor = self._checkpoint.read(key).view(self._checkpoint.shapes[key])
        converted = tensor.to(self._stored_dtype(tensor))
        if bool((converted.isinf() & ~tensor.isinf()).any()):
            raise ValueError(f"dtype {self._dtype}: {name} has values beyond its range: take fp32")
        return converted

    def like(self) -> dict[str, torch.Tensor]:
        """Tensors of the same dtypes and shapes, without values."""
        import torch

        kinds = {name: self._stored_dtype(self._checkpoint.read(self._key(name), 0, 0)) for name in self}
        return {
            name: torch.empty(self._checkpoint.shapes[self._key(name)], dtype=dtype, device="meta")
            for name, dtype in kinds.items()
        }

    def _key(self, name: str) -> str:
        """Of the tensor in the checkpoint; what counts has no average."""
        key = f"model/{name}"
        averaged = f"ema/{name}" in self._checkpoint.shapes or self._checkpoint.read(key, 0, 0).is_floating_point()
        return f"ema/{name}" if self.source == "averaged" and averaged else key

    def _stored_dtype(self, tensor: torch.Tensor) -> torch.dtype:
        """What is written of a tensor: numbers that are no weights stay what they are."""
        import torch

        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        return dtypes[self._dtype] if tensor.is_floating_point() else tensor.dtype
