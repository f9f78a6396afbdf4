"""When the step size is lowered, on curves made by hand."""

import json

import pytest

from dalle.config import Plateau
from dalle.optim.plateau import PlateauRule

RULE = Plateau(window_steps=10, patience_windows=3, threshold=0.01, factor=0.5, max_reductions=2)


def _factors(losses: list[float], every: int, rule: PlateauRule | None = None, start: int = 0) -> list[float]:
    """The factors after each mean of `every` updates' losses; the last mean may be of fewer."""
    rule = rule or PlateauRule(RULE, warmup_steps=0)
    factors = []
    for begin in range(0, len(losses), every):
        part = losses[begin : begin + every]
        factors.append(rule.take(sum(part) / len(part), len(part), start + begin + len(part)))
    return factors


def _windows(*means: float) -> list[float]:
    return [mean for mean in means for _ in range(RULE.window_steps)]


def test_lowered_when_the_best_window_is_old():
    # falls, then three windows without a new best
    assert _factors(_windows(4, 3, 2, 2, 2, 2), 10) == [1, 1, 1, 1, 1, 0.5]
    # noise within a window is averaged away
    assert _factors([loss + (-1) ** i for i, loss in enumerate(_windows(4, 3, 2, 1.5, 1.4, 1.3))], 10) == [1] * 6


def test_a_new_best_has_to_be_better_by_the_threshold():
    assert _factors(_windows(2, 1.985, 1.984, 1.983), 10)[-1] == 0.5
    assert _factors(_windows(2, 1.985, 1.984, 1.979), 10)[-1] == 1
    # several small steps down from one best add up to a new best
    assert _factors(_windows(2, 1.985, 1.975, 1.96, 1.95, 1.94), 10)[-1] == 1
    # below zero, as a density's loss may be, less is better still
    assert _factors(_windows(-2, -1.99, -1.99, -1.99), 10)[-1] == 0.5
    assert _factors(_windows(-2, -1.99, -1.99, -2.03), 10)[-1] == 1


def test_a_reduction_is_given_its_time_and_there_are_only_so_many():
    factors = _factors(_windows(*[2] * 14), 10)
    assert factors == [1] * 3 + [0.5] * 3 + [0.25] * 8


def test_a_new_best_after_a_reduction_is_waited_from():
    assert _factors(_windows(2, 2, 2, 2, 2, 1, 1, 1, 1), 10) == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("every", [1, 3, 10, 25])
def test_windows_do_not_depend_on_how_often_is_logged(every):
    # lowered within the fourth window's last update, at the first mean that covers it
    factors = _factors(_windows(2, 2, 2, 2, 2), every)
    assert factors.index(0.5) == -(-40 // every) - 1


def test_nothing_counts_before_the_warm_up_has_ended():
    losses = [0.1] * 15 + _windows(2, 2, 2, 2)  # lower than ever after
    rule = PlateauRule(RULE, warmup_steps=15)
    # means of 10: the second straddles the end of the warm-up
    factors = [rule.take(losses[end - 1], 10 if end % 10 == 0 else 5, end) for end in (10, 20, 30, 40, 50, 55)]
    assert factors == [1, 1, 1, 1, 1, 0.5]
    with_it = PlateauRule(RULE, warmup_steps=0)
    assert _factors(losses, 5, with_it)[-3] == 0.5 and with_it.state_dict()["best"] < 2


def test_a_resumed_run_goes_on_as_the_uninterrupted():
    losses = [3 / (1 + i / 20) + 0.3 * (i % 7) for i in range(60)] + [2.0] * 120
    whole = _factors(losses, 4)
    assert {1, 0.5, 0.25} == set(whole)
    for end in (4, 60, 64, 96, 120):  # most within a window
        first = PlateauRule(RULE, warmup_steps=0)
        before = _factors(losses[:end], 4, first)
        second = PlateauRule(RULE, warmup_steps=0)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert second.factor == before[-1]
        assert before + _factors(losses[end:], 4, second, start=end) == whole
        assert second.state_dict()["best"] is not None
