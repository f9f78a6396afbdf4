"""Ranking before drawing: the shortlist is that of a plain sort, what is decoded of it is to the bit what is drawn without one,
whoever draws it and however it ends."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dalle
from dalle.cli import arguments
from dalle.cli.sample import sample
from dalle.config import Sample, Sampling
from dalle.models.clip import load_clip
from dalle.models.folder import read_header
from dalle.sampling import candidates
from dalle.sampling.candidates import Best, Work, draw
from dalle.sampling.drawing import read_drawing
from dalle.sampling.model_set import find_models
from dalle.sampling.prompt import Prompt
from dalle.sampling.ranking import shortlist as shortlists
from dalle.sampling.ranking.shortlist import Shortlist
from tests.conftest import threads

FAST = Sampling(chunk=4, precision="fp32")
CAPTION = "a red circle"
ONE_DRAWN = Prompt(np.arange(16), np.arange(16) < 15)  # all but the last code: so there are at most 16 drawings
OPTIONS = ["--sampling.chunk", "4", "--sampling.precision", "fp32"]


@pytest.fixture(scope="module")
def pipeline(models, codes_clip):
    return dalle.load(models, device="cpu", shortlist=True, codes_clip=codes_clip)


@pytest.fixture(scope="module")
def folder(models, codes_clip, tmp_path_factory):
    """A model's folder with all four of them."""
    whole = tmp_path_factory.mktemp("whole")
    for name in ("prior", "dvae", "clip"):
        (whole / name).symlink_to(models / name)
    (whole / "codes-clip").symlink_to(codes_clip)
    return whole


def _facts(drawings):
    return [(d.seed, d.score, d.rank, d.times, d.codes_I.tolist()) for d in drawings]


def _assert_same(found, expected):
    assert _facts(found) == _facts(expected)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, expected, strict=True))


def _plain(pipeline, n, prompt=None, seed=3):
    """All candidates that differ as they are drawn without a shortlist, in the order of their seeds, and how often they came."""
    first, times = {}, {}
    for chunk in pipeline.candidates([CAPTION], n, seed, FAST, prompt):
        for place in range(chunk.seeds_CN.shape[1]):
            drawing = chunk.drawing(0, place)
            key = tuple(drawing.codes_I)
            first.setdefault(key, drawing)
            times[key] = times.get(key, 0) + 1
    return [(drawing, times[key]) for key, drawing in first.items()]


@torch.inference_mode()
def _by_hand(pipeline, codes_clip, n, shortlist, keep, prompt=None):
    """Draw all, score the codes one by one, sort, and of the first sort again by the score of the pixels."""
    plain, reader = _plain(pipeline, n, prompt), load_clip(codes_clip)
    text_1E = reader.embed_texts(reader.tokens([CAPTION]))
    scores = [float((reader.embed_codes(torch.tensor(d.codes_I)[None]) * text_1E).sum()) for d, _ in plain]
    # unit vectors of 16 numbers, one by one and in a batch: what is compared has to differ by more than they round
    assert np.diff(np.sort(scores)).min() > 1e-6
    listed = [plain[i] for i in np.argsort(scores)[::-1][:shortlist]]
    best = sorted(listed, key=lambda one: (-one[0].score, one[0].seed))[:keep]
    return [replace(d, rank=rank, times=times) for rank, (d, times) in enumerate(best, 1)]


@pytest.mark.parametrize("given", [None, ONE_DRAWN], ids=["all", "repeated"])
@pytest.mark.parametrize("shortlist", [2, 5])
def test_a_shortlist_is_what_a_sort_of_all_candidates_by_their_codes_gives(pipeline, codes_clip, given, shortlist):
    expected = _by_hand(pipeline, codes_clip, 18, shortlist, 3, given)
    work = Work((CAPTION,), 18, 3, 3, FAST, given, shortlist)
    best = Best(work.keep)
    for part in Shortlist(work, pipeline.viewer().view).of(draw(pipeline, work)):
        best.take(part)
    _assert_same(best.ranked(), expected)
    assert (max(d.times for d in expected) > 1) == (given is not None)
    by_pixels = sorted((d for d, _ in _plain(pipeline, 18, given)), key=lambda d: -d.score)
    assert [d.seed for d in expected] != [d.seed for d in by_pixels[: len(expected)]]  # so that the shortlist shows


