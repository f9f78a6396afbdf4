"""What a user gets wrong: one clear line, exit code 2, nothing half-written. Run as real commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dalle.cli.describe import describe_file
from tests.conftest import ROOT, TINY_DVAE, TINY_PRIOR, clean_environment

SHAPES = ROOT / "configs/demo"


def _run(command: str, *arguments: str) -> subprocess.CompletedProcess:
    """One console script in a fresh process."""
    script = Path(sys.executable).parent / command
    return subprocess.run(
        [str(script), *arguments], capture_output=True, text=True, timeout=120, env=clean_environment()
    )


def _refused(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2, done.stderr[-2000:]
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr[-2000:]
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text((SHAPES / "dvae.yaml").read_text())
    return path


def test_unknown_key_names_the_nearest(config, tmp_path):
    config.write_text(config.read_text().replace("codebook_size", "codebok_size"))
    done = _run("dalle-train-dvae", "--config", str(config), "--data", "x.tar", "--output", str(tmp_path / "out"))
    _refused(done, "unknown key model.codebok_size", "model.codebook_size")
    assert not (tmp_path / "out").exists()
    done = _run(
        "dalle-train-dvae", "--config", str(SHAPES / "dvae.yaml"), "--run.stepps", "3", "--data", "x", "--output", "y"
    )
    _refused(done, "unknown key run.stepps", "run.steps")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--run.steps", "many", ["run.steps many", "whole number"]),
        ("--model.init", "xavier", ["model.init xavier", "one of paper, he"]),
        ("--model.width_multipliers", "[1,a]", ["model.width_multipliers", "whole numbers"]),
        ("--model.image_size_px", "33", ["image_size_px 33", "multiple of 4"]),
        ("--run.ema_decay", "x", ["run.ema_decay x", "a number or null"]),
    ],
)
def test_ill_typed_or_impossible_values(tmp_path, option, value, words):
    output = tmp_path / "out"
    base = ["--config", str(SHAPES / "dvae.yaml"), "--data", "x.tar", "--output", str(output)]
    _refused(_run("dalle-train-dvae", *base, option, value), *words)
    assert not output.exists()


def test_missing_and_absent_files(tmp_path):
    _refused(_run("dalle-train-dvae", "--config", "nowhere.yaml"), "no such file: nowhere.yaml")
    _refused(_run("dalle-train-dvae", "--config", str(SHAPES / "dvae.yaml")), "missing", "--data", "--output")
    _refused(_run("dalle-describe", "nowhere.yaml"), "no such file")
    (tmp_path / "bad.yaml").write_text("a: [")
    _refused(_run("dalle-train-dvae", "--config", str(tmp_path / "bad.yaml")), "cannot be read: ")


def test_shards_that_cannot_be_used(tmp_path, shapes_folder):
    cut = tmp_path / "cut.tar"
    cut.write_bytes((shapes_folder / "train-000.tar").read_bytes()[:5000])
    (tmp_path / "empty.tar").write_bytes(b"\0" * 10240)
    output = tmp_path / "out"
    for data, word in (
        ("gone.tar", "no such shard"),
        (str(cut), "cut off"),
        (str(tmp_path / "empty.tar"), "empty tar"),
    ):
        arguments = [*TINY_DVAE, "--run.steps", "2", "--data", data, "--output", str(output)]
        _refused(_run("dalle-train-dvae", *arguments), word)
        assert not output.exists()


def test_outputs_that_cannot_be_written(tmp_path, shapes_folder):
    (tmp_path / "file").write_text("")
    arguments = [*TINY_DVAE, "--run.steps", "2", "--data", f"{shapes_folder}/train-000.tar"]
    _refused(_run("dalle-train-dvae", *arguments, "--output", str(tmp_path / "file" / "out")), "not writable")
    _refused(_run("dalle-train-dvae", *arguments, "--output", "/proc/dalle"), "not writable")


def test_models_that_do_not_belong_together(models, tmp_path):
    from dalle.models.dvae import DVAE
    from dalle.models.folder import read_config, read_header, save_weights
    from dalle.text import Tokenizer

    config = read_config(models / "dvae", "dvae")
    other = save_weights(tmp_path / "dvae", "dvae", DVAE(config).state_dict(), config, {})
    own = read_header(models / "dvae")["hash"]
    arguments = [*TINY_PRIOR, "--run.steps", "1", "--data", f"{models}/tokens/train", "--output", str(tmp_path / "out")]
    tokenizer = ["--tokenizer", f"{models}/prior/tokenizer.json"]
    done = _run("dalle-train-prior", *arguments, *tokenizer, "--dvae", str(tmp_path / "dvae"))
    _refused(done, "another dVAE", own[:16], other[:16])
    done = _run("dalle-train-prior", *arguments, *tokenizer, "--dvae", f"{models}/dvae", "--model.grid", "8")
    _refused(done, "model.grid 8")
    assert not (tmp_path / "out").exists()
    import shutil

    shutil.copytree(models, tmp_path / "copy")
    Tokenizer.train(["other words"], 260).save(tmp_path / "copy/prior/tokenizer.json")
    done = _run("dalle-sample", "--model", str(tmp_path / "copy"), "--output", str(tmp_path / "drawn"), "a red circle")
    _refused(done, "another tokenizer")


def test_sample_refusals(models, tmp_path):
    base = ["--model", str(models), "--output", str(tmp_path / "out")]
    _refused(_run("dalle-sample", *base, "--n", "0", "a red circle"), "n 0")
    _refused(_run("dalle-sample", *base, "  "), "caption")
    _refused(_run("dalle-sample", *base), "missing", "--caption")
    _refused(_run("dalle-sample", *base, "--sampling.temperature", "0", "a red circle"), "temperature 0")
    _refused(_run("dalle-sample", *base, "--prompt-image", "gone.png", "--rows", "2", "a red circle"), "gone.png")
    assert not (tmp_path / "out").exists()


def test_describe_prints_json_and_builds_nothing():
    done = _run("dalle-describe", str(ROOT / "configs/paper/12b.yaml"), "--json")
    description = json.loads(done.stdout)
    assert description["kind"] == "prior"
    assert 12.0e9 < description["parameters"] < 12.4e9
    assert len(description["layers"]) == 64
    assert description["layers"][1]["mask"] == "column"


def test_describe_knows_every_kind_of_clip(tmp_path):
    (tmp_path / "named.yaml").write_text("model: {architecture: ViT-B-32}")
    named = describe_file(str(tmp_path / "named.yaml"))
    assert named["parameters"] == 151_277_313  # open_clip's own count
    assert describe_file(str(ROOT / "configs/demo/clip.yaml"))["vocabulary"] == 16_384
