"""`dalle-sample`: what it writes, what it takes up again, what it draws again, and what it refuses."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from dalle.cli import arguments
from dalle.cli.sample import sample
from dalle.config import Sample
from dalle.models.folder import read_config, read_header, save_weights
from dalle.sampling import candidates
from dalle.sampling.drawing import read_drawing, save_drawing
from dalle.sampling.model_set import find_models
from dalle.text import CaptionWarning

FAST = ["--sampling.chunk", "4", "--sampling.precision", "fp32"]


@pytest.fixture
def base(models, tmp_path):
    return ["--model", str(models), "--output", str(tmp_path / "out"), *FAST]


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a red circle\n\na  blue cross\na red circle\n")
    return path


@pytest.fixture(scope="module")
def drawn(models, tmp_path_factory):
    """A folder with a few drawings."""
    folder = tmp_path_factory.mktemp("drawn")
    sample(
        ["--model", str(models), "--output", str(folder), *FAST, "--n", "6", "--keep", "2", "--rerank", "a red circle"]
    )
    return folder


def _results(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_grid_and_gallery(drawn):
    grid = Image.open(drawn / "grid.png")
    assert json.loads(grid.text["captions"]) == ["a red circle"]
    lines = _results(drawn)
    assert [line["rank"] for line in lines] == [1, 2]
    assert {(line["caption"], line["candidates"], line["settings"]["chunk"]) for line in lines} == {
        ("a red circle", 6, 4)
    }
    assert set(lines[0]["settings"]["models"]) == {"prior", "dvae", "tokenizer", "clip"}
    assert (drawn / "index.html").is_file()
    for line in lines:
        drawing = read_drawing(drawn / line["file"])
        assert (drawing.seed, drawing.score) == (line["seed"], line["score"])


def test_again_says_whether_the_pixels_are_the_same(drawn, models, tmp_path, capsys):
    file = drawn / _results(drawn)[1]["file"]
    sample(["--model", str(models), "--output", str(tmp_path), "--again", str(file)])
    assert "all pixels are those of" in capsys.readouterr().out
    assert np.array_equal(read_drawing(tmp_path / f"{file.stem}-again.png").image, read_drawing(file).image)
    with Image.open(file) as image:
        image.load()
        changed, text = image.copy(), image.text
    changed.putpixel((3, 4), (1, 2, 3))
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, value in text.items():
        info.add_itxt(name, value.replace('"torch": "', '"torch": "0'))
    changed.save(tmp_path / "changed.png", pnginfo=info)
    with pytest.warns(UserWarning, match="torch was 0"), pytest.raises(SystemExit) as left:
        sample(["--model", str(models), "--output", str(tmp_path), "--again", str(tmp_path / "changed.png")])
    assert left.value.code == 1
    assert "1 of 1024 pixels are not those of" in capsys.readouterr().out
    info = PngInfo()
    for name, value in text.items():
        info.add_itxt(name, value)
    image.resize((40, 48)).save(tmp_path / "resized.png", pnginfo=info)
    with pytest.raises(SystemExit) as left:
        sample(["--model", str(models), "--output", str(tmp_path), "--again", str(tmp_path / "resized.png")])
    assert left.value.code == 1
    assert "resized.png has 40×48 px, and was drawn with 32×32" in capsys.readouterr().out


def test_many_captions_are_taken_up_where_they_were_left(base, captions, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    arguments = [*base, "--captions", str(captions), "--n", "5", "--keep", "2"]
    whole = candidates.draw
    calls = []

    def interrupted(pipeline, work, **more):
        for number, part in enumerate(whole(pipeline, work, **more)):
            if number == 3:  # the first caption whole, the first chunk of the second
                raise KeyboardInterrupt
            yield part

    def counted(pipeline, work, **more):
        calls.append(work.captions)
        return whole(pipeline, work, **more)

    monkeypatch.setattr(candidates, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample(arguments)
    assert "interrupted; 9 of 10 candidates were drawn" in capsys.readouterr().err
    assert [(line["caption"], line["candidates"]) for line in _results(out)] == [
        ("a red circle", 5), ("a red circle", 5), ("a blue cross", 4), ("a blue cross", 4),
    ]  # fmt: skip
    monkeypatch.setattr(candidates, "draw", counted)
    sample(arguments)
    assert calls == [("a blue cross",)]
    assert "1 of 2 captions are there already" in capsys.readouterr().err
    lines = _results(out)
    assert [line["candidates"] for line in lines] == [5] * 4
    assert all((out / line["file"]).is_file() for line in lines)
    assert (out / "sheet.png").is_file()
    sample(arguments)  # nothing is left to do
    assert len(calls) == 1
    assert _results(out) == lines
    for options, message in (
        (["--sampling.temperature", "0.5"], r"another request \(sampling.temperature was 0.9, is 0.5\)"),
        (["--n", "6"], r"\(n was 5, is 6\)"),
        (["--rerank", "false"], r"\(models.clip was .*, is null\)"),
    ):
        with pytest.raises(ValueError, match=message):
            sample([*arguments, *options])
    with pytest.raises(ValueError, match="holds the drawings of a file of captions"):
        sample([*base, "a red circle"])
    (out / "request.json").unlink()
    with pytest.raises(ValueError, match="holds other drawings"):
        sample(arguments)


def test_what_of_captions_is_cut_or_unknown_is_told_once_for_all(models, tmp_path, capsys):
    long = "1 2 3 4 5 6 7 8 9 1 2 3 4 5 zebra"
    path = tmp_path / "captions.txt"
    path.write_text(f"a red circle\n{long}\n{long} zebra\nan unheard circle\n")
    base = ["--model", str(models), *FAST, "--n", "1", "--keep", "1"]
    for given, expected in (
        (["--captions", str(path)], "2 of 4 captions (50%) were cut to the 23 tokens that are read; the first of them"),
        ([long], "the caption has"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sample([*base, "--output", str(tmp_path / str(len(given))), *given])
        told = [str(warning.message) for warning in caught if issubclass(warning.category, CaptionWarning)]
        assert told[0].startswith(expected) and "zebra" in told[0]
        assert len(told) == 2 and "'zebra'" in told[1] and told[1].endswith("in no training caption")
        assert ("unheard" in told[1]) == ("--captions" in given)


def test_a_caption_that_is_no_text_is_refused_before_models_are_loaded(models, tmp_path, monkeypatch):
    monkeypatch.setattr("dalle.sampling.loading.load_models", None)
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps({"caption": "a \ud83d cat"}))
    for given in (["caf\udce9"], ["--captions", str(path)]):
        with pytest.raises(ValueError, match="is no text"):
            sample(["--model", str(models), "--output", str(tmp_path / "out"), *given])
    assert not (tmp_path / "out").exists()


def test_interrupting_keeps_the_best_found_so_far(base, tmp_path, capsys, monkeypatch):
    whole = candidates.draw

    def interrupted(pipeline, work, **more):
        yield next(whole(pipeline, work, **more))
        raise KeyboardInterrupt

    monkeypatch.setattr(candidates, "draw", interrupted)
    monkeypatch.setattr("dalle.sampling.output._WRITE_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        sample([*base, "--n", "100", "--keep", "3", "a red circle"])
    said = capsys.readouterr()
    assert "interrupted; 4 of 100 candidates were drawn" in said.err
    assert "the best 3 of 4" in said.out
    assert [line["candidates"] for line in _results(tmp_path / "out")] == [4] * 3

    monkeypatch.setattr(candidates, "draw", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sample([*base[:3], str(tmp_path / "none"), *base[4:], "a red circle"])
    assert "before anything was drawn" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_variations_of_a_drawing(drawn, base, tmp_path):
    file = drawn / _results(drawn)[0]["file"]
    sample([*base, "--variations-of", str(file), "--region", "8,8,16,16", "--n", "2"])
    codes = read_drawing(file).codes_I.reshape(4, 4)
    for line in _results(tmp_path / "out"):
        assert line["caption"] == "a red circle"
        other = read_drawing(tmp_path / "out" / line["file"]).codes_I.reshape(4, 4)
        assert {tuple(cell) for cell in np.argwhere(other != codes)} <= {(1, 1)}


def test_equal_drawings_are_shown_once(drawn, base, tmp_path, capsys):
    """Of variations in which one code alone is drawn, of 16 codes."""
    file = drawn / _results(drawn)[0]["file"]
    options = [*base, "--variations-of", str(file), "--region", "24,24,32,32", "--n", "40", "--rerank"]
    sample([*options, "--keep", "40"])
    out = tmp_path / "out"
    lines = _results(out)
    codes = {read_drawing(out / line["file"]).codes_I.tobytes() for line in lines}
    assert len(codes) == len(lines) == len(list((out / "images").iterdir())) <= 16
    assert sum(line["times"] for line in lines) == 40
    assert [line["rank"] for line in lines] == list(range(1, len(lines) + 1))
    assert f"the best {len(lines)} of 40, {len(lines)} of which differ: " in capsys.readouterr().out
    assert [r["times"] for r in json.loads(Image.open(out / "grid.png").text["dalle"])["drawings"]] == [
        line["times"] for line in lines
    ]
    sample([*options[:3], str(tmp_path / "few"), *options[4:], "--keep", "2"])
    assert f"the best 2 of 40, {len(lines)} of which differ: " in capsys.readouterr().out
    assert [(r["seed"], r["times"]) for r in _results(tmp_path / "few")] == [(r["seed"], r["times"]) for r in lines[:2]]


def test_codes_of_a_file_are_checked_before_models_are_loaded(drawn, models, tmp_path, monkeypatch):
    drawing = read_drawing(drawn / _results(drawn)[0]["file"])
    save_drawing(replace(drawing, codes_I=drawing.codes_I + 16), tmp_path / "wild.png")
    monkeypatch.setattr("dalle.sampling.loading.load_prior", None)
    options = ["--model", str(models), "--output", str(tmp_path / "out"), "--rows", "2"]
    with pytest.raises(
        ValueError, match=r"wild\.png: its metadata are damaged: code .*, where this prior has codes 0 to 15"
    ):
        sample([*options, "--variations-of", str(tmp_path / "wild.png")])
    assert not (tmp_path / "out").exists()


def test_a_model_with_a_reranker_ranks_unless_told_otherwise(drawn, models, tmp_path, capsys):
    """`drawn` asked for it."""
    out, options = tmp_path / "out", [*FAST, "--n", "6", "--keep", "2", "a red circle"]
    sample(["--model", str(models), "--output", str(out), *options])
    ranked = [(line["seed"], line["score"]) for line in _results(drawn)]
    assert [(line["seed"], line["score"]) for line in _results(out)] == ranked and ranked[0][1] is not None
    for off in (["--rerank", "false"], ["--rerank=false"]):
        sample(["--model", str(models), "--output", str(out), "--overwrite", *off, *options])
        assert [(line["seed"], line["score"]) for line in _results(out)] == [(0, None), (1, None)]
    assert "no reranker" not in capsys.readouterr().err
    # one without draws in the order of the seeds, and says so; where ranking was asked for it is refused
    bare = tmp_path / "bare"
    bare.mkdir()
    for part in ("prior", "dvae"):
        (bare / part).symlink_to(models / part)
    (bare / "clip").mkdir()  # whose training has not finished
    sample(["--model", str(bare), "--output", str(out), "--overwrite", *options])
    assert [(line["seed"], line["score"]) for line in _results(out)] == [(0, None), (1, None)]
    assert "bare has no reranker: of 6 candidates the first 2 that differ are kept" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"clip holds no trained model"):
        sample(["--model", str(bare), "--output", str(out), "--overwrite", "--rerank", *options])
    captions = tmp_path / "captions.txt"
    captions.write_text("a red circle\n")
    layout = ["--layout", "geneval", "--captions", str(captions), "--output", str(tmp_path / "layout"), *options[:-1]]
    with pytest.raises(ValueError, match="layout geneval with n 6 and keep 2: without a reranker none is better"):
        sample(["--model", str(bare), *layout])
    assert not (tmp_path / "layout").exists()


def test_a_reranker_of_other_models_is_left_out_unless_asked_for(models, tmp_path):
    header = read_header(models / "clip")
    config = read_config(models / "clip", "clip")
    links = {"dvae_hash": "0" * 64, "tokenizer_hash": header["tokenizer_hash"]}
    whole = tmp_path / "whole"
    for part in ("prior", "dvae"):
        (whole / part).parent.mkdir(exist_ok=True)
        (whole / part).symlink_to(models / part)
    save_weights(whole / "clip", "clip", load_file(models / "clip/model.safetensors"), config, links)
    with pytest.raises(ValueError, match="was trained for another dVAE"):  # in a folder that does not fit itself
        find_models(whole)
    for replaced in ({"dvae": models / "dvae"}, {"prior": models / "prior"}):
        with pytest.warns(UserWarning, match="nothing is ranked: the reranker .*clip was trained for another dVAE"):
            found = find_models(whole, **replaced)
        assert found.clip is None and "clip" not in found.hashes
        with pytest.raises(ValueError, match="was trained for another dVAE"):
            find_models(whole, **replaced, rerank=True)
    assert find_models("nowhere", dvae=models / "dvae", prior=models / "prior").clip is None
    assert find_models("nowhere", models / "dvae", models / "prior", models / "clip").clip == str(models / "clip")
    assert find_models(models, clip=models / "clip", rerank=False).clip is None


def test_an_image_of_another_size_is_said(base, tmp_path):
    Image.new("RGB", (70, 50), "red").save(tmp_path / "wide.png")
    prompt = ["--prompt-image", str(tmp_path / "wide.png")]
    with pytest.warns(UserWarning, match="70×50 px: its central square was brought to 32×32"):
        sample([*base, *prompt, "--rows", "3", "--n", "1", "a red circle"])
    with pytest.raises(ValueError, match="leaves the prompt image, which has 70×50 px"):
        sample([*base, *prompt, "--region", "0,0,71,20", "a red circle"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "caption: is missing or empty"),
        ([""], "caption: is missing or empty"),
        (["   "], "caption: is empty"),
        (["--captions", "c.txt", "a cat"], "caption and captions"),
        (["--captions", "gone.txt"], "gone.txt: No such file"),
        (["--captions", "{tmp}/empty.txt"], "has no caption"),
        (["--sampling.top_k", "17", "a cat"], "top_k 17: .*16 codes"),
        (["--rows", "2", "a cat"], "prompt_image and rows"),
        (["--prompt-image", "x.png", "a cat"], "prompt_image and rows"),
        (["--prompt-image", "x.png", "--rows", "1", "--region", "0,0,8,8", "a cat"], "rows and region"),
        (["--prompt-image", "x.png", "--variations-of", "y.png", "--rows", "1"], "prompt_image and variations_of"),
        (["--prompt-image", "{tmp}/empty.txt", "--rows", "1", "a cat"], "prompt_image .*empty.txt: .*does not decode"),
        (["--prompt-image", "x.png", "--region", "0,0,8", "a cat"], "region 0,0,8: must be four whole numbers"),
        (["--prompt-image", "x.png", "--region", "8,0,8,8", "a cat"], "region 8,0,8,8: is empty"),
        (["--prompt-image", "x.png", "--region=-8,0,8,8", "a cat"], "region -8,0,8,8: begins outside"),
        (["--variations-of", "gone.png", "--rows", "1"], "variations_of gone.png: No such file"),
        (["--again", "gone.png"], "gone.png: No such file"),
        (["--processes", "0", "a cat"], "processes 0"),
        (["--rerank", "false", "--clip", "x", "a cat"], "rerank false and clip x"),
        (["--rerank=perhaps", "a cat"], "rerank perhaps: must be true or false or null"),
        (
            ["--layout", "geneval", "--captions", "c.txt", "--keep", "2", "--rerank", "false"],
            "without a reranker none is better",
        ),
        (["--clip", "{models}/prior", "a cat"], "holds a prior, not a clip"),
    ],
)
def test_refusals_come_before_models_are_loaded(models, tmp_path, monkeypatch, options, message):
    (tmp_path / "empty.txt").write_text("\n")
    monkeypatch.setattr("dalle.sampling.loading.load_prior", None)
    options = [option.format(tmp=tmp_path, models=models) for option in options]
    with pytest.raises(ValueError, match=message):
        sample(["--model", str(models), "--output", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", [["--n", "5"], ["--sampling.temperature", "0.5"], ["a cat"], ["--captions", "c.txt"]]
)
def test_again_takes_no_other_settings(option):
    with pytest.raises(ValueError, match=r"again and .*leave .* out"):
        arguments.parse(Sample, "dalle-sample", ["--again", "x.png", *option], positional="caption")


def test_what_a_caption_may_look_like():
    for caption in ("null", "true", "12", "a: b", "[a]", "8,8,16,16"):
        assert arguments.parse(Sample, "dalle-sample", [caption], positional="caption").caption == caption
    config = arguments.parse(
        Sample, "dalle-sample", ["a", "--prompt-image", "x.png", "--region", "8,8,16,16"], "caption"
    )
    assert config.region_px() == (8, 8, 16, 16)
