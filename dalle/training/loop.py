"""The one training loop, for every stage.

A stage brings its objective, its data and what it shows; the loop brings updates, averages, logging, validation,
pictures, checkpoints and stopping. Metrics stay on the device between two log lines: nothing in a step waits for them.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dalle.checkpoints.checkpoint import NotSaved
from dalle.cluster.topology import World
from dalle.cluster.watch import Watch
from dalle.config import Optimizer, Run
from dalle.config.checks import Hopeless
from dalle.data.counts import totalled
from dalle.data.loading import to_device
from dalle.optim.ema import EMA
from dalle.optim.plateau import PlateauRule
from dalle.outputs.whole import copy_file, replace_text
from dalle.reporting.machine_limit import matrix_flops_per_s, peak_memory_bytes
from dalle.reporting.samples import SamplesLog
from dalle.reporting.telemetry import Telemetry
from dalle.training.engine import Engine
from dalle.training.players import Players
from dalle.training.saving import Saver
from dalle.training.stage import Stage
from dalle.training.stopping import stop_requests

_POLL_STEPS = 5
"""Updates between two rounds of asking all processes whether one was told to stop, where they take less than a second."""
_BAD_UPDATES = 10
"""Skipped updates in a row that no smaller gradient scale could have saved, after which there is no point in going on."""
_USUAL_SKIPS = 0.2
"""Share of skipped updates up to which nothing is said of them: the paper's gradient scales skip about 5%."""
_OF_ALL_UPDATES = {"skipped", "finite", "in_a_row", "hopeless", "update_s"}
"""Figures that are means over all updates, and not over those whose losses were finite alone."""


class NotFinite(Hopeless):
    """No update could be made for long: losses or gradients were infinite or not a number."""


def train(
    stage: Stage,
    optimizer: Optimizer,
    run: Run,
    folder: Path,
    world: World,
    resume: bool = False,
    watch: Watch | None = None,
) -> bool:
    """Train to `run.steps` updates, or until Ctrl-C, and write the model's folder.

    Returns:
        whether it came to its end, the same on every rank; False when it was interrupted
    """
    watch = watch or Watch(world, run.silence_limit_s)  # not entered it watches nothing
    return _Training(stage, optimizer, run, folder, world, resume, watch).run_all()


