"""One writer at a time for each output, on local file systems and on those of a network.

A lock is a small file that says who holds it. It appears whole and for one process alone, by a hard link, which network
file systems know to be atomic, too. Its holder touches it every ten seconds. Nothing that was killed shuts the way:

- of a process of this machine that is gone, or of another output that was copied with its lock, it is taken over at once;
- of one elsewhere (another machine, another container) when it has not been touched for three minutes;
- a holder that finds another in its place, as after being stopped for so long, ends at once and writes no more.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from dalle.config import plain_json
from dalle.outputs.threads import Thread

_BEAT_S = 10.0
_SILENT_S = 180.0
"""Longer than a process is kept from its second thread, as while it writes tens of gigabytes in one call."""
_LOOK_S = 1.0
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


@contextmanager
def locked(path: Path, what: str, command: str, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Within the block this process holds the lock.

    Args:
        path: of the lock, in a folder that is there
        what: is written, as a message names it
        command: that writes it
        waiting: called about every second while a sign of life is waited for

    Raises:
        ValueError: another process holds it; one line that names it
    """
    token = secrets.token_hex(8)
    mine = path.with_name(f"{path.name}.{token}")
    try:
        with mine.open("xb") as file:
            _write(file, path, command, token)
        _take(path, mine, what, command, token, waiting)
    finally:
        mine.unlink(missing_ok=True)
    _remove_left(path)
    over = threading.Event()
    beats = None
    try:
        beats = Thread(_beat, path, what, command, token, over)
        yield
    finally:
        over.set()
        if beats:
            beats.join()
        with suppress(OSError):
            if _holder(path).get("token") == token:
                path.unlink()


def _remove_left(path: Path) -> None:
    """Remove what processes that were killed while they asked for the lock have left, and none that may be asking still."""
    with suppress(OSError):
        last_s = path.stat().st_mtime - 2 * _SILENT_S
        for left in path.parent.glob(f"{glob.escape(path.name)}.*"):
            if re.fullmatch("[0-9a-f]{16}", left.suffix[1:]) and left.stat().st_mtime < last_s:
                left.unlink()


def _write(file: BinaryIO, path: Path, command: str, token: str) -> None:
    process = os.getpid()
    record = {
        "command": command,
        "process": process,
        "began": _began(process),
        "host": socket.gethostname(),
        "machine": _machine(),
        "path": os.path.realpath(path),
        "inode": os.fstat(file.fileno()).st_ino,  # a hard link keeps it, a copy has another
        "token": token,
    }
    file.write(json.dumps(record).encode())
    file.flush()
    os.fsync(file.fileno())


def _take(path: Path, mine: Path, what: str, command: str, token: str, waiting: Callable[[], object]) -> None:
    while True:
        try:
            os.link(mine, path)
            return
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with suppress(FileExistsError), path.open("xb") as file:
                _write(file, path, command, token)
                return
        if path.is_symlink():
            raise ValueError(f"{what}: {path} is a link, and no lock of ours: delete it")
        with suppress(FileNotFoundError), _open(path) as held:
            try:
                # of those who find it stale one at a time may take it over
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
                continue
            except OSError:  # not every file system can; a second holder would be found by the heartbeat
                pass
            holder = _holder(path)
            if not _is_gone(holder, path, held, mine, what, waiting):
                raise ValueError(
                    f"{what}: {_named(holder)} is writing there; wait for its end, or name another --output"
                )
            if _is_same(path, held):
                os.replace(mine, path)
                return


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("r+b")  # as locks on a network file system need it
    except PermissionError:
        return path.open("rb")


def _holder(path: Path) -> dict[str, Any]:
    """What a lock says; nothing where it is damaged or half-written."""
    try:
        record = plain_json.read(path)
    except ValueError:
        return {}
    return record if isinstance(record, dict) and "token" in record else {}


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"{holder.get('command')} (process {holder.get('process')} on {holder.get('host')})"


def _is_same(path: Path, held: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(held.fileno()))
    except FileNotFoundError:
        return False


def _is_gone(
    holder: dict[str, Any], path: Path, held: BinaryIO, mine: Path, what: str, waiting: Callable[[], object]
) -> bool:
    inode = os.fstat(held.fileno()).st_ino
    if holder and holder.get("inode") != inode and holder.get("path") != os.path.realpath(path):
        return True  # the lock of another output, copied with it
    if holder.get("machine") == _machine() and isinstance(holder.get("process"), int):
        return not _lives(holder["process"], holder.get("began"))
    return _is_silent(path, mine, f"{what}: {_named(holder)} may be writing there", waiting)


def _lives(process: int, began: str | None) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    # its number may be another's by now, or that of one which ended and was not asked how
    return None in (began, _began(process)) or _began(process) == began


def _began(process: int) -> str | None:
    """When a process began, in ticks since its machine did; null where that cannot be told, "" of one that has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _machine() -> str:
    """Where process numbers mean what they mean here: this boot of this machine, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _is_silent(path: Path, mine: Path, doubt: str, waiting: Callable[[], object]) -> bool:
    """Wait until the lock is touched, or has not been for too long. Both times are the file system's own."""
    os.utime(mine)
    with suppress(FileNotFoundError):
        last_s = _touched_s(path)
        left_s = _SILENT_S - max(0.0, mine.stat().st_mtime - last_s)
        if left_s > 0:
            print(f"{doubt}: looking for a sign of life for up to {left_s:.0f} s", file=sys.stderr, flush=True)
        until_s = time.monotonic() + left_s
        while time.monotonic() < until_s:
            time.sleep(_LOOK_S)
            waiting()
            if _touched_s(path) != last_s:
                return False
    return True


def _touched_s(path: Path) -> float:
    with path.open("rb") as file:  # opened, a network file system asks its server
        return os.fstat(file.fileno()).st_mtime


def _beat(path: Path, what: str, command: str, token: str, over: threading.Event) -> None:
    while not over.wait(_BEAT_S):
        try:
            holder = _holder(path)
            if holder.get("token") == token:
                os.utime(path)
            elif holder:
                print(
                    f"{command}: {what}: {_named(holder)} has taken it over: ending at once",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
        except FileNotFoundError:  # deleted by hand
            with suppress(OSError), path.open("xb") as file:
                _write(file, path, command, token)
        except OSError:  # a file system that is away for a while
            pass
