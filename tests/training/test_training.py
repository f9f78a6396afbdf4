"""The loop through its commands: losses fall, resumed equals uninterrupted, processes agree, Ctrl-C leaves a checkpoint."""

import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dalle.checkpoints import checkpoint
from dalle.cli.train import train
from dalle.config import TrainCLIP, TrainDVAE, TrainPrior
from dalle.data.tokens import TokenLoader, TokenShards, TokenWriter
from dalle.objectives.prior import PriorObjective
from dalle.reporting.telemetry import Telemetry
from tests.conftest import ROOT, TINY_CLIP, TINY_DVAE, TINY_PRIOR, clean_environment
from tests.processes import ON_CPU, begin_alone, free_port, run_processes


def _metrics(folder: Path, name: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def _prior_arguments(models: Path, output: Path, *more: str) -> list[str]:
    inputs = ["--dvae", f"{models}/dvae", "--tokenizer", f"{models}/prior/tokenizer.json"]
    return [*TINY_PRIOR, "--data", f"{models}/tokens/train", *inputs, "--output", str(output), *more]


def _same_weights(first: Path, second: Path) -> bool:
    a, b = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_dvae_resumed_is_uninterrupted(shapes_folder, tmp_path, monkeypatch):
    warm = []
    monkeypatch.setattr(Telemetry, "warmed_up", lambda telemetry, step: warm.append(step))

    def arguments(name, *more):
        data = ["--data", f"{shapes_folder}/train-*.tar", "--output", str(tmp_path / name)]
        return [*TINY_DVAE, *data, "--images.augmentation", "dvae", *more]

    train("dvae", TrainDVAE, arguments("whole", "--run.steps", "12"))
    train("dvae", TrainDVAE, arguments("parts", "--run.steps", "5"))
    (tmp_path / "parts" / "model.safetensors").unlink()
    train("dvae", TrainDVAE, arguments("parts", "--run.steps", "12", "--resume"))
    assert _metrics(tmp_path / "parts") == _metrics(tmp_path / "whole")
    assert len(_metrics(tmp_path / "whole")) == 12
    assert _same_weights(tmp_path / "whole", tmp_path / "parts")
    assert warm == [1, 1, 6], "the first update of each"
    # a resumed run is described as the whole one, so that another can repeat it
    described = (tmp_path / "parts" / "config.yaml").read_text()
    assert described.replace("/parts", "/whole") == (tmp_path / "whole" / "config.yaml").read_text()


@pytest.mark.parametrize(
    "more",
    [
        ["--run.zero_stage", "0"],
        ["--run.zero_stage", "1"],
        ["--run.zero_stage", "2"],
        ["--run.zero_stage", "3"],
        ["--optimizer.muon_step_size_factor", "10"],
        ["--run.zero_stage", "3", "--run.compression.rank", "8", "--run.ema_every_steps", "3"],
        ["--run.precision", "fp16-per-block", "--optimizer.moments", "16-bit", "--optimizer.beta2", "0.96"],
        ["--run.weights", "16-bit", "--run.precision", "bf16", "--run.zero_stage", "1"],
        ["--optimizer.plateau.window_steps", "2", "--optimizer.plateau.patience_windows", "1"],
    ],
    ids=" ".join,
)
def test_prior_resumed_is_uninterrupted(models, tmp_path, more):
    train("prior", TrainPrior, _prior_arguments(models, tmp_path / "whole", "--run.steps", "9", *more))
    train("prior", TrainPrior, _prior_arguments(models, tmp_path / "parts", "--run.steps", "4", *more))
    train("prior", TrainPrior, _prior_arguments(models, tmp_path / "parts", "--run.steps", "9", *more, "--resume"))
    assert _metrics(tmp_path / "parts") == _metrics(tmp_path / "whole")
    assert _same_weights(tmp_path / "whole", tmp_path / "parts")


def test_accumulation_is_the_whole_batch(models, tmp_path):
    train("prior", TrainPrior, _prior_arguments(models, tmp_path / "one", "--run.steps", "6", "--bpe_dropout", "0"))
    more = ["--run.accumulation_steps", "4", "--bpe_dropout", "0"]
    train("prior", TrainPrior, _prior_arguments(models, tmp_path / "four", "--run.steps", "6", *more))
    # the same sums in another order, then six AdamW updates
    assert _metrics(tmp_path / "four") == pytest.approx(_metrics(tmp_path / "one"), abs=2e-5)
    # as after half the machines have gone
    train("prior", TrainPrior, _prior_arguments(models, tmp_path / "parts", "--run.steps", "3", "--bpe_dropout", "0"))
    train("prior", TrainPrior, _prior_arguments(models, tmp_path / "parts", "--run.steps", "6", *more, "--resume"))
    assert _metrics(tmp_path / "parts") == pytest.approx(_metrics(tmp_path / "one"), abs=2e-5)


def _launched(processes: int, *arguments: str) -> None:
    """`deepspeed --num_gpus N launch/train_prior.py`, on the CPU: the losses of one process and of two have to agree in
    fp32."""
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(processes)]
    command = [*launcher, "--master_port", str(free_port()), str(ROOT / "launch/train_prior.py"), *arguments]
    done = subprocess.run(command, env=_on_cpu(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def _started(processes: int, *arguments: str, kind: str = "prior") -> None:
    """`launch/train_<kind>.py` in processes that need no launcher, which takes twice the time that they need to begin."""
    script = f"import runpy; runpy.run_path({str(ROOT / f'launch/train_{kind}.py')!r}, run_name='__main__')"
    run_processes(script, processes, processes, arguments=arguments, environment=ON_CPU)


def _on_cpu() -> dict[str, str]:
    return {**clean_environment(), **ON_CPU, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def one_process(models, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("processes") / "one"
    _started(1, *_prior_arguments(models, output, "--run.steps", "8"))
    return output


def _check_same_curve(first: Path, second: Path) -> None:
    # the same sums over the batch in another order, then eight AdamW updates
    assert _metrics(first) == pytest.approx(_metrics(second), abs=2e-5)
    assert _metrics(first, "text_nats") == pytest.approx(_metrics(second, "text_nats"), abs=1e-4)


def test_two_processes_are_one(models, tmp_path, one_process):
    _launched(2, *_prior_arguments(models, tmp_path / "two", "--run.steps", "8"))
    _check_same_curve(tmp_path / "two", one_process)


def test_two_machines_of_two_are_one(models, tmp_path, one_process):
    """Weights sharded in each machine and validated so; one process then goes on with what four have left."""
    valid = ["--valid_data", f"{models}/tokens/valid", "--run.validate_every_steps", "4"]
    _started(1, *_prior_arguments(models, tmp_path / "one", "--run.steps", "8", *valid))
    sharded = ["--run.zero_stage", "3", "--run.ranks_per_machine", "2", "--run.ema_every_steps", "1"]
    _started(4, *_prior_arguments(models, tmp_path / "four", "--run.steps", "6", *valid, *sharded))
    assert list((tmp_path / "four" / "pictures").glob("samples-*.png"))
    assert (
        load_file(tmp_path / "four" / "model.safetensors").keys() == load_file(one_process / "model.safetensors").keys()
    )
    alone = ["--run.zero_stage", "0", "--run.ranks_per_machine", "null"]
    _started(1, *_prior_arguments(models, tmp_path / "four", "--run.steps", "8", *valid, *alone, "--resume"))
    _check_same_curve(tmp_path / "four", one_process)
    found, expected = (_metrics(tmp_path / name, "valid/loss")[0] for name in ("four", "one"))
    assert found == pytest.approx(expected, abs=1e-4)


def test_one_process_goes_on_where_two_stopped(models, tmp_path, one_process):
    """Whatever was sharded."""
    _started(2, *_prior_arguments(models, tmp_path / "two", "--run.steps", "6", "--run.zero_stage", "2"))
    _started(1, *_prior_arguments(models, tmp_path / "two", "--run.steps", "8", "--resume"))
    _check_same_curve(tmp_path / "two", one_process)


def test_a_dvae_of_two_processes_is_that_of_one(shapes_folder, tmp_path):
    """Data, noise and normalised logits: the same samples in the same rows, in each its own noise; also when one process
    goes on where two stopped."""

    def launch(processes, name, *more):
        data = ["--data", f"{shapes_folder}/train-*.tar", "--output", str(tmp_path / name)]
        _started(processes, *TINY_DVAE, *data, "--images.augmentation", "dvae", *more, kind="dvae")

    launch(1, "one", "--run.steps", "12")
    launch(2, "two", "--run.steps", "12", "--run.loader_workers", "2")
    launch(2, "parts", "--run.steps", "5", "--run.loader_workers", "1")
    launch(1, "parts", "--run.steps", "12", "--resume")
    one = load_file(tmp_path / "one" / "model.safetensors")
    # a shift of the logits, which the normalisation takes away again: their gradient is rounding errors, of any sign
    shifts = ("output.conv.bias", "encoder.blocks.group_4.block_1.res_path.conv_4.bias", "logit_norm.running_mean")
    for name in ("two", "parts"):
        # the same sums over the batch in another order, then twelve AdamW updates
        assert _metrics(tmp_path / name) == pytest.approx(_metrics(tmp_path / "one"), abs=2e-5)
        # counted over all processes: rounding moves at most a few codes
        used = _metrics(tmp_path / name, "perplexity"), _metrics(tmp_path / "one", "perplexity")
        assert used[0] == pytest.approx(used[1], rel=0.01)
        other = load_file(tmp_path / name / "model.safetensors")
        for weight, tensor in one.items():
            if not weight.endswith(shifts):
                torch.testing.assert_close(other[weight], tensor, atol=2e-4, rtol=0, msg=f"{name}: {weight}")


def test_a_clip_of_two_processes_is_that_of_one(models, shapes_folder, tmp_path):
    """Each meets the pairs of both, and what is alike among them; the same images are seen through the dVAE."""

    def launch(processes, name):
        inputs = ["--dvae", f"{models}/dvae", "--tokenizer", f"{models}/prior/tokenizer.json"]
        data = ["--data", f"{shapes_folder}/train-*.tar", "--output", str(tmp_path / name)]
        _started(processes, *TINY_CLIP, *inputs, *data, "--run.steps", "8", kind="clip")

    launch(1, "one")
    launch(2, "two")
    # the same sums over the batch in another order, then eight AdamW updates
    assert _metrics(tmp_path / "two") == pytest.approx(_metrics(tmp_path / "one"), abs=5e-5)
    assert _metrics(tmp_path / "two", "gradient_norm") == pytest.approx(
        _metrics(tmp_path / "one", "gradient_norm"), rel=1e-3
    )


@pytest.mark.parametrize("wish", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_wish_to_stop_leaves_a_checkpoint_that_resumes(models, tmp_path, wish):
    output = tmp_path / "stopped"
    code = "import sys; from dalle.cli.train import train_prior; sys.argv[0] = 'dalle-train-prior'; train_prior()"
    more = ["--run.steps", "100000", "--run.loader_workers", "1"]
    process = begin_alone(code, *_prior_arguments(models, output, *more))
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").is_file() or len(_metrics(output)) < 3:
        assert time.monotonic() < deadline and process.poll() is None, "the training never began"
        time.sleep(0.2)
    os.killpg(process.pid, wish)  # as terminals, launchers and Slurm do: the loader's workers hear it, too
    assert process.wait(60) == 130
    (checkpoint,) = (output / "checkpoints").iterdir()
    steps = json.loads((checkpoint / "state.json").read_text())["step"]
    train("prior", TrainPrior, _prior_arguments(models, output, "--run.steps", str(steps + 2), "--resume"))
    assert len(_metrics(output)) == steps + 2
    assert (output / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ("--optimizer.muon_step_size_factor 10", ['optimizer "AdamW", not "Muon"']),
        ("--run.ema_every_steps 2 --run.seed 3", ["run.seed 0, not 3", "run.ema_every_steps 1, not 2"]),
        ("--model.heads 4", ["model.heads 2, not 4"]),
    ],
)
def test_a_run_goes_on_as_it_began(models, options, changes):
    arguments = _prior_arguments(models, models / "prior", *options.split(), "--run.steps", "8", "--resume")
    with pytest.raises(ValueError, match="--resume") as refusal:
        train("prior", TrainPrior, arguments)
    lines = str(refusal.value).splitlines()
    assert len(lines) == len(changes)
    assert all(change in line for change, line in zip(changes, lines, strict=True))


def test_a_reranker_goes_on_with_the_dvae_it_began_with(models, shapes_folder, tokenizer_file, tmp_path):
    data = ["--data", f"{shapes_folder}/train-*.tar", "--tokenizer", str(tokenizer_file)]
    dvae = ["--dvae", f"{models}/dvae"]
    train("clip", TrainCLIP, [*TINY_CLIP, *data, "--run.steps", "1", "--output", f"{tmp_path}/plain"])
    for output, more, change in (
        (tmp_path / "plain", dvae, "null, not"),
        (models / "clip", ["--dvae", "null"], ", not null"),
    ):
        with pytest.raises(ValueError, match=f"dvae_hash .*{change}"):
            arguments = [*TINY_CLIP, *data, *more, "--run.steps", "6", "--output", str(output), "--resume"]
            train("clip", TrainCLIP, arguments)


def test_every_log_line_says_how_fast_and_how_much_memory(models):
    for kind, unit in (("dvae", "images"), ("prior", "tokens"), ("clip", "images")):
        lines = [json.loads(line) for line in (models / kind / "metrics.jsonl").read_text().splitlines()]
        lines = [line for line in lines if "loss" in line]
        run = json.loads((models / kind / "run.json").read_text())
        assert lines
        for line in lines:
            assert line[f"{unit}_per_s"] > 0 and 0 <= line["data_wait"] < 1
            assert 0.05 < line["memory_gb"] < 100  # PyTorch alone is more, no machine for tests is larger
            if kind == "clip":  # uncounted
                assert "mfu" not in line and run["limit_flops_per_s"] is None
            else:
                by_hand = line[f"{unit}_per_s"] * run["flops_per_unit"] / run["limit_flops_per_s"]
                assert line["mfu"] == pytest.approx(by_hand) and 0 < by_hand < 1


def test_waiting_for_the_loader_shows(models, tmp_path, monkeypatch):
    wait_s, batches = 0.3, TokenLoader.__iter__

    def slow_batches(loader):
        for batch in batches(loader):
            time.sleep(wait_s)
            yield batch

    monkeypatch.setattr(TokenLoader, "__iter__", slow_batches)
    train("prior", TrainPrior, _prior_arguments(models, tmp_path / "slow", "--run.steps", "4"))
    waits, rates = (_metrics(tmp_path / "slow", name) for name in ("data_wait", "tokens_per_s"))
    assert len(waits) == 4 and waits[0] < 0.1  # the first batch is there before the clock starts
    for wait, rate in zip(waits[1:], rates[1:], strict=True):
        interval_s = 8 * 40 / rate  # the slots of an update's samples
        assert wait_s <= wait * interval_s < interval_s


def test_data_that_cannot_be_used_leave_nothing_behind(tokenizer_file, tmp_path):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        for name in (f"{i:03d}.{extension}" for i in range(30) for extension in ("jpg", "txt")):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    arguments = [*TINY_CLIP, "--data", f"{tmp_path}/bad.tar", "--tokenizer", str(tokenizer_file), "--run.steps", "2"]
    with pytest.raises(ValueError, match="cannot be used"):
        train("clip", TrainCLIP, [*arguments, "--output", f"{tmp_path}/out"])
    assert not (tmp_path / "out").exists()


def test_pictures_need_no_held_out_data(models):
    """The models of the fixture were trained without any."""
    for stage, name in (("dvae", "reconstructions"), ("prior", "samples")):
        assert list((models / stage / "pictures").glob(f"{name}-*.png"))
        assert not any("valid/" in line for line in (models / stage / "metrics.jsonl").read_text().splitlines())


def test_pictures_are_of_pairs_with_a_caption(models, tmp_path):
    """Of those that have none, which `--images.min_caption_chars 0` keeps for stage one, none is drawn."""
    meta = TokenShards(models / "tokens/train").meta
    codes_I = np.zeros(meta.grid**2, dtype=np.int64)
    for name, captions in (("some", ["", " ", "a red circle", ""]), ("none", ["", ""])):
        with TokenWriter(tmp_path / name, replace(meta, shard_sizes=(), samples={}), 1000) as writer:
            for caption in captions:
                writer.add(codes_I, [caption])
            writer.close()
        more = ["--data", f"{tmp_path}/{name}", "--run.steps", "2"]
        train("prior", TrainPrior, _prior_arguments(models, tmp_path / f"of {name}", *more))
    assert list((tmp_path / "of some/pictures").glob("samples-*.png"))
    assert not list((tmp_path / "of none").glob("pictures/samples-*.png"))


def test_a_second_run_does_not_overwrite_the_first(models):
    with pytest.raises(ValueError, match="already holds a run"):
        train("prior", TrainPrior, _prior_arguments(models, models / "prior", "--run.steps", "1"))


def _spoil(monkeypatch, updates: range) -> None:
    """Let the loss of some updates be not a number."""
    whole, calls = PriorObjective.forward, itertools.count()

    def spoilt(objective, batch):
        loss, metrics = whole(objective, batch)
        if objective.training and next(calls) in updates:
            loss = loss * math.nan
        return loss, metrics | {"loss": loss.detach()}

    monkeypatch.setattr(PriorObjective, "forward", spoilt)


def test_a_loss_that_is_not_finite_is_skipped_and_named(models, tmp_path, monkeypatch, capsys):
    _spoil(monkeypatch, range(3, 5))
    train(
        "prior",
        TrainPrior,
        _prior_arguments(models, tmp_path / "bad", "--run.steps", "8", "--run.log_every_steps", "4"),
    )
    assert _metrics(tmp_path / "bad", "skipped") == [0.25, 0.25]
    assert all(0 < loss < 10 for loss in _metrics(tmp_path / "bad"))
    said = capsys.readouterr().err
    assert "1 of the 4 updates up to 8 were skipped: the loss was not finite on rank 0 in 1" in said


def test_losses_that_stay_not_finite_end_the_run_and_lose_nothing(models, tmp_path, monkeypatch):
    arguments = _prior_arguments(models, tmp_path / "bad", "--run.steps", "20", "--run.log_every_steps", "2")
    with monkeypatch.context() as spoiling:
        _spoil(spoiling, range(3, 100))
        with pytest.raises(
            ValueError, match="the last 11 updates up to 14 were skipped: the loss was not finite on rank 0"
        ):
            train("prior", TrainPrior, arguments)
    train("prior", TrainPrior, [*arguments, "--resume"])
    assert (tmp_path / "bad" / "model.safetensors").is_file()
    assert all(w.isfinite().all() for w in load_file(tmp_path / "bad" / "model.safetensors").values())


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(models, tmp_path, monkeypatch, capsys):
    whole, calls = checkpoint.save, itertools.count()

    def full(folder, *arguments):
        if next(calls) == 0:
            raise checkpoint.NotSaved("rank 0: No space left on device")
        return whole(folder, *arguments)

    monkeypatch.setattr(checkpoint, "save", full)
    more = ["--run.steps", "3", "--run.checkpoint_every_minutes", "1e-9"]
    train("prior", TrainPrior, _prior_arguments(models, tmp_path / "full", *more))
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "full" / "model.safetensors").is_file()


def test_training_learns(models, tmp_path):
    train("prior", TrainPrior, _prior_arguments(models, tmp_path / "more", "--run.steps", "60"))
    losses = _metrics(tmp_path / "more")
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
