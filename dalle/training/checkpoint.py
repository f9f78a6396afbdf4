"""Checkpoints for resuming: `checkpoints/step-0001000/` with `state.safetensors` (weights, Adam moments, averages)
and `state.json` (update number, position in the data). Written whole or not at all; loading runs no code."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def save(folder: Path, step: int, tensors: dict[str, torch.Tensor], values: dict, keep: int) -> Path:
    """Write the checkpoint after `step` updates and delete all but the latest `keep`.

    Args:
        folder: the model's folder
        step: updates done
        tensors: by name
        values: JSON-able
        keep: how many stay
    """
    target = folder / "checkpoints" / f"step-{step:07d}"
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # clones: safetensors refuses tensors that share memory, as tied or flattened ones do
    save_file({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, partial / "state.safetensors")
    (partial / "state.json").write_text(json.dumps({"step": step, **values}))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, if there is one."""
    found = _all(folder)
    return found[-1] if found else None


def load(checkpoint: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and values of a checkpoint. Raises ValueError when it is damaged."""
    try:
        return load_file(checkpoint / "state.safetensors"), json.loads((checkpoint / "state.json").read_text())
    except Exception as error:
        raise ValueError(f"checkpoint {checkpoint} cannot be read: {error}") from error


def _all(folder: Path) -> list[Path]:
    found = (folder / "checkpoints").glob("step-*")
    return sorted(p for p in found if p.suffix != ".partial" and (p / "state.json").is_file())
