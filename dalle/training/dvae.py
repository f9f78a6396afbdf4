"""What training a dVAE consists of: data, schedules, validation, pictures, health of the codebook."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from dalle.config import TrainDVAE
from dalle.data.pairs import PairBatches, PairLoader, read_pairs, to_tensor, warn_of_bad_samples
from dalle.models.dvae import DVAE
from dalle.objectives.dvae import DVAEObjective, gumbel_softmax, negative_elb, perplexity, true_elb
from dalle.sampling.pipeline import to_pixels
from dalle.training.loop import Stage
from dalle.training.topology import World

_COLLAPSED_PERPLEXITY = 2.0
_PICTURES = 8


def stage(config: TrainDVAE, world: World) -> Stage:
    """Stage one, ready for the loop."""
    torch.manual_seed(config.run.seed)
    model = DVAE(config.model)
    size_px = config.model.image_size_px
    batch_size = config.run.micro_batch_size(world.size)
    batches = PairBatches(config.data, config.images, size_px, batch_size, config.run.seed, world.rank, world.size)
    loader = PairLoader(batches, config.run.loader_workers)
    bad_samples = warn_of_bad_samples(loader)
    validation = _Validation(config, model, world.device) if world.is_main else None
    return Stage(
        kind="dvae",
        objective=DVAEObjective(model),
        loader=loader,
        unit="images",
        units_per_sample=1,
        model_config=config.model,
        prepare=_schedules(config),
        validate=validation.figures if validation and config.valid_data else None,
        draw=validation.pictures if validation else None,
        check=lambda step, values: bad_samples(step, values) + _check_codebook(step, values),
    )


def _schedules(config: TrainDVAE) -> Callable[[list[dict], int, World], None]:
    def prepare(micro_batches: list[dict], step: int, world: World) -> None:
        for batch in micro_batches:
            for name in ("kl_weight", "temperature", "noise_scale"):
                value = getattr(config.objective, name)(step)
                batch[name] = torch.tensor(value, dtype=torch.float32, device=world.device)

    return prepare


def _check_codebook(step: int, values: dict[str, float]) -> list[str]:
    if step > 100 and values["perplexity"] < _COLLAPSED_PERPLEXITY:
        return [
            f"the codebook has collapsed: perplexity {values['perplexity']:.1f}. Lower optimizer.step_size, let "
            "objective.kl_weight grow later and more slowly, or set model.logit_norm_gain (3 works) and model.min_ln_b"
        ]
    return []


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
        one = torch.ones((), device=self.device)
        for images_BCYX in self._batches():
            metrics, used_K = true_elb(self.model, images_BCYX, one)
            counts_K += used_K
            metrics["relaxed_elb"] = self._relaxed_elb(images_BCYX)
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(images_BCYX) / len(self.images)
        totals["elb_gap"] = (totals["relaxed_elb"] - totals["elb"]) / abs(totals["elb"])
        return {**totals, "codes_used": int((counts_K > 0).sum()), "perplexity": perplexity(counts_K).item()}

    def _relaxed_elb(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        final = self.config.run.steps
        temperature = torch.tensor(self.config.objective.temperature(final), device=self.device)
        one = torch.ones_like(temperature)
        logits_BKYX = self.model.logits(images_BCYX)
        mu_BCYX, ln_b_BCYX = self.model.likelihood_maps(gumbel_softmax(logits_BKYX, temperature, one))
        prior_K = self.model.log_code_prior_K()
        return negative_elb(images_BCYX, logits_BKYX, prior_K, mu_BCYX, ln_b_BCYX, one)[1]["elb"]

    def pictures(self) -> dict[str, Image.Image]:
        """Images above their reconstructions."""
        images = self.images[:_PICTURES]
        back_BYXC = to_pixels(self.model.decode(self.model.encode(to_tensor(images).to(self.device))))
        return {"reconstructions": Image.fromarray(np.vstack([np.hstack(images), np.hstack(back_BYXC)]))}

    def _batches(self) -> Iterator[torch.Tensor]:
        size = self.config.run.batch_size
        for first in range(0, len(self.images), size):
            yield to_tensor(self.images[first : first + size]).to(self.device)
