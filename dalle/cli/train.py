"""The three training commands: `dalle-train-dvae`, `dalle-train-prior`, `dalle-train-clip`.

All follow one road: read the settings, refuse what cannot work, join the other processes, build the stage, train.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import replace

from dalle.cli import arguments
from dalle.config import TrainCLIP, TrainDVAE, TrainPrior, unreached_schedules


def train_dvae() -> None:
    """Console script `dalle-train-dvae`."""
    arguments.run(lambda: _finish(train("dvae", TrainDVAE)), "dalle-train-dvae")


def train_prior() -> None:
    """Console script `dalle-train-prior`, and `launch/train_prior.py`."""
    arguments.run(lambda: _finish(train("prior", TrainPrior)), "dalle-train-prior")


def train_clip() -> None:
    """Console script `dalle-train-clip`."""
    arguments.run(lambda: _finish(train("clip", TrainCLIP)), "dalle-train-clip")


def _finish(finished: bool) -> None:
    if not finished:
        raise KeyboardInterrupt


def train(kind: str, cls: type, argv: list[str] | None = None) -> bool:
    """Parse, check, and train one stage.

    Returns:
        whether it came to its end; False when it was interrupted and left a checkpoint
    """
    config = arguments.parse(cls, f"dalle-train-{kind}", argv)
    config.run.micro_batch_size(int(os.environ.get("WORLD_SIZE", "1")))
    folder = arguments.check_output(config.output, fresh=not config.resume)

    # torch and what builds on it come only now, when the settings are known to be sound
    from dalle.cluster.agreement import check_same, facts
    from dalle.cluster.topology import grouped, joined
    from dalle.cluster.watch import Watch
    from dalle.training.loop import train as run_loop

    with joined(config.run.silence_limit_s) as world:
        check_same(world, facts(config))
        with Watch(world, config.run.silence_limit_s) as watch:
            world = grouped(world, config.run)
            stage = importlib.import_module(f"dalle.stages.{kind}").stage(config, world)
            stage.warnings += unreached_schedules(config)
            # a resumed run is described as the whole run, which another one may repeat
            stage.files["config.yaml"] = arguments.to_yaml(replace(config, resume=False))
            return run_loop(stage, config.optimizer, config.run, folder, world, config.resume, watch)
