"""What the processes of `test_cluster.py` run: a tiny prior through the engine, on this process's part of fixed batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch

from dalle.checkpoints import checkpoint
from dalle.cluster.topology import World, grouped
from dalle.config import Optimizer, PriorModel, PriorObjective, Run, Schedule
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective as PriorLoss
from dalle.training.engine import Engine, sharded_construction

SIZES = PriorModel(text_slots=4, grid=2, text_vocabulary=5, codebook_size=7, width=32, depth=2, heads=2)
_BATCH = 8


def make(world: World, optimizer: dict | None = None, **run) -> Engine:
    """An engine with a prior of fixed random weights."""
    run = Run(steps=6, batch_size=_BATCH, **{"precision": "fp32", **run})
    world = grouped(world, run)
    torch.manual_seed(0)
    with sharded_construction(run, world):
        model = Prior(SIZES)
    settings = Optimizer(Schedule(1e-2, 1e-2), **{"beta2": 0.96, "clip_norm": 1.0, **(optimizer or {})})
    return Engine(PriorLoss(model, PriorObjective()), settings, run, world)


def train(
    engine: Engine, first: int = 0, last: int = 6, spoilt: tuple[int, int] | None = None
) -> dict[str, list[float]]:
    """Updates `first` to `last` − 1: mean losses over the processes, gradient norms, and whether each was skipped.

    Args:
        spoilt: (update, rank) whose loss is made not a number
    """
    world, told = engine.world, {"loss": [], "gradient_norm": [], "skipped": []}
    count = engine.run.accumulation_steps
    for step in range(first, last):
        parts = range(world.rank * count, (world.rank + 1) * count)
        micro_batches = [micro_batch(step, part, world.size * count) for part in parts]
        if spoilt == (step, world.rank):
            for each in micro_batches:
                each["text_targets"] = torch.tensor(float("nan"))
        micro_batches = [{name: t.to(world.device) for name, t in each.items()} for each in micro_batches]
        metrics = engine.update(micro_batches, step, 1e-2)
        told["loss"].append(world.mean(metrics["loss"]).item())
        told["gradient_norm"].append(metrics["gradient_norm"].item())
        told["skipped"].append(metrics["skipped"].item())
    return told


def micro_batch(step: int, part: int, parts: int) -> dict[str, torch.Tensor]:
    """One of the parts of an update's batch, in the order of the processes and then of their micro-batches."""
    generator = torch.Generator().manual_seed(step)
    text_BU = torch.randint(0, 5, (_BATCH, 3), generator=generator)
    codes_BI = torch.randint(0, 7, (_BATCH, 4), generator=generator)
    mine = slice(part * _BATCH // parts, (part + 1) * _BATCH // parts)
    return {"text_BU": text_BU[mine], "codes_BI": codes_BI[mine], "text_targets": torch.tensor(3.0 * _BATCH / parts)}


def given(engine: Engine) -> dict[str, torch.Tensor]:
    """What the optimiser is given in the updates from now on, by name: this process's parts, flat."""
    zero, seen = engine._engine.optimizer, {}
    if engine.run.zero_stage == 3:
        update = zero._optimizer_step

        def updated(number):
            flat = zero.fp32_partitioned_groups_flat[number]
            for place in engine.shards.places()[flat]:
                part = flat.grad.narrow(0, place.offset, place.piece.size)
                seen[place.name] = (
                    engine._client.gradients[place.name].clone() if part.dtype.itemsize == 2 else part.clone()
                )
            update(number)

        zero._optimizer_step = updated
        return seen
    step = engine.before_step

    def prepared():
        told = step()
        seen.update({name: gradient.flatten().clone() for name, gradient in engine.shards.gradients().items()})
        return told

    prepared.open, prepared.close = step.open, step.close
    engine.before_step = prepared
    return seen


def bits(tensors: Iterable[torch.Tensor]) -> str:
    """The same for the same bits alone."""
    return hashlib.sha256(b"".join(t.detach().cpu().contiguous().numpy().tobytes() for t in tensors)).hexdigest()


def spoilt(world: World, name: str, folder: str, **run) -> tuple[list[float], list[str], list[float]]:
    """An infinite gradient of one parameter, on rank 1, in the third of four updates: whether that was skipped, the kinds of what
    it has changed, and whether the next one was skipped."""
    engine = make(world, **run)
    train(engine, 0, 2)
    before = whole_state(engine, f"{folder}/before")
    (parameter,) = [p for n, p in engine.model.named_parameters() if n == name]
    hook = parameter.register_hook(lambda g: g + torch.inf if world.rank == 1 else g)
    skipped = train(engine, 2, 3)["skipped"]
    hook.remove()
    after = whole_state(engine, f"{folder}/after")
    changed = sorted({n.split("/")[0] for n in before if not torch.equal(before[n], after[n])})
    return skipped, changed, train(engine, 3, 4)["skipped"]


def loss(engine: Engine) -> torch.Tensor:
    """Of the first batch, outside the engine's updates."""
    text_BU, codes_BI = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    return engine.objective({"text_BU": text_BU, "codes_BI": codes_BI, "text_targets": torch.tensor(6.0)})[0]


def save(engine: Engine, folder: str, step: int) -> None:
    checkpoint.save(Path(folder), step, list(engine.state()), {}, 9, engine.world)


def load(engine: Engine, folder: str) -> None:
    engine.load_state(checkpoint.verify(checkpoint.latest(Path(folder)), engine.world))


def whole_state(engine: Engine, folder: str) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint of the engine holds, whole, by name."""
    save(engine, folder, 0)
    opened = checkpoint.open_checkpoint(checkpoint.latest(Path(folder)))
    return {name: opened.read(name) for name in opened.shapes}
