"""The weights of a finished model, for all processes of a run that starts from them, whatever each of them holds.

The first process reads, so that storage is read once for a run, and sends each tensor to the others, who keep their piece
of it: beside what stays nothing is held but one tensor. What is read is compared with its checksum there and then, and all
processes hear of damage before anything is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from dalle.cluster.topology import World
from dalle.config.checks import SaidByAll
from dalle.models.weights import WeightsFile, damaged, is_finite, misfits


def fill_from_model(
    path: Path,
    pieces: Mapping[str, tuple[tuple[int, ...], int, torch.Tensor]],
    world: World,
    mark: Callable[[], None] = lambda: None,
) -> None:
    """Give all processes what they hold of a model's weights. All of them call it, for the same names.

    Args:
        path: of the file; the first process alone opens it
        pieces: by name the shape of the whole tensor, where in the flattened whole this process's piece begins, and the
            memory of the piece, of any dtype and device; what the file holds beside these is left out
        world: the processes
        mark: called before each tensor, for whoever watches that all of them move

    Raises:
        ValueError: on all processes: the file is damaged or of another model, or its weights are not finite
    """
    file, order, told, complaint = None, [], None, None
    if world.is_main:
        try:
            file = WeightsFile(path)
            told = file.told_checksums()
            order = _order(file, pieces, told)
        except ValueError as error:
            complaint = str(error)
    order, complaint = world.gather((order, complaint))[0]
    try:
        for name, dtype in order:
            mark()
            shape, start, into = pieces[name]
            values = torch.empty(shape, dtype=dtype, device=world.device)
            if file is not None and complaint is None:
                complaint = _read(file, name, values, told)
            if world.size > 1:  # bytes: no library sends every dtype
                dist.broadcast(values.view(-1).view(torch.uint8), src=0)
            into.copy_(values.view(-1)[start : start + into.numel()].view_as(into))
    finally:
        if file is not None:
            file.close()
    if complaint := world.gather(complaint)[0]:
        raise SaidByAll(complaint)


def _order(
    file: WeightsFile, pieces: Mapping[str, tuple[tuple[int, ...], int, torch.Tensor]], told: dict[str, str] | None
) -> list:
    """Names and dtypes in the order in which they lie in the file. Raises ValueError when they are not those that are asked
    for, or, of a file without checksums, damaged."""
    found = {name: stored for name, stored in file.tensors.items() if name in pieces}
    expected = {name: torch.empty(shape, dtype=into.dtype, device="meta") for name, (shape, _, into) in pieces.items()}
    if complaint := next(misfits(expected, found), None):
        raise ValueError(f"{file.path} is of another model: {complaint}; start from one of these sizes")
    if told is None and file.content_hash() != file.metadata.get("hash"):
        raise damaged(file.path, "its weights")
    return [(name, found[name].dtype) for name in sorted(found, key=lambda name: found[name].start)]


def _read(file: WeightsFile, name: str, values: torch.Tensor, told: dict[str, str] | None) -> str | None:
    """Fill it; what is wrong with what was read, or null. told: checksums of all tensors; null where the file has none."""
    try:
        checksum = file.read(name, values)
    except ValueError as error:
        return str(error)
    if told is not None and told.get(name) != checksum:
        return str(damaged(file.path, f"the values of {name}"))
    if not is_finite(values):
        return f"{file.path}: the weights {name} are not finite: the model is broken; start from another"
    return None
