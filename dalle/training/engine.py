"""The one training engine: DeepSpeed, from one CPU process to a cluster.

The model is written for one device and never learns what is done to it here: gradient scales, recomputation, compilation,
precision (`_prepare`), then sharding, then compression.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from dalle.checkpoints.checkpoint import Checkpoint, Fragment
from dalle.checkpoints.restoring import Restoring
from dalle.checkpoints.starting import fill_from_model
from dalle.cluster.agreement import check_same_weights
from dalle.cluster.sync_batchnorm import Statistics
from dalle.cluster.topology import World
from dalle.config import Optimizer, Run
from dalle.gradients.before_step import BeforeStep
from dalle.gradients.partition import Partitioned, Piece, Shards, Whole, moment_dtypes
from dalle.gradients.scaling import GradientScales, gradient_scales
from dalle.gradients.sharded import Sharded
from dalle.models.folder import weights_file
from dalle.models.wrapping import recompute_blocks
from dalle.optim import optimizer as optimizers
from dalle.optim.ema import EMA
from dalle.training import deepspeed_library as library
from dalle.training import weights16
from dalle.training.deepspeed_adapter import Roles, largest_resblock, settings
from dalle.training.gathered_linear import put_gathered_linears
from dalle.training.seeds import derived_seed
from dalle.training.stage import Start

_WHOLE_PARAMETERS = 2_000_000_000
"""Up to this size a sharded model is gathered on every process to draw pictures: 8 GB in fp32."""


class Engine:
    """Updates the weights of an objective's model.

    Args:
        objective: module with a `model`; called with a batch it returns (loss, metrics)
        optimizer: settings of AdamW or Muon
        run: batch size, precision, sharding
        world: the processes, in machines if the run needs them
    """

    def __init__(self, objective: nn.Module, optimizer: Optimizer, run: Run, world: World):
        deepspeed = library.load()
        self.world, self.run = world, run
        self.objective = objective.to(world.device)
        self._client: Any = optimizers.build(objective, optimizer, run.weights)
        self.scales = _prepare(objective, run, world)
        roles = Roles(world.machines) if world.machines else None
        deepspeed.utils.groups.mpu = roles  # which it would keep from the engine before, in the same process
        self._engine, *_ = deepspeed.initialize(
            model=objective,
            optimizer=self._client,
            config=settings(run, world, largest_resblock(self.model) if run.zero_stage > 0 else None),
            mpu=roles,
            dist_init_required=False,
        )
        _settle(self.objective, self._engine.optimizer, run)
        self.shards = self._shards(deepspeed)
        if run.weights == "16-bit":
            assert isinstance(self._client, optimizers.PaperAdamW), "the settings refuse others"
            self._client.seed, self._client.places = run.seed, self.shards.places()
        matrices = self.model.matrices() if run.compression else {}
        self.before_step = BeforeStep(self.shards, world, run, optimizer.clip_norm, self.scales, matrices)
        self.statistics = Statistics(self.model)

    def _shards(self, deepspeed: Any) -> Shards:
        zero = self._engine.optimizer
        if self.run.zero_stage == 0:
            return Whole(self.model, zero)
        if self.run.zero_stage < 3:
            return Partitioned(self.model, zero.optimizer, zero)
        ordinal = self.world.machines.ordinal if self.world.machines else self.world.rank
        return Sharded(self.model, zero.optimizer, zero, deepspeed.utils.safe_set_local_grad, ordinal)

    @property
    def model(self) -> Any:  # an nn.Module with `recomputable` and, where there is sharding, `resblocks`
        return self.objective.model

    def update(
        self, micro_batches: list[dict], step: int, step_size: float, ema: EMA | None = None
    ) -> dict[str, torch.Tensor]:
        """One update from `accumulation_steps` micro-batches; their mean metrics, of this rank, undetermined until read.

        The noise of an update is a function of (seed, update, rank), so that a resumed run goes on as if it had never
        stopped. What a batch holds as a function is made when its turn comes. An update whose gradient is not finite
        on some process is skipped: gradient scales learn of it, averages take a step towards the same weights, nothing else changes,
        and its metric `skipped` is 1.

        Args:
            micro_batches: of this rank
            step: number of the update, from 0
            step_size: of the optimiser
            ema: averages that take in the new weights
        """
        assert len(micro_batches) == self.run.accumulation_steps, "DeepSpeed steps after so many, gradients as they are"
        torch.manual_seed(derived_seed(self.run.seed, step, self.world.rank))
        for group in self._engine.optimizer.param_groups:
            group["lr"] = step_size
        totals: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(micro_batches):
            if number > 0:
                self._engine.step()  # between micro-batches it counts them, and changes nothing
            batch = {name: value() if callable(value) else value for name, value in batch.items()}
            loss, metrics = self._engine(batch)
            if number == len(micro_batches) - 1:  # a gradient that is complete from now on is sent at once
                self.before_step.open()
            self._engine.backward(self.scales.scaled(loss) if self.scales else loss)
            for name, value in metrics.items():
                totals[name] = totals[name] + value if name in totals else value
        # After the last backward pass DeepSpeed has averaged the gradients of all micro-batches over the processes that shard,
        # and its step uses them as they then lie in memory. What is done to them has its place between the two, only there.
        assert self._engine.is_gradient_accumulation_boundary()
        reduced = self.before_step()
        if ema:
            ema.hold()
        if self.run.weights == "16-bit":
            self._client.gradients = self.shards.gradients()
        self._engine.step()
        self.before_step.close()
        if self.run.weights == "16-bit":
            self._client.gradients = {}  # memory that DeepSpeed gives away, below stage 3
        self.statistics.settle(reduced["skipped"])
        if ema:
            ema.update(step)
        return {name: value / len(micro_batches) for name, value in totals.items()} | reduced

    def autocast(self) -> torch.autocast:
        """The precision of this run, for validation outside the engine; blocks with gradient scales bring their own."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.run.precision == "bf16")

    @contextmanager
    def averaged(self, ema: EMA | None) -> Iterator[None]:
        """Within the block the model has the averaged weights, if there are any."""
        if ema is None:
            yield
            return
        with ema.swapped_in():
            yield
            if self.run.zero_stage == 3:  # what a forward pass gathered of them would be used again
                self._engine.optimizer.parameter_offload.partition_all_parameters()

    def fits_whole(self) -> bool:
        """Whether the model may be held whole by every process for a while."""
        sizes = (math.prod(piece.shape) for piece in self.shards.pieces.values())
        return self.run.zero_stage < 3 or sum(sizes) <= _WHOLE_PARAMETERS

    def whole_weights(self) -> AbstractContextManager:
        """Within the block the model is whole on every process; all have to enter. Costs nothing below stage 3."""
        if self.run.zero_stage < 3:
            return nullcontext()
        return library.load().zero.GatheredParameters(list(self.model.parameters()))

    def writes(self, name: str, piece: Piece) -> bool:
        """Whether this process, of all that hold a piece of a tensor, is the one that puts it into checkpoints. Machines
        hold the same and share the work."""
        mine = piece.size > 0 and self.world.number == self._writer(name)
        return self.world.is_main if piece.shared else mine

    def _writer(self, name: str) -> int:
        """The machine that writes a tensor, or its shards."""
        return 0 if self.run.zero_stage == 0 else zlib.crc32(name.encode()) % self.world.num_machines

    def check_replicas(self) -> None:
        """See that all processes that hold the same weights hold the same bits: each computes its updates for itself. All
        ranks have to call it. Raises Hopeless on all."""
        held = self.shards.weights().values()
        check_same_weights(self.world, [tensor for _, tensor in held], sharded=self.run.zero_stage == 3)

    def state(self) -> Iterator[Fragment]:
        """What this process puts into a checkpoint, by name of the whole: weights, moments, error buffers, gradient
        scales. All ranks have to call it and take all."""
        for name, (piece, tensor) in self.shards.weights().items():
            if self.writes(name, piece):
                yield Fragment(f"model/{name}", piece.shape, piece.start, tensor)
        for name, piece in self.shards.pieces.items():
            if self.writes(name, piece):
                for moment, values in self.shards.moments(name).items():
                    yield Fragment(f"{moment}/{name}", piece.shape, piece.start, values)
        for name, piece, values in self.before_step.error_buffers(self._writer):
            if self.writes(name, piece):
                yield Fragment(name, piece.shape, piece.start, values)
        if self.world.is_main:
            yield Fragment("steps", (), 0, self.shards.steps().flatten())
        if self.scales is not None and self.world.is_main:
            for name, values in self.scales.state_dict().items():
                yield Fragment(f"gradient_scales/{name}", tuple(values.shape), 0, values)

    @torch.no_grad()
    def start_from(self, start: Start, mark: Callable[[], None] = lambda: None) -> None:
        """Take weights of a finished model, whatever each process holds of them. Raises ValueError on all when it is damaged."""
        held = {name: each for name, each in self.shards.weights().items() if start.takes(name)}
        pieces = {name: (piece.shape, piece.start, tensor) for name, (piece, tensor) in held.items()}
        fill_from_model(weights_file(start.folder), pieces, self.world, mark)
        self.statistics.keep()
        if self.run.zero_stage > 0:
            self._engine.optimizer.refresh_fp32_params()

    @torch.no_grad()
    def load_state(self, checkpoint: Checkpoint, mark: Callable[[], None] = lambda: None) -> None:
        """Restore what `state` gave, on any number of ranks and machines, all of which call it. `mark` is called at every
        tensor. Raises ValueError on all when some of it is damaged: nothing of it may be used then."""
        with Restoring(checkpoint, self.world, mark) as restoring:
            for name, (piece, tensor) in self.shards.weights().items():
                restoring.fill(f"model/{name}", tensor, piece.start, piece.shared)
            self.statistics.keep()
            if self.run.zero_stage > 0:
                self._engine.optimizer.refresh_fp32_params()
            dtypes = moment_dtypes(checkpoint, list(self.shards.pieces))
            self.shards.make_moments(int(restoring.read("steps")), dtypes)
            for name, piece in self.shards.pieces.items():
                held = self.shards.moments(name)  # below stage 3 nothing of some parameters, which others hold
                for moment in dtypes[name]:
                    restoring.fill(f"{moment}/{name}", held.get(moment, torch.empty(0)), piece.start, piece.shared)
            self.before_step.load_error_buffers(restoring)
            if self.scales is not None:
                names = list(self.scales.state_dict())
                found = {n: restoring.read(f"gradient_scales/{n}") for n in names if n != "micro_batches"}
                if "gradient_scales/micro_batches" in restoring:
                    found["micro_batches"] = restoring.read("gradient_scales/micro_batches")
                else:  # of a time when M was the processes, accumulation or not
                    found["micro_batches"] = torch.tensor(float(len(checkpoint.values["loaders"])))
                self.scales.load_state_dict(found)


