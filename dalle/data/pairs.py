"""Batches of decoded image-caption pairs.

The worker processes of the loader run all of this; the training process puts their parts of a batch together.

The global batch of an update is the same for any number of processes and workers. Each stream of the data fills the same
rows of every batch, and processes and workers merely divide the rows among them: a reader goes through the streams of
its rows, and decodes no rows but its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from dalle.config import Images, Run
from dalle.data.counts import Counts, place
from dalle.data.loading import load
from dalle.data.naming import expand, names
from dalle.data.rows import StreamRows, Tally, Usable
from dalle.data.samples import Decoder, read_pairs, sample_generator
from dalle.data.shards import Position, ShardStream, Split, num_streams


class PairPasses(IterableDataset):
    """A few passes over the shards in order, each with crops of its own, for one loader worker.

    Yields dicts of `images_BCYX` uint8 [B, 3, Y, X] and `captions` (all of each pair's), and at the end the `Counts` of one
    pass.
    """

    def __init__(
        self, spec: str | Sequence[str], config: Images, size_px: int, batch_size: int, passes: int, seed: int
    ):
        self.spec, self.config, self.size_px, self.batch_size = spec, config, size_px, batch_size
        self.passes, self.seed = passes, seed

    def __iter__(self) -> Iterator[dict | Counts]:
        assert (info := get_worker_info()) is None or info.num_workers == 1, "several would each read everything"
        counts = Counts()
        passes = (
            read_pairs(self.spec, self.config, self.size_px, self.seed, epoch, counts if epoch == 0 else None)
            for epoch in range(self.passes)
        )
        pairs = itertools.chain.from_iterable(passes)
        while batch := list(itertools.islice(pairs, self.batch_size)):
            yield {"images_BCYX": to_tensor([p.image for p in batch]), "captions": [p.captions for p in batch]}
        yield counts


class PairBatches(IterableDataset):
    """Endless micro-batches of one rank, or the part of each that is a loader worker's.

    The `run.batch_size` rows of an update are the streams', an equal share each, one after the other; and they are the
    ranks', likewise; a rank's are its micro-batches', and each of these is cut into parts for the workers.

    A part is a dict: `images_BCYX` uint8 [B, 3, Y, X], `captions` (one of each pair's, chosen at random anew in each epoch),
    `places` (shard and key of each pair, by which an image that comes twice is known), where asked for `concepts` (what each pair is
    about, `dalle.data.captions.concepts`), `counts` of the worker so far, and `positions` of its streams after the update for
    resuming, {} before the update's last micro-batch.

    Args:
        spec: the shards
        config: filters, augmentation, order
        size_px: side of the square images
        run: batch size, accumulation steps, seed
        rank, world_size: this process's place
        told: of raw samples with all their captions what a batch tells as `concepts`; null tells nothing

    Raises:
        ValueError: a shard cannot be used, or the batch does not divide
    """

    def __init__(
        self,
        spec: str,
        config: Images,
        size_px: int,
        run: Run,
        rank: int,
        world_size: int,
        told: Callable[[dict, list[str]], tuple[str, ...]] | None = None,
    ):
        self.micro_batch_size = run.micro_batch_size(world_size)
        # looked at once: with many processes it would be millions of calls; the others find out when they open one
        self.shards = expand(spec, config.pipes) if rank == 0 else names(spec, config.pipes)
        self.config, self.size_px, self.run, self.rank, self.told = config, size_px, run, rank, told
        self.num_streams = num_streams(len(self.shards), run.batch_size, config.streams)
        self.num_rows = run.batch_size // self.num_streams
        self.first_row = rank * run.accumulation_steps * self.micro_batch_size
        self.positions: dict[int, Position] = {}
        # of all ranks in the run that is continued: the limit of broken samples knows them
        self.counts_before = Counts()

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
        tally = Tally(all=self.counts_before + Counts())
        streams = {number: self._stream(number, decoder, tally) for number in self._streams_of(parts)}
        while True:
            for number, part in enumerate(parts, 1):
                taken = [streams[row // self.num_rows].take(row % self.num_rows) for row in part]
                if number == len(parts):
                    for stream in streams.values():
                        stream.finish()
                yield {
                    "images_BCYX": to_tensor([usable.whole.image for usable in taken]),
                    "captions": [self._choose(usable) for usable in taken],
                    "places": [place(usable.sample) for usable in taken],
                    "concepts": [self.told(usable.sample, usable.captions) for usable in taken] if self.told else [],
                    "counts": tally.first_epoch + Counts(),  # as it is now: it goes on
                    "positions": {v: stream.position for v, stream in streams.items()} if number == len(parts) else {},
                }

    def _stream(self, number: int, decoder: Decoder, tally: Tally) -> StreamRows:
        shuffle_buffer = -(-self.config.shuffle_buffer // self.num_streams)
        stream = ShardStream(self.shards, self.run.seed, shuffle_buffer, Split(number, self.num_streams))
        return StreamRows(stream, self.num_rows, decoder, tally, self.positions.get(number, Position()))

    def _choose(self, usable: Usable) -> str:
        generator = sample_generator(self.run.seed + 1, usable.position.epoch, usable.sample)
        return usable.captions[generator.integers(len(usable.captions))]


def to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """uint8 images [Y, X, C] to one tensor [B, C, Y, X] in channels-last memory."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


class PairLoader:
    """Iterates over a rank's micro-batches and knows where it stands: dicts of `images_BCYX`, `captions`, `places` and, where they are
    told, `concepts`.

    Args:
        dataset: the batches of one rank
        workers: loader processes; 0 loads in this process. There are never more than a micro-batch has samples
    """

    def __init__(self, dataset: PairBatches, workers: int):
        self.dataset, self.workers = dataset, min(workers, dataset.micro_batch_size)
        self.positions: dict[int, Position] = {}
        self._counts_before = Counts()  # of the run that is continued
        self._counts: dict[int, Counts] = {}

    @property
    def counts(self) -> Counts:
        """What happened to the samples of this rank so far, in the first epoch."""
        return sum(self._counts.values(), self._counts_before)

    def __iter__(self) -> Iterator[dict]:
        self.dataset.positions = dict(self.positions)
        self._counts_before, self._counts = self.counts, {}
        parts = load(self.dataset, self.workers)  # of each worker in turn
        while batch := list(itertools.islice(parts, max(1, self.workers))):
            for worker, part in enumerate(batch):
                self._counts[worker] = part["counts"]
                self.positions |= part["positions"]
            images = [part["images_BCYX"] for part in batch]
            yield {
                "images_BCYX": torch.cat(images) if len(images) > 1 else images[0],
                "captions": [caption for part in batch for caption in part["captions"]],
                "places": [where for part in batch for where in part["places"]],
                "concepts": [concepts for part in batch for concepts in part["concepts"]],
            }

    def state_dict(self) -> dict:
        """The positions of this rank's streams after the last update of which every micro-batch was taken, its counts, and
        what the order depends on; JSON-able. United, the states of all ranks are the state of the whole data."""
        streams = {f"stream {number}": [p.epoch, p.sample] for number, p in sorted(self.positions.items())}
        return {**self._order(), **streams, f"counts {self.dataset.rank}": self.counts.to_json()}

    def load_state_dict(self, state: dict) -> None:
        """Continue where the union of all ranks' states stands, with any number of processes and workers.

        Raises:
            ValueError: something changed that the order of the data depends on
        """
        for name, value in self._order().items():
            if value != state.get(name):
                raise ValueError(
                    f"{name} {value}: the checkpoint was written with {state.get(name)}, and the order of the data depends "
                    "on it; set it back"
                )
        # its own alone: it will not know where the streams of other ranks stand when it is asked for its state
        found = {number: state.get(f"stream {number}") for number in self.dataset.streams}
        self.positions = {number: Position(*position) for number, position in found.items() if position}
        counts = (Counts.from_json(value) for name, value in state.items() if name.startswith("counts "))
        self.dataset.counts_before = sum(counts, Counts())
        if self.dataset.rank == 0:  # tells of all ranks: there may be others now
            self._counts_before = self.dataset.counts_before

    def _order(self) -> dict[str, int]:
        config = self.dataset.config
        return {
            "images.streams": config.streams,
            "images.shuffle_buffer": config.shuffle_buffer,
            "number of shards": len(self.dataset.shards),
        }
