"""One dataclass for each command."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from dalle.config.best_of import BestOf
from dalle.config.checks import MOST_ASKED, MOST_PROCESSES, at_least, at_most, require
from dalle.config.models import MOST_SIDE_PX, CLIPModel, DVAEModel, PriorModel
from dalle.config.run import Run
from dalle.config.sampling import LEAST_TEMPERATURE, Sampling
from dalle.config.training import DVAEObjective, Images, Optimizer, PriorObjective


@dataclass(frozen=True)
class DrawShapes:
    """Write the drawn data set: captioned scenes of coloured shapes, as webdataset shards.

    Args:
        output: folder of the shards; null writes none, where `skills` is given
        num_train: training drawings
        num_valid: validation drawings, of attribute combinations that training never shows
        size_px: side of a drawing, a multiple of 8
        seed: the same seed draws the same bytes
        workers: processes
        skills: a .jsonl file to write, with captions for the six skills of GenEval, for `dalle-sample --captions`
        skill_captions: captions of each skill
        overwrite: write over a file of skills that is there
    """

    output: str | None = None
    num_train: int = 20_000
    num_valid: int = 1_000
    size_px: int = 64
    seed: int = 0
    workers: int = 2
    skills: str | None = None
    skill_captions: int = 50
    overwrite: bool = False

    def __post_init__(self) -> None:
        require(self.output is not None or self.skills is not None, "output: is missing; give --output FOLDER")
        at_most(self, MOST_ASKED, "num_train", "num_valid")
        at_most(self, MOST_SIDE_PX, "size_px")
        at_most(self, MOST_PROCESSES, "workers")
        at_most(self, 2**10, "skill_captions")


def check_sharding(optimizer: Optimizer, run: Run) -> None:
    """Raises ValueError for an optimiser that cannot shard, or keep, the weights as the run asks."""
    require(
        optimizer.muon_step_size_factor is None or run.zero_stage == 0,
        f"optimizer.muon_step_size_factor {optimizer.muon_step_size_factor} with run.zero_stage {run.zero_stage}: Muon "
        "needs whole matrices; set run.zero_stage to 0, or the factor to null",
    )
    require(
        run.weights == "fp32" or optimizer.name == "AdamW",
        f"run.weights {run.weights} with {optimizer.name}: AdamW alone rounds its updates so that none is lost; set "
        "optimizer.method to adamw and optimizer.muon_step_size_factor to null, or run.weights to fp32",
    )


def check_rank(model: PriorModel, run: Run) -> None:
    """Raises ValueError where gradients are to be compressed to more than they are."""
    if run.compression is not None:
        quarter = model.width // 32 * 8 or 1  # which the processes of a machine divide
        require(
            run.compression.rank <= model.width,
            f"run.compression.rank {run.compression.rank}: is more than model.width {model.width}, the shorter side of the matrices, "
            f"so that nothing would be compressed; take about a quarter of it, as the paper does, here {quarter}",
        )


def check_prior_only(run: Run, precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")) -> None:
    """Raises ValueError where a training of another model asks for what works on the prior's resblocks, or for a precision that it
    does not know."""
    for name, found, allowed in (
        ("zero_stage", run.zero_stage, run.zero_stage < 3),
        ("precision", run.precision, run.precision in precisions),
        ("compression", run.compression, run.compression is None),
        ("weights", run.weights, run.weights == "fp32"),
    ):
        require(allowed, f"run.{name} {found}: is for the prior alone, whose resblocks it works on; leave it out")


@dataclass(frozen=True)
class TrainTokenizer:
    """Train the BPE tokenizer on the captions of the shards, or on a text file with one caption a line.

    Args:
        data: shards (.tar) or text files (.txt)
        output: the tokenizer file to write
        vocabulary: largest number of tokens, at least 256 (the bytes)
        min_count: pairs of symbols seen less often are not merged
        pipes: let the shards be named by `pipe:` and a shell command, which writes a tar
        overwrite: write over a file that is there
    """

    data: str
    output: str
    vocabulary: int = 16384
    min_count: int = 2
    pipes: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        at_least(self, 256, "vocabulary", most=2**24)
        at_least(self, 1, "min_count", most=2**32)


@dataclass(frozen=True)
class TrainDVAE:
    """Train the discrete VAE (stage one).

    Args:
        data: training shards: the path of one, or paths, globs or {000..006} ranges, separated by spaces, or URLs
        output: folder of the trained model
        valid_data: held-out shards; null means no figures, and pictures of training pairs
        resume: continue from the latest checkpoint in the output folder, whose config.yaml has all other settings
        dry_run: tell what the training would take on this machine, train nothing and write nothing
        start_from: name, folder or Hub id of a finished dVAE to go on from, whose sizes are taken; also `--from`
        freeze: "encoder" trains the decoder alone, on the codes of a dVAE that `start_from` names: what the codes stand for
            stays, so priors and tokens of that dVAE go on with this one. The decoder may then have sizes of its own. Null
            trains all
    """

    data: str
    output: str
    optimizer: Optimizer
    run: Run
    valid_data: str | None = None
    resume: bool = False
    dry_run: bool = False
    start_from: str | None = None
    freeze: Literal["encoder"] | None = None
    model: DVAEModel = field(default_factory=DVAEModel)
    objective: DVAEObjective = field(default_factory=DVAEObjective)
    images: Images = field(default_factory=Images)

    def __post_init__(self) -> None:
        require(
            self.optimizer.muon_step_size_factor is None,
            f"optimizer.muon_step_size_factor {self.optimizer.muon_step_size_factor}: Muon is for the matrices of "
            "transformers, and a dVAE has none; leave it null",
        )
        check_prior_only(self.run)
        require(
            self.freeze is None or self.start_from is not None,
            f"freeze {self.freeze}: there is nothing to keep as it is; name a finished dVAE with --from",
        )


@dataclass(frozen=True)
class TrainPrior:
    """Train the sparse transformer (stage two) on token shards.

    Args:
        data: folder of token shards
        dvae: the dVAE that made them: its folder, or what `start_from` may be
        tokenizer: tokenizer file, or a prior that has one, named likewise
        output: folder of the trained model
        valid_data: folder of held-out token shards; null means no figures, and pictures for training captions
        resume: continue from the latest checkpoint in the output folder, whose config.yaml has all other settings
        dry_run: tell what the training would take on this machine, train nothing and write nothing
        start_from: name, folder or Hub id of a finished prior to go on from, whose sizes are taken; also `--from`
        bpe_dropout: probability of skipping a merge while training (Provilkov et al., 2019)
        caption_dropout: probability of training on a pair without its caption, so that the prior also learns images without
            one, for guidance and `dalle-caption` (Ho and Salimans, 2022); 0 in the paper
        sampling_temperature: temperature at which the prior draws unless another one is asked for, kept with its weights; 1 in the paper.
            A prior of minutes draws cleaner below it
        sampling_guidance: scale of guidance with which the prior draws, likewise; 1, none, in the paper. Others need `caption_dropout`
        best_of: train on the best of the candidates of a prior that is there, beside the real pairs; null (the paper) does not.
            Starts from that prior, unless `start_from` names another
    """

    data: str
    dvae: str
    tokenizer: str
    output: str
    optimizer: Optimizer
    run: Run
    valid_data: str | None = None
    resume: bool = False
    dry_run: bool = False
    start_from: str | None = None
    bpe_dropout: float = 0.1
    caption_dropout: float = 0.0
    sampling_temperature: float = 1.0
    sampling_guidance: float = 1.0
    best_of: BestOf | None = None
    model: PriorModel = field(default_factory=PriorModel)
    objective: PriorObjective = field(default_factory=PriorObjective)

    def __post_init__(self) -> None:
        check_sharding(self.optimizer, self.run)
        check_rank(self.model, self.run)
        require(0 <= self.bpe_dropout < 1, f"bpe_dropout {self.bpe_dropout}: must lie in [0, 1)")
        require(0 <= self.caption_dropout < 1, f"caption_dropout {self.caption_dropout}: must lie in [0, 1)")
        require(
            LEAST_TEMPERATURE <= self.sampling_temperature < math.inf,
            f"sampling_temperature {self.sampling_temperature}: must be at least {LEAST_TEMPERATURE} and finite",
        )
        require(
            0 <= self.sampling_guidance < math.inf,
            f"sampling_guidance {self.sampling_guidance}: must be finite and not negative; 1 is none",
        )
        require(
            self.sampling_guidance == 1 or self.caption_dropout > 0,
            f"sampling_guidance {self.sampling_guidance}: a prior that never met an image without its caption cannot be guided; "
            "leave it at 1, or train with --caption_dropout 0.1",
        )


@dataclass(frozen=True)
class TrainCLIP:
    """Train the contrastive reranker on the same image-text shards.

    Args:
        data: training shards
        output: folder of the trained model
        tokenizer: tokenizer file, or a prior that has one, named as `start_from`; null uses open_clip's own
        dvae: train half on what this dVAE, named likewise, reconstructs, so that its blur is no surprise in reranking; null trains on
            the images alone. Where `model.reads` is codes, they are this dVAE's
        valid_data: held-out shards; null means no validation
        resume: continue from the latest checkpoint in the output folder, whose config.yaml has all other settings
        dry_run: tell what the training would take on this machine, train nothing and write nothing
        start_from: name, folder or Hub id of a finished CLIP to go on from, whose sizes are taken; also `--from`
    """

    data: str
    output: str
    optimizer: Optimizer
    run: Run
    tokenizer: str | None = None
    dvae: str | None = None
    valid_data: str | None = None
    resume: bool = False
    dry_run: bool = False
    start_from: str | None = None
    model: CLIPModel = field(default_factory=CLIPModel)
    images: Images = field(default_factory=lambda: Images(augmentation="prior"))

    def __post_init__(self) -> None:
        check_sharding(self.optimizer, self.run)
        check_prior_only(self.run)
        require(
            self.model.reads == "pixels" or self.dvae is not None,
            "model.reads codes: needs the dVAE whose codes they are; name its folder with --dvae",
        )
        require(
            self.run.batch_size >= 2 * self.run.accumulation_steps,
            f"run.batch_size {self.run.batch_size}: a pair is learned by telling it from the others of its micro-batch; "
            f"take two pairs or more for each of {self.run.accumulation_steps} accumulation_steps",
        )


@dataclass(frozen=True)
class Describe:
    """Tell the parts of a configured model: shapes, parameter counts, and for a prior the mask of every layer.

    Args:
        config_file: a training configuration of a dVAE, prior, CLIP or StackGAN
        json: print JSON in place of tables
        tokenizer: tokenizer file, for a CLIP on our own tokenizer; null assumes the paper's number of tokens
    """

    config_file: str
    json: bool = False
    tokenizer: str | None = None


@dataclass(frozen=True)
class Demo:
    """The whole road on drawings: data, tokenizer, dVAE, tokens, prior, reranker, gallery, and how often the pictures
    show what the caption says.

    Args:
        output: folder of everything the demo makes
        captions: held-out captions that are drawn and judged
        candidates: candidates drawn for each caption
        num_train: training drawings
        configs: folder of the demo's configurations
        seed: seed of data and sampling
        sampling: how candidates are drawn
    """

    output: str = "demo"
    captions: int = 128
    candidates: int = 32
    num_train: int = 30_000
    configs: str | None = None
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        at_least(self, 1, "captions", "candidates", "num_train", most=MOST_ASKED)
