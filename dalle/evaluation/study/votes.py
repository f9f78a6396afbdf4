"""From votes to figures: the majority of each pair, shares with their intervals, and how far people agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from dalle.evaluation.study.answers import Answer
from dalle.evaluation.study.design import NEITHER, QUESTIONS, Design
from dalle.evaluation.study.workers import is_vote, majority

TIE = "tie"
_CONFIDENCE = 0.95


def comparisons(answers: list[Answer], design: Design) -> list[dict[str, Any]]:
    """For each two models and each question: how many pairs went to which by majority.

    The majority of a pair is the answer with the most of its votes, as many as there are. Where two answers have as many it
    is a tie. Shares are of all pairs that have a vote, ties and "neither" among them; so are the published 90.0% and 93.3%.

    Args:
        answers: that count
        design: of the study
    """
    votes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for answer in answers:
        if is_vote(answer, design):
            for question, given in answer.chosen.items():
                # models in place of images: then answers can be counted over pairs
                model = NEITHER if given == NEITHER else design.model_of(given)
                votes[answer.trial, question].append(model)
    of: dict[frozenset[str], list[str]] = defaultdict(list)
    for name, trial in design.trials.items():
        if trial.right is None:
            of[frozenset(design.model_of(image) for image in trial.images)].append(name)
    return [
        {"models": list(models)}
        | {
            question: _figures(
                [given for given in (votes[trial, question] for trial in of[frozenset(models)]) if given],
                (*models, *((NEITHER,) if question == "matches" else ())),
                design.votes,
            )
            for question in QUESTIONS
        }
        for models in combinations(design.models, 2)
    ]


def _figures(votes: list[list[str]], options: Sequence[str], asked: int) -> dict[str, Any]:
    """Of the pairs of two models that have votes on a question."""
    counts = Counter(majority(given) or TIE for given in votes)
    outcomes = {
        option: {
            "pairs": counts[option],
            "share": counts[option] / len(votes) if votes else None,
            "interval_95": interval(counts[option], len(votes)),
        }
        for option in (*options, TIE)
    }
    counts_by_pair = [[given.count(option) for option in options] for given in votes]
    return {
        "pairs": len(votes),
        "pairs_with_all_votes": sum(len(given) >= asked for given in votes),
        "votes": sum(map(len, votes)),
        "majority": outcomes,
        "agreement": agreement(counts_by_pair),
        "fleiss_kappa": fleiss_kappa(counts_by_pair),
    }


def interval(count: int, total: int) -> tuple[float, float] | None:
    """Wilson's interval of a share, from scipy; null of nothing."""
    from scipy.stats import binomtest

    if total == 0:
        return None
    told = binomtest(count, total).proportion_ci(_CONFIDENCE, method="wilson")
    return float(told.low), float(told.high)


def agreement(counts: Sequence[Sequence[int]]) -> float | None:
    """How often two workers give one answer, averaged over the pairs with at least two votes; null where there are none.

    Args:
        counts: for each pair, how many chose each answer
    """
    rated = [row for row in counts if sum(row) >= 2]
    shares = [sum(n * (n - 1) for n in row) / (sum(row) * (sum(row) - 1)) for row in rated]
    return sum(shares) / len(shares) if shares else None


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Agreement beyond chance: 1 where all agree, 0 where they do as often as by chance. Where nearly all votes are for one
    answer chance explains nearly all, and it is low whatever the agreement.

    A pair may have any number of votes; those with one say nothing of agreement and are left out. Source: Fleiss, "Measuring
    nominal scale agreement among many raters", 1971; with equal numbers of votes this is his.

    Args:
        counts: for each pair, how many chose each answer

    Returns:
        null where no pair has two votes, or where all votes are for one answer and agreement by chance is certain
    """
    rated = [row for row in counts if sum(row) >= 2]
    agreed = agreement(rated)
    if agreed is None:
        return None
    total = sum(map(sum, rated))
    by_chance = sum((sum(column) / total) ** 2 for column in zip(*rated, strict=True))
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)
