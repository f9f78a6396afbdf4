"""What training a prior consists of: token shards, the count of text targets over all ranks, validation, samples."""

from __future__ import annotations

import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dalle.cluster.topology import World
from dalle.config import Sampling, TrainPrior
from dalle.config.training import Precision
from dalle.data.tokens import TokenBatches, TokenLoader, TokenShards
from dalle.models.flops import prior_flops
from dalle.models.folder import Weightless, check_link, codes_hash, load_dvae
from dalle.models.likelihood import to_pixels
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective
from dalle.reporting.best_of import FOLDER
from dalle.sampling.drawing import Drawing
from dalle.sampling.grid import make_grid
from dalle.sampling.model_set import Tuning
from dalle.sampling.pipeline import Pipeline
from dalle.stages.best_of.mixture import Mixture
from dalle.stages.cut_captions import CutCaptions
from dalle.stages.starting import start_of
from dalle.text import CaptionWarning, Tokenizer
from dalle.training import weights16
from dalle.training.engine import sharded_construction
from dalle.training.stage import Stage

_DRAWN_CAPTIONS = 4
_DRAWN_PER_CAPTION = 4
_LOOKED_AT = 1000
"""Pairs among which those that are drawn are looked for: some may have no caption."""


def stage(config: TrainPrior, world: World) -> Stage:
    """Stage two, ready for the loop."""
    tokenizer = Tokenizer.load(config.tokenizer)
    # one rank looks whether they are there: with many it would be millions of calls, and opening them tells it as well
    shards = TokenShards(config.data, look=world.is_main)
    valid_shards = TokenShards(config.valid_data, look=world.is_main) if config.valid_data else None
    _check(config, shards, valid_shards, tokenizer)
    links = {"dvae_hash": shards.meta.dvae_hash, "tokenizer_hash": tokenizer.hash}
    start = start_of(config, "prior", world, links)
    if config.run.weights == "16-bit":
        with Weightless(), torch.device("meta"):  # told before minutes are spent on values
            weights16.check(Prior(config.model), config.run, world.device)
    torch.manual_seed(config.run.seed)
    with sharded_construction(config.run, world):
        model = Prior(config.model)
    objective = PriorObjective(model, config.objective)
    batch_size = config.run.micro_batch_size(world.size)
    learned: TokenShards | Mixture = shards
    trained_on, facts = f"{len(shards):,} pairs", {}
    if config.best_of is not None:
        kept = TokenShards(Path(config.output) / FOLDER, look=world.is_main)
        learned = Mixture(shards, kept, config.best_of.share)
        trained_on += f", and {config.best_of.share:.0%} on {len(kept):,} of its own candidates"
        facts = {"best_of_share": str(config.best_of.share)}
    batches = TokenBatches(
        learned,
        tokenizer,
        config.model.caption_tokens,
        batch_size,
        config.run.seed,
        bpe_dropout=config.bpe_dropout,
        caption_dropout=config.caption_dropout,
        rank=world.rank,
        world_size=world.size,
    )
    validation = _Validation(config, objective, tokenizer, valid_shards or shards, world)
    samples = {"data": shards.meta.counts} | ({"valid_data": valid_shards.meta.counts} if valid_shards else {})
    loader = TokenLoader(batches, config.run.loader_workers)
    cut_captions = CutCaptions(loader.cuts, world)
    return Stage(
        kind="prior",
        objective=objective,
        loader=loader,
        unit="tokens",
        units_per_sample=config.model.slots,
        data=learned.paths(),
        model_config=config.model,
        flops_per_sample=prior_flops(config.model),
        prepare=count_text_targets,
        validate=validation.figures if config.valid_data else None,
        draw=validation.pictures,
        trained_on=trained_on,
        next_command=f'dalle-sample --prior {config.output} --dvae {config.dvae} "CAPTION"',
        samples=lambda: {name: each for name, each in samples.items() if each and world.is_main},
        start=start,
        links=links | (start.links if start else {}),
        facts={
            "caption_dropout": str(config.caption_dropout),
            "sampling_temperature": str(config.sampling_temperature),
            "sampling_guidance": str(config.sampling_guidance),
            **facts,
        },
        files=tokenizer.files(),
        check=cut_captions.check,
        conclude=cut_captions.conclude,
    )


def count_text_targets(micro_batches: list[dict], step: int, world: World) -> None:
    """Put into each micro-batch what its text loss is divided by: the mean number of caption tokens over all ranks and
    micro-batches of the update. So the update's text loss is the average over all caption tokens of the global batch, or 0
    where it has none."""
    counts = [(batch["text_BU"] >= 0).sum().float() for batch in micro_batches]
    mean = _divisor(world.mean(torch.stack(counts).mean()))
    for batch in micro_batches:
        batch["text_targets"] = mean


