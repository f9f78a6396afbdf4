"""What `dalle-plan` is asked for: a prior's training, and the machines that it is planned for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dalle.config.best_of import BestOf
from dalle.config.checks import at_least, require
from dalle.config.commands.stages import check_rank, check_sharding
from dalle.config.models import PriorModel
from dalle.config.run import Run
from dalle.config.training import Optimizer, PriorObjective


@dataclass(frozen=True)
class Plan:
    """Tell what a prior's training will take on given machines, before it is begun: memory of a GPU, traffic, time, cost.

    Takes the settings of `dalle-train-prior`, from the same files. The exit status is 1 where the training does not fit into the
    memory, and what would fit is told. Times are computed, never measured.

    Args:
        optimizer: optimizer of the training
        run: how the training is run: batch, precision, sharding, compression
        model: sizes of the prior
        objective: loss of the training; ignored here
        machines: number of machines
        gpus: GPUs of each machine, one process each
        memory: memory of each GPU in GiB, the gigabytes that GPUs are sold by: 16 is 17.2 GB, of which CUDA takes some for itself
        link: network rate from each machine to the others, in each direction, Gbit/s
        inside: rate from each GPU to the others of its machine, in each direction, GB/s
        tflops: rate of a GPU in matrix products of the run's precision, 10^12 operations/s; 125 is a V100's in 16 bits
        achieved: share of `tflops` that a training reaches, to be measured by one's own first updates
        bandwidth: memory bandwidth of a GPU, GB/s
        disk: checkpoint write rate of a machine, GB/s
        price: price of a GPU for an hour, in any currency; null tells no cost
        search: name the fastest settings that fit, over numbers of machines up to `machines`, sharding, ranks, micro-batches and
            recomputation
        timeline: PNG file for a picture of one update; null draws none
        overwrite: write over a picture that is there
        json: print one JSON object in place of lines
        data: accepted so that configurations of trainings load; ignored
        dvae: ignored, like `data`
        tokenizer: ignored, like `data`
        output: ignored, like `data`
        valid_data: ignored, like `data`
        start_from: ignored, like `data`
        resume: ignored, like `data`
        dry_run: ignored, like `data`
        bpe_dropout: ignored, like `data`
        caption_dropout: ignored, like `data`
        sampling_temperature: ignored, like `data`
        sampling_guidance: ignored, like `data`
        best_of: ignored, like `data`
    """

    optimizer: Optimizer
    run: Run
    model: PriorModel = field(default_factory=PriorModel)
    objective: PriorObjective = field(default_factory=PriorObjective)
    machines: int = 1
    gpus: int = 1
    memory: float = 16.0
    link: float = 100.0
    inside: float = 100.0
    tflops: float = 125.0
    achieved: float = 0.4
    bandwidth: float = 900.0
    disk: float = 1.0
    price: float | None = None
    search: bool = False
    timeline: str | None = None
    overwrite: bool = False
    json: bool = False
    data: str | None = None
    dvae: str | None = None
    tokenizer: str | None = None
    output: str | None = None
    valid_data: str | None = None
    start_from: str | None = None
    resume: bool = False
    dry_run: bool = False
    bpe_dropout: float = 0.1
    caption_dropout: float = 0.0
    sampling_temperature: float = 1.0
    sampling_guidance: float = 1.0
    best_of: BestOf | None = None

    def __post_init__(self) -> None:
        check_sharding(self.optimizer, self.run)
        check_rank(self.model, self.run)
        at_least(self, 1, "machines", "gpus", most=2**16)
        for name in ("memory", "link", "inside", "tflops", "bandwidth", "disk"):
            value = vars(self)[name]
            require(0 < value < math.inf, f"{name} {value}: must be positive and finite")
        require(0 < self.achieved <= 1, f"achieved {self.achieved}: must lie in (0, 1]")
        require(
            self.price is None or 0 <= self.price < math.inf, f"price {self.price}: must be finite, and not negative"
        )
        require(
            self.timeline is None or self.timeline.endswith(".png"),
            f"timeline {self.timeline}: must end in .png; the picture is a PNG",
        )
