"""What workers sent back. The files come from outside: what is wrong in one is left out and counted, by reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dalle.config import plain_json
from dalle.evaluation.study.design import QUESTIONS, Design

_MOST_BYTES = 16 << 20
"""A thousand answers take 0.3 MB."""
_MOST_NAMES = 3


@dataclass(frozen=True)
class Answer:
    """A worker's answers to both questions about a trial.

    Args:
        worker: number, from 1
        trial: its id
        again: whether the pair was shown before
        left: id of the image on the left
        chosen: image id, or "neither", by question
        seconds: from the images' showing to the end of the answer, while the page was seen
    """

    worker: int
    trial: str
    again: bool
    left: str
    chosen: dict[str, str]
    seconds: float


@dataclass
class Skipped:
    """What was left out: names of files by reason, one for each thing that was wrong."""

    files: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, file: str) -> None:
        """Count one."""
        self.files.setdefault(reason, []).append(file)

    def figures(self) -> dict[str, Any]:
        """By reason: how often, and in which files first."""
        return {
            reason: {"count": len(names), "first": list(dict.fromkeys(names))[:_MOST_NAMES]}
            for reason, names in self.files.items()
        }

    def lines(self) -> list[str]:
        """For people."""
        return [f"{told['count']} x {reason}: {', '.join(told['first'])}" for reason, told in self.figures().items()]


@dataclass(frozen=True)
class _File:
    worker: int
    person: str
    answers: list[Answer]


def read_answers(paths: Sequence[Path], design: Design) -> tuple[list[Answer], Skipped]:
    """All answers that are to be counted or checked, catch trials and repeated pairs among them.

    Of several files of one worker the one with the most answers is taken, so that a file that was saved on the way does no
    harm; and a person who answered under two numbers votes once on a pair.

    Args:
        paths: of the files
        design: of the study

    Raises:
        ValueError: no answer is left
    """
    skipped = Skipped()
    read = {path: file for path in paths if (file := _read_file(path, design, skipped)) is not None}
    fullest: dict[int, Path] = {}
    for path, file in read.items():
        if file.worker in fullest and len(file.answers) <= len(read[fullest[file.worker]].answers):
            skipped.add("another file of the same worker", path.name)
        else:
            if file.worker in fullest:
                skipped.add("another file of the same worker", fullest[file.worker].name)
            fullest[file.worker] = path
    answers: list[Answer] = []
    voted: dict[tuple[str, str], int] = {}
    for worker in sorted(fullest):
        path = fullest[worker]
        for answer in read[path].answers:
            if voted.setdefault((read[path].person, answer.trial), worker) != worker and _is_pair(answer, design):
                skipped.add("a pair that the same person answered under another number", path.name)
            else:
                answers.append(answer)
    if not any(_is_pair(answer, design) for answer in answers):
        why = "; ".join(skipped.lines()) or "none was given"
        raise ValueError(
            f"answers: none of {len(paths)} files has an answer to this study ({why}); name those that workers sent"
        )
    return answers, skipped


def _is_pair(answer: Answer, design: Design) -> bool:
    return design.trials[answer.trial].right is None


def _read_file(path: Path, design: Design, skipped: Skipped) -> _File | None:
    """Null where the file as a whole says nothing."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            skipped.add("larger than answers can be", path.name)
            return None
        values = plain_json.load(path.read_bytes(), str(path), halves=True, loose=True)
    except OSError:
        skipped.add("cannot be read", path.name)
        return None
    except ValueError:
        skipped.add("no JSON", path.name)
        return None
    if not isinstance(values, dict) or not isinstance(values.get("answers"), list):
        skipped.add("no answers of a study", path.name)
        return None
    if values.get("study") != design.hash:
        skipped.add("answers to another study", path.name)
        return None
    worker: Any = values.get("worker")
    name = values.get("name", "")
    if not _is_count(worker) or not 1 <= worker <= len(design.workers) or not isinstance(name, str):
        skipped.add("no worker of this study", path.name)
        return None
    return _File(worker, name.strip() or f" {worker}", _answers(path, values["answers"], worker, design, skipped))


def _answers(path: Path, values: list[Any], worker: int, design: Design, skipped: Skipped) -> list[Answer]:
    """Those of a file that fit what its worker was shown."""
    shown = {(show.trial, show.left): show for show in design.workers[worker - 1]}
    found: dict[tuple[str, str], Answer] = {}
    for value in values:
        if not isinstance(value, dict):
            skipped.add("an answer that is none", path.name)
            continue
        trial, left = value.get("trial"), value.get("left")
        ms: Any = value.get("ms")
        if not isinstance(trial, str) or not isinstance(left, str) or (trial, left) not in shown:
            skipped.add("a pair that this worker was not shown", path.name)
            continue
        place = (trial, left)
        chosen: dict[str, Any] = {question: value.get(question) for question in QUESTIONS}
        is_time = isinstance(ms, int | float) and not isinstance(ms, bool)
        if (
            not is_time
            or not 0 <= ms < math.inf
            or any(given not in design.options(trial, question) for question, given in chosen.items())
        ):
            skipped.add("an answer with a wrong value", path.name)
        elif place in found:
            skipped.add("a second answer to one pair", path.name)
        else:
            found[place] = Answer(worker, trial, shown[place].again, left, chosen, ms / 1000)
    return list(found.values())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