def _divisor(count: torch.Tensor) -> torch.Tensor:
    """What the text nats are divided by: the number of caption tokens, or 1 where there are none, whose nats are 0."""
    return count.where(count > 0, 1.0)


def _check(config: TrainPrior, shards: TokenShards, valid_shards: TokenShards | None, tokenizer: Tokenizer) -> None:
    dvae_hash = codes_hash(config.dvae)
    check_link(
        f"the tokens in {config.data} were made by another dVAE than {config.dvae}", shards.meta.dvae_hash, dvae_hash
    )
    if valid_shards is not None:
        found = valid_shards.meta.dvae_hash
        check_link(f"the tokens in {config.valid_data} were made by another dVAE than {config.dvae}", found, dvae_hash)
    for name, expected in (("grid", shards.meta.grid), ("codebook_size", shards.meta.codebook_size)):
        if getattr(config.model, name) != expected:
            raise ValueError(
                f"model.{name} {getattr(config.model, name)}: the tokens in {config.data} have {expected}; set it to that"
            )
    if config.model.text_vocabulary < tokenizer.vocabulary:
        raise ValueError(
            f"model.text_vocabulary {config.model.text_vocabulary}: the tokenizer {config.tokenizer} has "
            f"{tokenizer.vocabulary} tokens; set it to that"
        )


class _Validation:
    """Losses on held-out pairs, and samples for a few of their captions. Without held-out pairs samples alone, for
    captions of the training."""

    def __init__(
        self, config: TrainPrior, objective: PriorObjective, tokenizer: Tokenizer, shards: TokenShards, world: World
    ):
        self.objective, self.tokenizer, self.shards, self.world = objective, tokenizer, shards, world
        self.config, self.sharded = config, config.run.zero_stage == 3
        size = min(config.run.micro_batch_size(world.size), len(self.shards))
        self.batches = TokenBatches(self.shards, tokenizer, config.model.caption_tokens, size, seed=0)
        self.count = min(config.run.validation_batches * world.size, len(self.shards) // size)
        self.seed = config.run.seed
        self.precision: Precision = "fp32" if config.run.precision == "fp32" else "bf16"

    def figures(self) -> dict[str, float]:
        """Means over the batches, which the ranks share out. Where weights are sharded each has to compute as many."""
        totals: dict[str, torch.Tensor] = {}
        for first in range(0, self.count, self.world.size):
            number = first + self.world.rank
            batch = self.batches[number if number < self.count else first]
            batch = {name: tensor.to(self.world.device) for name, tensor in batch.items()}
            batch["text_targets"] = _divisor((batch["text_BU"] >= 0).sum().float())
            _, metrics = self.objective(batch)
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + (value if number < self.count else 0.0 * value) / self.count
        return {name: self.world.sum(value).item() for name, value in totals.items()}

    def pictures(self) -> dict[str, Image.Image]:
        """Samples for a few captions, and what the dVAE makes of the true codes."""
        places = (self.shards.place(number, seed=0)[1:] for number in range(min(_LOOKED_AT, len(self.shards))))
        pairs = ((codes_I, captions[0]) for codes_I, captions in (self.shards.pair(*place) for place in places))
        chosen = list(islice((pair for pair in pairs if pair[1].strip()), _DRAWN_CAPTIONS))
        if not chosen:
            return {}
        codes, captions = zip(*chosen, strict=True)
        given = self.config
        tuning = Tuning(
            caption_dropout=given.caption_dropout,
            temperature=given.sampling_temperature,
            guidance=given.sampling_guidance,
        )
        dvae = load_dvae(given.dvae, self.world.device)
        pipeline = Pipeline(self._plain_model(), dvae, self.tokenizer, tuning=tuning)
        sampling = Sampling(chunk=_DRAWN_PER_CAPTION, precision=self.precision, compile=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CaptionWarning)  # the log says how many captions are cut
            chunks = pipeline.candidates(captions, _DRAWN_PER_CAPTION, self.seed, sampling)
        drawn_CNYX3 = np.concatenate([chunk.images_CNYX3 for chunk in chunks], axis=1)
        true_codes = torch.from_numpy(np.stack(codes).astype(np.int64)).to(self.world.device)
        true_CYX3 = to_pixels(pipeline.decode(true_codes, self.precision))
        drawings = []
        for row, caption in enumerate(captions):
            images = [true_CYX3[row], *drawn_CNYX3[row]]
            drawings += [Drawing(Image.fromarray(im), caption, None, -1, i, {}) for i, im in enumerate(images)]
        return {"samples": make_grid(drawings, columns=1 + _DRAWN_PER_CAPTION)}

    def _plain_model(self) -> Prior:
        """The model, or a copy without what sharding has hung onto it."""
        if not self.sharded:
            return self.objective.model
        model = Prior(self.config.model).to(self.world.device).eval()
        model.load_state_dict(self.objective.model.state_dict())
        return model
