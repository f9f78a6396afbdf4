"""What a training run leaves on disk to go on from, and the model that comes out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dalle.checkpoints import checkpoint
from dalle.checkpoints.checkpoint import Fragment
from dalle.checkpoints.restoring import Restoring
from dalle.config import Optimizer, Run
from dalle.config.checks import Hopeless, warn
from dalle.data.identity import difference, identity
from dalle.models.folder import save_weights
from dalle.models.weights import is_finite
from dalle.optim.ema import EMA
from dalle.optim.plateau import PlateauRule
from dalle.training.engine import Engine
from dalle.training.players import Players
from dalle.training.stage import Stage


class Saver:
    """Checkpoints of everything that changes while a run trains.

    Args:
        stage, optimizer, run: what is trained and how
        folder: the model's
        engine, ema, plateau: what is saved beside the positions in the data
    """

    def __init__(
        self,
        stage: Stage,
        optimizer: Optimizer,
        run: Run,
        folder: Path,
        engine: Engine | Players,
        ema: EMA | None,
        plateau: PlateauRule | None,
    ):
        self.stage, self.optimizer, self.run, self.folder = stage, optimizer, run, folder
        self.engine, self.ema, self.plateau, self.world = engine, ema, plateau, engine.world
        self.notes: list[str] = []
        self._data_found: dict[str, Any] | None = None

    def save(self, step: int) -> None:
        """Write a checkpoint after `step` updates; all ranks call it.

        Raises:
            NotSaved: on all ranks; older checkpoints are as they were
            Hopeless: on all ranks: weights are not finite. Older checkpoints are as they were
        """
        fragments = list(self.engine.state())  # before anything may fail: ranks talk to one another meanwhile
        if self.ema:
            averages = self.ema.averages
            held = {name: piece for name, piece in self.ema.pieces.items() if self.engine.writes(name, piece)}
            fragments += [Fragment(f"ema/{n}", p.shape, p.start, averages[n]) for n, p in held.items()]
        self._check_finite(step, fragments)
        values = {
            "loaders": self.world.gather(self.stage.loader.state_dict()),
            "plateau": self.plateau.state_dict() if self.plateau else None,
            "identity": self._identity(),
            "run_steps": self.run.steps,
            "data": self._data() if self.world.is_main else None,
            "export": {
                "kind": self.stage.kind,
                "config": asdict(self.stage.model_config),
                "links": {**self.stage.links, **self.stage.facts},
            },
        }
        checkpoint.save(self.folder, step, fragments, values, self.run.keep_checkpoints, self.world)

    def _check_finite(self, step: int, fragments: list[Fragment]) -> None:
        """Raises Hopeless on all ranks where the weights or averages that one of them writes are not finite."""
        weights = [f for f in fragments if f.name.split("/")[-2:-1] in (["model"], ["ema"])]
        broken = next((f.name.replace("model/", "", 1) for f in weights if not is_finite(f.values)), None)
        found = self.world.gather((broken, any(self.folder.glob("checkpoints/step-*"))))
        names = [name for name, _ in found if name]
        if names:
            is_earlier = any(there for _, there in found)
            advice = "go on from the checkpoint before with --resume and" if is_earlier else "begin once more with"
            raise Hopeless(
                f"the weights {names[0]} are not finite after {step} updates, so nothing is written of them: {advice} a smaller "
                "optimizer.step_size"
            )

    def resume(self, mark: Callable[[], None] = lambda: None) -> int:
        """Restore the newest checkpoint, perhaps of another number of processes and machines; the updates it has seen, or
        0 where there is none. What a user should know of it is in `notes`. While it is read all ranks call `mark` again
        and again.

        Raises:
            ValueError: it is damaged, or of another run
        """
        # one answer, whatever each file system shows
        found = self.world.gather(checkpoint.latest(self.folder) if self.world.is_main else None)[0]
        if found is None:  # of a run that was cut off before, or while, the first was written
            self.notes.append(f"--resume: no checkpoint in {self.folder} is whole: the run begins from the beginning")
            return 0
        opened = checkpoint.verify(found, self.world, mark)
        then, now = opened.values["identity"], self._identity()
        changes = [
            f"--resume: {found} was made with {name} {json.dumps(then.get(name))}, not {json.dumps(now.get(name))}: set it "
            "back, or name another --output"
            for name in {**then, **now}
            if then.get(name) != now.get(name)
        ]
        if changes:
            raise ValueError("\n".join(changes))
        if "error_scales" in opened.shapes and self.run.compression is None and self.world.is_main:
            warn("what the error buffers held back is dropped: this run does not compress")
        self.engine.load_state(opened, mark)
        if self.ema:
            with Restoring(opened, self.world, mark) as restoring:
                for name, piece in self.ema.pieces.items():
                    restoring.fill(f"ema/{name}", self.ema.averages[name], piece.start, piece.shared)
        if self.plateau:
            self.plateau.load_state_dict(opened.values["plateau"])
        if self.world.is_main and (other := difference(opened.values.get("data"), self._data())):
            self.notes.append(f"--resume: the data are not those of before ({other}): goes on with them where it stood")
        recorded = opened.values["export"]["links"]
        for name, value in self.stage.facts.items():
            if recorded.get(name, value) != value:
                self.notes.append(
                    f"--resume: {name} was {recorded[name]} and is {value}, which is what the weights' header will say, though "
                    "most of the training may have been another"
                )
        before = opened.values.get("run_steps", self.run.steps)
        if before != self.run.steps and self.optimizer.step_size.has_shares:
            self.notes.append(
                f"--resume: run.steps was {before} and is {self.run.steps}: schedules that are shares of the run go on as if it "
                "had been so from the beginning; say them in updates to keep them as they were"
            )
        # together the ranks of then know where all of the data stand
        loaders = opened.values["loaders"]
        self.stage.loader.load_state_dict({name: value for state in loaders for name, value in state.items()})
        return opened.step

    def save_model(self) -> None:
        """The averaged weights in one file. Those that are sharded come from the checkpoint that was just written."""
        if not self.world.is_main:
            return
        if self.run.zero_stage == 3:
            source = "ema" if self.ema else "model"
            latest = checkpoint.latest(self.folder)
            assert latest is not None
            opened = checkpoint.open_checkpoint(latest)
            names = self.engine.shards.weights()
            weights = {n: opened.read(f"{source}/{n}").view(opened.shapes[f"{source}/{n}"]) for n in names}
        else:
            weights = self.ema.averages if self.ema else self.engine.model.state_dict()
        save_weights(
            self.folder, self.stage.kind, weights, self.stage.model_config, {**self.stage.links, **self.stage.facts}
        )

    def _data(self) -> dict[str, Any]:
        if self._data_found is None:  # once: it looks at every file
            self._data_found = identity(self.stage.data)
        return self._data_found

    def _identity(self) -> dict[str, Any]:
        """What has to stay the same when a run is continued; JSON-able."""
        model = {f"model.{name}": value for name, value in asdict(self.stage.model_config).items()}
        names = ["seed", "batch_size", "ema_decay", "ema_every_steps"]
        if self.stage.kind != "prior":  # whose loss alone is a mean over the whole batch, however it is taken apart
            names.append("accumulation_steps")
        run = {f"run.{name}": getattr(self.run, name) for name in names}
        optimizer: dict[str, Any] = {"optimizer": self.optimizer.name, "optimizer.moments": self.optimizer.moments}
        if self.optimizer.plateau:
            optimizer["optimizer.plateau"] = asdict(self.optimizer.plateau)
        return json.loads(json.dumps({"kind": self.stage.kind, **model, **run, **optimizer, **self.stage.links}))
