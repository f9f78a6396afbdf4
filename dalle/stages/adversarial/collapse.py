"""Is a GAN still a game of two? The document names how it ends: the discriminator's loss at 0, the generator's loss shooting up, the
same image whatever the text."""

from __future__ import annotations

import math

from dalle.cluster.topology import World
from dalle.config import StackGANObjective

_FIRST_STEPS = 100
"""Before which a discriminator that is far ahead is nothing unusual."""
_PATIENCE = 0.1
"""Share of a run for which something has to go on before it is ended."""
_WON = 0.05
"""Of what the discriminator's loss can fall by, what is left when it has won: drawings are as good as never believed."""
_LOST = {"cross-entropy": 8.0, "hinge": 30.0}
"""A generator's loss, without its KL, from which it is lost: −log D of 8 nats is a fake that is believed once in 3,000 times."""
_SPREADS = {
    "spread": ("images", 0.02),
    "caption_spread": ("images of different captions", 0.05),
    "noise_spread": ("images of one caption", 0.05),
}
"""Of whose images, and from where down they are all but the same, as a share of real images' spread. In a discriminator's features
small differences are larger than in pixels: what was 0.0025, 0.011 and 0.02 there is 0.009, 0.043 and 0.08."""


class Collapse:
    """Watches the figures of a run.

    Args:
        objective: which losses they are
        unconditional: whether the discriminator judges images alone, too
        run_steps: updates of the whole run
        stops: whether it is to be ended
        world: the processes, which all ask
    """

    def __init__(self, objective: StackGANObjective, unconditional: bool, run_steps: int, stops: bool, world: World):
        self._objective, self._run_steps, self._stops, self._world = objective, run_steps, stops, world
        self._least, self._chance = bounds(objective, unconditional)
        self._since: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._step = 0
        self.validated: dict[str, float] = {}
        """The latest figures of validation, on the rank that has them."""

    def check(self, step: int, values: dict[str, float]) -> list[str]:
        """Warnings of what has gone wrong; each again only when it has gone on for twice as long."""
        self._step = step
        found = self._found(values) if step > _FIRST_STEPS else {}
        self._since = {what: self._since.get(what, step) for what in found}
        self._told = {what: at for what, at in self._told.items() if what in found}
        told = []
        for what, advice in found.items():
            if step >= 2 * self._told.get(what, 0):
                self._told[what] = step
                told.append(f"{what}: {advice}")
        return told

    def give_up(self) -> str | None:
        """Why the run should end; null where it should not, or where nobody asked for that."""
        if not self._stops:
            return None
        least = max(1, round(_PATIENCE * self._run_steps))
        lasting = {what: since for what, since in self._since.items() if self._step - since >= least}
        everyones = self._world.gather(lasting)  # figures of validation are the first rank's
        lasting = {what: since for each in everyones for what, since in each.items()}
        if not lasting:
            return None
        said = "; ".join(f"{what} since update {since}" for what, since in lasting.items())
        return f"stop_on_collapse: {said}. Its checkpoint and pictures are kept; docs/stackgan.md has what helps"

    def _found(self, values: dict[str, float]) -> dict[str, str]:
        """What has gone wrong, with what helps."""
        found = {}
        loss = values["discriminator_loss"] - self._objective.penalty_weight * values.get("discriminator_penalty", 0.0)
        if loss - self._least < _WON * (self._chance - self._least):
            found["the discriminator has won"] = (
                f"its loss {loss:.3f} is all but the least there is, {self._least:.3f}, so the generator learns nothing. Soften or flip "
                "labels (objective.real_labels, objective.flipped), or lower discriminator_optimizer.step_size"
            )
        if values["adversarial"] > _LOST[self._objective.loss]:
            found["the generator is lost"] = (
                f"its loss is {values['adversarial']:.1f}. Lower both step sizes, or take the recipe of configs/stackgan/dfgan.yaml"
            )
        for name, (said, least) in _SPREADS.items():
            spread = {**self.validated, **values}.get(name, math.inf)
            if spread < least:
                found[f"all {said} are alike"] = (
                    f"their spread is {100 * spread:.1f}% of real images'. Soften labels, lower objective.kl_weight, or begin again with "
                    "another run.seed"
                )
        return found


def bounds(objective: StackGANObjective, unconditional: bool) -> tuple[float, float]:
    """The discriminator's loss, without its penalty, where it tells all apart, and where it can tell nothing.

    Labels that are drawn anew for each row cannot be known beforehand: the least cross-entropy is the entropy of their mean.
    """
    weights = {"real": 1.0, "wrong": 0.5, "fake": 0.5}
    if unconditional:
        weights["real"] += objective.unconditional_weight
        weights["fake"] += objective.unconditional_weight
    if objective.loss == "hinge":
        return 0.0, sum(weights.values())
    real, fake = (sum(each) / len(each) for each in (objective.real_labels, objective.fake_labels))
    share = objective.flipped
    means = {"real": real + share * (fake - real), "wrong": fake, "fake": fake + share * (real - fake)}
    return sum(weights[kind] * _entropy(means[kind]) for kind in weights), math.log(2) * sum(weights.values())


def _entropy(p: float) -> float:
    return sum(-q * math.log(q) for q in (p, 1 - p) if q > 0)
