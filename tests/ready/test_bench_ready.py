"""`bench.py ready`: runs as it is called, and what is counted is what was timed."""

import argparse
import importlib
import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT, clean_environment
from tests.tools.in_this_process import InThisProcess

sys.path.insert(0, str(ROOT / "tools"))
ready = importlib.import_module("benchmarks.ready")


def test_it_runs_in_fresh_processes(made, tmp_path):
    line = [
        sys.executable,
        str(ROOT / "tools/bench.py"),
        "ready",
        "--model",
        str(made),
        "--n",
        "2",
        "--repeats",
        "1",
        "--json",
    ]
    environment = clean_environment() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    start, draw = json.loads(done.stdout.splitlines()[-1])["cases"]
    assert start["seconds"]["import_torch"] < start["seconds"]["first_image"] <= start["seconds"]["all"]
    assert draw["ours"] == pytest.approx(2 / draw["seconds"]["after_loading"])
    assert not list(tmp_path.iterdir())


def test_the_first_run_is_not_counted_and_medians_are_taken(made, monkeypatch):
    times = {"image": iter([(90.0, 91.0), (5.0, 6.0), (3.0, 4.0), (4.0, 8.0)]), "torch": iter([9.0, 1.0, 2.0, 3.0])}
    calls = iter([50.0, 40.0, 4.0, 2.0, 8.0, 1.0, 6.0, 3.0])
    monkeypatch.setattr(ready, "_first_image", lambda *_: next(times["image"]))
    monkeypatch.setattr(ready, "_python", lambda _: next(times["torch"]))
    monkeypatch.setattr(ready, "_ours", lambda *_: {"draw": None})
    monkeypatch.setattr(ready, "Side", InThisProcess)
    monkeypatch.setattr(InThisProcess, "call", lambda self, what: next(calls))
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    ready.add_options(parser)
    start, draw = ready.run(parser.parse_args(["--model", str(made), "--repeats", "3", "--json"]))
    assert start["seconds"] == {"first_image": 4.0, "all": 6.0, "import_torch": 2.0}
    assert draw["seconds"] == {"after_loading": 6.0, "warm": 2.0}
    assert (start["ours"], start["limit"]) == (1 / 4.0, 1 / 2.0)
    assert (draw["ours"], draw["limit"], draw["peak_memory_bytes"]) == (8 / 6.0, 8 / 2.0, 5)
    assert next(calls, None) is None
