"""The benchmark of planned beside trained updates."""

import importlib
import json
import sys

import pytest

from dalle.models.flops import prior_flops
from dalle.own import measure
from dalle.planning import reached
from dalle.planning.layout import Sizes
from dalle.planning.plan import Machines
from tests.conftest import ROOT, TINY_PRIOR

sys.path.insert(0, str(ROOT / "tools"))
bench = importlib.import_module("bench")


@pytest.mark.usefixtures("one_thread")
def test_the_case_has_both(monkeypatch, capsys):
    rates, given = iter([1e9, 3e9, 2e9]), []
    monkeypatch.setattr(reached, "this_machine", lambda *_: Machines.measured(next(rates), 1e10, 1e15, 1e12))
    monkeypatch.setattr(measure, "update_s", lambda kind, config, *_: given.append((kind, config)) or 0.5)
    monkeypatch.setattr(bench.plan, "keep_freed_memory", lambda: None)
    words = ["bench.py", "plan", "--configs", "demo/prior", f"--more={' '.join(TINY_PRIOR)}"]
    monkeypatch.setattr(sys, "argv", words)
    bench.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    config = given[0][1]
    assert config.optimizer.muon_step_size_factor
    took_s = prior_flops(config.model) * config.run.batch_size / 2e9 + Sizes(config.model).muon_flops / 1e10
    assert told["name"] == "plan demo/prior" and told["unit"] == "updates/s"
    assert told["ours"] == pytest.approx(1 / took_s, rel=1e-3)
    assert told["peers"] == {"trained": 2.0} and [kind for kind, _ in given] == ["prior"] * 3
