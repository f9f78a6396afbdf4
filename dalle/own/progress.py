"""What was done already, from what, and how long it took: so that calling again does only what is missing."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from dalle.config import plain_json
from dalle.outputs.whole import replace_text

_FILE = "progress.json"
_NAMES = {"plan": "its plan", "data": "the pictures", "tokenizer": "the tokenizer", "dvae": "the dVAE", "tokens": "the tokens", "prior": "the prior",
    "clip": "the reranker", "start": "the ready weights"}  # fmt: skip


@dataclass(frozen=True)
class Done:
    """A stage as it was last begun.

    Args:
        inputs: what it is made from, name to what identifies it
        finished: whether it came to its end
        seconds: that it has taken, over all calls
    """

    inputs: dict[str, str]
    finished: bool
    seconds: float


class Progress:
    """The stages of an output folder.

    folder: of the output.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / _FILE
        self._stages: dict[str, dict[str, Any]]
        try:
            found = plain_json.read_mapping(path)
            self._stages = {stage: vars(plain_json.made(Done, values, str(path))) for stage, values in found.items()}
        except (FileNotFoundError, ValueError):  # a damaged one is no progress: what lies there is set aside
            self._stages = {}

    def of(self, stage: str) -> Done | None:
        """What is known of a stage; null where it was never begun."""
        values = self._stages.get(stage)
        return Done(**values) if values else None

    def begun(self, stage: str) -> Done:
        """`of` a stage that was begun."""
        done = self.of(stage)
        assert done is not None
        return done

    def is_finished(self, stage: str, inputs: dict[str, str]) -> bool:
        """Whether a stage was finished with just these."""
        done = self.of(stage)
        return done is not None and done.finished and done.inputs == inputs

    def changes(self, stage: str, inputs: dict[str, str]) -> list[str]:
        """In words, which inputs are not those of before; nothing where there was no before."""
        done = self.of(stage)
        if done is None:
            return []
        names = [name for name in {**done.inputs, **inputs} if done.inputs.get(name) != inputs.get(name)]
        return [_NAMES.get(name, name) for name in names]

    def begin(self, stage: str, inputs: dict[str, str]) -> None:
        """Note that a stage is begun, or gone on with."""
        done = self.of(stage)
        spent_s = done.seconds if done and done.inputs == inputs else 0.0
        self._write(stage, Done(inputs, False, spent_s))

    def add(self, stage: str, seconds: float, finished: bool) -> None:
        """Note that a stage that was begun has taken so long, and whether it has come to its end."""
        done = self.begun(stage)
        self._write(stage, Done(done.inputs, finished, round(done.seconds + seconds, 1)))

    def spent_s(self) -> float:
        """Of all stages together."""
        return sum(values["seconds"] for values in self._stages.values())

    def begin_budget(self) -> None:
        """What was done under an earlier plan does not count for the time of a new one."""
        for values in self._stages.values():
            values["seconds"] = 0.0
        self._save()

    def forget(self, stage: str) -> None:
        if self._stages.pop(stage, None) is not None:
            self._save()

    def _write(self, stage: str, done: Done) -> None:
        self._stages[stage] = {"inputs": done.inputs, "finished": done.finished, "seconds": done.seconds}
        self._save()

    def _save(self) -> None:
        replace_text(self.folder / _FILE, json.dumps(self._stages, indent=1))


def set_aside(folder: Path, names: list[str], aside: Path | None = None) -> Path | None:
    """Move what of these is there into `earlier-N` of the folder: what took hours to make is not deleted because a picture was
    added.

    Args:
        folder: of the output
        names: in it
        aside: where earlier things of this call went; null takes a number that is free

    Returns:
        where it is now, or `aside` where nothing was there
    """
    there = [folder / name for name in names if (folder / name).exists()]
    if there and aside is None:
        aside = next(path for number in count(1) if not (path := folder / f"earlier-{number}").exists())
        aside.mkdir()
    for path in there:
        assert aside is not None
        os.replace(path, aside / path.name)
    return aside
