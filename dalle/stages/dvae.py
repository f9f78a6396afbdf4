"""What training a dVAE consists of: data, schedules, validation, pictures, health of the codebook."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image

from dalle.cluster.sync_batchnorm import synchronised
from dalle.cluster.topology import World
from dalle.config import TrainDVAE
from dalle.data.counts import Counts
from dalle.data.pairs import PairBatches, PairLoader, to_tensor
from dalle.data.samples import read_pairs
from dalle.evaluation.bicubic import bicubic_of_equal_size
from dalle.models.dvae import DVAE
from dalle.models.flops import dvae_flops
from dalle.models.likelihood import to_pixels
from dalle.objectives.dvae import (
    DecoderObjective,
    DVAEObjective,
    code_counts,
    perplexity,
    psnr_db,
    reconstruction_of_codes,
    uniform_noise,
    validation_figures,
)
from dalle.reporting.page.codebook import codebook_picture
from dalle.stages.starting import start_of
from dalle.training.seeds import derived_seed
from dalle.training.stage import Stage

_COLLAPSED_PERPLEXITY = 2.0
_LEAST_SHARE = 1 / 200
"""A perplexity under this share of the codebook is a collapse too, once training is under way."""
_FIRST_STEPS, _UNDER_WAY_STEPS = 100, 5000
_PICTURES = 8
_VALIDATION_BATCH_SIZE = 8
_BICUBIC_FACTORS = (4, 8)


def stage(config: TrainDVAE, world: World) -> Stage:
    """Stage one, or its decoder alone, ready for the loop."""
    start = start_of(config, "dvae", world)
    torch.manual_seed(config.run.seed)
    model = DVAE(config.model)
    if model.logit_norm is not None:
        model.logit_norm = synchronised(model.logit_norm, world)
    if config.freeze:
        model.freeze_encoder()
    size_px = config.model.image_size_px
    batches = PairBatches(config.data, config.images, size_px, config.run, world.rank, world.size)
    loader = PairLoader(batches, config.run.loader_workers)
    validation = _Validation(config, model, world.device) if world.is_main else None
    common = Stage(
        kind="dvae",
        objective=DecoderObjective(model) if config.freeze else DVAEObjective(model),
        loader=loader,
        unit="images",
        units_per_sample=1,
        data=batches.shards,
        model_config=config.model,
        flops_per_sample=dvae_flops(config.model)["train_decoder" if config.freeze else "train"],
        validate=validation.figures if validation and config.valid_data else None,
        draw=validation.pictures if validation else None,
        start=start,
        links=start.links if start else {},
        trained_on=f"{len(batches.shards)} shards of pairs",
        derive=_use_of_codes,
        samples=lambda: {"data": loader.counts} | (validation.samples if validation else {}),
    )
    if config.freeze:  # what the codes are does not change, so nobody has to make them again, or watch over them
        return replace(
            common,
            highlights=("psnr_db",),
            next_command=f'dalle-sample --model MODEL --dvae {config.output} "CAPTION"',
        )
    return replace(
        common,
        prepare=_schedules_and_noise(config, batches.first_row),
        next_command=f"dalle-tokenize --data '{config.data}' --dvae {config.output} --output TOKENS",
        highlights=("psnr_db", "perplexity", "codes_used", "kl_per_position_nats"),
        check=_check_codebook(config),
    )


def _schedules_and_noise(config: TrainDVAE, first_row: int) -> Callable[[list[dict], int, World], None]:
    schedules = config.objective.over(config.run.steps)

    def prepare(micro_batches: list[dict], step: int, world: World) -> None:
        # numbered over all processes, so that each image has the same noise whoever trains on it
        row = first_row
        for batch in micro_batches:
            for name, schedule in schedules.items():
                # unlike a copy from here, nothing waits
                batch[name] = torch.full((), schedule(step), device=world.device)
            rows = range(row, row + len(batch["images_BCYX"]))
            seeds = [derived_seed(config.run.seed, step, number) for number in rows]
            batch["uniform_BYXK"] = partial(uniform_noise, config.model, seeds, world.device)
            row = rows.stop

    return prepare


def _use_of_codes(vectors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    use_K = vectors["code_use_K"]
    return {"perplexity": perplexity(use_K), "codes_used": (use_K > 0).sum().where(use_K[0].isfinite(), torch.nan)}


def _check_codebook(config: TrainDVAE) -> Callable[[int, dict[str, float]], list[str]]:
    """Warns of a collapse: at once of one to a code or two; of one to a small share of the codebook when training is under
    way. Again only when it has gone on for twice as long."""
    under_way = min(config.run.steps / 10, _UNDER_WAY_STEPS)
    share = _LEAST_SHARE * config.model.codebook_size
    told_at = 0

    def check(step: int, values: dict[str, float]) -> list[str]:
        nonlocal told_at
        least = max(_COLLAPSED_PERPLEXITY, share) if step > under_way else _COLLAPSED_PERPLEXITY
        if step <= _FIRST_STEPS or values["perplexity"] >= least:
            told_at = 0
            return []
        if step < 2 * told_at:
            return []
        told_at = step
        return [
            f"the codebook has collapsed: perplexity {values['perplexity']:.1f} of {config.model.codebook_size} codes. "
            "Lower optimizer.step_size, let objective.kl_weight grow later and more slowly, or set model.logit_norm_gain "
            "(3 works) and model.min_ln_b"
        ]

    return check


class _Validation:
    """Held-out images: the true ELB with hard codes beside the relaxed one, the use of the codebook, reconstructions.
    Without held-out shards a few training images, for pictures alone."""

    def __init__(self, config: TrainDVAE, model: DVAE, device: torch.device):
        self.config, self.model, self.device = config, model, device
        count = config.run.validation_batches * config.run.batch_size if config.valid_data else _PICTURES
        images = replace(config.images, augmentation="none", cache_bytes=0)
        shards = config.valid_data or config.data
        counts = Counts()
        pairs = itertools.islice(read_pairs(shards, images, config.model.image_size_px, counts=counts), count)
        self.images = [pair.image for pair in pairs]
        self.samples = {"valid_data": counts} if config.valid_data else {}
        self.use_K: torch.Tensor | None = None

    def figures(self) -> dict[str, float]:
        model = self.config.model
        totals: dict[str, float] = {}
        counts_K = torch.zeros(model.codebook_size, dtype=torch.int64, device=self.device)
        steps = self.config.run.steps
        temperature = torch.full((), self.config.objective.over(steps)["temperature"](steps), device=self.device)
        first = 0
        for images_BCYX in self._batches():
            seeds = range(first, first + len(images_BCYX))
            if self.config.freeze:
                _, metrics, used_K = reconstruction_of_codes(self.model, images_BCYX)
            else:
                noise_BYXK = uniform_noise(model, seeds, self.device)
                metrics, used_K = validation_figures(self.model, images_BCYX, noise_BYXK, temperature)
            counts_K += used_K
            for name, value in (metrics | self._bicubic(images_BCYX)).items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(images_BCYX) / len(self.images)
            first = seeds.stop
        if not self.config.freeze:
            totals["elb_gap_nats"] = totals["relaxed_elb"] - totals["elb"]
            totals["elb_gap"] = totals["elb_gap_nats"] / abs(totals["elb"])
        self.use_K = counts_K
        return {**totals, "codes_used": int((counts_K > 0).sum()), "perplexity": perplexity(counts_K).item()}

    def _bicubic(self, images_BCYX: torch.Tensor) -> dict[str, torch.Tensor]:
        """What small pictures of as many bits reach: the least that codes should do."""
        model = self.config.model
        bits = model.grid**2 * math.log2(model.codebook_size)
        found = {}
        for factor in _BICUBIC_FACTORS:
            enlarged_BCYX = bicubic_of_equal_size(images_BCYX, factor, bits)
            if enlarged_BCYX is not None:
                found[f"bicubic_{factor}x_psnr_db"] = psnr_db(images_BCYX, enlarged_BCYX)
        return found

    def pictures(self) -> dict[str, Image.Image]:
        """Images above their reconstructions; the use of the codebook, where it may change, by all images that were validated."""
        images = self.images[:_PICTURES]
        codes_BYX = self.model.encode(to_tensor(images).to(self.device))
        back_BYXC = to_pixels(self.model.decode(codes_BYX))
        shown = {"reconstructions": Image.fromarray(np.vstack([np.hstack(images), np.hstack(list(back_BYXC))]))}
        if self.config.freeze:
            return shown
        use_K = code_counts(codes_BYX, self.config.model.codebook_size) if self.use_K is None else self.use_K
        return {**shown, "codebook": codebook_picture(use_K.cpu().numpy())}

    def _batches(self) -> Iterator[torch.Tensor]:
        for first in range(0, len(self.images), _VALIDATION_BATCH_SIZE):
            yield to_tensor(self.images[first : first + _VALIDATION_BATCH_SIZE]).to(self.device)
