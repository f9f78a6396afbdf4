"""Checkpoints for resuming, written by all processes and independent of how many there were.

    checkpoints/step-0001000/
        rank-00000.safetensors   the fragments that this rank held
        rank-00003.safetensors
        state.json               written last: step, values; each tensor's shape, dtype and parts (file, key, start, stop of
                                 the flattened tensor); each file's size, SHA-256, and checksums of its blocks

No process ever holds a whole checkpoint: each writes and proves its own file, and reads back what it needs from whichever
files hold it, compared with the checksums as it is read. A checkpoint appears under its name when it is complete and verified,
and loading it runs no code.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dalle.checkpoints.index import check_parts, checked, state_hash
from dalle.checkpoints.names import STATE, complete, delete_old, make_room, retire, step_of
from dalle.checkpoints.rank_file import (
    DTYPES,
    Fragment,
    hashing,
    read_checked,
    read_parts,
    write_fragments,
    write_proven,
)
from dalle.cluster.topology import World
from dalle.config import plain_json
from dalle.config.checks import Cause
from dalle.models.weights import WeightsFile
from dalle.outputs.whole import sync_folder


class NotSaved(ValueError):
    """A checkpoint was not written; raised on every rank, and the older ones are as they were."""


def save(folder: Path, step: int, fragments: Iterable[Fragment], values: dict, keep: int, world: World) -> Path:
    """Write the checkpoint after `step` updates, verify it, and only then delete all but the latest `keep`.

    All ranks call it, each with the fragments that it alone writes, perhaps none; together they must cover every tensor
    once. One fragment at a time is copied to main memory. Each file is read back, from the disk rather than from memory
    where the system can be asked for that, and compared with the hash of what was to be written.

    Args:
        folder: the model's folder, shared by all machines
        step: updates done
        fragments: what this rank writes; the tensors must not change meanwhile
        values: JSON-able; those of the first rank are written
        keep: how many stay
        world: the processes

    Raises:
        NotSaved: on all ranks, naming the ranks, files and reasons; nothing of the new checkpoint stays
    """
    target = folder / "checkpoints" / f"step-{step:07d}"
    partial = target.with_name(target.name + ".partial")
    file = f"rank-{world.rank:05d}.safetensors"

    def together(what: str, action: Callable[[], Any]) -> list[Any]:
        """The action's outcome on each rank; where it fails on one, all of them hear of it and none waits for ever."""
        outcome = complaint = cause = None
        try:
            outcome = action()
        except Exception as error:
            cause, complaint = error, f"rank {world.rank}, {what}: {_reason(error)}"
        told = world.gather((outcome, complaint))
        complaints = [c for _, c in told if c]
        if complaints:
            more = f" (and {len(complaints) - 3} more ranks)" if len(complaints) > 3 else ""
            raise NotSaved(
                f"checkpoint {target} was not saved: {'; '.join(complaints[:3])}{more}; make room there, or mend what it tells of"
            ) from cause
        return [outcome for outcome, _ in told]

    def write_own() -> dict | None:
        held = [f for f in fragments if f.values.numel() or not math.prod(f.shape)]
        return write_fragments(partial / file, held) if held else None

    try:
        together(partial.name, lambda: make_room(partial) if world.is_main else None)
        records = together(file, write_own)
        files = {f"rank-{rank:05d}.safetensors": record for rank, record in enumerate(records) if record}
        together(STATE, lambda: _complete(partial, target, step, values, files) if world.is_main else None)
    except NotSaved:
        if world.is_main or (partial / file).exists():
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if world.is_main:
        delete_old(target, keep)
    return target


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, if there is one."""
    found = complete(folder / "checkpoints")
    return found[-1] if found else None


@dataclass(eq=False)
class Checkpoint:
    """A checkpoint open for reading. Made by `open_checkpoint` or `verify`.

    Args:
        path: its folder
        step: updates done
        values: as given to `save`
        shapes: of all tensors, by name
        files: size in bytes, SHA-256 and checksums of each, by name; of earlier versions without checksums
        tensors: shape, dtype and parts of each, by name
    """

    path: Path
    step: int
    values: dict
    shapes: dict[str, tuple[int, ...]]
    files: dict[str, dict]
    tensors: dict[str, dict]
    _open: dict[str, WeightsFile] = field(default_factory=dict, init=False, repr=False)

    def __del__(self) -> None:
        for file in self._open.values():
            file.close()

    def under(self, prefix: str) -> Checkpoint:
        """The same with only those tensors whose names begin so, known by what follows."""
        size = len(prefix)
        shapes = {name[size:]: shape for name, shape in self.shapes.items() if name.startswith(prefix)}
        return replace(self, shapes=shapes, tensors={name: self.tensors[prefix + name] for name in shapes})

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor. Raises ValueError when there is none of that name."""
        if name not in self.shapes:
            raise ValueError(f"checkpoint {self.path} holds no tensor {name}: give one of the model that is trained")
        return DTYPES[self.tensors[name]["dtype"]]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Elements `start` to `stop` of the flattened tensor, on the CPU, in the dtype it was saved in. Nothing but the
        blocks that overlap is read, and what is read is compared with its checksums.

        Raises:
            ValueError: no such tensor, or the checkpoint is damaged
        """
        dtype, numel = self.dtype(name), math.prod(self.shapes[name])
        stop = numel if stop is None else stop
        assert 0 <= start <= stop <= numel, (name, start, stop, numel)
        values = torch.empty(stop - start, dtype=dtype)
        for file, key, part_start, part_stop in self.tensors[name]["parts"]:
            begin, end = max(start, part_start), min(stop, part_stop)
            if begin >= end:
                continue
            try:
                if file not in self._open:
                    self._open[file] = WeightsFile(self.path / file)
                into = values[begin - start : end - start]
                read_checked(self._open[file], key, begin - part_start, into, self.files[file])
            except Exception as error:
                raise _damaged(self.path, f"{file}: {_reason(error)}") from error
        return values


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open one for reading: the sizes of its files are checked, and that each tensor's parts cover it. What the files
    hold is checked as it is read; in those of earlier versions, by `verify` alone.

    Raises:
        ValueError: there is none, or it is damaged; names what is wrong and the older checkpoint to fall back to
    """
    checkpoint = _read_index(path)
    for file in checkpoint.files:
        _check_size(checkpoint, file)
    return checkpoint


