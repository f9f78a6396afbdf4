"""From a name to a folder: what wins, what is said of names that are nothing, and that all commands understand them."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import dalle
from dalle.cli.caption import caption
from dalle.cli.export import export
from dalle.cli.sample import sample
from dalle.config import Sample, Sampling
from dalle.models.folder import read_header
from dalle.ready.names import find_clip, find_model, find_part, ready_names
from dalle.sampling.drawing import read_drawing

FAST = ["--sampling.chunk", "2", "--sampling.precision", "fp32", "--n", "2", "--keep", "2"]
QUICK = {"n": 2, "keep": 2, "sampling": Sampling(chunk=2, precision="fp32")}


def test_ready_models_are_those_that_lie_there(ready):
    assert ready_names() == ["tiny"]
    assert find_model("tiny") == ready / "tiny"
    assert find_model(ready / "no model") == ready / "no model"  # a folder, whatever is in it
    assert find_part("tiny", "dvae") == find_part("tiny/dvae", "dvae") == ready / "tiny/dvae"
    assert find_part(ready / "tiny", "clip") == find_part(ready / "tiny/clip", "clip") == ready / "tiny/clip"
    (ready / "tiny/dvae/dvae").mkdir()  # of a single model it is what it is that counts, not what lies in it
    assert find_part("tiny/dvae", "dvae") == ready / "tiny/dvae"


def test_a_folder_wins_and_says_so(ready, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny/prior").mkdir(parents=True)
    with pytest.warns(
        UserWarning, match=rf"model tiny: is the folder {tmp_path}/tiny, not the ready model.*{ready}/tiny"
    ):
        assert find_model("tiny") == Path("tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_model("./tiny") == Path("tiny")  # which can mean nothing else
        assert find_model(tmp_path / "tiny") == tmp_path / "tiny"
    (tmp_path / "tiny/prior/model.safetensors").touch()
    with pytest.warns(UserWarning, match=rf"prior tiny/prior: is the folder .*that one is {ready}/tiny/prior"):
        assert find_part("tiny/prior", "prior") == Path("tiny/prior")


@pytest.mark.parametrize("held", [None, "picture.png", "train/picture.png"])
def test_a_folder_of_something_else_is_no_model(ready, tmp_path, monkeypatch, held):
    """Many have a folder `icons`, and the default is a ready model that nobody has named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny/train").mkdir(parents=True)
    if held:
        (tmp_path / "tiny" / held).touch()
    with pytest.warns(UserWarning, match=rf"model tiny: is the ready model; the folder {tmp_path}/tiny holds none"):
        assert find_model("tiny") == ready / "tiny"
    (tmp_path / "tiny/checkpoints").mkdir()  # of a training, which is a model that is not finished
    with pytest.warns(UserWarning, match="is the folder"):
        assert find_model("tiny") == Path("tiny")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tin", r"^model tin: no such folder, and no such ready model \(the nearest is tiny\); give a folder"),
        ("zebra", r"no such ready model \(there are tiny\)"),
        ("/no/such/folder", r"^model /no/such/folder: no such folder"),
        ("a/b/c", r"^model a/b/c: no such folder"),
        ("tiny/codes-clip", r"^model tiny/codes-clip: no such folder here, and the Hub cannot be reached"),
        ("../tiny", r"^model \.\./tiny: no such folder"),
        ("", r"^model: is empty"),
    ],
)
def test_what_is_no_name_is_said_in_one_line(ready, monkeypatch, name, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=said) as raised:
        find_model(name)
    assert "\n" not in str(raised.value)


