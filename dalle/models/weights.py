"""The weights of a model in one safetensors file, written and read a tensor at a time, and known to be what was written.

Two things in the header stand for the weights. `hash`, SHA-256 over all of them in the order of their names, is what priors,
rerankers and drawings know a model by; it can only be made by one thread from the first byte to the last. `checksums`, CRC-32
of each tensor, is for loading: CRC-32 takes about a third of the time of SHA-256, and tensors are checked by several threads
as they are read, so that what it costs is small beside reading. It finds damage, not malice. `seal` is SHA-256 over the rest
of the header, sizes and links among it. Files of older versions have `hash` alone, which is then made anew, beside reading.

Files of the same weights are the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dalle.config import plain_json
from dalle.models.weights_header import DTYPES, NO_CHECKSUM, Stored, make_header, read_header
from dalle.outputs.threads import Workers
from dalle.outputs.whole import whole_file

_PIECE_BYTES = 1 << 17
"""Read at a time: it stays in a core's cache until it is checked and converted, and is too little for PyTorch to wake other
threads for."""
_THREADS = min(8, os.cpu_count() or 1)
_MAPPED_BYTES = 1 << 18
"""What a page that is not full takes is little beside it."""


def content_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, as 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(_identity(name, tensor.dtype, tensor.shape))
        digest.update(_to_bytes(tensor))
    return digest.hexdigest()


def write_weights(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    like: Mapping[str, torch.Tensor] | None = None,
) -> str:
    """Write a file, whole or not at all, and return the content hash.

    Args:
        path: of the file; one that is there is replaced
        tensors: the weights by name, each asked for once, so that a mapping may read them as they are asked for
        metadata: for the header, beside hash, checksums and seal
        like: tensors of the same names, dtypes and shapes, for a mapping that reads; they may be on the meta device
    """
    like = tensors if like is None else like
    layout: dict[str, dict[str, Any]] = {}
    end = 0
    # the largest elements first, as the library has it, so that every tensor begins at a multiple of its element's size
    for name in sorted(like, key=lambda name: (-like[name].element_size(), name)):
        num_bytes = like[name].numel() * like[name].element_size()
        dtype = next(key for key, dtype in DTYPES.items() if dtype == like[name].dtype)
        layout[name] = {"dtype": dtype, "shape": list(like[name].shape), "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    digest = hashlib.sha256()
    checksums = dict.fromkeys(sorted(like), NO_CHECKSUM)
    start = len(make_header(metadata, digest.hexdigest(), checksums, layout))  # which is as long with other digits
    with whole_file(path) as file:
        for name in checksums:
            tensor = tensors[name]
            assert (tensor.dtype, tensor.shape) == (like[name].dtype, like[name].shape)
            identity, values = _identity(name, tensor.dtype, tensor.shape), _to_bytes(tensor)
            for piece in (identity, values):
                digest.update(piece)
            checksums[name] = _hex(zlib.crc32(values, zlib.crc32(identity)))
            file.seek(start + layout[name]["data_offsets"][0])
            file.write(values)
        file.seek(0)
        file.write(make_header(metadata, digest.hexdigest(), checksums, layout))
    return digest.hexdigest()


class WeightsFile:
    """A file of weights, open for reading.

    Args:
        path: of the file

    Raises:
        ValueError: it is no such file, is cut off, or its header is not what was written
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}; see that it is there and may be read") from None
        try:
            self.metadata, self.tensors = read_header(self.descriptor)
        except Exception as error:  # of many kinds: the header may be anything
            os.close(self.descriptor)
            raise ValueError(
                f"{path} cannot be read: {error or type(error).__name__}; copy it or export it once more"
            ) from error

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.descriptor)

    def told_checksums(self) -> dict[str, str] | None:
        """Of each tensor, as the header has them; null of a file of an older version. Raises ValueError where it has nonsense."""
        if "checksums" not in self.metadata:
            return None
        try:
            told = plain_json.load(self.metadata["checksums"], "its header")
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise damaged(self.path, "the checksums in its header")
        return told

    def read(self, name: str, values: torch.Tensor) -> str:
        """Fill a contiguous tensor, whose dtype values are converted to as they are read; the checksum of what was read.
        For several threads at a time."""
        stored, flat = self.tensors[name], values.view(-1)
        as_it_is = values.dtype == stored.dtype and values.device.type == "cpu"
        most = _PIECE_BYTES // stored.dtype.itemsize
        buffer = flat if as_it_is else torch.empty(min(most, flat.numel()), dtype=stored.dtype)
        checksum = zlib.crc32(_identity(name, stored.dtype, stored.shape))
        for first in range(0, flat.numel(), most):
            some = flat[first : first + most]
            piece = some if as_it_is else buffer[: some.numel()]
            self._fill(_to_bytes(piece), stored.start + first * stored.dtype.itemsize)
            checksum = zlib.crc32(_to_bytes(piece), checksum)
            if not as_it_is:
                some.copy_(piece.to(values.dtype))  # converted here, so that fewer bytes go to a GPU
        return _hex(checksum)

    def content_hash(self) -> str:
        """`content_hash` of all that is in the file."""
        digest, piece = hashlib.sha256(), memoryview(bytearray(_PIECE_BYTES))
        for name in sorted(self.tensors):
            stored = self.tensors[name]
            digest.update(_identity(name, stored.dtype, stored.shape))
            for first in range(0, stored.num_bytes, _PIECE_BYTES):
                some = piece[: min(_PIECE_BYTES, stored.num_bytes - first)]
                self._fill(some, stored.start + first)
                digest.update(some)
        return digest.hexdigest()

    def read_bytes(self, name: str, start: int, into: memoryview) -> None:
        """Fill with the bytes of a tensor from its byte `start` on, as they lie in the file. Nothing is checked."""
        stored = self.tensors[name]
        if start + len(into) > stored.num_bytes:
            raise ValueError(f"{self.path} holds {stored.num_bytes:,} bytes of {name}; copy it or export it once more")
        self._fill(into, stored.start + start)

    def _fill(self, piece: memoryview, start: int) -> None:
        """Read so many bytes from there."""
        while len(piece):
            num_bytes = os.preadv(self.descriptor, [piece], start)
            if not num_bytes:
                raise ValueError(f"{self.path} was cut off while it was read; copy it once more")
            piece, start = piece[num_bytes:], start + num_bytes


