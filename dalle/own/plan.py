"""How large the models of somebody's own pictures are: from the amount of data, the machine and the minutes.

Each rule stands beside what was seen to work (`docs/emoji.md`, `docs/demo.md`, `docs/LOG.md`; two CPU cores whose bf16 matrix
products run at 300 to 920 GFLOP/s):

- **Images.** 32 px on 8×8 codes are learnt in minutes (the demo: 47 s for the dVAE at 920 GFLOP/s). 64 px on 16×16 codes of 512
  reach 22.5 dB on emoji after 2,000 updates of 16, 3 to 8 minutes; 128 px on 16×16 codes of 1,024 want 8,000 updates, an hour.
  256 px on 32×32 codes are the paper's and want a GPU. So the largest is taken whose dVAE gets its updates in its share of the
  time; none that would enlarge the pictures to more than 1.5 times their size.
- **Prior.** 1,000 pairs were known by heart after 38 passes of 6 layers of width 192. 12,406 pairs were not learnt by 7.66 M
  weights (8 layers of width 256) in 2 passes. So a prior is as wide as its pairs deserve, and no wider than what sees 20,000
  pairs in its share of the time, which is 40 passes over 500.
- **Shares of the time.** The emoji took 8, 22 and 3 minutes for dVAE, prior and reranker; the demo 47, 156 and 62 seconds.
- **Vocabulary.** 512 tokens for 30,000 captions of the demo's few words, 2,048 for 33,000 of emoji. BPE needs to have met a
  pair of symbols a few times, so it follows the number of words.
- **Codes.** A codebook larger than the pictures can fill has dead codes: emoji use 178 to 373 of 512.
- **Regularisers.** Caption dropout 0.1 makes guidance possible and costs little on emoji. Where so few pictures are seen so
  often that they are known by heart anyway, each is encoded with several crops: from 400 passes on, so that each crop is seen at
  least 200 times.

All functions are pure: the same facts make the same plan. With more pictures nothing becomes smaller; with more minutes images
do not, and of images of one size neither does the prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from dalle.config import CLIPModel, DVAEModel, PriorModel
from dalle.models import flops
from dalle.own.facts import Machine, Pictures

MINUTES = (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480)
"""Among which the time is chosen where nobody says it."""
SHARES = {"dvae": 0.28, "prior": 0.58, "clip": 0.14}
"""Of the time, by stage."""
PASSES = 40
"""Over the pairs, after which they were known by heart."""
_LEAST_PAIRS_SEEN = 20_000
_CPU_BATCH, _GPU_BATCH = 16, 64
_LEAST_CLIP_BATCH, _FEW_UPDATES = 16, 60
UTILISATION = {"dvae": 0.15, "prior": 0.45, "clip": 0.2}
"""Of the rate of large matrix products, as seen on two cores; what is expected until the updates are timed."""


@dataclass(frozen=True)
class _Rung:
    """Images of one size, and what they want.

    dvae: sizes, without the codebook. codes: most of the codebook. updates: of the dVAE's that make such images worth having.
    step_size: of the dVAE's.
    """

    dvae: dict
    codes: int
    updates: int
    step_size: float


_RUNGS = (
    _Rung({"image_size_px": 32, "encoder_width": 32, "width_multipliers": (1, 2, 4), "decoder_input_width": 96}, 256, 0, 4e-3),
    _Rung({"image_size_px": 64, "encoder_width": 32, "width_multipliers": (1, 2, 4), "decoder_input_width": 96}, 512, 900, 3e-3),
    _Rung({"image_size_px": 128, "encoder_width": 32, "width_multipliers": (1, 2, 4, 8), "decoder_input_width": 128}, 1024, 6000, 2e-3),
    _Rung({"image_size_px": 256, "encoder_width": 64, "width_multipliers": (1, 2, 4, 8), "decoder_input_width": 128}, 8192, 20_000, 1e-3),
)  # fmt: skip
_PRIORS = (
    (0, 128, 6),
    (50, 192, 6),
    (4_000, 256, 8),
    (30_000, 384, 12),
    (200_000, 512, 16),
    (1_000_000, 768, 20),
    (4_000_000, 1024, 24),
)
"""Least pairs, width and depth."""


@dataclass(frozen=True)
class Sizes:
    """What is trained.

    Args:
        dvae, prior, clip: the models
        dvae_step_size: at the beginning
        prior_step_size: at the beginning
        batch, clip_batch: samples of an update, over all devices
        vocabulary: of the tokenizer, at most
        clip_step_size: at the beginning
    """

    dvae: DVAEModel
    prior: PriorModel
    clip: CLIPModel
    dvae_step_size: float
    prior_step_size: float
    batch: int
    clip_batch: int
    vocabulary: int
    clip_step_size: float = 1e-3


def deserved_minutes(pictures: Pictures, machine: Machine, sizes: Sizes | None = None) -> int:
    """The time that these pictures deserve: the least of `MINUTES` in which the prior that it allows for makes 40 passes over
    them, or the most of it. sizes: of ready weights, which take a quarter of it."""
    for minutes in MINUTES:
        if sizes is not None:
            if 4 * _prior_samples(sizes.prior, machine, minutes) >= max(_LEAST_PAIRS_SEEN, PASSES * pictures.pairs):
                return minutes
            continue
        chosen = choose_sizes(pictures, machine, minutes)
        seen = _prior_samples(chosen.prior, machine, minutes)
        if seen >= max(_LEAST_PAIRS_SEEN, PASSES * pictures.pairs) and _is_as_wide_as_deserved(chosen.prior, pictures):
            return minutes
    return MINUTES[-1]


def choose_sizes(pictures: Pictures, machine: Machine, minutes: float) -> Sizes:
    """The sizes of all models.

    Args:
        pictures: what was found
        machine: what it is trained on
        minutes: that all of it may take
    """
    vocabulary, slots = choose_vocabulary(pictures), choose_text_slots(pictures)
    rung = _choose_rung(pictures, machine, minutes, slots)
    # so many as there are places for each code to be met a dozen times
    codes = _power_of_two_in(pictures.pairs * _dvae(rung, rung.codes).grid ** 2 / 12, 128, rung.codes)
    dvae = _dvae(rung, codes)
    width, depth = _choose_width(pictures, machine, minutes, _dvae(rung, rung.codes), slots)
    prior = PriorModel(slots, dvae.grid, vocabulary, codes, width, depth, width // 64)
    # 64 in a head; the larger the width the smaller the step, as widths of 128 and 192 took 2e-3 and 1.5e-3
    prior_step_size = min(2e-3, 2e-3 * math.sqrt(128 / prior.width))
    return Sizes(
        dvae,
        prior,
        choose_clip(dvae, slots),
        rung.step_size,
        prior_step_size,
        choose_batch(pictures, machine),
        choose_clip_batch(pictures, machine),
        vocabulary,
    )


def choose_batch(pictures: Pictures, machine: Machine) -> int:
    """Samples of an update: 16 on a CPU, where more take longer and learn little more, 64 on each GPU; fewer of few pictures."""
    return machine.devices * _power_of_two_in(pictures.pairs, 4, _CPU_BATCH if machine.is_cpu else _GPU_BATCH)


def choose_clip_batch(pictures: Pictures, machine: Machine) -> int:
    """Pairs among which the reranker finds the right one: as many as are quick, 128 on a CPU, 256 on each GPU."""
    return machine.devices * _power_of_two_in(pictures.pairs, 4, 128 if machine.is_cpu else 256)


def fit_clip_batch(sizes: Sizes, update_s: float, minutes: float) -> Sizes:
    """The same with fewer pairs at once for the reranker, where its share of the time would allow it but a few updates.

    update_s: seconds of an update of the batch that it has.
    """
    batch, part_s = sizes.clip_batch, 60 * minutes * SHARES["clip"]
    while (
        batch >= 2 * _LEAST_CLIP_BATCH
        and batch % 2 == 0
        and part_s < _FEW_UPDATES * update_s * batch / sizes.clip_batch
    ):
        batch //= 2
    return replace(sizes, clip_batch=batch)


def choose_vocabulary(pictures: Pictures) -> int:
    """A power of two that follows the number of words in all captions: emoji's 200,000 have 2,048 tokens."""
    words = pictures.pairs * pictures.captions_per_image * max(1.0, pictures.words_median)
    return _power_of_two_in(words / 100, 512, 16_384)


