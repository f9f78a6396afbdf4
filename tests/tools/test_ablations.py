"""The table of the comparisons: what it reads, what it counts, and what a failure does to the rest."""

import argparse
import importlib.util
import json
import subprocess
import sys
import threading

import pytest

from tests.conftest import ROOT

_spec = importlib.util.spec_from_file_location("ablations", ROOT / "tools/ablations.py")
ablations = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ablations)

FIGURES = {
    **{"codes_used": 100, "perplexity": 50.0, "kl_per_position_nats": 2.0, "psnr_db": 20.0, "elb": -0.5},
    **{"elb_gap": 0.1, "elb_gap_nats": 0.05},
}


def _write(folder, *lines, finished=True):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "model.safetensors").touch()
    return folder


def _line(step, **values):
    return {"step": step, **{f"valid/{name}": value for name, value in {**FIGURES, **values}.items()}}


def test_the_last_held_out_figures(tmp_path):
    lines = [_line(1, elb=-9.0), _line(2), {"step": 3, "elb": 7.0}]
    assert ablations.figures(_write(tmp_path / "a", *lines)) == FIGURES
    assert ablations.figures(_write(tmp_path / "unfinished", *lines, finished=False)) is None
    assert ablations.figures(_write(tmp_path / "without", {"step": 3, "elb": 7.0})) is None
    assert ablations.figures(tmp_path / "none") is None
    old = {name: value for name, value in _line(1).items() if name != "valid/elb_gap_nats"}
    with pytest.raises(ValueError, match=r"old/metrics\.jsonl has no valid/elb_gap_nats"):
        ablations.figures(_write(tmp_path / "old", old))


def test_mean_and_deviation_of_the_seeds():
    runs = [
        {**FIGURES, "codes_used": codes, "elb_gap": gap, "elb_gap_nats": nats}
        for codes, gap, nats in ((90, -0.1, -0.05), (100, 0.1, 0.05), (140, 0.3, 0.15))
    ]
    title, rule, base, one = (
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in ablations.table({"base": runs, "one": runs[:1]}).replace("|true|", "true").splitlines()
    )
    assert title[-2:] == ["(relaxed − true) / true", "relaxed − true, nats per subpixel"]
    assert len(title) == len(rule) == len(base) == len(one) == 8
    # codes: 110, √((20² + 10² + 30²) / 2) = 26.5
    assert base == [
        "base",
        "110 ± 26",
        "50 ± 0",
        "2.00 ± 0.00",
        "20.00 ± 0.00",
        "-0.500 ± 0.000",
        "+10.0% ± 20.0%",
        "+0.0500 ± 0.1000",
    ]
    assert one == ["one", "90", "50", "2.00", "20.00", "-0.500", "-10.0%", "-0.0500"]


def test_a_folder_is_begun_continued_or_refused(tmp_path):
    assert ablations.how_to_start(tmp_path / "none") == []
    assert ablations.how_to_start(tmp_path) == []
    half = _write(tmp_path / "half", finished=False)
    (half / "checkpoints/step-0000003.partial").mkdir(parents=True)
    (half / "checkpoints/step-0000003.partial/state.json").touch()
    with pytest.raises(ValueError, match="half holds a training"):
        ablations.how_to_start(half)
    (half / "checkpoints/step-0000002").mkdir()
    (half / "checkpoints/step-0000002/state.json").touch()
    assert ablations.how_to_start(half) == ["--resume"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_after_a_failure_none_begins(jobs):
    begun, may_end = [], threading.Event()

    def good():
        begun.append("good")
        return FIGURES

    def bad():
        begun.append("bad")
        may_end.set()
        raise RuntimeError("out of memory")

    def slow():
        assert may_end.wait(60)  # until the other has failed
        begun.append("slow")
        return FIGURES

    assert ablations.run_all([good, good], jobs) == [FIGURES, FIGURES]
    with pytest.raises(RuntimeError, match="out of memory"):
        ablations.run_all([good, bad, *[good] * 8], 1) if jobs == 1 else ablations.run_all([slow, bad, *[good] * 8], 2)
    assert begun[2:] == (["good", "bad"] if jobs == 1 else ["bad", "slow"])


@pytest.fixture
def trainer(monkeypatch):
    """`dalle-train-dvae` as a stand-in: it writes figures, or fails where a seed says so; its commands are kept."""
    commands, fails = [], set()

    def run(command, **_):
        commands.append(command)
        seed, folder = (command[command.index(name) + 1] for name in ("--run.seed", "--output"))
        if seed in fails:
            return subprocess.CompletedProcess(command, 2, "", "dalle-train-dvae: no such shard")
        folder = ROOT / folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text(json.dumps(_line(1)))
        (folder / "model.safetensors").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return argparse.Namespace(commands=commands, fails=fails)


def _main(monkeypatch, output):
    options = ["--data", "d", "--valid_data", "v", "--output", str(output), "--seeds", "2", "--jobs", "1"]
    monkeypatch.setattr(sys, "argv", ["ablations.py", *options, "--run.steps", "9"])
    ablations.main()


def test_only_what_is_missing_is_trained(tmp_path, monkeypatch, capsys, trainer):
    _write(tmp_path / "base-0", _line(1))
    resumed = tmp_path / "l2-1"
    (resumed / "checkpoints/step-0000002").mkdir(parents=True)
    (resumed / "checkpoints/step-0000002/state.json").touch()
    _main(monkeypatch, tmp_path)
    assert len(trainer.commands) == 2 * len(ablations.NAMES) - 1
    assert [str(resumed) in command for command in trainer.commands] == ["--resume" in c for c in trainer.commands]
    assert all(command[-2:] == ["--run.steps", "9"] for command in trainer.commands)
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == ablations.NAMES


def test_a_failure_ends_the_whole_with_its_error(tmp_path, monkeypatch, trainer):
    trainer.fails.add("1")
    with pytest.raises(SystemExit, match=r"base-1: dalle-train-dvae ended with 2\s+dalle-train-dvae: no such shard"):
        _main(monkeypatch, tmp_path)
    assert len(trainer.commands) == len(ablations.NAMES) + 1  # the first seed's, and the one that failed
    # the next start continues with what is missing, and refuses before it trains what cannot be begun
    (tmp_path / "l2-1").mkdir()
    (tmp_path / "l2-1/metrics.jsonl").touch()
    with pytest.raises(SystemExit, match="l2-1 holds a training"):
        _main(monkeypatch, tmp_path)
    assert len(trainer.commands) == len(ablations.NAMES) + 1