def test_a_file_is_no_model(ready, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file: is a file; name a folder"):
        find_model(tmp_path / "file")


def test_without_ready_weights_the_default_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dalle.ready.names.weights_folder", lambda: tmp_path / "none")
    assert ready_names() == []
    assert Sample(caption="x").model == "icons"
    with pytest.raises(
        ValueError, match=r"model icons: no such folder, and no such ready model \(this installation has none\)"
    ):
        sample(["a red circle", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    sample(["--list"])
    assert "no ready models in this installation; dalle-demo trains one" in capsys.readouterr().out


def test_names_of_rerankers_leave_those_of_open_clip_alone(ready, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_clip("ViT-B-32:laion2b_s34b_b79k") == "ViT-B-32:laion2b_s34b_b79k"
    assert find_clip("hf-hub:owner/name") == "hf-hub:owner/name"
    assert find_clip("nowhere") == "nowhere"  # which open_clip's name says more of
    assert find_clip("tiny") == find_clip("tiny/clip") == str(ready / "tiny/clip")


def test_every_command_that_takes_a_model_takes_its_name(ready, whole, tmp_path, capsys):
    """Python, drawing with all parts by name, again, captions, export: the very same as with the folder."""
    sample(["--model", "tiny", "--output", str(tmp_path / "out"), *FAST, "a red circle"])
    drawn = sorted((tmp_path / "out/images").glob("*.png"))
    by_folder = dalle.load(whole, device="cpu", precision="fp32").generate("a red circle", **QUICK)
    by_name = dalle.load("tiny", device="cpu", precision="fp32").generate("a red circle", **QUICK)
    pixels = {read_drawing(path).seed: np.asarray(read_drawing(path).image) for path in drawn}
    assert [each.score for each in by_name] == [each.score for each in by_folder] and by_name[0].score is not None
    for each, other in zip(by_name, by_folder, strict=True):
        assert np.array_equal(each.image, other.image) and np.array_equal(each.image, pixels[each.seed])
    parts = ["--dvae", "tiny", "--prior", "tiny/prior", "--clip", "tiny"]
    sample(["--model", "nowhere", *parts, "--output", str(tmp_path / "parts"), *FAST, "a red circle"])
    assert sorted(path.name for path in (tmp_path / "parts/images").glob("*.png")) == [path.name for path in drawn]
    sample(["--model", "tiny", "--again", str(drawn[0]), "--output", str(tmp_path)])
    assert "all pixels are those of" in capsys.readouterr().out
    (tmp_path / "captions.txt").write_text("a red circle\na blue square\n")
    caption([str(drawn[0]), "--captions", str(tmp_path / "captions.txt"), "--model", "tiny"])
    assert "a blue square" in capsys.readouterr().out
    export(["tiny/prior", "--output", str(tmp_path / "smaller"), "--dtype", "bf16"])
    assert (tmp_path / "smaller/model.safetensors").is_file()


def test_evaluations_take_names(ready, monkeypatch):
    from dalle.config import Evaluate
    from dalle.evaluation.features.named import features
    from dalle.evaluation.steps import sources

    found = features("clip:tiny")
    assert found.hash == dalle.load("tiny", device="cpu").hashes["clip"]
    with pytest.raises(ValueError, match=r"features clip:tin: clip tin: no such folder"):
        features("clip:tin")
    config = Evaluate(output="x", model="tiny", captions="c.txt", judge="tiny")
    assert sources._judge(config, None, "cpu").hash == found.hash


def test_tokenize_takes_names(ready, shapes_folder, tmp_path):
    from dalle.cli.data.tokenize import tokenize

    tokenize(["--data", f"{shapes_folder}/valid-000.tar", "--dvae", "tiny", "--output", str(tmp_path / "tokens")])
    meta = json.loads((tmp_path / "tokens/meta.json").read_text())
    assert meta["dvae_hash"] == read_header(ready / "tiny/dvae")["hash"]


def test_the_list_says_what_there_is(ready, capsys):
    (ready / "tiny/prior/notes.bin").write_bytes(bytes(5_000_000))  # which is no part of a model
    sample(["--list"])
    said = capsys.readouterr().out
    num_bytes = sum(
        path.stat().st_size
        for path in (ready / "tiny").rglob("*")
        if path.name in ("README.md", "model.safetensors", "config.yaml", "tokenizer.json", "tokenizer.words.json")
    )
    for words in (
        "tiny: Circles, mostly red ones.\n",
        "32×32 px",
        f"{num_bytes / 1e6:.1f} MB",
        "licence  mit",
        f"folder   {ready}/tiny",
        'dalle-sample --model tiny "a red circle"',
    ):
        assert words in said, said
    pipeline = dalle.load("tiny", device="cpu")
    count = sum(weights.numel() for weights in pipeline.prior.state_dict().values())
    assert f"prior {count:,}" in said or f"prior {count / 1e6:.1f} M" in said
    shutil.rmtree(ready / "tiny/clip")
    (ready / "tiny/README.md").unlink()
    sample(["--list"])
    assert "tiny: no card says what it draws" in (said := capsys.readouterr().out) and "clip" not in said