def test_a_shortlist_of_all_gives_the_very_same(pipeline):
    plain = pipeline.generate(CAPTION, n=10, seed=5, sampling=FAST)
    listed = pipeline.generate(CAPTION, n=10, seed=5, sampling=FAST, shortlist=10)
    _assert_same(listed, plain)
    for one, other in zip(listed, plain, strict=True):
        assert one.settings == {**other.settings, "shortlist": 10}
        assert "shortlist" not in other.settings
    few = pipeline.generate([CAPTION, "a blue cross"], n=10, seed=5, sampling=FAST, shortlist=4)
    assert [len(drawings) for drawings in few] == [4, 4]
    assert [drawings[0].caption for drawings in few] == [CAPTION, "a blue cross"]


def test_only_the_shortlist_is_decoded(pipeline, monkeypatch):
    decoded = []
    decode = pipeline.dvae.decode
    monkeypatch.setattr(pipeline.dvae, "decode", lambda codes: decoded.append(len(codes)) or decode(codes))
    drawings = pipeline.generate(CAPTION, n=22, seed=5, sampling=FAST, shortlist=6)
    assert len(drawings) == 6
    assert decoded == [4, 4]  # as wide as a chunk, the second filled up
    decoded.clear()
    told = []
    pipeline.generate(CAPTION, n=6, seed=5, sampling=FAST, progress=told.append)
    assert decoded == [4, 4] and told == [4, 2]


def test_codes_are_read_in_batches_of_one_width_and_in_fp32(pipeline, monkeypatch):
    widths = []
    embed = pipeline.codes_clip.embed_codes

    def recorded(codes_BI):
        widths.append((len(codes_BI), torch.is_autocast_enabled("cpu")))
        return embed(codes_BI)

    monkeypatch.setattr(pipeline.codes_clip, "embed_codes", recorded)
    monkeypatch.setattr("dalle.sampling.ranking.viewer._PATCHES_TOGETHER", 3 * 4)  # an image has four
    with torch.autocast("cpu", torch.bfloat16):
        pipeline.generate(CAPTION, n=7, sampling=replace(FAST, precision="bf16"), shortlist=2)
    assert widths == [(3, False)] * 4  # two of each chunk


def test_where_memory_runs_out_as_candidates_are_drawn_all_are_decoded_as_wide_as_drawn(pipeline, monkeypatch):
    whole = pipeline.chunk

    def tight(reading, first_seed, sampling, *more):
        if first_seed >= 9 and sampling.chunk > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(reading, first_seed, sampling, *more)

    monkeypatch.setattr(pipeline, "chunk", tight)
    options = {"n": 10, "seed": 5, "sampling": FAST}
    with pytest.warns(UserWarning, match="out of memory with 4"):
        plain, listed = (pipeline.generate(CAPTION, **options, shortlist=size) for size in (None, 10))
    assert {d.settings["chunk"] for d in listed} == {1, 4}
    _assert_same(listed, plain)


