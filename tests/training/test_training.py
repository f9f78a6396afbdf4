"""The loop through its commands: losses fall, resumed equals uninterrupted, processes agree, Ctrl-C leaves a checkpoint."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dalle.cli.train import train
from dalle.config import TrainDVAE, TrainPrior
from tests.conftest import ROOT, TINY_DVAE, TINY_PRIOR, clean_environment


def _metrics(folder: Path, name: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def _prior_arguments(models: Path, output: Path, *more: str) -> list[str]:
    inputs = [
        "--data",
        f"{models}/tokens/train",
        "--dvae",
        f"{models}/dvae",
        "--tokenizer",
        f"{models}/prior/tokenizer.json",
    ]
    return [*TINY_PRIOR, *inputs, "--output", str(output), *more]


def _same_weights(first: Path, second: Path) -> bool:
    a, b = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_dvae_resumed_is_uninterrupted(shapes_folder, tmp_path):
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


@pytest.mark.parametrize(
    "more",
    [
        ["--run.zero_stage", "0"],
        ["--run.zero_stage", "1"],
        ["--run.zero_stage", "2"],
        ["--optimizer.muon_step_size_factor", "10"],
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


@pytest.mark.parametrize("zero_stage", ["0", "2"])
def test_two_processes_are_one(models, tmp_path, zero_stage):
    """`deepspeed --num_gpus 2 launch/train_prior.py` on gloo gives the loss curve of one process."""
    train("prior", TrainPrior, _prior_arguments(models, tmp_path / "one", "--run.steps", "8"))
    more = ["--run.steps", "8", "--run.zero_stage", zero_stage]
    command = [
        *(
            str(Path(sys.executable).parent / "deepspeed"),
            "--num_gpus",
            "2",
            "--master_port",
            str(_free_port()),
        ),
        *(str(ROOT / "launch/train_prior.py"), *_prior_arguments(models, tmp_path / "two", *more)),
    ]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    # the same sums over the batch in another order, then eight AdamW updates
    assert _metrics(tmp_path / "two") == pytest.approx(_metrics(tmp_path / "one"), abs=2e-5)
    assert _metrics(tmp_path / "two", "text_nats") == pytest.approx(_metrics(tmp_path / "one", "text_nats"), abs=1e-4)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment() -> dict[str, str]:
    """On the CPU also where there is a GPU: the losses of one process and of two have to agree in fp32."""
    return {**clean_environment(), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def test_ctrl_c_leaves_a_checkpoint_that_resumes(models, tmp_path):
    output = tmp_path / "stopped"
    command = [sys.executable, "-m", "dalle.cli.train", *_prior_arguments(models, output, "--run.steps", "100000")]
    code = "import sys; from dalle.cli.train import train_prior; sys.argv[0] = 'dalle-train-prior'; train_prior()"
    command = [sys.executable, "-c", code, *command[3:]]
    process = subprocess.Popen(command, env=_environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").is_file() or len(_metrics(output)) < 3:
        assert time.monotonic() < deadline and process.poll() is None, "the training never began"
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    (checkpoint,) = (output / "checkpoints").iterdir()
    steps = json.loads((checkpoint / "state.json").read_text())["step"]
    train("prior", TrainPrior, _prior_arguments(models, output, "--run.steps", str(steps + 2), "--resume"))
    assert len(_metrics(output)) == steps + 2
    assert (output / "model.safetensors").is_file()


def test_a_second_run_does_not_overwrite_the_first(models):
    with pytest.raises(ValueError, match="already holds a run"):
        train("prior", TrainPrior, _prior_arguments(models, models / "prior", "--run.steps", "1"))


def test_a_loss_that_is_not_finite_stops_the_run(models, tmp_path):
    more = ["--run.steps", "50", "--optimizer.step_size.start", "1e30", "--optimizer.clip_norm", "null"]
    with pytest.raises(ValueError, match="not finite at update"):
        train("prior", TrainPrior, _prior_arguments(models, tmp_path / "bad", *more))


def test_training_learns(models, tmp_path):
    train("prior", TrainPrior, _prior_arguments(models, tmp_path / "more", "--run.steps", "60"))
    losses = _metrics(tmp_path / "more")
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
