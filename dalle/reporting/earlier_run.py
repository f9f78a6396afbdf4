"""What an earlier run left in a folder: gone on from, or set aside."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

from dalle.outputs.whole import replace_text
from dalle.reporting.report import list_pictures, read_lines, read_run, write_report


def drop_after(folder: Path, start_step: int) -> float:
    """Drops what was logged after `start_step`, and half-written lines; returns the seconds that the run has taken."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0.0
    kept = [record for record in read_lines(path) if record["step"] <= start_step]
    replace_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
    for pictures in list_pictures(folder).values():
        for step, picture in pictures:
            if step > start_step:
                picture.unlink()
    return max((record.get("time_s", 0.0) for record in kept), default=0.0)


def set_aside(folder: Path) -> float:
    """Moves what an earlier run left in `folder` to `previous-N/`: a new run neither mixes with it nor deletes it."""
    names = ("metrics.jsonl", "run.json", "samples.json", "report.html", "pictures", "tensorboard")
    if left := [folder / name for name in names if (folder / name).exists()]:
        previous = next(path for number in count(1) if not (path := folder / f"previous-{number}").exists())
        previous.mkdir()
        for path in left:
            os.replace(path, previous / path.name)
        _end(previous)
    return 0.0


def _end(folder: Path) -> None:
    """The page of a run that was killed would wait for it for ever."""
    with suppress(OSError, ValueError):  # damaged, which is of no interest to the new run
        run = read_run(folder)
        if run.get("status") == "running":
            replace_text(folder / "run.json", json.dumps({**run, "status": "cut off"}, ensure_ascii=False))
            write_report(folder)
