"""The sides of stage one's benchmark compute the same thing, and its cases say all."""

import argparse
import importlib
import json
import subprocess
import sys

import pytest
import torch

from dalle.config import DVAEModel
from dalle.models.dvae import DVAE
from tests.conftest import ROOT, clean_environment

sys.path.insert(0, str(ROOT / "tools"))
dvae, peers_dvae, sides = (importlib.import_module(f"benchmarks.{name}") for name in ("dvae", "peers_dvae", "sides"))

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
    for calls in (dvae._ours(TINY, 2, False, True), dvae._eager(TINY, 2, torch.bfloat16)):
        assert set(calls) == set(dvae.CALLS)
        for call in calls.values():
            call()


class _InThisProcess:
    """A `Side` without a process."""

    def __init__(self, name, build, keep_memory):
        self.name, self.keep_memory, self.calls = name, keep_memory, build()

    def call(self, what):
        return sides.timed(self.calls[what])

    def close(self):
        pass


@pytest.mark.parametrize("same_allocator", [False, True])
def test_every_case_says_all(monkeypatch, same_allocator):
    asked = []

    def peak(side, what):
        alone = side()
        asked.append((alone.name, what, alone.keep_memory))
        return len(asked)

    monkeypatch.setattr("dalle.config.DVAEModel", lambda image_size_px: TINY)
    monkeypatch.setattr(dvae, "Side", _InThisProcess)
    monkeypatch.setattr(dvae, "peak_memory_bytes", peak)
    monkeypatch.setattr(dvae, "best_rate", lambda call, work: 1e12)
    options = argparse.Namespace(image_size_px=16, batch_size=2, compile=False, recompute=False, repeats=3)
    cases = dvae.run(argparse.Namespace(**vars(options), same_allocator=same_allocator))
    assert [case["name"] for case in cases] == ["dvae train", "dvae encode", "dvae decode"]
    peers = {"eager_16bit", "eager_fp32"}
    for case in cases:
        assert set(case["peers"]) == set(case["ratio"]) == peers
        for side, value in {"ours": case["ours"], **case["peers"]}.items():
            fastest, slowest = case["spread"][side]
            assert fastest >= value >= slowest > 0
    assert [case["peak_memory_bytes"] for case in cases] == [1, 2, 3]
    assert [case["peers_peak_memory_bytes"] for case in cases] == [{"eager_16bit": 4, "eager_fp32": 5}, {}, {}]
    assert {(name, what) for name, what, _ in asked[3:]} == {(peer, "train") for peer in peers}
    assert [keep for _, _, keep in asked] == [True] * 3 + [same_allocator] * 2


@pytest.mark.gpu
def test_the_benchmark_on_a_gpu():
    command = [sys.executable, "tools/bench.py", "dvae", "--json", "--batch_size", "8"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=900)
    cases = json.loads(done.stdout.splitlines()[-1])["cases"]
    assert cases[0]["fraction_of_limit"] >= 0.5  # of the measured convolution rate
