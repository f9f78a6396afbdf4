"""All of `configs/cluster/12b-hybrid.yaml` at once, at a tiny size, through the launcher: two machines of two, killed and
resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dalle.checkpoints.checkpoint import latest, open_checkpoint
from tests.conftest import ROOT, TINY_PRIOR, clean_environment
from tests.processes import ON_CPU, free_port

CONFIG = ROOT / "configs/cluster/12b-hybrid.yaml"
SMALLER = [
    *TINY_PRIOR[: TINY_PRIOR.index("--optimizer.step_size.start")],  # the model's sizes
    *("--optimizer.step_size.warmup_steps", "20", "--optimizer.plateau.window_steps", "4"),
    *("--run.batch_size", "16", "--run.accumulation_steps", "2", "--run.ranks_per_machine", "2"),
    *("--run.compression.rank", "8", "--run.ema_every_steps", "2", "--run.validate_every_steps", "0"),
    *("--run.log_every_steps", "1", "--run.silence_limit_s", "120"),
]


def _launch(models: Path, output: Path, *more: str) -> subprocess.Popen:
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "4", "--master_port", str(free_port())]
    inputs = ["--data", f"{models}/tokens/train", "--dvae", f"{models}/dvae"]
    inputs += ["--tokenizer", f"{models}/prior/tokenizer.json", "--output", str(output)]
    command = [*launcher, str(ROOT / "launch/train_prior.py"), "--config", str(CONFIG), *SMALLER, *inputs, *more]
    environment = {**clean_environment(), **ON_CPU, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _lines(output: Path) -> dict[int, dict]:
    """The log lines of updates that are whole, by update."""
    found = {}
    if (output / "metrics.jsonl").exists():
        for line in (output / "metrics.jsonl").read_text().splitlines(keepends=True):
            if line.endswith("\n") and "loss" in (record := json.loads(line)):
                found[record["step"]] = record
    return found


def _rank(output: Path, rank: int) -> int:
    """The process that the launcher started as this rank of this very run."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            given = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(output) in given and f"--local_rank={rank}" in given and given[1] != "-m":
            return int(folder.name)
    raise AssertionError(f"no rank {rank}")


def test_the_whole_configuration_is_killed_and_goes_on(models, tmp_path):
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("needs /proc to find a process of the launcher's")
    output = tmp_path / "prior"
    training = _launch(models, output, "--run.steps", "100000", "--run.checkpoint_every_minutes", "0.08")
    deadline_s = time.monotonic() + 200
    # until an update beyond a checkpoint is known
    while not (found := latest(output)) or max(_lines(output), default=0) <= int(found.name.removeprefix("step-")):
        if training.poll() is not None or time.monotonic() > deadline_s:
            training.terminate()  # the launcher ends its processes, which hold its pipe
            raise AssertionError(training.communicate(timeout=60)[1][-3000:])
        time.sleep(0.1)
    os.kill(_rank(output, 2), signal.SIGKILL)
    complaint = training.communicate(timeout=120)[1]
    assert training.returncode != 0
    assert "rank 2 (host" in complaint and "has ended, last seen" in complaint
    before, step = _lines(output), open_checkpoint(latest(output)).step
    assert len(before) > step

    last = step + 6
    training = _launch(models, output, "--run.steps", str(last), "--run.checkpoint_every_minutes", "0", "--resume")
    complaint = training.communicate(timeout=200)[1]
    assert training.returncode == 0, complaint[-3000:]
    after = _lines(output)
    assert sorted(after) == list(range(1, last + 1))
    for update in range(step + 1, min(last, max(before)) + 1):
        for name in ("loss", "gradient_norm", "gradient_scales"):
            assert after[update][name] == before[update][name], (update, name)
    assert after[last]["loss"] < after[1]["loss"]
    # all of it was switched on
    ran, meant = (yaml.safe_load(path.read_text()) for path in (output / "config.yaml", CONFIG))
    for section, names in {
        "optimizer": ("moments", "variance_limit", "clip_norm"),
        "run": ("precision", "weights", "zero_stage", "recompute", "ema_decay"),
    }.items():
        assert {name: ran[section][name] for name in names} == {name: meant[section][name] for name in names}
    assert ran["run"]["compression"]["format"] == meant["run"]["compression"]["format"] == "1-6-9"
    kept = open_checkpoint(latest(output))
    kinds = {name.split("/")[0] for name in kept.shapes}
    assert kinds >= {"model", "exp_avg", "exp_avg_sq", "ema", "error", "error_scales", "gradient_scales"}
    assert kept.values["plateau"] is not None and (output / "model.safetensors").is_file()
