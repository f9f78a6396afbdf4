"""The benchmark of synced checkpoints: its sides write the same, one of them without a sync."""

import importlib
import os
import sys

import pytest

from tests.conftest import ROOT
from tests.tools.in_this_process import InThisProcess

sys.path.insert(0, str(ROOT / "tools"))
bench = importlib.import_module("bench")
synced = importlib.import_module("benchmarks.synced")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_sides_differ_by_their_syncs_alone(tmp_path, monkeypatch):
    calls, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: calls.append(file) or real(file))
    monkeypatch.setattr(os, "fdatasync", os.fdatasync)
    held = {}
    for name, build in (("ours", synced.ours), ("unsynced", synced.unsynced)):
        (tmp_path / name).mkdir()
        before, save = len(calls), build(1, str(tmp_path / name))["save"]
        save()
        save()
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        held[name] = sorted((path.name, path.stat().st_size) for path in files if path.suffix == ".safetensors")
        assert (len(calls) > before) == (name == "ours")
    assert held["ours"] == held["unsynced"] and held["ours"][0][1] > 2**20
    synced.written(1, str(tmp_path))["save"]()


def test_drawings_differ_by_their_syncs_alone(tmp_path, monkeypatch):
    calls, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: calls.append(file) or real(file))
    monkeypatch.setattr(os, "fdatasync", os.fdatasync)
    held, synced_files = {}, {}
    for name, build in (("ours", synced.drawing), ("unsynced", synced.unsynced_drawing)):
        (tmp_path / name).mkdir()
        before = len(calls)
        drawn = build(2, str(tmp_path / name))  # whose folder goes with it
        drawn["draw"]()
        held[name] = {
            path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.png") if "images" in path.parts
        }
        synced_files[name] = len(calls) - before
    assert held["ours"] == held["unsynced"] and len(held["ours"]) in (1, 2)  # the same twice is one
    assert synced_files["ours"] > len(held["ours"]) and synced_files["unsynced"] == 0


def test_the_case_says_what_a_second_writes(tmp_path, monkeypatch, capsys):
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, getattr(os, name))
    monkeypatch.setattr(synced, "Side", InThisProcess)
    monkeypatch.setattr(
        sys, "argv", ["bench.py", "synced", "--mib", "1", "--n", "2", "--folder", str(tmp_path), "--repeats", "1"]
    )
    bench.main()
    said = capsys.readouterr().out
    assert '"name": "synced drawings"' in said and '"unit": "candidates/s"' in said
    assert '"name": "synced"' in said and '"unit": "bytes/s"' in said and '"unsynced"' in said
