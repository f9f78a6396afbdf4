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
    validation = _Validation(config, model, world.device) if config.valid_data else None
    return Stage(
        kind="dvae",
        objective=DVAEObjective(model),
        loader=loader,
        unit="images",
        units_per_sample=1,
        model_config=config.model,
        prepare=_schedules(config),
        validate=validation.figures if validation else None,
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
    """Held-out images: the true ELB with hard codes beside the relaxed one, the use of the codebook, reconstructions."""

    def __init__(self, config: TrainDVAE, model: DVAE, device: torch.device):
        self.config, self.model, self.device = config, model, device
        count = config.run.validation_batches * config.run.batch_size
        images = replace(config.images, augmentation="none", cache_bytes=0)
        pairs = itertools.islice(read_pairs(config.valid_data, images, config.model.image_size_px), count)
        self.images = [pair.image for pair in pairs]
        if not self.images:
            raise ValueError(f"valid_data {config.valid_data}: no sample can be used")

    def figures(self) -> dict[str, float]:
        totals: dict[str, float] = {}
        counts_K = torch.zeros(self.config.model.codebook_size, dtype=torch.int64, device=self.device)
        one = torch.ones((), device=self.device)
        for batch in self._batches():
            metrics, used_K = true_elb(self.model, batch, one)
            counts_K += used_K
            metrics["relaxed_elb"] = self._relaxed_elb(batch)
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(batch) / len(self.images)
        totals["elb_gap"] = (totals["relaxed_elb"] - totals["elb"]) / abs(totals["elb"])
        return {**totals, "codes_used": int((counts_K > 0).sum()), "perplexity": perplexity(counts_K).item()}

    def _relaxed_elb(self, batch: torch.Tensor) -> torch.Tensor:
        final = self.config.run.steps
        temperature = torch.tensor(self.config.objective.temperature(final), device=self.device)
        logits = self.model.logits(batch)
        z = gumbel_softmax(logits, temperature, torch.ones_like(temperature))
        mu, ln_b = self.model.likelihood_maps(z)
        return negative_elb(batch, logits, self.model.log_code_prior_K(), mu, ln_b, torch.ones_like(temperature))[1][
            "elb"
        ]

    def pictures(self) -> dict[str, Image.Image]:
        """Images above their reconstructions."""
        images = to_tensor(self.images[:_PICTURES]).to(self.device)
        back = (self.model.decode(self.model.encode(images)) * 255).round().to(torch.uint8)
        rows = [np.concatenate(list(t.permute(0, 2, 3, 1).cpu().numpy()), axis=1) for t in (images, back)]
        return {"reconstructions": Image.fromarray(np.concatenate(rows, axis=0))}

    def _batches(self) -> Iterator[torch.Tensor]:
        size = self.config.run.batch_size
        for first in range(0, len(self.images), size):
            yield to_tensor(self.images[first : first + size]).to(self.device)
