"""The one training loop, for every stage.

A stage brings its objective, its data and what it shows; the loop brings updates, averages, logging, validation,
pictures, checkpoints and stopping. Metrics stay on the device between two log lines: nothing in a step waits for them.
"""

from __future__ import annotations

import itertools
import json
import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from dalle.config import Optimizer, Run
from dalle.models.flops import matrix_flops_per_s
from dalle.models.folder import save_weights
from dalle.training import checkpoint
from dalle.training.ema import EMA
from dalle.training.engine import Engine
from dalle.training.telemetry import Telemetry
from dalle.training.topology import World

_POLL_STEPS = 5
"""Updates between two rounds of asking all processes whether one was told to stop."""


@dataclass
class Stage:
    """What is trained, and on what.

    Args:
        kind: "dvae", "prior" or "clip"
        objective: module with a `model`; called with a batch it returns (loss, metrics)
        loader: endless batches of this rank, with `state_dict`, and `load_state_dict` that takes the union of all ranks'
        unit: what is counted, "images" or "tokens"
        units_per_sample: how many of them a sample has
        model_config: sizes, written beside the weights
        flops_per_sample: floating-point operations of training on one; null where they are not counted
        prepare: makes an update's micro-batches ready: schedules, tokens, counts over all ranks
        validate: figures of the (averaged) model on held-out data; null where there is none
        draw: pictures of what the (averaged) model does
        check: from the logged figures to plain warnings
        derive: from the means, since the last log line and over all ranks, of metrics that are vectors to figures
        highlights: names of the figures that the progress bar shows beside loss and step size
        links: hashes of what it is trained with
        files: text files that belong into the model's folder, by name
    """

    kind: str
    objective: nn.Module
    loader: Any
    unit: str
    units_per_sample: int
    model_config: Any
    flops_per_sample: int | None = None
    prepare: Callable[[list[dict], int, World], None] = lambda micro_batches, step, world: None
    validate: Callable[[], dict[str, float]] | None = None
    draw: Callable[[], dict[str, Image.Image]] | None = None
    check: Callable[[int, dict[str, float]], list[str]] = lambda step, values: []
    derive: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = lambda vectors: {}
    highlights: tuple[str, ...] = ()
    links: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


class NotFinite(ValueError):
    """The loss became infinite or not a number."""


def train(stage: Stage, optimizer: Optimizer, run: Run, folder: Path, world: World, resume: bool = False) -> bool:
    """Train to `run.steps` updates, or until Ctrl-C, and write the model's folder.

    Returns:
        whether it came to its end, the same on every rank; False when it was interrupted
    """
    return _Training(stage, optimizer, run, folder, world, resume).run_all()


