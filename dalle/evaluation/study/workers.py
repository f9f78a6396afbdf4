"""Which workers' answers are counted: what is known of each, and the checks of `config.WorkerChecks`."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from dalle.config import WorkerChecks
from dalle.evaluation.study.answers import Answer
from dalle.evaluation.study.design import NEITHER, QUESTIONS, Design


@dataclass(frozen=True)
class Worker:
    """What is known of a worker. Shares are null where there was nothing to take one of.

    Args:
        worker: number, from 1
        pairs: answered, each once
        median_s: seconds of an answer
        fast: share of answers under `WorkerChecks.fast_s`
        agreement: share of answers that are those of the other workers' majority, of the pairs where they have one
        catch: share of the catch trials' known answers that were given
        one_side: share of the more frequent side among the answers that name one
        steady: share of answers to pairs shown again that are as before
        left_out: why the answers are not counted; empty where they are
    """

    worker: int
    pairs: int
    median_s: float | None
    fast: float | None
    agreement: float | None
    catch: float | None
    one_side: float | None
    steady: float | None
    left_out: tuple[str, ...] = ()

    def figures(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"left_out": list(self.left_out)}


def look_at(answers: list[Answer], design: Design, checks: WorkerChecks) -> list[Worker]:
    """Each worker with answers, and whether they count. Workers are compared with all others, those left out too."""
    votes: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for answer in answers:
        if is_vote(answer, design):
            for question, given in answer.chosen.items():
                votes[answer.trial, question].append((answer.worker, given))
    of: dict[int, list[Answer]] = defaultdict(list)
    for answer in answers:
        of[answer.worker].append(answer)
    return [_look_at(worker, of[worker], votes, design, checks) for worker in sorted(of)]


def is_vote(answer: Answer, design: Design) -> bool:
    """Whether it counts among a pair's votes: a catch trial and a pair shown again do not."""
    return design.trials[answer.trial].right is None and not answer.again


def majority(given: list[str]) -> str | None:
    """The answer with the most votes; null where two have as many, or nobody voted."""
    counts = Counter(given).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return None
    return counts[0][0]


def _look_at(
    worker: int,
    answers: list[Answer],
    votes: dict[tuple[str, str], list[tuple[int, str]]],
    design: Design,
    checks: WorkerChecks,
) -> Worker:
    own = {answer.trial: answer for answer in answers if is_vote(answer, design)}
    agrees, caught, sides, steady = [], [], [], []
    for answer in own.values():
        for question, given in answer.chosen.items():
            others = majority([vote for other, vote in votes[answer.trial, question] if other != worker])
            if others is not None:
                agrees.append(given == others)
    for answer in answers:
        right = design.trials[answer.trial].right
        if right is not None:
            caught += [answer.chosen[question] in right[question] for question in QUESTIONS if right[question]]
        elif answer.again and answer.trial in own:
            before = own[answer.trial].chosen
            steady += [answer.chosen[question] == before[question] for question in QUESTIONS]
        sides += [given == answer.left for given in answer.chosen.values() if given != NEITHER]
    seconds = sorted(answer.seconds for answer in answers)
    known = Worker(
        worker,
        len(own),
        None if not seconds else (seconds[(len(seconds) - 1) // 2] + seconds[len(seconds) // 2]) / 2,
        _share([s < checks.fast_s for s in seconds]),
        _share(agrees),
        _share(caught),
        None if not sides else max(sum(sides), len(sides) - sum(sides)) / len(sides),
        _share(steady),
    )
    return Worker(**{**asdict(known), "left_out": tuple(_why(known, len(sides), checks))})


def _share(kept: list[bool]) -> float | None:
    return sum(kept) / len(kept) if kept else None


def _why(known: Worker, sides: int, checks: WorkerChecks) -> list[str]:
    why = []
    fast = known.fast is not None and known.fast >= checks.fast_share
    if fast and known.agreement is not None and known.agreement < checks.agreement:
        why.append("fast, and disagrees with the others")
    if known.catch is not None and known.catch < checks.catch_share:
        why.append("catch trials")
    if known.one_side is not None and known.one_side >= checks.same_side and sides >= checks.same_side_answers:
        why.append("always the same side")
    return why
