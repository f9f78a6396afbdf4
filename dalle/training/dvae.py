"""What training a dVAE consists of: data, schedules, validation, pictures, health of the codebook."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from dalle.config import TrainDVAE
from dalle.data.decoding import read_pairs
from dalle.data.pairs import PairBatches, PairLoader, to_tensor, warn_of_bad_samples
from dalle.evaluation.bicubic import bicubic_of_equal_size
from dalle.models.dvae import DVAE
from dalle.objectives.dvae import DVAEObjective, perplexity, psnr_db, uniform_noise, validation_elbs
from dalle.sampling.pipeline import to_pixels
from dalle.training.batchnorm import synchronised
from dalle.training.engine import derived_seed
from dalle.training.loop import Stage
from dalle.training.topology import World

_COLLAPSED_PERPLEXITY = 2.0
_FEW = 200
"""A perplexity under this part of the codebook, when a tenth of the training is done, is a collapse too."""
_PICTURES = 8


def stage(config: TrainDVAE, world: World) -> Stage:
    """Stage one, ready for the loop."""
    torch.manual_seed(config.run.seed)
    model = DVAE(config.model)
    if model.logit_norm is not None:
        model.logit_norm = synchronised(model.logit_norm, world)
    size_px = config.model.image_size_px
    batches = PairBatches(config.data, config.images, size_px, config.run, world.rank, world.size)
    loader = PairLoader(batches, config.run.loader_workers)
    bad_samples, codebook = warn_of_bad_samples(loader), _check_codebook(config)
    validation = _Validation(config, model, world.device) if world.is_main else None
    return Stage(
        kind="dvae",
        objective=DVAEObjective(model),
        loader=loader,
        unit="images",
        units_per_sample=1,
        model_config=config.model,
        prepare=_schedules_and_noise(config),
        validate=validation.figures if validation and config.valid_data else None,
        draw=validation.pictures if validation else None,
        highlights=("psnr_db", "perplexity", "codes_used", "kl_per_position_nats"),
        check=lambda step, values: bad_samples(step, values) + codebook(step, values),
    )


def _schedules_and_noise(config: TrainDVAE) -> Callable[[list[dict], int, World], None]:
    def prepare(micro_batches: list[dict], step: int, world: World) -> None:
        # numbered over all processes, so that each image has the same noise whoever trains on it
        row = world.rank * config.run.batch_size // world.size
        for batch in micro_batches:
            for name in ("kl_weight", "temperature", "noise_scale"):
                value = getattr(config.objective, name)(step)
                batch[name] = torch.full((), value, device=world.device)  # unlike a copy from here, nothing waits
            rows = range(row, row + len(batch["images_BCYX"]))
            seeds = [derived_seed(config.run.seed, step, number) for number in rows]
            batch["uniform_BYXK"] = uniform_noise(config.model, seeds, world.device)
            row = rows.stop

    return prepare


def _check_codebook(config: TrainDVAE) -> Callable[[int, dict[str, float]], list[str]]:
    """A collapse begins in the first hundred updates; one that comes later leaves a small share of the codebook."""
    few = config.model.codebook_size / _FEW

    def check(step: int, values: dict[str, float]) -> list[str]:
        least = max(_COLLAPSED_PERPLEXITY, few) if step > config.run.steps / 10 else _COLLAPSED_PERPLEXITY
        if step <= 100 or values["perplexity"] >= least:
            return []
        return [
            f"the codebook has collapsed: perplexity {values['perplexity']:.1f} of {config.model.codebook_size} codes. "
            "Lower optimizer.step_size, let objective.kl_weight grow later and more slowly, or set model.logit_norm_gain "
            "(3 works) and model.min_ln_b"
        ]

    return check


class _Validation:
    """Held-out images: the true ELB with hard codes beside the relaxed one, the use of the codebook, reconstructions.
    Without held-out shards a few training images, for reconstructions alone."""

    def __init__(self, config: TrainDVAE, model: DVAE, device: torch.device):
        self.config, self.model, self.device = config, model, device
        count = config.run.validation_batches * config.run.batch_size if config.valid_data else _PICTURES
        images = replace(config.images, augmentation="none", cache_bytes=0)
        shards = config.valid_data or config.data
        pairs = itertools.islice(read_pairs(shards, images, config.model.image_size_px), count)
        self.images = [pair.image for pair in pairs]
        if not self.images:
            raise ValueError(f"{shards}: no sample can be used (see `images`)")

    def figures(self) -> dict[str, float]:
        totals: dict[str, float] = {}
        counts_K = torch.zeros(self.config.model.codebook_size, dtype=torch.int64, device=self.device)
        temperature = torch.tensor(self.config.objective.temperature(self.config.run.steps), device=self.device)
        for images_BCYX in self._batches():
            metrics, used_K = validation_elbs(self.model, images_BCYX, temperature)
            metrics |= self._bicubic_psnr(images_BCYX)
            counts_K += used_K
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(images_BCYX) / len(self.images)
        totals["elb_gap"] = (totals["relaxed_elb"] - totals["elb"]) / abs(totals["elb"])
        return {**totals, "codes_used": int((counts_K > 0).sum()), "perplexity": perplexity(counts_K).item()}

    def _bicubic_psnr(self, images_BCYX: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a small picture of as many bits reaches: the least that codes should do."""
        model = self.config.model
        bits = model.grid**2 * math.log2(model.codebook_size)
        enlarged_BCYX = bicubic_of_equal_size(images_BCYX, model.downsampling, bits)
        return {} if enlarged_BCYX is None else {"bicubic_psnr_db": psnr_db(images_BCYX, enlarged_BCYX)}

    def pictures(self) -> dict[str, Image.Image]:
        """Images above their reconstructions."""
        images = self.images[:_PICTURES]
        back_BYXC = to_pixels(self.model.decode(self.model.encode(to_tensor(images).to(self.device))))
        return {"reconstructions": Image.fromarray(np.vstack([np.hstack(images), np.hstack(back_BYXC)]))}

    def _batches(self) -> Iterator[torch.Tensor]:
        size = self.config.run.batch_size
        for first in range(0, len(self.images), size):
            yield to_tensor(self.images[first : first + size]).to(self.device)
