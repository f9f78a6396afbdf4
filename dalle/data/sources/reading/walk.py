"""The files of a folder and all folders in it, in an order that is the same everywhere, one folder's names in memory at a
time."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dalle.data.sources.reading.item import Fate

_NOT_READ = ("__MACOSX", "@eaDir")
"""Folders that macOS and network drives add: small copies and resources of the files beside them."""
_OURS = ".dalle-"
"""The beginning of the mark that a command leaves in its output folder."""


@dataclass(frozen=True)
class Listing:
    """One folder.

    Args:
        folder: its path below the root, "" for the root itself
        files: names of its files, in order
        odd: names of what is neither a file nor a folder that can be read, with the reason
    """

    folder: str
    files: list[str]
    odd: list[tuple[str, Fate]] = field(default_factory=list)

    def key(self, name: str) -> str:
        """A file's path below the root."""
        return f"{self.folder}/{name}" if self.folder else name


def walk(root: Path, output: Path | None = None) -> Iterator[Listing]:
    """All folders below the root, itself first; of a folder its files come before its folders.

    Hidden files are left out, and what this program wrote below the root: folders that bear a command's mark, and `output`.
    Links are followed; a folder that is met twice, as where a link leads back, is read once.
    """
    seen: set[tuple[int, int]] = set()
    ours = None if output is None else os.path.realpath(output)
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        path = root / folder
        try:
            about = path.stat()
            names = sorted(os.listdir(path), key=os.fsencode)
        except OSError as error:
            yield Listing(folder, [], [("", Fate("Broken", "a folder cannot be read", error.strerror or ""))])
            continue
        if (about.st_dev, about.st_ino) in seen:
            yield Listing(folder, [], [("", Fate("OtherFile", "a link to a folder that is read already"))])
            continue
        seen.add((about.st_dev, about.st_ino))
        if folder and (os.path.realpath(path) == ours or any(name.startswith(_OURS) for name in names)):
            continue
        listing, folders = _sorted_out(folder, path, names)
        yield listing
        waiting += reversed(folders)


def _sorted_out(folder: str, path: Path, names: list[str]) -> tuple[Listing, list[str]]:
    listing, folders = Listing(folder, []), []
    for name in names:
        if name.startswith(".") or name in _NOT_READ:
            continue
        try:
            mode = os.stat(path / name).st_mode
        except OSError as error:
            listing.odd.append((name, Fate("Broken", "a file cannot be read", error.strerror or "")))
            continue
        if stat.S_ISDIR(mode):
            folders.append(listing.key(name))
        elif stat.S_ISREG(mode):
            listing.files.append(name)
        else:
            listing.odd.append((name, Fate("OtherFile", "another kind of file")))
    return listing, folders


def fingerprint(files: Iterator[Path], root: Path) -> dict[str, int | str]:
    """What tells whether a source was changed: the number of its files, their bytes, and a hash over names below the root, sizes
    and times of change."""
    digest, count, total = hashlib.blake2b(digest_size=16), 0, 0
    for path in files:
        count += 1
        digest.update(os.fsencode(os.path.relpath(path, root)))
        with suppress(OSError):  # of what is no file, such as the URL of a shard, the name alone
            about = path.stat()
            total += about.st_size
            digest.update(b"\0%d %d" % (about.st_size, about.st_mtime_ns))
        digest.update(b"\n")
    return {"files": count, "bytes": total, "hash": digest.hexdigest()}
