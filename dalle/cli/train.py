"""The three training commands: `dalle-train-dvae`, `dalle-train-prior`, `dalle-train-clip`.

All follow one road: read the settings, refuse what cannot work, join the other processes, build the stage, train.
"""

from __future__ import annotations

import importlib
import os

from dalle.cli import arguments
from dalle.config import TrainCLIP, TrainDVAE, TrainPrior


def train_dvae() -> None:
    """Console script `dalle-train-dvae`."""
    arguments.run(lambda: train("dvae", TrainDVAE), "dalle-train-dvae")


def train_prior() -> None:
    """Console script `dalle-train-prior`, and `launch/train_prior.py`."""
    arguments.run(lambda: train("prior", TrainPrior), "dalle-train-prior")


def train_clip() -> None:
    """Console script `dalle-train-clip`."""
    arguments.run(lambda: train("clip", TrainCLIP), "dalle-train-clip")


def train(kind: str, cls: type, argv: list[str] | None = None) -> str | None:
    """Parse, check, and train one stage.

    Returns:
        the content hash of the trained weights; null on other ranks than the first, and when it was interrupted
    """
    config = arguments.parse(cls, f"dalle-train-{kind}", argv)
    config.run.micro_batch_size(int(os.environ.get("WORLD_SIZE", "1")))
    folder = arguments.check_output(config.output, fresh=not config.resume)

    # torch and what builds on it come only now, when the settings are known to be sound
    from dalle.training.loop import train as run_loop
    from dalle.training.topology import joined

    with joined() as world:
        stage = importlib.import_module(f"dalle.training.{kind}").stage(config, world)
        if world.is_main:
            (folder / "config.yaml").write_text(arguments.to_yaml(config))
        return run_loop(stage, config.optimizer, config.run, folder, world, config.resume)
