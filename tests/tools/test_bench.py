"""The benchmark's sides compute the same thing, and its figures are what their names say."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from dalle.config import DVAEModel
from dalle.models.dvae import DVAE
from tests.conftest import ROOT, clean_environment

_spec = importlib.util.spec_from_file_location("bench", ROOT / "tools/bench.py")
bench = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench)

TINY = DVAEModel(image_size_px=16, codebook_size=12, encoder_width=8, decoder_input_width=8)


def test_the_straightforward_dvae_is_ours():
    torch.manual_seed(0)
    ours, theirs = DVAE(TINY).double(), bench._Straightforward(TINY).double()
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


def test_a_case_is_a_ratio():
    result = bench.case("x", "images/s", 6.0, {"slow": 2.0}, 12.0, {})
    assert (result["ratio"], result["fraction_of_limit"]) == ({"slow": 3.0}, 0.5)
    turns = iter([9.0, 1.0, 9.0, 5.0, 2.0, 6.0, 3.0, 7.0])
    assert bench.seconds({"a": lambda: next(turns), "b": lambda: next(turns)}, repeats=3) == {"a": 3.0, "b": 6.0}


@pytest.mark.gpu
def test_the_benchmark_on_a_gpu():
    command = [sys.executable, "tools/bench.py", "dvae", "--json", "--batch_size", "8"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=900)
    cases = json.loads(done.stdout.splitlines()[-1])["cases"]
    assert cases[0]["fraction_of_limit"] >= 0.5  # of the measured convolution rate
