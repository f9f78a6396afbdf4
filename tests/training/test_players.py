"""Two players under one engine's surface: whose turn it is, what each of them sees, and what is told of it."""

import pytest
import torch
from torch import nn

from dalle.cluster.topology import World
from dalle.config import Optimizer, Run, Schedule
from dalle.optim.ema import EMA
from dalle.training.players import Players
from dalle.training.stage import Opponent

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RUN = Run(steps=10, batch_size=4, accumulation_steps=2, precision="fp32")


class _Player(nn.Module):
    """Wants its weight times the other's to be small, by its sign."""

    def __init__(self, sign: float):
        super().__init__()
        self.model, self.sign = nn.Linear(1, 1, bias=False), sign
        nn.init.constant_(self.model.weight, 1.0)
        self.against: tuple[nn.Module, ...] = ()

    def forward(self, batch):
        (against,) = self.against
        loss = self.sign * (self.model.weight * against.weight).sum() * batch["factor"]
        seen = {
            "seen": against.weight.detach().clone().sum(),
            "held": torch.tensor(float(not against.weight.requires_grad)),
        }
        return loss, {"loss": loss.detach(), "noise": torch.rand(()), **{n: v.to(DEVICE) for n, v in seen.items()}}


def _players():
    own, other = _Player(1.0), _Player(-1.0)
    own.against, other.against = (other.model,), (own.model,)
    adam = {"beta1": 0.0, "beta2": 0.9, "weight_decay": 0.0, "epsilon": 1e-12}
    theirs = Optimizer(Schedule(0.1, 0.2, begin_step=0, end_step=1, shape="linear"), **adam)
    opponents = {"rival": Opponent(other, theirs)}
    return Players(opponents, own, Optimizer(Schedule(9.0, 9.0), **adam), RUN, World(0, 1, DEVICE)), own, other


def _batches(factor=1.0):
    return [{"factor": torch.tensor(factor, device=DEVICE)} for _ in range(2)]


def test_each_moves_in_turn_by_its_own_step_size():
    """Adam's first step is as long as its step size, whatever the gradient; its second too where the gradient stays as it was."""
    players, own, other = _players()
    ema = EMA(players.shards.weights(), 0.5)
    told = players.update(_batches(), 0, 0.01, ema)
    # the rival wants the product large: from 1 to 1.1; the model, which sees 1.1, small
    assert other.model.weight.item() == pytest.approx(1.1) and own.model.weight.item() == pytest.approx(0.99)
    assert told["rival_seen"].item() == pytest.approx(1.0) and told["seen"].item() == pytest.approx(1.1)
    assert told["held"].item() == told["rival_held"].item() == 1
    assert told["rival_loss"].item() == pytest.approx(-1.0) and told["loss"].item() == pytest.approx(1.1)
    # the average takes in the new weights by 1 − 1/10 in its first step
    assert ema.averages["weight"].item() == pytest.approx(1 + 0.9 * (0.99 - 1))
    players.update(_batches(), 1, 0.01, ema)
    assert other.model.weight.item() == pytest.approx(1.3, abs=2e-2)
    assert all(p.requires_grad for player in (own, other) for p in player.parameters())
    assert players.model is own.model and set(players.shards.weights()) == {"weight"}


def test_both_meet_the_same_noise():
    players, _, _ = _players()
    told = players.update(_batches(), 3, 0.01)
    assert told["noise"].item() == told["rival_noise"].item()
    assert players.update(_batches(), 4, 0.01)["noise"].item() != told["noise"].item()


def test_no_gradient_stays_with_who_is_held():
    players, own, other = _players()
    players.update(_batches(), 0, 0.01)
    assert not any(p.grad is not None and p.grad.any() for player in (own, other) for p in player.parameters())


def test_a_loss_of_anyone_that_is_not_finite_is_told_as_the_updates():
    players, _, other = _players()
    other.sign = float("nan")
    told = players.update(_batches(), 0, 0.01)
    assert told["loss"].isnan() and told["skipped"].item() == told["hopeless"].item() == 1
    assert other.model.weight.item() == 1.0, "who cannot move stays where it is"
    assert {"rival_skipped", "rival_hopeless"}.isdisjoint(told)


class _Judged(nn.Module):
    """A player whose model has a batch normalisation that the other calls, too, on what it was given."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
        self.calls: tuple[nn.Module, ...] = ()

    def forward(self, batch):
        (called,) = self.calls
        x_BCYX = batch["x_BCYX"] if called is self.model else self.model(batch["x_BCYX"]) * batch["spoilt"]
        loss = called(x_BCYX).square().mean() + batch["x_BCYX"].new_zeros(())
        return loss, {"loss": loss.detach()}


def test_statistics_that_the_models_move_has_spoilt_are_put_back_too():
    own, other = _Judged(), _Judged()
    own.calls, other.calls = (other.model,), (other.model,)
    schedule = Optimizer(Schedule(1e-3, 1e-3))
    players = Players({"rival": Opponent(other, schedule)}, own, schedule, RUN, World(0, 1, DEVICE))

    def batches(spoilt):
        x_BCYX = torch.arange(8.0, device=DEVICE).view(2, 1, 2, 2)
        return [{"x_BCYX": x_BCYX, "spoilt": torch.tensor(spoilt, device=DEVICE)} for _ in range(2)]

    assert players.update(batches(1.0), 0, 1e-3)["skipped"] == 0
    assert players.update(batches(torch.nan), 1, 1e-3)["skipped"] == 1
    assert other.model[1].running_mean.isfinite().all()
    before = other.model[1].running_mean.clone()
    players.update(batches(1.0), 2, 1e-3)
    assert not torch.equal(other.model[1].running_mean, before)


def test_a_checkpoint_has_both_and_the_models_names_are_those_of_a_model_alone():
    players, _, _ = _players()
    players.update(_batches(), 0, 0.01)
    names = {fragment.name for fragment in players.state()}
    own = {"model/weight", "exp_avg/weight", "exp_avg_sq/weight", "steps"}
    assert names == own | {f"rival/{name}" for name in own}
