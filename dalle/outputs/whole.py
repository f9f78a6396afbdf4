"""A file is written whole or not at all: the one way in which anything of ours gets its name.

What is written lies under a hidden name beside it until all of it is on the disk, and is then renamed. So a reader, a kill or a
loss of power sees the file of before or the new one, and nothing between. What a kill leaves under the hidden name, the next
command that claims the folder removes (`ownership.claimed`).

Files have the permissions that the user's umask gives to all others, which the safetensors library, for one, does not.
"""

from __future__ import annotations

import errno
import filecmp
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial", re.DOTALL)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_FILE = "there is something else than a file: move it away"
_ASK_EVERY_S = 5.0
_PATIENCE_S = 3600.0

T = TypeVar("T")


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A new file, open for writing, which has its name when the block has ended, and is nowhere when it was left by an error.

    Raises:
        OSError: it cannot be written; the error names `path`
    """
    path = Path(path)
    if not may_be_replaced(path):
        raise OSError(errno.EEXIST, _NO_FILE, os.fspath(path))
    partial = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.partial")  # nobody else's
    try:
        with naming(path):
            with open(partial, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # or the name may be on the disk before what it names
            os.replace(partial, path)
    finally:
        with suppress(OSError):  # such as of a file system that has become read-only
            partial.unlink(missing_ok=True)


def may_be_replaced(path: Path) -> bool:
    """Whether nothing is there, or a file: a rename would put a file in the place of /dev/null, too."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # nothing, or a link to nothing
        return True


def replace_bytes(path: str | Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises OSError, which names `path`."""
    with whole_file(path) as file:
        file.write(content)


def replace_text(path: str | Path, text: str) -> None:
    """The same of text, as UTF-8; half a character becomes a question mark."""
    replace_bytes(path, text.encode("utf-8", errors="replace"))


def copy_file(source: str | Path, path: str | Path) -> None:
    """The same of what another file holds."""
    with open(source, "rb") as content, whole_file(path) as file:
        shutil.copyfileobj(content, file)


def save_picture(picture: Any, path: str | Path, **options: Any) -> None:
    """The same of a PIL image, as a PNG. options: for its `save`."""
    with whole_file(path) as file:
        picture.save(file, format="PNG", **options)


def sync_folder(folder: Path) -> None:
    """See to it that the names in a folder are on the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do not know it of folders
            raise
    finally:
        os.close(number)


def remove_partial(folder: Path, beginning: str = "") -> None:
    """Remove what a kill left of files that were being written into a folder, those alone whose names begin so. For who has
    claimed them."""
    with os.scandir(folder) as entries:
        names = [(entry.name, entry.path) for entry in entries]
    left = [path for name, path in names if _PARTIAL.fullmatch(name) and name.startswith(f".{beginning}")]
    for path in left:
        with suppress(OSError):
            os.unlink(path)


def are_same(ones: Sequence[str | Path], others: Sequence[str | Path]) -> bool:
    """Whether files are as many as others, and hold the same bytes each."""
    return len(ones) == len(others) and all(filecmp.cmp(*two, shallow=False) for two in zip(ones, others, strict=True))


def put_in_place(partial: Path, target: Path, names: Mapping[str, str], ours: str) -> None:
    """Put files in place of others, all of them or none: under names that the others do not have. May be called again.

    Args:
        partial: the folder of the new ones, which is removed
        target: their place, on the same file system
        names: of each in `partial`, the one that it gets; the last is of the file that tells the names of the others
        ours: regular expression of what is removed afterwards, where it is none of them
    """
    *others, last = names
    for some in (others, [last]):
        for name in some:
            if (partial / name).exists():
                os.replace(partial / name, target / names[name])
        sync_folder(target)
    for path in target.iterdir():
        if re.fullmatch(ours, path.name) and path.name not in names.values():
            path.unlink()
    shutil.rmtree(partial)


def when_there_is_room(command: str, write: Callable[[], T]) -> T:
    """What `write` returns. Where it finds a full disk, that is said at once, and it is called again every few seconds for up
    to an hour: for what took hours to make and is in memory alone, while room is made in a minute.

    Args:
        command: whose work it is
        write: writes, and may be called again after it has failed

    Raises:
        OSError: what `write` raised at last
    """
    give_up_s = time.monotonic() + _PATIENCE_S
    is_told = False
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in _NO_ROOM or time.monotonic() >= give_up_s:
                raise
            if not is_told:
                print(
                    f"{command}: {error.filename}: {error.strerror}: make room there, and it goes on; nothing is lost for "
                    f"{_PATIENCE_S / 60:.0f} minutes, unless it is ended",
                    file=sys.stderr,
                    flush=True,
                )
                is_told = True
        time.sleep(_ASK_EVERY_S)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """An OSError that comes out of the block names `path`, for the system's own error of a full disk names nothing, and the name
    of a hidden file means nothing to anybody."""
    try:
        yield
    except OSError as error:
        named = error.filename is not None and not _PARTIAL.fullmatch(os.path.basename(os.fsdecode(error.filename)))
        if named or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
