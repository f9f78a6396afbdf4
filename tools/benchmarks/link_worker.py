"""A process of `bench.py link`: trains priors, one after the other, as the jobs in a file say, and notes what came of each.

    python tools/benchmarks/link_worker.py JOBS.json DATA RESULTS.jsonl

A job is a dict: `mbit` of the link, which only the notes need; what machines exchange, and when; `seed`; `steps`;
`validate`; and the sizes of `Job`. The first process adds a line to RESULTS.jsonl for each: the job, the seconds of its
updates and those in which each waited for the exchange, the bytes that the first machine has sent in each, the loss on held-out
pairs where it was asked for.
"""

from __future__ import annotations

import gc
import itertools
import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.extend(str(Path(__file__).parents[up]) for up in (1, 2))  # so that it runs without an installation

from benchmarks import machines, patterns
from dalle.cli.allocator import keep_freed_memory
from dalle.cluster.topology import World, grouped, joined
from dalle.config import Compression, Optimizer, PriorModel, Run, Schedule, TrainPrior
from dalle.gradients.overlap import Overlap
from dalle.gradients.sharded import Sharded
from dalle.stages.prior import stage
from dalle.training import loop

TEXT_SLOTS = 32
_WARMUP_STEPS = 20


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        mbit: of the link it runs over; null where it has no limit
        rank: of the compression; null sends gradients as they are
        wire: in which what is not compressed is sent
        overlapped: whether exchanges begin within the backward pass
        format: of what is compressed, and of the error buffers
        seed: of weights and data
        steps: updates
        validate: whether the loss on held-out pairs is wanted
    """

    mbit: float | None
    rank: int | None
    wire: Any
    overlapped: bool
    format: Any
    seed: int
    steps: int
    validate: bool
    width: int
    depth: int
    batch_size: int
    step_size: float
    precision: Any

    def config(self, data: Path, output: Path) -> TrainPrior:
        """The training's settings: weights sharded over the processes of a machine, replicated between machines."""
        compression = Compression(self.rank, self.format) if self.rank else None
        schedule = Schedule(self.step_size, self.step_size / 10, end_step=self.steps, warmup_steps=_WARMUP_STEPS)
        return TrainPrior(
            data=str(data / "train"),
            dvae=str(data / "dvae"),
            tokenizer=str(data / "tokenizer.json"),
            valid_data=str(data / "valid"),
            output=str(output),
            optimizer=Optimizer(schedule, beta2=0.96, weight_decay=4.5e-2, clip_norm=4.0),
            run=Run(
                steps=self.steps,
                batch_size=self.batch_size,
                seed=self.seed,
                precision=self.precision,
                zero_stage=3,
                compression=compression,
                wire=self.wire,
                ema_decay=None,
                log_every_steps=self.steps,
                validate_every_steps=0,
                validation_batches=10**6,  # all there are
                checkpoint_every_minutes=0,
                loader_workers=0,
            ),
            model=PriorModel(
                text_slots=TEXT_SLOTS,
                grid=patterns.GRID,
                text_vocabulary=patterns.TEXT_VOCABULARY,
                codebook_size=patterns.CODEBOOK_SIZE,
                width=self.width,
                depth=self.depth,
                heads=self.width // 64,
            ),
            bpe_dropout=0.0,
        )


def main() -> None:
    """Run the jobs."""
    keep_freed_memory()  # as all commands do
    jobs_file, data, results_file = map(Path, sys.argv[1:])
    jobs = [Job(**values) for values in json.loads(jobs_file.read_text())]
    output = data / "run"  # of all processes: each saves its part of the checkpoint there
    with joined() as world:
        world = grouped(world, jobs[0].config(data, output).run)  # the same machines for all
        for job in jobs:
            notes = _train(job, data, output, world)
            gc.collect()  # the engine refers to itself
            world.barrier()
            if world.is_main:
                shutil.rmtree(output)
                with results_file.open("a") as file:
                    file.write(json.dumps({"job": asdict(job), **notes}) + "\n")


def _train(job: Job, data: Path, output: Path, world: World) -> dict:
    config = job.config(data, output)
    made = stage(config, world)
    prepare, validate = made.prepare, made.validate
    began: list[tuple[float, int]] = []
    valid: dict[str, float] = {}

    def noted(micro_batches: list[dict], step: int, world: World) -> None:
        began.append((time.perf_counter(), machines.card_sent_bytes()))
        prepare(micro_batches, step, world)

    def kept() -> dict[str, float]:
        assert validate is not None
        valid.update(validate())
        return valid

    made.prepare, made.validate, made.draw = noted, kept if job.validate else None, None
    with _exposed(job.overlapped) as waited_s:
        loop.train(made, config.optimizer, config.run, output, world)
    pairs = list(itertools.pairwise(began))
    model: Any = made.objective.model  # whose parameters DeepSpeed has sharded
    return {
        "update_s": [after[0] - before[0] for before, after in pairs],
        "exposed_s": waited_s[: len(pairs)],
        "sent_bytes": [after[1] - before[1] for before, after in pairs],
        "valid": valid,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "parameters": sum(p.ds_numel for p in model.parameters()),
    }


@contextmanager
def _exposed(overlapped: bool) -> Iterator[list[float]]:
    """Seconds in which each update of a training within the block has waited, its backward pass having ended, for what machines
    exchange. Not overlapped, gradients are not heard of before that."""
    plain, waited_s = Overlap.finish, []

    def finish(self: Overlap) -> None:
        began_s = time.perf_counter()
        plain(self)
        waited_s.append(time.perf_counter() - began_s)

    unheard = nullcontext() if overlapped else patch.object(Sharded, "tell_reduced", lambda self, told: False)
    with patch.object(Overlap, "finish", finish), unheard:
        yield waited_s


if __name__ == "__main__":
    main()
