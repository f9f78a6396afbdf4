"""Bytes of tensors by kind, measured: a small prior trained by the real engine, as one process of several or alone. Prints JSON
from the first process."""

from __future__ import annotations

import json
import sys

import torch

from dalle.cluster.topology import grouped, joined
from dalle.config import Compression, Optimizer, PriorModel, PriorObjective, Run, Schedule
from dalle.models.prior import Prior
from dalle.objectives.prior import PriorObjective as PriorLoss
from dalle.optim.ema import EMA
from dalle.training.engine import Engine, sharded_construction


def held(world, model: dict, run: dict, optimizer: dict) -> dict[str, int]:
    """Bytes by kind of a process in the middle of its second update, between the backward pass and the step; of gradients and
    buckets the most that were there while it went on."""
    compression = run.pop("compression", None)
    run_settings = Run(steps=3, compression=Compression(**compression) if compression else None, **run)
    world = grouped(world, run_settings)
    torch.manual_seed(0)
    with sharded_construction(run_settings, world):
        prior = Prior(PriorModel(**model))
    engine = Engine(
        PriorLoss(prior, PriorObjective()), Optimizer(Schedule(1e-3, 1e-3), **optimizer), run_settings, world
    )
    ema = EMA(engine.shards.weights(), 0.9) if run_settings.ema_decay is not None else None
    found: dict[str, int] = {}
    step, before = engine.before_step, []
    for p in prior.parameters():
        p.register_post_accumulate_grad_hook(lambda _: before.append(_in_backward(engine)))

    whole: list[int] = []
    if run_settings.zero_stage == 3:  # at the last layer but the loss, when most weights are gathered
        prior.image_head.register_forward_pre_hook(
            lambda *_: whole.append(sum(p.data.nbytes for p in prior.parameters() if p.data.numel() == p.ds_numel))
        )

    def between():
        found.clear()
        found.update({kind: _bytes(tensors) for kind, tensors in _by_kind(engine, step.powersgd, ema).items()})
        found["buckets"] = max(found["buckets"], *(each["buckets"] for each in before))
        in_parameters = max(each["gradients"] for each in before)
        if run_settings.zero_stage == 3:  # they are on their way, whole
            found["whole gradients"] = in_parameters
        else:
            found["gradients"] = max(found["gradients"], in_parameters)
        found["gathered"] = whole[-1] if whole and world.size > 1 else 0  # alone a process gathers nothing
        return step()

    between.open, between.close = step.open, step.close
    engine.before_step = between
    config = prior.config
    rows = run_settings.micro_batch_size(world.size)
    for number in range(2):
        batches = [
            {
                "text_BU": torch.randint(config.text_vocabulary, (rows, config.caption_tokens)),
                "codes_BI": torch.randint(config.codebook_size, (rows, config.image_slots)),
                "text_targets": torch.tensor(float(rows * config.caption_tokens)),
            }
            for _ in range(run_settings.accumulation_steps)
        ]
        engine.update(batches, number, 1e-3, ema)
    engine.before_step = step  # which has the error buffers
    return found


def _by_kind(engine, powersgd, ema) -> dict[str, list]:
    zero, stage = engine._engine.optimizer, engine.run.zero_stage
    state = (zero.optimizer if stage else zero).state
    found = {
        "weights": [t for _, t in engine.shards.weights().values()],
        "gradients": _gradients(engine.model),
        "moments": [t for each in state.values() for name, t in each.items() if name != "step"],
        "error buffers": [t for s in powersgd.stacks() for t in (s.buffer_NSL, s.q0_LK)] if powersgd else [],
        "averages": list(ema.averages.values()) if ema else [],
    }
    if stage in (1, 2):
        found["weights"] += zero.single_partition_of_fp32_groups
        found["gradients"] += [t for group in zero.averaged_gradients.values() for t in group]
    if stage == 3:
        found["gradients"] += [zero.grad_partitions_flat_buffer]
    return found | {"buckets": _buckets(engine)}


def _in_backward(engine) -> dict[str, int]:
    """Gradients that the reduction has not yet taken from their parameters, and buckets, in which some of them lie."""
    buckets = _buckets(engine)
    return {"buckets": _bytes(buckets), "gradients": _bytes(buckets + _gradients(engine.model)) - _bytes(buckets)}


def _buckets(engine) -> list:
    if engine.run.zero_stage == 0:
        return []
    buffers = [bucket.buffer for bucket in engine._engine.optimizer.ipg_buckets.values()]
    return buffers if engine.run.zero_stage == 3 else [each for some in buffers for each in some]


def _gradients(model) -> list:
    return [p.grad for p in model.parameters() if p.grad is not None]


def _bytes(tensors) -> int:
    """Of their memory, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined() as here:
        told = [held(here, **case) for case in json.loads(sys.argv[1])]
        if here.is_main:
            print(json.dumps(told))
