"""`dalle-train`: pictures in, models that draw out, by a command that may be stopped, killed and called again."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from dalle.cli import arguments, road
from dalle.cli.own import planning, running, stages
from dalle.cli.own.train_folder import train_folder
from dalle.config import TrainDVAE, TrainFolder
from dalle.data.tokens import TokenShards
from dalle.own import gallery
from dalle.own.facts import Machine, Pictures
from dalle.own.plan import choose_sizes, expected_update_s
from dalle.own.progress import Progress
from tests.conftest import clean_environment

PICTURES = Pictures(12, 0, 1.0, 3.0, 15, 128)
QUICK = ["--minutes", "1", "--candidates", "2"]


@pytest.fixture(scope="module")
def pictures(shapes_folder, tmp_path_factory) -> Path:
    """A dozen drawings with captions in text files."""
    import tarfile

    folder = tmp_path_factory.mktemp("pictures")
    with tarfile.open(sorted(shapes_folder.glob("train-*.tar"))[0]) as tar:
        for name in tar.getnames()[: 3 * 12]:
            if name.endswith((".png", ".txt")):
                (folder / name).write_bytes(tar.extractfile(name).read())
    return folder


@pytest.fixture
def copied(pictures, tmp_path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "pictures"))


@pytest.fixture
def trained(models, monkeypatch) -> list[list[str]]:
    """In place of trainings: the session's tiny models are put where the trained ones would be, and an update takes 0.1 s.
    What would have been run."""
    calls: list[list[str]] = []

    def train_stage(kind, argv, gpus=1):
        calls.append([kind, *argv])
        output = Path(argv[argv.index("--output") + 1])
        output.mkdir(parents=True, exist_ok=True)
        for path in (models / kind).iterdir():
            if path.is_file():
                (output / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(running, "train_stage", train_stage)
    monkeypatch.setattr(planning, "_time_updates", lambda *_: 0.1)
    monkeypatch.setattr(gallery, "_MOST_CAPTIONS", 2)
    return calls


def _plan(output: Path, stage: str) -> dict:
    return yaml.safe_load((output / "plan" / f"{stage}.yaml").read_text())


def _kinds(calls: list[list[str]]) -> list[str]:
    return [kind for kind, *_ in calls]


def _listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_whole_road(pictures, tmp_path, monkeypatch, capsys):
    """Really trained, in little: stopped by Ctrl-C in the middle of the prior, gone on with, and then there is nothing to do."""
    output, before = tmp_path / "out", _listing(pictures)
    few = [
        w
        for kind in ("dvae", "prior", "clip")
        for w in (f"--{kind}.run.steps", "3", f"--{kind}.run.loader_workers", "0")
    ]
    line = [str(pictures), "--output", str(output), "--minutes", "0.2", "--candidates", "2", *few]

    from dalle.training.loop import _Training

    log, pressed = _Training._log, []

    def press(self, *args):
        log(self, *args)
        if self.stage.kind == "prior" and not pressed:
            pressed.append(self.step)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(_Training, "_log", press)
    with pytest.raises(KeyboardInterrupt):
        train_folder(line)
    assert "the same command goes on from here" in capsys.readouterr().out
    assert pressed == [1] and not (output / "prior/model.safetensors").exists()

    train_folder(line)
    printed = capsys.readouterr().out
    assert "dvae: done already" in printed and f"draw with: dalle-sample --model {output} --rerank '" in printed
    for name in ("dvae", "prior", "clip"):
        assert (output / name / "model.safetensors").is_file()
    # one run, of which the second half was made by the second call
    steps = [line for line in (output / "prior/metrics.jsonl").read_text().splitlines() if '"image_nats"' in line]
    assert len(steps) == 3
    page = (output / "report.html").read_text()
    for said in (
        "Held-out captions",
        "Captions of the training",
        "What was found",
        "What was planned",
        "prior/report.html",
    ):
        assert said in page
    for file in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert (output / file).is_file(), file
    with Image.open(next((output / "gallery/real").glob("*.png"))) as image:
        assert image.size == (32, 32)

    import dalle

    assert len(dalle.load(output).generate("a red circle", n=2)) >= 1  # the output is a model folder as it is

    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file() and path.name[0] != "."}
    train_folder([str(pictures), "--output", str(output)])  # what was asked for before need not be said again
    assert "nothing was to be done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert _listing(pictures) == before


def test_more_pictures_make_all_of_it_anew(copied, tmp_path, trained, capsys):
    output = tmp_path / "out"
    train_folder([str(copied), "--output", str(output), *QUICK])
    assert _kinds(trained) == ["dvae", "prior", "clip"]
    assert trained[0][1:3] == ["--config", str(output / "plan/dvae.yaml")]
    first = (output / "plan/prior.yaml").read_text()
    Image.new("RGB", (48, 48), "orange").save(copied / "new.png")
    (copied / "new.txt").write_text("an orange nothing")
    del trained[:]
    train_folder([str(copied), "--output", str(output)])
    printed = capsys.readouterr().out
    assert "planned anew, since other than before: the pictures" in printed
    assert _kinds(trained) == ["dvae", "prior", "clip"]
    for name in ("dvae", "tokens", "prior", "clip", "gallery", "tokenizer.json"):
        assert (output / "earlier-1" / name).exists(), name
    assert not (output / "earlier-2").exists()
    assert (output / "plan/prior.yaml").read_text() != "" and first
    assert not any("--resume" in call for call in trained)


def test_a_plan_changed_by_hand_is_taken_as_it_is(copied, tmp_path, trained, capsys):
    output = tmp_path / "out"
    line = [str(copied), "--output", str(output), *QUICK]
    train_folder([*line, "--plan-only"])
    assert not trained and "nothing is trained yet" in capsys.readouterr().out
    path = output / "plan/prior.yaml"
    changed = path.read_text().replace("caption_dropout: 0.1", "caption_dropout: 0.3")
    changed = re.sub(r"\n  steps: \d+", "\n  steps: 33", changed)
    path.write_text(changed)
    train_folder(line)
    assert f"{path} was changed by hand" in capsys.readouterr().out
    assert path.read_text() == changed and _kinds(trained) == ["dvae", "prior", "clip"]
    del trained[:]
    # a change of one stage makes that one anew, and what is made from it
    path.write_text(changed.replace("0.3", "0.2"))
    train_folder(line)
    assert _kinds(trained) == ["prior"]
    assert "prior is made anew, since other than before: its plan" in capsys.readouterr().out
    # comments say nothing to the command
    del trained[:]
    path.write_text("# mine\n" + path.read_text())
    train_folder(line)
    assert not trained
    path.write_text(path.read_text().replace("heads", "haeds"))
    with pytest.raises(ValueError, match=r"plan/prior\.yaml: .*unknown key model\.haeds"):
        train_folder(line)


def test_settings_of_the_line_are_those_of_the_stages(copied, tmp_path, trained, capsys):
    output = tmp_path / "out"
    line = [str(copied), "--output", str(output), *QUICK]
    train_folder([*line, "--dvae.run.steps", "44", "--prior.optimizer.step_size.start", "1e-3"])
    assert _plan(output, "dvae")["run"]["steps"] == 44
    assert _plan(output, "prior")["optimizer"]["step_size"]["start"] == 1e-3
    planned = _plan(output, "prior")["run"]["steps"]
    del trained[:]
    train_folder([*line, "--clip.run.steps", "55"])
    assert _kinds(trained) == ["clip"] and _plan(output, "clip")["run"]["steps"] == 55
    assert _plan(output, "prior")["run"]["steps"] == planned and _plan(output, "dvae")["run"]["steps"] == 44
    with pytest.raises(ValueError, match=r"prior: .*heads 3.*must divide width"):
        train_folder([*line, "--prior.model.heads", "3"])
    with pytest.raises(ValueError, match=r"prior: unknown key model\.wdith; the nearest known one is model\.width"):
        train_folder([*line, "--prior.model.wdith", "64"])
    train_folder(line)  # a setting that was refused is not remembered
    assert "nothing was to be done" in capsys.readouterr().out


def test_the_time_that_is_left_decides_what_is_trained(copied, tmp_path, trained, monkeypatch):
    """A dVAE that takes half of the time leaves the prior less than was planned."""
    output = tmp_path / "out"
    train_folder([str(copied), "--output", str(output), "--minutes", "30", "--plan-only"])
    planned = _plan(output, "prior")["run"]["steps"]
    late = {"s": 0.0}
    quick = running.train_stage

    def slow(kind, argv, gpus=1):
        quick(kind, argv, gpus)
        late["s"] += 900.0 if kind == "dvae" else 0.0

    monkeypatch.setattr(running, "train_stage", slow)
    spent_s = stages.Stages.spent_s
    monkeypatch.setattr(stages.Stages, "spent_s", lambda self: spent_s(self) + late["s"])
    monkeypatch.setattr("dalle.own.budget.most_updates", lambda *_: {"dvae": 10**6, "prior": 10**6, "clip": 10**6})
    shutil.rmtree(output)
    train_folder([str(copied), "--output", str(output), "--minutes", "30", "--candidates", "2"])
    assert (
        planned > 0
        and 0.8 * 0.58 / 0.72 * 850 / 0.106 < _plan(output, "prior")["run"]["steps"] < 0.58 / 0.72 * 900 / 0.1
    )


@pytest.mark.parametrize("freeze", [None, "decoder", "prior"])
def test_ready_weights_are_gone_on_from(copied, models, tmp_path, trained, freeze):
    output = tmp_path / "out"
    frozen = ["--freeze", freeze] if freeze else []
    train_folder([str(copied), "--output", str(output), *QUICK, "--from", str(models), *frozen])
    runs = {None: ["dvae", "prior", "clip"], "decoder": ["prior", "clip"], "prior": ["dvae"]}[freeze]
    assert _kinds(trained) == runs
    for kind in runs:
        settings = _plan(output, kind)
        assert settings["start_from"] == str(models / kind) and "model" not in settings
        assert settings.get("freeze") == ("encoder" if kind == "dvae" else None)
    for kind in {"dvae", "prior", "clip"} - set(runs):
        assert (output / kind / "model.safetensors").read_bytes() == (models / kind / "model.safetensors").read_bytes()
    assert (output / "tokenizer.json").read_bytes() == (models / "prior/tokenizer.json").read_bytes()
    assert (output / "tokens").exists() == (freeze != "prior")
    del trained[:]
    train_folder([str(copied), "--output", str(output)])
    assert not trained


def test_three_pictures(copied, tmp_path, trained, capsys):
    for path in sorted(copied.iterdir())[6:]:
        path.unlink()
    train_folder([str(copied), "--output", str(tmp_path / "out"), *QUICK])
    printed = capsys.readouterr().out
    assert "known by heart" in printed and _kinds(trained) == ["dvae", "prior", "clip"]
    assert "Captions of the training" in (tmp_path / "out/report.html").read_text()


def test_one_picture_is_refused(copied, tmp_path, trained):
    for path in sorted(copied.iterdir())[2:]:
        path.unlink()
    with pytest.raises(ValueError, match=r"source .*pictures: has 1 picture to train on, .* give more"):
        train_folder([str(copied), "--output", str(tmp_path / "out"), *QUICK])
    assert not trained


def test_what_is_refused(pictures, tmp_path, trained):
    with pytest.raises(ValueError, match="lies in the source"):
        train_folder([str(pictures), "--output", str(pictures / "out")])
    assert not (pictures / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/precious.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds precious\.txt, which dalle-train did not make"):
        train_folder([str(pictures), "--output", str(tmp_path / "full")])
    with pytest.raises(ValueError, match="freeze prior: is of ready weights; name them with --from"):
        train_folder([str(pictures), "--output", str(tmp_path / "out"), "--freeze", "prior"])
    from dalle.outputs.ownership import claimed

    with claimed(tmp_path / "out", "dalle-train"), pytest.raises(ValueError, match="is writing there"):
        train_folder([str(pictures), "--output", str(tmp_path / "out")])
    assert not trained


def test_killed_and_called_again(copied, tmp_path, trained, capsys):
    """kill -9 in the middle of the dVAE, twice, leaves its lock, its mark and its log behind; the next call goes on with it."""
    output = tmp_path / "out"
    script = (
        "import json, os, signal, pathlib\n"
        "from dalle.cli.own import planning, running\n"
        "from dalle.cli.own.train_folder import train_folder\n"
        "planning._time_updates = lambda *_: 0.1\n"
        "def train_stage(kind, argv, gpus=1):\n"
        "    folder = pathlib.Path(argv[argv.index('--output') + 1])\n"
        "    folder.mkdir(exist_ok=True)\n"
        "    (folder / f'.dalle-train-{kind}').write_text('{}')\n"
        "    (folder / 'metrics.jsonl').write_text(json.dumps({'step': 1, 'time_s': TIME_S}) + '\\n')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "running.train_stage = train_stage\n"
        f"train_folder({[str(copied), '--output', str(output), *QUICK]!r})\n"
    )
    for time_s in ("12.5", "20.5"):  # a training's log goes on counting where it was
        code = script.replace("TIME_S", time_s)
        done = subprocess.run([sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert (output / ".dalle-lock").exists()
    train_folder([str(copied), "--output", str(output)])
    assert _kinds(trained) == ["dvae", "prior", "clip"]
    assert "--resume" in trained[0] and "--resume" not in trained[1]
    # what the killed ones had taken counts, once
    assert 20.5 <= Progress(output).of("dvae").seconds < 24
    # with the start of this call, which takes long on a busy machine
    passed = re.search(r"dvae: \d+ s; (?:(\d+) min ?)?(?:(\d+) s )?have passed", capsys.readouterr().out)
    assert 60 * int(passed[1] or 0) + int(passed[2] or 0) > 20.5


def test_the_command_line_for_several_gpus():
    argv = ["--config", "plan/prior.yaml", "--output", "runs/my pictures/prior"]
    assert road.launched("prior", argv, 4) == [
        *("deepspeed", "--num_gpus", "4", "--no_python", "dalle-train-prior", "--config", "plan/prior.yaml"),
        *("--output", "runs/my pictures/prior"),
    ]


@pytest.mark.parametrize(("code", "error"), [("0", None), ("3", ValueError), ("130", KeyboardInterrupt)])
def test_what_a_launch_says_is_heard(monkeypatch, code, error):
    monkeypatch.setattr(road, "launched", lambda *_: [sys.executable, "-c", f"raise SystemExit({code})"])
    if error is None:
        road.train_stage("prior", [], gpus=2)
    else:
        with pytest.raises(error):
            road.train_stage("prior", [], gpus=2)


def test_a_call_that_says_less_goes_on_as_before(copied, tmp_path, trained, capsys):
    output = tmp_path / "out"
    more = ["--seed", "5", "--filters.min_caption_chars", "3", "--valid_share", "0.2", "--dvae.run.steps", "40"]
    train_folder([str(copied), "--output", str(output), *QUICK, *more])
    del trained[:]
    train_folder([str(copied), "--output", str(output)])
    assert not trained and "nothing was to be done" in capsys.readouterr().out


def test_where_captions_are_is_said_as_to_dalle_filter_and_once(copied, tmp_path, trained, capsys):
    """What is said of a folder names settings of both commands, so both have them."""
    images = sorted(path.name for path in copied.glob("*.png"))
    (copied / "t.csv").write_text("image,caption,other\n" + "".join(f"{name},,a {name[:-4]}\n" for name in images))
    call, first = [str(copied), "--output", str(tmp_path / "out"), *QUICK], (copied / images[0]).with_suffix(".txt")
    with pytest.raises(ValueError, match="no image can be used"):
        train_folder(call)
    train_folder([*call, "--caption_column", "other", "--image_column", "image", "--captions", "table"])
    assert images[0][:-4] in (tmp_path / "out/gallery/rows.json").read_text()
    del trained[:]
    train_folder(call)
    assert not trained and "nothing was to be done" in capsys.readouterr().out
    train_folder([*call, "--captions", "files"])
    assert trained and first.read_text().strip() in (tmp_path / "out/gallery/rows.json").read_text()


def test_where_all_is_anew_the_time_is_shared_among_all(copied, tmp_path, trained, monkeypatch):
    """What was trained for other pictures is no reason to give the first stage all of the time."""
    output = tmp_path / "out"
    train_folder([str(copied), "--output", str(output), "--minutes", "3", "--candidates", "2"])
    first = {kind: _plan(output, kind)["run"]["steps"] for kind in ("dvae", "prior", "clip")}
    (copied / sorted(p.name for p in copied.glob("*.txt"))[0]).write_text("a caption of another kind")
    train_folder([str(copied), "--output", str(output)])
    again = {kind: _plan(output, kind)["run"]["steps"] for kind in first}
    # the clock runs while the test does, so they are alike and not equal
    assert all(0.5 < again[kind] / first[kind] < 2 for kind in first), (first, again)


def test_what_is_made_from_a_stage_that_changed_is_made_anew(copied, tmp_path, trained, monkeypatch, capsys):
    """And nothing else."""
    # the models that stand in for the trained ones are always the same; those that are trained anew are others
    identity, quick, times = stages.Stages._identity, running.train_stage, Counter()
    monkeypatch.setattr(stages.Stages, "_identity", lambda self, name: identity(self, name) + "+" * times[name])
    monkeypatch.setattr(running, "train_stage", lambda kind, *rest: (times.update([kind]), quick(kind, *rest)))
    output = tmp_path / "out"
    line = [str(copied), "--output", str(output)]
    train_folder([*line, *QUICK, "--tokens.crops", "3"])
    meta = {split: TokenShards(output / "tokens" / split) for split in ("train", "valid")}
    assert (len(meta["train"]), len(meta["valid"])) == (3 * 11, 1)  # of what is held out there is the middle alone
    for settings, kinds, kept in (
        (["--tokenizer.vocabulary", "270"], ["prior", "clip"], {"dvae", "tokens"}),
        (["--tokens.crops", "2"], ["prior"], {"dvae", "clip", "tokenizer.json"}),
        (["--dvae.run.steps", "31"], ["dvae", "prior", "clip"], {"tokenizer.json"}),
        (["--candidates", "3"], [], {"dvae", "tokens", "prior", "clip", "tokenizer.json"}),
    ):
        del trained[:]
        number = len(list(output.glob("earlier-*"))) + 1
        train_folder([*line, *settings])
        assert _kinds(trained) == kinds, settings
        set_aside = {path.name for path in (output / f"earlier-{number}").iterdir()}
        assert not set_aside & kept, settings
        assert "gallery" in set_aside or kinds == [], settings
    assert "best of 3" in capsys.readouterr().out
    # long after the minutes are over there is time for a gallery
    seconds: list[float] = []
    monkeypatch.setattr(gallery, "draw_gallery", lambda *given: seconds.append(given[6]))
    monkeypatch.setattr(stages.Stages, "spent_s", lambda self: 9999.0)
    train_folder([*line, "--candidates", "4"])
    assert seconds == [10.0]


def test_of_what_nothing_is_known_nothing_is_gone_on_with(copied, tmp_path, trained, capsys):
    output = tmp_path / "out"
    train_folder([str(copied), "--output", str(output), *QUICK])
    (output / "progress.json").write_text("{")
    del trained[:]
    train_folder([str(copied), "--output", str(output)])
    assert _kinds(trained) == ["dvae", "prior", "clip"] and not any("--resume" in call for call in trained)
    assert "dvae is made anew, since nothing is known of how it was made; what it was" in capsys.readouterr().out
    assert (output / "earlier-1/dvae/model.safetensors").is_file()


def test_what_comes_next_is_timed_just_before(copied, tmp_path, trained, monkeypatch):
    """The machine gets three times as slow while the dVAE is trained."""
    timed: list[str] = []
    monkeypatch.setattr("dalle.own.budget.most_updates", lambda *_: {"dvae": 10**6, "prior": 10**6, "clip": 10**6})
    monkeypatch.setattr(
        planning, "_time_updates", lambda _, kind, *__: timed.append(kind) or 0.1 * (1 + 2 * bool(trained))
    )
    train_folder([str(copied), "--output", str(tmp_path / "out"), "--minutes", "30", "--candidates", "2"])
    assert timed == ["dvae", "prior", "prior", "clip"]
    # nothing was really trained, so that the prior has all of the 1,800 s but the clip's share: 0.58 of 0.72
    steps = {kind: _plan(tmp_path / "out", kind)["run"]["steps"] for kind in ("prior", "clip")}
    assert 0.95 < steps["prior"] / (0.58 / 0.72 * 1700 / (3 * 0.106)) < 1.05


def test_an_earlier_plan_is_timed_anew_before_its_first_stage(copied, tmp_path, trained, monkeypatch):
    """It was made while other programs kept the machine busy."""
    call = [str(copied), "--output", str(tmp_path / "out"), "--minutes", "30", "--candidates", "2"]
    monkeypatch.setattr("dalle.own.budget.most_updates", lambda *_: {"dvae": 10**6, "prior": 10**6, "clip": 10**6})
    monkeypatch.setattr(planning, "_time_updates", lambda *_: 1.0)
    train_folder([*call, "--plan_only"])
    before = _plan(tmp_path / "out", "dvae")["run"]["steps"]
    monkeypatch.setattr(planning, "_time_updates", lambda *_: 0.1)
    train_folder(call)
    assert 9 < _plan(tmp_path / "out", "dvae")["run"]["steps"] / before < 11


def _pictures(folder: Path, number: int, size: tuple[int, int]) -> Path:
    folder.mkdir()
    for n in range(number):
        Image.effect_noise(size, 20 + n).save(folder / f"{n:03d}.png")
        (folder / f"{n:03d}.txt").write_text(f"noise number {n}")
    return folder


def test_a_machine_that_is_slower_than_expected_has_smaller_models(tmp_path, trained, monkeypatch):
    """Of which a tenth is there, since other programs have the rest."""
    machine = Machine(0, 2, 4e11, 16 * 10**9, 50 * 10**9)
    monkeypatch.setattr(planning, "look_at_machine", lambda _: machine)
    source, sides = _pictures(tmp_path / "in", 12, (128, 128)), []
    for times in (1, 10):
        output = tmp_path / f"out-{times}"

        def update_s(_, kind, settings, *__, times=times):
            sides.append((times, settings["model"].get("image_size_px")))
            return times * expected_update_s(choose_sizes(PICTURES, machine, 30), machine)[kind]

        monkeypatch.setattr(planning, "_time_updates", update_s)
        train_folder([str(source), "--output", str(output), "--minutes", "30", "--plan_only"])
        sides.append((times, _plan(output, "dvae")["model"]["image_size_px"]))
    assert [side for times, side in sides if times == 1] == [64, None, 64]
    assert [side for times, side in sides if times == 10] == [64, None, 32, None, 32]  # chosen and timed anew


def test_a_gpu_is_timed_with_its_part_of_the_batch(monkeypatch):
    words = ["--config", "emoji/dvae", "--data", "d", "--output", "o", "--run.batch_size", "64"]
    seen, config = [], arguments.parse(TrainDVAE, "dalle-train-dvae", words)

    def update_s(kind, config, world, seconds):
        seen.append((kind, config.run.batch_size, seconds))
        return 0.5

    monkeypatch.setattr("dalle.own.measure.update_s", update_s)
    monkeypatch.setattr("dalle.cluster.topology.joined", nullcontext)
    stages = SimpleNamespace(parse=lambda *_: config)
    for devices, minutes in ((1, 30), (4, 1)):
        assert planning._time_updates(stages, "dvae", {}, devices, minutes) == 0.5
    assert seen == [("dvae", 64, 6.0), ("dvae", 16, pytest.approx(1.2))]  # a fiftieth of the time, six seconds at most


def test_a_limit_that_is_switched_off_leaves_nothing_out_later(tmp_path, trained):
    source = _pictures(tmp_path / "in", 12, (120, 36))
    train_folder([str(source), "--output", str(tmp_path / "out"), *QUICK, "--filters.max_aspect_ratio", "null"])
    assert _plan(tmp_path / "out", "dvae")["images"]["max_aspect_ratio"] > 120 / 36
    assert "noise number" in (tmp_path / "out/gallery/rows.json").read_text()


def test_no_more_are_held_out_than_figures_need(tmp_path, trained, monkeypatch):
    monkeypatch.setattr("dalle.cli.own.train_folder._MOST_VALID", 2)
    source = _pictures(tmp_path / "in", 16, (40, 40))
    train_folder(
        [str(source), "--output", str(tmp_path / "out"), "--minutes", "5", "--valid_share", "0.5", "--plan_only"]
    )
    assert 1 <= json.loads((tmp_path / "out/data/prepared.json").read_text())["num_valid"] <= 2


def test_what_was_frozen_of_other_weights_is_not_of_these(tmp_path):
    before = {"minutes": 5, "seed": 5, "valid_share": 0.5, "candidates": 5, "changes": {}, "filters": {}}
    files = SimpleNamespace(request=before | {"start_from": "shapes", "freeze": "prior"})
    told = {name: planning.settle(TrainFolder("a", "b", start_from=name), files) for name in (None, "shapes", "other")}
    assert {name: config.freeze for name, config in told.items()} == {None: "prior", "shapes": "prior", "other": None}
    assert told[None].start_from == "shapes" and told["other"].start_from == "other"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_is_said(copied, tmp_path, trained, monkeypatch, number):
    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    output = tmp_path / "out"
    monkeypatch.setattr(running, "train_stage", full)
    with pytest.raises(
        ValueError, match=rf"^output {output}: cannot be written \({os.strerror(number)}\).* goes on from here$"
    ):
        train_folder([str(copied), "--output", str(output), *QUICK])
    # what cannot be noted does not hide what has happened
    monkeypatch.setattr(running, "train_stage", lambda *_: (monkeypatch.setattr(Progress, "add", full), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        train_folder([str(copied), "--output", str(output)])


def test_what_somebody_has_deleted_is_made_again(copied, tmp_path, trained):
    output = tmp_path / "out"
    train_folder([str(copied), "--output", str(output), *QUICK])
    for name in ("dvae", "gallery"):
        shutil.rmtree(output / name)
    (output / "prior/model.safetensors").unlink()
    del trained[:]
    train_folder([str(copied), "--output", str(output)])
    assert _kinds(trained) == ["dvae", "prior"] and (output / "gallery/index.html").is_file()
    assert not list(output.glob("earlier-*"))
