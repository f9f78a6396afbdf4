"""Embeddings of captions, made once and kept in a file that says which encoder made them.

A caption is known by 64 bits of its BLAKE2b: among a million captions any two are taken for one in one of 37 million files. The
file is a safetensors file of chunks of `_CHUNK` rows, so that it is written and checked in little memory; what is read of it is
mapped, and shared by all processes of a machine. For a million captions of 768 numbers it has 3.1 GB: opening reads all of it
once to check it, saving writes all of it anew, both at the speed of the disk; looking up a batch takes a binary search.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from dalle.models.text_encoders.contract import TextEncoder
from dalle.models.weights import WeightsFile, write_weights

_KIND = "embeddings"
_CHUNK = 16_384


class EmbeddingCache:
    """What a text encoder says of captions, kept between runs.

    Args:
        path: of the file; there need be none yet
        encoder: which computes what is missing

    Raises:
        ValueError: the file is of another encoder, is damaged, or is something else
    """

    def __init__(self, path: Path, encoder: TextEncoder):
        self.path, self.encoder = Path(path), encoder
        self._stored = _Stored.read(self.path, encoder)
        self._fresh: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        """Captions that are known."""
        return len(self._stored.keys) + len(self._fresh)

    def embed(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings fp32 [B, E] on the CPU, in the order of the captions. What is missing is computed, each caption once; it
        is in the file after `save`. Raises ValueError where an embedding is not finite."""
        keys_B = np.array([_key(caption) for caption in captions], dtype=np.int64)
        self._compute(keys_B, captions)
        found_B, rows_B = self._stored.find(keys_B)
        features_BE = torch.empty(len(keys_B), self.encoder.width)
        if found_B.any():
            # what is not there is filled in below; "clip" alone writes where it is told to, without a copy
            np.take(self._stored.features_NE, rows_B, axis=0, out=features_BE.numpy(), mode="clip")
        for row in np.flatnonzero(~found_B):
            features_BE[row] = self._fresh[int(keys_B[row])]
        return features_BE

    def _compute(self, keys_B: np.ndarray, captions: Sequence[str]) -> None:
        known_B, _ = self._stored.find(keys_B)
        missing = {int(keys_B[row]): captions[row] for row in np.flatnonzero(~known_B).tolist()}
        wanted = [key for key in missing if key not in self._fresh]
        features_NE = self.encoder.encode([missing[key] for key in wanted]).cpu()
        self._fresh |= dict(zip(wanted, features_NE, strict=True))

    def save(self) -> None:
        """Write what was computed beside what is in the file, whole or not at all. Several processes may save at once: each
        adds to what the others wrote.

        Raises:
            ValueError: meanwhile another encoder's embeddings, or something else, were put in its place
            OSError: it cannot be written
        """
        if not self._fresh:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self.path.parent):
            stored = _Stored.read(self.path, self.encoder)
            keys_M = np.array(sorted(self._fresh), dtype=np.int64)
            keys_M = keys_M[~stored.find(keys_M)[0]]
            if len(keys_M):
                fresh_ME = torch.stack([self._fresh[int(key)] for key in keys_M]).numpy()
                parts = (stored.features_NE, fresh_ME)
                chunks = _Chunks(np.concatenate([stored.keys, keys_M]), parts)
                about = {"kind": _KIND, "encoder": self.encoder.name, "encoder_hash": self.encoder.hash}
                write_weights(self.path, chunks, about, chunks.like())
                stored = _Stored.read(self.path, self.encoder)
        self._stored, self._fresh = stored, {}