def test_where_memory_runs_out_as_they_are_decoded_the_rest_is_released_first(pipeline, monkeypatch):
    whole, events = shortlists.view, []

    def tight(*given):
        events.append("view")
        if "release" not in events:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*given)

    monkeypatch.setattr(shortlists, "view", tight)
    expected = pipeline.generate(CAPTION, n=4, sampling=FAST)
    monkeypatch.setattr(pipeline, "release", lambda: events.append("release"))
    _assert_same(pipeline.generate(CAPTION, n=4, sampling=FAST, shortlist=4), expected)
    assert events == ["view", "release", "view"]
    monkeypatch.setattr(shortlists, "view", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(ValueError, match=r"out of memory as the shortlist was decoded: give a smaller sampling\.chunk"):
        pipeline.generate(CAPTION, n=4, sampling=FAST, shortlist=4)


def test_parts_of_several_workers_in_any_order_give_one_shortlist(pipeline):
    """Blocks drawn in two halves, as two workers would, and the captions mixed."""
    work = Work((CAPTION, "a blue cross"), 10, 3, 5, FAST, None, 4)

    def best(parts):
        kept, drawn = [Best(work.keep) for _ in work.captions], [0, 0]
        for part in Shortlist(work, pipeline.viewer().view).of(parts):
            assert not part.drawings or drawn[part.caption] + part.drawn == 10  # with the last of its caption
            kept[part.caption].take(part)
            drawn[part.caption] += part.drawn
        assert drawn == [10, 10]
        return [caption.ranked() for caption in kept]

    halves = [*draw(pipeline, work, [1, 2, 5]), *draw(pipeline, work, [0, 3, 4, 9])]
    assert all(drawing.image is None for part in halves for drawing in part.drawings)
    for found, expected in zip(best(halves), best(draw(pipeline, work)), strict=True):
        _assert_same(found, expected)


def test_they_are_decoded_by_as_many_threads_as_drew_them(pipeline, monkeypatch):
    whole, seen = shortlists.view, []
    monkeypatch.setattr(shortlists, "view", lambda *given: seen.append(torch.get_num_threads()) or whole(*given))
    work = Work((CAPTION,), 4, 4, 5, FAST, None, 4)
    with threads(2):
        parts = list(draw(pipeline, work))
    with threads(1):
        (part,) = Shortlist(work, pipeline.viewer().view).of(parts)
        assert len(part.drawings) == 4 and seen == [2] and torch.get_num_threads() == 1


# ---- the command


def _results(path):
    return [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]


def _base(folder, output):
    return ["--model", str(folder), "--output", str(output), *OPTIONS, "--seed", "5", "--rerank"]


def test_the_command_finds_the_reader_and_says_what_was_decoded(folder, pipeline, tmp_path, capsys):
    sample([*_base(folder, tmp_path), "--n", "10", "--keep", "3", "--shortlist", "4", CAPTION])
    expected = pipeline.generate(CAPTION, n=10, keep=3, seed=5, sampling=FAST, shortlist=4)
    lines = _results(tmp_path)
    assert [line["seed"] for line in lines] == [d.seed for d in expected]
    # a CPU scores as it did before; a GPU chooses its products by their sizes, and may round otherwise
    scores = [line["score"] for line in lines]
    tolerance = 1e-3 if pipeline.device.type == "cuda" else 0
    assert scores == pytest.approx([d.score for d in expected], rel=0, abs=tolerance)
    assert "the best 3 of 10, at most 4 decoded" in capsys.readouterr().out
    settings = lines[0]["settings"]
    assert settings["shortlist"] == 4
    assert settings["models"]["codes_clip"] == read_header(folder / "codes-clip")["hash"]
    # and draws the very same once more, of which a shortlist decides nothing
    sample(["--model", str(folder), "--output", str(tmp_path), "--again", str(tmp_path / lines[1]["file"])])
    assert "all pixels are those of" in capsys.readouterr().out


def test_two_processes_make_the_shortlist_of_one(folder, pipeline, tmp_path):
    """Drawn with as many threads, and decoded in the first process with as many: convolutions round by their number."""
    with threads(2):
        sample([*_base(folder, tmp_path), "--n", "10", "--shortlist", "4", "--processes", "2", CAPTION])
        assert torch.get_num_threads() == 2
    with threads(1):
        expected = pipeline.generate(CAPTION, n=10, seed=5, sampling=FAST, shortlist=4)
    lines = _results(tmp_path)
    assert {line["settings"]["threads"] for line in lines} == {1}
    assert [(line["seed"], line["score"]) for line in lines] == [(d.seed, d.score) for d in expected]
    for line, drawing in zip(lines, expected, strict=True):
        assert np.array_equal(read_drawing(tmp_path / line["file"]).image, drawing.image)


@pytest.fixture
def interrupted(monkeypatch):
    """A draw that is interrupted after some parts."""
    whole = candidates.draw

    def after(count):
        def parts(pipeline, work, **more):
            for number, part in enumerate(whole(pipeline, work, **more)):
                if number == count:
                    raise KeyboardInterrupt
                yield part

        monkeypatch.setattr(candidates, "draw", parts)

    return after


def test_interrupting_decodes_the_shortlist_so_far(folder, pipeline, tmp_path, capsys, interrupted):
    interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        sample([*_base(folder, tmp_path), "--n", "100", "--shortlist", "3", CAPTION])
    said = capsys.readouterr()
    assert "interrupted; 8 of 100 candidates were drawn" in said.err
    assert "the best 3 of 8, at most 3 decoded" in said.out
    expected = pipeline.generate(CAPTION, n=8, seed=5, sampling=FAST, shortlist=3)
    assert [line["seed"] for line in _results(tmp_path)] == [d.seed for d in expected]


def test_interrupting_that_too_leaves_nothing_half_written(folder, tmp_path, capsys, monkeypatch, interrupted):
    interrupted(2)
    monkeypatch.setattr("dalle.sampling.output._WRITE_EVERY_S", 0.0)  # with nothing decoded yet
    monkeypatch.setattr(shortlists, "view", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sample([*_base(folder, tmp_path / "out"), "--n", "100", "--shortlist", "3", CAPTION])
    said = capsys.readouterr()
    assert "interrupted, before anything was decoded" in said.err and "the best" not in said.out
    assert not list((tmp_path / "out").rglob("*.png"))


def test_an_interruption_of_the_last_caption_as_it_is_decoded_loses_no_count(pipeline):
    work = Work((CAPTION,), 10, 10, 5, FAST, None, 4)
    calls = []

    def view(drawings):
        calls.append(len(drawings))
        if len(calls) == 1:
            raise KeyboardInterrupt
        return pipeline.viewer().view(drawings)

    shortlist, drawn = Shortlist(work, view), 0
    with pytest.raises(KeyboardInterrupt):
        for part in shortlist.of(draw(pipeline, work)):
            drawn += part.drawn
    (rest,) = shortlist.rest()
    assert (calls, drawn + rest.drawn, len(rest.drawings)) == ([4, 4], 10, 4)
    assert list(shortlist.rest()) == []


def test_many_captions_are_taken_up_and_another_shortlist_is_told(folder, tmp_path, capsys, interrupted, monkeypatch):
    captions = tmp_path / "captions.txt"
    captions.write_text(f"{CAPTION}\na blue cross\n")
    base = [*_base(folder, tmp_path / "out"), "--captions", str(captions), "--n", "5", "--keep", "2"]
    whole = candidates.draw
    interrupted(3)  # the first caption whole, the first chunk of the second
    with pytest.raises(KeyboardInterrupt):
        sample([*base, "--shortlist", "3"])
    found = [(line["caption"], line["candidates"]) for line in _results(tmp_path / "out")]
    assert found == [(CAPTION, 5), (CAPTION, 5), ("a blue cross", 4), ("a blue cross", 4)]
    monkeypatch.setattr(candidates, "draw", whole)
    capsys.readouterr()
    sample([*base, "--shortlist", "3"])
    assert "1 of 2 captions are there already" in capsys.readouterr().err
    assert [line["candidates"] for line in _results(tmp_path / "out")] == [5] * 4
    for options, was in ((["--shortlist", "4"], r"shortlist was 3, is 4"), ([], r"shortlist was 3, is null")):
        with pytest.raises(ValueError, match=rf"another request \({was}\)"):
            sample([*base, *options])


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--rerank", "false", "--shortlist", "4"],
            r"shortlist 4: is of what CLIP ranks by pixels; leave --rerank false out",
        ),
        (["--rerank", "--shortlist", "33"], r"shortlist 33: is more than n 32, so all would be decoded"),
        (["--rerank", "--shortlist", "0"], r"shortlist 0: must be at least 1"),
        (["--rerank", "--codes_clip", "x"], r"codes_clip x: makes a shortlist; say how many with --shortlist"),
        (["--again", "x.png", "--shortlist", "4"], r"again and shortlist: .*leave shortlist out"),
    ],
)
def test_settings_that_are_refused(options, message):
    caption = [] if "--again" in options else [CAPTION]
    with pytest.raises(ValueError, match=message):
        arguments.parse(Sample, "dalle-sample", [*options, *caption], positional="caption")


