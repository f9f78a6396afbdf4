"""The results of a study: figures for machines, a table for a terminal, a part of the evaluation's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dalle.config import WorkerChecks
from dalle.evaluation.report.section import Section, figure_text, folded, prose, table
from dalle.evaluation.study.answers import read_answers
from dalle.evaluation.study.design import Design, read_design
from dalle.evaluation.study.votes import comparisons
from dalle.evaluation.study.workers import look_at

_ASKED = {"realistic": "more realistic", "matches": "matches the caption better"}
_HEADER = ["models", "question", "answer", "pairs", "share", "95% from", "to", "share with all workers"]


def score(folder: Path, answers: list[Path], checks: WorkerChecks) -> dict[str, Any]:
    """What the answers to a study say, as `results.json` has it.

    Args:
        folder: of the study
        answers: files that workers sent back
        checks: when a worker's answers are not counted

    Raises:
        ValueError: there is no such study, or no answer to it is left, also after the checks
    """
    design = read_design(folder / "study.json")
    read, skipped = read_answers(answers, design)
    workers = look_at(read, design, checks)
    out = {worker.worker for worker in workers if worker.left_out}
    counted = [answer for answer in read if answer.worker not in out]
    if not counted:
        why = "; ".join(f"worker {worker.worker}: {', '.join(worker.left_out)}" for worker in workers[:3])
        raise ValueError(f"answers: the checks leave out all {len(workers)} workers ({why}); see --checks")
    return {
        "study": design.hash,
        "models": list(design.models),
        "captions": len({trial.caption for trial in design.trials.values() if trial.right is None}),
        "votes_asked": design.votes,
        "files": len(answers),
        "skipped": skipped.figures(),
        "checks": {name: getattr(checks, name) for name in WorkerChecks.__dataclass_fields__},
        "workers": [worker.figures() for worker in workers],
        "comparisons": comparisons(counted, design),
        "with_all_workers": comparisons(read, design),
    }


def rows(results: dict[str, Any]) -> list[list[Any]]:
    """A line for each answer to each question about two models, under `_HEADER`."""
    found = []
    for checked, everyone in zip(results["comparisons"], results["with_all_workers"], strict=True):
        for question, asked in _ASKED.items():
            for answer, told in checked[question]["majority"].items():
                low, high = told["interval_95"] or (None, None)
                unchecked = everyone[question]["majority"][answer]["share"]
                shares = [_percent(share) for share in (told["share"], low, high, unchecked)]
                found.append([" / ".join(checked["models"]), asked, answer, told["pairs"], *shares])
    return found


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def printed(results: dict[str, Any]) -> str:
    """The table for a terminal, with what was left out below it."""
    cells = [_HEADER, *([figure_text(cell) for cell in row] for row in rows(results))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADER))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([*lines, *_agreement_lines(results), *_notes(results)])


def _agreement_lines(results: dict[str, Any]) -> list[str]:
    return [
        f"{' / '.join(checked['models'])}, {asked}: two workers agree on {_percent(told['agreement']) or 'no pair'} "
        f"(Fleiss' kappa {figure_text(told['fleiss_kappa'])}); {told['votes']:,} votes on {told['pairs']:,} pairs"
        for checked in results["comparisons"]
        for question, asked in _ASKED.items()
        for told in (checked[question],)
    ]


def _notes(results: dict[str, Any]) -> list[str]:
    notes = [
        f"worker {worker['worker']} is left out: {', '.join(worker['left_out'])}"
        for worker in results["workers"]
        if worker["left_out"]
    ]
    notes += [
        f"skipped {told['count']} x {reason}: {', '.join(told['first'])}" for reason, told in results["skipped"].items()
    ]
    asked = len(results["comparisons"]) * results["captions"]
    whole = sum(checked["realistic"]["pairs_with_all_votes"] for checked in results["comparisons"])
    if whole < asked:
        notes.append(f"{asked - whole:,} of {asked:,} pairs have fewer than {results['votes_asked']} votes")
    return notes


def section(results: dict[str, Any]) -> Section:
    """The study as a part of the evaluation's report.

    Args:
        results: from `score`, or of a `results.json`
    """
    told = prose(
        f"Human study as in the paper's appendix F: {results['captions']:,} captions, two images of each side by side, "
        f"{results['votes_asked']} votes asked of each pair; a pair goes to the answer with the most votes. Shares are of all "
        "pairs with a vote; intervals are Wilson's."
    )
    agreement = "".join(prose(line) for line in _agreement_lines(results))
    header = ["worker", "pairs", "median s", "fast", "agreement", "catch trials", "one side", "steady", "left out"]
    names = ("worker", "pairs", "median_s", "fast", "agreement", "catch", "one_side", "steady")
    people = [[*(worker[name] for name in names), ", ".join(worker["left_out"])] for worker in results["workers"]]
    body = told + table(_HEADER, rows(results)) + agreement + folded("Workers", table(header, people))
    return Section("study", "Human study", body, results, tuple(_notes(results)))


def design_facts(design: Design) -> str:
    """One line for who makes a study."""
    pairs = sum(trial.right is None for trial in design.trials.values())
    most = max(map(len, design.workers))
    return (
        f"{pairs:,} pairs of {len(design.models)} models, {design.votes} votes each, for {len(design.workers):,} workers of at "
        f"most {most} pairs with those to check"
    )