class _Training:
    def __init__(
        self, stage: Stage, optimizer: Optimizer, run: Run, folder: Path, world: World, resume: bool, watch: Watch
    ):
        self.stage, self.run, self.world = stage, run, world
        self.step_size, self.watch = optimizer.step_size.over(run.steps), watch
        self.step = 0
        watch.mark(0, "building the engine")
        self.engine: Engine | Players
        if stage.opponents:
            self.engine = Players(stage.opponents, stage.objective, optimizer, run, world)
        else:
            self.engine = Engine(stage.objective, optimizer, run, world)
        if stage.start is not None and stage.start.reads:  # before the averages, which begin with these weights
            self.engine.start_from(stage.start, lambda: watch.mark(0, "reading the weights it starts from"))
        self.ema = None
        if run.ema_decay is not None:
            self.ema = EMA(self.engine.shards.weights(), run.ema_decay, run.ema_every_steps)
        warmup_steps = self.step_size.warmup_steps
        assert isinstance(warmup_steps, int), "`over` has made updates of shares"
        self.plateau = PlateauRule(optimizer.plateau, warmup_steps) if optimizer.plateau else None
        self.saver = Saver(stage, optimizer, run, folder, self.engine, self.ema, self.plateau)
        if resume:
            self.step = self.saver.resume(lambda: watch.mark(0, "reading a checkpoint"))
        flops_per_unit = limit_flops_per_s = None
        if stage.flops_per_sample is not None:
            flops_per_unit = stage.flops_per_sample / stage.units_per_sample
            # before the loader's workers are busy on the same cores; on all ranks at once, as they will train
            limit_flops_per_s = world.size * matrix_flops_per_s(world.device, run.precision)
        watch.mark(self.step, "waiting for the first data")
        self.batches = iter(stage.loader)
        if self.step < run.steps:
            # before anything is written: data that cannot be used leave no folder behind
            self.batches = itertools.chain([next(self.batches)], self.batches)
        if world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in stage.files.items():  # never half of one: --resume reads config.yaml
                (folder / name).parent.mkdir(exist_ok=True)
                if isinstance(content, Path):
                    copy_file(content, folder / name)
                else:
                    replace_text(folder / name, content)
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
            started_from={"folder": stage.start.folder, **stage.start.links} if stage.start else None,
            tensorboard=run.tensorboard,
        )
        self.samples = SamplesLog(folder, self.telemetry.warn, world.is_main)
        self._announce()
        self.waited_s = 0.0
        self.logged_at = time.monotonic()
        self.poll_steps = 1
        self.losses_finite: list[torch.Tensor] = []  # of each update since the last log line, bool scalars
        self.skipped_in_a_row, self.hopeless_in_a_row = torch.zeros(2, device=world.device)
        self.saved_at = time.monotonic()

    def _announce(self) -> None:
        """What is about to happen, before the first figures, which may be minutes away."""
        run, parameters = self.run, sum(math.prod(piece.shape) for piece in self.engine.shards.pieces.values())
        begun = f", begun with those of {self.stage.start.folder}" if self.stage.start else ""
        self.telemetry.tell(
            f"{parameters:,} parameters{begun}, trained on {self.stage.trained_on or 'data'}; {run.steps - self.step:,} updates of {run.batch_size}, "
            f"figures every {run.log_every_steps}; curves and pictures in {self.saver.folder / 'report.html'}"
        )
        for warning in (*self.stage.warnings, *self.saver.notes):
            self.telemetry.warn(warning)
        self.telemetry.begin(run.log_every_steps)

    def run_all(self) -> bool:
        with stop_requests() as stop:
            try:
                finished = self._updates(stop)
                self._save_checkpoint(last=True)
                if finished:
                    # what is worth most first: pictures may fail, or be interrupted
                    self.saver.save_model()
                    self._show()
            except BaseException:
                self.telemetry.close("failed", self.samples.lines())
                raise
            lines = [*self.samples.lines(), *self.stage.conclude()]
            self.telemetry.close("finished" if finished else "stopped", lines)
            if self.stage.is_alone and not finished:
                self.telemetry.tell("--resume goes on from here")
            elif self.stage.is_alone and self.stage.next_command:
                self.telemetry.tell(f"next: {self.stage.next_command}")
        return finished

    def _updates(self, stop: Callable[[], bool]) -> bool:
        """Updates up to the last; False when stopped before."""
        run, stage, start = self.run, self.stage, self.step
        self.engine.check_replicas()
        totals: dict[str, torch.Tensor] = {}
        counted = 0
        while self.step < run.steps:
            self.watch.mark(self.step, "waiting for data")
            micro_batches = [to_device(self._next_batch(), self.world.device) for _ in range(run.accumulation_steps)]
            self.watch.mark(self.step, "update")
            stage.prepare(micro_batches, self.step, self.world)
            step_size = self._step_size(self.step)
            metrics = _finite_only(self.engine.update(micro_batches, self.step, step_size, self.ema))
            self.step += 1
            if self.step == start + 1:
                self.telemetry.warmed_up(self.step)
            counted += 1
            self.skipped_in_a_row = (self.skipped_in_a_row + 1) * metrics["skipped"]
            self.hopeless_in_a_row = (self.hopeless_in_a_row + 1) * metrics.pop("hopeless")
            self.losses_finite.append(metrics["finite"] > 0)
            for name, value in metrics.items():
                totals[name] = totals[name] + value if name in totals else value
            # several processes have to agree on stopping, and asking one another makes them wait
            polling = self.world.size == 1 or self.step % self.poll_steps == 0
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

    def _step_size(self, step: int) -> float:
        return self.step_size(step) * (self.plateau.factor if self.plateau else 1.0)

    def _next_batch(self) -> dict:
        began_s = time.monotonic()
        batch = next(self.batches)
        self.waited_s += time.monotonic() - began_s
        return batch

    def _log(self, totals: dict[str, torch.Tensor], counted: int) -> None:
        self.engine.check_replicas()  # so also before each checkpoint
        totals["in_a_row"], totals["hopeless"] = counted * self.skipped_in_a_row, counted * self.hopeless_in_a_row
        totals["update_s"] = torch.tensor(time.monotonic() - self.logged_at, device=self.world.device)
        self.logged_at = time.monotonic()
        names = sorted(totals)
        flat = torch.cat([totals[n].float().reshape(-1) for n in names])
        parts = (self.world.mean(flat) / counted).split([totals[n].numel() for n in names])
        means = dict(zip(names, parts, strict=True))
        for name in means.keys() - _OF_ALL_UPDATES:  # the others are over those that count, and NaN where none does
            means[name] = means[name] / (1 - means["skipped"] if name.endswith("gradient_norm") else means["finite"])
        means |= self.stage.derive({n: means.pop(n) for n in names if totals[n].ndim})
        values = dict(zip(means, torch.stack([mean.reshape(()) for mean in means.values()]).tolist(), strict=True))
        skipped = round(values["skipped"] * counted)
        in_a_row, hopeless = round(values.pop("in_a_row")), round(values.pop("hopeless"))
        # a mean over the ranks: all of them take the same
        self.poll_steps = _POLL_STEPS if values.pop("update_s") < 1 else 1
        finite = values.pop("finite")
        values = {
            "loss": values.pop("loss"),
            "step_size": self._step_size(self.step - 1),
            **values,
            "memory_gb": peak_memory_bytes(self.world.device) / 1e9,
        }
        if self.engine.scales is not None:
            values["gradient_scales"] = self.engine.scales.scales.log2().tolist()
        waited_s, self.waited_s = self.waited_s, 0.0
        self.telemetry.log(self.step, values, counted * self.run.batch_size * self.stage.units_per_sample, waited_s)
        if self.plateau and finite:
            self.plateau.take(values["loss"], counted, self.step)
        self.samples.take(totalled(self.world.gather(self.stage.samples())))
        for warning in self.stage.check(self.step, values) if finite else []:
            self.telemetry.warn(warning)
        losses_finite, self.losses_finite = self.losses_finite, []
        if finite < 1 or skipped > _USUAL_SKIPS * counted:
            self._explain(losses_finite, skipped, in_a_row, hopeless)
        if self.engine.scales is not None:
            self.engine.scales.failures.zero_()
        if (why := self.stage.give_up()) is not None:
            self._save_checkpoint()
            self._show()  # what it has come to
            raise Hopeless(why)

    def _explain(self, losses_finite: list[torch.Tensor], skipped: int, in_a_row: int, hopeless: int) -> None:
        """Say why updates were skipped; give up when that cannot change."""
        finite_RU = torch.stack(self.world.gather(torch.stack(losses_finite).cpu()))  # by rank and update
        counted = len(losses_finite)
        bad = {rank: n for rank, n in enumerate((~finite_RU).sum(dim=1).tolist()) if n}
        who = ", ".join(f"rank {rank} in {n}" for rank, n in list(bad.items())[:4])
        reasons, patience = [f"the loss was not finite on {who}"] if bad else [], _BAD_UPDATES
        if skipped > (~finite_RU.all(dim=0)).sum():  # the losses do not explain all
            scales = self.engine.scales
            reasons.append(scales.blame() if scales else "the norm of the gradients was not finite")
            if scales:  # one may take long to become small enough
                patience += scales.rule.longest_descent_updates
        why = "; ".join(reasons)
        self.telemetry.warn(f"{skipped} of the {counted} updates up to {self.step} were skipped: {why}")
        if in_a_row < patience and hopeless < _BAD_UPDATES:
            return
        self._save_checkpoint()
        raise NotFinite(
            f"the last {in_a_row} updates up to {self.step} were skipped: {why}. Weights and moments are as before them, and "
            "saved: look at the data, or continue with --resume and a smaller optimizer.step_size"
        )

    def _show(self) -> None:
        """Validation figures and pictures, with the averaged weights."""
        self.watch.mark(self.step, "validating")
        model = self.engine.model
        with self.telemetry.paused(), self.engine.averaged(self.ema), torch.no_grad(), self.engine.autocast():
            model.eval()
            torch.manual_seed(self.run.seed)
            if self.stage.validate:
                figures = self.stage.validate()
                if self.world.is_main:
                    self.telemetry.log_validation(self.step, figures)
            if self.engine.fits_whole():
                with self.engine.whole_weights():
                    pictures = self.stage.draw() if self.stage.draw and self.world.is_main else {}
                for name, image in pictures.items():
                    self.telemetry.pictures(name, self.step, image)
            model.train()
        self.world.barrier()

    def _is_due(self) -> bool:
        return time.monotonic() - self.saved_at > 60 * self.run.checkpoint_every_minutes

    def _save_checkpoint(self, last: bool = False) -> None:
        """Write a checkpoint. One that could not be written is a warning, unless it is the last."""
        self.watch.mark(self.step, "saving a checkpoint")
        try:
            with self.telemetry.paused():
                self.saver.save(self.step)
        except NotSaved as error:
            if last:
                raise
            self.telemetry.warn(str(error))
        self.saved_at = time.monotonic()


def _finite_only(metrics: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The metrics of an update, zero where this rank's loss was not finite, and `finite`, whether it was. Norms of gradients count in
    updates that were not skipped."""
    finite, taken = metrics["loss"].isfinite(), metrics["skipped"] == 0
    counts = {name: finite & taken if name.endswith("gradient_norm") else finite for name in metrics}
    return {name: value.where(counts[name], 0) for name, value in metrics.items()} | {
        "skipped": metrics["skipped"],
        "hopeless": metrics["hopeless"],
        "finite": finite.float(),
    }
