"""The table of the GAN's experiments: what counts as stable, what it reads, and a whole run of the tool in small."""

import importlib.util
import json
import subprocess
import sys

import pytest

from dalle.config import Optimizer, Run, Schedule, StackGANObjective, TrainStackGAN
from dalle.config.commands.stackgan import StackGANModel
from tests.conftest import ROOT, clean_environment

_spec = importlib.util.spec_from_file_location("stackgan_experiments", ROOT / "tools/stackgan_experiments.py")
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

STEPS = 1000


def _config(**objective):
    optimizer = Optimizer(Schedule(1e-3, 1e-3))
    return TrainStackGAN(
        *("data", "output", "chars:x", optimizer, optimizer, Run(steps=STEPS, batch_size=8)),
        model=StackGANModel(),
        objective=StackGANObjective(**objective),
    )


def _lines(**changed):
    """A run without anything to warn of, in log lines of ten updates; from update 500 to 590 it is as changed."""
    sound = {"loss": 2.0, "discriminator_loss": 1.2, "adversarial": 1.5, "spread": 0.8}
    lines = [{"step": step, **sound} for step in range(10, STEPS + 1, 10)]
    lines.insert(20, {"step": 200, "valid/caption_spread": 0.7, "valid/noise_spread": 0.5})
    for line in lines:
        if "loss" in line and 500 <= line["step"] <= changed.get("until", 620):
            line.update({name: value for name, value in changed.items() if name != "until"})
    return lines


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"discriminator_loss": 0.01}, False),
        ({"discriminator_loss": 0.01, "until": 590}, True),  # for less than a tenth of the run
        ({"adversarial": 9.0}, False),
        ({"spread": 0.01}, False),
    ],
)
def test_stable_is_what_nothing_lasting_is_wrong_with(changed, expected):
    assert tool.stable(_lines(**changed), _config()) is expected


def test_images_of_all_captions_alike_are_not_stable():
    lines = _lines()
    lines[20]["valid/caption_spread"] = 0.01
    assert not tool.stable(lines, _config())
    lines.insert(25, {"step": 250, "valid/caption_spread": 0.6, "valid/noise_spread": 0.5})
    assert tool.stable(lines, _config())


def test_soft_labels_leave_a_loss_that_is_no_win():
    """With labels of 0.9 and 0.1 the least cross-entropy is 2 · 0.325: 0.7 is near that, not near 0."""
    lines = _lines(discriminator_loss=0.66)
    assert tool.stable(lines, _config())
    assert not tool.stable(lines, _config(real_labels=(0.9,), fake_labels=(0.1,)))


def test_the_table():
    one = {
        "stable": "yes",
        "frechet": 100.0,
        "frechet_clip": 0.5,
        "right": None,
        "facts": None,
        "found_1": 0.25,
        "found_5": 0.5,
    }
    one |= {"caption_spread": 0.5, "noise_spread": 0.25, "discriminator_loss": 1.0, "minutes": 9.6}
    other = {**one, "stable": "no", "frechet": 110.0}
    title, _, a, b = (
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in tool.table({"a": [one, other], "dfgan": [one]}).splitlines()
    )
    assert "captions right" not in title
    assert a[:4] == ["A", "unstable: D at 0, G rises", "1 of 2", "105.0 ± 7.1"]
    assert b[:7] == ["DF-GAN's recipe", "not tried", "yes", "100.0", "0.5000", "25.0%", "50.0%"]


def test_h_takes_its_encoder(capsys, tmp_path):
    given = ["--data", "x", "--valid_data", "y", "--output", str(tmp_path), "--clip", "z"]
    with pytest.raises(SystemExit):
        tool.parse(given)
    assert "--chars" in capsys.readouterr().err
    assert tool.parse([*given, "--names", "a", "f", "--run.seed", "3"]).more == ["--run.seed", "3"]


def test_the_whole_of_it(shapes_folder, models, tmp_path):
    small = [
        "--model.image_size_px=32",
        "--model.channels=4",
        "--model.discriminator_channels=4",
        "--model.text_width=16",
    ]
    small += ["--run.batch_size=8", "--run.validate_every_steps=2", "--run.loader_workers=0", "--run.log_every_steps=1"]
    output = tmp_path / "out"
    command = [
        sys.executable,
        ROOT / "tools/stackgan_experiments.py",
        "--data",
        f"{shapes_folder}/train-*.tar",
        "--valid_data",
    ]
    command += [f"{shapes_folder}/valid-*.tar", "--clip", models / "clip", "--text_encoder", f"clip:{models / 'clip'}"]
    command += [
        "--names",
        "f",
        "--steps",
        "3",
        "--most",
        "6",
        "--jobs",
        "1",
        "--class_key",
        "scene",
        "--output",
        output,
        *small,
    ]
    done = subprocess.run([str(word) for word in command], env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((output / "f-0/result.json").read_text())
    metrics = json.loads((output / "f-0/evaluation/metrics.json").read_text())
    assert result["frechet"] == metrics["distances_efficientnet-lite0"]["by_radius"][0]["frechet_distance"]
    checked = metrics["compositional"]["captions"]
    assert (result["right"], result["facts"]) == (checked["whole"], checked["arithmetic"])
    assert [step for step, *_ in result["curve"]] == [1, 2, 3]
    assert "| F | " in done.stdout and (output / "curves.png").stat().st_size > 1000
    (output / "f-0/result.json").write_text(json.dumps({**result, "frechet": 12.5}))
    again = subprocess.run([str(word) for word in command], env=clean_environment(), capture_output=True, text=True)
    assert "| 12.5 |" in again.stdout  # what is finished is not repeated
