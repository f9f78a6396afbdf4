"""The rows of every batch that one stream of the data fills, and what became of the samples that fill none."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property

from dalle.data.counts import Broken, Counts, LeftOut
from dalle.data.samples import Decoder, Pair
from dalle.data.shards import Position, ShardStream

_BARREN_EPOCHS = 8
"""Epochs in a row without a sample that can be used after which a stream gives up, where it is one of several: it may
meet shards that are filtered out as a whole, in each epoch others."""
_CHECK_EVERY = 20
"""Samples in a row that cannot be used after which it is looked at whether there are too many broken ones."""


@dataclass
class Tally:
    """What happened to samples: to each of the data once, in the first epoch, which is told; and to all since the start,
    which the limit of broken ones is for."""

    first_epoch: Counts = field(default_factory=Counts)
    all: Counts = field(default_factory=Counts)

    def add(self, epoch: int, sample: dict, left_out: LeftOut | None = None) -> None:
        """One more sample, of an epoch."""
        self.all.add(sample, left_out)
        if epoch == 0:
            self.first_epoch.add(sample, left_out)

    def take(self, other: Tally) -> None:
        """Those of another as well."""
        self.all.take(other.all)
        self.first_epoch.take(other.first_epoch)


@dataclass
class Usable:
    """A sample that takes a row.

    Args:
        position: the one that follows it
        sample: raw
        captions, scene: of the sample
        before: the samples between the one that takes the row before and this one
        decoder: its reader's
    """

    position: Position
    sample: dict
    captions: list[str]
    scene: dict | None
    before: Tally
    decoder: Decoder

    @cached_property
    def pair(self) -> Pair | Broken:
        """What is in the row, or why its pixels do not decode."""
        try:
            return self.decoder.decode(self.sample, self.position.epoch, self.captions, self.scene)
        except Broken as error:
            return error

    @property
    def whole(self) -> Pair:
        """The pair of a row whose pixels decode."""
        assert isinstance(self.pair, Pair)
        return self.pair


class StreamRows:
    """The rows that one stream fills, update after update, as one reader of the stream goes through them.

    A sample that takes a row counts with the reader that decodes it, one that takes none with the reader whose row comes
    next: so each counts once over all readers.

    Args:
        stream: its usable samples fill the rows in order
        num_rows: of the stream in each update
        decoder: the reader's
        tally: the reader's
        start: where the stream stands
    """

    def __init__(self, stream: ShardStream, num_rows: int, decoder: Decoder, tally: Tally, start: Position):
        self.num_rows, self.decoder, self.tally, self.position = num_rows, decoder, tally, start
        self._limit = decoder.config.max_bad_fraction
        self._samples = stream.iterate(start)
        self._ahead: deque[Usable] = deque()  # from the next row on
        self._next_row = 0
        self._usable_epoch = start.epoch  # the last one known to have a usable sample
        # the only stream has gone through everything after an epoch
        self._patience = 1 if stream.split.count == 1 else _BARREN_EPOCHS

    def take(self, row: int) -> Usable:
        """The sample of a row, decoded. If its pixels are broken, the next sample that decodes stands in for it, and keeps
        its own row all the same: so readers of other rows need not know."""
        self._pass_to(row)
        self._count(self._peek(0))
        tried = Counts()
        for ahead in itertools.count(1):
            usable = self._peek(ahead - 1)
            if isinstance(usable.pair, Pair):
                self._pass_to(row + 1)
                return usable
            tried.add(usable.sample, usable.pair)
            if ahead % _CHECK_EVERY == 0:
                (self.tally.all + tried).check_limit(self._limit)
        raise AssertionError("they are counted without end")

    def finish(self) -> None:
        """Pass over what is left of this update."""
        self._pass_to(self.num_rows)
        self._next_row = 0

    def _pass_to(self, row: int) -> None:
        for _ in range(self._next_row, row):
            self.position = self._peek(0).position
            self._ahead.popleft()
        self._next_row = row

    def _count(self, usable: Usable) -> None:
        self.tally.take(usable.before)
        broken = usable.pair if isinstance(usable.pair, Broken) else None
        self.tally.add(usable.position.epoch, usable.sample, broken)
        if broken or usable.before.all.broken:
            self.tally.all.check_limit(self._limit)

    def _peek(self, ahead: int) -> Usable:
        if len(self._ahead) > ahead:
            return self._ahead[ahead]
        before = Tally()
        while len(self._ahead) <= ahead:
            position, sample = next(self._samples)
            try:
                captions, scene = self.decoder.captions(sample)
            except LeftOut as error:
                before.add(position.epoch, sample, error)
                self._check(before, position.epoch, sample)
                continue
            self._usable_epoch = position.epoch
            self._ahead.append(Usable(position, sample, captions, scene, before, self.decoder))
            before = Tally()
        return self._ahead[ahead]

    def _check(self, barren: Tally, epoch: int, sample: dict) -> None:
        """Raises ValueError when there is no point in looking for more than a row of barren samples."""
        if barren.all.read % _CHECK_EVERY == 0:
            (self.tally.all + barren.all).check_limit(self._limit)
        if epoch > self._usable_epoch + self._patience:
            counts = barren.first_epoch if barren.first_epoch.read else barren.all
            counts.check_limit(self._limit, at_end=True)
            raise ValueError(
                f"no sample of {sample['__url__']} … can be used: {counts.line()}; name shards of images with captions"
            )
