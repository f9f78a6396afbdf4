"""A prior that learns from its own candidates: what is drawn, who chooses, and how it is mixed with the real pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dalle.config.checks import MOST_ASKED, at_least, at_most, require
from dalle.config.sampling import Sampling

Judge = Literal["clip", "codes-clip", "checker"]


@dataclass(frozen=True)
class BestOf:
    """Candidates are drawn for training captions, the best are kept, and the prior trains on them beside the real pairs (RAFT,
    Dong et al., 2023). Ours; the paper does not.

    Args:
        model: folder with the `prior/` and `dvae/` that draw, and the judge, where that is a model
        captions: number of training captions that are drawn for, chosen by `seed` from all
        candidates: candidates drawn for each caption
        keep: most candidates of a caption that are trained on, the best that differ
        judge: who says which are best: "clip", the model's reranker `clip/`; "codes-clip", its `codes-clip/`, which reads codes,
            so that nothing is decoded; or "checker", which tells of drawn data whether the caption is shown, and lets nothing
            else through. Of equally good ones the one that was drawn first is better
        scenes: the image-text shards of the drawn data whose captions the tokens have, from which the checker knows what they
            claim; for "checker" alone
        threshold: the least score of one that is kept; null keeps the best whatever it is
        share: share of candidates among the pairs that the prior trains on, in (0, 1]; the others are real, so that
            what the judge does not see is not forgotten
        seed: seed of the choice of captions and of the candidates
        sampling: how candidates are drawn. `chunk` counts those of several captions together; `temperature` and `guidance` null
            are those that the prior was tuned for
    """

    model: str
    captions: int = 8192
    candidates: int = 32
    keep: int = 1
    judge: Judge = "clip"
    scenes: str | None = None
    threshold: float | None = None
    share: float = 0.5
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        at_least(self, 1, "captions", "candidates", "keep")
        at_most(self, 2**31, "captions")
        at_most(self, MOST_ASKED, "candidates")
        require(
            self.keep <= self.candidates,
            f"best_of.keep {self.keep}: is more than the {self.candidates} candidates that are drawn; lower it",
        )
        require(
            0 < self.share <= 1, f"best_of.share {self.share}: must lie in (0, 1]; without best_of all pairs are real"
        )
        require(0 <= self.seed < 2**24, f"best_of.seed {self.seed}: must lie between 0 and {2**24 - 1}")
        require(
            (self.judge == "checker") == (self.scenes is not None),
            f"best_of.scenes {self.scenes} with best_of.judge {self.judge}: the checker needs the drawn data's image-text "
            "shards, and no other judge does; give scenes for it alone",
        )
        require(
            self.judge != "checker" or self.threshold is None,
            f"best_of.threshold {self.threshold}: the checker says yes or no; leave it null",
        )
