"""Updates that are timed before they are planned."""

from itertools import count, islice
from types import SimpleNamespace

import pytest
import torch

from dalle.own import measure


class _Machine:
    """Engine and clock in one: each update takes as long as is said, the last for ever."""

    def __init__(self, seconds: list[float]):
        self.now, self.seconds, self.seen = 0.0, seconds, []

    def monotonic(self) -> float:
        return self.now

    def update(self, micro_batches, step, *_) -> dict[str, torch.Tensor]:
        self.seen.append((step, [batch["number"] for batch in micro_batches]))
        self.now += self.seconds[min(step, len(self.seconds) - 1)]
        return {"loss": torch.zeros(())}


@pytest.mark.parametrize(
    ("seconds", "allowed_s", "expected_s", "updates"),
    [
        ([100.0, 3.0, 1.0, 2.0], 1.0, 2.0, 4),  # the first, which compiles and opens files, does not count
        ([1.0], 10.5, 1.0, 11),
        ([1.0], 0.0, 1.0, 4),
        ([1e-3], 1e9, 1e-3, 60),
    ],
)
def test_the_median_of_a_few_updates_without_the_first(monkeypatch, seconds, allowed_s, expected_s, updates):
    machine = _Machine(seconds)
    monkeypatch.setattr(measure, "time", machine)
    monkeypatch.setattr(measure, "Engine", lambda *_: machine)
    config = SimpleNamespace(
        run=SimpleNamespace(ema_decay=None, steps=1000, accumulation_steps=2),
        optimizer=SimpleNamespace(step_size=SimpleNamespace(over=lambda steps: lambda step: 1e-3)),
    )
    world, batches = SimpleNamespace(device=torch.device("cpu")), ({"number": n} for n in count())
    found_s = measure._timed(torch.nn.Identity(), config, world, batches, lambda *_: None, allowed_s)
    assert found_s == pytest.approx(expected_s) and len(machine.seen) == updates
    # with as many parts as an update has
    assert machine.seen == [(step, [2 * step, 2 * step + 1]) for step in islice(count(), updates)]