def sharded_construction(run: Run, world: World) -> AbstractContextManager:
    """Within the block a model is sharded as it is made, module by module, if the run shards weights, and never whole."""
    if run.zero_stage < 3:
        return nullcontext()
    group = world.machines.shards if world.machines else None
    return library.load().zero.Init(data_parallel_group=group, config_dict_or_path=settings(run, world))


def _prepare(objective: Any, run: Run, world: World) -> GradientScales | None:
    """Make of an objective, whose model was written for one device, what the run asks for; its gradient scales, if any.

    All of it comes before DeepSpeed, which hangs its hooks on the modules as it finds them and reads the marks once. Among
    itself the order is free: scales change the resblocks' forward passes, recomputation those of the layers around them, and
    a compiler looks at them when it is first called. What a stage changes of its model it has changed before.
    """
    scales = gradient_scales(objective, run, world)
    if run.recompute:
        recompute_blocks(objective.model)
    if run.compile:  # not the model: an objective calls what it likes of it, and only a call is compiled
        objective.compile()
    library.communicate_in_16_bit(objective, run)
    if run.zero_stage == 3:
        put_gathered_linears(objective)
        # a resblock's weights come and go together
        blocks = list({type(block) for block in objective.model.resblocks()})
        library.load().utils.set_z3_leaf_modules(objective, blocks)
    return scales


def _settle(objective: Any, zero: Any, run: Run) -> None:
    """What can only be done when DeepSpeed has taken the weights over.

    Args:
        objective: with the model
        zero: DeepSpeed's optimiser around the client's
        run: its sharding
    """
    if run.zero_stage == 0:
        # convolutions are faster so (1.7 times on a CPU). DeepSpeed broadcasts weights as bytes and refuses such ones at its
        # start; sharded parameters are flat and cannot be
        objective.to(memory_format=torch.channels_last)
    if run.zero_stage == 3 and run.offload == "device":
        pairs = zip(zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, strict=True)
        assert all(flat.data_ptr() == held.data_ptr() for flat, held in pairs), "DeepSpeed has a second copy of weights"
    if run.weights == "16-bit":
        weights16.store(objective.model, zero, run)
