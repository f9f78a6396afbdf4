"""The whole road in little: `dalle-demo` with tiny configurations, from drawing to the last line of JSON."""

import json
import re

import pytest

from dalle.cli.demo import demo
from dalle.outputs.ownership import claimed
from tests.conftest import TINY_CLIP, TINY_DVAE, TINY_PRIOR


def write_config(path, options, steps):
    """Dotted options as a YAML file."""
    values: dict = {}
    for name, value in zip(options[::2], options[1::2], strict=True):
        section = values
        *parents, key = name.removeprefix("--").split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = json.loads(value) if re.match(r"[\[\d.-]|null|true|false", value) else value
    values["run"]["steps"] = steps
    path.write_text("# What: a test.\n" + json.dumps(values))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("road")
    (folder / "configs").mkdir()
    for name, options, steps in (("dvae", TINY_DVAE, 20), ("prior", TINY_PRIOR, 20), ("clip", TINY_CLIP, 6)):
        write_config(folder / "configs" / f"{name}.yaml", options, steps)
    import contextlib
    import io

    printed = io.StringIO()
    arguments = ["--output", str(folder / "demo"), "--configs", str(folder / "configs"), "--num_train", "64"]
    with contextlib.redirect_stdout(printed):
        demo([*arguments, "--captions", "5", "--candidates", "3"])
    return folder / "demo", printed.getvalue().splitlines()


def test_last_line_is_the_promised_json(result):
    folder, lines = result
    last = json.loads(lines[-1])
    assert {"seconds", "caption_accuracy", "captions", "gallery"} == set(last)
    assert {"reranked", "unranked", "real"} <= set(last["caption_accuracy"])
    assert last["captions"] == 5
    assert last["caption_accuracy"]["real"] == 1.0
    assert all(0 <= share <= 1 for share in last["caption_accuracy"].values())
    assert last["gallery"] == str(folder / "gallery" / "index.html")


def test_everything_is_where_it_belongs(result):
    folder, _ = result
    for model in ("dvae", "prior", "clip"):
        for name in ("config.yaml", "model.safetensors", "metrics.jsonl", "report.html"):
            assert (folder / model / name).is_file(), f"{model}/{name}"
    for name in ("prior/tokenizer.json", "clip/tokenizer.json", "tokens/train/meta.json", "gallery/sheet.png"):
        assert (folder / name).is_file(), name
    assert list((folder / "dvae/pictures").glob("reconstructions-*.png"))
    assert list((folder / "prior/pictures").glob("samples-*.png"))
    assert not list(folder.rglob("*.partial"))


def test_the_demo_removes_nothing_that_another_process_is_writing(tmp_path):
    (tmp_path / ".dalle-demo").touch()
    with claimed(tmp_path / "prior", "dalle-train-prior"):
        with pytest.raises(ValueError, match=r"prior: dalle-train-prior \(process \d+ on .*\) is writing there"):
            demo(["--output", str(tmp_path), "--num_train", "64"])
        assert (tmp_path / "prior/.dalle-train-prior").is_file()


def test_the_demo_removes_nothing_that_it_did_not_make(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="did not make"):
        demo(["--output", str(tmp_path), "--num_train", "64"])
    assert (tmp_path / "data/precious.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["data/mine.txt", "prior/notes.txt", "gallery/images/mine.txt", "tokens/train/mine"])
def test_the_next_demo_removes_nothing_that_was_put_there_since(tmp_path, name):
    for made in (
        ".dalle-demo",
        "data/train-000.tar",
        "prior/checkpoints/step-0000002/state.json",
        "prior/config.yaml",
        name,
    ):
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).write_text("x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"{name} was not made by dalle-demo"):
        demo(["--output", str(tmp_path), "--num_train", "64"])
    assert [path for path in before if not path.exists()] == []
