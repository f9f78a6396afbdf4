"""One frozen dataclass for each thing that is configured. No torch here: a configuration is read and refused before
anything heavy is imported.

Defaults are the paper's values ("Zero-Shot Text-to-Image Generation", 2021) wherever it gives one; a field that the
paper does not have says so and its default leaves it off. `dalle.cli.arguments` turns these classes into `--help`,
YAML and dotted overrides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["fp32", "bf16"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Schedule:
    """A value that changes with the update number: constant, ramped between two updates, with an optional warm-up.

    Args:
        start: value up to `begin_step`
        end: value from `end_step` on
        begin_step: update at which the change begins
        end_step: update at which `end` is reached; equal to `begin_step` means that `start` is kept for ever
        shape: "cosine" (the paper's, appendix A.2) or "linear"
        warmup_steps: over these first updates the value is also multiplied by a factor that grows linearly to 1
    """

    start: float
    end: float
    begin_step: int = 0
    end_step: int = 0
    shape: Literal["cosine", "linear"] = "cosine"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        _require(
            0 <= self.begin_step <= self.end_step,
            f"begin_step {self.begin_step} and end_step {self.end_step}: need 0 <= begin_step <= end_step",
        )
        _require(self.warmup_steps >= 0, f"warmup_steps {self.warmup_steps}: must not be negative")

    def __call__(self, step: int) -> float:
        """The value for update `step`, counted from 0."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.end_step == self.begin_step:
            return self.start * warmup
        progress = min(1.0, max(0.0, (step - self.begin_step) / (self.end_step - self.begin_step)))
        if self.shape == "cosine":
            progress = 0.5 * (1.0 - math.cos(math.pi * progress))
        return (self.start + (self.end - self.start) * progress) * warmup


# --------------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class DVAEModel:
    """The discrete VAE (appendix A.1). The defaults are the published model: 53,786,240 + 43,829,766 parameters.

    Args:
        image_size_px: side of the square training images
        codebook_size: K, the number of codes
        encoder_width: width of the encoder's first group; group g has `width_multipliers[g]` times as many channels,
            and the decoder's groups have the same widths in reverse
        width_multipliers: one per group; the encoder halves the resolution after each group but the last
        blocks_per_group: resblocks in each group
        decoder_input_width: channels that the decoder's 1×1 input conv maps a code to
        post_gain: factor on the residual path; null means 1 / (number of resblocks)²
        init: "paper" (std 1/√fan-in) or "he" (std √(2/fan-in)); "he" is ours
        logit_norm_gain: batch-normalise the encoder's logits and multiply them by this; null (the paper) leaves them
            alone. Ours: it prevents the collapse to one code in short trainings on plain backgrounds
        min_ln_b: floor under ln b of the logit-Laplace likelihood; null (the paper) means none. Ours: without it a
            constant colour, whose likelihood has no upper bound, drowns everything else
    """

    image_size_px: int = 256
    codebook_size: int = 8192
    encoder_width: int = 256
    width_multipliers: tuple[int, ...] = (1, 2, 4, 8)
    blocks_per_group: int = 2
    decoder_input_width: int = 128
    post_gain: float | None = None
    init: Literal["paper", "he"] = "paper"
    logit_norm_gain: float | None = None
    min_ln_b: float | None = None

    def __post_init__(self) -> None:
        _require(self.codebook_size >= 2, f"codebook_size {self.codebook_size}: must be at least 2")
        _require(self.blocks_per_group >= 1, f"blocks_per_group {self.blocks_per_group}: must be at least 1")
        _require(len(self.width_multipliers) >= 1, "width_multipliers: needs at least one group")
        widths = [self.encoder_width * m for m in self.width_multipliers]
        _require(
            all(w >= 4 and w % 4 == 0 for w in widths),
            f"encoder_width {self.encoder_width} × width_multipliers {self.width_multipliers}: "
            "every width must be a positive multiple of 4 (the hidden width is a quarter)",
        )
        _require(
            self.image_size_px > 0 and self.image_size_px % self.downsampling == 0,
            f"image_size_px {self.image_size_px}: must be a multiple of {self.downsampling}, the downsampling of "
            f"{len(self.width_multipliers)} groups",
        )

    @property
    def downsampling(self) -> int:
        """Pixels per token along one side: 2 to the number of poolings."""
        return 2 ** (len(self.width_multipliers) - 1)

    @property
    def grid(self) -> int:
        """G, tokens along one side of an image."""
        return self.image_size_px // self.downsampling


@dataclass(frozen=True)
class PriorModel:
    """The sparse transformer over text and image tokens (appendix B.1). The defaults are the 12 B model.

    Args:
        text_slots: T, slots for the start-of-text token and up to T − 1 caption tokens
        grid: G, image tokens along one side
        text_vocabulary: size of the BPE vocabulary
        codebook_size: K of the dVAE
        width: D, the model width
        depth: L, the number of layers; each has an attention and an MLP resblock
        heads: H; the head width is D / H (64 in the paper)
        attention: "paper" (row, column, row, row, …, the last convolutional) or "dense", causal everywhere (ours,
            to compare with)
        conv_kernel: side of the convolutional mask's kernel, odd
    """

    text_slots: int = 256
    grid: int = 32
    text_vocabulary: int = 16384
    codebook_size: int = 8192
    width: int = 3968
    depth: int = 64
    heads: int = 62
    attention: Literal["paper", "dense"] = "paper"
    conv_kernel: int = 11

    def __post_init__(self) -> None:
        _require(self.text_slots >= 2, f"text_slots {self.text_slots}: must be at least 2")
        _require(self.grid >= 1, f"grid {self.grid}: must be at least 1")
        _require(self.depth >= 1, f"depth {self.depth}: must be at least 1")
        _require(
            self.heads >= 1 and self.width % self.heads == 0,
            f"heads {self.heads}: must divide width {self.width}",
        )
        _require(
            self.conv_kernel >= 1 and self.conv_kernel % 2 == 1,
            f"conv_kernel {self.conv_kernel}: must be odd and positive",
        )

    @property
    def image_slots(self) -> int:
        return self.grid**2

    @property
    def slots(self) -> int:
        """S, the length of a sequence: T + G²."""
        return self.text_slots + self.image_slots


@dataclass(frozen=True)
class CLIPModel:
    """The contrastive reranker: an open_clip architecture by name, or a small one by its dials.

    Args:
        architecture: name of an open_clip architecture (such as "ViT-B-32"); null builds one from the dials below
        image_size_px: side of the images that it reads
        patch_px: side of a vision-transformer patch
        vision_width: width of the image transformer
        vision_layers: depth of the image transformer
        text_width: width of the text transformer
        text_layers: depth of the text transformer
        text_slots: longest caption in tokens, start and end included
        embedding_width: width of the joint space
    """

    architecture: str | None = None
    image_size_px: int = 64
    patch_px: int = 8
    vision_width: int = 256
    vision_layers: int = 6
    text_width: int = 256
    text_layers: int = 4
    text_slots: int = 64
    embedding_width: int = 256

    def __post_init__(self) -> None:
        _require(
            self.image_size_px % self.patch_px == 0,
            f"image_size_px {self.image_size_px}: must be a multiple of patch_px {self.patch_px}",
        )
        for name in ("vision_width", "text_width"):
            _require(
                getattr(self, name) % 64 == 0, f"{name} {getattr(self, name)}: must be a multiple of 64, the head width"
            )


# ------------------------------------------------------------------------------------------------------ objectives


@dataclass(frozen=True)
class DVAEObjective:
    """The relaxed evidence lower bound (appendix A.2).

    Args:
        kl_weight: β
        temperature: τ of the gumbel-softmax
        noise_scale: factor on the gumbel noise; 1 throughout in the paper. Ours: ramping it in lets a short training
            find a codebook before the noise hides it
    """

    kl_weight: Schedule = field(default_factory=lambda: Schedule(0.0, 6.6, end_step=5_000))
    temperature: Schedule = field(default_factory=lambda: Schedule(1.0, 1 / 16, end_step=150_000))
    noise_scale: Schedule = field(default_factory=lambda: Schedule(1.0, 1.0))


@dataclass(frozen=True)
class PriorObjective:
    """The joint cross-entropy (section 2.2).

    Args:
        text_weight: weight of the mean cross-entropy over text tokens; the image tokens get 1 − text_weight
    """

    text_weight: float = 1 / 8

    def __post_init__(self) -> None:
        _require(0 <= self.text_weight <= 1, f"text_weight {self.text_weight}: must lie in [0, 1]")


# -------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Optimizer:
    """AdamW with decoupled weight decay.

    Args:
        step_size: the learning rate
        beta1: decay of the running mean
        beta2: decay of the running variance
        epsilon: added to the root of the variance
        weight_decay: decoupled, times the step size
        clip_norm: largest global gradient norm; null clips nothing
    """

    step_size: Schedule
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float | None = None


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases, never required.

    Args:
        enabled: log there too
        project: project name
        name: name of the run; null means the output folder's name
        mode: "online", or "offline" to sync later
    """

    enabled: bool = False
    project: str = "dalle"
    name: str | None = None
    mode: Literal["online", "offline"] = "online"


@dataclass(frozen=True)
class Run:
    """How a training runs, the same for every stage.

    Args:
        steps: number of updates
        batch_size: samples per update over all processes and accumulation steps
        accumulation_steps: micro-batches per update
        seed: seeds weights, data order and noise
        precision: of the matrix products; parameters, identity path, logits and loss are fp32 in any case
        zero_stage: DeepSpeed ZeRO stage: 0 replicates, 1 shards the optimiser state, 2 the gradients too
        ema_decay: decay of the averaged weights; null keeps no average
        compile: torch.compile the model
        log_every_steps: updates between two log lines
        validate_every_steps: updates between two validations with pictures; 0 only at the end
        validation_batches: batches per validation
        checkpoint_every_minutes: time between two checkpoints; 0 only at the end and on Ctrl-C
        keep_checkpoints: how many of the latest checkpoints stay on disk
        loader_workers: data-loading processes per rank; 0 loads in the training process
    """

    steps: int
    batch_size: int
    accumulation_steps: int = 1
    seed: int = 0
    precision: Precision = "bf16"
    zero_stage: Literal[0, 1, 2] = 0
    ema_decay: float | None = 0.999
    compile: bool = False
    log_every_steps: int = 20
    validate_every_steps: int = 500
    validation_batches: int = 8
    checkpoint_every_minutes: float = 10.0
    keep_checkpoints: int = 2
    loader_workers: int = 1
    wandb: Wandb = field(default_factory=Wandb)

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "accumulation_steps",
            "log_every_steps",
            "validation_batches",
            "keep_checkpoints",
        ):
            _require(getattr(self, name) >= 1, f"{name} {getattr(self, name)}: must be at least 1")
        _require(
            self.batch_size % self.accumulation_steps == 0,
            f"accumulation_steps {self.accumulation_steps}: must divide batch_size {self.batch_size}",
        )
        _require(self.ema_decay is None or 0 <= self.ema_decay < 1, f"ema_decay {self.ema_decay}: must lie in [0, 1)")

    def micro_batch_size(self, world_size: int) -> int:
        """Samples that one of `world_size` processes takes at a time. Raises ValueError when the batch does not divide."""
        parts = world_size * self.accumulation_steps
        _require(
            self.batch_size % parts == 0,
            f"run.batch_size {self.batch_size}: must be a multiple of {world_size} processes × {self.accumulation_steps} "
            "accumulation steps",
        )
        return self.batch_size // parts


@dataclass(frozen=True)
class Images:
    """Which pairs are kept and how their images are prepared.

    Args:
        augmentation: "dvae" (appendix A.2: random square, random size, random crop, flip), "prior" (appendix B.2:
            near-central crop, no flip) or "none" (short side to size, centre crop)
        flip: allow the horizontal flip of "dvae"; off where left and right are in the caption
        min_caption_chars: pairs with a shorter caption are filtered out
        max_aspect_ratio: pairs with a longer side over this many shorter sides are filtered out
        max_bad_fraction: the run stops when more than this share of the samples cannot be read
        shuffle_buffer: samples among which the order is shuffled, beside the order of the shards
        cache_bytes: memory, over all loader workers of a process, for decoded and reduced images, so that small data
            sets are decoded once
    """

    augmentation: Literal["dvae", "prior", "none"] = "dvae"
    flip: bool = True
    min_caption_chars: int = 1
    max_aspect_ratio: float = 2.0
    max_bad_fraction: float = 0.05
    shuffle_buffer: int = 1000
    cache_bytes: int = 0


@dataclass(frozen=True)
class TrainDVAE:
    """Train the discrete VAE (stage one).

    Args:
        data: training shards: paths, globs or {000..006} ranges, separated by spaces
        output: folder of the trained model
        valid_data: held-out shards; null means no validation
        resume: continue from the latest checkpoint in the output folder
    """

    data: str
    output: str
    optimizer: Optimizer
    run: Run
    valid_data: str | None = None
    resume: bool = False
    model: DVAEModel = field(default_factory=DVAEModel)
    objective: DVAEObjective = field(default_factory=DVAEObjective)
    images: Images = field(default_factory=Images)


@dataclass(frozen=True)
class TrainTokenizer:
    """Train the BPE tokenizer on the captions of the shards, or on a text file with one caption a line.

    Args:
        data: shards (.tar) or text files (.txt)
        output: the tokenizer file to write
        vocabulary: largest number of tokens
        min_count: pairs of symbols seen less often are not merged
    """

    data: str
    output: str
    vocabulary: int = 16384
    min_count: int = 2


@dataclass(frozen=True)
class Tokenize:
    """Run the dVAE's encoder over image-text shards once and write token shards.

    Args:
        data: image-text shards
        dvae: folder of the trained dVAE
        output: folder of the token shards
        batch_size: images per encoder batch
        precision: of the encoder's matrix products
        crops: how many times each image is encoded, each time with another crop; 1 takes the centre
        images: which pairs are kept, and the augmentation when crops > 1
        pairs_per_shard: pairs in one token shard
        seed: of the crops
    """

    data: str
    dvae: str
    output: str
    batch_size: int = 64
    precision: Precision = "bf16"
    crops: int = 1
    images: Images = field(default_factory=lambda: Images(augmentation="prior"))
    pairs_per_shard: int = 16384
    seed: int = 0


@dataclass(frozen=True)
class TrainPrior:
    """Train the sparse transformer (stage two) on token shards.

    Args:
        data: folder of token shards
        dvae: folder of the dVAE that made them
        tokenizer: tokenizer file
        output: folder of the trained model
        valid_data: folder of held-out token shards; null means no validation
        resume: continue from the latest checkpoint in the output folder
        bpe_dropout: probability of skipping a merge while training (Provilkov et al., 2019)
    """

    data: str
    dvae: str
    tokenizer: str
    output: str
    optimizer: Optimizer
    run: Run
    valid_data: str | None = None
    resume: bool = False
    bpe_dropout: float = 0.1
    model: PriorModel = field(default_factory=PriorModel)
    objective: PriorObjective = field(default_factory=PriorObjective)

    def __post_init__(self) -> None:
        _require(0 <= self.bpe_dropout < 1, f"bpe_dropout {self.bpe_dropout}: must lie in [0, 1)")


@dataclass(frozen=True)
class TrainCLIP:
    """Train the contrastive reranker on the same image-text shards.

    Args:
        data: training shards
        output: folder of the trained model
        tokenizer: tokenizer file; null uses open_clip's own
        dvae: train half on what this dVAE reconstructs, so that its blur is no surprise in reranking; null trains on
            the images alone
        valid_data: held-out shards; null means no validation
        resume: continue from the latest checkpoint in the output folder
    """

    data: str
    output: str
    optimizer: Optimizer
    run: Run
    tokenizer: str | None = None
    dvae: str | None = None
    valid_data: str | None = None
    resume: bool = False
    model: CLIPModel = field(default_factory=CLIPModel)
    images: Images = field(default_factory=lambda: Images(augmentation="prior"))


# -------------------------------------------------------------------------------------------------------- sampling


@dataclass(frozen=True)
class Sampling:
    """How candidates are drawn.

    Args:
        temperature: divides the logits; 1 in the paper
        top_k: keep the k likeliest codes at each step; null keeps all
        top_p: keep the likeliest codes that together have this probability; null keeps all
        chunk: candidates decoded together. Matrix products of another shape round differently, so the chunk has one
            width whatever n is, and is part of what an image can be made again from
        precision: of the matrix products
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    chunk: int = 32
    precision: Precision = "bf16"

    def __post_init__(self) -> None:
        _require(self.temperature > 0, f"temperature {self.temperature}: must be positive")
        _require(self.top_k is None or self.top_k >= 1, f"top_k {self.top_k}: must be at least 1")
        _require(self.top_p is None or 0 < self.top_p <= 1, f"top_p {self.top_p}: must lie in (0, 1]")
        _require(self.chunk >= 1, f"chunk {self.chunk}: must be at least 1")


@dataclass(frozen=True)
class Sample:
    """Draw candidates for a caption, rank them, and write the best as a grid and a gallery.

    Args:
        caption: what to draw
        model: folder with `prior/`, `dvae/` and, for reranking, `clip/` in it
        output: folder of the gallery
        n: candidates
        keep: how many of the best are kept
        seed: of the first candidate; candidate i has seed + i
        rerank: rank by CLIP
        clip: reranker in place of the model's: a folder, or ARCHITECTURE:PRETRAINED of open_clip
        dvae: dVAE folder in place of the model's
        prior: prior folder in place of the model's
        prompt_image: an image whose top rows are kept
        rows: token rows kept of the prompt image
        sampling: temperature, filters, chunk, precision
    """

    caption: str
    model: str = "demo"
    output: str = "samples"
    n: int = 32
    keep: int = 16
    seed: int = 0
    rerank: bool = False
    clip: str | None = None
    dvae: str | None = None
    prior: str | None = None
    prompt_image: str | None = None
    rows: int = 0
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        _require(self.n >= 1, f"n {self.n}: must be at least 1")
        _require(self.keep >= 1, f"keep {self.keep}: must be at least 1")
        _require(bool(self.caption.strip()), "caption: is empty")
        _require(
            (self.prompt_image is None) == (self.rows == 0),
            "prompt_image and rows: an image prompt needs both, the file and how many token rows to keep",
        )


@dataclass(frozen=True)
class DrawShapes:
    """Write the drawn data set: captioned scenes of coloured shapes, as webdataset shards.

    Args:
        output: folder of the shards
        num_train: training drawings
        num_valid: validation drawings, of attribute combinations that training never shows
        size_px: side of a drawing, a multiple of 8
        seed: the same seed draws the same bytes
        workers: processes
    """

    output: str
    num_train: int = 20_000
    num_valid: int = 1_000
    size_px: int = 64
    seed: int = 0
    workers: int = 2


@dataclass(frozen=True)
class Demo:
    """The whole road on drawings: data, tokenizer, dVAE, tokens, prior, reranker, gallery, and how often the pictures
    show what the caption says.

    Args:
        output: folder of everything the demo makes
        captions: held-out captions that are drawn and judged
        candidates: drawn for each caption
        num_train: training drawings
        configs: folder of the demo's configurations
        seed: of data and sampling
    """

    output: str = "demo"
    captions: int = 128
    candidates: int = 32
    num_train: int = 20_000
    configs: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Describe:
    """Tell the parts of a configured model: shapes, parameter counts, and for a prior the mask of every layer.

    Args:
        config_file: a training configuration of a dVAE, prior or CLIP
        json: print JSON in place of tables
        tokenizer: for a CLIP on our own tokenizer, the tokenizer file
    """

    config_file: str
    json: bool = False
    tokenizer: str | None = None
