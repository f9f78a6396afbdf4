"""Is a reranker's score worth something? Its scores of candidates against what the checker of drawn data sees in them.

Three questions: how often are candidates of a score right (a reliability curve); how often is a right candidate scored
above a wrong one, of all captions and of the same caption, which is what reranking needs (areas under the ROC curve,
1/2 being chance); and how far off is a probability made of the score (the expected calibration error of Guo et al.,
2017, after Platt's logistic fit). The mathematics is scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dalle.config.checks import installed
from dalle.evaluation.report.section import Section, curve, prose, table

_FOLDS = 5


@dataclass(frozen=True)
class Calibration:
    """What scores of candidates say of them.

    Args:
        captions, candidates: how many there were, in all
        share_right: of the candidates
        auc: the probability that a right candidate has a higher score than a wrong one, a tie counting half; None where all
            are right or none is
        auc_within_captions: the same of pairs of one caption, each pair counting once; None where there is no such pair
        pairs_within_captions: those pairs
        expected_error: mean over the bins, weighted by their candidates, of how far the probability that the logistic fit
            gives is from the share that is right; fitted to other captions than it is applied to. None where there
            are fewer than two captions with both kinds
        score_K: mean score in each of the bins, of as many candidates each, lowest first
        right_K: share of them that is right
        predicted_K: mean probability by a logistic fit to all; None where all are right or none is
    """

    captions: int
    candidates: int
    share_right: float
    auc: float | None
    auc_within_captions: float | None
    pairs_within_captions: int
    expected_error: float | None
    score_K: list[float]
    right_K: list[float]
    predicted_K: list[float] | None


def calibration(scores: Sequence[np.ndarray], right: Sequence[np.ndarray], bins: int = 10) -> Calibration:
    """Scores of candidates against whether they are right.

    Args:
        scores: of each caption its candidates' scores
        right: of each caption whether they are right, bool
        bins: of as many candidates each; fewer where there are fewer candidates

    Raises:
        ValueError: there is no candidate, or a score is not finite, or scikit-learn is missing
    """
    metrics, linear = _sklearn()
    scores = [np.asarray(scores_N, np.float64) for scores_N in scores]
    right = [np.asarray(right_N, bool) for right_N in right]
    if not sum(map(len, scores)):
        raise ValueError("calibration needs candidates, and there are none: draw at least one for each caption")
    scores_R, right_R = np.concatenate(scores), np.concatenate(right)
    if not np.isfinite(scores_R).all():
        raise ValueError(
            f"score {scores_R[~np.isfinite(scores_R)][0]}: not finite, so the reranker is broken; train it again"
        )
    both = not right_R.all() and right_R.any()
    won, pairs = _within(metrics, scores, right)
    order_R = np.argsort(scores_R, kind="stable")
    parts = np.array_split(order_R, min(bins, len(order_R)))
    predicted_R = _logistic(linear, scores_R, right_R).predict_proba(scores_R[:, None])[:, 1] if both else None
    captions_R = np.repeat(np.arange(len(scores)), [len(scores_N) for scores_N in scores])
    return Calibration(
        captions=len(scores),
        candidates=len(scores_R),
        share_right=float(right_R.mean()),
        auc=float(metrics.roc_auc_score(right_R, scores_R)) if both else None,
        auc_within_captions=won / pairs if pairs else None,
        pairs_within_captions=pairs,
        expected_error=_expected_error(linear, scores_R, right_R, captions_R, bins),
        score_K=[float(scores_R[part].mean()) for part in parts],
        right_K=[float(right_R[part].mean()) for part in parts],
        predicted_K=None if predicted_R is None else [float(predicted_R[part].mean()) for part in parts],
    )


def section(found: Calibration) -> Section:
    """The reliability curve and the figures, for the report."""
    lines = {"share right": (found.score_K, found.right_K)}
    if found.predicted_K is not None:
        lines["probability by a logistic fit"] = (found.score_K, found.predicted_K)
    rows = [
        ("a right candidate is scored above a wrong one", found.auc, "0.5"),
        ("… above a wrong one of the same caption", found.auc_within_captions, "0.5"),
        ("expected calibration error after a logistic fit", found.expected_error, "—"),
        ("right candidates", found.share_right, "—"),
    ]
    said = (
        f"{found.candidates:,} candidates of {found.captions:,} captions, each point of the curve as many of them, by score, "
        "against what the checker sees in them. Reranking lives on the second figure: the best of one caption's candidates "
        f"is chosen, and {found.pairs_within_captions:,} pairs of a right and a wrong one of the same caption are compared. "
        "The logistic fit whose error is given was made on other captions."
    )
    figures = {name: value for name, value in vars(found).items()}
    notes: tuple[str, ...] = ()
    if found.auc is None:
        notes = (
            f"All {found.candidates:,} candidates are {'right' if found.share_right else 'wrong'}: nothing to tell apart.",
        )
    body = prose(said) + curve("share right by score", lines) + table(("", "found", "chance"), rows)
    return Section("calibration", "Is the reranker's score worth something?", body, figures, notes)


def _sklearn() -> Any:
    with installed("calibration needs scikit-learn: pip install 'dalle[eval]'"):
        from sklearn import linear_model, metrics
    return metrics, linear_model


def _within(metrics: Any, scores: list[np.ndarray], right: list[np.ndarray]) -> tuple[float, int]:
    """How many pairs of a right and a wrong candidate of one caption are in order, ties counting half, and how many there
    are."""
    won, pairs = 0.0, 0
    for scores_N, right_N in zip(scores, right, strict=True):
        count = int(right_N.sum()) * int((~right_N).sum())
        if count:
            won += count * float(metrics.roc_auc_score(right_N, scores_N))
            pairs += count
    return won, pairs


def _logistic(linear: Any, scores_R: np.ndarray, right_R: np.ndarray) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # cosines differ in the second digit: unscaled, the solver would end before it has begun
    return make_pipeline(StandardScaler(), linear.LogisticRegression(C=np.inf)).fit(scores_R[:, None], right_R)


def _expected_error(
    linear: Any, scores_R: np.ndarray, right_R: np.ndarray, captions_R: np.ndarray, bins: int
) -> float | None:
    """Each caption's probabilities are from a fit to the captions of the other folds: of its own candidates a fit would know
    how easy the caption is."""
    folds_R = captions_R % min(_FOLDS, int(captions_R[-1]) + 1)
    predicted_R = np.empty(len(scores_R))
    for fold in np.unique(folds_R):
        inside, outside = folds_R == fold, folds_R != fold
        if not right_R[outside].any() or right_R[outside].all():
            return None
        predicted_R[inside] = _logistic(linear, scores_R[outside], right_R[outside]).predict_proba(
            scores_R[inside][:, None]
        )[:, 1]
    parts = np.array_split(np.argsort(predicted_R, kind="stable"), min(bins, len(predicted_R)))
    gaps = [len(part) * abs(predicted_R[part].mean() - right_R[part].mean()) for part in parts]
    return float(sum(gaps) / len(predicted_R))
