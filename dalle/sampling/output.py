"""The output folder of a run: a gallery that is written as candidates come, and that a run over many captions resumes."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dalle.config import plain_json
from dalle.outputs.whole import replace_text, when_there_is_room
from dalle.sampling.candidates import Best, Part, Work
from dalle.sampling.drawing import read_drawing
from dalle.sampling.gallery import Gallery
from dalle.sampling.grid import write_grid, write_sheet

_REQUEST = "request.json"
_WRITE_EVERY_S = 10.0
_WRITING_SHARE = 0.05
"""Of the time, at most, goes into writing what is there so far."""
_SHEET_CAPTIONS, _SHEET_COLUMNS = 48, 6


class Output:
    """Takes in what is drawn, keeps the best of each caption, and writes it.

    Args:
        folder: of the gallery
        work: what is drawn; of many captions `todo` are those that the folder does not have yet
        title: of the gallery
        models: hashes by name, for its head
        resumable: many captions: the folder remembers what was asked for, and takes up where it was left
        overwrite: write over the drawings of another request
        gallery: what shows them, from the folder, the title and facts by name

    `replaced` is the caption that the folder's page was for until now, null where it shows none but what is drawn once more.

    Raises:
        ValueError: the folder holds drawings of another request
    """

    def __init__(
        self,
        folder: Path,
        work: Work,
        title: str,
        models: dict[str, str],
        resumable: bool = False,
        overwrite: bool = False,
        gallery: Callable[[Path, str, dict[str, str]], Gallery] = Gallery,
    ):
        self.folder, self.work = folder, work
        shortlist = {} if work.shortlist is None else {"decoded": f"{work.shortlist:,}"}
        facts = {"candidates": f"{work.n:,}", **shortlist, **{name: digest[:16] for name, digest in models.items()}}
        self.gallery = gallery(folder, title, facts)
        self.drawn = 0
        self._resumable = resumable
        # as it is read back: JSON has no tuples
        self._request = json.loads(json.dumps(_request(work, models, self.gallery.layout)))
        other = self._other_request()
        if other and not overwrite:
            raise ValueError(f"{other}; name another folder with --output, or write over them with --overwrite")
        self._ends_other = bool(other)
        done = self.gallery.resume(work.n) if resumable and not other and (folder / _REQUEST).is_file() else set()
        self.replaced = None if resumable else self._caption_before(models)
        self.todo = tuple(caption for caption in work.captions if caption not in done)
        self._best: dict[int, Best] = {}
        self._counts: Counter[int] = Counter()
        self._next_write_s = time.monotonic() + _WRITE_EVERY_S

    def add(self, part: Part) -> None:
        """Take in what was drawn; the numbers of captions are those of `todo`. Now and then all is written."""
        self._best.setdefault(part.caption, Best(self.work.keep)).take(part)
        self._counts[part.caption] += part.drawn
        self.drawn += part.drawn
        if self._counts[part.caption] == self.work.n and self._resumable:  # its images need not be held any longer
            when_there_is_room("dalle-sample", lambda: self._put(part.caption))
            del self._best[part.caption]
        if time.monotonic() >= self._next_write_s:
            try:
                self.write()
            except OSError as error:  # what is drawn is in memory, and is written at the end
                self._next_write_s = time.monotonic() + _WRITE_EVERY_S
                print(f"dalle-sample: {error.filename}: {error.strerror}: drawing goes on", file=sys.stderr, flush=True)

    def write(self) -> None:
        """Write the best so far."""
        began_s = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._end_other()
        if self._resumable:
            replace_text(self.folder / _REQUEST, json.dumps(self._request, indent=1))
        for caption, best in self._best.items():
            if best.ranked():  # nothing of a shortlist that is not decoded yet
                self._put(caption)
        self.gallery.write()
        now_s = time.monotonic()
        self._next_write_s = now_s + max(_WRITE_EVERY_S, (now_s - began_s) / _WRITING_SHARE)

    @property
    def empty(self) -> bool:
        """Whether there is no picture to write, as before a shortlist is decoded."""
        return not self.gallery.best_files(1) and not any(best.ranked() for best in self._best.values())

    def count(self) -> str:
        """How many are the best of how many, in words."""
        if self._resumable:
            most = f"{min(self.work.keep, self.work.n)}{' that differ' if self.gallery.shows_equal_once else ''}"
            return f"{most} of {self.work.n} for each of {len(self.work.captions)} captions"
        best = self._best[0]
        differing = "" if best.differing == self.drawn else f", {best.differing} of which differ"
        decoded = "" if self.work.shortlist is None else f", at most {self.work.shortlist} decoded"
        return f"{len(best.ranked())} of {self.drawn}{differing}{decoded}"

    def finish(self) -> str:
        """Write all there is, with a grid, or for many captions a sheet of the best of some. Returns what was written, in
        words."""
        self.write()
        if self._resumable:
            picture = self.folder / "sheet.png"
            best = [read_drawing(file) for file in self.gallery.best_files(_SHEET_CAPTIONS)]
            if not best:  # stopped before the first caption was whole, and only whole ones are shown
                return str(self.folder / "index.html")
            write_sheet(best, picture, min(_SHEET_COLUMNS, len(best)))
        else:
            picture = self.folder / "grid.png"
            write_grid(self._best[0].ranked(), picture)
        return f"{picture} and {self.folder / 'index.html'}"

    def _put(self, number: int) -> None:
        self._end_other()
        self.gallery.put(self.todo[number], self._best[number].ranked(), self._counts[number])

    def _end_other(self) -> None:
        """Forget the request that the folder was for, before the first of its images may be written over."""
        if self._ends_other:
            for name in ("results.jsonl", _REQUEST):  # cut off between them, the folder is refused as before
                (self.folder / name).unlink(missing_ok=True)
            self._ends_other = False

    def _other_request(self) -> str | None:
        """What the folder holds, where that was asked for otherwise."""
        path = self.folder / _REQUEST
        if not path.is_file():
            others = self._resumable and (self.folder / "results.jsonl").exists()
            return f"output {self.folder}: holds other drawings" if others else None
        if not self._resumable:
            return f"output {self.folder}: holds the drawings of a file of captions"
        try:
            before = plain_json.read(path)
            before = dict(_flat({"layout": Gallery.layout, **before}))  # which earlier versions did not say
        except (ValueError, TypeError):
            return f"{path}: is damaged"
        for name, value in _flat(self._request):
            if before.get(name) != value:
                told = f"{name} was {_short(before.get(name))}, is {_short(value)}"
                return f"output {self.folder}: holds drawings of another request ({told})"
        return None

    def _caption_before(self, models: dict[str, str]) -> str | None:
        try:
            with (self.folder / "results.jsonl").open(encoding="utf-8") as lines:
                records = [plain_json.load(line, "") for line in lines]
            once_more = all(_is_of(record, self.work, models) for record in records)
            return None if once_more else records[0]["caption"]
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _request(work: Work, models: dict[str, str], layout: str) -> dict[str, Any]:
    """All that decides which drawings a caption gets."""
    prompt = None if work.prompt is None else work.prompt.to_json()
    settings = {"layout": layout, "n": work.n, "keep": work.keep, "seed": work.seed, "prompt": prompt}
    settings |= {"shortlist": work.shortlist}
    return {**settings, "sampling": asdict(work.sampling), "models": {"clip": None, "codes_clip": None, **models}}


def _is_of(record: dict[str, Any], work: Work, models: dict[str, str]) -> bool:
    """Whether a line of the results is of a drawing that this work makes, and of as many candidates."""
    settings, prompt = record["settings"], None if work.prompt is None else work.prompt.to_json()
    asked = {**asdict(work.sampling), "models": models, "given": prompt, "shortlist": work.shortlist}
    if work.sampling.chunk is None:  # as wide as memory allows
        del asked["chunk"]
    return (
        record["caption"] == work.captions[0]
        and record["seed"] - work.seed in range(work.n)
        and record.get("candidates") == work.n  # which earlier versions did not say
        and {name: settings.get(name) for name in asked} == asked
    )


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        # a prompt is one thing to a person
        nested = isinstance(value, dict) and name != "prompt"
        found += _flat(value, f"{prefix}{name}.") if nested else [(prefix + name, value)]
    return found


def _short(value: Any) -> str:
    text = "another one" if isinstance(value, dict) else json.dumps(value).strip('"')
    return f"{text[:16]}…" if len(text) > 20 else text
