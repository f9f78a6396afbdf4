"""`--resume` needs the run's folder alone, goes on in that and no other, says when the data are others, and has no dead end
after whatever ended the run; two trainings do not share a folder."""

import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from dalle.checkpoints import checkpoint
from dalle.cli import arguments
from dalle.cli import train as cli_train
from dalle.cli.train import train
from dalle.config import TrainCLIP, TrainDVAE, TrainPrior
from dalle.data.tokens import Meta, TokenShards, TokenWriter
from dalle.outputs.ownership import claimed
from tests.conftest import TINY_DVAE, TINY_PRIOR
from tests.forking import Forked
from tests.processes import ON_CPU, begin_alone, run_processes


def _lines(folder: Path, name: str) -> list:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def _prior(models: Path, output: Path, *more: str) -> list[str]:
    inputs = ["--dvae", f"{models}/dvae", "--tokenizer", f"{models}/prior/tokenizer.json"]
    return [*TINY_PRIOR, "--data", f"{models}/tokens/train", *inputs, "--output", str(output), *more]


@pytest.fixture(scope="module")
def begun(models, tmp_path_factory) -> Path:
    """A prior after 2 of its updates."""
    folder = tmp_path_factory.mktemp("begun") / "prior"
    train("prior", TrainPrior, _prior(models, folder, "--run.steps", "2", "--bpe_dropout", "0.3"))
    return folder


@pytest.fixture
def run(begun, tmp_path) -> Path:
    shutil.copytree(begun, tmp_path / "prior")
    return tmp_path / "prior"


def _step(folder: Path) -> int:
    return checkpoint.open_checkpoint(checkpoint.latest(folder)).step


def _config(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())


def test_the_folder_is_all_that_a_resumed_run_needs(run, begun):
    """What is given again overrides; the copy goes on, and its origin stays as it was."""
    train("prior", TrainPrior, ["--output", str(run), "--resume", "--run.steps", "4", "--run.keep_checkpoints", "1"])
    found, expected = _config(run), _config(begun)
    assert (found.pop("output"), expected.pop("output")) == (str(run), str(begun))
    assert (found["run"].pop("steps"), expected["run"].pop("steps")) == (4, 2)
    assert (found["run"].pop("keep_checkpoints"), expected["run"].pop("keep_checkpoints")) == (1, 2)
    assert found == expected
    assert (_step(run), _step(begun)) == (4, 2)
    assert _lines(run, "loss")[:2] == _lines(begun, "loss") and len(_lines(run, "loss")) == 4
    assert not [said for said in _lines(run, "warning") if "--resume" in said]


@pytest.mark.parametrize(
    "form", ["--resume=true --output={0}", "--resume true --output {0}", "--config {0}/config.yaml --resume"]
)
def test_ways_to_say_it(run, begun, form):
    """A copied folder's config.yaml still names its origin; who names that file means the copy."""
    before = sorted(path.name for path in begun.rglob("*"))
    train("prior", TrainPrior, [*form.format(run).split(), "--run.steps", "3"])
    assert _step(run) == 3
    assert _config(run)["output"] == str(run)
    assert sorted(path.name for path in begun.rglob("*")) == before


def test_a_file_that_is_given_comes_before_the_runs_own(run, tmp_path):
    (tmp_path / "more.yaml").write_text("run: {steps: 4, log_every_steps: 2}\n")
    train(
        "prior", TrainPrior, ["--config", f"{tmp_path}/more.yaml", "--output", str(run), "--resume", "--run.steps", "3"]
    )
    found = _config(run)
    assert (found["run"]["steps"], found["run"]["log_every_steps"], found["bpe_dropout"]) == (3, 2, 0.3)


def test_refusals_of_a_resumed_run(run, models, tmp_path):
    def refused(match: str, *more: str, output: Path = run, kind: str = "prior", cls: type = TrainPrior) -> None:
        with pytest.raises(ValueError, match=match) as refusal:
            train(kind, cls, ["--output", str(output), "--resume", *more])
        assert "\n" not in str(refusal.value)

    refused("run.seed 0, not 3", "--run.seed", "3")
    refused("--resume: .*gone holds no checkpoint", output=tmp_path / "gone")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text("mine: 1\n")
    refused("--resume: .*other holds no checkpoint", output=tmp_path / "other")
    refused("holds what dalle-train-prior made, not dalle-train-clip", kind="clip", cls=TrainCLIP)
    shutil.rmtree(run / "checkpoints")
    refused("--resume: .* holds no checkpoint")  # a model that is whole is not trained anew
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "prior"]
    with pytest.raises(ValueError, match="missing: --data, --dvae"):
        train("prior", TrainPrior, ["--output", str(run)])
    assert arguments.read_yaml(str(tmp_path / "other/config.yaml")) == {"mine": 1}


