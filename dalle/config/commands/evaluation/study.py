"""What `dalle-study` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from dalle.config.checks import MOST_ASKED, at_least, at_most, require


@dataclass(frozen=True)
class WorkerChecks:
    """When a worker's answers are not counted. The first two belong to the only check that the paper tells of (appendix F):
    one worker was left out for much disagreement with the others together with fast answers, many of them under 4 seconds.
    How much is much the paper does not say; that, and the rest, is ours.

    Args:
        fast_s: seconds below which an answer is fast; the paper's
        fast_share: a worker is fast when at least this share of the answers is, and is left out when disagreement comes to it
        agreement: share of answers that are those of the other workers' majority, below which a worker disagrees
        catch_share: share of the catch trials' known answers that has to be given; 0 asks for none
        same_side: share of left, or of right, among a worker's answers, at which it is no judgement any more; above 1 is never
        same_side_answers: answers that a worker has to have given before `same_side` is asked
    """

    fast_s: float = 4.0
    fast_share: float = 0.5
    agreement: float = 0.6
    catch_share: float = 0.75
    same_side: float = 0.95
    same_side_answers: int = 20

    def __post_init__(self) -> None:
        at_least(self, 0, "fast_s", "fast_share", "agreement", "catch_share", "same_side", "same_side_answers")
        at_most(self, MOST_ASKED, "same_side_answers")
        for name, value in (("agreement", self.agreement), ("catch_share", self.catch_share)):
            require(value <= 1, f"checks.{name} {value}: must be at most 1, for it is a share")


@dataclass(frozen=True)
class Study:
    """Ask people which of two models draws better: make the page that workers answer on, or score their answers.

    Args:
        images: makes the page: two or more folders of images, separated by spaces, in GenEval's layout
            (`00000/metadata.jsonl`, `00000/samples/0000.png`), all of the same captions; of each the first image is taken
        answers: scores: the JSON files that workers sent back; paths and globs, separated by spaces
        output: folder of the study: `index.html` and `study.json`, and once there are answers `results.json`
        captions: most captions that are asked about, drawn by the seed from those of the folders; the paper asked about 1,000
        votes: number of workers who see each pair; the paper's
        pairs_per_worker: most pairs that a worker sees
        catch_trials: trials of each worker whose answer is known: an image beside its own pixels in random order, and where there
            is `real`, by turns, the real image of a caption beside that of another
        repeats: pairs that each worker sees once more with the sides changed, to tell how steady the answers are
        real: folder of real images in the same layout, of these captions or others, for catch trials about the caption
        jpeg_quality: JPEG quality of the images on the page; null keeps every pixel, as PNG. A page of 1,000 captions and two models at
            256 px is 85 MB of emoji kept, and 31 MB at 92; photographs take several times as much
        seed: seed of the choice of captions, who sees what, order and sides
        overwrite: write over another study, whose answers can then no longer be scored
        checks: when a worker's answers are not counted
    """

    images: str | None = None
    answers: str | None = None
    output: str = "study"
    captions: int = 1000
    votes: int = 5
    pairs_per_worker: int = 50
    catch_trials: int = 4
    repeats: int = 2
    real: str | None = None
    jpeg_quality: int | None = None
    seed: int = 0
    overwrite: bool = False
    checks: WorkerChecks = field(default_factory=WorkerChecks)

    def __post_init__(self) -> None:
        require(
            (self.images is None) != (self.answers is None),
            "images and answers: give one of them, --images to make a study or --answers to score one",
        )
        at_least(self, 1, "captions", "pairs_per_worker", most=MOST_ASKED)
        at_least(self, 1, "votes", most=2**12)
        at_least(self, 0, "catch_trials", "repeats", most=2**12)
        quality = self.jpeg_quality
        require(
            quality is None or 1 <= quality <= 100, f"jpeg_quality {quality}: must lie between 1 and 100, or be null"
        )
