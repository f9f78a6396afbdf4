"""Token shards: what the prior trains on. Image codes of the dVAE with their captions, so that stage two never touches
pixels again.

A folder holds `meta.json` (grid, codebook size, hash and precision of the dVAE, counts) and
`tokens-00000.safetensors`, …, each with `codes_NI` uint16 [N, I], `captions_utf8` uint8 (a JSON list of captions for
each pair, one after the other) and `caption_ends_N` int64. The files are memory-mapped. About 2 kB a pair at 32×32 codes.

Batches are a pure function of (seed, number of the batch): they can be resumed anywhere at no cost, and the global
batch is the same for any number of ranks.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import save
from torch.utils.data import Dataset

from dalle.data.counts import Counts
from dalle.data.loading import load
from dalle.data.token_files.parts import WRITTEN_BY, find_shards
from dalle.data.token_files.reading import META, Meta, load_shard, look_at_shard, read_pair
from dalle.outputs.ownership import check, unfinished, write_mark
from dalle.outputs.whole import are_same, put_in_place, replace_bytes, replace_text, when_there_is_room
from dalle.text import Cuts, Tokenizer, pad

_SHARDS_TOGETHER = 32
"""Shards that are shuffled as one: few enough that a batch reads from few files, many enough to mix."""


class TokenWriter:
    """Writes token shards in a hidden folder of their own, and when it is closed moves them into their place, for older
    ones. As a context manager it leaves nothing of shards that were not closed in the block.

    Args:
        folder: the output folder, made if missing: empty, or one that an earlier writer marked
        meta: without shard sizes
        pairs_per_shard: pairs in each file
        request: JSON-able; what they are made of, for the mark

    Raises:
        ValueError: the folder holds something else
    """

    def __init__(self, folder: Path, meta: Meta, pairs_per_shard: int, request: dict[str, Any] | None = None):
        check(folder, WRITTEN_BY)
        if meta.codebook_size > 1 << 16:
            raise ValueError(
                f"codebook_size {meta.codebook_size}: token shards hold codes in 16 bits; take a dVAE of at most {2**16:,}"
            )
        self.target, self.meta, self.pairs_per_shard, self.request = folder, meta, pairs_per_shard, request
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = unfinished(folder)
        self._codes: list[np.ndarray] = []
        self._captions: list[list[str]] = []
        self._sizes: list[int] = []

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # it holds something, and stays
            self.target.rmdir()

    def add(self, codes_I: np.ndarray, captions: list[str]) -> None:
        """One pair: codes in raster order, and its captions."""
        self._codes.append(codes_I.astype(np.uint16))
        self._captions.append(captions)
        if len(self._codes) == self.pairs_per_shard:
            self._write()

    def _write(self) -> None:
        path = self.folder / self.meta.shard_name(len(self._sizes))
        shard = save(packed(np.stack(self._codes), self._captions))
        when_there_is_room(WRITTEN_BY, lambda: replace_bytes(path, shard))
        self._sizes.append(len(self._codes))
        self._codes, self._captions = [], []

    def close(self, counts: Counts | None = None) -> Meta:
        """Write what is left and move everything into place. counts: of the samples that the pairs are from.

        Raises:
            ValueError: there was nothing to write
        """
        if self._codes:
            self._write()
        if not self._sizes:
            self.__exit__()
            raise ValueError("no pair could be tokenized; name --data with pairs")
        meta = replace(self.meta, shard_sizes=tuple(self._sizes), making=self._making())
        meta = meta if counts is None else replace(meta, samples=counts.to_json())
        when_there_is_room(WRITTEN_BY, lambda: self._publish(meta))
        return meta

    def _making(self) -> int:
        """That of the shards in place if the new ones have the same bytes; else the other."""
        with suppress(ValueError, TypeError, KeyError, OSError):  # there are none, or such as nobody can read
            before, new = TokenShards(self.target), [self.meta.shard_name(i) for i in range(len(self._sizes))]
            same = are_same([self.folder / name for name in new], before.paths())
            return before.meta.making if same else 1 - before.meta.making
        return 0

    def _publish(self, meta: Meta) -> None:
        """Cut off anywhere, there are the old shards, whole, or the new ones: `meta.json` comes last, and tells them apart."""
        replace_text(self.folder / META, json.dumps(asdict(meta), indent=2))
        write_mark(self.target, WRITTEN_BY, self.request)
        names = {self.meta.shard_name(number): meta.shard_name(number) for number in range(len(self._sizes))}
        put_in_place(self.folder, self.target, names | {META: META}, r"tokens-\d{5,}(-1)?\.safetensors")


def packed(codes_NI: np.ndarray, captions: Sequence[list[str]]) -> dict[str, np.ndarray]:
    """The tensors of a shard. captions: of each pair."""
    texts = [json.dumps(each, ensure_ascii=False).encode() for each in captions]
    return {
        "codes_NI": codes_NI,
        "captions_utf8": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "caption_ends_N": np.cumsum([len(text) for text in texts], dtype=np.int64),
    }


class TokenShards:
    """Random access to a folder of token shards.

    Args:
        folder: written by `TokenWriter`, or with a folder for each part of it
        look: see that every shard is there; left to opening it otherwise

    Raises:
        ValueError: the folder is missing or incomplete
    """

    def __init__(self, folder: str | Path, look: bool = True):
        self.folder = Path(folder)
        self.meta, self._paths = find_shards(self.folder)
        for shard in range(len(self.meta.shard_sizes) if look else 0):
            look_at_shard(self._paths[shard], self.meta, shard)
        self._open = lru_cache(maxsize=_SHARDS_TOGETHER)(self._load)
        self._group_sizes = lru_cache(maxsize=4)(self._compute_group_sizes)
        self._group = lru_cache(maxsize=2)(self._compute_group)

    def __reduce__(self) -> tuple[Any, ...]:
        # a spawned loader worker opens the folder anew: what the caches hold cannot be sent to it
        return TokenShards, (self.folder, False)

    def __len__(self) -> int:
        return sum(self.meta.shard_sizes)

    def paths(self) -> list[str]:
        """The shards' files."""
        return [str(path) for path in self._paths]

    def _load(self, shard: int) -> tuple[Any, np.ndarray, np.ndarray]:
        return load_shard(self._paths[shard], self.meta, shard)

    def pair(self, shard: int, row: int) -> tuple[np.ndarray, list[str]]:
        """Codes uint16 [I] and captions of one pair. Raises ValueError where they are damaged."""
        codes_NI, text, ends_N = self._open(shard)
        where = f"token shard {self._paths[shard]}, pair {row},"
        return read_pair(codes_NI, text, ends_N, row, self.meta.codebook_size, where)

    def place(self, number: int, seed: int) -> tuple[int, int, int]:
        """(epoch, shard, row) of the pair that comes at `number` (from 0) in the endless shuffled order.

        In each epoch the shards are shuffled, then the pairs of a few shards together, so that a batch reads from few
        files and the memory needed is that of the indices of those few shards.
        """
        epoch, index = divmod(number, len(self))
        for group, size in enumerate(self._group_sizes(epoch, seed)):
            if index < size:
                shard, row = self._group(epoch, seed, group)[index]
                return epoch, int(shard), int(row)
            index -= size
        raise AssertionError("the groups hold all pairs")

    def _shard_order(self, epoch: int, seed: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(len(self.meta.shard_sizes))

    def _compute_group_sizes(self, epoch: int, seed: int) -> list[int]:
        sizes = np.array(self.meta.shard_sizes)[self._shard_order(epoch, seed)]
        return [int(sizes[i : i + _SHARDS_TOGETHER].sum()) for i in range(0, len(sizes), _SHARDS_TOGETHER)]

    def _compute_group(self, epoch: int, seed: int, group: int) -> np.ndarray:
        shards = self._shard_order(epoch, seed)[group * _SHARDS_TOGETHER : (group + 1) * _SHARDS_TOGETHER]
        sizes = self.meta.shard_sizes
        places = np.concatenate([np.stack([np.full(n, s), np.arange(n)], 1) for s in shards if (n := sizes[s])])
        np.random.default_rng([seed, epoch, group]).shuffle(places)
        return places


class Pairs(Protocol):
    """What `TokenBatches` asks of its data: `TokenShards`, or a mixture of them."""

    def place(self, number: int, seed: int) -> tuple[int, int, int]: ...

    def pair(self, shard: int, row: int) -> tuple[np.ndarray, list[str]]: ...


class TokenBatches(Dataset):
    """Batch number n of one rank, a pure function of (seed, n).

    A batch is a dict: `text_BU` int64 [B, T − 1] padded with PAD, `codes_BI` int64 [B, I], and `cut_B` bool [B], whether the
    caption has more tokens than are read.

    Args:
        shards: the data
        tokenizer: encodes the captions
        caption_tokens: T − 1, the most tokens of a caption that are read
        batch_size: micro-batch of this rank; the global one is `batch_size * world_size`
        seed: of the order, the choice among captions, and both dropouts
        bpe_dropout: probability of skipping a merge
        caption_dropout: probability of reading no caption: PAD in every caption slot
        rank, world_size: rank r takes rows r·B … (r+1)·B − 1 of each global micro-batch
    """

    def __init__(
        self,
        shards: Pairs,
        tokenizer: Tokenizer,
        caption_tokens: int,
        batch_size: int,
        seed: int,
        *,
        bpe_dropout: float = 0.0,
        caption_dropout: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.shards, self.tokenizer, self.caption_tokens = shards, tokenizer, caption_tokens
        self.batch_size, self.seed = batch_size, seed
        self.bpe_dropout, self.caption_dropout = bpe_dropout, caption_dropout
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, number: int) -> dict:
        first = (number * self.world_size + self.rank) * self.batch_size
        codes, texts, cut = [], [], []
        for place in range(first, first + self.batch_size):
            epoch, shard, row = self.shards.place(place, self.seed)
            codes_I, captions = self.shards.pair(shard, row)
            generator = np.random.default_rng([self.seed, epoch, shard, row])
            caption = captions[generator.integers(len(captions))]
            codes.append(codes_I)
            tokens = self.tokenizer.encode_with_dropout(caption, self.bpe_dropout, generator)
            cut.append(len(tokens) > self.caption_tokens)
            # drawn last, so that the captions that stay are the same at any rate
            texts.append([] if generator.random() < self.caption_dropout else tokens)
        return {
            "text_BU": torch.from_numpy(pad(texts, self.caption_tokens)),
            "codes_BI": torch.from_numpy(np.stack(codes).astype(np.int64)),
            "cut_B": torch.tensor(cut),
        }


class TokenLoader:
    """Iterates over batches, counts the captions that are cut, and knows where it stands.

    Args:
        dataset: the batches of one rank
        workers: loader processes; 0 loads in this process
    """

    def __init__(self, dataset: TokenBatches, workers: int = 0):
        self.dataset, self.workers = dataset, workers
        self.batches_taken = 0
        self.cuts = Cuts(dataset.caption_tokens)

    def __iter__(self) -> Iterator[dict]:
        numbers = itertools.count(self.batches_taken)
        for batch in load(self.dataset, self.workers, sampler=numbers):
            self.batches_taken += 1
            self.cuts.add(batch.pop("cut_B").tolist())
            yield batch

    def state_dict(self) -> dict:
        """How many pairs were taken, over all ranks and micro-batches; JSON-able."""
        return {"pairs_taken": self.batches_taken * self.dataset.batch_size * self.dataset.world_size}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a position, also with another micro-batch or number of ranks."""
        self.batches_taken = state["pairs_taken"] // (self.dataset.batch_size * self.dataset.world_size)