def load_weights(model: nn.Module, path: Path, device: str | torch.device) -> None:
    """Give a model the weights of a file, each in the dtype that the model has for it. Beside what stays nothing is held but
    a piece of a tensor for each thread that reads.

    Args:
        model: perhaps without values (`folder.Weightless`); what it has are let go
        path: of the file
        device: where the weights are to be; buffers that no file holds stay where they are

    Raises:
        ValueError: the file is damaged, or of another model; or weights are not finite
    """
    expected = model.state_dict()
    with WeightsFile(path) as file:
        if complaint := next(misfits(expected, file.tensors), None):
            raise ValueError(f"{path} is of another model: {complaint}; name one of these sizes")
        names = sorted(expected, key=lambda name: file.tensors[name].start)
        told = file.told_checksums()
        values = {name: room_for(tensor, torch.device(device)) for name, tensor in expected.items()}
        broken = None
        workers = Workers(_THREADS)
        found_hash = workers.begin(file.content_hash) if told is None else None
        read = [workers.begin(file.read, name, values[name]) for name in names]
        try:
            for name, reading in zip(names, read, strict=True):
                checksum = reading.result()
                if told is not None and told.get(name) != checksum:
                    raise damaged(path, f"the values of {name}")
                broken = broken or (None if is_finite(values[name]) else name)
            if found_hash is not None and found_hash.result() != file.metadata.get("hash"):
                raise damaged(path, "its weights")
        finally:
            begun = [future for future in (*read, found_hash) if future is not None and not future.cancel()]
            wait(begun)  # before the file is closed
    if broken:
        raise ValueError(
            f"{path}: the weights {broken} are not finite in {expected[broken].dtype}: the model is broken; train it again, "
            "or export an earlier checkpoint of its run"
        )
    model.load_state_dict(values, assign=True)


def room_for(like: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A contiguous tensor of the same dtype and shape, its values unset. In main memory a large one is a mapping of its own,
    which goes back to the system the moment that the tensor is let go: the C library would keep a hole of that size where
    matrices are laid out once more, one after the other."""
    num_bytes = like.numel() * like.element_size()
    if device.type != "cpu" or num_bytes < _MAPPED_BYTES:
        return torch.empty(like.shape, dtype=like.dtype, device=device)
    room = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(room, dtype=like.dtype).view(like.shape)


def check_finite(model: nn.Module, source: str) -> None:
    """Raises ValueError where weights are NaN or infinite, with their name. source: of the weights, for the message."""
    for name, tensor in model.state_dict().items():
        if not is_finite(tensor):
            raise ValueError(f"{source}: the weights {name} are not finite: the model is broken; take another")


def misfits(expected: dict[str, torch.Tensor], found: dict[str, Stored]) -> Iterator[str]:
    """What of the tensors of a file is not as it is expected."""
    for name in expected:
        if name not in found:
            yield f"it lacks {name}"
        elif tuple(expected[name].shape) != found[name].shape:
            yield f"{name} is {found[name].shape}, its sizes want {tuple(expected[name].shape)}"
        elif expected[name].is_floating_point() != found[name].dtype.is_floating_point:
            yield f"{name} is of {found[name].dtype}"
    yield from (f"it holds {name}" for name in found if name not in expected)


def damaged(path: Path, what: str) -> ValueError:
    """The complaint of a file, of which `what` is not what was written."""
    return ValueError(f"{path} is damaged: {what} are not those that were written; copy it or export it once more")


def is_finite(tensor: torch.Tensor) -> bool:
    """By the extremes, which are NaN where a value is: a fraction of the time of looking at each."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor))


def _identity(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    return f"{name} {dtype} {tuple(shape)}".encode()


def _to_bytes(tensor: torch.Tensor) -> memoryview:
    """Of a tensor that is contiguous on the CPU its very memory."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _hex(checksum: int) -> str:
    return f"{checksum:08x}"
