"""What is in `launch/`: the hostfile as DeepSpeed reads it, and the Slurm script with a stand-in for Slurm."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment


def test_the_hostfile_is_one():
    from deepspeed.launcher.runner import fetch_hostfile

    assert fetch_hostfile(str(ROOT / "launch/hostfile.example")) == {"node-00": 8, "node-01": 8}


def _submitted(
    folder: Path, exit_code: int, writes: str = "", stage: str = "prior"
) -> tuple[int, list[str], list[str]]:
    """Run the script where `srun` starts task 3 of 4, on the second of two nodes, and its Python writes a checkpoint and ends
    with a code. Returns the script's exit code, what Python was given, and what was asked of Slurm."""
    places = "SLURM_PROCID=3 SLURM_NTASKS=4 SLURM_LOCALID=1 SLURM_NTASKS_PER_NODE=2"
    stubs = {
        "srun": f'while [[ $1 == --* ]]; do shift; done\nexport {places}\nexec "$@"',
        "scontrol": 'if [[ $1 == show ]]; then printf "a1\\na2\\n"; else echo "$@" >> asked; fi',
        "python": f'env > environment; printf "%s\\n" "$@" > given; {writes} exit {exit_code}',
    }
    (folder / "bin").mkdir(exist_ok=True)
    for name, body in stubs.items():
        (folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    environment = clean_environment() | {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_CPUS_PER_TASK": "8"}
    command = ["bash", str(ROOT / "launch/train.sbatch"), stage, "out", "--config", "a b.yaml"]
    (folder / "launch").mkdir(exist_ok=True)  # as in the repository's root
    (folder / "launch/train_prior.py").touch()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    asked = (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []
    given = (folder / "given").read_text().splitlines() if (folder / "given").exists() else []
    return done.returncode, given, asked


def test_a_slurm_task_finds_its_place(tmp_path):
    code, given, asked = _submitted(tmp_path, 0)
    assert (code, asked) == (0, [])
    assert given == ["-u", "launch/train_prior.py", "--config", "a b.yaml", "--output", "out"]
    environment = dict(
        line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines() if "=" in line
    )
    expected = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a1"}
    assert {name: environment[name] for name in expected} == expected
    assert 1024 < int(environment["MASTER_PORT"]) < 32768  # outside of what systems give out themselves


@pytest.mark.parametrize(
    ("exit_code", "written", "requeued"),
    [
        (130, "step-0000020", True),  # told to stop
        (75, "step-0000020", True),  # a rank was lost, after some progress
        (75, "step-0000020.partial", False),
        (137, "step-0000010", False),  # nothing new: it would be lost in the same place again
        (2, "step-0000020", False),  # an error
        (3, "step-0000020", False),  # numbers that have gone wrong
        (0, "step-0000020", False),
    ],
)
def test_a_slurm_job_goes_on_by_itself(tmp_path, exit_code, written, requeued):
    (tmp_path / "out/checkpoints/step-0000010").mkdir(parents=True)
    code, given, asked = _submitted(tmp_path, exit_code, f"mkdir -p out/checkpoints/{written};")
    assert code == exit_code
    assert given[-1] == "--resume"
    assert asked == (["requeue 123456"] if requeued else [])


def test_a_checkpoint_that_had_just_lost_its_name_is_resumed_from(tmp_path):
    (tmp_path / "out/checkpoints/step-0000010.old").mkdir(parents=True)
    _, given, _ = _submitted(tmp_path, 0)
    assert given[-1] == "--resume"


def test_a_stage_that_there_is_not_starts_nothing(tmp_path):
    assert _submitted(tmp_path, 0, stage="priors") == (2, [], [])
    for stage in ("dvae", "prior", "clip", "stackgan"):
        assert (ROOT / f"launch/train_{stage}.py").is_file()


def test_options_in_place_of_the_output_folder_start_nothing(tmp_path):
    command = ["bash", str(ROOT / "launch/train.sbatch"), "prior", "--config", "a.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "the stage and the output folder come first" in done.stderr


@pytest.mark.parametrize(("more", "part"), [({}, "3/64"), ({"PARTS": "128"}, "3/128")])
def test_a_job_of_an_array_makes_its_part_of_the_tokens(tmp_path, more, part):
    (tmp_path / "dalle-tokenize").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "dalle-tokenize").chmod(0o755)
    environment = clean_environment() | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | more
    environment |= {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "64"}
    command = ["bash", str(ROOT / "launch/tokenize.sbatch"), "--data", "a b.tar", "--output", "tokens"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["--data", "a b.tar", "--output", "tokens", "--part", part]
