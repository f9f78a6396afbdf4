"""Several players under one loop: a generator and the discriminator that it is trained against, each with an engine of its own.

In an update they take turns, on the same micro-batches and with the same noise: first the opponents, then the model against them as they
are by then. While one makes its move the parameters of the others are held fast: what they are called for leaves no gradient with them.
Towards loop and checkpoints all of it has the surface of one `Engine`, that of the model, whose averages and weights are the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
from torch import nn

from dalle.checkpoints.checkpoint import Checkpoint, Fragment
from dalle.cluster.topology import World
from dalle.config import Optimizer, Run
from dalle.gradients.partition import Piece, Shards
from dalle.optim.ema import EMA
from dalle.training.engine import Engine
from dalle.training.stage import Opponent, Start


class Players:
    """An engine for each player.

    Args:
        opponents: those who move before the model, by name, in the order of their moves
        objective: the model's
        optimizer: the model's; opponents bring their own
        run, world: as of an engine; nothing is sharded
    """

    def __init__(
        self, opponents: Mapping[str, Opponent], objective: nn.Module, optimizer: Optimizer, run: Run, world: World
    ):
        assert run.zero_stage == 0 and "fp16" not in run.precision, "the settings of a stage with players refuse it"
        self.run, self.world = run, world
        self._opponents = {name: Engine(o.objective, o.optimizer, run, world) for name, o in opponents.items()}
        self._step_sizes = {name: o.optimizer.step_size.over(run.steps) for name, o in opponents.items()}
        self._own = Engine(objective, optimizer, run, world)

    scales = None
    """Of 16-bit gradients, which several players do without."""

    @property
    def model(self) -> nn.Module:
        return self._own.model

    @property
    def shards(self) -> Shards:
        """Of the model alone."""
        return self._own.shards

    def update(
        self, micro_batches: list[dict], step: int, step_size: float, ema: EMA | None = None
    ) -> dict[str, torch.Tensor]:
        """A move of each, as `Engine.update`. The metrics are the model's by their names, and the opponents' with theirs before; `skipped`
        and `hopeless` are 1 where anyone's are, and `loss` is not a number where anyone's is not finite.

        Args:
            micro_batches: of this rank
            step: number of the update, from 0
            step_size: of the model; opponents follow their schedules
            ema: averages of the model
        """
        moves = {}
        for name, engine in self._opponents.items():
            with self._others_held(engine):
                moves[name] = engine.update(micro_batches, step, self._step_sizes[name](step))
        with self._others_held(self._own):
            own = self._own.update(micro_batches, step, step_size, ema)
        for engine in self._opponents.values():  # whom the model's move has called as well
            engine.statistics.settle(own["skipped"])
        everyone = [own, *moves.values()]
        finite = torch.stack([metrics["loss"].isfinite() for metrics in everyone]).all()
        joint = {n: torch.stack([metrics[n] for metrics in everyone]).amax() for n in ("skipped", "hopeless")}
        told = {
            f"{n}_{key}": value for n, metrics in moves.items() for key, value in metrics.items() if key not in joint
        }
        return {**told, **own, **joint, "loss": own["loss"].where(finite, torch.nan)}

    @contextmanager
    def _others_held(self, mover: Engine) -> Iterator[None]:
        held = [p for e in self._engines.values() if e is not mover for p in e.shards.parameters.values()]
        for p in held:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in held:
                p.requires_grad_(True)

    @property
    def _engines(self) -> dict[str, Engine]:
        """By what their tensors in a checkpoint begin with: the model's are named as those of a model alone."""
        return {"": self._own} | {f"{name}/": engine for name, engine in self._opponents.items()}

    def autocast(self) -> torch.autocast:
        return self._own.autocast()

    def averaged(self, ema: EMA | None) -> AbstractContextManager:
        """Within the block the model has the averaged weights, if there are any."""
        return self._own.averaged(ema)

    def fits_whole(self) -> bool:
        return self._own.fits_whole()

    def whole_weights(self) -> AbstractContextManager:
        return self._own.whole_weights()

    def writes(self, name: str, piece: Piece) -> bool:
        return self._own.writes(name, piece)

    def start_from(self, start: Start, mark: Callable[[], None] = lambda: None) -> None:
        """The model alone begins with finished weights."""
        self._own.start_from(start, mark)

    def check_replicas(self) -> None:
        """As `Engine.check_replicas`, of all players."""
        for engine in self._engines.values():
            engine.check_replicas()

    def state(self) -> Iterator[Fragment]:
        """What this process puts into a checkpoint, of all players."""
        for prefix, engine in self._engines.items():
            for fragment in engine.state():
                yield replace(fragment, name=prefix + fragment.name)

    def load_state(self, checkpoint: Checkpoint, mark: Callable[[], None] = lambda: None) -> None:
        """Restore what `state` gave."""
        for prefix, engine in self._engines.items():
            engine.load_state(checkpoint.under(prefix), mark)
