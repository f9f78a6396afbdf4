"""Each command says of the same shards the same: what was used, filtered out and broken, why, and where."""

import json
import shutil

import pytest

from dalle.cli.data.tokenize import tokenize
from dalle.cli.data.train_tokenizer import train_tokenizer
from dalle.cli.train import train
from dalle.config import TrainCLIP, TrainDVAE, TrainPrior
from tests.conftest import TINY_CLIP, TINY_DVAE, TINY_PRIOR
from tests.data.pictures import encoded, gradient, write_shard


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """40 samples: 34 good, 3 panoramas, 2 images that are none, and a caption that is none."""
    path = tmp_path_factory.mktemp("odd") / "odd.tar"
    samples = [{"png": encoded(gradient(40, 130 if i in (4, 5, 6) else 40)), "txt": b"a red box"} for i in range(40)]
    samples[10]["png"], samples[20]["png"], samples[30]["txt"] = b"<html>403</html>", b"", b""
    write_shard(path, samples)
    return path


_NO_IMAGE = "no image in PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM"


def _line(shard) -> str:
    return (
        "of 40 samples 34 were used, 3 filtered out, 3 broken ("
        "3 × longer than images.max_aspect_ratio 2 times its shorter side: 0004 (40×130), 0005 (40×130), 0006 (40×130) of "
        f"{shard}; 2 × image does not decode: 0010 ({_NO_IMAGE}), 0020 ({_NO_IMAGE}) of "
        f"{shard}; 1 × no caption: 0030 of {shard})"
    )


PAIRS = ["--images.shuffle_buffer", "0", "--images.max_bad_fraction", "0.1"]


@pytest.mark.parametrize("kind", ["tokenizer", "tokens and prior", "dvae", "clip"])
def test_each_command_says_the_same(models, shard, tmp_path, capsys, kind):
    data, inputs = ["--data", str(shard)], ["--dvae", f"{models}/dvae"]
    output, line = ["--output", str(tmp_path / "out")], _line(shard)
    if kind == "tokenizer":  # which looks at captions alone
        train_tokenizer([*data, "--output", str(tmp_path / "t.json"), "--vocabulary", "300"])
        told = capsys.readouterr().out
        assert f"of 40 samples 39 were used, 0 filtered out, 1 broken (1 × no caption: 0030 of {shard})" in told
        return
    tokenizer = ["--tokenizer", f"{models}/prior/tokenizer.json"]
    if kind == "tokens and prior":
        tokens = str(tmp_path / "tokens")
        tokenize([*data, *inputs, "--output", tokens, "--crops", "2", *PAIRS[2:]])
        told = capsys.readouterr().out
        assert "68 pairs in 1 token shards" in told and line in told
        argv = [*TINY_PRIOR, "--run.steps", "2", "--data", tokens, *inputs, *tokenizer, *output]
        train("prior", TrainPrior, argv)
    elif kind == "dvae":
        train("dvae", TrainDVAE, [*TINY_DVAE, *PAIRS, "--run.steps", "6", *data, "--valid_data", str(shard), *output])
    else:
        train("clip", TrainCLIP, [*TINY_CLIP, *PAIRS, "--run.steps", "6", *data, *tokenizer, *output])
    last_lines = capsys.readouterr().err.strip().splitlines()[-4:-1]  # behind them the next command
    assert any(last == f"out: data: {line}" for last in last_lines), last_lines
    assert last_lines[-1].startswith("out: finished")
    kept = json.loads((tmp_path / "out" / "samples.json").read_text())["data"]
    assert (kept["read"], kept["broken"]["no caption"]["first"]) == (40, [[str(shard), "0030", ""]])
    warnings = [
        json.loads(text).get("warning", "") for text in (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    ]
    assert any("panorama" in w or "max_aspect_ratio" in w for w in warnings)
    assert "<h2>Samples</h2><p>data: of 40 samples 34 were used" in (tmp_path / "out" / "report.html").read_text()
    if kind == "dvae":  # of the held-out ones as many as are looked at, which are all
        assert any(last == f"out: valid_data: {line}" for last in last_lines), last_lines


def test_counts_go_on_in_a_run_that_is_resumed(shard, tmp_path, capsys):
    argv = [*TINY_DVAE, *PAIRS, "--data", str(shard), "--output", str(tmp_path / "out")]
    train("dvae", TrainDVAE, [*argv, "--run.steps", "3"])
    train("dvae", TrainDVAE, [*argv, "--run.steps", "12", "--resume"])
    assert f"out: data: {_line(shard)}" in capsys.readouterr().err.splitlines()


def test_no_command_runs_a_file_name(models, shard, tmp_path, monkeypatch, capsys):
    name = "pipe:touch PWNED;echo .tar"
    for called in (name, "t:1.tar"):
        shutil.copy(shard, tmp_path / called)
    monkeypatch.chdir(tmp_path)
    for spec in ("*.tar", name, "t:1.tar"):
        train_tokenizer(["--data", spec, "--output", "t.json", "--vocabulary", "300", "--overwrite"])
        tokenize(["--data", spec, "--dvae", f"{models}/dvae", "--output", "tokens", "--overwrite", *PAIRS[2:]])
    train("dvae", TrainDVAE, [*TINY_DVAE, *PAIRS, "--run.steps", "1", "--data", "*.tar", "--output", "dvae"])
    assert {path.name for path in tmp_path.iterdir()} == {name, "t:1.tar", "t.json", "t.words.json", "tokens", "dvae"}
