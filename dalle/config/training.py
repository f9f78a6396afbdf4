"""How training runs: schedules, optimiser, objectives, batches, images."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any, Literal

from dalle.config.checks import MOST_UPDATES, at_least, at_most, require

Precision = Literal["fp32", "bf16"]

_SHARE = re.compile(r"(100|\d?\d(\.\d+)?)%")
_FINE = 10**9
"""Updates of a run in which no two shares fall on one update."""
MOST_PIXELS = 178_956_970
"""Of an image that Pillow opens at all."""


@dataclass(frozen=True)
class Schedule:
    """A value that changes with the update number: constant, ramped between two updates, with an optional warm-up.

    Where it is ramped is said in updates, as the paper does, or as a share of the run, "70%", which follows `run.steps`.

    Args:
        start: value up to `begin_step`
        end: value from `end_step` on
        begin_step: update at which the change begins, or the share of the run
        end_step: update at which `end` is reached, or the share of the run, "100%" for all of it; equal to `begin_step` for a
            constant, `start` and `end` alike
        shape: "cosine" (the paper's, appendix A.2), "linear", "exponential", the same factor in each update, or "halving": halved at
            equal intervals, as StackGAN is trained, so often that `end` is reached at `end_step`
        warmup_steps: number of first updates, or share of the run, over which the value is also multiplied by a factor that
            grows linearly to 1
    """

    start: float
    end: float
    begin_step: int | str = 0
    end_step: int | str = 0
    shape: Literal["cosine", "linear", "exponential", "halving"] = "cosine"
    warmup_steps: int | str = 0

    def __post_init__(self) -> None:
        for name in ("begin_step", "end_step", "warmup_steps"):
            value = getattr(self, name)
            written = isinstance(value, int) or _SHARE.fullmatch(value)
            require(bool(written), f"{name} {value}: must be a number of updates, or a share of the run such as 70%")
        ramp = SimpleNamespace(**self._in_updates(_FINE))
        at_most(ramp, MOST_UPDATES, "begin_step", "end_step", "warmup_steps")
        require(
            0 <= ramp.begin_step <= ramp.end_step,
            f"begin_step {self.begin_step} and end_step {self.end_step}: need 0 <= begin_step <= end_step",
        )
        require(
            ramp.begin_step < ramp.end_step or self.start == self.end,
            f"end {self.end} with end_step {self.end_step}: would never be reached; give an end_step after begin_step "
            f"{self.begin_step}, or end {self.start} for a constant",
        )
        at_least(ramp, 0, "warmup_steps")
        if self.shape == "halving" and self.start != self.end:
            halvings = math.log2(self.start / self.end) if self.start * self.end > 0 else 0.0
            require(
                halvings >= 1 and abs(halvings - round(halvings)) < 1e-6,
                f"end {self.end} with shape halving: must be start {self.start} halved a whole number of times",
            )
        require(
            self.shape != "exponential" or min(self.start, self.end) > 0,
            f"start {self.start} and end {self.end}: both must be positive for an exponential shape",
        )

    def over(self, run_steps: int) -> Schedule:
        """The same, all in updates, in a run of `run_steps`."""
        if not self.has_shares:
            return self
        steps = self._in_updates(run_steps)
        if self.start != self.end:  # in a run too short for the ramp it is a step
            steps["end_step"] = max(steps["end_step"], 1 + steps["begin_step"])
        ramp: dict[str, Any] = {**steps}
        return replace(self, **ramp)

    def _in_updates(self, run_steps: int) -> dict[str, int]:
        told = {name: getattr(self, name) for name in ("begin_step", "end_step", "warmup_steps")}
        return {n: round(float(v[:-1]) / 100 * run_steps) if isinstance(v, str) else v for n, v in told.items()}

    def _updates(self) -> tuple[int, int, int]:
        begin, end, warmup = self.begin_step, self.end_step, self.warmup_steps
        assert isinstance(begin, int) and isinstance(end, int) and isinstance(warmup, int), "`over` first"
        return begin, end, warmup

    @property
    def has_shares(self) -> bool:
        """Whether it follows the run's length."""
        return any(isinstance(value, str) for value in (self.begin_step, self.end_step, self.warmup_steps))

    def unreached(self, run_steps: int) -> str | None:
        """What of it lies beyond the end of a run of `run_steps`, in a sentence; null where nothing does."""
        ramp = self.over(run_steps)
        _, end_step, warmup_steps = ramp._updates()
        if end_step > run_steps:
            at = f"this run ends at {run_steps} with {ramp(run_steps):.3g}"
            return f"end {self.end:g} would be reached at update {end_step}; {at}"
        if warmup_steps > run_steps:
            return f"the warm-up takes {warmup_steps} updates; this run ends at {run_steps}"
        return None

    def __call__(self, step: int) -> float:
        """The value for update `step`, counted from 0. Of shares `over` makes updates first."""
        begin_step, end_step, warmup_steps = self._updates()
        warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        if end_step == begin_step:
            return self.start * warmup
        progress = min(1.0, max(0.0, (step - begin_step) / (end_step - begin_step)))
        if self.shape == "halving":
            halvings = round(math.log2(self.start / self.end))
            return self.start * 0.5 ** math.floor(progress * halvings) * warmup
        if self.shape == "cosine":
            progress = 0.5 * (1.0 - math.cos(math.pi * progress))
        elif self.shape == "exponential":
            return self.start * (self.end / self.start) ** progress * warmup
        return (self.start + (self.end - self.start) * progress) * warmup


@dataclass(frozen=True)
class DVAEObjective:
    """The relaxed evidence lower bound (appendix A.2).

    Args:
        kl_weight: β, the weight of the KL divergence
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

    def over(self, run_steps: int) -> dict[str, Schedule]:
        """The schedules by name, in updates of a run of `run_steps`."""
        return {f.name: getattr(self, f.name).over(run_steps) for f in fields(self)}


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
class Plateau:
    """Lower the step size whenever the training loss no longer falls (appendix B.2; when, the paper leaves to the eye).

    The loss is averaged over windows of updates; when the best window is `patience_windows` old, the step size is
    multiplied by `factor`. Nothing happens before the warm-up has ended.

    Args:
        window_steps: updates of a window
        patience_windows: windows without a new best before the step size is lowered
        threshold: a window is the best so far only if its mean loss lies below the best by this share of it
        factor: what the step size is multiplied by
        max_reductions: how often at most; 5 in the paper
    """

    window_steps: int = 1_000
    patience_windows: int = 10
    threshold: float = 1e-3
    factor: float = 0.5
    max_reductions: int = 5

    def __post_init__(self) -> None:
        at_least(self, 1, "window_steps", "patience_windows", "max_reductions", most=MOST_UPDATES)
        require(0 <= self.threshold < 1, f"threshold {self.threshold}: must lie in [0, 1)")
        require(0 < self.factor < 1, f"factor {self.factor}: must lie between 0 and 1")


@dataclass(frozen=True)
class Optimizer:
    """AdamW with decoupled weight decay. The defaults are the paper's for the dVAE (appendix A.3); for the prior it has
    beta2 0.96, weight_decay 4.5e-2 and clip_norm 4 (`configs/paper/12b.yaml`).

    Args:
        step_size: the learning rate
        method: "adamw", or "rmsprop" (the char-CNN-RNN's): no running mean, so beta1 is 0, no correction of the variance's
            beginning, and no weight decay
        beta1: decay of the running mean
        beta2: decay of the running variance
        epsilon: added to the root of the variance
        weight_decay: decoupled weight decay, times the step size
        clip_norm: largest global gradient norm; null clips nothing
        muon_step_size_factor: train the resblocks' matrices with Muon, its step size being this many times `step_size`
            (10 works); null (the paper) trains everything with AdamW. Ours: a training of minutes learns as much in
            half the updates. Needs whole matrices, so `run.zero_stage` has to be 0
        moments: format of the running mean and variance of the resblocks' matrices: "fp32", or "16-bit", which are the
            paper's 1-6-9 and 0-6-10 (4 bytes a parameter in place of 8)
        variance_limit: the running variance is clipped at this value before use (5 in the paper); null clips nothing
        plateau: lower the step size when the loss no longer falls; null follows `step_size` alone
    """

    step_size: Schedule
    method: Literal["adamw", "rmsprop"] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    muon_step_size_factor: float | None = None
    moments: Literal["fp32", "16-bit"] = "fp32"
    variance_limit: float | None = None
    plateau: Plateau | None = None

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"{name} {getattr(self, name)}: must lie in [0, 1)")
        at_least(self, 0, "weight_decay")
        at_least(self, 1e-30, "epsilon")  # fp32 may hold less as 0, and where a gradient is 0 it is what is divided by
        at_least(self.step_size, 0, "start", "end", most=1000)  # AdamW changes a weight by about so much in an update
        largest = max(self.step_size.start, self.step_size.end) * max(1.0, self.muon_step_size_factor or 1.0)
        require(
            self.weight_decay * largest <= 1,
            f"weight_decay {self.weight_decay}: times {largest:g}, the largest step size, is over 1, so that an update takes more "
            "than all of a weight; lower one of them",
        )
        for name in ("clip_norm", "variance_limit"):
            limit = getattr(self, name)
            require(limit is None or limit > 0, f"{name} {limit}: must be positive, or null")
        require(
            self.muon_step_size_factor is None or self.muon_step_size_factor > 0,
            f"muon_step_size_factor {self.muon_step_size_factor}: must be positive, or null for AdamW alone",
        )
        require(
            self.muon_step_size_factor is None or self.moments == "fp32",
            f"moments {self.moments} with muon_step_size_factor: Muon keeps its momentum in fp32; set moments to fp32",
        )
        require(
            self.moments == "fp32" or max(self.beta1, self.beta2) < 0.999,
            f"moments {self.moments} with beta1 {self.beta1} and beta2 {self.beta2}: 16 bits cannot hold a decay as slow as "
            "0.999; lower them (the paper's beta2 is 0.96), or set moments to fp32",
        )
        for name, plain in (
            ("beta1", 0),
            ("weight_decay", 0),
            ("muon_step_size_factor", None),
            ("moments", "fp32"),
            ("variance_limit", None),
        ):
            found = getattr(self, name)
            require(
                self.method != "rmsprop" or found == plain,
                f"{name} {found} with method rmsprop, which has none: set it to {'null' if plain is None else plain}",
            )

    @property
    def name(self) -> str:
        """What updates the weights, as a checkpoint calls it."""
        if self.method == "rmsprop":
            return "RMSprop"
        return "AdamW" if self.muon_step_size_factor is None else "Muon"


@dataclass(frozen=True)
class Images:
    """Which pairs are kept and how their images are prepared.

    Args:
        augmentation: "dvae" (appendix A.2: random square, random size, random crop, flip), "prior" (appendix B.2:
            near-central crop, no flip), "clip" (open_clip's: a crop of 90 to 100% of the area, brought to a square) or "none"
            (short side to size, centre crop)
        flip: allow the horizontal flip of "dvae"; off where left and right are in the caption
        min_caption_chars: pairs with a shorter caption are filtered out, and those without one count as broken; 0
            takes these too, with the caption "": for stage one, which trains on images alone
        max_aspect_ratio: pairs with a longer side over this many shorter sides are filtered out
        max_pixels: an image of more, by its header, is left out and not decoded, which takes at least four bytes a pixel;
            the default is the number from which Pillow warns of decompression bombs
        max_bad_fraction: the run stops when more than this share of the samples is broken
        shuffle_buffer: samples among which the order is shuffled, over all streams, beside the order of the shards
        streams: shards read at the same time, over all processes, or fewer where they are few; the order of the data
            depends on it. Set it to at least processes × loader workers on a cluster, so that no two read the same shard
        cache_bytes: memory, over all loader workers of a process, for decoded and reduced images, so that small data
            sets are decoded once. Helps most with one worker of one process: among several, an image moves each epoch
        pipes: let the shards be named by `pipe:` and a shell command, which writes a tar
    """

    augmentation: Literal["dvae", "prior", "clip", "none"] = "dvae"
    flip: bool = True
    min_caption_chars: int = 1
    max_aspect_ratio: float = 2.0
    max_pixels: int = 89_478_485
    max_bad_fraction: float = 0.05
    shuffle_buffer: int = 1000
    streams: int = 64
    cache_bytes: int = 0
    pipes: bool = False

    def __post_init__(self) -> None:
        require(self.max_aspect_ratio >= 1, f"max_aspect_ratio {self.max_aspect_ratio}: must be at least 1")
        require(
            0 < self.max_pixels <= MOST_PIXELS,
            f"max_pixels {self.max_pixels}: must lie between 1 and {MOST_PIXELS}, the most that Pillow opens",
        )
        require(0 <= self.max_bad_fraction <= 1, f"max_bad_fraction {self.max_bad_fraction}: must lie in [0, 1]")
        at_least(self, 0, "min_caption_chars", "shuffle_buffer", most=2**31)
        at_least(self, 0, "cache_bytes", most=10**15)
        at_least(self, 1, "streams", most=2**31)
