"""The images of a folder, with captions in files beside them, in their names or in those of their folders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dalle.data.captions import read_captions
from dalle.data.counts import LeftOut
from dalle.data.images import EXTENSIONS
from dalle.data.sources.reading.item import IMAGE, Item
from dalle.data.sources.reading.names import caption_of
from dalle.data.sources.reading.table import MAYBE_TABLES, is_table, looks_like_table
from dalle.data.sources.reading.walk import Listing, walk

_LOOKED_INTO = 50
"""Of the .json files beside images, to see whether they hold captions; and of the .txt and .json files beside none, to see
whether they are tables."""
_SIDECARS = {"txt": "txt", "caption": "txt", "json": "json"}
"""What lies beside images, and as what it is read."""


@dataclass
class Survey:
    """What a folder holds, by the names of its files.

    Args:
        images: how many
        with_txt, with_json: images with such a file beside them, of which the .json may hold other things
        json_captions: whether one of the first .json files beside images holds a caption
        lone: .txt and .json files that are beside no image
        named: images whose name is a caption
        in_folders: images whose folder's name is one
        folder_names: such folders
        tables, shards: paths below the root
        others: how many files of other kinds there are, by extension
    """

    images: int = 0
    with_txt: int = 0
    with_json: int = 0
    json_captions: bool = False
    lone: int = 0
    named: int = 0
    in_folders: int = 0
    folder_names: set[str] = field(default_factory=set)
    tables: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Entry:
    """An image with the names of what lies beside it under its name."""

    name: str
    sidecars: dict[str, str]


def _entries(listing: Listing) -> Iterator[_Entry]:
    """A folder's images: `a.jpg` has `a.txt`, or `a.jpg.txt`, or `a.caption`; upper and lower case of extensions are alike."""
    beside: dict[str, dict[str, str]] = {}
    # `.caption` comes first: where kohya's scripts find both, the .txt are keywords
    for name in sorted(listing.files, key=lambda name: _split(name)[1] != "caption"):
        stem, extension = _split(name)
        if extension in _SIDECARS:
            beside.setdefault(stem, {}).setdefault(_SIDECARS[extension], name)
    for name in listing.files:
        stem, extension = _split(name)
        if extension in EXTENSIONS:
            yield _Entry(name, beside.get(name, {}) | beside.get(stem, {}))


def _split(name: str) -> tuple[str, str]:
    stem, dot, extension = name.rpartition(".")
    return (stem, extension.lower()) if dot else (name, "")


def survey(root: Path, output: Path | None = None) -> Survey:
    """Look at the names in a folder and all folders in it."""
    found = Survey()
    looked_into = peeked_at = 0
    for listing in walk(root, output):
        stems = set()
        inner = _folder_caption(listing.folder)
        for entry in _entries(listing):
            found.images += 1
            stems |= {_split(entry.name)[0], entry.name}
            found.with_txt += "txt" in entry.sidecars
            found.with_json += "json" in entry.sidecars
            found.named += caption_of(_split(entry.name)[0]) is not None
            found.in_folders += inner is not None
            if inner is not None:
                found.folder_names.add(inner)
            if "json" in entry.sidecars and not found.json_captions and looked_into < _LOOKED_INTO:
                looked_into += 1
                found.json_captions = _holds_caption(root / listing.key(entry.sidecars["json"]))
        for name in listing.files:
            stem, extension = _split(name)
            if extension in EXTENSIONS or (extension in _SIDECARS and stem in stems):
                continue
            is_maybe = extension in MAYBE_TABLES and peeked_at < _LOOKED_INTO
            peeked_at += is_maybe
            if is_table(name) or (is_maybe and looks_like_table(root / listing.key(name))):
                found.tables.append(listing.key(name))
            elif extension == "tar" or name.lower().endswith((".tar.gz", ".tgz")):
                found.shards.append(listing.key(name))
            elif extension in _SIDECARS:
                found.lone += 1
            else:
                found.others[extension] = found.others.get(extension, 0) + 1
    return found


def _holds_caption(path: Path) -> bool:
    try:
        return bool(read_captions(Item("", "", {"json": path}).sample())[0])
    except LeftOut:
        return False


def _folder_caption(folder: str) -> str | None:
    """That of the innermost folder whose name is one."""
    captions = map(caption_of, reversed(folder.split("/") if folder else []))
    return next((caption for caption in captions if caption is not None), None)


def file_items(root: Path, output: Path | None, kinds: tuple[str, ...]) -> Iterator[Item]:
    """Images with captions in files of some kinds beside them: "txt", "json"."""
    for listing in walk(root, output):
        yield from _odd(root, listing)
        for entry in _entries(listing):
            sidecars = {kind: name for kind, name in entry.sidecars.items() if kind in kinds}
            yield _item(root, listing, entry.name, sidecars)


def name_items(root: Path, output: Path | None, of_folders: bool) -> Iterator[Item]:
    """Images whose names, or whose folders' names, are the captions."""
    for listing in walk(root, output):
        yield from _odd(root, listing)
        inner = _folder_caption(listing.folder)
        for entry in _entries(listing):
            caption = inner if of_folders else caption_of(_split(entry.name)[0])
            yield _item(root, listing, entry.name, {}, () if caption is None else (caption,))


def _item(
    root: Path, listing: Listing, name: str, sidecars: dict[str, str], captions: tuple[str, ...] | None = None
) -> Item:
    files = {IMAGE: root / listing.key(name)}
    files |= {kind: root / listing.key(beside) for kind, beside in sidecars.items()}
    return Item(str(root), listing.key(name), files, captions)


def _odd(root: Path, listing: Listing) -> Iterator[Item]:
    for name, fate in listing.odd:
        if fate.kind == "Broken" or _split(name)[1] in EXTENSIONS:
            yield Item(str(root), listing.key(name) if name else listing.folder or ".", fate=fate)


def every_path(root: Path, output: Path | None) -> Iterator[Path]:
    """All files."""
    for listing in walk(root, output):
        for name in listing.files:
            yield root / listing.key(name)