class _Stored:
    """What a file holds.

    Args:
        keys: int64 [N]
        features_NE: fp32, mapped
    """

    def __init__(self, keys: np.ndarray, features_NE: np.ndarray):
        self.keys, self.features_NE = keys, features_NE
        self._order = np.argsort(keys)
        self._sorted = keys[self._order]

    @classmethod
    def read(cls, path: Path, encoder: TextEncoder) -> _Stored:
        """All of a file, checked; nothing where there is none."""
        if not path.exists():
            return cls(np.empty(0, np.int64), np.empty((0, encoder.width), np.float32))
        with WeightsFile(path) as file:
            about = file.metadata
            if about.get("kind") != _KIND:
                raise ValueError(f"{path} is no file of embeddings: name another")
            told_hash = about.get("encoder_hash", "")
            if told_hash != encoder.hash:
                raise ValueError(
                    f"{path} holds embeddings of {about.get('encoder')} ({told_hash[:8]}…), not of {encoder.name} "
                    f"({encoder.hash[:8]}…): name another file, or remove this one"
                )
            told = file.told_checksums()
            if told is None or not _is_sound(file, told, encoder.width):
                raise ValueError(f"{path} is damaged: remove it, and its embeddings are computed anew")
            keys = torch.empty(file.tensors["keys"].shape, dtype=torch.int64)
            names = [name for name in file.tensors if name != "keys"]
            # one chunk after the other, in the same memory
            sizes = {name: file.tensors[name].shape[0] for name in names}
            buffer_CE = torch.empty(max(sizes.values()), encoder.width)
            rooms = {"keys": keys} | {name: buffer_CE[:size] for name, size in sizes.items()}
            if any(file.read(name, room) != told[name] for name, room in rooms.items()):
                raise ValueError(f"{path} is damaged: remove it, and its embeddings are computed anew")
            start = min(file.tensors[name].start for name in names)
            # the very file that was checked: another process may have put a new one in its place
            with os.fdopen(os.dup(file.descriptor), "rb") as same:
                features_NE = np.memmap(same, np.float32, "r", start, (len(keys), encoder.width))
        return cls(keys.numpy(), features_NE)

    def find(self, keys_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of the keys are there, and in which rows."""
        if not len(self.keys):
            return np.zeros(len(keys_B), bool), np.zeros(len(keys_B), np.int64)
        places_B = np.searchsorted(self._sorted, keys_B).clip(max=len(self.keys) - 1)
        return self._sorted[places_B] == keys_B, self._order[places_B]


def _is_sound(file: WeightsFile, told: Mapping[str, str], width: int) -> bool:
    """Whether what a header tells are keys, each with a row of features, which lie one behind the other; read is nothing yet."""
    features = sorted((each for name, each in file.tensors.items() if name != "keys"), key=lambda each: each.start)
    keys = file.tensors.get("keys")
    if keys is None or keys.dtype != torch.int64 or len(keys.shape) != 1 or told.keys() != file.tensors.keys():
        return False
    if not features or any(each.dtype != torch.float32 or each.shape[1:] != (width,) for each in features):
        return False
    ends = [each.start + each.shape[0] * width * 4 for each in features]
    follow = all(end == each.start for end, each in zip(ends, features[1:], strict=False))
    return follow and sum(each.shape[0] for each in features) == keys.shape[0]


class _Chunks(Mapping):
    """The tensors of a file, each made as it is asked for: in the file they lie one behind the other, as one of [N, E].

    Args:
        keys: int64 [N]
        parts: of the features, which together have N rows
    """

    def __init__(self, keys: np.ndarray, parts: tuple[np.ndarray, np.ndarray]):
        self.keys_N, self.parts = keys, parts
        self._rows = {f"features-{first // _CHUNK:08d}": first for first in range(0, len(keys), _CHUNK)}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name == "keys":
            return torch.from_numpy(self.keys_N)
        first, old = self._rows[name], len(self.parts[0])
        stop = min(first + _CHUNK, len(self.keys_N))
        pieces = self.parts[0][first:stop], self.parts[1][max(0, first - old) : max(0, stop - old)]
        return torch.from_numpy(np.concatenate(pieces))

    def __iter__(self) -> Iterator[str]:
        return iter(("keys", *self._rows))

    def __len__(self) -> int:
        return 1 + len(self._rows)

    def like(self) -> dict[str, torch.Tensor]:
        """Their shapes and dtypes."""
        with torch.device("meta"):
            width, count = self.parts[0].shape[1], len(self.keys_N)
            sizes = {name: min(_CHUNK, count - first) for name, first in self._rows.items()}
            chunks = {name: torch.empty(size, width) for name, size in sizes.items()}
            return {"keys": torch.empty(count, dtype=torch.int64)} | chunks


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within the block no other process of this machine saves a cache in the folder. It is the folder that is locked: a lock
    file would stay behind. Some network file systems lock no folders: of two that save at once there, one may write over what
    the other has added, and that is computed anew."""
    held = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _key(caption: str) -> int:
    digest = hashlib.blake2b(caption.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
