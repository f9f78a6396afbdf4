"""How a run is carried out: batches, precision, sharding, compression, logs and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dalle.config.checks import MOST_PROCESSES, MOST_UPDATES, at_least, at_most, multiples_near, require


@dataclass(frozen=True)
class Compression:
    """PowerSGD between machines (section 2.5 and appendix E).

    Args:
        rank: rank r of a whole matrix; each of the m shards of a machine gets r / m. The paper's is 0.22 to 0.27 times
            the width
        format: format of P, Q and the error buffers, on the wire and in memory: "1-6-9" is the paper's
        seed: seed of the fixed Gaussian matrices
    """

    rank: int
    format: Literal["fp32", "bf16", "1-6-9"] = "1-6-9"
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "rank", most=2**20)
        at_least(self, 0, "seed")

    def rank_of_shard(self, ranks_per_machine: int) -> int:
        """r / m. Raises ValueError when it does not divide."""
        require(
            self.rank % ranks_per_machine == 0,
            f"run.compression.rank {self.rank}: must be a multiple of the {ranks_per_machine} processes of a machine, such as "
            f"{multiples_near(self.rank, ranks_per_machine)}",
        )
        return self.rank // ranks_per_machine


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases, never required.

    Args:
        enabled: log to Weights & Biases, too
        project: project name
        name: name of the run; null means the output folder's name
        mode: "online", or "offline" to sync later
    """

    enabled: bool = False
    project: str = "dalle"
    name: str | None = None
    mode: Literal["online", "offline"] = "online"


