"""Schedules of the training commands whose end lies beyond the run."""

from __future__ import annotations

from dataclasses import fields

from dalle.config.commands.stackgan import TrainStackGAN
from dalle.config.commands.stages import TrainCLIP, TrainDVAE, TrainPrior
from dalle.config.commands.text_encoder import TrainTextEncoder


def unreached_schedules(config: TrainDVAE | TrainPrior | TrainCLIP | TrainStackGAN | TrainTextEncoder) -> list[str]:
    """For each schedule whose end lies beyond the run, a sentence that names it."""
    schedules = {"optimizer.step_size": config.optimizer.step_size}
    if isinstance(config, TrainStackGAN):
        schedules["discriminator_optimizer.step_size"] = config.discriminator_optimizer.step_size
    if isinstance(config, TrainDVAE) and config.freeze is None:
        schedules |= {f"objective.{f.name}": getattr(config.objective, f.name) for f in fields(config.objective)}
    steps = config.run.steps
    said = {name: schedule.unreached(steps) for name, schedule in schedules.items()}
    advice = "set run.steps higher, or say it as a share of the run, such as end_step 100%"
    return [f"{name}: {what}: {advice}" for name, what in said.items() if what]
