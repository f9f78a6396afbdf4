"""A person's pictures prepared for a training: the one door for `dalle-filter` and `dalle-train`.

Partial work lies in a hidden folder of the output until all of it is there, so a run that was cut off leaves nothing that could be
taken for a result, and the next begins anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dalle.config import Filters
from dalle.config.checks import printable
from dalle.data.sources.judge import check_language
from dalle.data.sources.make import Maker, Told
from dalle.data.sources.prepared import FILE, Prepared, read_prepared
from dalle.data.sources.reading.detect import Choice, Source, detect
from dalle.outputs.ownership import claimed, read_mark, unfinished, write_mark

__all__ = ["Choice", "Prepared", "prepare", "read_prepared"]

COMMAND = "dalle-filter"
LOOK = Choice()
"""Nothing was said: what is there decides."""
_SHARD = re.compile(r"(train|valid)-\d{3,}\.tar")


def prepare(
    source: str,
    output: Path,
    filters: Filters,
    valid_share: float,
    seed: int = 0,
    *,
    choice: Choice = LOOK,
    workers: int = 1,
    most_valid: int | None = None,
    overwrite: bool = False,
    renew: bool = False,
    told: Told = lambda what, number: None,
) -> Prepared:
    """Read, filter and split a person's pictures into shards: `train-000.tar`, `valid-000.tar`, `prepared.json` and
    `report.html` of the output folder. Where they are there, made of the same source in the same way, they are left as they
    are. The bytes do not depend on the number of workers.

    Args:
        source: a folder, a table, or shards; nothing in it is changed
        output: the folder to write
        filters: what is left out
        valid_share: share of the images that is held out
        seed: of the draw of these
        choice: where the user says captions are
        workers: processes that decode
        most_valid: images that are held out at most; null for no limit
        overwrite: write over what is there
        renew: likewise, but only where that was made of another source, or in another way
        told: called as the work goes on

    Raises:
        ValueError: nothing can be read or written, or nothing is left; one line that says what was found and what to do
    """
    output = Path(output)
    check_language(filters)
    _check_places(source, output)
    found = detect(source, output, choice)
    request = _request(source, found, filters, valid_share, most_valid, seed, choice)
    try:
        with claimed(output, COMMAND, overwrite=overwrite or renew) as folder:
            finished = _finished(folder, request, overwrite, renew)
            if finished is not None:
                return finished
            partial = unfinished(folder)
            try:
                prepared = Maker(source, found, filters, valid_share, most_valid, seed, workers, told).make(partial)
                _put_in_place(partial, folder, request)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except (OSError, sqlite3.OperationalError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(
            f"output {output}: cannot be written ({reason}): make room there or name another folder, and call it again; "
            "what was half done is removed"
        ) from error
    return prepared.within(output)


def _check_places(source: str, output: Path) -> None:
    if "\n" in str(output):
        raise ValueError(
            f"output {printable(str(output))}: a line end in its name cannot be typed: name another folder"
        )
    if not os.path.exists(source):
        return
    inner, outer = Path(os.path.realpath(source)), Path(os.path.realpath(output))
    if inner == outer or outer in inner.parents:
        raise ValueError(
            f"output {output}: holds the source {source}, which is never written into: name another folder"
        )


def _request(
    source: str,
    found: Source,
    filters: Filters,
    valid_share: float,
    most_valid: int | None,
    seed: int,
    choice: Choice,
) -> dict[str, Any]:
    """All that decides what the shards hold."""
    settings = {
        "source": os.path.abspath(source),
        "files": found.fingerprint(),
        "filters": asdict(filters),
        "valid_share": valid_share,
        "most_valid": most_valid,
        "seed": seed,
        **asdict(choice),
    }
    return json.loads(json.dumps(settings))  # as it is read back


def _finished(folder: Path, request: dict[str, Any], overwrite: bool, renew: bool) -> Prepared | None:
    """What is there, if it is what is asked for. Raises ValueError where it is something else and may not be written over."""
    prepared = None if overwrite else read_prepared(folder)
    if prepared is None or "hash" not in prepared.inspection:  # of an earlier version
        return None
    if not all((folder / name).is_file() for name in prepared.inspection["shards"]):
        return None
    before = read_mark(folder, COMMAND) or {}
    changed = next((name for name, value in request.items() if before.get(name) != value), None)
    if changed is None:
        return prepared
    if renew:
        return None
    then, now = before.get(changed), request[changed]
    if changed == "files":
        told = f"the source was {_told(then)}, and is {_told(now)}" + " of other contents" * (_told(then) == _told(now))
    else:
        told = f"{changed} was {json.dumps(then)}, is {json.dumps(now)}"
    raise ValueError(
        f"output {folder}: holds shards made with other settings ({told}): name another folder, or write over them with --overwrite"
    )


def _told(files: dict[str, Any] | None) -> str:
    return "unknown" if not files else f"{files['files']:,} files of {files['bytes']:,} bytes"


def _put_in_place(partial: Path, folder: Path, request: dict[str, Any]) -> None:
    """The new files in place of those of an earlier making, of which the one that says that all are there goes first and comes
    last, after the mark that tells what they were made of."""
    (folder / FILE).unlink(missing_ok=True)
    for path in folder.iterdir():
        if _SHARD.fullmatch(path.name):
            path.unlink()
    write_mark(folder, COMMAND, request)
    for path in sorted(partial.iterdir(), key=lambda path: (path.name == FILE, path.name)):
        os.replace(path, folder / path.name)
