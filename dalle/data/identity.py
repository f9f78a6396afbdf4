"""Are these the data of before? Told without reading them all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

_READ_FILES = 64
_READ_BYTES = 4096


def identity(files: Sequence[str]) -> dict[str, Any]:
    """What tells one data set from another, wherever it lies; JSON-able.

    `files` and `bytes` count them; `hash` is over their names without folders, their sizes and, of at most 64 that are
    spread over all, the first and last 4 kB. Of what is no local file the whole name counts, and nothing else.
    """
    digest, total = hashlib.sha256(), 0
    read = (
        {files[i * len(files) // _READ_FILES] for i in range(_READ_FILES)} if len(files) > _READ_FILES else set(files)
    )
    for name in files:
        try:
            size = os.path.getsize(name) if os.path.isfile(name) else None
        except OSError:  # gone since
            size = None
        if size is None:
            digest.update(f"{name}\n".encode(errors="replace"))
            continue
        total += size
        digest.update(f"{os.path.basename(name)} {size}\n".encode(errors="replace"))
        if name in read:
            with suppress(OSError), open(name, "rb") as file:
                digest.update(file.read(_READ_BYTES))
                file.seek(max(0, size - _READ_BYTES))
                digest.update(file.read(_READ_BYTES))
    return {"files": len(files), "bytes": total, "hash": digest.hexdigest()[:32]}


def difference(then: dict[str, Any] | None, now: dict[str, Any]) -> str | None:
    """In words, what of two identities differs; null where nothing does, or nothing is known of then."""
    if then is None or then == now:
        return None
    told = [f"{each['files']:,} file{'s' * (each['files'] != 1)} of {each['bytes']:,} bytes" for each in (then, now)]
    return f"{told[0]} then, {told[1]} now" if told[0] != told[1] else f"{told[0]}, of other contents or names"