class _Training:
    def __init__(self, stage: Stage, optimizer: Optimizer, run: Run, folder: Path, world: World, resume: bool):
        self.stage, self.run, self.folder, self.world = stage, run, folder, world
        self.step = 0
        self.engine = Engine(stage.objective, optimizer, run, world)
        self.ema = EMA(self.engine.model, run.ema_decay) if run.ema_decay is not None else None
        if resume:
            self._resume()
        flops_per_unit = limit_flops_per_s = None
        if stage.flops_per_sample is not None:
            flops_per_unit = stage.flops_per_sample / stage.units_per_sample
            # before the loader's workers are busy on the same cores; on all ranks at once, as they will train
            limit_flops_per_s = world.size * matrix_flops_per_s(world.device, run.precision)
        self.batches = iter(stage.loader)
        if self.step < run.steps:
            # before anything is written: data that cannot be used leave no folder behind
            self.batches = itertools.chain([next(self.batches)], self.batches)
        if world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in stage.files.items():
                (folder / name).write_text(text, encoding="utf-8")
        self.telemetry = Telemetry(
            folder,
            folder.name,
            run.steps,
            stage.unit,
            world.is_main,
            run.wandb,
            start_step=self.step,
            highlights=stage.highlights,
            flops_per_unit=flops_per_unit,
            limit_flops_per_s=limit_flops_per_s,
        )
        self.waited_s = 0.0
        self.saved_at = time.monotonic()

    def run_all(self) -> bool:
        with _stop_requests() as stop:
            try:
                finished = self._updates(stop)
                self._save_checkpoint()
                if finished:
                    # what is worth most first: pictures may fail, or be interrupted
                    self._save_model()
                    self._show()
            except BaseException:
                self.telemetry.close("failed")
                raise
        self.telemetry.close("finished" if finished else "stopped, continue with --resume,")
        return finished

    def _updates(self, stop: Callable[[], bool]) -> bool:
        """Updates up to the last; False when stopped before."""
        run, stage = self.run, self.stage
        totals: dict[str, torch.Tensor] = {}
        counted = 0
        while self.step < run.steps:
            micro_batches = [self._to_device(self._next_batch()) for _ in range(run.accumulation_steps)]
            stage.prepare(micro_batches, self.step, self.world)
            metrics = self.engine.update(micro_batches, self.step)
            if self.ema:
                self.ema.update(self.step)
            self.step += 1
            counted += 1
            for name, value in metrics.items():
                totals[name] = totals[name] + value if name in totals else value
            # several processes have to agree on stopping, and asking one another makes them wait
            polling = self.world.size == 1 or self.step % _POLL_STEPS == 0
            stopping = polling and self.world.any(stop())
            logging = self.step % run.log_every_steps == 0 or self.step == run.steps
            if logging or stopping:
                self._log(totals, counted)
                totals, counted = {}, 0
            if stopping and self.step < run.steps:
                return False
            if run.validate_every_steps and self.step % run.validate_every_steps == 0 and self.step < run.steps:
                self._show()
            if run.checkpoint_every_minutes and logging and self.world.any(self._is_due()):
                self._save_checkpoint()
        return True

    def _next_batch(self) -> dict:
        began_s = time.monotonic()
        batch = next(self.batches)
        self.waited_s += time.monotonic() - began_s
        return batch

    def _to_device(self, batch: dict) -> dict:
        if self.world.device.type == "cuda":  # from other memory than pinned the copy would wait for the GPU
            batch = {k: v.pin_memory() if torch.is_tensor(v) else v for k, v in batch.items()}
        return {k: v.to(self.world.device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}

    def _log(self, totals: dict[str, torch.Tensor], counted: int) -> None:
        names = sorted(totals)
        flat = torch.cat([totals[n].float().reshape(-1) for n in names])
        parts = (self.world.mean(flat) / counted).split([totals[n].numel() for n in names])
        means = dict(zip(names, parts, strict=True))
        means |= self.stage.derive({n: means.pop(n) for n in names if totals[n].ndim})
        values = dict(zip(means, torch.stack([mean.reshape(()) for mean in means.values()]).tolist(), strict=True))
        values = {
            "loss": values.pop("loss"),
            "step_size": self.engine.optimizer_config.step_size(self.step - 1),
            **values,
            "memory_gb": _peak_memory_bytes(self.world.device) / 1e9,
        }
        waited_s, self.waited_s = self.waited_s, 0.0
        if not math.isfinite(values["loss"]):
            self.telemetry.log(self.step, values, 0)
            raise NotFinite(
                f"the loss is not finite at update {self.step}: continue from the latest checkpoint with --resume and a "
                "smaller optimizer.step_size, or set optimizer.clip_norm"
            )
        self.telemetry.log(self.step, values, counted * self.run.batch_size * self.stage.units_per_sample, waited_s)
        for warning in self.stage.check(self.step, values):
            self.telemetry.warn(warning)

    def _show(self) -> None:
        """Validation figures and pictures, with the averaged weights."""
        if not self.world.is_main:
            self.world.barrier()
            return
        model = self.engine.model
        averaged = self.ema.swapped_in() if self.ema else nullcontext()
        with self.telemetry.paused(), averaged, torch.no_grad(), self.engine.autocast():
            model.eval()
            torch.manual_seed(self.run.seed)
            if self.stage.validate:
                self.telemetry.log_validation(self.step, self.stage.validate())
            for name, image in (self.stage.draw() if self.stage.draw else {}).items():
                self.telemetry.pictures(name, self.step, image)
            model.train()
        self.world.barrier()

    def _is_due(self) -> bool:
        return time.monotonic() - self.saved_at > 60 * self.run.checkpoint_every_minutes

    def _save_checkpoint(self) -> None:
        tensors = self.engine.state()
        loaders = self.world.gather(self.stage.loader.state_dict())
        if self.ema:
            tensors |= {f"ema/{name}": tensor for name, tensor in self.ema.averages.items()}
        if self.world.is_main:
            values = {"loaders": loaders, "identity": self._identity()}
            with self.telemetry.paused():
                checkpoint.save(self.folder, self.step, tensors, values, self.run.keep_checkpoints)
        self.saved_at = time.monotonic()
        self.world.barrier()

    def _resume(self) -> None:
        found = checkpoint.latest(self.folder)
        if found is None:
            raise ValueError(f"--resume: {self.folder} holds no checkpoint")
        tensors, values = checkpoint.load(found)
        then, now = values["identity"], self._identity()
        changes = [
            f"--resume: {found} was made with {name} {json.dumps(then.get(name))}, not {json.dumps(now.get(name))}: set it "
            "back, or name another --output"
            for name in {**then, **now}
            if then.get(name) != now.get(name)
        ]
        if changes:
            raise ValueError("\n".join(changes))
        self.step = values["step"]
        self.engine.load_state(tensors, self.step)
        if self.ema:
            for name, average in self.ema.averages.items():
                average.copy_(tensors[f"ema/{name}"])
        # perhaps of another number of processes: together they know where all of the data stand
        self.stage.loader.load_state_dict({name: value for state in values["loaders"] for name, value in state.items()})

    def _identity(self) -> dict[str, Any]:
        """What has to stay the same when a run is continued; JSON-able."""
        model = {f"model.{name}": value for name, value in asdict(self.stage.model_config).items()}
        names = ("seed", "batch_size", "accumulation_steps", "ema_decay")
        run = {f"run.{name}": getattr(self.run, name) for name in names}
        muon = self.engine.optimizer_config.muon_step_size_factor is not None
        optimizer = {"optimizer": "Muon" if muon else "AdamW"}
        return json.loads(json.dumps({"kind": self.stage.kind, **model, **run, **optimizer, **self.stage.links}))

    def _save_model(self) -> None:
        if not self.world.is_main:
            return
        weights = self.ema.averages if self.ema else self.engine.model.state_dict()
        save_weights(self.folder, self.stage.kind, weights, self.stage.model_config, self.stage.links)


def _peak_memory_bytes(device: torch.device) -> int:
    """The most that this process has held: of the GPU in tensors, on a CPU of main memory in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else 1024 * resident


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C and SIGTERM do not end the process but set the flag that the given function reads; a
    second Ctrl-C ends it at once. One from the terminal reaches launcher and processes alike, and the launcher then sends
    SIGTERM too: neither that nor a quick repetition is a second wish."""
    asked_at: float | None = None

    def ask(signum, frame) -> None:
        nonlocal asked_at
        if signum == signal.SIGINT and asked_at is not None and time.monotonic() - asked_at > 1:
            raise KeyboardInterrupt
        asked_at = asked_at or time.monotonic()

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked_at is not None
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
