"""One rank's file of a checkpoint: its fragments of flattened tensors, in the safetensors format.

A file is written a fragment at a time, hashed on the way, and read back. Beside the hash of the whole it has checksums, CRC-32
of each MiB of each fragment, so that whoever reads a part of it knows that part to be what was written, without a second
reading. Like those of `models.weights` they find damage, not malice.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from dalle.config.checks import Cause
from dalle.models.weights import WeightsFile
from dalle.models.weights_header import DTYPES

BLOCK_BYTES = 1 << 20
"""Of a fragment behind one checksum. Who reads a part of a block reads all of it; and an index of 200 GB has 2 MB of them."""
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, eq=False)
class Fragment:
    """A contiguous run of a flattened tensor that this process holds.

    Args:
        name: of the whole tensor, such as "model/…", "exp_avg/…", "ema/…"
        shape: of the whole tensor; () has one element
        start: where in the flattened tensor the values begin
        values: as many elements as the run has, of any shape, on any device; only read
    """

    name: str
    shape: tuple[int, ...]
    start: int
    values: torch.Tensor


def write_fragments(path: Path, fragments: list[Fragment]) -> dict:
    """Write one rank's file, a fragment at a time, and read it back; its size, its hash, and by key the checksums of each
    fragment, 8 hex digits for each of its blocks.

    The format's few bytes are laid out here, for the library's own function wants all tensors in main memory at once.
    What `read_parts` tells goes into the header.

    Raises:
        ValueError: a fragment that cannot be written, or a file that reads back otherwise
    """
    # the largest elements first, as the library has it, so that every tensor begins at a multiple of its element's size
    fragments = sorted(fragments, key=lambda f: -f.values.element_size())
    parts: dict[str, list] = {}
    layout: dict[str, dict] = {}
    offset = 0
    for f in fragments:
        key, numel = f"{f.name}@{f.start}", f.values.numel()
        if f.values.dtype not in _DTYPE_NAMES:
            raise Cause(f"{f.name} is of dtype {f.values.dtype}, which checkpoints do not hold")
        if key in parts:
            raise Cause(f"two fragments of {f.name} begin at {f.start}")
        dtype, num_bytes = _DTYPE_NAMES[f.values.dtype], numel * f.values.element_size()
        parts[key] = [f.name, dtype, list(f.shape), f.start, f.start + numel]
        layout[key] = {"dtype": dtype, "shape": [numel], "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    header = json.dumps({"__metadata__": {"parts": json.dumps(parts)}, **layout}).encode()
    header += b" " * (-len(header) % 8)
    path.parent.mkdir(exist_ok=True)  # a network file system may still remember that there was none
    checksums: dict[str, str] = {}

    def values(fragment: Fragment) -> memoryview:
        held, key = _to_bytes(fragment), f"{fragment.name}@{fragment.start}"
        blocks = range(0, len(held), BLOCK_BYTES)
        checksums[key] = "".join(_checksum(held[at : at + BLOCK_BYTES]) for at in blocks)
        return held

    record = write_proven(path, itertools.chain([len(header).to_bytes(8, "little"), header], map(values, fragments)))
    return {**record, "block_bytes": BLOCK_BYTES, "checksums": checksums}


def read_checked(file: WeightsFile, key: str, first: int, into: torch.Tensor, record: dict) -> None:
    """Fill with elements of a fragment, each block of which is compared with its checksum as it is read.

    Args:
        file: open
        key: of the fragment
        first: number of the first element within the fragment
        into: flat and contiguous, on the CPU, of the fragment's dtype
        record: what `write_fragments` said of the file; without checksums, as earlier versions wrote it, nothing is compared

    Raises:
        ValueError: it is not what was written
    """
    values = into.view(torch.uint8).numpy().data
    begin = first * into.element_size()
    if "checksums" not in record:
        file.read_bytes(key, begin, values)
        return
    told, most, num_bytes = record["checksums"][key], record["block_bytes"], file.tensors[key].num_bytes
    end = begin + len(values)
    for at in range(begin - begin % most, end, most):
        until = min(at + most, num_bytes)
        low, high = max(at, begin), min(until, end)
        is_whole = (low, high) == (at, until)  # else it is read beside what is asked for
        block = values[at - begin : until - begin] if is_whole else memoryview(bytearray(until - at))
        file.read_bytes(key, at, block)
        if _checksum(block) != told[8 * (at // most) :][:8]:
            raise Cause(f"bytes {at:,} to {until:,} of {key} are not those that were written")
        if not is_whole:
            values[low - begin : high - begin] = block[low - at : high - at]


def _checksum(block: memoryview) -> str:
    return f"{zlib.crc32(block):08x}"


def read_parts(path: Path) -> dict[str, list]:
    """What a file holds: [tensor, dtype's name, the tensor's shape, start, stop] by key."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["parts"])


def write_proven(path: Path, pieces: Iterable[bytes | memoryview]) -> dict:
    """Write a file and read it back, from the disk rather than from memory where the system can be asked for that; its
    size in bytes and SHA-256. Raises ValueError when it is not what was to be written."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if sha256(path) != digest.hexdigest():
        raise Cause("it does not read back as it was written: the disk is at fault")
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def sha256(path: Path) -> str:
    """Of a file, as 64 hex digits."""
    *_, digest = hashing(path)
    return digest


def hashing(path: Path) -> Iterator[str]:
    """The SHA-256 of what has been read of a file so far, after each GiB and at the end."""
    digest = hashlib.sha256()
    piece = memoryview(bytearray(1 << 24))
    with open(path, "rb", buffering=0) as file:
        for number in itertools.count(1):
            if not (num_bytes := file.readinto(piece)):
                break
            digest.update(piece[:num_bytes])
            if number % 64 == 0:
                yield digest.hexdigest()
    yield digest.hexdigest()


def _to_bytes(fragment: Fragment) -> memoryview:
    return fragment.values.detach().flatten().cpu().contiguous().view(torch.uint8).numpy().data