def choose_text_slots(pictures: Pictures) -> int:
    """Slots for a caption, a multiple of 16: for the longest one at three letters a token, but for no more than four times
    the words of the median caption, since a few long ones would make all of them slow; what is cut is said by the training."""
    tokens = min(pictures.longest_chars / 3, 4 * max(2.0, pictures.words_median)) + 2
    return min(256, max(16, 16 * math.ceil(tokens / 16)))


def choose_clip(dvae: DVAEModel, text_slots: int) -> CLIPModel:
    """A small reranker of the dVAE's images, of 8×8 patches, or so large that there are at most 16×16."""
    size_px = dvae.image_size_px
    patch_px = next((px for px in (8, 16, 32) if size_px % px == 0 and size_px // px <= 16), 8)
    if size_px % patch_px:
        patch_px = dvae.downsampling
    width, layers = (128, 3) if size_px <= 32 else (128, 4) if size_px <= 128 else (256, 6)
    return CLIPModel(
        image_size_px=size_px,
        patch_px=patch_px,
        vision_width=width,
        vision_layers=layers,
        text_width=width,
        text_layers=layers - 1,
        text_slots=text_slots + 2,  # with a start and an end of its own
        embedding_width=width,
    )


def expected_update_s(sizes: Sizes, machine: Machine) -> dict[str, float]:
    """Seconds of an update of each stage, by its operations, until it is timed."""
    clip_flops = _clip_flops(sizes.clip) + _dvae_flops(sizes.dvae)["encode"]  # half of the images go through the dVAE
    work = {
        "dvae": sizes.batch * _dvae_flops(sizes.dvae)["train"],
        "prior": sizes.batch * _prior_flops(sizes.prior),
        "clip": sizes.clip_batch * clip_flops,
    }
    return {stage: operations / (machine.flops_per_s * UTILISATION[stage]) for stage, operations in work.items()}


def _choose_rung(pictures: Pictures, machine: Machine, minutes: float, slots: int) -> _Rung:
    """The largest images for which there are pixels and time. What it costs does not depend on the number of pictures."""
    batch = machine.devices * (_CPU_BATCH if machine.is_cpu else _GPU_BATCH)
    for rung in reversed(_RUNGS[1:]):
        dvae = _dvae(rung, rung.codes)
        update_s = batch * _dvae_flops(dvae)["train"] / (machine.flops_per_s * UTILISATION["dvae"])
        if (
            1.5 * pictures.side_px >= dvae.image_size_px
            and 60 * minutes * SHARES["dvae"] >= rung.updates * update_s
            and _prior_samples(_reference_prior(slots, dvae, *_PRIORS[0][1:]), machine, minutes) >= _LEAST_PAIRS_SEEN
        ):
            return rung
    return _RUNGS[0]


def _choose_width(pictures: Pictures, machine: Machine, minutes: float, dvae: DVAEModel, slots: int) -> tuple[int, int]:
    """Width and depth of the prior."""
    chosen = _PRIORS[0][1:]
    for least_pairs, width, depth in _PRIORS:
        seen = _prior_samples(_reference_prior(slots, dvae, width, depth), machine, minutes)
        if pictures.pairs >= least_pairs and seen >= _LEAST_PAIRS_SEEN:
            chosen = width, depth
    return chosen


def _reference_prior(slots: int, dvae: DVAEModel, width: int, depth: int) -> PriorModel:
    """With a vocabulary that does not follow the number of captions, which would make more pictures a smaller prior."""
    return PriorModel(slots, dvae.grid, 2048, dvae.codebook_size, width, depth, width // 64)


def _is_as_wide_as_deserved(prior: PriorModel, pictures: Pictures) -> bool:
    return prior.width >= max(width for least_pairs, width, _ in _PRIORS if pictures.pairs >= least_pairs)


def _prior_samples(prior: PriorModel, machine: Machine, minutes: float) -> float:
    """Pairs that the prior sees in its share of the time."""
    return 60 * minutes * SHARES["prior"] * machine.flops_per_s * UTILISATION["prior"] / _prior_flops(prior)


def _dvae(rung: _Rung, codes: int) -> DVAEModel:
    """With what a training of minutes needs in place of the paper's: `configs/demo/dvae.yaml` tells why."""
    return DVAEModel(
        **rung.dvae,
        codebook_size=codes,
        blocks_per_group=1,
        post_gain=0.4444,
        init="he",
        logit_norm_gain=3.0,
        # a plain background is one code then, and a small prior has less to learn; larger images have priors that can
        code_prior="learned" if rung.dvae["image_size_px"] <= 64 else "uniform",
        min_ln_b=-1.0,
    )


def _clip_flops(model: CLIPModel) -> int:
    """Of training on a pair, roughly: six operations for each weight of the layers and each token."""
    vision = 12 * model.vision_width**2 * model.vision_layers * (model.image_size_px // model.patch_px) ** 2
    return 6 * (vision + 12 * model.text_width**2 * model.text_layers * model.text_slots)


@cache  # a plan asks for the same few again and again
def _dvae_flops(model: DVAEModel) -> dict[str, int]:
    return flops.dvae_flops(model)


@cache
def _prior_flops(model: PriorModel) -> int:
    return flops.prior_flops(model)


def _power_of_two_in(value: float, least: int, most: int) -> int:
    """The largest power of two up to a value, within limits that are powers of two themselves."""
    return least if value < least else min(most, 2 ** int(math.log2(value)))