def test_models_that_make_no_shortlist(models, codes_clip, tmp_path):
    with pytest.raises(ValueError, match=r"no such reader of codes: .*codes-clip; train one with dalle-train-clip"):
        find_models(models, shortlist=True)
    with pytest.raises(ValueError, match=r"the reader of codes .*clip reads pixels"):
        find_models(models, shortlist=True, codes_clip=models / "clip")
    with pytest.raises(ValueError, match=r"the reranker .*codes-clip reads codes, not pixels"):
        find_models(models, clip=codes_clip)
    with pytest.raises(ValueError, match="holds a prior, not a clip"):
        find_models(models, shortlist=True, codes_clip=models / "prior")
    assert find_models(models, codes_clip=codes_clip).codes_clip is None  # where none is asked for
    other = _linked_to(codes_clip, tmp_path / "other", dvae_hash="0123456789abcdef" * 4)
    dvae_hash = read_header(models / "dvae")["hash"]
    refused = rf"the reader of codes .*other was trained for another dVAE: expected 0123456789abcdef…, found {dvae_hash[:16]}…"
    with pytest.raises(ValueError, match=refused):
        dalle.load(models, shortlist=True, codes_clip=other)


def _linked_to(source: Path, target: Path, **links: str) -> Path:
    """The same weights, of another training."""
    from safetensors.torch import load_file

    from dalle.models.folder import read_config, save_weights

    target.mkdir()
    shutil.copy(source / "tokenizer.json", target)
    header = read_header(source)
    known = {name: header[name] for name in ("dvae_hash", "tokenizer_hash")}
    weights = load_file(source / "model.safetensors")
    save_weights(target, "clip", weights, read_config(source, "clip"), {**known, **links})
    return target


