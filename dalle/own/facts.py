"""What a plan is made from: the pictures, and the machine."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from dalle.machine.memory import look_at_memory, num_cores


@dataclass(frozen=True)
class Pictures:
    """What was found in a folder.

    Args:
        pairs: images with captions to train on
        valid: those that are held out; 0 where there are too few
        captions_per_image: on average
        words_median: words of a caption
        longest_chars: characters of the longest caption
        side_px: median of the images' shorter sides
    """

    pairs: int
    valid: int
    captions_per_image: float
    words_median: float
    longest_chars: int
    side_px: int


@dataclass(frozen=True)
class Machine:
    """What it is trained on.

    Args:
        gpus: how many; 0 where the CPU trains
        cores: of the CPU that this process may use
        flops_per_s: floating-point operations a second of a large bf16 matrix product, of all devices together
        memory_bytes: of the device: of each GPU, or main memory
        free_disk_bytes: where the output lies
        load: programs that wanted a core in the last minute, on average
    """

    gpus: int
    cores: int
    flops_per_s: float
    memory_bytes: int
    free_disk_bytes: int
    load: float = 0.0

    @property
    def is_cpu(self) -> bool:
        return self.gpus == 0

    @property
    def devices(self) -> int:
        """Processes that train."""
        return max(1, self.gpus)


def look_at_machine(output: Path) -> Machine:
    """This machine, its rate measured, which takes half a second.

    output: a folder that may not be there yet
    """
    import torch

    from dalle.reporting.machine_limit import matrix_flops_per_s

    load = os.getloadavg()[0]  # before this is busy itself
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device("cuda" if gpus else "cpu")
    memory_bytes = torch.cuda.get_device_properties(0).total_memory if gpus else look_at_memory().usable
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    return Machine(
        gpus,
        num_cores(),
        max(1, gpus) * matrix_flops_per_s(device, "bf16"),
        memory_bytes,
        shutil.disk_usage(there).free,
        load,
    )
