"""Looking at one item: its captions and pixels are read, and each caption and its size are judged. This is what the worker
processes do, so it is a function of the item alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from multiprocessing import get_context, parent_process

import numpy as np

from dalle.config import EVERY_IMAGE, Filters
from dalle.data import images
from dalle.data.captions import json_values, no_caption, read_captions
from dalle.data.counts import LeftOut
from dalle.data.samples import Decoder, image_bytes
from dalle.data.sources.judge import caption_reason, image_filtered
from dalle.data.sources.reading.item import Fate, Item
from dalle.outputs.threads import Thread

_IN_ONE_PROCESS = 64
"""Items that are looked at sooner than other processes have started."""
_CHUNK = 8
COPIED = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats whose bytes go into shards as they are, with their extension there; MPO is a JPEG with more behind it."""


@dataclass(frozen=True)
class Looked:
    """What was found.

    Args:
        captions: each with the reason for which it is left out, or null
        values: what the .json says, as JSON
        size: width and height in pixels as a person sees them; (0, 0) where the image does not decode
        extension: in a shard; null where it has to be encoded anew
        pixels_hash: of the decoded image
        bytes_hash: of the file
        fate: why the image is not used, whatever its captions; null where it is
    """

    captions: list[tuple[str, str | None]] = field(default_factory=list)
    values: str = "{}"
    size: tuple[int, int] = (0, 0)
    extension: str | None = None
    pixels_hash: bytes = b""
    bytes_hash: bytes = b""
    fate: Fate | None = None


def look(item: Item, filters: Filters) -> Looked:
    """Everything about one item."""
    looked = Looked()
    try:
        sample = item.sample()
        captions, _ = read_captions(sample)
        if not captions:
            raise no_caption(sample)
        judged = [(caption, caption_reason(caption, filters)) for caption in dict.fromkeys(captions)]
        looked = Looked(judged, json.dumps(json_values(sample)[0]))
        decoder = Decoder(EVERY_IMAGE, 1, 0)
        decoder.captions(sample)  # refuses what the trainings would, by the header
        image = decoder.image(sample)
        data = image_bytes(sample)
    except LeftOut as error:
        return replace(looked, fate=Fate.of(error))
    filtered = image_filtered(image.size, filters)
    pixels = hashlib.blake2b(f"{image.width} {image.height}\n".encode(), digest_size=16)
    pixels.update(np.ascontiguousarray(image).data)
    with images.opened(data) as file:
        extension = COPIED.get(file.format or "")
    return replace(
        looked,
        size=image.size,
        extension=extension,
        pixels_hash=pixels.digest(),
        bytes_hash=hash_bytes(data),
        fate=None if filtered is None else Fate.of(filtered),
    )


def hash_bytes(data: bytes) -> bytes:
    """By which bytes are known again."""
    return hashlib.blake2b(data, digest_size=16).digest()


def look_at_all(items: Iterable[Item], filters: Filters, workers: int) -> Iterator[Looked]:
    """The same for many, in their order, by several processes where there are many. A few chunks are under way at a time."""
    items = iter(items)
    first = list(islice(items, _IN_ONE_PROCESS))
    if workers == 1 or len(first) < _IN_ONE_PROCESS:
        yield from (look(item, filters) for item in chain(first, items))
        return
    items = chain(first, items)
    # spawned, not forked: the caller may have threads that a fork would break
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin) as pool:
        under_way: deque[Future[list[Looked]]] = deque()
        try:
            while True:
                while len(under_way) < 3 * workers and (some := list(islice(items, _CHUNK))):
                    under_way.append(pool.submit(_look_at_some, some, filters))
                if not under_way:
                    return
                yield from under_way.popleft().result()
        except BrokenProcessPool:
            raise ValueError(
                "a process that decodes images was killed, as for want of memory: try --workers 1"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    """What a worker does first."""
    # Ctrl-C reaches all processes of a terminal; the caller ends the others
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(_end_with_the_caller)


def _end_with_the_caller() -> None:
    # a caller that is killed tells nobody, and the pool's queue, which its workers hold open for each other, never ends
    caller = parent_process()
    assert caller is not None
    caller.join()
    os._exit(1)


def _look_at_some(items: list[Item], filters: Filters) -> list[Looked]:
    return [look(item, filters) for item in items]
