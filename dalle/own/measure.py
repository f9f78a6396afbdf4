"""What an update takes on this machine: a few real ones of each stage, timed before it is planned how many there will be."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from statistics import median
from typing import Any

import torch

from dalle.cluster.topology import World, grouped
from dalle.config import TrainCLIP, TrainDVAE, TrainPrior
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective
from dalle.optim.ema import EMA
from dalle.training.engine import Engine

_LEAST_UPDATES, _MOST_UPDATES = 3, 60


def update_s(kind: str, config: TrainDVAE | TrainPrior | TrainCLIP, world: World, seconds: float) -> float:
    """Seconds of an update: the median of a few, after one that does not count.

    Args:
        kind: "dvae", "prior" or "clip". A prior is timed on codes that mean nothing, so that it may be asked for before there
            are any; the others on their own data
        config: of the training
        world: this process alone
        seconds: that it may take, unless three updates take longer
    """
    world = grouped(world, config.run)
    if isinstance(config, TrainPrior):
        model = Prior(config.model)
        objective, batches = PriorObjective(model, config.objective), _meaningless(config, world)
        return _timed(objective, config, world, batches, lambda *_: None, seconds)
    stage = importlib.import_module(f"dalle.stages.{kind}").stage(config, world)
    loading: Any = iter(stage.loader)
    with closing(loading):  # with it the loader's processes end
        return _timed(stage.objective, config, world, loading, stage.prepare, seconds)


def _timed(
    objective: torch.nn.Module,
    config: TrainDVAE | TrainPrior | TrainCLIP,
    world: World,
    batches: Iterator[dict],
    prepare: Callable[[list[dict], int, World], None],
    seconds: float,
) -> float:
    engine = Engine(objective, config.optimizer, config.run, world)
    ema = (
        EMA(engine.shards.weights(), config.run.ema_decay, config.run.ema_every_steps) if config.run.ema_decay else None
    )
    step_size = config.optimizer.step_size.over(config.run.steps)
    times_s: list[float] = []
    until_s = time.monotonic() + seconds
    for step in range(_MOST_UPDATES):
        began_s = time.monotonic()
        micro_batches = [
            {name: value.to(world.device) if torch.is_tensor(value) else value for name, value in next(batches).items()}
            for _ in range(config.run.accumulation_steps)
        ]
        prepare(micro_batches, step, world)
        metrics = engine.update(micro_batches, step, step_size(step), ema)
        metrics["loss"].item()  # waits for the device
        times_s.append(time.monotonic() - began_s)
        if step >= _LEAST_UPDATES and time.monotonic() > until_s:
            break
    return median(times_s[1:])


def _meaningless(config: TrainPrior, world: World) -> Iterator[dict]:
    generator = torch.Generator().manual_seed(0)
    rows, model = config.run.micro_batch_size(world.size), config.model
    while True:
        yield {
            "text_BU": torch.randint(256, (rows, model.caption_tokens), generator=generator),
            "codes_BI": torch.randint(model.codebook_size, (rows, model.image_slots), generator=generator),
            "text_targets": torch.tensor(float(rows * model.caption_tokens)),
        }
