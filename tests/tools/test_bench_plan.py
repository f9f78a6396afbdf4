"""The benchmark of planned beside trained updates."""

import importlib
import json
import sys

import pytest

from dalle.models.flops import prior_flops
from dalle.own import measure
from dalle.planning import reached
from tests.conftest import ROOT, TINY_PRIOR

sys.path.insert(0, str(ROOT / "tools"))
bench = importlib.import_module("bench")


@pytest.mark.usefixtures("one_thread")
def test_the_case_has_both(monkeypatch, capsys):
    rates, given = iter([1e9, 3e9, 2e9]), []
    monkeypatch.setattr(reached, "flops_per_s", lambda *_: next(rates))
    monkeypatch.setattr(reached, "copied_bytes_per_s", lambda *_: 1e15)
    monkeypatch.setattr(measure, "update_s", lambda kind, config, *_: given.append((kind, config)) or 0.5)
    monkeypatch.setattr(bench.plan, "keep_freed_memory", lambda: None)
    words = ["bench.py", "plan", "--configs", "demo/prior", f"--more={' '.join(TINY_PRIOR)}"]
    monkeypatch.setattr(sys, "argv", words)
    bench.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    config = given[0][1]
    muon = importlib.import_module("tests.planning.small").Sizes(config.model).muon_flops
    flops = prior_flops(config.model) * config.run.batch_size + bool(config.optimizer.muon_step_size_factor) * muon
    assert told["name"] == "plan demo/prior" and told["unit"] == "updates/s"
    assert told["ours"] == pytest.approx(2e9 / flops, rel=1e-3)
    assert told["peers"] == {"trained": 2.0} and [kind for kind, _ in given] == ["prior"] * 3
