"""How training runs: schedules, optimiser, objectives, batches, images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from dalle.config.checks import at_least, require

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Schedule:
    """A value that changes with the update number: constant, ramped between two updates, with an optional warm-up.

    Args:
        start: value up to `begin_step`
        end: value from `end_step` on
        begin_step: update at which the change begins
        end_step: update at which `end` is reached; equal to `begin_step` for a constant, `start` and `end` alike
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
        require(
            0 <= self.begin_step <= self.end_step,
            f"begin_step {self.begin_step} and end_step {self.end_step}: need 0 <= begin_step <= end_step",
        )
        require(
            self.begin_step < self.end_step or self.start == self.end,
            f"end {self.end} with end_step {self.end_step}: would never be reached; give an end_step after begin_step "
            f"{self.begin_step}, or end {self.start} for a constant",
        )
        at_least(self, 0, "warmup_steps")

    def __call__(self, step: int) -> float:
        """The value for update `step`, counted from 0."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.end_step == self.begin_step:
            return self.start * warmup
        progress = min(1.0, max(0.0, (step - self.begin_step) / (self.end_step - self.begin_step)))
        if self.shape == "cosine":
            progress = 0.5 * (1.0 - math.cos(math.pi * progress))
        return (self.start + (self.end - self.start) * progress) * warmup


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

    def __post_init__(self) -> None:
        lowest = min(self.temperature.start, self.temperature.end)
        require(lowest > 0, f"temperature {lowest}: must be positive")


@dataclass(frozen=True)
class PriorObjective:
    """The joint cross-entropy (section 2.2).

    Args:
        text_weight: weight of the mean cross-entropy over text tokens; the image tokens get 1 − text_weight
    """

    text_weight: float = 1 / 8

    def __post_init__(self) -> None:
        require(0 <= self.text_weight <= 1, f"text_weight {self.text_weight}: must lie in [0, 1]")


@dataclass(frozen=True)
class Optimizer:
    """AdamW with decoupled weight decay. The defaults are the paper's for the dVAE (appendix A.3); for the prior it has
    beta2 0.96, weight_decay 4.5e-2 and clip_norm 4 (`configs/paper/12b.yaml`).

    Args:
        step_size: the learning rate
        beta1: decay of the running mean
        beta2: decay of the running variance
        epsilon: added to the root of the variance
        weight_decay: decoupled, times the step size
        clip_norm: largest global gradient norm; null clips nothing
        muon_step_size_factor: train the resblocks' matrices with Muon, its step size being this many times `step_size`
            (10 works); null (the paper) trains everything with AdamW. Ours: a training of minutes learns as much in
            half the updates. Needs whole matrices, so `run.zero_stage` has to be 0
    """

    step_size: Schedule
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    muon_step_size_factor: float | None = None

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"{name} {getattr(self, name)}: must lie in [0, 1)")
        at_least(self, 0, "weight_decay")
        require(self.epsilon > 0, f"epsilon {self.epsilon}: must be positive")
        require(self.clip_norm is None or self.clip_norm > 0, f"clip_norm {self.clip_norm}: must be positive, or null")
        require(
            self.muon_step_size_factor is None or self.muon_step_size_factor > 0,
            f"muon_step_size_factor {self.muon_step_size_factor}: must be positive, or null for AdamW alone",
        )


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
        recompute: compute the activations of a dVAE's groups of resblocks, or of a prior's layers, again in the backward
            pass: less memory for about a third more time
        compile: torch.compile the forward and backward pass; needs a C++ compiler on a CPU, and a minute at start
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
    recompute: bool = False
    compile: bool = False
    log_every_steps: int = 20
    validate_every_steps: int = 500
    validation_batches: int = 8
    checkpoint_every_minutes: float = 10.0
    keep_checkpoints: int = 2
    loader_workers: int = 1
    wandb: Wandb = field(default_factory=Wandb)

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "accumulation_steps")
        at_least(self, 1, "log_every_steps", "validation_batches", "keep_checkpoints")
        at_least(self, 0, "validate_every_steps", "checkpoint_every_minutes", "loader_workers", "seed")
        require(
            self.batch_size % self.accumulation_steps == 0,
            f"accumulation_steps {self.accumulation_steps}: must divide batch_size {self.batch_size}",
        )
        require(self.ema_decay is None or 0 <= self.ema_decay < 1, f"ema_decay {self.ema_decay}: must lie in [0, 1)")

    def micro_batch_size(self, world_size: int) -> int:
        """Samples that one of `world_size` processes takes at a time. Raises ValueError when the batch does not divide."""
        parts = world_size * self.accumulation_steps
        require(
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
        min_caption_chars: pairs with a shorter caption are filtered out, and those without one count as unreadable; 0
            takes these too, with the caption "": for stage one, which trains on images alone
        max_aspect_ratio: pairs with a longer side over this many shorter sides are filtered out
        max_bad_fraction: the run stops when more than this share of the samples cannot be read
        shuffle_buffer: samples among which the order is shuffled, over all streams, beside the order of the shards
        streams: shards read at the same time, over all processes, or fewer where they are few; the order of the data
            depends on it. Set it to at least processes × loader workers on a cluster, so that no two read the same shard
        cache_bytes: memory, over all loader workers of a process, for decoded and reduced images, so that small data
            sets are decoded once. Helps most with one worker of one process: among several, an image moves each epoch
    """

    augmentation: Literal["dvae", "prior", "none"] = "dvae"
    flip: bool = True
    min_caption_chars: int = 1
    max_aspect_ratio: float = 2.0
    max_bad_fraction: float = 0.05
    shuffle_buffer: int = 1000
    streams: int = 64
    cache_bytes: int = 0

    def __post_init__(self) -> None:
        require(self.max_aspect_ratio >= 1, f"max_aspect_ratio {self.max_aspect_ratio}: must be at least 1")
        require(0 <= self.max_bad_fraction <= 1, f"max_bad_fraction {self.max_bad_fraction}: must lie in [0, 1]")
        at_least(self, 0, "min_caption_chars", "shuffle_buffer", "cache_bytes")
        at_least(self, 1, "streams")
