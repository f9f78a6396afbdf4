"""The features of all images of a set, in files on disk that can be far larger than memory, made by `embed`, which goes on
where it was interrupted.

A folder holds `features.bin`, rows of unit length; `images.jsonl`, what each row is of; and `index.json`, the header. The
header names the data by their identity and the feature network by its hash, and how far both files are whole: what lies
beyond belongs to a step that was interrupted, and is written again. Batches are the same however often that happens, and so
are the bytes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dalle.config import EVERY_IMAGE, Images, plain_json
from dalle.config.checks import Cause
from dalle.data.counts import Counts
from dalle.data.identity import difference, identity
from dalle.data.shards import Position
from dalle.evaluation.features.contract import Features
from dalle.evaluation.overlap.nearest import BLOCK_ROWS, unit
from dalle.evaluation.overlap.stream import ImageStream, Place
from dalle.outputs.whole import replace_text

_VERSION = 1
_FILTERS = ("min_caption_chars", "max_aspect_ratio", "max_pixels")
_COMMIT_S = 30.0
"""At most so much work is lost by an interruption."""
FEATURES, PLACES, HEADER = "features.bin", "images.jsonl", "index.json"


@dataclass
class Header:
    """What an index is of, and how far it is.

    Args:
        data: identity of the shards
        features: name, hash, width and resizer of the network
        images: side and filters of the images
        dtype: of the rows
        batch_size: images that the network sees at a time: the last bits of features depend on it
        rows: that are whole
        places_bytes: of `images.jsonl` that are whole
        shard: the number of the shard that is being read
        sample: how many of its samples were read
        counts: what became of the samples
        finished: whether all shards were read
    """

    data: dict[str, Any]
    features: dict[str, Any]
    images: dict[str, Any]
    dtype: str
    batch_size: int
    rows: int = 0
    places_bytes: int = 0
    shard: int = 0
    sample: int = 0
    counts: dict[str, Any] = field(default_factory=lambda: Counts().to_json())
    finished: bool = False

    def write(self, folder: Path) -> None:
        text = json.dumps({"version": _VERSION, **asdict(self)}, indent=1)
        replace_text(folder / HEADER, text + "\n")


@dataclass(frozen=True)
class Index:
    """A finished index.

    Args:
        folder: where it lies
        shards: of its images
        images: their filters
        size_px: side at which they were embedded
        header: what it is of
        rows_NE: the features, of unit length, mapped from disk
    """

    folder: Path
    shards: list[str]
    images: Images
    size_px: int
    header: Header
    rows_NE: np.ndarray

    @property
    def counts(self) -> Counts:
        """What became of the samples."""
        return Counts.from_json(self.header.counts)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        """The features [N, E], at most so many rows at a time, for `nearest`."""
        for first in range(0, len(self.rows_NE), rows):
            yield self.rows_NE[first : first + rows]

    def places(self, rows: Iterable[int]) -> dict[int, Place]:
        """What these rows are of. Reads all lines, and keeps those."""
        wanted, found = set(rows), {}
        with open(self.folder / PLACES, "rb") as lines:
            for row, line in enumerate(lines):
                if row in wanted:
                    told = plain_json.load(line, f"{self.folder / PLACES}, line {row + 1},")
                    sound = plain_json.is_a(told, list) and len(told) == 3
                    if not (
                        sound
                        and plain_json.is_a(told[0], int)
                        and plain_json.is_a(told[1], str)
                        and plain_json.is_a(told[2], list[str])
                    ):
                        raise ValueError(
                            f"{self.folder / PLACES}, line {row + 1}, is damaged; remove {self.folder} to begin anew"
                        )
                    found[row] = Place(told[0], told[1], tuple(told[2]))
        return found


def embed(
    folder: str | Path,
    shards: list[str],
    features: Features,
    size_px: int,
    images: Images = EVERY_IMAGE,
    dtype: str = "float16",
    batch_size: int = 64,
    overwrite: bool = False,
    commit_s: float = _COMMIT_S,
    told: Callable[[int], None] = lambda rows: None,
) -> Index:
    """The index of all images of the shards, from the folder where it is there, whole or in part. Images are brought to
    squares of `size_px`, as models see them, and from there to the network's own size by the network.

    Args:
        folder: of the index; made where it is missing
        shards: paths or URLs, in order, from `dalle.data.naming.expand`
        features: the network
        size_px: side
        images: which are kept; without a caption too, unless `min_caption_chars` is more than 0
        dtype: float16 keeps a cosine to about 1e-4; float32 takes twice the space
        batch_size: of an index that is begun; one that is gone on with keeps its own
        overwrite: begin anew where the folder holds an index made with other settings
        commit_s: seconds of work after which the header is written
        told: is called with the number of rows after each batch

    Raises:
        ValueError: the folder holds an index of other data, of another network or of other images, or one that is damaged;
            too many samples are broken, or there is none; the network gives numbers that are not finite
    """
    folder = Path(folder)
    wanted = Header(
        identity(shards),
        {"name": features.name, "hash": features.hash, "width": features.width, "resizer": features.resizer},
        {"size_px": size_px, **{name: value for name, value in asdict(images).items() if name in _FILTERS}},
        dtype,
        batch_size,
    )
    header = None if overwrite and _other(folder, wanted) else _read_header(folder)
    if header is None:
        header = wanted
        folder.mkdir(parents=True, exist_ok=True)
        # before the files of an earlier index are touched, so that none of its rows is ever taken for one of this
        header.write(folder)
    elif other := _difference(header, wanted):
        raise ValueError(
            f"{folder}: holds features made with other settings ({other}): name another folder, or write over them with --overwrite"
        )
    if not header.finished:
        _go_on(folder, header, shards, features, size_px, images, commit_s, told)
    if header.rows == 0:
        counts = Counts.from_json(header.counts)
        raise ValueError(f"{', '.join(shards[:3])}: no image can be used: {counts.line()}; name shards with images")
    shape, path = (header.rows, features.width), folder / FEATURES
    _check_sizes(folder, header)
    return Index(folder, shards, images, size_px, header, np.memmap(path, header.dtype, "r", shape=shape))


def _go_on(
    folder: Path,
    header: Header,
    shards: list[str],
    features: Features,
    size_px: int,
    images: Images,
    commit_s: float,
    told: Callable[[int], None],
) -> None:
    _check_sizes(folder, header)
    counts = Counts.from_json(header.counts)
    stream = ImageStream(shards, images, size_px, counts, Position(header.shard, header.sample))
    with ExitStack() as stack:
        rows = stack.enter_context(_cut(folder / FEATURES, header.rows * _row_bytes(header)))
        places = stack.enter_context(_cut(folder / PLACES, header.places_bytes))
        last = time.monotonic()

        def commit(position: Position, finished: bool = False) -> None:
            # the header last: what it says is on disk
            for file in (rows, places):
                file.flush()
                os.fsync(file.fileno())
            header.rows, header.places_bytes = rows.tell() // _row_bytes(header), places.tell()
            header.shard, header.sample, header.finished = position.epoch, position.sample, finished
            header.counts = counts.to_json()
            header.write(folder)

        for position, batch in _batches(stream, header.batch_size):
            rows.write(_embedded(features, batch, header.dtype).tobytes())
            places.writelines(_line(place) for place, _ in batch)
            if time.monotonic() - last >= commit_s:
                commit(position)
                last = time.monotonic()
            told(rows.tell() // _row_bytes(header))
        commit(Position(len(shards)), finished=True)


def _batches(stream: ImageStream, size: int) -> Iterator[tuple[Position, list[tuple[Place, np.ndarray]]]]:
    """Each with the position up to which samples were read and counted by then."""
    batch: list[tuple[Place, np.ndarray]] = []
    for position, place, image in stream:
        batch.append((place, image))
        if len(batch) == size:
            yield position, batch
            batch = []
    if batch:
        yield Position(len(stream.shards)), batch


def _embedded(features: Features, batch: list[tuple[Place, np.ndarray]], dtype: str) -> np.ndarray:
    rows_BE = np.asarray(features(np.stack([image for _, image in batch])).features_BE, np.float32)
    if rows_BE.shape != (len(batch), features.width):
        raise ValueError(
            f"{features.name}: {rows_BE.shape[1]} numbers for an image, where it says {features.width}; mend its width"
        )
    if not (finite_B := np.isfinite(rows_BE).all(axis=1)).all():
        place = batch[int(np.argmin(finite_B))][0]
        raise ValueError(f"{features.name}: its numbers of image {place.key} are not finite; take another --features")
    return unit(rows_BE).astype(dtype)


def _line(place: Place) -> bytes:
    # ASCII, so that keys that are no text, and line ends of any kind within one, survive
    return (json.dumps([place.shard, place.key, list(place.captions)]) + "\n").encode()


@contextmanager
def _cut(path: Path, num_bytes: int) -> Iterator[BinaryIO]:
    """The file, opened for writing at its end after so many bytes."""
    with open(path, "ab") as file:
        file.truncate(num_bytes)
        file.seek(0, os.SEEK_END)
        yield file


def _row_bytes(header: Header) -> int:
    return header.features["width"] * np.dtype(header.dtype).itemsize


def _check_sizes(folder: Path, header: Header) -> None:
    for name, least in ((FEATURES, header.rows * _row_bytes(header)), (PLACES, header.places_bytes)):
        path = folder / name
        found = path.stat().st_size if path.is_file() else 0
        if found < least:
            raise ValueError(
                f"{path}: {found:,} bytes, where {HEADER} speaks of {least:,}: it is damaged; remove {folder} to begin anew"
            )


def _read_header(folder: Path) -> Header | None:
    """Null where there is none yet."""
    path = folder / HEADER
    if not path.is_file():
        return None
    try:
        values = plain_json.read(path, infinite=True)
        if values.pop("version") != _VERSION:
            raise Cause("of another version of this program")
        header = plain_json.made(Header, values, HEADER)
        Counts.from_json(header.counts)
        assert header.rows >= 0 and _row_bytes(header) > 0
        return header
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        what = error.what if isinstance(error, plain_json.Damaged) else error
        raise ValueError(f"{path}: is damaged ({what}); remove {folder} to begin anew") from None


def _other(folder: Path, wanted: Header) -> bool:
    """Whether the folder holds an index that is not the wanted one, or a damaged one."""
    try:
        header = _read_header(folder)
    except ValueError:
        return True
    return header is not None and _difference(header, wanted) is not None


def _difference(header: Header, wanted: Header) -> str | None:
    """In words, the first thing in which two indexes differ; null where there is none."""
    if told := difference(header.data, wanted.data):
        return f"of other data: {told}"
    for name in ("features", "images"):
        for key, value in getattr(wanted, name).items():
            if (before := getattr(header, name).get(key)) != value:
                return f"{name}: {key} was {_short(before)}, is {_short(value)}"
    return None if header.dtype == wanted.dtype else f"dtype was {header.dtype}, is {wanted.dtype}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else text[:17] + '…"'
