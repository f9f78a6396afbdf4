"""The benchmark of measures: its peer finds the same figures, and its case says how memory grows."""

import importlib
import json
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.tools.in_this_process import InThisProcess

sys.path.insert(0, str(ROOT / "tools"))
bench = importlib.import_module("bench")
measures, sides = (importlib.import_module(f"benchmarks.{name}") for name in ("measures", "sides"))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(measures, "_NUM_REFERENCE", 30)
    monkeypatch.setattr(measures, "_WIDTH", 8)
    monkeypatch.setattr(measures, "_CLASSES", 5)
    monkeypatch.setattr(measures, "_BATCH", 20)


def test_the_peer_finds_the_same_figures():
    sizes = {"few": 50, "many": 70}
    theirs = measures.keep_all(sizes, 16)["many"]()
    for at in measures.ours(sizes, 16)["many"]().at:
        frechet, kernel, near, score = theirs[at.radius_px]
        assert at.frechet_distance == pytest.approx(frechet, rel=1e-5)  # the covariances' condition is some 10⁴
        assert at.class_score.mean == pytest.approx(score, rel=1e-6)
        assert (at.kernel_distance, at.neighbourhoods) == (kernel, near)


def test_the_images_are_as_many_as_asked_for_and_the_same_again():
    batches = list(measures._images(50, 16, seed=3))
    assert [len(batch) for batch in batches] == [20, 20, 10]
    images = np.concatenate(batches)
    assert images.dtype == np.uint8 and images.shape == (50, 16, 16, 3)
    assert images.mean(axis=(1, 2, 3)).std() > 20  # brightness differs
    np.testing.assert_array_equal(images, np.concatenate(list(measures._images(50, 16, seed=3))))


def test_the_case_says_how_memory_grows(monkeypatch, capsys):
    held = {("ours", "few"): 10, ("ours", "many"): 12, ("keep_all", "few"): 11, ("keep_all", "many"): 99}
    monkeypatch.setattr(measures, "Side", InThisProcess)
    monkeypatch.setattr(measures, "peak_memory_bytes", lambda side, what: held[side.args[0], what])
    monkeypatch.setattr(sys, "argv", ["bench.py", "measures", "--images", "60", "--few", "40", "--size_px", "16"])
    bench.main()
    *said, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["grown_bytes"] == {"ours": 2, "keep_all": 88}
    assert result["peaks"]["keep_all"] == {"few": 11, "many": 99} and result["peak_memory_bytes"] == 12
    assert result["peers_peak_memory_bytes"] == {"keep_all": 99}
    assert (result["name"], result["unit"], set(result["ratio"])) == ("measures", "images/s", {"keep_all"})
    assert result["settings"]["images"] == 60
    assert said[0].startswith("peak memory of ours: 40 images 0 MB, 60 images 0 MB")
