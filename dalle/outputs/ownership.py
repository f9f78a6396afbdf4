"""Who may write where. A command takes for itself a folder that is new, empty or its own, and nobody else's; it knows its
own by a mark, the hidden file `.COMMAND`, that it leaves there. See `lock` for two at once.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dalle.config import plain_json
from dalle.outputs.lock import locked
from dalle.outputs.whole import may_be_replaced, naming, remove_partial, replace_text

_LOCK = ".dalle-lock"
_UNFINISHED = ".dalle-unfinished-"
_LEAST_BYTES = 1 << 14
"""Room for what a command writes before it begins: with less it is refused then, and not after its work."""


@contextmanager
def claimed(
    folder: str | Path,
    command: str,
    writes: Sequence[str] = ("*",),
    overwrite: bool | None = None,
    waiting: Callable[[], object] = lambda: None,
) -> Iterator[Path]:
    """Within the block the folder is there, bears the command's mark, and no other process claims it. What was left of
    partial work is removed first. A folder in which nothing was written is left as it was found, or not at all.

    Args:
        folder: the output folder
        command: such as "dalle-tokenize"
        writes: see `check`
        overwrite: see `check`
        waiting: see `lock.locked`

    Raises:
        ValueError: as `check`; the folder cannot be written to, or another process has it
    """
    folder = Path(folder)
    with _made(folder), naming(folder), locked(folder / _LOCK, f"output {folder}", command, waiting):
        check(folder, command, writes, overwrite)
        remove_partial(folder)
        mark, before = _mark(folder, command), {path.name for path in folder.iterdir()}
        if mark.name in before:
            for below in _own_folders(folder):
                remove_partial(below)
            for left in folder.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
        else:
            write_mark(folder, command)
        try:
            yield folder
        finally:
            with suppress(OSError):  # such as of a folder that is gone
                if mark.name not in before and {path.name for path in folder.iterdir()} <= before | {mark.name}:
                    mark.unlink()


@contextmanager
def claimed_file(path: str | Path, command: str, overwrite: bool) -> Iterator[Path]:
    """The same for a command that writes a single file, which has no place for a mark: one that is there is never its own.

    Raises:
        ValueError: there is such a file, and it may not be overwritten; it cannot be written, or another process does
    """
    path = Path(path)
    with _made(path.parent), naming(path), locked(path.parent / f".{path.name}{_LOCK}", f"output {path}", command):
        check_file(path, overwrite)
        remove_partial(path.parent, path.name)
        yield path


def check(folder: str | Path, command: str, writes: Sequence[str] = ("*",), overwrite: bool | None = None) -> None:
    """Refuse a folder of something else, without touching it.

    Args:
        folder: the output folder
        command: that is to write there; what bears its mark is its own
        writes: names or globs of what the command writes and may not be there; `*` where it wants the folder for itself.
            Hidden files are never in the way
        overwrite: the user's word that what is there may be written over; null where the command has no such option

    Raises:
        ValueError: one line that names what is there
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {folder} is not writable: {os.strerror(errno.ENOTDIR)}; name another --output")
    if overwrite or _mark(folder, command).is_file():
        return
    found = sorted(path.name for pattern in writes for path in folder.glob(pattern) if not path.name.startswith("."))
    if found:
        way_on = "" if overwrite is None else ", or write over it with --overwrite"
        raise ValueError(
            f"output {folder} is not empty: it holds {found[0]}, which {command} did not make; name another --output{way_on}"
        )


def check_file(path: Path, overwrite: bool) -> None:
    """Refuse a file that is there. Raises ValueError in one line."""
    if os.path.lexists(path) and not overwrite:
        raise ValueError(f"output {path} is there already; name another --output, or write over it with --overwrite")
    if not may_be_replaced(path):
        raise ValueError(f"output {path} is a folder or a device; name a file")


def write_mark(folder: Path, command: str, request: dict[str, Any] | None = None) -> None:
    """Mark a folder as the command's own. request: JSON-able; what was made there."""
    replace_text(_mark(folder, command), json.dumps(request or {}))


def read_mark(folder: str | Path, command: str) -> dict[str, Any] | None:
    """The request that the command's mark in a folder tells; null where there is no such mark."""
    mark = _mark(Path(folder), command)
    if not mark.is_file():
        return None
    try:
        return plain_json.read_mapping(mark, infinite=True)
    except ValueError:  # cut off, or an earlier version's, which is empty
        return {}


def remove_mark(folder: Path, command: str) -> None:
    """From now on the command lets the folder be."""
    _mark(folder, command).unlink(missing_ok=True)


def unfinished(folder: Path) -> Path:
    """A new hidden folder for partial work, in the output folder, so that its files can be renamed into place. The next
    claim of the folder removes what is left of it."""
    return Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))


def _own_folders(folder: Path) -> Iterator[Path]:
    """Those below it, but for such as another process may have claimed by themselves."""
    for place, names, _ in os.walk(folder):
        names[:] = [name for name in names if not os.path.exists(os.path.join(place, name, _LOCK))]
        yield from (Path(place, name) for name in names)


def _mark(folder: Path, command: str) -> Path:
    return folder / f".{command}"


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Within the block the folder is there; those that were made for it and stayed empty go again. What forbids writing is
    one line."""
    missing: list[Path] = []
    try:
        try:
            missing = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(_LEAST_BYTES))
                file.flush()
        except OSError as error:
            is_lost = folder.is_symlink() and not folder.exists()
            why = f"it is a link to {os.readlink(folder)}, which is not there" if is_lost else error.strerror
            raise ValueError(f"output {folder} is not writable: {why}; name another --output") from None
        yield
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
