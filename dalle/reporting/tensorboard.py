"""The same figures and pictures for TensorBoard, for those who switch it on: an event file in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dalle.config.checks import installed

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = "tensorboard"
"""In the run's folder: what `tensorboard --logdir` is given."""


def writer_class() -> type:
    """What writes the files. Raises ValueError where TensorBoard is not installed."""
    remedy = "`pip install 'dalle[tensorboard]'`, or switch it off"
    with installed(f"run.tensorboard true: TensorBoard is not installed; {remedy}"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter


class TensorBoard:
    """Event files of one run.

    Args:
        folder: the run's
        start_step: of the checkpoint that it goes on from; what was logged after it is no longer shown

    Raises:
        ValueError: TensorBoard is not installed
    """

    def __init__(self, folder: Path, start_step: int = 0):
        writer = writer_class()
        self._writer: Any = writer(str(folder / FOLDER), purge_step=start_step + 1 if start_step else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step, for whoever looks at once. Raises OSError where the disk is full."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, step: int, name: str, image: Image) -> None:
        """Record a picture. Raises OSError likewise."""
        self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """End the file. Raises OSError likewise."""
        self._writer.close()
