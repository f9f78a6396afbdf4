"""A finished model's weights for two processes, of which the first alone can open the file."""

from __future__ import annotations

import json

import pytest
import torch

from dalle.checkpoints.starting import fill_from_model
from dalle.cluster.topology import World
from dalle.models.weights import WeightsFile, write_weights
from dalle.models.weights_header import _seal
from tests.processes import ON_CPU, run_processes

SCRIPT = """
import os, sys
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from dalle.checkpoints.starting import fill_from_model
from dalle.cluster.topology import World

dist.init_process_group("gloo", timeout=timedelta(seconds=200))
rank, folder = dist.get_rank(), Path(sys.argv[1])
world = World(rank, 2, torch.device("cpu"))
marks = []

def fill(name, leave_out=()):
    whole = load_file(folder / "whole.safetensors")  # to compare with
    pieces, expected = {}, {}
    for key, tensor in whole.items():
        if key in leave_out:
            continue
        flat, half = tensor.flatten(), (tensor.numel() + 1) // 2
        start = min(rank * half, flat.numel()) if key.startswith("sharded") else 0
        stop = min(start + half, flat.numel()) if key.startswith("sharded") else flat.numel()
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        expected[key] = flat[start:stop].to(dtype)
        pieces[key] = (tuple(tensor.shape), start, torch.full((stop - start,), 7, dtype=dtype))
    path = folder / name if rank == 0 else folder / "nowhere"
    try:
        fill_from_model(path, pieces, world, lambda: marks.append(1))
    except ValueError as error:
        return f"{type(error).__name__} {error}"
    assert all(torch.equal(pieces[key][2], expected[key]) for key in pieces)
    return len(pieces)

said = [fill("whole.safetensors"), len(marks), fill("whole.safetensors", ["sharded.odd"])]
said += [fill(name) for name in ("spoilt.safetensors", "broken.safetensors", "cut.safetensors", "other.safetensors", "gone")]
told = world.gather(said)
assert told[0] == told[1], told
print(*said, sep="\\n")
dist.destroy_process_group()
"""


def test_each_process_gets_its_piece_and_all_hear_of_damage(tmp_path):
    generator = torch.Generator().manual_seed(0)
    whole = {
        "sharded.odd": torch.randn(3, 5, generator=generator),  # halves of 8 and 7
        "sharded.one": torch.randn(1, generator=generator),  # of which the second process holds nothing
        "sharded.half": torch.randn(4, 6, generator=generator).bfloat16(),
        "shared": torch.randn(2, 3, 4, generator=generator),
        "counted": torch.tensor(11),
    }
    write_weights(tmp_path / "whole.safetensors", whole, {"kind": "prior"})
    data = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "spoilt.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (tmp_path / "cut.safetensors").write_bytes(data[:-1])
    write_weights(tmp_path / "broken.safetensors", whole | {"shared": whole["shared"] / 0}, {"kind": "prior"})
    write_weights(tmp_path / "other.safetensors", whole | {"shared": torch.zeros(2, 3)}, {"kind": "prior"})
    said = run_processes(SCRIPT, 2, 2, arguments=[str(tmp_path)], environment=ON_CPU).splitlines()
    assert said[:3] == ["5", "5", "4"]  # tensors filled, marks, and filled without one that is left out
    spoilt, broken, cut, other, gone = said[3:]
    assert spoilt.startswith("SaidByAll") and "is damaged: the values of" in spoilt
    assert "the weights shared are not finite" in broken
    assert "it is cut off" in cut
    assert "is of another model: shared is (2, 3), its sizes want (2, 3, 4)" in other
    assert "cannot be read: No such file" in gone


def _rewritten(path, **changes):
    """The header of a file changed, and sealed anew where it still has a seal; null takes something away."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    told = {name: value for name, value in (header["__metadata__"] | changes).items() if value is not None}
    if "seal" in told:
        told["seal"] = _seal(told)
    text = json.dumps(header | {"__metadata__": told}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def test_weights_that_nothing_vouches_for_are_damage(tmp_path):
    """One tensor without a checksum among others; and a file of an earlier version, which has the hash of all alone."""
    path, alone = tmp_path / "whole.safetensors", World(0, 1, torch.device("cpu"))
    whole = {"a": torch.arange(3.0), "b": torch.arange(4.0)}
    pieces = {name: (tuple(tensor.shape), 0, torch.empty_like(tensor)) for name, tensor in whole.items()}
    write_weights(path, whole, {"kind": "prior"})
    with WeightsFile(path) as file:
        told = file.told_checksums()
    fill_from_model(path, pieces, alone)
    _rewritten(path, checksums=json.dumps({"a": told["a"]}))
    with pytest.raises(ValueError, match="is damaged: the values of b"):
        fill_from_model(path, pieces, alone)
    _rewritten(path, checksums=None, seal=None)
    fill_from_model(path, pieces, alone)
    assert torch.equal(pieces["b"][2], whole["b"])
    _rewritten(path, hash="0" * 64)
    with pytest.raises(ValueError, match="is damaged: its weights"):
        fill_from_model(path, pieces, alone)
    _rewritten(path, checksums="[]")
    with pytest.raises(ValueError, match="is damaged: the checksums in its header"):
        fill_from_model(path, pieces, alone)
