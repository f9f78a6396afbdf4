"""Where a run is followed beside its own folder: Weights & Biases and TensorBoard, each where it is switched on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from dalle.config import Wandb
from dalle.reporting import weights_and_biases
from dalle.reporting.tensorboard import TensorBoard, writer_class

if TYPE_CHECKING:
    from PIL.Image import Image


class Elsewhere:
    """Of one run.

    Args:
        wandb: settings; null is as if it were not enabled
        tensorboard: whether TensorBoard's files are written
        title: the run's
        folder: the run's
        wandb_id: of the run there that is gone on with; null begins one
        start_step: of the checkpoint that the run goes on from

    Raises:
        ValueError: one that is switched on is not installed, or does not start
    """

    def __init__(
        self, wandb: Wandb | None, tensorboard: bool, title: str, folder: Path, wandb_id: str | None, start_step: int
    ):
        if tensorboard:
            writer_class()  # refused before a run is begun anywhere
        self.wandb_run: Any = None
        self.wandb_id = wandb_id
        if wandb is not None and wandb.enabled:
            self.wandb_run = weights_and_biases.start_run(wandb, title, folder, wandb_id)
            self.wandb_id = self.wandb_run.id
        self.tensorboard = TensorBoard(folder, start_step) if tensorboard else None

    def log(self, step: int, record: Mapping[str, float | list[float]]) -> None:
        """Record values; of each list the least, the median and the greatest. Raises OSError where the disk is full."""
        values = _summed_up(record)
        if self.wandb_run is not None:
            self.wandb_run.log({"step": step, **values})
        if self.tensorboard is not None:
            self.tensorboard.log(step, values)

    def picture(self, step: int, name: str, image: Image) -> None:
        """Record a picture. Raises OSError likewise."""
        if self.wandb_run is not None:
            import wandb

            self.wandb_run.log({"step": step, name: wandb.Image(image)})
        if self.tensorboard is not None:
            self.tensorboard.picture(step, name, image)

    def finish(self, is_well: bool) -> None:
        """The run has ended. Raises OSError likewise."""
        if self.wandb_run is not None:
            self.wandb_run.finish(exit_code=0 if is_well else 1)
        if self.tensorboard is not None:
            self.tensorboard.close()


def _summed_up(record: Mapping[str, float | list[float]]) -> dict[str, float]:
    lists = {key: value for key, value in record.items() if isinstance(value, list)}
    summed_up = {f"{key}/{pick.__name__}": pick(value) for key, value in lists.items() for pick in (min, median, max)}
    return {key: value for key, value in record.items() if not isinstance(value, list)} | summed_up