def test_a_copy_without_hidden_files_resumes_too(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    train("prior", TrainPrior, ["--output", str(tmp_path / "copy"), "--resume", "--run.steps", "3"])
    assert _step(tmp_path / "copy") == 3


def test_a_copy_of_a_run_that_is_still_writing_resumes(run, tmp_path):
    with claimed(run, "dalle-train-prior"):
        shutil.copytree(run, tmp_path / "copy")
        train("prior", TrainPrior, ["--output", str(tmp_path / "copy"), "--resume", "--run.steps", "3"])
    assert (_step(tmp_path / "copy"), _step(run)) == (3, 2)


def _tokens(models: Path, folder: Path, count: int, changed: int = 0) -> Path:
    """The first pairs of the models' tokens, with one more code in the first."""
    shards = TokenShards(models / "tokens/train")
    meta = Meta(shards.meta.grid, shards.meta.codebook_size, shards.meta.dvae_hash)
    with TokenWriter(folder, meta, 1000) as writer:
        for i in range(count):
            codes_I, captions = shards.pair(0, i)
            writer.add((codes_I + changed) % 16, captions)
        writer.close()
    return folder


def test_other_data_are_said(run, models, tmp_path, capsys):
    def resumed(data: Path, steps: int) -> list[str]:
        train("prior", TrainPrior, ["--output", str(run), "--resume", "--data", str(data), "--run.steps", str(steps)])
        return [line for line in capsys.readouterr().err.splitlines() if "data are not those" in line]

    shutil.copytree(models / "tokens/train", tmp_path / "moved")
    assert not resumed(tmp_path / "moved", 3)  # the same, in another place
    (told,) = resumed(_tokens(models, tmp_path / "fewer", 40), 4)
    assert "(1 file of" in told and "bytes then" in told and "goes on with them" in told
    assert not resumed(tmp_path / "fewer", 5)
    (told,) = resumed(_tokens(models, tmp_path / "changed", 40, changed=1), 6)
    assert "of other contents or names" in told
    assert sum("data are not those" in line for line in _lines(run, "warning")) == 2  # in the report, too


def test_other_shards_are_said(shapes_folder, tmp_path, capsys):
    shutil.copytree(shapes_folder, tmp_path / "data")
    base = [*TINY_DVAE, "--output", f"{tmp_path}/dvae", "--data", f"{tmp_path}/data/train-*.tar"]
    train("dvae", TrainDVAE, [*base, "--run.steps", "1"])
    train("dvae", TrainDVAE, ["--output", f"{tmp_path}/dvae", "--resume", "--run.steps", "2"])
    assert "data are not those" not in capsys.readouterr().err
    shutil.copy(tmp_path / "data/valid-000.tar", tmp_path / "data/train-001.tar")
    train("dvae", TrainDVAE, ["--output", f"{tmp_path}/dvae", "--resume", "--run.steps", "3"])
    assert "the data are not those of before (2 files of" in capsys.readouterr().err


def _process(*arguments: str) -> Forked:
    return begin_alone("from dalle.cli.train import train_prior; train_prior()", *arguments)


@pytest.fixture(scope="module")
def killed(models, tmp_path_factory) -> Path:
    """A run that was killed while it wrote its first checkpoint."""
    folder = tmp_path_factory.mktemp("killed") / "prior"
    process = _process(*_prior(models, folder, "--run.steps", "100000"))
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").is_file() or not _lines(folder, "loss"):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (folder / "checkpoints/step-0000020.partial").mkdir(parents=True)
    (folder / "checkpoints/step-0000020.partial/rank-00000.safetensors").write_bytes(b"half")
    return folder


@pytest.mark.parametrize("again", ["anew", "--resume"])
def test_killed_in_the_first_checkpoint_it_begins_again(killed, models, tmp_path, again, capsys):
    shutil.copytree(killed, tmp_path / "prior")
    more = ["--resume"] if again == "--resume" else _prior(models, tmp_path / "prior")
    train("prior", TrainPrior, [*more, "--output", str(tmp_path / "prior"), "--run.steps", "2"])
    said = "no checkpoint in" in capsys.readouterr().err
    assert said == (again == "--resume")
    assert (tmp_path / "prior/model.safetensors").is_file()
    assert _step(tmp_path / "prior") == len(_lines(tmp_path / "prior", "loss")) == 2
    assert (tmp_path / "prior/previous-1/metrics.jsonl").is_file(), "what was logged before is not lost"
    assert [path.name for path in (tmp_path / "prior/checkpoints").iterdir()] == ["step-0000002"]


def test_of_two_trainings_one_is_refused(models, tmp_path):
    arguments = _prior(models, tmp_path / "prior", "--run.steps", "5")
    both = [_process(*arguments) for _ in range(2)]
    told = [process.communicate(timeout=200)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], told
    (refused,) = [complaint for process, complaint in zip(both, told, strict=True) if process.returncode]
    assert "is writing there" in refused.splitlines()[-1] or "already holds a run" in refused.splitlines()[-1], refused
    assert len(_lines(tmp_path / "prior", "loss")) == 5
    assert not (tmp_path / "prior/previous-1").exists()


def test_one_that_ended_while_another_came_up_is_not_written_over(begun, models, tmp_path, monkeypatch):
    """The folder is looked at again once it is claimed."""
    whole = cli_train.claimed

    def claimed_late(folder, *arguments, **options):
        shutil.copytree(begun, folder)
        return whole(folder, *arguments, **options)

    monkeypatch.setattr(cli_train, "claimed", claimed_late)
    with pytest.raises(ValueError, match="already holds a run"):
        train("prior", TrainPrior, _prior(models, tmp_path / "prior", "--run.steps", "1"))
    assert _step(tmp_path / "prior") == 2


def test_where_another_is_writing_no_rank_begins(models, tmp_path):
    """Rank 0 alone asks, and all of them hear of it."""
    script = (
        "import sys\nfrom dalle.cli.train import train\nfrom dalle.config import TrainPrior\n"
        "try:\n    train('prior', TrainPrior, sys.argv[1:])\n"
        "except ValueError as error:\n    assert 'dalle-train-prior (process' in str(error), error\n    print('refused')\n"
    )
    with claimed(tmp_path / "prior", "dalle-train-prior"):
        more = _prior(models, tmp_path / "prior", "--run.steps", "1")
        assert "refused" in run_processes(script, 2, 2, arguments=more, environment=ON_CPU)
    assert not list(tmp_path.iterdir())
    assert "refused" not in run_processes(script, 2, 2, arguments=more, environment=ON_CPU)
    assert (tmp_path / "prior/model.safetensors").is_file()


def test_waiting_for_anothers_lock_is_not_taken_for_a_hang(tmp_path):
    """A lock of elsewhere that shows no sign of life is waited for longer than the watch lets a rank stand still."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom dalle.cli.train import _claimed_by_first\n"
        "from dalle.cluster.topology import joined\nfrom dalle.cluster.watch import Watch\n"
        "from dalle.outputs import lock\nlock._SILENT_S, lock._LOOK_S = 9.0, 0.5\n"
        "with joined() as world, Watch(world, 3.0) as watch:\n"
        "    began_s = time.monotonic()\n    (Path(sys.argv[1]) / '.dalle-lock').touch()\n    world.barrier()\n"
        "    with _claimed_by_first(world, watch, Path(sys.argv[1]), 'dalle-train-prior', (), False):\n"
        "        print(f'claimed after {time.monotonic() - began_s:.0f} s', flush=True)\n"
    )
    (tmp_path / "prior").mkdir()
    (tmp_path / "prior/.dalle-lock").write_text("{}")  # says nothing of who holds it
    told = run_processes(script, 2, 2, arguments=[str(tmp_path / "prior")], environment=ON_CPU)
    assert int(re.search(r"claimed after (\d+) s", told)[1]) >= 6  # twice what the watch allows


def test_settings_are_written_whole(begun, monkeypatch, models, tmp_path):
    """A run that is killed while it writes config.yaml would have no way on."""
    whole = os.replace

    def killed(source, target):
        if Path(target).name == "config.yaml":
            raise KeyboardInterrupt
        whole(source, target)

    shutil.copytree(begun, tmp_path / "prior")
    before = (tmp_path / "prior/config.yaml").read_text()
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        train("prior", TrainPrior, ["--output", str(tmp_path / "prior"), "--resume", "--run.steps", "3"])
    assert (tmp_path / "prior/config.yaml").read_text() == before


@pytest.mark.parametrize("end_step", ["100%", "100"])
def test_another_length_of_the_run_is_told_where_schedules_follow_it(models, tmp_path, end_step):
    """The step size of update 3 is that of a run of 8, be it resumed from one of 4 or not."""
    schedule = ["--optimizer.step_size.end", "1e-4", "--optimizer.step_size.end_step", end_step]
    arguments = [*_prior(models, tmp_path / "prior"), *schedule]
    train("prior", TrainPrior, [*arguments, "--run.steps", "4"])
    train("prior", TrainPrior, ["--output", f"{tmp_path}/prior", "--resume", "--run.steps", "8"])
    told = [said for said in _lines(tmp_path / "prior", "warning") if "run.steps was 4 and is 8" in said]
    assert len(told) == (end_step == "100%")
    step_sizes = _lines(tmp_path / "prior", "step_size")
    shape = [1e-4 + 9e-4 * (1 + math.cos(math.pi * step / n)) / 2 for step, n in ((3, 4), (4, 8))]
    if end_step == "100%":
        assert step_sizes[3:5] == pytest.approx(shape)


def test_what_the_header_says_of_the_training_is_told_when_it_changes(models, tmp_path):
    train("prior", TrainPrior, [*_prior(models, tmp_path / "prior"), "--run.steps", "2", "--caption_dropout", "0.1"])
    again = ["--output", f"{tmp_path}/prior", "--resume", "--run.steps", "3"]
    train("prior", TrainPrior, again)
    assert not [said for said in _lines(tmp_path / "prior", "warning") if "caption_dropout" in said]
    train("prior", TrainPrior, [*again, "--run.steps", "4", "--caption_dropout", "0"])
    (told,) = [said for said in _lines(tmp_path / "prior", "warning") if "caption_dropout" in said]
    assert told.startswith("--resume: caption_dropout was 0.1 and is 0.0, which is what the weights' header will say")
