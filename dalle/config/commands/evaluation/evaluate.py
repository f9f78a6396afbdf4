"""How a model, or a folder of images, is measured."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields

from dalle.config.checks import MOST_ASKED, MOST_PROCESSES, at_least, at_most, require
from dalle.config.sampling import Sampling

PLACES = (
    *("output", "manifest", "overwrite", "processes"),
    *("model", "dvae", "prior", "priors", "clip", "judge", "features", "images", "reference", "train", "exclude"),
)
"""Where things lie and how they are worked on: what may be said beside a manifest."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a model, or a folder of images, against real images: the paper's figures, with a report to look at.

    Writes `metrics.json`, `report.html` and `manifest.json`, from which `--manifest` makes the same digits again.

    Args:
        output: folder of what is drawn and found; an evaluation that was interrupted goes on there
        model: folder with `prior/` and `dvae/` in it, and `clip/` for reranking; or a ready model by its name, such as shapes; or
            `owner/name[@revision]` of the Hugging Face Hub
        images: in place of a model, a folder of images: `00000/metadata.jsonl` (an object with a "prompt") beside
            `00000/samples/0000.png`, as GenEval has it, or files NAME.png beside NAME.txt
        captions: what is drawn: a text file with one caption a line, or a .jsonl file of objects with a "prompt" or
            "caption"; null takes the first caption of each reference image
        reference: shards of real images, with their captions: what the distances are to
        train: shards of the images that the model was trained on: samples are shown beside the nearest of them
        exclude: a list of reference images to leave out, as `dalle-dedup` writes it; the figures are then given with and
            without them
        features: what the distances compare: `efficientnet-lite0` (ImageNet, in the extra `eval`), `inception` or
            `inception:FILE` (the FID network), `open_clip:ARCHITECTURE:PRETRAINED`, `clip:FOLDER`. Several stand with
            spaces between them
        judge: the CLIP of the CLIP score and of retrieval, a folder or `ARCHITECTURE:PRETRAINED`; null means the reranker,
            which then judges what it chose itself
        n: candidates of each caption, of which the reranker takes the best; also the end of the curve over N
        keep: images of each caption that are written, the best first; without a reranker so many are drawn. Distances and
            captions found are of the first one
        rerank: rank the candidates; null ranks where the model has a reranker, and draws `keep` in place of `n` where it has none
        blur_radii: standard deviations, in pixels, of the blurs before the distances, of both sets (Figure 9)
        most: the most captions, and the most reference images; null takes all
        batch_size: images that a feature network sees together
        seed: seed of the first candidate of each caption, and of what is chosen at random
        dvae: dVAE folder in place of the model's
        prior: prior folder in place of the model's
        text_encoder: text encoder of a StackGAN, where it lies now; null takes the name that it was trained with
        priors: folders of other priors of the same dVAE, with spaces between them, whose held-out loss stands beside
        clip: reranker in place of the model's, a folder or `ARCHITECTURE:PRETRAINED` of open_clip
        manifest: do what this `manifest.json` tells once more, and compare the digits; takes no other options than those of
            where things lie
        compare: in place of all this, the folders of two finished evaluations or more of the same captions, as NAME=FOLDER with
            spaces between them: their figures, curves and pictures beside each other in one report
        overwrite: write over another evaluation that the folder holds
        processes: number of processes that draw; null means one for each GPU, or one where there is none
        sampling: how candidates are drawn
    """

    output: str
    model: str | None = None
    images: str | None = None
    captions: str | None = None
    reference: str | None = None
    train: str | None = None
    exclude: str | None = None
    features: str = "efficientnet-lite0"
    judge: str | None = None
    n: int = 32
    keep: int = 4
    rerank: bool | None = None
    blur_radii: tuple[float, ...] = (0, 1, 2, 4, 8)
    most: int | None = None
    batch_size: int = 64
    seed: int = 0
    dvae: str | None = None
    prior: str | None = None
    text_encoder: str | None = None
    priors: str | None = None
    clip: str | None = None
    manifest: str | None = None
    compare: str | None = None
    overwrite: bool = False
    processes: int | None = None
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        at_least(self, 1, "n", "keep", "batch_size", most=MOST_ASKED)
        at_most(self, 2**31, "most")
        at_most(self, MOST_PROCESSES, "processes")
        require(self.most is None or self.most >= 2, f"most {self.most}: must be at least 2, or null")
        require(
            self.processes is None or self.processes >= 1, f"processes {self.processes}: must be at least 1, or null"
        )
        require(abs(self.seed) < 2**62, f"seed {self.seed}: must lie between −2⁶² and 2⁶²")
        radii = self.blur_radii
        require(
            len(radii) > 0 and radii[0] == 0 and list(radii) == sorted(set(radii)) and radii[-1] < 1000,
            f"blur_radii {list(radii)}: must ascend from 0, which is no blur",
        )
        require(bool(self.features.split()), "features: name at least one, such as efficientnet-lite0")
        if self.compare is not None:
            self._check_alone("compare", ("compare", "output", "overwrite"), "the evaluations tell all that is shown")
        elif self.manifest is not None:
            self._check_alone("manifest", PLACES, "the manifest tells all that decides the figures")
        else:
            self._check_sources()

    @property
    def drawn(self) -> int:
        """Candidates that are drawn of each caption: without a reranker more than are kept would be thrown away."""
        return self.keep if self.rerank is False else self.n

    def _check_sources(self) -> None:
        require(
            self.model is None or self.images is None, "model and images: give one of them, what draws or what is drawn"
        )
        require(
            self.model is not None or self.images is not None,
            "model: is missing; give --model FOLDER, or --images FOLDER for images that are there",
        )
        require(
            self.model is None or self.captions is not None or self.reference is not None,
            "captions: are missing; give --captions FILE, or --reference SHARDS whose captions are drawn",
        )
        require(
            self.images is None or self.captions is None,
            "captions and images: the folder of images tells their captions; leave captions out",
        )
        for name, why in (
            ("exclude", "leaves out reference images"),
            ("train", "what is remembered is told beside real images that were not trained on"),
        ):
            require(self.reference is not None or getattr(self, name) is None, f"{name}: {why}; name --reference")

    def _check_alone(self, setting: str, beside: tuple[str, ...], why: str) -> None:
        for option in fields(self):
            if option.name in beside:
                continue
            default = option.default if option.default_factory is MISSING else option.default_factory()
            require(
                getattr(self, option.name) == default,
                f"{setting} and {option.name}: {why}; leave {option.name} out",
            )
