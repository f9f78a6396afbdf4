"""What all benchmarks share: sides in turns and in processes of their own, and figures that are what their names say."""

import importlib
import json
import os
import subprocess
import sys
from functools import partial

import pytest

from tests.conftest import ROOT, clean_environment

sys.path.insert(0, str(ROOT / "tools"))  # by name, so that processes of their own import it too
bench, sides = importlib.import_module("bench"), importlib.import_module("benchmarks.sides")


def test_sides_take_turns():
    turns = iter([9.0, 1.0, 9.0, 5.0, 2.0, 6.0, 3.0, 7.0])  # the first of each warms up
    taken_s = sides.seconds({"a": lambda: next(turns), "b": lambda: next(turns)}, repeats=3)
    assert taken_s == {"a": [9.0, 2.0, 3.0], "b": [5.0, 6.0, 7.0]}


RESULT = sides.case(
    "x", "images/s", {"ours": [6.0, 5.0, 9.0], "slow": [1.0, 2.0, 7.0]}, 12.0, {"ours": 3, "slow": 4}, {}
)


def test_a_case_has_medians_ratios_spreads_and_peaks():
    assert (RESULT["ours"], RESULT["peers"]) == (6.0, {"slow": 2.0})
    assert (RESULT["ratio"], RESULT["fraction_of_limit"]) == ({"slow": 3.0}, 0.5)
    assert RESULT["spread"] == {"ours": [9.0, 5.0], "slow": [7.0, 1.0]}  # the fastest first
    assert (RESULT["peak_memory_bytes"], RESULT["peers_peak_memory_bytes"]) == (3, {"slow": 4})


def test_a_side_that_dies_is_named():
    one = {"one": partial(sides.Side, "eager_16bit", partial(os._exit, 3), False)}
    died = pytest.raises(RuntimeError, match="eager_16bit died in 'train' with exit code 3")
    with sides.running(one) as running, died:
        running["one"].call("train")


def test_sides_are_closed_when_one_cannot_begin():
    closed = []

    class Begun:
        def close(self):
            closed.append(self)

    with pytest.raises(OSError), sides.running({"a": Begun, "b": partial(os.stat, "/no/such/file")}):
        pass
    assert len(closed) == 1


_PEAKS = """
import sys
sys.path[:0] = ["tools", "."]
from benchmarks import sides
from functools import partial
from operator import mul
calls = partial(dict, small=partial(mul, b"x", 2**10), large=partial(mul, b"x", 2**29))
side = partial(sides.Side, "x", calls, False)
print(*(sides.peak_memory_bytes(side, what) for what in ("small", "large")))
"""


@pytest.mark.skipif(sides.DEVICE == "cuda", reason="there the GPU's memory is what is measured")
def test_peak_memory_is_what_a_call_holds():
    # from a small process: a new one's peak begins at its parent's
    command = [sys.executable, "-c", _PEAKS]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    # within a tenth: what importing PyTorch takes differs by some MB from start to start
    assert large - small == pytest.approx(2**29, rel=0.1)


@pytest.mark.parametrize("json_alone", [True, False])
@pytest.mark.parametrize("name", ["dvae", "prior"])
def test_the_last_line_is_json(monkeypatch, capsys, name, json_alone):
    seen = []
    monkeypatch.setattr(bench.BENCHMARKS[name], "run", lambda options: seen.append(options) or [RESULT, RESULT])
    command = ["bench.py", name, *(["--json"] if json_alone else []), "--batch_size", "3", "--repeats", "7"]
    monkeypatch.setattr(sys, "argv", command)
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == {"cases": [RESULT, RESULT]}
    assert lines[:-1] == [] if json_alone else ["x: 6 images/s, 50% of the limit", "  3.00 × slow (2)"] * 2
    assert (seen[0].repeats, seen[0].batch_size, seen[0].same_allocator) == (7, 3, False)


def test_a_single_case_is_no_list(monkeypatch, capsys):
    monkeypatch.setattr(bench.BENCHMARKS["dvae"], "run", lambda options: [RESULT])
    monkeypatch.setattr(sys, "argv", ["bench.py", "dvae", "--json"])
    bench.main()
    assert json.loads(capsys.readouterr().out) == RESULT


def test_options_belong_to_their_benchmark(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", "prior", "--image_size_px", "64"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "--image_size_px" in capsys.readouterr().err