def test_pipelines_that_make_no_shortlist(models, pipeline):
    for options, message in (
        ({"n": 4, "shortlist": 5}, r"shortlist 5: is more than n 4"),
        ({"n": 4, "shortlist": 0}, r"shortlist 0: must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline.generate(CAPTION, sampling=FAST, **options)
    with pytest.raises(ValueError, match=r"shortlist 2: load the models with shortlist=True"):
        dalle.load(models, device="cpu").generate(CAPTION, n=4, sampling=FAST, shortlist=2)
    with pytest.raises(ValueError, match=r"shortlist 2: load the models with rerank=True"):
        dalle.load(models, device="cpu", rerank=False).generate(CAPTION, n=4, sampling=FAST, shortlist=2)


def test_scores_that_are_not_finite_are_refused(pipeline, monkeypatch):
    options = {"n": 4, "seed": 2, "sampling": FAST, "shortlist": 2}
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.codes_clip, "embed_texts", lambda tokens: torch.full((1, 16), torch.nan))
        with pytest.raises(
            ValueError, match=r"the reader of codes gives scores that are not finite \(first for seed 2\)"
        ):
            pipeline.generate(CAPTION, **options)
    monkeypatch.setattr(pipeline.clip, "embed_texts", lambda tokens: torch.full((1, 16), torch.nan))
    with pytest.raises(ValueError, match=r"the reranker gives scores that are not finite"):
        pipeline.generate(CAPTION, **options)
