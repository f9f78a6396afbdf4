"""From a folder to ranked drawings: determinism in n, image prompts, refusals."""

import json

import numpy as np
import pytest
from PIL import Image

import dalle
from dalle.cli.sample import sample
from dalle.config import Sampling

FAST = Sampling(chunk=4, precision="fp32")


@pytest.fixture(scope="module")
def pipeline(models):
    return dalle.load(models)


def test_candidate_i_is_the_same_image_whatever_n_is(pipeline):
    few = {d.seed: d for d in pipeline.generate("a red circle", n=3, seed=10, sampling=FAST)}
    many = {d.seed: d for d in pipeline.generate("a red circle", n=9, seed=10, sampling=FAST)}
    assert sorted(few) == [10, 11, 12]
    assert sorted(many) == list(range(10, 19))
    for seed, drawing in few.items():
        assert np.array_equal(drawing.image, many[seed].image)
        assert drawing.score == many[seed].score


def test_ranked_best_first_and_cut(pipeline):
    every = pipeline.generate("a red circle", n=6, sampling=FAST)
    best = pipeline.generate("a red circle", n=6, keep=2, sampling=FAST)
    assert [d.score for d in every] == sorted((d.score for d in every), reverse=True)
    assert [d.seed for d in best] == [d.seed for d in every[:2]]
    assert [d.rank for d in best] == [1, 2]
    assert set(best[0].settings["models"]) == {"prior", "dvae", "tokenizer"}


def test_without_a_reranker_the_order_is_that_of_the_seeds(models):
    drawings = dalle.load(models, rerank=False).generate("a red circle", n=5, keep=3, sampling=FAST)
    assert [d.seed for d in drawings] == [0, 1, 2]
    assert [d.score for d in drawings] == [None] * 3


def test_image_prompt_keeps_its_rows(pipeline):
    prompt = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    given = pipeline._given(1, prompt, 3)
    (chunk,) = pipeline.candidates(["a red circle"], 2, 0, FAST, prompt, 3)
    assert given.shape == (1, 12)
    assert (chunk.codes_CNI[0, :, :12] == given.cpu().numpy()).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n 0"),
        ({"keep": 0}, "keep 0"),
        ({"caption": "  "}, "empty"),
        ({"rows": 4, "prompt_image": Image.new("RGB", (8, 8))}, "rows 4"),
        ({"rows": 2}, "image prompt"),
    ],
)
def test_refusals(pipeline, options, message):
    options = {"caption": "a red circle", **options}
    with pytest.raises(ValueError, match=message):
        pipeline.generate(**options, sampling=FAST)


def test_long_captions_are_cut_with_a_warning_that_shows_what_was_lost(pipeline):
    with pytest.warns(UserWarning, match="cut off: .*zebra"):
        tokens = pipeline.tokens(["1 2 3 4 5 6 7 8 9 1 2 3 4 zebra"])
    assert tokens.shape == (1, 23)


def test_sample_command_writes_grid_and_gallery(models, tmp_path, capsys):
    arguments = ["--model", str(models), "--output", str(tmp_path / "out"), "--n", "5", "--keep", "2", "--rerank"]
    sample([*arguments, "--sampling.chunk", "4", "a red circle"])
    grid = Image.open(tmp_path / "out" / "grid.png")
    assert json.loads(grid.text["captions"]) == ["a red circle"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["rank"] for line in lines] == [1, 2]
    assert (tmp_path / "out" / "index.html").is_file()
    assert "best 2 of 5" in capsys.readouterr().out


def test_another_dvae_or_tokenizer_is_refused_with_both_hashes(models, tmp_path):
    from dalle.models.dvae import DVAE
    from dalle.models.folder import read_config, read_header, save_weights

    config = read_config(models / "dvae", "dvae")
    other = save_weights(tmp_path / "dvae", "dvae", DVAE(config).state_dict(), config, {})
    with pytest.raises(ValueError, match=f"another dVAE.*{read_header(models / 'dvae')['hash'][:16]}.*{other[:16]}"):
        dalle.load(models, dvae=tmp_path / "dvae")
    with pytest.raises(ValueError, match="holds a dvae, not a prior"):
        dalle.load(models, prior=models / "dvae", dvae=models / "dvae")
    with pytest.raises(ValueError, match="no trained model"):
        dalle.load(tmp_path / "nowhere")
