"""The benchmark's sides compute the same thing, and its figures are what their names say."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from dalle.config import DVAEModel
from dalle.models.dvae import DVAE
from tests.conftest import ROOT, clean_environment

sys.path.insert(0, str(ROOT / "tools"))  # by name, so that processes of their own import it too
bench, peers_dvae = importlib.import_module("bench"), importlib.import_module("peers_dvae")

TINY = DVAEModel(image_size_px=16, codebook_size=12, encoder_width=8, decoder_input_width=8)


def test_the_straightforward_dvae_is_ours():
    torch.manual_seed(0)
    ours, theirs = DVAE(TINY).double(), peers_dvae.Straightforward(TINY).double()
    weights = dict(zip(theirs.state_dict(), _in_their_order(ours), strict=True))
    theirs.load_state_dict(weights)
    x, z = torch.rand(2, 3, 16, 16).double(), torch.rand(2, 12, 2, 2).double()
    torch.testing.assert_close(theirs.features(x), ours.encoder.blocks[:-1](x).relu())
    with torch.no_grad():
        features = theirs.features(x)
        torch.testing.assert_close(theirs.to_logits(features), ours.encoder(x))
        torch.testing.assert_close(theirs.drawing(theirs.from_codes(z)), ours.decoder(z))


def _in_their_order(dvae):
    """Part by part, and in a block its residual path before its identity."""
    parts = ["input", *(f"group_{g}.block_{b}" for g in (1, 2, 3, 4) for b in (1, 2)), "output"]

    def place(name):
        part = next(i for i, part in enumerate(parts) if f".{part}." in name)
        return not name.startswith("encoder"), part, "id_path" in name, name.rpartition(".")[0], name.endswith("bias")

    return [dvae.state_dict()[name] for name in sorted(dvae.state_dict(), key=place)]


def test_calls_run_on_both_sides():
    for calls in (bench._ours(TINY, 2, False, True), bench._eager(TINY, 2, torch.bfloat16)):
        assert set(calls) == set(bench._DVAE_CALLS)
        for call in calls.values():
            call()


def test_sides_take_turns():
    turns = iter([9.0, 1.0, 9.0, 5.0, 2.0, 6.0, 3.0, 7.0])  # the first of each warms up
    taken_s = bench.seconds({"a": lambda: next(turns), "b": lambda: next(turns)}, repeats=3)
    assert taken_s == {"a": [9.0, 2.0, 3.0], "b": [5.0, 6.0, 7.0]}


def test_a_case_has_medians_ratios_and_spreads():
    result = bench.case("x", "images/s", {"ours": [6.0, 5.0, 9.0], "slow": [1.0, 2.0, 7.0]}, 12.0, {})
    assert (result["ours"], result["peers"]) == (6.0, {"slow": 2.0})
    assert (result["ratio"], result["fraction_of_limit"]) == ({"slow": 3.0}, 0.5)
    assert result["spread"] == {"ours": [9.0, 5.0], "slow": [7.0, 1.0]}  # the fastest first


def test_operations_of_a_call():
    flops = bench._dvae_flops(TINY)
    # tokens × codes × width, a multiplication and an addition each: hard codes need no product
    assert flops["train"] / 3 - flops["encode"] - flops["decode"] == 2 * 2**2 * 12 * 8
    with bench.FlopCounterMode(display=False) as counter:
        DVAE(TINY).decode(torch.zeros(1, 2, 2, dtype=torch.int64))
    assert flops["decode"] == counter.get_total_flops()


def test_a_side_that_dies_is_named():
    side = bench.Side("eager_16bit", partial(os._exit, 3), False)
    with pytest.raises(RuntimeError, match="eager_16bit died in 'train' with exit code 3"):
        side.call("train")


_PEAKS = """
import sys
sys.path.insert(0, "tools")
import bench
from functools import partial
from operator import mul
calls = partial(dict, small=partial(mul, b"x", 2**10), large=partial(mul, b"x", 2**29))
side = partial(bench.Side, "x", calls, False)
print(*(bench.peak_memory_bytes(side, what) for what in ("small", "large")))
"""


@pytest.mark.skipif(bench.DEVICE == "cuda", reason="there the GPU's memory is what is measured")
def test_peak_memory_is_what_a_call_holds():
    # from a small process: a new one's peak begins at its parent's
    command = [sys.executable, "-c", _PEAKS]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    # within a tenth: what importing PyTorch takes differs by some MB from start to start
    assert large - small == pytest.approx(2**29, rel=0.1)


class _InThisProcess:
    """A `Side` without a process, which remembers how it was asked for."""

    asked: list = []  # noqa: RUF012

    def __init__(self, name, build, keep_memory):
        self.name, self.keep_memory, self.calls = name, keep_memory, build()

    def call(self, what):
        return bench.timed(self.calls[what])

    def peak_memory_bytes(self, what):
        self.asked.append((self.name, what, self.keep_memory))
        return len(self.asked)

    def close(self):
        pass


@pytest.mark.parametrize("same_allocator", [False, True])
def test_every_case_says_all(monkeypatch, same_allocator):
    monkeypatch.setattr("dalle.config.DVAEModel", lambda image_size_px: TINY)
    monkeypatch.setattr(bench, "Side", _InThisProcess)
    monkeypatch.setattr(bench, "best_rate", lambda call, work: 1e12)
    monkeypatch.setattr(_InThisProcess, "asked", [])
    options = argparse.Namespace(image_size_px=16, batch_size=2, compile=False, recompute=False, repeats=3)
    cases = bench.bench_dvae(argparse.Namespace(**vars(options), same_allocator=same_allocator))
    assert [case["name"] for case in cases] == ["dvae train", "dvae encode", "dvae decode"]
    peers = {"eager_16bit", "eager_fp32"}
    for case in cases:
        assert set(case["peers"]) == set(case["ratio"]) == peers
        for side, value in {"ours": case["ours"], **case["peers"]}.items():
            fastest, slowest = case["spread"][side]
            assert fastest >= value >= slowest > 0
    assert [case["peak_memory_bytes"] for case in cases] == [1, 2, 3]
    assert [case["peers_peak_memory_bytes"] for case in cases] == [{"eager_16bit": 4, "eager_fp32": 5}, {}, {}]
    assert {(name, what) for name, what, _ in _InThisProcess.asked[3:]} == {(peer, "train") for peer in peers}
    assert [keep for _, _, keep in _InThisProcess.asked] == [True] * 3 + [same_allocator] * 2


@pytest.mark.parametrize("json_alone", [True, False])
def test_the_last_line_is_json(monkeypatch, capsys, json_alone):
    result = bench.case("x", "images/s", {"ours": [6.0], "slow": [2.0]}, 12.0, {})
    seen = []
    monkeypatch.setitem(bench.BENCHMARKS, "dvae", lambda options: seen.append(options) or [result, result])
    monkeypatch.setattr(sys, "argv", ["bench.py", "dvae", *(["--json"] if json_alone else [])])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == {"cases": [result, result]}
    assert (len(lines) == 1) == json_alone
    assert seen[0].repeats == 5


@pytest.mark.gpu
def test_the_benchmark_on_a_gpu():
    command = [sys.executable, "tools/bench.py", "dvae", "--json", "--batch_size", "8"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=900)
    cases = json.loads(done.stdout.splitlines()[-1])["cases"]
    assert cases[0]["fraction_of_limit"] >= 0.5  # of the measured convolution rate
