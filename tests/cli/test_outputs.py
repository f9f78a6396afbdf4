"""What commands do where something is already: their own they write over, what another is writing or made they leave."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from dalle.cli import export as export_command
from dalle.cli.data.draw_shapes import draw_shapes
from dalle.cli.data.filter import filter_pictures
from dalle.cli.data.tokenize import tokenize
from dalle.cli.data.train_tokenizer import train_tokenizer
from dalle.cli.demo import demo
from dalle.cli.export import export
from dalle.cli.own.train_folder import train_folder
from dalle.cli.sample import sample
from dalle.cli.train import train
from dalle.config import TrainDVAE
from dalle.data.tokens import Meta, TokenShards, TokenWriter
from dalle.outputs.ownership import claimed, claimed_file
from tests.conftest import TINY_DVAE
from tests.forking import Forked
from tests.processes import begin_alone


def _state(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its content's hash."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _images(path: Path, count: int, first: int = 0) -> str:
    """A shard of images that differ, named by their captions."""
    with wds.TarWriter(str(path)) as tar:
        for i in range(first, first + count):
            buffer = io.BytesIO()
            Image.fromarray(np.full((32, 32, 3), i % 256, np.uint8)).save(buffer, "PNG")
            tar.write({"__key__": f"{i:04d}", "png": buffer.getvalue(), "txt": f"number {i}"})
    return str(path)


@pytest.fixture
def one(tmp_path):
    return _images(tmp_path / "one.tar", 60)


@pytest.fixture
def base(models, tmp_path):
    return ["--dvae", f"{models}/dvae", "--output", f"{tmp_path}/tokens", "--pairs_per_shard", "10"]


def test_token_shards_of_another_making_are_not_written_over(models, tmp_path, one, base):
    tokenize(["--data", one, *base])
    before = _state(tmp_path / "tokens")
    tokenize(["--data", one, *base])  # the same once more
    assert _state(tmp_path / "tokens") == before
    (tmp_path / "elsewhere").mkdir()
    tokenize(["--data", shutil.copy(one, tmp_path / "elsewhere"), *base])  # wherever they lie
    assert _state(tmp_path / "tokens") == before
    changed = _images(tmp_path / "changed.tar", 60, first=7)
    os.replace(changed, tmp_path / "elsewhere/one.tar")
    with pytest.raises(ValueError, match="of other data"):  # of the same name
        tokenize(["--data", f"{tmp_path}/elsewhere/one.tar", *base])
    two = _images(tmp_path / "two.tar", 15, first=100)
    (tmp_path / "tokens/notes.txt").write_text("mine")
    (tmp_path / "tokens/tokens-mine.safetensors").write_text("mine")
    for options, told in (
        (
            ["--data", two, *base],
            r"\(of other data: 1 file of .* then, 1 file of .* now\): name another --output, or .* --overwrite",
        ),
        (["--data", one, *base, "--crops", "2"], r"\(crops was 1, is 2\)"),
        (["--data", one, *base, "--images.max_aspect_ratio", "3"], r"\(images\.max_aspect_ratio was 2\.0, is 3\.0\)"),
    ):
        with pytest.raises(ValueError, match=f"holds token shards made with other settings {told}"):
            tokenize(options)
        assert _state(tmp_path / "tokens").items() >= before.items()
    tokenize(["--data", two, *base, "--overwrite"])
    shards = TokenShards(tmp_path / "tokens")
    assert [shards.pair(*divmod(i, 10))[1] for i in range(15)] == [[f"number {i}"] for i in range(100, 115)]
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == [
        *(".dalle-tokenize", "meta.json", "notes.txt"),
        *("tokens-00000-1.safetensors", "tokens-00001-1.safetensors", "tokens-mine.safetensors"),
    ]


def test_what_tokenize_did_not_make_it_does_not_delete(tmp_path, one, base):
    """A folder with any meta.json, and any folder X.partial, used to be deleted."""
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens/meta.json").write_text('{"precious": 1}')
    (tmp_path / "tokens/sub").mkdir()
    (tmp_path / "tokens/sub/precious.txt").write_text("mine")
    (tmp_path / "tokens.partial").mkdir()
    (tmp_path / "tokens.partial/precious.txt").write_text("mine")
    before = _state(tmp_path)
    with pytest.raises(ValueError, match=r"holds meta\.json, which dalle-tokenize did not make; .* --overwrite"):
        tokenize(["--data", one, *base])
    with pytest.raises(ValueError, match=r"holds meta\.json, which dalle-tokenize did not make"):
        TokenWriter(tmp_path / "tokens", Meta(4, 16, "x"), 10)
    assert _state(tmp_path) == before
    tokenize(["--data", one, *base, "--overwrite"])
    assert len(TokenShards(tmp_path / "tokens")) == 60
    after = _state(tmp_path)
    assert all(after[name] == digest for name, digest in before.items() if name != "tokens/meta.json")


@pytest.mark.parametrize(
    "command", [tokenize, train_tokenizer, sample, draw_shapes, export, demo], ids=lambda c: c.__name__
)
def test_where_another_process_is_writing_no_command_does(models, tmp_path, one, command):
    output = tmp_path / "out"
    arguments = {
        tokenize: ["--data", one, "--dvae", f"{models}/dvae"],
        train_tokenizer: ["--data", one],
        sample: ["--model", str(models), "a red circle"],
        draw_shapes: ["--num_train", "4", "--num_valid", "2", "--size_px", "32", "--workers", "1"],
        export: [f"{models}/prior"],
        demo: ["--num_train", "64"],
    }[command]
    claim = claimed_file(output, "x", False) if command is train_tokenizer else claimed(output, "x")
    with claim, pytest.raises(ValueError, match=r"out: x \(process \d+ on .*\) is writing there; wait for its end"):
        command([*arguments, "--output", str(output)])
    assert [path.name for path in tmp_path.iterdir()] == ["one.tar"]


def _command(module: str, function: str, *arguments: str) -> Forked:
    """A command in a process of its own."""
    return begin_alone(f"from dalle.cli.{module} import {function}; {function}()", *arguments)


def test_of_two_at_once_the_second_is_refused(tmp_path, base):
    """Two used to publish a mixture and call it done."""
    tars = [_images(tmp_path / f"{name}.tar", 1500, first) for name, first in (("a", 0), ("b", 2000))]
    both = [_command("data.tokenize", "main", "--data", tar, *base) for tar in tars]
    told = [process.communicate(timeout=200) for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], told
    (refused,) = [complaint for process, (_, complaint) in zip(both, told, strict=True) if process.returncode]
    assert len(refused.strip().splitlines()) == 1, refused
    first = 0 if both[0].returncode == 0 else 2000
    shards = TokenShards(tmp_path / "tokens")
    assert [shards.pair(*divmod(i, 10))[1] for i in range(1500)] == [[f"number {first + i}"] for i in range(1500)]
    assert not [path for path in tmp_path.rglob(".dalle-*") if path.name != ".dalle-tokenize"]


def test_tokenize_killed_midway_begins_again(tmp_path, one, base):
    many = _images(tmp_path / "many.tar", 3000)
    killed = _command("data.tokenize", "main", "--data", many, *base)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "tokens").glob(".dalle-unfinished-*/*")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with pytest.raises(ValueError, match="run dalle-tokenize to its end first"):
        TokenShards(tmp_path / "tokens")
    tokenize(["--data", one, *base])
    assert len(TokenShards(tmp_path / "tokens")) == 60
    assert not list((tmp_path / "tokens").glob(".dalle-[lu]*"))


@pytest.mark.parametrize("cut_at", range(14))
def test_publishing_that_is_cut_off_shows_no_mixture(tmp_path, monkeypatch, cut_at):
    """Wherever it is killed there are the old shards or the new ones; and the next writer gets through."""

    def write(number: int) -> None:
        with TokenWriter(tmp_path / "tokens", Meta(2, 10, "x"), 2) as writer:
            for _ in range(5):
                writer.add(np.full(4, number), [str(number)])
            writer.close()

    write(1)
    calls = 0
    with monkeypatch.context() as cut:

        def counted(whole):
            def one_more(*arguments, **options):
                nonlocal calls
                calls += 1
                if calls > cut_at:
                    raise KeyboardInterrupt
                return whole(*arguments, **options)

            return one_more

        for name in ("replace", "unlink"):  # Path's own go through these
            cut.setattr(os, name, counted(getattr(os, name)))
        try:
            write(2)
        except KeyboardInterrupt:
            pass
        else:
            assert calls <= cut_at
    shards = TokenShards(tmp_path / "tokens")
    before = {shards.pair(*divmod(i, 2))[1][0] for i in range(5)}
    assert len(before) == 1
    for number in (2, 2, 3):
        write(number)
        shards = TokenShards(tmp_path / "tokens")
        assert {shards.pair(*divmod(i, 2))[1][0] for i in range(5)} == {str(number)}
        assert len(list((tmp_path / "tokens").glob("[!.]*"))) == 4, "three shards and their index"


def test_a_tokenizer_is_not_written_over(tmp_path):
    (tmp_path / "captions.txt").write_text("zebra zebra\n")
    output = tmp_path / "tokenizer.json"
    output.write_text("mine")
    (tmp_path / "tokenizer.json.partial").write_text("mine")
    arguments = ["--data", str(tmp_path / "captions.txt"), "--output", str(output)]
    before = _state(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer\.json is there already; .* --overwrite"):
        train_tokenizer(arguments)
    assert _state(tmp_path) == before
    (tmp_path / "tokenizer.words.json").write_text("mine")
    output.unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.words\.json is there already; .* --overwrite"):
        train_tokenizer(arguments)
    assert (tmp_path / "tokenizer.words.json").read_text() == "mine" and not output.exists()
    train_tokenizer([*arguments, "--overwrite"])
    after = _state(tmp_path)
    assert after.pop("tokenizer.json") != before.pop("tokenizer.json")
    assert after.pop("tokenizer.words.json") and after == before


@pytest.mark.parametrize("name", ["index.html", "results.jsonl", "notes.txt"])
def test_sample_draws_into_no_folder_of_something_else(models, tmp_path, name):
    arguments = ["--model", str(models), "--output", f"{tmp_path}/out", "--n", "1", "--sampling.precision", "fp32"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    before = _state(tmp_path)
    with pytest.raises(ValueError, match=rf"holds {name}, which dalle-sample did not make; .* --overwrite"):
        sample([*arguments, "a red circle"])
    assert _state(tmp_path) == before
    sample([*arguments, "--overwrite", "a red circle"])
    assert (tmp_path / "out/grid.png").is_file()
    assert ((tmp_path / "out" / name).read_text() == "mine") == (name == "notes.txt")


def test_sample_says_whose_place_a_gallery_takes(models, tmp_path, capsys):
    arguments = ["--model", str(models), "--output", f"{tmp_path}/out", "--n", "1", "--sampling.precision", "fp32"]
    sample([*arguments, "a red circle"])
    sample([*arguments, "a red circle"])  # the same once more
    assert "in place of" not in capsys.readouterr().err
    said = "will show these in place of its drawings for 'a red circle', whose files stay"
    (origin,) = (tmp_path / "out/images").iterdir()
    given = ["--variations-of", str(shutil.copy(origin, tmp_path)), "--rows", "2"]
    for other in (["--seed", "3"], ["--n", "2"], ["--sampling.top_k", "5"], ["--rerank", "false"], given, []):
        images = _state(tmp_path / "out/images")
        sample([*arguments, *other, "a red circle"])
        assert said in capsys.readouterr().err, other
        sample([*arguments, *other, "a red circle"])
        assert "in place of" not in capsys.readouterr().err, other
        assert _state(tmp_path / "out/images").keys() >= images.keys()
    images = _state(tmp_path / "out/images")
    sample([*arguments, "a blue cross"])
    assert said in capsys.readouterr().err
    assert _state(tmp_path / "out/images").items() >= images.items()


def test_sample_writes_over_another_request_when_told_to(models, tmp_path):
    for name, captions in (("one", "a red circle\na blue cross\n"), ("two", "a green square\n")):
        (tmp_path / f"{name}.txt").write_text(captions)
    arguments = ["--model", str(models), "--output", f"{tmp_path}/out", "--n", "1", "--sampling.precision", "fp32"]
    sample([*arguments, "--captions", f"{tmp_path}/one.txt"])
    changed = [*arguments, "--captions", f"{tmp_path}/two.txt", "--seed", "1"]
    with pytest.raises(ValueError, match=r"another request \(seed was 0, is 1\).* --overwrite"):
        sample(changed)
    sample([*changed, "--overwrite"])
    lines = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert [(line["caption"], line["seed"]) for line in lines] == [("a green square", 1)]
    sample([*arguments, "--overwrite", "a red circle"])
    assert not (tmp_path / "out/request.json").exists()
    sample([*arguments, "a red circle"])


def test_a_drawing_drawn_again_takes_no_place_but_its_own(models, tmp_path):
    arguments = ["--model", str(models), "--sampling.precision", "fp32", "--sampling.chunk", "1", "--n", "1"]
    sample([*arguments, "--output", f"{tmp_path}/out", "a red circle"])
    (file,) = (tmp_path / "out/images").iterdir()
    again = ["--model", str(models), "--output", str(tmp_path), "--again", str(file)]
    path = tmp_path / f"{file.stem}-again.png"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"-again\.png is there already; .* --overwrite"):
        sample(again)
    assert path.read_text() == "mine"
    sample([*again, "--overwrite"])
    sample(again)  # its own
    assert not (tmp_path / ".dalle-sample").exists(), "a folder of other things does not become a gallery"


def test_drawn_shards_take_no_others_place(tmp_path):
    arguments = ["--output", str(tmp_path), "--num_train", "4", "--num_valid", "2", "--size_px", "32", "--workers", "1"]
    (tmp_path / "train-000.tar").write_text("mine")
    before = _state(tmp_path)
    with pytest.raises(ValueError, match=r"holds train-000\.tar, which dalle-draw-shapes did not make"):
        draw_shapes(arguments)
    assert _state(tmp_path) == before
    (tmp_path / "train-000.tar").rename(tmp_path / "notes.txt")
    draw_shapes(arguments)
    draw_shapes(arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".dalle-draw-shapes", "notes.txt", "train-000.tar", "valid-000.tar"),
    ]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "pictures", "report.html"])
def test_a_training_writes_over_nothing_of_others(shapes_folder, tmp_path, name):
    data = ["--data", f"{shapes_folder}/train-000.tar", "--run.steps", "1", "--output", str(tmp_path)]
    (tmp_path / name).write_text("mine")
    (tmp_path / "train.log").touch()  # as a shell makes it before the training begins
    with pytest.raises(ValueError, match=rf"holds {name}, which dalle-train-dvae did not make"):
        train("dvae", TrainDVAE, [*TINY_DVAE, *data])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "train.log"])
    (tmp_path / name).unlink()
    train("dvae", TrainDVAE, [*TINY_DVAE, *data])
    assert (tmp_path / "model.safetensors").is_file()


def test_an_export_that_was_cut_off_begins_again(models, tmp_path, monkeypatch):
    arguments = [f"{models}/prior", "--output", f"{tmp_path}/out"]

    class Killed(BaseException):
        pass

    def killed(source, target):
        if source.name == "model.safetensors":
            raise Killed
        os.rename(source, target)

    monkeypatch.setattr(export_command.os, "replace", killed)
    monkeypatch.setattr(export_command.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(Killed):
        export(arguments)
    assert (tmp_path / "out/config.yaml").is_file() and not (tmp_path / "out/model.safetensors").exists()
    monkeypatch.undo()
    export(arguments)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.yaml",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.words.json",
    ]
    with pytest.raises(ValueError, match="out is not empty: it holds a model already"):
        export(arguments)


@pytest.mark.parametrize("as_source", [False, True], ids=["as the output", "as the source"])
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (filter_pictures, []),
        (train_folder, ["--plan_only", "true"]),
        (draw_shapes, ["--num_train", "2", "--num_valid", "1", "--workers", "1"]),
        (tokenize, ["--dvae", "MODELS/dvae"]),
        (train_tokenizer, []),
        (export, []),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_link_to_itself_is_told_in_one_line(models, one, tmp_path, command, words, as_source):
    loop, pictures = tmp_path / "loop", tmp_path / "pictures"
    loop.symlink_to(loop)
    pictures.mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (90 * i, 0, 0)).save(pictures / f"number {i}.png")
    words = [word.replace("MODELS", str(models)) for word in words]
    given = {filter_pictures: str(pictures), train_folder: str(pictures), export: f"{models}/dvae"}.get(command, one)
    source, output = (str(loop), str(tmp_path / "out")) if as_source else (given, str(loop))
    if command in (tokenize, train_tokenizer):
        words += ["--data", source]
    elif command is not draw_shapes:
        words = [source, *words]
    elif as_source:
        return
    with pytest.raises((OSError, ValueError), match=re.escape(str(loop))) as raised:
        command([*words, "--output", output])
    assert "\n" not in str(raised.value) and loop.is_symlink()