@dataclass(frozen=True)
class Run:
    """How a training runs, the same for every stage.

    Args:
        steps: number of updates
        batch_size: samples per update over all processes and accumulation steps
        accumulation_steps: micro-batches per update
        seed: seeds weights, data order and noise
        precision: precision of the matrix products; identity path, logits and loss are fp32 in any case. "fp16" needs a gradient scale,
            which it adapts; "fp16-per-block" is the paper's, a scale for each resblock (appendix D)
        weights: format of the resblocks' matrices of a prior: "fp32", or "16-bit" (the paper's), which is that of `precision`:
            2 bytes a weight in place of 4. Updates are made in fp32 and rounded at random, so that a step smaller than a last
            bit counts on average; gains, biases, embeddings, unembeddings and averages stay fp32
        reduce_factor: what fp16 gradients are multiplied with before processes add them up, and divided by afterwards: the
            paper's constant, chosen by hand
        zero_stage: DeepSpeed ZeRO stage: 0 replicates, 1 shards the optimiser state, 2 the gradients too, 3 (priors
            alone) the weights as well
        ranks_per_machine: processes that shard among themselves, when `zero_stage` is above 0; between such groups all is
            replicated and gradients are averaged. Null asks the launcher; 0 shards over all processes
        compression: compress the gradients that machines exchange; null sends them as they are
        wire: format in which machines exchange what is not compressed: "fp32"; "bf16", half the bytes, each machine's gradient rounded
            once and the mean once more; "bf16-ring", added up in bf16 by the communication library, rounded at every hop
        offload: where the optimiser's state lives, and its step is made, when `zero_stage` is 3: on the "device", or in main
            memory ("cpu"), which is slow and frees 8 or 12 bytes a weight
        ema_decay: decay of the averaged weights; null keeps no average
        ema_every_steps: updates between two steps of that average; above 1 (25 in the paper) it is kept in main memory
        recompute: compute the activations of a dVAE's groups of resblocks, or of a prior's layers, again in the backward
            pass: less memory for about a third more time
        compile: torch.compile the forward and backward pass; needs a C++ compiler on a CPU, and a minute at start
        log_every_steps: updates between two log lines
        validate_every_steps: updates between two validations with pictures; 0 only at the end
        validation_batches: batches per validation; a reranker's is always of all held-out pairs
        checkpoint_every_minutes: time between two checkpoints; 0 only at the end, on Ctrl-C, SIGTERM and SIGUSR1
        keep_checkpoints: how many of the latest checkpoints stay on disk
        loader_workers: data-loading processes per rank; 0 loads in the training process
        tensorboard: write figures and pictures for TensorBoard, too, into `tensorboard/` in the run's folder
        silence_limit_s: when a process has been silent, or all have waited, for so long, the run ends and names it
    """

    steps: int
    batch_size: int
    accumulation_steps: int = 1
    seed: int = 0
    precision: Literal["fp32", "bf16", "fp16", "fp16-per-block"] = "bf16"
    weights: Literal["fp32", "16-bit"] = "fp32"
    reduce_factor: float = 1.0
    zero_stage: Literal[0, 1, 2, 3] = 0
    ranks_per_machine: int | None = None
    compression: Compression | None = None
    wire: Literal["fp32", "bf16", "bf16-ring"] = "fp32"
    offload: Literal["device", "cpu"] = "device"
    ema_decay: float | None = 0.999
    ema_every_steps: int = 1
    recompute: bool = False
    compile: bool = False
    log_every_steps: int = 20
    validate_every_steps: int = 500
    validation_batches: int = 8
    checkpoint_every_minutes: float = 10.0
    keep_checkpoints: int = 2
    loader_workers: int = 1
    silence_limit_s: float = 600.0
    tensorboard: bool = False
    wandb: Wandb = field(default_factory=Wandb)

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size", "accumulation_steps")
        at_least(self, 1, "log_every_steps", "validation_batches", "keep_checkpoints", "ema_every_steps")
        at_least(self, 0, "validate_every_steps", "checkpoint_every_minutes", "loader_workers", "seed")
        at_most(self, 2**24, "batch_size", "accumulation_steps")
        at_most(self, MOST_UPDATES, "steps", "log_every_steps", "validate_every_steps", "ema_every_steps")
        at_most(self, 2**20, "validation_batches", "keep_checkpoints")
        at_most(self, MOST_PROCESSES, "loader_workers")
        at_most(self, 2**20, "ranks_per_machine")
        at_most(self, 1e8, "checkpoint_every_minutes", "silence_limit_s")
        require(
            self.batch_size % self.accumulation_steps == 0,
            f"accumulation_steps {self.accumulation_steps}: must divide batch_size {self.batch_size}",
        )
        require(self.ema_decay is None or 0 <= self.ema_decay < 1, f"ema_decay {self.ema_decay}: must lie in [0, 1)")
        require(self.reduce_factor > 0, f"reduce_factor {self.reduce_factor}: must be positive")
        require(
            self.reduce_factor == 1 or "fp16" in self.precision,
            f"reduce_factor {self.reduce_factor} with precision {self.precision}: is for fp16 gradients; set precision to fp16 or "
            "fp16-per-block, or reduce_factor to 1",
        )
        require(self.silence_limit_s > 0, f"silence_limit_s {self.silence_limit_s}: must be positive")
        if self.ranks_per_machine is not None:
            at_least(self, 0, "ranks_per_machine")
        require(
            self.compression is None or self.zero_stage in (0, 3),
            f"compression with zero_stage {self.zero_stage}: whole matrices or rows of them can be compressed; set zero_stage to 0 or 3",
        )
        require(
            self.offload == "device" or self.zero_stage == 3,
            f"offload {self.offload} with zero_stage {self.zero_stage}: needs zero_stage 3",
        )
        require(
            self.weights == "fp32" or self.precision != "fp32",
            f"weights {self.weights} with precision fp32: they have the format of the products; set precision to bf16, fp16 or "
            "fp16-per-block, or weights to fp32",
        )
        require(
            self.weights == "fp32" or self.offload == "device",
            f"weights {self.weights} with offload {self.offload}: what is updated in main memory is fp32; set offload to device, or "
            "weights to fp32",
        )
        require(
            not (self.compile and self.zero_stage == 3),
            "compile with zero_stage 3: weights that come and go cannot be compiled; set one of them lower",
        )

    def processes_together(self, ranks_per_machine: int, world_size: int) -> int:
        """How many processes shard or average among themselves before `gradients/` exchanges between such machines: all, where
        DeepSpeed's own average is all there is to do.

        Args:
            ranks_per_machine: those that are to count as one machine
            world_size: all

        Raises:
            ValueError: every process of a machine would send all gradients to the others, more than is saved by 16 bits
        """
        if self.zero_stage > 0 or self.compression is not None:
            return ranks_per_machine
        if self.wire == "fp32" or ranks_per_machine == world_size:
            return world_size
        require(
            ranks_per_machine == 1,
            f"run.wire {self.wire} with run.zero_stage 0 and {ranks_per_machine} processes a machine: each would send all "
            "gradients to the other machines; set run.zero_stage to 1 or above, where each sends its part, or run.wire to fp32",
        )
        return 1

    def micro_batch_size(self, world_size: int) -> int:
        """Samples that one of `world_size` processes takes at a time. Raises ValueError when the batch does not divide."""
        parts = world_size * self.accumulation_steps
        require(
            self.batch_size % parts == 0,
            f"run.batch_size {self.batch_size}: must be a multiple of {world_size} processes × {self.accumulation_steps} "
            f"accumulation steps, such as {multiples_near(self.batch_size, parts)}",
        )
        return self.batch_size // parts
