"""Ranking before drawing, timed and judged: each side does what it says, what is timed of some stands for all, and the pictures
that are judged are those that a pipeline would have put first."""

import argparse
import importlib
import sys
from functools import partial, partialmethod
from pathlib import Path

import pytest

import dalle
from dalle.config import Sampling
from tests.conftest import ROOT
from tests.tools.in_this_process import InThisProcess

sys.path.insert(0, str(ROOT / "tools"))
rerank = importlib.import_module("benchmarks.rerank")

pytestmark = pytest.mark.usefixtures("one_thread")
CAPTION = "a red circle"


def _options(*words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    rerank.add_options(parser)
    return parser.parse_args([*words])


def test_the_case_says_all_and_what_is_timed_of_some_stands_for_all(monkeypatch):
    decoded, read, drawn = [], [], []

    def recorded(seen, build):
        def noted(what, call):
            seen.append(what)
            call()

        return lambda *given: {what: partial(noted, what, call) for what, call in build(*given).items()}

    monkeypatch.setattr(rerank, "Side", InThisProcess)
    monkeypatch.setattr(rerank, "best_rate", lambda call, work: 1e12)
    monkeypatch.setattr(rerank, "_full", recorded(decoded, rerank._full))
    monkeypatch.setattr(rerank, "_shortlist", recorded(read, rerank._shortlist))
    monkeypatch.setattr(rerank.sides_sample, "ours", recorded(drawn, rerank.sides_sample.ours))
    taken = {"full": [2.0], "ours": [1.5], "draw": [4.0]}
    counted = rerank.seconds
    monkeypatch.setattr(rerank, "seconds", lambda sides, repeats: counted(sides, repeats) and taken)
    (result,) = rerank.run(_options("--quick", "--json"))
    assert decoded == read == ["rank"] * 2 and drawn == ["image"] * 2  # the first of each warms up
    # 4 of 6 are decoded in full, and 4 of 6 drawn
    assert result["seconds"] == {"full": 3.0, "ours": 1.5, "ratio": 2.0}
    assert result["with_drawing"] == {"full": 9.0, "ours": 7.5, "drawing": 6.0, "ratio": 1.2}
    assert (result["ours"], result["peers"], result["ratio"]) == (4.0, {"full": 2.0}, {"full": 2.0})
    flops = result["settings"]["decode_flops_per_image"]
    assert result["limit"] == pytest.approx(6 / (2 * flops / 1e12))
    assert "accuracy" not in result


def test_each_side_decodes_what_it_says(monkeypatch):
    from dalle.config import DVAEModel
    from dalle.models.clip import CLIP
    from dalle.models.dvae import DVAE

    options = _options("--quick")
    vars(options).update(rerank._QUICK)
    config = DVAEModel(image_size_px=32, encoder_width=8, decoder_input_width=8)
    sides = {"full": rerank._full(config, 6, options), "ours": rerank._shortlist(config, options)}
    counts = {"decoded": 0, "seen": 0, "read": 0}

    def counted(call, what, model, rows):
        counts[what] += len(rows)
        return call(model, rows)

    for cls, name, what in ((DVAE, "decode", "decoded"), (CLIP, "embed_images", "seen"), (CLIP, "embed_codes", "read")):
        monkeypatch.setattr(cls, name, partialmethod(partial(counted, getattr(cls, name), what)))
    for side, expected in (("full", (8, 8, 0)), ("ours", (4, 4, 6))):  # in batches of a chunk of 4, the last filled up
        sides[side]["rank"]()
        assert tuple(counts.values()) == expected
        counts.update(dict.fromkeys(counts, 0))


def test_the_pictures_that_are_judged_are_those_a_pipeline_puts_first(models, codes_clip):
    pipeline = dalle.load(models, device="cpu", shortlist=True, codes_clip=codes_clip)
    sampling = Sampling(chunk=4, precision="fp32")
    picked = rerank._picked(pipeline, CAPTION, 14, 3, sampling)
    options = {"n": 14, "keep": 1, "sampling": sampling}
    assert picked["full"].seed == pipeline.generate(CAPTION, **options)[0].seed
    assert picked["shortlist"].seed == pipeline.generate(CAPTION, **options, shortlist=3)[0].seed
    assert picked["codes_alone"].seed == pipeline.generate(CAPTION, **options, shortlist=1)[0].seed
    assert picked["unranked"].seed == 0
    assert len({drawing.seed for drawing in picked.values()}) > 2  # so that they are told apart


def test_accuracy_is_the_share_of_captions_whose_first_picture_is_right(
    models, codes_clip, shapes_folder, tmp_path, monkeypatch
):
    whole = Path(tmp_path)
    for name in ("prior", "dvae", "clip"):
        (whole / name).symlink_to(models / name)
    options = _options(
        "--model", str(whole), "--codes_clip", str(codes_clip), "--shards", f"{shapes_folder}/valid-*.tar"
    )
    vars(options).update(n=4, shortlist=2, captions=4, chunk=4, precision="fp32")
    rights = iter([1, 0, 1, 0] * 2 + [1, 1, 0, 0] * 2)  # full, shortlist, codes alone, unranked
    monkeypatch.setattr("dalle.data.shapes.shows", lambda image, claim: next(rights))
    found = rerank.accuracy(options)
    assert (found["full"], found["shortlist"], found["codes_alone"], found["unranked"]) == (1.0, 0.5, 0.5, 0.0)
    assert (found["points"], found["captions"], found["n"], found["shortlist_of"]) == (-50.0, 4, 4, 2)
    assert 0 <= found["listed"] <= 1
    assert next(rights, None) is None