def _read_index(path: str | Path) -> Checkpoint:
    """A checkpoint by its index alone."""
    path = Path(path)
    if not (path / STATE).is_file():
        raise ValueError(f"{path} is not a complete checkpoint: it holds no {STATE}; name another step-NUMBER")
    try:
        # halves: names of data files are whatever their file system allows
        state = plain_json.load((path / STATE).read_bytes(), STATE, halves=True)
        if not isinstance(state, dict):
            raise Cause("it is not a mapping of names to values")
    except plain_json.Damaged as error:
        raise _damaged(path, error.what.replace(" is damaged", "", 1)) from None
    except (OSError, Cause) as error:
        raise _damaged(path, f"{STATE}: {_reason(error)}") from error
    if "tensors" not in state:
        raise ValueError(f"checkpoint {path} was written by another version of this program: read it with that one")
    try:
        shapes = checked(state)
        step, values, files = state["step"], state["values"], state["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{STATE}: {_reason(error)}") from error
    return Checkpoint(path, step, values, shapes, files, state["tensors"])


def _check_size(checkpoint: Checkpoint, file: str) -> None:
    try:
        size = os.path.getsize(checkpoint.path / file)
    except OSError as error:
        raise _damaged(checkpoint.path, f"{file}: {_reason(error)}") from error
    if size != checkpoint.files[file]["bytes"]:
        raise _damaged(checkpoint.path, f"{file} has {size:,} bytes, not {checkpoint.files[file]['bytes']:,}")


