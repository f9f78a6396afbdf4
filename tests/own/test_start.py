"""Sizes and steps of what starts from ready weights."""

from dataclasses import replace
from pathlib import Path

import pytest

from dalle.own.plan import choose_sizes
from dalle.own.settings import stage_settings
from dalle.own.start import Start, sizes_of
from tests.own.test_plan import TWO_CORES, pictures


def test_what_is_known_is_trained_with_smaller_steps():
    fresh = choose_sizes(pictures(), TWO_CORES, 30)
    start = Start("some", Path("some"), None, fresh.dvae, fresh.prior, fresh.clip, {})
    steps = {}
    for name, sizes in {
        "fresh": fresh,
        "known": sizes_of(start, pictures(), TWO_CORES),
        "without a reranker": sizes_of(replace(start, clip=None), pictures(), TWO_CORES),
    }.items():
        settings = stage_settings(sizes, {"dvae": 100, "prior": 100, "clip": 100}, pictures(), TWO_CORES, 0)
        steps[name] = {kind: settings[kind]["optimizer"]["step_size"]["start"] for kind in ("dvae", "prior", "clip")}
    for kind, step in steps["known"].items():
        assert 0.1 < step / steps["fresh"][kind] < 0.5, kind
    assert steps["without a reranker"]["clip"] == pytest.approx(1e-3)
    assert (sizes.dvae, sizes.prior) == (fresh.dvae, fresh.prior)
