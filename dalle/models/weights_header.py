"""The header of a file of weights: what is written there, and how much of what somebody else wrote is believed.

As the format's own library has it, tensors lie side by side from the header to the end of the file, and a header is at most
100 MB: so a small file is no large model, and holds nothing beside one. `seal` is SHA-256 over the rest of what the header says.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dalle.config.checks import Cause

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The names that safetensors gives them."""
_ALIGNMENT_BYTES = 64
_MOST_HEADER_BYTES = 100_000_000
"""Of a header, as the library has it, so that no file asks for more memory than its weights."""
NO_CHECKSUM = f"{0:08x}"
"""As long as any, while none is known."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    num_bytes: int


def read_header(file: int) -> tuple[dict[str, str], dict[str, Stored]]:
    """What a file says of itself, and its tensors by name.

    Args:
        file: a descriptor, open for reading

    Raises:
        Exception: of many kinds, for a header may be anything: it is cut off, damaged or nonsense
    """
    size = os.fstat(file).st_size
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if length > min(size - 8, _MOST_HEADER_BYTES):
        raise Cause("it is cut off, or no safetensors file")
    layout = json.loads(os.pread(file, length, 8))
    metadata = layout.pop("__metadata__", {})
    if not all(isinstance(told, str) for told in metadata.values()):
        raise Cause("its header tells nonsense")
    if metadata.get("seal", _seal(metadata)) != _seal(metadata):
        raise Cause("it is damaged: its header is not the one that was written")
    tensors = {}
    for name, told in layout.items():
        dtype, shape, (start, stop) = DTYPES[told["dtype"]], tuple(told["shape"]), told["data_offsets"]
        if not 0 <= start <= stop or stop - start != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
            raise Cause(f"its header tells nonsense of {name}")
        if 8 + length + stop > size:
            raise Cause("it is cut off")
        tensors[name] = Stored(dtype, shape, 8 + length + start, stop - start)
    end = 8 + length
    for stored in sorted(tensors.values(), key=lambda stored: (stored.start, stored.num_bytes)):
        if stored.start != end:
            raise Cause("its tensors do not lie side by side")
        end += stored.num_bytes
    if end != size:
        raise Cause("it holds more than its tensors")
    return metadata, tensors


def make_header(metadata: Mapping[str, str], digest: str, checksums: dict[str, str], layout: dict[str, dict]) -> bytes:
    """The first bytes of a file, up to the weights."""
    told = {**metadata, "hash": digest, "checksums": json.dumps(checksums)}
    told["seal"] = _seal(told)
    text = json.dumps({"__metadata__": dict(sorted(told.items())), **layout}).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


def _seal(metadata: Mapping[str, str]) -> str:
    others = {name: value for name, value in sorted(metadata.items()) if name != "seal"}
    return hashlib.sha256(json.dumps(others).encode()).hexdigest()