def verify(path: str | Path, world: World, mark: Callable[[], None] = lambda: None) -> Checkpoint:
    """Open a checkpoint and compare the sizes of its files, shared out among all ranks, which all call it; the hashes, too, of
    files without checksums, as earlier versions wrote them, which are then read twice.

    They do it in step, a GiB each at a time, and call `mark` before each: none waits long for one that has more to read.

    Raises:
        ValueError: on all ranks, as `open_checkpoint` does
    """
    checkpoint: Checkpoint | None = None
    proof = _proof(path, world.rank, world.size)
    while True:
        mark()
        complaint = cause = reached = None
        try:
            reached = next(proof, None)
        except ValueError as error:
            complaint, cause = str(error), error
        checkpoint = checkpoint or reached
        told = world.gather((complaint, reached is None))
        if complaints := [c for c, _ in told if c]:
            raise ValueError(complaints[0]) from cause
        if all(done for _, done in told):
            assert checkpoint is not None, "a proof ends with the checkpoint or a complaint"
            return checkpoint


def _proof(path: str | Path, rank: int, size: int) -> Iterator[Checkpoint]:
    """Open a checkpoint and compare a rank's share of the files with what is known of them; it comes again after each step."""
    checkpoint = _read_index(path)
    yield checkpoint
    for file in sorted(checkpoint.files)[rank::size]:
        _check_size(checkpoint, file)
        if "checksums" in checkpoint.files[file]:
            continue  # read once, and compared then
        try:
            for digest in hashing(checkpoint.path / file):  # noqa: B007 the last is compared
                yield checkpoint
        except OSError as error:
            raise _damaged(checkpoint.path, f"{file}: {_reason(error)}") from error
        if digest != checkpoint.files[file]["sha256"]:
            raise _damaged(checkpoint.path, f"the hash of {file} is not the one it was written with")


def _complete(partial: Path, target: Path, step: int, values: dict, files: dict[str, dict]) -> None:
    """The index over all files, from their headers; then the checkpoint gets its name."""
    tensors: dict[str, dict] = {}
    for file, record in files.items():
        if not (partial / file).is_file() or os.path.getsize(partial / file) != record["bytes"]:
            raise Cause(f"{file} is not seen here as it was written: all machines have to share {target.parent}")
        for key, (name, dtype, shape, start, stop) in read_parts(partial / file).items():
            tensor = tensors.setdefault(name, {"shape": shape, "dtype": dtype, "parts": []})
            if (tensor["shape"], tensor["dtype"]) != (shape, dtype):
                raise Cause(f"{name} is {tensor['dtype']} {tensor['shape']} and, in {file}, {dtype} {shape}")
            tensor["parts"].append([file, key, start, stop])
    for name, tensor in tensors.items():
        tensor["parts"].sort(key=lambda part: part[2:])
        check_parts(name, tensor["shape"], tensor["parts"])
    state = {"step": step, "values": values, "tensors": tensors, "files": files}
    # once around, so that what is hashed is what will be read: JSON has neither tuples nor keys other than text
    state = json.loads(json.dumps(state))
    state["sha256"] = state_hash(state)
    write_proven(partial / STATE, [json.dumps(state).encode()])
    sync_folder(partial)
    if target.exists():  # the same update once more, as after resuming and stopping at once
        retire(target)
    os.replace(partial, target)
    sync_folder(target.parent)


def _damaged(path: Path, problem: str) -> ValueError:
    if not (path / STATE).exists():
        return ValueError(f"checkpoint {path} was deleted while it was read: read the newest")
    number = re.fullmatch(r"step-(\d+)", path.name)
    older = [p for p in complete(path.parent) if number and step_of(p) < int(number[1])]
    way_on = f"delete it to go on from {older[-1]}" if older else "start anew, for there is no older one"
    return ValueError(f"checkpoint {path} is damaged: {problem}; {way_on}")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
