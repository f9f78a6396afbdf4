"""Batches of decoded image-caption pairs.

The worker processes of the loader run all of this; the training process puts their parts of a batch together.

The global batch of an update is the same for any number of processes and workers. Each stream of the data fills the same
rows of every batch, and processes and workers merely divide the rows among them: a reader goes through the streams of
its rows, and decodes no rows but its own.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from dalle.config import Images, Run
from dalle.data.loading import load
from dalle.data.samples import Counts, Decoder, Pair, read_pairs, sample_generator
from dalle.data.shards import Position, ShardStream, Split, expand, num_streams

_BARREN_EPOCHS = 8
"""Epochs in a row without a sample that can be used after which a stream gives up, where it is one of several: it may
meet shards that are filtered out as a whole, in each epoch others."""


class PairPasses(IterableDataset):
    """A few passes over the shards in order, each with crops of its own, for one loader worker.

    Yields dicts of `images_BCYX` uint8 [B, 3, Y, X] and `captions` (all of each pair's), and at the end the `Counts`.
    """

    def __init__(self, spec: str, config: Images, size_px: int, batch_size: int, passes: int, seed: int):
        self.spec, self.config, self.size_px, self.batch_size = spec, config, size_px, batch_size
        self.passes, self.seed = passes, seed

    def __iter__(self) -> Iterator[dict | Counts]:
        assert (info := get_worker_info()) is None or info.num_workers == 1, "several would each read everything"
        counts = Counts()
        passes = (
            read_pairs(self.spec, self.config, self.size_px, self.seed, epoch, counts) for epoch in range(self.passes)
        )
        pairs = itertools.chain.from_iterable(passes)
        while batch := list(itertools.islice(pairs, self.batch_size)):
            yield {"images_BCYX": to_tensor([p.image for p in batch]), "captions": [p.captions for p in batch]}
        yield counts


def warn_of_bad_samples(loader: PairLoader) -> Callable[[int, dict], list[str]]:
    """A check for the training loop: says how many samples could not be read, whenever there are more."""
    told = 0

    def check(step: int, values: dict) -> list[str]:
        nonlocal told
        count = sum(loader.num_bad.values())
        if count <= told:
            return []
        told = count
        return [f"{count} samples could not be read so far and were skipped"]

    return check


@dataclass
class _Usable:
    """A sample that takes a row, and the position that follows it. Its pair is None when its pixels do not decode."""

    position: Position
    sample: dict[str, bytes]
    captions: list[str]
    scene: dict | None
    decoder: Decoder

    @cached_property
    def pair(self) -> Pair | None:
        return self.decoder.decode(self.sample, self.position.epoch, self.captions, self.scene)


class _StreamRows:
    """The rows that one stream fills, update after update, as one reader of the stream goes through them.

    Args:
        stream: its usable samples fill the rows in order
        num_rows: of the stream in each update
        decoder: the reader's
        start: where the stream stands
    """

    def __init__(self, stream: ShardStream, num_rows: int, decoder: Decoder, start: Position):
        self.num_rows, self.decoder, self.position = num_rows, decoder, start
        self._samples = stream.iterate(start)
        self._ahead: deque[_Usable] = deque()  # from the next row on
        self._next_row = 0
        self._usable_epoch = start.epoch  # the last one known to have a usable sample
        # the only stream has gone through everything after an epoch
        self._patience = 1 if stream.split.count == 1 else _BARREN_EPOCHS

    def take(self, row: int) -> _Usable:
        """The sample of a row, decoded. If its pixels are bad, the next sample that decodes stands in for it, and keeps
        its own row all the same: so readers of other rows need not know."""
        self._pass_to(row)
        for ahead in itertools.count():
            usable = self._peek(ahead, count=True)
            if usable.pair is not None:
                self._pass_to(row + 1)
                return usable

    def finish(self) -> None:
        """Pass over what is left of this update."""
        self._pass_to(self.num_rows)
        self._next_row = 0

    def _pass_to(self, row: int) -> None:
        for _ in range(self._next_row, row):
            self.position = self._peek(0, count=False).position
            self._ahead.popleft()
        self._next_row = row

    def _peek(self, ahead: int, count: bool) -> _Usable:
        while len(self._ahead) <= ahead:
            position, sample = next(self._samples)
            if captions := self.decoder.captions(sample, count):
                self._usable_epoch = position.epoch
                self._ahead.append(_Usable(position, sample, *captions, self.decoder))
            elif position.epoch > self._usable_epoch + self._patience:
                self.decoder.check_limit(sample, at_end=True)  # which knows the reasons, if all were bad
                raise ValueError(f"every sample of {sample['__url__']} … is bad or filtered out (see `images`)")
        return self._ahead[ahead]


class PairBatches(IterableDataset):
    """Endless micro-batches of one rank, or the part of each that is a loader worker's.

    The `run.batch_size` rows of an update are the streams', an equal share each, one after the other; and they are the
    ranks', likewise; a rank's are its micro-batches', and each of these is cut into parts for the workers.

    A part is a dict: `images_BCYX` uint8 [B, 3, Y, X], `captions` (one of each pair's, chosen at random), `num_bad` of the
    worker so far, and `positions` of its streams after the update for resuming, {} before the update's last micro-batch.

    Args:
        spec: the shards
        config: filters, augmentation, order
        size_px: side of the square images
        run: batch size, accumulation steps, seed
        rank, world_size: this process's place

    Raises:
        ValueError: a shard cannot be used, or the batch does not divide
    """

    def __init__(self, spec: str, config: Images, size_px: int, run: Run, rank: int, world_size: int):
        self.micro_batch_size = run.micro_batch_size(world_size)
        self.shards = expand(spec)
        self.config, self.size_px, self.run = config, size_px, run
        self.num_streams = num_streams(len(self.shards), run.batch_size, config.streams)
        self.num_rows = run.batch_size // self.num_streams
        self.first_row = rank * run.accumulation_steps * self.micro_batch_size
        self.positions: dict[int, Position] = {}

    @property
    def streams(self) -> set[int]:
        """Those that fill rows of this rank."""
        return self._streams_of(self._parts(0, 1))

    def _streams_of(self, parts: list[range]) -> set[int]:
        return {row // self.num_rows for part in parts for row in part}

    def _parts(self, worker: int, num_workers: int) -> list[range]:
        """A worker's rows in each micro-batch."""
        size = self.micro_batch_size
        begin, end = size * worker // num_workers, size * (worker + 1) // num_workers
        firsts = range(self.first_row, self.first_row + self.run.accumulation_steps * size, size)
        return [range(first + begin, first + end) for first in firsts]

    def __iter__(self) -> Iterator[dict]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        parts = self._parts(worker, num_workers)
        decoder = Decoder(self.config, self.size_px, self.run.seed, self.config.cache_bytes // num_workers)
        streams = {number: self._stream(number, decoder) for number in self._streams_of(parts)}
        while True:
            for number, part in enumerate(parts, 1):
                taken = [streams[row // self.num_rows].take(row % self.num_rows) for row in part]
                if number == len(parts):
                    for stream in streams.values():
                        stream.finish()
                yield {
                    "images_BCYX": to_tensor([usable.pair.image for usable in taken]),
                    "captions": [self._choose(usable) for usable in taken],
                    "num_bad": decoder.counts.num_bad,
                    "positions": {v: stream.position for v, stream in streams.items()} if number == len(parts) else {},
                }

    def _stream(self, number: int, decoder: Decoder) -> _StreamRows:
        shuffle_buffer = -(-self.config.shuffle_buffer // self.num_streams)
        stream = ShardStream(self.shards, self.run.seed, shuffle_buffer, Split(number, self.num_streams))
        return _StreamRows(stream, self.num_rows, decoder, self.positions.get(number, Position()))

    def _choose(self, usable: _Usable) -> str:
        generator = sample_generator(self.run.seed + 1, usable.position.epoch, usable.sample)
        return usable.captions[generator.integers(len(usable.captions))]


def to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """uint8 images [Y, X, C] to one tensor [B, C, Y, X] in channels-last memory."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


class PairLoader:
    """Iterates over a rank's micro-batches and knows where it stands: dicts of `images_BCYX` and `captions`.

    Args:
        dataset: the batches of one rank
        workers: loader processes; 0 loads in this process. There are never more than a micro-batch has samples
    """

    def __init__(self, dataset: PairBatches, workers: int):
        self.dataset, self.workers = dataset, min(workers, dataset.micro_batch_size)
        self.positions: dict[int, Position] = {}
        self.num_bad: dict[int, int] = {}

    def __iter__(self) -> Iterator[dict]:
        self.dataset.positions = dict(self.positions)
        parts = load(self.dataset, self.workers)  # of each worker in turn
        while batch := list(itertools.islice(parts, max(1, self.workers))):
            for worker, part in enumerate(batch):
                self.num_bad[worker] = part["num_bad"]
                self.positions |= part["positions"]
            images = [part["images_BCYX"] for part in batch]
            yield {
                "images_BCYX": torch.cat(images) if len(images) > 1 else images[0],
                "captions": [caption for part in batch for caption in part["captions"]],
            }

    def state_dict(self) -> dict:
        """The positions of this rank's streams after the last update of which every micro-batch was taken, and what the
        order depends on; JSON-able. United, the states of all ranks are the state of the whole data."""
        streams = {f"stream {number}": [p.epoch, p.sample] for number, p in sorted(self.positions.items())}
        return {**self._order(), **streams}

    def load_state_dict(self, state: dict) -> None:
        """Continue where the union of all ranks' states stands, with any number of processes and workers.

        Raises:
            ValueError: something changed that the order of the data depends on
        """
        for name, value in self._order().items():
            if value != state.get(name):
                raise ValueError(
                    f"{name} {value}: the checkpoint was written with {state.get(name)}, and the order of the data depends "
                    "on it"
                )
        # its own alone: it will not know where the streams of other ranks stand when it is asked for its state
        found = {number: state.get(f"stream {number}") for number in self.dataset.streams}
        self.positions = {number: Position(*position) for number, position in found.items() if position}

    def _order(self) -> dict[str, int]:
        config = self.dataset.config
        return {
            "images.streams": config.streams,
            "images.shuffle_buffer": config.shuffle_buffer,
            "number of shards": len(self.dataset.shards),
        }
