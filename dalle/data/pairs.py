"""Decoded image-caption pairs: decoding, filtering, augmentation, counting of what cannot be read, batching.

A worker process of the loader runs all of this; the training process receives whole batches. Every random choice is
seeded by (seed, epoch, shard's file name, sample key), so an image meets the same crop whatever the number of workers
and wherever the data lies.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from dalle.config import Images
from dalle.data import images as crops
from dalle.data.captions import BadSample, read_captions
from dalle.data.loading import load
from dalle.data.shards import Position, ShardStream, Split, expand, read

_HOPELESS = 20
"""Unreadable samples in a row at the very start after which waiting for a fraction makes no sense."""


@dataclass
class Pair:
    """One sample: `image` uint8 [Y, X, C], its captions, its key, and what the drawn data set says it shows."""

    key: str
    image: np.ndarray
    captions: list[str]
    scene: dict | None = None


@dataclass
class Counts:
    """What happened to the samples so far."""

    read: int = 0
    filtered: int = 0
    bad: dict[str, int] = field(default_factory=dict)

    @property
    def num_bad(self) -> int:
        return sum(self.bad.values())


class Decoder:
    """Raw samples to pairs.

    Args:
        config: filters and augmentation
        size_px: side of the square images
        seed: of the augmentation
        cache_bytes: memory for decoded, reduced images; once full, it keeps what it has
    """

    def __init__(self, config: Images, size_px: int, seed: int, cache_bytes: int = 0):
        self.config, self.size_px, self.seed = config, size_px, seed
        self.counts = Counts()
        self._cache: dict[tuple[str, str], crops.Image.Image] = {}
        self._cache_bytes_left = cache_bytes

    def __call__(self, sample: dict[str, bytes], epoch: int) -> Pair | None:
        """The pair, or None when it is filtered out or bad (then it is counted).

        Raises:
            ValueError: more than `max_bad_fraction` of the samples so far were bad
        """
        self.counts.read += 1
        try:
            captions, scene = read_captions(sample)
            captions = [c for c in captions if len(c) >= self.config.min_caption_chars]
            image = self._image(sample)
            if not captions or max(image.size) > self.config.max_aspect_ratio * min(image.size):
                self.counts.filtered += 1
                return None
            return Pair(sample["__key__"], np.asarray(self._crop(image, sample, epoch)), captions, scene)
        except BadSample as error:
            self.counts.bad[str(error)] = self.counts.bad.get(str(error), 0) + 1
            self.check_limit(sample)
            return None

    def check_limit(self, sample: dict, at_end: bool = False) -> None:
        """Raises ValueError when too many samples were bad; early on, only when all were."""
        counts = self.counts
        all_bad = counts.num_bad == counts.read >= (1 if at_end else _HOPELESS)
        enough = _HOPELESS if at_end else 5 * _HOPELESS
        many_bad = counts.read >= enough and counts.num_bad > self.config.max_bad_fraction * counts.read
        if all_bad or many_bad:
            reasons = ", ".join(f"{n} × {reason}" for reason, n in counts.bad.items())
            raise ValueError(
                f"{counts.num_bad} of {counts.read} samples cannot be used ({reasons}), last {sample['__key__']} of "
                f"{sample['__url__']}; the limit is images.max_bad_fraction {self.config.max_bad_fraction}"
            )

    def _image(self, sample: dict[str, bytes]) -> crops.Image.Image:
        place = (str(sample["__url__"]), sample["__key__"])
        if place in self._cache:
            return self._cache[place]
        data = next((sample[e] for e in crops.EXTENSIONS if e in sample), None)
        if data is None:
            raise BadSample("no image")
        try:
            image = crops.decode(data)
        except ValueError:
            raise BadSample("image does not decode") from None
        if self.config.cache_bytes > 0:
            # no crop asks for more than 1.5 times the size; all images, cached or not, or what is trained on would
            # depend on which were met first
            image = crops.shrink(image, round(1.5 * self.size_px))
        if self._cache_bytes_left > 0:
            self._cache[place] = image
            self._cache_bytes_left -= 3 * image.width * image.height
        return image

    def _crop(self, image: crops.Image.Image, sample: dict, epoch: int) -> crops.Image.Image:
        if self.config.augmentation == "none":
            return crops.centre_crop(image, self.size_px)
        generator = _generator(self.seed, epoch, sample)
        if self.config.augmentation == "dvae":
            return crops.dvae_crop(image, self.size_px, generator, self.config.flip)
        return crops.prior_crop(image, self.size_px, generator)


def _generator(seed: int, epoch: int, sample: dict) -> np.random.Generator:
    shard = sample["__url__"].rpartition("/")[2]
    text = f"{seed} {epoch} {shard} {sample['__key__']}"
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))


def read_pairs(
    spec: str, config: Images, size_px: int, seed: int = 0, epoch: int = 0, counts: Counts | None = None
) -> Iterator[Pair]:
    """One pass over the shards in order; what happened to the samples is added to `counts`."""
    decoder = Decoder(config, size_px, seed)
    if counts is not None:
        decoder.counts = counts
    sample = None
    for sample in read(expand(spec)):
        if (pair := decoder(sample, epoch)) is not None:
            yield pair
    if sample is not None:
        decoder.check_limit(sample, at_end=True)


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


class PairBatches(IterableDataset):
    """Endless batches of pairs, made inside the loader's workers.

    A batch is a dict: `images_BCYX` uint8 [B, 3, Y, X], `captions` (one of each pair's, chosen at random), and
    `position` (worker, epoch, sample) for resuming, `num_bad` for the log.
    """

    def __init__(self, spec: str, config: Images, size_px: int, batch_size: int, seed: int, rank: int, world_size: int):
        self.shards = expand(spec)
        self.config, self.size_px, self.batch_size, self.seed = config, size_px, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.first_worker = 0
        self.positions: dict[int, Position] = {}

    def resume(self, batches_taken: int, positions: dict[int, Position]) -> None:
        """Continue after `batches_taken` batches, each worker at its position."""
        self.first_worker, self.positions = batches_taken, positions

    def __iter__(self) -> Iterator[dict]:
        info = get_worker_info()
        count = info.num_workers if info else 1
        # the loader asks its workers in turn, always beginning with number 0: after 5 batches of 2 workers, its
        # worker 0 has to be the one whose turn it is
        worker = ((info.id if info else 0) + self.first_worker) % count
        split = Split(self.rank * count + worker, self.world_size * count)
        stream = ShardStream(self.shards, self.seed, self.config.shuffle_buffer, split)
        decoder = Decoder(self.config, self.size_px, self.seed, self.config.cache_bytes // count)
        pairs: list[Pair] = []
        chosen: list[str] = []
        start = self.positions.get(worker, Position())
        usable_until = start.epoch  # the last epoch known to have a usable sample
        for position, sample in stream.iterate(start):
            pair = decoder(sample, position.epoch)
            if pair is None:
                if position.epoch > usable_until + 1:
                    raise ValueError(f"every sample of {self.shards[0]} … is filtered out (see `images`)")
                continue
            usable_until = position.epoch
            pairs.append(pair)
            generator = _generator(self.seed + 1, position.epoch, sample)
            chosen.append(pair.captions[generator.integers(len(pair.captions))])
            if len(pairs) == self.batch_size:
                yield {
                    "images_BCYX": to_tensor([p.image for p in pairs]),
                    "captions": chosen,
                    "position": (worker, *asdict(position).values()),
                    "num_bad": decoder.counts.num_bad,
                }
                pairs, chosen = [], []


def to_tensor(images: list[np.ndarray]) -> torch.Tensor:
    """uint8 images [Y, X, C] to one tensor [B, C, Y, X] in channels-last memory."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


class PairLoader:
    """Iterates over batches and knows where it stands.

    Args:
        dataset: the batches of one rank
        workers: loader processes; 0 loads in this process
    """

    def __init__(self, dataset: PairBatches, workers: int):
        self.dataset, self.workers = dataset, workers
        self.batches_taken = 0
        self.positions: dict[int, Position] = {}
        self.num_bad: dict[int, int] = {}

    def __iter__(self) -> Iterator[dict]:
        for batch in load(self.dataset, self.workers):
            worker, epoch, sample = batch.pop("position")
            self.positions[int(worker)] = Position(int(epoch), int(sample))
            self.num_bad[int(worker)] = batch.pop("num_bad")
            self.batches_taken += 1
            yield batch

    def state_dict(self) -> dict:
        """The position after the last batch taken; JSON-able."""
        return {
            "batches_taken": self.batches_taken,
            "workers": self.workers,
            "world_size": self.dataset.world_size,
            "positions": {str(worker): asdict(position) for worker, position in self.positions.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a position. Raises ValueError if the number of workers or of processes changed: the order
        depends on it."""
        world_size = self.dataset.world_size
        for what, now, then in (
            (f"run.loader_workers {self.workers}", self.workers, state["workers"]),
            (f"{world_size} process{'es' if world_size > 1 else ''}", world_size, state["world_size"]),
        ):
            if now != then:
                raise ValueError(
                    f"{what}: the checkpoint was written with {then}, and the order of the data depends on it"
                )
        self.batches_taken = state["batches_taken"]
        self.positions = {int(worker): Position(**position) for worker, position in state["positions"].items()}
        self.dataset.resume(self.batches_taken, dict(self.positions))
